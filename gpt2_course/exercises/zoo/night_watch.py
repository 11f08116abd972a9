"""The night watch: a condition for validation that can never hold."""

from ...check import Wrong
from .common import lab
from .small import learn, stream, tiny


def due(
    step:int,  # updates done: 1, 2, 3 …
    every:int,
    steps:int, # of the run
) -> bool:     # whether to validate now
    "At every multiple, and at the end"
    return step % every == 0 or step == steps

def never_due(step, every, steps): return step % every == 0 and step % every == every - 1

def night_watch() -> list:
    "Rows of metrics of a run that was told to validate every ten steps"
    model, loader, rows = tiny(), stream(), []
    val = stream(16, split=2).next()
    losses, norms = learn(model, 60, lambda s: loader.next())
    for s, (l, g) in enumerate(zip(losses, norms), 1):
        rows.append(dict(step=s, split="train", loss=l, grad_norm=g))
        if never_due(s, 10, 60): rows.append(dict(step=s, split="val", loss=model(*val).item()))
    return rows

lab("night_watch", "a condition for validation that can never hold", "no row of validation in the "
    "whole log, and a doctor who finds nothing", "counting the rows by split",
    "medium/13_training.ipynb", "https://github.com/espnet/espnet/pull/1388", night_watch, (
        ("validation never runs: its condition cannot hold",
         "sixty steps, validation due every ten, and the log has not one row of it"),
        ("all is well: the doctor says so", "the doctor reads what is in the log; a check that "
         "never ran leaves no trace. Ask what ought to be there"),
        ("validation ran, and its rows come later", "rows are written when they are known, and the "
         "run is over"),
        ("the validation loss was NaN and was left out", "a NaN is a row like any other, and the "
         "doctor would name it")),
    answer="due",
    task="Whether to validate after `step` updates of `steps`: at each multiple of `every`, and "
         "after the last.",
    inputs=lambda seed: [(10, 10, 45), (45, 10, 45), (9, 10, 45), (20 + 10 * (seed % 2), 10, 45),
                         (1, 10, 45), (44, 10, 45), (40, 10, 40), (12, 4, 45), (10, 4, 45),
                         (45, 10, 60), (8, 8, 8), (3, 8, 3)],
    oracle=lambda step, every, steps: step in {*range(every, steps + 1, every), steps},
    wrongs=(
        Wrong("it can never hold", never_due,
              "Two conditions that exclude each other, such as one in steps and one in "
              "micro-batches: no validation, no best checkpoint, no early warning."),
        Wrong("the end is forgotten", lambda s, e, n: s % e == 0,
              "Unless the length is a multiple, the final model is never examined."),
        Wrong("the count is off by one", lambda s, e, n: (s + 1) % e == 0 or s == n,
              "Steps counted from 0 in one place and from 1 in another."),
        Wrong("it is always due", lambda s, e, n: True,
              "Right numbers, and most of the time is spent on them."),
        Wrong("only the end is due", lambda s, e, n: s == n,
              "One number per run: nobody sees when it began to go wrong, and there is no best "
              "checkpoint to go back to."),
        Wrong("the last step is counted from 0", lambda s, e, n: s % e == 0 or s == n - 1,
              "In a loop over range(steps) the last index is steps - 1; here step counts updates "
              "that are done, and the last is steps.")),
    hints=("Two cases, joined by or.", "step % every == 0 or step == steps"))

"""The babbler: an end of text that is taken for padding and never learnt."""

import numpy as np
import torch

from ...check import Wrong
from ...config import packaged
from ...generation import generate
from .common import lab
from .small import learn, letters, tiny


def targets_of(
    rows,    # (B, T + 1) token ids, each a document filled up with eot
    n,       # (B,) tokens of the document in each row, its own closing eot included
    eot:int, # id of <|endoftext|>
):           # (B, T) what follows each position; -1 behind the document
    "The closing eot is a target like any other; the filling is none"
    y = rows[:, 1:].clone()
    y[torch.arange(y.size(1)) >= (n - 1)[:, None]] = -1
    return y

def no_end(rows, n, eot): return rows[:, 1:].masked_fill(rows[:, 1:] == eot, -1)

def lines_of_hamlet(): # (lines, 33) ids, each a line closed and filled with eot; their lengths
    tok = letters()[0]
    text = packaged("shakespeare/hamlet.txt").read_text(encoding="utf-8")
    lines = [t for t in (line.strip() for line in text.splitlines()) if 4 < len(t) < 32][:800]
    rows = torch.full((len(lines), 33), tok.eot_token)
    for row, t in zip(rows, lines): row[:len(t)] = torch.tensor(tok.encode(t))
    return rows, torch.tensor([len(t) + 1 for t in lines])

def babbler() -> str:
    "Train on documents of one line each; let it write; ask it at true ends"
    (rows, n), tok = lines_of_hamlet(), letters()[0]
    y, model, r = no_end(rows, n, tok.eot_token), tiny(), np.random.default_rng(0)
    def batch(s):
        i = r.integers(len(rows), size=16)
        return rows[i, :-1], y[i]
    losses, _ = learn(model, 200, batch)
    out = generate(model, rows[:40, :1], 31, stop=tok.eot_token,
                   generator=torch.Generator().manual_seed(0))
    with torch.no_grad(): p = model.eval()(rows[:200, :-1]).softmax(-1)
    at_ends = p[torch.arange(200), n[:200] - 2, tok.eot_token]
    stopped = int((out == tok.eot_token).any(1).sum())
    return (f"loss {losses[0]:.2f} at first, {losses[-1]:.2f} at the end\n"
            f"lines in the text end after {n.float().mean():.0f} letters; of 40 written, {stopped} "
            f"came to an end\nprobability of the end where a line does end: {at_ends.mean():.1e}\n"
            + "\n".join(repr(tok.decode(o.tolist())) for o in out[:3]))

def filled_rows(seed):
    "Rows with short documents and one that is cut, so that no eot closes it"
    r = np.random.default_rng(seed)
    rows, n = torch.full((3, 7), 9), torch.tensor([4, 7, int(r.integers(2, 7))])
    for row, k, closed in zip(rows, n, (1, 0, 1)):
        row[:k - closed] = torch.from_numpy(r.integers(0, 9, int(k) - closed))
    other = torch.where(rows == 9, 11, rows)
    return [(rows, n, 9), (rows[:2], n[:2], 9), (other[::2].clone(), n[::2].clone(), 11)]

def targets_by_hand(rows, n, eot):
    "Position by position"
    return torch.tensor([[int(row[t + 1]) if t + 1 < k else -1 for t in range(len(row) - 1)]
                         for row, k in zip(rows, n.tolist())])

def cut_targets(shift): # a mistaken `targets_of`: ignores what lies `shift` too far or too early
    return lambda rows, n, eot: targets_of(rows, n + shift, eot)

lab("babbler", "end-of-text is the ignored target", "a model that never stops",
    "probability of the end at true ends", "easy/02_data.ipynb",
    "https://github.com/huggingface/trl/issues/976", babbler, (
        ("the end of a document is never a target: it is taken for padding",
         "the loss falls, the words are there, and the end has the probability of a token that "
         "was never seen"),
        ("it was trained too briefly", "the loss has fallen far; and even an untrained model gives "
         "the end a share of one in the size of the vocabulary, which is more"),
        ("the sampler ignores the end", "the probability is read from the model, before any "
         "sampling"),
        ("the documents are longer than the block", "all of them are shorter, by choice")),
    answer="targets_of",
    task="Targets (B, T) from rows (B, T + 1) of documents filled up with eot, n tokens of each "
         "real, its closing eot included: -1 behind the document only.",
    inputs=filled_rows, oracle=targets_by_hand,
    wrongs=(
        Wrong("every end-of-text is ignored", no_end,
              "The padding has the same id as the end: ignoring the id loses both, and the model "
              "never learns to stop."),
        Wrong("the filling is learnt too", lambda rows, n, eot: rows[:, 1:],
              "Most of the targets are then the end after the end: an easy task that hides the "
              "real loss."),
        Wrong("the last real target is ignored", cut_targets(-1),
              "One position too early: the end is lost again."),
        Wrong("one filling is learnt", cut_targets(1),
              "One position too late: the end is followed by another end."),
        Wrong("the targets are not shifted",
              lambda rows, n, eot: rows[:, :-1].masked_fill(
                  torch.arange(rows.size(1) - 1) >= n[:, None], -1),
              "Each position is to give the token after it: column t of the targets is column "
              "t + 1 of the rows."),
        Wrong("the document is ignored, and the filling is learnt",
              lambda rows, n, eot: rows[:, 1:].masked_fill(
                  torch.arange(rows.size(1) - 1) < (n - 1)[:, None], -1),
              "The mask is upside down: all that remains to be learnt is that an end follows an "
              "end.")),
    hints=("n tokens have n - 1 that follow another.", "Ignore positions t >= n - 1, whatever id "
           "stands there."),
    excused={"ignore eot": "the length says where a document ends, not the id: that is the point"})

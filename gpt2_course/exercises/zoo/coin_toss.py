"""The coin toss: log-likelihoods from bfloat16 logits, and answers that flip."""

import numpy as np
import torch

from ...check import Wrong
from .common import lab
from .small import letters, normal, trained


def log_likelihood(
    x, # (T, C) float32: the last hidden states
    W, # (V, C) float32: the head
    y, # (T,) targets
) -> float: # sum of log-probabilities of the targets
    "Logits and softmax in float32"
    return (x @ W.T).log_softmax(-1)[range(len(y)), y].sum().item()

def rounded_likelihood(x, W, y):
    return float((x.bfloat16() @ W.bfloat16().T).log_softmax(-1)[range(len(y)), y].sum())

@torch.no_grad()
def coin_toss() -> str:
    "200 questions with four endings that differ in one letter: answers by two ways of scoring"
    model, r = trained(), np.random.default_rng(0)
    V, ids = model.cfg.vocab_size, letters()[2].astype(np.int64)
    answers, margins = [], []
    for _ in range(200):
        at, scores = int(r.integers(len(ids) - 33)), []
        for _ in range(4):
            row = torch.from_numpy(ids[at:at + 33].copy())
            row[int(r.integers(10, 32))] = int(ids[int(r.integers(len(ids)))])
            h = model.hidden(row[None, :-1])[0, 8:]
            scores.append([f(h, model.lm_head.weight[:V], row[9:])
                           for f in (log_likelihood, rounded_likelihood)])
        answers.append(np.argmax(scores, 0))
        margins.append(np.diff(np.sort(np.array(scores)[:, 0]))[-1])
    flips, margins = np.array([a != b for a, b in answers]), np.array(margins)
    rows = [", ".join(f"{s[k]:.6g}" for s in scores) for k in (0, 1)]
    return (f"{flips.sum()} of {len(flips)} answers differ between the two scorings\n"
            f"margin of the best ending: {margins[flips].mean():.2f} where they differ, "
            f"{margins[~flips].mean():.2f} elsewhere\n"
            f"the last question, first way:  {rows[0]}\n                   second way: {rows[1]}")

def head_and_targets(seed):
    "Hidden states, a head, targets"
    draw, r = normal(seed), np.random.default_rng(seed)
    some = [(draw(T, 8), draw(V, 8), torch.from_numpy(r.integers(0, V, T)))
            for T, V in ((3, 20), (5, 50), (2, 11), (12, 30), (1, 20), (1, 40), (2, 15), (1, 30))]
    equal = torch.full((1, 8), 1000.0), draw(20, 8) / 1000, torch.from_numpy(r.integers(0, 20, 1))
    large = 1000 * torch.eye(3, 8), torch.eye(4, 8) - torch.eye(4, 8).roll(1, 1)
    near = torch.tensor([[1000.0, 1.0]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    return [*some, equal, (*large, torch.tensor([1, 2, 3])), (*near, torch.tensor([0]))]

def likelihood_numpy(x, W, y):
    "In float64"
    z = x.double().numpy() @ W.double().numpy().T
    return float(sum(r[t] - r.max() - np.log(np.exp(r - r.max()).sum())
                     for r, t in zip(z, y.tolist())))

lab("coin_toss", "log-likelihoods from bfloat16 logits",
    "answers that flip between two scorings of one model", "the same evaluation in float32",
    "tough/22_evaluation.ipynb",
    "https://github.com/EleutherAI/lm-evaluation-harness/pull/2921", coin_toss, (
        ("the second scoring is computed in bfloat16: three digits",
         "its scores stand on a coarse grid, and the answers flip where the best two are close"),
        ("the endings were drawn anew for the second scoring",
         "both score the same rows: most scores agree to two digits"),
        ("dropout", "nothing is drawn between the two: the model is in eval mode"),
        ("one of them divides by the length", "all endings have the same length: dividing would "
         "change no answer")),
    answer="log_likelihood",
    task="The sum of the log-probabilities of targets y (T,), from hidden states x (T, C) and the "
         "head W (V, C), in float32 throughout.",
    inputs=head_and_targets, oracle=likelihood_numpy, rtol=2e-5, atol=1e-4,
    wrongs=(
        Wrong("all of it is in bfloat16", rounded_likelihood,
              "Autocast was left on around the evaluation: answers whose margin is below a "
              "hundredth are decided by rounding."),
        Wrong("the logits are rounded before they become float32",
              lambda x, W, y: float((x.bfloat16() @ W.bfloat16().T).float()
                                    .log_softmax(-1)[range(len(y)), y].sum()),
              ".float() after the product cannot bring the lost digits back."),
        Wrong("the log-probabilities are rounded to bfloat16",
              lambda x, W, y: float((x @ W.T).log_softmax(-1).bfloat16()[range(len(y)), y].sum()),
              "Three digits are left of each, and of their sum: endings whose scores differ by "
              "less than a hundredth come out equal."),
        Wrong("the mean is taken", lambda x, W, y: log_likelihood(x, W, y) / len(y),
              "That is another protocol (per token): state which one a number is."),
        Wrong("the logits are added up, not their log-probabilities",
              lambda x, W, y: float((x @ W.T)[range(len(y)), y].sum()),
              "A logit means nothing by itself: adding 10 to all logits of a row changes no "
              "probability, but it changes this score."),
        Wrong("the probabilities are added up, without the logarithm",
              lambda x, W, y: float((x @ W.T).softmax(-1)[range(len(y)), y].sum()),
              "Probabilities of successive tokens are multiplied, their logarithms added: one "
              "impossible token has to rule an ending out."),
        Wrong("the softmax runs over the positions",
              lambda x, W, y: float((x @ W.T).log_softmax(0)[range(len(y)), y].sum()),
              "Each position has a distribution of its own over the vocabulary: the last axis of "
              "(T, V), not the first.")),
    hints=("Where are digits lost: in the product, in the softmax, or in both?",
           "Leave autocast, or call .float() before the product; then log_softmax."),
    excused={"batch": "one ending at a time: (T, C)"})

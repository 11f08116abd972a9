"""The two plays of many challenges, as letters: Hamlet to learn from, Macbeth held out."""

from functools import cache

import numpy as np
import torch

from ..config import packaged
from ..tokenizer import CharTokenizer


@cache
def letters() -> tuple: # CharTokenizer, (n,) ids of Hamlet, (m,) ids of Macbeth
    "One vocabulary for both plays"
    texts = [packaged(f"shakespeare/{name}.txt").read_text(encoding="utf-8")
             for name in ("hamlet", "macbeth")]
    tok = CharTokenizer("".join(texts))
    return tok, *(np.array(tok.encode(text), np.uint16) for text in texts)

def letter_tensors() -> tuple: # CharTokenizer, Hamlet and Macbeth as tensors of int64
    "The same for code that indexes with them"
    tok, *plays = letters()
    return tok, *(torch.from_numpy(ids.astype(np.int64)) for ids in plays)

"""Déjà vu: a document that lies on both sides of the border of validation and training."""

from ...check import Wrong
from ...config import packaged
from .common import lab


def split(
    lengths:list,   # tokens of each document, in order
    val_tokens:int, # at least so many for validation
) -> list:          # for each document, how many of its tokens are for validation: all or none
    "Whole documents from the first on, until there are enough"
    out, left = [], val_tokens
    for n in lengths:
        out.append(n if left > 0 else 0)
        left -= n
    return out

def cut_split(lengths, val_tokens):
    out, left = [], val_tokens
    for n in lengths:
        out.append(min(n, max(left, 0)))
        left -= n
    return out

def deja_vu() -> str:
    "The speeches of Hamlet, divided into validation and training; what meets at the border"
    text = packaged("shakespeare/hamlet.txt").read_text(encoding="utf-8")
    docs = [" ".join(d.split()) + " ¶ " for d in text[10_000:].split("\n\n") if len(d) > 60][:60]
    n = sum(cut_split([len(d) for d in docs], 4000))
    whole = "".join(docs)
    return (f"validation, {n} letters, ends with:\n   …{whole[n - 75:n]}\n"
            f"training, {len(whole) - n} letters, begins with:\n   {whole[n:n + 75]}…\n"
            f"¶ closes a document: {whole[:n].count('¶')} in validation, {whole[n:].count('¶')} in "
            f"training, {len(docs)} in all")

def while_they_fit(lengths, val_tokens):
    "Mistaken: whatever still fits is taken"
    out, left = [], val_tokens
    for n in lengths:
        out.append(n if n <= left else 0)
        left -= out[-1]
    return out

def one_too_many(lengths, val_tokens):
    "Mistaken: with exactly enough, it goes on"
    out, left = [], val_tokens
    for n in lengths:
        out.append(n if left >= 0 else 0)
        left -= n
    return out

lab("deja_vu", "a document straddles the border of training and validation",
    "a validation text that breaks off and goes on in training", "reading the border",
    "tough/21_prepare.ipynb", "https://github.com/openai/parameter-golf/issues/2127", deja_vu, (
        ("the border is drawn by tokens and cuts a document in two",
         "the sentence that validation breaks off goes on in training: what is examined was half "
         "learnt"),
        ("the end mark is missing", "it is there behind every document, on both sides"),
        ("the text was shuffled", "a shuffle of documents would not tear a sentence apart at the "
         "very border"),
        ("the two overlap", "no letter is on both sides; it is the document that is")),
    answer="split",
    task="How many tokens of each document go to validation, all or none of it: documents from the "
         "first on, until there are at least val_tokens.",
    inputs=lambda seed: [([5, 7, 4, 9 + seed % 3, 3], 10), ([8, 3, 6], 4), ([2, 2, 5, 6], 4),
                         ([3, 4], 0), ([2, 3, 4], 20), ([4, 1, 1], 4)],
    oracle=lambda lengths, v: [n if sum(lengths[:i]) < v else 0 for i, n in enumerate(lengths)],
    wrongs=(
        Wrong("the border cuts a document", cut_split,
              "Its first half is examined, its second half learnt, or the other way round: names, "
              "style and whole phrases leak."),
        Wrong("the document at the border goes to training",
              lambda ls, v: [n if sum(ls[:i + 1]) <= v else 0 for i, n in enumerate(ls)],
              "Clean, but validation is smaller than asked, and empty if the first document is "
              "long."),
        Wrong("the last documents are taken",
              lambda ls, v: split(ls[::-1], v)[::-1],
              "Clean too, but a stream that is still growing has no last document: the split "
              "changes whenever text is added."),
        Wrong("only documents that still fit are taken", while_they_fit,
              "Long documents all go to training, and short ones from later on come in their "
              "place: validation is no sample of the text any more, and it may still be too "
              "small."),
        Wrong("a document too many is taken where there is exactly enough", one_too_many,
              "With val_tokens reached, nothing is missing: the next document belongs to training "
              "already.")),
    hints=("Decide document by document: are there enough already?",
           "n if left > 0 else 0; then left -= n."))

"""Laws of tokenizers, shards and the loader, tried on many inputs."""

import json

import numpy as np
import pytest
import torch
from gpt2_course.config import UserError
from gpt2_course.data import TokenLoader, open_split, read_shard, write_shard
from gpt2_course.tokenizer import BPETokenizer, CharTokenizer, gpt2
from hypothesis import given, settings
from hypothesis import strategies as st

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
BPE = BPETokenizer.train("the king, the queen and the king's son; naïve 王 👑 " * 20, 320)
SIZES = st.lists(st.integers(5, 400), min_size=1, max_size=4)
settings.register_profile("course", max_examples=60, deadline=None, derandomize=True)
settings.load_profile("course")


@given(TEXT)
def test_bpe_and_gpt2_lose_nothing(text):
    assert BPE.decode(BPE.encode(text)) == text
    assert gpt2().decode(gpt2().encode_ordinary(text)) == text


@given(st.text(min_size=1, max_size=60))
def test_characters_lose_nothing(text):
    tok = CharTokenizer(text)
    assert tok.decode(tok.encode(text)) == text and max(tok.encode(text)) < tok.n_vocab - 1


def test_special_text_is_ordinary_text():
    "A document that contains the words <|endoftext|> does not end there"
    for tok in (BPE, gpt2()):
        ids = tok.encode_ordinary("a<|endoftext|>b")
        assert tok.eot_token not in ids and tok.decode(ids) == "a<|endoftext|>b"


@given(st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=300), st.sampled_from(["uint16", "uint32"]))
def test_shard_round_trip(tmp_path_factory, ids, dtype):
    path = tmp_path_factory.mktemp("shard") / "x.bin"
    write_shard(path, np.array(ids), dtype)
    assert read_shard(path).tolist() == ids


def loaders(sizes, T, order, world, B, position=0):
    shards = [np.arange(n, dtype=np.uint32) + 1000 * i for i, n in enumerate(sizes)]
    return [TokenLoader(shards, B, T, 7, order, rank, world, position) for rank in range(world)]


@given(SIZES, st.integers(1, 16), st.sampled_from(["epochs", "random", "sequential"]), st.integers(1, 4), st.integers(1, 3))
def test_union_of_ranks_is_the_stream_of_one(sizes, T, order, world, B):
    try:
        many, one = loaders(sizes, T, order, world, B), loaders(sizes, T, order, 1, B * world)[0]
    except UserError:  # no shard has a window
        assert max(sizes) <= T
        return
    for _ in range(12):
        parts = [m.next() for m in many]
        x, y = one.next()
        assert torch.equal(torch.cat([p[0] for p in parts]), x) and torch.equal(torch.cat([p[1] for p in parts]), y)
        assert (y == x + 1).all(), "a target is the token after its input, within one shard"
    assert {m.position for m in many} == {one.position}


@given(SIZES, st.integers(1, 8), st.integers(0, 200), st.integers(1, 3))
def test_resume_at_any_position_gives_the_same_stream(sizes, T, steps, world):
    if max(sizes) <= T:
        return
    whole = loaders(sizes, T, "epochs", world, 2)
    for loader in whole:
        for _ in range(steps):
            loader.next()
    again = loaders(sizes, T, "epochs", world, 2, whole[0].position)
    for a, b in zip(whole, again):
        for _ in range(5):
            assert torch.equal(a.next()[0], b.next()[0])


@given(SIZES, st.integers(1, 16), st.integers(0, 3))
def test_an_epoch_reads_each_window_once(sizes, T, epoch):
    if max(sizes) <= T:
        return
    loader = loaders(sizes, T, "epochs", 1, 1)[0]
    loader.position = epoch * loader.W
    targets = torch.cat([loader.next()[1].flatten() for _ in range(loader.W)])
    assert len(targets.unique()) == len(targets) == loader.W * T


def test_short_last_shard_is_no_trouble():
    assert loaders([100, 3], 8, "epochs", 2, 2)[1].next()[0].shape == (2, 8)
    with pytest.raises(UserError, match="no window of 8"):
        loaders([5, 3], 8, "epochs", 1, 1)


@pytest.mark.parametrize("name", ["train_/../../x.bin", "../train_000000.bin", "/train_000000.bin", ""])
def test_shards_lie_beside_their_description(tmp_path, name):
    (tmp_path / "data").mkdir()
    write_shard(tmp_path / "x.bin", np.arange(9, dtype=np.uint16))
    meta = dict(vocab_size=9, tokens=dict(train=9, val=0), shards={name: dict(tokens=9, sha256="0")})
    (tmp_path / "data" / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match="is not the name of a file beside it"):
        open_split(tmp_path / "data", "train")

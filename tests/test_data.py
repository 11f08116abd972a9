"""Shards byte by byte, prepared directories and what is refused in them, the loader against loops; then laws of tokenizers, shards and the loader, tried on many inputs."""

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from gpt2_course import data
from gpt2_course.config import UserError
from gpt2_course.data import TokenLoader, document_rows, epoch_starts, open_split, padded, read_meta, read_shard, sha256_file, share, verify, write_shard
from gpt2_course.tokenizer import BPETokenizer, CharTokenizer, gpt2
from hypothesis import given, settings
from hypothesis import strategies as st

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
BPE = BPETokenizer.train("the king, the queen and the king's son; naïve 王 👑 " * 20, 320)
SIZES = st.lists(st.integers(5, 400), min_size=1, max_size=4)
settings.register_profile("course", max_examples=60, deadline=None, derandomize=True)
settings.load_profile("course")

# --- shards ---


def header(n, magic=b"GPT2TOKS", version=1, itemsize=2):
    return struct.pack("<8sIIQ8x", magic, version, itemsize, n)


def test_a_shard_is_32_bytes_of_header_and_little_endian_ids(tmp_path):
    path = tmp_path / "a.bin"
    write_shard(path, np.array([1, 258, 65535]))
    assert path.read_bytes() == header(3) + struct.pack("<3H", 1, 258, 65535)
    write_shard(str(path), [7, 2**32 - 1], "uint32")  # in place of what was there
    assert path.read_bytes() == header(2, itemsize=4) + struct.pack("<2I", 7, 2**32 - 1)
    write_shard(path, np.array([5], dtype=">u2"))
    assert path.read_bytes() == header(1) + b"\5\0"
    for none in ([], np.zeros(0)):
        write_shard(path, none)
        assert path.read_bytes() == header(0)
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.parametrize(
    "ids, dtype, says",
    [
        ([-1, 3], "uint16", "ids from -1 to 3 do not fit uint16, which holds 0 to 65535"),
        ([2**16], "uint16", "ids from 65536 to 65536"),
        ([0, 2**32], "uint32", "which holds 0 to 4294967295"),
        ([1.0], "uint16", "whole numbers, not float64"),
        ([True], "uint16", "whole numbers, not bool"),
        (["a"], "uint16", "whole numbers"),
    ],
)
def test_ids_that_cannot_be_stored(tmp_path, ids, dtype, says):
    path = tmp_path / "a.bin"
    write_shard(path, [3])
    with pytest.raises(UserError, match=f"a.bin: .*{says}"):
        write_shard(path, np.array(ids), dtype)
    assert read_shard(path).tolist() == [3] and [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_the_name_appears_when_the_shard_is_whole(tmp_path, monkeypatch):
    before = []
    replace = Path.replace

    def look(part, path):
        before.append((part.read_bytes(), Path(path).exists()))
        return replace(part, path)

    monkeypatch.setattr(Path, "replace", look)
    write_shard(tmp_path / "a.bin", [1, 2])
    assert before == [(header(2) + struct.pack("<2H", 1, 2), False)]


@pytest.mark.parametrize("itemsize", [2, 4])
def test_read_shard_maps_the_file_read_only(tmp_path, itemsize):
    path = tmp_path / "a.bin"
    path.write_bytes(header(3, itemsize=itemsize) + struct.pack("<3H" if itemsize == 2 else "<3I", 9, 8, 700))
    tokens = read_shard(str(path))
    assert isinstance(tokens, np.memmap) and tokens.tolist() == [9, 8, 700] and tokens.dtype.itemsize == itemsize
    with pytest.raises(ValueError):
        tokens[0] = 1


@pytest.mark.parametrize(
    "content, says",
    [
        (b"", "is empty: prepare the data again"),
        (b"G", "is not a shard of tokens"),
        (b"GPT2TOKS", "is not a shard of tokens"),
        (header(1)[:31], "is not a shard of tokens"),
        (header(1, magic=b"GPT2TOKZ") + b"\0\0", "is not a shard of tokens .its first bytes are not GPT2TOKS"),
        (header(1, version=2) + b"\0\0", "has format version 2, this package reads 1: prepare"),
        (header(1, version=0) + b"\0\0", "has format version 0"),
        (header(1, itemsize=3) + b"\0\0\0", "a token of 3 bytes is not 2 or 4: prepare"),
        (header(1, itemsize=8) + b"\0" * 8, "a token of 8 bytes"),
        (header(2) + b"\0\0\0", "is cut short or too long: 2 tokens need 36 bytes, it has 35: prepare"),
        (header(2) + b"\0\0\0\0\0", "2 tokens need 36 bytes, it has 37"),
        (header(0), "holds no token: prepare"),
    ],
)
def test_what_is_no_shard(tmp_path, content, says):
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(UserError, match=f"a.bin:? .*{says}"):
        read_shard(tmp_path / "a.bin")


def test_sha256_file(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(content)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()


# --- prepared directories ---

SHARDS = {"val_000.bin": [4, 9], "train_001.bin": [5, 6, 7], "train_000.bin": [1, 2, 3, 8]}


def prepared(out, vocab_size=10, **more):
    out.mkdir(parents=True, exist_ok=True)
    for name, ids in SHARDS.items():
        write_shard(out / name, ids)
    shards = {name: dict(sha256=sha256_file(out / name)) for name in SHARDS}
    meta = dict(vocab_size=vocab_size, shards=shards, tokens=dict(train=7, val=2)) | more
    (out / "meta.json").write_text(json.dumps(meta))
    return meta


def test_read_meta(tmp_path):
    want = prepared(tmp_path / "d", text="ä")
    assert read_meta(tmp_path / "d") == read_meta(str(tmp_path / "d")) == want


@pytest.mark.parametrize("name, source", [("fineweb-edu-10BT", "fineweb-edu"), ("openwebtext", "openwebtext"), ("my-openwebtext", "shakespeare"), ("char", "shakespeare")])
def test_what_is_not_prepared_is_refused_with_the_command_that_makes_it(tmp_path, name, source):
    path = tmp_path / name
    how = f"make it with: python -m gpt2_course.prepare {source} --out {path}"
    for says in ("does not exist", "is a file, not a directory", "has no meta.json"):
        with pytest.raises(UserError) as told:
            read_meta(path)
        assert f"--data {path} {says}" in str(told.value) and str(told.value).endswith(how)
        if path.is_file():
            path.unlink(), path.mkdir()
        elif not path.exists():
            path.write_text("")
    for wrong in ([], {}, ["vocab_size", "shards", "tokens"], dict(vocab_size=1, shards={}), dict(vocab_size=1, tokens={}), dict(shards={}, tokens={})):
        (path / "meta.json").write_text(json.dumps(wrong))
        with pytest.raises(UserError, match="meta.json is not what prepare writes"):
            read_meta(path)
    (path / "meta.json").write_text(json.dumps(dict(vocab_size=1, shards={}, tokens={})))
    assert read_meta(path)["vocab_size"] == 1


def test_open_split_opens_what_meta_names_in_order(tmp_path):
    prepared(tmp_path)
    assert [s.tolist() for s in open_split(tmp_path, "train")] == [[1, 2, 3, 8], [5, 6, 7]] and [s.tolist() for s in open_split(str(tmp_path), "val")] == [[4, 9]]
    with pytest.raises(UserError, match="has no tr shard"):
        open_split(tmp_path, "tr")
    for name in "dbca":
        (tmp_path / f"{name}.bin").write_text("")
    with pytest.raises(UserError, match="holds a.bin, b.bin, c.bin, which meta.json does not name"):
        open_split(tmp_path, "train")
    for name in "dbca":
        (tmp_path / f"{name}.bin").unlink()
    (tmp_path / "train_001.bin").unlink()
    assert len(open_split(tmp_path, "val")) == 1
    with pytest.raises(UserError, match="train_001.bin is missing"):
        open_split(tmp_path, "train")


def test_verify(tmp_path):
    prepared(tmp_path)
    verify(tmp_path), verify(str(tmp_path), 10), verify(tmp_path, 11)
    for vocab_size in (9, 5):
        with pytest.raises(UserError, match=f"holds token [89], but the vocabulary has {vocab_size}"):
            verify(tmp_path, vocab_size)
    prepared(tmp_path, vocab_size=9)
    verify(tmp_path, 10)  # the model's size is what counts
    with pytest.raises(UserError, match="val_000.bin holds token 9, but the vocabulary has 9"):
        verify(tmp_path)


@pytest.mark.parametrize("name", SHARDS)
def test_verify_sees_that_a_shard_has_changed(tmp_path, name):
    prepared(tmp_path)
    write_shard(tmp_path / name, SHARDS[name][::-1])
    with pytest.raises(UserError, match=f"{name} has changed since it was prepared"):
        verify(tmp_path)


# --- windows and their order ---


def windows_of(starts, sizes, T):
    "(shard, offset in it) of each window; one that does not lie in a single shard fails"
    ends = np.cumsum(sizes)
    out = []
    for start in starts.tolist():
        s = int(np.searchsorted(ends, start, side="right"))
        offset = start - (int(ends[s - 1]) if s else 0)
        assert 0 <= offset and offset + T + 1 <= sizes[s]
        out.append((s, offset))
    return out


SIZE = [23, 3, 4, 5, 17]  # of shards, with T = 4: 5, 0, 0, 1 and 4 windows


def test_sequential_windows_follow_each_other_from_the_start_of_each_shard():
    starts = epoch_starts(SIZE, 4, "sequential", 1, 0)
    assert windows_of(starts, SIZE, 4) == [(0, 0), (0, 4), (0, 8), (0, 12), (0, 16), (3, 0), (4, 0), (4, 4), (4, 8), (4, 12)] and starts.dtype == np.int64


def test_an_epoch_is_a_permutation_of_windows_with_one_phase_in_each_shard():
    phases, orders = set(), set()
    for seed in range(3):
        for epoch in range(30):
            starts = epoch_starts(SIZE, 4, "epochs", seed, epoch)
            found = windows_of(starts, SIZE, 4)
            assert np.array_equal(starts, epoch_starts(SIZE, 4, "epochs", seed, epoch)) and starts.dtype == np.int64
            by_shard = {s: sorted(o for t, o in found if t == s) for s in (0, 3, 4)}
            phases |= {(s, offsets[0]) for s, offsets in by_shard.items()}
            assert by_shard == {s: [by_shard[s][0] + 4 * i for i in range(w)] for s, w in ((0, 5), (3, 1), (4, 4))}
            orders.add(tuple(found))
    assert phases == {(0, 0), (0, 1), (0, 2), (3, 0), (4, 0)}  # all that leave room for the windows
    assert len(orders) == 90 and not all(list(o) == sorted(o) for o in orders)


def test_random_windows_start_anywhere_in_their_shards():
    found = [windows_of(epoch_starts(SIZE, 4, "random", 3, epoch), SIZE, 4) for epoch in range(200)]
    assert all(sorted(s for s, _ in f) == [0] * 5 + [3] + [4] * 4 for f in found) and len({tuple(f) for f in found}) == 200
    assert {w for f in found for w in f} == {(s, o) for s in (0, 3, 4) for o in range(SIZE[s] - 4)}
    assert any(f[0][0] == 4 for f in found)  # the shards are mixed
    assert epoch_starts([3, 4], 4, "random", 3, 0).shape == (0,)


def test_share():
    assert [share(10, 3, r, 4)[0].tolist() for r in range(4)] == [[10, 11, 12], [13, 14, 15], [16, 17, 18], [19, 20, 21]]
    assert {share(10, 3, r, 4)[1] for r in range(4)} == {22}


# --- documents ---

EOT = 9
DOCUMENTS = [[1, 2, 3, 4, 5, EOT, EOT, 6, EOT, 7, 8, 1], [EOT, 2, 3, 4, EOT], [5, 6, 7], [EOT]]


def documents_by_loops(shards, T):
    "(shard, first token, targets) of each row"
    out = []
    for s, ids in enumerate(shards):
        first = 0
        for end in range(1, len(ids) + 1):
            if ids[end - 1] == EOT or end == len(ids):
                out += [[s, at, min(T, end - 1 - at)] for at in range(first, end - 1, T)]
                first = end
    return out


@pytest.mark.parametrize("T", [1, 2, 3, 4, 8])
def test_rows_of_documents(T):
    shards = [np.array(s, np.uint16) for s in DOCUMENTS]
    found = document_rows(shards, T, EOT)
    assert found.tolist() == documents_by_loops(DOCUMENTS, T)
    x, y = padded(shards, found, T, EOT)
    assert x.dtype == y.dtype == torch.int64
    for (s, at, n), inputs, targets in zip(found.tolist(), x.tolist(), y.tolist()):
        assert targets == DOCUMENTS[s][at + 1 : at + 1 + n] + [-1] * (T - n)
        assert inputs[: n + 1] == DOCUMENTS[s][at : at + n + 1][:T] and set(inputs[n + 1 :]) <= {EOT}


def test_documents_are_loaded_once_an_epoch_in_an_order_of_its_own():
    shards, T = [np.array(s, np.uint16) for s in DOCUMENTS], 3  # six rows, where windows would be four
    want = sorted(map(str, zip(*(t.tolist() for t in padded(shards, document_rows(shards, T, EOT), T, EOT)))))
    loader = TokenLoader(shards, len(want), T, order="documents", eot=EOT)
    assert loader.W == len(want) == 6
    epochs = [[str(row) for row in zip(*(t.tolist() for t in loader.next()))] for _ in range(4)]
    assert all(sorted(e) == want for e in epochs) and len(set(map(str, epochs))) == 4
    again = TokenLoader(shards, len(want), T, order="documents", eot=EOT, position=loader.W)
    other = TokenLoader(shards, len(want), T, seed=1, order="documents", eot=EOT)
    assert [str(row) for row in zip(*(t.tolist() for t in again.next()))] == epochs[1] != [str(row) for row in zip(*(t.tolist() for t in other.next()))]
    with pytest.raises(UserError, match="no window of 2"):
        TokenLoader([np.array([EOT, EOT])], 1, 2, order="documents", eot=EOT)


# --- the loader ---


def test_the_loader_reads_the_windows_that_the_order_names():
    shards = [np.arange(n, dtype=np.uint16) + 100 * i for i, n in enumerate(SIZE)]
    laid = np.concatenate(shards).astype(int)
    for order in ("epochs", "random", "sequential"):
        loader = TokenLoader(shards, 3, 4, 5, order)
        assert loader.W == 10 and loader.epoch == 0
        stream = np.concatenate([epoch_starts(SIZE, 4, order, 5, e) for e in range(3)])
        for i in range(10):
            x, y = loader.next()
            want = np.stack([laid[s : s + 5] for s in stream[3 * i : 3 * i + 3]])
            assert x.tolist() == want[:, :-1].tolist() and y.tolist() == want[:, 1:].tolist() and x.dtype == y.dtype == torch.int64
            assert loader.position == 3 * i + 3 and loader.epoch == (3 * i + 3) / 10


def test_a_batch_may_hold_several_epochs():
    shards = [np.arange(9, dtype=np.uint16)]  # two windows
    x, _ = TokenLoader(shards, 7, 4, 5, "epochs").next()
    assert x[:, 0].tolist() == np.concatenate([epoch_starts([9], 4, "epochs", 5, e) for e in range(4)])[:7].tolist()


def test_by_default_one_process_reads_permutations_from_the_start():
    shards = [np.arange(500, dtype=np.uint16)]
    plain, full = TokenLoader(shards, 4, 3), TokenLoader(shards, 4, 3, seed=1337, order="epochs", rank=0, world=1, position=0)
    for _ in range(3):
        assert torch.equal(plain.next()[0], full.next()[0])
    assert plain.position == full.position == 12 and plain.order == "epochs"


def test_an_order_is_drawn_once_an_epoch(monkeypatch):
    drawn, order = [], data.epoch_order
    monkeypatch.setattr(data, "epoch_order", lambda loader, epoch: drawn.append(epoch) or order(loader, epoch))
    loader = TokenLoader([np.arange(41)], 3, 4)  # ten windows
    for _ in range(7):
        loader.next()
    assert drawn == [0, 1, 2]


@pytest.mark.parametrize("sizes, W", [([5], 1), ([4, 5, 3], 1), ([9, 4], 2)])
def test_the_smallest_data(sizes, W):
    loader = TokenLoader([np.arange(n) for n in sizes], 2, 4, order="sequential")
    assert loader.W == W and loader.next()[0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7] if W == 2 else [0, 1, 2, 3]]


def test_data_without_a_window():
    with pytest.raises(UserError, match=r"no window of 4 \+ 1 tokens .its longest shard has 4"):
        TokenLoader([np.arange(3), np.arange(4)], 1, 4)


# --- laws ---


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

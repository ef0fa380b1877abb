"""Promises of `bigctl.data.layouts.packed` and `bigctl.data.documents`: no document is missed, cut for nothing or mixed
with another, and batches depend on (seed, position)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigctl.config import schema
from bigctl.data import cache, documents
from bigctl.data.dataset import Dataset
from bigctl.data.layouts.choose import DOCUMENTS, BatchOptions
from bigctl.data.layouts.packed import Packed, best_fit, pack
from bigctl.data.layouts.windows import NO_TARGET
from bigctl.data.notes import notes_of
from bigctl.data.preparation import prepare
from bigctl.data.text import tokenization
from bigctl.errors import DataError
from tests.data.test_tokens import llmc, megatron, raw

END = 256  # of bytes


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path / "cache"))


def written(count: int = 60, seed: int = 0) -> np.ndarray:
    """Documents of 0 to 39 bytes, END after each."""
    rng = np.random.default_rng(seed)
    return np.concatenate([np.append(rng.integers(97, 123, size), END) for size in rng.integers(0, 40, count)])


def cut(tokens: np.ndarray, after: int = END) -> list[list[int]]:
    """The documents of some tokens, as a loop finds them."""
    found: list[list[int]] = [[]]
    for token in tokens.tolist():
        found[-1].append(token)
        if token == after:
            found.append([])
    return [document for document in found if document]


def make(path: Path | str, type: str = "bytes", block: int = 16, end: int | None = None, **keys: Any) -> Dataset:
    settings = schema.StreamTokenizer(type=type, size=keys.pop("size", 300))
    options = BatchOptions(block=block, packing=DOCUMENTS, end_token=end)
    kind = keys.pop("kind", schema.Tokens)
    return prepare.prepare(kind(path=str(path), **keys), tokenizer=tokenization.spec(settings), batches=options)


def pieces(batch: dict[str, Any]) -> list[list[int]]:
    """What is learned in a batch: of each segment its tokens and the last target; positions are held to be 0, 1, ..."""
    found = []
    rows = (np.asarray(batch[name]) for name in ("inputs", "targets", "segments", "positions"))
    for inputs, targets, segments, positions in zip(*rows, strict=True):
        assert np.all((targets == NO_TARGET) == (segments == 0))
        for number in range(1, segments.max(initial=0) + 1):
            (where,) = np.nonzero(segments == number)
            assert np.array_equal(where, np.arange(where[0], where[0] + len(where)))
            assert np.array_equal(positions[where], np.arange(len(where)))
            assert np.array_equal(inputs[where[1:]], targets[where[:-1]])
            found.append([*inputs[where].tolist(), int(targets[where[-1]])])
    return found


def cut_into_pieces(found: list[list[int]], block: int) -> list[list[int]]:
    return [d[start : start + block + 1] for d in found for start in range(0, len(d) - 1, block)]


# --- Packing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 2, 7, 16, 33])
def test_packing_is_best_fit_decreasing(block):
    rng = np.random.default_rng(block)
    for _ in range(20):
        lengths = np.sort(rng.integers(1, block + 1, rng.integers(1, 60)))[::-1]
        rooms: list[int] = []
        for length in lengths.tolist():
            fitting = [(room, number) for number, room in enumerate(rooms) if room >= length]
            number = min(fitting)[1] if fitting else len(rooms)
            if not fitting:
                rooms.append(block)
            rooms[number] -= length
        windows = best_fit(lengths, block)
        assert sorted(block - np.bincount(windows, lengths)) == sorted(rooms)


def test_hundreds_of_thousands_of_documents_leave_less_than_a_thousandth_for_padding():
    sizes = np.random.default_rng(0).lognormal(4, 1, 200_000).astype(np.int64) + 1
    made = pack(np.concatenate([[0], np.cumsum(sizes)]), 256)
    assert made["piece_length"].sum() == (sizes - 1).sum()
    assert 1 - made["piece_length"].sum() / (256 * (len(made["window_pieces"]) - 1)) < 1e-3


@pytest.mark.parametrize("block", [1, 4, 16, 64])
def test_an_epoch_and_an_evaluation_have_every_document_once(block):
    tokens = written()
    found = cut(tokens)
    bounds = np.concatenate([[0], np.cumsum([len(document) for document in found])])
    columns: dict[str, Any] = {"inputs": tokens, **pack(bounds, block)}
    layout = Packed(block, int(np.diff(columns["window_pieces"]).max()))
    count = layout.size(columns, training=True)
    expected = sorted(cut_into_pieces(found, block))
    plan = layout.training_plan(columns, batch_size=count, seed=5)
    for epoch in range(2):
        indices, length = plan.batch(epoch * count)
        assert sorted(pieces(layout.gather(columns, indices, length))) == expected
    seen = []
    for indices, mask, length in layout.evaluation_plan(columns, batch_size=7, shards=1).batches():
        batch = layout.gather(columns, indices, length)
        seen += pieces({name: np.asarray(values)[mask > 0] for name, values in batch.items()})
    assert sorted(seen) == expected


def test_jax_gathers_what_numpy_does():
    tokens = written().astype(np.uint16)
    columns = {"inputs": tokens, **pack(np.concatenate([[0], np.flatnonzero(tokens == END) + 1]), 16)}
    layout, indices = Packed(16, int(np.diff(columns["window_pieces"]).max())), np.array([0, 7, 30, 3], np.int32)
    placed = {name: jnp.asarray(values.astype(np.int32)) for name, values in columns.items()}
    found = jax.jit(lambda columns, indices: layout.gather(columns, indices, 16, jnp))(placed, indices)
    for name, values in layout.gather(columns, indices, 16).items():
        assert np.array_equal(found[name], values) and found[name].dtype == values.dtype == np.int32


def test_positions_and_the_seed_alone_decide():
    tokens = written(400)
    columns = {"inputs": tokens, **pack(np.concatenate([[0], np.flatnonzero(tokens == END) + 1]), 16)}
    layout, places = Packed(16, 16), range(0, 1600, 8)
    first, again, other = (layout.training_plan(columns, batch_size=8, seed=seed) for seed in (1, 1, 2))
    for plan in (first, again, other):
        plan.ahead = 8
    whole = [first.batch(position)[0].tolist() for position in places]
    assert [again.batch(position)[0].tolist() for position in reversed(places)][::-1] == whole
    assert [other.batch(position)[0].tolist() for position in places] != whole


# --- Where documents come from ----------------------------------------------------------------------------------------


def learned(dataset: Dataset, split: str) -> list[list[int]]:
    layout, columns = dataset.batches, dataset.splits[split]
    return sorted(pieces(layout.gather(columns, np.arange(layout.size(columns, training=False)), None)))


def test_end_tokens_and_indexes_say_the_same(tmp_path):
    tokens = written()
    ends = (np.flatnonzero(tokens == END) + 1).tolist()[:-1]
    keys: dict[str, Any] = {"validation_fraction": 0.2, "test_fraction": 0.2}
    llmc(tmp_path / "llmc.bin", tokens), raw(tmp_path / "raw.bin", tokens)
    megatron(tmp_path / "megatron.bin", tokens, cuts=tuple(ends))
    for number, part in enumerate(np.array_split(tokens, 5)):  # documents go on in the next file
        raw(tmp_path / "parts" / f"{number}.bin", part)
    found = {name: make(tmp_path / name, **keys) for name in ("llmc.bin", "raw.bin", "parts", "megatron.bin")}
    found["without its index"] = make(tmp_path / "megatron.bin", format="raw", **keys)
    for split in ("train", "validation", "test"):
        own = np.asarray(found["raw.bin"].splits[split]["inputs"])
        expected = sorted(cut_into_pieces(cut(own), 16))
        for dataset in found.values():
            assert learned(dataset, split) == expected
    own = np.asarray(found["raw.bin"].splits["train"]["inputs"])
    assert found["raw.bin"].info["packing"]["train"]["documents"] == len(cut(own))


def test_an_index_needs_no_end_token_and_sequences_make_up_documents(tmp_path):
    tokens = np.arange(1, 200)
    megatron(tmp_path / "a.bin", tokens, cuts=(10, 20, 30, 90), documents=np.array([0, 2, 2, 3, 5]))
    dataset = make(tmp_path / "a.bin", "ids", validation_fraction=0.1, test_fraction=0.1, block=64)
    train = [tokens[:20], tokens[20:30], tokens[30:159]]
    assert learned(dataset, "train") == sorted(cut_into_pieces([t.tolist() for t in train], 64))


def test_texts_have_documents_by_files_rows_and_end_tokens_in_them(tmp_path):
    for name, text in (
        ("a", "one two"),
        ("b", "three<|endoftext|>four and five"),
        ("c", "the end of it"),
        ("d", "x" * 40),
    ):
        (tmp_path / f"{name}.txt").write_text(text)
    keys: dict[str, Any] = {"kind": schema.TextFiles, "validation_path": str(tmp_path / "a.txt"), "test_fraction": 0}
    dataset = make(str(tmp_path / "[bcd].txt"), **keys)
    texts = ["three", "four and five", "the end of it", "x" * 40]
    own = [[*text.encode(), END] for text in texts[:-1]] + [[*texts[-1].encode()]]
    assert learned(dataset, "train") == sorted(cut_into_pieces(own, 16))
    assert learned(dataset, "validation") == [list(b"one two")]


def test_of_large_splits_it_is_found_once(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "_KEPT", 1), monkeypatch.setattr(documents, "_BLOCK", 37)
    raw(tmp_path / "a.bin", written())
    first = make(tmp_path / "a.bin")
    (found,) = {len(list(Path(first.path).glob("documents-*.npz")))}
    assert found == 3
    monkeypatch.setattr(documents, "_find", lambda tokens, rule: pytest.fail("it was looked for again"))
    again = make(tmp_path / "a.bin")
    for name, values in first.splits["train"].items():
        assert np.array_equal(np.asarray(values), np.asarray(again.splits["train"][name]))
    monkeypatch.undo()
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path / "cache")), monkeypatch.setattr(documents, "_KEPT", 1)
    for file in Path(first.path).glob("documents-*.npz"):
        file.write_bytes(file.read_bytes()[:-30])
    mended = make(tmp_path / "a.bin")
    assert np.array_equal(mended.splits["train"]["piece_start"], first.splits["train"]["piece_start"])


def test_windows_across_documents_are_what_they_were(tmp_path):
    raw(tmp_path / "a.bin", written())
    packed = make(tmp_path / "a.bin")
    spec = tokenization.spec(schema.StreamTokenizer(type="bytes", size=300))
    plain = prepare.prepare(schema.Tokens(path=str(tmp_path / "a.bin")), tokenizer=spec, batches=BatchOptions(block=16))
    assert plain.batches.kind == "windows" and plain.path == packed.path and plain.fingerprint == packed.fingerprint
    assert set(plain.splits["train"]) == {"inputs"} and "packing" not in plain.info


# --- Bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"end": 255}, "one document: token 255 is not in it"),
        ({"end": 5000}, "token 5,000 cannot end a document: the vocabulary has 257 tokens"),
        ({"type": "ids"}, "no token that ends a document"),
    ],
)
def test_what_has_no_documents_is_told_with_the_key(tmp_path, keys, said):
    raw(tmp_path / "a.bin", written())
    with pytest.raises(DataError, match=said) as error:
        make(tmp_path / "a.bin", **keys)
    assert str(error.value.where).startswith("recipe.") and error.value.hint


def test_documents_of_one_token_are_left_out_and_told(tmp_path):
    raw(tmp_path / "a.bin", np.full(400, END))
    with pytest.raises(DataError, match="no document of the train split has two tokens"):
        make(tmp_path / "a.bin")
    raw(tmp_path / "b.bin", np.concatenate([np.full(300, END), written(5, seed=1), np.full(100, END), [1, 2] * 30]))
    notes = " ".join(notes_of(make(tmp_path / "b.bin", block=64, validation_fraction=0.01, test_fraction=0.1)))
    assert "documents are one token" in notes and "what comes later in a text is never learned" in notes


def test_the_documents_of_a_set_are_kept_with_it(tmp_path):
    raw(tmp_path / "a.bin", written())
    assert [each.path for each in cache.prepared()] == []
    dataset = make(tmp_path / "a.bin")
    assert [str(each.path) for each in cache.prepared()] == [dataset.path]

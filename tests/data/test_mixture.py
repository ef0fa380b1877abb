"""Promises of `data=mixture`: corpora drawn by their weights, exactly and from anywhere, each scored by itself."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from bigctl.config import checks, compose, drift, schema
from bigctl.config.compose_many import ManyComposer
from bigctl.data import notes
from bigctl.data.dataset import Dataset
from bigctl.data.layouts import mixed
from bigctl.data.layouts.choose import BatchOptions
from bigctl.data.layouts.mixed import MixedPlan, MixedWindows
from bigctl.data.layouts.windows import NO_TARGET, WindowPlan
from bigctl.data.preparation import prepare
from bigctl.data.sources import text_files
from bigctl.data.text import tokenization
from bigctl.errors import ConfigError, DataError, RunError
from bigctl.runs import corpora
from tests.corpora import BLOCK, BOOKS, TINY, given, write


@pytest.fixture(autouse=True)
def cache_dir(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "mixtures"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("corpora"))


def make(type: str = "bytes", block: int = BLOCK, keys: dict[str, Any] | None = None, **given: Any) -> Dataset:
    """The data set of corpora that are given as a path, or a path and a weight."""
    found = {name: schema.Corpus(*(each if isinstance(each, tuple) else (each,))) for name, each in given.items()}
    found = {name: schema.Corpus(str(corpus.path), corpus.weight) for name, corpus in found.items()}
    spec = tokenization.spec(schema.StreamTokenizer(type=type))
    config = schema.Mixture(corpora=found, **(keys or {}))
    return prepare.prepare(config, tokenizer=spec, batches=BatchOptions(block=block))


# --- Draws ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shares", [(0.7, 0.3), (1.0,), (0.0, 0.25, 0.75), (0.9999, 0.0001), (1 / 3,) * 3, (0.01,) * 100]
)
def test_any_run_of_draws_has_as_many_of_each_as_its_share_asks_for(shares):
    owner, number = mixed.draws(shares, 0, 10_000)
    counts = np.cumsum(owner[:, None] == np.arange(len(shares)), axis=0)
    ideal = np.arange(1, 10_001)[:, None] * np.array(shares)
    assert np.abs(counts - ideal).max() <= 1  # three standard deviations of 0.7 would be 137
    for corpus in range(len(shares)):
        assert np.array_equal(number[owner == corpus], np.arange(counts[-1, corpus]))
    for position, count in [(0, 1), (1, 1), (63, 64), (9_990, 10), (4_321, 1_000)]:
        found = mixed.draws(shares, position, count)
        assert np.array_equal(found, (owner[position : position + count], number[position : position + count]))


def test_every_corpus_goes_through_its_windows_without_repeats_in_an_order_of_its_own():
    plan = MixedPlan((1000, 200), (0.5, 0.5), (1, 2), BLOCK)
    starts = plan.indices(0, 2 * 3 * 24)
    web, books = starts[starts < 1000], starts[starts >= 1000] - 1000
    assert np.array_equal(web, WindowPlan(1000, BLOCK, 1).indices(0, len(web)))
    assert np.array_equal(books, WindowPlan(200, BLOCK, 2).indices(0, len(books)))
    assert all(len(set((books[n : n + 24] // BLOCK).tolist())) == 24 for n in (0, 24, 48))
    assert np.array_equal(np.concatenate([plan.indices(n, 9) for n in range(0, 144, 9)]), starts)
    frozen = MixedPlan((1000, 200), (0.5, 0.5), (1, 2), BLOCK, frozen=4)
    assert np.array_equal(frozen.indices(2, 8), np.tile(starts[:4], 3)[2:10])


def test_no_window_has_tokens_of_two_corpora_on_the_host_and_on_devices(folder):
    dataset = make(web=folder / "web.txt", books=folder / "books.txt")
    layout = dataset.batches
    assert isinstance(layout, MixedWindows)
    for split in ("train", "validation"):
        columns = dataset.splits[split]
        texts = [
            np.asarray(columns["inputs"])[begin:end]
            for begin, end in zip((0, *columns["ends"]), columns["ends"], strict=False)
        ]
        if split == "train":
            batches = [(layout.training_plan(columns, batch_size=64, seed=0).batch(n)[0], None) for n in (0, 64, 6400)]
        else:
            batches = [(s, m) for s, m, _ in layout.evaluation_plan(columns, batch_size=5, shards=2).batches()]
        on_device = {name: jnp.asarray(np.asarray(values)) for name, values in columns.items()}
        for starts, _ in batches:
            found = layout.gather(columns, starts, BLOCK)
            if split == "validation" and starts is batches[-1][0]:  # whose last window ends beyond its corpus
                there = layout.gather(on_device, jnp.asarray(starts), BLOCK, jnp)
                assert all(np.array_equal(found[name], there[name]) for name in found)
            for start, inputs, targets in zip(starts, found["inputs"], found["targets"], strict=True):
                corpus = int(start >= columns["ends"][0])
                own = texts[corpus][start - (0, columns["ends"][0])[corpus] :][: BLOCK + 1]
                assert targets.tolist() == [*own[1:], *[NO_TARGET] * (BLOCK + 1 - len(own))]
                assert inputs[: len(own)].tolist() == own[:BLOCK].tolist()
        if split == "validation":
            scored = sum(int((layout.gather(columns, s[m > 0], BLOCK)["targets"] >= 0).sum()) for s, m in batches)
            places = np.concatenate([layout.places(columns, s[m > 0]) for s, m in batches])
            assert scored == sum(len(text) - 1 for text in texts)
            assert places.tolist() == list(range(dataset.size("validation")))
            assert {layout.part(columns, s) for s, _ in batches} == {"web", "books"}


def test_one_corpus_is_drawn_as_it_would_be_by_itself(folder):
    alone = make(web=(folder / "web.bin", 3.0))
    spec = tokenization.spec(schema.StreamTokenizer(type="bytes"))
    plain = prepare.prepare(schema.Tokens(path=str(folder / "web.bin")), tokenizer=spec, batches=BatchOptions(block=8))
    plans = [each.batches.training_plan(each.splits["train"], batch_size=16, seed=5) for each in (alone, plain)]
    for position in (0, 16, 4000):
        assert np.array_equal(*(plan.batch(position)[0] for plan in plans))
    assert alone.size("train") == plain.size("train") and alone.size("test") == plain.size("test")


def test_the_order_of_a_corpus_depends_on_no_other(folder):
    names = {"web": (folder / "web.bin", 0.5), "books": (folder / "books", 0.5)}
    two, other = make(**names), make(books=names["books"], web=names["web"], more=(folder / "books.txt", 1.0))
    orders = []
    for dataset in (two, other):
        columns, layout = dataset.splits["train"], dataset.batches
        begin = int(columns["ends"][layout.names.index("web")]) - dataset.info["corpora"]["web"]["tokens"]["train"]
        starts = layout.training_plan(columns, batch_size=64, seed=0).batch(0)[0] - begin
        orders.append(
            starts[(starts >= 0) & (starts < dataset.info["corpora"]["web"]["tokens"]["train"])][:10].tolist()
        )
    assert orders[0] == orders[1]


# --- Corpora ----------------------------------------------------------------------------------------------------------


def test_text_and_ready_made_tokens_mix_and_say_the_same(folder):
    as_tokens, as_text = make(web=folder / "web.bin"), make(web=folder / "web.txt")
    assert np.array_equal(*(np.asarray(each.splits["train"]["inputs"]) for each in (as_tokens, as_text)))
    both = make(web=folder / "web.bin", books=folder / "books.txt")
    columns = both.splits["validation"]
    assert both.info["corpora"]["web"]["source"] == "tokens" and both.info["corpora"]["books"]["source"] == "text"
    assert bytes(columns["inputs"][int(columns["ends"][0]) :].tolist()).decode() in BOOKS
    assert both.batches.extra_sums(columns) == {"bytes_per_token": 1.0}


def test_a_tokenizer_is_made_of_all_corpora_and_kept_for_a_resumed_run(folder, tmp_path):
    dataset = make("characters", web=folder / "web.txt", books=folder / "books.txt")
    tokenizer = tokenization.load_tokenizer(Path(dataset.path) / "tokenizer.json", stream=True)
    assert None not in (tokenizer.token_to_id("g"), tokenizer.token_to_id(";"))  # of web alone, of books alone
    kept = tmp_path / "tokenizer.json"
    kept.write_text((Path(dataset.path) / "tokenizer.json").read_text())
    corpora = {"web": schema.Corpus(str(folder / "web.txt")), "books": schema.Corpus(str(folder / "books.txt"))}
    spec = tokenization.spec(schema.StreamTokenizer(type="characters"))
    again = prepare.prepare(
        schema.Mixture(corpora=corpora), tokenizer=spec, stored=kept, batches=BatchOptions(block=BLOCK)
    )
    assert again.fingerprint == dataset.fingerprint


def test_large_texts_are_prepared_by_parts_and_are_the_same(folder, monkeypatch):
    names: dict[str, Any] = {"web": folder / "web.txt", "books": folder / "books.txt"}
    whole = make("characters", **names)
    monkeypatch.setattr(text_files, "SMALL", 100)
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(folder / "by_parts"))
    by_parts = make("characters", **names)
    for split in ("train", "validation"):
        found = [each.splits[split] for each in (whole, by_parts)]
        assert np.array_equal(*(np.asarray(each["inputs"]) for each in found))
        assert np.array_equal(*(each["ends"] for each in found))


def test_weights_belong_to_no_data_and_are_those_of_the_lengths_by_default(folder):
    first = make(web=(folder / "web.bin", 0.7), books=(folder / "books", 0.3))
    other = make(web=(folder / "web.bin", 20), books=(folder / "books", 60))
    plain = make(web=folder / "web.bin", books=folder / "books")
    assert first.fingerprint == other.fingerprint == plain.fingerprint
    assert other.batches.shares(other.splits["train"]) == (0.25, 0.75)
    assert other.info["notes"] == ["the weights add up to 80, not to 1, and are divided by it: web 0.25, books 0.75"]
    epochs = [each["epochs"] for each in plain.batches.drawn(plain.splits["train"], plain.size("train"))]
    assert epochs == pytest.approx([1.0, 1.0])
    unseen = make(web=(folder / "web.bin", 1), books=(folder / "books", 0))
    assert unseen.size("train") == make(web=folder / "web.bin").size("train")
    lines = corpora.lines(unseen.batches.drawn(unseen.splits["train"], 5 * unseen.size("train")))
    assert lines[0].startswith("web: 1 of the windows") and "never drawn (weight 0)" in lines[1]
    assert (
        "web is repeated 5 times"
        in corpora.notes(unseen.batches.drawn(unseen.splits["train"], 5 * unseen.size("train")))[0]
    )


def test_a_file_in_two_corpora_is_told(folder):
    dataset = make(web=folder / "web.bin", again=folder / "web.bin")
    assert any("web.bin is in two corpora, web and again" in note for note in notes.notes_of(dataset))


def test_a_sparse_corpus_of_eighteen_gigabytes_is_drawn_from_without_reading_it(folder, tmp_path):
    with (tmp_path / "big.bin").open("wb") as stream:
        stream.truncate(18 * 2**30)
    dataset = make(big=(tmp_path / "big.bin", 0.9), books=(folder / "books", 0.1))
    columns, layout = dataset.splits["train"], dataset.batches
    starts, length = layout.training_plan(columns, batch_size=20, seed=0).batch(10**9)
    assert starts.dtype == np.int64 and int((starts >= columns["ends"][0]).sum()) == 2
    assert layout.gather(columns, starts, length)["inputs"].shape == (20, BLOCK)


# --- What is wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.corpora={web: {weight: 1}}", "data.corpora.web.path must be given"),
        ("data.corpora={web: {path: a, wieght: 1}}", "did you mean data.corpora.web.weight"),
        ("data.corpora.web.typo=1", "no key 'data.corpora.web.typo'"),
        ("data.corpora={web: a.bin}", "a.bin stands where keys belong"),
        ("data.corpora={2020: {path: x}}", "2020 is read as no text"),
    ],
)
def test_a_typo_is_told_with_its_key(override, message):
    with pytest.raises(ConfigError, match=message):
        compose.compose([*TINY, override])


@pytest.fixture(scope="module")
def config() -> schema.Config:
    return compose.compose([*TINY, "data.corpora.web.path=web.bin"]).config


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"corpora": {}}, "no corpus is given"),
        ({"corpora": {"web": schema.Corpus("a.bin", -1.0)}}, r"data.corpora.web.weight cannot be -1.0"),
        ({"corpora": {"web": schema.Corpus("a.bin", math.nan)}}, "data.corpora.web.weight cannot be nan"),
        ({"corpora": {"web": schema.Corpus("a.bin", 0.0)}}, "all weights are 0"),
        (
            {"corpora": {"web": schema.Corpus("a", 1.0), "b": schema.Corpus("b")}},
            "data.corpora.b has no weight, web has",
        ),
        ({"corpora": {"a b": schema.Corpus("a")}}, "cannot be called 'a b'"),
        ({"corpora": {"a": schema.Corpus("a", encoding="klingon")}}, "no encoding 'klingon'"),
        ({"corpora": {"a": schema.Corpus("a")}, "fold": 1}, "data.fold is for examples"),
    ],
)
def test_a_wrong_mixture_is_refused_before_anything_is_read(config, keys, message):
    with pytest.raises(ConfigError, match=message):
        checks.check(dataclasses.replace(config, data=schema.Mixture(**keys)), {})


@pytest.mark.parametrize(
    ("corpora", "type", "message"),
    [
        ({"web": "web.bin", "gone": "gone.bin"}, "bytes", r"data.corpora.gone, .*gone\.bin: no such file"),
        ({"web": "web.bin", "short": "short.txt"}, "bytes", "data.corpora.short: its train text has 7 tokens, 9 are"),
        (
            {"web": "web.bin", "odd": "odd.bin"},
            "bytes",
            r"data.corpora.odd, .*odd\.bin: its 3 bytes are no whole number",
        ),
        ({"web": "web.bin", "wide": "wide.bin"}, "bytes", r"data.corpora.wide, .*wide\.bin: token 999 at place 0"),
        ({"web": "web.bin", "books": "books.txt"}, "characters", "data.corpora.web: .*characters is made of text"),
        ({"web": "web.bin", "books": "books.txt"}, "ids", "data.corpora.books: .*ids is for ready-made tokens"),
        ({"empty": "empty.txt"}, "characters", r"data.corpora.empty, .*empty\.txt: the file is empty"),
    ],
)
def test_a_corpus_that_cannot_be_used_is_named(folder, corpora, type, message):
    (folder / "short.txt").write_text("too short")
    (folder / "empty.txt").write_text("")
    (folder / "odd.bin").write_bytes(b"abc")
    np.full(100, 999, "<u2").tofile(folder / "wide.bin")
    with pytest.raises(DataError, match=message):
        make(type, **{name: folder / file for name, file in corpora.items()})


def test_keys_of_the_other_kind_of_files_are_refused(folder):
    corpus = schema.Corpus(str(folder / "web.bin"), encoding="latin-1")
    with pytest.raises(DataError, match=r"data.corpora.web.encoding: is for text, and the corpus holds tokens"):
        prepare.prepare(schema.Mixture(corpora={"web": corpus}))


def test_a_shard_that_changes_under_a_run_is_told_with_its_corpus(folder, tmp_path):
    write(tmp_path / "own")
    dataset = make(web=tmp_path / "own" / "web.bin", books=tmp_path / "own" / "books")
    columns, layout = dataset.splits["train"], dataset.batches
    (tmp_path / "own" / "books" / "1.bin").unlink()
    begin = int(columns["ends"][0])
    with pytest.raises(DataError, match=r"data.corpora.books, .*1\.bin: the file is not there any more"):
        layout.gather(columns, np.arange(begin, begin + 1500, 8), 8)


# --- Keys -------------------------------------------------------------------------------------------------------------


def test_corpora_are_given_by_name_or_all_at_once(folder):
    one = compose.compose([*TINY, *given(folder, 2, 1)]).config
    whole = f"{{web: {{path: {folder}/web.bin, weight: 2}}, books: {{path: {folder}/books, weight: 1}}}}"
    assert compose.compose([*TINY, f"data.corpora={whole}"]).config == one
    assert compose.from_yaml(compose.to_yaml(one), where="config.yaml") == one
    changed = compose.change(one, ["data.corpora.web.weight=1"])
    assert schema.Mixture.require(changed.data, by="this test").shares == (0.5, 0.5)
    (found,) = drift.changes(one, changed)
    assert found.key == "data.corpora.web.weight" and found.drift == schema.TRAJECTORY
    assert drift.judge([found], ["data.corpora.web.weight"], where="run") == [found]
    (moved,) = drift.judge(drift.changes(one, compose.change(one, ["data.corpora.web.path=x"])), [], where="run")
    assert moved.drift == schema.FREE  # where it lies; what it holds is compared when it is prepared
    with pytest.raises(RunError, match="data.corpora.web.type"):
        drift.judge(drift.changes(one, compose.change(one, ["data.corpora.web.type=tokens"])), [], where="run")
    composer = ManyComposer((), ())
    found_all = [composer.compose([*TINY, *given(folder, weight, 1)]).config for weight in ("2", "3")]
    assert found_all == [one, compose.change(one, ["data.corpora.web.weight=3"])]


def test_text_below_a_name_stays_as_it_is_typed():
    typed = {"web": "web_{00..99}.bin", "own": "~/my files/ä.txt", "number": "1.10"}
    config = compose.compose([*TINY, *(f"data.corpora.{name}.path={path}" for name, path in typed.items())]).config
    assert {name: corpus.path for name, corpus in config.data.corpora.items()} == typed

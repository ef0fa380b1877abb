"""Promises about large tables: made by blocks, through files, they are to the bit what small ones are."""

from __future__ import annotations

import dataclasses
import errno
import gzip
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from bigctl.config import schema
from bigctl.data import journal
from bigctl.data.dataset import SPLITS, Dataset
from bigctl.data.layouts.choose import BatchOptions
from bigctl.data.preparation import array_file, deduplicate, encode_by_blocks, partial, prepare
from bigctl.data.preparation import rows as prepare_rows
from bigctl.data.sources import column_files, delimited, json_parts, row_blocks, text_parts
from bigctl.data.text import tokenization
from bigctl.errors import DataError
from tests.data.outcome import outcome


@pytest.fixture(autouse=True)
def small_blocks(tmp_path, monkeypatch) -> None:
    """Blocks so small that a short table has many of each."""
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(text_parts, "_BLOCK", 37)
    monkeypatch.setattr(row_blocks, "_ROWS", 7)
    monkeypatch.setattr(row_blocks, "_HEAD", 200)
    monkeypatch.setattr(prepare_rows, "_ROWS", 5)


def table(rows: int = 60, end: str = "\n", separator: str = ",", seed: int = 0) -> str:
    """Numbers with missing ones, categories, codes, dates, prices, flags, and a column that numbers the rows."""
    draw = np.random.default_rng(seed)
    lines = [["id", "age", "city", "zip", "since", "price", "vip", "note", "score", "class"]]
    for row in range(rows):
        age = "" if draw.random() < 0.2 else f"{draw.normal(40, 9):.3f}"
        city = str(draw.choice(["Rom", "Köln", "São Paulo", "NA"]))
        since = f"2023-{draw.integers(1, 13):02d}-{draw.integers(1, 28):02d}"
        price = f"{draw.integers(1, 9)} {draw.integers(100, 999)} €"
        score = repr(float(draw.normal() * 10.0 ** draw.integers(-3, 9)))
        note = f'"says {separator} ""{row % 7}""{end}and more"'
        lines.append(
            [
                str(row),
                age,
                city,
                f"0{draw.integers(10, 99)}",
                since,
                price,
                str(bool(row % 3)),
                note,
                score,
                "ab"[row % 2],
            ]
        )
    return end.join(separator.join(line) for line in lines) + end


def both(monkeypatch, config: schema.Table, **options) -> tuple[Dataset, Dataset] | tuple[str, str]:
    """The same data as a whole and by blocks; or the two errors."""
    found: list = []
    for size in (2**40, 0):
        monkeypatch.setattr(delimited, "_LARGE", size)
        found.append(outcome(config, options))
    return found[0], found[1]


def assert_equal(whole: Dataset, blocks: Dataset) -> None:
    assert whole.layout == blocks.layout
    assert (blocks.info, blocks.features, blocks.path) == (whole.info, whole.features, whole.path)
    assert blocks.fingerprint == whole.fingerprint
    for split in SPLITS:
        for name, values in whole.splits[split].items():
            np.testing.assert_array_equal(blocks.splits[split][name], values)
            assert blocks.splits[split][name].dtype == values.dtype
        for own, other in zip(whole.texts[split], blocks.texts[split], strict=True):
            np.testing.assert_array_equal(other.content, own.content)
            np.testing.assert_array_equal(other.offsets, own.offsets)


NO_HEADER = "\n".join(f"{row % 5},x{row % 2},{row / 7}" for row in range(40))
ENDS = "a,b,y\n" + "".join(f"{row},{row * 3},{row % 2},\n" for row in range(40))
JSON = "\n".join(
    json.dumps({"a": row, **({"b": {"c": "x" * (row % 3)}} if row > 9 else {}), "y": "no" if row % 4 else "yes"})
    for row in range(40)
)
CSV, JSONL = schema.Csv, schema.Jsonl
CLASS, GIVEN, SKIP = {"label": "class"}, {"columns": ["a", "b", "y"]}, {"on_bad": "skip"}
CASES = {
    "a number": (CSV, table(), {"label": "score"}),
    "line ends of Windows": (CSV, table(end="\r\n"), CLASS),
    "line ends of old": (CSV, table(end="\r"), CLASS),
    "semicolons, a mark for missing": (CSV, table(separator=";"), {**CLASS, "separator": ";", "missing": ["Rom"]}),
    "tabs": (schema.Tsv, table(separator="\t"), {**CLASS, "drop": ["note"]}),
    "another encoding": (CSV, table(), {**CLASS, "encoding": "utf-16"}),
    "whole groups": (CSV, table(), {**CLASS, "group": "city"}),
    "by time": (CSV, table(), {**CLASS, "time": "since"}),
    "a fold": (CSV, table(), {**CLASS, "fold": 1}),
    "parts": (CSV, table(), {**CLASS, "train": "train[50%:]+train[:30%]", "validation": "train[30%:40%]"}),
    "columns that are named": (CSV, table(), {**CLASS, "numeric": ["zip", "id"], "categorical": ["age"]}),
    "separators at all ends": (CSV, ENDS, {"label": "y"}),
    "separators at some ends": (CSV, ENDS.replace("1,\n", "1\n").replace("y\n0,0,0,\n", "y\n"), {"label": "y"}),
    "separators at the first ends": (CSV, ENDS + ENDS.replace(",\n", "\n"), {"label": "y", **SKIP}),
    "bad rows left out": (CSV, table() + "1,2\n,,,,,,,,,\n\n" + table(9).partition("\n")[2] + "3\n", CLASS | SKIP),
    "bad rows up to the limit": (CSV, table() + "1,2\n" * 30, CLASS | SKIP | {"bad_limit": 1 / 3}),
    "bad rows above the limit": (CSV, table() + "1,2\n" * 31, CLASS | SKIP | {"bad_limit": 1 / 3}),
    "bad objects above the limit": (JSONL, JSON + "\n[1]" * 5, {"label": "y", "bad_limit": 0.1} | SKIP),
    "bad rows": (CSV, table() + "1,2\n", CLASS),
    "a quote that stays open": (CSV, table() + '1,"2\n', CLASS),
    "quotes behind blanks": (CSV, table().replace(',"says', ', "says'), CLASS),
    "quotes behind blanks that are none": (CSV, table().replace("Köln", ' "Köln'), CLASS),
    "a comment before": (CSV, "# made up\n" + table(), CLASS),
    "a line for spreadsheets": (CSV, "sep=;\r\n" + table(separator=";"), CLASS),
    "no header": (CSV, NO_HEADER, {"label": "b", **GIVEN}),
    "a header that is replaced": (CSV, "one,two,three\n" + NO_HEADER, {"label": "b", **GIVEN}),
    "a header that is repeated": (CSV, "b,a,y\n" + NO_HEADER, {"label": "a", **GIVEN}),
    "two columns of one name": (CSV, "a,a,y\n" + NO_HEADER, {"label": "y"}),
    "a column without name": (CSV, ",b,y\n" + NO_HEADER, {"label": "b"}),
    "a table without copies": (CSV, table(), {**CLASS, "deduplicate": True}),
    "a header alone": (CSV, "a,b,y\n", {"label": "y"}),
    "no such column": (CSV, table(), {"label": "klass"}),
    "a value that is infinite": (CSV, "a,b,y\n" + NO_HEADER + "\ninf,x1,1\n", {"label": "b"}),
    "a byte of 0": (CSV, table() + "1,\0\n", CLASS),
    "objects, some bad": (JSONL, JSON + '\n{"a": 1,\n{"a": [1], "y": "no"}\n[1]\n' + JSON, {"label": "y", **SKIP}),
    "objects, one cut short": (JSONL, JSON + '\n{"a": 1,', {"label": "y"}),
    "a list of objects": (JSONL, "[" + JSON.replace("\n", ",\n") + "]", {"label": "y"}),
    "a list, some bad": (
        JSONL,
        " [" + JSON.replace("\n", ",") + ', 7, {"a": [1], "y": "no"}\n]',
        {"label": "y", **SKIP},
    ),
    "a list that is cut short": (JSONL, "[" + JSON.replace("\n", ",\n"), {"label": "y"}),
    "a list with more behind it": (JSONL, "[" + JSON.replace("\n", ",") + '] {"a": 1}', {"label": "y"}),
    "a list without commas": (JSONL, "[" + JSON + "]", {"label": "y"}),
    "an empty list": (JSONL, "[ ]", {"label": "y"}),
}


@pytest.mark.parametrize("case", CASES)
def test_blocks_give_what_the_whole_gives(case: str, tmp_path, monkeypatch) -> None:
    """The same arrays, statistics, notes and places in files; the same error where there is one."""
    kind, text, keys = CASES[case]
    file = tmp_path / f"rows.{kind.kind}"
    file.write_bytes(text.encode(keys.get("encoding", "utf-8")))
    whole, blocks = both(monkeypatch, kind(path=str(file), **keys), regression=keys["label"] == "score")
    if isinstance(whole, str) or isinstance(blocks, str):
        assert blocks == whole
    else:
        assert_equal(whole, blocks)


def test_rows_that_are_left_out_are_listed_and_limited(tmp_path, monkeypatch) -> None:
    file = tmp_path / "rows.tsv"
    rows = [f"{row % 7}\t{row % 2}" for row in range(30)]
    file.write_text("\n".join(["a\ty", *rows, *["1\t2\t3"] * 25, *rows]) + "\n")
    config = schema.Tsv(path=str(file), label="y", on_bad="skip")
    whole, blocks = both(monkeypatch, config)
    note = next(note for note in blocks.info["notes"] if "left out" in note)
    assert note.startswith(f"25 rows are left out, the first with this: {file}:32: 3 fields, where the header has 2")
    assert note.endswith(f"; then {', '.join(f'{file}:{line}' for line in range(33, 53))} and 4 more")
    assert whole.info["notes"] == blocks.info["notes"]
    config.bad_limit = 0.29
    whole, blocks = both(monkeypatch, config)
    said = f"data.on_bad: 25 of 85 rows cannot be read, more than data.bad_limit=0.29 allows: {file}:32, {file}:33"
    assert whole == blocks and blocks.startswith(said) and "of the first: 3 fields" in blocks
    config.bad_limit = 0.3
    assert prepare.prepare(config).size("train") < 60


def reviews(rows: int = 50, seed: int = 0) -> str:
    """Texts of any length, some of them twice, in one or two classes, as JSON lines."""
    draw = np.random.default_rng(seed)
    lines = []
    for row in range(rows):
        said = " ".join(draw.choice(["good", "Bad", "naïve", "the", "film 😀", "quite"], draw.integers(1, 30)))
        line = {"id": row, "text": said if row % 5 else "The same\tfilm\nagain", "other": said[::-1] or "-"}
        lines.append(line | {"stars": row % 3, "topics": ["a", "b"][: row % 3]})
    return "\n".join(map(json.dumps, lines)) + "\n"


WORDS, BPE = schema.Tokenizer(type="words", size=12, max_length=16), schema.Tokenizer(type="bpe", size=300)
RUN = schema.StreamTokenizer(type="characters")
TEXT, STARS = {"text": "text"}, {"text": "text", "label": "stars"}
EMPTY = json.dumps({"text": " ", "other": "x", "stars": 1, "topics": []}) + "\n"
HALF = EMPTY.replace('" "', '"\\ud83d"')
TEXTS = {
    "words, cut": (reviews(), STARS, WORDS),
    "pieces": (reviews(), STARS, BPE),
    "pairs": (reviews(), STARS | {"text_pair": "other"}, WORDS),
    "n-grams": (reviews(), STARS, schema.NgramTokenizer(size=200, min_texts=1)),
    "n-grams of pairs": (reviews(), STARS | {"text_pair": "other"}, schema.NgramTokenizer(size=200, min_texts=1)),
    "no tokenizer": (reviews(), STARS, None),
    "no labels": (reviews(), TEXT | {"label": None}, WORDS),
    "several classes": (reviews(), TEXT | {"label": None, "labels": "topics"}, WORDS),
    "parts": (reviews(), STARS | {"train": "train[50%:]+train[:30%]", "test": "train[30%:50%]"}, WORDS),
    "bad rows left out": (reviews() + "{\n" + reviews(9, 1), STARS | {"on_bad": "skip"}, WORDS),
    "empty texts": (reviews() + EMPTY + reviews(9) + EMPTY, STARS, WORDS),
    "each once": (reviews() + reviews(30) + reviews(9, 1), STARS | {"deduplicate": True}, WORDS),
    "one run of tokens": (reviews(), STARS, schema.StreamTokenizer(type="bpe", size=300)),
    "one run of the first of two": (reviews(), TEXT | {"text_pair": "other", "label": None}, RUN),
    "one run, no end token": (reviews(), TEXT | {"label": None}, schema.StreamTokenizer(type="file", path="ENDLESS")),
    "half of a character": (reviews() + HALF, STARS, WORDS),
    "no such column": (reviews(), {"text": "txt", "label": "stars"}, WORDS),
}


@pytest.mark.parametrize("case", TEXTS)
def test_blocks_of_texts_give_what_the_whole_gives(case: str, tmp_path, monkeypatch) -> None:
    """The same tokens, offsets, texts, vocabulary, copies and lengths of batches; the same error where there is one."""
    monkeypatch.setattr(encode_by_blocks, "_TEXTS", 3)
    monkeypatch.setattr(deduplicate, "_TEXTS", 3)
    text, keys, tokenizer = TEXTS[case]
    file = tmp_path / "rows.jsonl"
    file.write_text(text)
    if getattr(tokenizer, "path", None):
        made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"film": 0, "?": 1}, unk_token="?"))
        made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        made.save(str(tmp_path / "endless.json"))
        tokenizer = dataclasses.replace(tokenizer, path=str(tmp_path / "endless.json"))
    spec = tokenization.spec(tokenizer) if tokenizer else None
    config, batches = JSONL(path=str(file), **keys), BatchOptions(batch_size=4, block=8)
    whole, blocks = both(monkeypatch, config, tokenizer=spec, batches=batches)
    if isinstance(whole, str) or isinstance(blocks, str):
        assert blocks == whole
    else:
        assert_equal(whole, blocks)


def test_quotes_that_may_hold_rows_are_doubted_by_blocks_too(tmp_path, monkeypatch) -> None:
    file = tmp_path / "rows.tsv"
    rows = [f"text {row} of {row % 7}\t{row % 2}" for row in range(30)]
    file.write_text("text\tclass\n" + "\n".join([*rows, '"two\t1\nrows"\t0', *rows]) + "\n")
    whole, blocks = both(monkeypatch, schema.Tsv(path=str(file), text="text", label="class"))
    assert_equal(whole, blocks)
    assert "quotes enclose line ends and tabs" in blocks.info["notes"][0]


def large(tmp_path, monkeypatch, text: str = table(), **keys) -> schema.Csv:
    """A table that is prepared by blocks."""
    monkeypatch.setattr(delimited, "_LARGE", 0)
    file = tmp_path / "rows.csv"
    file.write_text(text)
    return schema.Csv(path=str(file), label="class", **keys)


def left(tmp_path) -> list[str]:
    """What is in the cache besides whole sets and what is always there."""
    return [
        file.name for file in (tmp_path / "cache" / "data").iterdir() if file.name.startswith(".") and file.is_dir()
    ]


def test_files_of_the_splits_and_packed_ones_are_read_by_blocks_too(tmp_path, monkeypatch) -> None:
    for name, rows in (("validation", 20), ("test", 30)):
        (tmp_path / f"{name}.csv.gz").write_bytes(gzip.compress(table(rows, seed=rows).encode()))
    config = large(tmp_path, monkeypatch)
    config.validation_path, config.test_path = (str(tmp_path / f"{name}.csv.gz") for name in ("validation", "test"))
    whole, blocks = both(monkeypatch, config)
    assert_equal(whole, blocks)
    assert [blocks.size(split) for split in SPLITS] == [60, 20, 30]


def test_a_full_disk_is_told_and_what_was_prepared_is_kept(tmp_path, monkeypatch) -> None:
    config, calls = large(tmp_path, monkeypatch), []
    monkeypatch.setattr(journal, "_EVERY", -1.0)
    places = ((column_files.TextColumns, "append"), (array_file.ArrayFile, "write"))
    for place, method in places:
        own, before = getattr(place, method), len(calls)

        def full(*given: object, own=own, before=before, **named: object) -> object:
            calls.append(1)
            if len(calls) - before > 3:
                raise OSError(errno.ENOSPC, "No space left on device")
            return own(*given, **named)

        with monkeypatch.context() as patched, pytest.raises(DataError, match="cannot store .*: No space left") as told:
            patched.setattr(place, method, full)
            prepare.prepare(config)
        assert "what was prepared is kept" in str(told.value)
        assert "\n" not in str(told.value) and len(left(tmp_path)) == 1
    appended: list[object] = []
    monkeypatch.setattr(column_files.TextColumns, "append", lambda *given: appended.append(given))
    assert prepare.prepare(config).size("test") == 6
    assert not appended and left(tmp_path) == []


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch) -> None:
    config = large(tmp_path, monkeypatch)
    read = row_blocks.load

    def grows(file: Path, *arguments, **options):
        found = read(file, *arguments, **options)
        file.write_text(table() + table(5).partition("\n")[2])
        return found

    with monkeypatch.context() as patched, pytest.raises(DataError, match="a file has changed while it was read"):
        patched.setattr(row_blocks, "load", grows)
        prepare.prepare(config)
    assert left(tmp_path) == []
    assert sum(prepare.prepare(config).size(split) for split in SPLITS) == 65


def test_what_a_killed_start_left_is_in_nobodys_way(tmp_path, monkeypatch) -> None:
    config = large(tmp_path, monkeypatch)
    made = prepare.prepare(config)
    work = partial.partial_folder(Path(made.path))
    (work / "columns" / "train").mkdir(parents=True)
    for name in ("train.inputs.npy", "columns/0.column", "columns/train/0.cells", "meta.json"):
        (work / name).write_bytes(b"half")
    again = prepare.prepare(config, rebuild=True)
    assert again.fingerprint == made.fingerprint and left(tmp_path) == []


def test_two_that_prepare_at_once_make_it_once(tmp_path, monkeypatch) -> None:
    config, calls = large(tmp_path, monkeypatch), []
    made = prepare_rows._made
    monkeypatch.setattr(prepare_rows, "_made", lambda *given: calls.append(1) or made(*given))
    with ThreadPoolExecutor(2) as pool:
        found = [each.result() for each in [pool.submit(prepare.prepare, config) for _ in range(2)]]
    assert found[0].fingerprint == found[1].fingerprint and len(calls) == 1


def test_progress_is_told_line_by_line_where_there_is_no_terminal(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("bigctl.data.progress._EVERY", {False: -1.0, True: -1.0})
    monkeypatch.setattr("bigctl.data.progress._AT_FIRST", -1.0)
    prepare.prepare(large(tmp_path, monkeypatch))
    said = capsys.readouterr().err
    for what in ("looking through rows.csv", "reading rows.csv", "telling what columns hold", "writing rows"):
        assert f"data: {what} 100%" in said


def test_a_quote_that_is_never_closed_does_not_hold_the_rest_of_a_large_file(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(row_blocks, "_LONGEST", 2**17)
    monkeypatch.setattr(text_parts, "_BLOCK", 2**12)
    read: list[str] = []
    looked = row_blocks.Reading.parts
    monkeypatch.setattr(
        row_blocks.Reading,
        "parts",
        lambda self, what="reading": (read.append(what) or part for part in looked(self, what)),
    )
    config = large(tmp_path, monkeypatch, table() + '1,"2\n' + "x\n" * 2**18)
    with pytest.raises(DataError, match=r"rows.csv:122: a quote is opened and never closed"):
        prepare.prepare(config)
    assert read.count("reading") < read.count("looking through") / 1.5  # the header, and 2**17 characters


def test_a_list_is_read_by_parts_as_it_is_as_a_whole(monkeypatch) -> None:
    """Wherever its text is divided, and from each value on; a value that is cut is not taken for a shorter one."""
    text = ' [ {"a": "x\\u00e9\\n]"}, -12.5e3 ,\n[1, {}], true, "", null, 123 ]\n '
    known = json.loads(text)
    whole = [*json_parts.values([text], "f")]
    assert [value for _, value, _ in whole] == known
    for size in (1, 2, 3, 7):
        parts = [text[start : start + size] for start in range(0, len(text), size)]
        assert [*json_parts.values(parts, "f")] == whole
        for number, _, end in whole:
            assert [*json_parts.values(parts, "f", behind=end, number=number)] == whole[number:]
    for end in range(1, len(text.rstrip())):
        with pytest.raises(DataError, match="invalid JSON: .* at line"):
            list(json_parts.values([text[:3], text[3:end]], "f"))
    with pytest.raises(DataError, match="f: invalid JSON: Expecting property name .* at line 2"):
        list(json_parts.values(['[{"a": 1},\n', "{b: 2}", ",3]" * 9], "f"))

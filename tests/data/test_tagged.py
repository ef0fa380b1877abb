"""Promises of `bigctl.data.sources.conll` and `bigctl.data.sources.tagged`: sentences of which each word has a tag."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bigctl.config import schema
from bigctl.data.sources import conll, json_lines
from bigctl.data.sources.conll import read_conll
from bigctl.data.sources.tagged import Sentences, decode, read_json_lines
from bigctl.data.target import Target
from bigctl.errors import DataError

NEWS = """-DOCSTART- -X- -X- O

# newdoc id = 1
EU NNP B-NP B-ORG
rejects VBZ B-VP O

# NN B-NP O
hashtag NN I-NP O

"""
UNIVERSAL = """# sent_id = 1
# text = Im Haus
1-2\tIm\t_\t_\t_\t_\t_\t_\t_\t_
1\tIn\tin\tADP\t_\t_\t_\t_\t_\t_
2\tdem\tder\tDET\t_\t_\t_\t_\t_\t_
2.1\tnichts\t_\tX\t_\t_\t_\t_\t_\t_
3\tHaus\tHaus\tNOUN\t_\t_\t_\t_\t_\t_
#\t#\t#\tSYM\t_\t_\t_\t_\t_\t_
"""


def write(folder: Path, text: str, name: str = "train.conll") -> Path:
    (folder / name).write_bytes(text.encode())
    return folder / name


def refused(match: str, action, *args, **options) -> str:
    with pytest.raises(DataError, match=match) as caught:
        action(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- CoNLL files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_sentences_are_divided_by_blank_lines_and_documents_and_comments_are_left_out(tmp_path, end):
    found = read_conll(write(tmp_path, NEWS.replace("\n", end)))
    assert found.words == [["EU", "rejects"], ["#", "hashtag"]] and found.tags == [["B-ORG", "O"], ["O", "O"]]
    assert found.at(1, 1).endswith("train.conll:8")


def test_columns_are_chosen_by_number_or_by_name(tmp_path):
    file = write(tmp_path, NEWS)
    assert read_conll(file, tags="1").tags[0] == ["NNP", "VBZ"]
    assert read_conll(file, tags="pos", columns=["word", "pos", "chunk", "ner"]).tags[0] == ["NNP", "VBZ"]
    named = write(tmp_path, "# global.columns = NER FORM\nB-LOC\tRome\nO\tNew York\n", "named.conllup")
    found = read_conll(named, tokens="FORM", tags="NER")
    assert found.words == [["Rome", "New York"]] and found.tags == [["B-LOC", "O"]]
    assert read_conll(file, tags=None).words[0] == ["EU", "rejects"]


def test_conllu_has_its_own_names_and_words_written_as_one_are_left_out(tmp_path):
    found = read_conll(write(tmp_path, UNIVERSAL.replace("#\t#", "4\t#"), "a.conllu"), tokens="FORM", tags="UPOS")
    assert found.words == [["In", "dem", "Haus", "#"]] and found.tags == [["ADP", "DET", "NOUN", "SYM"]]


def test_a_no_break_space_divides_no_columns(tmp_path):
    assert read_conll(write(tmp_path, "10\u00a0km O\n")).words == [["10\u00a0km"]]


@pytest.mark.parametrize(
    ("text", "options", "match"),
    [
        ("", {}, "the file is empty"),
        ("# only\n-DOCSTART- -X- O\n", {}, "there is no sentence"),
        ("a B O\nb O\n", {}, r"train.conll:2: 2 columns \(the first line of words has 3, separated by blanks\)"),
        ("a\tO\nb\tO\tO\n", {}, r"train.conll:2: 3 columns .*separated by tabs"),
        ("a\tO\nb\t\n", {}, "train.conll:2: the tag is empty"),
        ("a\tO\n\t O\n", {}, "train.conll:2: word 2 of the sentence is empty"),
        ("a\nb\n", {}, "there is one column only"),
        ("a O\n", {"tags": "2"}, r"data.tags=2, and there are 2 columns \(0 is the first, 1 or -1 the last\)"),
        ("a O\n", {"tags": "ner"}, "data.tags names no column: 'ner'.*name all in data.columns"),
        ("a O\n", {"tags": "ner", "columns": ["word", "NER"]}, "'ner'.*the columns are word, NER"),
        ("a O\n", {"columns": ["word"]}, "1 names of columns, and 2 columns"),
        ("a O\n", {"tokens": "-1"}, "the same column"),
    ],
)
def test_what_is_wrong_with_a_conll_file_is_said_with_its_line(tmp_path, text, options, match):
    refused(match, read_conll, write(tmp_path, text), **options)


def test_a_missing_file_is_named(tmp_path):
    write(tmp_path, NEWS)
    assert "did you mean train.conll" in refused("no such file", read_conll, tmp_path / "train.conl")


# --- JSON lines -------------------------------------------------------------------------------------------------------


def lines(folder: Path, *records: object) -> Path:
    return write(folder, "\n".join(json.dumps(record) for record in records), "train.jsonl")


def test_json_lines_hold_words_and_tags_as_names_or_as_numbers_of_names(tmp_path):
    file = lines(tmp_path, {"w": ["in", "New York"], "t": [0, 1]}, {"w": ["a"], "t": [0]})
    found = read_json_lines(file, tokens="w", tags="t", names=["O", "B-LOC"])
    assert found.words == [["in", "New York"], ["a"]] and found.tags == [["O", "B-LOC"], ["O"]]
    assert read_json_lines(file, tokens="w", tags="t").tags == [["0", "1"], ["0"]]
    assert found.at(1, 0).endswith("train.jsonl:2")


@pytest.mark.parametrize(
    ("record", "match"),
    [
        ({"w": ["a", "b"], "t": ["O"]}, "train.jsonl:2: 2 words and 1 tags"),
        ({"w": ["a"]}, "train.jsonl:2: there is no field 't' .*the fields are w"),
        ({"w": "a b", "t": ["O"]}, "train.jsonl:2: the field 'w' is a string, not a list"),
        ({"w": [1], "t": ["O"]}, "train.jsonl:2: the field 'w' holds a number"),
        ({"w": [], "t": []}, "train.jsonl:2: the sentence has no words"),
        ({"w": [" "], "t": ["O"]}, "train.jsonl:2: word 1 of the sentence is empty"),
        ({"w": ["\ud83d"], "t": ["O"]}, "train.jsonl:2: .*half of a character"),
        ({"w": ["a"], "t": [None]}, "train.jsonl:2: the field 't' holds null"),
        ({"w": ["a"], "t": [""]}, "train.jsonl:2: a tag is empty"),
    ],
)
def test_what_is_wrong_with_json_lines_is_said_with_its_line(tmp_path, record, match):
    file = lines(tmp_path, {"w": ["a"], "t": ["O"]}, record)
    refused(match, read_json_lines, file, tokens="w", tags="t")


def test_files_are_read_in_their_encoding(tmp_path):
    plain = tmp_path / "a.conll"
    plain.write_bytes("\xc9t\xe9 O\nParis B-LOC\n".encode("latin-1"))
    assert read_conll(plain, "latin-1").words == [["\xc9t\xe9", "Paris"]]
    refused("a.conll:1: byte 0xc9 is not UTF-8, at offset 0", read_conll, plain)
    rows = tmp_path / "a.jsonl"
    rows.write_bytes('{"w": ["\xe9"], "t": ["O"]}\n'.encode("cp1252"))
    assert read_json_lines(rows, "cp1252", tokens="w", tags="t").words == [["\xe9"]]
    keys = {"path": str(plain), "encoding": "latin-1"}
    assert conll.identity(schema.Conll(**keys)) != conll.identity(schema.Conll(path=str(plain)))
    assert "encoding" not in conll.identity(schema.Conll(path=str(plain)))


def test_sentences_that_cannot_be_read_are_noted_or_left_out(tmp_path):
    file = lines(
        tmp_path, {"w": ["a"], "t": ["O"]}, {"w": "b"}, {"w": ["c", "d"], "t": ["O"]}, {"w": ["e"], "t": ["X"]}
    )
    bad: dict = {}
    found = read_json_lines(file, tokens="w", tags=None, bad=bad)
    assert list(bad) == [1] and found.words[2:] == [["c", "d"], ["e"]] and "not a list" in str(bad[1])
    keys = {"path": str(file), "label": None, "tokens": "w", "tags": "t"}
    refused("not a list", json_lines.decode, schema.Jsonl(**keys), False)
    decoded = json_lines.decode(schema.Jsonl(**keys, on_bad="skip"), False)
    assert decoded.splits["train"]["text"].tolist() == ["a", "e"]
    assert decoded.info["notes"][0].startswith("2 sentences are left out, the first with this: ")
    told = refused("2 of 4 sentences", json_lines.decode, schema.Jsonl(**keys, on_bad="skip", bad_limit=0.4), False)
    assert "more than data.bad_limit=0.4 allows" in told and f"{file}:2" in told
    assert json_lines.decode(schema.Jsonl(**keys, on_bad="skip", bad_limit=0.5), False).info == decoded.info
    bad.clear()
    plain = write(tmp_path, "in O\nRome B-LOC\n\nbad line here\nnot O\n\nhere O\n")
    found = read_conll(plain, tags=None, bad=bad)
    assert list(bad) == [1] and (found.words[0], found.words[2]) == (["in", "Rome"], ["here"])
    assert bad[1].where == f"{plain}:4"


def test_bad_sentences_of_conll_files_are_left_out_up_to_a_limit_and_named(tmp_path):
    file = write(tmp_path, "in O\nRome B-LOC\n\nbad line here\nnot O\n\nhere O\n\nthree B-PER more\n\nx\n")
    keys = {"path": str(file)}
    refused("3 columns", conll.decode, schema.Conll(**keys), False)
    decoded = conll.decode(schema.Conll(**keys, on_bad="skip"), False)
    assert decoded.splits["train"]["text"].tolist() == ["in Rome", "here"]
    assert decoded.info["notes"][0].startswith(f"3 sentences are left out, the first with this: {file}:4: 3 columns")
    assert decoded.info["notes"][0].endswith(f"; then {file}:9, {file}:11")
    told = refused("3 of 5 sentences", conll.decode, schema.Conll(**keys, on_bad="skip", bad_limit=0.5), False)
    assert "data.bad_limit=0.5" in told and f"{file}:9" in told
    empty = write(tmp_path, "in\tO\n\nRome\t\n\nthere\tB-LOC\n")
    refused("the tag is empty", conll.decode, schema.Conll(**keys), False)
    skipped = conll.decode(schema.Conll(path=str(empty), on_bad="skip"), False)
    assert skipped.splits["train"]["text"].tolist() == ["in", "there"]
    assert conll.identity(schema.Conll(**keys, on_bad="skip")) != conll.identity(schema.Conll(**keys))
    assert conll.identity(schema.Conll(**keys)).keys() == {"files", "tokens", "tags", "columns"}


def test_a_number_without_a_name_is_refused(tmp_path):
    file = lines(tmp_path, {"w": ["a"], "t": [9]})
    refused("train.jsonl:1: the tag '9' is none of them", read_json_lines, file, tokens="w", tags="t", names=["O", "B"])


# --- As a data set ----------------------------------------------------------------------------------------------------


def sentences(*rows: str) -> Sentences:
    """Sentences written as `word/tag word/tag`."""
    split = [[tuple(word.split("/")) for word in row.split()] for row in rows]
    words, tags = ([[pair[n] for pair in row] for row in split] for n in (0, 1))
    return Sentences("t", words, tags, list(range(1, len(rows) + 1)))


def test_tags_are_those_of_the_training_file_with_O_first(tmp_path):
    decoded = decode({"train": sentences("Rome/B-LOC is/O", "B/I-PER"), "test": sentences("is/O")}, {"source": "conll"})
    assert decoded.kind == "text" and decoded.classes is None
    assert decoded.target == Target("token_class", ("O", "B-LOC", "I-PER"))
    assert decoded.splits["train"]["text"].tolist() == ["Rome is", "B"]
    assert [row.tolist() for row in decoded.splits["train"]["tags"]] == [[1, 0], [2]]
    assert decoded.info["words"] == {"train": 3, "test": 1}
    assert decode({"train": sentences("a/10 b/9")}, {}).target.names == ("9", "10")


def test_unknown_and_useless_tags_are_refused():
    train = sentences("Rome/B-LOC is/O")
    refused(
        "t:2: the tag 'B-PER' of 'Bo' is not among", decode, {"train": train, "test": sentences("a/O", "Bo/B-PER")}, {}
    )
    refused("every word has the tag 'O'", decode, {"train": sentences("a/O b/O")}, {})
    many = sentences(*(f"a/word{n}" for n in range(150)))
    refused("150 different tags in 150 words", decode, {"train": many}, {})

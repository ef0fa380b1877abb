"""Promises of `data=text`: a user's own text, whole and in order, cut by place, as tokens that give it back."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest

from bigctl.config import schema
from bigctl.data import cache, splits
from bigctl.data.dataset import Dataset
from bigctl.data.layouts.choose import BatchOptions
from bigctl.data.preparation import prepare
from bigctl.data.sources import text_files
from bigctl.data.sources.decoded import Decoded
from bigctl.data.text import encoding, tokenization
from bigctl.errors import DataError

VERSE = "In the beginning God created the heaven and the earth.\n\nAnd the earth was without form, and void;\n"
CHINESE = "床前明月光,疑是地上霜。\n舉頭望明月,低頭思故鄉。\n"


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path / "cache"))


def write(folder: Path, **files: str) -> Path:
    for name, content in files.items():
        file = folder / name.replace("__", "/").replace("_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode())
    return folder


def read(path: Path | str, **options: str) -> list[str]:
    return text_files.read_documents(str(path), **options).splits["train"]["document"].tolist()


def make(config: schema.TextFiles, type: str = "characters", block: int = 8, **settings: object) -> Dataset:
    spec = tokenization.spec(schema.StreamTokenizer(type=type, **settings))  # type: ignore[arg-type]
    return prepare.prepare(config, tokenizer=spec, batches=BatchOptions(block=block))


# --- Reading ----------------------------------------------------------------------------------------------------------


def test_a_file_is_read_as_it_is(tmp_path):
    content = "\n  two blanks, a tab\t and\r\na line end of Windows \n\n"
    assert read(write(tmp_path, a_txt=content) / "a.txt") == [content]


def test_a_folder_and_a_pattern_give_their_files_by_name(tmp_path):
    write(tmp_path, b_txt="second", a_txt="first", **{"sub__c_txt": "third"})
    (tmp_path / ".hidden").write_text("not this")
    (tmp_path / "empty.txt").write_text("")
    assert read(tmp_path) == ["first", "second", "third"]
    assert read(f"{tmp_path}/*.txt") == ["first", "second"]
    assert read(f"{tmp_path}/**/*.txt") == ["first", "second", "third"]
    notes = text_files.read_documents(str(tmp_path)).info["notes"]
    assert notes == ["1 empty documents of train are left out"]


def test_each_json_object_is_a_document(tmp_path):
    lines = [{"story": "one\ntwo", "id": 1}, {"story": "", "id": 2}, {"story": "three", "id": 3}]
    file = write(tmp_path, a_jsonl="\n".join(map(json.dumps, lines))) / "a.jsonl"
    assert read(file, field="story") == ["one\ntwo", "three"]
    with pytest.raises(DataError, match="which field") as caught:
        read(file)
    assert "story, id" in str(caught.value)
    with pytest.raises(DataError, match="'stroy'") as caught:
        read(file, field="stroy")
    assert "did you mean 'story'" in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "where", "message"),
    [
        (['{"text": "a"}', "", '{"txt": "b"}'], "a.jsonl:3", "no field 'text'"),
        (['{"txt": "b"}', '{"text": "a"}'], "a.jsonl:1", "no field 'text'"),
        (['{"text": "a"}', '{"text": ["b"]}'], "a.jsonl:2:text", "a list"),
        (['{"text": "a"}', "b"], "a.jsonl:2", "invalid JSON"),
        (['{"text": "a"}', '"b"'], "a.jsonl:2", "not an object"),
    ],
)
def test_a_json_line_without_a_text_is_named(tmp_path, lines, where, message):
    file = write(tmp_path, a_jsonl="\n".join(lines)) / "a.jsonl"
    with pytest.raises(DataError, match=message) as caught:
        read(file, field="text")
    assert str(caught.value.where).endswith(where)


def test_text_is_read_in_its_encoding(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes("\xfcber\nStra\xdfe".encode("latin-1"))
    assert read(file, encoding="latin-1") == ["\xfcber\nStra\xdfe"]
    rows = tmp_path / "b.jsonl"
    rows.write_bytes('{"text": "\xe9t\xe9"}\n'.encode("utf-16"))
    assert read(rows, field="text", encoding="utf-16") == ["\xe9t\xe9"]
    with gzip.open(tmp_path / "c.jsonl.gz", "wb") as stream:
        stream.write(b'{"text": "packed"}\n')
    assert read(tmp_path / "c.jsonl.gz", field="text") == ["packed"]
    for given, name in ((None, "UTF-8"), ("ascii", "ascii")):
        with pytest.raises(DataError, match=f"a.txt:1: byte 0xfc is not {name}, at offset 0"):
            text_files.read_documents(str(file), encoding=given)
    (tmp_path / "marked.txt").write_bytes(b"\xef\xbb\xbfab\n\xff")
    with pytest.raises(DataError, match="marked.txt:2: byte 0xff is not UTF-8, at offset 6"):
        read(tmp_path / "marked.txt")
    with pytest.raises(DataError, match="there is no encoding 'rot13'"):
        read(file, encoding="rot13")
    identity = text_files.identity(schema.TextFiles(path=str(file)))
    assert "encoding" not in identity
    assert identity != text_files.identity(schema.TextFiles(path=str(file), encoding="latin-1"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.bin", b"\x7fELF\x00\x01", "NUL"),
        ("a.png", b"\x89PNG\r\n\x1a\n", "UTF-8"),
        ("a.txt", b"", "empty"),
        ("b.txt", b" \n ", "empty"),
    ],
)
def test_what_is_no_text_is_refused_by_name(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path / name)
    assert name in str(caught.value.where)


def test_paths_that_mean_nothing_are_explained(tmp_path):
    write(tmp_path, input_txt="text")
    with pytest.raises(DataError, match="no such file.*did you mean input.txt"):
        read(tmp_path / "inptu.txt")
    with pytest.raises(DataError, match="no file matches"):
        read(f"{tmp_path}/*.md")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no files"):
        read(tmp_path / "none")
    with pytest.raises(DataError, match="data.field=story"):
        read(tmp_path / "input.txt", field="story")


# --- Splits -----------------------------------------------------------------------------------------------------------


def cut(texts: list[str], **options: object) -> dict[str, list[str]]:
    decoded = Decoded("stream", {"train": {"document": text_files.as_column(texts)}}, None)
    found = splits.split_stream(decoded, schema.TextFiles(path="", **options))  # type: ignore[arg-type]
    return {split: columns["document"].tolist() for split, columns in found.items()}


def test_splits_are_the_beginning_and_then_the_end_of_the_text():
    whole = "".join(chr(0x4E00 + i) for i in range(1000))
    found = cut([whole[:300], whole[300:940], whole[940:]])
    assert found == {"train": [whole[:300], whole[300:900]], "validation": [whole[900:940], whole[940:950]],
                     "test": [whole[950:]]}  # fmt: skip


def test_the_nanogpt_protocol_can_be_written_either_way():
    whole = "".join(chr(0x4E00 + i) for i in range(1234))
    n = int(0.9 * len(whole))
    by_rule = cut([whole], validation_fraction=0.1, test_fraction=0.0)
    by_expression = cut([whole], train="text[:90%]", validation="text[90%:]", test_fraction=0.0)
    assert by_rule == by_expression
    assert by_rule == {"train": [whole[:n]], "validation": [whole[n:]], "test": [whole[n:]]}


def test_parts_may_not_overlap_and_what_is_left_is_for_training():
    whole = "".join(chr(0x4E00 + i) for i in range(100))
    found = cut([whole], validation="train[40:50]", test="train[:10]")
    assert found == {"train": [whole[10:40], whole[50:]], "validation": [whole[40:50]], "test": [whole[:10]]}
    with pytest.raises(DataError, match="shares text of 'train' with the train split"):
        cut([whole], train="text[:90%]", validation="text[85%:]")
    with pytest.raises(DataError, match="there is no split 'dev2'"):
        cut([whole], validation="dev2")
    with pytest.raises(DataError, match="the validation split is empty"):
        cut([whole], validation="text[100:]")


def test_files_of_their_own_are_splits_of_their_own(tmp_path):
    write(tmp_path, a_txt="train" * 20, b_txt="validation", c_txt="tested")
    path = {
        name: str(tmp_path / f"{letter}.txt")
        for name, letter in zip(("path", "validation_path", "test_path"), "abc", strict=True)
    }
    made = make(schema.TextFiles(**path), "bytes", block=4)
    assert [bytes(made.splits[s]["inputs"].astype(np.uint8)) for s in made.splits] == [
        b"train" * 20,
        b"validation",
        b"tested",
    ]


# --- Tokens -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type", ["characters", "bytes", "bpe"])
@pytest.mark.parametrize(
    "content", [VERSE * 40, CHINESE * 60, "e\u0301\U0001f600 \ufeff\x07\r\n" * 90], ids=["verse", "chinese", "odd"]
)
def test_tokens_give_the_text_back(tmp_path, type, content):
    config = schema.TextFiles(path=str(write(tmp_path, a_txt=content) / "a.txt"))
    made = make(config, type, size=300)
    tokenizer = tokenization.load_tokenizer(Path(made.path) / cache.TOKENIZER, stream=True)
    whole = "".join(tokenizer.decode(made.splits[split]["inputs"].tolist()) for split in made.splits)
    assert whole == content
    for split, columns in made.splits.items():
        assert columns["inputs"].dtype == np.uint16
        assert int(columns["bytes"][0]) == len(made.texts[split][0][0].encode()) == made.info["bytes"][split]
    assert made.features.kind == "stream" and made.features.shape == (8,) and made.features.classes is None


def test_characters_are_the_vocabulary_and_two_special_tokens(tmp_path):
    made = make(schema.TextFiles(path=str(write(tmp_path, a_txt=VERSE * 20) / "a.txt")))
    described = made.features.tokenizer
    assert described is not None and described["vocab_size"] == len(set(VERSE)) + 2
    assert {described["eos"], described["unk"]} == {0, 1}


def test_bytes_are_tokens_of_their_own_number(tmp_path):
    made = make(schema.TextFiles(path=str(write(tmp_path, a_txt=CHINESE * 40) / "a.txt")), "bytes")
    whole = b"".join(made.splits[split]["inputs"].astype(np.uint8).tobytes() for split in made.splits)
    assert whole == (CHINESE * 40).encode()
    assert made.features.tokenizer is not None and made.features.tokenizer["eos"] == 256


def test_the_end_token_stands_between_documents_where_wanted(tmp_path):
    write(tmp_path, a_txt="first " * 5, b_txt="second " * 5, v_txt="a validation text")
    common = {"validation_path": str(tmp_path / "v.txt"), "test_path": str(tmp_path / "v.txt")}
    path = f"{tmp_path}/[ab].txt"
    for boundaries, between in ((True, [256]), (False, [])):
        made = make(schema.TextFiles(path=path, boundaries=boundaries, **common), "bytes")
        assert made.splits["train"]["inputs"].tolist() == [*b"first " * 5, *between, *b"second " * 5]


def test_a_tokenizer_that_marks_the_beginning_of_a_text_is_given_it_whole():
    from tokenizers import Tokenizer, models, normalizers

    words = ["<unk>", "▁", "a", "b", "c", "\n", "▁a"]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [("▁", "a")], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    content = "a b " * 20000
    whole = tokenizer.encode(content, add_special_tokens=False).ids
    assert encoding.encode_stream(tokenizer, [content], boundaries=True).tolist() == whole


def test_the_same_text_is_prepared_once_for_any_window(tmp_path):
    config = schema.TextFiles(path=str(write(tmp_path, a_txt=VERSE * 40) / "a.txt"))
    small, large = make(config, block=8), make(config, block=16)
    assert small.path == large.path and small.fingerprint == large.fingerprint
    tokens = len(small.splits["train"]["inputs"])
    assert small.size("train") == (tokens - 8) // 8 and large.size("train") == (tokens - 16) // 16
    assert small.size("validation") == math.ceil((len(small.splits["validation"]["inputs"]) - 1) / 8)


def test_a_text_shorter_than_one_window_is_refused(tmp_path):
    config = schema.TextFiles(path=str(write(tmp_path, a_txt="x" * 100) / "a.txt"))
    assert make(config, block=89).size("train") == 1
    with pytest.raises(DataError, match="the train text has 90 tokens, 91 are needed"):
        make(config, block=90)


def test_texts_of_a_table_can_be_learnt_to_write_too(tmp_path):
    rows = "\n".join(f"text number {i},{i % 2}" for i in range(60))
    config = schema.Csv(path=str(write(tmp_path, a_csv=f"text,y\n{rows}\n") / "a.csv"), text="text", label="y")
    made = prepare.prepare(
        config, tokenizer=tokenization.spec(schema.StreamTokenizer(type="bytes")), batches=BatchOptions(block=8)
    )
    documents = bytes(
        np.where(made.splits["train"]["inputs"] == 256, 10, made.splits["train"]["inputs"]).astype(np.uint8)
    )
    assert made.features.kind == "stream" and len(documents.splitlines()) == made.info["documents"]["train"] == 48
    assert all(line.startswith(b"text number ") for line in documents.splitlines())


def test_one_long_text_holds_no_examples_to_classify(tmp_path):
    config = schema.TextFiles(path=str(write(tmp_path, a_txt=VERSE * 20) / "a.txt"))
    with pytest.raises(DataError, match="one long text"):
        prepare.prepare(config, tokenizer=tokenization.spec(schema.Tokenizer(type="words")))

"""Texts come from a stream as they arrive, and a wrong line is named."""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from bigctl.cli.generate import _prompts
from bigctl.config.compose import compose, to_yaml
from bigctl.errors import DataError
from bigctl.inference.read_lines import checked_blocks, text_blocks


class Pieces:
    """A stream that brings what it is told to, one piece a reading, and counts them."""

    def __init__(self, pieces: Iterator[bytes]):
        self.pieces, self.count = pieces, 0

    def read1(self, size: int, /) -> bytes:
        self.count += 1
        return next(self.pieces, b"")


def texts(data: bytes, **options: bool) -> list:
    return [text for block in text_blocks(io.BytesIO(data), **{"pairs": False, **options}) for text in block]


def test_lines_are_the_same_however_they_are_cut() -> None:
    data = "\ufeffone\r\n zwei Wörter \n第三行\nlast without end".encode()
    expected = ["one", "zwei Wörter", "第三行", "last without end"]
    assert texts(data) == texts(data + b"\n") == expected
    for size in (1, 2, 3, 7):
        pieces = Pieces(data[at : at + size] for at in range(0, len(data), size))
        assert [text for block in text_blocks(pieces, pairs=False) for text in block] == expected


def test_what_has_arrived_is_given_before_more_is_read() -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"yes\nyes\nye"
            yield b"s\n"

    stream = Pieces(endless())
    given = text_blocks(stream, pairs=False)
    assert next(given) == ["yes", "yes"] and stream.count == 1
    assert next(given) == ["yes"] and stream.count == 2


def test_pairs_are_parted_by_a_tab() -> None:
    assert texts(b"a b\tc\n", pairs=True) == [("a b", "c")]


@pytest.mark.parametrize(
    ("data", "pairs", "where", "what"),
    [
        (b"", False, "stdin", "no text"),
        (b"a\n\nb\n", False, "stdin:2", "empty"),
        (b"a\nb\n \t\n", False, "stdin:3", "empty"),
        (b"a\nb\xe9d\n", False, "stdin:2", "byte 0xe9 is not UTF-8, at offset 3"),
        (b"\xff\xfea\0", False, "stdin:1", "not UTF-8"),
        (b"a\n\0\n", False, "stdin:2", "NUL"),
        (b"a\tb\nc\n", True, "stdin:2", "1 texts where the model takes two"),
        (b"a\tb\nc\t\n", True, "stdin:2", "empty"),
    ],
)
def test_wrong_line_is_named_after_those_before_it(data: bytes, pairs: bool, where: str, what: str) -> None:
    for size in (1, 2**16):
        given: list = []
        with pytest.raises(DataError, match=what) as error:
            for block in text_blocks(Pieces(data[at : at + size] for at in range(0, len(data), size)), pairs=pairs):
                given += block
        assert error.value.where == where
        assert len(given) == (int(where.partition(":")[2]) - 1 if ":" in where else 0)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le", "utf-32-be", "cp037"])
def test_lines_are_read_in_their_encoding(encoding: str) -> None:
    data = "\xe9t\xe9\r\n zwei W\xf6rter\nend".encode(encoding)
    for size in (1, 3, 2**16):
        pieces = Pieces(data[at : at + size] for at in range(0, len(data), size))
        found = [text for block in text_blocks(pieces, pairs=False, encoding=encoding) for text in block]
        assert found == ["\xe9t\xe9", "zwei W\xf6rter", "end"]


def test_a_line_of_another_encoding_is_named() -> None:
    good, bad = list(checked_blocks(io.BytesIO(b"ok\n\xe9\nok"), pairs=False, encoding="ascii"))[0][:2]
    assert good == "ok" and str(bad).startswith("stdin:2: byte 0xe9 is not ascii, at offset 3")
    with pytest.raises(DataError, match="stdin: is not utf-16-le, near offset 3: truncated data"):
        list(text_blocks(io.BytesIO(b"a\0b"), pairs=False, encoding="utf-16-le"))


def test_prompts_for_a_run_are_in_the_encoding_of_its_texts(tmp_path: Path) -> None:
    run, plain, rows = tmp_path / "run", tmp_path / "a.txt", tmp_path / "a.jsonl"
    run.mkdir()
    (run / "run.json").write_text('{"schema": 1, "status": "complete"}')
    config = compose(["recipe=gpt_lm", "data=text", "data.path=x", "data.encoding=latin-1"]).config
    (run / "config.yaml").write_text(to_yaml(config))
    plain.write_bytes("\xe9t\xe9\n".encode("latin-1"))
    rows.write_bytes('{"prompt": "\xfcber"}\n'.encode("latin-1"))
    options = argparse.Namespace(model=str(run), files=[str(plain), str(rows)], prompt=[])
    assert list(_prompts(options)) == [["\xe9t\xe9"], ["\xfcber"]]
    options.model = "smollm2"
    with pytest.raises(DataError, match="a.txt:1: byte 0xe9 is not UTF-8, at offset 0"):
        list(_prompts(options))


def test_endless_line_is_refused() -> None:
    with pytest.raises(DataError, match="longer than 16 MiB") as error:
        list(text_blocks(Pieces(iter([b"a\n", *[b"x" * 2**20] * 40])), pairs=False))
    assert error.value.where == "stdin:2"

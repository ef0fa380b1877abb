"""The splits of one long text as they are written: the text, and its tokens in shards that survive a kill.

A shard counts once its line is in the journal; a later start goes on behind the last one.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from bigctl.files import sha256, sync_folder

SHARD = 2**26
"""Characters of a shard: what is made anew after a kill, at most."""

JOURNAL, BEGINS = "journal.jsonl", ".begins"
_HEADER = 128
"""Bytes before the content of an array in a file of numpy's, of one dimension."""


class Block(NamedTuple):
    """Some text of a split.

    Attributes:
        pieces: parts of documents, each with whether the end token stands before it.
        begins: of each, whether a document begins with it.
        torn: places at which a text was cut though its tokenizer does not allow it.
    """

    split: str
    pieces: list[tuple[bool, str]]
    begins: list[bool]
    torn: int = 0


@dataclass
class Written:
    """What there is of a split.

    Attributes:
        shards: files with tokens, with their number, type and digest.
        characters, bytes, documents, tokens: of all of it.
        unknown: tokens that stand for words outside of the vocabulary.
        torn: see `Block`.
    """

    split: str
    shards: list[dict[str, str | int]] = field(default_factory=list)
    characters: int = 0
    bytes: int = 0
    documents: int = 0
    tokens: int = 0
    unknown: int = 0
    torn: int = 0


def read_journal(folder: Path) -> dict[str, Written]:
    """What an earlier start has written of each split; a line that is cut off does not count."""
    found: dict[str, Written] = {}
    with contextlib.suppress(OSError, ValueError, TypeError):
        for line in (folder / JOURNAL).read_text(encoding="utf-8").splitlines():
            written = Written(**json.loads(line))
            last = written.shards[-1] if written.shards else None
            if last is not None and (folder / str(last["file"])).stat().st_size != last["bytes"]:
                break
            found[written.split] = written
    return found


class SplitWriter:
    """One split, written block by block.

    Args:
        folder: where.
        written: what there is already.
        dtype: of a token; None where there are none.
        unknown: the token for words outside of the vocabulary.
    """

    def __init__(self, folder: Path, written: Written, dtype: np.dtype | None, unknown: int | None):
        self.written, self._folder, self._dtype, self._unknown = written, folder, dtype, unknown
        self._saved = written.characters
        self._text = self._opened(f"{written.split}.text0.npy", _HEADER + written.bytes)
        self._begins = self._opened(f"{written.split}{BEGINS}", 8 * written.documents)
        self._shard: IO[bytes] | None = None
        self._digest = hashlib.sha256()

    def _opened(self, name: str, size: int) -> IO[bytes]:
        """A file to be written from some byte on: what is behind it was never counted."""
        stream = os.fdopen(os.open(self._folder / name, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        stream.truncate(size)
        stream.seek(size)
        return stream

    def write(self, block: Block, tokens: np.ndarray | None) -> None:
        """Raises OSError where there is no room for it."""
        written = self.written
        for begins, (_, text) in zip(block.begins, block.pieces, strict=True):
            if begins:
                self._begins.write(np.int64(written.bytes).tobytes())
                written.documents += 1
            content = text.encode()
            self._text.write(content)
            written.bytes += len(content)
            written.characters += len(text)
        written.torn += block.torn
        if tokens is not None:
            self._write_tokens(tokens)
        if written.characters - self._saved >= SHARD:
            self.save()

    def _write_tokens(self, tokens: np.ndarray) -> None:
        if self._shard is None:
            self._shard, self._digest = (self._folder / self._name()).open("wb"), hashlib.sha256()
        content = tokens.tobytes()
        self._shard.write(content)
        self._digest.update(content)
        self.written.tokens += len(tokens)
        self.written.unknown += 0 if self._unknown is None else int(np.count_nonzero(tokens == self._unknown))

    def _name(self) -> str:
        return f"{self.written.split}.tokens.{len(self.written.shards):05}.bin"

    def save(self) -> None:
        """What is written by now outlives this process."""
        for stream in (self._text, self._begins, self._shard):
            if stream is not None:
                stream.flush()
                os.fsync(stream.fileno())
        if self._shard is not None and self._dtype is not None:
            size = self._shard.tell()
            self._shard.close()
            shard: dict[str, str | int] = {
                "file": self._name(),
                "dtype": self._dtype.str,
                "bytes": size,
                "sha256": self._digest.hexdigest(),
            }
            self.written.shards.append(shard)
            self._shard = None
        with (self._folder / JOURNAL).open("a", encoding="utf-8") as journal:
            journal.write(json.dumps(asdict(self.written)) + "\n")
            journal.flush()
            os.fsync(journal.fileno())
        sync_folder(self._folder)
        self._saved = self.written.characters

    def close(self) -> None:
        """What does not count yet is given up, which may be room that others need."""
        for stream in (self._text, self._begins, self._shard):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        if self._shard is not None:
            (self._folder / self._name()).unlink(missing_ok=True)


def finish_text(folder: Path, written: Written) -> dict[str, str]:
    """Give the text of a split its header and its documents' places; the digests of its files. Raises OSError."""
    with (folder / f"{written.split}.text0.npy").open("r+b") as stream:
        header = {"descr": "|u1", "fortran_order": False, "shape": (written.bytes,)}
        np.lib.format.write_array_header_1_0(stream, header)
        if stream.tell() != _HEADER:
            raise ValueError("numpy's header has another length")
    begins = np.fromfile(folder / f"{written.split}{BEGINS}", np.int64)
    np.save(folder / f"{written.split}.text0_offsets.npy", np.append(begins, np.int64(written.bytes)))
    np.save(folder / f"{written.split}.bytes.npy", np.array([written.bytes], np.int64))
    names = [f"{written.split}.{name}.npy" for name in ("text0", "text0_offsets", "bytes")]
    return {name: sha256(folder / name) for name in names}


def digest_as_array(folder: Path, written: Written, dtype: np.dtype) -> str:
    """The sha256 of the file that numpy would write the tokens of all shards into."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": dtype.str, "fortran_order": False, "shape": (written.tokens,)}
    )
    digest = hashlib.sha256(header.getvalue())
    for shard in written.shards:
        with (folder / str(shard["file"])).open("rb") as stream:
            while block := stream.read(2**22):
                digest.update(block)
    return digest.hexdigest()

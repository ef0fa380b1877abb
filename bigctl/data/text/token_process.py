"""The process that makes tokens of blocks of text, started by `text.token_pool` with the file of a tokenizer.

    <- pieces: their number, for each a flag and its length in UTF-8, then all of them
    -> tokens: their number, then all of them, uint16 or int32 as `stream_encoding.token_type` says; or, with the number
       -1, the length of a message and the message

A piece whose flag is set comes after the end token. Ends when there is nothing more to read.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

COUNT = struct.Struct("<q")
Pieces = Sequence[tuple[bool, str]]
"""Parts of documents, each with whether the end token stands before it."""


def write_pieces(stream: IO[bytes], pieces: Pieces) -> None:
    """Raises OSError where nobody reads."""
    encoded = [text.encode("utf-8", "replace") for _, text in pieces]
    heads = np.array([[flag, len(text)] for (flag, _), text in zip(pieces, encoded, strict=True)], "<i8")
    stream.write(COUNT.pack(len(encoded)) + heads.tobytes() + b"".join(encoded))
    stream.flush()


def read_pieces(stream: IO[bytes]) -> Pieces | None:
    """None at the end."""
    try:
        (count,) = COUNT.unpack(read_exactly(stream, COUNT.size))
        heads = np.frombuffer(read_exactly(stream, 16 * count), "<i8").reshape(count, 2).tolist()
        return [(bool(flag), read_exactly(stream, length).decode()) for flag, length in heads]
    except EOFError:
        return None


def read_exactly(stream: IO[bytes], count: int) -> bytes:
    """So many bytes. Raises EOFError where there are fewer."""
    found = stream.read(count)
    if len(found) < count:
        raise EOFError
    return found


def main(tokenizer_file: str) -> None:
    """Serve until standard input ends; what libraries print goes to standard error."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each core has a process
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    from tokenizers import Tokenizer

    from bigctl.data.text.stream_encoding import StreamEncoder

    encoder = StreamEncoder(Tokenizer.from_str(Path(tokenizer_file).read_text(encoding="utf-8")))
    while (pieces := read_pieces(sys.stdin.buffer)) is not None:
        try:
            tokens = encoder.encode_pieces(pieces)
        except Exception as error:  # told where the text is known
            message = f"{type(error).__name__}: {error}".encode()
            replies.write(COUNT.pack(-1) + COUNT.pack(len(message)) + message)
        else:
            replies.write(COUNT.pack(len(tokens)) + tokens.tobytes())
        replies.flush()


if __name__ == "__main__":
    main(sys.argv[1])

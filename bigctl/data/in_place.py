"""Files outside a prepared set that it refers to: of tokens that stay where they are, and of pictures in archives and
columns.

What a set is known by is the content of these files, and what it keeps is where they lay. Files that were moved, copied
or touched since have the same content and are not where, or not as old as, they were: the set is then made again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from bigctl.data.dataset import Dataset
from bigctl.data.pictures.encoded_images import EncodedImages
from bigctl.data.pictures.stores import Ranges
from bigctl.data.text.joined_tokens import JoinedTokens
from bigctl.data.text.token_shards import Part, TokenShards


def lost(dataset: Dataset) -> Path | None:
    """The first file that is not there, or has another size or time than when it was indexed; None where all are as
    they were. Folders of pictures, each in a file of its own, are left to `listing`."""
    for path, size, modified in _held(dataset):
        try:
            status = os.stat(path)
        except OSError:
            return Path(path)
        if (status.st_size, status.st_mtime_ns) != (size, modified):
            return Path(path)
    return None


def _held(dataset: Dataset) -> Iterator[tuple[str, int, int]]:
    """Of each file its path, size [bytes] and time of change [ns]."""
    for columns in dataset.splits.values():
        images = cast(object, columns.get("inputs"))
        if isinstance(images, EncodedImages) and isinstance(images.store, Ranges):
            yield from ((file.path, file.bytes, file.time) for file in images.store.files)
    yield from ((part.file, part.size, part.modified) for part in token_files(dataset))


def token_files(dataset: Dataset) -> list[Part]:
    """A part of each file that tokens are read from, those of the cache among them."""
    found: dict[str, Part] = {}
    for columns in dataset.splits.values():
        tokens = cast(object, columns.get("inputs"))
        each = tokens.parts if isinstance(tokens, JoinedTokens) else (tokens,)
        for shards in each:
            if isinstance(shards, TokenShards):
                found |= {part.file: part for part in shards.parts if part.file not in found}
    return list(found.values())

"""Each text once (`data.deduplicate`): of copies the first is kept, that of a test split before that of training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from bigctl.data.journal import Journal
from bigctl.data.preparation.array_file import ArrayFiles, Place
from bigctl.data.progress import Progress
from bigctl.data.sources.column_files import StoredTexts
from bigctl.data.sources.decoded import ROW, Decoded
from bigctl.data.text import duplicates
from bigctl.errors import DataError

_TEXTS = 4096
"""Texts that are looked at at once, of those in files."""

_KEY = np.dtype([("first", "<u8"), ("second", "<u8")])


def deduplicated(decoded: Decoded, scratch: Path | None = None) -> Decoded:
    """The data without copies, with how many were dropped of each split in its `info`; 16 bytes a text are in memory.

    Args:
        decoded: the data.
        scratch: where what tells texts in files apart is kept, which a later start finds there.

    Raises:
        DataError: for data that is not texts.
    """
    if decoded.kind != "text":
        raise DataError("only texts can be deduplicated", where="data.deduplicate", hint="leave it out")
    names = sorted(decoded.splits, key=lambda name: name.startswith("train"))  # training last
    found = [_keys(decoded, name, scratch) for name in names]
    new = np.zeros(sum(map(len, found)), bool)
    new[np.unique(np.concatenate(found), return_index=True)[1]] = True
    kept = dict(zip(names, np.split(new, np.cumsum([len(keys) for keys in found])[:-1]), strict=True))
    splits = {
        name: {column: values[kept[name]] for column, values in columns.items()}
        for name, columns in decoded.splits.items()
    }
    dropped = {name: int((~kept[name]).sum()) for name in names}
    return dataclasses.replace(decoded, splits=splits, info={**decoded.info, "copies_dropped": dropped})


def _keys(decoded: Decoded, split: str, scratch: Path | None) -> np.ndarray:
    """What tells each text from others, [N]."""
    columns = decoded.splits[split]
    if not isinstance(decoded.rows, StoredTexts) or scratch is None:
        return _as_array(duplicates.keys(columns))
    place = Place(scratch / f"copies-{[*decoded.splits].index(split)}.npy", np.dtype(np.uint64))
    rows, stored = columns[ROW], decoded.rows
    with (
        ArrayFiles(Journal(scratch / "copies.journal"), split, [place]) as written,
        Progress(f"data: looking for copies to drop ({split})", len(rows), ("thousand texts", 1e3)) as progress,
    ):
        while written.done < len(rows):
            block = rows[written.done : written.done + _TEXTS]
            found = _as_array(duplicates.keys_of([stored.take(name, block) for name in stored.names]))
            written.write(len(block), [found.view(np.uint64)])
            progress.update(written.done)
    return np.load(place.file).view(_KEY)


def _as_array(keys: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(keys), _KEY)

"""Each text once (`data.deduplicate`): of copies the first is kept, that of a test split before that of training."""

from __future__ import annotations

import dataclasses

import numpy as np

from bigctl.data.progress import Progress
from bigctl.data.sources.column_files import StoredTexts
from bigctl.data.sources.decoded import ROW, Columns, Decoded
from bigctl.data.text import duplicates
from bigctl.errors import DataError

_TEXTS = 4096
"""Texts that are looked at at once, of those in files."""

_KEY = np.dtype([("first", "<u8"), ("second", "<u8")])


def deduplicated(decoded: Decoded) -> Decoded:
    """The data without copies, with how many were dropped of each split in its `info`; 16 bytes a text are in memory.

    Raises:
        DataError: for data that is not texts.
    """
    if decoded.kind != "text":
        raise DataError("only texts can be deduplicated", where="data.deduplicate", hint="leave it out")
    names = sorted(decoded.splits, key=lambda name: name.startswith("train"))  # training last
    found = [_keys(decoded, name) for name in names]
    new = np.zeros(sum(map(len, found)), bool)
    new[np.unique(np.concatenate(found), return_index=True)[1]] = True
    kept = dict(zip(names, np.split(new, np.cumsum([len(keys) for keys in found])[:-1]), strict=True))
    splits = {
        name: {column: values[kept[name]] for column, values in columns.items()}
        for name, columns in decoded.splits.items()
    }
    dropped = {name: int((~kept[name]).sum()) for name in names}
    return dataclasses.replace(decoded, splits=splits, info={**decoded.info, "copies_dropped": dropped})


def _keys(decoded: Decoded, split: str) -> np.ndarray:
    """What tells each text from others, [N]."""
    columns = decoded.splits[split]
    if not isinstance(decoded.rows, StoredTexts):
        return _as_array(duplicates.keys(columns))
    return np.concatenate([np.empty(0, _KEY), *_stored_keys(decoded.rows, columns, split)])


def _stored_keys(stored: StoredTexts, columns: Columns, split: str) -> list[np.ndarray]:
    rows, found = columns[ROW], []
    with Progress(f"data: looking for copies to drop ({split})", len(rows), ("thousand texts", 1e3)) as progress:
        for start in range(0, len(rows), _TEXTS):
            block = rows[start : start + _TEXTS]
            found.append(_as_array(duplicates.keys_of([stored.take(name, block) for name in stored.names])))
            progress.update(start + len(block))
    return found


def _as_array(keys: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(keys), _KEY)

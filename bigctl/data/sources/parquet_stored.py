"""Columns of large Parquet and Arrow files, as they are put into files of their own.

A later start finds those that are finished.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bigctl.data.progress import Progress
from bigctl.data.sources.bad_rows import as_json, of_json
from bigctl.data.sources.column_files import StoredRows, StoredTexts, TextColumns
from bigctl.data.sources.decoded import ROW, Columns
from bigctl.data.sources.parquet_columns import Bad, require_texts, text_blocks, typed
from bigctl.data.sources.parquet_files import Part


def kept(stored: StoredRows, part: Part, name: str, kind: str, bad: Bad | None) -> np.ndarray:
    """A column, with the rows that cannot be used noted in `bad`."""

    def make() -> tuple[np.ndarray, list[list[int | str | None]]]:
        own: Bad | None = None if bad is None else {}
        values = typed(part, name, kind, own)
        return values, [[row, *as_json(error)] for row, error in (own or {}).items()]

    values, noted = stored.keep_noted(name, make)
    if bad is not None:
        for row, *error in noted:
            bad.setdefault(row, of_json(error))
    return values


def stored_texts(
    parts: Mapping[str, Part], roles: Mapping[str, str], bad: Mapping[str, Bad | None], work: Path
) -> StoredTexts:
    """The texts of each split in files, block by block; `roles` are names of columns."""
    found: dict[str, list[TextColumns]] = {role: [] for role in roles}
    for split, part in parts.items():
        for role, name in roles.items():
            columns = TextColumns(work / f"{split}.{role}.cells")
            _store_texts(columns, part, role, name, bad[split])
            found[role].append(columns)
    return StoredTexts(found)


def _store_texts(columns: TextColumns, part: Part, role: str, name: str, bad: Bad | None) -> None:
    """The texts behind those that there are."""
    done, noted = sum(columns.sizes), [each for own in columns.states for each in own]
    require_texts(part, name)
    with Progress(f"data: reading {name}", part.rows, ("thousand texts", 1e3), done) as progress:
        own: Bad | None = None if bad is None else {}
        for block in text_blocks(part, name, own, done):
            new = [[row, *as_json(error)] for row, error in (own or {}).items()]
            columns.append({role: block}, len(block), state=new)
            noted += new
            (own or {}).clear()
            progress.update(done := done + len(block))
    columns.save()
    if bad is not None:
        for row, *error in noted:
            bad.setdefault(row, of_json(error))


def places(parts: Mapping[str, Part]) -> dict[str, Columns]:
    """Which rows of all files each split has."""
    first = 0
    return {split: {ROW: np.arange(first, first := first + part.rows)} for split, part in parts.items()}

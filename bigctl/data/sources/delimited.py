"""Tables and texts in files of rows (`csv`, `tsv`); `jsonl` goes the same way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bigctl.config import schema
from bigctl.data.dataset import Features
from bigctl.data.files.paths import optional, split_digests
from bigctl.data.sources import read_table, row_blocks, table, text_table
from bigctl.data.sources.decoded import Decoded
from bigctl.data.sources.read_table import Dialect
from bigctl.data.sources.unlabelled import Unlabelled
from bigctl.data.table_encoder import TableEncoder
from bigctl.errors import DataError
from bigctl.files import expanded

_READING = 2
"""Raise it whenever equal files are read otherwise."""

_LARGE = 2**25
"""Bytes from which on a file is read by blocks."""


def identity(config: schema.Table) -> Any:
    """What the decoded arrays depend on: the content of the files, and the keys that say what is in them."""
    files = split_digests(config.path, config.validation_path, config.test_path, in_blocks=_is_large(config))
    names = ["label", "text", "text_pair", "columns", "quoting", "drop"]
    names += ["labels", "label_separator"] if config.labels is not None else []
    given = {name: getattr(config, name) for name in names}
    later = ("separator", "decimal", "encoding", "missing", "categorical", "numeric", "on_bad", "group", "time")
    given |= {name: getattr(config, name) for name in later if getattr(config, name) not in (None, [], "refuse")}
    return files and {"files": files, "format": config.kind, "reading": _READING} | given


def _is_large(config: schema.Table) -> bool:
    """Whether it is prepared by blocks."""
    files = [optional(path) for path in (config.path, config.validation_path, config.test_path)]
    return row_blocks.are_large([file for file in files if file is not None], _LARGE)


def by_blocks(config: schema.Table, regression: bool) -> Callable[[Path], Decoded] | None:
    """What decodes large files through others in a folder; None where `decode` will do."""
    return (lambda work: _decode(config, regression, work)) if _is_large(config) else None


def decode(config: schema.Table, regression: bool) -> Decoded:
    """The rows of files as examples: of a table, or with `data.text` of texts. Raises DataError."""
    return _decode(config, regression, None)


def _decode(config: schema.Table, regression: bool, work: Path | None) -> Decoded:
    if config.text_pair is not None and config.text is None:
        raise DataError("data.text_pair is set without data.text", where="data.text_pair", hint="set data.text=COLUMN")
    if config.labels is not None and (config.label or config.text is None):
        problem = "stands in place of data.label" if config.label else "is for texts and images, not tables"
        raise DataError(f"data.labels {problem}", where="data.labels", hint="give either, or data.text=COLUMN")
    if config.text is not None:
        return text_table.read_texts(
            expanded(config.path),
            text=config.text,
            text_pair=config.text_pair,
            label=config.label or None,
            labels=config.labels,
            label_separator=config.label_separator,
            format=config.kind,
            validation_path=optional(config.validation_path),
            test_path=optional(config.test_path),
            dialect=Dialect.of(config),
            group=config.group,
            time=config.time,
            work=work,
        )
    if not config.label:
        raise DataError("a table needs a target", where="data.label", hint="data.label=COLUMN; only texts go without")
    return table.read_table(
        expanded(config.path),
        label=config.label,
        format=config.kind,
        validation_path=optional(config.validation_path),
        test_path=optional(config.test_path),
        regression=regression,
        drop=config.drop,
        dialect=Dialect.of(config),
        cells=table.Cells.of(config),
        group=config.group,
        time=config.time,
        work=work,
    )


def read_for_prediction(path: Path | bytes, config: schema.Table, features: Features) -> Unlabelled:
    """The rows of a file, or of its content, read as those of the training were. Raises DataError."""
    dialect = Dialect.of(config)
    if features.kind == "table":
        encoder = TableEncoder.from_json(features.encoder or {})
        rows, bad, notes = table.rows_of(path, config.kind, encoder, dialect=dialect, cells=table.Cells.of(config))
        return Unlabelled(rows, errors=bad, notes=tuple(notes))
    text, *second = features.columns or (("text", "text_pair") if features.pairs else ("text",))
    pair = second[0] if features.pairs else None
    found, bad = text_table.texts_of(path, config.kind, text=text, text_pair=pair, dialect=dialect)
    return Unlabelled(found, errors=bad)


def read_column(path: Path | bytes, config: schema.Table, name: str) -> list[Any] | None:
    """The values of a column, row for row as `read_for_prediction` has them; None where there is no such column. Where
    all of them are whole numbers as programs write them, they are numbers. Raises DataError."""
    table_ = read_table.load(path, config.kind, lambda column: column == name, dialect=Dialect.of(config), collect=True)
    return table.whole_numbers(table_.columns[name]) if name in table_.columns else None

"""Predictions as a table, one row a record in the order of the records: csv, Parquet or JSON lines.

In a table the probabilities of all classes are the columns `probability_CLASS`; of the likeliest few they are
`label_2`, `probability_2` and so on, behind `label` and `probability`. An embedding is one column of lists in Parquet
and JSON, and the columns `e0`, `e1`, ... in csv. Lists are JSON in csv. Numbers are written with all their digits.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bigctl.errors import ConfigError, RunError
from bigctl.files import temporary_name
from bigctl.training.task import Record

FORMATS = (".csv", ".tsv", ".parquet", ".jsonl")


def require_format(path: Path) -> None:
    """Raises ConfigError for a file of which the suffix tells no format."""
    if path.suffix.lower() not in FORMATS:
        hint = f"use {', '.join(FORMATS)}"
        raise ConfigError(f"the suffix {path.suffix!r} tells no format", where="--out", hint=hint)


def write_predictions(path: Path, records: Sequence[Record], *, ranked: bool = False) -> None:
    """Replace a file by a table of records.

    Args:
        path: with one of `FORMATS` as its suffix.
        records: as `TrainedRun.predict_files` gives them.
        ranked: whether their probabilities are those of the likeliest few, in order.

    Raises:
        ConfigError: if the suffix is none of them.
        RunError: if it cannot be written.
    """
    require_format(path)
    kind = path.suffix.lower()
    temporary = temporary_name(path)
    try:
        if kind == ".jsonl":
            lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            temporary.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")
        elif kind == ".parquet":
            _write_parquet(temporary, columns(records, ranked=ranked))
        else:
            text = _delimited(columns(records, ranked=ranked, flat=True), "\t" if kind == ".tsv" else ",")
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
        temporary.replace(path)
    except OSError as error:
        hint = "choose another place with --out FILE"
        raise RunError(f"cannot be written: {error.strerror}", where=str(path), hint=hint) from error
    finally:
        temporary.unlink(missing_ok=True)


def columns(records: Sequence[Record], *, ranked: bool = False, flat: bool = False) -> dict[str, list[Any]]:
    """Records as columns, None where a record has no such value; `flat` spreads embeddings over columns."""
    rows = [_row(record, ranked, flat) for record in records]
    names: dict[str, None] = {}
    for row in rows:
        names |= dict.fromkeys(row)
    if "error" in names:  # the last column, whichever record had one first
        del names["error"]
        names["error"] = None
    return {name: [row.get(name) for row in rows] for name in names}


def _row(record: Record, ranked: bool, flat: bool) -> Record:
    row: Record = {}
    for name, value in record.items():
        if name == "probabilities" and ranked:
            first = 1 if "labels" in record else 2  # of one class an example, the first is its label
            others = [(label, probability) for label, probability in value.items() if label != record.get("label")]
            for rank, (label, probability) in enumerate(others[: len(value) + 1 - first], first):
                row |= {f"label_{rank}": label, f"probability_{rank}": probability}
        elif name == "probabilities":
            row |= {f"probability_{label}": probability for label, probability in value.items()}
        elif name == "embedding" and flat:
            row |= {f"e{number}": one for number, one in enumerate(value)}
        else:
            row[name] = value
    return row


def _delimited(table: dict[str, list[Any]], separator: str) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=separator, lineterminator="\n")
    writer.writerow(table)
    for row in zip(*table.values(), strict=True):
        writer.writerow([json.dumps(v, ensure_ascii=False) if isinstance(v, list | dict) else v for v in row])
    return stream.getvalue()


_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,17})")


def _write_parquet(path: Path, table: dict[str, list[Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = {}
    for name, values in table.items():
        labels = re.fullmatch(r"label(_\d+)?", name)
        if labels and all(value is None or _WHOLE.fullmatch(str(value)) for value in values):
            values = [None if value is None else int(value) for value in values]  # classes that are numbers stay such
        try:
            arrays[name] = pa.array(values, pa.list_(pa.float32()) if name == "embedding" else None)
        except (pa.ArrowInvalid, pa.ArrowTypeError):  # values of several files, of more than one type
            arrays[name] = pa.array([None if value is None else str(value) for value in values])
    pq.write_table(pa.table(arrays), path)

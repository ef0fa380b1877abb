"""Whether everything in the folder of an export is as it was written. Free of jax.

Damage is a file that is not as its digest says, a model that has none, or a list that is none. What has become of the
run that it was made from is no damage: it is noted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigctl.errors import RunError
from bigctl.files import sha256_regular
from bigctl.runs.directory import CARD, EXPORT_MODELS, SEALED, SETTINGS, SOURCE, SUMS
from bigctl.runs.exports import Export
from bigctl.runs.sealed_form import CHUNK, HEAD, MAGIC, PROOF, TAG, P, R
from bigctl.runs.verify import Report, sentence

SCRIPT = "run.py"
_UNLISTED = (SUMS, CARD, SCRIPT)
"""What an export may have besides the files of its list."""


@dataclass
class ExportReport(Report):
    """What was found in an export.

    Attributes:
        format: see `Export.format`.
        files, bytes: that are as their digests say.
        origin: what it was made from, see `Origin.to_json`; None where that is not known.
    """

    format: str = ""
    files: int = 0
    bytes: int = 0
    origin: dict[str, Any] | None = field(default=None)


def verify_export(export: Export) -> ExportReport:
    """Read everything in the folder of an export; never raises for what is wrong in it."""
    report = ExportReport(str(export.shown), "export", format=export.format)
    if export.sealed:
        _sealed(export, report)
        return report
    try:
        listed, there = export.sums(), export.files
    except RunError as error:
        report.problems.append(sentence(error))
        return report
    for name, digest in listed.items():
        try:
            if sha256_regular(export.path / name) != digest:
                report.problems.append(f"{export.shown / name} is not as it was written: its digest is another one")
                continue
            report.files, report.bytes = report.files + 1, report.bytes + there[name]
        except FileNotFoundError:
            report.problems.append(f"{export.shown / name} is missing")
        except OSError as error:
            report.problems.append(f"{export.shown / name} cannot be read: {error.strerror}")
    report.problems += _without_digest(export, listed, there)
    report.notes += _strangers(export, listed, there)
    for name, read in ((SETTINGS, export.settings), (SOURCE, export.source)):
        if name not in there and (name in listed or name == SETTINGS):
            continue  # said already, or of a format that needs none
        try:
            read()
        except RunError as error:
            report.problems.append(sentence(error))
            continue
        if name == SOURCE:
            report.origin = export.origin.to_json()
            report.notes.append(export.origin.said)
    return report


def _without_digest(export: Export, listed: dict[str, str], there: dict[str, int]) -> Iterator[str]:
    for name in (*EXPORT_MODELS, SETTINGS, SOURCE):
        if name in there and name not in listed:
            yield f"{export.shown / SUMS} does not list {name}"
    if not export.format and not any(name in listed for name in EXPORT_MODELS):
        yield f"{export.shown} holds no model"


def _strangers(export: Export, listed: dict[str, str], there: dict[str, int]) -> Iterator[str]:
    known = {*listed, *_UNLISTED, *EXPORT_MODELS, SETTINGS, SOURCE}
    for name in there:
        if name not in known:
            yield f"{export.shown / name} does not belong to the export"
    if unlisted := [name for name in (SCRIPT, CARD) if name in there and name not in listed]:
        yield f"{' and '.join(unlisted)} {'have' if len(unlisted) > 1 else 'has'} no digest, and cannot be checked"


# ----------------------------------------------------------------------------------------------------------- encrypted


def _sealed(export: Export, report: ExportReport) -> None:
    """What can be told of an encrypted export without its passphrase: its beginning, and that its length can be."""
    file = export.path / SEALED
    try:
        report.problems += _wrong_form(file)
        report.files, report.bytes = 1, file.stat().st_size
        report.notes += [
            f"{export.shown / name} does not belong to the export"
            for name in export.files
            if name not in (SEALED, CARD)
        ]
    except OSError as error:
        report.problems.append(f"{file} cannot be read: {error.strerror}")
    except RunError as error:
        report.problems.append(sentence(error))
    report.notes.append("encrypted: its content, and its run, can be checked with the passphrase alone")


def _wrong_form(file: Path) -> Iterator[str]:
    with file.open("rb") as stream:
        head, size = stream.read(HEAD), os.fstat(stream.fileno()).st_size
    if len(head) < HEAD or not head.startswith(MAGIC) or head[len(MAGIC) + 1 : len(MAGIC) + 3] != bytes((R, P)):
        yield f"{file} is no encrypted export of bigctl, or its beginning is damaged"
    elif size - HEAD - PROOF < 10240 or 0 < (size - HEAD - PROOF) % (CHUNK + TAG) <= TAG:
        yield f"{file} is cut short"  # a tar has 10 KiB at least, and every chunk a tag and what it is of

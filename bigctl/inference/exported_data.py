"""The data of the run that an export was made from."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bigctl.config import compose as composing
from bigctl.config import schema
from bigctl.config.schema import Config
from bigctl.data.dataset import Dataset, Features
from bigctl.data.files.remote import is_place, is_remote
from bigctl.errors import BigctlError, RunError
from bigctl.files import expanded
from bigctl.inference.scored import data_of_run
from bigctl.inference.text_batches import run_tokenizer
from bigctl.runs.directory import RunDirectory
from bigctl.runs.exports import Export
from bigctl.terminal import one_line


def of(export: Export, config: Config, features: Features, settings: Mapping[str, Any], tokenizer: Path) -> Dataset:
    """The data, prepared.

    The run has it where that is here and still the one that the export was made from, or trained on the same data; its
    configuration tells the folders, which that of the export leaves out. Else the export's own configuration does,
    where the data needs no files, or these are here.

    Args:
        export: the folder.
        config, features, settings: what its bigctl.json says.
        tokenizer: its tokenizer.json.

    Raises:
        DataError: where it cannot be had.
        RunError: where neither the run nor the data is here, or they are not what they were.
    """
    origin, wanted = export.origin, _wanted(settings)
    own = of_run(export, settings)
    if own is not None and origin.run is not None:
        if features.tokenizer is not None:
            run_tokenizer(origin.run, features)
        found, where = data_of_run(origin.run, own), str(origin.run.path)
    else:
        _require_here(export, config, wanted)
        from bigctl.engine import resolve  # here: who only predicts prepares no data

        found, where = resolve.prepare_data(config, tokenizer), str(export.shown)
    if wanted is not None and found.fingerprint != wanted:
        what = "the data is not what the run was trained on that this was exported from"
        raise RunError(what, where=where, hint=f"bring it back as it was; {origin.said}")
    return found


def of_run(export: Export, settings: Mapping[str, Any]) -> Config | None:
    """The configuration of the run whose data that is; None where there is no such run here."""
    run = export.origin.run
    if run is None or not (export.origin.same or _fingerprint(run) == _wanted(settings) is not None):
        return None
    return composing.from_yaml(run.read_config(), where=str(run.config))


def _wanted(settings: Mapping[str, Any]) -> Any:
    return (settings.get("data") or {}).get("fingerprint")


def _fingerprint(run: RunDirectory) -> str | None:
    try:
        found = (run.record().get("data") or {}).get("fingerprint")
        return found if isinstance(found, str) else None
    except BigctlError:
        return None


def _require_here(export: Export, config: Config, fingerprint: str | None) -> None:
    """Raises RunError where the data lies in files that are not here, or may not be those that are."""
    places = [
        (key, value)
        for key, _, value in schema.walk_config(config)
        if key.startswith("data.") and is_place(key.rpartition(".")[2]) and isinstance(value, str) and value
    ]
    absent = [(key, value) for key, value in places if not is_remote(value) and not _is_here(value)]
    if not absent and (fingerprint is not None or not places):
        return
    key, value = (absent or places)[0]
    named = f"{key}={one_line(value)}"
    what = f"{export.origin.said}; and its data, {named}, is not here either"
    if not absent:
        what = f"{export.origin.said}; and an older bigctl exported it, which did not keep what {named} was like"
    name = one_line(export.origin.name)
    hint = f"--source RUN names the run; or run this in the folder with runs/{name}, or with {one_line(value)}"
    raise RunError(what, where=str(export.shown), hint=hint)


def _is_here(value: str) -> bool:
    return bool(glob.glob(str(expanded(value)))) or expanded(value).exists()

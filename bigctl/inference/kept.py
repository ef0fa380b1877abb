"""What `eval` has found out about a run beyond its metrics, kept for its report."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

from bigctl.files import write_json
from bigctl.formatting import plain
from bigctl.runs import untrusted
from bigctl.runs.directory import RunDirectory

log = logging.getLogger("bigctl")
SHAPE: untrusted.Shape = {"schema": int, "step": untrusted.COUNT, "found": {str: object}}


def keep(run: RunDirectory, step: int, found: dict[str, Any]) -> None:
    """Add to `assessment.json`; what is there of another step is forgotten. A run that cannot be written is told of."""
    before: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        old = untrusted.read(run.assessment, SHAPE)
        before = dict(old["found"]) if old["step"] == step else {}
    try:
        write_json(run.assessment, {"schema": 1, "step": step, "found": plain({**before, **found})})
    except OSError as error:
        log.warning("%s cannot be written, the report will not show it: %s", run.assessment, error.strerror)

"""Commands in this process, beside a copy of what was made once for many tests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bigctl.cli.main import main

Command = Callable[..., Any]


def commands(made: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """A function that runs a command in a folder to which `made` is copied; gives its stderr, or with --json its
    result, and holds it to its exit code, 0 or `code`."""
    shutil.copytree(made, folder, dirs_exist_ok=True)
    monkeypatch.chdir(folder)

    def run(*arguments: str, code: int = 0) -> Any:
        capsys.readouterr()
        found = main(list(arguments))
        out, err = capsys.readouterr()
        assert found == code, err
        assert "Traceback" not in err
        return json.loads(out) if "--json" in arguments else err

    return run

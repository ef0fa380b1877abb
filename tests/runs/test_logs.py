"""Warnings are shown once, whatever other libraries do with logging."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from bigctl.runs import logs


def test_a_warning_is_shown_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, before = logging.getLogger(), logging.getLogger().handlers
    root.handlers = []
    try:
        logs.show_warnings()
        logging.basicConfig()  # as absl does
        with logs.kept(tmp_path / "log.txt"):
            logging.getLogger("bigctl").warning("within")
            logging.getLogger("bigctl").error("for the log")
            logging.getLogger("other").warning("elsewhere")
        logging.getLogger("bigctl").warning("without")
    finally:
        root.handlers = before
    assert capsys.readouterr().err == "warning: within\nelsewhere\nwarning: without\n"
    assert "for the log" in (tmp_path / "log.txt").read_text()

"""Promises of the reports for CI: well-formed whatever they hold, and never a reason to fail."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from bigctl.errors import ConfigError, Preempted, TrainingFailed
from bigctl.runs import ci_report, gates

REQUIRED = gates.parse(["val/accuracy>=0.9", "val/loss<1"])
SUMMARY = {"run": "runs/a", "step": 1200, "metrics": {"val/accuracy": 0.8, "val/loss": 0.5, "test/f1": None}}
VERDICTS = gates.judge(REQUIRED, SUMMARY["metrics"])  # type: ignore[arg-type]


def cases(report: Path) -> dict[str, str]:
    """Test case -> what became of it."""
    (suite,) = ElementTree.parse(report).getroot()
    found = {case.attrib["name"]: case[0].tag if len(case) else "passed" for case in suite}
    for attribute, kind in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        assert int(suite.attrib[attribute]) == list(found.values()).count(kind)
    assert int(suite.attrib["tests"]) == len(found)
    return found


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "page.md"
    file.write_text("before\n")
    monkeypatch.setenv(ci_report.STEP_SUMMARY, str(file))
    return file


def test_every_gate_is_a_test_case_and_a_row(tmp_path: Path, page: Path) -> None:
    report = tmp_path / "deep" / "report.xml"
    ci_report.Reports("train", REQUIRED, report).ended(VERDICTS, SUMMARY, seconds=2)
    assert cases(report) == {"train": "passed", "val/accuracy>=0.9": "failure", "val/loss<1": "passed"}
    text = page.read_text()
    assert text.startswith("before\n### bigctl train `runs/a`: complete, 1 of 2 gates missed\n")
    assert "| `val/accuracy>=0.9` | 0.8 | **missed** |" in text and "| `val/loss<1` | 0.5 | passed |" in text
    assert "| val/accuracy | 0.8000 |" in text and "Next: `bigctl eval runs/a`" in text


@pytest.mark.parametrize(
    ("error", "kind", "headline"),
    [
        (Preempted("stopped", exit_code=75), "skipped", "stopped, to be continued"),
        (TrainingFailed("disk full"), "failure", "failed"),
        (ConfigError("no such key"), "failure", "refused"),
        (ZeroDivisionError("division"), "error", "failed"),
    ],
)
def test_an_end_before_the_end_is_reported(
    tmp_path: Path, page: Path, error: Exception, kind: str, headline: str
) -> None:
    report = tmp_path / "report.xml"
    ci_report.Reports("train", REQUIRED, report).failed(error, run=Path("runs/a"), seconds=1)
    assert cases(report) == {"train": kind, "val/accuracy>=0.9": "skipped", "val/loss<1": "skipped"}
    assert headline in page.read_text() and str(error) in page.read_text()
    assert ("bigctl resume runs/a" in page.read_text()) == (kind == "skipped")


def test_no_text_can_break_a_report(tmp_path: Path, page: Path) -> None:
    hostile = "a\x00\x1b[31m<b>&\"']]>\ud800 | `x` \n## no headline"
    report = tmp_path / "report.xml"
    ci_report.Reports("train", [], report).failed(TrainingFailed(hostile.replace("\ud800", "")), run=None, seconds=1)
    assert cases(report) == {"train": "failure"}
    assert "\n## no headline" not in page.read_text() and "\\<b\\>" in page.read_text()


def test_a_page_that_cannot_be_written_warns_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(ci_report.STEP_SUMMARY, str(tmp_path / "gone" / "page.md"))
    ci_report.Reports("eval", [], None).ended([], SUMMARY, seconds=1)
    assert "warning: $GITHUB_STEP_SUMMARY" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_found_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for junit in (tmp_path / "file" / "report.xml", tmp_path):
        with pytest.raises(ConfigError):
            ci_report.Reports("train", [], junit)

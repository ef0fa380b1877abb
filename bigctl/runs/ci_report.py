"""How a command ended, for CI: a JUnit report, and a summary in Markdown on the page of a GitHub job."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from bigctl.errors import BigctlError, ConfigError, Preempted
from bigctl.files import write_text
from bigctl.runs.gates import Gate, Verdict

STEP_SUMMARY = "GITHUB_STEP_SUMMARY"


@dataclass(frozen=True)
class CommandResult:
    """How a command ended.

    Attributes:
        command: "train" or "eval".
        run: the run directory; None where it did not come so far.
        seconds: how long it took.
        verdicts: of all gates; empty after an error.
        gates: what was required.
        summary: what came out, with `metrics` and `step`; empty after an error.
        error: what ended it before its end.
    """

    command: str
    run: str | None
    seconds: float
    verdicts: Sequence[Verdict] = ()
    gates: Sequence[Gate] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)
    error: Exception | None = None

    @property
    def headline(self) -> str:
        if isinstance(self.error, Preempted):
            return "stopped, to be continued"
        if self.error is not None:
            return "refused" if self._refused else "failed"
        missed = sum(not verdict.passed for verdict in self.verdicts)
        if missed:
            return f"complete, {missed} of {len(self.verdicts)} gates missed"
        return "complete"

    @property
    def _refused(self) -> bool:
        return isinstance(self.error, BigctlError) and self.error.exit_code == 2

    @property
    def next(self) -> str:
        """The command that is likely next; empty where the command itself must be mended."""
        if self.run is None or self._refused:
            return ""
        if isinstance(self.error, Preempted):
            return f"bigctl resume {self.run}"
        return f"bigctl {'info' if self.error is not None or self.command == 'eval' else 'eval'} {self.run}"


class Reports:
    """Where the result of a command goes.

    Args:
        command: "train" or "eval".
        gates: what is required.
        junit: file for the JUnit report, if any.

    Raises:
        ConfigError: if that file could not be written.
    """

    def __init__(self, command: str, gates: Sequence[Gate], junit: Path | None):
        self.command, self.gates, self.junit = command, gates, junit
        if junit is None:
            return
        try:
            junit.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot be made: {error.strerror}", where=str(junit.parent)) from error
        if junit.is_dir() or not os.access(junit.parent, os.W_OK):
            raise ConfigError("cannot be written", where=str(junit), hint="give --junit a file in a folder of yours")

    def ended(self, verdicts: Sequence[Verdict], summary: Mapping[str, Any], *, seconds: float) -> None:
        self._write(CommandResult(self.command, str(summary["run"]), seconds, verdicts, self.gates, summary))

    def failed(self, error: Exception, *, run: Path | None, seconds: float) -> None:
        name = None if run is None else str(run)
        self._write(CommandResult(self.command, name, seconds, gates=self.gates, error=error))

    def _write(self, ended: CommandResult) -> None:
        """A report that cannot be written is no reason to fail: what it reports has happened."""
        if self.junit is not None:
            try:
                write_text(self.junit, junit(ended))
            except OSError as error:
                print(f"warning: {self.junit}: cannot be written: {error.strerror}", file=sys.stderr)
        if page := os.environ.get(STEP_SUMMARY):
            try:
                with Path(page).open("a", encoding="utf-8") as stream:
                    stream.write(markdown(ended))
            except OSError as error:
                print(f"warning: ${STEP_SUMMARY}: {page}: cannot be written: {error.strerror}", file=sys.stderr)


def junit(ended: CommandResult) -> str:
    """The report as JUnit XML: one test case for the command, one for each gate. Preempted is skipped, not failed."""
    suite = ElementTree.Element("testsuite", name="bigctl", time=f"{ended.seconds:.3f}")
    group = f"bigctl.{_printable(ended.run or ended.command)}"

    def case(name: str, seconds: float = 0.0) -> ElementTree.Element:
        return ElementTree.SubElement(suite, "testcase", classname=group, name=name, time=f"{seconds:.3f}")

    def result(where: ElementTree.Element, kind: str, message: str) -> None:
        ElementTree.SubElement(where, kind, message=_printable(message)).text = _printable(message)

    ran = case(ended.command, ended.seconds)
    if isinstance(ended.error, Preempted):
        result(ran, "skipped", str(ended.error))
    elif ended.error is not None:
        result(ran, "failure" if isinstance(ended.error, BigctlError) else "error", _said(ended.error))
    if ended.error is not None:
        for gate in ended.gates:
            result(case(str(gate)), "skipped", "not judged: there is no result yet")
    for verdict in ended.verdicts:
        judged = case(str(verdict.gate))
        if not verdict.passed:
            result(judged, "failure", str(verdict))
    for attribute, kind in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(attribute, str(len(suite.findall(f"testcase/{kind}"))))
    suite.set("tests", str(len(suite)))
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=False) + "\n"


def markdown(ended: CommandResult) -> str:
    """The summary as Markdown: how it ended, metrics, gates, and the next command."""
    title = f"bigctl {ended.command}" + (f" {_code(ended.run)}" if ended.run else "")
    lines = [f"### {title}: {ended.headline}", ""]
    if ended.error is not None:
        lines += [_plain(_said(ended.error)), ""]
    elif "step" in ended.summary:
        lines += [f"Step {ended.summary['step']:,}, {ended.seconds:.0f} s.", ""]
    metrics = {name: value for name, value in (ended.summary.get("metrics") or {}).items() if _is_number(value)}
    if metrics:
        lines += ["| metric | value |", "|---|---:|"]
        lines += [f"| {_plain(name)} | {value:.4f} |" for name, value in sorted(metrics.items())] + [""]
    if ended.verdicts:
        lines += ["| gate | value | |", "|---|---:|---|"]
        for verdict in ended.verdicts:
            value = "not finite" if verdict.value is None else f"{verdict.value:.6g}"
            lines.append(f"| {_code(str(verdict.gate))} | {value} | {'passed' if verdict.passed else '**missed**'} |")
        lines.append("")
    if ended.next:
        lines += [f"Next: {_code(ended.next)}", ""]
    return "\n".join([*lines, ""])


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, BigctlError) else f"{type(error).__name__}: {error}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(text: str) -> str:
    return re.sub(r"([\\|<>*`\[\]])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    return f"`{' '.join(text.replace('`', ' ').replace('|', ' ').split())}`"


def _printable(text: str) -> str:
    """Without the characters that XML cannot hold."""
    return re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text)

"""Sentences on a terminal of any width."""

from __future__ import annotations

import io

import pytest

from bigctl import terminal


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("width", [20, 40, 80])
def test_sentences_on_a_terminal_are_broken_between_words_and_commands_never(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    said = "warning: data: column 'id' is different in every row, like a name; `bigctl data csv --label id` shows it"
    lines = terminal.wrapped(said, Tty(), 9).splitlines()
    assert " ".join(line.strip() for line in lines) == said
    (typed,) = (line for line in lines if "`bigctl data csv --label id`" in line)
    assert all(len(line) <= width or line is typed for line in lines)
    assert len({len(line) - len(line.lstrip()) for line in lines[1:]}) == 1
    assert terminal.wrapped(said, io.StringIO()) == said, "a pipe gets one line"


def test_wide_characters_count_for_two_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    assert terminal.wrapped("财经 体育 科技 财经 体育 科技", Tty()) == "财经 体育 科技 财经\n  体育 科技"

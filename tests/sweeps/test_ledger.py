"""The ledger tells the same story whatever cut it short."""

from __future__ import annotations

from pathlib import Path

import pytest

from bigctl.errors import RunError
from bigctl.sweeps import ledger, trials
from bigctl.sweeps.ledger import Ledger
from bigctl.sweeps.trials import COMPLETE, FAILED, RUNNING, WAITING, State, Trial

OVERRIDES = ("optimizer.lr=0.001", "recipe=mlp_cls", "seed=1")


def enter(book: Ledger, number: int = 0, lr: str = "0.001") -> str:
    trial = Trial(number, (f"optimizer.lr={lr}", "recipe=mlp_cls", "seed=1"), {"optimizer.lr": lr}, 1)
    entry = {"number": number, "overrides": trial.overrides, "point": trial.point, "seed": 1}
    book.append("trial", id=trial.id, **entry, run=f"trials/{trial.id}")
    return trial.id


def test_a_trial_is_known_by_its_overrides_in_any_order() -> None:
    assert trials.identity(OVERRIDES) == trials.identity(reversed(OVERRIDES)) != trials.identity(OVERRIDES[:2])
    assert len(trials.identity(OVERRIDES)) == 12


def test_what_was_appended_is_read_back(tmp_path: Path) -> None:
    book = Ledger(tmp_path)
    book.append("study", definition={"metric": None, "fixed": []})
    name = enter(book)
    other = enter(book, 1, "0.01")
    book.append("start", id=name, attempt=1, place="cores 0")
    book.append("end", id=name, status="stopped", seconds=2.5, step=10)
    book.append("start", id=name, attempt=2, place="cores 0")
    book.append(
        "end", id=name, status=COMPLETE, metrics={"val/loss": 0.5, "val/mae": float("nan")}, step=20, seconds=1.5
    )
    book.append("start", id=other, attempt=1, place="cores 1")
    book.append("study", definition={"metric": "val/loss", "mode": "min", "fixed": []})
    book.append("test", id=name, metrics={"test/loss": 0.6})
    found = ledger.read_study(tmp_path)
    assert found == book.study
    state = found.states[name]
    assert (state.status, state.attempts, state.seconds, state.step) == (COMPLETE, 2, 4.0, 20)
    assert state.metrics == {"val/loss": 0.5} and state.score("val/loss") == 0.5 and state.score("val/mae") is None
    assert found.states[other].status == RUNNING and found.metric == "val/loss" and found.mode == "min"
    assert found.test == {name: {"test/loss": 0.6}} and found.run(state) == tmp_path / "trials" / name
    assert [s.trial.id for s in ledger.unfinished(found)] == [other]


@pytest.mark.parametrize("cut", [1, 5, 60])
def test_a_line_cut_short_loses_itself_and_nothing_else(tmp_path: Path, cut: int) -> None:
    book = Ledger(tmp_path)
    first, second = enter(book), enter(book, 1, "0.01")
    book.append("end", id=first, status=COMPLETE, metrics={"val/loss": 0.5}, step=3)
    book.append("end", id=second, status=COMPLETE, metrics={"val/loss": 0.25}, step=3)
    book.close()
    text = book.path.read_bytes()
    book.path.write_bytes(text[:-cut])
    found = ledger.read_study(tmp_path)
    whole = cut == 1  # only the newline is missing
    assert found.states[first].status == COMPLETE and (found.states[second].status == COMPLETE) == whole
    assert found.damaged == (0 if whole else 1)
    again = Ledger(tmp_path)
    again.append("end", id=second, status=FAILED, message="no")
    assert ledger.read_study(tmp_path).states[second].status == FAILED, "a line after a torn one stands by itself"


def test_lines_that_make_no_sense_are_counted_and_passed_over(tmp_path: Path) -> None:
    book = Ledger(tmp_path)
    name = enter(book)
    book.close()
    with book.path.open("ab") as stream:
        stream.write(b'{"event": "end", "id": "nobody", "status": "complete"}\n\xff\xfe\n[1]\n{}\n"x"\n')
        stream.write(b'{"event": "study", "definition": null}\n')
        stream.write(b'{"event": "trial", "id": "a", "number": 0, "overrides": [null], "point": {}}\n')
    found = ledger.read_study(tmp_path)
    assert found.damaged == 7 and "a" not in found.states and found.states[name].status == WAITING


def test_failed_trials_are_taken_up_again_only_when_asked(tmp_path: Path) -> None:
    book = Ledger(tmp_path)
    name = enter(book)
    book.append("end", id=name, status=FAILED, message="no memory", exit_code=-9)
    assert list(ledger.unfinished(book.study)) == []
    book.append("again", id=name)
    assert [s.trial.id for s in ledger.unfinished(ledger.read_study(tmp_path))] == [name]


def test_a_ledger_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / ledger.NAME).mkdir()
    with pytest.raises(RunError, match="cannot be"):
        Ledger(tmp_path)


@pytest.mark.parametrize(
    ("point", "label"),
    [
        ({"optimizer.lr": "0.1", "model": "cnn"}, "lr=0.1 model=cnn"),
        ({"schedule.end": "0", "data.end": "1"}, "schedule.end=0 data.end=1"),
    ],
)
def test_a_label_is_as_short_as_it_can_be(point: dict[str, str], label: str) -> None:
    assert trials.label(point) == label


def test_no_score_without_a_finite_value_or_before_the_end() -> None:
    trial = Trial(0, OVERRIDES, {})
    for status, value in (("running", 0.5), (FAILED, 0.5), (COMPLETE, float("nan")), (COMPLETE, float("inf"))):
        assert State(trial, status, {"val/loss": value}).score("val/loss") is None

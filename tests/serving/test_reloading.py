"""Newer weights of a run that is served take the place of the old ones, and no request notices."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest

import bigctl as package
from bigctl.generation.options import GenerationOptions
from bigctl.inference.trained import TrainedRun
from bigctl.serving import loading
from bigctl.serving.predicting import Asked, Predicting
from bigctl.serving.reloading import Follower
from bigctl.serving.settings import Settings
from tests import small
from tests.serving import writer
from tests.serving.running import Answer, serving

pytest.importorskip("starlette")
pytestmark = pytest.mark.fewer
ROWS = [{"size": size / 10, "place": "north"} for size in (0, 6, 12)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints of three steps, the last of them the best."""
    folder = tmp_path_factory.mktemp("reloaded")
    small.write(folder / "rows.csv", small.columns())
    keys = [*small.KEYS, "optimizer.lr=0.01", "data=csv", f"data.path={folder / 'rows.csv'}"]
    keys += ["checkpoint.every=10", "checkpoint.keep=3", "eval.every=10"]
    package.train(keys, folder / "run", quiet=True)
    assert [path.name for path in sorted((folder / "run" / "checkpoints").iterdir())] == STEPS
    assert package.load(folder / "run").step == 30
    return folder / "run"


@pytest.fixture(scope="module")
def expected(whole: Path) -> dict[int, list[dict[str, Any]]]:
    """What `predict` says of each row, by step."""
    trained = TrainedRun.load(str(whole))
    found = {step: trained.at(step).describe(ROWS) for step in (10, 20, 30)}
    assert found[30] == trained.describe(ROWS) and found[10] != found[20] != found[30]
    return found


STEPS = ["000000010", "000000020", "000000030"]


@pytest.fixture
def early(whole: Path, tmp_path: Path) -> tuple[Path, Callable[[int], None]]:
    return earlier(whole, tmp_path)


def earlier(whole: Path, tmp_path: Path) -> tuple[Path, Callable[[int], None]]:
    """A run as it was after its first checkpoint, and what brings it another one, as a save does: at once."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for step in STEPS[1:]:
        shutil.rmtree(run / "checkpoints" / step)

    def comes(step: int) -> None:
        name = f"{step:09d}"
        shutil.copytree(whole / "checkpoints" / name, tmp_path / name)
        (tmp_path / name).rename(run / "checkpoints" / name)

    return run, comes


def follower(run: Path) -> Follower[Any]:
    found = loading.load("run", str(run), Settings(), step="best", plugins=()).follower
    assert found is not None
    return found


def test_a_new_best_checkpoint_is_taken_once(
    early: tuple[Path, Callable[[int], None]], expected: dict[int, Any]
) -> None:
    run, comes = early
    follows = follower(run)
    assert follows.look() is None
    comes(20)
    found = follows.look()
    assert isinstance(found, Predicting) and found.trained.step == 20
    assert found.answer([Asked(ROWS)]) == [expected[20]]
    assert follows.look() is None and (follows.reloads, follows.failures) == (1, 0)


def test_a_checkpoint_that_cannot_be_read_leaves_the_old_one(
    early: tuple[Path, Callable[[int], None]], capsys: pytest.CaptureFixture[str]
) -> None:
    run, comes = early
    follows = follower(run)
    comes(20)
    damaged = next(path for path in (run / "checkpoints" / STEPS[1] / "state").rglob("d/*") if path.is_file())
    damaged.write_bytes(damaged.read_bytes()[:-1])
    capsys.readouterr()
    assert follows.look() is None and follows.look() is None
    (line,) = map(json.loads, capsys.readouterr().err.splitlines())
    assert (line["level"], line["step"], line["kept"]) == ("warning", 20, "step 10 is served on")
    comes(30)
    found = follows.look()
    assert found is not None and found.trained.step == 30 and (follows.reloads, follows.failures) == (1, 1)


def test_a_run_that_is_removed_or_trained_on_with_another_configuration(
    early: tuple[Path, Callable[[int], None]], expected: dict[int, Any]
) -> None:
    run, comes = early
    follows = follower(run)
    run.rename(run.with_name("gone"))
    assert follows.look() is None
    run.with_name("gone").rename(run)
    text = (run / "config.yaml").read_text()
    assert "steps: 30" in text
    (run / "config.yaml").write_text(text.replace("steps: 30", "steps: 40"))
    comes(30)
    found = follows.look()
    assert found is not None and found.trained.config.train.steps == 40
    assert found.answer([Asked(ROWS)]) == [expected[30]]


def compiled(messages: list[str]) -> list[str]:
    """Those of jax that tell of a model's program."""
    return [message for message in messages if "Compiling" in message and "merged" in message]


def test_nothing_is_compiled_anew(early: tuple[Path, Callable[[int], None]], caplog: pytest.LogCaptureFixture) -> None:
    run, comes = early
    with jax.log_compiles():
        loaded = loading.load("run", str(run), Settings(), step="best", plugins=())
        loaded.model.warm_up()
        assert compiled(caplog.messages)
        caplog.clear()
        comes(20)
        assert loaded.follower is not None and loaded.follower.look() is not None
    assert not compiled(caplog.messages)


def test_a_kept_threshold_is_taken_up(early: tuple[Path, Callable[[int], None]]) -> None:
    run, _ = early
    follows = follower(run)
    TrainedRun.load(str(run)).choose_threshold("recall>=0.9")
    found = follows.look()
    assert found is not None and found.trained.threshold is not None and found.trained.step == 10


def test_no_request_is_dropped_while_weights_change_places(
    early: tuple[Path, Callable[[int], None]], expected: dict[int, Any], tmp_path: Path
) -> None:
    run, comes = early
    found: list[tuple[int, Any]] = []
    ended = threading.Event()
    with serving(tmp_path, str(run), "--reload", "1") as running:

        def ask() -> None:
            while not ended.is_set():
                answer = running("/predict", {"instances": ROWS})
                found.append((answer.status, answer.json.get("predictions")))
                ended.wait(0.01)

        clients = [threading.Thread(target=ask) for _ in range(2)]
        for client in clients:
            client.start()
        comes(30)
        while running("/models").json["models"][0]["step"] != 30:
            assert running.process.poll() is None
            time.sleep(0.1)
        ended.set()
        for client in clients:
            client.join()
        assert running("/predict", {"instances": ROWS}).json == {"predictions": expected[30]}
        assert b'bigctl_reloads_total{model="run"} 1' in running("/metrics").body
        assert [line["step"] for line in running.lines() if line.get("event") == "reload"] == [30]
    assert {status for status, _ in found} == {200}
    assert all(answer in expected.values() for _, answer in found) and found[0][1] == expected[10]


# ------------------------------------------------------------------------------------------------------ language models


@pytest.fixture(scope="module")
def writers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a language model with checkpoints of three steps, the last of them the best."""
    folder = tmp_path_factory.mktemp("writers")
    (folder / "text.txt").write_text("to be or nothing, is a question\n" * 400, encoding="utf-8")
    keys = [*writer.KEYS, f"data.path={folder / 'text.txt'}", "train.steps=30"]
    keys += ["checkpoint.every=10", "checkpoint.keep=3", "eval.every=10"]
    package.train(keys, folder / "run", quiet=True)
    assert [path.name for path in sorted((folder / "run" / "checkpoints").iterdir())] == STEPS
    assert package.load(folder / "run").step == 30
    return folder / "run"


def test_every_answer_is_wholly_of_the_old_or_wholly_of_the_new_weights(writers: Path, tmp_path: Path) -> None:
    """Requests for more texts than there are slots, whole and as streams, while the weights change places."""
    options = GenerationOptions(max_new_tokens=60, temperature=1.0, seed=2, num_samples=6)
    whole = TrainedRun.load(str(writers))
    expected = {
        step: [each.text for each in whole.at(step).language_model.generate(["to be"], options)] for step in (10, 30)
    }
    assert not set(expected[10]) & set(expected[30])
    run, comes = earlier(writers, tmp_path)
    found: list[tuple[float, int, list[str]]] = []
    ended = threading.Event()
    body = {"prompt": "to be", "max_tokens": 60, "seed": 2, "n": 6}
    with serving(tmp_path, str(run), "--reload", "1", "--slots", "2") as running:

        def ask(stream: bool) -> None:
            while not ended.is_set():
                begin, answer = time.monotonic(), running("/v1/completions", {**body, "stream": stream})
                found.append((begin, answer.status, texts(answer, stream)))

        clients = [threading.Thread(target=ask, args=(number % 2 == 0,)) for number in range(4)]
        for client in clients:
            client.start()
        comes(30)
        deadline = time.monotonic() + 60
        while running("/models").json["models"][0]["step"] != 30:
            assert running.process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        ended.set()
        for client in clients:
            client.join()
        assert texts(running("/v1/completions", body), False) == expected[30]
        assert [line["step"] for line in running.lines() if line.get("event") == "reload"] == [30]
    assert {status for _, status, _ in found} == {200} and found[0][2] == expected[10]
    assert all(answered in expected.values() for _, _, answered in found)


def texts(answer: Answer, stream: bool) -> list[str]:
    """Those of an answer, which is whole."""
    if not stream:
        return [choice["text"] for choice in answer.json["choices"]]
    *pieces, last, nothing = answer.body.decode().split("\n\n")
    assert (last, nothing) == ("data: [DONE]", "")
    found = [""] * 6
    for piece in pieces:
        (choice,) = json.loads(piece.removeprefix("data: "))["choices"]
        found[choice["index"]] += choice["text"]
    return found

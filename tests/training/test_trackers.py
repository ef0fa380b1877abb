"""Trackers: what W&B and MLflow are told is what they keep, and nothing they do stops or slows a run.

The services themselves run where their packages are installed; how they can misbehave is played by a stand-in package.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import bigctl
from bigctl.config.compose import Composed, compose
from bigctl.engine import trainer
from bigctl.engine.run import Options
from bigctl.errors import ConfigError
from bigctl.runs.directory import RunDirectory
from bigctl.training.tracking import trackers
from bigctl.training.tracking.trackers import Tracker, finish

SMALL = ["recipe=mlp_cls", "data=breast_cancer", "model.hidden=[4]", "train.batch_size=32", "train.log_every=5",
         "eval.every=10", "checkpoint.every=10", "train.tensorboard=false"]  # fmt: skip


def tracker(service: str, folder: Path, *, key: str = "0123abcd", known: bool = False) -> tuple[Tracker, list[Any]]:
    kept: list[Any] = []
    start = {
        "service": service, "key": key, "known": known, "project": "tests", "name": "run", "group": "lr",
        "folder": str(folder), "parameters": {"optimizer.lr": 0.1, "data.columns": ["a"], "train.epochs": None},
    }  # fmt: skip
    return Tracker(start, kept.append), kept


def train(*overrides: str, path: Path) -> dict[str, Any]:
    composed = compose([*SMALL, *overrides])
    assert isinstance(composed, Composed)
    return trainer.train(composed, path, Options(quiet=True))


# ------------------------------------------------------------------------------- services that misbehave, by a stand-in

_STAND_IN = """
import os, time
class Settings:
    def __init__(self, **_): pass
class Run:
    id, url, summary = "x", "https://someone:hidden@example.org/x", {{}}
    def define_metric(self, *_, **__): pass
    def log(self, values): {log}
    def finish(self, **_): {finish}
def init(**_):
    print("NOISE")
    {init}
    return Run()
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(*, init: str = "pass", log: str = "pass", finish: str = "pass") -> Tracker:
        (tmp_path / "wandb").mkdir()
        (tmp_path / "wandb" / "__init__.py").write_text(_STAND_IN.format(init=init, log=log, finish=finish))
        monkeypatch.syspath_prepend(tmp_path)
        return tracker("wandb", tmp_path)[0]

    return make


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def settle(one: Tracker, seconds: float = 60.0) -> None:
    """Let the process come as far as it does."""
    deadline = time.monotonic() + seconds
    while one.busy and time.monotonic() < deadline:
        one.pump()
        time.sleep(0.01)


def test_a_service_that_hangs_costs_no_time_and_a_bounded_end(
    stand_in: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    one = stand_in(init="time.sleep(600)")
    process = one._process
    for step in range(20_000):
        one.write(step, {"train/loss": 0.5, "train/grad_norm": 1.0})
    assert process.poll() is None  # nothing has waited for it
    assert len(one._queue) <= trackers.WAITING + 1
    start = time.perf_counter()
    finish([one], "complete", 0.5)
    assert time.perf_counter() - start < 60  # it would have slept for ten minutes
    assert process.poll() is not None  # nothing is left behind
    assert len(warnings(caplog)) == 2 and "does not keep up" in warnings(caplog)[0]
    assert "did not finish in time" in warnings(caplog)[1]
    assert "NOISE" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "where, what, told",
    [
        ("init", "raise RuntimeError('no key ' + os.environ['TEST_API_KEY'])", "no key ***;"),
        ("init", "raise OSError('http://me:hidden@host refused')", "http://***@host refused"),
        ("log", "raise ValueError('too fast')", "too fast"),
        ("finish", "raise SystemExit('gone')", "gone"),
        ("log", "os._exit(3)", "its process ended before the run did"),
    ],
)
def test_a_service_that_fails_is_warned_of_once_without_secrets(
    stand_in: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, where: str, what: str, told: str
) -> None:
    monkeypatch.setenv("TEST_API_KEY", "0123456789hidden")
    caplog.set_level(logging.INFO, "bigctl")
    one = stand_in(**{where: what})
    one.write(1, {"train/loss": 0.5})
    if where == "finish":
        one.end("complete")
    settle(one)
    assert one.lost and not one.busy
    one.write(2, {"train/loss": 0.5})
    one.cut(1)
    finish([one], "complete", 5)
    (warning,) = warnings(caplog)
    assert warning.startswith("wandb: ") and told in warning and "the run itself is not affected" in warning
    assert "hidden" not in caplog.text


def test_a_killed_run_leaves_no_tracker_behind(stand_in: Any) -> None:
    one = stand_in(finish="pass")
    one.write(1, {"train/loss": 0.5})
    one._process.stdin.close()  # as it is when the run is killed
    assert one._process.wait(10) == 0


def test_a_missing_package_is_an_error_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb").mkdir()  # a folder of runs, as W&B leaves them, is not the package
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(Path(bigctl.__file__).parents[1])])
    for name in [name for name in sys.modules if name.partition(".")[0] == "wandb"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ConfigError) as caught:
        trackers.check(["wandb"])
    assert "train.trackers" in str(caught.value) and "pip install 'bigctl[wandb]'" in str(caught.value)


def test_an_unknown_tracker_is_refused() -> None:
    with pytest.raises(ConfigError, match="train.trackers cannot be 'comet'.*wandb, mlflow"):
        compose([*SMALL, "train.trackers=[wandb,comet]"])


def test_a_trial_is_grouped_by_its_sweep(tmp_path: Path) -> None:
    trial = tmp_path / "sweeps" / "lr" / "trials" / "0123"
    trial.mkdir(parents=True)
    assert trackers.group_of(trial) is None
    (tmp_path / "sweeps" / "lr" / "ledger.jsonl").touch()
    assert trackers.group_of(trial) == "lr"


# ---------------------------------------------------------------------------------------------- the services themselves


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of an MLflow store in a folder."""
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    from mlflow.tracking import MlflowClient

    return MlflowClient((tmp_path / "mlruns").as_uri())


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_DIR", raising=False)


def wandb_records(file: Path) -> list[Any]:
    """The records of a W&B transaction log: a 7 byte header, then blocks of 32 KiB as LevelDB's log has them."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, part, found = file.read_bytes(), 7, b"", []
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            found.append(Record.FromString(part))
            part = b""
    return found


def wandb_history(folder: Path) -> list[dict[str, Any]]:
    """All that was logged by the runs in a folder, in order."""
    rows = []
    for file in sorted(folder.glob("wandb/*run-*/run-*.wandb")):
        for record in wandb_records(file):
            if record.WhichOneof("record_type") == "history":
                rows.append({(i.key or i.nested_key[0]): json.loads(i.value_json) for i in record.history.item})
    return rows


def test_mlflow_keeps_metrics_by_step_and_a_resumed_run_sends_nothing_twice(store: Any, tmp_path: Path) -> None:
    one, kept = tracker("mlflow", tmp_path)
    for step in (10, 20):
        one.write(step, {"train/loss": 1 / step, "val/confusion": [[1]], "val/loss": float("nan")})
    one.close()
    assert not one.lost and not one.busy
    again, kept_again = tracker("mlflow", tmp_path, known=True)
    for step in (20, 30):  # training went on from 10
        again.write(step, {"train/loss": 1 / step})
    again.cut(20)  # and back to 20: what follows replaces what came after
    again.write(30, {"train/loss": 0.5})
    again.result(30, {"test/loss": 0.25, "val/loss": 1.0})
    again.close()
    assert kept == kept_again  # the same run
    run = store.get_run(kept[0]["id"])
    assert run.info.status == "FINISHED" and run.info.run_name == "run" and run.data.tags["bigctl.sweep"] == "lr"
    assert run.data.params == {"optimizer.lr": "0.1", "data.columns": "['a']", "train.epochs": "None"}
    points = [(p.step, p.value) for p in store.get_metric_history(run.info.run_id, "train/loss")]
    assert points == [(10, 0.1), (20, 0.05), (30, 1 / 30), (30, 0.5)]
    assert run.data.metrics == {"train/loss": 0.5, "test/loss": 0.25}


def test_mlflow_is_told_that_a_run_failed(store: Any, tmp_path: Path) -> None:
    one, kept = tracker("mlflow", tmp_path)
    finish([one], "failed", 30)
    assert store.get_run(kept[0]["id"]).info.status == "FAILED"


@pytest.mark.usefixtures("offline")
def test_a_run_tells_wandb_and_mlflow_what_it_writes_and_goes_on_there(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "f00dfeed" * 5)
    path = tmp_path / "first"
    both = ("train.trackers=[wandb,mlflow]", "train.tracker_project=tests", "optimizer.lr=0.01")
    train(*both, "train.steps=20", path=path)
    first = RunDirectory(path).record()["trackers"]
    train(*both, "train.steps=30", path=path)
    assert capfd.readouterr().out == ""
    assert RunDirectory(path).record()["trackers"] == first

    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    expected = [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line]
    assert len(expected) == 6
    run = store.get_run(first["mlflow"]["id"])
    points = [(p.step, p.value) for p in store.get_metric_history(run.info.run_id, "train/loss")]
    assert points == expected
    assert run.data.params["optimizer.lr"] == "0.01" and run.info.run_name == "first"
    assert "test/accuracy" in run.data.metrics

    rows = wandb_history(path)
    assert [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row] == expected
    assert rows[-1]["test/accuracy"] == run.data.metrics["test/accuracy"]
    (file, _) = sorted(path.glob("wandb/*run-*/run-*.wandb"))
    (info,) = [r.run for r in wandb_records(file) if r.WhichOneof("record_type") == "run"][:1]
    assert (info.run_id, info.project, info.display_name) == (first["wandb"]["id"], "tests", "first")
    config = {item.key: json.loads(item.value_json) for item in info.config.update if item.key}
    assert config["optimizer.lr"] == 0.01
    for written in (path / "log.txt", path / "run.json", path / "config.yaml", *path.glob("wandb/*/**/*")):
        assert written.is_dir() or b"f00dfeed" not in written.read_bytes(), written


@contextlib.contextmanager
def silent_server() -> Iterator[int]:
    """A port on loopback that accepts everybody and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held: list[socket.socket] = []

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    held.append(server.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        for each in held:
            each.close()


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize("service", ["wandb", "mlflow"])
@pytest.mark.parametrize("kind", ["silent", "refuses"])
def test_a_server_that_does_not_answer_costs_a_run_a_bounded_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], service: str, kind: str
) -> None:
    pytest.importorskip(service)
    for name in [n for n in os.environ if n.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(trackers, "PATIENCE", 3.0)
    with silent_server() if kind == "silent" else contextlib.nullcontext(closed_port()) as port:
        for name in ("WANDB_BASE_URL", "MLFLOW_TRACKING_URI"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
        monkeypatch.setenv("WANDB_API_KEY", "f00dfeed" * 5)
        train("train.steps=20", path=tmp_path / "plain")  # compiles
        start = time.perf_counter()
        train("train.steps=20", path=tmp_path / "again")
        plain = time.perf_counter() - start
        start = time.perf_counter()
        summary = train("train.steps=20", f"train.trackers=[{service}]", path=tmp_path / "tracked")
        tracked = time.perf_counter() - start
    assert summary["status"] == "complete"
    assert tracked < plain + 3.0 + 30.0  # patience, and room for a busy machine
    out, err = capfd.readouterr()
    assert out == "" and err.count("warning: ") == 1 and f"warning: {service}: " in err
    assert "f00dfeed" not in err + (tmp_path / "tracked" / "log.txt").read_text()

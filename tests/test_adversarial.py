"""What users do to a command line without meaning harm: each ends in one line that helps, or in the right result."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

import bigctl as package
from bigctl.config import cadence
from bigctl.config.compose import compose
from bigctl.errors import BigctlError, ConfigError, DataError
from bigctl.training import signals
from tests.conftest import Cli

SHORT = ["recipe=mlp_cls", "train.steps=20", "train.tensorboard=false"]


def tail(run: Path) -> dict:
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])


def test_text_that_hydra_cannot_read_is_taken_as_it_is() -> None:
    path = 'bilder/wörk dir, a=b (1)/tä "ble".csv'
    made = compose(["recipe=mlp_cls", "data=csv", f"data.path={path}", "data.label=größe in m"]).config
    assert (made.data.path, made.data.label) == (path, "größe in m")  # type: ignore[attr-defined]
    made = compose(["recipe=cnn_cls", "data=digits", "data.train=train[:90%]", "data.validation=train[90%:]"]).config
    assert (made.data.train, made.data.validation) == ("train[:90%]", "train[90%:]")
    quoted = compose(["recipe=cnn_cls", "data=digits", "data.train='train[:90%]'"]).config
    assert quoted.data.train == "train[:90%]"
    with pytest.raises(ConfigError, match="names several values"):
        compose(["recipe=cnn_cls", "model.activation=relu,gelu"])


def test_the_last_of_two_values_of_a_key_is_the_one_complained_about() -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["recipe=mlp_cls", "train.epochs=1", "train.epochs="])
    assert str(caught.value.where).endswith("train.epochs=")


@pytest.mark.parametrize("text", ["lr: 0.1\n", ""])
def test_a_preset_that_does_not_name_its_component(tmp_path: Path, text: str) -> None:
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match="does not say which optimizer") as caught:
        compose(["recipe=mlp_cls", "optimizer=mine"], config_dirs=[tmp_path])
    assert "_adamw" not in str(caught.value) and "adamw" in str(caught.value.hint)


def test_a_preset_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "mine.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        compose(["recipe=mlp_cls", "optimizer=mine"], config_dirs=[tmp_path])


def test_a_plugin_that_exits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "leaving_plugin.py").write_text("import sys\nsys.exit(3)\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="leaving_plugin"):
        compose(SHORT, plugins=["leaving_plugin"])


def test_more_steps_than_can_be_counted() -> None:
    made = compose(["recipe=mlp_cls", "train.epochs=1e12"]).config
    with pytest.raises(ConfigError, match="steps long"):
        cadence.resolve_cadence(made, 400)


def test_regression_on_classes_is_refused() -> None:
    from bigctl.data.preparation import prepare

    made = compose(["recipe=mlp_cls", "model.head=regression"]).config
    with pytest.raises(DataError, match="has classes"):
        prepare.prepare(made.data, regression=made.is_regression)


def test_a_link_to_nowhere_among_the_images_is_named(tmp_path: Path) -> None:
    from bigctl.data.files.paths import fingerprint_folder

    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "dead.png").symlink_to("/nonexistent")
    with pytest.raises(DataError, match=r"dead\.png"):
        fingerprint_folder(tmp_path)


def test_one_request_to_stop_that_arrives_twice_is_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    with signals.StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.exit_code == 75 and not left
        time.sleep(3 * signals.TOGETHER)  # the thread may read the first one late
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 60
        while not left and time.monotonic() < deadline:
            time.sleep(0.01)
        assert left == [143]


def test_errors_can_be_caught_by_the_name_the_documentation_gives() -> None:
    assert package.BigctlError is BigctlError


def test_a_closed_stderr_and_a_locale_without_unicode(bigctl: Cli) -> None:
    rows = "".join(f"{i % 7},{i},{'Ä' if i % 2 else '日'}\n" for i in range(60))
    (bigctl.folder / "t.csv").write_text(f"größe,x,Art\n{rows}", encoding="utf-8")
    command = bigctl.command("train", *SHORT, "data=csv", "data.path=t.csv", "data.label=Art", "--name", "uni")
    closed = subprocess.run(
        ["bash", "-c", '"$@" 2>&-', "-", *command], cwd=bigctl.folder, capture_output=True, text=True
    )
    assert closed.returncode == 0 and "next:" in closed.stdout
    narrow = bigctl("eval", "uni", "--json", env={"PYTHONIOENCODING": "ascii"})
    assert json.loads(narrow.stdout)


def test_no_device_is_a_matter_of_configuration(bigctl: Cli) -> None:
    message = bigctl("train", *SHORT, code=2, env={"JAX_PLATFORMS": "nosuch"}).stderr
    assert "JAX_PLATFORMS=nosuch: jax finds no device" in message


def test_a_finished_run_that_was_moved_or_lost_its_summary(bigctl: Cli) -> None:
    bigctl("train", *SHORT, "--name", "first")
    runs = bigctl.folder / "runs"
    shutil.move(runs / "first", runs / "second")
    again = bigctl("train", *SHORT, "--name", "second")
    assert "runs/first" not in again.stdout and "nothing to do" in again.stdout
    before = json.loads((runs / "second" / "summary.json").read_text())
    for damage in ("{}", '{"st'):
        (runs / "second" / "summary.json").write_text(damage)
        after = bigctl.json("train", *SHORT, "--name", "second")
        assert after["metrics"] == before["metrics"] and after["step"] == 20
    (runs / "second" / "summary.json").unlink()
    assert bigctl.json("train", *SHORT, "--name", "second")["metrics"] == before["metrics"]


def test_steps_that_train_nothing_are_announced(bigctl: Cli) -> None:
    bigctl("train", *SHORT, "--name", "longer")
    longer = [*SHORT, "train.steps=30", "--name", "longer"]
    assert "learning rate is 0 from step 20 on" in bigctl("train", *longer).stderr
    assert tail(bigctl.folder / "runs" / "longer")["lr"] == 0
    stretched = [*longer, "train.steps=40", "schedule.horizon=40", "--allow-drift", "schedule.horizon"]
    assert "learning rate is 0" not in bigctl("train", *stretched).stderr


def test_a_batch_larger_than_the_training_split_is_announced(bigctl: Cli) -> None:
    done = bigctl("train", "recipe=mlp_cls", "train.batch_size=1000", "train.steps=1", "--name", "big")
    assert "repeats examples" in done.stderr


def test_what_is_no_image_for_the_model(bigctl: Cli) -> None:
    bigctl("train", "recipe=cnn_cls", "data=digits", "train.steps=2", "model.channels=[4]", "--name", "c")
    model = package.load(bigctl.folder / "runs" / "c")
    pixels = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 1), dtype=np.uint8)
    np.testing.assert_array_equal(model.predict(pixels), model.predict(pixels.astype(np.int64)))
    for wrong in (pixels / 255, pixels.astype(np.int16) - 300, np.full((1, 8, 8, 1), np.nan)):
        with pytest.raises(ValueError, match="uint8, from 0 to 255"):
            model.predict(wrong)
    with pytest.raises(ValueError, match="one of: train, validation, test"):
        model.evaluate("val")
    (bigctl.folder / "d").mkdir()
    assert "the folder holds no files" in bigctl("predict", "c", "d", code=2).stderr


def test_checkpoints_whose_configuration_is_lost_are_neither_used_nor_touched(bigctl: Cli) -> None:
    run = ["train", "recipe=mlp_cls", "train.steps=10", "--name", "lost"]
    bigctl(*run)
    folder = bigctl.folder / "runs" / "lost"
    (folder / "config.yaml").unlink()
    before = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}
    assert "config.yaml: is missing" in bigctl(*run, code=2).stderr
    after = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}
    assert before == after

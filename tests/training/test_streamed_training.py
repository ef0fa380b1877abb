"""A run whose pictures are decoded while it trains: trained, gone on with, killed and predicted with like any other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import bigctl
from bigctl.reports import examples
from tests.conftest import Cli

pytestmark = pytest.mark.fewer

RUN = [
    "recipe=cnn_cls", "data=image_folder", "data.image_size=[12,12]", "data.resize=crop", "data.decoding=stream",
    "recipe.augment.random_resized_crop=0.3", "model.channels=[4]", "model.hidden=[4]", "train.batch_size=8",
    "train.log_every=2", "checkpoint.every=4",
]  # fmt: skip

CHANGED = [
    "recipe.loss=bce", "recipe.augment.policy=trivialaugment", "recipe.augment.saturation=0.4",
    "recipe.augment.hue=0.1", "recipe.augment.erase=0.5", "recipe.augment.erase_fill=noise", "recipe.augment.mixup=0.2",
    "recipe.augment.cutmix=1", "recipe.augment.repeats=2", "recipe.augment.center_crop=0.9",
]  # fmt: skip


def pictures(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for number in range(40):
        shape = rng.integers(14, 60, 2).tolist()
        image = Image.fromarray(rng.integers(0, 256, (4, 4, 3)).astype(np.uint8)).resize(shape)
        (folder / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        image.save(folder / "ab"[number % 2] / f"{number}.jpg")
    return folder


def test_a_streamed_run_is_trained_scored_and_predicted_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    keys = [*RUN, f"data.path={pictures(tmp_path / 'pictures')}", "train.steps=2", "train.tensorboard=false"]
    summary = bigctl.train(bigctl.compose(keys), run_dir="run")
    told = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert any(line.get("perf/decoded_per_s", 0) > 0 and line["perf/queue_depth"] >= 0 for line in told)
    run = bigctl.load("run")
    assert run.evaluate("test")["test/loss"] == pytest.approx(summary["metrics"]["test/loss"])
    Image.open(next((tmp_path / "pictures" / "a").iterdir())).save(file := tmp_path / "one.png")
    np.testing.assert_array_equal(run.predict([file]), run.predict([Image.open(file)]))
    assert examples.choose(examples.Seen(run.run), 2).items[0].image.startswith("data:image/png")


@pytest.mark.slow
def test_a_streamed_run_that_is_killed_ends_bit_equal(bigctl: Cli) -> None:
    pictures(bigctl.folder / "pictures")
    often = ["train.steps_per_dispatch=1", "eval.every=15"]
    shortly = ["--steps", "60", "--kills", "4", "--quiet"]
    told = bigctl.json("verify-resume", *RUN, *CHANGED, "data.path=pictures", *often, *shortly)
    assert told["ok"] and len(told["kills"]) == 4 and not told["lost"]

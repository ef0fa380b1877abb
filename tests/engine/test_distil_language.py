"""Promises of distillation of language models: the teacher is asked in each step, a resumed student is the same to the
bit, and a teacher that does not fit is refused in a line."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bigctl.recipes import lm_loss

import bigctl
from bigctl.config import schema
from bigctl.config.compose import compose
from bigctl.engine import batch_size, distil, dry_run, experiment, resolve, teacher
from bigctl.errors import BigctlError, RunError
from bigctl.training.checkpoints.arrays import flatten
from bigctl.training.task import TEACHER

pytestmark = pytest.mark.fewer

KEYS = [
    "recipe=gpt_lm", "model=gpt", "model.layers=1", "model.width=16", "model.heads=2", "model.intermediate=32",
    "model.context=16", "train.batch_size=4", "recipe.tokenizer.type=bytes", "data=text", "train.tensorboard=false",
    "recipe.sample_tokens=0", "schedule=constant", "optimizer.lr=0.01",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("language")
    text = "".join(f"{i} bottles of beer, {i * 7 % 10} of them new.\n" for i in range(200))
    (made / "story.txt").write_text(text, encoding="utf-8")
    bigctl.train([*KEYS, f"data.path={made / 'story.txt'}", "train.steps=30"], made / "teacher", quiet=True)
    return made


def keys(folder: Path, *more: str) -> list[str]:
    student = ["model.width=8", f"data.path={folder / 'story.txt'}", f"distil.teacher={folder / 'teacher'}"]
    return [*KEYS, *student, "seed=1", "train.steps=12", "checkpoint.every=4", "train.log_every=2", *more]


def weights(run: Path) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in flatten(bigctl.load(str(run), step="last").params).items()}


def test_the_soft_loss_is_that_of_all_logits_and_so_is_its_gradient():
    rng, masked = np.random.default_rng(0), 5
    hidden, theirs = (jnp.asarray(rng.normal(size=(2, 7, width)), jnp.float32) for width in (4, 6))
    kernel, other = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((4, 8), (6, 12)))
    counts = jnp.asarray(rng.integers(0, 2, (2, 7)), jnp.float32)

    def pieces(hidden: jax.Array, kernel: jax.Array) -> jax.Array:
        spoken = (lm_loss.Spoken(hidden, kernel, masked), lm_loss.Spoken(theirs, other, masked))
        return lm_loss.soft_sum(*spoken, counts, 3.0, chunk=2)

    def plain(hidden: jax.Array, kernel: jax.Array) -> jax.Array:
        said = jax.nn.softmax((hidden @ kernel)[..., :masked] / 3)
        wanted = jax.nn.softmax((theirs @ other)[..., :masked] / 3)
        return 9 * jnp.sum(counts[..., None] * wanted * jnp.log(wanted / said))

    np.testing.assert_allclose(pieces(hidden, kernel), plain(hidden, kernel), rtol=1e-5)
    for found, expected in zip(*(jax.grad(f, (0, 1))(hidden, kernel) for f in (pieces, plain)), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it_and_another_one_has(folder):
    for width, same in ((16, True), (8, False)):
        asked = keys(folder, "distil.alpha=1", f"model.width={width}")
        built = distil.of_experiment(experiment.build(compose(asked).config))
        params = bigctl.load(str(folder / "teacher")).params if same else built.programs.initialise().params
        batch = built.dataset.batches.gather(built.dataset.splits["train"], np.arange(4), None)
        given = {**batch, "mask": jnp.ones(4)}
        model = built.programs.merge(params, {})
        sums = built.task.loss(model, given, None, None, built.programs.hparams)
        assert (abs(float(sums["distil"][0])) < 1e-3) == same
        assert float(sums["loss"][0]) == pytest.approx(float(sums["distil"][0]), abs=1e-6)


def test_a_measured_batch_has_room_for_the_teacher(folder, monkeypatch):
    monkeypatch.setattr(batch_size, "candidates", lambda unit, examples: [4])
    monkeypatch.setattr(batch_size._Bench, "_run", lambda *_: None)
    taken = []
    for more in ([], ["distil.teacher=null"]):
        given = compose(keys(folder, "train.batch_size=auto", *more)).config
        taken += [found.bytes for found in batch_size.measure(given, resolve.prepare_data(given)).tried]
    weights = flatten(bigctl.load(str(folder / "teacher")).params).values()
    assert taken[0] - taken[1] >= sum(np.asarray(each).nbytes for each in weights)
    shutil.move(folder / "teacher", folder / "gone")
    try:
        with pytest.raises(RunError, match="there is no such run"):
            batch_size.measure(compose(keys(folder, "train.batch_size=auto")).config, resolve.prepare_data(given))
    finally:
        shutil.move(folder / "gone", folder / "teacher")


@pytest.mark.slow
def test_a_plan_says_that_it_is_made_without_the_teacher(folder):
    given = compose(keys(folder)).config
    notes = dry_run.report(given)["notes"]
    assert any("each step asks the teacher too" in note for note in notes)
    alone = dataclasses.replace(given, distil=schema.Distil())
    assert not teacher.uncounted(alone, experiment.build(alone).dataset)


def test_a_student_learns_from_it_and_goes_on_to_the_bit(folder, tmp_path):
    shutil.copytree(folder / "teacher", tmp_path / "teacher")
    asked = keys(folder, f"distil.teacher={tmp_path / 'teacher'}", "distil.alpha=0.9")
    bigctl.train(asked, tmp_path / "whole", quiet=True)
    bigctl.train([*asked, "train.steps=8"], tmp_path / "halves", quiet=True)
    bigctl.train(asked, tmp_path / "halves", quiet=True)
    whole, halves = weights(tmp_path / "whole"), weights(tmp_path / "halves")
    assert all(np.array_equal(whole[name], halves[name]) for name in whole)
    record = json.loads((tmp_path / "whole" / "run.json").read_text())[TEACHER]
    assert record["run"] == "teacher" and len(record["checkpoint"]["manifest-0.json"]) == 64
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "train/distil" in line]
    assert logged[-1]["train/distil"] < logged[0]["train/distil"]
    assert all(
        line["train/loss"] == pytest.approx(0.1 * line["train/cross_entropy"] + 0.9 * line["train/distil"], rel=1e-4)
        for line in logged
    )
    shutil.rmtree(tmp_path / "teacher")
    assert bigctl.load(str(tmp_path / "whole")).evaluate("test")  # without its teacher
    with pytest.raises(RunError, match="no such run"):  # but it is not trained on without
        bigctl.train([*asked, "train.steps=16"], tmp_path / "whole", quiet=True)


def test_a_teacher_that_cannot_teach_is_refused_in_a_line(folder, tmp_path):
    for name, changed in {
        "tables": {"kind": "table"},
        "others": {"tokenizer": {"vocab_size": 300, "sha256": "0"}},
        "shuffled": {"tokenizer": {"sha256": "0"}},
    }.items():
        shutil.copytree(folder / "teacher", tmp_path / name)
        record = json.loads((tmp_path / name / "run.json").read_text())
        features = record["data"]["features"]
        features["tokenizer"] |= changed.pop("tokenizer", {})
        features |= changed
        (tmp_path / name / "run.json").write_text(json.dumps(record))
    for more, wrong in {
        f"distil.teacher={tmp_path / 'tables'}": "does not say what the next token is",
        f"distil.teacher={tmp_path / 'others'}": "has another tokenizer: 300 tokens, the data has ",
        f"distil.teacher={tmp_path / 'shuffled'}": "its tokens are others, or have other numbers",
        "model.context=32": "takes texts of 16 tokens, the student is trained on windows of 32",
    }.items():
        with pytest.raises(BigctlError, match=wrong):
            bigctl.train(keys(folder, more), tmp_path / "new", quiet=True)


@pytest.mark.slow
def test_a_student_of_packed_documents_and_one_on_several_devices_learn_as_others_do(folder, tmp_path):
    """The teacher reads the same documents, each by itself; shared out, the loss is that of one device."""
    (end,) = bigctl.load(str(folder / "teacher")).language_model.tokenizer.encode("\n").ids
    more = ["recipe.packing=documents", f"recipe.end_token={end}", "train.steps=4"]
    told = {}
    for devices in (1, 2):
        run = tmp_path / f"on-{devices}"
        asked = [*keys(folder, *more, f"mesh.data={devices}", "train.log_every=1"), "--run-dir", str(run), "--quiet"]
        flags = f"--xla_force_host_platform_device_count={devices}"
        subprocess.run(
            [sys.executable, "-m", "bigctl", "train", *asked], env={**os.environ, "XLA_FLAGS": flags}, check=True,
            capture_output=True, timeout=300,
        )  # fmt: skip
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        told[devices] = [line["train/distil"] for line in lines if "train/distil" in line]
    assert len(told[1]) == 4 and told[1][-1] < told[1][0]
    np.testing.assert_allclose(told[1], told[2], rtol=1e-4)

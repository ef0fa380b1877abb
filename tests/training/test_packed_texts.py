"""Training on rows of several texts: what a step learns, and what is said of a split, is that of texts alone."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from bigctl.recipes.text_cls import TextCls

from bigctl.data.layouts.packed_texts import PackedTexts
from bigctl.data.layouts.ragged import Ragged
from bigctl.engine.experiment import Experiment
from bigctl.errors import ConfigError
from bigctl.training import plans
from tests.conftest import Cli
from tests.training.test_sharding import assert_meshes_agree
from tests.training.test_text_training import NO_DROPOUT, RECIPES, build, fit, params, write

pytestmark = pytest.mark.fewer

PACKED = "recipe.bucketing.pack=true"
PLAIN = [*NO_DROPOUT["bert_cls"], "recipe.bucketing.window=1"]  # batches of the same texts with and without


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write(tmp_path_factory.mktemp("texts"))


def layout_of(exp: Experiment) -> Any:
    return plans.planned(exp.programs, exp.dataset.batches, exp.dataset.splits["train"], exp.config)[0]


@pytest.fixture(scope="module")
def alone(data: list[str]) -> tuple[list[float], dict[str, np.ndarray]]:
    """Losses and weights of texts in rows of their own."""
    state, losses = fit(build("bert_cls", data, *PLAIN, "recipe.class_weights=balanced", shapes=1))
    return losses, params(state)


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["data.resident_mib=0", "train.accumulate=2"],
        pytest.param(["model.scan=true", "model.remat=full"], marks=pytest.mark.slow),
        pytest.param(["train.precision=bfloat16"], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_texts_that_share_rows_train_as_those_that_do_not(more, data, alone):
    exp = build("bert_cls", data, PACKED, *PLAIN, "recipe.class_weights=balanced", *more)
    assert isinstance(layout_of(exp), PackedTexts)
    state, losses = fit(exp)
    assert exp.programs.resident_in_parts.graded._cache_size() == 0  # one shape, so one program
    narrow = "train.precision=bfloat16" in more
    np.testing.assert_allclose(losses, alone[0], rtol=0.02 if narrow else 2e-5)
    for name, value in params(state).items():
        np.testing.assert_allclose(value, alone[1][name], atol=2e-2 if narrow else 2e-4, err_msg=name)


def test_rows_that_are_sent_train_as_resident_ones_do_to_the_last_bit(data):
    found = [fit(build("bert_cls", data, PACKED, *more)) for more in ([], ["data.resident_mib=0"])]
    (one, losses), (other, theirs) = found
    assert losses == theirs and len(set(losses)) == len(losses)
    for name, value in params(one).items():
        np.testing.assert_array_equal(value, params(other)[name], err_msg=name)


def test_little_of_a_batch_is_padding(data):
    """What `train/padding` is made of."""
    packed, padded = (fit(build("bert_cls", data, *more), 8)[0] for more in ([PACKED], []))
    (ours, places), (theirs, others) = (np.asarray(state.sums["padding"]) for state in (packed, padded))
    assert places < others and ours / places < 0.2 < theirs / others


@pytest.mark.parametrize("batch_size", ["null", 8])
def test_scores_are_those_of_texts_by_themselves(batch_size, data):
    found = []
    for more, kind in ([PACKED], PackedTexts), ([], Ragged):
        exp = build("bert_cls", data, f"eval.batch_size={batch_size}", *more)
        state, evaluator = exp.programs.initialise(), exp.evaluator("train", "val")
        found.append(evaluator.score(state.params, state.variables))
        assert isinstance(evaluator.layout, kind)
    ours, theirs = found
    assert ours.metrics.keys() == theirs.metrics.keys() and ours.examples.keys() == theirs.examples.keys()
    for name, value in theirs.metrics.items():
        ranked = name in ("val/roc_auc", "val/average_precision")  # of scores that differ in their last digit
        np.testing.assert_allclose(ours.metrics[name], value, rtol=1e-3 if ranked else 1e-5, err_msg=name)
    for name, values in theirs.examples.items():
        np.testing.assert_allclose(ours.examples[name], values, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("meshes", "more"),
    [
        (["data"], []),
        pytest.param(["fsdp", "mixed", "tensor"], ["train.accumulate=2"], marks=pytest.mark.slow),
    ],
)
def test_every_mesh_gives_the_losses_of_one_device(meshes, more, data):
    """The same texts make up a batch, in however many rows."""
    assert_meshes_agree({"bert_cls": ([*RECIPES["bert_cls"], *data, PACKED, *more], meshes)})


@pytest.mark.slow
def test_one_batch_for_ever_is_learnt(data):
    exp = build("bert_cls", data, PACKED, *NO_DROPOUT["bert_cls"], "train.overfit_one_batch=true", "optimizer.lr=0.03")
    assert isinstance(layout_of(exp), PackedTexts)
    _, losses = fit(exp, steps=40)
    assert losses[-1] < 0.2 * losses[0]


def test_a_run_that_began_before_texts_could_share_rows_goes_on_without(bigctl: Cli) -> None:
    """Its configuration lacks the key; that of one that begins now says what was decided."""
    keys = [*RECIPES["bert_cls"][:-1], *write(bigctl.folder), "train.batch_size=16", "eval.every=10"]
    keys += ["checkpoint.every=10", "train.tensorboard=false", "recipe.bucketing.shapes=1"]
    old, new = (bigctl.folder / "runs" / name for name in ("old", "new"))
    bigctl.json("train", *keys, "train.steps=10", "recipe.bucketing.pack=false", "--name", "old")
    config = (old / "config.yaml").read_text()
    assert config.count("    pack: false\n") == 1
    (old / "config.yaml").write_text(config.replace("    pack: false\n", ""))
    bigctl.json("train", *keys, "train.steps=20", "--name", "old")
    bigctl.json("train", *keys, "train.steps=10", "--name", "new")
    lines = [map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) for run in (old, new)]
    padding = [[line["train/padding"] for line in each if "train/padding" in line][-1] for each in lines]
    assert padding[1] < 0.25 < padding[0]
    assert "    pack: true\n" in (new / "config.yaml").read_text()


class OfOneRow(TextCls):
    """A task of one's own, that may take each row for a text."""


def test_where_texts_cannot_share_rows_each_has_its_own(data):
    exp = build("bert_cls", data, PACKED)
    assert plans.packs_texts(exp.task, exp.config)
    assert not plans.packs_texts(OfOneRow(exp.config, exp.dataset.features), exp.config)
    private = ["recipe.bucketing.pack=null", "train.privacy.noise=1.5", "train.privacy.delta=1e-5"]
    found = build("bert_cls", data, *private)
    assert layout_of(found).kind == "poisson" and np.isfinite(fit(found, 1)[1]).all()
    with pytest.raises(ConfigError, match="cannot share rows"):
        build("bert_cls", data, *private, PACKED)
    lstm = build("lstm_cls", data).config.model
    assert not plans.packs_texts(exp.task, dataclasses.replace(exp.config, model=lstm))

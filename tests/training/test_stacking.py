"""Like layers as one while a model is trained: the same updates as of layers one by one, and the same checkpoints."""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import numpy as np
import pytest

import bigctl
from bigctl.engine import experiment
from bigctl.engine.experiment import Experiment
from bigctl.training import stacking
from bigctl.training.checkpoints.arrays import flatten, shapes
from bigctl.training.checkpoints.store import Checkpoints
from bigctl.training.state import Progress, TrainState

GPT = (
    "recipe=gpt_lm", "model=gpt", "model.layers=3", "model.width=16", "model.heads=2", "model.context=8",
    "recipe.block=8", "recipe.tokenizer.type=bytes", "model.dropout=0.1", "train.ema=0.9", "data=text",
)  # fmt: skip
VIT = ("recipe=vit_cls", "data=digits", "model.layers=3", "model.width=16", "model.heads=2", "model.patch=4",
       "model.intermediate=32", "model.drop_path=0.3")  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("".join(f"{i} bottles of beer, {i * 7 % 10} of them cold.\n" for i in range(200)))
    return f"data.path={file}"


@functools.cache
def built(*overrides: str) -> Experiment:
    sizes = ("mesh=single", "train.batch_size=4", "train.steps=10", "train.steps_per_dispatch=1")
    return experiment.build(bigctl.compose([*overrides, *sizes, "model.scan=true"]))


def trained(made: Experiment, state: TrainState, steps: range) -> TrainState:
    feed = made.feed()
    for number in steps:
        state, _ = feed.advance(state, number * 4, 1)
    feed.close()
    return state


def arrays(made: Experiment, state: TrainState) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in flatten(made.programs.stored(state)).items()}


CASES = {
    "adamw": (*GPT, "optimizer=adamw", "optimizer.clip=0.1"),
    "muon": (*GPT, "optimizer=muon_lm", "optimizer.iterations=2"),
    "lamb": (*VIT, "optimizer=lamb", "optimizer.freeze=[attention/key]"),
}


@pytest.mark.parametrize(
    "case", ["adamw", *(pytest.param(name, marks=[pytest.mark.slow, pytest.mark.fewer]) for name in ("muon", "lamb"))]
)
def test_updates_are_those_of_layers_one_by_one(case: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After two steps: clipping, decay, trust ratios, Newton-Schulz, dropout, frozen parameters, the average."""
    overrides = (*CASES[case], *([text] if "data=text" in CASES[case] else []))
    made = built(*overrides)
    assert made.programs.step.deep is not None
    start = arrays(made, made.programs.initialise())
    found = arrays(made, trained(made, made.programs.initialise(), range(2)))
    monkeypatch.setattr(stacking, "is_asked", lambda config: False)
    single = built.__wrapped__(*overrides)
    assert single.programs.step.deep is None
    state = single.programs.initialise()
    assert flatten(state).keys() == start.keys()
    for name, leaf in flatten(state).items():
        np.testing.assert_array_equal(start[name], leaf, err_msg=name)
    for name, leaf in arrays(single, trained(single, state, range(2))).items():
        if "attention/key/bias" in name:  # the gradient of which is nothing but rounding
            continue
        np.testing.assert_allclose(found[name], leaf, atol=2e-6 * max(1, np.abs(leaf).max()), err_msg=name)


def test_a_run_goes_on_bit_by_bit_from_a_checkpoint_that_has_a_name_for_each_layer(text: str, tmp_path: Path) -> None:
    made = built(*CASES["adamw"], text)
    programs = made.programs
    straight = arrays(made, trained(made, programs.initialise(), range(4)))
    half = programs.stored(trained(made, programs.initialise(), range(2)))
    assert {"params/layers/2/up/kernel", "ema/layers/0/up/bias"} <= flatten(half).keys()
    store = Checkpoints(tmp_path)
    store.save(half, Progress(step=2, position=8), {"shapes": shapes(programs.abstract_state)})
    store.close()
    again = programs.carried(store.restore(store.find("last"), programs.abstract_state))
    for name, leaf in arrays(made, trained(made, again, range(2, 4))).items():
        np.testing.assert_array_equal(straight[name], leaf, err_msg=name)


def test_a_state_is_the_same_bits_in_either_form(text: str) -> None:
    programs = built(*CASES["adamw"], text).programs
    state = programs.initialise()
    names = {name for name in flatten(state) if "layers" in name}
    assert names and not any("layers/0" in name for name in names)
    assert all(leaf.shape[0] == 3 for name, leaf in flatten(state).items() if name in names)
    again = programs.carried(programs.stored(state))
    assert jax.tree.structure(again) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, again, state)


def test_weights_that_are_given_layer_by_layer_are_those_of_the_state_and_the_others_are_drawn(text: str) -> None:
    made = built(*CASES["adamw"], text)
    drawn = arrays(made, made.programs.initialise())
    given = {name.removeprefix("params/"): drawn[name] + 1 for name in drawn if name.startswith("params/layers/1/")}
    assert given
    for name, leaf in arrays(made, made.programs.initialise(given)).items():
        kind, _, path = name.partition("/")
        expected = given.get(path, drawn[name]) if kind in ("params", "ema") else drawn[name]
        np.testing.assert_array_equal(leaf, expected, err_msg=name)


@pytest.mark.parametrize(
    "key", ["optimizer.layer_decay=0.9", "optimizer.unfreeze=[2,4]", "optimizer.freeze=[layers/0/]"]
)
def test_what_looks_at_single_layers_has_them_one_by_one(key: str) -> None:
    assert built(*VIT, key).programs.step.deep is None


def test_the_step_and_the_first_state_are_traced_as_long_for_any_number_of_layers(text: str) -> None:
    def equations(layers: int) -> tuple[int, int]:
        made = built(*CASES["adamw"], text, f"model.layers={layers}")
        programs, shapes = made.programs, made.task.example_shapes(4)
        traced = programs.step_sent.trace(programs.carried_state, shapes, programs.hparams)
        first = programs.make_state.trace(np.int64(0), {}, {})
        return str(traced.jaxpr).count(" = "), str(first.jaxpr).count(" = ")

    assert equations(2) == equations(6)

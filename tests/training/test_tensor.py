"""Language models on meshes with a tensor axis train as on one device: on 8 simulated devices, in one process."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.training.test_sharding import on_eight_devices

SIZES = [
    "model.layers=1", "model.width=32", "model.heads=8", "model.intermediate=64", "model.context=16",
    "model.dropout=0.1", "model.zero_init=false", "recipe.tokenizer.type=bytes", "recipe.loss_chunk=5",
    "train.batch_size=8", "train.steps=5", "train.ema=0.9", "train.steps_per_dispatch=1", "mesh.min_shard=1",
]  # fmt: skip
MODELS = {
    "llama": ["model=llama", "model.kv_heads=4", "model.tied=false", "optimizer=adamw", "optimizer.clip=1", *SIZES],
    "gpt": ["model=gpt", "model.scan=true", "model.remat=dots", "optimizer=muon_lm", "optimizer.iterations=2", *SIZES],
}
MESHES = {
    "single": ["mesh=single"],
    "data": ["mesh=data"],
    "fsdp": ["mesh=fsdp"],
    "tensor": ["mesh=tensor", "mesh.tensor=4"],
    "fsdp_tensor": ["mesh=fsdp_tensor"],
}

_TRAIN = """
import json, pathlib, sys
import jax, numpy as np
import bigctl
from bigctl.runs import dry_run, experiment
from bigctl.training import feed as feeds
from bigctl.training.checkpoint import Checkpoints, flatten, shapes
from bigctl.training.evaluation import Evaluator
from bigctl.training.state import Progress
folder, runs, meshes, resumed = json.loads(sys.argv[1])
text = pathlib.Path(folder) / "text.txt"
text.write_text("".join(f"{i} bottles of beer, {i * 7 % 10} of them cold.\\n" for i in range(200)))

def losses(exp, state, steps):
    feed, found = feeds.make(exp.programs, exp.dataset.splits["train"], exp.config), []
    for number in steps:
        before = np.asarray(state.sums["loss"], np.float64)
        state, _ = feed.advance(state, number * 8, 1)
        total, weight = np.asarray(state.sums["loss"], np.float64) - before
        found.append(total / weight)
    return state, found

result, stores = {}, {}
for key, overrides in runs.items():
    model, mesh = key.split("/")
    config = bigctl.compose(["recipe=gpt_lm", *overrides, "data=text", f"data.path={text}", *meshes[mesh]])
    exp = experiment.build(config)
    state, first = losses(exp, exp.programs.initialise(), range(1))
    leaves = flatten(state)
    if mesh == "single":
        alone = {n: np.asarray(v) for n, v in leaves.items()}
    worst = max(np.abs(np.asarray(v) - alone[n]).max() / max(np.abs(alone[n]).max(), 1e-6)
                for n, v in leaves.items() if "/mu/" in n)
    state, more = losses(exp, state, range(1, 3))
    store = stores[mesh] = Checkpoints(pathlib.Path(folder) / key)
    store.save(state, Progress(step=3, position=24), {"shapes": shapes(exp.programs.abstract_state)})
    store.close()
    if key in resumed:
        state = store.restore(stores[resumed[key]].find("last"), exp.programs.abstract_state)
    state, last = losses(exp, state, range(3, 5))
    columns = exp.dataset.splits["validation"]
    scored = Evaluator(exp.programs, columns, config, prefix="val")(exp.programs.evaluation_weights(state), {})
    result[key] = {"losses": [*first, *more, *last], "gradients": float(worst), "validation": scored["val/loss"],
                   "devices": exp.programs.mesh.size,
                   "cut": {n: v.sharding.shard_shape(v.shape) for n, v in flatten(state).items()}}
for mesh in ("single", "data"):
    config = bigctl.compose(["recipe=mlp_cls", "data=breast_cancer", "model.hidden=[256]", f"mesh={mesh}",
                             "train.batch_size=64", "train.compile_cache=false"])
    result["report/" + mesh] = dry_run.report(config)
print(json.dumps(result))
"""


def trained(folder: Any, runs: list[str], resumed: dict[str, str]) -> dict[str, Any]:
    chosen = {key: MODELS[key.split("/")[0]] for key in runs}
    return on_eight_devices(_TRAIN, json.dumps([str(folder), chosen, MESHES, resumed]))


def same(found: dict[str, Any], model: str) -> None:
    alone = found[f"{model}/single"]
    assert alone["devices"] == 1 and len(set(alone["losses"])) == 5
    for key, run in found.items():
        if key.startswith(f"{model}/") and run is not alone:
            assert run["devices"] == 8, key
            np.testing.assert_allclose(run["losses"], alone["losses"], rtol=1e-5, err_msg=key)
            assert run["gradients"] < 2e-5, key
            assert run["validation"] == pytest.approx(alone["validation"], rel=1e-5), key


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    runs = [*(f"llama/{mesh}" for mesh in MESHES), "gpt/single", "gpt/fsdp_tensor"]
    resumed = {"llama/tensor": "fsdp", "llama/fsdp_tensor": "tensor"}
    return trained(tmp_path_factory.mktemp("tensor"), runs, resumed)


def test_every_mesh_gives_the_losses_of_one_device(found: dict[str, Any]) -> None:
    """5 losses, those after the third with the checkpoint of another mesh; gradients; the validation loss."""
    same(found, "llama")


def test_matrices_that_are_cut_are_orthogonalised_whole(found: dict[str, Any]) -> None:
    same(found, "gpt")


def test_a_device_holds_its_part_of_each_layer(found: dict[str, Any]) -> None:
    parts = {
        "attention/query/kernel": ([32, 8], [8, 16]),
        "attention/key/kernel": ([32, 4], [8, 8]),
        "attention/output/kernel": ([8, 32], [16, 8]),
        "gate/kernel": ([32, 16], [8, 32]),
        "down/kernel": ([16, 32], [32, 8]),
    }
    everywhere = {f"layers/0/{name}": part for name, part in parts.items()}
    everywhere |= {"token/embedding": ([96, 32], [192, 8]), "head/kernel": ([32, 96], [8, 192])}
    for mesh, number in (("tensor", 0), ("fsdp_tensor", 1)):
        cut = found[f"llama/{mesh}"]["cut"]
        for name, part in everywhere.items():
            places = [place for place in cut if place.endswith(name)]
            assert len(places) == 4, name  # the parameter, its average, and two moments
            assert all(cut[place] == part[number] for place in places), name
    assert found["gpt/fsdp_tensor"]["cut"]["params/layers/0/attention/query/bias"] == [16]


def test_a_dry_run_tells_what_each_device_takes_and_what_all_compute(found: dict[str, Any]) -> None:
    alone, shared = found["report/single"], found["report/data"]
    assert shared["devices"]["count"] == 8
    assert shared["step_temporary_bytes"] < 0.6 * alone["step_temporary_bytes"]
    assert shared["flops_per_step"] == pytest.approx(alone["flops_per_step"], rel=0.5)


@pytest.mark.slow
def test_every_mesh_gives_the_losses_of_one_device_to_gpt(tmp_path: Any) -> None:
    found = trained(tmp_path, [f"gpt/{mesh}" for mesh in MESHES], {"gpt/tensor": "data", "gpt/fsdp": "tensor"})
    same(found, "gpt")

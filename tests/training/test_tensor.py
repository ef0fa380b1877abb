"""Language models on meshes with a tensor axis train as on one device: on 8 simulated devices, in one process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
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
    "llama": [
        "model=llama",
        "model.kv_heads=4",
        "model.tied=false",
        "optimizer=muon_lm",
        "optimizer.iterations=2",
        *SIZES,
    ],
    "gpt": ["model=gpt", "model.scan=true", "model.remat=dots", "optimizer=adamw", "optimizer.clip=1", *SIZES],
}
MESHES = {
    "single": ["mesh=single"],
    "data": ["mesh=data"],
    "fsdp": ["mesh=fsdp"],
    "tensor": ["mesh=tensor", "mesh.tensor=4", "mesh.data=2"],
    "fsdp_tensor": ["mesh=fsdp_tensor"],
}

_TRAIN = """
import json, pathlib, sys
import jax, numpy as np
import bigctl
from bigctl.engine import dry_run, experiment
from bigctl.training import feed as feeds
from bigctl.training.checkpoints.arrays import flatten, shapes
from bigctl.training.checkpoints.store import Checkpoints
from bigctl.training.evaluation import Evaluator
from bigctl.training.state import Progress
folder, runs, meshes, resumed, untrained = json.loads(sys.argv[1])
text = pathlib.Path(folder) / "text.txt"
text.write_text("".join(f"{i} bottles of beer, {i * 7 % 10} of them cold.\\n" for i in range(200)))

def losses(exp, state, steps):
    feed, found = feeds.make_feed(exp.programs, exp.dataset.batches, exp.dataset.splits["train"], exp.config), []
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
    if key in untrained:
        cut = {n: v.sharding.shard_shape(v.shape) for n, v in flatten(exp.programs.abstract_state).items()}
        result[key] = {"cut": cut}
        continue
    state, first = losses(exp, exp.programs.initialise(), range(1))
    leaves = flatten(exp.programs.stored(state))
    if mesh == "single":
        alone = {n: np.asarray(v) for n, v in leaves.items()}
    worst = max(np.abs(np.asarray(v) - alone[n]).max() / max(np.abs(alone[n]).max(), 1e-6)
                for n, v in leaves.items() if "/mu/" in n)
    state, more = losses(exp, state, range(1, 3))
    store = stores[key] = Checkpoints(pathlib.Path(folder) / key)
    meta = {"shapes": shapes(exp.programs.abstract_state)}
    store.save(exp.programs.stored(state), Progress(step=3, position=24), meta)
    store.close()
    if key in resumed:
        state = store.restore(stores[f"{model}/{resumed[key]}"].find("last"), exp.programs.abstract_state)
        state = exp.programs.carried(state)
    state, last = losses(exp, state, range(3, 5))
    columns = exp.dataset.splits["validation"]
    evaluator = Evaluator(exp.programs, exp.dataset.batches, columns, config, prefix="val")
    scored = evaluator(exp.programs.evaluation_weights(state), {})
    result[key] = {"losses": [*first, *more, *last], "gradients": float(worst), "validation": scored["val/loss"],
                   "devices": exp.programs.mesh.size,
                   "cut": {n: v.sharding.shard_shape(v.shape) for n, v in flatten(exp.programs.stored(state)).items()}}
config = bigctl.compose(["recipe=mlp_cls", "data=breast_cancer", "model.hidden=[256,256]", "mesh=data",
                         "train.batch_size=64", "train.compile_cache=false"])
result["report"] = dry_run.report(config)
print(json.dumps(result))
"""


def trained(
    folder: Path,
    runs: list[str],
    resumed: dict[str, str],
    untrained: Sequence[str] = (),
    models: dict[str, list[str]] = MODELS,
    meshes: dict[str, list[str]] = MESHES,
) -> dict[str, Any]:
    """What becomes of these "model/mesh"; those in `resumed` go on with the checkpoint of another mesh of the same. Of
    those in `untrained` it is only said how their arrays are cut."""
    chosen = {key: models[key.split("/")[0]] for key in runs}
    quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    return on_eight_devices(_TRAIN, json.dumps([str(folder), chosen, meshes, resumed, untrained]), flags=quick)


def same(found: dict[str, Any], model: str) -> None:
    alone = found[f"{model}/single"]
    assert alone["devices"] == 1 and len(set(alone["losses"])) == 5
    for key, run in found.items():
        if key.startswith(f"{model}/") and "losses" in run and run is not alone:
            assert run["devices"] == 8, key
            np.testing.assert_allclose(run["losses"], alone["losses"], rtol=1e-5, err_msg=key)
            assert run["gradients"] < 2e-5, key
            assert run["validation"] == pytest.approx(alone["validation"], rel=1e-5), key


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    runs = ["llama/single", "llama/tensor", "llama/fsdp_tensor"]
    resumed = {"llama/fsdp_tensor": "single"}
    return trained(tmp_path_factory.mktemp("tensor"), runs, resumed, untrained=["llama/tensor"])


def test_layers_that_are_cut_give_the_losses_of_one_device(found: dict[str, Any]) -> None:
    """5 losses, those after the third with the checkpoint of another mesh; gradients; the validation loss. With Muon,
    which makes matrices orthogonal as a whole."""
    same(found, "llama")


def test_a_device_holds_its_part_of_each_layer(found: dict[str, Any]) -> None:
    parts = {
        "attention/query/kernel": ([32, 8], [8, 16]),
        "attention/key/kernel": ([32, 4], [8, 8]),
        "attention/output/kernel": ([8, 32], [16, 8]),
        "gate/kernel": ([32, 16], [8, 32]),
        "down/kernel": ([16, 32], [32, 8]),
    }
    everywhere = {f"layers/0/{name}": part for name, part in parts.items()}
    by_adam = {"token/embedding": ([96, 32], [192, 8]), "head/kernel": ([32, 96], [8, 192])}
    for mesh, number in (("tensor", 0), ("fsdp_tensor", 1)):
        cut = found[f"llama/{mesh}"]["cut"]
        for name, part in {**everywhere, **by_adam}.items():
            places = [place for place in cut if place.endswith(name)]
            assert len(places) == (4 if name in by_adam else 3), name  # the parameter, its average, its moments
            assert all(cut[place] == part[number] for place in places), name


def test_a_dry_run_tells_what_all_devices_compute_together(found: dict[str, Any]) -> None:
    report = found["report"]
    assert report["devices"]["count"] == 8
    assert 1 < report["flops_per_step"] / (6 * 64 * report["parameters"]) < 2


@pytest.mark.slow
def test_every_mesh_gives_the_losses_of_one_device_to_every_decoder(tmp_path: Path) -> None:
    runs = [f"{model}/{mesh}" for model in MODELS for mesh in MESHES]
    found = trained(tmp_path, runs, {"llama/tensor": "fsdp", "gpt/tensor": "data", "gpt/fsdp_tensor": "fsdp"})
    same(found, "llama")
    same(found, "gpt")

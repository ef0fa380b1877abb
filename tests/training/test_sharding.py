"""Any mesh trains the same model: on 8 simulated devices, in processes of their own, compared with one device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import bigctl
from bigctl.engine import experiment
from bigctl.training.checkpoints.arrays import flatten
from bigctl.training.checkpoints.store import Checkpoints
from tests import forked
from tests.conftest import Cli

EIGHT = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}


def on_eight_devices(script: str, *arguments: str, flags: str = "") -> Any:
    """Run a script on 8 simulated devices, with further flags of XLA; gives the JSON it prints last."""
    checkout = str(Path(__file__).parents[2])  # a script may import from tests, wherever the test has gone
    quick = "1" if jax.config.read("jax_disable_most_optimizations") else "0"
    if quick == "1" and jax.__version__.startswith("0.10."):
        flags += f" --{forked.EMITTERS}=false --{forked.PARTS}=1"
    environment = {
        **os.environ, **EIGHT, "XLA_FLAGS": f"{EIGHT['XLA_FLAGS']} {flags}", "PYTHONPATH": checkout,
        "JAX_DISABLE_MOST_OPTIMIZATIONS": quick,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


RECIPES = {
    "cnn_cls": [
        "recipe=cnn_cls", "data=digits", "model.channels=[8]", "model.hidden=[16]", "model.dropout=0.3",
        "recipe.augment.crop=1", "recipe.augment.mixup=0.8", "recipe.augment.cutmix=1", "recipe.augment.erase=0.5",
    ],
    "resnet_cls": ["recipe=resnet_cls", "model.blocks=[1,1]", "model.width=4", "model.drop_path=0.2"],
    "vit_cls": [
        "recipe=vit_cls", "optimizer=adamw", "model.layers=2", "model.width=8", "model.intermediate=16",
        "model.drop_path=0.2",
    ],
    "speed_cls": ["recipe=speed_cls", "model.widths=[4,5]", "recipe.augment.flip=alternating"],
    "mlp_cls": ["recipe=mlp_cls", "data=breast_cancer", "model.hidden=[32,16]", "model.norm=batch"],
}  # fmt: skip
MESHES = {
    "single": ["mesh=single"],
    "data": ["mesh=data"],
    "fsdp": ["mesh=fsdp", "mesh.min_shard=1"],
    "mixed": ["mesh.data=2", "mesh.fsdp=4", "mesh.min_shard=1"],
    "tensor": ["mesh.tensor=2"],
}

_LOSSES = """
import json, sys
import jax, numpy as np
import bigctl
from bigctl.engine import experiment
from bigctl.training import feed as feeds
result = {}
for name, (overrides, mesh) in json.loads(sys.argv[1]).items():
    config = bigctl.compose([*overrides, *mesh, "train.batch_size=64", "train.steps=10"])
    exp = experiment.build(config)
    feed = feeds.make_feed(exp.programs, exp.dataset.batches, exp.dataset.splits["train"], config)
    state, sums = exp.programs.initialise(), [np.zeros(2)]
    for number in range(10):
        state, _ = feed.advance(state, number * 64, 1)
        sums.append(np.asarray(jax.device_get(state.sums["loss"]), np.float64))
    sharded = sum(len({str(s.index) for s in leaf.addressable_shards}) > 1 for leaf in jax.tree.leaves(state.params))
    steps = np.diff(sums, axis=0)
    result[name] = {"losses": (steps[:, 0] / steps[:, 1]).tolist(), "devices": exp.programs.mesh.size,
                    "sharded": sharded}
print(json.dumps(result))
"""


def assert_meshes_agree(recipes: dict[str, tuple[list[str], list[str]]]) -> None:
    """The first 10 losses of recipes, each (overrides, meshes), to 1e-5 of their value on one device."""
    runs = {
        f"{recipe}/{mesh}": (overrides, MESHES[mesh])
        for recipe, (overrides, meshes) in recipes.items()
        for mesh in ("single", *meshes)
    }
    found = on_eight_devices(_LOSSES, json.dumps(runs))
    assert found.keys() == runs.keys()
    for name, run in found.items():
        recipe, mesh = name.split("/")
        alone = found[f"{recipe}/single"]
        assert len(set(alone["losses"])) == 10
        assert run["devices"] == (1 if mesh == "single" else 8), name
        assert (run["sharded"] > 0) == (mesh not in ("single", "data")), name
        np.testing.assert_allclose(run["losses"], alone["losses"], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    "meshes",
    [
        {"mlp_cls": ["fsdp"], "cnn_cls": ["mixed"]},
        pytest.param({"mlp_cls": ["data", "mixed"]}, marks=pytest.mark.slow),
        pytest.param({"cnn_cls": ["data", "fsdp"]}, marks=pytest.mark.slow),
        pytest.param({"resnet_cls": ["mixed"]}, marks=pytest.mark.slow),
        pytest.param({"speed_cls": ["mixed"]}, marks=pytest.mark.slow),
        pytest.param({"vit_cls": ["mixed", "tensor"]}, marks=pytest.mark.slow),
    ],
    ids=lambda meshes: "-".join(meshes),
)
def test_every_mesh_gives_the_losses_of_one_device(meshes: dict[str, list[str]]) -> None:
    """Dropout, augmentation and batch statistics included."""
    assert_meshes_agree({recipe: (RECIPES[recipe], names) for recipe, names in meshes.items()})


_DRAWS = """
import json
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from bigctl import randomness
from bigctl.config.schema import Augment
from bigctl.data.augmentation import pipeline
config = Augment(random_resized_crop=0.3, rotate=20, flip="both", crop=2, brightness=0.3, hue=0.2, erase=0.5,
                 erase_fill="noise", policy="trivialaugment", mixup=0.4, cutmix=1.0)
images = np.random.default_rng(0).integers(0, 256, (32, 12, 12, 3)).astype(np.uint8)
mesh = Mesh(np.array(jax.devices()), ("data",))
def change(images, key, numbers):
    images = pipeline.augment(images, config, key, numbers, None, (0.5,) * 3, (0.2,) * 3)
    return pipeline.mix(images, config, key, numbers, numbers >= 0)
found = []
for where in (jax.devices()[0], NamedSharding(mesh, PartitionSpec("data"))):
    key, numbers = randomness.key(0, randomness.AUGMENTATION, 5), np.arange(32, dtype=np.int32)
    result = jax.jit(change)(jax.device_put(images, where), key, jax.device_put(numbers, where))
    found.append([np.asarray(each) for each in result] + [len(result[0].sharding.device_set)])
(one, share, single), (eight, shares, several) = found
off = np.abs(one - eight)
print(json.dumps({"devices": [single, several], "shares": float(np.abs(share - shares).max()),
                  "mixed": int((share < 1).sum()), "same": float((off < 1e-2).mean()), "largest": float(off.max())}))
"""


def test_augmentation_draws_the_same_on_eight_devices() -> None:
    """All but the last bits of floats, which may round a number of a policy otherwise."""
    found = on_eight_devices(_DRAWS)
    assert found["devices"] == [1, 8] and found["shares"] < 1e-6 and found["mixed"] > 25
    assert found["same"] > 0.999 and found["largest"] < 3


LARGE = [
    "recipe=cnn_cls", "data=digits", "model=mlp", "model.hidden=[1024,1024]", "train.batch_size=64", "train.steps=10",
    "train.ema=0",
]  # fmt: skip

_MEMORY = """
import json, pathlib, re, sys
import jax, numpy as np
import bigctl
from bigctl.engine import experiment
from bigctl.training import feed as feeds
from bigctl.training.checkpoints.arrays import flatten, shapes
from bigctl.training.checkpoints.store import Checkpoints
from bigctl.training.state import Progress
overrides, folder = json.loads(sys.argv[1])
config = bigctl.compose([*overrides, "mesh=fsdp"])
exp = experiment.build(config)
programs = exp.programs
make = programs.make_state.lower(np.int64(config.seed), {}, {}).compile()
plan = make.memory_analysis()
state = programs.initialise()
def bytes_on_first(tree):
    first = jax.devices()[0]
    return sum(s.data.nbytes for leaf in jax.tree.leaves(tree) for s in leaf.addressable_shards if s.device == first)
def all_bytes(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
held = {"new": bytes_on_first((state.params, state.opt_state)), "all": all_bytes((state.params, state.opt_state))}
feed = feeds.make_feed(programs, exp.dataset.batches, exp.dataset.splits["train"], config)
for number in range(3):
    state, _ = feed.advance(state, number * 64, 1)
held["trained"] = bytes_on_first((state.params, state.opt_state))
progress = Progress(step=3, position=192)
store = Checkpoints(pathlib.Path(folder) / "checkpoints")
store.save(state, progress, {"shapes": shapes(programs.abstract_state)})
store.close()
np.savez(folder + "/state.npz", **{name.replace("/", "|"): np.asarray(leaf) for name, leaf in flatten(state).items()})
largest = max(jax.tree.leaves(state.params), key=lambda leaf: leaf.size)
print(json.dumps({**held, "temporary": plan.temp_size_in_bytes, "output": plan.output_size_in_bytes,
                  "largest": list(largest.shape),
                  "shapes": sorted(set(re.findall(r"[a-z]+[0-9]*\\[([0-9,]+)\\]", make.as_text())))}))
"""


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("sharded")
    return on_eight_devices(_MEMORY, json.dumps([LARGE, str(folder)])), folder


def test_a_device_holds_its_part_of_parameters_and_optimizer_state(sharded: Any) -> None:
    found, _ = sharded
    assert found["all"] > 3 * 4 * 1024 * 1024  # parameters and two moments
    for when in ("new", "trained"):
        assert found[when] <= found["all"] / 6, when


def test_initialisation_never_holds_a_whole_parameter_on_one_device(sharded: Any) -> None:
    """The compiled program of each device has no array, temporary ones included, as large as the largest parameter."""
    found, _ = sharded
    sizes = [int(np.prod([int(side) for side in shape.split(",")])) for shape in found["shapes"]]
    whole = int(np.prod(found["largest"]))
    assert whole == 1024 * 1024
    assert whole // 8 in sizes  # the program was really read
    assert max(sizes) < whole
    assert found["output"] <= found["all"] / 6 + 4096
    assert found["temporary"] < whole * 4


def test_a_checkpoint_of_eight_devices_is_restored_on_one(sharded: Any) -> None:
    _, folder = sharded
    programs = experiment.build(bigctl.compose([*LARGE, "mesh=single"])).programs
    store = Checkpoints(folder / "checkpoints")
    saved = store.find("last")
    assert saved.progress.step == 3
    state = flatten(store.restore(saved, programs.abstract_state))
    expected = np.load(folder / "state.npz")
    assert {name.replace("/", "|") for name in state} == set(expected.files)
    for name, leaf in state.items():
        assert leaf.sharding.device_set == set(programs.mesh.devices.flat), name
        np.testing.assert_array_equal(np.asarray(leaf), expected[name.replace("/", "|")], err_msg=name)
    weights = flatten(store.restore_weights(saved, programs.weights, averaged=False))
    assert weights.keys() == {name for name in state if name.startswith(("params/", "variables/"))}
    for name, leaf in weights.items():
        assert leaf.sharding == state[name].sharding, name
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(state[name]), err_msg=name)


def test_a_batch_that_devices_cannot_share_is_refused_before_jax_starts(bigctl: Cli) -> None:
    (bigctl.folder / "trap").mkdir()
    (bigctl.folder / "trap" / "jax.py").write_text("raise SystemExit(99)\n")
    done = bigctl(
        "train", "recipe=mlp_cls", "data=breast_cancer", "train.batch_size=12", code=2,
        env={**EIGHT, "PYTHONPATH": str(bigctl.folder / "trap")},
    )  # fmt: skip
    assert "train.batch_size=12" in done.stderr and "8 devices" in done.stderr
    assert not (bigctl.folder / "runs").exists() or not any((bigctl.folder / "runs").iterdir())


_REFUSED = """
import contextlib, io, json, sys
from bigctl.cli.main import main
result = []
for overrides in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as told:
        result.append([main(["train", "recipe=mlp_cls", "data=breast_cancer", *overrides]), told.getvalue()])
print(json.dumps(result))
"""
_MISFITS = [
    (["train.batch_size=12"], ["train.batch_size=12", "8 devices"]),
    (["train.batch_size=48", "mesh.data=16"], ["needs 16 devices, there are 8"]),
    (["train.batch_size=48", "mesh.data=-1", "mesh.fsdp=3"], ["8 devices cannot be shared evenly by 3"]),
]


def test_what_does_not_fit_devices_that_only_jax_knows_is_refused(tmp_path: Path) -> None:
    """Batches that they cannot share, and meshes."""
    plain = {**os.environ, "XLA_FLAGS": "", "JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    environment = {**plain, **forked.flags(plain)}
    given = json.dumps([overrides for overrides, _ in _MISFITS])
    command = [sys.executable, "-c", _REFUSED, given]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    for (code, told), (_, messages) in zip(json.loads(done.stdout.splitlines()[-1]), _MISFITS, strict=True):
        assert code == 2 and all(message in told for message in messages) and "Traceback" not in told
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())

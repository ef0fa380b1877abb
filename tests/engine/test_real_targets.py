"""Programs that are compiled for H100s and TPU slices themselves, where the extras of `bigctl plan` are installed."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.slow
NANO = [
    "recipe=gpt_lm",
    "model=nano",
    "model.vocab=50257",
    "optimizer=adamw",
    "mesh=fsdp",
    "train.batch_size=64",
    "train.precision=bfloat16",
]
_GPU = ("jax_cuda12_plugin", "plan-gpu")
NEEDS = {"h100:1": _GPU, "h100:8": _GPU, "v5e-4x4": ("libtpu", "plan-tpu")}


NETWORKS = ("resnet_cls", "resnet_cls model=resnet18", "cnn_cls", "vit_cls", "speed_cls", "mlp_cls")


def plan(target: str, *words: str) -> dict[str, Any]:
    """Asked in a process of its own: a failed check of XLA's compiler would end this one."""
    package, extra = NEEDS[target]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"bigctl[{extra}] is not installed")
    command = [sys.executable, "-m", "bigctl", "plan", *words, "--target", target, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    found = json.loads(done.stdout)
    assert found["exact"] and not found["notes"]
    return dict(found)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("network", NETWORKS)
def test_the_step_of_a_network_is_compiled(network: str, precision: str) -> None:
    """XLA's compiler failed a check of its own at the shortcut of a residual network (jax 0.10.2 and 0.11.2)."""
    data = () if network == "mlp_cls" else ("data=digits",)
    plan("h100:1", *f"recipe={network}".split(), *data, f"train.precision={precision}", "train.batch_size=16")


@pytest.mark.parametrize("deterministic", ["true", "false"])
def test_layers_attend_by_cudnn(deterministic: str) -> None:
    assert plan("h100:1", *NANO, f"train.deterministic={deterministic}")["kernels"] == {"attention": "cudnn"}


@pytest.mark.parametrize("target", ["h100:8", "v5e-4x4"])
def test_a_step_is_compiled_for_the_target_itself(target: str) -> None:
    found = plan(target, *NANO, "model.tied=true")
    assert found["kernels"]["attention"] == ("cudnn" if target.startswith("h100") else "xla")
    gathered = [each for each in found["collectives"] if each["kind"] == "all-gather"]
    assert gathered and {each["dtype"] for each in gathered} == {"bf16"}
    in_float32 = sum(each["bytes"] for each in found["collectives"] if each["dtype"] == "f32")
    assert in_float32 < 0.05 * sum(each["bytes"] for each in found["collectives"])
    # In bfloat16 all parameters are gathered twice and their gradients added up once, at most: of the tied table the
    # sum of its two. libtpu has no reduce-scatter over both axes of a slice: its all-reduce sends twice as much.
    sent, shards = sum(each["bytes"] for each in found["collectives"]), found["devices"]
    assert sent <= 1.15 * 3 * 2 * found["parameters"] * (shards - 1) / shards
    if target.startswith("h100"):
        assert {each["dtype"] for each in found["collectives"] if each["kind"] == "reduce-scatter"} == {"bf16"}
    assert 0 < found["memory"]["peak_bytes"] < found["memory"]["available_bytes"]


MESHES = """
import json, sys
from bigctl.planning import devices
devices.prepare_environment()
import bigctl
from bigctl.engine.plan import target_of
from bigctl.errors import ConfigError
from bigctl.parallel import axes, mesh

found = devices.find(target_of(sys.argv[1]))
assert found.exact
with mesh.over(found.devices):
    try:
        made = mesh.make_mesh(bigctl.compose(["recipe=gpt_lm", "mesh=single", "train.batch_size=1536", *sys.argv[2:]]).mesh)
        near = [{getattr(device, "slice_index", 0) for device in part.flat} for part in made.devices]
        print(json.dumps({"sizes": dict(made.shape), "devices": len(set(made.devices.flat)), "in one slice": [len(s) == 1 for s in near]}))
    except ConfigError as error:
        print(json.dumps({"refused": error.message, "hint": error.hint}))
"""  # noqa: E501


@pytest.mark.parametrize(
    ("target", "sizes"),
    [
        ("v5p-4x4x4", {"fsdp": 32, "tensor": 2}),
        ("v6e-256", {"fsdp": 128, "tensor": 2}),
        ("v6e-256:slices=2", {"dcn": 2, "data": 256}),
        ("v6e-256:slices=2", {"dcn": 2, "fsdp": 64, "tensor": 4}),
        ("v6e-256:slices=2", {"dcn": 4, "fsdp": 128}),
    ],
)
def test_an_axis_lies_along_a_part_of_a_torus_and_in_one_slice(target: str, sizes: dict[str, int]) -> None:
    found = made_mesh(target, *(f"mesh.{name}={size}" for name, size in sizes.items()))
    assert {name: size for name, size in found["sizes"].items() if size > 1} == sizes
    assert found["devices"] == math.prod(sizes.values()) and all(found["in one slice"])


@pytest.mark.parametrize(
    ("target", "mesh", "said", "hint"),
    [
        ("v6e-256:slices=2", "mesh.fsdp=-1", "a mesh of 512 devices does not lie in 2 slices of 256", "mesh.dcn=2"),
        ("v5e-4", "mesh.data=3", "3 of 4 TPUs make no block", "or 2 devices"),
        ("v5e-8", "mesh.fsdp=6", "6 of 8 TPUs make no block", "or 4 devices"),  # libtpu ends the process at its program
    ],
)
def test_a_mesh_that_a_slice_cannot_hold_is_refused(target: str, mesh: str, said: str, hint: str) -> None:
    found = made_mesh(target, mesh)
    assert said in found["refused"] and hint in found["hint"]


def made_mesh(target: str, *words: str) -> dict[str, Any]:
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("bigctl[plan-tpu] is not installed")
    done = subprocess.run([sys.executable, "-c", MESHES, target, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(done.stdout))

"""Programs that are compiled for H100s and TPU slices themselves, where the extras of `bigctl plan` are installed."""

from __future__ import annotations

import importlib.util
import json
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

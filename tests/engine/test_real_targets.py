"""Programs that are compiled for H100s and TPU slices themselves, where the extras of `bigctl plan` are installed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

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
NEEDS = {"h100:8": ("jax_cuda12_plugin", "plan-gpu"), "v5e-4x4": ("libtpu", "plan-tpu")}


@pytest.mark.parametrize("target", NEEDS)
def test_a_step_is_compiled_for_the_target_itself(target: str) -> None:
    package, extra = NEEDS[target]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"bigctl[{extra}] is not installed")
    command = [sys.executable, "-m", "bigctl", "plan", *NANO, "--target", target, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["exact"] and not found["notes"]
    assert found["kernels"]["attention"] == ("cudnn" if target.startswith("h100") else "xla")
    gathered = [each for each in found["collectives"] if each["kind"] == "all-gather"]
    assert gathered and {each["dtype"] for each in gathered} == {"bf16"}
    in_float32 = sum(each["bytes"] for each in found["collectives"] if each["dtype"] == "f32")
    assert in_float32 < 0.05 * sum(each["bytes"] for each in found["collectives"])
    if target.startswith("h100"):  # libtpu adds up the table's gradient with all-reduces
        sent, shards = sum(each["bytes"] for each in found["collectives"]), found["devices"]
        assert (
            sent <= 1.15 * 3 * 2 * found["parameters"] * (shards - 1) / shards
        )  # bfloat16: gathered twice, added once
        assert {each["dtype"] for each in found["collectives"] if each["kind"] == "reduce-scatter"} == {"bf16"}
    assert 0 < found["memory"]["peak_bytes"] < found["memory"]["available_bytes"]

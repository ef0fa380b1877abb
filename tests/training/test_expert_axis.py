"""Experts on meshes with an expert axis train as on one device: on 8 simulated devices, in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bigctl.config import compose
from bigctl.errors import ConfigError
from tests.training import test_tensor as meshed

SIZES = [*meshed.SIZES, "model=llama", "model.kv_heads=4", "model.experts=4", "model.load_balance_loss=0.1"]
MODELS = {
    "dropless": [*SIZES, "optimizer=adamw"],
    "capacity": [*SIZES, "model.capacity_factor=0.9", "optimizer=adamw"],
    "biases": [*SIZES, "model.bias=true", "model.activation=gelu", "model.scan=true", "model.remat=full",
               "model.experts_per_token=1", "optimizer=muon_lm", "optimizer.iterations=2"],
}  # fmt: skip
MESHES = {
    "single": ["mesh=single"],
    "fsdp_expert": ["mesh=single", "mesh.expert=2", "mesh.fsdp=2", "mesh.data=2"],
    "tensor_expert": ["mesh=single", "mesh.expert=4", "mesh.tensor=2"],
}


def trained(folder: Path, runs: list[str]) -> dict[str, Any]:
    return meshed.trained(folder, runs, {}, models=MODELS, meshes=MESHES)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return trained(tmp_path_factory.mktemp("expert"), ["dropless/single", "dropless/fsdp_expert"])


def test_experts_that_are_shared_out_give_the_losses_of_one_device(found: dict[str, Any]) -> None:
    """Losses, gradients, the validation loss."""
    meshed.same(found, "dropless")


def test_a_device_holds_some_of_the_experts(found: dict[str, Any]) -> None:
    cut = found["dropless/fsdp_expert"]["cut"]
    parts = {"up/kernel": [2, 32, 32], "down/kernel": [2, 32, 32], "router/kernel": [16, 4]}
    for name, part in parts.items():
        places = {place: cut[place] for place in cut if place.endswith(f"layers/0/experts/{name}")}
        assert len(places) == 4 and all(found == part for found in places.values()), places  # with moments and average


@pytest.mark.slow
def test_a_capacity_and_biases_give_the_losses_of_one_device_with_a_tensor_axis_too(tmp_path: Path) -> None:
    found = trained(
        tmp_path, [f"{model}/{mesh}" for model in ("capacity", "biases") for mesh in ("single", "tensor_expert")]
    )
    meshed.same(found, "capacity")
    meshed.same(found, "biases")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["model=llama_tiny", "model.experts=4", "mesh.expert=8"], "model.experts=4 cannot be shared out over"),
        (["model=llama_tiny", "model.experts=6", "mesh.expert=4"], "such as mesh.expert=3"),
        (["model=llama_tiny", "mesh.expert=2"], "models of experts, this one has none"),
        (["recipe=cnn_cls", "mesh.expert=2"], "models of experts, model=cnn has none"),
        (["model=llama_tiny", "model.experts=2", "model.experts_per_token=3"], "is more than model.experts=2"),
        (["model=llama_tiny", "model.capacity_factor=1"], "is for models of experts"),
    ],
)  # fmt: skip
def test_what_cannot_be_shared_out_is_said_with_what_can(options: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        compose.compose([*(["recipe=gpt_lm"] if "recipe=cnn_cls" not in options else []), *options])
    assert said in f"{error.value}"

"""Promises of `bigctl.optim.owned`: each matrix is made orthogonal on one device; compiled for 8 simulated ones."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import bigctl
from bigctl.optim.muon import MuonState, scale_by_muon
from bigctl.parallel import mesh as meshes
from bigctl.parallel import partition
from bigctl.planning import collectives, devices, hlo, roofline

SHAPES = {"query": (64, 64), "output": (64, 64), "up": (64, 128), "down": (128, 64)}
TREE = {
    "layers": {str(i): {name: {"kernel": jax.ShapeDtypeStruct(shape, np.float32)} for name, shape in SHAPES.items()}
               for i in range(4)}
}  # fmt: skip


def compiled(mesh_name: str, count: int) -> tuple[hlo.Module, dict[str, int]]:
    """Muon's update of 16 matrices on so many devices."""
    rule = scale_by_muon(0.95, 2)
    config = bigctl.compose(["recipe=mlp_cls", mesh_name]).mesh
    with meshes.over(devices.simulated(count)):
        mesh = meshes.make_mesh(config)
    placed = partition.shardings(mesh, TREE, 64)
    tree = jax.tree.map(lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), TREE, placed)
    count_placed = NamedSharding(mesh, PartitionSpec())
    state = MuonState(jax.ShapeDtypeStruct((), np.int32, sharding=count_placed), tree)

    def update(updates: Any, state: MuonState) -> Any:
        if mesh.size == 1:
            return rule.update(updates, state)
        with meshes.used(mesh), partition.placing(partition.Rules(dict(mesh.shape), 64)):
            return rule.update(updates, state)

    step = jax.jit(update, out_shardings=(placed, MuonState(count_placed, placed)))
    return hlo.parse(step.lower(tree, state).compile().as_text()), dict(mesh.shape)


@pytest.fixture(scope="module")
def alone() -> float:
    found = roofline.computed(compiled("mesh=single", 1)[0])
    assert found
    return found


@pytest.mark.parametrize(("mesh", "sent"), [("mesh=fsdp", {"all-to-all"}), ("mesh=data", {"all-gather"})])
def test_no_device_repeats_what_another_computes(mesh: str, sent: set[str], alone: float) -> None:
    """Operations of all devices are at most 1.1 times those of one; matrices that are cut are never gathered."""
    module, shape = compiled(mesh, 8)
    found = roofline.computed(module)
    assert found and 0.9 < 8 * found / alone <= 1.1
    assert {each.kind for each in collectives.collectives(module, shape) if each.bytes > 1024} == sent

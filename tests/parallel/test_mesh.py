"""What is refused of a mesh, and where slices lie in it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from jax.sharding import Mesh

from bigctl.config.compose import compose
from bigctl.errors import ConfigError
from bigctl.parallel import axes
from bigctl.parallel import mesh as meshes
from bigctl.planning import devices


@pytest.mark.parametrize(
    ("batch", "parts", "said", "hint"),
    [
        (10, 1, "train.batch_size=10 cannot be divided evenly over 4 devices", "a multiple of 4, such as 8 or 12"),
        (8, 4, "train.batch_size=8 in 4 parts cannot be divided evenly over 4 devices", "a multiple of 16, such as 16"),
    ],
)
def test_a_batch_that_devices_cannot_share_is_refused_with_sizes_that_they_can(
    batch: int, parts: int, said: str, hint: str
) -> None:
    sizes = {**dict.fromkeys(axes.NAMES, 1), "data": 4}
    mesh = Mesh(np.array(devices.simulated(4)).reshape(*sizes.values()), axes.NAMES)
    with pytest.raises(ConfigError, match=said) as caught:
        meshes.check_batch(mesh, batch, parts)
    assert hint in str(caught.value.hint)
    meshes.check_batch(mesh, 16, 4)


def machine(slices: int, each: int, platform: str = "tpu") -> list[Any]:
    """Devices of several slices, in an order that goes from one slice to the other."""
    return [SimpleNamespace(id=i, slice_index=i % slices, platform=platform) for i in range(slices * each)]


def test_each_part_of_the_dcn_axis_lies_in_one_slice() -> None:
    for count, needed in ((2, 16), (4, 16), (2, 8)):
        found = meshes._slices(machine(2, 8), count, needed)
        assert [len(own) for own in found] == [needed // count] * count
        assert all(len({device.slice_index for device in own}) == 1 for own in found)
        assert len({device.id for own in found for device in own}) == needed


def test_a_dcn_axis_that_is_not_that_of_the_machine_is_refused_with_the_one_that_is() -> None:
    for count, needed in ((3, 12), (2, 32)):
        with pytest.raises(ConfigError, match=f"mesh.dcn={count} slices of {needed // count} devices") as caught:
            meshes._slices(machine(2, 8), count, needed)
        assert "mesh.dcn=2" in str(caught.value.hint)


def test_without_a_dcn_axis_a_mesh_lies_in_one_slice_of_a_tpu_or_goes_over_hosts_of_gpus() -> None:
    (found,) = meshes._slices(machine(2, 8), 1, 8)
    assert [device.slice_index for device in found] == [0] * 8
    with pytest.raises(ConfigError, match="a mesh of 16 devices does not lie in 2 slices of 8") as caught:
        meshes._slices(machine(2, 8), 1, 16)
    assert "mesh.dcn=2" in str(caught.value.hint)
    (found,) = meshes._slices(machine(2, 8, "gpu"), 1, 16)
    assert [device.id for device in found] == list(range(16))


def test_devices_without_slices_are_shared_out_in_their_order() -> None:
    devices = [SimpleNamespace(id=i) for i in range(8)]
    assert [[d.id for d in own] for own in meshes._slices(devices, 2, 8)] == [[0, 1, 2, 3], [4, 5, 6, 7]]  # type: ignore[arg-type]


def test_activations_are_put_in_the_host_s_memory_only_where_there_is_some_that_devices_reach() -> None:
    config = compose(["recipe=vit_cls", "model.remat=offload"]).config
    sizes = dict.fromkeys(axes.NAMES, 1)

    def mesh(*kinds: str) -> Any:
        memories = [SimpleNamespace(kind=kind) for kind in kinds]
        device = SimpleNamespace(device_kind="Abacus", addressable_memories=lambda: memories)
        return SimpleNamespace(shape=sizes, devices=np.array([device]))

    meshes.check_model(mesh("device", "pinned_host"), config)
    with pytest.raises(ConfigError, match="Abacus reaches no pinned memory") as caught:
        meshes.check_model(mesh("device"), config)
    assert "model.remat=names" in str(caught.value.hint)

"""A few cells of the table that scripts/mesh_matrix.py prints: a step on many devices equals one device's."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

_spec = importlib.util.spec_from_file_location(
    "mesh_matrix", Path(__file__).resolve().parents[2] / "scripts" / "mesh_matrix.py"
)
assert _spec is not None and _spec.loader is not None
matrix: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(matrix)


def test_the_table_has_every_set_of_axes() -> None:
    found = [mesh for count in (8, 16, 32) for mesh in matrix.meshes(count)]
    sets = {frozenset(size.split("=")[0] for size in mesh.split()) for mesh in found}
    assert len(found) == len(sets) == 2 ** len(matrix.AXES) - 1
    more = matrix.meshes(32, more=True)
    assert "data=4 fsdp=2 tensor=2 context=2" in more and len(more) == len(set(more)) == 26


@pytest.mark.slow
def test_all_axes_on_32_devices_with_accumulation_remat_and_scan_equal_one_device() -> None:
    mesh = "data=2 fsdp=2 tensor=2 context=2 expert=2"
    assert 0 < matrix.in_process(32, [mesh], ["all"])[mesh]["all"] <= matrix.LIMIT

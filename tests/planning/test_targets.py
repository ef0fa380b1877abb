"""Targets are known by their names; of one that there is not close ones are told."""

from __future__ import annotations

import pytest

from bigctl.errors import ConfigError
from bigctl.planning import targets
from bigctl.planning.targets import CHIPS, Chip

CPU = Chip("cpu", "cpu", 1e11, 1e11, 2**30, 1e10, 1e9, 1e9)
KNOWN = {
    "h100:8": (8, 8, "1x8x1"),
    "H100:8x2": (16, 8, "2x8x1"),
    "a100": (1, 1, "1x1x1"),
    "v5e-16": (16, 16, "v5e:4x4"),
    "v5e-16x16": (256, 256, "v5e:16x16"),
    "v5p-8x16x16": (2048, 2048, "v5p:8x16x16"),
    "v4-4x4x12": (192, 192, "v4:4x4x12"),
    "v6e-256:slices=2": (512, 256, "v6e:16x16"),
    "cpu:8": (8, 8, None),
}
WRONG = {
    "h1000:8": "h100",
    "v5:16": "v5e",
    "h100:16": "8x2",
    "v5e-17": "v5e-16",
    "v5e-2x2x2": "v5e-4x4",
    "v6e-256:slices=none": "slices=2",
    "h100:8:slices=2": "slices are of TPUs",
    "": "targets are",
    "cpu:0": "4,096",
    "v5e-999999999x2": "v5e-16x16",
    "v5e-16x15": "v5e-16x16",
    "v5e-4x2": "v5e-2x4",
    "v5p-16x8x16": "v5p-8x16x16",
    "v5p-2x4x8": "v5p-2x4x4 and v5p-4x4x4",
    "v5p-64x64x64": "4,096",
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_target_has_devices_some_of_them_near(name: str) -> None:
    target = targets.parse(name, CPU)
    devices, near, topology = KNOWN[name]
    assert (target.devices, target.near) == (devices, near)
    assert topology is None or target.topology == topology


@pytest.mark.parametrize("name", WRONG)
def test_a_target_that_there_is_not_is_refused_with_close_ones(name: str) -> None:
    with pytest.raises(ConfigError) as raised:
        targets.parse(name, CPU)
    assert raised.value.where == "--target" and WRONG[name] in str(raised.value)


@pytest.mark.parametrize(
    ("name", "devices", "larger"),
    [
        ("h100", 3, "h100:4"), ("h100:8", 8, "h100:8"), ("a100:8", 9, "a100:8x2"), ("h100:1", 200, "h100:8x25"),
        ("v5e-4", 5, "v5e-8"), ("v5e-4", 300, "v5e-256:slices=2"), ("v5e-4", 5000, None),
        ("v5p-8", 300, "v5p-512"), ("cpu:2", 4, None),
    ],
)  # fmt: skip
def test_the_next_larger_machine_is_named_and_there(name: str, devices: int, larger: str | None) -> None:
    assert targets.of_at_least(targets.parse(name, CPU), devices) == larger
    if larger is not None:
        assert targets.parse(larger, CPU).devices >= devices


def test_peaks_are_positive_and_16_bits_are_no_slower() -> None:
    for chip in CHIPS.values():
        assert chip.bfloat16 >= chip.float32 > chip.bandwidth > chip.near > chip.far > 0 and chip.memory > 2**33

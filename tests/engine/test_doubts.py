"""Promises of `bigctl.engine.doubts`: what does nothing is told, and nothing is told of what works."""

from __future__ import annotations

from pathlib import Path

import pytest

import bigctl
from bigctl.data.dataset import Features
from bigctl.engine import doubts, dry_run

NAMES = ("a", "b")


def notes(*keys: str, side: int = 32) -> list[str]:
    features = Features("image", (side, side, 3), NAMES, mean=(0.5,) * 3, std=(0.2,) * 3)
    return list(doubts.notes(bigctl.compose(["recipe=resnet_cls", "recipe.augment.crop=0", *keys]), features))


@pytest.mark.parametrize(
    ("idle", "beside"),
    [
        ("mixup=0.2 mix=0", "mix=0.5"), ("operations=3", "policy=randaugment"), ("magnitude=4", "policy=randaugment"),
        ("erase_area=0.2", "erase=0.5"), ("erase_fill=mean", "erase=0.5"), ("mix=0.5", "mixup=0.2"),
        ("mix=0.5", "cutmix=1"), ("grow=0.5", "sizes=[16]"),
    ],
)  # fmt: skip
def test_a_key_without_effect_is_told_until_it_has_one(idle: str, beside: str) -> None:
    name, keys = idle.partition("=")[0], [f"recipe.augment.{key}" for key in idle.split()]
    (found,) = notes(*keys)
    assert found.startswith(f"recipe.augment.{name} does nothing here: it is for ") and found.endswith(" alone")
    assert not notes(*keys, f"recipe.augment.{beside}")


def test_a_policy_that_moves_small_pictures_out_of_sight_is_told() -> None:
    policy = "recipe.augment.policy=trivialaugment"
    assert "moves pictures by up to 32 pixels" in notes(policy, side=8)[0]
    assert not notes(policy) and not notes("recipe.augment.policy=randaugment", side=8)


def test_a_size_that_arrays_do_not_take_is_told() -> None:
    assert "these stay 8x8" in notes("data=digits", "recipe.size=16", side=8)[0]
    assert not notes("data=image_folder", "data.path=x", "recipe.size=16", side=16)


def test_frozen_statistics_of_random_weights_are_told(tmp_path: Path) -> None:
    assert "nothing is normalised" in notes("model.norm=frozen")[0]
    assert not notes("model.norm=frozen", f"model.init_from={tmp_path}")
    small = ["recipe=resnet_cls", "data=digits", "model.blocks=[1]", "model.width=4"]
    report = dry_run.report(bigctl.compose([*small, "model.norm=frozen"]))
    assert any("nothing is normalised" in note for note in report["notes"])

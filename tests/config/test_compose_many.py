"""Experiments that differ in numbers are composed as each would be by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from bigctl.config import compose_many
from bigctl.config.compose import compose
from bigctl.errors import ConfigError

MLP = ["recipe=mlp_cls", "data=breast_cancer", "eval.every=10", "+experiment=null", "data.train=train[:90%]"]


def test_each_is_what_composing_it_alone_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [[*MLP, f"optimizer.lr={lr}", f"seed={seed}"] for lr in ("1e-3", "1", "5e-1") for seed in (0, 3)]
    points.insert(2, [*MLP, "model.hidden=[16]", "optimizer.lr=1e-3"])
    calls: list[list[str]] = []

    def counted(overrides: list[str], **more: object) -> object:
        calls.append(overrides)
        return compose(overrides)

    monkeypatch.setattr(compose_many, "compose", counted)
    found = compose_many.compose_all(points)
    assert calls == [points[0], points[2]], "the others are made of these"
    assert [each.overrides[-2:] for each in found] == [tuple(point[-2:]) for point in points]
    assert found[4] == compose(points[4]) and found[5] == compose(points[5]) and found[6] == compose(points[6])


def test_a_value_that_another_key_depends_on_is_composed_in_full(tmp_path: Path) -> None:
    preset = tmp_path / "optimizer" / "tied.yaml"
    preset.parent.mkdir()
    preset.write_text("defaults:\n  - adamw\n  - _self_\nweight_decay: ${optimizer.lr}\n")
    points = [[*MLP, "optimizer=tied", f"optimizer.lr={lr}"] for lr in (0.1, 0.2, 0.3)]
    found = compose_many.compose_all(points, config_dirs=[tmp_path])
    assert [each.config.optimizer.weight_decay for each in found] == [0.1, 0.2, 0.3]


def test_a_wrong_number_among_right_ones_is_told() -> None:
    points = [[*MLP, f"recipe.label_smoothing={value}"] for value in (0.1, 1.5, 0.2)]
    with pytest.raises(ConfigError, match="recipe.label_smoothing"):
        compose_many.compose_all(points)
    with pytest.raises(ConfigError, match="seed"):
        compose_many.compose_all([[*MLP, f"seed={value}"] for value in ("1", "0.5", "2")])


def test_a_length_is_settled_in_each() -> None:
    found = compose_many.compose_all([["recipe=mlp_cls", "train.steps=9", f"optimizer.lr={lr}"] for lr in (1, 2)])
    assert [each.config.train.steps for each in found] == [9, 9]
    with pytest.raises(ConfigError, match="two lengths"):
        compose_many.compose_all([["recipe=mlp_cls", "train.epochs=1", f"train.steps={n}"] for n in ("null", "2")])


def test_a_process_that_keeps_composes_the_next_of_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [[*MLP, f"optimizer.lr={lr}", f"seed={seed}"] for lr, seed in (("1e-3", 0), ("0.5", 1), ("0.25", 2))]
    alone = [compose(point) for point in points]
    calls: list[list[str]] = []

    def counted(overrides: list[str], **more: object) -> object:
        calls.append(overrides)
        return compose(overrides)

    monkeypatch.setattr(compose_many, "compose", counted)
    assert [compose_many.compose_next(point) for point in points] == alone and calls == points
    monkeypatch.setattr(compose_many, "_kept", None)  # as it was, after this test
    compose_many.keep()
    calls.clear()
    assert [compose_many.compose_next(point) for point in points] == alone and calls == points[:1]
    with pytest.raises(ConfigError, match="optimizer.lr"):
        compose_many.compose_next([*MLP, "optimizer.lr=fast", "seed=0"])

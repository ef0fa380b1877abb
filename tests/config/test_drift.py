"""Promises of `bigctl.config.drift`: what may differ when a run is resumed, and that every key says so."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from bigctl.config import schema
from bigctl.config.compose import compose, from_yaml, to_yaml
from bigctl.config.drift import (
    REFUSE,
    SURROUNDINGS,
    WARN,
    Change,
    Rule,
    changes,
    judge,
    judge_surroundings,
    table,
)
from bigctl.config.schema import FREE, STRUCTURAL, TRAJECTORY, Config
from bigctl.errors import RunError
from bigctl.runs import provenance


def config(**parts: Any) -> Config:
    groups: dict[str, Any] = {
        "recipe": schema.MlpCls(), "model": schema.Mlp(), "optimizer": schema.AdamW(), "schedule": schema.Cosine(),
        "data": schema.Packaged(name="x"), "mesh": schema.Mesh(), "train": schema.Train(steps=100),
    }  # fmt: skip
    return Config(**{**groups, **parts})


def found(**parts: Any) -> list[Change]:
    return changes(config(), config(**parts))


def keys() -> list[tuple[str, dataclasses.Field[Any], Any]]:
    every = list(schema.walk(Config))
    for component in schema.components():
        every += [(f"{component.__name__}.{dotted}", field, hint) for dotted, field, hint in schema.walk(component)]
    return every


# --- Every key declares itself ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "field", "hint"), keys(), ids=lambda part: part if isinstance(part, str) else "")
def test_every_key_declares_its_drift_and_its_meaning(name, field, hint):
    assert field.metadata["drift"] in (STRUCTURAL, TRAJECTORY, FREE)
    doc = field.metadata["doc"]
    assert doc.endswith(".") and doc[0].isupper() | doc[0].isdigit() and "\n" not in doc and len(doc) > 8
    assert isinstance(field.metadata["choices"], tuple)


def test_a_traced_number_is_a_number():
    traced = [(name, hint) for name, field, hint in keys() if field.metadata["traced"]]
    assert len(traced) > 5 and all(hint in (float, float | None) for _, hint in traced), traced


def test_every_component_has_a_kind_of_its_own():
    kinds = [(component.group_name, schema._kind_of(component)) for component in schema.components()]
    assert len(set(kinds)) == len(kinds) > 10
    for component in schema.components():
        assert schema.component(component.group_name, schema._kind_of(component)) is component
        assert "kind" in get_type_hints(component)


@pytest.mark.parametrize(
    ("drift", "dotted"),
    [
        (STRUCTURAL, ["Mlp.hidden", "Mlp.kind", "Cnn.channels", "AdamW.kind", "Packaged.name", "Packaged.split_seed"]),
        (STRUCTURAL, ["Csv.label", "GptLm.tokenizer.path", "Tfds.image_size", "train.ema", "Mlp.head"]),
        (STRUCTURAL, ["train.federated.clients", "train.federated.server"]),
        (TRAJECTORY, ["AdamW.lr", "AdamW.weight_decay", "Cosine.horizon", "Cosine.warmup", "train.batch_size", "seed"]),
        (TRAJECTORY, ["train.precision", "Mlp.dropout", "MlpCls.label_smoothing", "CnnCls.augment.rotate"]),
        (FREE, ["train.steps", "train.epochs", "train.log_every", "checkpoint.every", "checkpoint.keep", "Mesh.data"]),
        (FREE, ["Csv.path", "Csv.test_path", "Tokens.path", "ImageFolder.path", "Idx.path"]),
    ],
)
def test_keys_are_of_the_class_that_their_effect_asks_for(drift, dotted):
    declared = {name: field.metadata["drift"] for name, field, _ in keys()}
    assert {name: declared[name] for name in dotted} == dict.fromkeys(dotted, drift)


# --- What differs -----------------------------------------------------------------------------------------------------


def test_equal_configurations_have_no_changes():
    assert found() == [] and judge([], [], where="x") == []


def test_every_difference_is_found_with_both_values():
    changed = found(
        optimizer=schema.AdamW(lr=0.5), train=schema.Train(steps=200, early_stop=schema.EarlyStop(patience=3))
    )
    assert [(c.key, c.old, c.new, c.drift) for c in changed] == [
        ("optimizer.lr", 1e-3, 0.5, TRAJECTORY),
        ("train.steps", 100, 200, FREE),
        ("train.early_stop.patience", None, 3, TRAJECTORY),
    ]
    assert str(changed[0]) == "optimizer.lr: 0.001 -> 0.5"


def test_a_key_that_only_one_side_has_is_a_difference():
    changed = {c.key: c for c in found(optimizer=schema.Sgd(lr=1e-3))}
    assert changed["optimizer.kind"].drift == STRUCTURAL
    assert (changed["optimizer.momentum"].old, changed["optimizer.momentum"].new) == (None, 0.9)
    assert (changed["optimizer.b1"].old, changed["optimizer.b1"].new) == (0.9, None)


# --- What is allowed --------------------------------------------------------------------------------------------------

LARGER = {"train": schema.Train(steps=100, batch_size=256)}


def refused(changed: list[Change], allowed: list[str], match: str) -> RunError:
    with pytest.raises(RunError, match=match) as caught:
        judge(changed, allowed, where="runs/a")
    assert caught.value.where == "runs/a" and "\n" not in str(caught.value)
    return caught.value


def test_free_changes_pass_and_are_given_for_the_record():
    changed = found(train=schema.Train(steps=200), mesh=schema.Mesh(fsdp=2))
    assert judge(changed, [], where="runs/a") == changed and len(changed) == 2


def test_trajectory_changes_pass_only_by_name():
    changed = found(**LARGER, seed=1)
    error = refused(changed, [], "train.batch_size: 128 -> 256; seed: 0 -> 1")
    assert "--allow-drift train.batch_size --allow-drift seed" in str(error.hint)
    error = refused(changed, ["seed"], "go on differently: train.batch_size")
    assert "--allow-drift seed" not in str(error.hint)
    assert judge(changed, ["seed", "train.batch_size"], where="runs/a") == changed


def test_structural_changes_never_pass():
    changed = found(model=schema.Mlp(hidden=[8]), **LARGER)
    for allowed in ([], ["model.hidden", "train.batch_size"]):
        error = refused(changed, allowed, r"model.hidden: \[64, 32\] -> \[8\]")
        assert "train.batch_size" not in error.message and "--name" in str(error.hint)


def test_allowing_a_key_that_did_not_change_allows_nothing_else():
    refused(found(**LARGER), ["seed"], "train.batch_size")
    assert judge([], ["seed"], where="runs/a") == []


@pytest.mark.parametrize(("kind", "recipe"), [("csv", "mlp_cls"), ("image_folder", "cnn_cls"), ("text", "gpt_lm")])
def test_a_run_whose_bad_rows_stop_it_goes_on_where_they_are_refused(kind: str, recipe: str) -> None:
    """The same by the name that it had at first."""
    given = [f"recipe={recipe}", f"data={kind}", "data.path=x", *(["data.label=y"] if kind == "csv" else [])]
    now = compose(given).config
    saved = to_yaml(now)
    assert saved.count("on_bad: refuse") == 1
    assert not changes(from_yaml(saved.replace("on_bad: refuse", "on_bad: stop"), where="config.yaml"), now)
    assert compose([*given, "data.on_bad=stop"]).config == now
    assert [change.drift for change in changes(now, compose([*given, "data.on_bad=skip"]).config)] == ["structural"]


def test_what_decides_on_a_rewind_is_not_free_where_there_may_be_one():
    rewinds = {"divergence": schema.Divergence(policy="rewind")}
    old = config(train=schema.Train(steps=100, **rewinds))
    new = config(train=schema.Train(steps=100, log_every=7, **rewinds), checkpoint=schema.Checkpoint(every="3"))
    assert {c.key: c.drift for c in changes(old, new)} == {
        "train.log_every": TRAJECTORY,
        "checkpoint.every": TRAJECTORY,
    }
    free = found(train=schema.Train(steps=100, log_every=7), checkpoint=schema.Checkpoint(every="3"))
    assert {c.drift for c in free} == {FREE}


# --- Surroundings -----------------------------------------------------------------------------------------------------

THEN = {rule.name: "then" for rule in SURROUNDINGS}


@pytest.mark.parametrize("rule", SURROUNDINGS, ids=lambda rule: rule.name)
def test_each_surrounding_is_judged_by_its_rule(rule: Rule) -> None:
    now = {**THEN, rule.name: "now"}
    if rule.verdict == REFUSE:
        with pytest.raises(RunError, match=rule.name) as caught:
            judge_surroundings(THEN, now, where="runs/a")
        assert caught.value.where == "runs/a" and "--name" in str(caught.value.hint)
    else:
        (difference,) = judge_surroundings(THEN, now, where="runs/a")
        assert str(difference) == f"{rule.name}: then -> now ({rule.verdict})"


def test_what_changes_numbers_is_warned_of_and_other_data_is_refused() -> None:
    verdicts = {rule.name: rule.verdict for rule in SURROUNDINGS}
    assert [name for name, verdict in verdicts.items() if verdict == REFUSE] == ["data", "tokenizer"]
    assert {name: verdicts[name] for name in ("jaxlib", "device kind", "mesh", "cores", "CPU features")} == (
        dict.fromkeys(("jaxlib", "device kind", "mesh", "cores", "CPU features"), WARN)
    )


def test_what_one_side_does_not_know_of_does_not_differ() -> None:
    assert judge_surroundings({}, THEN, where="x") == judge_surroundings(THEN, {}, where="x") == []
    assert judge_surroundings(THEN, THEN, where="x") == []


def test_facts_of_a_record_are_those_that_have_rules() -> None:
    made = {
        "packages": {"bigctl": "1.2.3", "jax": "0.10.1", "jaxlib": "0.10.2", "numpy": "2.3"},
        "machine": provenance.machine(),
        "devices": {"platform": "cpu", "kind": "cpu", "count": 2, "mesh": {"data": 2, "fsdp": 1}},
        "code": {"commit": "0" * 40, "dirty": True},
    }
    facts = provenance.comparable(made)
    assert {*facts, "data", "tokenizer"} == {rule.name for rule in SURROUNDINGS}
    assert facts["bigctl"] == "1.2" and facts["mesh"] == "data 2" and facts["packages"] == "numpy 2.3"
    assert facts["cores"] >= 1 and facts["commit"] == "000000000000 and changes"
    gpu = provenance.comparable({**made, "devices": {"platform": "gpu"}})
    assert gpu["cores"] is gpu["CPU features"] is None  # nothing is computed there
    assert set(provenance.comparable({}).values()) == {None}


def test_the_documentation_shows_the_rule() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "resume.md"
    assert table() in page.read_text(encoding="utf-8")

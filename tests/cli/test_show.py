"""`bigctl show` says what a command would train, and where each value comes from."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bigctl.config import compose
from bigctl.runs.directory import RunDirectory
from tests.cli.test_ls import preset


def origins(bigctl, *arguments: str, **options) -> dict[str, str]:
    return bigctl.json("show", *arguments, **options)["origins"]


def make_run(folder: Path, *overrides: str) -> None:
    composed = compose.compose(overrides)
    run = RunDirectory(folder / "runs" / "old")
    run.path.mkdir(parents=True)
    run.write_config(compose.to_yaml(composed.config), composed.overrides)
    run.update_record(status="complete")


def test_each_value_is_shown_with_its_origin(bigctl):
    text = bigctl("show", "recipe=cnn_cls", "optimizer.lr=0.5", "model.channels=[8,16]").stdout
    for line in (
        r"kind: cnn_cls +# command line",
        r"rotate: 12.0 +# recipe/cnn_cls.yaml",
        r"lr: 0.5 +# command line",
        r"channels: \[8, 16\] +# command line",
        r"batch_size: 64 +# recipe/cnn_cls.yaml",
        r"name: mnist5k +# data/mnist5k.yaml",
        r"b1: 0.9 +# default",
    ):
        assert re.search(rf"^ *{line}$", text, re.MULTILINE), line
    assert len({line.index("   # ") for line in text.splitlines() if "   # " in line}) == 1, "comments are aligned"


def test_what_is_printed_is_yaml_of_the_composed_configuration(bigctl):
    overrides = ["recipe=mlp_cls", "recipe.class_weights=[1,2]", "eval.every='2 epochs'", "optimizer.clip=1"]
    expected = yaml.safe_load(compose.to_yaml(compose.compose(overrides).config))
    assert yaml.safe_load(bigctl("show", *overrides).stdout) == expected
    assert yaml.safe_load(bigctl("show", *overrides, "--docs").stdout) == expected
    assert yaml.safe_load(bigctl("show", *overrides, "--yaml").stdout) == expected
    assert "#" not in bigctl("show", *overrides, "--yaml").stdout
    assert bigctl.json("show", *overrides)["config"] == expected


def test_kind_tells_who_chose_the_component(bigctl):
    found = origins(bigctl, "recipe=cnn_cls", "optimizer=sgd")
    assert found["recipe.kind"] == found["optimizer.kind"] == "command line"
    assert found["model.kind"] == found["schedule.kind"] == "recipe/cnn_cls.yaml"
    assert found["mesh.kind"] == "config.yaml"
    assert found["optimizer.momentum"] == "default"


def test_own_presets_and_experiments_are_named_as_origin(bigctl, tmp_path):
    preset(tmp_path / "my", "model", "cnn", "# My cnn.\ndefaults: [_cnn, _self_]\nchannels: [4]\n")
    preset(tmp_path / "my", "model", "big", "# Big.\ndefaults: [cnn, _self_]\nhidden: ['${seed}']\n")
    preset(
        tmp_path / "my",
        "experiment",
        "mine",
        "# @package _global_\n# Mine.\ndefaults:\n  - override /recipe: cnn_cls\n  - override /model: big\n"
        "  - _self_\nseed: 7\ntrain:\n  epochs: 3\ncheckpoint:\n  every: ${eval.every}\n",
    )
    report = bigctl.json("show", "experiment=mine", "eval.every=9", "--config-dir", "my")
    found, config = report["origins"], report["config"]
    assert found["model.channels"] == "my/model/cnn.yaml", "the shadowing file, through the option that extends it"
    assert found["model.hidden"] == "my/model/big.yaml"
    assert found["model.kind"] == found["seed"] == found["train.epochs"] == "my/experiment/mine.yaml"
    assert found["train.batch_size"] == "recipe/cnn_cls.yaml"
    assert found["eval.every"] == "command line"
    assert found["checkpoint.every"] == "my/experiment/mine.yaml", "where the interpolation stands"
    assert (config["model"]["hidden"], config["checkpoint"]["every"], config["train"]["epochs"]) == ([7], "9", 3)
    assert origins(bigctl, "recipe=cnn_cls", env={"BIGCTL_CONFIG_DIR": "my"})["model.channels"] == "my/model/cnn.yaml"


def test_override_of_a_part_leaves_the_origin_of_the_rest(bigctl):
    found = origins(bigctl, "recipe=cnn_cls", "recipe.augment={rotate: 3}")
    assert found["recipe.augment.rotate"] == "command line"
    assert found["recipe.augment.scale"] == "recipe/cnn_cls.yaml"


def test_incomplete_command_shows_what_must_be_given(bigctl):
    text = bigctl("show", "recipe=cnn_cls", "data=idx").stdout
    assert re.search(r"path: \?\?\? +# must be given: data.path=...", text)
    text = bigctl("show", "model=cnn").stdout
    assert re.search(r"^recipe: \?\?\? +# must be given: recipe=NAME", text, re.MULTILINE)
    assert "kernel_size: 3" in text
    assert bigctl.json("show")["missing"] == ["recipe", "model", "data"]
    assert yaml.safe_load(bigctl("show", "--yaml").stdout)["data"] == "???"


def test_key_of_a_group_that_is_not_chosen_asks_for_the_group(error_line):
    assert "no data is chosen" in error_line("show", "data.path=x")


def test_part_of_the_configuration_can_be_asked_for(bigctl, error_line):
    for arguments in (["--only", "optimizer"], ["optimizer"]):
        assert list(bigctl.json("show", "recipe=cnn_cls", *arguments)["config"]) == ["optimizer"]
    assert bigctl.json("show", "--only", "train.early_stop.patience")["config"] == {
        "train": {"early_stop": {"patience": None}}
    }
    assert "did you mean optimizer" in error_line("show", "recipe=cnn_cls", "--only", "optimiser")


def test_docs_say_meaning_unit_choices_and_drift(bigctl):
    text = bigctl("show", "model=cnn", "--only", "model", "--docs").stdout
    assert "# Side of the square kernels [pixels]. Drift: structural." in text
    assert "One of: none, batch, layer." in text
    docs = bigctl.json("show", "--only", "train", "--docs")["docs"]
    assert docs["train.steps"].endswith("Drift: free.")


def test_diff_shows_what_differs_from_a_run_and_whether_it_may(bigctl, tmp_path):
    make_run(tmp_path, "recipe=cnn_cls", "optimizer.lr=0.5")
    now = ["recipe=cnn_cls", "optimizer=sgd", "model.hidden=[3]", "train.epochs=9", "--diff", "old"]
    text = bigctl("show", *now).stdout
    for row in (
        r"model.hidden +\[128\] +\[3\] +structural",
        r"optimizer.lr +0.5 +0.1 +trajectory",
        r"optimizer.momentum +- +0.9 +trajectory",
        r"train.epochs +[\d.]+ +9.0 +free",
    ):
        assert re.search(rf"^{row}$", text, re.MULTILINE), row
    report = bigctl.json("show", *now)
    changes = {change.pop("key"): change for change in report["changes"]}
    assert changes["optimizer.lr"] == {"run": 0.5, "now": 0.1, "drift": "trajectory"}
    assert changes["optimizer.momentum"] == {"now": 0.9, "drift": "trajectory"}
    assert "seed" not in changes


def test_diff_without_overrides_composes_those_of_the_run(bigctl, tmp_path):
    make_run(tmp_path, "recipe=cnn_cls", "optimizer.lr=0.5")
    assert "no difference" in bigctl("show", "--diff", "runs/old").stdout
    assert bigctl.json("show", "--diff", "old")["changes"] == []


def test_diff_of_a_word_that_is_no_key_is_a_usage_error(bigctl, tmp_path):
    make_run(tmp_path, "recipe=mlp_cls")
    said = bigctl("show", "old", "--diff", "old", code=2).stderr
    assert "there is no key 'old' here" in said and "bigctl compare RUN RUN" in said
    assert "no difference" in bigctl("show", "optimizer", "--diff", "old").stdout


def test_diff_with_no_such_run_is_a_usage_error(error_line):
    assert "there is no such run" in error_line("show", "recipe=cnn_cls", "--diff", "nothing")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# x\ndefaults: [_cnn, _self_]\nhidden: [${seed}]\n", "line 3: is not YAML"),
        ("# x\ndefaults: [_cnn, _self_]\nkernel: !!int abc\n", "line 3: is not YAML: 'abc' cannot be read as int"),
        (
            "# x\ndefaults: [_cnn, _self_]\nkernel: " + 5000 * "9",
            f"is not YAML: '{60 * '9'}' cannot be read as int",
        ),
        ("# x\ndefaults: [_cnn, _self_]\nkernel: !!bool 7\n", "line 3: is not YAML: '7' cannot be read as bool"),
        ("# x\ndefaults: [_cnn, _self_]\nhiden: [3]\n", "model/bad.yaml: there is no key 'model.hiden'; did you mean"),
        ("# x\ndefaults: [_cnn, _self_]\nhidden: 3\n", "model/bad.yaml, model.hidden: must be a list"),
    ],
)
def test_mistake_in_an_own_preset_is_named_with_its_file(error_line, tmp_path, text, expected):
    preset(tmp_path / "my", "model", "bad", text)
    assert expected in error_line("show", "recipe=cnn_cls", "model=bad", "--config-dir", "my")


def test_key_of_another_component_names_its_owners(error_line):
    assert "it is a key of optimizer sgd, muon" in error_line("show", "recipe=cnn_cls", "optimizer.momentum=0.5")


def test_no_experiment_can_be_written_as_null(bigctl):
    assert bigctl.json("show", "recipe=cnn_cls", "experiment=null")["missing"] == []


def test_show_does_not_import_jax(tmp_path):
    make_run(tmp_path, "recipe=cnn_cls")
    code = "import sys; from bigctl.cli.main import main; main(sys.argv[1:]); sys.exit('jax' in sys.modules)"
    for arguments in (["recipe=cnn_cls"], ["--diff", "old"], ["model=cnn", "--docs"]):
        subprocess.run([sys.executable, "-c", code, "show", *arguments], cwd=tmp_path, check=True, capture_output=True)


def test_what_the_start_decided_is_no_difference(bigctl):
    make_run(bigctl.folder, "recipe=mlp_cls", "schedule.horizon=1300")
    assert bigctl("show", "recipe=mlp_cls", "--diff", "old").stdout == "no difference from runs/old\n"
    assert "schedule.horizon" in bigctl("show", "recipe=mlp_cls", "schedule.horizon=7", "--diff", "old").stdout

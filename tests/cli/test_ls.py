"""`bigctl ls` shows what the tree holds, at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bigctl.cli import main
from bigctl.config import presets


def preset(folder: Path, group: str, name: str, text: str) -> Path:
    path = folder / group / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def names(report: dict, kind: str) -> list[str]:
    return [entry["name"] for entry in report[kind]]


def test_every_packaged_option_is_listed_with_its_headline(bigctl):
    report = bigctl.json("ls")
    roots = presets.roots()
    for kind, group in [("recipes", "recipe"), ("models", "model"), ("data", "data"), ("sweeps", "sweep")]:
        assert names(report, kind) == presets.options(roots, group)
        assert all(entry["headline"] for entry in report[kind])
    text = bigctl("ls").stdout
    assert "optimizers:  optimizer=NAME" in text
    assert "Handwritten digits" in text


@pytest.mark.parametrize("word", ["model", "models"])
def test_singular_and_plural_name_the_same(bigctl, word):
    assert names(bigctl.json("ls", word), "models") == presets.options(presets.roots(), "model")


def test_unknown_kind_gets_a_suggestion(error_line):
    assert "did you mean `bigctl ls models`?" in error_line("ls", "modles")
    assert "one of: recipes, models" in error_line("ls", "zzzzz")


@pytest.mark.parametrize("pattern", ["age_fold", "image_*", "*SUB-FOLDER*"])
def test_filter_matches_name_or_headline_as_part_or_glob(bigctl, pattern):
    assert names(bigctl.json("ls", "data", pattern), "data") == ["image_folder"]


def test_own_presets_are_shown_with_their_file(bigctl, tmp_path):
    preset(tmp_path / "my", "model", "wide", "# My wide network.\ndefaults: [_cnn, _self_]\nchannels: [512]\n")
    preset(tmp_path / "my", "model", "cnn", "# My own cnn.\ndefaults: [_cnn, _self_]\n")
    for done in (bigctl("ls", "models", "--config-dir", "my"), bigctl("ls", "models", env={"BIGCTL_CONFIG_DIR": "my"})):
        assert "My wide network.  (my/model/wide.yaml)" in done.stdout
        assert "My own cnn.  (my/model/cnn.yaml)" in done.stdout
        assert "classic" not in done.stdout, "the packaged cnn is shadowed"


def test_own_folder_called_conf_is_not_taken_for_the_packaged_one(bigctl, tmp_path):
    preset(tmp_path / "conf", "experiment", "mine", "# @package _global_\n# Mine.\nseed: 3\n")
    assert "Mine.  (conf/experiment/mine.yaml)" in bigctl("ls", "experiments", "--config-dir", "conf").stdout


def test_component_of_a_plugin_is_listed_until_it_has_a_preset(bigctl, tmp_path):
    (tmp_path / "extra.py").write_text(
        "from dataclasses import dataclass\nfrom bigctl.config import schema\n\n\n@dataclass\n"
        "class Tiny(schema.Model):\n    kind: str = schema.kind('minute')\n"
    )
    assert "needs a preset: model/minute.yaml" in bigctl("ls", "models", "--plugin", "extra").stdout
    preset(tmp_path / "my", "model", "minute", "# Tiny.\ndefaults: [_minute, _self_]\n")
    listed = bigctl.json("ls", "models", "minute", "--plugin", "extra", "--config-dir", "my")["models"]
    assert [entry["origin"] for entry in listed] == ["my/model/minute.yaml"]


def test_runs_are_listed_with_their_status_and_a_broken_one_does_not_hide_the_rest(bigctl, tmp_path):
    for name, text in [("good", '{"schema": 1, "status": "complete"}'), ("broken", "{")]:
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "run.json").write_text(text)
    listed = {entry["name"]: entry["status"] for entry in bigctl.json("ls", "runs")["runs"]}
    assert listed == {"good": "complete", "broken": "unreadable"}
    assert "complete" in bigctl("ls", "run").stdout


def test_no_runs_is_said_on_stderr_and_is_no_failure(bigctl):
    done = bigctl("ls", "runs")
    assert done.stdout == ""
    assert "no runs" in done.stderr


@pytest.mark.parametrize("columns", [20, 80])
def test_a_listing_is_no_wider_than_the_terminal(columns, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main.main(["ls", "recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    after = next(line for number, line in enumerate(lines) if lines[number - 1].startswith("bert_mlm"))
    broken = [line for line in lines if "`" not in line]  # what is to be typed stays in one piece
    assert len(broken) >= len(lines) - 3 and max(map(len, broken)) <= columns and after.startswith("  "), lines
    assert columns == 20 or after.startswith(" " * len("finetune_cls  "))


@pytest.mark.parametrize("arguments", [["ls"], ["ls", "models", "--json"], ["ls", "runs"]])
def test_ls_imports_neither_hydra_nor_jax(arguments, tmp_path):
    code = (
        "import sys; from bigctl.cli.main import main; main(sys.argv[1:]); "
        "sys.exit(', '.join({'jax', 'hydra', 'omegaconf', 'numpy'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

"""What is wrong with an export is named by its file, and what became of its run is told."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bigctl.runs.directory import SEALED, SETTINGS, SOURCE, SUMS
from tests.conftest import Cli
from tests.exported import rewrite

pytestmark = pytest.mark.fewer
NEAR: dict[str, Any] = {"rel": 1e-4, "abs": 1e-5}


def test_an_export_as_it_was_written_is_well_beside_its_run(exports: Cli) -> None:
    found = exports.json("verify", "small", "small/jax", "elsewhere")
    assert found["ok"] and [each["run"] for each in found["runs"]] == ["runs/small", "runs/small/jax", "elsewhere"]
    assert found["runs"][1]["files"] == 7 and found["runs"][1]["origin"]["same"]
    assert "made from runs/small, step 30, which is as it was" in exports("verify", "elsewhere").stdout


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "model.jax": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "labels.json": lambda path: path.unlink(),
    SOURCE: lambda path: path.write_text("{}"),
    SETTINGS: lambda path: path.write_text("{"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_damaged_is_named(exports: Cli, name: str) -> None:
    DAMAGE[name](exports.folder / "elsewhere" / name)
    out = exports("verify", "elsewhere", code=1).stdout
    assert f"DAMAGED elsewhere/{name}" in out


def test_lists_that_are_none_are_damage(exports: Cli) -> None:
    folder = exports.folder / "elsewhere"
    whole = (folder / SUMS).read_text()
    for text, said in (
        (whole.replace("  ", " "), "is no list of digests"),
        (whole.replace("  model.jax", "  ../model.jax"), "is no list of digests"),
        (whole.replace("  model.jax", "  model\0.jax"), "is no list of digests"),
        ("".join(line for line in whole.splitlines(keepends=True) if "model.jax" not in line), "not list model.jax"),
    ):
        (folder / SUMS).write_text(text)
        assert said in exports("verify", "elsewhere", code=1).stdout
    (folder / SUMS).unlink()
    assert "SHA256SUMS cannot be read" in exports("verify", "elsewhere", code=1).stdout


def test_pipes_and_links_are_no_files_of_an_export(exports: Cli) -> None:
    folder = exports.folder / "elsewhere"
    (folder / "labels.json").unlink()
    os.mkfifo(folder / "labels.json")
    assert (
        "elsewhere/labels.json cannot be read: it is no regular file" in exports("verify", "elsewhere", code=1).stdout
    )
    assert "labels.json: is damaged" in exports("eval", "elsewhere", code=2).stderr
    (folder / "labels.json").unlink()
    (folder / "labels.json").symlink_to("/dev/zero")
    assert "elsewhere/labels.json cannot be read: it is a link" in exports("verify", "elsewhere", code=1).stdout


@pytest.mark.parametrize(
    "wrong",
    [
        {"config": "model: 3"},
        {"features": {"kind": "table", "classes": 5}},
        {"features": {"tokenizer": "x"}},
        {"data": 3},
    ],
)
@pytest.mark.parametrize("command", [["info"], ["compare", "small"], ["report"]])
def test_settings_that_are_of_another_form_are_told_in_lines(
    exports: Cli, wrong: dict[str, Any], command: list[str]
) -> None:
    rewrite(exports.folder / "elsewhere", SETTINGS, lambda values: values.update(wrong))
    done = exports(*command, "elsewhere", code=None)
    assert "Traceback" not in done.stdout + done.stderr and "internal" not in done.stderr


@pytest.mark.parametrize("wrong", [{"derived_from": 3}, {"step": -1}, {"checkpoint": {"manifest-0.json": "x"}}])
def test_a_source_of_another_form_is_damage(exports: Cli, wrong: dict[str, Any]) -> None:
    rewrite(exports.folder / "elsewhere", SOURCE, lambda values: values.update(wrong))
    out = exports("verify", "elsewhere", code=1).stdout
    assert f"DAMAGED elsewhere/{SOURCE}" in out


def test_what_became_of_the_run_is_told_and_no_damage(exports: Cli) -> None:
    run = exports.folder / "runs" / "small"
    (exports.folder / "elsewhere" / "notes.txt").write_text("the good one")
    manifest = run / "checkpoints" / "000000030" / "manifest-0.json"
    manifest.write_text(manifest.read_text() + " ")
    out = exports("verify", "elsewhere").stdout
    assert "notes.txt does not belong to the export" in out and "is another one than this was made from" in out
    run.rename(exports.folder / "kept")
    assert "is not at hand" in exports("verify", "elsewhere").stdout
    assert "is not at hand" not in exports("verify", "elsewhere", "--source", str(exports.folder / "kept")).stdout


# ----------------------------------------------------------------------------------------------------------- encrypted


def test_an_encrypted_export_is_checked_and_scored_with_its_passphrase(exports: Cli) -> None:
    pytest.importorskip("cryptography")
    (exports.folder / "secret").write_text("correct horse battery\n")
    (exports.folder / "secret").chmod(0o600)
    key = ("--passphrase-file", "secret")
    exports("export", "small", "--format", "jax", "--encrypt", *key, "--out", "sealed")
    assert "can be checked with the passphrase alone" in exports("verify", "sealed").stdout
    assert "made from runs/small" in exports("verify", "sealed", "small", *key).stdout
    expected = exports.json("eval", "small")["metrics"]
    found = exports.json("eval", "sealed", *key)
    assert found["metrics"] == pytest.approx(expected, **NEAR) and found["format"] == "jax"
    out = exports("eval", "sealed", *key, "--errors", "0").stdout
    assert "bigctl predict sealed FILE.csv --passphrase-file FILE" in out and "made from runs/small" in out
    assert "there is no passphrase" in exports("eval", "sealed", code=2).stderr
    table = exports("compare", "small", "sealed", *key).stdout
    assert "made from" in table and "bigctl-clear" not in table
    (exports.folder / "secret").write_text("another passphrase\n")
    assert "the passphrase is wrong" in exports("verify", "sealed", *key, code=2).stderr
    file = exports.folder / "sealed" / SEALED
    file.write_bytes(file.read_bytes()[:1000])
    assert "is cut short" in exports("verify", "sealed", code=1).stdout
    file.write_bytes(b"?" * 30000)
    assert "is no encrypted export" in exports("verify", "sealed", code=1).stdout

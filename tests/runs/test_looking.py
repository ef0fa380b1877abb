"""Looking at a run that somebody sent runs nothing of it: no plugin it names, nothing its configuration refers to."""

from __future__ import annotations

import ast
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import bigctl
from bigctl.cli.main import main
from bigctl.config import plugins, saved
from bigctl.config.compose import compose
from bigctl.errors import ConfigError, RunError
from bigctl.reports import server
from tests.work import counted

RUN = Path("runs/sent")
LOOK = (
    ["verify", "sent"], ["report", "sent", "--samples", "4"], ["info", "sent"], ["runs"], ["compare", "sent", "other"],
    ["runs", "prune", "--dry-run"],
)  # fmt: skip
USE = (
    ["eval", "sent"], ["resume", "sent"], ["predict", "sent", "row.csv"], ["export", "sent", "--format", "hf"],
)  # fmt: skip
HINT = "if you trust it, add --plugin sent_plugin"


@pytest.fixture
def sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A complete run, in a folder that holds the module which its run.json names, and another run."""
    shutil.copytree(Path(__file__).parents[1] / "fixtures" / "run_v1", tmp_path / "runs" / "sent")
    shutil.copytree(tmp_path / "runs" / "sent", tmp_path / "runs" / "other")
    (tmp_path / "sent_plugin.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    shutil.copy(tmp_path / "sent_plugin.py", tmp_path / "runs" / "sent")
    (tmp_path / "row.csv").write_text("a,b\n1,2\n")
    monkeypatch.chdir(tmp_path)
    record = json.loads((RUN / "run.json").read_text())
    (RUN / "run.json").write_text(json.dumps({**record, "plugins": ["sent_plugin"]}))
    yield tmp_path
    sys.modules.pop("sent_plugin", None)
    plugins._loaded.pop("sent_plugin", None)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def run(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        code = main(list(arguments))
        return code, "".join(capsys.readouterr())

    return run


@pytest.mark.parametrize("command", LOOK, ids=" ".join)
def test_to_look_at_a_run_imports_no_plugin(command: list[str], sent: Path, said: Any) -> None:
    code, text = said(*command)
    assert code == 0 and not (sent / "ran").exists(), text


def test_a_page_of_ui_imports_no_plugin(sent: Path) -> None:
    text = server.Site(sent / "runs", sent / "sweeps").answer("/runs/sent")[1]
    assert "sent_plugin" in text and not (sent / "ran").exists()


@pytest.mark.parametrize("command", USE, ids=" ".join)
def test_to_use_a_run_its_plugin_must_be_given(command: list[str], sent: Path, said: Any) -> None:
    code, text = said(*command)
    assert code == 2 and HINT in text and not (sent / "ran").exists()


def test_a_plugin_that_is_given_is_imported(sent: Path, said: Any) -> None:
    code, text = said("resume", "sent", "--plugin", "sent_plugin")
    assert code == 0 and (sent / "ran").exists(), text


def test_another_module_may_stand_for_a_plugin_and_one_of_two_is_not_enough(sent: Path) -> None:
    (sent / "stand_in.py").write_text("")
    assert plugins.load_for_run(["sent_plugin"], ["stand_in"], where="runs/sent") == ["stand_in"]
    with pytest.raises(RunError, match="says so: sent_plugin "):
        plugins.load_for_run(["stand_in", "sent_plugin"], ["stand_in"], where="runs/sent")
    assert not (sent / "ran").exists()


def test_an_installed_plugin_needs_not_be_given(sent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "installed", lambda: ["colorsys"])
    assert plugins.load_for_run(["colorsys"], [], where="runs/sent") == ["colorsys"]


def test_report_of_a_run_with_an_unknown_component_says_so(sent: Path, said: Any) -> None:
    text = (RUN / "config.yaml").read_text()
    (RUN / "config.yaml").write_text(text.replace("kind: mlp\n", "kind: sent_model\n"))
    code, out = said("verify", "sent")
    assert code == 0 and "was not checked: model 'sent_model' is not known here" in out
    code, out = said("report", "sent")
    assert code == 0 and "not imported because a run says so: sent_plugin" in (RUN / "report.html").read_text()
    assert not (sent / "ran").exists()


# --- the working folder -----------------------------------------------------------------------------------------------


def test_no_file_of_the_working_folder_is_run_in_place_of_an_installed_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("colorsys", "sndhdr_of_mine"):
        (tmp_path / f"{name}.py").write_text(f"from pathlib import Path\nPath('ran_{name}').touch()\n")
    (tmp_path / "importing_plugin.py").write_text("import colorsys, sndhdr_of_mine\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    for name in ("colorsys", "importing_plugin", "sndhdr_of_mine"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(plugins, "installed", lambda: ["colorsys"])
    plugins.load([])
    monkeypatch.delitem(sys.modules, "colorsys")
    plugins.load(["importing_plugin"])
    assert [path.name for path in tmp_path.glob("ran_*")] == ["ran_sndhdr_of_mine"] and sys.path == before


def test_every_python_that_is_started_leaves_the_working_folder_out() -> None:
    started = {}
    for path in Path(bigctl.__file__).parent.rglob("*.py"):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)) if "sys.executable" in text else ():
            if isinstance(node, ast.List) and node.elts and ast.unparse(node.elts[0]) == "sys.executable":
                started[f"{path.name}:{node.lineno}"] = ast.unparse(node.elts[1])
    assert len(started) >= 7 and set(started.values()) <= {"'-P'", "'-I'"}, started


# --- config.yaml ------------------------------------------------------------------------------------------------------

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9)
)
HOSTILE = {
    "bomb": (BOMB, "line 1 has an anchor or an alias"),
    "alias": ("seed: &s 0\nother: *s\n", "line 1 has an anchor or an alias"),
    "environment": ("seed: ${oc.env:HOME}\n", "line 1 refers to something else"),
    "part": ("x: [a, 'b ${x}']\n", "line 1 refers to something else"),
    "key": ("${oc.env:HOME}: 1\n", "line 1 refers to something else"),
    "target": ("model:\n  _target_: os.system\n", "line 2 names code to run"),
    "tag": ("a: !!python/object/apply:os.system [ls]\n", "line 1 has a tag"),
    "deep": ("a: " + "[" * 900 + "]" * 900, "nested more than 24 levels"),
    "deeper": ("a: " + "[" * 100_000, "nest"),
    "large": ("a: '" + "x" * (1 << 20) + "'", "is larger than 1 MiB"),
    "twice": ("a: 1\na: 2\n", "'a' stands there twice"),
    "list": ("- 1\n", "it is no mapping"),
    "control": ("a: \x00", "cannot be read"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_configuration_that_bigctl_would_not_write_is_refused_at_once(name: str) -> None:
    text, message = HOSTILE[name]
    with pytest.raises(ConfigError) as caught, counted() as calls:
        saved.values(text, where="runs/sent/config.yaml")
    assert message in str(caught.value) and "\n" not in str(caught.value) and calls.count < 60_000


@pytest.mark.parametrize("name", ["bomb", "environment", "target"])
def test_no_command_follows_what_a_configuration_refers_to(name: str, sent: Path, said: Any) -> None:
    record = json.loads((RUN / "run.json").read_text())
    (RUN / "run.json").write_text(json.dumps({**record, "plugins": []}))
    (RUN / "config.yaml").write_text((RUN / "config.yaml").read_text() + HOSTILE[name][0])
    for command in (*LOOK, *USE[:3], ["show", "--diff", "sent", "recipe=mlp_cls"]):
        code, text = said(*command)
        listing = command[0] in ("runs", "info", "compare", "report")
        assert code == (0 if listing else 1 if command[0] == "verify" else 2), (command, text)
        assert command[0] in ("runs", "report") or HOSTILE[name][1][6:] in text, (command, text)


def test_a_record_whose_features_are_not_as_written_ends_in_one_line(sent: Path, said: Any) -> None:
    record = json.loads(Path("runs/other/run.json").read_text())
    record["data"]["features"] = {"kind": "table", "encoder": [1]}
    Path("runs/other/run.json").write_text(json.dumps(record))
    code, out = said("eval", "other")
    assert code == 2 and "data.features" in out and "traceback" not in out


def test_code_is_not_named_by_a_key_of_a_configuration(sent: Path, said: Any) -> None:
    text = (RUN / "config.yaml").read_text()
    (RUN / "config.yaml").write_text(text.replace("kind: mlp\n", "kind: mlp\n  implementation: sent_plugin:Net\n"))
    code, out = said("verify", "sent")
    assert code == 1 and "implementation" in out and not (sent / "ran").exists()


def test_recorded_overrides_reach_nothing_but_presets(sent: Path) -> None:
    from bigctl.reports import run as page

    (sent / "away.yaml").write_text("kind: mlp\n")
    for override in ("seed=${oc.env:HOME}", "hydra.searchpath=[file:///tmp]", "model=../../away", "+hydra/launcher=x"):
        assert page._composed(["recipe=mlp_cls", override]) == ({}, {})
    assert page._composed(["recipe=mlp_cls", "data.path=a/b.csv", "data=csv"])[0]["data.path"] == "a/b.csv"


def test_numbers_and_texts_read_as_they_were_written() -> None:
    text = "a: 1e-3\nb: 12e5\nc: .inf\nd: 2001-01-01\ne: '1e-3'\nf: null\ng: [1, 2.5]\nh: 1_000\ni: yes\n"
    found = saved.values(text, where="x")
    assert found == {
        "a": 0.001, "b": 1.2e6, "c": float("inf"), "d": "2001-01-01", "e": "1e-3", "f": None, "g": [1, 2.5], "h": 1000,
        "i": True,
    }  # fmt: skip
    assert compose(["recipe=mlp_cls"], plugins=None).config.recipe.kind == "mlp_cls"


@pytest.mark.parametrize("command", ["resume", "compress", "export"])
def test_a_folder_of_an_export_is_called_one_and_told_what_uses_it(
    sent: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RUN / "onnx-int8"
    folder.mkdir()
    for name in ("bigctl.json", "source.json"):
        (folder / name).write_text("{}")
    more = {"compress": ["method=int8"], "export": ["--format", "jax"]}.get(command, [])
    assert main([command, str(folder), *more]) == 2
    said = capsys.readouterr().err
    assert f"{folder}: is an export of a run" in said and f"bigctl info {folder}" in said
    assert f"made from the run {RUN}" in said

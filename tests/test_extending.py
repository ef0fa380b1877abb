"""Promises of docs/extending.md: its examples work as printed, and a plugin's mistakes are told by file and line."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Cli

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", PAGE, flags=re.S)
COMMANDS = [line for kind, text in BLOCKS if not kind for line in text.splitlines()]


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def run(folder: Path, command: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
    """A command of the page in a process of its own."""
    return Cli(folder)(*shlex.split(command)[1:], code=code)


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    for kind, text in BLOCKS:
        if kind:
            write(tmp_path, **{re.findall(r"^# (\S+\.(?:py|yaml))$", text, flags=re.M)[0]: text})
    for number in range(60):
        shade = 40 if number % 2 else 200
        pixels = " ".join(str(shade + (number * place) % 20) for place in range(64))
        write(tmp_path, **{f"pictures/{('dark', 'light')[number % 2 == 0]}-{number}.pgm": f"P2\n8 8\n255\n{pixels}\n"})
    return tmp_path


def test_every_example_works_as_printed(examples: Path) -> None:
    trained = [command for command in COMMANDS if command.startswith("bigctl train")]
    quick = "train.tensorboard=false"
    assert len(trained) == 6
    for command in trained:
        run(examples, f"{command} {quick}")
    summaries = [json.loads(file.read_text()) for file in (examples / "runs").glob("*/summary.json")]
    found = {name: value for summary in summaries for name, value in summary["metrics"].items()}
    assert len(summaries) == 6
    assert found["test/psnr"] > 5 and 0.2 < found["test/top2"] <= 1  # by chance it is 0.2
    notes = (examples / "runs" / "noted" / "notes.txt").read_text().splitlines()
    losses = [float(line.split()[-1]) for line in notes[:-1]]
    assert losses == sorted(losses, reverse=True) and notes[-1].startswith("test loss ")


MODEL = """
from dataclasses import dataclass
import jax
from flax import nnx
from bigctl.config import schema

@dataclass
class Odd(schema.Model):
    implementation = "odd:Net"
    kind: str = schema.kind("odd")
    width: int = schema.key(4, "Width.", ge=1)
    def check(self, config):
        CHECK
        yield from ()

class Net(nnx.Module):
    def __init__(self, config, shape, outputs, *, rngs):
        self.layer = nnx.Linear(shape[0], outputs, rngs=rngs)
    def __call__(self, x, *, key=None, mask=None):
        CALL
        return self.layer(x)

class Half(schema.Metric):
    name, direction = "half", "max"
    def each(self, prediction, batch):
        EACH
        return prediction[:, 0]

class Told(schema.Callback):
    name = "told"
    def after_evaluation(self, step, metrics):
        TOLD
        pass
"""
TRAIN = (
    "bigctl train recipe=mlp_cls model=odd train.epochs=1 train.tensorboard=false eval.metrics=[half] "
    "train.callbacks=[told] --plugin odd --config-dir presets --resume never"
)


def line_of(text: str, word: str) -> int:
    return text[: text.index(word)].count("\n") + 1


@pytest.mark.parametrize(
    ("place", "code", "options", "code_expected", "said"),
    [
        ("CHECK", "1 / 0", "", 2, "odd.py, line {line}, in check: ZeroDivisionError: division by zero"),
        ("CHECK", "yield 'model.width'", "", 2, "check() must yield (key, problem, remedy), not str"),
        ("CALL", "return x.no_such_thing", "", 1, "odd.py, line {line}, in __call__: AttributeError"),
        ("CALL", "return self.layer(x)[:, :0]", "", 2, "model=odd gave outputs (32, 0) where (32, 1) are needed"),
        (
            "EACH",
            "return 3.0",
            "",
            2,
            "metric 'half' must give a value for each of the 32 examples of a batch, not float",
        ),
        ("TOLD", "open('/no/such/file')", "", 1, "odd.py, line {line}, in after_evaluation: FileNotFoundError"),
        ("", "", "model.width=0", 2, "model.width cannot be 0"),
        ("", "", "eval.metrics=[halve]", 2, "there is no metric named 'halve'; did you mean half?"),
        ("", "", "train.callbacks=[tolld]", 2, "there is no callback named 'tolld'; did you mean told?"),
    ],
)
def test_mistakes_of_a_plugin_are_told_by_file_and_line(
    tmp_path: Path, place: str, code: str, options: str, code_expected: int, said: str
) -> None:
    text = MODEL.replace(place, code) if place else MODEL
    line = line_of(text, code) if code else 0
    for word in ("CHECK", "CALL", "EACH", "TOLD"):
        text = text.replace(word, "pass")
    write(tmp_path, **{"odd.py": text, "presets/model/odd.yaml": "# Odd.\ndefaults: [_odd, _self_]\n"})
    done = run(tmp_path, f"{TRAIN} {options}", code_expected)
    assert said.format(line=line) in done.stderr, done.stderr


@pytest.mark.parametrize("what", ["recipe", "model", "data"])
def test_a_new_skeleton_trains_at_once_as_printed_and_its_test_passes(tmp_path: Path, what: str) -> None:
    written = run(tmp_path, f"bigctl new {what} skeleton")
    train, test = written.stdout.strip().splitlines()[-2:]
    assert train.startswith("bigctl train ") and test == "python -m pytest test_skeleton.py"
    run(tmp_path, f"{train} train.epochs=3")
    assert "is there already" in run(tmp_path, f"bigctl new {what} skeleton", 2).stderr
    assert len([*(tmp_path / "runs").glob("*/summary.json")]) == 1
    tested = Cli(tmp_path).run([sys.executable, *test.split()[1:], "-q"])
    assert tested.returncode == 0, tested.stdout


@pytest.mark.parametrize("name", ["json", "class", "Wide", "a-b", "cnn"])
def test_a_name_that_cannot_be_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bigctl.cli import main

    monkeypatch.chdir(tmp_path)
    assert main.main(["new", "model", name]) == 2 and not [*tmp_path.iterdir()]

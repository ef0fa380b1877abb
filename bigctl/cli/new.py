"""Write a working recipe, model or data format of your own, or a whole project, to change from there."""

from __future__ import annotations

import argparse
import importlib.util
import keyword
import random
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from string import Template

from bigctl.cli import common, render
from bigctl.errors import ConfigError

EXAMPLES = """\
The module is a plugin: name it with --plugin, and its presets with --config-dir. docs/extending.md explains each part.

examples:
  bigctl new model wide         wide.py, presets/model/wide.yaml, test_wide.py
  bigctl new recipe ranking
  bigctl new data sensors       and sensors.txt with a few examples of the format
  bigctl new project rings      a folder: model, presets, a table, a test, a workflow for CI, and a README with commands
"""
CHOICES = {
    "recipe": "recipe={name}",
    "model": "recipe=cnn_cls data=digits model={name}",
    "data": "recipe=mlp_cls data={name}",
}
"""What trains the skeleton at once."""
REFUSED = {"recipe": "recipe.smoothing=1.5", "model": "model.width=0", "data": "data.validation_fraction=2.0"}
PROJECT = {
    "README.md": "project_readme.txt",
    ".gitignore": "project_gitignore.txt",
    ".github/workflows/train.yml": "project_workflow.txt",
    "presets/data/{name}.yaml": "project_data.yaml.txt",
    "presets/experiment/{name}.yaml": "project_experiment.yaml.txt",
}
"""What a project has besides a model with its preset and test, and its table."""
TEMPLATES = Path(__file__).parent / "templates"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=(*CHOICES, "project"), help="what to write")
    parser.add_argument(
        "name", metavar="NAME", help="of the module, and of the option: lower case; of a project, its folder"
    )
    common.add_json(parser)


def run(options: argparse.Namespace) -> int:
    what, name = str(options.what), str(options.name)
    if what == "project":
        return _project(options, Path(name))
    _check_name(what, name)
    texts = _skeleton(what, name, Path(f"{name}.py"), _words(what, name, CHOICES[what].format(name=name)))
    if what == "data":
        texts[Path(f"{name}.txt")] = "".join(f"{x} {y} {ring}\n" for x, y, ring in _rings(300))
    for path in texts:
        if path.exists():
            raise ConfigError("is there already", where=str(path), hint="choose another name, or another folder")
    commands = [_command(CHOICES[what].format(name=name), name), f"python -m pytest test_{name}.py"]
    _write(options, Path(), texts, commands)
    return 0


def _command(choice: str, name: str) -> str:
    return f"bigctl train {choice} --plugin {name} --config-dir presets"


def _words(what: str, name: str, choice: str) -> dict[str, str]:
    """What stands for the words of a template."""
    return {
        "name": name,
        "Name": "".join(part.capitalize() for part in name.split("_")),
        "command": _command(choice, name),
        "choice": "[" + ", ".join(f'"{each}"' for each in choice.split()) + "]",
        "refused": REFUSED[what],
        "key": REFUSED[what].partition("=")[0],
    }


def _skeleton(what: str, name: str, module: Path, words: dict[str, str]) -> dict[Path, str]:
    """A module, its preset and its test."""
    files = {
        module: f"{what}.py.txt",
        Path("presets", what, f"{name}.yaml"): f"{what}.yaml.txt",
        Path(f"test_{name}.py"): "test.py.txt",
    }
    return {path: _filled(template, words) for path, template in files.items()}


def _filled(template: str, words: dict[str, str]) -> str:
    return Template((TEMPLATES / template).read_text()).substitute(words)


def _project(options: argparse.Namespace, folder: Path) -> int:
    """A folder that works at once: nothing that is there is touched."""
    name = re.sub(r"[^a-z0-9]+", "_", folder.resolve().name.lower()).strip("_")
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            what = "is not empty" if folder.is_dir() else "is a file"
            raise ConfigError(what, where=str(folder), hint="give a folder that is not there yet, or an empty one")
        for kind in ("model", "data", "experiment"):
            _check_name(kind, name)
        choice = f"experiment={name}"
        words = _words("model", name, choice)
        texts = _skeleton("model", name, Path(f"{name}.py"), words)
        texts |= {
            Path(path.format(name=name)): _filled(file, words | {"choice": choice}) for path, file in PROJECT.items()
        }
        texts[Path("data", f"{name}.csv")] = _csv([("x", "y", "ring"), *_rings(300)])
        texts[Path("data", "new.csv")] = _csv([("x", "y"), *(row[:2] for row in _rings(5, seed=1))])
        commands = [f"cd {shlex.quote(str(folder))}", f"{_command(choice, name)} --run-dir runs/first"]
        _write(options, folder, texts, [*commands, f"python -m pytest -q test_{name}.py"])
    except OSError as error:
        where = str(error.filename or folder)
        raise ConfigError(f"cannot be written: {error.strerror}", where=where, hint="choose another folder") from error
    return 0


def _write(options: argparse.Namespace, folder: Path, texts: dict[Path, str], commands: list[str]) -> None:
    paths = [folder / path for path in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8", newline="") as stream:
            stream.write(text)
    if options.json:
        render.print_json({"files": [*map(str, paths)], "commands": commands})
        return
    for line in (*paths, "", *commands):
        print(line)


def _check_name(what: str, name: str) -> None:
    from bigctl.config import presets

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise ConfigError(f"{name!r} cannot name a module", where="NAME", hint="lower case letters, digits and _")
    if name in presets.options([presets.Root(presets.packaged(), "conf")], what):
        raise ConfigError(f"there is a {what} named {name!r} already", where="NAME", hint="choose another name")
    if not Path(f"{name}.py").exists() and importlib.util.find_spec(name) is not None:
        raise ConfigError(f"there is a Python module {name!r} already", where="NAME", hint="choose another name")


def _csv(rows: Iterable[Iterable[str]]) -> str:
    return "".join(",".join(row) + "\n" for row in rows)


def _rings(count: int, seed: int = 0) -> list[tuple[str, str, str]]:
    """Two noisy circles, one in the other: two numbers and a class."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        radius, (x, y) = (1.0, 2.5)[number % 2], (draw.gauss(0, 1), draw.gauss(0, 1))
        scale = (radius + draw.gauss(0, 0.2)) / max((x * x + y * y) ** 0.5, 1e-6)
        rows.append((f"{x * scale:.3f}", f"{y * scale:.3f}", ("inner", "outer")[number % 2]))
    return rows

"""Write a working recipe, model or data format of your own, with a preset and a test, to change from there."""

from __future__ import annotations

import argparse
import importlib.util
import keyword
import random
import re
from pathlib import Path
from string import Template

from bigctl.errors import ConfigError

EXAMPLES = """\
The module is a plugin: name it with --plugin, and its presets with --config-dir. docs/extending.md explains each part.

examples:
  bigctl new model wide         wide.py, presets/model/wide.yaml, test_wide.py
  bigctl new recipe ranking
  bigctl new data sensors       and sensors.txt with a few examples of the format
"""
CHOICES = {
    "recipe": "recipe={name}",
    "model": "recipe=cnn_cls data=digits model={name}",
    "data": "recipe=mlp_cls data={name}",
}
"""What trains the skeleton at once."""
REFUSED = {"recipe": "recipe.smoothing=1.5", "model": "model.width=0", "data": "data.validation_fraction=2.0"}
TEMPLATES = Path(__file__).parent / "templates"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=tuple(CHOICES), help="what to write")
    parser.add_argument("name", metavar="NAME", help="of the module, and of the option: lower case")


def run(options: argparse.Namespace) -> int:
    what, name = str(options.what), str(options.name)
    _check_name(what, name)
    choice = CHOICES[what].format(name=name)
    command = f"bigctl train {choice} --plugin {name} --config-dir presets"
    words = {
        "name": name,
        "Name": "".join(part.capitalize() for part in name.split("_")),
        "command": command,
        "choice": "[" + ", ".join(f'"{each}"' for each in choice.split()) + "]",
        "refused": REFUSED[what],
        "key": REFUSED[what].partition("=")[0],
    }
    files = {
        Path(f"{name}.py"): f"{what}.py.txt",
        Path("presets", what, f"{name}.yaml"): f"{what}.yaml.txt",
        Path(f"test_{name}.py"): "test.py.txt",
    }
    sample = Path(f"{name}.txt")
    for path in (*files, *([sample] if what == "data" else [])):
        if path.exists():
            raise ConfigError("is there already", where=str(path), hint="choose another name, or another folder")
    for path, template in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(Template((TEMPLATES / template).read_text()).substitute(words))
        print(path)
    if what == "data":
        sample.write_text(_examples())
        print(sample)
    print(f"\n{command}\npython -m pytest test_{name}.py")
    return 0


def _check_name(what: str, name: str) -> None:
    from bigctl.config import presets

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise ConfigError(f"{name!r} cannot name a module", where="NAME", hint="lower case letters, digits and _")
    if name in presets.options([presets.Root(presets.packaged(), "conf")], what):
        raise ConfigError(f"there is a {what} named {name!r} already", where="NAME", hint="choose another name")
    if not Path(f"{name}.py").exists() and importlib.util.find_spec(name) is not None:
        raise ConfigError(f"there is a Python module {name!r} already", where="NAME", hint="choose another name")


def _examples() -> str:
    """Two noisy circles, one in the other: 300 lines of two numbers and a class."""
    draw = random.Random(0)
    lines = []
    for number in range(300):
        radius, (x, y) = (1.0, 2.5)[number % 2], (draw.gauss(0, 1), draw.gauss(0, 1))
        scale = (radius + draw.gauss(0, 0.2)) / max((x * x + y * y) ** 0.5, 1e-6)
        lines.append(f"{x * scale:.3f} {y * scale:.3f} {('inner', 'outer')[number % 2]}")
    return "\n".join(lines) + "\n"

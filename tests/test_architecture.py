"""The shape of the code: which room may import from which, and how long functions and files may be.

All imports are read from the source, wherever they stand: at the top of a module, inside a function, or for type
checkers alone. All of them count, for floors and for circles alike: a module that needs a name to write its types down
depends on it. The one exception are imports for type checkers in `config/schema`: its components say what they build,
and name the class that builds it as text.
"""

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ANY_LINES = 61
"""How many lines may annotate something with ": Any"."""
ROOT = Path(__file__).parents[1]
GROUND = {"errors", "files", "cache_root", "packages", "formatting", "imports", "memory", "randomness", "terminal"}
TOP = {"cli", "api", "__main__", ""}
ROOMS = """reports sweeps serving inference engine baselines recipes
interop generation training planning runs optim models parallel data privacy config"""
FLOORS = [TOP, *({room} for room in ROOMS.split()), GROUND]
LEVEL = {room: -height for height, floor in enumerate(FLOORS) for room in floor}


@cache
def modules() -> dict[str, Path]:
    """Name of each module -> its file; a package by its own name."""
    files = [(path, ROOT) for path in (ROOT / "bigctl").rglob("*.py")]
    files += [(path, ROOT) for path in (ROOT / "recipes").glob("*.py")]
    named = {path.relative_to(root).with_suffix("").as_posix().replace("/", "."): path for path, root in files}
    return {re.sub(r"^recipes", "bigctl.recipes", name).removesuffix(".__init__"): path for name, path in named.items()}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imports(module: str) -> frozenset[str]:
    """The modules of ours that a module imports, wherever it does."""
    found, nodes = set(), [*ast.walk(tree(modules()[module]))]
    if module.startswith("bigctl.config.schema."):
        typing_only = [node for node in nodes if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
        skipped = {inner for node in typing_only for inner in ast.walk(node)}
        nodes = [node for node in nodes if node not in skipped]
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules() else str(node.module) for name in whole}
    return frozenset(found & modules().keys() - {module})


def room(module: str) -> str:
    return (module.split(".") + [""])[1]


def upward() -> Iterator[str]:
    for module in modules():
        for target in imports(module):
            here, there = LEVEL[room(module)], LEVEL[room(target)]
            if there > here or (there == here and room(module) != room(target) and room(module) not in TOP | GROUND):
                yield f"{module} -> {target}"


def circles() -> Iterator[str]:
    """Each import that lies on a circle."""
    reached = {name: set(imports(name)) for name in modules()}
    for via in reached:
        for name in reached:
            if via in reached[name]:
                reached[name] |= reached[via]
    return (f"{name} -> {target}" for name in modules() for target in imports(name) if name in reached[target])


def functions(node: ast.AST, outer: str = "") -> Iterator[tuple[str, int]]:
    for child in ast.iter_child_nodes(node):
        name = outer
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{outer}.{child.name}".lstrip(".")
            if not isinstance(child, ast.ClassDef):
                yield name, (child.end_lineno or 0) - child.lineno + 1
        yield from functions(child, name)


def long_functions() -> Iterator[str]:
    for module, path in modules().items():
        yield from (f"{module}:{name}" for name, lines in functions(tree(path)) if lines > 60)


def long_files() -> Iterator[str]:
    return (module for module, path in modules().items() if len(path.read_text().splitlines()) > 400)


def isinstance_config() -> Iterator[str]:
    """What a component is and does is its own to say."""
    told = re.compile(r"isinstance\((self\.)?_?config\b")
    return (m for m, path in modules().items() if room(m) != "config" and told.search(path.read_text()))


RULES = {
    "upward imports": upward,
    "import circles": circles,
    "long functions": long_functions,
    "long files": long_files,
    "isinstance(config": isinstance_config,
}


@pytest.mark.parametrize("rule", RULES)
def test_shape_of_the_code(rule: str) -> None:
    assert not set(RULES[rule]()), rule


def test_types_are_named() -> None:
    lines = [line for path in modules().values() for line in path.read_text().splitlines() if ": Any" in line]
    assert len(lines) <= ANY_LINES


def test_every_room_is_on_a_floor() -> None:
    assert {room(module) for module in modules()} <= LEVEL.keys()


def test_every_package_is_installed() -> None:
    packages = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "conf").rglob("*.yaml")}
    conf = {"bigctl." + ".".join(folder.parts) for folder in folders}
    assert packages == conf | {name for name, path in modules().items() if path.name == "__init__.py"}

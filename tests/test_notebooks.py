"""The notebooks among the examples run from top to bottom, as they stand."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.fewer
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NOTEBOOKS = sorted(path.name for path in EXAMPLES.glob("*.ipynb"))


def shown(cell: str, names: dict[str, Any]) -> Any:
    """Run a cell as a notebook does; gives the value of its last line."""
    *before, last = ast.parse(cell).body
    if not isinstance(last, ast.Expr):
        before, last = [*before, last], ast.Expr(ast.Constant(None))
    exec(compile(ast.Module(before, []), "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_notebook_runs_and_learns(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    pages = []
    for cell in json.loads((EXAMPLES / name).read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            value = shown("".join(cell["source"]), names)
            pages += [value] if hasattr(value, "_repr_html_") else []
    assert names["run"]["metrics"]["test/accuracy"] > {"own_table.ipynb": 0.65}.get(name, 0.9)
    assert pages and pages[-1]._repr_html_()


def test_notebooks_are_kept_without_output() -> None:
    assert len(NOTEBOOKS) == 3
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for name in NOTEBOOKS:
        cells = json.loads((EXAMPLES / name).read_text(encoding="utf-8"))["cells"]
        assert name in listed and not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)

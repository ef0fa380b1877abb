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


CELLS = {
    "train": "import bigctl\nrun = bigctl.train(['recipe=mlp_cls', 'train.steps=20', 'eval.every=10'], 'runs/a')",
    "repr": "run",
    "history": "run.history",
    "plot": "run.plot()",
    "report": "run.report()",
    "typo": "bigctl.train(['recipe=mlp_cls', 'optimizer.lrr=1'], 'runs/b')",
}


@pytest.mark.slow
def test_a_kernel_without_a_display_shows_a_bar_curves_and_errors_of_two_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of Jupyter's own, whose screen is what is written to the notebook."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    for needed in ("ipykernel", "pandas", "matplotlib"):
        pytest.importorskip(needed)
    for name in ("MPLBACKEND", "DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in CELLS.values()])
    client = nbclient.NotebookClient(book, timeout=240, allow_errors=True, resources={"metadata": {"path": tmp_path}})
    client.execute()
    (bar,), (told,), (table,), (drawn,), (page,), (error,) = (cell.outputs for cell in book.cells)
    assert "step 20/20" in bar.data["text/html"] and "<svg" in bar.data["text/html"]
    assert "step 20/20" in bar.data["text/plain"] and "<" not in bar.data["text/plain"]
    assert told.data["text/plain"].startswith("<bigctl run runs/a: mlp_cls, step 20; test/accuracy ")
    assert "train/loss" in table.data["text/html"]
    assert drawn.data["image/png"]
    assert page.data["text/html"].startswith("<iframe")
    assert error.ename == "ConfigError" and len(error.traceback) == 2
    assert error.traceback[0] == f"line 1: {CELLS['typo']}" and "did you mean optimizer.lr?" in error.traceback[1]

"""A trained run as Python sees it: the model, and how its training went."""

from __future__ import annotations

import html
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigctl.errors import RunError, named_as_arguments
from bigctl.files import write_text
from bigctl.inference.trained import TrainedRun
from bigctl.reports import png, run
from bigctl.runs.metrics_file import read_metrics

if TYPE_CHECKING:
    from typing import Self

    from matplotlib.figure import Figure

    from bigctl.data.sources.frames import Examples
    from bigctl.inference.explaining.asked import Explanation


class LoadedRun(TrainedRun):
    """A `TrainedRun` with its curves and its page."""

    def with_threshold(self, wanted: float | str | Path | None) -> Self:
        with named_as_arguments():
            return super().with_threshold(wanted)

    def choose_threshold(self, objective: str = "f1") -> Self:
        with named_as_arguments():
            return super().choose_threshold(objective)

    with_threshold.__doc__ = TrainedRun.with_threshold.__doc__
    choose_threshold.__doc__ = TrainedRun.choose_threshold.__doc__

    @property
    def history(self) -> Any:
        """The lines of metrics.jsonl in the order of the steps: a DataFrame where pandas is installed, else dicts."""
        return history(self.run.metrics)

    def explain(
        self, inputs: Examples, *, method: str | None = None, wanted: str | None = None
    ) -> list[Explanation] | Explanation:
        """What each token, pixel or column adds to the answer, as `bigctl explain` tells it; one of one example.

        Args:
            inputs: as `predict` takes them.
            method: None for the usual one: integrated gradients, of tables Shapley values.
            wanted: a class; None for that which is predicted.

        Raises:
            ConfigError: for a method or a class that there is not.
            ValueError: for what the model does not take.
        """
        from bigctl.inference.explaining import explain

        asked = self.asked(inputs)
        with named_as_arguments():
            explainer = explain.explainer_of(self)
            found = explain.explain(self, explainer, explain.Given(asked.inputs), method=method, wanted=wanted)
        return found[0] if asked.single else found

    def plot(self) -> Figure:
        """The main curves, drawn by matplotlib. Raises ConfigError where that is not installed."""
        return plot(self.run.path)

    def report(self, *, samples: int = 16) -> Page:
        """The page that `bigctl report` writes; a notebook shows it. `samples` are the examples that it predicts."""
        return Page(run.run_page(self.run, samples=samples), self.run.path)


def history(path: Path) -> Any:
    """Metrics by step, see `LoadedRun.history`."""
    lines = read_metrics(path)
    try:
        import pandas
    except ImportError:
        return lines
    return pandas.DataFrame(lines)


def plot(folder: Path) -> Figure:
    """See `LoadedRun.plot`."""
    png.require("plot")
    figure = png.figure_of_run(folder)

    def as_png() -> bytes:
        stream = io.BytesIO()
        figure.savefig(stream, format="png")
        return stream.getvalue()

    figure._repr_png_ = as_png  # type: ignore[attr-defined]  # a notebook shows it, whatever its backend
    return figure


class Page:
    """A page as text, which a notebook shows in a frame.

    Attributes:
        text: the whole HTML.
    """

    height = 720
    """Of the frame in a notebook [pixels]."""

    def __init__(self, text: str, folder: Path):
        self.text, self._folder = text, folder

    def save(self, path: str | Path | None = None) -> Path:
        """Write it to a file, report.html in the run's folder by default. Raises RunError if that fails."""
        out = self._folder / "report.html" if path is None else Path(path)
        try:
            write_text(out, self.text)
        except OSError as error:
            raise RunError(f"cannot be written: {error.strerror}", where=str(out)) from error
        return out

    def _repr_html_(self) -> str:
        content = html.escape(self.text, quote=True)
        style = f"width:100%;height:{self.height}px;border:1px solid #8884"
        return f'<iframe srcdoc="{content}" style="{style}" sandbox="allow-scripts" title="report"></iframe>'

    def __repr__(self) -> str:
        return f"<report of {self._folder}: {len(self.text):,} characters of HTML; save() writes it>"

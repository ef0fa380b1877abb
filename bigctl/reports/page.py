"""The shell of a page: one HTML file with all that it needs inside, which asks nothing of any network."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bigctl.errors import ConfigError
from bigctl.formatting import grouped, plain
from bigctl.reports.plots import Figure

if TYPE_CHECKING:
    import jinja2
    from markupsafe import Markup

HERE = Path(__file__).parent


def render(
    template: str,
    figures: Mapping[str, Figure],
    *,
    live: str = "",
    served: bool = False,
    bare: bool = False,
    **values: object,
) -> str:
    """A page as text.

    Args:
        template: "run.html", "sweep.html", "overlay.html", "index.html" or "plan.html".
        figures: by the id of the element that they are drawn into.
        live: where the page asks for new points, on the server that it came from; empty for a page on disk.
        served: whether `bigctl ui` sends it, which it may then ask for more.
        bare: without scripts, for a page that is there already and only takes over what has changed.
        values: what the template shows.

    Raises:
        ConfigError: if Plotly is not installed.
    """
    scripts = [] if bare else [_plotly(), _file("page.js")] if figures else [_file("page.js")]
    return (
        _environment()
        .get_template(template)
        .render(
            figures=figures,
            drawn=_json({name: figure.to_json() for name, figure in figures.items()}),
            scripts=scripts,
            style=_file("style.css"),
            policy=_policy(scripts, served=served or bool(live)),
            live=live,
            served=served,
            **values,
        )
    )


def _policy(scripts: list[str], *, served: bool) -> str:
    """What the browser lets the page do: run these very scripts, and nothing that comes from elsewhere."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    home = "'self'" if served else "'none'"
    return (
        f"default-src 'none'; script-src {hashes or chr(39) + 'none' + chr(39)}; style-src 'unsafe-inline'; "
        f"img-src data: blob:; connect-src {home}; base-uri 'none'; form-action {home}"
    )


def _json(value: object) -> str:
    """JSON that may stand inside <script>: nothing in it can end the element."""
    return json.dumps(plain(value), separators=(",", ":")).replace("<", "\\u003c")


@functools.cache
def _file(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


@functools.cache
def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ConfigError("plotly is not installed", where="report", hint="pip install plotly") from error
    return str(get_plotlyjs())


@functools.cache
def _environment() -> jinja2.Environment:
    import jinja2

    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    found.filters.update(number=grouped, date=date, seconds=seconds, deviation=deviation, parted=parted)
    found.tests.update(numeric=numeric)
    return found


# ------------------------------------------------------------------------------------------------- what templates show


def seconds(value: object) -> str:
    return f"{value:,.1f}" if isinstance(value, int | float) and math.isfinite(value) else "-"


def deviation(value: object) -> str:
    """Of a deviation two digits say enough."""
    return f"{value:.2g}" if isinstance(value, int | float) else "-"


def parted(name: str) -> Markup:
    """The name of a metric, which a narrow card may break after its parts and nowhere else."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([/_])", r"\1<wbr>", str(escape(name))))


def numeric(cell: object) -> bool:
    """Whether the text of a cell is a number, to be aligned with those below it; so is one that is missing."""
    text = str(cell).replace(",", "").rstrip("% ")
    try:
        float(text or 0)
    except ValueError:
        return text in ("-", "?")
    return True


def date(timestamp: float | str | None) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(float(timestamp or "")))
    except (ValueError, TypeError, OverflowError, OSError):
        return ""


def scalar(value: object) -> str:
    """A value of a configuration on one line, as JSON has it; text as it is unless it is blank at an end, whole
    numbers without decimals."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e6:
        return str(int(value))
    if isinstance(value, str):
        return value if value.strip() == value != "" else json.dumps(value)
    return json.dumps(plain(value), ensure_ascii=False, default=str)

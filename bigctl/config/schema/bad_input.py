"""Keys of what becomes of examples that cannot be used: what all sources have that can leave some out."""

from __future__ import annotations

from typing import Any

from bigctl.config.schema.base import FREE, STRUCTURAL, key

REFUSE, SKIP = "refuse", "skip"


def on_bad(what: str) -> Any:
    """The key `data.on_bad` of a source; `what` is an example that cannot be used: "a row that cannot be read"."""
    doc = f"What {what} does: end the command with a line that names it (refuse), or be left out with a note (skip)."
    return key(REFUSE, doc, drift=STRUCTURAL, choices=(REFUSE, SKIP))


def bad_limit(share: str) -> Any:
    """The key `data.bad_limit`; `share` says of what it is one."""
    return key(
        1.0, f"Share of {share} that data.on_bad=skip leaves out at most; of more it refuses.", drift=FREE, ge=0, le=1
    )


class LeavesOut:
    """A source with both keys."""

    on_bad: str
    bad_limit: float

    def __post_init__(self) -> None:
        if self.on_bad == "stop":  # what refuse was called at first, in presets and runs that are there
            self.on_bad = REFUSE

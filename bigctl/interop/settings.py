"""Settings of a model as other people's files tell them: numbers within bounds, and what makes it another model."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from bigctl.errors import DataError


def number(
    settings: Mapping[str, object],
    name: str,
    default: float,
    where: str,
    *,
    most: float = 1.0,
    hint: str | None = None,
) -> float:
    """A number above 0 and below `most`. Raises DataError for what is none."""
    value = settings.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < most:
        raise DataError(f"{name} cannot be {value!r}", where=where, hint=hint)
    return float(value)


def unknown_rope_setting(settings: Mapping[str, object], known: Collection[str]) -> str | None:
    """The first setting of rotary positions that is not known and not off: whatever it is called, a model that is
    computed without it writes other text. Off are null, false, 1 (a factor, or a share of the features), "none" and
    "default".

    Args:
        settings: all of a model's settings of rope, by name.
        known: those that are read, or that change nothing where no other is on.
    """
    return next((name for name, value in settings.items() if name not in known and not _is_off(value)), None)


def _is_off(value: object) -> bool:
    if isinstance(value, bool) or value is None:
        return not value
    return value in ("none", "default") if isinstance(value, str) else isinstance(value, int | float) and value == 1

"""Which settings of rotary positions make a model another one than the plain one here."""

from __future__ import annotations

from collections.abc import Collection, Mapping


def unknown_setting(settings: Mapping[str, object], known: Collection[str]) -> str | None:
    """The first setting that is not known and not off: whatever it is called, a model that is computed without it
    writes other text. Off are null, false, 1 (a factor, or a share of the features), "none" and "default".

    Args:
        settings: all of a model's settings of rope, by name.
        known: those that are read, or that change nothing where no other is on.
    """
    return next((name for name, value in settings.items() if name not in known and not _is_off(value)), None)


def _is_off(value: object) -> bool:
    if isinstance(value, bool) or value is None:
        return not value
    return value in ("none", "default") if isinstance(value, str) else isinstance(value, int | float) and value == 1

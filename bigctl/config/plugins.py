"""Components of the user's own: modules that are imported before anything is composed."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator, Sequence

from bigctl.errors import ConfigError


def load(names: Sequence[str]) -> list[str]:
    """Import plugin modules, named or installed under the entry point `bigctl.plugins`; gives their names."""
    from importlib.metadata import entry_points

    loaded = []
    installed = [entry.value for entry in entry_points(group="bigctl.plugins")]
    for name in dict.fromkeys([*installed, *names]):
        try:
            with _cwd_importable():
                importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name and (name == error.name or name.startswith(f"{error.name}.")):
                raise ConfigError(
                    f"there is no module {name!r} to import",
                    where="--plugin",
                    hint="install the package or run from the folder that holds it",
                ) from error
            raise ConfigError(f"plugin {name!r} failed to import: {error}", where="--plugin") from error
        except (Exception, SystemExit) as error:
            raise ConfigError(f"plugin {name!r} failed to import: {error!r}", where="--plugin") from error
        loaded.append(name)
    return loaded


def missing(names: Sequence[str]) -> list[str]:
    """Those of the modules that are not there to be imported."""
    import importlib.util

    with _cwd_importable():
        return [name for name in names if importlib.util.find_spec(name.split(".")[0]) is None]


@contextlib.contextmanager
def _cwd_importable() -> Iterator[None]:
    import sys

    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)

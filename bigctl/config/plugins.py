"""Components of the user's own: modules that are imported before anything is composed.

An error in one is told as an error of ours is: in one line, with the plugin's file and line.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from bigctl.errors import BigctlError, ConfigError

_loaded: dict[str, ModuleType] = {}


def load(names: Sequence[str]) -> list[str]:
    """Import plugin modules, named or installed under the entry point `bigctl.plugins`; gives their names."""
    from importlib.metadata import entry_points

    installed = [entry.value for entry in entry_points(group="bigctl.plugins")]
    wanted = list(dict.fromkeys([*installed, *names]))
    for name in wanted:
        try:
            with _cwd_importable():
                _loaded[name] = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name and (name == error.name or name.startswith(f"{error.name}.")):
                raise ConfigError(
                    f"there is no module {name!r} to import",
                    where="--plugin",
                    hint="install the package or run from the folder that holds it",
                ) from error
            raise _failed_import(name, error, str(error)) from error
        except (Exception, SystemExit) as error:
            raise _failed_import(name, error, repr(error)) from error
    return wanted


def _failed_import(name: str, error: BaseException, text: str) -> ConfigError:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _of_user(frame.filename)]
    place = f" in {_place(frames[-1].filename, frames[-1].lineno)}" if frames else ""
    if isinstance(error, SyntaxError) and error.filename:
        place = f" in {_place(error.filename, error.lineno)}"
    return ConfigError(f"plugin {name!r} failed to import{place}: {text}", where="--plugin")


def missing(names: Sequence[str]) -> list[str]:
    """Those of the modules that are not there to be imported."""
    with _cwd_importable():
        return [name for name in names if importlib.util.find_spec(name.split(".")[0]) is None]


def blamed(error: Exception, kind: type[BigctlError] = BigctlError) -> BigctlError | None:
    """An unexpected error as one of ours that names the plugin's file and line; None where no plugin was at work.

    Args:
        error: what was raised.
        kind: what it becomes, and so the exit code.
    """
    if isinstance(error, BigctlError) or not _loaded:
        return None
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _of_plugin(frame.filename)]
    text = " ".join(str(error).split())
    message = f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
    if called := _called_wrongly(error):
        return kind(message, where=called)
    if not frames:
        return None
    return kind(message, where=f"{_place(frames[-1].filename, frames[-1].lineno)}, in {frames[-1].name}")


@contextlib.contextmanager
def blaming(kind: type[BigctlError]) -> Iterator[None]:
    """Errors of plugins become errors of ours; all others stay as they are."""
    try:
        yield
    except Exception as error:
        found = blamed(error, kind)
        if found is None:
            raise
        raise found from error


def _called_wrongly(error: Exception) -> str | None:
    """Where a plugin's function stands that was called with arguments it does not take: it is in no traceback."""
    match = re.match(r"([A-Za-z_][\w.]*)\(\) (?:takes|got|missing)", str(error))
    if not isinstance(error, TypeError) or match is None:
        return None
    for module in _loaded.values():
        found: object = module
        for part in match[1].split("."):
            found = getattr(found, part, None)
        if inspect.isroutine(found):
            with contextlib.suppress(OSError, TypeError):
                file, line = inspect.getsourcefile(found), inspect.getsourcelines(found)[1]
                return f"{_place(file or '?', line)}, {match[1]}"
    return None


def _of_plugin(filename: str) -> bool:
    for module in _loaded.values():
        file = getattr(module, "__file__", None)
        if file and (
            filename == file or (file.endswith("__init__.py") and Path(filename).is_relative_to(Path(file).parent))
        ):
            return True
    return False


def _of_user(filename: str) -> bool:
    """Neither Python's import machinery nor bigctl."""
    here = Path(__file__).resolve().parents[1]
    return not filename.startswith("<") and "importlib" not in filename and not Path(filename).is_relative_to(here)


def _place(filename: str, line: int | None) -> str:
    with contextlib.suppress(ValueError):
        filename = str(Path(filename).relative_to(os.getcwd()))
    return f"{filename}, line {line}"


@contextlib.contextmanager
def _cwd_importable() -> Iterator[None]:
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)

"""Components of the user's own: modules that are imported before anything is composed.

Which modules these are is said by the command line and by what is installed, never by a run directory: whoever can
write one could run code as everyone who looks at it. An error in a plugin is told as an error of ours is: in one line,
with the plugin's file and line.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.abc
import inspect
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from bigctl.errors import BigctlError, ConfigError, RunError
from bigctl.terminal import escaped

_loaded: dict[str, ModuleType] = {}


def load(names: Sequence[str]) -> list[str]:
    """Import plugin modules, named or installed under the entry point `bigctl.plugins`; gives their names."""
    wanted = installed()
    for name in wanted:
        _import(name)
    for name in names:
        with _folder_importable(name):
            _import(name)
    return list(dict.fromkeys([*wanted, *names]))


def load_for_run(recorded: object, given: Sequence[str] | None, *, where: str) -> list[str]:
    """Import what is given for a run that was made with plugins; gives the names of all that it has now.

    Args:
        recorded: `plugins` of its run.json. Such a name alone is never imported.
        given: those that the user names: the same, or others that stand for them; None to import nothing at all.
        where: the run.

    Raises:
        RunError: if one of the run's plugins is neither given nor installed nor imported already.
    """
    needed = [str(name) for name in recorded] if isinstance(recorded, list) else []
    there = {*(load(given) if given is not None else ()), *(name for name in needed if name in sys.modules)}
    lacking = [name for name in needed if name not in there]
    if lacking and set(given or ()) <= set(needed):
        names = escaped(", ".join(lacking))[:200]
        hint = f"if you trust {'it' if len(lacking) == 1 else 'them'}, add {' '.join(f'--plugin {n}' for n in lacking)}"
        raise RunError(
            f"was made with plugins that are not imported because a run says so: {names}",
            where=where,
            hint=escaped(hint)[:200],
        )
    return list(dict.fromkeys([*(name for name in needed if name in there), *(given or ())]))


@functools.cache
def installed() -> tuple[str, ...]:
    """Plugin modules of installed packages."""
    from importlib.metadata import entry_points

    return tuple(dict.fromkeys(entry.value for entry in entry_points(group="bigctl.plugins")))


def _import(name: str) -> None:
    try:
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


def _failed_import(name: str, error: BaseException, text: str) -> ConfigError:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _of_user(frame.filename)]
    place = f" in {_place(frames[-1].filename, frames[-1].lineno)}" if frames else ""
    if isinstance(error, SyntaxError) and error.filename:
        place = f" in {_place(error.filename, error.lineno)}"
    return ConfigError(f"plugin {name!r} failed to import{place}: {text}", where="--plugin")


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
def _folder_importable(name: str) -> Iterator[None]:
    """A module of the working folder can be imported by its name, and can import others of that folder. These come last
    in `sys.path`: a file that is called as a module of Python's, or of an installed package, is not run for it."""
    here = os.getcwd()
    sys.meta_path.insert(0, finder := _InFolder(here, name.partition(".")[0]))
    sys.path.append(here)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        if here in sys.path:  # the last one: Python itself may have put the folder first
            del sys.path[len(sys.path) - 1 - sys.path[::-1].index(here)]


class _InFolder(importlib.abc.MetaPathFinder):
    """Finds one module in one folder, and nothing else."""

    def __init__(self, folder: str, module: str):
        self._folder, self._module = folder, module

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        found = PathFinder.find_spec(name, [self._folder]) if name == self._module else None
        return found if found is not None and found.loader is not None else None

"""What `bigctl serve` is given: a run, an export, or weights. Free of jax, so that a wrong name is said at once."""

from __future__ import annotations

from pathlib import Path

from bigctl.runs import directory, exports

PACKAGED = ("smollm2",)
"""Weights of language models that are had by name."""


def kind_of(given: str) -> str:
    """ "run", "export" or "weights"; "run" of what is none of them, which loading then says."""
    path = Path(given)
    export = exports.find(given)
    if export is not None and export.kept:
        return "export"
    if any((folder / "run.json").is_file() for folder in (path, directory.ROOT / path)):
        return "run"
    return "weights" if given in PACKAGED or _is_weights(path) else "run"


def name_of(given: str) -> str:
    """What a model is called. Raises RunError where there is none of that name."""
    if kind_of(given) == "run":
        return directory.locate(given).path.resolve().name
    if given in PACKAGED:
        return given
    export = exports.find(given)
    path = (Path(given) if export is None else export.path).resolve()
    within = export is not None and (path.parent / "run.json").is_file()  # where it may be called as its format
    return f"{path.parent.name}-{path.name}" if within else path.name


def gguf_of(path: Path) -> Path | None:
    """The file of GGUF that a path is, or that its folder is for."""
    if path.is_file():
        return path if path.suffix == ".gguf" else None
    return None if (path / "config.json").is_file() else min(path.glob("*.gguf"), default=None)


def _is_weights(path: Path) -> bool:
    """Whether it is a file of GGUF or llama2.c, or a folder of GGUF or of Hugging Face."""
    if path.is_file():
        return path.suffix in (".gguf", ".bin")
    return (path / "config.json").is_file() or gguf_of(path) is not None

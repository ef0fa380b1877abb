"""What `bigctl serve` is given: a run, an export, or weights. Free of jax, so that a wrong name is said at once."""

from __future__ import annotations

from pathlib import Path

from bigctl.errors import BigctlError
from bigctl.runs import directory
from bigctl.runs.exports import Export

PACKAGED = ("smollm2",)
"""Weights of language models that are had by name."""


def kind_of(given: str) -> str:
    """ "run", "export" or "weights"; "run" of what is none of them, which loading then says."""
    path = Path(given)
    if any((folder / "run.json").is_file() for folder in (path, directory.ROOT / path)):
        return "run"
    ours = (path / directory.SUMS).is_file() or directory.is_export(path)
    if ours and not ((path / "config.json").is_file() and _writes(path)):
        return "export"
    return "weights" if given in PACKAGED or _is_weights(path) else "run"


def name_of(given: str) -> str:
    """What a model is called. Raises RunError where there is none of that name."""
    if kind_of(given) == "run":
        return directory.locate(given).path.resolve().name
    return given if given in PACKAGED else Path(given).resolve().name


def gguf_of(path: Path) -> Path | None:
    """The file of GGUF that a path is, or that its folder is for."""
    if path.is_file():
        return path if path.suffix == ".gguf" else None
    return None if (path / "config.json").is_file() else min(path.glob("*.gguf"), default=None)


def _writes(path: Path) -> bool:
    """Whether a folder for transformers or timm is of a language model, or does not say."""
    try:
        return bool(Export(path).settings()["features"]["kind"] == "stream")
    except (BigctlError, KeyError, TypeError):
        return True


def _is_weights(path: Path) -> bool:
    """Whether it is a file of GGUF or llama2.c, or a folder of GGUF or of Hugging Face."""
    if path.is_file():
        return path.suffix in (".gguf", ".bin")
    return (path / "config.json").is_file() or gguf_of(path) is not None

"""Tensors in safetensors files: one file, or shards with an index. Pickles are never read: to load one is to run it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from bigctl.errors import DataError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_FLOATS = ("F64", "F32", "F16", "BF16")


class Tensors:
    """The floating-point tensors of a model folder; the values are read when they are asked for.

    Attributes:
        shapes: shape of each tensor, by its name in the file.
        file: what to name in errors: the file, or the index of the shards.

    Raises:
        DataError: if there are no weights, only pickled ones, or a file is damaged.
    """

    def __init__(self, folder: Path):
        self.file, shards = _files(folder)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._homes: dict[str, Path] = {}
        self._kinds: dict[str, str] = {}
        for shard in shards:
            with _open(shard) as stream:
                names = stream.keys()
                for name in names:
                    piece = stream.get_slice(name)
                    self.shapes[name] = tuple(piece.get_shape())
                    self._homes[name], self._kinds[name] = shard, piece.get_dtype()

    def require_layers(self, count: int, config: Path) -> None:
        """Raises DataError where a config.json speaks of more layers than there are tensors, before anything is made
        for each of them."""
        if count > len(self.shapes):
            message = f"says that there are {count:,} layers; {self.file.name} holds {len(self.shapes):,} tensors"
            raise DataError(message, where=str(config), hint="give the config.json that belongs to the weights")

    def read(self, name: str) -> np.ndarray:
        """One tensor as float32. Raises DataError if it holds no finite floating-point numbers."""
        shard, kind = self._homes[name], self._kinds[name]
        if kind not in _FLOATS:
            raise DataError(
                f"{name} is stored as {kind}", where=str(shard), hint="quantised weights are not read; save them as F32"
            )
        with _open(shard) as stream:
            values = np.asarray(stream.get_tensor(name), np.float32)
        if not np.isfinite(values).all():
            raise DataError(f"{name} holds values that are not finite", where=str(shard), hint="fetch the file again")
        return values


def _files(folder: Path) -> tuple[Path, list[Path]]:
    """The file that stands for the weights, and all files that hold them."""
    if (folder / WEIGHTS).is_file():
        return folder / WEIGHTS, [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        return folder / INDEX, _shards(folder / INDEX)
    try:
        pickles = sorted(p.name for p in folder.iterdir() if is_pickle(p))
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(folder)) from error
    if pickles:
        raise refusal(folder / pickles[0], folder)
    raise DataError(f"there is no {WEIGHTS}", where=str(folder), hint="give a folder that save_pretrained has written")


def refusal(file: Path, folder: Path) -> DataError:
    """What is said of weights in a pickle."""
    load = f"AutoModel.from_pretrained({str(folder)!r})"
    save = f"save_pretrained({str(folder)!r}, safe_serialization=True)"
    return DataError(
        "is a pickle; to load one runs whatever code is in it, so it is not read",
        where=str(file),
        hint="where you trust it, let transformers write model.safetensors beside it: "
        f'python -c "from transformers import AutoModel; {load}.{save}"',
    )


def is_pickle(file: Path) -> bool:
    """Whether a file is called as pickled weights are, and begins as a pickle does, or as a zip archive with one."""
    if file.suffix not in _PICKLES or not file.is_file():
        return False
    with file.open("rb") as stream:
        return stream.read(2).startswith((b"\x80", b"PK"))


def _shards(index: Path) -> list[Path]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise DataError("has no weight_map", where=str(index), hint="fetch it again")
    names = sorted(set(places.values()))
    strangers = [name for name in names if Path(name).name != name]
    if strangers:
        raise DataError(f"names a file outside of its folder: {strangers[0]}", where=str(index))
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise DataError(
            f"names files that are not there: {first_of(missing)}", where=str(index), hint="fetch the folder again"
        )
    return [index.parent / name for name in names]


def _open(file: Path) -> Any:
    """A safetensors file, its header checked against its size."""
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework="np")
    except SafetensorError as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        message = f"is no whole safetensors file: {reason}"
        hint = "it is damaged or cut short: fetch or write it again"
        with file.open("rb") as stream:
            if stream.read(20).startswith(b"version https://git"):
                message, hint = "holds only a reference to the weights (Git LFS)", "run: git lfs pull"
        raise DataError(message, where=str(file), hint=hint) from error
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=str(file)) from error


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object. Raises DataError if the file is missing or is none."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"there is no {file.name}", where=str(file.parent)) from error
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(file)) from error
    except (ValueError, RecursionError) as error:  # neither UTF-8 nor JSON
        raise DataError(f"is not JSON: {error}", where=str(file), hint="fetch or write it again") from error
    if not isinstance(value, dict):
        raise DataError("is not a JSON object", where=str(file))
    return value


def first_of(names: list[str], most: int = 3) -> str:
    """The first few of many names."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")

"""The arrays of a checkpoint: a tree by path names in and out of Orbax."""

from __future__ import annotations

import errno
import math
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import DTypeLike

from bigctl.errors import RunError
from bigctl.parallel.partition import path_name
from bigctl.training.checkpoints import late_answers
from bigctl.training.state import TrainState, Tree, Weights

if TYPE_CHECKING:
    from orbax.checkpoint import AsyncCheckpointer
    from orbax.checkpoint.args import PyTreeSave

_OVERHEAD = 2**18  # bytes besides the arrays: indices, metadata, manifest

_SMALL = 2**24  # bytes of a state that are soon copied

_ON_DISK = {"anomaly_state": "guard"}
"""Parts of the state that have another name on disk than in memory, where names belong to the format."""


copied = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
"""A tree of arrays as it is now: the next step takes the memory of a state."""


def restore(
    checkpointer: AsyncCheckpointer, path: Path, shapes: dict[str, list[int]], abstract: TrainState
) -> TrainState:
    """The state in a checkpoint's folder, of arrays of these shapes, placed as `abstract` says.

    A momentum, or the norm of updates, that was turned on since begins with zeros; what was turned off is left out.

    Raises:
        RunError: if its arrays do not fit.
    """
    wanted = flatten(abstract)
    places = _places(shapes, wanted)
    here = {name: list(leaf.shape) for name, leaf in wanted.items()}
    anew = _anomaly_state(shapes) != _anomaly_state(here)
    fresh = {name for name in wanted if _can_begin(name) and places[name] not in shapes}
    fresh |= {name for name in _anomaly_state(wanted) if anew}
    names = {name: place for name, place in places.items() if name not in fresh}
    unused = set(shapes) - set(names.values())
    left = {name for name in unused if _can_begin(name)} | {name for name in _anomaly_state(shapes) if anew}
    _require_shapes(path, shapes, here, names, unused - left, "resume with the model and optimizer it was made with")
    item = {place: wanted[name] for name, place in names.items()}
    arrays = _read(checkpointer, path, item, all_of_it=not left)
    found = {name: arrays[place] for name, place in names.items()}
    for name in fresh:
        leaf = wanted[name]
        found[name] = jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)
    return jax.tree.unflatten(jax.tree.structure(abstract), [found[name] for name in wanted])


def restore_weights(
    checkpointer: AsyncCheckpointer, path: Path, shapes: dict[str, list[int]], abstract: Weights, *, averaged: bool
) -> Weights:
    """The weights in a checkpoint's folder, of arrays of these shapes, placed as `abstract` says: the averaged ones if
    `averaged`, and what the model updates by itself. Nothing else is read.

    Raises:
        RunError: if these arrays do not fit.
    """
    params = "ema/" if averaged else "params/"
    wanted = {re.sub("^params/", params, name): leaf for name, leaf in flatten(abstract).items()}
    here = {name: list(leaf.shape) for name, leaf in wanted.items()}
    unused = {name for name in shapes if name.startswith((params, "variables/")) and name not in wanted}
    hint = "use it with the model it was made with"
    _require_shapes(path, shapes, here, {name: name for name in wanted}, unused, hint)
    found = _read(checkpointer, path, wanted, all_of_it=False)
    return jax.tree.unflatten(jax.tree.structure(abstract), [found[name] for name in wanted])


def _require_shapes(
    path: Path,
    stored: dict[str, list[int]],
    here: dict[str, list[int]],
    places: dict[str, str],
    unused: Iterable[str],
    hint: str,
) -> None:
    """Raises RunError where an array is of another shape in the checkpoint, is missing there, or has no place here."""
    differing = [name for name, place in places.items() if stored.get(place) != here[name]]
    if name := next(iter([*differing, *sorted(unused)]), None):
        raise RunError(
            f"{name} is {stored.get(places.get(name, name), 'missing')} in the checkpoint and "
            f"{here.get(name, 'nothing')} in this configuration",
            where=str(path),
            hint=hint,
        )


def _read(checkpointer: AsyncCheckpointer, path: Path, item: dict[str, Any], *, all_of_it: bool) -> dict[str, Any]:
    """Arrays by name, placed as these ShapeDtypeStructs say. Raises RunError if they cannot be read."""
    import orbax.checkpoint as ocp

    arguments = ocp.args.PyTreeRestore(
        item=item,
        restore_args=ocp.checkpoint_utils.construct_restore_args(item),
        partial_restore=not all_of_it,
    )
    try:
        found: dict[str, Any] = checkpointer.restore(path.resolve() / "state", args=arguments)
    except Exception as error:
        raise RunError(f"cannot be loaded: {error}", where=str(path)) from error
    return found


def _can_begin(name: str) -> bool:
    """Whether this begins with zeros in the middle of a training too: a state of `optax.trace`, or the sum of the norms
    of updates, see `train.update_norm`."""
    return name == "sums/update_norm" or (name.startswith("opt_state/") and "/trace/" in name)


def _places(stored: Iterable[str], wanted: Iterable[str]) -> dict[str, str]:
    """Where in a checkpoint each of the wanted arrays is.

    In older ones an optimizer without clipping has no place for it: what follows stands one place earlier in the chain.
    """
    stored, wanted = set(stored), list(wanted)
    as_now = {name: name for name in wanted}
    earlier = {name: _CHAINED.sub(lambda match: f"{match[1]}{int(match[2]) - 1}/", name) for name in wanted}
    return max((as_now, earlier), key=lambda places: len(stored & set(places.values())))


_CHAINED = re.compile(r"^(opt_state/(?:inner_state/)?)(\d+)/")


def require_space(folder: Path, tree: dict[str, Any]) -> None:
    """Raise OSError where the disk has no room for a state: better before the save than in the middle of it."""
    if shutil.disk_usage(folder).free < size_of(tree) + _OVERHEAD:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_arrays(path: Path, names: Sequence[str], dtype: DTypeLike | None = np.float32) -> dict[str, np.ndarray]:
    """Some arrays of a checkpoint by their paths, on the host, as `dtype`, or with None as they were saved.

    Raises:
        RunError: if they cannot be read.
    """
    import orbax.checkpoint as ocp

    late_answers.ignore()
    reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True))
    whole = dict.fromkeys(names, ocp.RestoreArgs(restore_type=np.ndarray, dtype=dtype))
    arguments = ocp.args.PyTreeRestore(item=dict.fromkeys(names, 0), restore_args=whole, partial_restore=True)
    try:
        return reader.restore(path.resolve() / "state", args=arguments)
    except Exception as error:
        raise RunError(f"cannot be loaded: {error}", where=str(path)) from error
    finally:
        reader.close()


def flatten(tree: Tree) -> dict[str, Any]:
    """A tree as {path joined by "/": leaf}: what is stored, free of the classes that it came in."""
    return {_stored_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def shapes(tree: Tree) -> dict[str, list[int]]:
    return {name: list(np.shape(leaf)) for name, leaf in flatten(tree).items()}


def _stored_name(path: tuple[Any, ...]) -> str:
    first, slash, rest = path_name(path).partition("/")
    return f"{_ON_DISK.get(first, first)}{slash}{rest}"


def _anomaly_state(flat: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flat.items() if name.startswith("guard/")}


def save_args(tree: dict[str, jax.Array]) -> PyTreeSave:
    """What Orbax is to save: the arrays, or of a small state that is all in this process, copies on the host, which it
    writes in three fifths of the time."""
    import orbax.checkpoint as ocp

    here = all(getattr(leaf, "is_fully_addressable", True) for leaf in tree.values())  # as arrays of numpy are
    small = here and size_of(tree) <= _SMALL
    return ocp.args.PyTreeSave({name: np.array(leaf) for name, leaf in jax.device_get(tree).items()} if small else tree)


def size_of(tree: Tree) -> int:
    """Of a tree of arrays, or of their shapes [bytes]."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

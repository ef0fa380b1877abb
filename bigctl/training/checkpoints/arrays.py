"""The arrays of a checkpoint: a tree by path names in and out of Orbax."""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import DTypeLike

from bigctl.errors import RunError
from bigctl.parallel.partition import path_name
from bigctl.training.state import TrainState, Tree

if TYPE_CHECKING:
    from orbax.checkpoint import AsyncCheckpointer
    from orbax.checkpoint.args import PyTreeSave

_OVERHEAD = 2**18  # bytes besides the arrays: indices, metadata, manifest

_ON_DISK = {"anomaly_state": "guard"}
"""Parts of the state that have another name on disk than in memory, where names belong to the format."""


def restore(
    checkpointer: AsyncCheckpointer, path: Path, shapes: dict[str, list[int]], abstract: TrainState
) -> TrainState:
    """The state in a checkpoint's folder, of arrays of these shapes, placed as `abstract` says.

    Raises:
        RunError: if its arrays do not fit.
    """
    import orbax.checkpoint as ocp

    wanted = flatten(abstract)
    anew = _anomaly_state(shapes) != _anomaly_state({name: list(leaf.shape) for name, leaf in wanted.items()})
    fresh = _anomaly_state(wanted) if anew else {}
    if anew:
        wanted, shapes = ({n: v for n, v in side.items() if n not in _anomaly_state(side)} for side in (wanted, shapes))
    differing = [name for name, leaf in wanted.items() if shapes.get(name) != list(leaf.shape)]
    if differing or len(shapes) != len(wanted):
        name = differing[0] if differing else sorted(set(shapes) ^ set(wanted))[0]
        here = list(wanted[name].shape) if name in wanted else "nothing"
        raise RunError(
            f"{name} is {shapes.get(name, 'missing')} in the checkpoint and {here} in this configuration",
            where=str(path),
            hint="resume with the model and optimizer it was made with",
        )
    try:
        arrays = checkpointer.restore(
            path.resolve() / "state",
            args=ocp.args.PyTreeRestore(
                item=wanted,
                restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
                partial_restore=anew,
            ),
        )
    except Exception as error:
        raise RunError(f"cannot be loaded: {error}", where=str(path)) from error
    for name, leaf in fresh.items():
        arrays[name] = jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)
    return jax.tree.unflatten(jax.tree.structure(abstract), [arrays[name] for name in flatten(abstract)])


def require_space(folder: Path, tree: dict[str, Any]) -> None:
    """Raise OSError where the disk has no room for a state: better before the save than in the middle of it."""
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in tree.values())
    if shutil.disk_usage(folder).free < size + _OVERHEAD:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_arrays(path: Path, names: Sequence[str], dtype: DTypeLike | None = np.float32) -> dict[str, np.ndarray]:
    """Some arrays of a checkpoint by their paths, on the host, as `dtype`, or with None as they were saved.

    Raises:
        RunError: if they cannot be read.
    """
    import orbax.checkpoint as ocp

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
    import orbax.checkpoint as ocp

    return ocp.args.PyTreeSave(tree)

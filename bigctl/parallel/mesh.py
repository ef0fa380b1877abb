"""The devices as a mesh with named axes, and what a program knows of the mesh that it is traced for."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from bigctl.config import schema
from bigctl.errors import ConfigError
from bigctl.parallel.axes import BATCH_AXES, FAR, NAMES, TOKEN_AXES

Tree = TypeVar("Tree")


def make_mesh(config: schema.Mesh) -> Mesh:
    """A mesh over the devices of all processes.

    Raises:
        ConfigError: if there are fewer devices than asked for, or they cannot be shared evenly.
    """
    devices = _devices()
    sizes = dict(config.axes)
    rest = [name for name, size in sizes.items() if size == -1]
    if rest:
        fixed = math.prod(size for size in sizes.values() if size != -1)
        if len(devices) % fixed:
            raise ConfigError(
                f"{len(devices)} devices cannot be shared evenly by {fixed}",
                where="mesh",
                hint=f"a multiple of {fixed} devices, or axes whose product divides {len(devices)}",
            )
        sizes[rest[0]] = len(devices) // fixed
    needed = math.prod(sizes.values())
    if needed > len(devices):
        raise ConfigError(
            f"{_sizes_text(config.axes)} needs {needed} devices, there are {len(devices)}",
            where="mesh",
            hint="mesh=data uses all there are",
        )
    slices = _slices(devices, sizes[FAR], needed)
    chosen = [device for each in slices for device in each]
    idle = {device.process_index for device in devices} - {device.process_index for device in chosen}
    if idle:
        raise ConfigError(
            f"{_sizes_text(sizes)} leaves process {min(idle)} without a device",
            where="mesh",
            hint=f"mesh=data uses all {len(devices)} devices there are; or start fewer processes",
        )
    if chosen[0].platform == "tpu" and len(chosen) < len(devices) and len(chosen).bit_count() > 1:
        raise ConfigError(
            f"{len(chosen)} of {len(devices)} TPUs make no block that a program can run on",
            where="mesh",
            hint=f"mesh=data uses all {len(devices)} there are; or {1 << len(chosen).bit_length() - 1} devices",
        )
    kinds, shape = (AxisType.Auto,) * len(NAMES), (1, *(sizes[name] for name in NAMES[1:]))  # of a slice
    return Mesh(np.concatenate([_laid_out(shape, each) for each in slices]), NAMES, axis_types=kinds)


def _laid_out(shape: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices of a slice, or of hosts of GPUs, in the shape of a mesh: axes of TPUs along those of their torus, or
    along a part of one. `jax.make_mesh` would refuse parts, but of a v5e, and more than one host of GPUs."""
    from jax.experimental import mesh_utils

    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def _slices(devices: Sequence[jax.Device], count: int, needed: int) -> list[Sequence[jax.Device]]:
    """The devices in use, by the slices of `mesh.dcn`: those of one all lie in one slice of a TPU, or lie together in
    jax's order, which is that of hosts. Raises ConfigError where the machine's slices are others."""
    by_slice: dict[int, list[jax.Device]] = {}
    for device in devices:
        by_slice.setdefault(getattr(device, "slice_index", None) or 0, []).append(device)
    there, each = len(by_slice), needed // count
    if count == 1 and needed <= len(first := next(iter(by_slice.values()))):
        return [first[:needed]]
    if there == 1 or (count == 1 and devices[0].platform != "tpu"):  # of GPUs a host is a slice; axes may go over hosts
        return [devices[i * each : (i + 1) * each] for i in range(count)]
    if count % there or any(len(own) < each * (count // there) for own in by_slice.values()):
        asked = f"mesh.dcn={count} slices of {each} devices do" if count > 1 else f"a mesh of {each} devices does"
        raise ConfigError(
            f"{asked} not lie in {there} slices of {len(devices) // there}",
            where="mesh.dcn",
            hint=f"mesh.dcn={there}, and axes whose product divides {len(devices) // there}",
        )
    return [own[i * each : (i + 1) * each] for own in by_slice.values() for i in range(count // there)]


_given: ContextVar[Sequence[jax.Device] | None] = ContextVar("given", default=None)


@contextmanager
def over(devices: Sequence[jax.Device]) -> Iterator[None]:
    """Meshes that are made in this context are over these devices, such as those of a machine that is not here."""
    token = _given.set(devices)
    try:
        yield
    finally:
        _given.reset(token)


def _devices() -> list[jax.Device]:
    """The devices of all processes. Raises ConfigError where there are none."""
    if (given := _given.get()) is not None:
        return list(given)
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # jax asserts where JAX_PLATFORMS leaves it nothing
        asked = os.environ.get("JAX_PLATFORMS")
        text = str(error).strip().splitlines()
        raise ConfigError(
            f"jax finds no device to compute on{f': {text[0]}' if text else ''}",
            where=f"JAX_PLATFORMS={asked}" if asked else None,
            hint="unset it, or install for that device; `bigctl doctor` checks" if asked else "see `bigctl doctor`",
        ) from error


def _sizes_text(sizes: dict[str, int]) -> str:
    return " x ".join(f"mesh.{name}={size}" for name, size in sizes.items())


def batch_sharding(mesh: Mesh, *, leading: int = 0) -> NamedSharding:
    """Placement of a batch: its batch dimension, after `leading` others, over the axes that share it."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * leading, BATCH_AXES))


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """In how many parts a batch lies on the mesh."""
    return math.prod(mesh.shape[name] for name in BATCH_AXES)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def put(values: np.ndarray, where: Sharding) -> jax.Array:
    """An array that every process has, placed; each sends its own devices' part, and none asks whether all agree."""
    if where.is_fully_addressable:
        return jax.device_put(values, where)
    return jax.make_array_from_callback(values.shape, where, lambda index: values[index])


def put_batch(
    gather: Callable[[np.ndarray], dict[str, np.ndarray]], indices: np.ndarray, where: NamedSharding
) -> dict[str, jax.Array]:
    """The global batch of these indices, of which each process gathers only what its own devices hold."""
    if where.is_fully_addressable:
        return jax.device_put(gather(indices), where)
    count = len(indices)
    places = {}
    for device, index in where.addressable_devices_indices_map((count,)).items():
        assert index is not None
        places[device] = index[0].indices(count)[:2]
    parts = {(start, stop): gather(indices[start:stop]) for start, stop in set(places.values())}
    batch: dict[str, jax.Array] = {}
    (start, stop), first = next(iter(parts.items()))
    for name, column in first.items():
        pieces = [jax.device_put(parts[rows][name], device) for device, rows in places.items()]
        whole = count * len(column) // (stop - start), *column.shape[1:]  # a row may hold several examples
        batch[name] = jax.make_array_from_single_device_arrays(whole, where, pieces)
    return batch


def on_host(tree: Tree) -> Tree:
    """A tree of arrays on the host, whole, also where this process has only parts of them; called by all."""
    leaves = jax.tree.leaves(tree)
    if not all(leaf.is_fully_addressable or leaf.is_fully_replicated for leaf in leaves):
        tree = jax.jit(lambda tree: tree, out_shardings=replicated(leaves[0].sharding.mesh))(tree)
    held: Tree = jax.device_get(tree)
    return held


# ------------------------------------------------------------------------------------------------ inside a program


_platform: ContextVar[str | None] = ContextVar("platform", default=None)
_deterministic: ContextVar[bool] = ContextVar("deterministic", default=False)
_context_by: ContextVar[str] = ContextVar("context_by", default=schema.GATHER)
_kernels: ContextVar[dict[str, str] | None] = ContextVar("kernels", default=None)


@contextmanager
def used(mesh: Mesh, *, deterministic: bool = False, context_by: str = schema.GATHER) -> Iterator[None]:
    """What is traced in this context is for that mesh: `placed`, `shards_in_use` and `platform_in_use` know it.

    deterministic: whether it is compiled for deterministic kernels, see `deterministic_in_use`.
    context_by: `schema.Mesh.context_by`.
    """
    token = _platform.set(mesh.devices.flat[0].platform)
    exact = _deterministic.set(deterministic)
    by = _context_by.set(context_by)
    try:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh) if mesh.size > 1 else nullcontext():
            yield
    finally:
        _context_by.reset(by)
        _deterministic.reset(exact)
        _platform.reset(token)


def deterministic_in_use() -> bool:
    """Whether the program that is traced is compiled for deterministic kernels, which some are told one by one."""
    return _deterministic.get()


def context_by_in_use() -> str:
    """`schema.Mesh.context_by` of the program that is traced."""
    return _context_by.get()


def platform_in_use() -> str | None:
    """What the devices are that a program is traced for: "cpu", "gpu" or "tpu"; None outside of `used`.

    Which kernel a layer uses follows from this, never from the machine that traces it: that may have other devices.
    """
    return _platform.get()


@contextmanager
def recorded_kernels() -> Iterator[dict[str, str]]:
    """Kernels by what they compute, such as "attention", as the programs that are traced in this context use them."""
    found: dict[str, str] = {}
    token = _kernels.set(found)
    try:
        yield found
    finally:
        _kernels.reset(token)


def record_kernel(purpose: str, kernel: str) -> None:
    """Say which kernel is used, for `recorded_kernels`."""
    found = _kernels.get()
    if found is not None:
        found[purpose] = kernel


def placed(x: jax.Array, *axes: str | None) -> jax.Array:
    """x with its first dimensions cut over these axes, where they divide them; "batch" stands for those of batches,
    "tokens" for those whose devices have different tokens.

    XLA places what is computed after what it is computed from, parameters too: where `fsdp` cuts those, it would rather
    send activations about than gather parameters. Outside of `used` x stays as it is.
    """
    mesh = mesh_in_use()
    if mesh is None:
        return x
    several = {"batch": BATCH_AXES, "tokens": TOKEN_AXES}
    sizes = {**{name: math.prod(mesh.shape[a] for a in held) for name, held in several.items()}, **mesh.shape}
    fitting = (name if name and size % sizes[name] == 0 else None for name, size in zip(axes, x.shape, strict=False))
    spec = PartitionSpec(*(several.get(name, name) if name else None for name in fitting))
    return jax.lax.with_sharding_constraint(x, spec)


def summed(parts: jax.Array, rows: str, columns: str) -> jax.Array:
    """The sum over the first dimension of parts [shards, rows, columns], of which each device has its own, in the type
    that the parts have: what devices send each other is no wider. Slices add up within themselves first, and each of
    their devices, by the axes that cut rows and columns there, sends a part of that to the others."""

    def added(parts: jax.Array, dimension: int) -> jax.Array:
        return jax.lax.reduce(parts, np.zeros((), parts.dtype), jax.lax.add, (dimension,))

    mesh = mesh_in_use()
    slices = 1 if mesh is None else mesh.shape[FAR]
    if slices > 1 and len(parts) % slices == 0:
        parts = placed(added(parts.reshape(slices, -1, *parts.shape[1:]), 1), FAR, rows, columns)
    return added(parts, 0)


def shards_in_use() -> int:
    """In how many parts batches lie on the mesh that a program is traced for; 1 outside of `used`."""
    mesh = mesh_in_use()
    return 1 if mesh is None else batch_shards(mesh)


def token_shards_in_use(length: int) -> tuple[int, int]:
    """In how many parts batches lie on the mesh in use, and texts of so many tokens: 1 where they are not cut."""
    mesh = mesh_in_use()
    if mesh is None:
        return 1, 1
    return batch_shards(mesh), 1 if length % mesh.shape["context"] else mesh.shape["context"]


def by_shard(x: jax.Array, shards: tuple[int, int]) -> jax.Array:
    """x [batch, length, *rest] as [shards, tokens of one, *rest], each on the devices that have it; `shards` are those
    of `token_shards_in_use`, which divide it."""
    batch, texts = shards
    if texts == 1:
        return x.reshape(batch, -1, *x.shape[2:])
    parts = x.reshape(batch, -1, texts, x.shape[1] // texts, *x.shape[2:]).swapaxes(1, 2)
    return placed(parts.reshape(batch * texts, -1, *x.shape[2:]), "tokens")


def mesh_in_use() -> AbstractMesh | None:
    mesh = jax.sharding.get_abstract_mesh()
    return mesh if mesh.axis_names == NAMES else None


# --------------------------------------------------------------------------------------------------------- checks


def check_batch(mesh: Mesh, batch_size: int, accumulate: int) -> None:
    """Raise ConfigError where a batch cannot be divided evenly over the devices."""
    shards = batch_shards(mesh)
    if (batch_size // accumulate) % shards:
        unit = shards * accumulate
        near = [n for n in (batch_size // unit * unit, (batch_size // unit + 1) * unit) if n]
        parts = f" in {accumulate} parts" if accumulate > 1 else ""
        raise ConfigError(
            f"train.batch_size={batch_size}{parts} cannot be divided evenly over {shards} devices",
            where="train.batch_size",
            hint=f"choose a multiple of {unit}, such as {' or '.join(map(str, near))}, or mesh=single",
        )


def check_model(mesh: Mesh, config: schema.Config) -> None:
    """Raise ConfigError where the layers of a model cannot be shared out over an axis, or what it keeps in the host's
    memory cannot be put there."""
    device = mesh.devices.flat[0]
    kinds = {memory.kind for memory in device.addressable_memories()}  # none where a program is only compiled for it
    if getattr(config.model, "remat", "none") == "offload" and kinds and "pinned_host" not in kinds:
        message = f"a {device.device_kind} reaches no pinned memory of its host, which model.remat=offload is kept in"
        raise ConfigError(message, where="model.remat", hint="model.remat=names keeps the same on the device")
    sizes = {str(axis): size for axis, size in mesh.shape.items() if size > 1}
    for where, message, hint in config.mesh.layer_problems(config, sizes):
        raise ConfigError(message, where=where, hint=hint)

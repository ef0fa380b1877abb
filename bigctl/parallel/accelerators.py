"""What XLA is asked for on each kind of device, with a reason beside each; given to `jax.jit` program by program, never
through `XLA_FLAGS`, which are the user's."""

from __future__ import annotations

from jax.sharding import Mesh

Options = dict[str, bool | int | str]


def compiler_options(mesh: Mesh, *, deterministic: bool) -> Options:
    """Of the programs that train, on the devices of a mesh."""
    options: Options = {}
    if mesh.devices.flat[0].platform == "gpu" and deterministic:
        options["xla_gpu_deterministic_ops"] = True  # no sums by atomics, no kernels chosen by their time
    return options

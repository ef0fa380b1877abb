"""`--format jax`: StableHLO that jax alone loads, with weights beside it; the same for cpu, cuda and tpu."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
from jax import export

from bigctl.inference.exporters import folder as folders
from bigctl.inference.exporters.agreement import require_agreement
from bigctl.inference.exporters.formats import Exported
from bigctl.inference.exporters.network import Arrays, Network, on_cpu
from bigctl.inference.trained import TrainedRun
from bigctl.interop.folders import require_new, whole_or_nothing

PLATFORMS = ("cpu", "cuda", "tpu")
MODEL, WEIGHTS = "model.jax", "weights.npz"
RUNTIME = folders.Runtime(
    "jax",
    ("from jax import export",),
    ("jax", "flatbuffers"),
    f"`{MODEL}` is what `jax.export` serialises, for {', '.join(PLATFORMS)}; it takes `{WEIGHTS}` first.",
)


def require(trained: TrainedRun) -> None:
    """See `formats.Exporter`; there is nothing that jax has no place for."""


def write(trained: TrainedRun, folder: Path) -> Exported:
    """See `formats.Exporter`."""
    require_new(folder)
    network = Network.of(trained)
    made = export.export(jax.jit(network.function), platforms=PLATFORMS)(network.weight_shapes, network.inputs)
    with whole_or_nothing(folder) as partial:
        (partial / MODEL).write_bytes(made.serialize())
        np.savez(partial / WEIGHTS, **network.weights)  # type: ignore[arg-type]
        agreement = require_agreement(network, Loaded(partial), "model.jax")
        argument = folders.complete(partial, trained, network, RUNTIME, agreement)
    facts = {
        "what": f"StableHLO for {', '.join(PLATFORMS)}",
        "difference": agreement.difference,
        "checked": str(agreement),
    }
    return folders.exported(folder, argument, trained, facts, served=True)


class Loaded:
    """An exported model, as it lies on disk."""

    runtime = f"jax {jax.__version__}"

    def __init__(self, folder: Path):
        model = export.deserialize(bytearray((folder / MODEL).read_bytes()))
        self._call = jax.jit(model.call)
        with np.load(folder / WEIGHTS) as weights, on_cpu():
            self._weights = {name: jax.device_put(values) for name, values in weights.items()}

    def __call__(self, inputs: Arrays) -> Arrays:
        with on_cpu():
            return {name: np.asarray(values) for name, values in self._call(self._weights, inputs).items()}

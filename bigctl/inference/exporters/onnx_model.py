"""`--format onnx`: an ONNX graph with the weights in it, for onnxruntime."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
import onnxruntime

from bigctl.errors import ConfigError, RunError
from bigctl.files import sha256
from bigctl.inference.exporters import beside, cached
from bigctl.inference.exporters import folder as folders
from bigctl.inference.exporters.agreement import TOLERANCE, difference, require_agreement
from bigctl.inference.exporters.formats import Exported
from bigctl.inference.exporters.network import Arrays, Network, on_cpu
from bigctl.inference.exporters.onnx_session import Loaded
from bigctl.inference.trained import TrainedRun
from bigctl.interop.folders import require_new, whole_or_nothing
from bigctl.interop.onnx import quantise
from bigctl.interop.onnx.convert import Watched, evaluated, to_onnx
from bigctl.interop.onnx.graph import OPSET
from bigctl.models import lstm
from bigctl.models.rounded import PRODUCT_LEVELS, rounded_weights

MODEL = "model.onnx"
LARGEST = 2**31 - 2**20
"""Bytes that an ONNX file can have."""
BITS_OF = {"int8": 8}
"""Of what `train.quantize` names."""
RUNTIME = folders.Runtime(
    "onnx",
    ("import onnxruntime",),
    ("onnxruntime",),
    f"`{MODEL}` is ONNX, opset {OPSET}, with the weights in it.",
)


def require(trained: TrainedRun) -> None:
    """See `formats.Exporter`."""
    if experts := getattr(trained.config.model, "experts", None):
        what = f"a model of experts (model.experts={experts}) is not written as ONNX"
        raise ConfigError(what, where=str(trained.run.path), hint="--format jax or --format hf")
    size = sum(4 * np.size(leaf) for leaf in jax.tree.leaves((trained.params, trained.variables)))
    if size > LARGEST:
        what = f"the weights take {size / 2**30:.1f} GiB, more than an ONNX file can hold"
        raise ConfigError(what, where=str(trained.run.path), hint="--format jax has no such limit")


def write(trained: TrainedRun, folder: Path, bits: int | None = None, *, cache: bool = False) -> Exported:
    """See `formats.Exporter`; with `bits` 8 or 4 its weights are rounded, see `quantise`; with `cache` see `cached`."""
    require_new(folder)
    network = cached.of(trained) if cache else Network.of(trained)
    model = _graph(trained, network, in_steps=False)
    if _has_layers(model) and not _agrees(network, model):  # padding elsewhere than behind the tokens, for one
        model = _graph(trained, network)
    with whole_or_nothing(folder) as partial:
        onnx.save(model, partial / MODEL)
        loaded = Loaded((partial / MODEL).read_bytes())
        agreement = require_agreement(network, loaded, MODEL, lambda batch: begins(network, batch))
        facts = {"opset": OPSET, "difference": agreement.difference, "checked": str(agreement)}
        lines, nodes = list[str](), len(model.graph.node)
        if cache:
            facts["text"] = cached.require_same_text(trained, network, loaded, MODEL)
        if bits is not None:
            lines, rounded = _round(trained, network, model, loaded, partial / MODEL, bits)
            facts |= {"lines": lines, "rounded": rounded}
            nodes = rounded["nodes"]
        argument = folders.complete(partial, trained, network, RUNTIME, agreement, lines)
    kind = "float32" if bits is None else f"int{bits}"
    what = f"ONNX, opset {OPSET}, {nodes} nodes, {kind}"
    served = trained.features.kind != "stream"  # what writes text is served as its run, or as jax
    return folders.exported(folder, argument, trained, {"what": what, **facts}, served=served)


def _graph(trained: TrainedRun, network: Network, *, in_steps: bool = True) -> onnx.ModelProto:
    """The model, checked; a layer of an LSTM as one operator or, `in_steps`, as the products that it consists of."""
    with contextlib.nullcontext() if in_steps else lstm.layers_called():
        model = to_onnx(network.function, network.weights, network.inputs, name=trained.run.path.name)
    model.doc_string = f"{trained.run.path.name}, step {trained.step}"
    onnx.checker.check_model(model)
    return model


def _has_layers(model: onnx.ModelProto) -> bool:
    return any(node.op_type == "LSTM" for node in model.graph.node)


def _agrees(network: Network, model: onnx.ModelProto) -> bool:
    try:
        require_agreement(network, Loaded(model.SerializeToString()), MODEL)
    except Exception:  # of onnxruntime, too; what is written instead is held by the same rule, and told
        return False
    return True


def _round(
    trained: TrainedRun, network: Network, model: onnx.ModelProto, loaded: Loaded, file: Path, bits: int
) -> tuple[list[str], dict[str, Any]]:
    """Write the model again with its weights rounded; gives what that costs and gains, for people and as JSON."""
    where, before = str(trained.run.path), file.stat().st_size
    kept = _static(trained) if bits == 8 and trained.run.static.is_file() else None
    rounded, counted = kept or quantise.quantised(model, bits, where)
    onnx.save(rounded, file)
    try:
        after = Loaded(file.read_bytes())
    except Exception as error:  # onnxruntime's own, of several kinds
        what = f"this onnxruntime ({onnxruntime.__version__}) does not load weights of {bits} bits"
        raise RunError(what, where=where, hint="pip install --upgrade onnxruntime, or --int8") from error
    found = beside.compare(trained, network, loaded, after, where)
    size = file.stat().st_size
    lines = [str(counted), f"{MODEL}: {before:,} -> {size:,} bytes ({size / before:.0%})", *found.lines]
    facts = {**found.to_json(), **asdict(counted), "file_before": before, "file_after": size}
    facts["nodes"] = len(rounded.graph.node)
    if bits == BITS_OF.get(trained.config.train.quantize or ""):
        told, facts["trained_for"] = _as_trained(trained, network, rounded, after)
        lines += told
    return lines, facts


def _static(trained: TrainedRun) -> tuple[onnx.ModelProto, quantise.Quantised]:
    """The model that `bigctl compress method=int8 ranges=` left in the run. Raises RunError where it has changed."""
    file, where = trained.run.static, str(trained.run.static)
    if sha256(file) != trained.run.record().get("static"):
        raise RunError(
            "is not what was written here", where=where, hint="compress the run that it was made of once more"
        )
    return onnx.load(file), quantise.Quantised(**trained.run.summary()["compression"]["static"])


def _as_trained(
    trained: TrainedRun, network: Network, rounded: onnx.ModelProto, after: Loaded
) -> tuple[list[str], dict[str, Any]]:
    """How a run that was fine-tuned for these integers is met: they must be those that it was trained with.

    Raises:
        RunError: if they are not.
    """
    where, quantize = str(trained.run.path), trained.config.train.quantize
    integers = quantise.products(rounded)
    wanted = {name: np.asarray(values) for name, values in rounded_weights(dict(network.weights)).items()}
    pairs = [(network.weights[name], wanted[name], integers[name]) for name in integers if name in wanted]
    off = max((off_beyond_ties(*pair) for pair in pairs), default=0.0)
    if off > TOLERANCE:
        what = f"the integers are not those that train.quantize={quantize} trained with: off by {off:.2g}"
        raise RunError(what, where=where, hint="nothing was written; this is a mistake in bigctl: please report it")
    own = Network.of(trained, rounded=True)
    found = beside.compare(trained, network, own.copy(own.weights), after, where, sizes=())
    lines = [
        f"train.quantize={quantize}: the integers of {len(pairs)} products are those trained with; beside the run:"
    ]
    return [*lines, *found.lines], {"products": len(pairs), **found.to_json()}


def off_beyond_ties(weights: np.ndarray, trained: np.ndarray, written: np.ndarray) -> float:
    """`difference` of rounded weights [inputs, outputs], but for those halfway between two integers: quotients of XLA
    are not those of numpy to the last bit, and of a few million weights some go the other way."""
    if trained.shape != written.shape:
        return difference(trained, written)
    step = np.abs(weights).max(0, initial=0) / PRODUCT_LEVELS
    halfway = np.abs(weights - (trained + written) / 2) <= TOLERANCE * step
    return difference(trained, np.where(halfway & (np.abs(trained - written) <= 1.01 * step), trained, written))


def begins(network: Network, batch: Arrays) -> str | None:
    """The first operation whose results differ from jax's, and the line it comes from; None where there is none, as
    where a fusion of the runtime is wrong."""
    shapes = {name: jax.ShapeDtypeStruct(values.shape, values.dtype) for name, values in batch.items()}
    watched: list[Watched] = []
    model = to_onnx(network.function, network.weights, shapes, watched=watched)
    found = Loaded(model.SerializeToString(), optimised=False)(batch)
    with on_cpu():
        closed = jax.jit(network.function).trace(dict(network.weights), shapes).jaxpr
        arguments = [network.weights[name] for name in sorted(network.weights)]
        expected = list(evaluated(closed, [*arguments, *(batch[name] for name in sorted(batch))]))
    for (eqn, values), (_, place, names) in zip(expected, watched, strict=True):
        for value, name in zip(values, names, strict=False):  # what depends on weights alone has no names
            off = difference(np.asarray(value), np.asarray(found[name]))
            if off > TOLERANCE:
                return f"at `{eqn.primitive.name}` in {place}, off by {off:.2g}"
    return None

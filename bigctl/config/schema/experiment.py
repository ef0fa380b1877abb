"""Keys of what every experiment has: devices, loop, validation, checkpoints; and the whole of it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from bigctl.config.schema.adversarial import Adversarial
from bigctl.config.schema.base import (
    FREE,
    MISSING,
    STRUCTURAL,
    Checked,
    Component,
    Problem,
    Whole,
    cadence_problems,
    key,
    kind,
)
from bigctl.config.schema.data import Data
from bigctl.config.schema.distil import Distil
from bigctl.config.schema.extensions import Callback, Metric
from bigctl.config.schema.federated import Federated
from bigctl.config.schema.models import Model
from bigctl.config.schema.optimizers import Optimizer, Schedule
from bigctl.config.schema.privacy import Privacy
from bigctl.config.schema.recipes import Recipe
from bigctl.config.schema.tokenizers import StreamTokenizer


def axis(default: int, doc: str, *, shares_batch: bool = False, shares_layers: bool = False) -> Any:
    """The size of one axis of the mesh; what it shards is in `parallel.axes`.

    Args:
        default: of its size.
        doc: one sentence.
        shares_batch: whether its devices have different examples.
        shares_layers: whether its devices compute different parts of a layer, which the model must allow.
    """
    told = {"shares_batch": shares_batch, "shares_layers": shares_layers}
    return field(default=default, metadata={**key(default, doc, drift=FREE).metadata, **told})


GATHER, ZIGZAG = "gather", "zigzag"
CONTEXT_WAYS = (GATHER, "ring", ZIGZAG)


@dataclass
class Mesh(Component):
    """How many devices along each axis; -1 takes all that are left."""

    group_name: ClassVar[str] = "mesh"
    kind: str = kind("mesh")
    dcn: int = axis(
        1, "Slices of TPUs, or other groups of devices far from each other, that share the batch; gradients cross.",
        shares_batch=True,
    )  # fmt: skip
    data: int = axis(-1, "Devices that share the batch, each with all parameters.", shares_batch=True)
    fsdp: int = axis(1, "Devices that share the batch and the parameters.", shares_batch=True)
    context: int = axis(
        1, "Devices that share the places of each text, in every layer: for long texts.", shares_layers=True
    )
    tensor: int = axis(
        1, "Devices that share the work of each layer on the same examples: heads, MLP width, vocabulary.",
        shares_layers=True,
    )  # fmt: skip
    expert: int = axis(1, "Devices that share the batch and the experts.", shares_batch=True, shares_layers=True)
    context_by: str = key(
        ZIGZAG,
        "How devices of mesh.context see each other's keys and values: gather those of a layer; ring, pass them on; "
        "zigzag, the same with an early and a late part of the text on each device, so that all have as much to do.",
        drift=FREE,
        choices=CONTEXT_WAYS,
    )
    wait: int = key(300, "How long several processes wait for each other at the start [s].", drift=FREE, ge=1)
    min_shard: int = key(2**14, "Smallest parameter worth sharding over fsdp [elements].", drift=FREE, ge=0)

    @property
    def axes(self) -> dict[str, int]:
        """Sizes by name, the outermost axis first."""
        return {f.name: getattr(self, f.name) for f in fields(self) if "shares_batch" in f.metadata}

    @classmethod
    def batch_axes(cls) -> tuple[str, ...]:
        """The axes whose devices have different examples."""
        return tuple(f.name for f in fields(cls) if f.metadata.get("shares_batch"))

    @classmethod
    def layer_axes(cls) -> tuple[str, ...]:
        """The axes whose devices compute different parts of a layer."""
        return tuple(f.name for f in fields(cls) if f.metadata.get("shares_layers"))

    def layer_problems(self, config: Whole, sizes: Mapping[str, int]) -> Iterator[Problem]:
        """Why the layers of a model cannot be shared out over axes of these sizes."""
        for name, size in sizes.items():
            if name in self.layer_axes():
                yield from config.model.check_shared(name, size)
        yield from _context_problems(config, sizes.get("context", 1), self.context_by)

    def check(self, config: Whole) -> Iterator[Problem]:
        axes = self.axes
        for name, size in axes.items():
            if size == 0 or size < -1:
                remedy = "a number of devices, or -1 for all that are left"
                yield f"mesh.{name}", f"mesh.{name} cannot be {size}", remedy
                return
        rest = [name for name, size in axes.items() if size == -1]
        if len(rest) > 1:
            which = " and ".join(f"mesh.{name}" for name in rest)
            yield f"mesh.{rest[0]}", f"{which} are both -1", "give all but one of them a number"
            return
        devices, fixed = _devices_without_jax(), math.prod(size for size in axes.values() if size != -1)
        if rest:
            if devices is not None and devices % fixed:
                yield "mesh.fsdp", f"{devices} devices cannot be shared evenly by {fixed}", "choose a divisor of them"
                return
            axes[rest[0]] = devices // fixed if devices is not None else 1
        asked = {name: axes[name] for name, size in self.axes.items() if size != 1}
        yield from self.layer_problems(config, asked)
        yield from _batch_problems(config.train, math.prod(axes[name] for name in self.batch_axes()))


def _context_problems(config: Whole, size: int, by: str) -> Iterator[Problem]:
    """Whether windows of text can be cut evenly over so many devices."""
    if size > 1 and config.train.privacy.on:
        yield "mesh.context", "mesh.context is not for train.privacy", "mesh=data shares out the examples"
    block, parts = config.block, 2 if by == ZIGZAG else 1
    unit = size * parts
    if size == 1 or block is None or block % unit == 0:
        return
    devices = _devices_without_jax() or 0  # which what is proposed divides as well, where what is asked does
    whole = devices if devices % size == 0 else 0
    near = max((n for n in range(1, size) if block % (n * parts) == whole % n == 0), default=1)
    message = f"windows of {block} tokens cannot be cut over mesh.context={size} devices"
    message += " in two parts each" if parts > 1 else ""
    ways = f"mesh.context={near}, or recipe.block={max(1, block // unit) * unit}"
    ways += ", or mesh.context_by=ring" if block % size == 0 else ""
    yield "mesh.context", message, f"for example {ways}"


def _batch_problems(train: Train, shards: int) -> Iterator[Problem]:
    """Whether a batch, or each part of it, can be divided evenly over the devices that share it."""
    if type(train.batch_size) is not int:  # what is measured fits
        return
    micro = train.batch_size // train.accumulate
    if micro % shards:
        part = f"train.batch_size={train.batch_size}"
        if train.accumulate > 1:
            part += f" in {train.accumulate} parts"
        low = max(1, micro // shards) * shards * train.accumulate
        message = f"{part} cannot be divided evenly over {shards} devices"
        yield "train.batch_size", message, f"for example train.batch_size={low}"


def _devices_without_jax() -> int | None:
    """The number of devices where the environment alone tells it: simulated ones, of all processes."""
    match = re.search(r"--xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    processes = os.environ.get("JAX_NUM_PROCESSES", "")
    return int(match[1]) * (int(processes) if processes.isdecimal() else 1) if match else None


AUTO = "auto"
"""Leaves the size of batches to be measured when a run begins, which then keeps what was found."""
if TYPE_CHECKING:
    BatchSize = int  # to all that reads it after `engine.batch_size` has measured it
else:
    BatchSize = int | str

PRECISIONS = ("float32", "bfloat16")
TRACKERS = ("wandb", "mlflow")
QUANTIZED = ("int8",)
_OF_DENSE_LAYERS = ("mlp", "lstm", "bert", "gpt", "llama", "vit")
"""Models whose products are those of dense layers; an export leaves convolutions as they are."""


@dataclass
class EarlyStop:
    patience: int | None = key(None, "Stop after this many evaluations without a better one; null for never.", ge=1)
    min_delta: float = key(0.0, "What counts as better: an improvement by more than this.", ge=0)
    target: float | None = key(None, "Stop when the selection metric reaches this.")


@dataclass
class Divergence:
    """What becomes of steps whose loss, gradient or weights are not finite, or spike."""

    policy: str = key(
        "stop",
        "At such a step stop the run, skip the update, or rewind: go back to the last checkpoint of checkpoint.every "
        "and past the batches since.",
        choices=("stop", "skip", "rewind"),
    )
    deviations: float | None = key(
        None,
        "A loss or gradient norm this far above the mean of the window is a spike; null for none, to judge by "
        "finiteness alone [standard deviations].",
        gt=0,
    )
    window: int = key(
        128, "How many of the latest good steps that mean is of; nothing spikes in half of that [steps].", ge=2
    )
    limit: int = key(10, "Steps skipped in a row, or rewinds to one checkpoint, that are not yet too many.", ge=1)


@dataclass
class Train(Checked):
    steps: int | None = key(None, "Length of training; wins over epochs of a preset [steps].", drift=FREE, gt=0)
    epochs: float | None = key(None, "Length of training [passes over the training split].", drift=FREE, gt=0)
    max_minutes: float | None = key(
        None, "Save and exit with code 75 so long after the start; null for no limit [minutes].", drift=FREE, gt=0
    )
    step_timeout: float | None = key(
        None, "End with code 6 where no step comes for so long, and say who does not come; null to go by the pace so "
        "far, which ends several processes and only warns a single one [s].", drift=FREE, gt=0,
    )  # fmt: skip
    batch_size: BatchSize = key(
        128, "Global batch size; auto for the largest that fits, measured when a run begins [examples].", decided=True,
        gt=0,
    )  # fmt: skip
    accumulate: int = key(
        1, "Parts the batch is computed in, to save memory; the result is that of the whole batch.", ge=1
    )
    precision: str = key(
        "float32", "Type that activations are computed in; master weights stay float32.", choices=PRECISIONS
    )
    ema: float = key(
        0.0, "Decay of the averaged weights, which are then evaluated and exported; 0 for none.", drift=STRUCTURAL,
        ge=0, lt=1,
    )  # fmt: skip
    keep_zeros: bool = key(
        False, "Kernels' weights that model.init_from brings along as 0, as of a pruned run, stay 0; the head's do not."
    )
    quantize: str | None = key(
        None,
        "Fine-tune the weights of model.init_from for an export with integers of this kind: they and what dense "
        "layers are given are rounded in each step and whenever the run is used; null for none.",
        choices=QUANTIZED,
    )
    early_stop: EarlyStop = key(EarlyStop, "When to stop before the end.")
    divergence: Divergence = key(Divergence, "What to do when training goes wrong.")
    adversarial: Adversarial = key(Adversarial, "Training on images that are moved against the model.")
    privacy: Privacy = key(Privacy, "Training with differential privacy.")
    federated: Federated = key(Federated, "Training by clients, each on examples of its own.")
    overfit_one_batch: bool = key(
        False, "Train on the first batch alone, as it is: a model that cannot learn it is broken."
    )
    log_every: int | None = key(
        None, "Cadence of training metrics; null for about 200 of them, however long it is [steps].", drift=FREE, ge=1
    )
    update_norm: bool = key(
        False, "Tell the norm of what each step adds to the weights, train/update_norm, which costs reading them and "
        "the optimizer's state once more; federated training always does.", drift=FREE,
    )  # fmt: skip
    steps_per_dispatch: int | None = key(
        None, "Steps per call of the compiled program; null to choose.", drift=FREE, ge=1
    )
    deterministic: bool = key(True, "Use only deterministic kernels on GPU, which bit-exact resume needs.")
    tensorboard: bool = key(True, "Write TensorBoard events.", drift=FREE)
    trackers: list[str] = key(
        [], "Services that metrics and configuration are also sent to, as [wandb].", drift=FREE, choices=TRACKERS
    )
    tracker_project: str | None = key(
        None, "Project there; null for WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME, else bigctl.", drift=FREE
    )
    callbacks: list[str] = key([], "What of a plugin is told of evaluations, logs, saves and the end.", drift=FREE)
    compile_cache: bool = key(True, "Keep compiled programs between starts.", drift=FREE)
    keep_diff: bool = key(
        True, "Keep uncommitted changes of the code in run.json, without what looks like a secret.", drift=FREE
    )

    def __post_init__(self) -> None:
        if str(self.batch_size).isdecimal():  # digits in quotes, or from a variable of the environment
            self.batch_size = int(self.batch_size)

    @property
    def measures_batch_size(self) -> bool:
        """Whether the size of batches is still to be measured."""
        return str(self.batch_size) == AUTO

    def check(self, config: Whole) -> Iterator[Problem]:
        yield from Callback.problems(self.callbacks)
        yield from self.adversarial.problems(config)
        yield from self.privacy.problems(config)
        yield from self.federated.problems(config)
        if self.keep_zeros and config.model.init_from is None:
            what = "train.keep_zeros keeps the zeros of weights that are there, model.init_from names none"
            yield "train.keep_zeros", what, "add model.init_from=PRUNED, a run that `bigctl compress` made"
        if self.quantize is not None:
            yield from _quantize_problems(self.quantize, config)
        if self.steps is None and self.epochs is None:
            yield "train.steps", "the length of training is not given", "add train.steps=N or train.epochs=N"
        if self.measures_batch_size:
            return
        if type(self.batch_size) is not int:
            yield "train.batch_size", f"train.batch_size cannot be {self.batch_size!r}", "a number of examples, or auto"
        elif self.batch_size % self.accumulate:
            message = f"train.accumulate={self.accumulate} does not divide train.batch_size={self.batch_size}"
            yield "train.accumulate", message, "choose a divisor of the batch size"


def _quantize_problems(kind: str, config: Whole) -> Iterator[Problem]:
    """Why a model cannot be fine-tuned for an export in integers."""
    model, name = config.model, "train.quantize"
    if model.init_from is None:
        hint = "add model.init_from=RUN: train as ever first, then fine-tune with a small learning rate"
        yield name, f"{name}={kind} fine-tunes weights that are there, model.init_from names none", hint
    if model.kind not in _OF_DENSE_LAYERS:
        what = f"{name} is for models of dense layers, the export leaves those of model={model.kind} as they are"
        yield name, what, f"leave it out; of {', '.join(_OF_DENSE_LAYERS)}"
    elif getattr(model, "experts", None):
        yield name, f"{name}: no export in eight bits takes a model of experts", "leave it out"
    elif (lora := getattr(model, "lora", None)) is not None and lora.rank:
        yield name, f"{name} rounds whole matrices, model.lora adds to them", "model.lora.rank=0"


TTA = ("none", "mirror", "shift", "translate")


@dataclass
class Eval(Checked):
    every: str = key("1 epoch", "Cadence of validation, such as 500, '500 steps' or '1 epoch'.")
    batch_size: int | None = key(None, "Batch size of evaluation; null for up to 512 [examples].", drift=FREE, ge=1)
    metric: str | None = key(None, "What selects the best checkpoint; null for the recipe's own choice.")
    mode: str | None = key(
        None, "Whether that metric should be max or min; null for what its recipe says.", choices=("min", "max")
    )
    test: bool = key(True, "Score the test split when training is over.", drift=FREE)
    tta: str = key(
        "none", "Test-time augmentation of images: outputs are the mean over the image and its mirror image (mirror), "
        "over the image and itself moved by a pixel up left and down right (shift), or over all of these (translate).",
        choices=TTA,
    )  # fmt: skip

    metrics: list[str] = key([], "Metrics of a plugin that are computed besides the recipe's.", drift=FREE)

    def check(self, config: Whole) -> Iterator[Problem]:
        yield from cadence_problems("eval.every", self.every)
        if self.tta != "none" and config.recipe.inputs != "images":
            message = f"eval.tta is for images, recipe={config.recipe.kind} has none"
            yield "eval.tta", message, "leave eval.tta out"
        yield from Metric.problems(self.metrics)
        for metric in Metric.chosen(self.metrics):
            if metric.direction not in ("max", "min"):
                yield "eval.metrics", *metric.no_direction()


@dataclass
class Checkpoint(Checked):
    every: str | None = key(
        None,
        "Cadence of checkpoints, such as 500, '500 steps' or '1 epoch'; null for by time: every half minute, more "
        "seldom where saving would take more than 3% of it.",
        drift=FREE,
    )
    keep: int = key(2, "How many of the latest to keep.", drift=FREE, ge=1)
    best: bool = key(True, "Also save and keep the best by the selection metric.", drift=FREE)
    on_failure: str = key(
        "stop", "Whether a save that fails stops training, or is warned of.", drift=FREE, choices=("stop", "warn")
    )

    def check(self, config: Whole) -> Iterator[Problem]:
        if self.every is not None:
            yield from cadence_problems("checkpoint.every", self.every, "null for by time")


@dataclass
class Config:
    """One experiment."""

    recipe: Recipe = key(MISSING, "What is trained.")
    model: Model = key(MISSING, "The network.")
    optimizer: Optimizer = key(MISSING, "The update rule.")
    schedule: Schedule = key(MISSING, "The learning rate over time.")
    data: Data = key(MISSING, "The examples.")
    mesh: Mesh = key(MISSING, "The devices.")
    train: Train = key(Train, "The loop.")
    eval: Eval = key(Eval, "Validation.")
    checkpoint: Checkpoint = key(Checkpoint, "What is kept.")
    distil: Distil = key(Distil, "Another run that teaches this one.")
    seed: int = key(0, "Seed of parameters, order, dropout and augmentation.", ge=0, le=2**32 - 1)

    @property
    def is_regression(self) -> bool:
        """Whether the target is real-valued."""
        return getattr(self.model, "head", "classification") == "regression"

    @property
    def tokenizer(self) -> StreamTokenizer | None:
        """How text becomes numbers, in recipes of text."""
        return getattr(self.recipe, "tokenizer", None)

    @property
    def block(self) -> int | None:
        """Length of a training window of one long text [tokens]; None in recipes of examples."""
        return self.recipe.window(self.model)

"""The weights of a source, under the names and in the shapes of a model's parameters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from bigctl.config import compose as composing
from bigctl.config import schema
from bigctl.errors import DataError
from bigctl.interop import bert, decoder, gguf, lite0, llama2c, vision
from bigctl.interop.sources import DECODERS, VISION, Source
from bigctl.interop.stored import Stored
from bigctl.interop.tensors import Tensors, first_of
from bigctl.runs import directory

Shapes = Mapping[str, tuple[int, ...]]

_NEW = re.compile(r"(head|pooler|transform|transform_norm)/.*|decoder_bias|.*/lora_[ab]")
"""Parameters that may be newly initialised: everything that is not the body of a model."""


def load_weights(
    source: Source, shapes: Shapes, classes: Sequence[str] | None = None
) -> tuple[dict[str, np.ndarray], list[str], list[str]]:
    """The parameters that a model takes over.

    A table of positions that is longer than the model's is cut. A run's LoRA is merged into its layers. The head is
    taken over only where it was trained on the same classes.

    Args:
        source: from `sources.locate_source`.
        shapes: of all parameters of the model, by path.
        classes: names of the classes that the model is for, in order.

    Returns:
        parameters by path, float32; paths of the parameters that stay as they were initialised; tensors of the source
        that are not used.

    Raises:
        DataError: if a parameter of the model's body is missing in the source or has another shape there, naming the
            first three; if the vocabulary does not fit; or if a file is damaged.
    """
    writes = source.model in DECODERS
    same_head = writes or (classes is not None and source.classes == tuple(classes))
    return load_stored(stored_of(source), shapes, writes=writes, head=same_head)


def load_stored(
    stored: Stored, shapes: Shapes, *, writes: bool, head: bool
) -> tuple[dict[str, np.ndarray], list[str], list[str]]:
    """The same of what is open already; `head` says whether the head is taken over, `writes` that all of it must be."""
    taken = {}
    for name, shape in shapes.items():
        found = stored.shapes.get(name)
        fits = found == tuple(shape) or (
            found is not None and (_can_be_cut(name, found, shape) or _can_be_padded(name, found, tuple(shape)))
        )
        if fits and not bert.is_lora(name) and (head or not name.startswith("head/")):
            taken[name] = shape
    body = {n: tuple(s) for n, s in shapes.items() if n not in taken and (writes or not _NEW.fullmatch(n))}
    _require_body(body, stored)
    values = {name: _fitted(v, tuple(shapes[name])) for name, v in stored.read(list(taken)).items()}
    return values, [name for name in shapes if name not in taken], stored.unused(taken)


def _fitted(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Rows cut, or rows and columns of zeros added."""
    if values.shape == shape or not shape:
        return np.ascontiguousarray(values)
    cut = values[: shape[0]]
    return np.pad(cut, [(0, wanted - there) for wanted, there in zip(shape, cut.shape, strict=True)])


def _can_be_padded(name: str, found: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether a vocabulary lacks nothing but what a decoder's is padded with."""
    axis = {"token/embedding": 0, "head/kernel": 1}.get(name)
    if axis is None or len(found) != 2 or len(shape) != 2 or found[1 - axis] != shape[1 - axis]:
        return False
    return found[axis] <= shape[axis] < found[axis] + schema.VOCAB_MULTIPLE


def _can_be_cut(name: str, found: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    positions = re.search(r"(^|/)position/embedding$", name) and len(found) == len(shape) == 2
    return bool(positions) and found[0] > shape[0] and found[1] == shape[1]


def _require_body(left: Shapes, stored: Stored) -> None:
    if not left:
        return
    token = next((name for name in left if name.endswith("token/embedding")), "")
    if token in left and token in stored.shapes and stored.shapes[token][1:] == left[token][1:]:
        raise DataError(
            f"a vocabulary that does not fit the weights: {left[token][0]} tokens, and {stored.shapes[token][0]} rows "
            "in the embedding",
            where=str(stored.file),
            hint="use the tokenizer that belongs to them: recipe.tokenizer.type=pretrained",
        )
    missing = [f"{name} {list(left[name])}" for name in left if name not in stored.shapes]
    differing = [
        f"{name} is {list(stored.shapes[name])} there and {list(left[name])} in the model"
        for name in left
        if name in stored.shapes
    ]
    message = f"has no weights for {first_of(missing)}" if missing else first_of(differing)
    raise DataError(message, where=str(stored.file), hint=_hint(left, stored))


def _hint(left: Shapes, stored: Stored) -> str:
    """What may be done where weights do not fit: of pictures, their number of channels or their size is another."""
    pairs = [(name, stored.shapes[name], left[name]) for name in left if name in stored.shapes]
    channels = [
        theirs[2] for _, theirs, ours in pairs if len(theirs) == 4 and theirs[:2] + theirs[3:] == ours[:2] + ours[3:]
    ]
    if channels and len(channels) == len(left):
        return f"data.channels={channels[0]} gives them pictures as they were trained on"
    if [name for name, *_ in pairs if name.rpartition("/")[2] != "position"] or len(pairs) < len(left):
        return "choose the model that the weights are of"
    return "data.image_size=[HEIGHT,WIDTH] of the pictures that they were trained on, or the model that they are of"


def stored_of(source: Source) -> Stored:
    if source.format == "run":
        return _StoredRun(source)
    if source.format == "gguf":
        return gguf.StoredGguf(source.path)
    if source.format == "llama2c":
        return llama2c.StoredLlama2c(source.path)
    if source.format == VISION:
        return vision.StoredVision(source.path, source.model)
    if source.format == "lite0":
        return lite0.StoredLite0(source.path)
    if source.model in DECODERS:
        layers, tied = int(source.architecture["layers"]), bool(source.architecture["tied"])
        experts = int(source.architecture.get("experts", 0))
        return decoder.StoredTensors(source.path, source.model, layers, tied=tied, experts=experts)
    return _StoredFolder(source)


class _StoredFolder(Stored):
    """Parameters in the safetensors of a Hugging Face folder."""

    def __init__(self, source: Source):
        self.tensors = Tensors(source.path)
        self.file = self.tensors.file
        self.names = {ours: name for name in self.tensors.shapes if (ours := bert.parameter_name(name))}
        self.shapes = {
            ours: bert.turned_shape(ours, self.tensors.shapes[name]) for ours, name in self.names.items()
        }  # fmt: skip

    def read(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        return {name: bert.turned(name, self.tensors.read(self.names[name])) for name in names}

    def unused(self, taken: Iterable[str]) -> list[str]:
        used = {self.names[name] for name in taken}
        return [name for name in self.tensors.shapes if name not in used and not bert.is_repetition(name)]


class _StoredRun(Stored):
    """Parameters in a checkpoint of a run: the best one, else the last; averaged ones where the run has them."""

    def __init__(self, source: Source):
        from bigctl.training.checkpoints.store import Checkpoints

        run = directory.RunDirectory(source.path)
        config = composing.from_yaml(run.read_config(), where=str(run.config))
        checkpoints = Checkpoints(run.checkpoints, best=config.checkpoint.best)
        self.saved = checkpoints.find("best" if checkpoints.has_best() else "last")
        self.file = self.saved.path
        self.prefix = "ema/" if config.train.ema else "params/"
        stored = {name: tuple(shape) for name, shape in self.saved.meta["shapes"].items()}
        self.all = {
            name.removeprefix(self.prefix): shape for name, shape in stored.items() if name.startswith(self.prefix)
        }
        self.shapes = {name: shape for name, shape in self.all.items() if not bert.is_lora(name)}
        lora = getattr(config.model, "lora", None)
        self.scale = lora.alpha / lora.rank if lora is not None and lora.rank else 0.0

    def read(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        layers = {name.rpartition("/")[0] for name in names}
        lora = [name for name in self.all if bert.is_lora(name) and name.rpartition("/")[0] in layers]
        wanted = [*names, *lora]
        from bigctl.training.checkpoints.arrays import read_arrays

        arrays = read_arrays(self.saved.path, [self.prefix + name for name in wanted])
        return bert.merge_lora({name: arrays[self.prefix + name] for name in wanted}, self.scale)

    def read_variables(self, wanted: Shapes) -> dict[str, np.ndarray]:
        from bigctl.training.checkpoints.arrays import read_arrays

        shapes = self.saved.meta["shapes"]
        names = [name for name, shape in wanted.items() if shapes.get(f"variables/{name}") == list(shape)]
        arrays = read_arrays(self.saved.path, [f"variables/{name}" for name in names], dtype=None) if names else {}
        return {name: arrays[f"variables/{name}"] for name in names}

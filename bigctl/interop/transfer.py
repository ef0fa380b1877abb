"""What a model takes over from the weights it starts from: each number to what it stands for, by name, or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bigctl.config import schema
from bigctl.data.dataset import Features
from bigctl.data.files.paths import some
from bigctl.data.table_encoder import TableEncoder
from bigctl.data.target import TOKEN_CLASS
from bigctl.errors import DataError
from bigctl.interop import columns, heads, loading
from bigctl.interop.columns import Match
from bigctl.interop.heads import Head
from bigctl.interop.loading import Shapes, Stored
from bigctl.interop.sources import DECODERS, Source
from bigctl.terminal import one_line

HEAD = "head/"


@dataclass(frozen=True)
class Transfer:
    """What is taken over.

    Attributes:
        params: parameters by path, float32; all others stay as they were initialised.
        variables: what the model updates by itself, such as batch statistics, by path.
        said: what was taken, mapped, left new or dropped, a line each.
    """

    params: dict[str, np.ndarray]
    variables: dict[str, np.ndarray]
    said: tuple[str, ...]


@dataclass(frozen=True)
class Start:
    """The model that starts.

    Attributes:
        config: the experiment.
        features: of its data.
        shapes: of its parameters, by path.
        variables: shapes of what it updates by itself, by path.
        tokenizer: of its data, a tokenizer.json; None without one.
    """

    config: schema.Config
    features: Features
    shapes: Shapes
    variables: Shapes
    tokenizer: Path | None = None


def take_over(source: Source, start: Start) -> Transfer:
    """The numbers that a model takes over from a source.

    Raises:
        DataError: if a part of its body is missing there or has another shape, if the columns or the tokens of the data
            are others, or if a file is damaged.
    """
    stored = loading.stored_of(source)
    _check_kind(source, start)
    matched = _match_columns(source, start)
    head, why_not = _head(source, start, stored)
    shapes = dict(start.shapes)
    layer = start.config.model.input_layer()
    if matched is not None and (kernel := f"{layer}/kernel") in stored.shapes:
        shapes[kernel] = (stored.shapes[kernel][0], *shapes[kernel][1:])
    if head is not None:
        shapes |= {name: (*shapes[name][:-1], stored.shapes[name][-1]) for name in _of_head(shapes, stored)}
    if start.tokenizer is not None and source.tokenizer is not None:
        _check_tokens(source, start)
    writes = source.model in DECODERS
    values, new, unused = loading.load_stored(stored, shapes, writes=writes, head=writes or head is not None)
    said = [f"{len(values)} of {len(start.shapes)} parameters"]
    variables = stored.read_variables(start.variables)
    said[0] += f", {len(variables)} of {len(start.variables)} statistics" if start.variables else ""
    said[0] += f" from {start.config.model.init_from}"
    ours, theirs = getattr(start.config.model, "layers", None), source.architecture.get("layers")
    said += [f"the first {ours} of {theirs} layers"] if ours and theirs and ours < theirs else []
    if matched is not None:
        said += _fit_columns(values, matched, layer)
    if head is not None:
        ours = _ours(start)
        kept = {name: values[name] for name in values if name.startswith(HEAD)}
        fitted, done = heads.converted(ours, head, kept, start.shapes[next(iter(kept))][-1] if kept else 0)
        values |= fitted
        said += [f"head: {done}"] if done else []
    said += [f"{name} cut from {list(stored.shapes[name])} to {list(shapes[name])}" for name in _cut(stored, values)]
    if new:
        because = f" ({why_not})" if why_not and any(name.startswith(HEAD) for name in new) else ""
        said.append(f"newly initialised: {_few(new)}{because}")
    said += [f"not used: {_few(unused)}"] if unused else []
    if source.pixels is not None and start.features.kind == "image":
        said += [_pictures(start), *source.pixels.otherwise]
    return Transfer(values, variables, tuple(one_line(f"model.init_from: {line}") for line in said))


# ---------------------------------------------------------------------------------------------------------- the inputs


def _pictures(start: Start) -> str:
    """What pictures are made into for the weights."""
    height, width = start.features.shape[:2]
    others = {"crop": "; of another shape the middle is taken", "stretch": "; other shapes are stretched"}
    return f"pictures of {height}x{width} pixels{others.get(getattr(start.config.data, 'resize', ''), '')}"


def _check_kind(source: Source, start: Start) -> None:
    theirs, ours = source.features, start.features
    if theirs is not None and theirs.kind != ours.kind and "table" in (theirs.kind, ours.kind):
        raise DataError(
            f"was trained on {theirs.kind}s, here are {ours.kind}s",
            where=source.name,
            hint="leave model.init_from out, or give weights for such data",
        )


def _match_columns(source: Source, start: Start) -> Match | None:
    """How the columns of a table become those of the source; None where there is nothing to match."""
    if source.features is None or source.features.encoder is None or start.features.encoder is None:
        return None
    if source.features.encoder == start.features.encoder:
        return None
    ours, theirs = (TableEncoder.from_json(f.encoder or {}) for f in (start.features, source.features))
    if start.config.model.input_layer():
        return columns.match(ours, theirs, source.name)
    if ours.feature_names != theirs.feature_names:
        raise DataError(
            f"was trained on other columns: {some(theirs.feature_names)}; here are {some(ours.feature_names)}",
            where=source.name,
            hint=f"model={start.config.model.kind} does not tell its `input_layer`, so that they cannot be matched",
        )
    return None


def _fit_columns(values: dict[str, np.ndarray], matched: Match, layer: str) -> list[str]:
    """Attach the first layer to our columns; what is said of it."""
    if matched.is_identity:
        return []
    kernel, bias = values[f"{layer}/kernel"].astype(np.float64), values.get(f"{layer}/bias")
    values[f"{layer}/kernel"] = (matched.matrix @ kernel).astype(np.float32)
    if bias is None and matched.shift.any():
        hint = f"give {layer} a bias, or train on data that was standardised likewise"
        raise DataError(
            "numbers have other means here, and the first layer has no bias to say so", where=layer, hint=hint
        )
    if bias is not None:
        values[f"{layer}/bias"] = (bias.astype(np.float64) + matched.shift @ kernel).astype(np.float32)
    said = "columns are matched by name"
    said += f"; new, from 0: {_few(matched.new)}" if matched.new else ""
    said += f"; dropped: {_few(matched.dropped)}" if matched.dropped else ""
    return [said]


def _check_tokens(source: Source, start: Start) -> None:
    """Rows of an embedding stand for tokens by their number: both tokenizers must number them alike."""
    settings = start.config.tokenizer
    if settings is None or settings.type == "pretrained" or start.tokenizer is None or source.tokenizer is None:
        return
    ours, theirs = (_tokens(file) for file in (start.tokenizer, source.tokenizer))
    at = {number: token for token, number in theirs.items()}
    other = sorted((number, token) for token, number in ours.items() if at.get(number, token) != token)
    if other:
        number, token = other[0]
        raise DataError(
            f"has another tokenizer: {len(other):,} of {len(ours):,} tokens have another number, as {number}, which is "
            f"{token!r} here and {at[number]!r} there",
            where=source.name,
            hint="use the tokenizer that belongs to the weights: recipe.tokenizer.type=pretrained",
        )


def _tokens(file: Path) -> dict[str, int]:
    """The number of each token."""
    if file.suffix == ".txt":
        return {token: number for number, token in enumerate(file.read_text(encoding="utf-8").splitlines())}
    from tokenizers import Tokenizer

    return dict(Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True))


# ------------------------------------------------------------------------------------------------------------ the head


def _ours(start: Start) -> Head:
    target, model = start.features.target, start.config.model
    column = getattr(start.config.data, "label", None)
    return Head(target, model.head_input(per_token=target.kind == TOKEN_CLASS), column)


def _head(source: Source, start: Start, stored: Stored) -> tuple[Head | None, str]:
    """What the head of the source was trained for, if ours can be made of it; else why not."""
    if source.model in DECODERS or not _of_head(start.shapes, stored):
        return None, ""
    if source.head is None:
        return None, "what that of the source was trained for is not known"
    why_not = heads.difference(_ours(start), source.head)
    names, widths = source.head.target.names, {stored.shapes[name][-1] for name in _of_head(start.shapes, stored)}
    if not why_not and names and not widths <= ({1, 2} if len(names) == 2 else {len(names)}):
        why_not = "that of the source has not one output a label"
    return (None if why_not else source.head), why_not


def _of_head(shapes: Shapes, stored: Stored) -> list[str]:
    return [name for name in shapes if name.startswith(HEAD) and name in stored.shapes]


def _cut(stored: Stored, values: Mapping[str, np.ndarray]) -> list[str]:
    tables = (name for name in values if name.endswith("position/embedding"))
    return [name for name in tables if stored.shapes[name] != values[name].shape]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")

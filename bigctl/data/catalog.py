"""Which source reads what a `data` configuration stands for, and which one a file that is to be predicted.

A source is a module, or an object, named by the configuration's `implementation`. Built-in formats and those of plugins
take the same path; nothing here lists them. Files to be predicted are told apart by the suffixes that each kind says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from bigctl.config import schema
from bigctl.data.dataset import Features
from bigctl.data.sources.content import suffix_of
from bigctl.data.sources.decoded import Decoded
from bigctl.data.sources.streamed import Stream
from bigctl.data.sources.unlabelled import Unlabelled, what_is_predicted
from bigctl.errors import DataError


class Source(Protocol):
    """A format. One whose files can be predicted has `read_for_prediction(path, config, features) -> Unlabelled`."""

    def identity(self, config: Any, /) -> object:
        """What the examples are, without decoding them: a value for JSON that changes whenever they would."""
        ...

    def decode(self, config: Any, regression: bool, /) -> Decoded:
        """All examples; with `regression` the target is a number. Raises DataError."""
        ...


@dataclass(frozen=True)
class Reader:
    """A source of two functions."""

    identity: Callable[[Any], Any]
    decode: Callable[[Any, bool], Decoded]


def source(config: schema.Data) -> Source:
    """What `implementation` names; or the component itself, where it has the methods `identity()` and `decode()`."""
    if older := getattr(type(config), "reader", None):  # as plugins for version 0.1 have it
        return cast(Source, older())
    if type(config).decode is not schema.Data.decode or not config.implementation:
        return Reader(lambda own: own.identity(), _decode_own)
    return cast(Source, config.implementing())


def _decode_own(config: schema.Data, regression: bool) -> Decoded:
    return config.decode()  # type: ignore[no-any-return]  # checked below


def decode(config: schema.Data, regression: bool = False) -> Decoded:
    """The examples of a configuration. Raises DataError where they cannot be read."""
    found = source(config).decode(config, regression)
    if not isinstance(found, Decoded):
        raise config.incomplete(f"must decode to a bigctl.data.sources.decoded.Decoded, not {type(found).__name__}")
    return found


def stream(config: schema.Data) -> Stream | None:
    """One long text that is too large to be decoded at once, of a source with a function `stream(config)`."""
    found = getattr(source(config), "stream", None)
    return None if found is None else cast("Stream | None", found(config))


def by_blocks(config: schema.Data, regression: bool = False) -> Callable[[Path], Decoded] | None:
    """What decodes examples that are too many for memory, through files in an empty folder, of a source with a function
    `by_blocks(config, regression)`; None where they are few."""
    found = getattr(source(config), "by_blocks", None)
    return None if found is None else cast("Callable[[Path], Decoded] | None", found(config, regression))


def parts(config: schema.Data) -> dict[str, schema.Data]:
    """The corpora that data is made up of, by name, each as data of its own; none of all other data."""
    found = getattr(source(config), "parts", None)
    return {} if found is None else cast("dict[str, schema.Data]", found(config))


def files(config: schema.Data) -> Iterator[tuple[str, Path]]:
    """The files that examples are read from, each with the key that leads to it, of a source that tells them. Raises
    DataError where there are none."""
    found = getattr(source(config), "files", None)
    if found is not None:
        yield from found(config)


# ---------------------------------------------------------------------------------------------------------- prediction


def read_for_prediction(path: Path | bytes, config: schema.Data, features: Features) -> Unlabelled:
    """The examples of a file that is to be predicted; it needs no labels, further columns are ignored.

    Args:
        path: a file of the format, or with the suffix, of the training data, or of any other kind that tells itself by
            its suffix; or the content of a file. Keys that say how to read are those of the training wherever that
            other kind has them.
        config: the data that the model was trained on.
        features: what that data looked like.

    Raises:
        DataError: the file is missing or malformed, or lacks what the model needs.
    """
    what = what_is_predicted(features)
    for reading in _candidates(path, config, what):
        reads = getattr(source(reading), "read_for_prediction", None)
        if reads is not None:
            return cast(Unlabelled, reads(path, reading, features))
    if isinstance(path, bytes):
        raise DataError(f"this run predicts no {what} from standard input", where="stdin", hint="name a file")
    known = ", ".join(suffixes(features))
    raise DataError(f"the suffix {path.suffix!r} tells no format", where=str(path), hint=f"use {known}")


def read_column(path: Path | bytes, config: schema.Data, features: Features, name: str) -> list[Any] | None:
    """The values of a column of a file that is predicted, row for row; None where its format has no columns, or it has
    none of this name. Raises DataError."""
    for reading in _candidates(path, config, what_is_predicted(features)):
        found = source(reading)
        if hasattr(found, "read_for_prediction"):
            reads = getattr(found, "read_column", None)
            return None if reads is None else cast("list[Any] | None", reads(path, reading, name))
    return None


def suffixes(features: Features) -> list[str]:
    """Of the files that can be predicted."""
    what = what_is_predicted(features)
    return [suffix for cls in _kinds() if what in cls.predicts for suffix in cls.suffixes]


def _candidates(path: Path | bytes, config: schema.Data, what: str) -> Iterator[schema.Data]:
    """Configurations by which the file may be read, the likeliest first."""
    if isinstance(path, bytes):
        begin = path[:64].removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
        kinds = [cls for cls in _kinds() if cls.streamed and what in cls.predicts]
        yield from (_like(config, cls) for cls in kinds if begin in cls.begins)
        yield from (config for cls in kinds if type(config) is cls)
        yield from (_like(config, cls) for cls in kinds)
        return
    suffix = suffix_of(path)
    trained = str(getattr(config, "path", None) or "")
    if what in config.predicts and suffix in (*config.suffixes, suffix_of(trained)):
        yield config
    for cls in _kinds():
        if what in cls.predicts and suffix in cls.suffixes:
            yield _like(config, cls)
    for cls in _kinds():
        if what in cls.by_content:
            yield _like(config, cls)


def _kinds() -> list[type[schema.Data]]:
    return [cls for cls in schema.components() if issubclass(cls, schema.Data)]


_ALIKE = {"encoding", "background", "resize"}
"""Keys that mean the same in all kinds that have them."""


def _like(trained: schema.Data, cls: type[schema.Data]) -> schema.Data:
    """Data of another kind, with the keys that both have from a kind that they derive from, or that are alike."""
    if type(trained) is cls:
        return trained
    shared = [base for base in cls.__mro__ if dataclasses.is_dataclass(base) and isinstance(trained, base)]
    names = {field.name for base in shared for field in dataclasses.fields(base)} - {"kind"}
    names |= {name for name in _ALIKE if hasattr(trained, name) and name in cls.__dataclass_fields__}
    return cls(**{name: getattr(trained, name) for name in names})

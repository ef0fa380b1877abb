"""Several corpora that one model is trained on (`data=mixture`): each is read as data of its own would be, files of
ready-made tokens as by `data=tokens` and text as by `data=text`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bigctl.config import schema
from bigctl.data import catalog
from bigctl.data.files import remote
from bigctl.data.text.joined_tokens import of_corpus
from bigctl.errors import DataError
from bigctl.files import expanded

_TOKENS = re.compile(r"\.(bin|idx)\}?$")
_OF_TOKENS, _OF_TEXT = ("format", "dtype"), ("field", "encoding")


def identity(config: schema.Mixture) -> dict[str, Any]:
    """What the tokens depend on: what those of each corpus do."""
    found: dict[str, Any] = {}
    for name, part in parts(config).items():
        try:
            found[name] = [part.kind, catalog.source(part).identity(part)]
        except DataError as error:
            raise of_corpus(error, name) from error
    return found


def parts(config: schema.Mixture) -> dict[str, schema.Data]:
    """The corpora by name, each as data of its own.

    Raises:
        DataError: where a key is of the other kind of files.
    """
    if not config.corpora:
        what, hint = config.no_corpus()
        raise DataError(what, where="data.corpora", hint=hint)
    found: dict[str, schema.Data] = {}
    shared = ("split_seed", "train", "validation", "test", "validation_fraction", "test_fraction", "resident_mib")
    for name, corpus in config.corpora.items():
        keys: dict[str, Any] = {key: getattr(config, key) for key in shared}
        keys |= {key: getattr(corpus, key) for key in ("path", "validation_path", "test_path")}
        tokens = (corpus.type or ("tokens" if _holds_tokens(corpus.path) else "text")) == "tokens"
        for key in _OF_TEXT if tokens else _OF_TOKENS:
            if getattr(corpus, key) is not None:
                what, other = ("tokens", "text") if tokens else ("text", "tokens")
                hint = f"leave it out, or say data.corpora.{name}.type={other}"
                raise DataError(
                    f"is for {other}, and the corpus holds {what}", where=f"data.corpora.{name}.{key}", hint=hint
                )
        if tokens:
            keys |= {key: getattr(corpus, key) for key in _OF_TOKENS}
            found[name] = _here(name, schema.Tokens(validation_tokens=config.validation_tokens, **keys))
        else:
            keys |= {key: getattr(corpus, key) for key in _OF_TEXT}
            of_text = ("boundaries", "on_bad", "bad_limit", "vocabulary_characters", "workers")
            keys |= {key: getattr(config, key) for key in of_text}
            found[name] = _here(name, schema.TextFiles(**keys))
    return found


def _here(name: str, part: schema.Data) -> schema.Data:
    """A corpus on this disk, fetched where an address is given."""
    try:
        return remote.local(part)
    except DataError as error:
        raise of_corpus(error, name) from error


def _holds_tokens(path: str) -> bool:
    """Whether files of this name are tokens: .bin, a folder with such files, or Megatron's name without it."""
    given = expanded(path)
    if given.is_dir():
        return next(given.rglob("*.bin"), None) is not None
    return bool(_TOKENS.search(path)) or given.with_name(f"{given.name}.idx").is_file()


def files(config: schema.Mixture) -> Iterator[tuple[str, Path]]:
    """See `catalog.files`."""
    for name, part in parts(config).items():
        for _, file in catalog.files(part):
            yield f"data.corpora.{name}", file

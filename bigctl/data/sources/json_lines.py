"""JSON lines (`jsonl`): tables and texts as csv has them, or sentences whose words have tags."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bigctl.config import schema
from bigctl.data.dataset import Features
from bigctl.data.files.paths import optional, split_files
from bigctl.data.sources import delimited, row_blocks, tagged, tagged_blocks
from bigctl.data.sources.decoded import Decoded
from bigctl.data.sources.row_blocks import Place, Reading
from bigctl.data.sources.unlabelled import Unlabelled, what_is_predicted
from bigctl.errors import DataError
from bigctl.files import expanded


def identity(config: schema.Jsonl) -> Any:
    """What the decoded arrays depend on: the content of the files, and the keys that say what is in them."""
    found = delimited.identity(config)
    if config.tokens is None or found is None:
        return found
    return found | {name: getattr(config, name) for name in ("tokens", "tags", "tag_names")}


def by_blocks(config: schema.Jsonl, regression: bool) -> Callable[[Path], Decoded] | None:
    """What decodes large files through others in a folder; None where `decode` will do."""
    if config.tokens is None:
        return delimited.by_blocks(config, regression)
    tokens, tags, names = _fields(config)
    files = _files(config)
    if not row_blocks.are_large(files.values(), tagged_blocks.LARGE):
        return None

    def read(reading: Reading, place: Place) -> Iterator[tagged.Sentence]:
        records = row_blocks.records(reading, place)
        return tagged.json_sentences(records, reading.name, tokens=tokens, tags=tags, names=names)

    source = tagged_blocks.Source(
        files, read, config.encoding, per_word=False, skip_bad=config.on_bad == "skip", bad_limit=config.bad_limit
    )
    return lambda work: source.decode(work, {"source": config.kind, "target": tags})


def _fields(config: schema.Jsonl) -> tuple[str, str, Sequence[str] | None]:
    """Those with the words and the tags, and the names of tags that are numbers. Raises DataError."""
    if config.tags is None:
        raise DataError("data.tokens is set without data.tags", where="data.tags", hint="name the field with the tags")
    return str(config.tokens), config.tags, config.tag_names


def _files(config: schema.Jsonl) -> Mapping[str, Path]:
    return split_files(expanded(config.path), optional(config.validation_path), optional(config.test_path))


def decode(config: schema.Jsonl, regression: bool) -> Decoded:
    """The objects of files as examples: with `data.tokens` sentences, else as of csv. Raises DataError."""
    if config.tokens is None:
        return delimited.decode(config, regression)
    tokens, tags, names = _fields(config)
    files = _files(config)
    skips = config.on_bad == "skip"
    bad: dict[str, dict[int, DataError]] = {split: {} for split in files}
    found = {
        split: tagged.read_json_lines(
            file, config.encoding, tokens=tokens, tags=tags, names=names, bad=bad[split] if skips else None
        )
        for split, file in files.items()
    }
    notes = [
        note for split, sentences in found.items() for note in tagged.left_out(sentences, bad[split], config.bad_limit)
    ]
    return tagged.decode(found, {"source": config.kind, "target": tags, "notes": notes})


def read_for_prediction(path: Path | bytes, config: schema.Jsonl, features: Features) -> Unlabelled:
    """The objects of a file. Raises DataError."""
    if what_is_predicted(features) == "words":
        bad: dict[int, DataError] = {}
        tokens = config.tokens or "tokens"
        found = tagged.read_json_lines(path, config.encoding, tokens=tokens, tags=None, bad=bad)
        return Unlabelled(found.words, errors=bad)
    return delimited.read_for_prediction(path, dataclasses.replace(config, columns=None), features)

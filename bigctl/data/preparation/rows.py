"""Tables and texts of any size -> arrays on the disk, in memory that does not grow with rows times columns.

    read     every file once: rows become columns of cells in files, block by block
    tell     each column by itself: what its cells mean, as numbers or categories in files
    split    by the target alone, as smaller tables are
    fit      each column by itself: means, deviations and categories of the training split
    encode   block by block, into the arrays that a model sees

Of texts (`encode_by_blocks`) a tokenizer is made in place of `fit`. What comes out is what `prepare` makes of what fits
into memory, to the bit; a start that ends early leaves what is finished to the next one. A column of a table at a time
is in memory: 8 bytes a row, and each different value of one that is not plain numbers; of texts the labels, lengths and
keys of all, and a block of them.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import cast

import numpy as np

from bigctl.config.schema import Data
from bigctl.data import cache, origins, splits
from bigctl.data.dataset import SPLITS, Features
from bigctl.data.journal import Journal
from bigctl.data.preparation import checks, encode, encode_by_blocks, partial
from bigctl.data.preparation.array_file import ArrayFiles, Place
from bigctl.data.preparation.deduplicate import deduplicated
from bigctl.data.progress import Progress
from bigctl.data.sources.column_files import StoredRows
from bigctl.data.sources.decoded import ROW, Columns, Decoded
from bigctl.data.table_encoder import TableEncoder
from bigctl.data.target import NUMBER
from bigctl.data.text import tokenization
from bigctl.errors import DataError
from bigctl.terminal import tell

_ROWS = 2**14
"""Rows that are encoded at once."""

_SCRATCH, JOURNAL = "columns", "rows.journal"

_VERSION = 1
"""Raise it whenever what a start leaves to the next one is to be understood otherwise."""


def prepare(
    folder: Path,
    config: Data,
    decode: Callable[[Path], Decoded],
    tokenizer: tokenization.Spec | None,
    regression: bool,
    unchanged: Callable[[], bool],
) -> None:
    """Make a set in its cache folder.

    Args:
        folder: where it belongs.
        config: how it is split.
        decode: reads the rows, through files in an empty folder.
        tokenizer: how texts become numbers; None leaves them as they are.
        regression: whether the target is a number.
        unchanged: whether the files are what they were.

    Raises:
        DataError: if the data cannot be read or changes meanwhile, of which nothing is left then; or if there is no
            room: what was prepared is kept for the next start, as it is where this process is killed.
    """
    try:
        with partial.alone_in(folder) as work:
            if work is None:
                return
            journal = _begun(work)
            try:
                finish = _made(work, config, decode, tokenizer, regression, journal)
            except DataError:
                partial.require(unchanged(), folder)
                raise
            partial.require(unchanged(), folder)
            finish(folder)
            shutil.rmtree(folder / _SCRATCH, ignore_errors=True)
            for file in (partial.LOCK, JOURNAL):
                (folder / file).unlink(missing_ok=True)
            partial.forget(folder)
    except OSError as error:
        raise cache.cannot_store(folder, error, kept=True) from error
    except Exception:
        partial.forget(folder)
        raise


def _begun(work: Path) -> Journal:
    """What an earlier start has done, of which nothing is left where that was another version."""
    journal, version = Journal(work / JOURNAL), f"{metadata.version('bigctl')} {_VERSION}"
    if journal.get("version") == version:
        tell("data: going on with what an earlier start has prepared")
        return journal
    for old in work.iterdir():
        if old.is_dir():
            shutil.rmtree(old)
        elif old.name != partial.LOCK:
            old.unlink()
    (work / _SCRATCH).mkdir()
    journal = Journal(work / JOURNAL)
    journal.note("version", version, now=True)
    return journal


def _made(
    work: Path,
    config: Data,
    decode: Callable[[Path], Decoded],
    tokenizer: tokenization.Spec | None,
    regression: bool,
    journal: Journal,
) -> Callable[[Path], None]:
    """Everything but the last step, which puts it in place."""
    decoded = decode(work / _SCRATCH)
    decoded = dataclasses.replace(decoded, splits=origins.with_origins(decoded))
    if config.deduplicate:
        decoded = deduplicated(decoded, work / _SCRATCH)
    checks.check_target(decoded.target, regression)
    by_split = splits.split_examples(decoded, config)
    places, info = origins.taken(by_split), dict(decoded.info)
    if decoded.kind == "text":
        making = encode_by_blocks.Making(work, work / _SCRATCH, journal)
        one_text = tokenizer is not None and tokenizer.stream
        write = encode_by_blocks.encode_stream if one_text else encode_by_blocks.encode_texts
        features, files = write(making, decoded, by_split, config, tokenizer, info)
    else:
        features, files = _encoded(work, journal, decoded, by_split)
    arrays = {split: _mapped(work, split) for split in SPLITS}
    checks.note_findings(info, arrays, features, config, origins.names(decoded.origins, places))
    origins.write(work, decoded.origins, places)
    return lambda folder: cache.finish_shards(work, folder, features, files, info, {})


def _encoded(
    work: Path, journal: Journal, decoded: Decoded, by_split: dict[str, Columns]
) -> tuple[Features, dict[str, str]]:
    """Write the arrays; gives what is known of them, and their digests by file."""
    stored = cast(StoredRows, decoded.rows)
    rows = {split: columns[ROW] for split, columns in by_split.items()}
    if (fitted := journal.get("encoder")) is not None:
        encoder = TableEncoder.from_json(fitted)
    else:
        encoder = TableEncoder.fit_stored(stored, rows["train"], decoded.styles)
        journal.note("encoder", encoder.to_json(), now=True)
    labels = {split: columns["label"] for split, columns in by_split.items()}
    features, labels = encode.described_table(encoder, decoded.classes, labels)
    if decoded.target.kind != NUMBER:
        features = dataclasses.replace(features, target=decoded.target)
    columns, files = {name: stored.column(name) for name in stored.names}, dict[str, str]()
    before, total = 0, sum(map(len, rows.values()))
    with Progress("data: writing rows", total, ("million rows", 1e6)) as progress:
        for split, own in rows.items():
            place = Place(work / f"{split}.inputs.npy", np.dtype(np.float32), (len(own), *features.shape))
            with ArrayFiles(journal, f"rows {split}", [place]) as written:
                while written.done < len(own):
                    block = own[written.done : written.done + _ROWS]
                    written.write(len(block), [encoder.encode({n: values[block] for n, values in columns.items()})])
                    progress.update(before + written.done)
            before += len(own)
            files |= written.digests
            files |= encode_by_blocks.write_whole(work, split, {"label": labels[split].astype(features.target.dtype)})
    return features, files


def _mapped(work: Path, split: str) -> Columns:
    """The arrays of a split that notes are made of."""
    files = {name: work / f"{split}.{name}.npy" for name in ("inputs", "label")}
    return {name: np.load(file, mmap_mode="r") for name, file in files.items() if file.is_file()}

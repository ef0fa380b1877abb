"""A user's own text to learn to write (`data=text`): plain files, or one field of JSON objects.

Nothing is stripped or normalised of plain files. A file is a document, and so is a JSON object.
"""

from __future__ import annotations

import glob
import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bigctl.config import schema
from bigctl.data.dataset import Features
from bigctl.data.files import paths
from bigctl.data.sources import content, read_table, text_parts
from bigctl.data.sources.decoded import Columns, Decoded
from bigctl.data.sources.streamed import Stream
from bigctl.data.sources.unlabelled import Unlabelled
from bigctl.errors import DataError
from bigctl.files import expanded

SMALL = 2**25
"""Bytes of text up to which it is read as a whole."""

_JSON = tuple(suffix for suffix, format in read_table.SUFFIXES.items() if format == "jsonl")


def identity(config: schema.TextFiles) -> dict[str, Any]:
    """What the documents depend on: the content of the files, and the keys that say what is in them."""
    where = [config.path, config.validation_path, config.test_path]
    prints = [paths.fingerprint_files(matching(path), in_blocks=True) if path else None for path in where]
    found = {"files": prints, "field": config.field, "boundaries": config.boundaries}
    found |= {"encoding": config.encoding} if config.encoding is not None else {}
    found |= {"on_bad": config.on_bad} if config.on_bad != "refuse" else {}
    sample = config.vocabulary_characters  # of smaller texts nothing depends on it
    return found | ({"vocabulary_characters": sample} if sample != schema.TextFiles.vocabulary_characters else {})


def stream(config: schema.TextFiles) -> Stream | None:
    """The text to be read by parts; None where it is small enough to be read as a whole, and no line is left out.
    Raises DataError."""
    given = {"train": config.path, "validation": config.validation_path, "test": config.test_path}
    files = {split: matching(where) for split, where in given.items() if where is not None}
    skips = config.on_bad == "skip"
    if sum(map(_unpacked_size, itertools.chain(*files.values()))) <= SMALL and not skips:
        return None
    for split, own in files.items():
        _check_field(own, config.field, str(given[split]), config.encoding)
    if config.deduplicate:
        raise DataError("only texts can be deduplicated", where="data.deduplicate", hint="leave it out")
    sources = {
        split: text_parts.Texts(
            own, str(given[split]), config.field, config.encoding, bad_limit=config.bad_limit if skips else None
        )
        for split, own in files.items()
    }
    info = {"source": "text", "files": {split: _listed(own) for split, own in files.items()}}
    return Stream(sources, info, config.boundaries, config.workers, config.vocabulary_characters)


def _unpacked_size(file: Path) -> int:
    """Bytes of text that a file holds; of a packed one a guess."""
    try:
        return file.stat().st_size * (4 if file.suffix.lower() in content.COMPRESSED else 1)
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror}", where=str(file)) from error


def decode(config: schema.TextFiles, regression: bool) -> Decoded:
    """See `read_documents`."""
    return read_documents(
        config.path,
        field=config.field,
        validation_path=config.validation_path,
        test_path=config.test_path,
        encoding=config.encoding,
    )


def files(config: schema.TextFiles) -> Iterator[tuple[str, Path]]:
    """See `catalog.files`."""
    for key in ("path", "validation_path", "test_path"):
        if (given := getattr(config, key)) is not None:
            yield from ((f"data.{key}", file) for file in matching(given))


def read_for_prediction(path: Path, config: schema.TextFiles, features: Features) -> Unlabelled:
    """One text a line; of pairs a tab is between the two. Raises DataError."""
    found, bad = texts_by_line(path, features.pairs, config.encoding)
    return Unlabelled(found, errors=bad)


def read_documents(
    path: str,
    *,
    field: str | None = None,
    validation_path: str | None = None,
    test_path: str | None = None,
    encoding: str | None = None,
) -> Decoded:
    """Read all documents below the given paths, in the order of the files' names.

    Args:
        path: a file, a folder (all visible files in it), or a pattern such as "books/**/*.txt".
        field: the field of JSON objects that holds the text, for .jsonl files.
        validation_path, test_path: the same for the splits "validation" and "test".
        encoding: of the files; None for UTF-8.

    Returns:
        Decoded of kind "stream": a column `document`, object [N] of str, a split.

    Raises:
        DataError: there is no such file, or one is no text in this encoding, or a line lacks the field.
    """
    given = {"train": path, "validation": validation_path, "test": test_path}
    splits: dict[str, Columns] = {}
    notes: list[str] = []
    found: dict[str, Any] = {}
    for split, where in given.items():
        if where is not None:
            files = matching(where)
            documents, empty = _read(files, field, where, encoding)
            splits[split] = {"document": as_column(documents)}
            found[split] = _listed(files)
            notes += [f"{empty} empty documents of {split} are left out"] if empty else []
    return Decoded("stream", splits, None, {"source": "text", "files": found, "notes": notes})


def _listed(files: list[Path]) -> list[str]:
    return [str(file) for file in files[:20]] + ([f"and {len(files) - 20} more"] * (len(files) > 20))


def matching(path: str) -> list[Path]:
    """The files that a path means, sorted: itself, all visible ones of a folder, or those that match a pattern.

    Raises:
        DataError: if there are none.
    """
    given = expanded(path)
    if given.is_file():
        return [given]
    if given.is_dir():
        found = [file for file in paths.walk(given) if not paths.hidden(file.name)]
        if not found:
            raise DataError("the folder holds no files", where=path, hint="give a file, a folder, or a pattern")
        return sorted(found)
    if glob.has_magic(path):
        found = [file for file in entries(path) if file.is_file()]
        if not found:
            raise DataError("no file matches", where=path, hint="quote a pattern on the command line; ** spans folders")
        return found
    return [paths.require_file(given)]


def entries(pattern: str) -> list[Path]:
    """What matches a pattern, folders too, sorted."""
    return sorted(map(Path, glob.glob(_pattern(expanded(pattern)), recursive=True)))


def _pattern(given: Path) -> str:
    """A pattern in which the folder that is there has its own name, though it may hold brackets."""
    folder = next((parent for parent in given.parents if parent.is_dir()), Path())
    return str(Path(glob.escape(str(folder)), given.relative_to(folder)))


def as_column(documents: list[str]) -> np.ndarray:
    """Texts as an object array [N]; numpy would else make a matrix of characters' width of them."""
    column = np.empty(len(documents), object)
    column[:] = documents
    return column


def _read(files: list[Path], field: str | None, where: str, encoding: str | None) -> tuple[list[str], int]:
    """All documents of some files, and how many empty ones were left out."""
    _check_field(files, field, where, encoding)
    found: list[str] = []
    for file in files:
        if content.suffix_of(file) in _JSON:
            found += _objects(file, field, encoding)
        elif len(files) > 1 and file.stat().st_size == 0:
            found.append("")
        else:
            found.append(content.read_text(file, encoding)[0])
    documents = [document for document in found if document.strip()]
    if not documents:
        raise DataError("there is no text", where=where, hint="is it the right file?")
    return documents, len(found) - len(documents)


def _check_field(files: list[Path], field: str | None, where: str, encoding: str | None) -> None:
    """Raises DataError where a field is named and there are no JSON lines, or the other way round."""
    rows = next((file for file in files if content.suffix_of(file) in _JSON), None)
    if field is not None and rows is None:
        hint = "leave it out; or name the files .jsonl"
        raise DataError(f"data.field={field} is set, and no file holds JSON lines", where=where, hint=hint)
    if field is None and rows is not None:
        hint = f"set data.field=NAME; the fields are {paths.some(_fields(rows, encoding))}"
        raise DataError("which field holds the text is not said", where=str(rows), hint=hint)


def _fields(file: Path, encoding: str | None) -> list[str]:
    """Names of the fields of JSON lines: of a large file, those of its beginning."""
    dialect = read_table.Dialect(encoding=encoding)
    source: Path | bytes = file
    if file.stat().st_size > SMALL:
        source = content.read_beginning(file, 2**20)[0]
    return list(read_table.load(source, "jsonl", lambda name: False, dialect=dialect).names)


def _objects(file: Path, field: str | None, encoding: str | None) -> list[str]:
    assert field is not None  # which is checked
    dialect = read_table.Dialect(encoding=encoding)
    table = read_table.load(file, "jsonl", {field}.__contains__, dialect=dialect)
    table.require(field, "text")
    if field in table.absent:
        hint = 'every line needs it; null or "" is a document that is left out'
        raise DataError(f"there is no field {field!r}", where=f"{file}:{table.absent[field]}", hint=hint)
    return [content.whole_characters(text) for text in table.columns[field]]


def texts_by_line(
    source: Path | bytes, pairs: bool, encoding: str | None = None
) -> tuple[list[str | tuple[str, str]], dict[int, DataError]]:
    """The texts of a file, or of its content, one a line; with `pairs` two with a tab between. And what is wrong with
    some of them, by their place. Raises DataError for the whole."""
    text, name = content.read_text(source, encoding)
    found: list[str | tuple[str, str]] = []
    bad: dict[int, DataError] = {}
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        fields = [field.strip() for field in (line.split("\t") if pairs else [line])]
        where = f"{name}:{number}"
        if pairs and line.strip() and len(fields) != 2:
            hint = "write them with one tab between, or give a csv, tsv or jsonl file"
            bad[len(found)] = DataError(f"{len(fields)} texts where the model takes two", where=where, hint=hint)
        elif not all(fields):
            bad[len(found)] = DataError("the text is empty", where=where, hint="write one text a line")
        found.append((fields[0], fields[-1]) if pairs else fields[0])
    return found, bad

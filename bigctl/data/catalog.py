"""What can be trained on: each kind of `data` configuration and the reader that decodes it.

A reader is looked up by `kind`. Its identity says, without decoding anything, which array cache belongs to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigctl.cache_root import cache_root
from bigctl.config import schema
from bigctl.data.sources.decoded import Decoded
from bigctl.errors import DataError
from bigctl.files import sha256

if TYPE_CHECKING:
    from bigctl.data.sources.tagged import Sentences


@dataclass(frozen=True)
class Reader:
    """How one kind of data is recognised and decoded.

    Attributes:
        identity: configuration -> JSON-serialisable value that changes whenever the decoded arrays would.
        decode: configuration, whether targets are real-valued -> decoded examples.
    """

    identity: Callable[[Any], Any]
    decode: Callable[[Any, bool], Decoded]


def reader(config: schema.Data) -> Reader:
    """The reader of a configuration. Components of a plugin have methods `identity()` and `decode()`."""
    if config.kind in READERS:
        return READERS[config.kind]
    if older := getattr(type(config), "reader", None):  # as plugins for version 0.1 have it
        made: Reader = older()
        return made
    return Reader(lambda own: own.identity(), _decode_own)


def _decode_own(config: schema.Data, regression: bool) -> Decoded:
    found = config.decode()
    if not isinstance(found, Decoded):
        raise config.incomplete(f"must decode to a bigctl.data.sources.decoded.Decoded, not {type(found).__name__}")
    return found


def _packaged_identity(config: schema.Packaged) -> Any:
    from bigctl.data.sources import packaged

    return packaged.identity(config.name)


def _packaged(config: schema.Packaged, regression: bool) -> Decoded:
    from bigctl.data.sources import packaged

    return packaged.read(config.name)


def _tfds_identity(config: schema.Tfds) -> Any:
    texts = [config.text, config.text_pair]
    return {"dataset": config.dataset, "image_size": config.image_size, "texts": texts}


def _tfds(config: schema.Tfds, regression: bool) -> Decoded:
    from bigctl.data.sources import tfds

    return tfds.read(
        config.dataset,
        data_dir=cache_root() / "tfds",
        manual_dir=_optional(config.manual_dir),
        image_size=_size(config.image_size),
        text=config.text,
        text_pair=config.text_pair,
    )


def _folder_identity(config: schema.ImageFolder) -> Any:
    from bigctl.data.paths import fingerprint_folder

    paths = [config.path, config.validation_path, config.test_path]
    prints = [fingerprint_folder(Path(p).expanduser()) if p else None for p in paths]
    found = {"files": prints, "image_size": config.image_size, "channels": config.channels}
    if config.labels_file is None:
        return found
    names = ("labels", "label_separator", "file_name", "split")
    labelled = {"labels_file": _digest(config.labels_file)} | {name: getattr(config, name) for name in names}
    return found | labelled


def _folder(config: schema.ImageFolder, regression: bool) -> Decoded:
    from bigctl.data.sources import image_folder, labelled_images

    if config.labels_file is not None:
        if config.validation_path or config.test_path:
            hint = "name the splits in a column of the file, data.split=COLUMN"
            raise DataError("data.labels_file is for one folder of images", where="data.labels_file", hint=hint)
        return labelled_images.read_labelled_images(
            Path(config.path).expanduser(),
            Path(config.labels_file).expanduser(),
            labels=config.labels,
            separator=config.label_separator,
            file_name=config.file_name,
            split=config.split,
            image_size=_size(config.image_size),
            channels=config.channels,
        )
    return image_folder.read_image_folder(
        Path(config.path).expanduser(),
        validation_path=_optional(config.validation_path),
        test_path=_optional(config.test_path),
        image_size=_size(config.image_size),
        channels=config.channels,
    )


def _idx_identity(config: schema.Idx) -> Any:
    from bigctl.data.sources import idx

    return idx.fingerprint_idx(Path(config.path).expanduser())


def _idx(config: schema.Idx, regression: bool) -> Decoded:
    from bigctl.data.sources import idx

    return idx.read_idx(Path(config.path).expanduser())


def _table_identity(config: schema.Table) -> Any:
    files = _file_digests(config)
    names = ["label", "text", "text_pair", "columns", "quoting", "drop"]
    names += ["labels", "label_separator"] if config.labels is not None else []
    return files and {"files": files, "format": config.kind} | {name: getattr(config, name) for name in names}


def _file_digests(config: schema.Table | schema.Conll) -> list[str | None] | None:
    """Of the files of the splits; None where one is missing, which the reader has to say."""
    paths = (config.path, config.validation_path, config.test_path)
    digests = [_digest(path) for path in paths]
    return None if any(path and digest is None for path, digest in zip(paths, digests, strict=True)) else digests


def _digest(path: str | None) -> str | None:
    """The sha256 of a file; None where there is none."""
    file = _optional(path)
    return None if file is None or not file.is_file() else sha256(file)


def _table(config: schema.Table, regression: bool) -> Decoded:
    from bigctl.data.sources import table, text_table

    if config.text_pair is not None and config.text is None:
        raise DataError("data.text_pair is set without data.text", where="data.text_pair", hint="set data.text=COLUMN")
    if config.labels is not None and (config.label or config.text is None):
        problem = "stands in place of data.label" if config.label else "is for texts and images, not tables"
        raise DataError(f"data.labels {problem}", where="data.labels", hint="give either, or data.text=COLUMN")
    if config.text is not None:
        return text_table.read_texts(
            Path(config.path).expanduser(),
            text=config.text,
            text_pair=config.text_pair,
            label=config.label or None,
            labels=config.labels,
            label_separator=config.label_separator,
            format=config.kind,
            validation_path=_optional(config.validation_path),
            test_path=_optional(config.test_path),
            columns=config.columns,
            quoting=config.quoting,
        )
    if not config.label:
        raise DataError("a table needs a target", where="data.label", hint="data.label=COLUMN; only texts go without")
    return table.read_table(
        Path(config.path).expanduser(),
        label=config.label,
        format=config.kind,
        validation_path=_optional(config.validation_path),
        test_path=_optional(config.test_path),
        regression=regression,
        drop=config.drop,
        columns=config.columns,
        quoting=config.quoting,
    )


def _jsonl_identity(config: schema.Jsonl) -> Any:
    found = _table_identity(config)
    if config.tokens is None or found is None:
        return found
    return found | {name: getattr(config, name) for name in ("tokens", "tags", "tag_names")}


def _jsonl(config: schema.Jsonl, regression: bool) -> Decoded:
    if config.tokens is None:
        return _table(config, regression)
    from bigctl.data.sources import tagged

    tokens, tags, names = config.tokens, config.tags, config.tag_names
    if tags is None:
        raise DataError("data.tokens is set without data.tags", where="data.tags", hint="name the field with the tags")
    return _tagged(config, lambda file: tagged.read_json_lines(file, tokens=tokens, tags=tags, names=names))


def _conll_identity(config: schema.Conll) -> Any:
    files = _file_digests(config)
    return files and {"files": files, "tokens": config.tokens, "tags": config.tags, "columns": config.columns}


def _conll(config: schema.Conll, regression: bool) -> Decoded:
    from bigctl.data.sources import conll

    tokens, tags, columns = config.tokens, config.tags, config.columns
    return _tagged(config, lambda file: conll.read_conll(file, tokens=tokens, tags=tags, columns=columns))


def _tagged(config: schema.Conll | schema.Jsonl, read: Callable[[Path], Sentences]) -> Decoded:
    from bigctl.data.sources import table, tagged

    paths = _optional(config.validation_path), _optional(config.test_path)
    files = table.split_files(Path(config.path).expanduser(), *paths)
    facts = {"source": config.kind, "target": config.tags}
    return tagged.decode({split: read(file) for split, file in files.items()}, facts)


def _documents_identity(config: schema.TextFiles) -> Any:
    from bigctl.data import paths
    from bigctl.data.sources import text_files

    where = [config.path, config.validation_path, config.test_path]
    prints = [paths.fingerprint_files(text_files.matching(path)) if path else None for path in where]
    return {"files": prints, "field": config.field, "boundaries": config.boundaries}


def _documents(config: schema.TextFiles, regression: bool) -> Decoded:
    from bigctl.data.sources import text_files

    return text_files.read_documents(
        config.path, field=config.field, validation_path=config.validation_path, test_path=config.test_path
    )


def _parquet_identity(config: schema.Parquet) -> Any:
    from bigctl.data.sources import parquet

    return parquet.identity(config)


def _parquet(config: schema.Parquet, regression: bool) -> Decoded:
    from bigctl.data.sources import parquet

    return parquet.decode(config, regression)


def _optional(path: str | None) -> Path | None:
    return Path(path).expanduser() if path else None


def _size(size: list[int] | None) -> tuple[int, int] | None:
    return (size[0], size[1]) if size else None


READERS: dict[str, Reader] = {
    "packaged": Reader(_packaged_identity, _packaged),
    "tfds": Reader(_tfds_identity, _tfds),
    "image_folder": Reader(_folder_identity, _folder),
    "idx": Reader(_idx_identity, _idx),
    "text": Reader(_documents_identity, _documents),
    "csv": Reader(_table_identity, _table),
    "tsv": Reader(_table_identity, _table),
    "jsonl": Reader(_jsonl_identity, _jsonl),
    "conll": Reader(_conll_identity, _conll),
    "parquet": Reader(_parquet_identity, _parquet),
}

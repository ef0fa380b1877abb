"""TensorFlow Datasets by name, prepared and read without TensorFlow.

TFDS is the registry, the downloader and the preparer; `tfds_hooks` keeps TensorFlow out of it.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import os
import pkgutil
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from functools import partial, reduce
from operator import getitem
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from bigctl.cache_root import cache_root
from bigctl.config import schema
from bigctl.data.files.paths import optional
from bigctl.data.sources import image_index, tfds_pictures
from bigctl.data.sources.decoded import Columns, Decoded
from bigctl.data.sources.tfds_features import Roles, find_roles, is_text
from bigctl.data.sources.tfds_hooks import Files, explained, replaced, without_tensorflow
from bigctl.errors import DataError

if TYPE_CHECKING:
    from tensorflow_datasets.core import DatasetBuilder, DatasetInfo


class Examples(Protocol):
    """A split of a prepared set, as `as_data_source` gives it."""

    def __len__(self) -> int: ...

    def __getitems__(self, indices: list[int], /) -> list[dict[str, Any]]: ...


_PIL_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def identity(config: schema.Tfds) -> dict[str, Any]:
    """What the decoded arrays depend on; a name stands for a version of the data."""
    texts = [config.text, config.text_pair]
    found = {"dataset": config.dataset, "image_size": config.image_size, "texts": texts}
    return found | ({"streamed": True} if tfds_pictures.is_streamed(config) else {})


def decode(config: schema.Tfds, regression: bool) -> Decoded:
    """See `read`; what is prepared is kept below the cache's root."""
    found = read(
        config.dataset,
        data_dir=cache_root() / "tfds",
        manual_dir=optional(config.manual_dir),
        image_size=(config.image_size[0], config.image_size[1]) if config.image_size else None,
        text=config.text,
        text_pair=config.text_pair,
        streamed=tfds_pictures.is_streamed(config),
    )
    if found.kind == "image" and config.decoding is None:
        tfds_pictures.keep(config, found.index is not None)
    return found


def read(
    dataset: str,
    *,
    data_dir: Path,
    manual_dir: Path | None = None,
    download: bool = True,
    image_size: tuple[int, int] | None = None,
    text: str | None = None,
    text_pair: str | None = None,
    streamed: bool | None = False,
) -> Decoded:
    """Reads all labelled splits of a TFDS data set into memory, after preparing it if `data_dir` does not hold it.

    Args:
        dataset: a TFDS name, `name[/config][:version]`, such as "mnist" or "cifar10_corrupted/brightness_1".
        data_dir: where prepared data sets are kept, with what was downloaded for them in `downloads/`.
        manual_dir: a folder with original archives under their original names. They are used in place of downloads,
            under the same checksums, and are the only way to data sets without a public download.
        download: whether files that are not in `manual_dir` may be fetched; each is announced on stderr.
        image_size: height and width in pixels that every image is resized to (bilinear).
        text: the feature with the text to classify; None for the one TFDS calls the input, or the only one.
        text_pair: the feature with a second text.
        streamed: whether pictures stay encoded; None for those that are large once they are decoded.

    Returns:
        kind "image": `image` uint8 [N, H, W, C], or int64 [N] with an index, and `label` int32 [N]. Kind "table": a
        column for each scalar feature, `name_0` ... `name_{n-1}` for a vector of n, and `label`, int32 [N] or, for a
        number, float64 [N].
        Kind "text": `text` object [N] of str without blanks around it, `text_pair` likewise, and `label` int32 [N].
        Kind "stream", for texts without labels: `document` object [N] of str as it is.
        Splits without labels (the test split of a competition) are left out and named in `info["unlabelled"]`.

    Raises:
        DataError: the name is unknown, files are missing or have a wrong checksum, the features cannot be used, or
            images differ in size and no `image_size` is given.
    """
    if manual_dir is not None and not manual_dir.is_dir():
        raise DataError(f"{manual_dir} is not a folder", where="data.manual_dir")
    files = Files(dataset, data_dir, manual_dir, download)
    # TFDS prints to stdout, from its import to its last progress note; stdout is for results.
    with contextlib.redirect_stdout(io.StringIO()):
        import tensorflow_datasets as tfds

        try:
            _resolve(dataset)
            with without_tensorflow(), files.hooked():
                builder = tfds.builder(dataset, data_dir=os.fspath(data_dir))
                roles = find_roles(builder.info, text, text_pair)  # first: what cannot be used need not be downloaded
                if streamed and not roles.image:
                    raise DataError("data.decoding=stream is for pictures", hint="leave it out")
                _prepare(builder, files)
                if roles.image and _is_streamed(builder, roles.image, image_size, streamed):
                    return _located(builder, roles, roles.image, image_size)
                return _decode(builder, roles, image_size)
        except DataError as error:
            raise DataError(error.message, where=dataset, hint=error.hint) from error.__cause__
        except Exception as error:
            raise explained(error, files) from error


def _resolve(dataset: str) -> None:
    """Imports the builder of `dataset`, or raises a DataError that says which name or config was meant."""
    import tensorflow_datasets
    from tensorflow_datasets.core import naming, registered

    # The registry stops importing its categories at the first that lacks an optional package, and hides the rest.
    for package in pkgutil.iter_modules(tensorflow_datasets.__path__):
        if package.ispkg and package.name not in ("core", "scripts", "testing"):
            with contextlib.suppress(ImportError):
                importlib.import_module(f"tensorflow_datasets.{package.name}")
    with contextlib.suppress(ImportError):
        importlib.import_module("tensorflow_datasets.rlds.datasets")

    try:
        name, options = naming.parse_builder_name_kwargs(dataset)
    except ValueError:
        name, options = None, {}
    if name is None or name.namespace or options.keys() - {"config", "version"}:
        raise DataError("not a TFDS name", hint="write name, name/config or name/config:1.2.3")
    known = registered.list_imported_builders()
    if name.name not in known:
        raise DataError("TFDS has no such data set", hint=_close(name.name, known))
    builder = registered.imported_builder_cls(name.name)
    config = options.get("config")
    if config is not None and config not in builder.builder_configs:
        hint = _close(config, builder.builder_configs) if builder.builder_configs else f"write {name}"
        raise DataError(f"{name} has no config {config!r}", hint=hint)


def _close(word: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(word, known, n=4)
    return f"did you mean {', '.join(matches)}?" if matches else "see https://www.tensorflow.org/datasets/catalog"


def _prepare(builder: DatasetBuilder, files: Files) -> None:
    """Leaves complete array_record files of `builder` on disk."""
    from tensorflow_datasets.core.download import DownloadConfig

    if not builder.is_prepared():
        files.data_dir.mkdir(parents=True, exist_ok=True)
        with _extract_dir(files.data_dir) as extract_dir:
            config = DownloadConfig(extract_dir=extract_dir, manual_dir=files.manual_dir, try_download_gcs=False)
            print(f"preparing {builder.info.full_name} in {builder.data_dir}", file=sys.stderr)
            builder.download_and_prepare(download_config=config, file_format="array_record")
    for split, expected in builder.info.splits.items():
        found = len(builder.as_data_source(split))
        if found != expected.num_examples:
            raise DataError(
                f"{split} has {found} examples on disk where {expected.num_examples} were prepared",
                hint=f"delete {builder.data_dir} to have it prepared again",
            )


@contextlib.contextmanager
def _extract_dir(parent: Path) -> Iterator[str]:
    """A folder for what one data set unpacks, removed afterwards.

    TFDS finds unpacked files again by the archive's name, and fashion_mnist's archives have the names of mnist's: in a
    folder for all, one would be read for the other.
    """
    from tensorflow_datasets.core.download import extractor

    own = extractor._Extractor()
    with (
        tempfile.TemporaryDirectory(prefix="extracted-", dir=parent, ignore_cleanup_errors=True) as folder,
        replaced(extractor, get_extractor=lambda: own),
    ):
        try:
            yield folder
        finally:  # when one download fails, other archives may still be unpacking; this stops them at their next file
            own._executor.shutdown()


# ------------------------------------------------------------------------------------------------------- decoding


def _decode(builder: DatasetBuilder, roles: Roles, image_size: tuple[int, int] | None) -> Decoded:
    from tensorflow_datasets.core import decode

    info = builder.info
    target: Any = info.features[roles.target] if roles.target else None
    classes = tuple(target.names) if hasattr(target, "names") else None
    # TFDS decodes through PIL without converting: palette indices would pass for grey values, and a grey photo among
    # colour ones would come out in another shape. Hence the encoded bytes.
    decoders = {roles.image: decode.SkipDecoding()} if roles.image else None
    splits: dict[str, Columns] = {}
    unlabelled, notes = [], []
    for split in map(str, info.splits):
        source = builder.as_data_source(split, decoders=decoders)
        if roles.kind == "stream":
            splits[split] = _documents(source, roles.texts[0])
            continue
        if roles.image:
            channels = info.features[roles.image].shape[-1] or 3
            columns = _image_columns(source, roles.image, roles.target, _PIL_MODES[channels], image_size)
        elif roles.texts:
            columns = _text_columns(source, roles)
            if empty := sum(not text for text in columns["text"]):
                notes.append(f"{empty} texts of {split} are empty")
        else:
            columns = _table_columns(source, roles)
        labels = columns["label"].astype(np.float64 if classes is None else np.int32)
        if classes is not None and _is_unlabelled(split, labels):
            unlabelled.append(split)
        else:
            splits[split] = columns | {"label": labels}
    counts = {split: len(next(iter(columns.values()))) for split, columns in splits.items()}
    found = {"examples": counts, "unlabelled": unlabelled, "notes": notes}
    return Decoded(roles.kind, splits, classes, {**_facts(info), **found})


def _is_unlabelled(split: str, labels: np.ndarray) -> bool:
    """Whether a split has no labels at all. Raises DataError where some are missing."""
    missing = np.count_nonzero(labels < 0)
    if missing and missing < len(labels):
        raise DataError(f"{missing} of {len(labels)} examples of {split} have no label")
    return bool(missing)


def _is_streamed(
    builder: DatasetBuilder, image: str, image_size: tuple[int, int] | None, streamed: bool | None
) -> bool:
    """Whether the pictures of a prepared set stay encoded: as is said, or by what they take once decoded."""
    height, width, channels = builder.info.features[image].shape
    wide = channels not in (None, 1, 3)
    if streamed and wide:
        hint = "data.decoding=memory decodes them once"
        raise DataError(f"pictures of {channels} channels are not decoded while training", hint=hint)
    if streamed is not None or wide:
        return bool(streamed)
    height, width = image_size or (height or 0, width or 0)
    count = sum(split.num_examples for split in builder.info.splits.values())
    return bool(count * height * width * (channels or 3) > image_index.FEW)


def _located(builder: DatasetBuilder, roles: Roles, image: str, image_size: tuple[int, int] | None) -> Decoded:
    """Pictures as `_decode` has them, but encoded where they are."""
    from tensorflow_datasets.core import decode

    info, found, unlabelled = builder.info, dict[str, tfds_pictures.Copy](), list[str]()
    for split in map(str, info.splits):
        source = builder.as_data_source(split, decoders={image: decode.SkipDecoding()})
        folder, keys = Path(builder.data_dir), [image, roles.target]
        examples = partial(_examples, source, 64)
        if files := _records(builder, split, len(source)):
            copy = tfds_pictures.in_records(examples, files, folder, split, keys)
        else:
            copy = tfds_pictures.copied(examples, len(source), folder, split, keys)
        if _is_unlabelled(split, copy.labels):
            unlabelled.append(split)
        else:
            found[split] = copy
    splits, index = tfds_pictures.indexed(found, image_size, info.features[image].shape[-1] or 3)
    counts = {split: len(copy.labels) for split, copy in found.items()}
    facts = {**_facts(info), "examples": counts, "unlabelled": unlabelled, "notes": []}
    return Decoded("image", splits, tuple(info.features[roles.target].names), facts, index=index)


def _records(builder: DatasetBuilder, split: str, count: int) -> dict[Path, int]:
    """The ArrayRecord files of a split on this disk and the records of each; empty where it is stored otherwise."""
    from tensorflow_datasets.core import file_adapters

    info = builder.info.splits[split]
    files = dict(zip(map(Path, map(os.fspath, info.filepaths)), info.shard_lengths, strict=True))
    stored = builder.info.file_format == file_adapters.FileFormat.ARRAY_RECORD
    fits = sum(files.values()) == count and all(file.is_file() for file in files)
    return files if stored and fits else {}


def _facts(info: DatasetInfo) -> dict[str, Any]:
    return {
        "source": "tfds",
        "name": info.full_name,
        "version": str(info.version),
        "description": re.split(r"(?<=[.!?]) ", " ".join((info.description or "").split()))[0],
        "citation": info.citation or None,
        "homepage": info.homepage or None,
        "licence": info.redistribution_info.license or None,
        "download_bytes": int(info.download_size or 0),
        "prepared_bytes": int(info.dataset_size or 0),
    }


def _examples(source: Examples, step: int = 1024) -> Iterator[dict[str, Any]]:
    """All examples of one split, in the order of the files; reading many at once is what makes array_record fast."""
    for start in range(0, len(source), step):
        yield from source.__getitems__(list(range(start, min(start + step, len(source)))))


def _image_columns(source: Examples, key: str, target: str, mode: str, image_size: tuple[int, int] | None) -> Columns:
    from PIL import Image

    images = np.empty((0, 0, 0, len(mode)), np.uint8)
    labels = np.empty(len(source), np.int32)
    for i, example in enumerate(_examples(source)):
        with Image.open(io.BytesIO(example[key])) as encoded:
            image = encoded.convert(mode)
        if image_size and image.size != image_size[::-1]:
            image = image.resize(image_size[::-1], Image.Resampling.BILINEAR)
        if i == 0:
            images = np.empty((len(source), image.height, image.width, len(mode)), np.uint8)
        elif images.shape[1:3] != (image.height, image.width):
            raise DataError(
                f"its images differ in size: {images.shape[1]}x{images.shape[2]}, {image.height}x{image.width}, ...",
                hint="set data.image_size=[H,W]",
            )
        images[i] = np.asarray(image).reshape(images.shape[1:])
        labels[i] = example[target]
    return {"image": images, "label": labels}


def _documents(source: Examples, name: str) -> Columns:
    column = np.empty(len(source), object)
    for i, example in enumerate(_examples(source)):
        column[i] = example[name].decode("utf-8", "replace")
    return {"document": column}


def _text_columns(source: Examples, roles: Roles) -> Columns:
    columns: Columns = {role: np.empty(len(source), object) for role in ("text", "text_pair")[: len(roles.texts)]}
    labels = np.empty(len(source), np.int32)
    for i, example in enumerate(_examples(source)):
        labels[i] = example[roles.target]
        for role, name in zip(columns, roles.texts, strict=True):
            columns[role][i] = example[name].decode("utf-8", "replace").strip()
    return columns | {"label": labels}


def _table_columns(source: Examples, roles: Roles) -> Columns:
    values: dict[str, list[Any]] = {name: [] for name in roles.inputs}
    labels = []
    for example in _examples(source):
        labels.append(example[roles.target])
        for name, (path, _) in roles.inputs.items():
            values[name].append(reduce(getitem, path, example))
    columns: Columns = {}
    for name, (_, feature) in roles.inputs.items():
        if hasattr(feature, "names"):
            columns[name] = np.array([feature.names[v] if v >= 0 else None for v in values[name]], object)
        elif is_text(feature):
            columns[name] = np.array([v.decode("utf-8", "replace") for v in values[name]], object)
        elif feature.shape:
            matrix = np.array(values[name], np.float64)
            columns |= {f"{name}_{i}": matrix[:, i] for i in range(matrix.shape[1])}
        else:
            columns[name] = np.array(values[name], np.float64)
    return columns | {"label": np.array(labels)}

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bigctl.data.sources.decoded import Columns, Decoded
from bigctl.data.sources.tfds_hooks import Files, explained, replaced, without_tensorflow
from bigctl.errors import DataError

_PIL_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_USABLE = (
    "bigctl reads images and texts with one class label, tables of numbers and categories with one target, and texts "
    "without labels"
)


def read(
    dataset: str,
    *,
    data_dir: Path,
    manual_dir: Path | None = None,
    download: bool = True,
    image_size: tuple[int, int] | None = None,
    text: str | None = None,
    text_pair: str | None = None,
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

    Returns:
        kind "image": `image` uint8 [N, H, W, C] and `label` int32 [N]. Kind "table": a column for each scalar
        feature, `name_0` ... `name_{n-1}` for a vector of n, and `label`, int32 [N] or, for a number, float64 [N].
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
                layout = _layout(builder.info, text, text_pair)  # first: what cannot be used need not be downloaded
                _prepare(builder, files)
                return _decode(builder, layout, image_size)
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


def _prepare(builder: Any, files: Files) -> None:
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


@dataclass(frozen=True)
class _Layout:
    """Which features are read: one image, or texts, or some inputs as paths into an example; and the target, which is
    empty for texts without labels."""

    image: str | None
    inputs: dict[str, tuple[tuple[str, ...], Any]]
    target: str
    texts: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        if not self.target:
            return "stream"
        return "image" if self.image else "text" if self.texts else "table"


def _layout(info: Any, text: str | None, text_pair: str | None) -> _Layout:
    from tensorflow_datasets.core import features as f

    def leaves(name: str, path: tuple[str, ...], feature: Any) -> Iterator[tuple[str, tuple[tuple[str, ...], Any]]]:
        if isinstance(feature, f.FeaturesDict):
            for key, child in feature.items():
                yield from leaves(key, (*path, key), child)
        else:
            yield name, (path, feature)

    def scalar(feature: Any) -> bool:
        return isinstance(feature, f.Tensor) and feature.shape == ()

    top = dict(info.features.items()) if isinstance(info.features, f.FeaturesDict) else {}
    unusable = DataError(
        f"its features cannot be used: {', '.join(f'{k} ({type(v).__name__})' for k, v in top.items())}", hint=_USABLE
    )
    images = [key for key, feature in top.items() if isinstance(feature, f.Image)]
    labels = [key for key, feature in top.items() if isinstance(feature, f.ClassLabel)]
    alone = _unlabelled_text(info, text) if text_pair is None else None
    if alone is not None:
        return _Layout(None, {}, "", (alone,))
    texts = _text_features(info, text, text_pair)
    if texts:
        named = [key for key in labels if info.supervised_keys and key == info.supervised_keys[1]] or labels
        if len(named) != 1:
            raise unusable
        return _Layout(None, {}, named[0], texts)
    if info.supervised_keys:
        source, target = info.supervised_keys[:2]
    elif len(labels) == 1 and len(images) <= 1:
        target = labels[0]
        source = images[0] if images else {key: key for key in top if key != target}
    else:
        raise unusable
    if not isinstance(target, str) or not scalar(top.get(target)):
        raise unusable

    if isinstance(source, str) and source in images:
        if target not in labels or top[source].np_dtype != np.uint8:
            raise unusable
        return _Layout(source, {}, target)

    sources = {source: source} if isinstance(source, str) else source
    if not isinstance(sources, dict) or not all(isinstance(key, str) and key in top for key in sources.values()):
        raise unusable
    pairs = [pair for name, key in sources.items() for pair in leaves(name, (key,), top[key])]
    inputs = dict(pairs)
    vector = (feature for _, feature in inputs.values() if not scalar(feature))
    if (
        len(inputs) < len(pairs)
        or "label" in inputs
        or not all(isinstance(v, f.Tensor) and len(v.shape) == 1 and v.shape[0] and not _is_text(v) for v in vector)
        or any(isinstance(feature, f.Text) for _, feature in inputs.values())
        or _is_text(top[target])
    ):
        raise unusable
    return _Layout(None, inputs, target)


def _unlabelled_text(info: Any, text: str | None) -> str | None:
    """The one text, or the one that is named, of a set that holds nothing else."""
    from tensorflow_datasets.core import features as f

    top = dict(info.features.items()) if isinstance(info.features, f.FeaturesDict) else {}
    if not top or not all(isinstance(feature, f.Text) for feature in top.values()):
        return None
    named = [text] if text in top else list(top) if text is None else []
    return named[0] if len(named) == 1 else None


def _text_features(info: Any, text: str | None, text_pair: str | None) -> tuple[str, ...]:
    """The features with the text and, where wanted, the second one; () for what is no set of labelled texts."""
    from tensorflow_datasets.core import features as f

    top = dict(info.features.items()) if isinstance(info.features, f.FeaturesDict) else {}
    known = [key for key, v in top.items() if isinstance(v, f.Tensor) and v.shape == () and _is_text(v)]
    for role, name in (("text", text), ("text_pair", text_pair)):
        if name is not None and name not in known:
            found = f"its texts are {', '.join(known)}" if known else "it has none"
            raise DataError(f"data.{role}={name} is no feature with text", hint=found)
    text = text or _usual_text(info, [key for key in known if isinstance(top[key], f.Text) and key != text_pair])
    if text is None and text_pair is not None:
        raise DataError("data.text_pair is set without data.text", hint="set data.text=NAME")
    if text is not None and text == text_pair:
        raise DataError("data.text and data.text_pair name the same feature", hint="name different ones")
    return tuple(name for name in (text, text_pair) if name is not None)


def _usual_text(info: Any, texts: list[str]) -> str | None:
    """The text that TFDS calls the input, or the only one beside a class label."""
    from tensorflow_datasets.core import features as f

    if info.supervised_keys:
        source = info.supervised_keys[0]
        return source if isinstance(source, str) and source in texts else None
    kinds = [type(feature) for feature in info.features.values()] if texts else []
    if f.Image in kinds or kinds.count(f.ClassLabel) != 1:
        return None
    if len(texts) > 1:
        hint = "set data.text=NAME, and data.text_pair=NAME for pairs"
        raise DataError(f"it has several texts: {', '.join(texts)}", hint=hint)
    return texts[0]


def _is_text(feature: Any) -> bool:
    return feature.np_dtype == np.object_


def _decode(builder: Any, layout: _Layout, image_size: tuple[int, int] | None) -> Decoded:
    from tensorflow_datasets.core import decode

    info = builder.info
    target: Any = info.features[layout.target] if layout.target else None
    classes = tuple(target.names) if hasattr(target, "names") else None
    # TFDS decodes through PIL without converting: palette indices would pass for grey values, and a grey photo among
    # colour ones would come out in another shape. Hence the encoded bytes.
    decoders = {layout.image: decode.SkipDecoding()} if layout.image else None
    splits: dict[str, Columns] = {}
    unlabelled, notes = [], []
    for split in info.splits:
        source = builder.as_data_source(split, decoders=decoders)
        if layout.kind == "stream":
            splits[str(split)] = _documents(source, layout.texts[0])
            continue
        if layout.image:
            channels = info.features[layout.image].shape[-1] or 3
            columns = _image_columns(source, layout.image, layout.target, _PIL_MODES[channels], image_size)
        elif layout.texts:
            columns = _text_columns(source, layout)
            if empty := sum(not text for text in columns["text"]):
                notes.append(f"{empty} texts of {split} are empty")
        else:
            columns = _table_columns(source, layout)
        labels = columns["label"].astype(np.float64 if classes is None else np.int32)
        missing = 0 if classes is None else np.count_nonzero(np.less(labels, 0))
        if missing and missing == len(labels):
            unlabelled.append(str(split))
        elif missing:
            raise DataError(f"{missing} of {len(labels)} examples of {split} have no label")
        else:
            splits[str(split)] = columns | {"label": labels}
    facts = {
        "source": "tfds",
        "name": info.full_name,
        "version": str(info.version),
        "description": re.split(r"(?<=[.!?]) ", " ".join((info.description or "").split()))[0],
        "citation": info.citation or None,
        "homepage": info.homepage or None,
        "licence": info.redistribution_info.license or None,
        "examples": {split: len(next(iter(columns.values()))) for split, columns in splits.items()},
        "unlabelled": unlabelled,
        "notes": notes,
        "download_bytes": int(info.download_size or 0),
        "prepared_bytes": int(info.dataset_size or 0),
    }
    return Decoded(layout.kind, splits, classes, facts)


def _examples(source: Any) -> Iterator[dict[str, Any]]:
    """All examples of one split, in the order of the files; reading many at once is what makes array_record fast."""
    for start in range(0, len(source), 1024):
        yield from source.__getitems__(list(range(start, min(start + 1024, len(source)))))


def _image_columns(source: Any, key: str, target: str, mode: str, image_size: tuple[int, int] | None) -> Columns:
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


def _documents(source: Any, name: str) -> Columns:
    column = np.empty(len(source), object)
    for i, example in enumerate(_examples(source)):
        column[i] = example[name].decode("utf-8", "replace")
    return {"document": column}


def _text_columns(source: Any, layout: _Layout) -> Columns:
    columns: Columns = {role: np.empty(len(source), object) for role in ("text", "text_pair")[: len(layout.texts)]}
    labels = np.empty(len(source), np.int32)
    for i, example in enumerate(_examples(source)):
        labels[i] = example[layout.target]
        for role, name in zip(columns, layout.texts, strict=True):
            columns[role][i] = example[name].decode("utf-8", "replace").strip()
    return columns | {"label": labels}


def _table_columns(source: Any, layout: _Layout) -> Columns:
    values: dict[str, list[Any]] = {name: [] for name in layout.inputs}
    labels = []
    for example in _examples(source):
        labels.append(example[layout.target])
        for name, (path, _) in layout.inputs.items():
            value: Any = example
            for key in path:
                value = value[key]
            values[name].append(value)
    columns: Columns = {}
    for name, (_, feature) in layout.inputs.items():
        if hasattr(feature, "names"):
            columns[name] = np.array([feature.names[v] if v >= 0 else None for v in values[name]], object)
        elif _is_text(feature):
            columns[name] = np.array([v.decode("utf-8", "replace") for v in values[name]], object)
        elif feature.shape:
            matrix = np.array(values[name], np.float64)
            columns |= {f"{name}_{i}": matrix[:, i] for i in range(matrix.shape[1])}
        else:
            columns[name] = np.array(values[name], np.float64)
    return columns | {"label": np.array(labels)}

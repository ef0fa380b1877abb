"""What TFDS is given in place of TensorFlow and of its own downloading, for as long as one data set is being read.

TFDS reaches for TensorFlow in a few places even when it writes array_record files: to open files, to unpack archives,
to name dtypes, and to encode images that a builder hands over as arrays. `without_tensorflow` stands in at exactly
those places and restores them; nothing is ever put into `sys.modules`.
"""

from __future__ import annotations

import contextlib
import glob
import io
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from bigctl import terminal
from bigctl.errors import DataError

_TIMEOUTS = (0.9, 60.0)  # seconds to connect (tried twice, so that no network shows within two) and between reads


@dataclass
class Files:
    """Where the files of one data set come from, and which of them TFDS asked to be fetched."""

    dataset: str
    data_dir: Path
    manual_dir: Path | None
    download: bool
    asked: dict[str, Any] = field(default_factory=dict)  # URL -> UrlInfo, or None where TFDS has no checksum

    @contextlib.contextmanager
    def hooked(self) -> Iterator[None]:
        """Announces every download, refuses it where downloading is off, and fails soon where there is no network."""
        from tensorflow_datasets.core.download import checksums, downloader
        from tensorflow_datasets.core.utils import tqdm_utils

        def fetch(fetcher: Any, url: str, destination: Any, verify: bool) -> Any:
            try:
                if not self.download:
                    raise ConnectionRefusedError("downloading is off")
                return fetcher._sync_download(url, destination, verify)
            except Exception as error:
                shutil.rmtree(destination, ignore_errors=True)
                raise NotFetched(url) from error

        def start(fetcher: Any, url: str, destination: Any, verify: bool = True) -> Any:
            known = self.asked[url] = checksums.get_all_url_infos().get(url)
            if self.download:
                print(f"downloading {url} ({known.size if known else 'size unknown'})", file=sys.stderr)
            fetcher._pbar_url.update_total(1)
            future = fetcher._executor.submit(fetch, fetcher, url, destination, verify)
            return downloader.promise.Promise.resolve(future)

        patient = partial(downloader._open_url, timeout=_TIMEOUTS)
        with (
            replaced(downloader, MAX_RETRIES=1, _open_url=patient),
            replaced(downloader._Downloader, download=start),
            replaced(tqdm_utils, _active=sys.stderr.isatty()),
            terminal.drawing(),
            errors_only("absl"),
            errors_only("urllib3"),
        ):
            yield

    def advice(self) -> str:
        """What a user can do about files that could not be fetched."""
        copies, others = [], []
        for url, known in self.asked.items():
            if known and known.filename:
                copies.append(url if url.endswith(f"/{known.filename}") else f"{url} (as {known.filename})")
            else:
                others.append(url)
        place = f"into {self.manual_dir}" if self.manual_dir else "into a folder DIR and add data.manual_dir=DIR"
        told = [f"put these files {place}: {', '.join(copies[:6])}{', ...' * (len(copies) > 6)}"] if copies else []
        if others:  # TFDS looks only for files whose checksum it has
            told.append(f"a connection is needed, for copies could not be verified: {', '.join(others[:6])}")
        return "; ".join(told)


class NotFetched(Exception):
    """A download did not work, or was not allowed; the argument is its URL."""


def explained(error: Exception, files: Files) -> DataError:
    """The one line about `error` that helps a user most."""
    from tensorflow_datasets.core.download import download_manager

    text = re.sub(r'^Failed to construct dataset .*?}": ', "", " ".join(str(error).split()))
    if isinstance(error, NotFetched):
        reason = str(error.__cause__)
        short = reason if 0 < len(reason) < 100 else f"no connection ({type(error.__cause__).__name__})"
        message = f"not prepared in {files.data_dir}, and its files could not be downloaded: {short}"
        return DataError(message, where=files.dataset, hint=files.advice())
    if isinstance(error, download_manager.NonMatchingChecksumError):
        path = re.search(r"downloaded to (.*?), has wrong checksum", text)
        sums = re.findall(r"checksum='([0-9a-f]+)'", text)
        if path and len(sums) == 2:
            return DataError(
                f"{path[1]} is not the original file: its sha256 is {sums[1]}, expected {sums[0]}",
                where=files.dataset,
                hint="replace it; data sets that share file names need a data.manual_dir each",
            )
    if isinstance(error, AssertionError) and "manual" in text.lower():
        told = text.partition("instructions:")[2].strip() or text
        return DataError(f"has no public download: {told}", where=files.dataset, hint="then set data.manual_dir=DIR")
    missing = re.search(r"No module named '(\w+)", text)
    if missing and missing[1] == "tensorflow":
        return DataError("its builder needs TensorFlow, which bigctl does without", where=files.dataset)
    return DataError(
        f"TFDS could not prepare or read it: {type(error).__name__}: {text[:400]}",
        where=files.dataset,
        hint=f"its builder needs the package {missing[1]}" if missing else None,
    )


# --------------------------------------------------------------------------------------------- without TensorFlow


@contextlib.contextmanager
def replaced(owner: Any, **attributes: Any) -> Iterator[None]:
    """Sets attributes of a module or class, and puts the old ones back."""
    before = {name: vars(owner)[name] for name in attributes}
    try:
        for name, value in attributes.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


@contextlib.contextmanager
def errors_only(logger_name: str) -> Iterator[None]:
    """Keeps warnings off stderr: TFDS warns of every folder it is about to fill, urllib3 of every second try."""
    logger = logging.getLogger(logger_name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def without_tensorflow() -> Iterator[None]:
    """Stands in for TensorFlow in TFDS' extractor and shuffler, in builders' modules, and in the image encoder."""
    from tensorflow_datasets.core import shuffle
    from tensorflow_datasets.core.download import extractor
    from tensorflow_datasets.core.features import image_feature
    from tensorflow_datasets.core.utils import lazy_imports_utils

    builders = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("tensorflow_datasets.") and not name.startswith("tensorflow_datasets.core.")
    ]
    with contextlib.ExitStack() as stack:
        for module in [extractor, shuffle, *builders]:
            if vars(module).get("tf") is lazy_imports_utils.tensorflow:
                stack.enter_context(replaced(module, tf=stand_in()))
        stack.enter_context(replaced(image_feature._ImageEncoder, _encode_image=_encode_image))
        yield


def _encode_image(encoder: Any, array: np.ndarray) -> bytes:
    """`_ImageEncoder._encode_image` through PIL; JPEG in the quality that tf.io.encode_jpeg defaults to."""
    from PIL import Image
    from tensorflow_datasets.core.features import image_feature

    image_feature._validate_np_array(array, shape=encoder.shape, dtype=encoder.np_dtype)
    buffer = io.BytesIO()
    image = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
    image.save(buffer, format=encoder.encoding_format, quality=95)
    return buffer.getvalue()


class _StandIn(SimpleNamespace):
    """A namespace that says what it lacks, so that a builder which needs more of TensorFlow fails with its reason."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError(f"its builder needs TensorFlow ({name})")


def stand_in() -> _StandIn:
    """What builders use of `tf` besides tensors: files by gfile's names over epath, text conversion, dtypes."""
    from etils import epath

    def open_file(path: Any, mode: str = "r") -> Any:
        return epath.Path(path).open(mode, **({} if "b" in mode else {"encoding": "utf-8"}))

    def of_path(method: str) -> Callable[[Any], Any]:
        return lambda path: getattr(epath.Path(path), method)()

    def as_text(value: str | bytes) -> str:
        return value.decode() if isinstance(value, bytes) else value

    gfile = _StandIn(
        GFile=open_file,
        exists=of_path("exists"),
        isdir=of_path("is_dir"),
        remove=of_path("unlink"),
        listdir=lambda path: [child.name for child in epath.Path(path).iterdir()],
        glob=lambda pattern: sorted(glob.glob(os.fspath(pattern))),
        walk=os.walk,
    )
    dtypes = {
        name: getattr(np, name) for name in ("uint8", "uint16", "int8", "int16", "int32", "int64", "float32", "float64")
    }
    return _StandIn(
        io=_StandIn(gfile=gfile),
        compat=_StandIn(as_text=as_text),
        errors=_StandIn(NotFoundError=FileNotFoundError, ResourceExhaustedError=MemoryError),
        bool=np.bool_,
        string=np.object_,
        **dtypes,
    )

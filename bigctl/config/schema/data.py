"""Keys of data sets: what all have, and those of sets that are packaged, pictures, and what Python holds."""

from __future__ import annotations

import codecs
import dataclasses
import importlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from bigctl.config.schema import bad_input
from bigctl.config.schema.bad_input import LeavesOut
from bigctl.config.schema.base import FREE, MISSING, STRUCTURAL, Component, Problem, Whole, key, kind

USUAL_FOLDS = 5
DECODE_MEMORY, DECODE_STREAM = "memory", "stream"
VOCABULARY_CHARACTERS = 2**24
"""Of a larger training text, how much a vocabulary is made of."""


def is_encoding(name: str) -> bool:
    """Whether it is the name of an encoding of text, such as latin-1."""
    try:
        return codecs.lookup(name)._is_text_encoding
    except (LookupError, ValueError):  # of a name with a NUL
        return False


def check_encoding(name: str | None) -> Iterator[Problem]:
    if name is not None and not is_encoding(name):
        yield "data.encoding", f"there is no encoding {name!r}", "such as latin-1, cp1252 or utf-16"


def check_order(group: str | None, time: str | None, fold: int | None) -> Iterator[Problem]:
    """What splits made by rule go by."""
    if group is not None and time is not None:
        yield "data.time", "data.group and data.time are both given", "give one of them"
    if fold is not None and time is not None:
        hint = "leave out data.fold: data.time holds out the latest rows"
        yield "data.fold", "folds would validate on the past what was learned from the future (data.time)", hint


def check_image_size(image_size: list[int] | None) -> Iterator[Problem]:
    if image_size is not None and len(image_size) != 2:
        yield "data.image_size", f"data.image_size cannot be {image_size}", "write [HEIGHT,WIDTH]"


@dataclass
class Data(Component):
    """Where examples come from, and which of them are for training, selection and the final score."""

    group_name: ClassVar[str] = "data"
    suffixes: ClassVar[tuple[str, ...]] = ()
    """Of the files of this kind, lower case: by them `predict` knows how to read one."""
    predicts: ClassVar[tuple[str, ...]] = ()
    """What such files can hold of examples to be predicted: "table", "text", "words", "image"."""
    by_content: ClassVar[tuple[str, ...]] = ()
    """What of these is known by its content, whatever the suffix."""
    streamed: ClassVar[bool] = False
    """Whether `read_for_prediction` takes the content of a file in place of its path."""
    tokenized: ClassVar[bool] = False
    """Whether it holds tokens that were made elsewhere, of which no tokenizer can be made."""
    begins: ClassVar[tuple[bytes, ...]] = ()
    """Characters that only such content begins with."""
    kind: str = kind("???")
    split_seed: int = key(
        0, "Seed of the splits that are made by rule; separate from `seed`.", drift=STRUCTURAL, ge=0, le=2**32 - 1
    )
    train: str | None = key(None, "Training split as an expression, such as train[:90%].", drift=STRUCTURAL)
    validation: str | None = key(None, "Validation split as an expression.", drift=STRUCTURAL)
    test: str | None = key(None, "Test split as an expression.", drift=STRUCTURAL)
    validation_fraction: float = key(
        0.1, "Share held out of the training split where the source has no validation split.", drift=STRUCTURAL,
        gt=0, lt=1,
    )  # fmt: skip
    test_fraction: float = key(0.1, "Share held out where the source has no test split.", drift=STRUCTURAL, ge=0, lt=1)
    fold: int | None = key(
        None, "Which fold of the training and validation rows is for validation, from 0 on; null for no folds.",
        drift=STRUCTURAL, ge=0,
    )  # fmt: skip
    folds: int | None = key(
        None, "How many folds there are; null for as many as a sweep has, else 5.", drift=STRUCTURAL, ge=2
    )
    positive: str | None = key(
        None, "Of two classes the one that binary metrics and a threshold are about; null for the second by name."
    )
    deduplicate: bool = key(
        False, "Keep each text once: copies are dropped, from training before they are from the test split.",
        drift=STRUCTURAL,
    )  # fmt: skip
    resident_mib: int = key(
        2048, "Largest training split kept on the device [MiB]; never more than 67 million tokens in files.",
        drift=FREE, ge=0,
    )  # fmt: skip

    @property
    def fold_count(self) -> int:
        return USUAL_FOLDS if self.folds is None else self.folds

    def implementing(self) -> Any:
        """What reads the data: the module that `implementation` names, or an object in it ("module:name")."""
        module, _, name = self.implementation.partition(":")
        found = importlib.import_module(module)
        return getattr(found, name) if name else found

    def unused(self, names: Iterable[str], why: str) -> Iterator[Problem]:
        """The problem that keys are set which change nothing here."""
        usual = {field.name: field.default for field in dataclasses.fields(self)}
        for name in names:
            value = getattr(self, name)
            if value not in (None, "", [], MISSING) and value != usual[name]:
                yield f"data.{name}", f"data.{name} {why}", "leave it out"

    def identity(self) -> object:
        """What the examples are, without decoding them, of a kind that names no `implementation`: a value for JSON that
        changes whenever they would. The array cache is kept by it."""
        raise self.incomplete("has no method `identity()`")

    def decode(self) -> Any:
        """The examples, as `data.sources.decoded.Decoded`, likewise."""
        raise self.incomplete("has no method `decode()`")

    def check(self, config: Whole) -> Iterator[Problem]:
        if self.test_fraction == 0 and config.block is None:  # where texts end, validation can stand for the test split
            yield "data.test_fraction", "data.test_fraction cannot be 0.0", "it must be between 0 and 1"
        if self.fold is None and self.folds is not None:
            hint = "data.fold=0 is the first; `bigctl sweep ... 'data.fold=range(N)'` trains all N"
            yield "data.folds", "data.folds is given without data.fold, which says which of them", hint
        if self.fold is not None and self.fold >= self.fold_count:
            message = f"data.fold cannot be {self.fold}: there are {self.fold_count} folds, 0 to {self.fold_count - 1}"
            yield "data.fold", message, "data.folds=N says how many"


@dataclass
class Images(Data):
    image_size: list[int] | None = key(
        None,
        "Resize to [height, width]; null keeps what the images have [pixels].",
        drift=STRUCTURAL,
        decided=True,
        ge=1,
    )

    def check(self, config: Whole) -> Iterator[Problem]:
        yield from super().check(config)
        yield from check_image_size(self.image_size)


@dataclass
class Packaged(Data):
    """A set that is shipped inside a Python package."""

    implementation: ClassVar[str] = "bigctl.data.sources.packaged"
    kind: str = kind("packaged")
    name: str = key(MISSING, "Which packaged set.", drift=STRUCTURAL)


@dataclass
class Tfds(Images):
    implementation: ClassVar[str] = "bigctl.data.sources.tfds"
    before: ClassVar[Mapping[str, object]] = {"decoding": DECODE_MEMORY}
    kind: str = kind("tfds")
    dataset: str = key(
        MISSING, "Name in the TensorFlow Datasets registry, such as mnist or mnist:3.0.1.", drift=STRUCTURAL
    )
    manual_dir: str | None = key(None, "Folder with the original archives, where they are not downloaded.", drift=FREE)
    text: str | None = key(None, "The feature with the text, where there are several.", drift=STRUCTURAL)
    text_pair: str | None = key(None, "The feature with a second text.", drift=STRUCTURAL)
    decoding: str | None = key(
        None, "Decode pictures once, into the cache (memory), or each as training needs it (stream); null for stream "
        "above 512 MiB of decoded pictures.", drift=STRUCTURAL, choices=(DECODE_MEMORY, DECODE_STREAM), decided=True,
    )  # fmt: skip
    decoding_threads: int | None = key(
        None, "Threads that decode while training; null for one a core.", drift=FREE, ge=1
    )


@dataclass
class Pictures(LeavesOut, Images):
    """Pictures that are kept encoded, in files or archives."""

    before: ClassVar[Mapping[str, object]] = {"decoding": DECODE_MEMORY, "resize": "stretch"}
    channels: int | None = key(
        None, "1 for grey, 3 for colour; null to follow the images.", drift=STRUCTURAL, decided=True
    )
    background: str = key(
        "black", "What transparent pixels are laid over.", drift=STRUCTURAL, choices=("black", "white")
    )
    on_bad: str = bad_input.on_bad("a file that is no picture")
    bad_limit: float = bad_input.bad_limit("the files")
    resize: str = key(
        "auto", "What becomes of another shape: stretched (stretch), or its middle taken (crop); auto for crop where "
        "pretrained weights or recipe.size decide the size, else stretch.", drift=STRUCTURAL,
        choices=("auto", "stretch", "crop"), decided=True,
    )  # fmt: skip
    decoding: str | None = key(
        None, "Decode pictures once, into the cache (memory), or each as training needs it (stream); null for stream "
        "above 512 MiB of decoded pictures.", drift=STRUCTURAL, choices=(DECODE_MEMORY, DECODE_STREAM), decided=True,
    )  # fmt: skip
    decoding_threads: int | None = key(
        None, "Threads that decode while training; null for one a core.", drift=FREE, ge=1
    )


@dataclass
class ImageFolder(Pictures):
    implementation: ClassVar[str] = "bigctl.data.sources.image_folder"
    suffixes: ClassVar[tuple[str, ...]] = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
    predicts: ClassVar[tuple[str, ...]] = ("image",)
    by_content: ClassVar[tuple[str, ...]] = ("image",)
    streamed: ClassVar[bool] = True
    kind: str = kind("image_folder")
    path: str = key(
        MISSING, "Folder with one sub-folder a class, or train/, validation/ and test/ of such.", drift=FREE
    )
    validation_path: str | None = key(None, "Folder of the validation split.", drift=FREE)
    test_path: str | None = key(None, "Folder of the test split.", drift=FREE)
    labels_file: str | None = key(
        None, "A csv, tsv or jsonl file that names the classes of each image, several or none, in place of folders.",
        drift=STRUCTURAL,
    )  # fmt: skip
    labels: str = key("labels", "Its column with the classes.", drift=STRUCTURAL)
    label_separator: str = key(";", "What stands between two classes; a JSON list needs none.", drift=STRUCTURAL)
    file_name: str = key("file_name", "Its column with the image's path below data.path.", drift=STRUCTURAL)
    encoding: str | None = key(None, "Its encoding, such as latin-1; null for UTF-8.", drift=STRUCTURAL)
    split: str | None = key(
        None, "Its column that says train, validation or test; null to make the splits by rule.", drift=STRUCTURAL
    )

    def check(self, config: Whole) -> Iterator[Problem]:
        yield from super().check(config)
        yield from check_encoding(self.encoding)
        if self.labels_file is None:
            names = ("labels", "label_separator", "file_name", "encoding", "split")
            yield from self.unused(names, "is of a file of labels, data.labels_file")


@dataclass
class Webdataset(Pictures):
    """Tar archives, the shards of WebDataset: files that share a name up to its first dot are one example."""

    implementation: ClassVar[str] = "bigctl.data.sources.webdataset"
    suffixes: ClassVar[tuple[str, ...]] = (".tar", ".tgz")
    predicts: ClassVar[tuple[str, ...]] = ("image",)
    kind: str = kind("webdataset")
    path: str = key(MISSING, "A tar file, a folder of them, or a pattern such as 'shards/{000..009}.tar'.", drift=FREE)
    validation_path: str | None = key(None, "The same for the validation split.", drift=FREE)
    test_path: str | None = key(None, "The same for the test split.", drift=FREE)
    image: str | None = key(
        None, "The suffix of the picture, such as jpg, where an example has several.", drift=STRUCTURAL
    )
    label: str | None = key(
        None, "What tells the class: a suffix such as cls or txt, a field as json.NAME, or folder; null for the first "
        "that is there of cls, json.label, txt and folder.", drift=STRUCTURAL,
    )  # fmt: skip
    names_file: str | None = key(
        None, "A text file with the name of a class on each line, that of class 0 first.", drift=STRUCTURAL
    )


@dataclass
class Memory(Images):
    """What is given from Python: a frame, arrays, texts or pictures, as `bigctl.train(config, data=...)` takes them."""

    implementation: ClassVar[str] = "bigctl.data.sources.memory"
    kind: str = kind("memory")
    digest: str | None = key(
        None, "What the data is known by; bigctl.train fills it in.", drift=STRUCTURAL, decided=True
    )
    label: str | None = key("label", "The target column; null for texts without one.", drift=STRUCTURAL)
    text: str | None = key(
        None, "The column with the text to classify; without one the columns are a table.", drift=STRUCTURAL
    )
    text_pair: str | None = key(None, "The column with a second text, where pairs are classified.", drift=STRUCTURAL)
    labels: str | None = key(
        None, "In place of data.label: the column with all classes of an example, several or none.", drift=STRUCTURAL
    )
    label_separator: str = key(
        ";", "What stands between two classes in data.labels; a list needs none.", drift=STRUCTURAL
    )
    drop: list[str] = key([], "Columns to leave out.", drift=STRUCTURAL)
    group: str | None = key(
        None, "A column, such as a patient: splits made by rule keep rows of one value together.", drift=STRUCTURAL
    )
    time: str | None = key(
        None, "A column of dates or numbers: splits made by rule hold out the latest rows.", drift=STRUCTURAL
    )
    channels: int | None = key(
        None, "1 for grey, 3 for colour; null to follow the pictures.", drift=STRUCTURAL, decided=True
    )
    background: str = key(
        "black", "What transparent pixels are laid over.", drift=STRUCTURAL, choices=("black", "white")
    )
    unnamed: bool = key(
        False, "Whether the columns have no names but x0, x1, ...; bigctl.train fills it in.", drift=STRUCTURAL
    )

    def check(self, config: Whole) -> Iterator[Problem]:
        yield from super().check(config)
        yield from check_order(self.group, self.time, self.fold)


@dataclass
class Idx(Data):
    implementation: ClassVar[str] = "bigctl.data.sources.idx"
    kind: str = kind("idx")
    path: str = key(MISSING, "Folder with MNIST-style idx files, gzipped or not.", drift=FREE)

"""Keys of the data sets."""

from __future__ import annotations

import codecs
import dataclasses
import importlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from bigctl.config.schema.base import FREE, MISSING, STRUCTURAL, Component, Problem, Whole, key, kind


def is_encoding(name: str) -> bool:
    """Whether it is the name of an encoding of text, such as latin-1."""
    try:
        return codecs.lookup(name)._is_text_encoding
    except (LookupError, ValueError):  # of a name with a NUL
        return False


def _check_encoding(name: str | None) -> Iterator[Problem]:
    if name is not None and not is_encoding(name):
        yield "data.encoding", f"there is no encoding {name!r}", "such as latin-1, cp1252 or utf-16"


def _check_image_size(image_size: list[int] | None) -> Iterator[Problem]:
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
    positive: str | None = key(
        None, "Of two classes the one that binary metrics and a threshold are about; null for the second by name."
    )
    deduplicate: bool = key(
        False, "Keep each text once: copies are dropped, from training before they are from the test split.",
        drift=STRUCTURAL,
    )  # fmt: skip
    resident_mib: int = key(2048, "Largest training split kept on the device [MiB].", drift=FREE, ge=0)

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


@dataclass
class Images(Data):
    image_size: list[int] | None = key(
        None, "Resize to [height, width]; null keeps what the images have [pixels].", drift=STRUCTURAL, ge=1
    )

    def check(self, config: Whole) -> Iterator[Problem]:
        yield from super().check(config)
        yield from _check_image_size(self.image_size)


@dataclass
class Packaged(Data):
    """A set that is shipped inside a Python package."""

    implementation: ClassVar[str] = "bigctl.data.sources.packaged"
    kind: str = kind("packaged")
    name: str = key(MISSING, "Which packaged set.", drift=STRUCTURAL)


@dataclass
class Tfds(Images):
    implementation: ClassVar[str] = "bigctl.data.sources.tfds"
    kind: str = kind("tfds")
    dataset: str = key(
        MISSING, "Name in the TensorFlow Datasets registry, such as mnist or mnist:3.0.1.", drift=STRUCTURAL
    )
    manual_dir: str | None = key(None, "Folder with the original archives, where they are not downloaded.", drift=FREE)
    text: str | None = key(None, "The feature with the text, where there are several.", drift=STRUCTURAL)
    text_pair: str | None = key(None, "The feature with a second text.", drift=STRUCTURAL)


@dataclass
class ImageFolder(Images):
    implementation: ClassVar[str] = "bigctl.data.sources.image_folder"
    suffixes: ClassVar[tuple[str, ...]] = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
    predicts: ClassVar[tuple[str, ...]] = ("image",)
    by_content: ClassVar[tuple[str, ...]] = ("image",)
    streamed: ClassVar[bool] = True
    kind: str = kind("image_folder")
    path: str = key(
        MISSING, "Folder with one sub-folder a class, or train/, validation/ and test/ of such.", drift=STRUCTURAL
    )
    validation_path: str | None = key(None, "Folder of the validation split.", drift=STRUCTURAL)
    test_path: str | None = key(None, "Folder of the test split.", drift=STRUCTURAL)
    channels: int | None = key(None, "1 for grey, 3 for colour; null to follow the images.", drift=STRUCTURAL)
    background: str = key(
        "black", "What transparent pixels are laid over.", drift=STRUCTURAL, choices=("black", "white")
    )
    on_bad: str = key(
        "stop", "What a file that is no picture does: stop, or be left out with a note (skip).", drift=STRUCTURAL,
        choices=("stop", "skip"),
    )  # fmt: skip
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
        yield from _check_encoding(self.encoding)
        if self.labels_file is None:
            names = ("labels", "label_separator", "file_name", "encoding", "split")
            yield from self.unused(names, "is of a file of labels, data.labels_file")


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
    channels: int | None = key(None, "1 for grey, 3 for colour; null to follow the pictures.", drift=STRUCTURAL)
    background: str = key(
        "black", "What transparent pixels are laid over.", drift=STRUCTURAL, choices=("black", "white")
    )
    unnamed: bool = key(
        False, "Whether the columns have no names but x0, x1, ...; bigctl.train fills it in.", drift=STRUCTURAL
    )

    def check(self, config: Whole) -> Iterator[Problem]:
        yield from super().check(config)
        if self.group is not None and self.time is not None:
            yield "data.time", "data.group and data.time are both given", "give one of them"


@dataclass
class Idx(Data):
    implementation: ClassVar[str] = "bigctl.data.sources.idx"
    kind: str = kind("idx")
    path: str = key(MISSING, "Folder with MNIST-style idx files, gzipped or not.", drift=STRUCTURAL)


@dataclass
class Table(Data):
    """Rows of a file; `label` names the target column."""

    implementation: ClassVar[str] = "bigctl.data.sources.delimited"
    predicts: ClassVar[tuple[str, ...]] = ("table", "text")
    streamed: ClassVar[bool] = True
    instead: ClassVar[Mapping[str, tuple[str, ...]]] = {"label": ("labels",)}
    kind: str = kind("???")
    path: str = key(MISSING, "The file with the training rows.", drift=STRUCTURAL)
    validation_path: str | None = key(None, "File with the validation rows.", drift=STRUCTURAL)
    test_path: str | None = key(None, "File with the test rows.", drift=STRUCTURAL)
    label: str | None = key(MISSING, "The target column; null for texts without one.", drift=STRUCTURAL)
    text: str | None = key(
        None, "The column with the text to classify; without one the columns are a table.", drift=STRUCTURAL
    )
    text_pair: str | None = key(None, "The column with a second text, where pairs are classified.", drift=STRUCTURAL)
    columns: list[str] | None = key(
        None, "Names of the columns, for a file whose first line does not name them.", drift=STRUCTURAL
    )
    quoting: bool = key(True, "Whether quotes may enclose a field; false where they are plain characters.",
                        drift=STRUCTURAL)  # fmt: skip
    drop: list[str] = key([], "Columns to leave out.", drift=STRUCTURAL)
    separator: str | None = key(
        None, "What stands between two fields, or `tab`; null for that of the format.", drift=STRUCTURAL
    )
    decimal: str | None = key(
        None, "The mark before decimals; null to tell it from the values.", drift=STRUCTURAL, choices=(".", ",")
    )
    encoding: str | None = key(None, "Encoding of the text, such as latin-1; null for UTF-8.", drift=STRUCTURAL)
    missing: list[str] = key([], "What stands for a missing value besides NA, null, ? and the like.", drift=STRUCTURAL)
    categorical: list[str] = key([], "Columns that are categories though they look like numbers.", drift=STRUCTURAL)
    numeric: list[str] = key([], "Columns that are numbers though they look like codes.", drift=STRUCTURAL)
    group: str | None = key(
        None, "A column, such as a patient: splits made by rule keep rows of one value together.", drift=STRUCTURAL
    )
    time: str | None = key(
        None, "A column of dates or numbers: splits made by rule hold out the latest rows.", drift=STRUCTURAL
    )
    on_bad: str = key(
        "stop", "What a row that cannot be read does: stop, or be left out with a note (skip).", drift=STRUCTURAL,
        choices=("stop", "skip"),
    )  # fmt: skip
    labels: str | None = key(
        None, "In place of data.label: the column with all classes of a text, several or none.", drift=STRUCTURAL
    )
    label_separator: str = key(
        ";", "What stands between two classes in data.labels; a JSON list needs none.", drift=STRUCTURAL
    )

    def check(self, config: Whole) -> Iterator[Problem]:
        yield from super().check(config)
        if self.group is not None and self.time is not None:
            yield "data.time", "data.group and data.time are both given", "give one of them"
        separator = self.separator or ","
        if separator not in ("tab", "\\t") and (len(separator) != 1 or separator in '\r\n"' or separator.isalnum()):
            yield "data.separator", f"data.separator cannot be {separator!r}", "give one character, or tab"
        yield from _check_encoding(self.encoding)
        if config.tokenizer is not None and self.text is None and getattr(self, "tokens", None) is None:
            yield "data.text", "data.text is not given", "name the column with the text, data.text=COLUMN"


@dataclass
class TextFiles(Data):
    """Text to learn to write: files of plain text, or of JSON objects with the text in one field.

    Splits are made by place: the beginning of the text is for training, its end for validation and test.
    """

    implementation: ClassVar[str] = "bigctl.data.sources.text_files"
    suffixes: ClassVar[tuple[str, ...]] = (".txt", ".text")
    predicts: ClassVar[tuple[str, ...]] = ("text", "words")
    kind: str = kind("text")
    path: str = key(MISSING, "A file, a folder, or a pattern such as 'books/**/*.txt'.", drift=STRUCTURAL)
    validation_path: str | None = key(None, "The same for the validation split.", drift=STRUCTURAL)
    test_path: str | None = key(None, "The same for the test split.", drift=STRUCTURAL)
    field: str | None = key(None, "The field of each JSON object that holds the text.", drift=STRUCTURAL)
    encoding: str | None = key(None, "Encoding of the text, such as latin-1; null for UTF-8.", drift=STRUCTURAL)
    boundaries: bool = key(True, "Put the tokenizer's end token between two files or objects.", drift=STRUCTURAL)
    validation_fraction: float = key(
        0.05, "Share held out at the end of the text where there is no validation split.", drift=STRUCTURAL,
        gt=0, lt=1,
    )  # fmt: skip
    test_fraction: float = key(
        0.05, "Share held out after that; 0 to have the validation text stand for the test split.", drift=STRUCTURAL,
        ge=0, lt=1,
    )  # fmt: skip

    def check(self, config: Whole) -> Iterator[Problem]:
        yield from super().check(config)
        yield from _check_encoding(self.encoding)


@dataclass
class Csv(Table):
    suffixes: ClassVar[tuple[str, ...]] = (".csv",)
    kind: str = kind("csv")


@dataclass
class Tsv(Table):
    suffixes: ClassVar[tuple[str, ...]] = (".tsv", ".tab")
    kind: str = kind("tsv")


@dataclass
class Jsonl(Table):
    implementation: ClassVar[str] = "bigctl.data.sources.json_lines"
    suffixes: ClassVar[tuple[str, ...]] = (".jsonl", ".ndjson", ".json")
    predicts: ClassVar[tuple[str, ...]] = ("table", "text", "words")
    begins: ClassVar[tuple[bytes, ...]] = (b"{", b"[")
    instead: ClassVar[Mapping[str, tuple[str, ...]]] = {"label": ("labels", "tokens")}
    kind: str = kind("jsonl")
    tokens: str | None = key(None, "The field with the words of a sentence, where each has a tag.", drift=STRUCTURAL)
    tags: str | None = key(None, "The field with a tag for each of the words.", drift=STRUCTURAL)
    tag_names: list[str] | None = key(None, "Names of tags that are written as numbers.", drift=STRUCTURAL)

    def check(self, config: Whole) -> Iterator[Problem]:
        yield from super().check(config)
        yield from self.unused(("separator", "quoting"), "is for csv and tsv")
        if self.tokens is not None:
            names = ("label", "text", "text_pair", "labels", "drop", "decimal", "missing", "categorical", "numeric")
            yield from self.unused((*names, "group", "time"), "is not for sentences, which data.tokens names")


@dataclass
class Conll(Data):
    """Sentences with a tag a word: a word a line, blank lines between sentences."""

    implementation: ClassVar[str] = "bigctl.data.sources.conll"
    suffixes: ClassVar[tuple[str, ...]] = (".conll", ".conllu", ".conllup", ".iob", ".iob2", ".bio", ".bioes", ".ner")
    predicts: ClassVar[tuple[str, ...]] = ("words",)
    kind: str = kind("conll")
    path: str = key(MISSING, "The file with the training sentences.", drift=STRUCTURAL)
    validation_path: str | None = key(None, "File with the validation sentences.", drift=STRUCTURAL)
    test_path: str | None = key(None, "File with the test sentences.", drift=STRUCTURAL)
    tokens: str = key("0", "The column with the words: 0 is the first, -1 the last; or a name.", drift=STRUCTURAL)
    tags: str = key("-1", "The column with the tags, counted or named likewise.", drift=STRUCTURAL)
    columns: list[str] | None = key(None, "Names of all columns, where the file says none.", drift=STRUCTURAL)
    encoding: str | None = key(None, "Encoding of the text, such as latin-1; null for UTF-8.", drift=STRUCTURAL)

    def check(self, config: Whole) -> Iterator[Problem]:
        yield from super().check(config)
        yield from _check_encoding(self.encoding)


@dataclass
class Parquet(Table):
    """Rows of Parquet files; each column has the type that it is stored with."""

    implementation: ClassVar[str] = "bigctl.data.sources.parquet"
    suffixes: ClassVar[tuple[str, ...]] = (".parquet", ".pq")
    streamed: ClassVar[bool] = False
    predicts: ClassVar[tuple[str, ...]] = ("table", "text", "image")
    kind: str = kind("parquet")
    path: str = key(MISSING, "A file, a folder, or a pattern such as 'rows/*.parquet'.", drift=STRUCTURAL)
    validation_path: str | None = key(None, "The same for the validation split.", drift=STRUCTURAL)
    test_path: str | None = key(None, "The same for the test split.", drift=STRUCTURAL)
    image: str | None = key(None, "The column with encoded images (PNG, JPEG, ...) to classify.", drift=STRUCTURAL)
    image_size: list[int] | None = key(
        None, "Resize to [height, width]; null keeps what the images have [pixels].", drift=STRUCTURAL, ge=1
    )
    channels: int | None = key(None, "1 for grey, 3 for colour; null to follow the images.", drift=STRUCTURAL)
    background: str = key(
        "black", "What transparent pixels are laid over.", drift=STRUCTURAL, choices=("black", "white")
    )

    def check(self, config: Whole) -> Iterator[Problem]:
        yield from super().check(config)
        if self.columns is not None:
            yield "data.columns", "Parquet files name their columns", "leave data.columns out"
        names = ("separator", "decimal", "encoding", "missing", "categorical", "numeric", "quoting")
        yield from self.unused(names, "is for files of text; Parquet files store what is a number, a text or missing")
        yield from _check_image_size(self.image_size)
        if self.text is not None and self.image is not None:
            yield "data.image", "data.text and data.image are both given", "give one of them"
        if self.text_pair is not None and self.text is None:
            yield "data.text_pair", "data.text_pair is set without data.text", "set data.text=COLUMN"
        if self.labels is not None and self.text is None and self.image is None:
            yield "data.labels", "data.labels is for texts and images, not tables", "give data.label"

"""Keys of data sets that are files of rows, of texts or of sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from bigctl.config.schema import bad_input
from bigctl.config.schema.bad_input import LeavesOut
from bigctl.config.schema.base import FREE, MISSING, STRUCTURAL, Problem, Whole, key, kind
from bigctl.config.schema.data import (
    DECODE_MEMORY,
    DECODE_STREAM,
    VOCABULARY_CHARACTERS,
    Data,
    check_encoding,
    check_image_size,
    check_order,
)


@dataclass
class Table(LeavesOut, Data):
    """Rows of a file; `label` names the target column."""

    implementation: ClassVar[str] = "bigctl.data.sources.delimited"
    predicts: ClassVar[tuple[str, ...]] = ("table", "text")
    streamed: ClassVar[bool] = True
    instead: ClassVar[Mapping[str, tuple[str, ...]]] = {"label": ("labels",)}
    kind: str = kind("???")
    path: str = key(MISSING, "The file with the training rows.", drift=FREE)
    validation_path: str | None = key(None, "File with the validation rows.", drift=FREE)
    test_path: str | None = key(None, "File with the test rows.", drift=FREE)
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
    on_bad: str = bad_input.on_bad("a row that cannot be read")
    bad_limit: float = bad_input.bad_limit("the rows")
    labels: str | None = key(
        None, "In place of data.label: the column with all classes of a text, several or none.", drift=STRUCTURAL
    )
    label_separator: str = key(
        ";", "What stands between two classes in data.labels; a JSON list needs none.", drift=STRUCTURAL
    )

    def check(self, config: Whole) -> Iterator[Problem]:
        yield from super().check(config)
        yield from check_order(self.group, self.time, self.fold)
        separator = self.separator or ","
        if separator not in ("tab", "\\t") and (len(separator) != 1 or separator in '\r\n"' or separator.isalnum()):
            yield "data.separator", f"data.separator cannot be {separator!r}", "give one character, or tab"
        yield from check_encoding(self.encoding)
        if config.tokenizer is not None and self.text is None and getattr(self, "tokens", None) is None:
            yield "data.text", "data.text is not given", "name the column with the text, data.text=COLUMN"


@dataclass
class TextFiles(LeavesOut, Data):
    """Text to learn to write: files of plain text, or of JSON objects with the text in one field.

    Splits are made by place: the beginning of the text is for training, its end for validation and test.
    """

    implementation: ClassVar[str] = "bigctl.data.sources.text_files"
    suffixes: ClassVar[tuple[str, ...]] = (".txt", ".text")
    predicts: ClassVar[tuple[str, ...]] = ("text", "words")
    kind: str = kind("text")
    path: str = key(MISSING, "A file, a folder, or a pattern such as 'books/**/*.txt'.", drift=FREE)
    validation_path: str | None = key(None, "The same for the validation split.", drift=FREE)
    test_path: str | None = key(None, "The same for the test split.", drift=FREE)
    field: str | None = key(None, "The field of each JSON object that holds the text.", drift=STRUCTURAL)
    encoding: str | None = key(None, "Encoding of the text, such as latin-1; null for UTF-8.", drift=STRUCTURAL)
    boundaries: bool = key(True, "Put the tokenizer's end token between two files or objects.", drift=STRUCTURAL)
    on_bad: str = bad_input.on_bad("a line of JSON that cannot be read")
    bad_limit: float = bad_input.bad_limit("a split's lines")
    vocabulary_characters: int = key(
        VOCABULARY_CHARACTERS,
        "Of a larger training split, how much a vocabulary is made of, drawn by data.split_seed [characters].",
        drift=STRUCTURAL, ge=2**16,
    )  # fmt: skip
    workers: int | None = key(
        None, "Processes that make tokens of large texts; null for one a core.", drift=FREE, ge=1, le=256
    )
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
        yield from self.unused(("fold",), "is for examples; of a text the end is held out")
        yield from check_encoding(self.encoding)


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
class Conll(LeavesOut, Data):
    """Sentences with a tag a word: a word a line, blank lines between sentences."""

    implementation: ClassVar[str] = "bigctl.data.sources.conll"
    suffixes: ClassVar[tuple[str, ...]] = (".conll", ".conllu", ".conllup", ".iob", ".iob2", ".bio", ".bioes", ".ner")
    predicts: ClassVar[tuple[str, ...]] = ("words",)
    kind: str = kind("conll")
    path: str = key(MISSING, "The file with the training sentences.", drift=FREE)
    validation_path: str | None = key(None, "File with the validation sentences.", drift=FREE)
    test_path: str | None = key(None, "File with the test sentences.", drift=FREE)
    tokens: str = key("0", "The column with the words: 0 is the first, -1 the last; or a name.", drift=STRUCTURAL)
    tags: str = key("-1", "The column with the tags, counted or named likewise.", drift=STRUCTURAL)
    columns: list[str] | None = key(None, "Names of all columns, where the file says none.", drift=STRUCTURAL)
    encoding: str | None = key(None, "Encoding of the text, such as latin-1; null for UTF-8.", drift=STRUCTURAL)
    on_bad: str = bad_input.on_bad("a sentence that cannot be read")
    bad_limit: float = bad_input.bad_limit("a file's sentences")

    def check(self, config: Whole) -> Iterator[Problem]:
        yield from super().check(config)
        yield from check_encoding(self.encoding)


@dataclass
class Parquet(Table):
    """Rows of Parquet files; each column has the type that it is stored with."""

    implementation: ClassVar[str] = "bigctl.data.sources.parquet"
    suffixes: ClassVar[tuple[str, ...]] = (".parquet", ".pq")
    streamed: ClassVar[bool] = False
    predicts: ClassVar[tuple[str, ...]] = ("table", "text", "image")
    before: ClassVar[Mapping[str, object]] = {"decoding": DECODE_MEMORY, "resize": "stretch"}
    kind: str = kind("parquet")
    path: str = key(MISSING, "A file, a folder, or a pattern such as 'rows/*.parquet'.", drift=FREE)
    validation_path: str | None = key(None, "The same for the validation split.", drift=FREE)
    test_path: str | None = key(None, "The same for the test split.", drift=FREE)
    image: str | None = key(None, "The column with encoded images (PNG, JPEG, ...) to classify.", drift=STRUCTURAL)
    image_size: list[int] | None = key(
        None,
        "Resize to [height, width]; null keeps what the images have [pixels].",
        drift=STRUCTURAL,
        decided=True,
        ge=1,
    )
    channels: int | None = key(
        None, "1 for grey, 3 for colour; null to follow the images.", drift=STRUCTURAL, decided=True
    )
    background: str = key(
        "black", "What transparent pixels are laid over.", drift=STRUCTURAL, choices=("black", "white")
    )
    resize: str = key(
        "auto", "What becomes of another shape: stretched (stretch), or its middle taken (crop); auto for crop where "
        "pretrained weights or recipe.size decide the size, else stretch.", drift=STRUCTURAL,
        choices=("auto", "stretch", "crop"), decided=True,
    )  # fmt: skip
    decoding: str | None = key(
        None, "Decode images once, into the cache (memory), or each as training needs it (stream); null for stream "
        "above 512 MiB of decoded images.", drift=STRUCTURAL, choices=(DECODE_MEMORY, DECODE_STREAM), decided=True,
    )  # fmt: skip
    decoding_threads: int | None = key(
        None, "Threads that decode while training; null for one a core.", drift=FREE, ge=1
    )

    def check(self, config: Whole) -> Iterator[Problem]:
        yield from super().check(config)
        if self.columns is not None:
            yield "data.columns", f"files of {self.kind} name their columns", "leave data.columns out"
        names = ("separator", "decimal", "encoding", "missing", "categorical", "numeric", "quoting")
        yield from self.unused(names, "is for files of text; these store what is a number, a text or missing")
        yield from check_image_size(self.image_size)
        if self.image is None:
            yield from self.unused(("resize", "decoding_threads"), "is for images, which data.image names")
            if self.decoding == DECODE_STREAM:
                hint = "name the column with the images, data.image=COLUMN"
                yield "data.decoding", "data.decoding=stream is for images", hint
        if self.text is not None and self.image is not None:
            yield "data.image", "data.text and data.image are both given", "give one of them"
        if self.text_pair is not None and self.text is None:
            yield "data.text_pair", "data.text_pair is set without data.text", "set data.text=COLUMN"
        if self.labels is not None and self.text is None and self.image is None:
            yield "data.labels", "data.labels is for texts and images, not tables", "give data.label"


@dataclass
class Arrow(Parquet):
    """Rows of Arrow files, or of a folder that Hugging Face `datasets` has saved; read as Parquet files are."""

    implementation: ClassVar[str] = "bigctl.data.sources.arrow"
    suffixes: ClassVar[tuple[str, ...]] = (".arrow", ".feather", ".ipc")
    kind: str = kind("arrow")
    path: str = key(MISSING, "A file, a pattern, or a folder of save_to_disk.", drift=FREE)

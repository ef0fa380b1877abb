"""The one place that asks what kind of data it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bigctl.data.dataset import Features
from bigctl.data.layouts import ragged
from bigctl.data.layouts.layout import Columns, Layout
from bigctl.data.layouts.packed import Packed
from bigctl.data.layouts.ragged import Ragged
from bigctl.data.layouts.rows import Rows
from bigctl.data.layouts.streamed import Streamed
from bigctl.data.layouts.windows import Windows
from bigctl.data.pictures.encoded_images import EncodedImages

WINDOWS, DOCUMENTS = "windows", "documents"


@dataclass(frozen=True)
class BatchOptions:
    """What an experiment says about batches. Nothing that is stored depends on it.

    Attributes:
        block: length of the windows that one long text is seen in; 0 where no recipe asks for windows.
        batch_size: examples a training batch.
        shapes: how many lengths batches of texts are padded to.
        window: training batches of texts that are sorted by length among themselves.
        least: share of a picture's area that a random part of it has at least; 0 for no random parts.
        threads: that decode pictures; None for one a core.
        alternating: whether training sees each picture mirrored in every other epoch.
        repeats: how often an example of a fixed shape is in a training batch.
        packing: what windows of one long text are: parts of it (WINDOWS), or documents that do not see each other
            (DOCUMENTS).
        end_token: the token that ends a document; None for the tokenizer's.
    """

    block: int = 0
    batch_size: int = 1
    shapes: int = 4
    window: int = 64
    least: float = 0.0
    threads: int | None = None
    alternating: bool = False
    repeats: int = 1
    packing: str = WINDOWS
    end_token: int | None = None

    @property
    def documents(self) -> bool:
        """Whether windows of one long text are of documents."""
        return bool(self.block) and self.packing == DOCUMENTS


NO_OPTIONS = BatchOptions()


def choose_layout(features: Features, splits: Mapping[str, Columns], options: BatchOptions) -> Layout | None:
    """The layout of prepared data; None for texts that are not tokens yet."""
    train = splits["train"]
    if "window_pieces" in train:
        return Packed(options.block, max(int(np.diff(columns["window_pieces"]).max()) for columns in splits.values()))
    if features.kind == "stream":
        return Windows(options.block) if options.block and "inputs" in train else None
    if "inputs" not in train:
        return None
    if isinstance(train["inputs"], EncodedImages):
        return Streamed(options.least, options.threads, options.alternating, options.repeats)
    if "offsets" not in train:
        return Rows(options.alternating, options.repeats)
    tokens, examples = len(train["inputs"]), len(train["offsets"]) - 1
    aligned = [name for name, values in train.items() if len(values) == tokens != examples and name != "inputs"]
    token_columns = ("inputs", *(name for name in aligned if name != "offsets"))
    edges = ragged.choose_edges(np.diff(train["offsets"]), options.batch_size, options.shapes)
    return Ragged(edges, options.window, token_columns)

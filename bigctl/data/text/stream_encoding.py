"""One long text as tokens, quickly: exactly those that the tokenizer gives the whole of it.

Words repeat. A text is divided where its tokenizer allows, at most places between two words, and each part is given to
the tokenizer once; characters and bytes are looked up in a table. Imports nothing that takes long, as processes are
started that do nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bigctl.data.text import cutting
from bigctl.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "[SEP]")
"""What the end of a document is called; a tokenizer made here for one long text has the first."""

_KNOWN, _KNOWN_CHARACTERS = 2**18, 2**23
"""Parts that are remembered at most, and characters of all of them: then it begins anew."""

_LONG = 24
"""Characters of a part on average above which parts hardly repeat."""

_BATCH = 1000
"""Parts encoded at once: the library's own records of a text are many times its size."""

_WORD = re.compile(r"\s*\S+|\s+")
_ODD = re.compile(r"[\x1c-\x1f]")


def token_type(tokenizer: Tokenizer) -> np.dtype:
    """The smaller of the two types that tokens are stored as which holds them all: uint16, or int32."""
    return np.dtype(np.int32 if tokenizer.get_vocab_size(with_added_tokens=True) > 2**16 else np.uint16)


class StreamEncoder:
    """Texts as tokens.

    Attributes:
        cutter: where texts can be cut.
    """

    def __init__(self, tokenizer: Tokenizer):
        described = json.loads(tokenizer.to_str())
        self.cutter, self.dtype = cutting.cutter(tokenizer), token_type(tokenizer)
        self._tokenizer = tokenizer
        self._known: dict[str, bytes] = {}
        self._room = _KNOWN_CHARACTERS
        self._chunks = re.compile(self.cutter.rule or "") if self.cutter.rule == cutting.BLANKS else None
        self._end = next((n for n in map(tokenizer.token_to_id, END) if n is not None), None)
        added = sorted((token["content"] for token in described["added_tokens"]), key=len, reverse=True)
        plain = not any(token["lstrip"] or token["single_word"] for token in described["added_tokens"])
        self._added = re.compile(f"({'|'.join(map(re.escape, added))})") if added else None
        self._apart = plain
        self._table: np.ndarray | None = None
        self._bytes: np.ndarray | None = None
        if self.cutter.rule == cutting.ANYWHERE and cutting.is_characters(described):
            vocab: dict[str, int] = described["model"]["vocab"]
            self._table = np.full(0x110000, vocab[described["model"]["unk_token"]], self.dtype)
            single = {ord(word): number for word, number in vocab.items() if len(word) == 1}
            self._table[list(single)] = list(single.values())
        elif self.cutter.rule == cutting.ANYWHERE:
            self._bytes = np.array(cutting.bytes_of(described), self.dtype)

    def encode(self, text: str) -> np.ndarray:
        """The tokens of a text, uint16 where that is enough for the vocabulary, else int32 [T]."""
        if self._added is None or self.cutter.rule is None or not self._added.search(text):
            return self._plain(text)
        if not self._apart:  # what is around such a token matters
            return self._given([text])
        parts = []
        for place, part in enumerate(self._added.split(text)):
            if place % 2:
                parts.append(np.array([self._tokenizer.token_to_id(part)], self.dtype))
            elif part:
                parts.append(self._plain(part))
        return np.concatenate(parts)

    def encode_pieces(self, pieces: Sequence[tuple[bool, str]]) -> np.ndarray:
        """The tokens of parts of documents, one after the other; before those that are so marked the end token."""
        end, parts = np.array([self._end or 0], self.dtype), [np.empty(0, self.dtype)]
        for marked, text in pieces:
            parts += [end, self.encode(text)] if marked else [self.encode(text)]
        return np.concatenate(parts)

    def require_end(self) -> None:
        """Raises DataError where the tokenizer has no token for the end of a document."""
        if self._end is None:
            hint = "data.boundaries=false puts nothing between documents; or choose another recipe.tokenizer"
            raise DataError("the tokenizer has no token for the end of a document", where="data.boundaries", hint=hint)

    def _plain(self, text: str) -> np.ndarray:
        """The tokens of a text in which no special token is written."""
        if self._table is not None:
            return self._table[np.frombuffer(text.encode("utf-32-le"), "<u4")]
        if self._bytes is not None:
            return self._bytes[np.frombuffer(text.encode(), np.uint8)]
        if self.cutter.rule is None:
            return self._given([text])
        if self._chunks is not None:
            chunks = self._chunks.split(text)
        elif _ODD.search(text) is None:
            chunks = _WORD.findall(text)
        else:
            chunks = []
        if len(text) > _LONG * len(chunks):
            return self._given(list(self.cutter.pieces(text)))
        new = list(set(chunks).difference(self._known))
        size = sum(map(len, new))
        if len(self._known) + len(new) > _KNOWN or size > self._room:
            self._known, self._room, new = {}, _KNOWN_CHARACTERS, list(set(chunks))
            size = sum(map(len, new))
        self._room -= size
        self._known.update(zip(new, (ids.tobytes() for ids in self._ids(new)), strict=True))
        return np.frombuffer(b"".join(map(self._known.__getitem__, chunks)), self.dtype)

    def _given(self, pieces: Sequence[str]) -> np.ndarray:
        found = list(self._ids(pieces))
        return np.concatenate(found) if found else np.empty(0, self.dtype)

    def _ids(self, texts: Sequence[str]) -> Iterator[np.ndarray]:
        for start in range(0, len(texts), _BATCH):
            for encoding in self._tokenizer.encode_batch_fast(texts[start : start + _BATCH], add_special_tokens=False):
                yield np.array(encoding.ids, self.dtype)

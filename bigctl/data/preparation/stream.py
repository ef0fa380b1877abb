"""Text of any size -> tokens on the disk, in memory that does not grow with it.

    look     every file is read once: is it text, and how many characters are in which document
    split    as of smaller texts, by place
    learn    a vocabulary, of a sample where the training split is large
    encode   blocks of text become tokens in several processes, and are written in order

What comes out is what `prepare` makes of a text that fits into memory, but for the tokens, which are in shards. What
was written is kept where a start ends early, and the next one goes on behind it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bigctl.config.schema import Data
from bigctl.data import cache, splits
from bigctl.data.dataset import SPLITS, Features
from bigctl.data.preparation import partial
from bigctl.data.progress import Progress
from bigctl.data.sampler import permutation
from bigctl.data.sources.bad_rows import LEFT_OUT
from bigctl.data.sources.streamed import Stream
from bigctl.data.text import cutting, token_pool, tokenization
from bigctl.data.text.cutting import Cutter
from bigctl.data.text.ngrams import Ngrams
from bigctl.data.text.stream_encoding import StreamEncoder
from bigctl.data.text.token_writer import (
    BEGINS,
    JOURNAL,
    Block,
    SplitWriter,
    Written,
    digest_as_array,
    finish_text,
    read_journal,
)
from bigctl.errors import DataError
from bigctl.files import write_text
from bigctl.terminal import tell

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BLOCK = 2**20
"""Characters that a process makes tokens of at once."""

_BEYOND = 256
"""Characters that have to be known behind a cut, for a special token could begin before it."""

_LONGEST = 2**22
"""Characters up to which a text is kept whole that its tokenizer does not let be cut."""

_UNIT, _SAMPLE = 2**16, 0x766F636162
"""Characters that are drawn for the sample at once, and what keys that draw."""

_WORTH = 2**23
"""Characters for which starting another process is worth its while."""

_PLAN = "plan.json"

_CHARACTERS = ("million characters", 1e6)


@dataclass(frozen=True)
class Plan:
    """Where each split lies in the sources, and who makes the tokens."""

    stream: Stream
    spans: Mapping[str, list[splits.Span]]
    tokenizer: Tokenizer | None

    def parts(self, split: str, done: int = 0) -> Iterator[tuple[str, bool]]:
        """The text of a split behind so many characters, with whether a document begins with each part."""
        for name, start, stop in self.spans[split]:
            first = True
            if start + done < stop:
                for text, begins in self.stream.sources[name].between(start + done, stop):
                    yield text, begins or (first and not done)
                    first = False
            done = max(0, done - (stop - start))

    def size(self, split: str) -> int:
        return sum(stop - start for _, start, stop in self.spans[split])


def prepare(
    folder: Path, config: Data, stream: Stream, spec: tokenization.Spec | None, unchanged: Callable[[], bool]
) -> None:
    """Make a set, or the rest of it, in its cache folder.

    Args:
        folder: where it belongs.
        config: how it is split.
        stream: the text.
        spec: how it becomes tokens; None leaves it as it is.
        unchanged: whether the files are what they were.

    Raises:
        DataError: if a file is no text, changes meanwhile, or there is no room.
    """
    try:
        with partial.alone_in(folder) as work:
            if work is None:
                return
            try:
                finish = _made(work, config, stream, spec)
            except DataError:
                partial.require(unchanged(), folder)
                raise
            partial.require(unchanged(), folder)
            finish(folder)
            for file in [partial.LOCK, JOURNAL, _PLAN, *(f"{split}{BEGINS}" for split in SPLITS)]:
                (folder / file).unlink(missing_ok=True)
            partial.forget(folder)
    except OSError as error:
        raise cache.cannot_store(folder, error, kept=True) from error


def training_texts(config: Data, stream: Stream) -> Iterator[str]:
    """What a vocabulary is made of, of one that others have too: the documents of the training split, or a sample of
    a large one. Raises DataError if a file is no text."""
    for source in stream.sources.values():
        source.look()
    plan = Plan(stream, splits.spans({n: s.characters for n, s in stream.sources.items()}, config), None)
    size = min(plan.size("train"), stream.sample)
    with Progress("data: learning a vocabulary", size, _CHARACTERS) as progress:
        yield from _sample(plan, config.split_seed, progress)


def _made(work: Path, config: Data, stream: Stream, spec: tokenization.Spec | None) -> Callable[[Path], None]:
    """Everything but the last step, which puts it in place."""
    plan, info = _plan(work, config, stream, spec)
    written, dtype = _write(work, plan), None
    described: dict[str, Any] | None = None
    files: dict[str, str] = {}
    if plan.tokenizer is not None and spec is not None:
        digest = hashlib.sha256((work / cache.TOKENIZER).read_bytes()).hexdigest()
        described = tokenization.describe(plan.tokenizer, spec.settings, digest)
        dtype = StreamEncoder(plan.tokenizer).dtype
    for split in SPLITS:
        found = written[split]
        files |= finish_text(work, found)
        facts = {"documents": found.documents, "bytes": found.bytes, "characters": found.characters}
        if dtype is not None:
            files[f"{split}.inputs.npy"] = digest_as_array(work, found, dtype)
            facts["tokens"] = found.tokens
            info.setdefault("unknown_tokens", {})[split] = round(found.unknown / max(1, found.tokens), 5)
        for name, value in facts.items():
            info.setdefault(name, {})[split] = value
    if torn := sum(found.torn for found in written.values()):
        what = f"{torn:,} places are cut where the tokenizer sees a word of more than {_LONGEST:,} characters"
        info["notes"].append(what)
    shards = {split: found.shards for split, found in written.items()} if dtype is not None else {}
    features = Features("stream", (), None, tokenizer=described)
    return lambda folder: cache.finish_shards(work, folder, features, files, info, shards)


# ---------------------------------------------------------------------------------------------------------------- plan


def _plan(work: Path, config: Data, stream: Stream, spec: tokenization.Spec | None) -> tuple[Plan, dict[str, Any]]:
    """What there is to be done, and facts about it; what an earlier start has left that does not fit is removed."""
    info = {**stream.info, "notes": list(stream.info.get("notes", ()))}
    for name, source in stream.sources.items():
        source.look()
        info["notes"] += [f"{source.empty} empty documents of {name} are left out"] if source.empty else []
        info["notes"] += source.left_out()
        if facts := source.left_out_facts():
            info.setdefault(LEFT_OUT, []).extend(facts)
    plan = Plan(stream, splits.spans({n: s.characters for n, s in stream.sources.items()}, config), None)
    file = work / cache.TOKENIZER
    said = {"tokenizer": None if spec is None else spec.identity(), "spans": plan.spans}
    if _read_plan(work) != json.loads(json.dumps(said)):
        for old in work.iterdir():
            if old.name != partial.LOCK:
                old.unlink()
    if spec is not None:
        sampled = spec.file is None and plan.size("train") > stream.sample
        if sampled:
            info["vocabulary"] = f"made of {stream.sample:,} of {plan.size('train'):,} characters, drawn by split_seed"
        if not file.is_file():
            with Progress(
                "data: learning a vocabulary", min(plan.size("train"), stream.sample), _CHARACTERS
            ) as progress:
                made = tokenization.build_tokenizer(spec, _sample(plan, config.split_seed, progress))
            write_text(file, made.to_str(pretty=True))
        loaded = spec.load(file)
        assert not isinstance(loaded, Ngrams)  # which are for examples
        plan = dataclasses.replace(plan, tokenizer=loaded)
    write_text(work / _PLAN, json.dumps(said))
    return plan, info


def _read_plan(work: Path) -> Any:
    with contextlib.suppress(OSError, ValueError):
        return json.loads((work / _PLAN).read_text(encoding="utf-8"))
    return None


def _sample(plan: Plan, seed: int, progress: Progress) -> Iterator[str]:
    """The documents of the training split, or of a large one as much as is wanted: units of it, drawn without
    replacement, in order, none of which begins or ends within a word."""
    size, most, done = plan.size("train"), plan.stream.sample, 0
    if size <= most:
        document: list[str] = []
        for text, begins in plan.parts("train"):
            if begins and document:
                yield "".join(document)
                document = []
            document.append(text)
            progress.update(done := done + len(text))
        yield "".join(document)
        return
    count = -(-size // _UNIT)
    drawn = np.zeros(count, bool)
    drawn[permutation(count, seed, _SAMPLE)[: max(1, most // _UNIT)]] = True
    at = 0
    for text, _ in plan.parts("train"):
        for unit in range(at // _UNIT, -(-(at + len(text)) // _UNIT)):
            if drawn[unit]:
                part = text[max(0, unit * _UNIT - at) : (unit + 1) * _UNIT - at]
                yield _whole_words(part)
                progress.update(done := done + len(part))
        at += len(text)


def _whole_words(text: str) -> str:
    """A text without what may be half a word at its ends."""
    first, last = re.search(r"\s", text), re.search(r"\s\S*\Z", text[-1000:])
    if first is None or last is None or first.start() > 1000:
        return text
    return text[first.start() : len(text) - len(last[0])]


# --------------------------------------------------------------------------------------------------------------- tokens


def _write(work: Path, plan: Plan) -> dict[str, Written]:
    """Every split, behind what there is of it."""
    written = {split: Written(split) for split in SPLITS} | read_journal(work)
    encoder = None if plan.tokenizer is None else StreamEncoder(plan.tokenizer)
    unknown = None if plan.tokenizer is None else tokenization.special(plan.tokenizer).get("unk")
    writers = {s: SplitWriter(work, written[s], encoder.dtype if encoder else None, unknown) for s in SPLITS}
    total, done = sum(map(plan.size, SPLITS)), sum(found.characters for found in written.values())
    if done:
        tell(f"data: going on behind {done / 1e6:,.0f} of {total / 1e6:,.0f} million characters, which are prepared")
    what = "data: making tokens" if encoder else "data: copying"
    blocks = _blocks(plan, written, encoder)
    try:
        with Progress(what, total, _CHARACTERS, done) as progress, contextlib.closing(blocks):
            for block, tokens in _encoded(work, plan, blocks, encoder, total - done):
                writers[block.split].write(block, tokens)
                progress.update(done := done + sum(len(text) for _, text in block.pieces))
        for writer in writers.values():
            writer.save()
    finally:
        for writer in writers.values():
            writer.close()
    return written


def _encoded(
    work: Path, plan: Plan, blocks: Iterator[Block], encoder: StreamEncoder | None, left: int
) -> Iterator[tuple[Block, np.ndarray | None]]:
    if encoder is None:
        return ((block, None) for block in blocks)
    workers = plan.stream.workers or min(token_pool.usual_workers(), 1 + left // _WORTH)
    return token_pool.encode_blocks(encoder, work / cache.TOKENIZER, blocks, workers)


def _blocks(plan: Plan, written: Mapping[str, Written], encoder: StreamEncoder | None) -> Generator[Block]:
    """The text that is not written yet. Raises DataError where an end token is wanted and there is none."""
    cutter = encoder.cutter if encoder is not None else Cutter(cutting.ANYWHERE, re.compile(""))
    for split in SPLITS:
        first = written[split].characters == 0
        for pieces, torn in _cut(plan.parts(split, written[split].characters), cutter):
            marks = [
                begins and plan.stream.boundaries and not (first and not n) for n, (_, begins) in enumerate(pieces)
            ]
            if any(marks) and encoder is not None:
                encoder.require_end()
            texts = [text for text, _ in pieces]
            yield Block(split, list(zip(marks, texts, strict=True)), [begins for _, begins in pieces], torn)
            first = False


def _cut(parts: Iterable[tuple[str, bool]], cutter: Cutter) -> Iterator[tuple[list[tuple[str, bool]], int]]:
    """Parts of documents as blocks, cut where the tokenizer lets them be, and how often they are cut elsewhere."""
    block: list[tuple[str, bool]] = []
    text, at, begins, room, torn = "", 0, False, _BLOCK, 0  # what is before `at` is in blocks
    for part, new in parts:
        if new and at < len(text):
            block.append((text[at:], begins))
            room, at = room - (len(text) - at), len(text)
        begins = begins if at < len(text) else new
        text, at = text[at:] + part, 0
        while True:
            if room > 0:
                end = _end(text, at, room, cutter)
                if end is None:
                    break
                torn += end == at + _LONGEST
                block.append((text[at:end], begins))
                at, begins = end, False
            yield block, torn
            block, room, torn = [], _BLOCK, 0
    if at < len(text):
        block.append((text[at:], begins))
    if block:
        yield block, torn


def _end(text: str, start: int, room: int, cutter: Cutter) -> int | None:
    """Where a document is cut that is longer from `start` on than there is room for; None where that is not known
    yet."""
    if cutter.rule is None:
        return None
    found = cutter.find(text, start + room)
    if found is not None and found + _BEYOND <= len(text):
        return min(found, start + _LONGEST)
    return start + _LONGEST if len(text) - start > _LONGEST + _BEYOND else None

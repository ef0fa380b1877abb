"""What training waits for: the disk, decoding, or the way to the devices, and the key that helps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bigctl.config import schema
from bigctl.data.pictures.encoded_images import cores
from bigctl.data.work import Made
from bigctl.formatting import size
from bigctl.memory import available
from bigctl.training.feed import Feed, SentFeed, stays_in_files
from bigctl.training.prefetch import THREADS

DISK, DECODE, TRANSFER = "disk", "decode", "transfer"
LEAST, SECONDS = 0.05, 1.0
"""Share of the time, and seconds, of waiting that are worth a word. The first batch, which nothing can hide, is not."""


@dataclass(frozen=True)
class Mark:
    """How long training had waited at some moment [s], and what had been made by then."""

    waited: float
    made: Made


@dataclass(frozen=True)
class Verdict:
    """What training waits for.

    Attributes:
        share: of the time of training.
        cause: DISK, DECODE or TRANSFER.
        seconds: of each of them, busy, with as many threads as do it.
        hint: what helps.
    """

    share: float
    cause: str
    seconds: dict[str, float]
    hint: str

    def __str__(self) -> str:
        # Of mapped arrays nothing tells whether the system read them just now, or had them in memory.
        read = (
            "reading from disk" if DECODE in self.seconds else "copying examples out of mapped files (disk or memory)"
        )
        what = {DISK: read, DECODE: "decoding pictures", TRANSFER: "moving batches to the devices"}
        each = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())
        cause = f"{what[self.cause]} (busy: {each})"
        return f"training waits for data {self.share:.0%} of the time, which is {cause}: {self.hint}"

    def to_json(self) -> dict[str, object]:
        seconds = {name: round(value, 3) for name, value in self.seconds.items()}
        return {"share": round(self.share, 4), "cause": self.cause, "seconds": seconds, "sentence": str(self)}


class Waiting:
    """Follows a feed through a fit."""

    def __init__(self, feed: Feed, config: schema.Config):
        self.feed, self.config = feed, config
        self._began = self._last = self.mark()
        self._told = False

    def mark(self) -> Mark:
        work = self.feed.work
        return Mark(self.feed.waited, Made() if work is None else work.made())

    def rates(self, mark: Mark, seconds: float) -> dict[str, float]:
        """Metrics of the time between the mark of the last call and this one, `seconds` long."""
        waited, made = mark.waited - self._last.waited, mark.made - self._last.made
        self._last, seconds = mark, max(seconds, 1e-9)
        found = {}
        if waited > 0 and self.feed.waits_for_data:  # the share of time in which no batch was there
            found["perf/data_wait"] = min(1.0, waited / seconds)
        if made.batches:
            found["perf/queue_depth"] = made.ready / made.batches
        if made.pictures:
            found["perf/decoded_per_s"] = made.pictures / seconds
        return found

    def tell(self, seconds: float, warn: Callable[[str], None]) -> None:
        """The verdict in a sentence, once."""
        told, self._told = self._told, True
        if not told and (verdict := self.verdict(seconds)) is not None:
            warn(str(verdict))

    def verdict(self, seconds: float) -> Verdict | None:
        """What training has waited for in `seconds` of training; None where it is not worth a word."""
        mark = self.mark()
        made = mark.made - self._began.made
        waited = mark.waited - self._began.waited - made.first
        share = waited / max(seconds - made.first, 1e-9)
        if not made.batches or waited < SECONDS or share <= LEAST:
            return None
        streams = made.pictures > 0
        threads = (getattr(self.config.data, "decoding_threads", None) or cores()) if streams else THREADS
        busy = {DISK: made.read / threads, DECODE: made.decode / threads, TRANSFER: made.transfer / THREADS}
        cause = max(busy, key=lambda name: busy[name])
        seconds_of = {name: value for name, value in busy.items() if value or name == cause}
        return Verdict(min(1.0, share), cause, seconds_of, self._hint(cause, streams))

    def _hint(self, cause: str, streams: bool) -> str:
        data, nbytes = self.config.data, self.feed.nbytes
        if isinstance(self.feed, SentFeed) and stays_in_files(self.feed.columns):
            helps = "a faster link to the devices" if cause == TRANSFER else "a faster disk, or fewer and larger files"
            return f"of so many tokens no copy is kept, so what helps is {helps}"
        if not streams or cause == TRANSFER:
            mib = -(-nbytes // 2**20)
            keep = f"data.resident_mib={mib} keeps the training split on the devices, if they hold {size(nbytes)}"
            return keep if not streams else "fewer pixels help (data.image_size), or a faster link to the devices"
        threads = getattr(data, "decoding_threads", None)
        if threads is not None and threads < cores():
            return f"data.decoding_threads={cores()} uses every core"
        crops = getattr(getattr(self.config.recipe, "augment", None), "random_resized_crop", 0)
        if not crops and 2 * nbytes < available():
            return f"data.decoding=memory decodes once, into {size(nbytes)} of the cache"
        if cause == DISK:
            return f"data.decoding_threads={2 * (threads or cores())} reads more files at once; a faster disk helps"
        if getattr(data, "resize", "crop") != "crop":
            return (
                "data.resize=crop decodes large JPEGs at a half of their size or less; more cores or smaller files help"
            )
        return "more cores or smaller copies of the pictures help"

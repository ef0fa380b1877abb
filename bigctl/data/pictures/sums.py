"""What pictures were when they were first read as a whole.

An index knows of each its size and samples of its content, as making one must not read everything. Whoever decodes a
picture has read it: the first time its checksum is kept, and from then on it is held against that, by later epochs,
runs and `--verify`, also where an index was made again since. Checksums are of a set as it is known by its content.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from bigctl.cache_root import cache_root
from bigctl.files import temporary_name


@dataclass
class Sums:
    """CRC-32 of pictures, 0 for those not read yet.

    Attributes:
        file: where they are kept.
        count: of all pictures in it.
        rows: which of them these are, integers [N]; None for all.
    """

    file: Path
    count: int
    rows: np.ndarray | None = None
    _known: np.ndarray | None = field(default=None, repr=False)

    @classmethod
    def of(cls, fingerprint: str, split: str, count: int) -> Sums:
        """Those of a split of a set."""
        return cls(root() / f"{fingerprint[:32]}.{split}", count)

    def take(self, rows: np.ndarray) -> Sums:
        return replace(self, rows=rows if self.rows is None else self.rows[rows])

    def agrees(self, row: int, content: bytes) -> bool:
        """Whether a picture is what it was when it was first read, which this may be."""
        known, place = self._place(row)
        return not known[place] or int(known[place]) == _sum(content)

    def keep(self, row: int, content: bytes) -> None:
        """This is what a picture is, unless that is known."""
        known, place = self._place(row)
        if not known[place]:
            known[place] = _sum(content)

    def _place(self, row: int) -> tuple[np.ndarray, int]:
        if self._known is None:
            self._known = self._opened()
        return self._known, row if self.rows is None else int(self.rows[row])

    def _opened(self) -> np.ndarray:
        """Mapped, so that all processes see what one has read; of this process alone where the cache is read-only or
        full."""
        try:
            if not self.file.exists() or self.file.stat().st_size != 4 * self.count:
                self._make()
            return np.memmap(self.file, "<u4", "r+", shape=(self.count,))
        except (OSError, ValueError):
            return np.zeros(self.count, "<u4")

    def _make(self) -> None:
        """The file, with nothing known; of threads and processes that begin at once, all get that of the first."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        made = temporary_name(self.file)
        try:
            made.write_bytes(bytes(4 * self.count))  # no hole: a mapped one that finds the disk full ends the process
            with contextlib.suppress(FileNotFoundError):
                if self.file.stat().st_size != 4 * self.count:  # of another set
                    self.file.unlink()
            try:
                os.link(made, self.file)
            except FileExistsError:
                return
            except OSError:  # no links on this disk
                made.replace(self.file)
        finally:
            made.unlink(missing_ok=True)


def _sum(content: bytes) -> int:
    return zlib.crc32(content) or 1


def root() -> Path:
    """The folder with all of them."""
    return cache_root() / "sums"


def forget(folder: Path) -> None:
    """Those of the set that is prepared in a folder."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        fingerprint = json.loads((folder / "meta.json").read_text(encoding="utf-8"))["fingerprint"]
        for file in root().glob(f"{glob.escape(fingerprint[:32])}.*"):
            file.unlink()

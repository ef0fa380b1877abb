"""`bigctl ui`: pages for this machine only, nothing but pages, and curves that grow."""

from __future__ import annotations

import fcntl
import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bigctl.reports import server
from tests.conftest import Cli
from tests.reports import folders


class Client:
    def __init__(self, folder: Path):
        self.folder = folder
        self.serving = server.listen(server.Site(folder / "runs", folder / "sweeps"), 0)
        self.port = self.serving.server_address[1]
        self.token = self.serving.address.partition("?")[2]
        threading.Thread(target=self.serving.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def __call__(self, address: str, *, host: str | None = None, method: str = "GET") -> tuple[int, str]:
        answer, text = self.answer(address, host=host, method=method, cookie=f"bigctl-{self.port}={self.token[6:]}")
        return answer.status, text

    def answer(
        self, address: str, *, host: str | None = None, method: str = "GET", cookie: str = ""
    ) -> tuple[http.client.HTTPResponse, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.putrequest(method, address, skip_host=True)
        connection.putheader("Host", host or f"127.0.0.1:{self.port}")
        if cookie:
            connection.putheader("Cookie", cookie)
        connection.endheaders()
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer, text


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("served")
    folders.run(folder / "runs" / "digits")
    folders.study.make(folder / "sweeps" / "lr", points=2, seeds=1, length=5)
    folders.run(folder / "secret")
    (folder / "runs" / "way_out").symlink_to(folder / "secret")
    leaky = folders.run(folder / "runs" / "leaky", status="failed")
    (leaky / "log.txt").unlink()
    (leaky / "log.txt").symlink_to(folder / "secret" / "log.txt")
    (folder / "runs" / "notes").mkdir()
    (folder / "runs" / "notes" / "passwords.txt").write_text("hunter2")
    found = Client(folder)
    yield found
    found.serving.shutdown()
    found.serving.server_close()


def test_index_leads_to_every_page(client: Client) -> None:
    status, index = client("/")
    assert status == 200 and set(re.findall(r'href="(/[^"]*)"', index)) >= {"/runs/digits", "/sweeps/lr"}
    status, page = client("/sweeps/lr")
    assert status == 200
    trials = sorted(set(re.findall(r'href="(/sweeps/lr/trials/[^"]*)"', page)))
    assert len(trials) == 2 and 'href="/"' in page and 'href="/sweeps/lr"' in client(trials[0])[1]
    for address in ("/runs/digits", *trials):
        status, text = client(address)
        assert status == 200 and "Learning curves" in text


def test_index_has_the_mean_that_a_sweep_was_won_by(tmp_path: Path) -> None:
    folder = folders.study.make(tmp_path / "lr", points=3, seeds=3, length=5, failed=0)
    board = json.loads((folder / "leaderboard.json").read_text())
    scores = [trial["metrics"]["val/accuracy"] for trial in board["trials"]]
    assert server._glance(folder)["best"] == pytest.approx(board["winner"]["mean"]) != pytest.approx(max(scores))


@pytest.mark.parametrize(
    "address",
    [
        "/runs/../secret", "/runs/%2e%2e/secret", "/runs/..%2fsecret", "/runs/way_out", "/runs/way_out/new?from=0",
        "/runs/notes", "/runs/digits/run.json", "/runs/digits/../digits", "/runs/digits/%2e%2e%2fnew", "/runs",
        "/runs/leaky", "/etc/passwd", "//etc/passwd", "/sweeps", "/sweeps/lr/trials/..", "/sweeps/lr/trials/%2e%2e",
        "/sweeps/lr/leaderboard.json", "/sweeps/lr/new?from=0", "/runs/digits%00", "/runs/digits/new?from=-1",
        "/runs/digits/new?from=%C2%B2", "/overlay?run=secret", "/overlay?run=../secret", "/overlay?run=lr/..",
        "/overlay?run=lr", "/overlay?run=digits&run=leaky",
    ],
)  # fmt: skip
def test_nothing_but_pages_is_served(client: Client, address: str) -> None:
    assert client(address) == (404, "there is no such page\n")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1.evil.example:{port}"])
def test_names_that_someone_else_points_here_are_refused(client: Client, host: str) -> None:
    status, text = client("/runs/digits", host=host.format(port=client.port))
    assert status == 421 and "digits" not in text
    assert client("/", host=f"localhost:{client.port}")[0] == 200


def test_only_who_has_the_printed_address_sees_pages(client: Client) -> None:
    for address, cookie in (
        ("/", ""), ("/runs/digits", ""), ("/?token=", ""), ("/?token=%ff", ""), ("/?token=" + "0" * 32, ""),
        ("/runs/digits/new?from=0", ""), ("/", f"bigctl-{client.port}={'0' * 32}"),
        ("/", "bigctl-1=" + client.token[6:]),
        ("/", "=;;\x01"),
    ):  # fmt: skip
        answer, text = client.answer(address, cookie=cookie)
        assert answer.status == 403 and "digits" not in text and answer.getheader("Set-Cookie") is None
    answer, text = client.answer(f"/?{client.token}")
    assert answer.status == 200 and "/runs/digits" in text
    cookie = str(answer.getheader("Set-Cookie"))
    assert cookie.endswith("; Path=/; HttpOnly; SameSite=Strict")
    answer, text = client.answer("/runs/digits", cookie=cookie.partition(";")[0])
    assert answer.status == 200 and client.token[6:] not in text


@pytest.mark.parametrize("address", ["/", "/runs/digits", "/runs/nothing", "/runs/digits/new?from=0"])
def test_head_tells_what_get_would(client: Client, address: str) -> None:
    cookie = f"bigctl-{client.port}={client.token[6:]}"
    got, text = client.answer(address, cookie=cookie)
    told, nothing = client.answer(address, method="HEAD", cookie=cookie)
    assert nothing == "" and told.status == got.status
    assert told.getheader("Content-Length") == got.getheader("Content-Length") == str(len(text.encode()))


@pytest.mark.parametrize(
    ("method", "address"), [("GET", "/"), ("GET", "/no"), ("GET", "/?x"), ("POST", "/"), ("B AD", "/")]
)
def test_every_answer_has_the_headers_that_protect_it(client: Client, method: str, address: str) -> None:
    with socket.create_connection(("127.0.0.1", client.port), timeout=60) as connection:
        connection.sendall(
            f"{method} {address} HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\nConnection: close\r\n\r\n".encode()
        )
        head = b"".join(iter(lambda: connection.recv(65536), b"")).decode().partition("\r\n\r\n")[0].lower()
    for name in ("cache-control: no-store", "x-content-type-options: nosniff", "x-frame-options: deny",
                 "referrer-policy: no-referrer", "content-security-policy: frame-ancestors 'none'"):  # fmt: skip
        assert head.count(name) == 1, head


def test_what_leads_out_of_the_folder_is_neither_listed_nor_shown(client: Client) -> None:
    status, index = client("/")
    assert status == 200 and "digits" in index and "way_out" not in index and "leaky" not in index
    away = client.folder / "runs" / "linked"
    folders.run(away)
    (away / "checkpoints").symlink_to(client.folder / "secret")
    trial = client.folder / "sweeps" / "lr" / "trials"
    board = client.folder / "sweeps" / "lr" / "leaderboard.json"
    text = board.read_text()
    try:
        assert client("/runs/linked")[0] == 404 and "linked" not in client("/")[1]
        assert "/sweeps/lr" in client("/")[1]
        (trial / "out").symlink_to(client.folder / "secret")
        assert client("/sweeps/lr")[0] == 404 and "/sweeps/lr" not in client("/")[1]
        (trial / "out").unlink()
        (client.folder / "secret" / "metrics.jsonl").write_text('{"step": 1, "train/loss": 0.123454321}\n' * 3)
        found = json.loads(text)
        for each in found["trials"]:
            each["id"], each["run"] = "gone", str(client.folder / "secret")
        board.write_text(json.dumps(found))
        status, page = client("/sweeps/lr")
        assert status == 200 and "0.123454321" not in page
    finally:
        board.write_text(text)
        shutil.rmtree(away)


def test_overlay_draws_the_runs_that_its_address_names(client: Client) -> None:
    trial = sorted((client.folder / "sweeps" / "lr" / "trials").iterdir())[0].name
    status, page = client(f"/overlay?run=digits&run=lr/{trial}&run=digits")
    figures = json.loads(re.findall(r'id="figures">(.*?)</script>', page)[0])
    losses = next(f for f in figures.values() if f["data"][0]["meta"].endswith("train/loss"))["data"]
    assert status == 200 and [trace["name"] for trace in losses] == ["digits", f"lr/{trial}"]
    assert len({trace["line"]["color"] for trace in losses}) == 2
    assert f'href="/sweeps/lr/trials/{trial}"' in page and 'value="digits" aria-label="digits" checked' in page
    assert "<script>" not in client("/overlay?run=digits&bare=1")[1]
    assert client("/overlay")[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_pages_are_only_read(client: Client, method: str) -> None:
    assert client("/", method=method)[0] in (405, 501)


def test_only_this_machine_can_connect(client: Client) -> None:
    assert client.serving.server_address[0] == "127.0.0.1"


def test_running_run_sends_only_its_new_points(client: Client) -> None:
    folder = folders.run(client.folder / "runs" / "live", status="running")
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _, page = client("/runs/live")
        (live, start) = re.findall(r'data-live="([^"]*)" data-from="(\d+)"', page)[0]
        assert int(start) == (folder / "metrics.jsonl").stat().st_size and "connect-src &#39;self&#39;" in page
        with (folder / "metrics.jsonl").open("a") as stream:
            stream.write('{"step": 61, "train/loss": 0.5}\n{"step": 62, "train/loss": null}\n{"step": 63, "tra')
        found: dict[str, Any] = json.loads(client(f"{live}?from={start}")[1])
        assert found["curves"] == {"train/loss": {"x": [61, 62], "y": [0.5, None]}}
        assert found["status"] == "running" and not found["reload"]
        with (folder / "metrics.jsonl").open("a") as stream:
            stream.write('in/loss": 0.25}\n')
        found = json.loads(client(f"{live}?from={found['next']}")[1])
        assert found["curves"] == {"train/loss": {"x": [63], "y": [0.25]}}
        assert json.loads(client(f"{live}?from={found['next']}")[1])["curves"] == {}
        (folder / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2}\n')
        assert json.loads(client(f"{live}?from={found['next']}")[1])["reload"]
    assert json.loads(client(f"{live}?from=0")[1])["status"] == "partial"


def test_command_prints_its_address_and_ends_quietly(bigctl: Cli) -> None:
    process = subprocess.Popen(
        bigctl.command("ui", "--port", "0"),
        cwd=bigctl.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    port, query = re.findall(r"http://127.0.0.1:(\d+)/(\?token=[0-9a-f]{32}) ", line)[0]
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=60)
    connection.request("GET", f"/{query}")
    assert "no runs here yet" in connection.getresponse().read().decode()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "")


def test_taken_port_is_said_only_where_it_was_asked_for(bigctl: Cli, client: Client) -> None:
    assert f"--port {client.port}: cannot be used" in bigctl("ui", "--port", str(client.port), code=2).stderr

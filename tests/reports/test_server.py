"""`bigctl ui`: pages for this machine only, nothing but pages, and curves that grow."""

from __future__ import annotations

import fcntl
import http.client
import json
import re
import signal
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
        threading.Thread(target=self.serving.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def __call__(self, address: str, *, host: str | None = None, method: str = "GET") -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.putrequest(method, address, skip_host=True)
        connection.putheader("Host", host or f"127.0.0.1:{self.port}")
        connection.endheaders()
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, text


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
    trials = re.findall(r'href="(/sweeps/lr/trials/[^"]*)"', page)
    assert len(trials) == 2 and 'href="/"' in page and 'href="/sweeps/lr"' in client(trials[0])[1]
    for address in ("/runs/digits", *trials):
        status, text = client(address)
        assert status == 200 and "Learning curves" in text


@pytest.mark.parametrize(
    "address",
    [
        "/runs/../secret", "/runs/%2e%2e/secret", "/runs/..%2fsecret", "/runs/way_out", "/runs/way_out/new?from=0",
        "/runs/notes", "/runs/digits/run.json", "/runs/digits/../digits", "/runs/digits/%2e%2e%2fnew", "/runs",
        "/runs/leaky", "/etc/passwd", "//etc/passwd", "/sweeps", "/sweeps/lr/trials/..", "/sweeps/lr/trials/%2e%2e",
        "/sweeps/lr/leaderboard.json", "/sweeps/lr/new?from=0", "/runs/digits%00", "/runs/digits/new?from=-1",
        "/runs/digits/new?from=%C2%B2",
    ],
)  # fmt: skip
def test_nothing_but_pages_is_served(client: Client, address: str) -> None:
    assert client(address) == (404, "there is no such page\n")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1.evil.example:{port}"])
def test_names_that_someone_else_points_here_are_refused(client: Client, host: str) -> None:
    status, text = client("/runs/digits", host=host.format(port=client.port))
    assert status == 421 and "digits" not in text
    assert client("/", host=f"localhost:{client.port}")[0] == 200


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
    port = int(re.findall(r"http://127.0.0.1:(\d+)/", line)[0])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", "/")
    assert "no runs here yet" in connection.getresponse().read().decode()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "", "")


def test_taken_port_is_said_only_where_it_was_asked_for(bigctl: Cli, client: Client) -> None:
    assert f"--port {client.port}: cannot be used" in bigctl("ui", "--port", str(client.port), code=2).stderr

"""Requests per second and latency of `bigctl serve` against litserve, with the same ONNX model of pictures.

    bigctl export cnn_cls --format onnx --out cnn-onnx
    python scripts/bench_serve_peers.py cnn-onnx --litserve OTHER/bin/python

litserve runs in the Python that is given (it needs litserve, onnxruntime and numpy there; without it bigctl alone is
measured, and that is said). It gets what its own documentation shows: one worker, an onnxruntime session in `setup`,
once example by example and once with batches of up to 16; what is compared is the better of the two. Its session does
not spin, as ours does not. All are asked for the same pixels in JSON over kept connections, in short blocks that take
turns; both answer with all probabilities. Processor time is that of a server with all its processes, which other work
on the machine changes less than the clock.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _bench
import numpy as np
from bench_serve import wait_for

PEER = """
import sys

import litserve
import numpy as np
import onnxruntime


class Api(litserve.LitAPI):
    def setup(self, device):
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])

    def decode_request(self, request):
        return np.asarray(request["image"], np.uint8)[..., None]

    def predict(self, given):
        batch = given if given.ndim == 4 else given[None]
        found = self.session.run(["probabilities"], {"inputs": batch})[0]
        return found if given.ndim == 4 else found[0]

    def encode_response(self, output):
        return {"probabilities": output.tolist()}


if __name__ == "__main__":
    most = int(sys.argv[3])
    api = Api(max_batch_size=most, batch_timeout=0.002) if most > 1 else Api()
    server = litserve.LitServer(api, accelerator="cpu")
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="error")
"""
BATCH = 16
_KEPT = b"content-length: "


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path, help="a folder that `bigctl export --format onnx` wrote, of pictures")
    parser.add_argument("--litserve", metavar="PYTHON", default=sys.executable, help="default: this one")
    parser.add_argument("--connections", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a block (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="blocks of each (default %(default)s)")
    _bench.add_patience(parser)
    options = parser.parse_args()
    _bench.print_facts("jax", "onnxruntime", "starlette", "uvicorn", "uvloop", "httptools")
    shape = json.loads((options.export / "preprocessing.json").read_text(encoding="utf-8"))["shape"]
    pixels = np.random.default_rng(0).integers(0, 256, shape[:2]).tolist()
    peer = subprocess.run([options.litserve, "-c", "import litserve, onnxruntime; print(litserve.__version__)"],
                          capture_output=True, text=True)  # fmt: skip
    with contextlib.ExitStack() as stack:
        servers = {"bigctl": stack.enter_context(ours(options.export))}
        if peer.returncode:
            print(f"{options.litserve} has no litserve with onnxruntime: bigctl alone is measured")
        else:
            print(f"litserve {peer.stdout.strip()} in {options.litserve}")
            for name, most in (("litserve", 1), (f"litserve, batches of {BATCH}", BATCH)):
                servers[name] = stack.enter_context(theirs(options.litserve, options.export, most))
        seconds: dict[str, list[float]] = {name: [] for name in servers}
        blocks = {name: block(server.port, pixels, seconds[name], options) for name, server in servers.items()}
        for name in servers:
            blocks[name]()
            seconds[name].clear()
        begun = {name: server.processor() for name, server in servers.items()}
        samples = _bench.interleave(blocks, options.rounds, warmup=0, patience=options.patience)
        taken = {
            name: 1000 * (server.processor() - begun[name]) / len(seconds[name]) for name, server in servers.items()
        }
    late = {name: 1000 * float(np.quantile(each, 0.99)) for name, each in seconds.items()}
    rows = [
        [name, statistics.median(values), max(values), 1000 * statistics.median(seconds[name]), late[name], taken[name]]
        for name, values in samples.items()
    ]
    _bench.table(["", "requests/s, median", "best", "latency, ms, median", "p99", "processor, ms a request"], rows)
    return told(samples, late, taken)


@dataclass(frozen=True)
class Server:
    """One that runs: its port, and its process, which leads a group of its own."""

    port: int
    process: subprocess.Popen[Any]

    def processor(self) -> float:
        """Seconds that the processes of its group have taken so far."""
        ticks = 0
        for file in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = file.read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12]) if int(fields[2]) == self.process.pid else 0
        return ticks / os.sysconf("SC_CLK_TCK")

    def end(self) -> None:
        """The whole group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)


def told(samples: dict[str, list[float]], late: dict[str, float], taken: dict[str, float]) -> int:
    """Ratios to the peer's better way; gives the exit code."""
    if len(samples) == 1:
        return 0
    best = max((name for name in samples if name != "bigctl"), key=lambda name: statistics.median(samples[name]))
    medians, _, within = _bench.ratio(samples, "bigctl", best)
    delay = late["bigctl"] / min(value for name, value in late.items() if name != "bigctl")
    print(f"bigctl / {best}: {medians:.2f} x the requests/s (medians), {within:.2f} (within a round)")
    print(f"processor time of a request: {taken[best] / taken['bigctl']:.2f} x as long in {best}")
    print(f"p99: {delay:.2f} of the better one's; targets 2 and 0.5: ", end="")
    met = within >= 2 and delay <= 0.5
    print("met" if met else "MISSED")
    return 0 if met else 1


@contextlib.contextmanager
def ours(export: Path) -> Iterator[Server]:
    """A server of our own."""
    command = [str(Path(sys.executable).with_name("bigctl")), "serve", str(export), "--port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    server = Server(0, process)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split()[0]
        wait_for(address)
        yield Server(int(address.rsplit(":", 1)[1]), process)
    finally:
        server.end()


@contextlib.contextmanager
def theirs(python: str, export: Path, most: int) -> Iterator[Server]:
    """A server of litserve, which starts processes of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "peer.py"
        script.write_text(PEER, encoding="utf-8")
        command = [python, str(script), str((export / "model.onnx").resolve()), str(port), str(most)]
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        server = Server(port, process)
        try:
            wait_for_health(f"http://127.0.0.1:{port}/health", process)
            yield server
        finally:
            server.end()


def wait_for_health(address: str, server: subprocess.Popen[bytes]) -> None:
    import urllib.request

    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(address):
                return
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("litserve does not start") from None
            time.sleep(0.2)


class Client(asyncio.Protocol):
    """One connection that asks again as soon as it is answered."""

    def __init__(self, request: bytes, seconds: list[float], until: float):
        self._request, self._seconds, self._until = request, seconds, until
        self._read, self._begun = b"", 0.0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._ask()

    def _ask(self) -> None:
        self._begun = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, between, body = self._read.partition(b"\r\n\r\n")
        if not between:
            return
        length = int(head.lower().split(_KEPT, 1)[1].split(b"\r\n", 1)[0])
        if len(body) < length:
            return
        if b" 200 " not in head.split(b"\r\n", 1)[0] or b"probabilities" not in body:
            self.ended.set_exception(RuntimeError(self._read[:300].decode()))
            self._transport.close()
            return
        now = time.perf_counter()
        self._seconds.append(now - self._begun)
        self._read = b""
        if now < self._until:
            self._ask()
        else:
            self.ended.set_result(None)
            self._transport.close()


def block(port: int, pixels: list[Any], seconds: list[float], options: argparse.Namespace) -> Callable[[], float]:
    """Requests per second, all connections together; latencies are added to a list."""
    body = json.dumps({"image": pixels}).encode()
    head = f"POST /predict HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
    request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body

    async def asked() -> int:
        loop, found = asyncio.get_running_loop(), []
        until = time.perf_counter() + options.seconds
        clients = []
        for _ in range(options.connections):
            _, client = await loop.create_connection(lambda: Client(request, found, until), "127.0.0.1", port)
            clients.append(client)
        await asyncio.gather(*(client.ended for client in clients))
        seconds.extend(found)
        return len(found)

    def measured() -> float:
        begin = time.perf_counter()
        count = asyncio.run(asked())
        return count / (time.perf_counter() - begin)

    return measured


if __name__ == "__main__":
    sys.exit(main())

"""Minutes of load on `bigctl serve`, with clients that misbehave: is every answer right, and does memory stay flat?

    python scripts/load_serve.py runs/cnn_cls runs/bert_cls --minutes 5

Starts the server on loopback, on a free port. Clients keep connections open and ask about examples made up here
(pixels, rows, words of the tokenizer; of language models prompts with a seed); now and then one leaves in the middle of
its body, does not read its answer, sends what is no JSON, or, as a process of its own, is killed. Every answer is held
against what `bigctl.load(RUN)` says of the example alone. With --rate the clients ask so often a second, all together,
instead of as often as they can: for a long load beside other work. At the end: requests, refusals, wrong answers,
latency, and memory, open files and requests in flight of the server, a tenth into the time and at the end. Exit code 1
for a wrong answer, a failed request, something left in flight, or memory that grew by more than --growth per cent.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

import bigctl

KILLED = """
import json, socket, sys, time
body, pause = sys.argv[3].encode(), float(sys.argv[4])
head = f"POST {sys.argv[2]} HTTP/1.1\\r\\nhost: localhost\\r\\ncontent-type: application/json\\r\\n"
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as connection:
    while True:
        connection.sendall(f"{head}content-length: {len(body)}\\r\\n\\r\\n".encode() + body)
        connection.recv(1000)
        time.sleep(pause)
"""
TOKENS = 12


class Model:
    """A run, examples for it, and the answers that it has to give.

    Attributes:
        path: of its requests.
        bodies: of requests, as JSON.
        expected: the answer to each, without what differs from time to time.
        writes: whether it is a language model.
    """

    def __init__(self, run: str, count: int, rng: random.Random):
        trained = bigctl.load(run)
        self.name, features = trained.run.path.resolve().name, trained.features
        self.path = f"/models/{self.name}/predict"
        self.writes = features.kind == "stream"
        if self.writes:
            self.path = "/v1/completions"
            prompts = [self._words(trained, rng) for _ in range(min(count, 24))]
            asked = [{"prompt": prompt, "seed": n, "max_tokens": TOKENS} for n, prompt in enumerate(prompts)]
            given: list[Any] = [{**each, "model": self.name} for each in asked]
            self.expected = [
                trained.generate(each["prompt"], seed=each["seed"], max_new_tokens=TOKENS, temperature=1.0)[0].text
                for each in asked
            ]
        else:
            given = [self._example(trained, rng) for _ in range(count)]
            self.expected = json.loads(json.dumps([self._described(trained, example) for example in given]))
        self.bodies = [json.dumps(example).encode() for example in given]
        self._many = None if self.writes else json.dumps({"instances": given[:20]}).encode()

    def said(self, answer: Any) -> Any:
        return answer["choices"][0]["text"] if self.writes else answer

    def question(self, rng: random.Random) -> tuple[bytes, Any]:
        """A body, and the answer to it."""
        if self._many is not None and rng.random() < 0.1:
            return self._many, {"predictions": self.expected[:20]}
        number = rng.randrange(len(self.bodies))
        return self.bodies[number], self.expected[number]

    def _described(self, trained: Any, example: Any) -> Any:
        kind = trained.features.kind
        if kind == "image":
            file = base64.b64decode(example["image"])
            record = next(iter(trained.predict_files([file])))
            return {name: value for name, value in record.items() if name not in ("file", "row")}
        return trained.describe(tuple(example) if isinstance(example, list) else example)

    def _example(self, trained: Any, rng: random.Random) -> Any:
        features = trained.features
        if features.kind == "image":
            from PIL import Image

            size = rng.randrange(8, 64), rng.randrange(8, 64), 3
            stream = io.BytesIO()
            Image.fromarray(np.frombuffer(rng.randbytes(int(np.prod(size))), np.uint8).reshape(size)).save(
                stream, "png"
            )
            return {"image": base64.b64encode(stream.getvalue()).decode()}
        if features.kind == "table":
            return {
                column["name"]: rng.gauss(column["mean"], column["std"])
                if column["kind"] == "numeric"
                else rng.choice(column["categories"])
                for column in features.encoder["columns"]
            }
        text = self._words(trained, rng)
        return [text, self._words(trained, rng)] if features.pairs else text

    def _words(self, trained: Any, rng: random.Random) -> str:
        file = json.loads(trained.run.tokenizer.read_text(encoding="utf-8"))
        vocabulary = file.get("model", {}).get("vocab") or ["some", "words", "of", "a", "text"]
        plain = sorted(word for word in vocabulary if isinstance(word, str) and word.isalnum())
        between = " " if trained.features.kind == "text" else ""
        return between.join(rng.choice(plain) for _ in range(rng.randrange(2, 24)))


class Load:
    """Clients, and what they were told."""

    def __init__(self, port: int, models: list[Model], until: float, pause: float):
        self.port, self.models, self.until, self.pause = port, models, until, pause
        self.counts: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.wrong: list[str] = []
        self._lock = threading.Lock()

    def client(self, number: int) -> None:
        rng, connection = random.Random(number), self._connection()
        while time.monotonic() < self.until:
            time.sleep(2 * rng.random() * self.pause)
            model, whim = rng.choice(self.models), rng.random()
            body, expected = model.question(rng)
            if whim < 0.04:
                self._leave(model, body, rng)
                continue
            if whim < 0.06:
                body = body[:-1]  # no JSON
            begin = time.perf_counter()
            try:
                connection.request("POST", model.path, body, {"content-type": "application/json"})
                answer = connection.getresponse()
                status, content = answer.status, answer.read()
            except (OSError, http.client.HTTPException) as error:
                self._note(f"failed: {type(error).__name__}", wrong=f"{model.path}: {error}")
                connection = self._connection()
                continue
            if 0.04 <= whim < 0.06:
                self._note("refused", wrong=None if status == 400 else f"no JSON is answered with {status}")
            elif status != 200:
                self._note(str(status), wrong=f"{model.path}: {status} {content[:200]!r}")
            else:
                right = model.said(json.loads(content)) == expected
                self._note("answered", wrong=None if right else f"{model.path}: {body[:200]!r} {content[:200]!r}")
                with self._lock:
                    self.seconds.append(time.perf_counter() - begin)

    def killer(self) -> None:
        rng = random.Random(-1)
        while time.monotonic() < self.until:
            model = rng.choice(self.models)
            body, _ = model.question(rng)
            time.sleep(2 * rng.random() * self.pause)
            asked = [str(self.port), model.path, body.decode(), str(self.pause / 4)]
            command = [sys.executable, "-S", "-c", KILLED, *asked]
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            time.sleep(0.1 + rng.random())
            process.kill()
            process.wait()
            self._note("killed")

    def _leave(self, model: Model, body: bytes, rng: random.Random) -> None:
        """In the middle of the body, before the answer, or in the middle of a long stream of text."""
        streams = model.writes and rng.random() < 0.5
        if streams:
            body = json.dumps({**json.loads(body), "max_tokens": 500, "stream": True}).encode()
        head = f"POST {model.path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        whole = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.sendall(whole if streams else whole[: rng.randrange(1, len(whole) + 1)])
            if streams:
                connection.recv(64)
            time.sleep(rng.random() / 50)
        self._note("left")

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def _note(self, what: str, wrong: str | None = None) -> None:
        with self._lock:
            self.counts[what] += 1
            if wrong is not None:
                self.wrong.append(wrong)


def measured(port: int) -> dict[str, float]:
    """What the server says of itself."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    found = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rate", type=float, help="requests a second, of all clients; default: as many as they can")
    parser.add_argument("--examples", type=int, default=100, help="different ones, of each run")
    parser.add_argument("--growth", type=float, default=5.0, help="per cent of memory that may be added; default: 5")
    options = parser.parse_args()
    rng = random.Random(0)
    models = [Model(run, options.examples, rng) for run in options.runs]
    command = [str(Path(sys.executable).with_name("bigctl")), "serve", *options.runs, "--port", "0"]
    with open(os.devnull, "w") as nothing:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=nothing, text=True)
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline().split()[0].rsplit(":", 1)[1])
        while measured(port)["bigctl_ready"] != 1:
            time.sleep(0.1)
        return told(loaded(port, models, options), server, port, options.growth)
    finally:
        server.send_signal(signal.SIGTERM)
        print(f"the server ends with {server.wait(60)}")


def loaded(port: int, models: list[Model], options: argparse.Namespace) -> tuple[Load, list[dict[str, float]]]:
    """The load, and what the server said of itself after a tenth of the time and once all had gone."""
    begin, seconds = time.monotonic(), 60 * options.minutes
    load = Load(port, models, begin + seconds, options.clients / options.rate if options.rate else 0.0)
    threads = [threading.Thread(target=load.client, args=(n,)) for n in range(options.clients)]
    threads.append(threading.Thread(target=load.killer))
    for thread in threads:
        thread.start()
    time.sleep(seconds / 10)
    first = measured(port)
    for thread in threads:
        thread.join()
    time.sleep(2)
    return load, [first, measured(port)]


def told(found: tuple[Load, list[dict[str, float]]], server: Any, port: int, growth: float) -> int:
    """Print everything; gives the exit code."""
    load, (first, last) = found
    print(", ".join(f"{count:,} {what}" for what, count in sorted(load.counts.items())))
    if load.seconds:
        cuts = np.quantile(load.seconds, [0.5, 0.99]) * 1000
        print(f"latency [ms]: median {cuts[0]:.1f}, p99 {cuts[1]:.1f}")
    mib = [each["process_resident_memory_bytes"] / 2**20 for each in (first, last)]
    grown = 100 * (mib[1] / mib[0] - 1)
    print(f"memory [MiB]: {mib[0]:.1f} at the beginning, {mib[1]:.1f} at the end ({grown:+.1f}%)")
    print(f"open files: {first['process_open_fds']:g} at the beginning, {last['process_open_fds']:g} at the end")
    print(f"processor time of the server: {last['process_cpu_seconds_total']:.0f} s")
    left = last["bigctl_requests_in_flight"] - 1  # but for the question itself
    waiting = sum(value for name, value in last.items() if name.startswith(("bigctl_queue_waiting", "bigctl_writing")))
    print(f"left in flight: {left:g}, waiting: {waiting:g}")
    print(f"wrong: {len(load.wrong)}")
    for each in load.wrong[:5]:
        print(f"  {each}")
    return int(bool(load.wrong) or left > 0 or waiting > 0 or grown > growth or server.poll() is not None)


if __name__ == "__main__":
    sys.exit(main())

"""Tokens per second of `bigctl serve`: one stream, and several at once, over HTTP.

    python scripts/bench_serve.py runs/gpt_lm --streams 8 --tokens 128

The server runs in a process of its own, on all cores. Each block asks for streams of the same length with different
seeds; blocks of one stream and of several take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import _bench


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run of a language model")
    parser.add_argument("--prompt", default="the", help="default: %(default)s")
    parser.add_argument("--streams", type=int, default=8, help="at once (default %(default)s)")
    parser.add_argument("--tokens", type=int, default=128, help="of each stream (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="blocks of each (default %(default)s)")
    parser.add_argument("--target", type=float, default=2.5, help="several against one (default %(default)s)")
    _bench.add_patience(parser)
    options = parser.parse_args()
    _bench.print_facts("jax", "starlette", "uvicorn")
    command = [str(Path(sys.executable).with_name("bigctl")), "serve", options.run, "--port", "0"]
    command += ["--slots", str(options.streams)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[0]
            wait_for(address)
            names = {"1 stream": 1, f"{options.streams} streams": options.streams}
            blocks = {name: block(address, count, options) for name, count in names.items()}
            samples = _bench.interleave(blocks, options.rounds, patience=options.patience)
        finally:
            server.terminate()
    rows = [
        [name, 1 / statistics.median(values), 1 / min(values), _bench.spread(values)]
        for name, values in samples.items()
    ]
    _bench.table(["", "tokens/s, median", "best", "spread"], rows)
    one, several = names
    medians, minima, within = _bench.ratio(samples, one, several)
    print(f"{several} / {one}: {medians:.2f} (medians), {minima:.2f} (best blocks), {within:.2f} (within a round)")
    print(f"target {options.target:g}: {'met' if within >= options.target else 'MISSED'}", flush=True)


def wait_for(address: str) -> None:
    while True:
        try:
            with urllib.request.urlopen(f"{address}/ready"):
                return
        except urllib.error.HTTPError:
            time.sleep(0.02)


def block(address: str, count: int, options: Any) -> Callable[[], float]:
    """Seconds per token of so many streams."""

    def stream(seed: int) -> int:
        body = {"prompt": options.prompt, "max_tokens": options.tokens, "seed": seed, "stream": True}
        body["stream_options"] = {"include_usage": True}
        data, kind = json.dumps(body).encode(), {"content-type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(f"{address}/v1/completions", data, kind)) as answer:
            lines = [line.decode() for line in answer if line.startswith(b"data: {")]
        return int(json.loads(lines[-1].removeprefix("data: "))["usage"]["completion_tokens"])

    def measured() -> float:
        start = time.perf_counter()
        with ThreadPoolExecutor(count) as pool:
            tokens = sum(pool.map(stream, range(count)))
        return (time.perf_counter() - start) / tokens

    return measured


if __name__ == "__main__":
    main()

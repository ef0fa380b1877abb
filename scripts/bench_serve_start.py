"""How long `bigctl serve` takes from the command to its first answer, its programs compiled by an earlier start.

    python scripts/bench_serve_start.py runs/gpt_lm '{"prompt": "the", "max_tokens": 1}' digits-onnx '{"image": [[0]]}'

Models with a body each; of a language model it is one of `/v1/completions`. The first start fills the compile cache and
is not counted. The peer is a Python that imports what such a server needs, jax and starlette, and answers nothing: what
no server of a jax model can be quicker than. Starts of all take turns. Processor time tells more than the clock on a
machine that others use.
"""

from __future__ import annotations

import argparse
import functools
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import _bench
from bench_serve import wait_for

IMPORTS = "import jax, starlette, uvicorn; jax.numpy.zeros(1).block_until_ready()"
_LIMIT = 3.0  # seconds to the first answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("given", nargs="+", metavar="MODEL BODY", help="what is served, and what it is asked first")
    parser.add_argument("--rounds", type=int, default=5, help="starts of each (default %(default)s)")
    options = parser.parse_args()
    if len(options.given) % 2:
        parser.error("a body is needed for each model")
    _bench.print_facts("jax", "starlette", "uvicorn")
    asked = dict(zip(options.given[::2], options.given[1::2], strict=True))
    for model, body in asked.items():
        started(model, body)
    starts = {"imports": imported} | {model: functools.partial(started, *pair) for model, pair in _pairs(asked)}
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in starts}
    for _ in range(options.rounds):
        for name, start in starts.items():
            samples[name].append(start())
    rows, least = [], _median([each[0] for each in samples["imports"]])
    for name, found in samples.items():
        wall, processor = ([each[i] for each in found] for i in (0, 1))
        rows.append([name, _median(wall), min(wall), _median(processor), _median(wall) / least])
    _bench.table(["", "seconds, median", "best", "processor seconds", "x imports"], rows)
    for model in asked:
        print(_bench.verdict(f"{model}: best start", min(wall for wall, _ in samples[model]), _LIMIT, " s"))


def _pairs(asked: dict[str, str]) -> list[tuple[str, tuple[str, str]]]:
    return [(model, (model, body)) for model, body in asked.items()]


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def started(model: str, body: str) -> tuple[float, float]:
    """Seconds, and those of processors, from the command until it has answered."""
    before, start = os.times(), time.perf_counter()
    command = [str(Path(sys.executable).with_name("bigctl")), "serve", model, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[0]
            wait_for(address)
            path = "/v1/completions" if '"prompt"' in body else "/predict"
            asked = urllib.request.Request(address + path, body.encode(), {"content-type": "application/json"})
            try:
                with urllib.request.urlopen(asked) as answer:
                    answer.read()
            except urllib.error.HTTPError as error:
                sys.exit(f"{model}: {error.read().decode()}")
            wall = time.perf_counter() - start
        finally:
            server.terminate()
    return wall, _spent(before)


def imported() -> tuple[float, float]:
    before, start = os.times(), time.perf_counter()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True)
    return time.perf_counter() - start, _spent(before)


def _spent(before: os.times_result) -> float:
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


if __name__ == "__main__":
    main()

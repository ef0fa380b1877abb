"""Benchmarks run from their first line to their last one, in the smallest form that they have."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"
SMALLEST = {
    "bench_data": ["--examples", "600", "--batches", "3", "--rounds", "1", "--workers"],
    "bench_loop": ["--recipe", "both", "--cnn-steps", "2", "--mlp-steps", "20", "--rounds", "1", "--log-every", "10"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_a_benchmark_comes_to_its_end(name: str) -> None:
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), *SMALLEST[name], "--patience", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert "median" in done.stdout and "Traceback" not in done.stderr

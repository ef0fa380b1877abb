"""What jax makes of this machine's devices, asked in a process of its own.

An unknown XLA flag or a broken driver ends, or hangs, the process that imports jax; the one that asks must outlive it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from functools import cache
from typing import Any


@dataclass
class DeviceReport:
    """What became known before the process ended.

    Attributes:
        devices: platform, kind and memory (bytes, None where it is not told) of each.
        steps: device, seconds to compile and to run one jitted step, and what went wrong, of each that was tried.
        error: why there is not more.
        crashed: whether it ended by something else than a Python exception.
        stderr: its lines.
    """

    devices: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""
    crashed: bool = False
    stderr: list[str] = field(default_factory=list)


@cache
def check_devices(timeout: float) -> DeviceReport:
    """Start jax elsewhere, list the devices and run a step on each; never raises for what is wrong with jax."""
    seen = DeviceReport()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-P", "-m", "bigctl.engine.device_check"]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+", errors="replace") as err:
        try:
            code = subprocess.run(
                command, stdout=out, stderr=err, stdin=subprocess.DEVNULL, env=environment, timeout=timeout
            ).returncode
            end = f"it ended with exit code {code}" if code >= 0 else f"it was ended by signal {-code}"
            seen.crashed = code != 0
        except subprocess.TimeoutExpired:
            end = f"no answer within {timeout:g} s"
        out.seek(0)
        err.seek(0)
        for line in out.read().splitlines():
            if line.startswith('{"device"'):
                event = json.loads(line)["device"]
                seen.error = event.get("error", seen.error)
                seen.devices += event.get("devices", [])
                seen.steps += event.get("steps", [])
        log_prefix = re.compile(r"^[IWEF]\d{4} [\d:.]+ +\d+ [\w.]+:\d+\] ")
        seen.stderr = [log_prefix.sub("", line.strip()) for line in err.read().splitlines() if line.strip()]
    if not seen.error:
        seen.error = f"{end}: {seen.stderr[-1][:300]}" if seen.stderr else end
    return seen


def main() -> None:
    """The other end: one line of JSON an event, so that what came before a crash is known."""

    def tell(**event: object) -> None:
        print(json.dumps({"device": event}), flush=True)

    try:
        import jax

        devices = jax.local_devices()
        tell(devices=[{"platform": d.platform, "kind": d.device_kind, "memory": _memory(d)} for d in devices])
    except Exception as error:
        return tell(error=_first_line(error))
    for device in devices:
        try:
            compiling, running = _step(device)
            tell(steps=[{"device": str(device), "compile": compiling, "run": running, "error": ""}])
        except Exception as error:
            tell(steps=[{"device": str(device), "compile": None, "run": None, "error": _first_line(error)}])


def _step(device: Any) -> tuple[float, float]:
    """Seconds to compile and to run a small jitted gradient. Raises where its value is wrong."""
    import time

    import jax
    import jax.numpy as jnp

    x = jax.device_put(jnp.ones((256, 256)), device)
    start = time.perf_counter()
    step = jax.jit(jax.value_and_grad(lambda x: jnp.tanh(x @ x).mean())).lower(x).compile()
    compiling = time.perf_counter() - start
    jax.block_until_ready(step(x))  # the first call also loads the program
    start = time.perf_counter()
    value, _ = jax.block_until_ready(step(x))
    running = time.perf_counter() - start
    if abs(float(value) - 1.0) > 1e-3:
        raise ArithmeticError(f"computes {float(value)} where 1 is right")
    return compiling, running


def _memory(device: Any) -> int | None:
    try:
        return (device.memory_stats() or {}).get("bytes_limit")
    except Exception:  # not every platform tells
        return None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else f"{type(error).__name__} in jax"


if __name__ == "__main__":
    main()

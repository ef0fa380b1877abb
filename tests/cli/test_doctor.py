"""`bigctl doctor` finds what keeps jax from working, and outlives it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tests.conftest import Cli


def findings(report: dict[str, Any], check: str, level: str) -> list[str]:
    return [f"{f['text']} {f['hint']}" for f in report["findings"] if (f["check"], f["level"]) == (check, level)]


def test_sound_installation_is_reported_line_by_line(bigctl: Cli) -> None:
    report = bigctl.json("doctor")
    assert report["ok"] and [f for f in report["findings"] if f["level"] == "FAIL"] == []
    assert any("jax " in text and "optax " in text for text in findings(report, "packages", "ok"))
    assert any("compiles in" in text for text in findings(report, "step", "ok"))
    assert sorted({f["number"] for f in report["findings"]}) == list(range(1, 9))


def test_text_is_one_plain_line_a_finding(bigctl: Cli) -> None:
    out = bigctl("doctor", env={"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}).stdout
    lines = out.splitlines()
    assert all(line[0].isdigit() or line.startswith("         -> ") for line in lines[:-1]) and "\x1b" not in out
    assert sum("compiles in" in line for line in lines) == 3


def test_unknown_xla_flag_is_named_and_the_other_checks_go_on(bigctl: Cli) -> None:
    report = bigctl.json("doctor", code=1, env={"XLA_FLAGS": "--xla_no_such_flag=1"})
    assert not report["ok"]
    assert any("Unknown flag" in text and "unset" in text for text in findings(report, "environment", "FAIL"))
    assert findings(report, "devices", "FAIL") and findings(report, "folders", "ok")


def test_platform_that_is_not_installed_is_named(bigctl: Cli) -> None:
    report = bigctl.json("doctor", code=1, env={"JAX_PLATFORMS": "no_such_platform"})
    assert any("JAX_PLATFORMS=no_such_platform" in text for text in findings(report, "environment", "FAIL"))


def test_device_that_hangs_is_given_up(bigctl: Cli) -> None:
    report = bigctl.json("doctor", "--timeout", "0.01", code=1)
    assert "no answer within 0.01 s" in findings(report, "devices", "FAIL")[0]


def test_gpu_that_jax_does_not_use_is_pointed_out(bigctl: Cli) -> None:
    command = bigctl.folder / "bin" / "nvidia-smi"
    command.parent.mkdir()
    command.write_text("#!/bin/sh\necho 'GPU 0: Imaginary (UUID: GPU-0)'\n")
    command.chmod(0o755)
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    hidden = bigctl.json("doctor", env={"PATH": path, "JAX_PLATFORMS": "cpu"})
    assert hidden["ok"] and "hides" in findings(hidden, "gpu", "warn")[0]


def test_cache_that_cannot_be_written_fails_with_the_remedy(bigctl: Cli) -> None:
    report = bigctl.json("doctor", code=1, env={"BIGCTL_CACHE_DIR": "/proc/cache"})
    assert any("BIGCTL_CACHE_DIR" in text for text in findings(report, "folders", "FAIL"))


def test_compile_cache_that_others_can_reach_is_pointed_out(bigctl: Cli) -> None:
    compiled = bigctl.folder / "cache" / "compiled"
    Path(compiled).mkdir(parents=True)
    compiled.chmod(0o755)
    report = bigctl.json("doctor", env={"BIGCTL_CACHE_DIR": str(bigctl.folder / "cache")})
    assert "private" in findings(report, "compile cache", "warn")[0]

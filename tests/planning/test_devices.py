"""Promises of `bigctl.planning.devices`: what is installed for the machine of a plan is looked at first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jaxlib
import pytest

from bigctl.errors import ConfigError
from bigctl.planning import devices, targets

PLUGINS = ("jax-cuda12-pjrt", "jax-cuda12-plugin")


def test_plugins_of_another_version_than_jax_are_refused_all_at_once(tmp_path: Path, monkeypatch) -> None:
    for name in PLUGINS:
        install(tmp_path, name, "0.1.2")
    monkeypatch.syspath_prepend(tmp_path)  # before those that may really be there
    with pytest.raises(ConfigError) as raised:
        devices.find(targets.parse("h100:8", devices.this_cpu()))
    own = jaxlib.__version__
    assert raised.value.where == "--target"
    assert raised.value.message.startswith("jax-cuda12-pjrt is 0.1.2 and jax-cuda12-plugin is 0.1.2")
    assert raised.value.message.endswith(f"jax is {own}")
    assert raised.value.hint == f"pip install 'jax-cuda12-pjrt=={own}' 'jax-cuda12-plugin=={own}'"


def test_a_plugin_that_jax_itself_leaves_out_is_told_in_one_line(tmp_path: Path) -> None:
    install(tmp_path, "jax-cuda12-plugin", "0.1.2")
    install(tmp_path, "jax-cuda12-pjrt", jaxlib.__version__)
    package = tmp_path / "jax_cuda12_plugin"
    package.mkdir()
    for name in ("__init__", "_linalg", "_prng", "_rnn", "_solver", "_versions"):  # some of which jax imports at once
        (package / f"{name}.py").write_text("")
    (package / "version.py").write_text("__version__ = '0.1.2'")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "bigctl", "plan", "recipe=mlp_cls", "data=breast_cancer", "--target", "h100:8"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    said = f"bigctl: --target: jax-cuda12-plugin is 0.1.2, jax is {jaxlib.__version__}\n"
    assert done.returncode == 2
    assert done.stderr == f"{said}        pip install 'jax-cuda12-plugin=={jaxlib.__version__}'\n"


def install(folder: Path, name: str, version: str) -> None:
    """What pip writes of a package."""
    information = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_remarks_of_libraries_are_left_out_and_all_else_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), devices._without_remarks():
        os.write(2, b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n")
        os.write(
            2,
            b"I0000 00:00:1 2 cudart_stub.cc:31] Could not find cuda drivers on your machine, GPU will not be used.\n",
        )
        print("E0000 the machine is on fire", file=sys.stderr)
        1 / 0  # noqa: B018
    assert capfd.readouterr().err == "E0000 the machine is on fire\n"

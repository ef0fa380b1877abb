"""What a run keeps of the code it was made with: git is asked without running what a checkout configures, secrets are
cut out, and nobody else reads along."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from bigctl.config.compose import compose
from bigctl.runs import provenance
from bigctl.runs.directory import RunDirectory
from bigctl.runs.redaction import CUT, without_secrets


def git(folder: Path, *arguments: str) -> None:
    command = ["git", "-C", str(folder), "-c", "user.name=n", "-c", "user.email=e@x", *arguments]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "code.py").write_bytes(b"x = 1\n")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "begun")
    return folder


def test_a_clean_checkout_is_clean_also_beside_runs(checkout: Path) -> None:
    (checkout / "runs" / "a").mkdir(parents=True)
    (checkout / "runs" / "a" / "run.json").write_text("{}")
    found = provenance.code(checkout)
    assert len(found["commit"]) == 40 and not found["dirty"] and found["diff"] == "" and not found["diff_cut"]


def test_a_file_that_git_does_not_know_makes_it_dirty(checkout: Path) -> None:
    (checkout / "part").mkdir()
    (checkout / "model.py").write_text("y = 2\n")
    found = provenance.code(checkout / "part")
    assert found["dirty"] and found["diff"] == ""


def test_bytes_that_are_not_utf8_are_kept_with_replacement(checkout: Path) -> None:
    (checkout / "code.py").write_bytes(b"x = '\xff\xe9'\n")
    found = provenance.code(checkout)
    assert found["dirty"] and "+x = '\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}'" in found["diff"]
    json.dumps(found).encode()


def test_nothing_that_a_checkout_configures_is_run(checkout: Path) -> None:
    program = program_of(checkout, "echo changed")
    (checkout / ".git" / "hooks" / "post-index-change").write_text(program.read_text())
    (checkout / ".git" / "hooks" / "post-index-change").chmod(0o755)
    for name in ("core.fsmonitor", "diff.external", "diff.mine.command", "diff.mine.textconv", "core.pager"):
        git(checkout, "config", name, str(program))
    git(checkout, "config", "color.ui", "always")
    git(checkout, "config", "diff.noprefix", "true")
    (checkout / ".git" / "info" / "attributes").write_text("*.py diff=mine\n")
    (checkout / "code.py").write_text("x = 2\n")
    found = provenance.code(checkout)
    assert not (checkout.parent / "ran").exists()
    assert (
        found["dirty"] and found["diff"].startswith("diff --git a/code.py b/code.py\n") and "\x1b" not in found["diff"]
    )


def program_of(checkout: Path, text: str = "cat") -> Path:
    """A program beside a checkout that leaves a file `ran` there."""
    program = checkout.parent / "program.sh"
    program.write_text(f"#!/bin/sh\ntouch {checkout.parent}/ran\n{text}\n")
    program.chmod(0o755)
    return program


def asked(checkout: Path) -> dict[str, Any]:
    """What is found of a checkout in which git by itself would run a program; it is not run."""
    ran = checkout.parent / "ran"
    subprocess.run(["git", "-C", str(checkout), "diff", "HEAD"], capture_output=True)
    assert ran.exists()
    ran.unlink()
    found = provenance.code(checkout)
    assert not ran.exists()
    return found


@pytest.mark.parametrize("name", ["mine", "a.b=c"])
@pytest.mark.parametrize("variable", ["clean", "process"])
def test_no_filter_is_run(checkout: Path, name: str, variable: str) -> None:
    with (checkout / ".git" / "config").open("a") as stream:
        stream.write(f'[filter "{name}"]\n{variable} = {program_of(checkout)}\nrequired = true\n')
    (checkout / ".git" / "info" / "attributes").write_text(f"*.py filter={name}\n")
    (checkout / "code.py").write_bytes(b"x = 2\n")
    found = asked(checkout)
    assert found["dirty"] and found["diff"].endswith("\n-x = 1\n+x = 2\n")


def test_what_a_partial_clone_lacks_is_not_fetched(checkout: Path) -> None:
    lacking = subprocess.check_output(["git", "-C", str(checkout), "rev-parse", "HEAD:code.py"], text=True)
    (checkout / ".git" / "objects" / lacking[:2] / lacking[2:].strip()).unlink()
    git(checkout.parent, "init", "-q", "--bare", "server")
    for key, value in {
        "core.repositoryformatversion": "1", "extensions.partialClone": "origin", "remote.origin.promisor": "true",
        "remote.origin.url": str(checkout.parent / "server"),
        "remote.origin.uploadpack": str(program_of(checkout, "exit 1")),
    }.items():  # fmt: skip
        git(checkout, "config", key, value)
    (checkout / "code.py").write_bytes(b"x = 2\n")
    found = asked(checkout)
    assert found["dirty"] and found["diff"] == ""


def test_the_diff_is_left_out_where_asked(checkout: Path) -> None:
    (checkout / "code.py").write_text("x = 2\n")
    made = provenance.made_with(
        checkout, diff=compose(["recipe=mlp_cls", "train.keep_diff=false"]).config.train.keep_diff
    )
    assert made["code"]["dirty"] and "diff" not in made["code"]
    assert compose(["recipe=mlp_cls"]).config.train.keep_diff


def test_a_long_diff_is_cut(checkout: Path) -> None:
    (checkout / "code.py").write_text("x = 2\n" * 300_000)
    found = provenance.code(checkout)
    assert found["diff_cut"] and len(found["diff"]) == 200_000


SECRET = "Zq9" + "aB3dE6gH" * 5


@pytest.mark.parametrize(
    "line",
    [
        f'+    password = "{SECRET}"', f"+API_KEY={SECRET}", f"+export WANDB_API_KEY={SECRET}",
        f"+  hf_token: {SECRET}",
        f'+    "client_secret": "{SECRET}",', f"+token: str = '{SECRET}'",
        f"+u = 'https://me:{SECRET}@host/x.git'",
        f"+h = {{'Authorization': 'Bearer {SECRET}'}}", f"+ghp_{SECRET}", f"-hf_{SECRET}", f"+sk-proj-{SECRET}",
        f"+xoxb-{SECRET}", "+AKIA" + SECRET[:13].upper().ljust(16, "7"), f"+eyJ{SECRET}.eyJ{SECRET}.{SECRET}",
        f"+-----BEGIN RSA PRIVATE KEY-----\n+{SECRET}\n+{SECRET}\n+-----END RSA PRIVATE KEY-----",
        f"+-----BEGIN OPENSSH PRIVATE KEY-----\n+{SECRET}\n+{SECRET}",
    ],
)  # fmt: skip
def test_what_looks_like_a_secret_is_cut_out(line: str) -> None:
    found = without_secrets(f" before\n{line}\n after\n")
    assert SECRET[:13] not in found and SECRET[:13].upper() not in found and CUT in found and " before\n" in found


@pytest.mark.parametrize(
    "line",
    [
        "+tokenizer: bytes-of-text", "+token = tokens[index]", "+    password = getpass.getpass()",
        "+tokens: list[str] = []",
        "+url = 'https://host:8080/path'", "+key = jax.random.key(0)", "+secret = None", "+task = 'sk-learn'",
    ],
)  # fmt: skip
def test_code_that_only_speaks_of_secrets_stays(line: str) -> None:
    assert without_secrets(line) == line


@pytest.mark.parametrize(
    "text", ["a-" * 200_000, "-----BEGIN PRIVATE KEY-----" * 9000, "a://a:" * 50_000, "token=' " * 50_000]
)
def test_cutting_takes_no_longer_for_texts_made_to_be_slow(text: str) -> None:
    began = time.process_time()
    without_secrets(text * (400_000 // len(text)))
    assert time.process_time() - began < 60  # what grows with the square takes far longer


def test_a_record_with_a_diff_is_for_its_owner_alone_and_so_is_the_log(tmp_path: Path) -> None:
    os.umask(before := os.umask(0o022))
    run = RunDirectory(tmp_path)
    run.log.write_text("a line\n")
    run.log.chmod(0o644)
    run.update_record(status="running", code={"commit": "ab", "dirty": False, "diff": ""})
    assert stat.S_IMODE(run.record_file.stat().st_mode) == 0o666 & ~before
    run.update_record(code={"commit": "ab", "dirty": True, "diff": "+x = 2"})
    run.update_record(status="complete")
    assert [stat.S_IMODE(file.stat().st_mode) for file in (run.record_file, run.log)] == [0o600, 0o600]

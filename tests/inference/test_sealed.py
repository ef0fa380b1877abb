"""An export that is encrypted is opened by its passphrase alone, and nothing of it stays in clear."""

from __future__ import annotations

import argparse
import hashlib
import hmac
import io
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest

from bigctl.cli import export
from bigctl.errors import ConfigError, RunError
from bigctl.inference import artefact
from bigctl.inference.exporters import sealed
from bigctl.inference.exporters.formats import Exported, exporter
from bigctl.inference.trained import TrainedRun
from bigctl.runs import sealed_form
from bigctl.serving import loading, naming
from bigctl.serving.predicting import Predicting
from bigctl.serving.settings import Settings
from tests import small, topics
from tests.conftest import Cli

aead = pytest.importorskip("cryptography.hazmat.primitives.ciphers.aead")
pytestmark = pytest.mark.fewer
SECRET = "seven smörgås of dice"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "LOG_N", 10)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clear") / "small"
    exporter("jax").write(TrainedRun.load(str(small.trained(tmp_path_factory) / "runs" / "small")), folder)
    return folder


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    sealed.seal(exported, tmp_path / "sealed", SECRET)
    return tmp_path / "sealed"


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def leftovers() -> list[Path]:
    return [*Path("/dev/shm").glob(f"bigctl-clear-*-{os.getpid()}-*")]


def test_the_documented_format_is_read_without_bigctl(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "clear").mkdir()
    large = os.urandom(2 * sealed_form.CHUNK + 5)
    (tmp_path / "clear" / "large").write_bytes(large)
    sealed.seal(tmp_path / "clear", tmp_path / "sealed", SECRET)
    content = (tmp_path / "sealed" / "export.sealed").read_bytes()
    head, proof, rest = content[:42], content[42:74], content[74:]
    assert head[:16] == b"bigctl-sealed-1\n" and large[:64] not in content
    n, r, p = 2 ** head[16], head[17], head[18]
    both = hashlib.scrypt(SECRET.encode(), salt=head[19:35], n=n, r=r, p=p, maxmem=2**28, dklen=64)
    assert hmac.digest(both[32:], head, "sha256") == proof
    size, clear = (1 << 20) + 16, b""
    pieces = [rest[at : at + size] for at in range(0, len(rest), size)]
    assert len(pieces) == 3
    for number, piece in enumerate(pieces):
        nonce = head[35:] + number.to_bytes(4, "big") + bytes([number == 2])
        clear += aead.AESGCM(both[:32]).decrypt(nonce, piece, head)
    with tarfile.open(fileobj=io.BytesIO(clear)) as archive:
        assert archive.extractfile("large").read() == large  # type: ignore[union-attr]


def test_an_encrypted_export_is_served_and_predicts_as_the_open_one(exported: Path, folder: Path) -> None:
    rows = [{"size": 0.4, "place": "north"}, {"size": 1.1, "place": "south"}]
    model, expected = artefact.labelling(folder, passphrase=SECRET), artefact.labelling(exported)
    assert model.describe(rows) == expected.describe(rows) and model.run.path == folder
    assert naming.kind_of(str(folder)) == "export" and naming.name_of(str(folder)) == "sealed"
    served = loading.load("m", str(folder), Settings(passphrase=SECRET), step="best", plugins=())
    assert served.model.describe()["columns"] == ["size", "place"]  # type: ignore[union-attr]
    assert not leftovers()


@pytest.mark.slow
def test_a_sealed_model_of_texts_has_its_tokenizer(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    trained = TrainedRun.load(str(topics.trained(tmp_path_factory).folder / "runs" / "topics"))
    exporter("jax").write(trained, tmp_path / "open")
    sealed.seal(tmp_path / "open", tmp_path / "sealed", SECRET)
    model = artefact.labelling(tmp_path / "sealed", passphrase=SECRET)
    served = Predicting("m", artefact.labelling(tmp_path / "sealed", passphrase=SECRET))  # its tokenizer's file is gone
    assert served.kind == "text"
    with model._tokenizer_there() as file:  # for the data, where its run is not at hand
        assert file.read_bytes() == (tmp_path / "open" / "tokenizer.json").read_bytes()
    assert model.label_texts(["soup and salt"]) == artefact.labelling(tmp_path / "open").label_texts(["soup and salt"])


@pytest.mark.parametrize("where", ["head", "half", "last tag", "flipped", "longer", "chunk", "empty"])
def test_a_damaged_or_cut_file_is_one_line_and_leaves_nothing(folder: Path, where: str, tmp_path: Path) -> None:
    file = folder / sealed.FILE
    content = file.read_bytes()
    damaged = {
        "head": content[:50], "half": content[: len(content) // 2], "last tag": content[:-1], "longer": content + b"0",
        "flipped": content[:-5000] + bytes([content[-5000] ^ 1]) + content[-4999:], "chunk": content[:74], "empty": b"",
    }  # fmt: skip
    file.write_bytes(damaged[where])
    with pytest.raises(RunError, match="damaged or cut short|beginning is damaged") as error:
        artefact.labelling(folder, passphrase=SECRET)
    assert error.value.where == str(file) and "\n" not in str(error.value) and not leftovers()


def test_a_wrong_passphrase_says_so_and_a_changed_head_is_found(folder: Path) -> None:
    with pytest.raises(RunError, match="the passphrase is wrong"):
        artefact.labelling(folder, passphrase=SECRET + "!")
    content = bytearray((folder / sealed.FILE).read_bytes())
    content[sealed_form.HEAD - 1] ^= 1  # of the nonces
    (folder / sealed.FILE).write_bytes(content)
    with pytest.raises(RunError, match="the passphrase is wrong"):
        artefact.labelling(folder, passphrase=SECRET)
    content[16] = 40  # scrypt with a terabyte of memory
    (folder / sealed.FILE).write_bytes(content)
    with pytest.raises(RunError, match="beginning is damaged"):
        artefact.labelling(folder, passphrase=SECRET)


def test_the_passphrase_comes_from_the_environment_or_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv(sealed.VARIABLE, raising=False)
    with pytest.raises(ConfigError, match="BIGCTL_PASSPHRASE: there is no passphrase"):
        sealed.passphrase(None)
    monkeypatch.setenv(sealed.VARIABLE, SECRET)
    assert sealed.passphrase(None, new=True) == SECRET
    file = tmp_path / "secret"
    file.write_text("cafe\u0301 au lait\nsecond line\n", encoding="utf-8")
    file.chmod(0o644)
    assert sealed.passphrase(file) == "caf\u00e9 au lait" and "chmod 600" in caplog.text
    file.write_text("short")
    with pytest.raises(ConfigError, match="5 characters is guessed"):
        sealed.passphrase(file, new=True)
    for wrong in (tmp_path / "none", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            sealed.passphrase(wrong)


def test_what_a_killed_process_has_left_is_removed() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = Path("/dev/shm") / f"bigctl-clear-{os.getuid()}-{ended.pid}-00000000"
    left.mkdir()
    with sealed.clear_folder(1) as clear:
        assert clear.stat().st_mode & 0o777 == 0o700 and not left.exists()
    assert not clear.exists()


def test_sigterm_leaves_nothing_in_clear(tmp_path: Path) -> None:
    script = """
import sys, time
from bigctl.inference.exporters import sealed
with sealed.clear_folder(1) as clear:
    (clear / "weights").write_text("secret")
    print(clear, flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        clear = Path(process.stdout.readline().strip())
        assert (clear / "weights").exists()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 143
    assert not clear.exists()


def test_the_commands(bigctl: Cli, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    run = str(small.trained(tmp_path_factory) / "runs" / "small")
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "secret").chmod(0o600)
    small.write(tmp_path / "new.csv", {name: values[:3] for name, values in small.columns().items()})
    given = ["--passphrase-file", "secret"]
    said = bigctl("export", run, "--format", "jax", "--out", "sealed", "--encrypt", *given).stdout
    assert "encrypted" in said and "--decrypt" in said and "bigctl serve sealed" in said
    assert "bigctl predict sealed FILE.csv --passphrase-file FILE" in said
    assert sorted(contents(tmp_path / "sealed")) == ["README.md", sealed.FILE]
    assert b"small" not in contents(tmp_path / "sealed")["README.md"]
    assert bigctl("predict", "sealed", "new.csv", *given).stdout.count("label") == 3
    (tmp_path / "secret").chmod(0o644)
    opened = bigctl("export", "sealed", "--decrypt", "--out", "opened", *given)
    assert "warning: secret can be read by others" in opened.stderr
    assert bigctl("predict", "opened", "new.csv").stdout == bigctl(
        "predict", "sealed", "new.csv", env={sealed.VARIABLE: SECRET}
    ).stdout  # fmt: skip
    wrong = bigctl("export", "sealed", "--decrypt", "--out", "other", env={sealed.VARIABLE: "12345678"}, code=2).stderr
    assert "the passphrase is wrong" in wrong and not [*tmp_path.glob("*other*")]


def test_flags_that_do_not_fit_are_refused_in_one_line(bigctl: Cli, folder: Path, exported: Path) -> None:
    def said(*arguments: str) -> str:
        return bigctl(*arguments, code=2, env={sealed.VARIABLE: ""}).stderr

    assert "there is no passphrase" in said("predict", str(folder), "x.csv")
    assert "holds no export.sealed" in said("export", str(exported), "--decrypt", "--out", "x")
    assert "add --out DIR" in said("export", str(folder), "--decrypt")
    assert "--format: an export that is opened stays" in said(
        "export", str(folder), "--decrypt", "--out", "x", "--format", "jax"
    )
    assert "--int8: an export that is opened stays" in said("export", str(folder), "--decrypt", "--out", "x", "--int8")
    assert "add --encrypt" in said("export", "any", "--format", "jax", "--passphrase-file", "x")
    assert "no format is given" in said("export", "any")
    assert "any: no encrypted export" in said("predict", "any", "--passphrase-file", "x")
    assert "an export takes a number" in said("predict", str(exported), "x.csv", "--threshold", "f1")
    assert "an export holds one step" in said("predict", str(exported), "x.csv", "--step", "3")


@pytest.mark.parametrize("served", [True, False])
@pytest.mark.parametrize("examples", ["FILE.csv", ""])
def test_commands_are_told_that_the_export_answers_to(
    folder: Path, served: bool, examples: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where its folder has a name that is part of a command: no line is recognised by how it begins."""
    made = Exported(["bigctl predict of another kind"], {"what": "ONNX; encrypted"}, examples, served)
    export._print("run", folder, made, argparse.Namespace(encrypt=True, bits=None))
    told = capsys.readouterr().out.split("to use it:\n")[1]
    opened = f"  bigctl export {folder} --decrypt --out DIR --passphrase-file FILE\n"
    serve = f"  bigctl serve {folder} --passphrase-file FILE\n" if served else ""
    predict = f"  bigctl predict {folder} {examples} --passphrase-file FILE\n" if examples else ""
    assert told == serve + predict + opened


def test_what_is_written_to_be_measured_is_in_the_clear_folder_too() -> None:
    before = tempfile.gettempdir()
    with sealed.clear_folder(1) as clear, tempfile.TemporaryDirectory() as inside:
        assert Path(inside).parent == clear
    assert tempfile.gettempdir() == before and not clear.exists()

"""What is printed, and names of files: whatever comes from outside, and wherever the command is started."""

from __future__ import annotations

import errno
import io
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from PIL import Image

from bigctl import cli, terminal
from bigctl.cache_root import cache_root
from bigctl.cli import main, render
from bigctl.config import schema
from bigctl.data import catalog
from bigctl.errors import DataError, TrainingFailed, explained
from bigctl.files import expanded, write_json
from bigctl.training.tracking.writers import JsonLines

WRITTEN = "a\x1b[31mb\x07\x9bc\r\nd\t\N{GREEK SMALL LETTER ALPHA}\u202e\udcff\ud83d"
SHOWN = "a\\x1b[31mb\\x07\\x9bc\\x0d\nd\t\N{GREEK SMALL LETTER ALPHA}\\u202e\\xff\\ud83d"


def test_a_text_cannot_command_a_terminal() -> None:
    assert terminal.escaped(WRITTEN) == SHOWN
    assert terminal.one_line("a\nb\tc") == "a\\nb\\tc"


def test_whatever_is_printed_is_escaped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def command(arguments: list[str]) -> int:
        print(WRITTEN)
        render.print_table(["name"], [["x\x1b[2J\ny"]])
        render.print_json({"label": WRITTEN})
        raise DataError(f"is no {WRITTEN}", where="\x1b]0;t\x07.csv", hint="two\nlines")

    monkeypatch.setattr(main, "_dispatch", command)
    assert main.main([]) == 2
    out, err = capsys.readouterr()
    text, table, told = out.split("\n", 2)[0], out, out[out.index("{") :]
    assert text == SHOWN.split("\n")[0] and "x\\x1b[2J\\ny" in table
    assert json.loads(told) == {"label": WRITTEN} and "\x1b" not in out + err and "\x9b" not in out + err
    shown = SHOWN.replace("\n", "\\n").replace("\t", "\\t")
    assert err == f"bigctl: \\x1b]0;t\\x07.csv: is no {shown}\n        two\\nlines\n"
    assert not isinstance(sys.stdout, terminal.EscapedStream)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "gbk", "utf-8"])
def test_any_encoding_can_take_what_is_printed(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", stream)
    with terminal.escaped_streams():
        print("größe → 照片 \udcff")
        render.print_json({"größe": "照片 \x9b"})
        sys.stdout.flush()
    text = raw.getvalue().decode(encoding)
    assert json.loads(text[text.index("{") :]) == {"größe": "照片 \x9b"}
    assert text.startswith("größe → 照片 \\xff\n" if encoding in ("utf-8", "gbk") and "ö" in text else "gr")


def test_an_argument_that_is_not_utf8_is_refused_at_once(capsys: pytest.CaptureFixture) -> None:
    assert main.main(["train", "recipe=mlp_cls", "data=csv", "data.path=\udcca\udcfd.csv", "data.label=y"]) == 2
    error = capsys.readouterr().err
    assert "data.path: the value is not UTF-8" in error and error.isascii()
    assert main.main(["train", "recipe=mlp_cls", "--run-dir", "\udcca\udcfd"]) == 2
    assert capsys.readouterr().err.startswith("bigctl: \\xca\\xfd: an argument is not UTF-8\n")


def test_output_that_cannot_be_written_is_one_line() -> None:
    command = [sys.executable, "-m", "bigctl", "ls", "models"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "bigctl: standard output cannot be written: No space left on device\n"


def test_a_user_without_a_name_has_a_cache_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    for name in ("HOME", "XDG_CACHE_HOME", "BIGCTL_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert cache_root() == tmp_path / f"bigctl-{os.getuid()}"
    assert expanded("~/t.csv") == Path("~/t.csv")


def test_a_working_folder_that_is_gone_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main.main(["ls", "models"]) == 2
    assert capsys.readouterr().err.startswith("bigctl: the working folder does not exist any more\n")


def test_what_cannot_be_read_or_waited_for_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("x,y\n1,a\n2,b\n")
    table = schema.Csv(path=str(file), label="y")

    def broken(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as context:
        context.setattr("bigctl.data.files.file_index.sha256", broken)
        with pytest.raises(DataError, match="rows.csv: the file cannot be read: Input/output error"):
            catalog.source(table).identity(table)
    with monkeypatch.context() as context:
        context.setattr("bigctl.memory.limit", lambda: 4)
        with pytest.raises(DataError, match="rows.csv: the file needs"):
            catalog.source(table).identity(table)
    for kind in "ab":
        (tmp_path / "photos" / kind).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "photos" / kind / "1.png")
    os.mkfifo(tmp_path / "photos" / "a" / "2.png")
    with pytest.raises(DataError, match=r"2.png: this is no file, but a pipe"):
        catalog.decode(schema.ImageFolder(path=str(tmp_path / "photos")))
    found = explained(PermissionError(errno.EACCES, "Permission denied", "/a/b"))
    assert str(found) == "/a/b: cannot be read or written: Permission denied"
    assert explained(OSError(errno.ENAMETOOLONG, "File name too long", b"/a")) is not None
    assert explained(FileNotFoundError(errno.ENOENT, "No such file or directory", "/a/b")) is None


def test_ctrl_c_at_the_start_is_one_line() -> None:
    script = "import os, signal; from bigctl import cli; os.kill(os.getpid(), signal.SIGINT); import bigctl.cli.main"
    program = f"import sys; sys.argv[0] = '/usr/bin/bigctl'; {script}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "bigctl: interrupted\n")


def test_ctrl_c_while_export_imports_numpy_is_one_line() -> None:
    """jaxlib, were it the first to import numpy, would print the traceback itself."""
    finder = "def find(self, name, *_):\n if name == 'numpy._core.einsumfunc': raise KeyboardInterrupt"
    start = "import sys; from bigctl.cli.main import main; assert 'numpy' not in sys.modules"
    meet = "sys.meta_path.insert(0, type('Finder', (), {'find_spec': find})())"
    program = f"{start}\n{finder}\n{meet}; sys.exit(main(['export', 'any', '--format', 'jax']))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "bigctl: interrupted\n")


def test_ctrl_c_in_the_middle_of_anything_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def run(options: object) -> int:
        monkeypatch.setattr(cli.INTERRUPTS, "came", True)
        raise RuntimeError("Error calling __set_name__") from KeyboardInterrupt()

    monkeypatch.setattr("bigctl.cli.ls.run", run)
    assert main.main(["ls", "models"]) == 130
    assert capsys.readouterr().err == "bigctl: interrupted\n"
    monkeypatch.setattr("bigctl.cli.info.run", run)
    assert main.main(["info", "a", "--json"]) == 130
    assert json.loads(capsys.readouterr().out)["exit_code"] == 130


def test_ctrl_c_before_the_first_step_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "bigctl", "train", "recipe=mlp_cls", "train.steps=100000", "--name", "r"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "runs" / "r" / "run.json").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err == "bigctl: stopped by Ctrl-C while starting; nothing was trained\n"
    assert not (tmp_path / "runs" / "r").exists()


def test_metrics_of_a_run_that_was_removed_or_moved_are_an_error(tmp_path: Path) -> None:
    for number, spoil in enumerate((lambda run: shutil.rmtree(run), lambda run: run.rename(tmp_path / "moved"))):
        run = tmp_path / f"run{number}"
        run.mkdir()
        lines = JsonLines(run / "metrics.jsonl", step=0)
        lines.write(1, {"train/loss": 1.0})
        lines.flush()
        spoil(run)
        with pytest.raises(TrainingFailed, match="has been removed or moved while the run was trained"):
            lines.flush()
        lines.close()


def test_files_whose_names_are_not_utf8_are_data_and_folders_are_no_classes(tmp_path: Path) -> None:
    image = io.BytesIO()
    Image.new("RGB", (4, 4)).save(image, "png")
    odd = os.fsdecode("\u7167\u7247".encode("gbk"))
    for name in ("a/0.png", f"a/{odd}.png", "b/0.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(image.getvalue())
    config = schema.ImageFolder(path=str(tmp_path), image_size=[4, 4])
    assert catalog.source(config).identity(config)
    decoded = catalog.source(config).decode(config, False)
    assert decoded.splits["train"]["label"].tolist() == [0, 0, 1]
    (tmp_path / "a").rename(tmp_path / odd)
    with pytest.raises(DataError, match="name of the folder is not UTF-8"):
        catalog.source(config).decode(config, False)
    write_json(tmp_path / "record.json", {"file": odd})
    assert json.loads((tmp_path / "record.json").read_text(encoding="utf-8")) == {"file": odd}

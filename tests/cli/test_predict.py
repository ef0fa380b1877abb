"""`bigctl predict` answers with one JSON line an image, a table row or a text."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests import topics
from tests.conftest import Cli

KITCHEN, SKY = "butter and bread with onion soup", "the moon under a cloud before thunder"


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    return topics.trained(tmp_path_factory)


def records(stdout: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stdout.splitlines()]


def piped(command: Cli, data: bytes, *arguments: str) -> subprocess.CompletedProcess[str]:
    return command("predict", "topics", *arguments, given=data, code=None)


def test_text_gets_label_and_probabilities(command: Cli) -> None:
    found = records(command("predict", "topics", "--text", KITCHEN, "--text", SKY).stdout)
    assert [(r["text"], r["label"]) for r in found] == [(KITCHEN, "kitchen"), (SKY, "sky")]
    for record in found:
        assert record["probability"] == max(record["probabilities"].values()) > 0.5
        assert sum(record["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_stdin_and_files_are_answered_alike(command: Cli) -> None:
    texts = [KITCHEN, SKY, "面包 月亮", "entirely unknown vocabulary \u200b!", "soup"]
    lines = "".join(f"{text}\n" for text in texts).encode()
    streamed = records(piped(command, lines, "-").stdout)
    assert [r["text"] for r in streamed] == texts
    assert records(piped(command, lines).stdout) == streamed
    (command.folder / "new.txt").write_bytes(lines)
    with (command.folder / "new.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("id", "words"), *enumerate(texts)])
    found = records(command("predict", "topics", "new.txt", "new.csv").stdout)
    assert [(r["file"], r["row"]) for r in found] == [(f, n) for f in ("new.txt", "new.csv") for n in range(5)]
    assert [r["probabilities"] for r in found] == [r["probabilities"] for r in streamed] * 2


def test_answer_comes_before_the_input_ends(command: Cli) -> None:
    with subprocess.Popen(
        command.command("predict", "topics", "-"), cwd=command.folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        for text, label in ((KITCHEN, "kitchen"), (SKY, "sky")):
            process.stdin.write(f"{text}\n".encode())
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["label"] == label
        process.stdin.close()
        assert process.wait(timeout=60) == 0


def test_wrong_line_is_named_and_those_before_are_answered(command: Cli) -> None:
    done = piped(command, f"{KITCHEN}\n{SKY}\nb\xe9d\n".encode("latin-1"), "-", "--strict")
    assert done.returncode == 2 and "stdin:3: byte 0xe9 is not UTF-8" in done.stderr
    assert [r["label"] for r in records(done.stdout)] == ["kitchen", "sky"]
    lenient = piped(command, f"{KITCHEN}\n\n{SKY}\n".encode(), "-")
    first, empty, last = records(lenient.stdout)
    assert (first["label"], last["label"]) == ("kitchen", "sky") and "stdin:2: the text is empty" in empty["error"]
    assert lenient.returncode == 0 and "1 of 3 could not be predicted" in lenient.stderr
    nothing = piped(command, b"")
    assert nothing.returncode == 2 and "stdin: there is no text" in nothing.stderr


def test_text_of_a_megabyte_is_cut_and_says_so(command: Cli) -> None:
    long = "moon star " * 100_000
    (found,) = records(piped(command, long.encode(), "-").stdout)
    assert found["cut"] is True and found["label"] == "sky" and found["text"] == long.strip()
    (command.folder / "long.jsonl").write_text(json.dumps({"words": long}))
    (again,) = records(command("predict", "topics", "long.jsonl").stdout)
    assert again["cut"] is True and again["probabilities"] == found["probabilities"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", " "], "--text: the text is empty"),
        (["--text", "a", "--text-pair", "b"], "--text-pair: the run was trained on single texts"),
        (["photo.png"], "photo.png: the suffix '.png' tells no format"),
        (["other.csv"], "there is no text column 'words'"),
        (["missing.csv"], "missing.csv: there is no such file"),
        (
            ["https://example.org/a.csv?x=1"],
            "https://example.org/a.csv?x=1: is an address, and files are what is predicted",
        ),
        (["gap.txt"], "gap.txt:2: the text is empty"),
    ],
)
def test_what_cannot_be_labelled_is_named(command: Cli, arguments: list[str], message: str) -> None:
    (command.folder / "photo.png").write_bytes(b"\x89PNG")
    (command.folder / "other.csv").write_text("word\nsoup\n")
    (command.folder / "gap.txt").write_text("soup\n\nmoon\n")
    done = command("predict", "topics", *arguments, "--strict", code=2)
    assert message in done.stderr and not done.stdout


def test_run_without_its_tokenizer_is_refused(command: Cli) -> None:
    folder = command.folder / "runs" / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(command.folder / "runs" / "topics", folder)
    tokenizer = Path("runs") / "damaged" / "tokenizer.json"
    content = (folder / "tokenizer.json").read_text(encoding="utf-8")
    (folder / "tokenizer.json").write_text(content.replace('"soup"', '"soap"'), encoding="utf-8")
    wrong = f"{tokenizer}: is not the tokenizer that the run was trained with"
    assert wrong in command("predict", "damaged", "--text", "soup", code=2).stderr
    assert wrong in command("eval", "damaged", code=2).stderr
    (folder / "tokenizer.json").unlink()
    assert f"{tokenizer}: is missing" in command("predict", "damaged", "--text", "soup", code=2).stderr


def test_texts_are_for_runs_on_texts(bigctl: Cli) -> None:
    out = bigctl("train", "recipe=mlp_cls", "train.steps=5", "--name", "table").stdout
    assert "bigctl predict runs/table FILE.csv" in out
    assert "--text: the run was trained on tables" in bigctl("predict", "table", "--text", "a", code=2).stderr
    assert "bigctl predict table FILE.csv" in bigctl("predict", "table", code=2).stderr


def test_pairs_are_labelled_as_pairs(bigctl: Cli) -> None:
    draw = topics.rows(count=80)
    with (bigctl.folder / "pairs.csv").open("w", newline="", encoding="utf-8") as stream:
        pairs = [(a, b, str(x == y)) for (a, x), (b, y) in zip(draw, draw[1::2] + draw[::2], strict=True)]
        csv.writer(stream).writerows([("first", "other", "same"), *pairs])
    data = ["data=csv", "data.path=pairs.csv", "data.text=first", "data.text_pair=other", "data.label=same"]
    length = ["train.steps=3", "train.batch_size=16", "train.tensorboard=false", "--name", "pairs"]
    out = bigctl("train", *topics.RECIPE, *data, *topics.MODEL, *length).stdout
    assert 'bigctl predict runs/pairs --text "..." --text-pair "..."' in out
    (found,) = records(bigctl("predict", "pairs", "--text", KITCHEN, "--text-pair", SKY).stdout)
    assert (found["text"], found["text_pair"]) == (KITCHEN, SKY) and set(found["probabilities"]) == {"False", "True"}
    (bigctl.folder / "new.csv").write_text(f"other,first\n{SKY},{KITCHEN}\n")
    (bigctl.folder / "new.txt").write_text(f"{KITCHEN}\t{SKY}\n")
    for record in records(bigctl("predict", "pairs", "new.csv", "new.txt").stdout):
        assert record["probabilities"] == found["probabilities"]
    assert "give one --text-pair to each --text" in bigctl("predict", "pairs", "--text", "a", code=2).stderr
    (worst, *_) = bigctl.json("eval", "pairs", "--split", "train")["errors"]
    assert (worst["text"], worst["text_pair"], worst["label"]) in pairs


def test_a_pattern_takes_what_can_be_predicted_in_the_folders_that_match(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bigctl.cli import predict
    from bigctl.errors import DataError

    monkeypatch.chdir(tmp_path)
    for name in ("cats/1.png", "cats/notes.txt", "cats/.hidden.png", "dogs/deep/2.png", "3.png", "empty/4.txt"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).touch()
    expected = ["photos/3.png", "photos/cats/1.png", "photos/dogs/deep/2.png"]
    assert predict._of_pattern("photos/*", {".png"}, "runs/shapes") == expected
    assert predict._of_pattern("photos/**", {".png"}, "runs/shapes").count("photos/cats/1.png") == 1
    with pytest.raises(DataError, match=r"no file in the folders that match") as caught:
        predict._of_pattern("photos/e*", {".png"}, "runs/shapes")
    assert caught.value.where == "photos/e*" and "takes .png" in (caught.value.hint or "")

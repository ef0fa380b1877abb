"""`bigctl generate` writes what the model says on stdout, as it is written, and says in one line what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import pytest

import bigctl as package
from bigctl.errors import ConfigError, DataError, RunError
from tests import topics
from tests.conftest import SHARED_DATA, Cli

TEXT = "我有月亮,你有太阳。to be or nothing, is a question\n"
TRAIN = ["recipe=gpt_lm", "data=text", "data.path=text.txt", "recipe.tokenizer.type=characters", "model=gpt_nano"]
TRAIN += ["model.layers=1", "model.width=32", "model.heads=2", "model.intermediate=64", "model.context=32"]
TRAIN += ["recipe.block=32", "train.steps=300", "train.batch_size=16", "train.tensorboard=false", "optimizer=adamw"]
TRAIN += ["optimizer.lr=0.005", "schedule=constant", "recipe.sample_tokens=0"]


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    folder = tmp_path_factory.mktemp("writer")
    (folder / "text.txt").write_text(TEXT * 200, encoding="utf-8")
    cli = Cli(folder)
    cli("train", *TRAIN, "--name", "writer")
    return cli


def generate(command: Cli, *arguments: str, **options: Any) -> str:
    return command("generate", "writer", *arguments, **options).stdout


def piped(command: Cli, data: bytes, *arguments: str) -> str:
    done = subprocess.run(
        command.command("generate", "writer", *arguments), cwd=command.folder, input=data, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def test_text_goes_on_from_the_prompt_and_beyond_the_context(command: Cli) -> None:
    greedy = generate(command, "--prompt", "to be or", "--temperature", "0", "--max-new-tokens", "100")
    expected = (TEXT * 4)[TEXT.index("to be or") :]
    assert greedy == expected[: len("to be or") + 100] + "\n"
    chinese = generate(command, "--prompt", "我有", "--temperature", "0", "--max-new-tokens", "7")
    assert chinese == "我有月亮,你有太阳\n"


def test_json_is_one_object_and_a_seed_repeats_it(command: Cli) -> None:
    arguments = ["--prompt", "to", "--prompt", "我", "--num-samples", "2", "--temperature", "2", "--top-p", "0.95"]
    found, again = (
        json.loads(generate(command, *arguments, "--seed", seed, "--max-new-tokens", "20", "--json"))
        for seed in ("3", "3")
    )
    assert found["samples"] == again["samples"]
    assert [(s["prompt"], s["sample"], s["tokens"], s["finish"]) for s in found["samples"]] == [
        (prompt, sample, 20, "length") for prompt in ("to", "我") for sample in (0, 1)
    ]
    assert found["step"] > 0 and found["settings"]["top_p"] == 0.95 and found["tokens_per_second"] > 0
    other = json.loads(generate(command, *arguments, "--seed", "4", "--max-new-tokens", "20", "--json"))
    assert [s["text"] for s in other["samples"]] != [s["text"] for s in found["samples"]]


def test_several_texts_come_in_order_under_their_names(command: Cli) -> None:
    out = generate(command, "--prompt", "to be", "--prompt", "我", "--num-samples", "2", "--max-new-tokens", "3",
                   "--temperature", "0")  # fmt: skip
    assert out.splitlines() == [
        "--- prompt 1, sample 1", "to be or", "--- prompt 1, sample 2", "to be or",
        "--- prompt 2, sample 1", "我有月亮", "--- prompt 2, sample 2", "我有月亮",
    ]  # fmt: skip


def test_stop_string_ends_a_text(command: Cli) -> None:
    out = generate(command, "--prompt", "to be or", "--temperature", "0", "--stop", "question", "--stop", ", is")
    assert out == "to be or nothing\n"


def test_prompts_come_from_files_and_standard_input(command: Cli) -> None:
    lines = "to be\n我\n".encode()
    (command.folder / "prompts.txt").write_bytes(lines)
    (command.folder / "prompts.jsonl").write_text('{"prompt": "to be"}\n{"prompt": "我"}\n', encoding="utf-8")
    options = ["--max-new-tokens", "3", "--temperature", "0"]
    expected = "--- prompt 1, sample 1\nto be or\n--- prompt 2, sample 1\n我有月亮\n"
    assert generate(command, "prompts.txt", *options) == expected
    assert generate(command, "prompts.jsonl", *options) == expected
    assert piped(command, lines, *options) == piped(command, lines, "-", *options) == expected


def test_python_writes_the_same(command: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(command.folder)
    run = package.load("writer")
    (found,) = run.generate("to be or", temperature=0, max_new_tokens=11)
    assert (found.text, found.tokens, found.finish) == (" nothing, i", 11, "length")
    assert [g.prompt for g in run.generate(["to", "我"], max_new_tokens=1, num_samples=2)] == [0, 0, 1, 1]
    with pytest.raises(ConfigError, match="out of range"):
        run.generate("to", top_p=0)
    with pytest.raises(DataError, match="empty"):
        run.generate("")


def test_run_that_writes_no_text_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    cli = topics.trained(tmp_path_factory)
    error = cli("generate", "topics", "--prompt", "soup", code=2).stderr
    assert error.count("\n") == 2 and "writes no text" in error and "recipe=gpt_lm" in error
    with pytest.raises(RunError, match="writes no text"):
        package.load(cli.folder / "runs" / "topics").generate("soup")


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--prompt", ""], "--prompt: the prompt is empty"),
        (["--prompt", "to", "--top-p", "0"], "--top-p: 0.0 is out of range"),
        (["--prompt", "to", "--temperature", "-1"], "--temperature: -1.0 is out of range"),
        (["--prompt", "to", "--max-new-tokens", "0"], "--max-new-tokens: 0 is out of range"),
        (["--prompt", "to", "--stop", ""], "--stop:"),
        (["--prompt", "to be or nothing, is a question to be"], "has 37 tokens, the model sees 32 at most"),
        (["--prompt", "Überfluß"], "does not know 'f' (U+0066), 'l' (U+006C), 'Ü' (U+00DC)"),
        (["--prompt", "to", "--chat"], "has no chat template"),
        (["missing.txt"], "missing.txt: there is no such file"),
        (["."], ".: is a folder"),
        (["--prompt", "to", "--step", "3000"], "3000"),
        ([], "there is no text"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_in_one_line(command: Cli, arguments: list[str], what: str) -> None:
    done = command("generate", "writer", *arguments, code=2)
    assert what in done.stderr and done.stderr.count("\n") <= 2 and done.stdout == ""


def test_wrong_line_of_a_file_is_named(command: Cli) -> None:
    (command.folder / "bad.jsonl").write_text('{"prompt": "to"}\n{"text": "be"}\n')
    assert "bad.jsonl:2: there is no prompt" in command("generate", "writer", "bad.jsonl", code=2).stderr


def test_unknown_model_names_what_there_is(command: Cli) -> None:
    error = command("generate", "writter", "--prompt", "to", code=2).stderr
    assert error.startswith("bigctl: writter: ") and "smollm2" in error


@pytest.mark.skipif(not (SHARED_DATA / "stories260K").is_dir(), reason="no shared data")
def test_file_of_llama2c_tells_its_story(command: Cli) -> None:
    file = SHARED_DATA / "stories260K" / "stories260K.bin"
    out = command("generate", str(file), "--prompt", "Once upon a time", "--temperature", "0", "--max-new-tokens", "30")
    assert out.stdout.startswith("Once upon a time, there was a little girl named Lily.")


def test_text_is_shown_before_all_is_written(command: Cli) -> None:
    process = subprocess.Popen(
        command.command("generate", "writer", "--prompt", "to be", "--max-new-tokens", "1000000"),
        cwd=command.folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        assert process.stdout.read(20).decode(errors="ignore").startswith("to be")
        assert process.poll() is None
        process.kill()

"""`bigctl generate` writes what the model says on stdout, as it is written, and says in one line what is wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import bigctl as package
from bigctl.cli.main import main
from bigctl.errors import ConfigError, DataError, RunError
from bigctl.generation.options import GenerationOptions
from bigctl.inference.exporters.huggingface import export_run
from bigctl.interop import sources
from tests import forked, topics
from tests.conftest import SHARED_DATA, Cli

TEXT = "我有月亮,你有太阳。to be or nothing, is a question\n"
TRAIN = ["recipe=gpt_lm", "data=text", "data.path=text.txt", "recipe.tokenizer.type=characters", "model=gpt_nano"]
TRAIN += ["model.layers=1", "model.width=32", "model.heads=2", "model.intermediate=64", "model.context=32"]
TRAIN += ["recipe.block=32", "train.steps=300", "train.batch_size=16", "train.tensorboard=false", "optimizer=adamw"]
TRAIN += ["optimizer.lr=0.005", "schedule=constant", "recipe.sample_tokens=0"]


Generate = Failing = Callable[..., str]


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    folder = tmp_path_factory.mktemp("writer")
    (folder / "text.txt").write_text(TEXT * 200, encoding="utf-8")
    cli = Cli(folder)
    cli("train", *TRAIN, "--name", "writer")
    return cli


@pytest.fixture
def generate(command: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Generate:
    """`bigctl generate writer` in this process; gives what it prints."""
    monkeypatch.chdir(command.folder)

    def run(*arguments: str) -> str:
        assert main(["generate", "writer", *arguments]) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def failing(command: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Failing]:
    """`bigctl generate` in this process, which must fail with exit code 2 and one line, and a hint; gives both."""
    monkeypatch.chdir(command.folder)

    def run(*arguments: str) -> str:
        try:
            code = main(["generate", *arguments])
        except SystemExit as error:
            code = int(error.code or 0)
        said = capsys.readouterr()
        assert (code, said.out) == (2, "") and said.err.count("\n") <= 2, said.err
        return said.err

    with open(os.devnull) as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        yield run


@pytest.fixture(scope="module")
def exported(command: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "hf"
    return export_run(package.load(command.folder / "runs" / "writer"), folder)


def piped(command: Cli, data: bytes, *arguments: str) -> str:
    return command("generate", "writer", *arguments, given=data).stdout


def test_text_goes_on_from_the_prompt_and_beyond_the_context(generate: Generate) -> None:
    greedy = generate("--prompt", "to be or", "--temperature", "0", "--max-new-tokens", "100")
    expected = (TEXT * 4)[TEXT.index("to be or") :]
    assert greedy == expected[: len("to be or") + 100] + "\n"
    chinese = generate("--prompt", "我有", "--temperature", "0", "--max-new-tokens", "7")
    assert chinese == "我有月亮,你有太阳\n"


def test_json_is_one_object_and_a_seed_repeats_it(generate: Generate) -> None:
    arguments = ["--prompt", "to", "--prompt", "我", "--num-samples", "2", "--temperature", "2", "--top-p", "0.95"]
    found, again = (
        json.loads(generate(*arguments, "--seed", seed, "--max-new-tokens", "20", "--json")) for seed in ("3", "3")
    )
    assert found["samples"] == again["samples"]
    assert [(s["prompt"], s["sample"], s["tokens"], s["finish"]) for s in found["samples"]] == [
        (prompt, sample, 20, "length") for prompt in ("to", "我") for sample in (0, 1)
    ]
    assert found["step"] > 0 and found["settings"]["top_p"] == 0.95 and found["tokens_per_second"] > 0
    other = json.loads(generate(*arguments, "--seed", "4", "--max-new-tokens", "20", "--json"))
    assert [s["text"] for s in other["samples"]] != [s["text"] for s in found["samples"]]


def test_several_texts_come_in_order_under_their_names(generate: Generate) -> None:
    out = generate("--prompt", "to be", "--prompt", "我", "--num-samples", "2", "--max-new-tokens", "3",
                   "--temperature", "0")  # fmt: skip
    assert out.splitlines() == [
        "--- prompt 1, sample 1", "to be or", "--- prompt 1, sample 2", "to be or",
        "--- prompt 2, sample 1", "我有月亮", "--- prompt 2, sample 2", "我有月亮",
    ]  # fmt: skip


def test_stop_string_ends_a_text(generate: Generate) -> None:
    out = generate("--prompt", "to be or", "--temperature", "0", "--stop", "question", "--stop", ", is")
    assert out == "to be or nothing\n"


def test_prompts_come_from_files_and_standard_input(command: Cli, generate: Generate) -> None:
    lines = "to be\n我\n".encode()
    (command.folder / "prompts.txt").write_bytes(lines)
    (command.folder / "prompts.jsonl").write_text('{"prompt": "to be"}\n{"prompt": "我"}\n', encoding="utf-8")
    options = ["--max-new-tokens", "3", "--temperature", "0"]
    expected = "--- prompt 1, sample 1\nto be or\n--- prompt 2, sample 1\n我有月亮\n"
    assert generate("prompts.txt", *options) == expected
    assert generate("prompts.jsonl", *options) == expected
    assert piped(command, lines, *options) == expected
    assert piped(command, lines[6:], "--prompt", "to be", "-", *options) == expected


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
        (["--prompt", "to", "--top-p", "much"], "--top-p: invalid float value: 'much'"),
        (["--prompt", "to", "--max-new-tokens", "1.5"], "--max-new-tokens: invalid int value"),
        (["--prompt", "to", "--topk", "5"], "unrecognized arguments: --topk 5; did you mean --top-k?"),
        (["missing.txt"], "missing.txt: there is no such file"),
        (["to be or"], 'a prompt itself: --prompt "..."'),
        (["."], ".: is a folder"),
        (["bad.jsonl"], "bad.jsonl:2: there is no prompt"),
        (["empty.txt"], "empty.txt: there is no text"),
        (["binary.txt"], "binary.txt:1: there is a NUL byte"),
        (["--prompt", "to", "--step", "3000"], "there is no checkpoint 3000"),
        ([], "there is no text"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_in_one_line(failing: Failing, arguments: list[str], what: str) -> None:
    Path("bad.jsonl").write_text('{"prompt": "to"}\n{"text": "be"}\n')
    Path("empty.txt").write_bytes(b"")
    Path("binary.txt").write_bytes(bytes(range(256)))
    assert what in failing("writer", *arguments)


def test_without_a_prompt_a_terminal_is_not_read(failing: Failing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    assert "no prompt is given" in failing("writer")


@pytest.mark.parametrize(
    ("file", "change", "what"),
    [
        ("model.safetensors", lambda content: content[: len(content) // 2], "cut short"),
        ("model.safetensors", lambda content: b"", "cut short"),
        (
            "config.json",
            lambda content: content.replace(b'"gpt2"', b'"mamba"'),
            "'llama' and 'mixtral'",
        ),
        ("config.json", lambda content: content.replace(b'"gpt2"', b'"llama"'), "num_hidden_layers is missing"),
        ("config.json", lambda content: content.replace(b'"n_layer": 1', b'"n_layer": 2'), "no weights for layers/1/"),
        ("config.json", lambda content: content[:30], "is not JSON"),
        ("tokenizer.json", lambda content: content[:30], "is no tokenizer.json"),
    ],
)
def test_damaged_weights_are_told_in_one_line(
    failing: Failing, exported: Path, tmp_path: Path, file: str, change: Callable[[bytes], bytes], what: str
) -> None:
    copy = shutil.copytree(exported, tmp_path / "copy")
    (copy / file).write_bytes(change((copy / file).read_bytes()))
    assert what in failing(str(copy), "--prompt", "to")


def test_unknown_model_names_what_there_is(failing: Failing, exported: Path) -> None:
    error = failing("writter", "--prompt", "to")
    assert error.startswith("bigctl: writter: ") and "smollm2" in error
    assert "give its folder" in failing(str(exported / "model.safetensors"), "--prompt", "to")
    assert "is no file of weights" in failing("text.txt", "--prompt", "to")


def test_a_run_chats_as_the_weights_that_it_started_from(
    command: Cli, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when those are gone; and hands on how to whoever starts from it, and to its export."""
    weights = shutil.copytree(exported, tmp_path / "weights")
    (weights / "chat_template.jinja").write_text("to {{ messages[0].content }} or{{ eos_token }}")
    end = json.loads((weights / "config.json").read_text())["eos_token_id"]
    (weights / "generation_config.json").write_text(json.dumps({"eos_token_id": [end, 2]}))
    monkeypatch.chdir(command.folder)
    few = ["recipe=gpt_lm", "model=gpt", "data=text", "data.path=text.txt", "recipe.tokenizer.type=pretrained"]
    few += ["train.steps=1", "train.batch_size=2", "train.tensorboard=false", "recipe.sample_tokens=0"]
    assert main(["train", *few, f"model.init_from={weights}", "--name", "chatter"]) == 0
    shutil.rmtree(weights)
    model = package.load("chatter").language_model
    assert model.encode("be", GenerationOptions(chat=True)) == [*model.encode("to be or", GenerationOptions()), end]
    assert model.end == (end, 2)
    assert main(["export", "chatter", "--format", "hf", "--out", str(tmp_path / "again")]) == 0
    for source in ("chatter", str(tmp_path / "again")):
        found = sources.locate_source(source).generation_config
        assert found.chat_template == "to {{ messages[0].content }} or{{ eos_token }}" and found.ends == (end, 2)


@pytest.mark.skipif(not (SHARED_DATA / "stories260K").is_dir(), reason="no shared data")
def test_file_of_llama2c_tells_its_story(command: Cli) -> None:
    file = SHARED_DATA / "stories260K" / "stories260K.bin"
    out = command("generate", str(file), "--prompt", "Once upon a time", "--temperature", "0", "--max-new-tokens", "30")
    assert out.stdout.startswith("Once upon a time, there was a little girl named Lily.")


def test_text_is_shown_before_all_is_written(command: Cli) -> None:
    process = subprocess.Popen(
        command.command("generate", "writer", "--prompt", "to be", "--max-new-tokens", "1000000"),
        cwd=command.folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env={**os.environ, **forked.flags(os.environ)},
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        assert process.stdout.read(20).decode(errors="ignore").startswith("to be")
        assert process.poll() is None
        process.kill()

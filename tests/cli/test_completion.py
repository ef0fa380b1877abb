"""Completion knows what the parsers, the tree and the schema know, in each shell."""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bigctl.cli import completion
from bigctl.cli.commands import COMMANDS

HERE = Path(sys.executable).parent


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BIGCTL_CONFIG_DIR", raising=False)


def found(line: str) -> list[str]:
    """Candidates for a line whose cursor is at its end."""
    words = line.split(" ")
    return sorted(set(completion.candidates(words)))


# ------------------------------------------------------------------------------------------------------- candidates


def test_commands_are_those_of_the_command_line():
    assert found("") == sorted(COMMANDS)
    assert found("tr") == ["train"]
    assert "--version" in found("--")


def test_flags_and_their_choices_are_those_of_the_parser():
    assert found("train --re") == ["--require", "--restarts", "--resume"]
    assert found("train --resume ") == found("train recipe=cnn_cls --resume ") == ["auto", "must", "never"]
    assert found("eval x --split=t") == ["--split=test", "--split=train"]
    assert {"--docs", "--diff", "--json", "--config-dir"} <= set(found("show --"))


def test_option_of_a_group():
    recipes = [
        "bert_cls", "bert_mlm", "bert_tag", "cnn_cls", "finetune_cls", "gpt_lm", "lstm_cls", "lstm_tag", "mlp_cls",
        "ngram_cls", "probe", "resnet_cls", "speed_cls", "vit_cls",
    ]  # fmt: skip
    assert found("train recipe=") == [f"recipe={name}" for name in recipes]
    assert found("train recipe=cnn_cls data=mnist") == ["data=mnist", "data=mnist5k"]


def test_keys_come_one_level_at_a_time():
    assert found("train optim") == ["optimizer.", "optimizer="]
    assert found("train train.early") == ["train.early_stop."]
    assert "train.early_stop.patience=" in found("train train.early_stop.")


def test_keys_are_those_of_the_component_that_is_chosen():
    assert found("train optimizer=sgd optimizer.ne") == ["optimizer.nesterov="]
    assert found("train optimizer=adamw optimizer.ne") == []
    assert found("train data=idx data.p") == ["data.path=", "data.positive="]
    assert found("train data=mnist5k data.p") == ["data.positive="]


def test_recipe_decides_the_components_that_the_line_does_not_name():
    assert found("train recipe=cnn_cls model.k") == ["model.kernel_size="]
    assert found("train recipe=mlp_cls model.k") == []
    assert found("train recipe=mlp_cls model=cnn model.k") == ["model.kernel_size="]
    assert {"model.kernel_size=", "model.head="} <= set(found("train model.")), "nothing chosen: all keys"


def test_report_is_offered_runs_and_sweeps(tmp_path):
    for file in ("runs/one/run.json", "sweeps/lr/ledger.jsonl"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).touch()
    assert found("report ") == ["lr", "one"] and found("info ") == ["one"]


def test_read_only_kind_is_not_offered():
    assert not [word for group in ("model", "data", "recipe") for word in found(f"train {group}.k") if "kind" in word]


def test_values_with_choices_and_booleans():
    assert found("train train.precision=") == ["train.precision=bfloat16", "train.precision=float32"]
    assert found("train train.tensorboard=t") == ["train.tensorboard=true"]
    assert found("train recipe=cnn_cls model.activation=r") == ["model.activation=relu"]
    assert found("train data.path=") == [], "left to the shell"


def test_runs_are_offered_where_a_run_is_asked_for(tmp_path):
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "first" / "run.json").write_text("{}")
    (tmp_path / "runs" / "no_run").mkdir()
    for line in ("eval ", "predict f", "show --diff "):
        assert found(line) == ["first"], line
    assert found("predict first ") == [], "files are left to the shell"


def test_kinds_of_ls_and_parts_of_show():
    assert found("ls m") == ["meshes", "models"]
    assert {"optimizer", "optimizer.lr"} <= set(found("show recipe=cnn_cls --only optim"))
    assert found("train --allow-drift optimizer.w") == ["optimizer.weight_decay"]


def test_only_a_sweep_completes_its_presets_and_settings():
    roots = completion.presets.roots()
    found_by = {sweeps: set(completion.overrides(roots, [], "sweep", sweeps=sweeps)) for sweeps in (True, False)}
    assert {"sweep=", "sweep."} <= found_by[True] and not any(c.startswith("sweep") for c in found_by[False])
    assert "sweep=lr" in completion.overrides(roots, [], "sweep=", sweeps=True)
    assert "sweep.sampler=tpe" in completion.overrides(roots, [], "sweep.sampler=", sweeps=True)


def test_own_presets_complete_and_extend_what_they_say(tmp_path):
    (tmp_path / "my" / "model").mkdir(parents=True)
    (tmp_path / "my" / "model" / "wide.yaml").write_text("# Wide.\ndefaults: [cnn, _self_]\n")
    assert "model=wide" in found("train --config-dir my model=")
    assert "model=wide" in found("train --config-dir=my model=")
    assert found("train --config-dir my model=wide model.k") == ["model.kernel_size="]


@pytest.mark.parametrize("line", ["nonsense ", "train --config-dir nowhere model=", "train a=b=c =", "eval --", ""])
def test_a_completion_never_writes_to_the_prompt(bigctl, line):
    assert bigctl("--complete", *line.split(" "), code=None).stderr == ""


def test_completion_imports_nothing_heavy(tmp_path):
    code = (
        "import sys; from bigctl.cli.main import main; main(['--complete', *sys.argv[1].split(' ')]); "
        "sys.exit(', '.join({'jax', 'hydra', 'omegaconf', 'numpy', 'rich'} & set(sys.modules)) or 0)"
    )
    for line in ("", "train recipe=cnn_cls optimizer.", "eval ", "ls ", "doctor --"):
        done = subprocess.run([sys.executable, "-c", code, line], capture_output=True, text=True)
        assert done.returncode == 0, f"{line!r} {done.stderr}"


# ----------------------------------------------------------------------------------------------------------- shells


def needs(shell: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"{shell} is not installed")


def with_bigctl() -> dict[str, str]:
    return {**os.environ, "PATH": f"{HERE}:{os.environ['PATH']}"}


@needs("bash")
@pytest.mark.parametrize("breaks", [" \t\n\"'><=;|&(:", " \t\n\"'><;|&("], ids=["default", "without-equals"])
@pytest.mark.parametrize(
    ("line", "reply"),
    [
        ("bigctl tr", ["train"]),
        (
            "bigctl train recipe=",
            [
                "recipe=bert_cls",
                "recipe=bert_mlm",
                "recipe=bert_tag",
                "recipe=cnn_cls",
                "recipe=finetune_cls",
                "recipe=gpt_lm",
                "recipe=lstm_cls",
                "recipe=lstm_tag",
                "recipe=mlp_cls",
                "recipe=ngram_cls",
                "recipe=probe",
                "recipe=resnet_cls",
                "recipe=speed_cls",
                "recipe=vit_cls",
            ],
        ),
        ("bigctl  train   recipe=cnn_cls data=mni", ["data=mnist", "data=mnist5k"]),
        ("bigctl train recipe=cnn_cls model.k", ["model.kernel_size="]),
        ("bigctl train optimizer = optimizer=sgd_", ["optimizer=sgd_nesterov", "optimizer=sgd_speed"]),
        ("bigctl eval x --split=te", ["--split=test"]),
        ("bigctl train --resume ", ["auto", "must", "never"]),
        ("bigctl train 'data.path=a b' recipe=c", ["recipe=cnn_cls"]),
    ],
)
def test_bash_completes_words_that_it_splits_at_equals(line, reply, breaks):
    own = "=" if "=" in breaks else ""
    words = re.findall(rf"'[^']*'|[{own}:]+|[^\s{own}:]+", line) + ([""] if line.endswith(" ") else [])
    current = "" if set(words[-1]) == {"="} else words[-1]
    script = f"""
        eval "$(bigctl --completion bash)"
        COMP_LINE={shlex.quote(line)} COMP_POINT={len(line)} COMP_CWORD={len(words) - 1}
        COMP_WORDS=({shlex.join(words)})
        _bigctl bigctl {shlex.quote(current)} before
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    command = ["bash", "--noprofile", "--norc", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, env=with_bigctl())
    given = line.rsplit(" ", 1)[-1].removesuffix(current)
    assert [given + word for word in done.stdout.splitlines()] == reply, done.stderr


@needs("fish")
def test_fish_completes(tmp_path):
    (tmp_path / "photo.png").touch()
    lines = {
        "bigctl tr": "train",
        "bigctl train recipe=c": "recipe=cnn_cls",
        "bigctl train recipe=cnn_cls model.k": "model.kernel_size=",
        "bigctl train data=idx data.path=pho": "data.path=photo.png",
        "bigctl predict run pho": "photo.png",
        "bigctl eval run --split te": "test",
    }
    script = "bigctl --completion fish | source\n" + "\n".join(f"complete -C {shlex.quote(line)}" for line in lines)
    env = {**with_bigctl(), "HOME": str(tmp_path)}
    done = subprocess.run(["fish", "--no-config", "-c", script], capture_output=True, text=True, env=env)
    assert done.stdout.splitlines() == list(lines.values()), done.stderr


@pytest.mark.parametrize(
    "shell",
    [
        pytest.param(["bash", "--noprofile", "--norc", "-i"], marks=needs("bash"), id="bash"),
        pytest.param(["zsh", "-f", "-i"], marks=needs("zsh"), id="zsh"),
    ],
)
@pytest.mark.parametrize(
    ("typed", "run"),
    [
        ("bigctl tra\trecipe=cn\toptimizer.lr\t1\n", "train recipe=cnn_cls optimizer.lr=1"),
        ("bigctl train data=idx data.path=pho\t--resu\tmu\t\n", "train data=idx data.path=photo.png --resume must"),
    ],
)
def test_a_person_at_the_terminal_gets_whole_words_and_the_right_spaces(tmp_path, shell, typed, run):
    (tmp_path / "photo.png").touch()
    stub = tmp_path / "bin" / "bigctl"  # completes as bigctl does, and only notes what it was run with
    stub.parent.mkdir()
    stub.write_text(f'#!/bin/sh\ncase $1 in --comp*) exec {HERE}/bigctl "$@";; esac\necho "$@" > {tmp_path}/ran\n')
    stub.chmod(0o755)
    environment = {**os.environ, "PATH": f"{stub.parent}:{os.environ['PATH']}", "HOME": str(tmp_path), "TERM": "dumb"}
    process, terminal = pty.fork()
    if process == 0:
        os.execvpe(shell[0], shell, environment)
    try:
        os.write(terminal, f'eval "$({stub} --completion {shell[0]})"; PS1=rea""dy\n'.encode())
        seen = _read(terminal, until=lambda text: "ready" in text)
        for part in re.findall(r"[^\t]*\t|[^\t]+$", typed):
            os.write(terminal, part.encode())
            quiet = 0.6 if part.endswith("\t") else 90
            seen += _read(terminal, until=lambda text: (tmp_path / "ran").exists(), quiet=quiet)
        assert (tmp_path / "ran").exists(), seen
        assert (tmp_path / "ran").read_text().strip() == run, seen
    finally:
        os.close(terminal)
        os.kill(process, 9)
        os.waitpid(process, 0)


def _read(terminal: int, *, until, quiet: float = 90, limit: float = 90) -> str:
    """What the terminal shows until something holds, nothing more comes, or time is up."""
    text, end = "", time.monotonic() + limit
    while not until(text) and time.monotonic() < end:
        if not select.select([terminal], [], [], quiet)[0]:
            break
        text += os.read(terminal, 65536).decode(errors="replace")
    return text

"""Promises of `bigctl export --format hf` and `timm`: the folder is read again, and is not written where it differs."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import bigctl
from bigctl.cli.main import main
from bigctl.errors import ConfigError, RunError
from bigctl.inference.exporters import formats, reloaded, sealed
from bigctl.inference.exporters.huggingface import export_run, exported
from bigctl.inference.exporters.network import Network
from bigctl.inference.trained import TrainedRun
from bigctl.interop import timm_export
from bigctl.runs.removal import strangers
from bigctl.serving import naming

KEYS = ["train.epochs=1", "train.batch_size=16", "train.tensorboard=false"]
TINY = ["model.layers=2", "model.width=16", "model.heads=2"]
TEXTS = "the cat sat on the mat and the dog sat by the log. "
BEGINS = "does not compute what the model does: logits is off by .* of the largest; it begins at "


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A GPT without biases, which its file has."""
    folder = tmp_path_factory.mktemp("writer")
    (folder / "text.txt").write_text(TEXTS * 40)
    keys = ["recipe=gpt_lm", "model=gpt_nano", *TINY, "model.context=16", "model.bias=false", "data=text", *KEYS]
    bigctl.train([*keys, f"data.path={folder / 'text.txt'}", "recipe.block=16"], folder / "writer", quiet=True)
    return bigctl.load(str(folder / "writer"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A BERT with a pooler and LoRA, and labels that are no words."""
    folder = tmp_path_factory.mktemp("texts")
    rows = [f"{TEXTS.split()[n % 12]} {n} naïve 日本語\t{('a/b', 'ünï x')[n % 2]}\n" for n in range(60)]
    (folder / "rows.tsv").write_text("text\tlabel\n" + "".join(rows))
    keys = ["recipe=bert_cls", "model=bert", *TINY, "model.intermediate=24", "model.positions=32", "model.lora.rank=2"]
    keys += ["model.pooler=true", "recipe.tokenizer.type=words", "recipe.tokenizer.max_length=12", "data=tsv", *KEYS]
    keys += [f"data.path={folder / 'rows.tsv'}", "data.text=text", "data.label=label"]
    bigctl.train(keys, folder / "texts", quiet=True)
    return bigctl.load(str(folder / "texts"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A vision transformer of two classes, whose class token has its place added in timm."""
    folder = tmp_path_factory.mktemp("pictures") / "pictures"
    images = np.random.default_rng(0).integers(0, 256, (48, 8, 8, 3), np.uint8)
    keys = ["recipe=vit_cls", "model=vit_ti", *TINY, "model.intermediate=24", "model.patch=4", *KEYS]
    bigctl.train(keys, folder, data=(images, np.arange(48) % 2), quiet=True)
    return bigctl.load(str(folder))


@pytest.fixture(params=["writer", "texts", "pictures"])
def run(request: pytest.FixtureRequest) -> TrainedRun:
    found: TrainedRun = request.getfixturevalue(request.param)
    return found


def require_whole(folder: Path, run: TrainedRun) -> None:
    """Source, digests and card, as the other formats have them."""
    source = json.loads((folder / "source.json").read_text())
    assert (source["derived_from"], source["step"]) == (run.run.path.name, run.step)
    sums = dict(line.split("  ")[::-1] for line in (folder / "SHA256SUMS").read_text().splitlines())
    assert sums.keys() == {file.name for file in folder.iterdir()} - {"SHA256SUMS", "README.md"}
    for name, digest in sums.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    card = (folder / "README.md").read_text()
    assert f"sha256 {sums['model.safetensors']}" in card and "read again by" in card and "from_pretrained('.')" in card
    assert json.loads((folder / "labels.json").read_text())["names"] == list(run.features.target.names)


def test_a_folder_is_read_by_transformers_before_it_gets_its_name(run: TrainedRun, tmp_path: Path) -> None:
    pytest.importorskip("torch"), pytest.importorskip("transformers")
    written = formats.exporter("hf").write(run, tmp_path / "out")
    assert str(written.facts["read_by"]).startswith("transformers ")
    assert 0 < written.facts["difference"] < 1e-4
    require_whole(tmp_path / "out", run)
    assert not list((tmp_path / "out").glob(".*")) and naming.kind_of(str(tmp_path / "out")) == "export"
    assert not {"torch", "transformers"} & set(subprocess_modules(run, tmp_path / "again"))


def test_a_model_that_sees_the_middle_of_pictures_has_no_folder(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (48, 8, 8, 3), np.uint8)
    keys = ["recipe=vit_cls", "model=vit_ti", *TINY, "model.intermediate=24", "model.patch=4", *KEYS, "train.steps=1"]
    keys += ["train.epochs=null", "recipe.augment.center_crop=0.875"]
    bigctl.train(keys, tmp_path / "run", data=(images, np.arange(48) % 2), quiet=True)
    run = bigctl.load(str(tmp_path / "run"))
    for name in ("hf", "timm"):
        with pytest.raises(ConfigError, match=r"the middle of each picture \(recipe.augment.center_crop=0.875\)"):
            formats.exporter(name).write(run, tmp_path / name)
        assert not (tmp_path / name).exists()
    assert formats.exporter("jax").write(run, tmp_path / "jax").facts["difference"] < 1e-4


def subprocess_modules(run: TrainedRun, folder: Path) -> list[str]:
    """What a process that exports has imported at its end."""
    code = (
        "import sys, bigctl; from bigctl.inference.exporters import formats; from pathlib import Path;"
        "formats.exporter('hf').write(bigctl.load(sys.argv[1]), Path(sys.argv[2])); print(*sys.modules)"
    )
    command = [sys.executable, "-c", code, str(run.run.path), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout.split()


@pytest.mark.parametrize("lacking", ["torch", "transformers"])
def test_without_torch_or_transformers_our_own_reader_compares(
    run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in (lacking, "timm") else there(name))
    for name in ["hf", "timm"] if run.features.kind == "image" else ["hf"]:
        written = formats.exporter(name).write(run, tmp_path / name)
        assert str(written.facts["read_by"]).startswith("bigctl's own reader, as ")
        assert written.facts["difference"] < 1e-6  # the same arithmetic, but for merged matrices
    assert "not installed" in (tmp_path / "hf" / "README.md").read_text()


def spoiled(folder: Path, tensor: str) -> str:
    """Changes one tensor, by its name or the first that has this in it."""
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if tensor in name)
    drawn = np.random.default_rng(0).normal(size=tensors[name].shape)  # a constant goes with the next normalisation
    tensors[name] = tensors[name] + drawn.astype(np.float32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return name


DAMAGE = {
    "writer": ("h.1.mlp.c_fc.weight", "layers/1/up/kernel"),
    "texts": ("layer.1.attention.self.value.weight", "encoder/layers/1/attention/value/kernel"),
    "pictures": ("layer.0.output.dense.bias", "layers/0/down/bias"),
}


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("library", ["transformers", "none"])
def test_a_tensor_that_is_another_is_refused_by_name(
    name: str, library: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if library == "transformers":
        pytest.importorskip("torch"), pytest.importorskip("transformers")
    run = request.getfixturevalue(name)
    folder, network = export_run(run, tmp_path / "out"), Network.of(run)
    asked = "transformers" if library == "transformers" else "no_such_library"
    assert reloaded.require_same(run, network, folder, asked).difference < 1e-4
    there, ours = DAMAGE[name]
    spoiled(folder, there)
    with pytest.raises(RunError, match=BEGINS + ours + ", off by"):
        reloaded.require_same(run, network, folder, asked)
    assert not (folder / reloaded.CHECK).exists()


def test_a_folder_for_timm_that_is_another_is_refused_by_name(pictures: TrainedRun, tmp_path: Path) -> None:
    folder, network = timm_export.write(exported(pictures), tmp_path / "out"), Network.of(pictures)
    assert reloaded.require_same(pictures, network, folder, "timm").difference < 1e-4
    spoiled(folder, "blocks.1.attn.qkv.bias")
    with pytest.raises(RunError, match=BEGINS + "layers/1/attention/key/bias, off by"):
        reloaded.require_same(pictures, network, folder, "timm")


def test_what_config_json_says_otherwise_is_refused(writer: TrainedRun, tmp_path: Path) -> None:
    pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder, network = export_run(writer, tmp_path / "out"), Network.of(writer)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "layer_norm_epsilon": 0.3}))
    with pytest.raises(RunError, match="it begins beyond the tensors, which are those of the run"):
        reloaded.require_same(writer, network, folder, "transformers")
    (folder / "config.json").write_text(json.dumps({**config, "n_layer": 3}))
    with pytest.raises(RunError, match=r"transformers [\d.]+, torch .* tells of missing keys: transformer\.h\.2\."):
        reloaded.require_same(writer, network, folder, "transformers")


@pytest.mark.parametrize("library", ["transformers", "no_such_library"])
def test_weights_that_are_cut_short_are_refused(texts: TrainedRun, tmp_path: Path, library: str) -> None:
    if library == "transformers":
        pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder, network = export_run(texts, tmp_path / "out"), Network.of(texts)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-400])
    with pytest.raises(RunError, match="does not load it|cannot be read again"):
        reloaded.require_same(texts, network, folder, library)


def test_a_folder_that_differs_is_not_left_behind(
    writer: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = reloaded.require_same

    def damaged(run: TrainedRun, network: Network, folder: Path, library: str) -> object:
        spoiled(folder, "ln_f.weight")
        return honest(run, network, folder, "no_such_library")

    monkeypatch.setattr(reloaded, "require_same", damaged)
    with pytest.raises(RunError, match="final_norm/scale.*nothing was written"):
        formats.exporter("hf").write(writer, tmp_path / "out")
    assert not [*tmp_path.iterdir()]


def test_an_encrypted_folder_is_whole_and_its_run_can_be_removed(texts: TrainedRun, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    copy = shutil.copytree(texts.run.path, tmp_path / "run")
    secret = tmp_path / "secret.txt"
    secret.write_text("five words drawn by dice")
    secret.chmod(0o600)
    with contextlib.redirect_stdout(io.StringIO()):
        plain = ["export", str(copy), "--format", "hf"]
        key = ["--passphrase-file", str(secret)]
        assert main(plain) == 0
        assert main([*plain, "--encrypt", *key, "--out", str(tmp_path / "sealed")]) == 0
        assert main(["export", str(tmp_path / "sealed"), "--decrypt", *key, "--out", str(tmp_path / "opened")]) == 0
    assert {file.name for file in (tmp_path / "sealed").iterdir()} == {sealed.FILE, "README.md"}
    assert {f.name for f in (tmp_path / "opened").iterdir()} == {f.name for f in (copy / "hf").iterdir()}
    assert not [*strangers(copy)]


def test_grey_pictures_of_a_coloured_model_leave_with_three_channels(pictures: TrainedRun, tmp_path: Path) -> None:
    export_run(pictures, tmp_path / "coloured")
    images = np.random.default_rng(0).integers(0, 256, (32, 8, 8), np.uint8)
    keys = ["recipe=vit_cls", "model=vit_ti", *TINY, "model.intermediate=24", "model.patch=4", *KEYS]
    keys += [f"model.init_from={tmp_path / 'coloured'}"]
    bigctl.train(keys, tmp_path / "grey", data=(images, np.arange(32) % 2), quiet=True)
    written = formats.exporter("hf").write(bigctl.load(str(tmp_path / "grey")), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_channels"] == 3
    assert written.facts["difference"] < 1e-4


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_says_where_the_export_is_and_how_to_load_it(
    texts: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    run = shutil.copytree(texts.run.path, tmp_path / "run")
    arguments, folder = ["export", str(run), "--format", "hf"], run / "hf"
    assert main([*arguments, "--json"] if as_json else arguments) == 0
    out = capsys.readouterr().out
    if as_json:
        report = json.loads(out)
        assert report["folder"] == str(folder) and report["class"] == "BertForSequenceClassification"
        assert report["files"] == sorted(p.name for p in folder.iterdir()) and report["read_by"] in report["checked"]
    else:
        assert f"from_pretrained('{folder}'" in out and "model.safetensors" in out
        assert "it computes what the run does: read again by" in out
    assert main(arguments) == 2 and "exists already" in capsys.readouterr().err


@pytest.mark.slow
def test_a_command_that_is_killed_while_it_compares_leaves_no_export(writer: TrainedRun, tmp_path: Path) -> None:
    pytest.importorskip("torch"), pytest.importorskip("transformers")
    command = [sys.executable, "-m", "bigctl", "export", str(writer.run.path), "--format", "hf", "--out", "out"]
    made = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    ends = time.monotonic() + 120
    while not [*tmp_path.glob(f".out*/{reloaded.CHECK}/asked.json")]:
        assert time.monotonic() < ends and made.poll() is None
        time.sleep(0.01)
    made.send_signal(signal.SIGKILL)
    made.wait()
    assert not (tmp_path / "out").exists()

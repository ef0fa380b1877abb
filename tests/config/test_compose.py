"""Promises of `bigctl.config.compose`: what is typed becomes one typed configuration, or one line that says why not."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml
from omegaconf import OmegaConf

from bigctl.config import presets, schema, suggestions
from bigctl.config.compose import compose, from_yaml, to_yaml
from bigctl.errors import ConfigError
from tests import golden
from tests.config.composing import MLP, refused, write

CONF = presets.packaged()


def run(folder: Path, code: str) -> str:
    """Stdout of Python code in a process of its own, in a folder."""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def by_omegaconf(config: schema.Config) -> str:
    return OmegaConf.to_yaml(OmegaConf.structured(config), resolve=True)


# --- What is composed -------------------------------------------------------------------------------------------------


def test_types_of_keys_are_those_that_typing_finds() -> None:
    """Also of a plugin's class, whose annotations may be no text but hold some."""
    own = type("Own", (schema.Component,), {"__annotations__": {"parts": dict[str, "int"], "name": "str | None"}})
    for cls in (schema.Config, *schema.components(), own):
        assert schema._hints(cls) == get_type_hints(cls)
    assert schema._hints(own)["parts"] == dict[str, int]


@pytest.mark.parametrize("name", golden.names())
def test_each_recipe_and_model_resolves_to_its_reviewed_configuration(name):
    reviewed = golden.FOLDER / f"{name}.yaml"
    assert golden.resolved(name) == reviewed.read_text(encoding="utf-8"), "if meant: python -m tests.golden"


def test_every_reviewed_configuration_has_its_recipe_or_model():
    kept = [str(file.relative_to(golden.FOLDER).with_suffix("")) for file in golden.FOLDER.glob("*/*.yaml")]
    assert sorted(kept) == sorted(golden.names()) != []


@pytest.mark.parametrize("recipe", golden.options("recipe"))
def test_a_configuration_survives_its_yaml(recipe):
    changed = [
        "optimizer=sgd",
        "schedule=step",
        "schedule.at=[0.25,0.5]",
        "optimizer.clip=1",
        "train.early_stop.target=1",
    ]
    for overrides in ([], changed):
        config = compose([f"recipe={recipe}", *overrides]).config
        assert from_yaml(to_yaml(config), where="x") == config
        assert to_yaml(config) == by_omegaconf(config)


@pytest.mark.parametrize(
    "text",
    ['it\'s "so": # - & * ! | > % @ `', "1e-3", "yes", "2024-01-01", "a b " * 60, "umläut\x85", "\u2028 \t " * 30],
)
def test_any_text_is_written_as_omegaconf_writes_it(text: str) -> None:
    config = compose(["recipe=mlp_cls"]).config
    config.data.train = config.data.positive = text
    assert to_yaml(config) == by_omegaconf(config)


@pytest.mark.parametrize("recipe", golden.options("recipe"))
def test_a_recipe_sets_no_keys_inside_a_group_it_chooses(recipe):
    # They would stay behind when another option of the group is chosen: `recipe=cnn_cls model=mlp`.
    preset = yaml.safe_load((CONF / "recipe" / f"{recipe}.yaml").read_text())
    own = {"recipe", *(field.name for field in schema.dataclasses.fields(schema.Config))} - set(schema.GROUPS) | {
        "recipe"
    }
    assert set(preset) - {"defaults"} <= own


@pytest.mark.parametrize("file", sorted(CONF.glob("*/*.yaml")), ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_every_preset_says_what_it_is(file):
    assert presets.headline(file).endswith((".", "]"))


def test_every_option_of_every_group_composes():
    groups = {
        g: presets.options([presets.Root(CONF, "conf")], g) for g in ("model", "optimizer", "schedule", "mesh", "data")
    }
    for number in range(max(map(len, groups.values()))):
        chosen = {group: options[number % len(options)] for group, options in groups.items()}
        config = compose([f"{group}={option}" for group, option in chosen.items()], partial=True).config
        for group in groups:
            part = getattr(config, group)
            assert type(part) is schema.component(group, part.kind), chosen


def test_what_is_typed_wins_and_is_typed():
    config = compose(
        [MLP, "optimizer.lr=3e-4", "model.hidden=[8,4]", "train.epochs=2", "train.precision=bfloat16"]
    ).config
    assert config.optimizer.lr == 3e-4 and isinstance(config.model, schema.Mlp) and config.model.hidden == [8, 4]
    assert config.train.epochs == 2.0 and isinstance(config.train.epochs, float)
    assert isinstance(config.train, schema.Train) and config.train.precision == "bfloat16"


def test_another_option_brings_only_its_own_keys():
    config = compose([MLP, "optimizer=sgd", "schedule=linear", "data=digits", "recipe=cnn_cls"]).config
    assert config.optimizer == schema.Sgd() and config.schedule == schema.Linear()
    assert config.data == schema.Packaged(name="digits", test_fraction=0.2)


def test_origins_tell_where_a_value_was_set_last(tmp_path):
    write(tmp_path, model__mlp="# Mine.\ndefaults: [_mlp, _self_]\ndropout: 0.25\n")
    origins = compose([MLP, "train.batch_size=8"], config_dirs=[tmp_path]).origins
    assert origins["train.batch_size"] == "command line" and origins["model.hidden"] == "schema"
    assert origins["train.epochs"].endswith("recipe/mlp_cls.yaml")
    assert origins["model.dropout"] == f"{tmp_path}/model/mlp.yaml"


def test_composing_imports_no_jax(tmp_path):
    code = "import sys; from bigctl.config.compose import compose; compose(['recipe=mlp_cls']); print(*sys.modules)"
    modules = run(tmp_path, code).split()
    assert "hydra" in modules and not {"jax", "flax", "tensorflow"} & set(modules)


# --- What is mistyped -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("recipe=mlp_clss", ["no recipe named 'mlp_clss'", "did you mean recipe=mlp_cls"]),
        ("model=mpl", ["no model named 'mpl'", "did you mean model=mlp", "lstm, lstm_ngrams, minilm, mlp"]),
        ("modell=mlp", ["no key 'modell'", "did you mean model"]),
        ("optimizer.lrr=1", ["no key 'optimizer.lrr'", "did you mean optimizer.lr?", "weight_decay"]),
        ("train.bach_size=3", ["no key 'train.bach_size'", "did you mean train.batch_size?"]),
        (
            "train.early_stop.patence=3",
            ["no key 'train.early_stop.patence'", "did you mean train.early_stop.patience?"],
        ),
        ("lr=1", ["no key 'lr'", "did you mean optimizer.lr?"]),
        ("batch_size=8", ["no key 'batch_size'", "train.batch_size"]),
        ("+sed=3", ["no key 'sed'", "did you mean seed"]),
        ("+model.hiden=[3]", ["no key 'model.hiden'", "did you mean model.hidden?"]),
        ("++model.hiden=[3]", ["no key 'model.hiden'", "did you mean model.hidden?"]),
        (
            "+train.early_stop.patence=3",
            ["no key 'train.early_stop.patence'", "did you mean train.early_stop.patience?"],
        ),
        ("model.kernel_size=3", ["no key 'model.kernel_size'", "cnn"]),
        ("optimizer.lr=fast", ["optimizer.lr", "'fast' is not a number", "Peak learning rate"]),
        ("train.batch_size=1.5", ["train.batch_size", "'1.5' is not a whole number"]),
        ("train.tensorboard=maybe", ["train.tensorboard", "maybe"]),
        ("model.hidden=3", ["model.hidden", "list", "write model.hidden=[3]"]),
        ("model.hidden=[a]", ["model.hidden", "'a' is not a whole number"]),
        ("model.dropout=null", ["model.dropout"]),
        ("train=3", ["train=3"]),
        ("model.activation=rel", ["model.activation cannot be 'rel'", "relu, gelu"]),
        ("model.hidden=[1", ["cannot read 'model.hidden=[1'", "quote"]),
        ("nonsense", ["'nonsense' sets nothing", "key=value"]),
        ("model.hidden.first=1", ["there is no key 'model.hidden.first'", "model.hidden is one value, or a list"]),
        ("optimizer.lr=1e-3,1e-2", ["optimizer.lr=1e-3,1e-2", "names several values"]),
        ("optimizer=adam,sgd", ["optimizer=adam,sgd", "names several values"]),
        ("optimizer.lr=range(1,3)", ["optimizer.lr=range(1,3)", "names several values"]),
        ("hydra.run.dir=x", ["hydra.run.dir=x", "Hydra itself"]),
        ("model.kind=cnn", ["model.kind is read-only", "model=NAME"]),
        ("experiment=gone", ["no experiment named 'gone'"]),
        *(
            (removed, [removed, "can be set but not removed"])
            for removed in ("~model.hidden", "~model.nothing", "~optimizer", "~model=mlp", "~train", "~seed")
        ),
        ("optimizer=null", ["no optimizer named"]),
        ("seed=${train.batch_sise}", ["train.batch_sise", "not found"]),
        ("seed=${oc.env:NOT_SET_ANYWHERE}", ["NOT_SET_ANYWHERE", "not found"]),
        ("mesh.data=${recipe.kind}", ["mesh.data", "'mlp_cls' is not a whole number"]),
    ],
)
def test_a_mistake_is_answered_with_its_key_and_the_remedy(override, said):
    message = refused(MLP, override)
    assert all(part in message for part in said), message


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "no recipe is chosen"),
        (["model=mlp", "data=digits"], "no recipe is chosen"),
        ([MLP, "data=csv"], "data.label must be given"),
        ([MLP, "data=csv", "data.label=y"], "data.path must be given"),
        ([MLP, "data=tfds"], "data.dataset must be given"),
        (["recipe=cnn_cls", "data=image_folder", "data.image_size=64"], "write data.image_size=[64,64]"),
    ],
)
def test_what_must_be_given_is_asked_for(overrides, said):
    assert said in refused(*overrides)


def test_a_key_of_what_is_not_chosen_is_not_removed():
    assert "can be set but not removed" in refused("~model.positions")


def test_a_part_may_be_composed_alone():
    config = compose(["data=csv", "data.label=y"], partial=True).config
    assert isinstance(config.data, schema.Csv) and config.data.label == "y"
    assert "no data named 'cvs'" in refused("data=cvs", partial=True)


# --- Presets of the user's own ----------------------------------------------------------------------------------------

WIDE = "# A wide one.\ndefaults: [_mlp, _self_]\nhidden: [512]\n"


def test_own_presets_add_to_groups(tmp_path):
    write(
        tmp_path, model__wide=WIDE, experiment__mine="# @package _global_\n# Mine.\nseed: 7\nmodel:\n  dropout: 0.1\n"
    )
    config = compose([MLP, "model=wide", "experiment=mine"], config_dirs=[tmp_path]).config
    assert config.model == schema.Mlp(hidden=[512], dropout=0.1) and config.seed == 7
    assert compose([MLP, "+experiment=mine"], config_dirs=[tmp_path]).config.seed == 7
    assert "did you mean model=wide" in refused(MLP, "model=wode", config_dirs=[tmp_path])
    assert "no model named 'wide'" in refused(MLP, "model=wide")


def test_what_an_own_preset_sets_of_hydra_itself_is_left_out(tmp_path):
    text = "# @package _global_\ndefaults: [override /hydra/job_logging: none]\nhydra: {run: {dir: x}}\nseed: 7\n"
    config = compose([MLP, "experiment=mine"], config_dirs=[write(tmp_path, experiment__mine=text)]).config
    assert config == replace(compose([MLP]).config, seed=7)


def test_a_key_that_is_called_as_hydra_is_is_not_left_out_elsewhere(tmp_path):
    folders = [write(tmp_path, model__own="defaults: [_mlp, _self_]\nhydra: 3\n")]
    assert "there is no key 'model.hydra'" in refused(MLP, "model=own", config_dirs=folders)


def test_folders_that_hydra_would_search_are_not_left_out_without_a_word(tmp_path):
    text = "# @package _global_\nhydra: {searchpath: [file:///elsewhere]}\nseed: 7\n"
    said = refused(MLP, "experiment=mine", config_dirs=[write(tmp_path, experiment__mine=text)])
    assert "experiment/mine.yaml: hydra.searchpath adds no folders of presets" in said and "--config-dir" in said


def test_own_presets_shadow_packaged_ones_and_the_first_folder_wins(tmp_path):
    first = write(tmp_path / "first", model__mlp=WIDE)
    second = write(
        tmp_path / "second", model__mlp=WIDE.replace("512", "16"), optimizer__adamw="defaults: [_sgd, _self_]\n"
    )
    config = compose([MLP], config_dirs=[first, second]).config
    assert config.model == schema.Mlp(hidden=[512]) and config.optimizer == schema.Sgd()
    assert compose([MLP]).config.model == schema.Mlp()


def test_the_folder_may_come_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("BIGCTL_CONFIG_DIR", str(write(tmp_path, model__wide=WIDE)))
    assert compose([MLP, "model=wide"]).config.model == schema.Mlp(hidden=[512])


def test_an_own_root_of_the_configuration_is_refused(tmp_path):
    message = refused(MLP, config_dirs=[write(tmp_path, config="defaults: []\n")])
    assert "config.yaml" in message and "experiment=NAME" in message


def test_a_folder_that_is_not_there_is_named(tmp_path):
    assert "gone: is not a folder" in refused(MLP, config_dirs=[tmp_path / "gone"])


def test_a_mistake_in_an_own_preset_is_found(tmp_path):
    write(
        tmp_path,
        model__bad="defaults: [_mlp, _self_]\nhiden: [3]\n",
        model__word="defaults: [_mlp, _self_]\ndropout: x\n",
    )
    message = refused(MLP, "model=bad", config_dirs=[tmp_path])
    assert "hiden" in message and "model.hidden" in message
    assert "'x' is not a number" in refused(MLP, "model=word", config_dirs=[tmp_path])


# --- Plugins ----------------------------------------------------------------------------------------------------------

PLUGIN = """
from dataclasses import dataclass
from typing import ClassVar
from bigctl.config.schema import Model, key, kind

@dataclass
class Tiny(Model):
    implementation: ClassVar[str] = "tiny_plugin:TinyNetwork"
    kind: str = kind("tiny")
    width: int = key(3, "Width.")
"""


def test_a_plugin_brings_a_component(tmp_path):
    (tmp_path / "tiny_plugin.py").write_text(PLUGIN)
    write(tmp_path / "presets", model__tiny="# Tiny.\ndefaults: [_tiny, _self_]\n")
    code = """
from pathlib import Path
from bigctl.config.compose import change, compose, from_yaml, to_yaml
own = {"config_dirs": [Path("presets")], "plugins": ["tiny_plugin"]}
composed = compose(["recipe=mlp_cls", "model=tiny", "model.width=5"], **own)
assert from_yaml(to_yaml(composed.config), where="x") == composed.config
print(composed.config.model)
try:
    compose(["recipe=mlp_cls", "model=tiny", "model.widht=5"], **own)
except Exception as error:
    print(error)
"""
    first, second = run(tmp_path, code).splitlines()
    assert first == "Tiny(kind='tiny', init_from=None, width=5)" and "did you mean model.width?" in second


def test_a_plugin_that_is_missing_or_broken_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_plugin.py").write_text("1 / 0\n")
    (tmp_path / "needy_plugin.py").write_text("import not_there_at_all\n")
    assert "--plugin: there is no module 'gone_plugin' to import" in refused(MLP, plugins=["gone_plugin"])
    assert "'broken_plugin' failed to import in broken_plugin.py, line 1: ZeroDivisionError" in refused(
        MLP, plugins=["broken_plugin"]
    )
    message = refused(MLP, plugins=["needy_plugin"])
    assert "'needy_plugin' failed to import" in message and "not_there_at_all" in message


# --- Reading back -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("kind: mlp\n", "kind: tinier\n", "model 'tinier' is not known here"),
        ("hidden:", "hiden:", "hiden"),
        ("batch_size: 32", "batch_size: many", "many"),
        ("seed: 0", "sed: 0", "sed"),
        ("seed: 0", "seed: [", "cannot be read"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(old, new, said):
    text = to_yaml(compose([MLP]).config)
    assert old in text
    with pytest.raises(ConfigError, match=said) as caught:
        from_yaml(text.replace(old, new, 1), where="runs/x/config.yaml")
    assert caught.value.where == "runs/x/config.yaml" and "\n" not in str(caught.value)


def test_every_kind_of_value_survives_yaml():
    config = compose([MLP, "data=csv", "data.path='a b.csv'", "data.label=y", "data.drop=[id,'n,m']"]).config
    config = replace(config, recipe=schema.MlpCls(class_weights=[1, 2.5]))
    assert from_yaml(to_yaml(config), where="x") == config
    config = replace(config, optimizer=replace(config.optimizer, lr=1))  # as a Python program may have it
    for told in (
        config,
        replace(config, data=replace(config.data, label="\u00e4: 'x\n#", drop=["1", "no", "1e3", ""])),
    ):
        assert to_yaml(told) == by_omegaconf(told)
    assert "  lr: 1.0\n" in to_yaml(config)


def test_keys_are_complete_for_suggestions():
    keys = suggestions.all_keys()
    assert {"optimizer.lr", "train.early_stop.patience", "recipe.augment.rotate", "model.kernel_size", "seed"} <= set(
        keys
    )
    assert keys == sorted(set(keys)) and "train.early_stop" not in keys


@pytest.mark.parametrize("data", ["csv", "jsonl"])
def test_texts_to_be_masked_need_no_label(data):
    config = compose(["recipe=bert_mlm", f"data={data}", "data.path=x", "data.text=text"]).config
    assert config.data.label is None
    assert (
        compose(["recipe=bert_mlm", f"data={data}", "data.path=x", "data.text=t", "data.label=y"]).config.data.label
        == "y"
    )
    with pytest.raises(ConfigError, match="data.label must be given"):
        compose(["recipe=bert_cls", f"data={data}", "data.path=x", "data.text=text"])


def test_schemas_that_a_composition_does_not_name_are_not_converted() -> None:
    composing = "from bigctl.config.compose import compose; compose(['recipe=mlp_cls'])"
    told = "from bigctl.config import value_origins; print(*value_origins._stored)"
    found = subprocess.run([sys.executable, "-c", f"{composing}; {told}"], capture_output=True, text=True, check=True)
    assert {"_config", "model/_mlp"} <= set(found.stdout.split())
    assert "model/_bert" not in found.stdout


def test_a_preset_of_the_users_may_name_a_schema_as_a_file(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "wide.yaml").write_text("defaults: [_lstm.yaml, _self_]\nhidden: 48\n")
    assert compose(["recipe=lstm_cls", "model=wide"], config_dirs=[tmp_path]).config.model.hidden == 48

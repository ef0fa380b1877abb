"""What is typed is what happens: lengths, and text that looks like something else."""

from __future__ import annotations

import shlex

import pytest

from bigctl.config import schema, suggestions
from bigctl.config.compose import change, compose, from_yaml, to_yaml
from bigctl.errors import ConfigError
from tests.config.composing import MLP, refused, write

LONG = ["recipe=gpt_lm", "data=text", "data.path=b.txt"]


def length(config: schema.Config) -> tuple[int | None, float | None]:
    return config.train.steps, config.train.epochs


def test_typed_epochs_win_over_steps_of_a_preset():
    assert compose(LONG).config.train.steps == 2000
    assert length(compose([*LONG, "train.epochs=1"]).config) == (None, 1.0)
    assert length(compose([*LONG, "train={epochs: 3}"]).config) == (None, 3.0)
    assert length(compose([*LONG, "train.epochs=1", "train.steps=null"]).config) == (None, 1.0)
    assert compose([MLP, "train.steps=20"]).config.train.steps == 20  # which has epochs of its own


def test_two_typed_lengths_are_refused():
    assert "two lengths" in refused(MLP, "train.steps=20", "train.epochs=2")
    config = compose([MLP]).config
    with pytest.raises(ConfigError, match="two lengths"):
        change(config, ["train.steps=20", "train.epochs=2"])


def test_an_experiment_of_epochs_wins_over_the_recipes_steps(tmp_path):
    write(tmp_path, experiment__short="# @package _global_\ntrain:\n  epochs: 2\n")
    assert length(compose([*LONG, "experiment=short"], config_dirs=[tmp_path]).config) == (None, 2.0)


def test_a_run_of_steps_is_made_longer_by_epochs():
    config = compose([MLP, "train.steps=20"]).config
    assert length(change(config, ["train.epochs=100"])) == (None, 100.0)
    assert change(config, ["train.steps=40"]).train.steps == 40


@pytest.mark.parametrize("text", ["1.10", "1e5", "2024_01_05", "007", "true", "1_0", "-1.50", "nan", "1.0e2"])
def test_text_that_looks_like_a_number_stays_as_it_was_typed(text):
    found = compose(["recipe=mlp_cls", "data=csv", f"data.path={text}", f"data.label={text}", f"data.drop=[{text},b]"])
    assert (found.config.data.path, found.config.data.label, found.config.data.drop) == (text, text, [text, "b"])
    assert from_yaml(to_yaml(found.config), where="test").data == found.config.data
    assert change(found.config, [f"data.path={text}x", f"data.label={text}"]).data.label == text
    assert compose(found.overrides).config == found.config


def test_text_in_a_preset_is_what_is_written_there(tmp_path):
    write(
        tmp_path,
        data__mine="""# Mine.
defaults: [csv, _self_]
path: 1.10
label: no
drop: [yes, 1_0, "2.0", 2020-01-01]
group: ~
validation_path: 2020
""",
        experiment__other="""# @package _global_
defaults: [{override /recipe: mlp_cls}, {override /data: mine}]
data: {label: 1e3, test_path: 0x1F}
eval: {every: 500}
""",
    )
    own = {"config_dirs": [tmp_path]}
    found = compose([MLP, "data=mine"], **own).config.data
    assert (found.path, found.label, found.group, found.validation_path) == ("1.10", "no", None, "2020")
    assert found.drop == ["yes", "1_0", "2.0", "2020-01-01"]
    config = compose(["experiment=other", "data.path=2_0"], **own).config
    assert (config.data.path, config.data.label, config.data.test_path) == ("2_0", "1e3", "0x1F")
    assert config.data.drop == found.drop and config.eval.every == "500"
    assert from_yaml(to_yaml(config), where="test") == config


def test_numbers_that_text_is_made_of_anyway_keep_their_spelling():
    assert compose([MLP, "eval.every=500", "data.test=x"]).overrides[1] == "eval.every=500"


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("[客户编号]", ["客户编号"]),
        ("[无, 未知,-]", ["无", "未知", "-"]),
        ("[Höhe,Größe [cm],b]", ["Höhe", "Größe [cm]", "b"]),
        ('[1.10,#N/A,"ä,b"]', ["1.10", "#N/A", "ä,b"]),
    ],
)
def test_words_of_a_list_need_no_quotes(typed, found):
    assert suggestions.parse(suggestions.quoted(f"data.missing={typed}")).value() == found


def test_words_of_several_lists_need_no_quotes():
    parsed = suggestions.parse(suggestions.quoted("data.drop=[a],[Höhe]"))
    assert parsed.is_choice_sweep() and [len(choice) for choice in parsed.value().list] == [1, 1]
    with pytest.raises(ConfigError, match="cannot read 'data.drop=\\[a,,ö]'"):
        suggestions.parse(suggestions.quoted("data.drop=[a,,ö]"))


def test_a_comma_is_a_decimal_mark():
    given = ["recipe=mlp_cls", "data=csv", "data.path=t.csv", "data.label=y"]
    assert compose([*given, "data.decimal=,"]).config.data.decimal == ","
    assert suggestions.parse(suggestions.quoted("data.decimal=;")).value() == ";"


@pytest.mark.parametrize("name", ["Höhe", "Größe [cm]", "a b", "it's", 'an "x", y', "客户编号", "size"])
def test_what_a_note_says_can_be_typed(name):
    (override,) = shlex.split(suggestions.listed("data.drop", name))
    assert suggestions.parse(suggestions.quoted(override)).value() == [name]

"""The command line of a sweep: what is searched, what is fixed, and what is refused before anything starts."""

from __future__ import annotations

import random
import shlex

import pytest

from bigctl.config import presets
from bigctl.config.compose import compose
from bigctl.errors import ConfigError
from bigctl.sweeps.packed import compatibility
from bigctl.sweeps.search import space, sweep_syntax
from bigctl.sweeps.search.sweep_syntax import Axis
from bigctl.sweeps.trials import trials_of
from tests.work import counted

BASE = ["recipe=cnn_cls", "data=digits"]


def plan(*overrides: str, **options) -> space.Plan:
    return space.plan([*BASE, *overrides], **options)


def read(override: str, seed: int = 0) -> Axis | str:
    return sweep_syntax.parse_axis(override, presets.roots(), seed=seed)


def values(override: str) -> tuple[str, ...]:
    axis = read(override)
    assert isinstance(axis, Axis)
    return axis.values


# --- Hydra's sweep syntax --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.lr=1e-3,0.01,1.0", ("0.001", "0.01", "1")),
        ("optimizer.lr=choice(1e-5)", ("1e-05",)),
        ("optimizer.lr=range(0.1,0.5,0.1)", ("0.1", "0.2", "0.3", "0.4")),
        ("optimizer.lr=sort(3,1,2,reverse=true)", ("3", "2", "1")),
        ("train.batch_size=range(8,33,8)", ("8", "16", "24", "32")),
        ("train.batch_size=int(8.0,16.0)", ("8", "16")),
        ("optimizer.clip=null,1.0", ("null", "1")),
        ("train.deterministic=True,false", ("true", "false")),
        ("model.channels=[32],[64, 128]", ("[32]", "[64,128]")),
        ("eval.every=5 epochs,'1 epoch'", ("5 epochs", "1 epoch")),
        ("model=glob([cnn*,mlp])", ("cnn", "mlp")),
        ("model=glob(bert_*,exclude=*e)", ("bert_mini", "bert_small", "bert_tiny")),
        ("data.train=train[:50%],train[:90%]", ('"train[:50%]"', '"train[:90%]"')),
        ("data.path='a, b.csv',c d.csv", ('"a, b.csv"', "c d.csv")),
        ("model.init_from='1e-3',x", ('"1e-3"', "x")),
        ("data.path=1.10,1.1,a", ('"1.10"', "1.1", "a")),
        ("data.label=choice(2024_01,true)", ('"2024_01"', '"true"')),
        ("eval.every=100,20", ("100", "20")),
    ],
)
def test_choices_are_read_as_hydra_reads_them_each_in_one_spelling(override, expected):
    assert values(override) == expected


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.lr=interval(0,0.5)", Axis("optimizer.lr", low=0, high=0.5)),
        ("optimizer.lr=tag(log, interval(1e-4,1e-1))", Axis("optimizer.lr", low=1e-4, high=0.1, log=True)),
        ("optimizer.lr=int(interval(1,9))", Axis("optimizer.lr", low=1, high=9, integer=True)),
        ("train.batch_size=interval(8,64)", Axis("train.batch_size", low=8, high=64, integer=True)),
    ],
)
def test_intervals_are_whole_where_they_or_their_key_are(override, expected):
    assert read(override) == expected


def test_shuffle_follows_the_seed_of_the_sweep_not_the_global_generator():
    shuffled = values("seed=shuffle(range(9))")
    random.seed(1)
    assert shuffled == values("seed=shuffle(range(9))") != tuple(map(str, range(9)))
    assert sorted(shuffled) == sorted(read("seed=shuffle(range(9))", seed=1).values)
    assert shuffled != read("seed=shuffle(range(9))", seed=1).values


@pytest.mark.parametrize(
    "text", ["a b", "it's", 'say "x"', "a,b", "train[:5%]", "1e-3", "null", "{x}", " x ", "ü", "a\\", ""]
)
def test_any_text_survives_its_spelling_on_a_command_line(text):
    override = f"data.path={sweep_syntax.spell(text)}"
    (word,) = shlex.split(shlex.quote(override))
    assert compose(["recipe=mlp_cls", "data=csv", "data.label=x", word], partial=True).config.data.path == text


# --- The plan --------------------------------------------------------------------------------------------------------


def test_a_command_line_is_cut_into_space_seeds_and_what_is_fixed():
    found = plan("train.epochs=2.0", "optimizer.lr=1e-3,0.001,1e-2", "seed=range(2)", "+model.dropout=0,0.5")
    assert found.fixed == ("data=digits", "recipe=cnn_cls", "train.epochs=2")
    assert found.space.axes == (Axis("optimizer.lr", ("0.001", "0.01")), Axis("model.dropout", ("0", "0.5")))
    assert found.space.seeds == (0, 1)
    assert space.points(found) == [
        {"optimizer.lr": "0.001", "model.dropout": "0"},
        {"optimizer.lr": "0.001", "model.dropout": "0.5"},
        {"optimizer.lr": "0.01", "model.dropout": "0"},
        {"optimizer.lr": "0.01", "model.dropout": "0.5"},
    ]
    assert found.base.config.optimizer.lr == 0.001 and found.base.config.seed == 0
    trials = trials_of(found, 3, space.points(found)[3])
    assert [(t.number, t.seed) for t in trials] == [(6, 0), (7, 1)]
    assert trials[1].overrides == (
        "data=digits", "model.dropout=0.5", "optimizer.lr=0.01", "recipe=cnn_cls", "seed=1", "train.epochs=2",
    )  # fmt: skip


def test_folds_are_repeats_of_each_point_as_many_as_there_are():
    found = plan("optimizer.lr=1e-3,1e-2", "data.fold=range(3)", "seed=range(2)")
    assert found.space.folds == (0, 1, 2) and [axis.key for axis in found.space.axes] == ["optimizer.lr"]
    assert "data.folds=3" in found.fixed and found.base.config.data.fold == 0
    trials = trials_of(found, 1, space.points(found)[1])
    assert [(t.number, t.seed, t.fold) for t in trials] == [
        (6, 0, 0), (7, 0, 1), (8, 0, 2), (9, 1, 0), (10, 1, 1), (11, 1, 2),
    ]  # fmt: skip
    assert "data.fold=2" in trials[2].overrides and trials[2].label == "lr=0.01 fold=2 seed=0"
    given = plan("data.fold=0,2", "data.folds=4")
    assert given.space.folds == (0, 2) and given.fixed.count("data.folds=4") == 1 and space.points(given) == [{}]
    one = plan("data.fold=1", "optimizer.lr=1,2")
    assert one.space.folds == () and "data.fold=1" in one.fixed


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.fold=0,2"], "it is not known how many there are"),
        (["data.fold=1,2", "data.folds=2"], "data.fold cannot be 2"),
        (["data.fold=a,b"], "a is no fold"),
        (["data.fold=interval(0,3)"], "folds are repeats"),
        (["data.folds=3,5", "data.fold=range(3)"], "their number is not searched"),
    ],
)
def test_folds_that_cannot_be_swept_are_refused(overrides, said):
    with pytest.raises(ConfigError, match=said):
        space.check_points(plan(*overrides))


def test_axes_without_effect_are_told():
    magnitude = "recipe.augment.magnitude=3,12"
    told = "recipe.augment.magnitude does nothing here: it is for policy=randaugment alone"
    assert space.check_points(plan("recipe=cnn_cls", magnitude)) == [told]
    both = plan("recipe=cnn_cls", magnitude, "recipe.augment.policy=none,randaugment")
    assert space.check_points(both, space.points(both)) == [f"{told} (in 2 of 4 points)"]
    assert not space.check_points(plan("recipe=cnn_cls", magnitude, "recipe.augment.policy=randaugment"))


def test_trials_of_several_folds_cannot_be_packed():
    refused = compatibility.refusal(space.variants(plan("data.fold=range(3)", "seed=range(2)")))
    assert refused is not None and "data.fold differs: 0, 1, 2" in refused


def test_the_same_value_spelled_otherwise_is_the_same_trial():
    ours, theirs = (plan(f"train.epochs={e}", f"optimizer.lr={a},1") for e, a in [("2", "1e-3"), ("2.0", "0.0010")])
    assert [t.id for p in space.points(ours) for t in trials_of(ours, 0, p)] == [
        t.id for p in space.points(theirs) for t in trials_of(theirs, 0, p)
    ]


def test_one_seed_is_that_of_every_trial_and_seeds_alone_are_a_sweep_of_one_point():
    one = plan("optimizer.lr=1,2", "seed=7")
    assert one.space.seeds == (7,) and not any(o.startswith("seed") for o in one.fixed)
    none = plan("optimizer.lr=1,2")
    assert none.space.seeds == () and [t.seed for t in trials_of(none, 0, {"optimizer.lr": "1"})] == [None]
    only = plan("seed=range(3)")
    assert space.points(only) == [{}]
    assert [t.overrides[-1] for t in trials_of(only, 0, {})] == ["seed=0", "seed=1", "seed=2"]


def test_zipped_axes_go_together_and_rows_are_kept_once():
    found = plan(
        "optimizer.lr=1,1,2,1", "seed=0", "train.epochs=3,4", "train.batch_size=8,8,8,16",
        "sweep.zip=[[optimizer.lr,train.batch_size]]",
    )  # fmt: skip
    rows = [("1", "8"), ("2", "8"), ("1", "16")]
    assert [(p["optimizer.lr"], p["train.batch_size"], p["train.epochs"]) for p in space.points(found)] == [
        (lr, size, epochs) for lr, size in rows for epochs in ("3", "4")
    ]


@pytest.mark.parametrize("option", presets.options(presets.roots(), "sweep"))
def test_every_preset_of_a_sweep_can_be_started(option):
    recipe = ["recipe=bert_cls", "data=rotten_tomatoes"] if option == "finetune" else BASE
    found = space.plan([*recipe, f"sweep={option}"])
    space.check_points(found)
    assert found.space.axes and {a.key for a in found.space.axes} <= set(found.sweep.space)


def test_the_command_line_wins_over_the_space_of_a_preset(tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "mine.yaml").write_text(
        "# Mine.\ndefaults: [lr, _self_]\ntrials: 5\nspace:\n  model.dropout: 0,0.1\n  train.epochs: 1,2\n"
    )
    dirs = {"config_dirs": [tmp_path]}
    found = plan("sweep=mine", "train.epochs=3", "model.dropout=0.2,0.3", **dirs)
    assert (found.sweep.sampler, found.sweep.trials) == ("random", 5)
    assert {a.key: a.values for a in found.space.axes} == {"model.dropout": ("0.2", "0.3"), "optimizer.lr": ()}
    assert "train.epochs=3" in found.fixed
    assert plan("sweep.trials=9", "sweep=mine", **dirs).sweep.trials == 9
    (tmp_path / "sweep" / "mine.yaml").write_text("# Mine.\nspace:\n  data.train: 1_0\n  seed: 1,2\n")
    assert 'data.train="1_0"' in plan("sweep=mine", **dirs).fixed
    (tmp_path / "sweep" / "mine.yaml").write_text("# Mine.\nspace:\n  optimizer.lrr: 1,2\n")
    with pytest.raises(ConfigError, match=r"mine.yaml: there is no key 'optimizer.lrr'; did you mean optimizer.lr"):
        plan("sweep=mine", **dirs)
    (tmp_path / "sweep" / "mine.yaml").write_text("# Mine.\ntrails: 3\n")
    with pytest.raises(ConfigError, match=r"mine.yaml: .*'sweep.trails'; did you mean sweep.trials"):
        plan("sweep=mine", **dirs)


# --- What is checked before anything starts ---------------------------------------------------------------------------


def test_every_point_of_a_grid_is_checked_and_the_error_names_the_axis_and_value():
    for bad in ["optimizer.lr=1e-3,-1", "train.batch_size=8,x", "model.dropout=0,1"]:
        found = plan("optimizer=adamw,sgd", "train.epochs=1,2", bad)
        key, _, both = bad.partition("=")
        with pytest.raises(ConfigError) as error:
            space.check_points(found, space.points(found))
        assert error.value.where == f"{key}={both.split(',')[1]}"


def test_values_that_do_not_fit_each_other_are_found_and_zipping_makes_them_fit():
    axes_ = ["train.batch_size=8,9", "train.accumulate=4,3"]
    with pytest.raises(ConfigError, match="train.accumulate=3 does not divide train.batch_size=8"):
        space.check_points(found := plan(*axes_), space.points(found))
    found = plan(*axes_, "sweep.zip=[[train.batch_size,train.accumulate]]")
    space.check_points(found, space.points(found))


def test_options_of_groups_that_do_not_fit_are_found_by_name():
    found = plan("experiment=digits,nanogpt_cpu", "optimizer.lr=1,2")
    with pytest.raises(ConfigError) as error:
        space.check_points(found, space.points(found))
    assert "experiment=nanogpt_cpu" in error.value.where


def test_both_ends_of_an_interval_are_checked():
    found = plan("sweep.sampler=random", "sweep.trials=3", "model.dropout=interval(0,1)", "train.epochs=1,2")
    with pytest.raises(ConfigError) as error:
        space.check_points(found)
    assert error.value.where == "model.dropout=1"


def test_values_that_refer_to_others_are_checked_where_they_arrive():
    fits = plan("train.batch_size=8,16", "train.accumulate=${train.batch_size},4")
    space.check_points(fits, space.points(fits))
    breaks = plan("train.batch_size=8,16", "train.accumulate=4,${seed}", "seed=3")
    with pytest.raises(ConfigError, match="does not divide"):
        space.check_points(breaks, space.points(breaks))


def test_many_points_are_checked_without_composing_each():
    found = plan("optimizer.lr=range(1,11)", "train.batch_size=range(8,18)", "model.dropout=0,0.1")
    compose([*BASE, "optimizer.lr=1"])
    with counted() as one:
        compose([*BASE, "optimizer.lr=2"])
    with counted() as calls:
        space.check_points(found, points := space.points(found))
    assert len(points) == 200 and calls.count / 200 < one.count / 5, (calls.count, one.count)


# --- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["optimizer.lrr=1,2"], ["no key 'optimizer.lrr'", "did you mean optimizer.lr?"]),
        (["modell=cnn,mlp"], ["no key 'modell'", "did you mean model"]),
        (["model=cnn,mpl"], ["no model named 'mpl'", "did you mean model=mlp"]),
        (["model=glob(x*)"], ["model=glob(x*)", "matches no model"]),
        (["optimizer.lr=glob(*)"], ["glob() is for a group"]),
        (["optimizer=adamw,sgd", "optimizer.momentum=0,0.9"], ["no key 'optimizer.momentum'", "optimizer sgd"]),
        (["optimizer.lr="], ["optimizer.lr=: names an empty choice"]),
        (["optimizer.lr=choice()"], ["optimizer.lr=choice(): names an empty choice"]),
        (["optimizer.lr=1,"], ["optimizer.lr=1,: names an empty choice"]),
        (["seed=range(0)"], ["seed=range(0): names an empty choice"]),
        (["optimizer.lr=range(1,2,0)"], ["the step cannot be 0"]),
        (["train.batch_size=range(1000000)"], ["more than 10,000 values"]),
        (["optimizer.lr=interval(0,1)"], ["no grid", "sweep.sampler=random"]),
        (["optimizer.lr=interval(1,0)"], ["the ends are swapped", "interval(0,1)"]),
        (["optimizer.lr=interval(1,1)"], ["both ends are the same"]),
        (["optimizer.lr=tag(log,interval(0,1))"], ["0 has no logarithm"]),
        (["optimizer.lr=tag(lin,interval(0,1))"], ["no tag 'lin'"]),
        (["train.batch_size=interval(0.5,2)"], ["takes whole numbers"]),
        (["model=interval(0,1)"], ["model is not a number"]),
        (["seed=interval(0,3)"], ["seeds are repeats"]),
        (["seed=-1,2"], ["-1 is no seed"]),
        (["sweep=lrr"], ["no sweep named 'lrr'", "did you mean sweep=lr"]),
        (["sweep.trial=3"], ["no key 'sweep.trial'", "did you mean sweep.trials"]),
        (["sweep.trials=1,2"], ["sweep.trials=1,2: the search itself"]),
        (["sweep.trials=x"], ["sweep.trials cannot be 'x'"]),
        (["sweep.sampler=rnd"], ["sweep.sampler cannot be 'rnd'", "grid, random, tpe"]),
        (["sweep.trials=3", "optimizer.lr=1,2"], ["sweep.trials=3 is not for a grid"]),
        (["sweep.sampler=random", "optimizer.lr=1,2"], ["does not end by itself", "add sweep.trials=N"]),
        (["sweep.sampler=tpe", "sweep.trials=3", "seed=0,1"], ["has nothing to search"]),
        (["sweep.metric=test/accuracy", "optimizer.lr=1,2"], ["ranked on the validation split", "val/accuracy"]),
        (["sweep.space={a:1}"], ["optimizer.lr=1e-3,1e-2"]),
        (["sweep.zip=[[optimizer.lr,train.epoch]]", "optimizer.lr=1,2", "train.epochs=1,2"],
         ["train.epoch has no values to zip", "did you mean train.epochs"]),
        (["sweep.zip=[[optimizer.lr,train.epochs]]", "optimizer.lr=1,2", "train.epochs=1,2,3"],
         ["optimizer.lr has 2, train.epochs has 3 values"]),
        (["eval.test=true,false"], ["do not score the test split"]),
        (["hydra.verbose=1,2"], ["Hydra itself"]),
        (["train={epochs:1},{epochs:2}", "train.epochs=2,3"], ["train.epochs is a part of train"]),
        (["train={epochs:1}", "train.epochs=2,3"], ["train.epochs is a part of train"]),
        (["seed=1"], ["nothing to sweep over", "bigctl ls sweeps"]),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_with_its_remedy(overrides, said):
    with pytest.raises(ConfigError) as error:
        plan(*overrides)
    text = str(error.value)
    assert all(part in text for part in said) and "\n" not in text, text
    assert error.value.where and error.value.hint


@pytest.mark.parametrize("override", ["sweep=lr", "+sweep=lr", "sweep.trials=3"])
def test_a_single_run_knows_no_sweep(override):
    with pytest.raises(ConfigError, match="is of a sweep, not of one run.*`bigctl sweep` takes it"):
        compose([*BASE, override])


def test_three_axes_of_a_thousand_values_are_refused_at_once() -> None:
    def axis(key: str, low: float) -> str:
        return f"{key}={','.join(f'{low + n * 1e-6:.6f}' for n in range(1000))}"

    with pytest.raises(ConfigError, match="the grid has 1,000,000,000 points"):
        axes = [axis("optimizer.lr", 0.001), axis("model.dropout", 0.1), axis("optimizer.weight_decay", 0.01)]
        space.plan(["recipe=mlp_cls", *axes])

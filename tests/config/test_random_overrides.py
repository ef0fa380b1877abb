"""Whatever is typed as overrides is composed, or refused by an error of ours in one line."""

from __future__ import annotations

import random
import time

import pytest

from bigctl.config import presets, suggestions
from bigctl.config.compose import compose, to_yaml
from bigctl.errors import BigctlError
from tests.conftest import CHANGED_FILES

RECIPES = ["mlp_cls", "cnn_cls", "resnet_cls", "lstm_cls", "bert_cls", "bert_mlm", "gpt_lm", "lstm_tag", "ngram_cls"]
VALUES = [
    "", "1", "-1", "0", "1e-3", "1e400", "-inf", "nan", "null", "true", "yes", "10000000000000000000000", "9" * 5000,
    "0x10", "[1,2]", "[]", "[1e14]", "[[1]]", "[a,b", "{}", "{a:1}", "{a:{b:[1]}}", "${seed}", "${oc.env:HOME}", "${",
    "${nothing.here}", "${seed", "a b", "'a b'", "'", '"', "\\", "a=b", "a,b", "range(1,5)", "interval(0,1)",
    "choice(1,2)", "tag(x)", "glob(*)", "int(3)", "json_str(1)", "größe", "\N{SNOWMAN}", "\x1b[31m", "\0", "\n",
    "\udcff",
    "../..", "/", "???", "!!python/object:x", "&a", "*a", "%", "@", "~", "(" * 300, "[" * 300, "a" * 3000, "1 epoch",
    "0 epochs", "1e300 epochs", "2^63", "1_000",
]  # fmt: skip
FORMS = ["{key}={value}"] * 12 + [
    "+{key}={value}", "++{key}={value}", "~{key}", "~{key}={value}", "{key}", "={value}", "{value}", "{key}.x={value}",
    "{key}.{key}={value}", "{key}@x={value}", "{key}:{value}", "{group}={value}", "{group}@a.b={value}",
    "+{group}={value}",
    "{group}/x={value}", "hydra.{key}={value}", "{cut}={value}",
]  # fmt: skip


def overrides(rng: random.Random, keys: list[str], groups: list[str]) -> list[str]:
    """Some that fit a recipe, and up to three that may not."""
    found = [f"recipe={rng.choice(RECIPES)}"] if rng.random() < 0.9 else []
    for _ in range(rng.randint(1, 3)):
        key, value = rng.choice(keys), rng.choice(VALUES)
        if rng.random() < 0.2:
            value = "".join(rng.choice("ab01.-+,=[]{}()'\"\\ $:@~*\t\xe9\x7f") for _ in range(rng.randint(1, 12)))
        form = rng.choice(FORMS)
        cut = key[: rng.randint(0, len(key))]
        found.append(form.format(key=key, value=value, group=rng.choice(groups), cut=cut))
    return found


def prove(count: int, seed: int) -> None:
    keys, groups, rng = suggestions.all_keys(), sorted(presets.groups(presets.roots())), random.Random(seed)
    for _ in range(count):
        given, start = overrides(rng, keys, groups), time.process_time()
        try:
            to_yaml(compose(given).config)
        except BigctlError as error:
            line = str(error.message)
            assert line and "\nTraceback" not in line, given
        except Exception as error:
            raise AssertionError(f"{given!r}: {type(error).__name__}: {error}") from error
        assert time.process_time() - start < 30, given


def test_sixty_random_overrides_are_composed_or_refused() -> None:
    prove(60, seed=1)


@pytest.mark.slow
def test_a_thousand_random_overrides_are_composed_or_refused() -> None:
    prove(min(1000, CHANGED_FILES), seed=2)

"""What `bigctl compress` is asked for. Nothing heavy at import."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from bigctl.errors import ConfigError

INT8, INT4, PRUNE, SOUP, STRUCTURED = "int8", "int4", "prune", "soup", "structured"
METHODS = (INT8, INT4, PRUNE, STRUCTURED, SOUP)
UNIFORM, GREEDY = "uniform", "greedy"
MAGNITUDE, WANDA, TAYLOR = "magnitude", "wanda", "taylor"
RANGES = ("percentile", "minmax", "entropy")
"""How the range of what a layer is given is chosen, see `bigctl.interop.onnx.static`."""
SHARES = ("heads", "columns", "channels")
"""What `structured` removes a share of."""
PATTERN = "2:4"
KEYS: dict[str, set[str]] = {
    INT8: {"ranges", "calibration", "data"},
    INT4: {"group"}, PRUNE: {"sparsity", "by", "pattern", "calibration"}, SOUP: {"soup", "from"},
    STRUCTURED: {*SHARES, "layers", "keep", "by", "calibration"},
}  # fmt: skip
"""Of each method."""
USUAL = ("int8", "int4", "prune sparsity=0.5", "structured columns=0.25", "structured columns=0.5",
         "structured channels=0.5")  # fmt: skip
"""What is tried where several methods are, and none is named."""


@dataclass(frozen=True)
class Method:
    """How weights are made smaller.

    Attributes:
        method: "int8", a scale a column; "int4", in groups; "prune", some become zero; "structured", whole parts of
            the network go; or "soup", the mean of several checkpoints.
        group: weights that share a scale in four bits.
        sparsity: the share of weights that become zero.
        by: which ones: those of the least "magnitude", or of the least magnitude times the norm of what they are given
            ("wanda", Sun et al. 2023, arXiv 2306.11695). Of parts that go: those of the least "magnitude", or of the
            least change of the loss as its gradient tells ("taylor", Michel et al. 2019, arXiv 1905.10650).
        pattern: "2:4" for two of every four neighbours; empty for any.
        calibration: training rows that show what layers are given.
        ranges: of "int8", by which of `RANGES` activations get ranges that are fixed; empty for none.
        data: a .npy file of rows in place of the training split.
        heads, columns, channels: the share of attention heads, of columns of dense layers inside of the network, and of
            channels of convolutions that go, of each layer alike.
        layers: how many layers go.
        keep: in place of `layers`: the numbers, from 0, of those that stay.
        soup: "uniform", of all checkpoints, or "greedy", of those that do not make validation worse.
        sources: runs to be averaged with, `from` on the command line; none for the run's own checkpoints.
    """

    method: str
    group: int = 32
    sparsity: float = 0.5
    by: str = WANDA
    pattern: str = ""
    calibration: int = 128
    ranges: str = ""
    data: str = ""
    heads: float = 0.0
    columns: float = 0.0
    channels: float = 0.0
    layers: int = 0
    keep: tuple[int, ...] = ()
    soup: str = UNIFORM
    sources: tuple[str, ...] = ()

    @classmethod
    def parse(cls, settings: Sequence[str]) -> Method:
        """Of `key=value`. Raises ConfigError for what is no key, or no value of it."""
        found: dict[str, Any] = {}
        kinds: dict[str, Any] = {
            field.name: {"int": int, "float": float}.get(str(field.type), str) for field in fields(cls)
        }
        kinds["from"] = kinds.pop("sources")
        for setting in settings:
            name, equals, text = setting.partition("=")
            if not equals or name not in kinds:
                close = difflib.get_close_matches(name, kinds, 1)
                hint = f"did you mean {close[0]}=?" if close else f"keys: {', '.join(kinds)}"
                raise ConfigError(f"there is no key {name!r}", where="command line", hint=hint)
            if name in found:
                raise ConfigError("is given twice", where=name, hint="leave one of them out")
            try:
                found[name] = kinds[name](text)
            except ValueError as error:
                what = "a whole number" if kinds[name] is int else "a number"
                raise ConfigError(f"{text!r} is not {what}", where=name) from error
        if "method" not in found:
            raise ConfigError("no method is given", where="method", hint=f"method={'|'.join(METHODS)}")
        given: dict[str, Any] = {"sources": _names(found["from"])} if "from" in found else {}
        given |= {"keep": _numbers(found.pop("keep"))} if "keep" in found else {}
        usual = {"by": TAYLOR} if found["method"] == STRUCTURED else {}
        made = cls(**{**usual, **{name: value for name, value in found.items() if name != "from"}}, **given)
        made._check({*found, *given} - {"sources"})
        return made

    @classmethod
    def several(cls, settings: Sequence[str]) -> list[Method]:
        """Of `key=value,value`: each method with each combination of the values of its own keys; without any, `USUAL`.

        Raises:
            ConfigError: as `parse`; for a key that none of the methods has.
        """
        if not settings:
            return [cls.parse(f"method={each}".split()) for each in USUAL]
        given = [setting.partition("=")[::2] for setting in settings]
        between = re.compile(r",(?![^\[]*\])")  # and not those of a list
        methods = next((text.split(",") for name, text in given if name == "method"), [])
        if not methods:
            hint = f"such as method={PRUNE},{STRUCTURED}; without any key several are tried"
            raise ConfigError("no method is given", where="method", hint=hint)
        for method in methods:
            if method not in METHODS or method == SOUP:
                hint = f"such as method={INT8},{INT4}; one of: {', '.join(each for each in METHODS if each != SOUP)}"
                raise ConfigError(f"there is no method {method!r} to be tried", where="method", hint=hint)
        found, used = [], {"method"}
        for method in methods:
            known = KEYS[method]
            if method == STRUCTURED and not {name for name, _ in given} & set(SHARES):
                known = known - {"by"}
            own = [(name, between.split(text)) for name, text in given if name in known]
            used |= {name for name, _ in own}
            for values in itertools.product(*(texts for _, texts in own)):
                keys = [f"{name}={value}" for (name, _), value in zip(own, values, strict=True)]
                found.append(cls.parse([f"method={method}", *keys]))
        if any(each.ranges for each in found):
            hint = "leave it out: what is tried is computed in jax, with weights rounded alone"
            raise ConfigError("is of onnxruntime, and no key of --pareto", where="ranges", hint=hint)
        if strange := [name for name, _ in given if name not in used]:
            raise ConfigError(f"is no key of {' or '.join(methods)}", where=strange[0], hint="leave it out")
        return found

    def _check(self, given: set[str]) -> None:
        ways = (MAGNITUDE, TAYLOR) if self.method == STRUCTURED else (MAGNITUDE, WANDA)
        choices = {"method": METHODS, "by": ways, "pattern": ("", PATTERN), "soup": (UNIFORM, GREEDY)}
        choices["ranges"] = ("", *RANGES)
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                hint = f"one of: {', '.join(filter(None, allowed))}"
                raise ConfigError(f"there is no {name} {getattr(self, name)!r}", where=name, hint=hint)
        own = KEYS[self.method]
        if strange := sorted(given - own - {"method"}):
            hint = f"of method={self.method} there is {', '.join(sorted(own)) or 'none'}"
            raise ConfigError(f"is no key of method={self.method}", where=strange[0], hint=hint)
        if not 0 < self.sparsity < 1:
            hint = "a share between 0 and 1, such as 0.5"
            raise ConfigError(f"{self.sparsity:g} leaves nothing, or all", where="sparsity", hint=hint)
        if self.pattern and "sparsity" in given and self.sparsity != 0.5:
            raise ConfigError(f"pattern={PATTERN} is a sparsity of 0.5", where="sparsity", hint="leave one of them out")
        if self.group not in (16, 32, 64, 128):
            raise ConfigError(f"there are no groups of {self.group}", where="group", hint="16, 32, 64 or 128")
        self._check_parts(given)
        if self.method == INT8 and not self.ranges and (alone := sorted(given & {"calibration", "data"})):
            hint = f"such as ranges={RANGES[0]}; one of: {', '.join(RANGES)}"
            raise ConfigError("is for ranges of activations, and no ranges= is given", where=alone[0], hint=hint)
        if self.calibration < 1:
            raise ConfigError("needs a row at least", where="calibration", hint="such as calibration=128")

    @property
    def shares(self) -> tuple[str, ...]:
        """Of which parts a share goes; `by` tells which of them."""
        return tuple(name for name in SHARES if getattr(self, name))

    def _check_parts(self, given: set[str]) -> None:
        for name in SHARES:
            if not 0 <= getattr(self, name) < 1:
                hint = f"a share from 0 to below 1, such as {name}=0.25"
                raise ConfigError(f"{getattr(self, name):g} of them cannot go", where=name, hint=hint)
        if self.layers < 0:
            raise ConfigError(f"{self.layers} layers cannot go", where="layers", hint="such as layers=2")
        if self.layers and self.keep:
            raise ConfigError("says by itself how many layers go", where="keep", hint="leave out layers=")
        if self.method == STRUCTURED and not (self.shares or self.layers or self.keep):
            hint = "shares such as heads=0.5 columns=0.5, channels=0.5 of convolutions, layers=2, or keep=[0,5]"
            raise ConfigError("nothing is said to go", where=f"method={STRUCTURED}", hint=hint)
        if self.method == STRUCTURED and "by" in given and not self.shares:
            hint = "leave it out: " + ("keep= names the layers" if self.keep else "layers go by the loss without them")
            raise ConfigError(f"tells which {', '.join(SHARES)} go, and none are said to", where="by", hint=hint)

    @property
    def settings(self) -> dict[str, Any]:
        """The keys that count."""
        names = {
            INT8: ("ranges", "calibration") if self.ranges else (),
            INT4: ("group",), PRUNE: ("sparsity", "by", "pattern"), SOUP: ("soup",),
            STRUCTURED: (*(("by",) if self.shares else ()), *self.shares,
                         *(name for name in ("layers", "keep") if getattr(self, name))),
        }[self.method]  # fmt: skip
        found = {name: value for name, value in asdict(self).items() if name in ("method", *names)}
        return {**found, "from": self.sources} if self.sources else found

    def __str__(self) -> str:
        return told(self.settings)


def told(settings: Mapping[str, Any]) -> str:
    """Settings as they are given on the command line."""
    return " ".join(f"{name}={_text(value)}" for name, value in settings.items() if value != "")


def _text(value: object) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, list | tuple) else str(value)


def _numbers(text: str) -> tuple[int, ...]:
    """Of `[0,5]`, in order. Raises ConfigError where there is none, or one twice."""
    inside = re.fullmatch(r"\[(.*)\]", text)
    try:
        if inside is None:
            raise ValueError("no list")
        found = sorted(int(each) for each in inside[1].split(","))
    except ValueError as error:
        hint = "numbers of layers from 0, such as keep=[0,5]"
        raise ConfigError(f"{text!r} names no layers", where="keep", hint=hint) from error
    if len(set(found)) < len(found):
        raise ConfigError(f"{text} names a layer twice", where="keep", hint="leave one of them out")
    return tuple(found)


def _names(text: str) -> tuple[str, ...]:
    """Of `[a,b]`. Raises ConfigError where there is none."""
    found = tuple(name for each in text.strip("[]").split(",") if (name := each.strip()))
    if not found:
        raise ConfigError("names no run", where="from", hint="such as from=[a,b]")
    return found

"""Hydra's sweep syntax: one override -> an axis of a search, or one value, each value in its canonical spelling.

Supported is what Hydra's own parser supports: `a,b`, `choice()`, `range()`, `glob()`, `interval()`,
`tag(log, interval())`, casts, `sort()` and `shuffle()`.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from bigctl.config import presets, schema, suggestions
from bigctl.config.schema import Config
from bigctl.errors import ConfigError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Glob, IntervalSweep, Override

MOST_VALUES = 10_000
"""More values than this on one axis are taken for a mistake."""


@dataclass(frozen=True)
class Axis:
    """One searched key.

    Attributes:
        key: an override's left side: "optimizer.lr", "model".
        values: its choices in order, each as the right side of an override, in one spelling a value ("0.001", not
            "1e-3"); empty for an interval.
        low, high: ends of an interval, both included; None for choices.
        log: search the interval by its logarithm.
        integer: whole numbers only.
    """

    key: str
    values: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    log: bool = False
    integer: bool = False

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends, of an interval."""
        return (self.low, self.high) if self.low is not None and self.high is not None else None

    def text(self, number: float) -> str:
        """A number of the interval as an override has it: six digits, and never outside."""
        assert self.low is not None and self.high is not None
        kept = round(number) if self.integer else float(f"{number:.6g}")
        return spell(min(max(kept, self.low), self.high), whole=True)


def parse_axis(override: str, roots: Sequence[presets.Root], *, seed: int = 0) -> Axis | str:
    """An axis, or, of one value, the override itself in its one spelling.

    Args:
        override: key=value, as it was given.
        roots: where options of groups are.
        seed: for `shuffle`.

    Raises:
        ConfigError: if it cannot be read, or names no value at all.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Glob, IntervalSweep
    from hydra.errors import HydraException

    key, _, text = override.partition("=")
    if (
        schema.declared(key) in suggestions.text_keys(many=True) or text == ","
    ):  # a mark, as of data.decimal, rather than two choices
        override = suggestions.quoted(override)
    try:
        parsed = OverridesParser.create().parse_override(override)
        if schema.declared(key) in suggestions.text_keys():
            parsed = _as_typed(parsed, key, text)
    except HydraException as error:
        if schema.declared(key) in suggestions.text_keys() and (pieces := _pieces(text)):
            texts = tuple(_quoted_piece(key, piece) for piece in pieces)
            return Axis(key, texts) if len(texts) > 1 or text.startswith("choice(") else f"{key}={texts[0]}"
        empty = re.search(r"(^|[,(])\s*($|[,)])", text)
        message = "names an empty choice" if empty else f"cannot be read: {suggestions.first_line(error)}"
        hint = "write choices as 1e-3,1e-2, intervals as interval(0,1), and text with commas or brackets in quotes"
        raise ConfigError(message, where=override, hint=hint) from error
    hints = _hints(key)
    found = parsed.value()
    if not parsed.is_sweep_override():
        if found == "" and text == "" and hints and str not in hints:
            raise ConfigError("names an empty choice", where=override, hint=f"such as {key}=VALUE,VALUE")
        head = parsed.get_key_element()
        return override if parsed.is_delete() else f"{head}={spell(found, whole=_is_real(hints))}"
    if isinstance(found, IntervalSweep):
        return _interval(key, override, found, hints, grouped=key in presets.groups(roots))
    if getattr(found, "tags", None):
        raise ConfigError("a tag is for an interval", where=override, hint="such as tag(log, interval(1e-4,1e-1))")
    values: list[str] = []
    for element in [found] if isinstance(found, Glob) else _elements(parsed, override):
        if isinstance(element, Glob):
            values += _matches(key, override, element, roots)
        elif isinstance(element, float) and parsed.is_range_sweep():
            values.append(spell(float(f"{element:.12g}"), whole=_is_real(hints)))  # not 0.30000000000000004
        else:
            values.append(spell(element, whole=_is_real(hints)))
        if len(values) > MOST_VALUES:
            raise ConfigError(f"names more than {MOST_VALUES:,} values", where=override, hint="take larger steps")
    if not values:
        raise ConfigError(
            "names an empty choice", where=override, hint="ranges end before their stop: range(1,4) is 1,2,3"
        )
    if getattr(found, "shuffle", False):
        random.Random(f"{seed} {key}").shuffle(values)
    return Axis(key, tuple(values))


def spell(value: object, *, whole: bool = False) -> str:
    """A value as the right side of an override, in the one spelling that it has.

    Args:
        value: as Hydra's parser gives it.
        whole: write a real number without a fraction as a whole one, because the key takes real numbers only.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return str(int(value)) if whole and value.is_integer() and abs(value) < 2**53 else repr(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list):
        return f"[{','.join(spell(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{spell(name)}:{spell(item)}' for name, item in value.items())}}}"
    return _spell_text(str(getattr(value, "text", value)))


def _spell_text(text: str) -> str:
    """Bare where Hydra reads just that from it, else in double quotes."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Quote, QuotedString
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(f"key={text}")
        bare = not parsed.is_sweep_override() and isinstance(parsed.value(), str) and parsed.value() == text
    except HydraException:
        bare = False
    return text if bare and text and "'" not in text else QuotedString(text, Quote.double).with_quotes()


def _elements(parsed: Override, override: str) -> Iterator[object]:
    from hydra.core.override_parser.types import ChoiceSweep, RangeSweep
    from hydra.errors import HydraException

    sweep = parsed.value()
    assert isinstance(sweep, ChoiceSweep | RangeSweep)
    shuffled, sweep.shuffle = sweep.shuffle, False  # Hydra would draw from the global generator
    try:
        yield from parsed.sweep_iterator()
    except (HydraException, ValueError) as error:
        raise ConfigError("is not a range", where=override, hint="the step cannot be 0") from error
    finally:
        sweep.shuffle = shuffled


def _matches(key: str, override: str, glob: Glob, roots: Sequence[presets.Root]) -> list[str]:
    if key not in presets.groups(roots):
        hint = f"one of: {', '.join(schema.GROUPS)}"
        raise ConfigError(f"glob() is for a group, {key} is a key", where=override, hint=hint)
    options = presets.options(roots, key)
    found = glob.filter(options)
    if not found:
        raise ConfigError(f"matches no {key}", where=override, hint=f"there are: {', '.join(options)}")
    return list(found)


def _interval(key: str, override: str, found: IntervalSweep, hints: set[type], *, grouped: bool) -> Axis:
    low, high = found.start, found.end
    integer = isinstance(low, int) and isinstance(high, int)
    if grouped or (hints and not hints & {int, float}):
        raise ConfigError(f"{key} is not a number", where=override, hint=f"give choices: {key}=A,B")
    if unknown := found.tags - {"log"}:
        raise ConfigError(f"there is no tag {sorted(unknown)[0]!r}", where=override, hint="the one tag is log")
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        raise ConfigError("an interval needs two finite ends", where=override, hint="such as interval(0,1)")
    if low > high:
        hint = f"interval({spell(high, whole=True)},{spell(low, whole=True)})"
        raise ConfigError("the ends are swapped", where=override, hint=hint)
    if low == high:
        value = spell(low, whole=True)
        raise ConfigError("both ends are the same", where=override, hint=f"{key}={value} sets one value")
    log = "log" in found.tags
    if log and low <= 0:
        message = f"{spell(low, whole=True)} has no logarithm"
        raise ConfigError(message, where=override, hint="begin above 0, or leave the tag out")
    if not integer and int in hints and float not in hints:
        if not (float(low).is_integer() and float(high).is_integer()):
            raise ConfigError(f"{key} takes whole numbers", where=override, hint="give whole ends")
        integer = True
    return Axis(key, low=int(low) if integer else low, high=int(high) if integer else high, log=log, integer=integer)


def _hints(key: str) -> set[type]:
    """The types that a key takes, None apart; of one that several components have, all of theirs."""
    places: list[tuple[str, type]] = [("", Config), *((f"{cls.group_name}.", cls) for cls in schema.components())]
    wanted = schema.declared(key)
    hints = [hint for prefix, cls in places for dotted, _, hint in schema.walk(cls) if f"{prefix}{dotted}" == wanted]
    return {member for hint in hints for member in (get_args(hint) or (hint,)) if member is not type(None)}


def _is_real(hints: set[type]) -> bool:
    return hints == {float}


def _pieces(text: str) -> list[str]:
    """Text that Hydra cannot read, cut at the commas outside of brackets and quotes: "train[:50%],train[:90%]"."""
    inner = match[1] if (match := re.fullmatch(r"choice\((.*)\)", text)) else text
    pieces = re.findall(r"""(?:\[[^\]]*\]|\([^)]*\)|"(?:\\.|[^"])*"|'(?:\\.|[^'])*'|[^,])+""", inner)
    return [piece.strip() for piece in pieces]


def _as_typed(parsed: Override, key: str, text: str) -> Override:
    """The override of a text key, with those choices in quotes that Hydra would take for numbers and rewrite."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    if not parsed.is_sweep_override():
        return OverridesParser.create().parse_override(suggestions.quoted(f"{key}={text}"))
    if not parsed.is_choice_sweep() or re.match(r"\w+\(", text) and not text.startswith("choice("):
        return parsed
    texts = ",".join(_quoted_piece(key, piece) for piece in _pieces(text))
    return OverridesParser.create().parse_override(f"{key}=choice({texts})" if "(" in text[:7] else f"{key}={texts}")


def _quoted_piece(key: str, piece: str) -> str:
    return suggestions.quoted(f"{key}={piece}").partition("=")[2]

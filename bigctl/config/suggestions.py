"""Names on the command line, before Hydra sees them: other spellings, quotes, and an answer to every typo."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import shlex
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from bigctl.config import presets, schema
from bigctl.config.schema import Config
from bigctl.errors import ConfigError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


def spelling(override: str) -> str:
    """Accept `+experiment=x` for `experiment=x`: Hydra users write it so. And `experiment=null` for none."""
    if re.fullmatch(r"\+{0,2}experiment=null", override):
        return "~experiment"
    match = re.match(r"\+{1,2}(\w+)=", override)
    if match and match[1] in schema.GROUPS:
        return override.lstrip("+")
    plain = override.lstrip("+")
    named = any(plain.startswith((f"{above}.", f"{above}=")) for above in schema.named_keys())
    return f"++{quoted(plain)}" if named else quoted(override)  # a name may be there already, or be new


def quoted(override: str) -> str:
    """Quote what is text by its key: what Hydra cannot read, as `data.train=train[:90%]` or a path with spaces or
    umlauts, and what it would write otherwise than it was typed, as the folder `1.10` or the column `2024_01`."""
    key, _, value = override.partition("=")
    key, written = schema.declared(key), key
    if value[:1] == "[" and key in text_keys(many=True):
        return f"{written}={_quoted_lists(value)}"
    if value[:1] in ("", '"', "'") or key not in text_keys(choices=True):
        return override
    parsed = _read(override)
    if key in text_keys():
        as_typed = parsed is not None and (parsed.is_sweep_override() or not _is_rewritten(parsed.value(), value))
    else:
        as_typed = parsed is not None  # one of a few words, of which a mark alone may be one
    return override if as_typed else f"{written}={in_quotes(value)}"


def in_quotes(text: str) -> str:
    escaped = text.replace('"', '\\"')
    return f'"{escaped}"'


def listed(key: str, text: str) -> str:
    """`key=[text]` as a shell and `quoted` take it, for a note that says what to type."""
    if re.fullmatch(r"[\w.-]+", text):
        return f"{key}=[{text}]"
    return shlex.quote(f"{key}=[{in_quotes(text)}]")


def _read(override: str) -> Override | None:
    """An override as Hydra reads it, None where it cannot."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:
        return None


def _is_rewritten(value: object, text: str) -> bool:
    """Whether a number or truth value would become another text than the one it was read from."""
    return isinstance(value, int | float) and str(value) != text


def _quoted_lists(value: str) -> str:
    """A list of texts, or several of them with commas between, each with its elements in quotes where needed."""
    several = re.findall(r"\[[^\[\]]*\]", value)
    return ",".join(map(_quoted_list, several)) if ",".join(several) == value else _quoted_list(value)


def _quoted_list(value: str) -> str:
    """A list of texts, with those elements in quotes that Hydra cannot read, or that look like numbers and would be
    rewritten."""
    whole = _read(f"key={value}")
    if whole is not None:
        found = whole.value()
        pieces = [piece.strip() for piece in value[1:-1].split(",")]
        if not isinstance(found, list) or len(found) != len(pieces):  # commas inside of quotes or lists
            return value
        each = (in_quotes(p) if _is_rewritten(v, p) else p for v, p in zip(found, pieces, strict=True))
        return f"[{','.join(each)}]"
    pieces = re.findall(r"""(?:"(?:\\.|[^"])*"|'(?:\\.|[^'])*'|[^,])+""", value[1:-1])
    uneven = any(piece.count("[") != piece.count("]") for piece in pieces)
    if value[-1:] != "]" or uneven or ",".join(pieces) != value[1:-1]:
        return value
    return f"[{','.join(map(_quoted_element, map(str.strip, pieces)))}]"


def _quoted_element(text: str) -> str:
    if text[:1] in ("", '"', "'", "["):
        return text
    parsed = _read(f"key={text}")
    return in_quotes(text) if parsed is None or _is_rewritten(parsed.value(), text) else text


def text_keys(*, many: bool = False, choices: bool = False) -> frozenset[str]:
    """Keys that hold free text, or with `choices` one of a few; with `many` those that hold a list of texts."""
    return _text_keys(tuple(schema.components()), many, choices)


@functools.cache
def _text_keys(among: tuple[type[schema.Component], ...], many: bool, choices: bool) -> frozenset[str]:
    wanted = (list[str], list[str] | None) if many else (str, str | None)
    found = [(f"{cls.group_name}.", schema.walk(cls)) for cls in among]
    return frozenset(
        f"{group}{dotted}"
        for group, keys in [("", schema.walk(Config)), *found]
        for dotted, field, hint in keys
        if hint in wanted and (choices or not field.metadata.get("choices"))
    )


def parse(text: str) -> Override:
    """An override as Hydra reads it. Raises ConfigError where it cannot be read."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        hint = "write key=value; quote a value with spaces, commas or brackets: 'key=\"a b\"'"
        raise ConfigError(f"cannot read {text!r}: {first_line(error)}", where="command line", hint=hint) from error


def reject_unknown(overrides: Sequence[str], roots: Sequence[presets.Root]) -> None:
    """Every kind of typo that can be seen without composing, each with its remedy."""
    groups = presets.groups(roots)
    top = [field.name for field in dataclasses.fields(Config)]
    reject_bare(overrides, roots)
    for text in overrides:
        override = parse(text)
        name = override.key_or_group
        first = name.split(".")[0].split("/")[0].split("@")[0]
        if first == "hydra":
            raise ConfigError(
                f"{text!r} configures Hydra itself", where="command line", hint="use bigctl's own flags, see --help"
            )
        if first == "sweep":
            hint = "`bigctl sweep` takes it, with the same overrides"
            raise ConfigError(f"{text!r} is of a sweep, not of one run", where="command line", hint=hint)
        if override.is_sweep_override():
            hint = "give one value a run; `bigctl sweep` tries several"
            raise ConfigError(f"{text!r} names several values", where="command line", hint=hint)
        if override.is_delete() and first in top:
            hint = f"give another value: {name}=VALUE"
            raise ConfigError("a key can be set but not removed", where=f"command line, {text}", hint=hint)
        if name in groups:
            value = str(override.value())
            options = presets.options(roots, name)
            if value not in options and not (value == "None" and name == "experiment"):
                raise ConfigError(
                    f"there is no {name} named {value!r}{did_you_mean(value, options, name + '=')}",
                    where="command line",
                    hint=f"one of: {', '.join(options)}",
                )
        elif first not in top:
            guess = did_you_mean(name, list(dict.fromkeys([*groups, *top, *all_keys()])))
            raise ConfigError(
                f"there is no key {name!r}{guess}", where="command line", hint="`bigctl show` lists the keys"
            )
        reject_inside(name)


def reject_bare(words: Sequence[str], roots: Sequence[presets.Root]) -> None:
    """Refuse a word without `=`, as `cnn_cls` for `recipe=cnn_cls`."""
    for word in words:
        if "=" in word or word.startswith("~"):
            continue
        groups = list(dict.fromkeys(["recipe", *presets.groups(roots)]))
        groups.remove("sweep")
        options = [f"{group}={option}" for group in groups for option in presets.options(roots, group)]
        meant = [text for text in options if text.partition("=")[2] == word]
        if not meant:
            close = difflib.get_close_matches(word, [text.partition("=")[2] for text in options], n=1, cutoff=0.75)
            meant = [text for text in options if text.partition("=")[2] in close]
        if not meant and (key := key_named(word)):
            meant = [f"{key}=..."]
        guess = f"; did you mean {' or '.join(meant[:2])}?" if meant else ""
        hint = "write key=value, or group=option"
        raise ConfigError(f"{word!r} sets nothing{guess}", where="command line", hint=hint)


_ELSEWHERE = {
    "learning_rate": "optimizer.lr",
    "wd": "optimizer.weight_decay",
    "bs": "train.batch_size",
    "dataset": "data",
    "task": "recipe",
    "config": "experiment",
    "optim": "optimizer",
    "scheduler": "schedule",
    "epoch": "train.epochs",
    "max_epochs": "train.epochs",
    "num_epochs": "train.epochs",
    "num_train_epochs": "train.epochs",
    "max_steps": "train.steps",
}
"""What other programs call a key."""


def key_named(word: str) -> str:
    """The group or key that a word without its group means, such as `optimizer.lr` for `lr`; empty for none."""
    word = word.replace("-", "_")
    if word in schema.GROUPS or word in _ELSEWHERE:
        return _ELSEWHERE.get(word, word)
    first = ("train", "optimizer", "data", "model")
    known = sorted(all_keys(), key=lambda key: first.index(top) if (top := key.split(".")[0]) in first else len(first))
    named = [key for key in known if key == word or key.rsplit(".", 1)[-1] == word]
    if not named:
        close = difflib.get_close_matches(word, [key.rsplit(".", 1)[-1] for key in known], n=1, cutoff=0.8)
        named = [key for key in known if key.rsplit(".", 1)[-1] in close]
    return named[0] if named else ""


def reject_inside(name: str) -> None:
    """Refuse the key of a key that has none, as of a list."""
    places = list(accumulate(schema.declared(name).split("."), "{}.{}".format))[1:-1]
    if places and (value := next(iter({*places} & {*all_keys()} - schema.named_keys()), "")):
        hint = f"{value} is one value, or a list in brackets"
        raise ConfigError(f"there is no key {name!r}", where="command line", hint=hint)


def did_you_mean(word: str, known: Sequence[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.55)
    if not close:
        tail = word.rsplit(".", 1)[-1]
        close = [k for k in known if k.rsplit(".", 1)[-1] == tail][:3]
    return f"; did you mean {' or '.join(prefix + c for c in close)}?" if close else ""


def all_keys() -> list[str]:
    """Every dotted key that some component has: what completion and suggestions choose from. Keys below names of the
    user's own are left out."""
    keys = [dotted for dotted, _, hint in schema.walk(Config) if not dataclasses.is_dataclass(hint)]
    for cls in schema.components():
        keys += [
            f"{cls.group_name}.{dotted}"
            for dotted, field, hint in schema.walk(cls)
            if not dataclasses.is_dataclass(hint)
        ]
    return sorted({key for key in keys if "*" not in key})


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__

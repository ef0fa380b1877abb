"""Hydra's and OmegaConf's errors in the user's terms."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from bigctl.config import schema, suggestions
from bigctl.errors import ConfigError


def explain(error: Exception, overrides: Sequence[str]) -> ConfigError:
    """Hydra's and OmegaConf's errors in the user's terms."""
    cause: BaseException = error
    while inner := cause.__cause__ or cause.__context__:  # the innermost that knows its key, or the last cause
        if not getattr(inner, "full_key", None) and (not cause.__cause__ or getattr(cause, "full_key", None)):
            break
        cause = inner
    full_key = str(getattr(cause, "full_key", "") or getattr(error, "full_key", "") or "")
    text = suggestions.first_line(cause)
    file = re.match(r"In '(\w[\w/]*)'", str(error))
    given = next((o for o in reversed(overrides) if full_key and o.lstrip("+~").split("=")[0] == full_key), None)
    if "not in" in text and full_key or "not in struct" in text:
        known = _siblings(full_key, cause)
        parent = full_key.rpartition(".")[0]
        guess = suggestions.did_you_mean(full_key.rsplit(".", 1)[-1], known, f"{parent}." if parent else "")
        if not guess:
            guess = _owners(full_key) or suggestions.did_you_mean(full_key, suggestions.all_keys())
        options = ", ".join(known)
        return ConfigError(
            f"there is no key {full_key!r}{guess}",
            where="command line" if given else f"{file[1]}.yaml" if file else None,
            hint=f"{parent or 'it'} has: {options}" if options else None,
        )
    if full_key in schema.GROUPS and "Missing mandatory value" in text:
        return ConfigError(
            f"no {full_key} is chosen", where="command line", hint=f"add {full_key}=NAME; see `bigctl ls {full_key}`"
        )
    place, given = "command line" if given else f"{file[1]}.yaml" if file else "", given and given.removeprefix("++")
    where = ", ".join(filter(None, [place, given or full_key])) or None
    said, doc = _plain(text), _doc_of(full_key, cause)
    example = next((value for word, value in _EXAMPLES.items() if said.endswith(word)), None)
    shown = f"write it as {full_key}={example}" if example else None
    if said == _NO_LIST and given:
        value = given.partition("=")[2]
        if re.fullmatch(r"[\w.-]+", value):
            shown = f"write {full_key}=[{f'{value},{value}' if '[height, width]' in str(doc) else value}]"
    if said.endswith("where keys belong"):
        shown = f"write {full_key}.path=... for one"
    return ConfigError(said, where=where, hint=". ".join(filter(None, [shown, doc])) or None)


def _owners(full_key: str) -> str:
    """Which components have a key that the chosen one has not."""
    group, _, name = full_key.partition(".")
    having = [
        cls for cls in schema.components() if cls.group_name == group and name in (k for k, _, _ in schema.walk(cls))
    ]
    return f"; it is a key of {group} {', '.join(schema._kind_of(cls) for cls in having)}" if having else ""


def _plain(text: str) -> str:
    """OmegaConf's sentence without its class names."""
    text = re.sub(r"Value '(.*)' of type '\w+' could not be converted to (\w+)", r"'\1' is not a valid \2", text)
    text = re.sub(
        r"Value '(.*)' of type '\w+' is incompatible with .*Union\[int, str\].*", r"'\1' is not a valid Integer", text
    )
    text = re.sub(r"Value '(.*)' is not a valid bool \(type \w+\)", r"'\1' is not true or false", text)
    text = re.sub(r"Invalid value assigned: \w+ is not a ListConfig.*", _NO_LIST, text)
    text = re.sub(
        r"Invalid type assigned: \w+ is not a subclass of \w+\. value: (.*)", r"\1 stands where keys belong", text
    )
    text = re.sub(
        r"Key (.*) \(\w+\) is incompatible with \(str\)", r"\1 is read as no text, and cannot be a name", text
    )
    return (
        text.replace("a valid Integer", "a whole number")
        .replace("a valid Float", "a number")
        .replace("a valid Boolean", "true or false")
    )


_NO_LIST = "must be a list, such as [1,2]"
_EXAMPLES = {"is not a whole number": "100", "is not a number": "0.001", "is not true or false": "true"}
"""How a value of a type is written, by the end of what is said of one that is none."""


def _siblings(full_key: str, cause: BaseException) -> list[str]:
    object_type = getattr(cause, "object_type", None)
    if object_type is not None and dataclasses.is_dataclass(object_type):
        return [field.name for field in dataclasses.fields(object_type)]
    return []


def _doc_of(full_key: str, cause: BaseException) -> str | None:
    object_type = getattr(cause, "object_type", None)
    name = full_key.rsplit(".", 1)[-1]
    if object_type is not None and dataclasses.is_dataclass(object_type):
        for field in dataclasses.fields(object_type):
            if field.name == name:
                return str(field.metadata.get("doc"))
    return None

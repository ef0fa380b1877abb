"""A saved configuration as plain values, read without trust: whoever sends a run may have written it.

What bigctl writes refers to nothing: every value stands where it belongs. So a `config.yaml` that interpolates
(`${oc.env:SECRET}`), repeats itself by anchors (a few hundred bytes unfold to billions of values), has tags, or names
code to run is not one of its own, and is refused before anything in it is looked at. Free of jax.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING, Any

from bigctl.errors import ConfigError

if TYPE_CHECKING:
    import yaml

LARGEST = 1 << 20
"""Of a configuration [bytes]; those of the packaged recipes have 4,000."""
DEEPEST = 24
"""Levels of nesting; those of the packaged recipes have 4."""
_NAMES_CODE = re.compile(r"_(target|partial|args|convert|recursive)_")
_FLOAT = re.compile(
    r"""[-+]?\d+(_\d+)*\.[\d_]*([eE][-+]?\d+)?|[-+]?\d+(_\d+)*[eE][-+]?\d+|\.\d+(_\d+)*([eE][-+]\d+)?
    |[-+]?\d+(_\d+)*(:[0-5]?\d)+\.[\d_]*|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)""",
    re.X,
)
"""Numbers such as 1e-3 too, which YAML 1.1 takes for text."""


def values(text: str, *, where: str) -> dict[str, Any]:
    """The nested mapping in a saved configuration.

    Raises:
        ConfigError: if it is no mapping in plain YAML, too large or too deep.
    """
    import yaml

    if len(text) > LARGEST:
        raise _refused(f"is larger than {LARGEST >> 20} MiB", where)
    loader = _loader()
    try:
        for problem in _problems(yaml.parse(text, Loader=loader)):
            raise _refused(problem, where)
        found = yaml.load(text, Loader=loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}" if mark is not None else ""
        raise _refused(f"cannot be read: {error.problem}{place}", where) from error
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        raise _refused(f"cannot be read: {type(error).__name__}", where) from error
    if not isinstance(found, dict):
        raise _refused("cannot be read: it is no mapping of keys", where)
    return found


def _refused(problem: str, where: str) -> ConfigError:
    return ConfigError(problem, where=where, hint="bring the file back as bigctl wrote it")


def _problems(events: Iterator[yaml.Event]) -> Iterator[str]:
    """What a file holds that bigctl never writes; the file is read as far as it is asked."""
    import yaml

    depth = 0
    for event in events:
        line = f"line {event.start_mark.line + 1 if event.start_mark else '?'}"
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            yield f"{line} has an anchor or an alias (& or *), which a saved configuration never has"
        tag = getattr(event, "tag", None)
        if tag is not None and not (isinstance(event, yaml.ScalarEvent) and tag == "!"):
            yield f"{line} has a tag ({tag[:40]!r}), which a saved configuration never has"
        if isinstance(event, yaml.ScalarEvent):
            if "${" in event.value:
                yield f"{line} refers to something else (${{...}}), which a saved configuration never does"
            if _NAMES_CODE.fullmatch(event.value):
                yield f"{line} names code to run ({event.value}), which a saved configuration never does"
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            yield f"{line} is nested more than {DEEPEST} levels deep"


def _loader() -> Any:
    """Reads as OmegaConf does: 1e-3 is a number, a date is text, a key that stands there twice is an error."""
    import yaml

    class Plain(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        yaml_implicit_resolvers = {
            first: [(tag, pattern) for tag, pattern in known if not tag.endswith((":timestamp", ":float"))]
            for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise yaml.constructor.ConstructorError(None, None, f"{twice!r} stands there twice", node.start_mark)
            found: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
            return found

    whole = re.compile(rf"(?:{_FLOAT.pattern})\Z", re.X)
    Plain.add_implicit_resolver("tag:yaml.org,2002:float", whole, list("-+0123456789."))
    return Plain

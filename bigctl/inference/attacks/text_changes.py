"""Texts as people write them too: slips, another case, and what a checklist says should change nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bigctl.errors import ConfigError

Change = Callable[[str, np.random.Generator], str]
"""A text and what draws -> the text changed, or as it was."""
SLIPS = (0.02, 0.05, 0.1)
"""Shares of the letters that slips are tried at."""
_KINDS = ("swap", "drop", "double", "other")


def usual() -> dict[str, Change]:
    """What is tried without a checklist."""
    found: dict[str, Change] = {f"slips in {share:.0%} of letters": _slips(share) for share in SLIPS}
    return found | {
        "lower case": lambda text, rng: text.lower(),
        "upper case": lambda text, rng: text.upper(),
        "no punctuation": lambda text, rng: re.sub(r"[^\w\s]", "", text),
        "spaces doubled": lambda text, rng: re.sub(r"\s", "  ", text),
    }


def _slips(share: float) -> Change:
    """Letters inside words are swapped with the next, dropped, doubled, or replaced by another of the alphabet."""

    def change(text: str, rng: np.random.Generator) -> str:
        letters = list(text)
        places = [n for n in range(1, len(text) - 1) if text[n - 1 : n + 2].isalpha()]
        count = min(len(places), max(1, round(share * len(places)))) if places else 0
        for place in rng.choice(places, count, replace=False).tolist() if count else []:
            kind = _KINDS[int(rng.integers(len(_KINDS)))]
            here = letters[place]
            if kind == "swap":
                letters[place], letters[place + 1] = letters[place + 1], here
            else:
                drawn = chr(ord("a") + int(rng.integers(26)))
                letters[place] = {"drop": "", "double": here * 2, "other": drawn}[kind]
        return "".join(letters)

    return change


def checklist(path: Path) -> dict[str, Change]:
    """What a YAML file says should change no prediction: a list of entries with a `name` and one of `replace` (words,
    each with one or several in its place), `prefix` and `suffix` (texts).

    Raises:
        ConfigError: for a file that is not there, or is no such list.
    """
    import yaml

    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        said = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise ConfigError(f"cannot be read: {said}", where=str(path), hint="give a YAML file") from error
    if not isinstance(entries, list) or not entries:
        raise ConfigError("is no list", where=str(path), hint=_HINT)
    found = dict(_entry(entry, f"{path}, entry {number}") for number, entry in enumerate(entries, 1))
    if len(found) < len(entries):
        raise ConfigError("has a name twice", where=str(path), hint="name each entry differently")
    return found


_HINT = "entries such as {name: names, replace: {Alice: [Mary, Ahmed]}}, or with prefix or suffix: [text, ...]"


def _entry(entry: object, where: str) -> tuple[str, Change]:
    entry = entry if isinstance(entry, dict) else {}
    kinds = [kind for kind in ("replace", "prefix", "suffix") if kind in entry]
    if len(kinds) != 1 or not isinstance(entry.get("name"), str) or set(entry) - {"name", kinds[0]}:
        raise ConfigError("is no invariance", where=where, hint=_HINT)
    given = entry[kinds[0]]
    if kinds[0] == "replace":
        if not isinstance(given, dict) or not given:
            raise ConfigError("`replace` is no mapping of words", where=where, hint=_HINT)
        return entry["name"], _replacing({str(word): _texts(others, where) for word, others in given.items()})
    choices = _texts(given, where)
    if kinds[0] == "prefix":
        return entry["name"], lambda text, rng: f"{choices[int(rng.integers(len(choices)))]} {text}"
    return entry["name"], lambda text, rng: f"{text} {choices[int(rng.integers(len(choices)))]}"


def _texts(given: object, where: str) -> list[str]:
    found = [given] if isinstance(given, str) else given
    if not isinstance(found, list) or not found or not all(isinstance(each, str) for each in found):
        raise ConfigError(f"{given!r} is no text, nor a list of texts", where=where, hint=_HINT)
    return found


def _replacing(words: dict[str, list[str]]) -> Change:
    """Whole words, of either case; the first letter is a capital where it was one."""
    known = {word.lower(): others for word, others in words.items()}
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, sorted(known, key=len, reverse=True)))})\b", re.IGNORECASE)

    def change(text: str, rng: np.random.Generator) -> str:
        def other(match: re.Match[str]) -> str:
            choices = known[match[0].lower()]
            chosen = choices[int(rng.integers(len(choices)))]
            return chosen[:1].upper() + chosen[1:] if match[0][:1].isupper() else chosen

        return pattern.sub(other, text)

    return change

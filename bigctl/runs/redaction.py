"""Keys, tokens and passwords cut out of texts that are kept with a run, and folders out of those that are given away.
Free of jax."""

from __future__ import annotations

import re

CUT = "<secret cut out>"

_NAME = r"(?:passw(?:or)?d|passphrase|secret|(?:api|access|private|secret)[_-]?key|token|credential)s?"
_BEGIN = r"^[-+ ]?[ \t]*(?:export[ \t]+)?"
_PATTERNS = [
    re.compile(pattern)
    for pattern in (
        # a name that says so, and a value in quotes; one without, as in .env files and YAML
        rf"""(?i){_NAME}["']?[ \t]*(?::[ \t]*str[ \t]*=|[:=])[ \t]*(["'])(?P<secret>[^"'\n]{{6,}})\1""",
        rf"(?im){_BEGIN}[\w.-]{{0,40}}{_NAME}(?:=|:[ \t]+)(?P<secret>[^\s\"'(){{}}\[\],]{{6,}})[ \t]*$",
        # a password within an address
        r"(?i)\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@\"']{0,100}:(?P<secret>[^\s/@\"']{1,200})@",
        r"(?i)\bauthorization[\"']?[ \t]*[:=][ \t]*[\"']?(?:bearer|basic|token)[ \t]+(?P<secret>[^\s\"']{6,})",
        # what services give out, by its beginning
        r"\b(?P<secret>(?:AKIA|ASIA)[0-9A-Z]{16})\b",
        r"\b(?P<secret>(?:gh[pousr]_|github_pat_)\w{20,255})",
        r"\b(?P<secret>glpat-[\w-]{20,64})",
        r"\b(?P<secret>(?:hf|npm|pypi)[_-][A-Za-z0-9_-]{30,250})",
        r"\b(?P<secret>sk-[\w-]{20,250})",
        r"\b(?P<secret>xox[abeoprs]-[\w-]{10,250})",
        r"\b(?P<secret>AIza[\w-]{35})",
        r"\b(?P<secret>eyJ[\w-]{10,2000}\.[\w-]{10,4000}\.[\w-]{10,1000})",
        r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----(?P<secret>[^-]*(?:-(?!----END)[^-]*)*)",
    )
]


def without_secrets(text: str) -> str:
    """A text with `CUT` in place of whatever looks like a secret; the names of secrets stay."""
    for pattern in _PATTERNS:
        text = pattern.sub(_cut, text)
    return text


_FOLDERS = re.compile(r"""(?<![\w:/.~%}])~?(?:/[^\s,'"\[\]{}()/]+)+/(?P<name>[^\s,'"\[\]{}()/]+)/?""")
"""Absolute paths of two parts or more; of an address what follows its scheme is none."""


def without_folders(text: str) -> str:
    """A text with the name alone of whatever file or folder stands there by its absolute path: who reads it elsewhere
    has no use for where it lay, and need not know."""
    return _FOLDERS.sub(lambda found: found["name"], text)


def _cut(found: re.Match[str]) -> str:
    start, end = (place - found.start() for place in found.span("secret"))
    return found[0][:start] + CUT + found[0][end:]

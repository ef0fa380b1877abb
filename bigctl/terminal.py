"""What is printed: one place that no control character of anybody else's gets past.

File names, labels, contents of files, presets and messages of libraries may hold escape sequences, which a terminal
obeys. While a command runs, standard output and standard error show such characters as `\\x1b` instead of sending them.
What draws on purpose, a progress bar or a picture, writes to the stream beneath: `unescaped`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TextIO, cast

from bigctl.formatting import columns

if TYPE_CHECKING:
    from rich.live import Live

_BOUND = "\x00"
"""A blank at which no line is broken."""

_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but newline and tab, what turns the direction of a text around, and halves of characters, as which
Python has the bytes of a file name that are not UTF-8."""


def escaped(text: str) -> str:
    """Text that a terminal can only show; newlines and tabs stay."""
    return _UNSAFE.sub(_shown, text)


def one_line(text: str) -> str:
    """The same in one line."""
    return escaped(text).replace("\n", "\\n").replace("\t", "\\t")


def json_escaped(text: str) -> str:
    """JSON that a terminal can only show, and that means the same: such characters stand inside of strings only."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _shown(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def wrapped(text: str, stream: TextIO, indent: int = 0) -> str:
    """A line as a stream shows it: on a terminal that it does not fit it goes on in the next one, between two words.

    What stands between backticks is to be typed, and stays in one piece.

    Args:
        text: one line.
        stream: where it goes.
        indent: columns before what goes on, where they leave room for it; 0 for two more than the line has.
    """
    if "\n" in text or not stream.isatty():
        return text
    room = max(20, _width(stream))
    lead = len(text) - len(text.lstrip(" "))
    if lead > room // 4:
        text, lead = f"  {text.lstrip(' ')}", 2 - 2 * bool(indent)
    after = " " * (indent if 0 < indent <= room // 4 else lead + 2)
    whole = re.sub("`[^`]*`", lambda found: found[0].replace(" ", _BOUND), text)
    first, *words = whole.split(" ")
    lines = [first]
    for word in words:
        if lines[-1].strip() and columns(lines[-1]) + 1 + columns(word) > room:
            fits = columns(word) <= room < columns(after + word)  # without the indent alone
            lines.append(word if fits else after + word)
        else:
            lines[-1] += f" {word}"
    return "\n".join(line.rstrip() for line in lines).replace(_BOUND, " ")


def _width(stream: TextIO) -> int:
    """Columns of the terminal that a stream goes to, which need not be that of standard output."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        if not os.environ.get("COLUMNS"):
            return os.get_terminal_size(stream.fileno()).columns
    return shutil.get_terminal_size((120, 24)).columns


def is_live() -> bool:
    """Whether standard error is a terminal that can draw a line anew."""
    return sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def tell(line: str, live: Live | None = None) -> bool:
    """Print a line on standard error, above what is drawn there; False where nobody reads it any more, as after
    `2>&1 | head`, which is no reason to stop what is told of."""
    try:
        if live is None:
            print(wrapped(escaped(line), sys.stderr), file=sys.stderr, flush=True)
        else:
            live.console.print(escaped(line), markup=False, highlight=False)
    except OSError:
        return False
    return True


class EscapedStream:
    """A text stream before another one, to which it passes everything on, escaped.

    Errors of writing have the stream's name as their `filename`.
    """

    def __init__(self, beneath: TextIO, name: str):
        self.beneath, self._name = beneath, name

    def write(self, text: str) -> int:
        with self._named():
            self.beneath.write(escaped(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with self._named():
            self.beneath.flush()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not isinstance(error, BrokenPipeError):
                error.filename = self._name
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self.beneath, name)


NAMES = {"stdout": "standard output", "stderr": "standard error"}


@contextlib.contextmanager
def escaped_streams() -> Iterator[None]:
    """Standard output and standard error as described above, and able to write any character: one that their encoding
    lacks is shown by its number. A stream that was closed (`2>&-`) is /dev/null."""
    before = {name: getattr(sys, name) for name in NAMES}
    policies = {}
    for name, stream in before.items():
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for the life of the process
        elif hasattr(stream, "reconfigure"):
            policies[name] = stream.errors
            ascii_by_locale = _is_ascii(stream) and not os.environ.get("PYTHONIOENCODING")
            stream.reconfigure(errors="backslashreplace", **({"encoding": "utf-8"} if ascii_by_locale else {}))
    try:
        for name in NAMES:
            escape(name)
        yield
    finally:
        for name, stream in before.items():
            if stream is not None:
                setattr(sys, name, stream)
                if name in policies:
                    with contextlib.suppress(OSError, ValueError):
                        stream.reconfigure(errors=policies[name])


def escape(name: str) -> None:
    """Put an `EscapedStream` before "stdout" or "stderr", where there is none."""
    stream = getattr(sys, name)
    if not isinstance(stream, EscapedStream):
        setattr(sys, name, EscapedStream(stream, NAMES[name]))


def unescaped(stream: TextIO) -> TextIO:
    """The stream beneath, for what is to reach a terminal, or a file, as it is."""
    return stream.beneath if isinstance(stream, EscapedStream) else stream


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Standard error as it is, for the progress bars of a library that prints nothing else."""
    stream = sys.stderr
    sys.stderr = unescaped(stream)
    try:
        yield
    finally:
        sys.stderr = stream


def writes_unicode(stream: TextIO) -> bool:
    return str(getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "").startswith("utf")


def _is_ascii(stream: TextIO) -> bool:
    return str(stream.encoding).lower() in ("ascii", "us-ascii", "ansi_x3.4-1968")


def discard_output() -> None:
    """What is still to be written to standard output goes nowhere: the end of the process does not fail on it."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), cast(TextIO, sys.stdout).fileno())

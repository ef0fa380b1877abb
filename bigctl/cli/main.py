"""Dispatch to the commands, exit codes, and the one place that renders errors."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from bigctl import cli, imports, terminal
from bigctl.cli.commands import COMMANDS, KEEP_MEMORY, load_command

_LONG = 60.0
"""A process that has run for longer when this is imported was not started for a command [s]."""


def _started() -> float:
    """When this process was started, by `time.monotonic` [s]; where that is not told, or long ago, about now."""
    now = time.monotonic()
    try:
        with open("/proc/self/stat", encoding="ascii", errors="replace") as stream:
            ticks = int(stream.read().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):  # not Linux
        return now
    return now - age if 0 <= age < _LONG else now


STARTED = _started()
"""When the process was started [s]."""
MULTIRUN = {"-m", "--multirun"}
"""Hydra's own words for a sweep: `bigctl train -m ...` is `bigctl sweep ...`."""

EPILOG = """\
examples:
  bigctl train recipe=cnn_cls                      train on 5,000 handwritten digits
  bigctl train recipe=cnn_cls optimizer.lr=3e-4    change anything with key=value
  bigctl eval runs/cnn_cls                         score the best checkpoint on the test split
  bigctl ls models                                 what model=... can be

`bigctl COMMAND --help` shows a command's flags. Shell completion: eval "$(bigctl --completion bash)"
exit codes: 0 ok, 1 failed, 2 usage or configuration, 3 some trials of a sweep failed, 4 a --require gate was missed,
  5 run in use, 6 stuck, or a process was lost (run again), 75 preempted (run again), 130 Ctrl-C, 143 second SIGTERM
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; gives its exit code. Errors become one line on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        imports.own_process()
        if not KEEP_MEMORY.isdisjoint(arguments[:1]):
            from bigctl.parallel import host_memory

            host_memory.keep_memory()  # before there is a thread
    with terminal.escaped_streams():
        try:
            code = _ended(arguments)
            sys.stdout.flush()
            return code
        except BrokenPipeError:  # nobody reads our output any more, as after `| head`
            terminal.discard_output()
            return 0
        except KeyboardInterrupt:
            print("bigctl: interrupted", file=sys.stderr)
            return 130
        except Exception as error:
            if cli.INTERRUPTS.came:
                print("bigctl: interrupted", file=sys.stderr)
                return 130
            with contextlib.suppress(OSError):  # of standard error, which then cannot be told of anything
                return _render(error)
            return 1


def _ended(arguments: list[str]) -> int:
    """The exit code of a command, also where argparse ends it, as `--help` does."""
    try:
        return _dispatch(arguments)
    except SystemExit as ending:
        if isinstance(ending.code, str):
            print(ending.code, file=sys.stderr)
        return ending.code if isinstance(ending.code, int) else int(ending.code is not None)


def _dispatch(arguments: list[str]) -> int:
    if arguments[:1] == ["--complete"]:
        from bigctl.cli import completion

        return completion.complete(arguments[1:])
    parser = argparse.ArgumentParser(
        prog="bigctl",
        description="Compose an experiment, train it with JAX, and use what comes out.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    from bigctl import __version__

    parser.add_argument("--version", action="version", version=f"bigctl {__version__}")
    parser.add_argument("--completion", choices=("bash", "zsh", "fish"), help="print the completion script of a shell")
    listing = "\n".join(f"  {name:<13} {text}" for name, text in COMMANDS.items())
    parser.usage = f"bigctl COMMAND [--help] ...\n\ncommands:\n{listing}"
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    if arguments[:1] == ["train"] and not MULTIRUN.isdisjoint(arguments):
        arguments = ["sweep", *(word for word in arguments[1:] if word not in MULTIRUN)]
    if arguments[:1] == ["help"]:  # as of git and others: `bigctl help train`
        arguments = [*arguments[1:2], "--help"]
    if arguments and arguments[0] in COMMANDS:
        return _run(arguments[0], arguments[1:])
    options = parser.parse_args(arguments)
    if options.completion:
        from bigctl.cli import completion

        print(completion.script(options.completion))
        return 0
    if options.command is None:
        from bigctl.cli import welcome

        print(welcome.text(), end="")
        return 0
    return _unknown(options.command)


def _unknown(command: str) -> int:
    close = difflib.get_close_matches(command, COMMANDS, n=2)
    if "=" in command:
        hint = f"did you mean `bigctl train {command}`?"
    elif close:
        hint = f"did you mean `bigctl {close[0]}`?"
    else:
        hint = f"one of: {', '.join(COMMANDS)}"
    print(f"bigctl: there is no command {command!r}; {hint}", file=sys.stderr)
    return 2


class _Parser(argparse.ArgumentParser):
    """Reports a wrong flag like every other error, instead of printing the whole usage first."""

    given: Sequence[str] = ()
    """The arguments that are parsed, for what is said of a wrong one."""

    def error(self, message: str) -> NoReturn:
        meant = self._meant(message)
        guess = f"; did you mean {meant}?" if meant else ""
        print(f"bigctl: {message.removeprefix('argument ')}{guess}", file=sys.stderr)
        print(f"        {self.prog} --help shows the flags", file=sys.stderr)
        sys.exit(2)

    def _meant(self, message: str) -> str:
        """What an unknown flag may stand for: another flag or, as `--lr 0.1` does, a key."""
        unknown = message.partition("unrecognized arguments: ")[2].split()
        if not unknown or not unknown[0].startswith("-"):
            return ""
        flag, equals, value = unknown[0].partition("=")
        flags = [name for action in self._actions for name in action.option_strings]
        close = difflib.get_close_matches(flag, flags, n=1, cutoff=0.8)
        if close or not any(action.dest == "overrides" for action in self._actions):
            return close[0] if close else ""
        from bigctl.config import suggestions

        if not equals:
            after = [*self.given, ""][list(self.given).index(flag) + 1] if flag in self.given else ""
            value = "" if after.startswith("-") or "=" in after else after
        key = suggestions.key_named(flag.lstrip("-"))
        return f"{key}={value or '...'}" if key else ""


def _run(command: str, arguments: list[str]) -> int:
    with imports.kept():
        module = load_command(command)
    parser = _Parser(
        prog=f"bigctl {command}",
        description=module.__doc__,
        epilog=module.EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    parser.given = arguments
    _require_readable([] if command in ("predict", "generate") else arguments)  # texts and files, written nowhere
    options = parser.parse_intermixed_args(arguments)
    options.argv, options.began = ["bigctl", command, *arguments], STARTED
    if cli.INTERRUPTED:
        cli.INTERRUPTS.listen()
    try:
        return int(module.run(options))
    except BrokenPipeError:
        raise
    except (Exception, KeyboardInterrupt) as error:
        if getattr(options, "json", False):  # --json promises one object, also for an error
            _print_ending(error, getattr(options, "run_dir", None) or getattr(options, "run", None))
        raise


def _require_readable(arguments: Sequence[str]) -> None:
    """Raises ConfigError where a name could not be written down: configurations and records are UTF-8. Values of keys
    are judged when they are composed, which names the key."""
    from bigctl.errors import ConfigError
    from bigctl.formatting import is_utf8

    try:
        folder = os.getcwd()
    except FileNotFoundError:
        hint = "cd to one that is there, or make it anew"
        raise ConfigError("the working folder does not exist any more", hint=hint) from None
    for text, what in (
        (folder, "the name of the working folder"),
        *((text, "an argument") for text in arguments if "=" not in text),
    ):
        if not is_utf8(text):
            raise ConfigError(f"{what} is not UTF-8", where=text, hint="rename the file or folder: convmv does it")


def _print_ending(error: BaseException, run: object) -> None:
    from bigctl.cli import render
    from bigctl.errors import BigctlError, Diverged, Preempted, RunHeld, explained

    if cli.INTERRUPTS.came or not isinstance(error, Exception):
        error = Preempted("interrupted", exit_code=130)
    known = explained(error) or BigctlError(f"{type(error).__name__}: {error}")
    named = {Preempted: "preempted", Diverged: "diverged", RunHeld: "held"}
    status = named.get(type(known), "refused" if known.exit_code == 2 else "failed")
    ending = {"status": status, "exit_code": known.exit_code, "run": run if run is None else str(run)}
    render.print_json({**ending, "message": known.message, "where": known.where, "hint": known.hint})


def _tell(line: str, *, typed: bool = False) -> None:
    """A line on standard error, wrapped but for what is to be typed."""
    print(line if typed else terminal.wrapped(line, sys.stderr, 8), file=sys.stderr)


def _render(error: Exception) -> int:
    """One line for an error that the user can correct; for an unexpected one, the traceback goes into a file."""
    from bigctl.config import plugins
    from bigctl.errors import explained

    blamed = plugins.blamed(error)
    if isinstance(error, OSError) and error.filename in terminal.NAMES.values():
        terminal.discard_output()
        print(f"bigctl: {error.filename} cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    if (known := explained(error)) is not None:
        place = f"{known.where}: " if known.where else ""
        _tell(f"bigctl: {terminal.one_line(place + known.message)}")
        if known.hint:
            _tell(f"        {terminal.one_line(known.hint)}", typed=known.hint.startswith("bigctl "))
        return known.exit_code
    import tempfile
    import traceback

    text = str(error).strip().splitlines()
    said = f"{blamed.where}: {blamed.message}" if blamed else f"{type(error).__name__}: {text[0][:300] if text else ''}"
    print(f"bigctl: {said}", file=sys.stderr)
    if os.environ.get("BIGCTL_TRACEBACK"):
        traceback.print_exc()
        return 1
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="bigctl-", suffix=".log", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as stream:
            traceback.print_exc(file=stream)
    except OSError:  # no folder for temporary files can be written
        print("        with BIGCTL_TRACEBACK=1 the traceback is shown here", file=sys.stderr)
        return 1
    print(f"        traceback in {stream.name}; with BIGCTL_TRACEBACK=1 it is shown here", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())

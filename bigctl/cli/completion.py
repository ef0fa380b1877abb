"""Shell completion: `eval "$(bigctl --completion bash)"`, and the candidates that the shells ask for.

The shell calls `bigctl --complete WORDS...`: the words behind the program's name up to the cursor, the last being the
one to complete, perhaps empty, and never split at `=`. Candidates for that whole word come back, one a line; those
that end in `=` or `.` go on and get no space. No candidates: the shell completes file names, behind a `=` if any.
"""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bigctl.cli.commands import COMMANDS, load_command
from bigctl.config import presets, schema
from bigctl.files import expanded

SCRIPTS = {
    "bash": r"""
_bigctl() {
    # bash splits words at = and :, so put the line together again, up to the cursor
    local rest=${COMP_LINE:0:COMP_POINT} words=() candidate i prefix
    for ((i = 0; i <= COMP_CWORD; i++)); do
        if ((i == 0)) || [[ $rest == [[:blank:]]* ]]; then
            rest=${rest#"${rest%%[![:blank:]]*}"}
            words+=("")
        fi
        ((i == COMP_CWORD)) && candidate=$rest || candidate=${COMP_WORDS[i]}
        words[${#words[@]} - 1]+=$candidate
        rest=${rest#"$candidate"}
    done
    prefix=${words[${#words[@]} - 1]%"$2"} # what readline takes for granted
    COMPREPLY=()
    while IFS= read -r candidate; do
        COMPREPLY+=("${candidate#"$prefix"}")
    done < <("${words[0]/#\~/$HOME}" --complete "${words[@]:1}" 2>/dev/null)
    [[ ${COMPREPLY[0]} == *[=.] ]] && compopt -o nospace 2>/dev/null
    return 0
}
complete -o default -F _bigctl bigctl
""",
    "zsh": r"""
#compdef bigctl
_bigctl() {
    local -a found=(${(f)"$(${~words[1]} --complete "${(@)words[2,CURRENT-1]}" "$PREFIX" 2>/dev/null)"})
    if (($#found)); then
        compadd -S '' -- ${(M)found:#*[=.]}
        compadd -- ${found:#*[=.]}
    else
        compset -P '*='
        _files
    fi
}
if [[ $funcstack[1] == _bigctl ]]; then
    _bigctl "$@"
else
    (($+functions[compdef])) || { autoload -Uz compinit && compinit; }
    compdef _bigctl bigctl
fi
""",
    "fish": r"""
function __bigctl_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l program (string replace -r '^~(?=/)' $HOME -- $words[1])
    set -l found ($program --complete $words[2..-1] "$current" 2>/dev/null)
    if test (count $found) -gt 0
        printf '%s\n' $found
    else
        set -l key (string match -r '^.*=' -- "$current")
        for file in (__fish_complete_path (string replace -r '^.*=' '' -- "$current"))
            echo "$key$file"
        end
    end
end
complete -c bigctl -f -a '(__bigctl_complete)'
""",
}


def script(shell: str) -> str:
    """The completion script of a shell: bash, zsh or fish."""
    return SCRIPTS[shell].strip()


def complete(words: Sequence[str]) -> int:
    """Print the candidates for the last word. Never prints an error: it would appear on the user's prompt."""
    try:
        found = candidates(words)
    except Exception:
        return 1
    print("\n".join(sorted(set(found))), end="\n" if found else "")
    return 0


def candidates(words: Sequence[str]) -> list[str]:
    """What the last word can be, given those before it."""
    *before, word = words or [""]
    if not before:
        return [
            w
            for w in (*COMMANDS, "--help", "--version", "--completion")
            if w.startswith(word) and (word or w[0] != "-")
        ]
    if before == ["--completion"]:
        return [shell for shell in SCRIPTS if shell.startswith(word)]
    if before[0] not in COMMANDS:
        return []
    parser = argparse.ArgumentParser()
    load_command(before[0]).add_arguments(parser)
    line = _Line(parser, before[1:], sweeps=before[0] == "sweep")
    flag, equals, value = word.partition("=")
    if line.pending:
        return [c for c in line.values(line.pending) if c.startswith(word)]
    if equals and flag in line.parser._option_string_actions:
        return [f"{flag}={c}" for c in line.values(line.parser._option_string_actions[flag]) if c.startswith(value)]
    if word.startswith("-"):
        return [name for name in line.parser._option_string_actions if name.startswith("--") and name.startswith(word)]
    return [c for c in line.values(line.positional(), word) if c.startswith(word)]


class _Line:
    """The words of a command before the cursor, sorted by the command's own parser."""

    def __init__(self, parser: argparse.ArgumentParser, words: Sequence[str], *, sweeps: bool = False):
        self.parser, self.sweeps = parser, sweeps
        self.flags: dict[str, list[str]] = {}
        self.plain: list[str] = []
        self.pending: argparse.Action | None = None
        for word in words:
            name, equals, value = word.partition("=")
            action = self.parser._option_string_actions.get(name)
            if self.pending is not None:
                self.flags.setdefault(self.pending.dest, []).append(word)
                self.pending = None
            elif action is not None and equals:
                self.flags.setdefault(action.dest, []).append(value)
            elif action is not None:
                self.pending = action if action.nargs != 0 else None
            elif isinstance(at := self.positional(), argparse._SubParsersAction) and word in at.choices:
                self.parser, self.plain = at.choices[word], []
            else:
                self.plain.append(word)

    def positional(self) -> argparse.Action | None:
        """The positional argument that the next plain word belongs to."""
        taken = len(self.plain)
        for action in self.parser._get_positional_actions():
            if taken == 0 or action.nargs in ("*", "+"):
                return action
            taken -= 1
        return None

    def values(self, action: argparse.Action | None, word: str = "") -> Iterable[str]:
        """The possible values of an argument, by its choices or its metavar; none for a file or free text."""
        if action is None:
            return []
        if action.choices:
            return [str(choice) for choice in action.choices]
        if action.metavar in ("RUN", "RUN|MODEL", "RUN|SWEEP"):
            from bigctl.runs.directory import ROOT

            sweeps = Path("sweeps").glob("*/ledger.jsonl") if "SWEEP" in action.metavar else ()
            return [path.parent.name for path in (*ROOT.glob("*/run.json"), *sweeps)]
        if action.metavar == "KIND":
            from bigctl.cli import ls

            return ls.kinds(self.roots())
        if action.metavar == "KEY":
            return keys(self.roots(), self.plain)
        if action.metavar == "PART":
            found = keys(self.roots(), self.plain)
            return [key.rsplit(".", depth)[0] for key in found for depth in range(key.count(".") + 1)]
        if action.metavar == "key=value":
            return overrides(self.roots(), self.plain, word, sweeps=self.sweeps)
        return []

    def roots(self) -> list[presets.Root]:
        return presets.roots([expanded(folder) for folder in self.flags.get("config_dir", [])])


def overrides(roots: Sequence[presets.Root], line: Sequence[str], word: str, *, sweeps: bool = False) -> Iterator[str]:
    """Candidates for `group=option` and `key=value`, a key one level at a time; for a sweep, its settings too."""
    name, equals, _ = word.partition("=")
    groups = [group for group in presets.groups(roots) if group != "sweep" or sweeps]
    known = keys(roots, line)
    if sweeps:
        known |= {key: (field, hint) for key, field, hint in schema.walk(schema.Sweep, "sweep.")}
    if equals and name in groups:
        yield from (f"{name}={option}" for option in presets.options(roots, name))
    elif equals and schema.declared(name) in known:
        yield from (f"{name}={value}" for value in _enumerated(*known[schema.declared(name)]))
    elif not equals:
        yield from (f"{group}=" for group in groups if presets.files(roots, group))
        for key in (_with_name(key, word) for key in known):
            level = key.find(".", len(word))
            yield f"{key}=" if level < 0 else key[: level + 1]


def _with_name(key: str, word: str) -> str:
    """A key below a name of the user's own with the name that the word has: data.corpora.web.path; without one the key
    above it."""
    above, _, rest = key.partition(".*.")
    name, dot, _ = word.removeprefix(f"{above}.").partition(".")
    return key if not rest else f"{above}.{name}.{rest}" if dot and word.startswith(f"{above}.") else above


def keys(roots: Sequence[presets.Root], line: Sequence[str]) -> dict[str, tuple[dataclasses.Field[Any], Any]]:
    """Every key that can be set -> its field and type; of a component that is chosen only its own."""
    chosen = _chosen(roots, line)
    found = {}
    for dotted, field, hint in schema.walk(schema.Config):
        if isinstance(hint, type) and issubclass(hint, schema.Component):
            only = presets.component(roots, dotted, chosen[dotted]) if dotted in chosen else None
            for cls in [only] if only else [c for c in schema.components() if c.group_name == dotted]:
                found.update({key: (field, hint) for key, field, hint in schema.walk(cls, f"{dotted}.")})
        elif "." not in dotted or dotted.split(".")[0] not in schema.GROUPS:
            found[dotted] = (field, hint)
    return {k: v for k, v in found.items() if not dataclasses.is_dataclass(v[1]) and not k.endswith(".kind")}


def _chosen(roots: Sequence[presets.Root], line: Sequence[str]) -> dict[str, str]:
    """Group -> option: what the line says, else its experiment, its recipe, and the root of the configuration."""
    said = dict(word.lstrip("+").split("=", 1) for word in line if "=" in word)
    chosen = presets.defaults(roots[-1].path / "config.yaml")
    experiment = _preset(roots, "experiment", said.get("experiment"))
    recipe = _preset(roots, "recipe", said.get("recipe", experiment.get("recipe")))
    return {**chosen, **recipe, **experiment, **said}


def _preset(roots: Sequence[presets.Root], group: str, option: str | None) -> dict[str, str]:
    path = presets.files(roots, group).get(option or "")
    return presets.defaults(path) if path else {}


def _enumerated(field: dataclasses.Field[Any], hint: object) -> tuple[str, ...]:
    members = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return ("true", "false") if bool in members else tuple(field.metadata.get("choices", ()))

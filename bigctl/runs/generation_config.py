"""What the weights that a language model starts from say about writing: special tokens, where texts end, how to chat.

None of it is in a tokenizer.json. A run keeps it beside its own, as `generation.json`, for the weights may be gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bigctl.errors import RunError, TrainingFailed
from bigctl.files import write_json
from bigctl.runs import untrusted
from bigctl.runs.directory import RunDirectory


@dataclass(frozen=True)
class GenerationConfig:
    """
    Attributes:
        special: numbers of the tokens "bos", "eos", "unk" and "pad", those that are known.
        ends: numbers of the tokens that end a text, "eos" and others.
        chat_template: a Jinja template that makes one text of a conversation.
    """

    special: Mapping[str, int] = field(default_factory=dict)
    ends: tuple[int, ...] = ()
    chat_template: str | None = None


def write_generation_config(run: RunDirectory, found: GenerationConfig) -> None:
    """Raises TrainingFailed if the file cannot be written."""
    values = {"special": dict(found.special), "ends": list(found.ends), "chat_template": found.chat_template}
    try:
        write_json(run.generation, {"schema": 1, **values})
    except OSError as error:
        raise TrainingFailed(f"cannot be written: {error.strerror}", where=str(run.generation)) from error


def read_generation_config(run: RunDirectory, tokenizer: Mapping[str, Any]) -> GenerationConfig:
    """What holds for a run: what it has kept, and the end token that it had between documents.

    Args:
        run: any; one that started from nothing has kept nothing.
        tokenizer: what `data.tokenization.describe` said of its tokenizer.

    Raises:
        RunError: if the file is damaged.
    """
    special = {name: tokenizer[name] for name in ("bos", "eos", "unk", "pad") if isinstance(tokenizer.get(name), int)}
    ends = (special["eos"],) if "eos" in special else ()
    if not run.generation.is_file():
        return GenerationConfig(special, ends)
    try:
        kept = untrusted.read(run.generation, {"special": {str: int}, "ends": [int], "chat_template": str})
        theirs = {str(name): int(number) for name, number in kept["special"].items()}
        template = kept["chat_template"]
        ends = tuple(dict.fromkeys([*map(int, kept["ends"]), *ends]))
        return GenerationConfig({**special, **theirs}, ends, None if template is None else str(template))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        hint = "bring it back as it was, or remove it: then there is no chat template"
        raise RunError("cannot be read", where=str(run.generation), hint=hint) from error

"""What a run draws from each corpus of a mixture, in words. Free of jax."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

MANY = 4.0
"""Epochs up to which text that is repeated teaches about as much as new text (Muennighoff et al. 2023)."""


def lines(drawn: Iterable[Mapping[str, Any]]) -> list[str]:
    """One a corpus: "web: 70% of the windows, 75,425 tokens, 1.3 epochs of it".

    Args:
        drawn: as `data.layouts.mixed.MixedWindows.drawn` gives it, or as run.json has it.
    """
    found = []
    for each in drawn:
        name, tokens, share, epochs = (each.get(key) for key in ("name", "tokens", "share", "epochs"))
        if tokens is None or share is None or epochs is None:  # in a damaged run.json
            continue
        if share:
            found.append(f"{name}: {share:.4g} of the windows, {tokens:,} tokens, {epochs:.3g} epochs of it")
        else:
            found.append(f"{name}: {tokens:,} tokens, never drawn (weight 0), only scored")
    return found


def notes(drawn: Iterable[Mapping[str, Any]]) -> list[str]:
    """Of corpora that are repeated often."""
    return [
        f"{each['name']} is repeated {each['epochs']:.3g} times: text that is seen more than {MANY:g} times teaches "
        f"less and less; give it a smaller weight or more text, or train for fewer steps"
        for each in drawn
        if each["epochs"] > MANY
    ]


def counted(names: Collection[str]) -> str:
    """How many there are; empty for one or none."""
    return f"{len(names)} corpora" if len(names) > 1 else ""


def table(facts: Mapping[str, Mapping[str, Any]], splits: Sequence[str]) -> tuple[Sequence[str], list[list[str]]]:
    """The corpora of prepared data with their sizes: header and rows.

    Args:
        facts: of each corpus by its name, see `data.mixture`.
        splits: their names.
    """
    unit = next((unit for unit in ("tokens", "bytes") if all(unit in own for own in facts.values())), "bytes")
    rows = [
        [name, str(own["source"]), *(f"{own[unit][split]:,}" if unit in own else "" for split in splits)]
        for name, own in facts.items()
    ]
    return ("corpus", "of", *(f"{split} {unit}" for split in splits)), rows

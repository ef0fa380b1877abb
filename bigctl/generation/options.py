"""How text is written: what `bigctl generate` and `TrainedRun.generate` can be told. Free of jax."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bigctl.errors import ConfigError

_COLDEST = 1e-6
"""Temperatures below are 0: the likeliest token is all that could be drawn, and logits divided by them may be too large
for float32."""


@dataclass(frozen=True)
class GenerationOptions:
    """What to write.

    Attributes:
        max_new_tokens: where a text ends if nothing else ends it.
        temperature: logits are divided by it; 0 takes the most likely token, after no rule but `repetition_penalty`.
        top_k: only so many of the most likely tokens; 0 for all.
        top_p: only the fewest of the most likely tokens that together have this probability (Holtzman et al. 2020).
        min_p: only tokens at least this times as likely as the most likely one (Nguyen et al. 2025).
        repetition_penalty: how much less likely a token is that has been in the text (Keskar et al. 2019); 1 for not.
        stop: strings that end a text; they are not part of it.
        seed: what sample number n of a prompt is depends on this and n, not on what else is written.
        num_samples: texts for each prompt.
        truncate: use the end of a prompt that is longer than the context, instead of refusing it.
        chat: each prompt is a message, to be put into the model's chat template.

    Raises:
        ConfigError: for a value out of its range.
    """

    max_new_tokens: int = 200
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    num_samples: int = 1
    truncate: bool = False
    chat: bool = False

    def __post_init__(self) -> None:
        self._require("max_new_tokens", self.max_new_tokens >= 1, "1 or more")
        self._require("temperature", 0 <= self.temperature < math.inf, "0 for the most likely token, or more")
        self._require("top_k", self.top_k >= 0, "the number of tokens, or 0 for all of them")
        self._require("top_p", 0 < self.top_p <= 1, "more than 0, and at most 1, which is all tokens")
        self._require("min_p", 0 <= self.min_p <= 1, "from 0, which is all tokens, to 1")
        self._require("repetition_penalty", 1e-6 <= self.repetition_penalty <= 1e6, "1 for none, or more")
        self._require("stop", not isinstance(self.stop, str) and all(self.stop), "texts, none of them empty")
        self._require("seed", 0 <= self.seed < 2**32, "0 to 4294967295")
        self._require("num_samples", self.num_samples >= 1, "1 or more")

    def _require(self, name: str, right: bool, wanted: str) -> None:
        if not right:
            raise ConfigError(f"{getattr(self, name)!r} is out of range", where=name, hint=f"give {wanted}")

    @property
    def rules(self) -> tuple[str, ...]:
        """The rules of sampling in use, by the names of their numbers, in the order in which they are applied."""
        drawn = self.temperature >= _COLDEST
        used = {
            "repetition_penalty": self.repetition_penalty != 1,
            "temperature": drawn,
            "top_k": drawn and self.top_k > 0,
            "top_p": drawn and self.top_p < 1,
            "min_p": drawn and self.min_p > 0,
        }
        return tuple(name for name, use in used.items() if use)

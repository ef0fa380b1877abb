"""What a language model writes as it learns: a sample now and then, on the console and in `samples.jsonl`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

from bigctl.data import cache, openings
from bigctl.data.dataset import Dataset
from bigctl.data.text import tokenization
from bigctl.engine.experiment import Experiment
from bigctl.errors import ConfigError
from bigctl.parallel import mesh as meshes
from bigctl.terminal import escaped
from bigctl.training.state import TrainState
from bigctl.training.tracking.writers import JsonLines

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from bigctl.generation.generate import LanguageModel
    from bigctl.generation.options import GenerationOptions
    from bigctl.generation.slot_programs import Network

_PROMPT = 16
"""Characters of the validation text that samples begin with, where no prompt is given; up to the end of a word."""


class Samples:
    """One sample each time it is called.

    Args:
        experiment: of a recipe for one long text.
        file: where samples are kept, one JSON object a line.
        say: shows a text to people.
        resumed: the step that this process began at.
        leads: whether this process writes; others only help it to the weights.

    Raises:
        ConfigError: if the prompt cannot be encoded.
    """

    def __init__(
        self, experiment: Experiment, file: Path, say: Callable[[str], None], *, resumed: int, leads: bool = True
    ):
        self.experiment, self.say = experiment, say
        self.seed = experiment.config.seed
        self.tokenizer = tokenization.load_tokenizer(Path(experiment.dataset.path) / cache.TOKENIZER, stream=True)
        self.prompt = experiment.task.prompt or opening(experiment.dataset, self.tokenizer)
        self._check()
        self._lines = JsonLines(file, step=resumed) if leads else None

    def __call__(self, state: TrainState, step: int) -> None:
        """Write a sample with the weights of a state; the same weights and seed give the same text."""
        model = self._language_model(state)
        if self._lines is None:
            return
        written = model.generate([self.prompt], self._settings())[0].text
        self._lines.write(step, {"prompt": self.prompt, "text": written})
        self._lines.flush()
        shown = "\n".join(f"  {line}" for line in escaped(f"{self.prompt}{written}").strip().split("\n"))
        self.say(f"sample at step {step:,}:\n{shown}")

    def cut(self, step: int) -> None:
        """Take back the samples that came after a step."""
        if self._lines is not None:
            self._lines.cut(step)

    def close(self) -> None:
        if self._lines is not None:
            self._lines.close()

    def _language_model(self, state: TrainState) -> LanguageModel:
        from bigctl.generation.generate import LanguageModel

        programs = self.experiment.programs
        weights, variables = programs.evaluation_weights(state), state.variables
        if programs.mesh.size > 1:  # a text is written on one device
            weights, variables = meshes.on_host((weights, variables))
        model = programs.merge(programs.step.stored(weights), variables)
        end = tokenization.end(self.tokenizer)
        return LanguageModel(cast("Network", model), self.tokenizer, end=() if end is None else (end,))

    def _settings(self) -> GenerationOptions:
        from bigctl.generation.options import GenerationOptions

        tokens = self.experiment.task.sample_tokens
        return GenerationOptions(max_new_tokens=tokens, seed=self.seed, truncate=True)

    def _check(self) -> None:
        """Whatever is wrong with the prompt is found before the training, not at the first sample."""
        unknown = tokenization.special(self.tokenizer).get("unk")
        try:
            known = self.tokenizer.encode(self.prompt, add_special_tokens=False).ids
        except Exception:  # of a tokenizer without a token for what it does not know
            known = []
        if not known or unknown in known:
            raise ConfigError(
                f"{self.prompt!r} has characters that the tokenizer does not know",
                where="recipe.prompt",
                hint="begin with other words; or null for the first known ones of the validation text",
            )


def opening(dataset: Dataset, tokenizer: Tokenizer) -> str:
    """The first words of the validation text that the tokenizer knows: the text may have characters that it does not,
    where those of the training text are all it was made of."""
    head = openings.head(dataset, "validation", 1000)
    encoding, unknown = tokenizer.encode(head, add_special_tokens=False), tokenization.special(tokenizer).get("unk")
    gaps = [span for token, span in zip(encoding.ids, encoding.offsets, strict=True) if token == unknown]
    begins, ends = [0, *(end for _, end in gaps)], [*(begin for begin, _ in gaps), len(head)]
    known = [head[begin:end].strip() for begin, end in zip(begins, ends, strict=True)]
    words = next((part for part in known if len(part) >= _PROMPT), max(known, key=len))[:_PROMPT]
    return (words.rsplit(" ", 1)[0] if " " in words else words) or "\n"


def make_sampler(
    experiment: Experiment, file: Path, say: Callable[[str], None], *, resumed: int, leads: bool = True
) -> Samples | None:
    """The samples of an experiment; None where it writes no text, or none are wanted."""
    if not experiment.task.sample_tokens:
        return None
    return Samples(experiment, file, say, resumed=resumed, leads=leads)

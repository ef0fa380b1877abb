"""The language model of a run: its network, its tokenizer, and how it ends and begins a text."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bigctl.data.dataset import Features
from bigctl.data.text.ngrams import Ngrams
from bigctl.errors import RunError
from bigctl.generation.generate import LanguageModel
from bigctl.generation.slot_programs import Network
from bigctl.inference.text_batches import run_tokenizer
from bigctl.runs.directory import RunDirectory
from bigctl.runs.generation_config import GenerationConfig, read_generation_config

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def require_language_model(run: RunDirectory, record: dict[str, Any]) -> None:
    """Raises RunError if a run has not started, or is one of another kind."""
    if "data" not in record:
        raise RunError("the run has not started training", where=str(run.path))
    kind = record["data"]["features"]["kind"]
    if kind != "stream":
        raise RunError(
            f"the run was trained on {kind}s and writes no text",
            where=str(run.path),
            hint="train a language model: bigctl train recipe=gpt_lm",
        )


def run_language_model(
    run: RunDirectory, features: Features, network: Callable[[], Network], step: int
) -> LanguageModel:
    """The language model of a run, with the chat template of the weights that it started from.

    It reads a prompt as it read its training text: nothing is put before it, also where the weights that the run
    started from had a token for the beginning of a text; a chat template may have one. A text ends with the end token
    of the training's documents, or with one of those weights'.

    Args:
        run: the run directory.
        features: what its data looked like.
        network: gives the trained network.
        step: of the checkpoint that it is from.

    Raises:
        RunError: if the run is of another kind, or its tokenizer is not there any more.
    """
    require_language_model(run, run.record())
    return language_model(run, features, network(), step)


def language_model(folder: RunDirectory, features: Features, network: Network, step: int) -> LanguageModel:
    """The same of a folder that holds a run's `tokenizer.json` and `generation.json`. Raises RunError without the
    first."""
    tokenizer = run_tokenizer(folder, features)
    assert not isinstance(tokenizer, Ngrams)  # which are no text
    found = read_generation_config(folder, features.tokenizer or {})
    return LanguageModel(
        network,
        tokenizer,
        end=found.ends,
        template=found.chat_template,
        template_tokens=template_tokens(tokenizer, found),
        name=str(folder.path),
        step=step,
    )


def template_tokens(tokenizer: Tokenizer, found: GenerationConfig) -> dict[str, str]:
    """Special tokens by the names that chat templates have for them."""
    names = {f"{kind}_token": tokenizer.id_to_token(number) for kind, number in found.special.items()}
    return {name: token for name, token in names.items() if token is not None}

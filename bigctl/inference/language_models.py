"""Which language model a name means: a run, or pretrained weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigctl.data.text import tokenization
from bigctl.errors import DataError, RunError
from bigctl.generation.generate import LanguageModel
from bigctl.runs import directory, generation_config

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from bigctl.inference.trained import TrainedRun
    from bigctl.interop.sources import Source

_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>")
"""What the end of an answer is called, beside the names of the end of a document in `tokenization.END`."""


def load_language_model(name: str, *, step: str | int = "best") -> LanguageModel:
    """The language model of a run, else that of pretrained weights.

    Args:
        name: a run directory or a name under runs/, or what `model.init_from` takes.
        step: checkpoint of a run: "best", "last" or a number.

    Raises:
        RunError: if the run is of another kind, or has no such checkpoint.
        DataError: if there is no such thing, or it cannot be read.
    """
    if any((path / "run.json").is_file() for path in (Path(name), directory.ROOT / name)):
        run = directory.locate(name)
        require_language_model(run, run.record())
        from bigctl.inference.trained import TrainedRun

        return TrainedRun.load(str(run.path), step=step).language_model
    from bigctl.interop import sources

    try:
        return pretrained_language_model(sources.locate_source(name))
    except DataError as error:
        if error.where is not None and error.where.startswith("model.init_from"):
            error.where = name
        raise


def require_language_model(run: directory.RunDirectory, record: dict[str, Any]) -> None:
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


def run_language_model(trained: TrainedRun) -> LanguageModel:
    """The model of a run, with the chat template of the weights that it started from.

    It reads a prompt as it read its training text: nothing is put before it, also where the weights that the run
    started from had a token for the beginning of a text; a chat template may have one. A text ends with the end token
    of the training's documents, or with one of those weights'.

    Raises:
        RunError: if the run is of another kind, or its tokenizer is not there any more.
    """
    from bigctl.inference.text_batches import run_tokenizer

    require_language_model(trained.run, trained.run.record())
    tokenizer = run_tokenizer(trained.run, trained.features)
    found = generation_config.read_generation_config(trained.run, trained.features.tokenizer or {})
    return LanguageModel(
        trained.model,
        tokenizer,
        end=found.ends,
        template=found.chat_template,
        template_tokens=_names(tokenizer, found),
        name=str(trained.run.path),
        step=trained.step,
    )


# --------------------------------------------------------------------------------------------------- pretrained weights


def pretrained_language_model(source: Source) -> LanguageModel:
    """Raises DataError if the weights are of no language model, or have no tokenizer."""
    from bigctl.config import schema
    from bigctl.engine import compile_cache
    from bigctl.interop import sources

    kinds: dict[str, type[schema.Model]] = {"gpt": schema.Gpt, "llama": schema.Llama}
    if source.model not in kinds:
        raise DataError(
            f"holds weights of model={source.model}, which writes no text",
            where=source.name,
            hint="use a GPT or a Llama",
        )
    if source.tokenizer is None:
        file = f"tok{source.architecture['vocab']}.bin" if source.format == "llama2c" else "tokenizer.json"
        raise DataError("has no tokenizer", where=source.name, hint=f"put its {file} into the folder")
    compile_cache.use_compile_cache()
    tokenizer = tokenization.read(source.tokenizer, stream=True)
    config = sources.fill_architecture(kinds[source.model](init_from=source.name), source)
    model = _with_weights(config, source, max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1)
    return LanguageModel(
        model,
        tokenizer,
        end=source.generation_config.ends or _ends(tokenizer),
        start=_start(tokenizer),
        template=source.generation_config.chat_template,
        template_tokens=_names(tokenizer, source.generation_config),
        name=source.name,
    )


def _with_weights(config: Any, source: Source, vocab_size: int) -> Any:
    """The model, of which nothing is initialised that the weights have."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from bigctl.interop import loading
    from bigctl.parallel import partition

    shapes = nnx.eval_shape(lambda: config.build(vocab_size, rngs=nnx.Rngs(0)))
    graphdef, params, rest = nnx.split(shapes, nnx.Param, ...)  # type: ignore[misc]
    params = nnx.to_pure_dict(params)
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    values, missing, _ = loading.load_weights(source, {partition.path_name(path): leaf.shape for path, leaf in leaves})
    if missing:
        raise DataError(
            f"has no weights for {missing[0]}", where=source.name, hint="use weights of a whole language model"
        )
    filled = jax.tree_util.tree_map_with_path(lambda path, _: jnp.asarray(values[partition.path_name(path)]), params)
    rest = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), rest
    )  # dropout rates, which only training reads
    return nnx.merge(graphdef, filled, rest)


def _names(tokenizer: Tokenizer, found: generation_config.GenerationConfig) -> dict[str, str]:
    """Special tokens by the names that chat templates have for them."""
    names = {f"{kind}_token": tokenizer.id_to_token(number) for kind, number in found.special.items()}
    return {name: token for name, token in names.items() if token is not None}


def _ends(tokenizer: Tokenizer) -> tuple[int, ...]:
    """End tokens by what they are called, for weights that do not say."""
    numbers = map(tokenizer.token_to_id, (*tokenization.END, *_TURN_ENDS))
    return tuple(number for number in numbers if number is not None)


def _start(tokenizer: Tokenizer) -> tuple[int, ...]:
    """What the tokenizer puts before a text."""
    encoding = tokenizer.encode("a", add_special_tokens=True)
    first = next((place for place, special in enumerate(encoding.special_tokens_mask) if not special), 0)
    return tuple(encoding.ids[:first])

"""Text is what the model says, whatever is written beside it; its pieces are whole characters; prompts are checked."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from bigctl.config import schema
from bigctl.data.text import tokenization
from bigctl.errors import DataError, RunError
from bigctl.generation import chat, slot_programs, slots
from bigctl.generation.decoding import Batch
from bigctl.generation.generate import ROWS, LanguageModel, sample_texts
from bigctl.generation.options import GenerationOptions
from bigctl.generation.text_stream import TextStream
from bigctl.models.decoder import Decoder

POEM = "床前明月光,疑是地上霜。举头望明月,低头思故乡。\n白日依山尽,黄河入海流。\nBefore my bed the moon is bright. 🌕🌖"
CONTEXT = 32


def decoder(vocab: int = 40, layers: int = 2, context: int = CONTEXT, **options: Any) -> Decoder:
    """A small model whose logits differ enough for its text not to hang on rounding."""
    config = schema.Llama(layers=layers, width=32, heads=4, kv_heads=2, intermediate=64, context=context, **options)
    graphdef, state = nnx.split(nnx.jit(lambda: Decoder(config, vocab, rngs=nnx.Rngs(0)))())
    draw = np.random.default_rng(1)
    return nnx.merge(graphdef, jax.tree.map(lambda x: x + np.float32(0.3 * draw.normal(size=x.shape)), state))


@pytest.fixture(scope="module")
def model() -> Decoder:
    return decoder()


@pytest.fixture(scope="module")
def characters() -> Tokenizer:
    return tokenization.train(schema.StreamTokenizer(type="characters"), [POEM])


@pytest.fixture(scope="module")
def poet(characters: Tokenizer) -> LanguageModel:
    return LanguageModel(decoder(characters.get_vocab_size(), layers=1), characters, name="poet")


def written(batch: Batch) -> list[list[int]]:
    new: list[list[int]] = [[] for _ in batch.tokens]
    while batch.growing:
        for row, tokens in batch.advance().items():
            new[row] += tokens
    return new


@functools.cache
def uncached(model: Decoder) -> Any:
    return jax.jit(lambda tokens: model.logits(model(tokens)))


def greedy(model: Decoder, prompt: Sequence[int], count: int) -> list[int]:
    """The rule of the context in plain words, with the whole text through the model for each token."""
    call = uncached(model)
    context, new = list(prompt), []
    for _ in range(count):
        if len(context) > CONTEXT:
            context = context[-(CONTEXT // 2) :]
        padded = np.zeros((1, CONTEXT), np.int32)
        padded[0, : len(context)] = context
        new.append(int(np.argmax(np.asarray(call(padded))[0, len(context) - 1])))
        context.append(new[-1])
    return new


# ----------------------------------------------------------------------------------------------------------- the tokens


def test_cached_text_is_the_uncached_one_beyond_the_context_too(model: Decoder) -> None:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 40, length).tolist() for length in (1, 2, 16, 17, 31, CONTEXT)]
    found = written(Batch(model, prompts, GenerationOptions(temperature=0, max_new_tokens=100)))
    assert found == [greedy(model, prompt, 100) for prompt in prompts]
    assert len({tuple(tokens) for tokens in found}) == len(prompts)


def test_learned_positions_begin_anew_with_the_context() -> None:
    model = decoder(layers=1, position="learned")
    assert written(Batch(model, [[3, 1]], GenerationOptions(temperature=0, max_new_tokens=70))) == [
        greedy(model, [3, 1], 70)
    ]


def test_sample_is_the_same_in_any_company(poet: LanguageModel) -> None:
    settings = GenerationOptions(max_new_tokens=50, temperature=1.0, seed=11, num_samples=2)
    together = poet.generate(["床前", "白日依山尽"], settings)
    assert [(g.prompt, g.sample) for g in together] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    alone = poet.generate(["白日依山尽"], settings)
    assert [g.text for g in alone] == [g.text for g in together[2:]]
    assert len({g.text for g in together}) == 4
    other = poet.generate(["白日依山尽"], dataclasses.replace(settings, seed=12))
    assert not {g.text for g in other} & {g.text for g in alone}
    assert poet.generate(["白日依山尽"], dataclasses.replace(settings, num_samples=1))[0].text == alone[0].text


def test_where_company_changes_bits_texts_are_written_one_by_one(
    poet: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = slot_programs.write

    def disturbed(*arguments: Any) -> Any:
        """Scores are off by a rounding, and tokens are others, where rows are written together."""
        tokens, counts, cache, seen, (of, which, values) = write(*arguments)
        together = int(arguments[5].used) > 1
        return tokens + together, counts, cache, seen, (of + 1e-7 * together, which, values)

    settings = GenerationOptions(max_new_tokens=40, temperature=1.0, seed=3, num_samples=3, repetition_penalty=1.2)
    expected = poet.generate(["白日依山尽"], settings)
    monkeypatch.setattr(slot_programs, "write", disturbed)
    assert poet.generate(["白日依山尽"], settings) == expected


def test_tokens_a_dispatch_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder(layers=1)
    settings = GenerationOptions(max_new_tokens=60, temperature=1.0, repetition_penalty=1.2)
    monkeypatch.setattr(slots, "_QUICK", 1e9)
    expected = written(Batch(model, [[1, 2, 3], [4]], settings))
    monkeypatch.setattr(slots, "_QUICK", -1.0)  # one by one
    assert written(Batch(model, [[1, 2, 3], [4]], settings)) == expected


def test_more_texts_than_a_batch_holds_are_all_written(poet: LanguageModel) -> None:
    settings = GenerationOptions(max_new_tokens=3, temperature=1.0, num_samples=ROWS + 2)
    found = poet.generate(["月"], settings)
    assert [g.sample for g in found] == list(range(ROWS + 2))
    assert {g.tokens for g in found} == {3} and len({g.text for g in found}) > ROWS // 2


def test_one_program_serves_all_of_a_bucket(model: Decoder) -> None:
    def write(length: int, **options: Any) -> None:
        written(Batch(model, [[1] * length] * 2, GenerationOptions(**options)))

    write(5, temperature=0.5, max_new_tokens=9)
    before = slot_programs.write._cache_size(), slot_programs.read._cache_size()
    for length, temperature, count in ((1, 0.9, 1), (4, 1.2, 12), (9, 0, 7)):
        write(length, temperature=temperature, max_new_tokens=count, seed=length, top_p=0.9, repetition_penalty=1.1)
    assert (slot_programs.write._cache_size(), slot_programs.read._cache_size()) == before


def test_end_token_ends_its_row_only(model: Decoder) -> None:
    prompts = [[1, 2, 3], [7, 7]]
    free = [greedy(model, prompt, 30) for prompt in prompts]
    end = next(token for token in free[0][4:] if token not in free[1])
    batch = Batch(model, prompts, GenerationOptions(temperature=0, max_new_tokens=30), end=(end,))
    assert written(batch) == [free[0][: free[0].index(end)], free[1]]
    assert batch.finish == ["end", "length"]


def test_tokens_that_the_tokenizer_lacks_are_never_written() -> None:
    model = decoder(layers=1)
    rows = written(Batch(model, [[1]] * 2, GenerationOptions(temperature=5.0, max_new_tokens=60), vocab=6))
    assert {token for row in rows for token in row} == set(range(6))


def test_the_token_for_what_is_unknown_is_never_written() -> None:
    """Unless it is the end of a text as well, as in GPT-2's vocabulary."""
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2, "c": 3}, unk_token="?"))
    words.pre_tokenizer, words.decoder = pre_tokenizers.Split(Regex("."), "isolated"), decoders.Fuse()
    writer, settings = LanguageModel(decoder(4, layers=1), words), GenerationOptions(temperature=5.0, max_new_tokens=60)
    (found,) = writer.generate(["a"], settings)
    assert found.tokens == len(found.text) == 60 and set(found.text) == set("abc")
    (ended,) = dataclasses.replace(writer, end=(2,)).generate(["a?"], settings)
    assert ended.finish == "end"


def test_low_precision_writes_too() -> None:
    """The rate of dropout, which is no weight, stays float32, as in a run."""
    graphdef, weights, rest = nnx.split(decoder(layers=1, dropout=0.1), nnx.Param, ...)
    model = nnx.merge(graphdef, jax.tree.map(lambda x: x.astype(jnp.bfloat16), weights), rest)
    batch = Batch(model, [[1, 2]], GenerationOptions(max_new_tokens=40))
    assert len(written(batch)[0]) == 40
    assert {leaf.dtype for leaf in jax.tree.leaves(batch.slots.cache)} == {jnp.dtype(jnp.bfloat16)}


# ------------------------------------------------------------------------------------------------------------- the text


def of_bytes() -> Tokenizer:
    return tokenization.train(schema.StreamTokenizer(type="bytes"), [])


def of_merges() -> Tokenizer:
    return tokenization.train(schema.StreamTokenizer(type="bpe", size=300), [POEM])


def of_words() -> Tokenizer:
    """As Llama's: a mark for the space before a word, dropped at the beginning, and bytes for what is no token."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "B", "e", "▁moon", "月"]
    tokenizer = Tokenizer(
        models.BPE({piece: number for number, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


@pytest.mark.parametrize("make", [of_bytes, of_merges, of_words])
def test_pieces_are_whole_characters(make: Any) -> None:
    tokenizer = make()
    ids = tokenizer.encode(POEM, add_special_tokens=False).ids
    assert len(ids) > len(POEM) / 2
    for start in (0, 4, 12):
        prompt = tokenizer.decode(ids[:start]) if start == 0 or "\ufffd" not in tokenizer.decode(ids[:start]) else None
        if prompt is None:
            continue
        stream = TextStream(tokenizer, ids[:start])
        pieces = [stream.push(token) for token in ids[start:]]
        assert not any("\ufffd" in piece for piece in pieces)
        assert "".join(pieces) == stream.text == tokenizer.decode(ids)[len(prompt) :]
        assert max(map(len, pieces)) <= 12  # nothing is held back for long


def test_half_a_character_at_the_end_is_left_out() -> None:
    tokenizer = of_bytes()
    stream = TextStream(tokenizer, [])
    pieces = [stream.push(token) for token in "a月".encode()[:-1]] + [stream.close()]
    assert pieces == ["a", "", "", ""]


def test_bytes_that_are_no_character_are_shown_as_such() -> None:
    stream = TextStream(of_bytes(), [])
    assert "".join(stream.push(token) for token in b"a\xffb\xe6\xe6c") == "a\ufffdb\ufffd\ufffdc"


def test_space_after_the_prompt_is_kept() -> None:
    tokenizer = of_words()
    stream = TextStream(tokenizer, tokenizer.encode("Be", add_special_tokens=False).ids)
    assert stream.push(tokenizer.token_to_id("▁moon")) == " moon"


def test_no_part_of_a_stop_string_is_shown() -> None:
    tokenizer = of_bytes()

    def pieces(words: str, *stop: str) -> Iterator[str]:
        stream = TextStream(tokenizer, [], stop)
        yield from (stream.push(token) for token in words.encode())
        yield stream.close()
        yield "stopped" if stream.stopped else "end"

    assert list(pieces("abcd", "bcx")) == ["a", "", "", "bcd", "", "end"]
    assert list(pieces("abcd", "bc")) == ["a", "", "", "", "", "stopped"]
    assert list(pieces("aab", "ab")) == ["", "a", "", "", "stopped"]
    assert list(pieces("ab", "abc", "x")) == ["", "", "ab", "end"]
    assert list(pieces("月光", "光")) == ["", "", "月", "", "", "", "", "stopped"]


def test_stop_string_ends_a_text(poet: LanguageModel) -> None:
    settings = GenerationOptions(temperature=0, max_new_tokens=40)
    (free,) = poet.generate(["床前"], settings)
    assert free.finish == "length" and free.tokens == 40
    stop = free.text[10:12]
    (found,) = poet.generate(["床前"], dataclasses.replace(settings, stop=("never seen", stop)))
    place = free.text.index(stop)
    assert (found.text, found.finish, found.tokens) == (free.text[:place], "stop", place + 2)


def test_stream_brings_text_before_all_is_written(poet: LanguageModel) -> None:
    pieces = list(poet.stream(["床前"], GenerationOptions(max_new_tokens=40)))
    assert len(pieces) > 3 and [p.finish for p in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert "".join(p.text for p in pieces) == poet.generate(["床前"], GenerationOptions(max_new_tokens=40))[0].text


def test_samples_in_training_are_texts(poet: LanguageModel) -> None:
    found = sample_texts(poet.model, poet.tokenizer, ["床", "月"], max_new_tokens=20, num_samples=2)
    expected = poet.generate(["床", "月"], GenerationOptions(max_new_tokens=20, num_samples=2))
    assert found == [g.text for g in expected] and all(found)


# ---------------------------------------------------------------------------------------------------------- the prompts


@pytest.mark.parametrize(
    ("prompt", "what"),
    [
        ("", "the prompt is empty"),
        ("月" * (CONTEXT + 1), "has 33 tokens, the model sees 32"),
        ("月é ü", r"does not know 'é' \(U\+00E9\), 'ü' \(U\+00FC\)"),
        ("月\ud83d", "not UTF-8"),
    ],
)
def test_prompt_that_cannot_be_used_is_refused(poet: LanguageModel, prompt: str, what: str) -> None:
    with pytest.raises(DataError, match=what) as error:
        next(poet.stream(["月", prompt], GenerationOptions()))
    assert error.value.where == "poet, prompt 2" and error.value.hint


def test_end_of_a_long_prompt_is_used_on_request(poet: LanguageModel) -> None:
    settings = GenerationOptions(temperature=0, max_new_tokens=20, truncate=True)
    long = POEM[:60]
    assert poet.generate([long], settings)[0].text == poet.generate([long[-CONTEXT:]], settings)[0].text


def test_start_token_is_read_before_the_prompt_except_in_chats(poet: LanguageModel) -> None:
    begun = dataclasses.replace(poet, start=(5,), template="月{{ messages[0].content }}{{ bos_token }}",
                                template_tokens={"bos_token": "光"})  # fmt: skip
    ids = {name: poet.tokenizer.encode(name, add_special_tokens=False).ids for name in ("床", "月床光")}
    assert begun.encode("床", GenerationOptions()) == [5, *ids["床"]]
    assert begun.encode("床", GenerationOptions(chat=True)) == ids["月床光"]


def test_chat_needs_a_template(poet: LanguageModel) -> None:
    with pytest.raises(RunError, match="no chat template"):
        poet.generate(["月"], GenerationOptions(chat=True))


def test_template_makes_a_conversation() -> None:
    template = (
        "{% for message in messages %}\n<|{{ message['role'] }}|>{{ message['content'] | trim }}{{ eos_token }}\n"
        "{% endfor %}\n{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    found = chat.render(template, [{"role": "user", "content": " Hello? "}], eos_token="</s>")
    assert found == "<|user|>Hello?</s>\n<|assistant|>"


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'x' * 10000000000 }}",
        "{{ 'x'.ljust(10000000000) }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% set n = namespace(x=['a']) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_template_without_an_end_is_one_error_and_the_next_is_rendered(template: str) -> None:
    messages = [{"role": "user", "content": "Hello?"}]
    with pytest.raises(DataError, match="chat template of the model fails: it (takes more than|calls itself)"):
        chat.render(template, messages)
    assert chat.render("{{ messages[0].content }}", messages) == "Hello?"


@pytest.mark.parametrize(
    "template",
    [
        "{% for %}",
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[3].content }}",
        "{{ messages + 1 }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
    ],
)
def test_template_that_fails_or_reaches_out_is_one_error(template: str) -> None:
    with pytest.raises(DataError, match="chat template"):
        chat.render(template, [{"role": "user", "content": "Hello?"}])

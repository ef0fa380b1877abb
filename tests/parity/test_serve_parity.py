"""The client of OpenAI talks to `bigctl serve`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import bigctl as package
from bigctl.generation.options import GenerationOptions
from tests import topics
from tests.serving.running import serving

openai = pytest.importorskip("openai")
pytest.importorskip("starlette")
pytestmark = pytest.mark.fewer


@pytest.fixture(scope="module")
def client(writer_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    env = {"BIGCTL_API_KEYS": "one,two"}
    with serving(tmp_path_factory.mktemp("server"), str(writer_run), env=env) as running:
        yield openai.OpenAI(base_url=f"{running.address}/v1", api_key="two", max_retries=0)


def test_completions_chats_and_streams(client: Any, writer_run: Path) -> None:
    model = package.load(writer_run).language_model
    options = GenerationOptions(max_new_tokens=20, seed=3, temperature=1.0)
    expected = model.generate(["to be"], options)[0].text
    assert [each.id for each in client.models.list()] == ["writer"]
    asked = {"model": "writer", "max_tokens": 20, "seed": 3}
    found = client.completions.create(prompt="to be", **asked)
    assert found.choices[0].text == expected and found.usage.completion_tokens == 20
    pieces = client.completions.create(prompt="to be", stream=True, **asked)
    assert "".join(piece.choices[0].text for piece in pieces) == expected
    messages = [{"role": "user", "content": "to be"}]
    chat = client.chat.completions.create(messages=messages, **asked)
    expected = model.generate(["to be or"], options)[0].text
    assert chat.choices[0].message.content == expected and chat.choices[0].finish_reason == "length"
    pieces = client.chat.completions.create(messages=messages, stream=True, **asked)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == expected
    stopped = client.chat.completions.create(messages=messages, stop=expected[3:5], **asked)
    assert stopped.choices[0].message.content == expected[: expected.index(expected[3:5])]
    assert stopped.choices[0].finish_reason == "stop"


def test_errors_are_those_that_the_client_knows(client: Any) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.completions.create(model="writer", prompt="to be", max_tokens=-1)
    assert bad.value.param == "max_tokens"
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="other", prompt="to be")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="three").models.list()


def test_embeddings_are_those_of_predict_in_both_encodings(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = topics.trained(tmp_path_factory).folder
    texts = ["soup under the moon", "salt and butter", "thunder"]
    model = package.load(folder / "runs" / "topics")
    expected = [model.embed([text])[0].tolist() for text in texts]
    with serving(folder, "topics") as running:
        client = openai.OpenAI(base_url=f"{running.address}/v1", api_key="none", max_retries=0)
        assert [each.id for each in client.models.list()] == ["topics"]
        for form in (openai.omit, "float"):  # base64 is what the client asks for by itself
            found = client.embeddings.create(model="topics", input=texts, encoding_format=form)
            assert [each.embedding for each in found.data] == expected and found.usage.total_tokens > 0
        with pytest.raises(openai.BadRequestError) as bad:
            client.embeddings.create(model="topics", input="")
        assert bad.value.param == "input"

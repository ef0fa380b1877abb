"""Language models answer as OpenAI's endpoints do, with the text of `bigctl generate`."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import bigctl as package
from bigctl.generation.options import GenerationOptions
from tests.serving.running import Running, serving

pytest.importorskip("starlette")
pytestmark = pytest.mark.fewer


@pytest.fixture(scope="module")
def served(writer_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(tmp_path_factory.mktemp("server"), str(writer_run)) as running:
        yield running


def written(run: Path, prompt: Any, **options: Any) -> list[str]:
    model = package.load(run).language_model
    return [found.text for found in model.generate([prompt], GenerationOptions(**options))]


def events(body: bytes) -> list[Any]:
    found = [part.removeprefix("data: ") for part in body.decode().split("\n\n") if part]
    assert found[-1] == "[DONE]"
    return [json.loads(part) for part in found[:-1]]


def test_text_is_that_of_generate_whole_and_in_pieces(served: Running, writer_run: Path) -> None:
    asked = {"prompt": "to be", "max_tokens": 40, "seed": 7, "n": 2, "temperature": 0.9, "top_p": 0.95}
    expected = written(writer_run, "to be", max_new_tokens=40, seed=7, num_samples=2, temperature=0.9, top_p=0.95)
    whole = served("/v1/completions", {"model": "writer", **asked}).json
    assert [choice["text"] for choice in whole["choices"]] == expected
    assert whole["usage"]["prompt_tokens"] == 5 and whole["choices"][0]["finish_reason"] == "length"
    assert whole["usage"]["completion_tokens"] == 80
    body = served("/v1/completions", {**asked, "stream": True, "stream_options": {"include_usage": True}}).body
    *pieces, last = events(body)
    texts = ["", ""]
    for piece in pieces:
        texts[piece["choices"][0]["index"]] += piece["choices"][0]["text"]
    assert texts == expected and last["usage"] == whole["usage"]


def test_no_company_changes_a_text(served: Running, writer_run: Path) -> None:
    prompts = ["to be", "nothing", "is a", "be or"]
    expected = [written(writer_run, p, max_new_tokens=24, seed=n, temperature=1.0)[0] for n, p in enumerate(prompts)]

    def ask(number: int) -> str:
        body = {"prompt": prompts[number], "max_tokens": 24, "seed": number}
        return served("/v1/completions", body).json["choices"][0]["text"]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, [0, 1, 2, 3] * 2)) == expected * 2


def test_log_probabilities_have_the_shapes_of_openai(served: Running, writer_run: Path) -> None:
    model = package.load(writer_run).language_model
    body = {"prompt": "to be", "max_tokens": 9, "temperature": 0, "logprobs": 3}
    (choice,) = served("/v1/completions", body).json["choices"]
    found = choice["logprobs"]
    tokens = model.tokenizer.encode("to be" + choice["text"]).ids
    every = jax.nn.log_softmax(model.model.logits(model.model(np.array([tokens]))))[0, 4:-1]
    np.testing.assert_allclose(
        found["token_logprobs"], [row[token] for row, token in zip(every, tokens[5:], strict=True)], atol=1e-4
    )
    assert "".join(found["tokens"]) == choice["text"] and found["text_offset"] == list(range(9))
    for token, value, best in zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True):
        assert len(best) == 3 and best[token] == value == max(best.values())
    asked = {"messages": [{"role": "user", "content": "to be"}], "max_tokens": 9, "seed": 1}
    whole = served("/v1/chat/completions", {**asked, "logprobs": True, "top_logprobs": 2}).json["choices"][0]
    content = whole["logprobs"]["content"]
    assert "".join(each["token"] for each in content) == whole["message"]["content"]
    assert all(len(each["top_logprobs"]) == 2 and bytes(each["bytes"]).decode() == each["token"] for each in content)
    pieces = events(served("/v1/chat/completions", {**asked, "logprobs": True, "top_logprobs": 2, "stream": True}).body)
    assert [each for piece in pieces for each in piece["choices"][0]["logprobs"]["content"]] == content
    assert served("/v1/chat/completions", asked).json["choices"][0]["logprobs"] is None


def test_stop_strings_end_a_text(served: Running, writer_run: Path) -> None:
    (whole,) = written(writer_run, "to be", max_new_tokens=60, temperature=0.0)
    body = {"prompt": "to be", "max_tokens": 60, "temperature": 0, "stop": whole[5:8]}
    (choice,) = served("/v1/completions", body).json["choices"]
    assert choice["text"] == whole[: whole.index(whole[5:8])] and choice["finish_reason"] == "stop"


def test_chats_go_through_the_template(served: Running, writer_run: Path) -> None:
    messages = [{"role": "system", "content": "is"}, {"role": "user", "content": "to be"}]
    (expected,) = written(writer_run, "is to be or", max_new_tokens=20, temperature=0.0)
    asked = {"messages": messages, "max_tokens": 20, "temperature": 0}
    found = served("/v1/chat/completions", asked).json
    assert found["object"] == "chat.completion"
    assert found["choices"][0]["message"] == {"role": "assistant", "content": expected, "refusal": None}
    pieces = events(served("/v1/chat/completions", {**asked, "stream": True}).body)
    assert pieces[0]["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces) == expected


@pytest.mark.parametrize(
    ("body", "param", "status"),
    [
        ({"prompt": "to be", "max_tokens": -1}, "max_tokens", 400),
        ({"prompt": "to be", "max_tokens": 10**9}, "max_tokens", 400),
        ({"prompt": "to be", "temprature": 1}, "temprature", 400),
        ({"prompt": "to be", "temperature": "hot"}, "temperature", 400),
        ({"prompt": "to be", "top_p": 0}, "top_p", 400),
        ({"prompt": "to be", "n": 100_000}, "n", 400),
        ({"prompt": "to be", "seed": -1}, "seed", 400),
        ({"prompt": "to be", "logprobs": 21}, "logprobs", 400),
        ({"prompt": "to be", "logprobs": True}, "logprobs", 400),
        ({"prompt": "to be", "top_logprobs": 2}, "top_logprobs", 400),
        ({"prompt": "to be", "tools": [{}]}, "tools", 400),
        ({"prompt": "to be", "stop": ""}, None, 200),
        ({"prompt": "to be", "stop": [""]}, "stop", 400),
        ({"prompt": ""}, "prompt", 400),
        ({"prompt": [1, 2]}, "prompt", 400),
        ({"prompt": "to be" * 20}, "prompt", 400),
        ({"prompt": "ZZZ"}, "prompt", 400),
        ({"prompt": "to be", "model": "gpt-4"}, "model", 404),
        ({"prompt": "to be", "stream": True, "model": ["x"]}, "model", 404),
    ],
)
def test_what_is_wrong_is_said_in_the_shape_of_openai(
    served: Running, body: dict[str, Any], param: str | None, status: int
) -> None:
    answer = served("/v1/completions", body)
    assert answer.status == status, answer.body
    if status != 200:
        error = answer.json["error"]
        assert (error["type"], error["param"]) == ("invalid_request_error", param) and error["message"]


def test_a_client_that_leaves_frees_its_place(served: Running) -> None:
    body = json.dumps({"prompt": "to be", "max_tokens": 2000, "stream": True}).encode()
    host, port = served.address.removeprefix("http://").split(":")
    head = f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
    for _ in range(3):
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(head.encode() + body)
            assert connection.recv(64).startswith(b"HTTP/1.1 200")
    while b'bigctl_writing{model="writer"} 0' not in served("/metrics").body:
        time.sleep(0.02)
    assert served("/v1/completions", {"prompt": "to be", "max_tokens": 4}).status == 200


def test_models_are_listed(served: Running) -> None:
    assert [model["id"] for model in served("/v1/models").json["data"]] == ["writer"]
    assert served("/v1/models/writer").json["object"] == "model"
    assert served("/v1/models/other").json["error"]["code"] == "model_not_found"


def test_a_page_whose_name_was_made_to_lead_here_reads_nothing(served: Running) -> None:
    answer = served("/v1/models", host="attacker.example")
    assert (answer.status, answer.json["error"]["code"]) == (403, "unknown_host")
    assert served("/v1/models", host="localhost:1").status == 200

"""A server answers what `bigctl predict` does, refuses what it must, and ends without losing a request."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import bigctl as package
from bigctl.errors import ConfigError, RunError
from bigctl.serving import guard, log, reloading, server
from bigctl.serving.metrics import Metrics
from bigctl.serving.settings import Settings
from tests import small, topics
from tests.conftest import Cli
from tests.serving.running import Running, serving

pytest.importorskip("starlette")
pytestmark = pytest.mark.fewer
KEY = "a-key-of-tests"
TEXTS = [words for words, _ in topics.rows(seed=1, count=12)] + [" ".join(["soup"] * 40)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs on a table, on texts and on images."""
    digits = tmp_path_factory.mktemp("served") / "digits"
    keys = ["recipe=cnn_cls", "data=digits", "train.steps=4", "model.channels=[4]", "train.tensorboard=false"]
    package.train(keys, digits, quiet=True)
    table = small.trained(tmp_path_factory) / "runs" / "small"
    return {"small": table, "topics": topics.trained(tmp_path_factory).folder / "runs" / "topics", "digits": digits}


@pytest.fixture(scope="module")
def served(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "keys").write_text(f"# for tests\n{KEY}\n")
    with serving(folder, *map(str, runs.values()), "--api-key-file", "keys", "--max-body", "1") as running:
        yield running


def ask(served: Running, name: str, body: Any, *, query: str = "", **more: Any) -> Any:
    return served(f"/models/{name}/predict{query}", body, authorization=f"Bearer {KEY}", **more)


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8), np.uint8)


def form(files: list[bytes]) -> tuple[bytes, str]:
    parts = [
        b'--cut\r\ncontent-disposition: form-data; name="file"; filename="a.png"\r\n\r\n' + file + b"\r\n"
        for file in files
    ]
    return b"".join(parts) + b"--cut--\r\n", "multipart/form-data; boundary=cut"


def rows(count: int) -> list[dict[str, Any]]:
    columns = small.columns(count, seed=3)
    return [{"size": float(columns["size"][n]), "place": str(columns["place"][n])} for n in range(count)]


def plainly(value: Any) -> Any:
    return json.loads(json.dumps(value))


# ---------------------------------------------------------------------------------------------------------- the answers


def test_rows_get_the_records_of_predict(served: Running, runs: dict[str, Path]) -> None:
    given, trained = rows(40), package.load(runs["small"])
    expected = plainly([trained.describe(row) for row in given])
    assert ask(served, "small", {"instances": given}).json == {"predictions": expected}
    assert ask(served, "small", given[0]).json == expected[0]
    assert set(expected[0]["probabilities"]) == {"large", "small"}


def test_images_get_the_records_of_predict_in_every_form(served: Running, runs: dict[str, Path]) -> None:
    pixels, trained = images(3), package.load(runs["digits"])
    expected = [plainly(trained.describe(pixels[n][None, ..., None])[0]) for n in range(3)]
    body, kind = form([png(image) for image in pixels])
    assert ask(served, "digits", body, kind=kind).json == {"predictions": expected}
    assert ask(served, "digits", png(pixels[0]), kind="image/png").json == expected[0]
    encoded = [{"image": base64.b64encode(png(image)).decode()} for image in pixels[:2]]
    given = [*encoded, pixels[2].tolist()]
    assert ask(served, "digits", {"instances": given}).json == {"predictions": expected}


def test_no_company_changes_a_bit_of_an_answer(served: Running, runs: dict[str, Path]) -> None:
    trained = package.load(runs["topics"])
    alone = plainly([trained.describe(text) for text in TEXTS])
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda text: ask(served, "topics", text).json, TEXTS * 4))
    assert found == alone * 4
    assert ask(served, "topics", {"instances": TEXTS}).json == {"predictions": alone}


@pytest.mark.parametrize(
    ("name", "body", "what"),
    [
        ("digits", b"no image", "no JSON"),
        ("digits", {"image": "bm8gaW1hZ2U="}, "cannot be read"),
        ("digits", {"image": "???"}, "no base64"),
        ("digits", "/etc/passwd", "no base64"),
        ("digits", [[0, 1], [2, 3]], "8, 8, 1"),
        ("small", b'{"size": NaN, "place": "north"}', "NaN is no number"),
        ("small", {"size": 1.0, "plaice": "north"}, "place"),
        ("small", {"size": 1.0, "place": "north", "colour": "red"}, "colour"),
        ("small", {"size": [1.0], "place": "north"}, "no single value"),
        ("small", b'{"size": 1e999, "place": "north"}', "1e999 is too large"),
        ("small", {"size": 10**400, "place": "north"}, "too large"),
        ("small", {"instances": [{"size": 1.0, "place": "north"}, {"size": 1.0}]}, "row at 1 lacks the column 'place'"),
        ("small", "/etc/passwd", "a row is an object"),
        ("small", {"instances": []}, "no list"),
        ("small", {"instances": [{}], "parameters": 1}, "parameters"),
        ("topics", " ", "empty"),
        ("topics", {"text": 3}, "not a text"),
        ("topics", {"text": "soup", "txet_pair": "oven"}, "'txet_pair' .* is unknown"),
        ("topics", b"[" * 100_000, "JSON|nested"),
        ("none", "a", "there is no model"),
    ],
)
def test_what_is_wrong_is_said(served: Running, name: str, body: Any, what: str) -> None:
    answer = ask(served, name, body)
    assert answer.status in (400, 404)
    error = answer.json["error"]
    assert error["type"] == "invalid_request_error"
    assert re.search(what, error["message"]), error


def test_embeddings_are_those_of_predict(served: Running, runs: dict[str, Path]) -> None:
    trained = package.load(runs["topics"]).with_details(embeddings=True)
    expected = [trained.describe(text) for text in TEXTS[:3]]
    found = ask(served, "topics", {"instances": TEXTS[:3]}, query="?embeddings=true").json
    assert found == {"predictions": plainly(expected)} and len(expected[0]["embedding"]) == 32
    body = {"model": "topics", "input": TEXTS[:3]}
    answer = served("/v1/embeddings", body, authorization=f"Bearer {KEY}").json
    assert [each["embedding"] for each in answer["data"]] == [record["embedding"] for record in expected]
    assert answer["usage"]["total_tokens"] >= sum(len(text.split()) for text in TEXTS[:3])
    answer = served("/v1/embeddings", {**body, "encoding_format": "base64"}, authorization=f"Bearer {KEY}").json
    decoded = [np.frombuffer(base64.b64decode(each["embedding"]), "<f4").tolist() for each in answer["data"]]
    assert decoded == [record["embedding"] for record in expected]
    trained, row = package.load(runs["small"]).with_details(embeddings=True), rows(1)[0]
    assert ask(served, "small", row, query="?embeddings=true").json == plainly(trained.describe(row))


@pytest.mark.parametrize(
    ("body", "param", "status"),
    [
        ({"model": "topics"}, "input", 400),
        ({"model": "topics", "input": ["soup", ""]}, "input", 400),
        ({"model": "topics", "input": [1, 2]}, "input", 400),
        ({"model": "topics", "input": "soup", "dimensions": 8}, "dimensions", 400),
        ({"model": "topics", "input": "soup", "encoding_format": "int8"}, "encoding_format", 400),
        ({"model": "digits", "input": "soup"}, "model", 400),
        ({"model": "none", "input": "soup"}, "model", 404),
        ({"input": "soup"}, "model", 404),
    ],
)
def test_what_is_wrong_with_a_question_for_embeddings_is_said(
    served: Running, body: dict[str, Any], param: str, status: int
) -> None:
    answer = served("/v1/embeddings", body, authorization=f"Bearer {KEY}")
    assert (answer.status, answer.json["error"]["param"]) == (status, param)


def test_a_missing_value_is_null(served: Running, runs: dict[str, Path]) -> None:
    row = {"size": None, "place": "north"}
    assert ask(served, "small", row).json == plainly(package.load(runs["small"]).describe(row))


# --------------------------------------------------------------------------------------------------------- the server


def test_keys_and_sizes_are_checked(served: Running) -> None:
    for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {KEY}"}):
        answer = served("/models/small/predict", rows(1)[0], **header)
        assert (answer.status, answer.json["error"]["code"]) == (401, "invalid_api_key")
    assert served("/metrics").status == 401
    for size in (2**20 + 1, 30 * 2**20):  # the client is still sending when it is refused
        assert ask(served, "small", b" " * size).status == 413
        assert served("/models/small/predict", b" " * size).status == 401
    assert ask(served, "small", b"a=1", kind="text/csv").status == 415


def test_a_name_that_a_stranger_gave_to_this_machine_is_not_answered() -> None:
    here = Settings()
    for name in ("127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:8000", ""):
        assert here.answers_to(name), name
    for name in ("attacker.example", "attacker.example:8000", "127.0.0.1.attacker.example", "[::2]:8000"):
        assert not here.answers_to(name), name
        assert Settings(host="0.0.0.0").answers_to(name) and Settings(keys=(b"key",)).answers_to(name)
    assert Settings(allowed_hosts=("models.example",)).answers_to("models.example:443")
    assert not Settings(host="127.0.0.2").answers_to("attacker.example")
    assert not Settings(host="0:0:0:0:0:0:0:1").answers_to("attacker.example")


def test_a_server_listens_on_an_address_of_ipv6() -> None:
    try:
        listening = server.listen(Settings(host="::1", port=0))
    except ConfigError:
        pytest.skip("this machine has no IPv6")
    with listening, pytest.raises(ConfigError, match="in use"):
        server.listen(Settings(host="::1", port=listening.getsockname()[1]))


def test_a_model_that_does_not_fit_in_memory_is_refused_before_it_is_read(runs: dict[str, Path]) -> None:
    reloading.require_memory(runs["small"] / "checkpoints", 10**9)
    with pytest.raises(RunError, match=r"takes .* of memory, and 1000 B are free"):
        reloading.require_memory(runs["small"] / "checkpoints", 1000)


def test_a_failure_is_logged_with_its_place_and_without_what_was_asked(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        int("a secret")
    except ValueError as error:
        log.failure(error, contents=False, request="1")
        log.failure(error, contents=True, request="2")
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert (first["error"], first["request"]) == ("ValueError", "1")
    assert "tests/serving/test_predicting.py:" in first["where"][0]
    assert "secret" not in str(first) and "secret" in second["message"]


def test_a_body_without_a_length_is_bounded_too(served: Running) -> None:
    host, port = served.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        head = f"POST /models/small/predict HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\n"
        connection.sendall(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        try:
            for _ in range(20):
                connection.sendall(chunk)
        except OSError:
            pass  # the server has closed the connection
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_of_a_body_that_is_all_there_no_more_is_waited_for() -> None:
    parts = [{"type": "http.request", "body": b" " * 8, "more_body": more} for more in (True, False)]
    waited: list[str] = []
    sent: list[Any] = []

    async def receive() -> Any:
        if not parts:
            waited.append("for what the client does next")
            await asyncio.Event().wait()
        return parts.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    async def reads_all(scope: Any, receive: Any, send: Any) -> None:
        try:
            while (await receive())["more_body"]:
                pass
        except guard.TooLarge as error:
            await guard.too_large(error.most)(scope, receive, send)

    scope = {"type": "http", "method": "POST", "path": "/x", "headers": [(b"host", b"localhost")]}
    asyncio.run(guard.Guard(reads_all, Settings(max_body=10), Metrics())(scope, receive, send))
    assert sent[0]["status"] == 413 and not waited


def test_what_the_server_tells_of_itself(served: Running) -> None:
    assert served("/health").json == {"status": "ok"}
    models = served("/models", authorization=f"Bearer {KEY}").json["models"]
    assert [(model["name"], model["kind"]) for model in models] == [
        ("small", "table"), ("topics", "text"), ("digits", "image"),
    ]  # fmt: skip
    assert models[0]["columns"] == ["size", "place"]
    assert served("/openapi.json").json["paths"]["/models/small/predict"]["post"]["requestBody"]["required"]
    assert b"/models/digits/predict" in served("/docs").body
    ask(served, "small", rows(1)[0])
    text = served("/metrics", authorization=f"Bearer {KEY}").body.decode()
    assert 'bigctl_requests_total{path="/models/{name}/predict",status="200"}' in text
    assert 'bigctl_examples_total{model="small"}' in text and "bigctl_request_seconds_count" in text
    nowhere = served("/v1/completions", {"prompt": "x"}, authorization=f"Bearer {KEY}")  # no model here writes text
    assert nowhere.status == 404 and "nothing at /v1/completions here; /docs" in nowhere.json["error"]["message"]


def test_lines_of_the_log_bear_numbers_and_no_contents(served: Running) -> None:
    answer = ask(served, "topics", "a secret about soup", x_request_id="mine-1")
    assert answer.headers["x-request-id"] == "mine-1"
    assert len(ask(served, "topics", "soup", x_request_id="no number").headers["x-request-id"]) == 32
    line = next(line for line in served.lines() if line.get("request") == "mine-1")
    assert (line["model"], line["status"], line["examples"]) == ("topics", 200, 1)
    assert "secret" not in served.log.read_text() and KEY not in served.log.read_text()


def test_the_port_of_another_server_is_refused_in_one_line(served: Running, runs: dict[str, Path], bigctl: Cli) -> None:
    port = served.address.rsplit(":", 1)[1]
    said = bigctl("serve", str(runs["small"]), "--port", port, code=2).stderr
    assert "Address already in use" in said and f"--port {port}" in said


def test_a_run_that_is_removed_is_served_on_and_sigterm_answers_what_is_in_flight(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(runs["topics"], tmp_path / "gone")
    with serving(tmp_path, str(tmp_path / "gone"), "--log-contents", "--drain", "300", "--max-queue", "1") as running:
        before = running("/predict", TEXTS[0])
        with ThreadPoolExecutor(6) as pool:  # one is computed, one waits, and the others are too many
            full = list(pool.map(lambda _: running("/predict", {"instances": TEXTS[:8] * 120}), range(6)))
        assert {answer.status for answer in full} == {200, 429}
        refused = next(answer for answer in full if answer.status == 429)
        assert refused.headers["retry-after"] == "1" and refused.json["error"]["code"] == "queue_full"
        shutil.rmtree(tmp_path / "gone")
        assert running("/predict", TEXTS[0]).body == before.body
        host, port = running.address.removeprefix("http://").split(":")
        address, stalled = (host, int(port)), socket.socket()
        with socket.create_connection(address, timeout=30) as slow, stalled:
            stalled.connect(address)
            stalled.sendall(b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
            body = json.dumps(TEXTS[0]).encode()
            slow.sendall(b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n")
            slow.sendall(f"content-length: {len(body)}\r\n\r\n".encode() + body[:3])
            while running("/metrics").body.count(b"bigctl_requests_in_flight 3") == 0:
                time.sleep(0.02)
            running.process.send_signal(signal.SIGTERM)
            while running("/ready").json["status"] != "draining":
                time.sleep(0.02)
            refused = running("/predict", TEXTS[0])
            assert refused.status == 503 and refused.headers["retry-after"] == "1"
            slow.sendall(body[3:])
            answer = slow.recv(10_000)
            assert answer.startswith(b"HTTP/1.1 200")
            stalled.settimeout(60)  # less than --drain
            assert stalled.recv(10_000).startswith(b"HTTP/1.1 503")
        assert running.process.wait(30) == 0
        assert any(line.get("contents") == [TEXTS[0]] for line in running.lines())


def test_the_curl_commands_of_the_page_are_answered(served: Running, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    (tmp_path / "digit.png").write_bytes(png(images(1)[0]))
    page = (Path(__file__).parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")
    commands = re.findall(r"^curl .*/predict$", page, flags=re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        name = "digits" if "digit.png" in command else "small"
        words = shlex.split(command.replace("http://127.0.0.1:8000", f"{served.address}/models/{name}"))
        key = ["-sSf", "-H", f"authorization: Bearer {KEY}"]
        done = subprocess.run([*words, *key], cwd=tmp_path, capture_output=True, check=True)
        (record,) = json.loads(done.stdout).get("predictions", [json.loads(done.stdout)])
        assert record["label"] in record["probabilities"]

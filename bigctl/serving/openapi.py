"""The OpenAPI description (3.1) of a server, and a page that shows it."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

_ERROR = {"$ref": "#/components/schemas/Error"}
_REFUSALS = {
    "400": "the request is wrong", "401": "no valid API key", "413": "the request is too large",
    "429": "too many requests wait; come again after Retry-After", "503": "the server is shutting down",
}  # fmt: skip


def document(models: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The description for models as /models gives them."""
    paths: dict[str, Any] = {}
    for model in models:
        operation = _operation(model)
        paths[f"/models/{model['name']}/predict"] = {"post": operation}
        if len(models) == 1:
            paths["/predict"] = {"post": {**operation, "operationId": "predict"}}
    for path, said in (
        ("/models", "what is served"), ("/health", "whether the process is well"),
        ("/ready", "whether requests will be answered at once"), ("/metrics", "counters for Prometheus"),
    ):  # fmt: skip
        paths[path] = {"get": {"summary": said, "responses": {"200": {"description": "ok"}}}}
    error = {"type": "object", "properties": {"error": {"type": "object", "properties": {
        name: {"type": ["string", "null"]} for name in ("message", "type", "param", "code")}}}}  # fmt: skip
    return {
        "openapi": "3.1.0",
        "info": {"title": "bigctl serve", "version": version("bigctl")},
        "paths": paths,
        "components": {
            "schemas": {"Error": error},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(model: Mapping[str, Any]) -> dict[str, Any]:
    example = _example(model)
    many = {
        "type": "object",
        "required": ["instances"],
        "properties": {"instances": {"type": "array", "items": example}},
    }
    content: dict[str, Any] = {"application/json": {"schema": {"oneOf": [example, many]}}}
    if model["kind"] == "image":
        files = {"type": "array", "items": {"type": "string", "format": "binary"}}
        content["multipart/form-data"] = {"schema": {"type": "object", "properties": {"files": files}}}
        content["image/*"] = {"schema": {"type": "string", "format": "binary"}}
    record: dict[str, Any] = {"type": "object", "properties": {"label": {"type": "string"}}}
    if model["classes"] and model["kind"] != "tags":
        names = {name: {"type": "number"} for name in model["classes"]}
        record["properties"]["probabilities"] = {"type": "object", "properties": names}
    answer = {"oneOf": [record, {"type": "object", "properties": {"predictions": {"type": "array", "items": record}}}]}
    refused = {
        code: {"description": said, "content": {"application/json": {"schema": _ERROR}}}
        for code, said in _REFUSALS.items()
    }
    return {
        "summary": f"predict with {model['name']} ({model['recipe']}, step {model['step']})",
        "operationId": f"predict_{model['name']}",
        "requestBody": {"required": True, "content": content},
        "responses": {"200": {"description": "predictions", "content": {"application/json": {"schema": answer}}}}
        | refused,
    }


def _example(model: Mapping[str, Any]) -> dict[str, Any]:
    text = {"type": "string"}
    if model["kind"] == "image":
        base64 = {"type": "object", "properties": {"image": {"type": "string", "contentEncoding": "base64"}}}
        return {"anyOf": [base64, {"type": "array", "description": f"pixels {model['shape']} from 0 to 255"}]}
    if model["kind"] == "table":
        columns = {name: {"type": ["number", "string", "boolean", "null"]} for name in model["columns"]}
        return {"type": "object", "required": list(columns), "properties": columns}
    if model["kind"] == "pair":
        properties = {"text": text, "text_pair": text}
        return {"type": "object", "required": list(properties), "properties": properties}
    if model["kind"] == "tags":
        return {"anyOf": [text, {"type": "array", "items": text}]}
    return {"anyOf": [text, {"type": "object", "required": ["text"], "properties": {"text": text}}]}


def page(description: Mapping[str, Any]) -> str:
    """The description for people, in HTML without a script."""
    parts = []
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            body = operation.get("requestBody")
            shown = f"<pre>{html.escape(json.dumps(body['content'], indent=1))}</pre>" if body else ""
            parts.append(
                f"<details><summary><b>{method.upper()}</b> <code>{html.escape(path)}</code> "
                f"{html.escape(operation['summary'])}</summary>{shown}</details>"
            )
    style = (
        ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;"
        "padding:0 1rem}details{border:1px solid #8886;border-radius:6px;margin:.5rem 0;padding:.5rem .75rem}"
        "summary{cursor:pointer;overflow-wrap:anywhere}pre{overflow:auto;font-size:13px}"
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>bigctl serve</title><style>{style}</style><h1>bigctl serve</h1>"
        f"<p>The description for programs: <code>/openapi.json</code></p>{''.join(parts)}</html>"
    )

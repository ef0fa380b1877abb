"""Bodies of requests -> values: strict JSON, and the files of a form."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request


class BadRequest(Exception):
    """A request that cannot be answered as it is.

    Attributes:
        status: of HTTP.
        code: for programs.
        param: the key that is wrong.
    """

    def __init__(self, message: str, *, status: int = 400, code: str = "invalid_request", param: str | None = None):
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


async def read_json(request: Request) -> Any:
    """The value of a body. Raises BadRequest for what is no JSON, NaN among it."""
    body = await request.body()
    try:
        return json.loads(body, parse_constant=_no_number, parse_float=_finite)
    except RecursionError:
        raise BadRequest("the body is nested too deeply", code="invalid_json") from None
    except ValueError as error:
        raise BadRequest(f"the body is no JSON: {error}", code="invalid_json") from None


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON; null stands for a value that is missing")


def _finite(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{digits[:20]} is too large")
    return value


async def read_examples(request: Request) -> tuple[list[Any], bool]:
    """The examples of a request to predict, and whether one alone was given, in no list.

    JSON is one example or {"instances": [...]}; in a form each file is one.

    Raises:
        BadRequest: for another type, and for a request without examples.
    """
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _files(request), False
    if kind.startswith("image/"):
        return [await request.body()], True
    if kind != "application/json":
        said = f"{kind!r} is not taken; send application/json, multipart/form-data, or an image"
        raise BadRequest(said, status=415, code="unsupported_media_type")
    value = await read_json(request)
    if isinstance(value, dict) and "instances" in value:
        if unknown := [name for name in value if name != "instances"]:
            raise BadRequest(f"the key {unknown[0]!r} is unknown", param=unknown[0])
        if not isinstance(value["instances"], list) or not value["instances"]:
            raise BadRequest("instances is no list of examples", param="instances")
        return value["instances"], False
    return [value], True


async def _files(request: Request) -> list[Any]:
    try:
        async with request.form(max_files=1000, max_fields=0) as form:
            found = [await value.read() for _, value in form.multi_items() if isinstance(value, UploadFile)]
    except HTTPException as error:
        raise BadRequest(f"the form cannot be read: {error.detail}", code="invalid_form") from None
    if not found:
        raise BadRequest("the form holds no file", code="invalid_form")
    return found

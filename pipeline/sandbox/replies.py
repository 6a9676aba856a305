"""The replies of the platform's layers: gateway, dispatcher and model server each refuse in their own words.

Who answered can be told from the code's family and from the `Server` header, as on the real platform.
"""

from __future__ import annotations

from typing import Final
from uuid import uuid4

import msgspec
from starlette.responses import Response

NOT_JSON: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # what decoding such a body raises

GATEWAY: Final = "api-gateway"
SERVICE: Final = "ModelArts"

# "status code" -> message. The first of a status is what the bare status stands for in a fault schedule.
MESSAGES: Final[dict[str, str]] = {
    "400 MR.0105": "Recognition failed",
    "400 MR.0101": "The input parameter is invalid",
    "400 ModelArts.0204": "Token must contain projectId info.",
    "400 ModelArts.4105": "Incorrect JSON format of the input data.",
    "400 ModelArts.4203": "Invalid request because requested service iris is unavailable.",
    "400 APIG.0201": "API request error",
    "401 APIG.0307": "The token must be updated",
    "401 APIG.0301": "Incorrect IAM authentication information",
    "401 APIG.0303": "Incorrect app authentication information",
    "401 APIG.0305": "Incorrect authentication information",
    "403 APIG.0302": "The IAM user is not authorized to access the API",
    "404 APIG.0101": "The API does not exist or has not been published in the environment",
    "404 ModelArts.4204": "API / does not exist.",
    "408 ModelArts.4205": "Connection timed out.",
    "413 APIG.0201": "Request entity too large",
    "413 ModelArts.4104": "The request body size exceeds the maximum.",
    "429 APIG.0308": "The throttling threshold has been reached",
    "429 ModelArts.4206": "Excessive number of requests to iris.",
    "500 APIG.0601": "Internal server error",
    "500 APIG.0201": "An unexpected error occurred",
    "500 MR.0105": "Recognition failed",
    "500 ModelArts.4302": "Gateway forwarding error. connection refused",
    "500 ModelArts.4503": "Backend service not found or failed to respond.",
    "500 ModelArts.4505": "Internal backend service error because reading timed out.",
    "502 APIG.0201": "Backend unavailable",
    "503 ModelArts.4302": (
        "Gateway forwarding error. Due to self protection, the backend service is disconnected, please wait moment."
    ),
    "503 ModelArts.4700": "Unavailable gateway.",
    "503 APIG.0613": "The IAM service is currently unavailable",
    "504 APIG.0201": "Backend timeout",
    "504 ModelArts.4503": "Backend service respond timeout.",
}


class Refusal(Exception):
    """A request that ends with an error reply: a key of `MESSAGES`, some detail, `Retry-After` in whole seconds."""

    def __init__(self, key: str, detail: str = "", *, retry_after: int | None = None) -> None:
        super().__init__(key, detail, retry_after)
        self.key, self.detail, self.retry_after = key, detail, retry_after

    def response(self) -> Response:
        """Return the reply in the words, and with the headers, of the layer that refuses."""
        status, code = self.key.split()
        message = ": ".join(filter(None, (MESSAGES[self.key], self.detail)))
        request_id = uuid4().hex
        server = GATEWAY if code.startswith("APIG") else SERVICE
        response = reply(_body(code, message, request_id), int(status), server=server, request_id=request_id)
        if self.retry_after is not None:
            response.headers["Retry-After"] = str(self.retry_after)
        return response


def reply(
    content: object,
    status: int = 200,
    *,
    server: str = GATEWAY,
    media_type: str = "application/json",
    request_id: str = "",
) -> Response:
    """Return a reply with the headers that every layer adds; content that is not bytes is sent as JSON."""
    body = content if isinstance(content, bytes) else msgspec.json.encode(content)
    headers = {"Server": server, "X-Request-Id": request_id or uuid4().hex}
    return Response(body, status, headers, media_type)


def not_allowed(method: str) -> Response:
    """Return the model server's refusal of every method but `method`."""
    response = reply(b"Method Not Allowed", 405, server=SERVICE, media_type="text/plain")
    response.headers["Allow"] = method
    return response


def crashed() -> Response:
    """Return what a web framework says when the model's code raises: words, and no code of the platform."""
    return reply(b"Internal Server Error", 500, server=SERVICE, media_type="text/plain")


def bad_gateway_page() -> Response:
    """Return the page of a proxy that knows nothing of JSON."""
    page = b"<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>\n"
    return reply(page, 502, media_type="text/html")


def _body(code: str, message: str, request_id: str) -> dict[str, object]:
    family = code.split(".", maxsplit=1)[0]
    if family == "MR":
        return {"erno": code, "msg": message, "words_result": {}}
    body: dict[str, object] = {"error_code": code, "error_msg": message}
    return body | {"request_id": request_id} if family == "APIG" else body

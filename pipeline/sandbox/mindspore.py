"""MindSpore Serving's REST interface: what it makes of any request, in its own words. No I/O but that of the service.

Faithful to version 2.0.2, but for the status line, whose reason phrase there is `Client`, and for some of what its JSON
parser says of what is no JSON.
"""

from __future__ import annotations

import asyncio
import json
import re
from base64 import b64encode
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from starlette.responses import Response

from pipeline.sandbox.faults import OK
from pipeline.sandbox.infer import Service
from pipeline.sandbox.replies import reply
from pipeline.sandbox.strictjson import NoJson, document_of
from pipeline.sandbox.tensors import INSTANCES, Hangs, Misshapen, Told, instances_of, tensor_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from pipeline.sandbox.faults import Fault
    from pipeline.sandbox.infer import Outcome, World
    from pipeline.sandbox.iris import Answer


class Method(NamedTuple):
    """A method of a servable: a Python stage, called for each instance. `tag` is what errors call the stage."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    stage: Callable[..., Any]
    tag: str


Servables = dict[str, dict[str, Method]]
"""By servable's name: its methods by name. All are of version 1."""

_NEWEST: Final = (0, 1)
_MOST_VERSION: Final = 2**32 - 1


class Called(NamedTuple):
    """What a URL asks for."""

    model: str
    version: int
    method: str


def called(target: str) -> Called:
    """Read a request's target as the server does, by searching in it. Raises Told."""
    name = _behind(target, "model")
    if not name:
        raise Told("please check url, the keyword:[model] must contain.")
    version = 0
    given = _behind(target, "version")
    if given is not None:
        number = re.match(r"\s*[+-]?\d+", given)
        if not number:
            raise Told(f"please check url, the keyword:[version] value invalid, request version number {given}")
        version = int(number[0])
        if not 0 <= version < _MOST_VERSION:
            raise Told(f"please check url, version number range failed, request version number {given}")
    method = target.partition(":")[2]
    if not method:
        raise Told("please check url, the keyword:[service method] must contain.")
    return Called(name, version, method)


def _behind(target: str, keyword: str) -> str | None:
    """Return what follows a keyword, up to the next border; None where it is not there."""
    _, found, rest = target.partition(keyword)
    return re.split("[/:]", rest[1:], maxsplit=1)[0] if found else None


class Serving:
    """A server with some servables, as a model behind a path."""

    several = True

    def __init__(self, servables: Servables, target: str) -> None:
        self._servables = servables
        self._target = target
        self._called = Called("", 0, "")
        self._method = Method((), (), lambda: None, "")

    def read(self, body: bytes, content_type: str = "") -> tuple[object, list[dict[str, Any]]]:  # noqa: ARG002
        """Return the instances of a request, each with its tensors by name. Raises Told or Hangs."""
        if not body:
            raise Told("http message invalid")
        document = _document(body)
        self._called = called(self._target)
        instances = [{name: tensor_of(value) for name, value in one.items()} for one in instances_of(document)]
        self._method = self._find()
        for instance in instances:
            self._check(instance)
        return "", instances

    def _find(self) -> Method:
        model, version, method = self._called
        shown = f"Request servable({model}) method({method}) " + (f" version({version}) " if version else "")
        if model not in self._servables or version not in _NEWEST:
            raise Told(f"{shown}, servable is not available")
        if method not in self._servables[model]:
            raise Told(f"{shown}, method is not available")
        return self._servables[model][method]

    def _check(self, instance: Mapping[str, Any]) -> None:
        for name in self._method.inputs:
            if name not in instance:
                model, _, method = self._called
                raise Told(f"Cannot find input {name} in instance input , servable {model}, method {method}")
            if isinstance(instance[name], Misshapen):
                rule = "bytes or string type input  shape can only be (1,) or empty"
                raise Told(
                    f"Instances input {name} check failed, detail: Instance tensor check failed: {rule}, "
                    f"but given shape is {instance[name].shape}"
                )

    def predict(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Call the method for each instance. Raises Told where all fail alike."""
        answers = [self._call(row) for row in rows]
        first = answers[0].get("error_msg")
        if first is not None and all(answer == answers[0] for answer in answers):
            raise Told(first)
        return answers

    def _call(self, row: Mapping[str, Any]) -> dict[str, Any]:
        method = self._method
        try:
            found = method.stage(*(_given(row[name]) for name in method.inputs))
        except Exception as error:  # noqa: BLE001 - a stage is anybody's code
            where = f"method: '{self._called.method}', stage index(begin with 1): 1"
            return {"error_msg": f"Call {method.tag} Failed, {where}, error msg: {error}"}
        values = found if len(method.outputs) > 1 else (found,)
        return dict(sorted(zip(method.outputs, map(_shown, values), strict=True)))

    def write(self, answer: Answer[Any]) -> bytes:
        """Return the reply's body."""
        return json.dumps({INSTANCES: answer.predictions}, ensure_ascii=False, separators=(",", ":")).encode()

    def peek(self, body: bytes, content_type: str = "") -> tuple[object, list[dict[str, Any]]]:  # noqa: ARG002
        """Return the instances of any body; none if it has no such thing."""
        try:
            return "", instances_of(_document(body))
        except Told:
            return "", []


def answer(servables: Servables, verb: str, target: str, body: bytes, limit: int) -> tuple[int, bytes]:
    """Return status and body of what the server says to a request. Raises Hangs where it says nothing."""
    if verb in {"OPTIONS", "PATCH"}:
        return 501, _UNKNOWN
    if verb == "HEAD":
        return 200, b""
    serving = Serving(servables, target)
    try:
        _refuse(verb, len(body), limit)
        rows = serving.predict(serving.read(body)[1])
    except Told as told:
        return 200, bytes(told.response().body)
    return 200, json.dumps({INSTANCES: rows}, ensure_ascii=False, separators=(",", ":")).encode()


def _refuse(verb: str, size: int, limit: int) -> None:
    if verb != "POST":
        raise Told("http message only support POST right now")
    if size > limit:
        raise Told(f"http message is bigger than {limit}")


_UNKNOWN: Final = (
    b"<HTML><HEAD>\n<TITLE>501 Not Implemented</TITLE>\n</HEAD><BODY>\n<H1>Not Implemented</H1>\n</BODY></HTML>\n"
)


def _document(body: bytes) -> Any:
    try:
        return document_of(body)
    except NoJson as error:
        raise Told(f"Illegal JSON format.{error}") from None


def _given(value: Any) -> Any:
    """Return what a stage gets: bytes as an array."""
    return np.frombuffer(value, np.uint8) if isinstance(value, bytes) else value


def _shown(value: Any) -> Any:
    """Return an output as JSON has it."""
    if isinstance(value, bytes):
        return {"b64": b64encode(value).decode()}
    if not isinstance(value, np.ndarray | np.generic):
        return value
    if isinstance(value, np.ndarray) and value.ndim > 1 and not len(value):
        return None
    return _finite(value.tolist()) if value.dtype.kind == "f" else value.tolist()


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return value if np.isfinite(value) else None


class MindSpore:
    """The server, as an ASGI application for any path."""

    def __init__(self, world: World, servables: Servables) -> None:
        self._world = world
        self._servables = servables

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        query = scope["query_string"].decode()
        target = scope["raw_path"].decode("latin-1") + (f"?{query}" if query else "")
        if scope["method"] != "POST":
            status, body = answer(self._servables, scope["method"], target, b"", 0)
            await Response(body, status)(scope, receive, send)
            return
        await _Service(self._world, Serving(self._servables, target))(scope, receive, send)


class _Service(Service):
    """One request: nobody asks for credentials, and what is too large is told as everything is."""

    async def _check_credentials(self, request: Request, body: bytes) -> None:
        pass

    def _check_declared(self, size: int) -> None:
        pass  # it is read first

    def _refuse_size(self) -> None:
        self._world.stats.bodies_over_limit += 1
        raise Told(f"http message is bigger than {self._world.options.body_limit}")

    async def _execute(self, body: bytes, kind: str, fault: Fault = OK) -> Outcome:
        try:
            return await super()._execute(body, kind, fault)
        except Hangs:
            await asyncio.sleep(self._world.options.timeout * 2)  # whoever is in front of it gives up
            raise

    def _reply(self, content: bytes, kind: str) -> Response:  # noqa: ARG002
        return reply(content)

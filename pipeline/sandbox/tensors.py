"""How MindSpore Serving reads instances and their values: JSON -> tensors, with its parser's own rules and words."""

from __future__ import annotations

import math
from base64 import b64decode
from string import ascii_letters, digits
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.sandbox.replies import Refusal, reply

if TYPE_CHECKING:
    from starlette.responses import Response

KINDS: Final = {
    **{name: name for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool")},
    **{f"{name}{bits}": f"float{bits}" for name in ("fp", "float") for bits in (16, 32, 64)},
}
_ALPHABET: Final = frozenset(ascii_letters + digits + "+/")
_WRAP: Final = 2**32
INSTANCES: Final = "instances"


class Told(Refusal):
    """What the server says instead of an answer, with a 200 as always."""

    def __init__(self, text: str) -> None:
        super().__init__("200 ", text)

    def response(self) -> Response:
        """Return the reply."""
        return reply({"error_msg": self.detail})


class Hangs(Exception):
    """A request that the server never answers."""


def unread(text: str) -> Told:
    """Return what is said of a request that is JSON, and not what it should be."""
    return Told(f"Parser request failed, {text}")


def instances_of(document: Any) -> list[dict[str, Any]]:
    """Return the instances of a request. Raises Told."""
    count = int(isinstance(document, dict) and INSTANCES in document)
    if not count:
        raise unread("key 'instances' expects to exist once, but actually 0 times")
    given = document[INSTANCES]
    if isinstance(given, dict):
        if not given:
            raise unread("json object, value is empty")
        return [_named(given)]
    if not isinstance(given, list) or (given and not isinstance(given[0], dict)):
        raise unread("instances no key mode is not supported")
    if not given:
        raise unread("instances value is array type, but no value")
    for one in given:
        if not isinstance(one, dict):
            raise unread("json array, instance is not object type")
        if not one:
            raise unread("json array, instance is object type, but no value")
    return [_named(one) for one in given]


def _named(instance: dict[str, Any]) -> dict[str, Any]:
    if "" in instance:
        raise unread("string key is empty")
    return instance


def tensor_of(value: object) -> Any:
    """Return what a stage gets of an input's value: an array, a str, or bytes. Raises Told, or Hangs."""
    if isinstance(value, dict):
        return _decoded(value)
    if isinstance(value, list):
        return _array(value)
    if value is None:
        raise unread("json value is null, it is not supported")
    return value if isinstance(value, str) else _numbers([value], ())


def _numbers(flat: list[Any], shape: tuple[int, ...]) -> Any:
    """Make an array of the first one's type; integers wrap, and floats lose digits."""
    if isinstance(flat[0], bool):
        return np.array(flat, np.bool_).reshape(shape)
    if isinstance(flat[0], int):
        wrapped = [(one + _WRAP // 2) % _WRAP - _WRAP // 2 for one in flat]
        return np.array(wrapped, np.int32).reshape(shape)
    with np.errstate(over="ignore"):
        return np.array(flat, np.float64).astype(np.float32).reshape(shape)


def _array(value: list[Any]) -> Any:
    if not value:
        raise unread("json array, shape is empty")
    shape: list[int] = []
    first: Any = value
    while isinstance(first, list):
        shape.append(len(first))
        first = first[0] if first else None
    if first is None:
        raise unread("json array, data type is unknown")
    if isinstance(first, str | dict):
        return _only(first, shape)
    flat: list[Any] = []
    _collect(value, shape, 0, type(first), flat)
    return _numbers(flat, tuple(shape))


def _only(first: str | dict[str, Any], shape: list[int]) -> Any:
    """Return the only item of a list of text or bytes; text in base64 stays so."""
    if math.prod(shape) != 1:
        raise unread("json array, string or bytes type only support one item")
    if isinstance(first, str):
        return first if len(shape) == 1 else Misshapen(shape)
    if first.get("type", "bytes") not in {"str", "bytes"}:
        raise unread("json array, item is object type, object only support string or bytes type")
    decoded = _decoded(first)
    return first["b64"] if isinstance(decoded, str) else decoded


class Misshapen:
    """Text or bytes of more dimensions than one, which is noticed only when its method is known."""

    def __init__(self, shape: list[int]) -> None:
        self.shape = shape


def _collect(value: object, shape: list[int], depth: int, kind: type, flat: list[Any]) -> None:
    if depth == len(shape):
        if isinstance(value, list | dict) or value is None:
            raise unread("json array, data should be number, bool, string or bytes")
        if type(value) is not kind:
            raise unread("json array, elements type is not equal")
        flat.append(value)
        return
    if not isinstance(value, list):
        raise unread("invalid json array: json type is not array")
    if len(value) != shape[depth]:
        raise unread(f"invalid json array: json size is {len(value)}, the dim {depth} expected to be {shape[depth]}")
    for one in value:
        _collect(one, shape, depth + 1, kind, flat)


def _decoded(value: dict[str, Any]) -> Any:
    kind, shape = _checked(value)
    text = value.get("b64")
    if not isinstance(text, str):
        raise unread("get scalar data failed, type is string, but json is not string type")
    content = _bytes(text)
    if kind in {"str", "bytes"} and len(shape) > 1:
        return Misshapen(shape)
    if kind == "bytes":
        return content
    if kind == "str":
        return content.decode("utf-8", "replace")
    size, count = np.dtype(KINDS[kind]).itemsize, math.prod(shape)
    if len(content) != size * count:
        raise unread(
            f"size is not matched, decode base64 size:{len(content)}; "
            f"Given info: type:{KINDS[kind]}; type size:{size}; element nums:{count}"
        )
    return np.frombuffer(content, np.dtype(KINDS[kind])).reshape(shape)


def _checked(value: dict[str, Any]) -> tuple[str, list[int]]:
    """Return type and shape of an object that stands for a tensor."""
    if not value:
        raise unread("json object, value is empty")
    if len(value) > 3:  # noqa: PLR2004 - the three that there are
        raise unread("json object, items size is more than 3, only support specified ['b64', 'type', 'shape']")
    strange = sorted(set(value) - {"b64", "type", "shape"})
    if strange:
        raise unread(f"json object, key is not ['b64', 'type', 'shape'], fail key:{strange[0]}")
    if "b64" not in value:
        raise unread("json object, 'b64' should be specified only one time")
    kind, shape = _kind(value.get("type", "bytes")), value.get("shape", [])
    if not isinstance(shape, list):
        raise unread("json object, key is 'shape', value should be array type")
    if any(type(size) is not int or size < 0 for size in shape):
        raise unread("json object, key is 'shape', array value should be unsigned integer")
    if 0 in shape[:-1]:
        raise unread(f"json object, key is 'shape', invalid shape value {str(shape).replace(' ', '')}")
    if kind in {"str", "bytes"} and math.prod(shape) != 1:
        rule = "only support scalar when data type is string or bytes, please check 'type' or 'shape'"
        raise unread(f"json object, {rule}")
    return kind, shape


def _kind(kind: object) -> str:
    if not isinstance(kind, str):
        raise unread("json object, key is 'type', value should be string type")
    if kind not in {*KINDS, "str", "bytes"}:
        raise unread(f"json object, specified type:'{kind}' is illegal")
    return kind


def _bytes(text: str) -> bytes:
    if len(text) % 4 or not text.isascii() or set(text) & set(" \r\n\t"):
        raise unread(f"'{text}' is illegal b64 encode string")
    body = text[:-4] + text[-4:].rstrip("=") if text else ""
    odd = next((at for at, one in enumerate(body) if one not in _ALPHABET), None)
    if odd is not None and odd % 4 < 2:  # noqa: PLR2004 - the halves of a group
        raise Hangs
    if odd is not None:
        raise unread("decode base64 failed, size is not matched.")
    return b64decode(text)

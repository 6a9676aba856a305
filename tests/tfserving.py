"""Answers as TensorFlow Serving's REST interface does, which cannot be had as a package: as strict as it is described.

Types come from a signature, never from the JSON: what does not fit is refused with the whole request. Rows come in the
row form or the column form, and replies are as the requests; NaN and infinities are written as such.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from service import Call

EXACT = {"float": 2**24, "double": 2**53}
"""Up to where a type has every integer."""


class Refused(Exception):
    """A status with its text."""


class Spec(NamedTuple):
    """An input: the type of its values, and the shape of one row's, -1 for any length."""

    kind: str
    shape: tuple[int, ...] = ()


class Signature(NamedTuple):
    """What a model takes, by name, and what it makes of it: arrays by name, of which the first axis is the rows."""

    inputs: Mapping[str, Spec]
    call: Callable[..., Mapping[str, np.ndarray]]


def summed(**measures):
    """Add the measures up; one may not be negative."""
    if (measures["sepal_length"] < 0).any():
        raise Refused(400, "indices[0] = -1 is not in [0, 3)")
    return {"y": np.round(sum(measures.values()), 6)}


def crashing(x):
    if (x < 0).any():
        raise Refused(500, "Internal: the kernel has failed")
    return {"y": x.sum(axis=tuple(range(1, x.ndim)))}


def typed(f, i, s, b, image):
    """Return everything, text and bytes too, and what JSON does not have."""
    sizes = np.array([len(one) for one in image])
    return {"f": f, "i": i, "s": s, "b": b, "image_bytes": image, "size": sizes, "nan": np.where(i > 0, 0.5, np.nan)}


SIGNATURES = {
    "serving_default": Signature(
        {f"{part}_{size}": Spec("double") for part in ("sepal", "petal") for size in ("length", "width")}, summed
    ),
    "crashing": Signature({"x": Spec("float", (-1,))}, crashing),
    "typed": Signature(
        {
            "f": Spec("float", (-1,)),
            "i": Spec("int32"),
            "s": Spec("string"),
            "b": Spec("bool"),
            "image": Spec("string"),
        },
        typed,
    ),
}


def serve(call: Call):
    """Answer one request."""
    try:
        status, said = 200, answer(call)
    except Refused as why:
        status, text = why.args
        said = {"error": text}
    return status, {"Content-Type": "application/json"}, json.dumps(said, indent=4).encode()


def answer(call):
    if call.path not in {"/v1/models/iris:predict", "/v1/models/iris/versions/1:predict"}:
        raise Refused(404, "Servable not found for request: Latest(nope)")
    body = parsed(call.body)
    given = sorted({"inputs", "instances"} & set(body))
    if len(given) != 1:
        raise Refused(400, "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist")
    signature = SIGNATURES.get(body.get("signature_name", "serving_default"))
    if signature is None:
        raise Refused(400, f"Serving signature name: {body['signature_name']!r} not found in signature def")
    rows = given == ["instances"]
    tensors = (of_rows if rows else of_columns)(body[given[0]], signature)
    outputs = signature.call(**tensors)
    return {"predictions": by_rows(outputs)} if rows else {"outputs": by_columns(outputs)}


def parsed(body):
    try:
        found = json.loads(body)  # NaN and infinities are read, too
    except ValueError as error:
        raise Refused(400, f"JSON Parse error: {error}") from None
    if not isinstance(found, dict):
        raise Refused(400, "Missing 'inputs' or 'instances' key")
    return found


def of_rows(rows, signature):
    """Read the row form: objects with exactly the names of the inputs, or bare values of the one that there is."""
    if not isinstance(rows, list) or not rows:
        raise Refused(400, f"JSON Value: {json.dumps(rows)} No values in 'instances' array")
    names = list(signature.inputs)
    if not named(rows[0]):
        if len(names) > 1:
            raise Refused(400, f"Failed to process element: 0 of 'instances' list. expecting object with {names}")
        rows = [{names[0]: row} for row in rows]
    for number, row in enumerate(rows):
        if not named(row) or set(row) != set(names):
            where = f"Failed to process element: {number} of 'instances' list. JSON object: {json.dumps(row)}"
            raise Refused(400, f"{where} keys must be equal to: {','.join(names)}")
    return {name: tensor([row[name] for row in rows], spec) for name, spec in signature.inputs.items()}


def of_columns(columns, signature):
    """Read the column form: an object of tensors, or the one bare tensor that there is."""
    names = list(signature.inputs)
    if not named(columns):
        columns = {names[0]: columns}
    if set(columns) != set(names):
        raise Refused(400, f"JSON object: {json.dumps(columns)} keys must be equal to: {','.join(names)}")
    tensors = {name: tensor(columns[name], spec) for name, spec in signature.inputs.items()}
    if len({len(one) for one in tensors.values()}) > 1:
        raise Refused(400, "the inputs have different numbers of rows")
    return tensors


def named(value):
    return isinstance(value, dict) and set(value) != {"b64"}


def tensor(value, spec):
    """Read nested lists as a tensor of a type: full, and of the shape that the signature has."""
    shape = shape_of(value)
    if len(shape) != len(spec.shape) + 1:
        raise Refused(400, f"Tensor name: x has inconsistent rank: {len(shape)}, expected {len(spec.shape) + 1}")
    leaves = [leaf(one, spec.kind) for one in flat(value, shape)]
    return np.array(leaves, dtype=object if spec.kind == "string" else spec.kind.replace("float", "f4")).reshape(shape)


def shape_of(value):
    return (len(value), *(shape_of(value[0]) if value else ())) if isinstance(value, list) else ()


def flat(value, shape):
    if not shape:
        if isinstance(value, list):
            raise Refused(400, f"JSON Value: {json.dumps(value)} Encountered list at unexpected level")
        return [value]
    if not isinstance(value, list) or len(value) != shape[0]:
        raise Refused(400, f"JSON Value: {json.dumps(value)} Expecting tensor size: {shape[0]} but got another")
    return [one for inner in value for one in flat(inner, shape[1:])]


def leaf(value, kind):
    """Read one value, which is of the type or none."""
    if kind == "string" and isinstance(value, dict):
        return b64decode(value["b64"], validate=True)
    fits = {"string": str, "bool": bool, "int32": int, "float": int | float, "double": int | float}[kind]
    if not isinstance(value, fits) or (kind != "bool" and isinstance(value, bool)):
        shown = {type(None): "Null", str: "String", bool: "Bool", dict: "Object"}.get(type(value), "Number")
        raise Refused(400, f"JSON Value: {json.dumps(value)} Type: {shown} is not of expected type: {kind}")
    if kind == "int32" and not -(2**31) <= value < 2**31:
        raise Refused(400, f"JSON Value: {value} Type: Number is not of expected type: int32")
    if kind in EXACT and isinstance(value, int) and abs(value) > EXACT[kind]:
        raise Refused(400, f"Cannot convert JSON value: {value} to {kind} without loss of precision.")
    return value.encode() if kind == "string" else value


def by_rows(outputs):
    count = len(next(iter(outputs.values())))
    rows = [{name: shown(name, values[row]) for name, values in outputs.items()} for row in range(count)]
    return rows if len(outputs) > 1 else [next(iter(row.values())) for row in rows]


def by_columns(outputs):
    columns = {name: [shown(name, one) for one in values] for name, values in outputs.items()}
    return columns if len(outputs) > 1 else next(iter(columns.values()))


def shown(name, value):
    """Write a value: bytes as base64 where the output's name says that it has such."""
    if isinstance(value, bytes):
        return {"b64": b64encode(value).decode()} if name.endswith("_bytes") else value.decode()
    if isinstance(value, np.ndarray | np.generic) and value.dtype == np.float32:
        return json.loads(f"[{','.join(map(str, value.ravel()))}]") if value.ndim else float(str(value))
    return value.tolist()

"""What a model package says of its requests and answers (`apis` in config.json), and whether rows fit it. Pure.

These files are written by hand, and most platforms never read them: what is no JSON Schema in them is left out rather
than believed. A list of one schema under `items` means every item, as its authors do; so do `item` and no type at all.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

import msgspec

from pipeline.pieces import Broken
from schemas.template import ROWS, mark_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import pyarrow as pa

    from pipeline.encode import Encoded
    from schemas.job import Job

Schema = dict[str, Any]

FILE: Final = "file"
"""A type that JSON Schema does not have; kept as a format, which says the same and is not checked."""

_TYPES: Final = frozenset({"string", "integer", "number", "boolean", "object", "array", "null"})
_PREDICTIONS: Final = {"string": "string", "integer": "int64", "number": "double", "boolean": "bool"}
_MESSAGE: Final = 300


class UnusableError(ValueError):
    """A file is no description of a model's interface, or of none that the job could call; the text says why."""


class _Api(NamedTuple):
    path: str
    method: str
    request: Schema
    response: Schema


def contract_of(document: object, urls: Sequence[str]) -> dict[str, Schema]:
    """Return the `request` and `response` of the interface that is called by `urls`, as proper JSON Schemas.

    `document` is a config.json, or what the management API says of a model: there the schemas are JSON texts. Raises
    UnusableError.
    """
    apis = [_api(one) for one in _apis(document)]
    chosen = [_chosen(apis, url) for url in urls]
    if any(one != chosen[0] for one in chosen):
        raise UnusableError("its apis differ for the URLs of the service; allowed: URLs with one custom path")
    return {"request": chosen[0].request, "response": chosen[0].response}


def _apis(document: object) -> list[dict[str, Any]]:
    found = _parsed(document)
    if isinstance(found, dict):
        if "apis" not in found and "config" in found:
            return _apis(found["config"])
        found = _parsed(found["apis"]) if "apis" in found else [found] if "input_params" in found else None
    apis = [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
    if not apis:
        raise UnusableError('it has no "apis"; allowed: the config.json of a model package')
    return apis


def _parsed(value: object) -> Any:
    """Read JSON that stands as text in JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return None


def _api(api: Mapping[str, Any]) -> _Api:
    request, response = (_part(api, *names) for names in (("request", "input_params"), ("response", "output_params")))
    url, method = api.get("url"), api.get("method")
    path = "/" + (url if isinstance(url, str) else "").strip("/")
    return _Api(path, (method if isinstance(method, str) else "post").lower(), request, response)


def _part(api: Mapping[str, Any], name: str, params: str) -> Schema:
    part = _parsed(api.get(name))
    data = _parsed(part.get("data")) if isinstance(part, dict) else _parsed(api.get(params))
    if isinstance(data, list):  # one entry a parameter, each with its schema as a text
        named = (one for one in data if isinstance(one, dict) and isinstance(one.get("param_name"), str))
        data = {"properties": {one["param_name"]: _param(one) for one in named}}
    return normal(data)


def _param(param: Mapping[str, Any]) -> object:
    described = _parsed(param.get("param_desc"))
    return described if isinstance(described, dict) else {"type": param.get("param_type")}


def _chosen(apis: Sequence[_Api], url: str) -> _Api:
    """Find the interface that a URL calls: by its custom path at the end, or the only one there is."""
    path = "/" + urlsplit(url).path.strip("/")
    fits = [one for one in apis if one.path == "/" or path.endswith(one.path)] if len(apis) > 1 else list(apis)
    if not fits:
        raise UnusableError(f"none of its apis is at {path}; it has: {', '.join(one.path for one in apis)}")
    return max(fits, key=lambda one: (len(one.path), one.method == "post"))


def normal(schema: object) -> Schema:
    """Return a schema as JSON Schema 2020-12 has it, without what is none; columns it does not name are allowed."""
    if not isinstance(schema, dict):
        return {}
    found = {key: schema[key] for key, is_sound in _RULES.items() if key in schema and is_sound(schema[key])}
    found = {key: value for key, value in found.items() if _compiles({key: value})}
    kinds = schema.get("type")
    known = [one for one in (kinds if isinstance(kinds, list) else [kinds]) if isinstance(one, str) and one in _TYPES]
    if known and (not isinstance(kinds, list) or len(known) == len(kinds)):
        found["type"] = known if len(known) > 1 else known[0]
    elif kinds == FILE:
        found["format"] = FILE
    properties = schema.get("properties")
    if isinstance(properties, dict):
        found["properties"] = {name: normal(one) for name, one in properties.items()}
    return found | _items(schema.get("items", schema.get("item")))


def _items(items: object) -> Schema:
    if isinstance(items, list) and len(items) > 1:  # a tuple
        return {"prefixItems": [normal(one) for one in items]}
    one = items[0] if isinstance(items, list) and items else items
    return {"items": normal(one)} if isinstance(one, dict) else {}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _compiles(rule: Schema) -> bool:
    """Whether the validator takes a rule: its patterns are not Python's, and it has neither NaN nor infinity."""
    from jsonschema_rs import Draft202012Validator, ValidationError

    try:
        json.dumps(rule, allow_nan=False)
        Draft202012Validator(rule)
    except (ValidationError, ValueError, TypeError, OverflowError):
        return False
    return True


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value) and len(set(value)) == len(value)


_RULES: Final[dict[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _is_number),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), _is_count),
    "multipleOf": lambda value: _is_number(value) and value > 0,
    "pattern": lambda value: isinstance(value, str),
    "required": _is_names,
    "enum": lambda value: isinstance(value, list) and bool(value),
    "const": lambda _: True,
}
"""The rules that are checked, and what each must look like; what else is in a schema, such as `index`, is no rule."""


class Rows(NamedTuple):
    """What is said of one row; `wrapped` if `req_data` is below `data`."""

    schema: Schema
    wrapped: bool


def rows_of(contract: Mapping[str, Schema]) -> Rows | None:
    """Find what is said of the rows of a request; None where there is no `req_data`."""
    return _rows(contract["request"], "req_data")


def prediction_of(contract: Mapping[str, Schema]) -> dict[str, str]:
    """Return the fields of an answer with their Arrow types; none where one of them has no single type."""
    rows = _rows(contract["response"], "resp_data")
    named = _properties(rows.schema) if rows else {}
    types = {name: _PREDICTIONS.get(str(_only_type(one))) for name, one in named.items()}
    return {name: kind for name, kind in types.items() if kind} if all(types.values()) else {}


def promised(job: Job) -> frozenset[str]:
    """Return the fields of which each answer has one at least: those of a prediction that the schema alone declares."""
    contract, declared = job.service.contract, job.output.prediction
    derived = contract is not None and job.service.protocol == "modelarts" and declared == prediction_of(contract)
    return frozenset(declared if derived else ())


def _only_type(schema: Schema) -> object:
    kinds = schema.get("type")
    some = [one for one in kinds if one != "null"] if isinstance(kinds, list) else [kinds]
    return some[0] if len(some) == 1 else None


def _rows(schema: Schema, name: str) -> Rows | None:
    top = _properties(schema)
    for level, wrapped in ((_properties(top.get("data", {})), True), (top, False)):
        if name in level:
            return Rows(_item(level[name]), wrapped)
    return None


def _item(schema: Schema) -> Schema:
    item: Schema = schema.get("items") or next(iter(schema.get("prefixItems", ())), {})
    return item


def _properties(schema: Schema) -> dict[str, Schema]:
    named: dict[str, Schema] = schema.get("properties", {})
    return named


def inputs(contract: Mapping[str, Schema]) -> dict[str, Schema]:
    """Return the inputs of a request by their names; none where nothing is said of them."""
    return _properties(contract["request"])


def strange_keys(template: object, schema: Schema, place: tuple[str, ...] = ()) -> Iterator[tuple[str, list[str]]]:
    """Yield the keys of a template that the schema does not have, by their dotted place, with those that it has."""
    mark = mark_of(template)
    if mark:
        if mark[0] == ROWS:
            yield from strange_keys(mark[1], _item(schema), place)
    elif isinstance(template, list):
        for one in template:
            yield from strange_keys(one, _item(schema), place)
    elif isinstance(template, dict) and _properties(schema):
        for name, inner in template.items():
            if name in _properties(schema):
                yield from strange_keys(inner, _properties(schema)[name], (*place, name))
            else:
                yield ".".join((*place, name)), list(_properties(schema))


def in_words(contract: Mapping[str, Schema]) -> str:
    """Say in a line what rows are checked for."""
    rows = rows_of(contract)
    named = _properties(rows.schema) if rows else inputs(contract)
    fields = ", ".join(f"{name} ({one.get('type', one.get('format', 'anything'))})" for name, one in named.items())
    return fields or "nothing, for it names no fields"


class RowCheck:
    """Checks encoded rows against what is said of one. Compiled once; for any thread.

    Rows are sent with all their keys, so that a null says that there is no value: it fits, whatever type the field has,
    unless the field is `required`.
    """

    def __init__(self, schema: Schema) -> None:
        from jsonschema_rs import Draft202012Validator  # a job without a schema does without

        self._schema = schema
        self._one = Draft202012Validator(schema)
        self._all = Draft202012Validator({"items": schema})

    def unfit(self, encoded: Encoded, uris: pa.Array[Any] | None = None) -> dict[int, Broken]:
        """Return the rows that do not fit, by position; `uris` are their files, where rows are files."""
        rows = _decoded(encoded.lines)
        if self._all.is_valid(rows):
            return {}
        found = {}
        for position, row in enumerate(_without_nulls(row, self._schema) for row in rows):
            if position not in encoded.refused and not self._one.is_valid(row):
                shown = _line(encoded, position) if uris is None else msgspec.json.encode(uris[position].as_py())
                found[position] = Broken("rejected", self._why(row), shown)
        return found

    def _why(self, row: object) -> str:
        error = next(self._one.iter_errors(row))
        place = ".".join(map(str, error.instance_path))
        told = f"{place}: {error.message}" if place else error.message
        return f"not sent, by service.schema: {told[:_MESSAGE]}"


def _without_nulls(value: object, schema: Schema) -> object:
    """Leave out the keys that are null and that nobody requires."""
    if isinstance(value, list):
        ahead = schema.get("prefixItems", ())
        return [
            _without_nulls(one, ahead[at] if at < len(ahead) else schema.get("items", {}))
            for at, one in enumerate(value)
        ]
    if not isinstance(value, dict):
        return value
    named, required = _properties(schema), schema.get("required", ())
    return {
        name: _without_nulls(one, named.get(name, {}))
        for name, one in value.items()
        if one is not None or name in required
    }


_DECODER: Final = msgspec.json.Decoder()


def _decoded(lines: bytes) -> list[Any]:
    try:
        return _DECODER.decode_lines(lines)
    except msgspec.DecodeError:  # numbers beyond 64 bits
        return [json.loads(line) for line in lines.splitlines()]


def _line(encoded: Encoded, position: int) -> bytes:
    start = int(encoded.ends[position - 1]) if position else 0
    return encoded.lines[start : int(encoded.ends[position]) - 1]

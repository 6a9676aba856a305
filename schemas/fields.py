"""The types of the job file's keys: how each is checked, written back, and described in the JSON Schema.

Values under `auth` and `headers` may be secrets: no message here shows one.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)

from schemas import values
from schemas.secret import REFERENCE, Secret
from schemas.template import jmes_path, template
from schemas.values import Allowance, InvalidValueError, Rate

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

Mark = Literal["answers", "verdict", "speed", "place"]


class Part(BaseModel):
    """A mapping of the job file: frozen; an unknown key is an error, and null means the default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _null_is_default(cls, given: object) -> object:
        if not isinstance(given, dict):
            return given
        return {key: value for key, value in given.items() if value is not None or key not in cls.model_fields}


def marked(changes: Mark, description: str) -> FieldInfo:
    """Describe one key, and say what a change of it changes."""
    info: FieldInfo = Field(description=description, json_schema_extra={"x-changes": changes})
    return info


def _callable_url(value: str) -> bool:
    try:
        parts = urlsplit(value)
        return (
            parts.scheme in {"http", "https", "ws", "wss"}
            and bool(parts.hostname)
            and parts.port != 0
            and " " not in value
        )
    except ValueError:
        return False


def _url(value: str) -> str:
    """Take a URL that can be called; refuse one with a password in it without showing it."""
    if re.match(r"[^/]*//[^/]*@", value):
        raise InvalidValueError("a URL may not carry a user or a password; use service.auth")
    if not _callable_url(value):
        raise InvalidValueError(
            f"{values.shown(value)} is not a URL to call; allowed: http://host/path or https://host/path",
        )
    return value


def _urls(value: object) -> tuple[str, ...]:
    return tuple(_url(one) for one in values.one_or_more(value))


def _literal_or_reference(value: object) -> Secret | str:
    """Under `auth`: text, or a reference that is kept as one. What was found is never shown."""
    if isinstance(value, Secret):
        return value
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise InvalidValueError("is not text on one line; put numbers in quotes")
    return Secret(value) if REFERENCE.search(value) else value


def _auth_url(value: object) -> Secret | str:
    found = _literal_or_reference(value)
    if isinstance(found, Secret):
        return found
    if not _url(found).rstrip("/").endswith("/v3"):
        raise InvalidValueError(f"{values.shown(found)} is not the URL of IAM v3; allowed: a URL that ends in /v3")
    return found.rstrip("/")


def _reference(value: object) -> Secret:
    """Take one reference and nothing else; refuse a literal without showing it."""
    text = value.text if isinstance(value, Secret) else value
    if not isinstance(text, str) or not REFERENCE.fullmatch(text):
        raise InvalidValueError("a secret is named by reference: ${env:NAME} or ${file:path}")
    return value if isinstance(value, Secret) else Secret(text)


def _headers(value: object) -> dict[str, Secret]:
    """Header values are all kept as `Secret`: a literal one may be a secret too."""
    if not isinstance(value, dict):
        raise InvalidValueError("is not a mapping; allowed: header names with their values")
    for name in value:
        _header_name(name)
    if len({name.lower() for name in value}) < len(value):
        raise InvalidValueError("a header is given twice; upper and lower case are the same")
    return {name: _header(name, one) for name, one in value.items()}


def _header_name(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", value):
        raise InvalidValueError(f"{values.shown(value)} is not a header's name")
    return value


def _plain(value: object) -> str:
    """Take ASCII text on one line, which may be empty or have space around it."""
    if not isinstance(value, str) or not value.isascii() or (value and not value.isprintable()):
        raise InvalidValueError(f"{values.shown(value)} is not text on one line, in ASCII")
    return value


def _header(name: str, value: object) -> Secret:
    if isinstance(value, Secret):
        return value
    if not isinstance(value, str) or not value.isprintable() or value != value.strip() or not value.isascii():
        raise InvalidValueError(f"the value of {name!r} is not text on one line, in ASCII, without space around it")
    return Secret(value)


def _maybe_texts(value: object) -> tuple[str, ...]:
    return () if value in ([], ()) else values.texts(value)


def _constants(value: object) -> dict[str, Any]:
    """Take form fields: constants, or `{"$column": name}`."""
    if not isinstance(value, dict):
        raise InvalidValueError(f"{values.shown(value)} is not a mapping; allowed: names of fields with their values")
    for name, one in value.items():
        column = isinstance(one, dict) and list(one) == ["$column"] and isinstance(one["$column"], str)
        if not (column or isinstance(one, str | int | float)):
            allowed = 'text, a number, true, false, or {"$column": name}'
            raise InvalidValueError(f"{values.shown(one)} is not allowed for {name!r}; allowed: {allowed}")
    return value


def _contract(value: object) -> object:
    """Take the path of a file; what is read of it takes its place."""
    if isinstance(value, dict | list):
        raise values.InvalidValueError(f"{values.shown(value)} is no path; put it into a file; allowed: its path")
    return values.text(value)


_TEXT = {"type": "string", "minLength": 1}
_LIST = {"type": "array", "items": _TEXT, "uniqueItems": True}
_ONE_OR_MORE = WithJsonSchema({"anyOf": [_TEXT, _LIST]})
_ONE_REFERENCE = WithJsonSchema({"type": "string", "pattern": r"^\$\{[^}]+\}$"})
_AS_TEXT = PlainSerializer(str, return_type=str)


def _number_or(pattern: str, kind: str = "number") -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [{"type": kind, "minimum": 0}, {"type": "string", "pattern": pattern}]})


Text = Annotated[str, BeforeValidator(values.text), WithJsonSchema(_TEXT)]
Texts = Annotated[tuple[str, ...], BeforeValidator(values.texts), WithJsonSchema(_LIST)]
MaybeTexts = Annotated[tuple[str, ...], BeforeValidator(_maybe_texts), WithJsonSchema(_LIST)]
Character = Annotated[
    str,
    BeforeValidator(values.character),
    WithJsonSchema({"type": "string", "pattern": r"^[\x01-\x09\x0b\x0c\x0e-\x7f]$"}),
]
MaybeCharacter = Annotated[
    str,
    BeforeValidator(values.maybe_character),
    WithJsonSchema({"type": "string", "pattern": r"^[\x01-\x09\x0b\x0c\x0e-\x7f]?$"}),
]
Encoding = Annotated[str, BeforeValidator(values.encoding), WithJsonSchema(_TEXT)]
Paths = Annotated[tuple[str, ...], BeforeValidator(values.one_or_more), _ONE_OR_MORE]
Urls = Annotated[tuple[str, ...], BeforeValidator(_urls), _ONE_OR_MORE]
Params = Annotated[
    dict[str, str],
    WithJsonSchema({"type": "object", "additionalProperties": {"type": ["string", "number", "boolean", "null"]}}),
]
Flag = Annotated[bool, BeforeValidator(values.flag)]
Count = Annotated[int, BeforeValidator(values.count), WithJsonSchema({"type": "integer", "minimum": 1})]
MaybeCount = Annotated[int, BeforeValidator(values.maybe_count), WithJsonSchema({"type": "integer", "minimum": 0})]
Rows = Annotated[
    int, BeforeValidator(values.rows), WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 10_000})
]
Size = Annotated[int, BeforeValidator(values.size), _number_or(values.SIZE_PATTERN, "integer")]
Duration = Annotated[float, BeforeValidator(values.duration), _number_or(values.DURATION_PATTERN)]
SomeTime = Annotated[float, BeforeValidator(values.some_time), _number_or(values.DURATION_PATTERN)]
PerTime = Annotated[
    Rate,
    PlainValidator(Rate.read),
    _AS_TEXT,
    WithJsonSchema({"type": "string", "pattern": values.RATE_PATTERN}),
]
Allowed = Annotated[Allowance, PlainValidator(Allowance.read), _AS_TEXT, _number_or(values.PERCENT_PATTERN, "integer")]
Word = Annotated[Secret | str, PlainValidator(_literal_or_reference), _AS_TEXT, WithJsonSchema(_TEXT)]
AuthUrl = Annotated[Secret | str, PlainValidator(_auth_url), _AS_TEXT, WithJsonSchema(_TEXT)]
Hidden = Annotated[Secret, PlainValidator(_reference), _AS_TEXT, _ONE_REFERENCE]
HeaderName = Annotated[str, BeforeValidator(_header_name), WithJsonSchema(_TEXT)]
Plain = Annotated[str, BeforeValidator(_plain), WithJsonSchema({"type": "string"})]
Form = Annotated[dict[str, Any], PlainValidator(_constants), WithJsonSchema({"type": "object"})]
Template = Annotated[Any, BeforeValidator(template), WithJsonSchema({"type": ["object", "array"]})]
JmesPath = Annotated[str, BeforeValidator(jmes_path), WithJsonSchema(_TEXT)]
Contract = Annotated[Any, BeforeValidator(_contract), WithJsonSchema(_TEXT)]
Headers = Annotated[
    dict[str, Secret],
    PlainValidator(_headers),
    PlainSerializer(lambda headers: {name: str(value) for name, value in headers.items()}, return_type=dict[str, str]),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": "string"}}),
]

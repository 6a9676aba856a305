"""The JSON Schema of the job file as people write it, for editors and other tools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from schemas.fields import Part
from schemas.job import Job

if TYPE_CHECKING:
    from collections.abc import Iterator

_SUBSTITUTED: Final = {"type": "string", "pattern": r"\$\{[^}]+\}"}
_NULL: Final = {"type": "null"}


def json_schema() -> dict[str, Any]:
    """Describe every key: what it takes, what it is for, what its change changes. Always the same."""
    schema = Job.model_json_schema()
    defaults = {part.__name__: _defaults(part) for part in _parts(Part)}
    for title, part in (("Job", schema), *schema["$defs"].items()):
        for name, field in part["properties"].items():
            part["properties"][name] = _as_written(field, defaults[title].get(name))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "bulkscore job file"}


def _defaults(part: type[Part]) -> dict[str, Any]:
    return part.model_construct().model_dump(mode="json", by_alias=True, warnings=False)


def _parts(part: type[Part]) -> Iterator[type[Part]]:
    for one in part.__subclasses__():
        yield one
        yield from _parts(one)


def _as_written(field: dict[str, Any], default: object) -> dict[str, Any]:
    """Let a value be null where there is a default, and a `${...}` text wherever a single value is expected."""
    about: dict[str, Any] = {key: field[key] for key in ("description", "x-changes") if key in field}
    optional = "default" in field
    takes = {key: value for key, value in field.items() if key not in (*about, "title", "default", "discriminator")}
    if "const" in takes:
        return {**takes, **about}
    ways = list(takes.get("anyOf", [takes]))
    if "x-changes" in about:
        about |= {"default": default} if optional else {}
        ways += [_SUBSTITUTED] if any(_single(way) for way in ways) and not any(_any_text(way) for way in ways) else []
    ways += [_NULL] if optional and _NULL not in ways else []
    return {"anyOf": ways, **about} if len(ways) > 1 else {**ways[0], **about}


def _single(way: dict[str, Any]) -> bool:
    return way.get("type") in ("string", "integer", "number", "boolean") or "enum" in way


def _any_text(way: dict[str, Any]) -> bool:
    return way.get("type") == "string" and not {"pattern", "enum", "const"} & set(way)

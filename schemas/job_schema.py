"""The JSON Schema of the job file as people write it, for editors and other tools."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from pydantic import PydanticUserError

from schemas import plugins
from schemas.fields import Part
from schemas.job import Job
from schemas.options import OPTIONS
from schemas.values import InvalidValueError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from schemas.transported import Options

_SUBSTITUTED: Final = {"type": "string", "pattern": r"\$\{[^}]+\}"}
_NULL: Final = {"type": "null"}


def json_schema() -> dict[str, Any]:
    """Describe every key: what it takes, what it is for, what its change changes.

    Always the same, but for the protocols of other packages that are installed.
    """
    schema = Job.model_json_schema()
    defaults = {part.__name__: _defaults(part) for part in _parts(Part) if part.__module__.startswith("schemas.")}
    for title, part in (("Job", schema), *schema["$defs"].items()):
        for name, field in part["properties"].items():
            part["properties"][name] = _as_written(field, defaults[title].get(name))
    for protocol in sorted(set(plugins.given()) - set(OPTIONS)):
        with suppress(InvalidValueError, PydanticUserError):  # it disturbs only the job that names it
            _add(protocol, plugins.plugin_of(protocol).options, schema["$defs"])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "bulkscore job file"}


def _add(protocol: str, options: type[Options], definitions: dict[str, Any]) -> None:
    """Let a job name the protocol of another package, and have its options."""
    described = options.model_json_schema(ref_template=f"#/$defs/{protocol}.{{model}}")
    service = definitions["Service"]["properties"]
    for way in service["protocol"]["anyOf"]:
        if "enum" in way:
            way["enum"].append(protocol)
    own = {**described.pop("$defs", {}), options.__name__: described}
    for name, part in own.items():
        for key, field in part.get("properties", {}).items():
            part["properties"][key] = _as_written(field, field.get("default"))
        definitions[f"{protocol}.{name}"] = part
    service["options"]["anyOf"].append({"$ref": f"#/$defs/{protocol}.{options.__name__}"})


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

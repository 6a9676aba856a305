"""What a job amounts to: its form without secrets, the fingerprint of its answers, and the secrets missing here."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic_core import to_jsonable_python

from schemas.job import Job, leaves, mark_of, marks
from schemas.options import options_of
from schemas.secret import Secret, Unresolved
from schemas.values import InvalidValueError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic.fields import FieldInfo


def resolved(job: Job) -> dict[str, Any]:
    """Write the job as JSON values, every key present: references as their text, literal headers as `***`."""
    return job.model_dump(mode="json", by_alias=True)


def fingerprint(job: Job) -> str:
    """Hash what decides the answers: 64 hex digits.

    Keys at their default are left out, so that a key added by a later version changes no old job's fingerprint.
    """
    document = resolved(job)
    defaults = _defaults(document)
    told = {path: value for path, value in _answers(document).items() if value != defaults[path]}
    return hashlib.sha256(_canonical(told).encode()).hexdigest()


def changed_answers(old: dict[str, Any], job: Job) -> list[str]:
    """List the keys whose change may change answers since `old` (a `resolved` job), with both values."""
    new = resolved(job)
    before, after = _defaults(new) | _answers(old), _answers(new)
    return [
        f"{path}: was {_canonical(before[path])}, is {_canonical(after[path])}"
        for path in after
        if _canonical(before[path]) != _canonical(after[path])
    ]


def missing_secrets(job: Job, environ: Mapping[str, str] = os.environ) -> list[str]:
    """List, a line each, the references of the job that lead nowhere on this machine; what is found is not kept."""
    lines = []
    for secret in _secrets(job):
        try:
            secret.resolve(environ)
        except Unresolved as missing:
            lines.append(str(missing))
    return lines


def _secrets(job: Job) -> Iterator[Secret]:
    held = {"auth": dict(job.service.auth), "headers": job.service.headers}
    for part, values in held.items():
        for name, value in values.items():
            if isinstance(value, Secret):
                yield replace(value, key=f"service.{part}.{name}")


def _answers(document: dict[str, Any]) -> dict[str, Any]:
    """Pick what decides the answers; a key that the document does not know, or that is null, has its default."""
    told = {path: (_at(document, path), default) for path, default in _defaults(document).items()}
    return {path: default if value is None else value for path, (value, default) in told.items()}


def _defaults(document: dict[str, Any]) -> dict[str, Any]:
    """Give what decides the answers at its default: a key that several protocols have, as the document's has it."""
    protocol = document["service"]["protocol"]
    try:
        own = dict(leaves(options_of(protocol), "service.options."))
    except InvalidValueError:  # an older job's, whose package is gone
        own = {}
    told = _every_default() | {path: _default(field) for path, field in own.items()}
    return {path: default for path, default in told.items() if path not in own or mark_of(own[path]) == "answers"}


@cache
def _every_default() -> dict[str, Any]:
    answering = [path for path, mark in marks().items() if mark == "answers"]
    first = dict(reversed([*leaves()]))
    return {path: _default(first[path]) for path in answering}


def _default(field: FieldInfo) -> Any:
    return None if field.is_required() else to_jsonable_python(field.get_default(call_default_factory=True))


def _at(document: Any, path: str) -> Any:
    for key in path.split("."):
        document = document.get(key) if isinstance(document, dict) else None
    return document


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

"""From a job file to a `Job`: read, `--set`, parameters, references, absolute paths, checks.

All that is wrong is said at once, a line each. References under `service.auth` and `service.headers` stay references
(they are secrets, looked up by the worker); elsewhere they are replaced here, on the machine that submits.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from pipeline import jobyaml
from pipeline.errors import JobError
from pipeline.jobchecks import Problem, contradictions, in_words, nearest, secret_place, undecided
from pipeline.jobprint import changed_answers, fingerprint, missing_secrets, resolved
from schemas.job import Job
from schemas.job_schema import json_schema
from schemas.secret import REFERENCE, Secret, Unresolved, expand
from schemas.values import form_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import date

    from pipeline.jobyaml import Document, Keys

__all__ = ["changed_answers", "fingerprint", "json_schema", "load", "missing_secrets", "resolved"]

_NAMED: Final = re.compile(r"\$\{([^${}]*)\}")
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_PATHS: Final = {
    ("input", "path"),
    ("output", "path"),
    ("service", "schema"),
    ("service", "tls", "ca"),
    ("service", "tls", "cert"),
    ("service", "tls", "key"),
}
_FROM_ENVIRONMENT: Final = {
    "auth_url": "OS_AUTH_URL",
    "user": "OS_USERNAME",
    "domain": "OS_USER_DOMAIN_NAME",
    "password": "OS_PASSWORD",
}
_PROJECT: Final = {"project_id": "OS_PROJECT_ID", "project": "OS_PROJECT_NAME"}


def load(
    path: str | Path,
    *,
    params: Mapping[str, str] = {},
    sets: Mapping[str, str] = {},
    environ: Mapping[str, str] = os.environ,
    today: date,
) -> Job:
    """Read a job file; `today` is the UTC date behind `${today}` and `${yesterday}`.

    Paths in it are relative to its own folder, and absolute in the `Job`. Raises `JobError`, a line for each problem.
    """
    try:
        document = jobyaml.read(Path(path))
    except jobyaml.NotReadableError as error:
        raise JobError(f"{_place(path, error.line, error.column)}: {error}") from None
    loading = _Loading(document, Path(path).absolute().parent, environ)
    job = loading.job(params, sets, today)
    if loading.problems or job is None:
        raise JobError("\n".join(_lines(path, document, loading.problems)))
    return job


def _place(path: str | Path, line: int, column: int = 0) -> str:
    return ":".join(str(part) for part in (path, line, column) if part)


def _lines(path: str | Path, document: Document, problems: list[Problem]) -> list[str]:
    """Write the problems in the order of the file; under another version of its form, no other key means anything."""
    told = [
        (keys, said) for keys, said in problems if keys == ("version",) and "version" in document.values
    ] or problems
    told = list(dict.fromkeys(told))
    placed = sorted(((document.line(keys), ".".join(keys), said) for keys, said in told), key=lambda one: one[0])
    return [f"{_place(path, line)}: {keys}: {said}" for line, keys, said in placed]


@dataclass
class _Loading:
    """One load: what the file holds, and all that is wrong with it so far."""

    document: Document
    folder: Path
    environ: Mapping[str, str]
    problems: list[Problem] = field(default_factory=list)

    def job(self, params: Mapping[str, str], sets: Mapping[str, str], today: date) -> Job | None:
        values = self.document.values
        for dotted, text in sets.items():
            self.put(values, tuple(dotted.split(".")), text)
        names = self.parameters(values.get("params"), params, today)
        values = self.walked(values, (), lambda text, keys: self.substituted(text, keys, names))
        values = self.walked(values, (), self.looked_up)
        _default_credentials(values, self.environ)
        return self.checked(values)

    def put(self, values: dict[str, Any], keys: Keys, text: str) -> None:
        """Put the value of `--set key.path=value` in its place."""
        *above, last = keys
        for depth, key in enumerate(above):
            if values.get(key) is None:
                values[key] = {}
            inner: object = values[key]
            if not isinstance(inner, dict):
                self.problems.append((keys, f"--set finds no mapping at {'.'.join(keys[: depth + 1])}"))
                return
            values = inner
        try:
            values[last] = text if above[:1] == ["params"] else jobyaml.parse(text)
        except jobyaml.NotReadableError as error:
            self.problems.append((keys, f"the value of --set {error}"))
        self.document.forget(keys)

    def parameters(self, declared: object, given: Mapping[str, str], today: date) -> dict[str, str]:
        """Give every parameter's text: the dates, then the file's own in their order, each seeing those before it."""
        names = {"today": today.isoformat(), "yesterday": (today - timedelta(days=1)).isoformat()}
        known: dict[str, Any] = declared if isinstance(declared, dict) else {}
        for name in given:
            if name not in known:
                hint = nearest(name, known) if known else "the file declares none"
                self.problems.append((("params", name), f"--param {name} is not declared under params; {hint}"))
        for name, default in known.items():
            keys, text = ("params", name), given.get(name, default)
            if text is None:
                self.problems.append((keys, f"has no value; give one with --param {name}=..."))
            names[name] = self.substituted(text, keys, dict(names)) if isinstance(text, str) else ""
            known[name] = names[name] if isinstance(text, str | None) else text
        return names

    def walked(self, value: Any, keys: Keys, change: Callable[[str, Keys], Any]) -> Any:
        """Give a copy in which every text has been changed."""
        if isinstance(value, dict):
            return {key: self.walked(one, (*keys, key), change) for key, one in value.items()}
        if isinstance(value, list):
            return [self.walked(one, keys, change) for one in value]
        return change(value, keys) if isinstance(value, str) else value

    def substituted(self, text: str, keys: Keys, names: Mapping[str, str]) -> str:
        """Put parameters in; references to the environment and to files stay for later."""

        def named(match: re.Match[str]) -> str:
            name = match[1]
            if REFERENCE.fullmatch(match[0]) or name in names:
                return names.get(name, match[0])
            hint = nearest(name, [*names, "env:NAME", "file:path"])
            self.problems.append((keys, f"{match[0]} is not a parameter; {hint}"))
            return ""

        if "${" in _NAMED.sub("", _NAMED.sub("", text)):
            self.problems.append((keys, "a ${ without its }"))
            return text
        return _NAMED.sub(named, text)

    def looked_up(self, text: str, keys: Keys) -> Secret | str:
        """Look references up, or keep them where they are secrets; and make paths absolute."""
        if secret_place(keys):
            absolute = REFERENCE.sub(self._absolute_file, text)
            return Secret(absolute, ".".join(keys)) if REFERENCE.search(text) else text
        if keys[:1] == ("params",):
            return text
        try:
            found = expand(text, self.environ, self.folder)
        except Unresolved as error:
            self.problems.append((keys, str(error)))
            return text
        return _absolute(found, self.folder) if keys in _PATHS else found

    def _absolute_file(self, match: re.Match[str]) -> str:
        kind, name = match.groups()
        return match[0] if kind == "env" else f"${{file:{_absolute(name, self.folder)}}}"

    def checked(self, values: dict[str, Any]) -> Job | None:
        """Make the job; a key that is known to be wrong is not blamed twice."""
        blamed = {keys for keys, _ in self.problems}
        try:
            job = Job.model_validate(values)
        except ValidationError as error:
            service = values.get("service")
            protocol = service.get("protocol", "modelarts") if isinstance(service, dict) else None
            found = [in_words(one, protocol) for one in error.errors(include_url=False)]
            self.problems += [(keys, said) for keys, said in found if keys not in blamed]
            return None
        if not blamed:
            job = self.with_contract(self.with_format(job))
            self.problems += contradictions(job)
        return job

    def with_format(self, job: Job) -> Job:
        """Fill in the form of the input where the file does not name it: all paths must tell the same one."""
        if "format" in job.input.model_fields_set:
            return job
        told = {path: form_of(path) for path in job.input.path if not Path(path).is_dir()}
        if len(told) < len(job.input.path):  # whoever looks for the files will say that this is a folder
            return job
        if len(set(told.values())) > 1 or None in told.values():
            self.problems.append((("input", "format"), undecided(told)))
            return job
        derived = job.input.model_copy(update={"format": told[job.input.path[0]]})
        return job.model_copy(update={"input": derived})

    def with_contract(self, job: Job) -> Job:
        """Read what the model package says; workers elsewhere do not have its file, so the job carries it."""
        path = job.service.contract
        if not isinstance(path, str):
            return job
        from pipeline.contract import contract_of, prediction_of  # few jobs need it

        try:
            contract = contract_of(json.loads(Path(path).read_bytes()), job.service.url)
        except (OSError, ValueError, RecursionError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            self.problems.append((("service", "schema"), f"{path}: {why}"))
            return job.model_copy(update={"service": job.service.model_copy(update={"contract": None})})
        changes: dict[str, Any] = {"service": job.service.model_copy(update={"contract": contract})}
        if job.service.protocol == "modelarts" and "prediction" not in job.output.model_fields_set:
            changes["output"] = job.output.model_copy(update={"prediction": prediction_of(contract)})
        return job.model_copy(update=changes)


def _absolute(path: str, folder: Path) -> str:
    """Make a path absolute; URLs and paths with a Windows drive are left alone, and so is nothing at all."""
    if not path.strip() or _URL.match(path) or PureWindowsPath(path).drive:
        return path
    return os.path.normpath(folder / path)


def _default_credentials(values: dict[str, Any], environ: Mapping[str, str]) -> None:
    """Let the `OS_*` variables stand for what `auth: {type: token}` leaves out."""
    service = values.get("service")
    auth = service.get("auth") if isinstance(service, dict) else None
    if not isinstance(auth, dict) or auth.get("type") != "token" or auth.get("token") is not None:
        return
    project = next(([(key, name)] for key, name in _PROJECT.items() if environ.get(name)), [])
    has_project = any(auth.get(key) is not None for key in _PROJECT)
    for key, name in [*_FROM_ENVIRONMENT.items(), *([] if has_project else project)]:
        if auth.get(key) is None:
            auth[key] = Secret(f"${{env:{name}}}", f"service.auth.{key}")

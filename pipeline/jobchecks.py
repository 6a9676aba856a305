"""What is wrong with a job file, in words: for each problem its key, what was found and what is allowed."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Final, get_args

from pipeline.addresses import misaddressed
from pipeline.errors import JobError
from pipeline.jobyaml import Keys
from pipeline.serverchecks import server_problems
from pipeline.typenames import NoSuchTypeError, named
from schemas.auth import AUTHS, AkSkAuth, AppKeyAuth, TokenAuth
from schemas.job import OUR_COLUMNS, InputFormat, Job, leaves
from schemas.options import OPTIONS, FileOptions, JsonOptions, ModelArtsOptions, known, options_of
from schemas.servers import ChatOptions, EmbeddingsOptions, MindSporeOptions, OpenInferenceOptions
from schemas.template import flattens_answers, one_row
from schemas.transported import Options
from schemas.values import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

    from schemas.fields import Part

Problem = tuple[Keys, str]

_AUTH: Final = ("service", "auth")
_SECRET: Final = (_AUTH, ("service", "headers"))
_OPTIONS: Final = ("service", "options")
SIGNED_BODY: Final = 12_000_000
"""Bytes of the largest body that the gateway takes with a signature."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Say which known name was probably meant, and which there are."""
    names = list(known)
    close = [] if name in names else difflib.get_close_matches(name, names, n=1)
    meant = f"did you mean {close[0]!r}? " if close else ""
    return f"{meant}allowed: {', '.join(names)}"


def secret_place(keys: Keys) -> bool:
    """Tell whether a value there may be a secret: kept as a reference, and never shown."""
    return keys[:2] in _SECRET


def in_words(error: ErrorDetails, protocol: object) -> Problem:
    """Put one of pydantic's findings into the job file's words; options are those of `protocol`."""
    if error["loc"][:2] == _OPTIONS and error["type"] == "extra_forbidden":
        name = str(error["loc"][2])
        return (*_OPTIONS, name), _unknown_option(name, _options_of(protocol))
    say = _WORDS.get(error["type"])
    keys = _keys(error["loc"])
    if error["type"].startswith("union_tag"):
        keys = (*keys, "type")
    if error["type"] == "missing" and keys[:2] == _OPTIONS:
        return keys, _missing(error, keys, dict(leaves(_options_of(protocol), "service.options.")))
    return keys, say(error, keys) if say else error["msg"]


def _options_of(protocol: object) -> type[Options]:
    """Return the options that a job file's may have; what is no protocol is blamed elsewhere."""
    return options_of(protocol) if isinstance(protocol, str) and protocol in known() else Options


def _keys(location: tuple[int | str, ...]) -> Keys:
    """Give the path in the file: pydantic names the member of a union too, which is no key."""
    steps = tuple(str(step) for step in location)
    return (*_AUTH, *steps[3:]) if steps[:2] == _AUTH else steps


def _known(keys: Keys) -> list[str]:
    """List the keys that a mapping may have."""
    prefix = "".join(f"{key}." for key in keys)
    below = (path.removeprefix(prefix) for path, _ in leaves() if path.startswith(prefix))
    return list(dict.fromkeys(path.split(".")[0] for path in below))


def _unknown_key(error: ErrorDetails, keys: Keys) -> str:
    member: type[Part] | None = AUTHS.get(str(error["loc"][2])) if keys[:2] == _AUTH else None
    known = list(member.model_fields) if member else _known(keys[:-1])
    return f"unknown key; {nearest(keys[-1], known)}"


def _unknown_option(name: str, member: type[Options]) -> str:
    """Name the options of a protocol: its own first, then those of transports."""
    ours = [key for key in member.model_fields if key not in Options.model_fields]
    return f"unknown key; {nearest(name, [*ours, *Options.model_fields])}"


def _missing(_: ErrorDetails, keys: Keys, described_in: Mapping[str, FieldInfo] | None = None) -> str:
    described = (described_in or dict(leaves())).get(".".join(keys))
    if described is None:
        return f"missing; allowed: a mapping with {', '.join(_known(keys))}"
    return f"missing; required: {(described.description or '').rstrip('.')}"


def _not_a_mapping(error: ErrorDetails, keys: Keys) -> str:
    found = "" if secret_place(keys) else f"{shown(error['input'])} "
    known = _known(keys)
    return f"{found}is not a mapping; allowed: {'keys ' + ', '.join(known) if known else 'key: value'}"


def _not_listed(error: ErrorDetails, keys: Keys) -> str:
    expected = re.findall(r"[\w.-]+", error.get("ctx", {}).get("expected", ""))
    said = _choice(error["input"], [word for word in expected if word != "or"])
    foreign = keys == ("service", "protocol") and "did you mean" not in said
    return f"{said}; or install the package that gives it" if foreign else said


def _choice(found: object, allowed: list[str]) -> str:
    return f"{shown(found)} is not allowed; {nearest(str(found), allowed)}"


def _unknown_type(error: ErrorDetails, _: Keys) -> str:
    return _choice(str(error.get("ctx", {})["tag"]), list(AUTHS))


_WORDS: Final[dict[str, Callable[[ErrorDetails, Keys], str]]] = {
    "extra_forbidden": _unknown_key,
    "missing": _missing,
    "model_type": _not_a_mapping,
    "model_attributes_type": _not_a_mapping,
    "dict_type": _not_a_mapping,
    "literal_error": _not_listed,
    "string_type": lambda error, _: f"{shown(error['input'])} is not text",
    "union_tag_invalid": _unknown_type,
    "union_tag_not_found": lambda *_: f"missing; allowed: {', '.join(AUTHS)}",
    "value_error": lambda error, _: str(error.get("ctx", {})["error"]),
}


def undecided(told: Mapping[str, str | None]) -> str:
    """Say why paths do not tell the form of the input; `told` is the form that each tells by its suffix, if any."""
    silent = next((path for path, form in told.items() if form is None), None)
    forms = ", ".join(dict.fromkeys(form for form in told.values() if form))
    why = f"no suffix of {shown(silent)} tells it" if silent else f"the suffixes tell more than one: {forms}"
    return f"missing; {why}; allowed: {', '.join(get_args(InputFormat))}"


def contradictions(job: Job) -> Iterator[Problem]:
    """Find what is wrong between keys that are each right by themselves."""
    for check in _CHECKS:
        yield from check(job)


def _token(job: Job) -> Iterator[Problem]:
    auth = job.service.auth
    if not isinstance(auth, TokenAuth) or auth.token is not None:
        return
    if auth.project is None and auth.project_id is None:
        mend = "give one of them, or export OS_PROJECT_NAME or OS_PROJECT_ID"
        yield _AUTH, f"project or project_id is required, since ModelArts takes project-scoped tokens only; {mend}"


def _typed(job: Job) -> Iterator[Problem]:
    declared = {("input", "columns"): job.input.columns, ("output", "prediction"): job.output.prediction}
    for key, types in declared.items():
        for column, text in types.items():
            try:
                named(text)
            except NoSuchTypeError as error:
                yield (*key, column), str(error)


def _csv(job: Job) -> Iterator[Problem]:
    csv, form = job.input.csv, job.input.format
    for key in sorted(csv.model_fields_set) if form != "csv" else ():
        yield ("input", "csv", key), f"only CSV has it, and input.format is {form}; leave it out, or give format: csv"
    if csv.delimiter == csv.quote:
        yield ("input", "csv", "quote"), f"{shown(csv.quote)} is the delimiter too; allowed: another one"


def _kept(job: Job) -> Iterator[Problem]:
    for name in job.input.keep:
        if name in OUR_COLUMNS:
            rule = "a kept column may not be named like one of ours"
            yield ("input", "keep"), f"{shown(name)} is a column of the results; {rule}: {', '.join(OUR_COLUMNS)}"


def _renamed(job: Job) -> Iterator[Problem]:
    send, rename = job.input.send, job.input.rename
    if send is not None:
        strange = [name for name in rename if name not in send]
        yield from (
            (("input", "rename", name), f"not a column that is sent; {nearest(name, send)}") for name in strange
        )
    owner: dict[str, str] = {}
    for name in send if send is not None else rename:
        wire = rename.get(name, name)
        if owner.setdefault(wire, name) != name:
            clash = f"{owner[wire]!r} and {name!r} would both be sent as {wire!r}"
            yield ("input", "rename"), f"columns {clash}; rename one of them"


def _plugged(job: Job) -> Iterator[Problem]:
    """See that what another package gives is an adapter, and takes these options."""
    if job.service.protocol in OPTIONS:
        return
    from pipeline.protocols import adapter_of

    try:
        adapter_of(job.service)
    except JobError as error:
        key, _, what = str(error).partition(": ")
        yield tuple(key.split(".")), what
    if job.service.contract is not None:
        yield ("service", "schema"), f"protocol {job.service.protocol} has none; leave it out"


def _rate(job: Job) -> Iterator[Problem]:
    runner = job.runner
    if job.service.limits.rate is not None and runner.name != "local" and "workers" not in runner.model_fields_set:
        yield (
            ("runner", "workers"),
            f"missing; required with service.limits.rate on runner {runner.name!r}: each worker has rate / workers",
        )


def _signed(job: Job) -> Iterator[Problem]:
    if isinstance(job.service.auth, AkSkAuth | AppKeyAuth) and job.service.limits.body > SIGNED_BODY:
        why = f"{job.service.limits.body} bytes are more than the gateway takes with a signature"
        yield ("service", "limits", "body"), f"{why}; allowed: at most {SIGNED_BODY // 10**6}MB, or another auth.type"


def _transport(job: Job) -> Iterator[Problem]:
    service = job.service
    kinds = {url.partition(":")[0] in {"ws", "wss"} for url in service.url}
    if len(kinds) > 1:
        yield ("service", "url"), "some are for websockets and some are not; allowed: all of one kind"
    elif kinds == {True} and service.way != "websocket":
        yield ("service", "transport"), f"{service.way!r} is not for {shown(service.url[0])}; leave it out"
    for name, way in {"events": "sse", "message": "websocket", "greeting": "websocket"}.items():
        if name in service.options.model_fields_set and service.way != way:
            yield (*_OPTIONS, name), f"only transport {way} has it, and it is {service.way}; leave it out"
    yield from _carried(job)


def _carried(job: Job) -> Iterator[Problem]:
    """Refuse what a protocol has and its transport cannot carry."""
    options, way = job.service.options, job.service.way
    if isinstance(options, JsonOptions) and way == "sse" and options.events in {None, "joined"}:
        if not one_row(options.body):
            why = "joined events are one answer, and $rows in service.options.body sends many rows"
            yield (*_OPTIONS, "events"), f"{why}; allowed: last, or a body without $rows"
    elif isinstance(options, FileOptions) and way == "websocket":
        if options.form:
            yield (*_OPTIONS, "form"), "a websocket's message is the file alone; leave it out"
        if options.message == "json":
            yield (*_OPTIONS, "message"), "'json' is text, and a file is bytes; allowed: binary"
    elif isinstance(options, MindSporeOptions) and way != "http":
        yield ("service", "transport"), f"protocol {job.service.protocol} goes over http alone, and it is {way}"
    elif isinstance(options, OpenInferenceOptions) and options.binary and way != "http":
        yield (*_OPTIONS, "binary"), f"bytes of tensors go over http alone, and it is {way}; leave it out"


def _addressed(job: Job) -> Iterator[Problem]:
    """See that URL and options make the address of a method."""
    options = job.service.options
    if isinstance(options, MindSporeOptions):
        if job.service.contract is not None:
            yield ("service", "schema"), f"protocol {job.service.protocol} has none; leave it out"
        found = dict.fromkeys(one for url in job.service.url for one in misaddressed(url, options))
        for name, what in found:
            yield ("service", "url") if name == "url" else (*_OPTIONS, name), what


def _chosen(job: Job) -> Iterator[Problem]:
    """Refuse keys that choose columns where the protocol's options do."""
    options = job.service.options
    if not isinstance(options, FileOptions | JsonOptions | ChatOptions | EmbeddingsOptions):
        return
    place = "a template" if job.service.protocol == "json" else "service.options"
    for key in ("send", "rename"):
        if getattr(job.input, key):
            yield ("input", key), f"protocol {job.service.protocol} sends what {place} names; leave it out"
    alone = isinstance(options, FileOptions | ChatOptions) or (
        isinstance(options, JsonOptions) and one_row(options.body)
    )
    if alone and (job.service.limits.rows or 1) > 1:
        yield (
            ("service", "limits", "rows"),
            f"protocol {job.service.protocol} sends one row a request here; leave it out",
        )


def _form(job: Job) -> Iterator[Problem]:
    options = job.service.options
    if not isinstance(options, FileOptions):
        return
    for name in options.form:
        if name == options.field or not name.strip():
            yield (*_OPTIONS, "form"), f"{shown(name)} is the file's own field, or no name; give it another one"


def _flattened(job: Job) -> Iterator[Problem]:
    options = job.service.options
    if not isinstance(options, JsonOptions) or one_row(options.body):
        return
    if options.answer and flattens_answers(options.answer):
        why = f"[] in {shown(options.answer)} joins the lists of rows, and whose an item is would be lost"
        yield (*_OPTIONS, "answer"), f"{why}; allowed with $rows: [*] instead, or a body without $rows"


def _boundary(job: Job) -> Iterator[Problem]:
    for name in job.service.headers if job.service.protocol == "file" and job.service.way != "websocket" else ():
        if name.lower() == "content-type":
            mend = "leave it out; for the type of the file there is service.options.part_type"
            yield ("service", "headers", name), f"protocol file has one of its own, with the form's boundary; {mend}"


def _tls(job: Job) -> Iterator[Problem]:
    if job.service.tls.key is not None and job.service.tls.cert is None:
        yield ("service", "tls", "cert"), "missing; required with service.tls.key"
    if job.service.tls.ca is not None and not job.service.tls.verify:
        yield ("service", "tls", "verify"), "false makes service.tls.ca of no use; leave one of them out"


def _contract(job: Job) -> Iterator[Problem]:
    """See that requests have the form that the model package says."""
    contract, options = job.service.contract, job.service.options
    if contract is None or not isinstance(options, ModelArtsOptions | FileOptions | JsonOptions):
        return
    from pipeline.contract import inputs, rows_of, strange_keys

    known, rows = inputs(contract), rows_of(contract)
    if isinstance(options, FileOptions):
        named = {"field": options.field, **{f"form.{name}": name for name in options.form}}
        strange = [(key, name) for key, name in named.items() if known and name not in known]
        yield from (((*_OPTIONS, key), f"{shown(name)} is no input; {nearest(name, known)}") for key, name in strange)
    elif isinstance(options, JsonOptions):
        for name, ours in strange_keys(options.body, contract["request"]):
            last = name.rpartition(".")[2]
            yield (*_OPTIONS, "body"), f"{shown(name)} is not in service.schema; {nearest(last, ours)}"
    elif rows and rows.wrapped != (options.wrapper == "data"):
        where, mend = ("below data", "data") if rows.wrapped else ("at the top", "none")
        yield (*_OPTIONS, "wrapper"), f"service.schema has req_data {where}; allowed with it: {mend}"
    elif known and not rows and "data" not in known:
        what = f"service.schema has no req_data, but {', '.join(known)}"
        yield ("service", "protocol"), f"{what}; allowed with it: file or json, or another service.schema"
    elif rows and job.input.send is not None:
        sent = [job.input.rename.get(name, name) for name in job.input.send]
        for name in rows.schema.get("required", ()):
            if name not in sent:
                yield ("input", "send"), f"without {shown(name)}, which service.schema requires; {nearest(name, sent)}"


def _paths(job: Job) -> Iterator[Problem]:
    places: dict[Keys, tuple[str, ...]] = {("input", "path"): job.input.path, ("output", "path"): (job.output.path,)}
    for keys, paths in places.items():
        if any(re.match(r"[^/]+://[^/@]*:[^/]*@", path) for path in paths):
            yield keys, "a path may not carry a password; use the storage's own credentials of this machine"


_CHECKS: Final[tuple[Callable[[Job], Iterator[Problem]], ...]] = (
    _token,
    _typed,
    _csv,
    _kept,
    _renamed,
    _plugged,
    _rate,
    _signed,
    _transport,
    _addressed,
    _chosen,
    _form,
    _flattened,
    _boundary,
    _tls,
    _contract,
    server_problems,
    _paths,
)

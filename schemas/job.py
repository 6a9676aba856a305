"""The job file as frozen values: what to read, what to call, where to write.

Every key says what changes when it does (`x-changes` in the schema):

    answers   what comes out: an output made under another value is not the same output
    verdict   when a row is given up, and what still counts as success
    speed     how fast, and on which engine
    place     where things are, how one is let in, and how the file is written

Types of single values are in `schemas.fields`; whatever needs two keys, a clock, a folder or the environment is the
business of `pipeline.jobfile`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, get_args

from pydantic import Field, ValidationError

from schemas.auth import Auth, NoAuth
from schemas.fields import (
    Allowed,
    Character,
    Contract,
    Count,
    Duration,
    Encoding,
    Flag,
    Headers,
    Mark,
    MaybeCharacter,
    MaybeTexts,
    Params,
    Part,
    Paths,
    PerTime,
    Rows,
    Size,
    SomeTime,
    Text,
    Texts,
    Urls,
    marked,
)
from schemas.options import OPTIONS, OptionsOfProtocol, ProtocolName, options_of
from schemas.servers import ChatOptions
from schemas.transported import Options
from schemas.values import Allowance, InvalidValueError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

OUR_COLUMNS: Final = (
    "prediction",
    "source",
    "source_row",
    "row_uuid",
    "request_uuid",
    "request_row",
    "attempts",
    "latency_ms",
    "scored_at",
)


InputFormat = Literal["parquet", "csv", "jsonl", "arrow", "files", "manifest"]


class Csv(Part):
    """How CSV files are written."""

    delimiter: Annotated[Character, marked("answers", "One ASCII character between fields.")] = ","
    header: Annotated[Flag, marked("answers", "Whether the first line has names; else `columns` has.")] = True
    quote: Annotated[MaybeCharacter, marked("answers", 'One ASCII character around fields; "": there is none.')] = '"'
    encoding: Annotated[Encoding, marked("answers", "A Python codec's name: utf-8, cp1252, ...")] = "utf-8"
    null_values: Annotated[MaybeTexts, marked("answers", "Texts that are null, as an empty unquoted field is.")] = ()


class Input(Part):
    """The rows to score."""

    path: Annotated[Paths, marked("place", "One path or a list: local, file://, s3://, ...; with *, ? and **.")]
    format: Annotated[InputFormat, marked("answers", "Form of the files; default: from the suffix.")] = Field(
        default_factory=lambda: "parquet"  # what older outputs mean, and never in the schema: a loaded job has its own
    )
    columns: Annotated[dict[str, Text], marked("answers", "Arrow types of columns: read as, or cast to.")] = Field(
        default_factory=dict
    )
    csv: Annotated[Csv, Field(description="How CSV files are written.")] = Csv()
    send: Annotated[Texts | None, marked("answers", "Columns put in the request; default: all that are not kept.")] = (
        None
    )
    rename: Annotated[
        dict[str, Text], marked("answers", "Column -> the name the service expects; for the wire alone.")
    ] = Field(default_factory=dict)
    keep: Annotated[MaybeTexts, marked("answers", "Columns copied into results and dead letters.")] = ()
    nan: Annotated[
        Literal["null", "reject"], marked("answers", "What NaN and infinities become: null, or reject (a dead letter).")
    ] = "null"


class Tls(Part):
    """Whom to trust, and who we are."""

    ca: Annotated[Text | None, marked("place", "PEM file of the authorities to trust; of IAM's too.")] = None
    cert: Annotated[Text | None, marked("place", "PEM file of our certificate.")] = None
    key: Annotated[Text | None, marked("place", "PEM file of our certificate's private key.")] = None
    verify: Annotated[
        Flag, marked("place", "Whether the service's certificate is verified, and that of an IAM on the same host.")
    ] = True


class Limits(Part):
    """What one request, and the service, can take."""

    body: Annotated[Size, marked("speed", "Serialized request body; MB = 10^6, MiB = 2^20.")] = 12_000_000
    timeout: Annotated[SomeTime, marked("speed", "The service's cut of one request.")] = 40.0
    rows: Annotated[Rows | None, marked("speed", "Rows in one request; default: found out, at most 10000.")] = None
    in_flight: Annotated[Count, marked("speed", "Upper bound of one worker's request window.")] = 512
    rate: Annotated[PerTime | None, marked("speed", "Requests of the whole job per time: 100/s, 6000/min.")] = None


class Service(Part):
    """What is called, and how."""

    url: Annotated[Urls, marked("place", "The full URL to call, custom path included; or a list to balance over.")]
    protocol: Annotated[
        ProtocolName,
        marked("answers", "The form of requests and replies."),
    ] = "modelarts"
    transport: Annotated[
        Literal["http", "sse", "websocket"] | None,
        marked("place", "How requests travel; default: websocket for ws:// and wss://, else http."),
    ] = None
    options: Annotated[OptionsOfProtocol, Field(description="Options of the protocol.", validate_default=True)] = Field(
        default_factory=dict
    )  # type: ignore[assignment] # the protocol's own are made of it
    contract: Annotated[
        Contract | None,
        marked("answers", "The model package's config.json: what rows must look like to be sent."),
    ] = Field(default=None, alias="schema")
    version: Annotated[Text | None, marked("answers", "A label of the deployed model: a new one, new answers.")] = None
    auth: Annotated[Auth, Field(description="How the service lets us in; default: it asks for nothing.")] = NoAuth()
    headers: Annotated[Headers, marked("place", "Extra request headers; values may be references.")] = Field(
        default_factory=dict
    )
    tls: Annotated[Tls, Field(description="Whom to trust, and who we are.")] = Tls()
    limits: Annotated[Limits, Field(description="What one request, and the service, can take.")] = Limits()

    @property
    def way(self) -> Literal["http", "sse", "websocket"]:
        """The transport, where none is named: by the URL, and by what is asked for."""
        streamed = isinstance(self.options, ChatOptions) and self.options.stream
        return self.transport or ("websocket" if self.url[0].startswith("ws") else "sse" if streamed else "http")

    def __getstate__(self) -> dict[Any, Any]:
        """Give another package's options by their values: where it is missing, it is for the adapter to say so."""
        state = super().__getstate__()
        if self.protocol in OPTIONS:
            return state
        options = self.options.model_dump(exclude_unset=True, by_alias=True)
        return {**state, "__dict__": {**state["__dict__"], "options": options}}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        values = state["__dict__"]
        super().__setstate__({**state, "__dict__": {**values, **_revived(values["protocol"], values["options"])}})


def _revived(protocol: str, options: Any) -> dict[str, Any]:
    if isinstance(options, Options):
        return {}
    try:
        return {"options": options_of(protocol).model_validate(options)}
    except (InvalidValueError, ValidationError):  # the package is not here, or another version of it
        return {"options": Options()}


class Output(Part):
    """Where results, dead letters and receipts go."""

    path: Annotated[Text, marked("place", "Directory or URL prefix.")]
    format: Annotated[Literal["parquet", "jsonl", "csv"], marked("answers", "Form of the results.")] = "parquet"
    prediction: Annotated[
        dict[str, Text], marked("answers", "Fields of the answer -> Arrow types; default: the answer as JSON text.")
    ] = Field(default_factory=dict)


class Retry(Part):
    """How long to try: a request with trouble of its own, and a service on which nothing succeeds."""

    attempts: Annotated[Count, marked("verdict", "Attempts of one request.")] = 8
    seconds: Annotated[Duration, marked("verdict", "Time for one request's attempts.")] = 600.0
    outage: Annotated[Duration, marked("verdict", "How long to wait while nothing succeeds.")] = 1800.0


class Errors(Part):
    """What still means success."""

    allow: Annotated[Allowed, marked("verdict", "Dead letters allowed: a count, or a percentage of all rows.")] = (
        Allowance()
    )


class Runner(Part):
    """The engine."""

    name: Annotated[Text, marked("speed", "`local`, or any Beam runner's name.")] = "local"
    workers: Annotated[Count, marked("speed", "Worker processes.")] = 1
    options: Annotated[dict[str, Any], marked("speed", "Options of the runner.")] = Field(default_factory=dict)


class Job(Part):
    """One bulkscore job: an input, a service, an output."""

    version: Annotated[Literal[1], marked("place", "Version of the job file's form.")]
    name: Annotated[Text, marked("answers", "The job's name; row_uuid is made of it.")]
    params: Annotated[Params, marked("place", "Used as ${name}; overridden by --param name=value.")] = Field(
        default_factory=dict
    )
    input: Annotated[Input, Field(description="The rows to score.")]
    service: Annotated[Service, Field(description="What is called, and how.")]
    output: Annotated[Output, Field(description="Where results and dead letters go.")]
    retry: Annotated[Retry, Field(description="How long to try.")] = Retry()
    errors: Annotated[Errors, Field(description="What still means success.")] = Errors()
    runner: Annotated[Runner, Field(description="The engine.")] = Runner()


def leaves(part: type[Part] = Job, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key of the job file that holds a value, by its dotted path; a union gives the keys of all its members."""
    for attribute, field in part.model_fields.items():
        name = field.alias or attribute
        parts = [
            one
            for one in (field.annotation, *get_args(field.annotation))
            if isinstance(one, type) and issubclass(one, Part)
        ]
        for one in parts:
            yield from leaves(one, f"{prefix}{name}.")
        if not parts:
            yield f"{prefix}{name}", field


def marks() -> dict[str, Mark]:
    """Say what a change of each key changes: dotted path -> mark, for all of them."""
    return {path: mark_of(field) for path, field in leaves()}


def mark_of(field: FieldInfo) -> Mark:
    """Say what a change of a key changes."""
    extra = field.json_schema_extra
    assert isinstance(extra, dict)
    mark: Any = extra["x-changes"]
    return mark  # type: ignore[no-any-return]

"""What is wrong with a job file that calls a common model server, in words: for each problem its key and the mend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pipeline.addresses import PATHS, whole
from schemas.servers import ChatOptions, EmbeddingsOptions, MlflowOptions, OpenInferenceOptions, RowsOptions
from schemas.values import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.jobyaml import Keys
    from schemas.job import Job

_OPTIONS: Final = ("service", "options")


def server_problems(job: Job) -> Iterator[tuple[Keys, str]]:
    """Yield what does not fit together where the protocol is a common model server's."""
    if not isinstance(job.service.options, RowsOptions | OpenInferenceOptions | ChatOptions | EmbeddingsOptions):
        return
    yield from _address(job)
    if isinstance(job.service.options, RowsOptions):
        yield from _rows(job)
    if isinstance(job.service.options, ChatOptions):
        yield from _stream(job)
    if job.service.contract is not None:
        why = f"protocol {job.service.protocol} is not of a ModelArts model package"
        yield ("service", "schema"), f"{why}; leave it out"


def _address(job: Job) -> Iterator[tuple[Keys, str]]:
    """See that the URL and the options make one path, and say it once."""
    service, path = job.service, PATHS[job.service.protocol]
    given = [name for name in ("model", "version", "label") if getattr(service.options, name, None)]
    if {"version", "label"} <= set(given):
        yield (*_OPTIONS, "label"), "options.version says which version already; leave one of them out"
    for url in service.url:
        if not whole(service.protocol, url):
            if "model" in path.names and "model" not in given:
                why = f"missing; required where service.url is a server's base, as {shown(url)} is"
                yield (*_OPTIONS, "model"), f"{why}; or a URL that ends as {path.example} does"
            return
        for name in given if path.names else ():
            yield (*_OPTIONS, name), f"service.url {shown(url)} has the whole path already; leave one of them out"
            return


def _rows(job: Job) -> Iterator[tuple[Keys, str]]:
    options = job.service.options
    assert isinstance(options, RowsOptions)
    send = job.input.send
    if isinstance(options, MlflowOptions) and options.key.startswith("dataframe_") and options.rows != "objects":
        why = f"{options.rows!r} is not for {options.key}, whose columns have names"
        yield (*_OPTIONS, "rows"), f"{why}; allowed: objects, or options.key: instances"
    elif options.rows != "objects" and job.input.rename:
        yield ("input", "rename"), f"with service.options.rows: {options.rows} no name is sent; leave it out"
    if options.rows == "values" and send is not None and len(send) != 1:
        yield (*_OPTIONS, "rows"), f"'values' sends one column, and input.send has {len(send)}; allowed: lists"


def _stream(job: Job) -> Iterator[tuple[Keys, str]]:
    options, way = job.service.options, job.service.way
    assert isinstance(options, ChatOptions)
    if options.events is not None:
        yield (*_OPTIONS, "events"), "protocol openai-chat puts a stream together in its own way; leave it out"
    if options.stream and way != "sse":
        yield (*_OPTIONS, "stream"), f"a stream comes by transport sse, and it is {way}; leave service.transport out"

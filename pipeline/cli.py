"""The command line: progress and errors on stderr, the answer on stdout, the exit code for scripts.

Beam and pyarrow are imported only by the commands that need them, so that `check`, `schema` and `--help` are quick.
"""

from __future__ import annotations

import glob
import os
import signal
import time
import traceback
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, ParamSpec, cast, get_args

import typer

from pipeline import __version__
from pipeline.errors import DEFECT, INTERRUPTED, TERMINATED, BulkscoreError, Incomplete, JobError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pipeline.plan import How
    from pipeline.progress import Progress
    from pipeline.run import Summary
    from schemas.job import Job

app: Final = typer.Typer(
    name="bulkscore",
    help="Score large inputs offline through models that are deployed as real-time services.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

JobFile = Annotated[Path, typer.Argument(metavar="JOB", help="The job file.", show_default=False)]
Params = Annotated[list[str], typer.Option("--param", metavar="K=V", help="A parameter of the job file.")]
Sets = Annotated[list[str], typer.Option("--set", metavar="KEY.PATH=VALUE", help="A key of the job file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Answer with one JSON object.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")]
Kinds = Annotated[
    list[str], typer.Option("--kind", metavar="KIND", help="Only dead letters of this kind; may be repeated.")
]
Changed = Annotated[
    str | None,
    typer.Option(
        "--changed", metavar="rescore|keep", help="For changed files and keys: score again, or keep what is done."
    ),
]
P = ParamSpec("P")
_SIGNALS: Final[dict[int, int]] = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}
_TOGETHER_SECONDS: Final = 0.3


def command(function: Callable[P, int | None]) -> Callable[P, None]:
    """Make a function a command: it returns its exit code, and its errors become one line each."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            code = function(*args, **kwargs) or 0
        except BulkscoreError as error:
            complain(str(error))
            code = error.exit_code
        except BrokenPipeError:  # whoever reads our answer has had enough, as `head` has
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            code = 0
        except Exception:  # noqa: BLE001 - whatever else it is, it is ours
            traceback.print_exc()
            complain("this is a defect of bulkscore; please report it with the lines above")
            code = DEFECT
        raise typer.Exit(code)

    app.command(context_settings={"allow_extra_args": function.__name__ in {"run", "retry"}})(call)
    return call


def complain(message: str) -> None:
    """Write an error to stderr, a line for each problem."""
    for line in message.splitlines():
        typer.echo(f"ERROR {line}", err=True)


def answer(values: Mapping[str, Any], text: str, *, as_json: bool) -> None:
    """Write the answer to stdout, for people or for machines."""
    if as_json:
        import msgspec

        text = msgspec.json.encode(values).decode()
    typer.echo(text)


@command
def check(job: JobFile, param: Params = [], set_: Sets = [], as_json: AsJson = False) -> int:  # noqa: B006, FBT002
    """Check a job file offline: its keys, its local paths, its secrets."""
    loaded = load(job, param, set_)
    problems = checked(loaded)
    if problems:
        raise JobError("\n".join(problems))
    told = schema_told(loaded)
    text = "\n".join([f"{job}: job {loaded.name} is valid", *told.values()])
    answer({"job": loaded.name, "ok": True, **told}, text, as_json=as_json)
    return 0


@command
def plan(
    job: JobFile,
    param: Params = [],  # noqa: B006
    set_: Sets = [],  # noqa: B006
    changed: Changed = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> int:
    """Show what a run would do: files, rows, requests, bytes. Nothing is called or written."""
    how = how_of(changed)
    from pipeline.estimate import estimate

    loaded = load(job, param, set_)
    found = estimate(loaded, how)
    told = schema_told(loaded)
    about = "" if found.exact else "about "
    text = (
        f"{found.files} files ({found.new_files} new), {about}{found.rows} rows: {found.done} done, "
        f"{about}{found.left} left\n"
        f"a run would send about {found.requests} requests, {found.bytes} bytes, in {found.splits} splits, "
        f"into {found.output}"
    )
    answer({**found._asdict(), **told}, "\n".join([text, *told.values()]), as_json=as_json)
    return 0


@command
def run(
    context: typer.Context,
    job: JobFile,
    param: Params = [],  # noqa: B006
    set_: Sets = [],  # noqa: B006
    restart: Annotated[bool, typer.Option("--restart", help="Remove everything but runs/ first.")] = False,  # noqa: FBT002
    changed: Changed = None,
    max_requests: Annotated[
        int | None, typer.Option("--max-requests", metavar="N", min=1, help="Stop after so many.")
    ] = None,
    no_probe: Annotated[bool, typer.Option("--no-probe", help="Score without a trial of the first rows.")] = False,  # noqa: FBT002
    quiet: Quiet = False,  # noqa: FBT002
    as_json: AsJson = False,  # noqa: FBT002
) -> int:
    """Score what is not yet scored, commit it, and report. Arguments after -- go to the Beam runner."""
    how = how_of(changed)
    loaded = ready(job, param, set_)
    from pipeline.run import run as start

    if max_requests and max_requests < loaded.runner.workers:
        raise JobError(f"--max-requests {max_requests} is less than runner.workers ({loaded.runner.workers})")
    work = partial(
        start,
        restart=restart,
        how=how,
        probe=not no_probe,
        max_requests=max_requests,
        arguments=beam_arguments(context.args),
    )
    return carried_out(work, loaded, quiet=quiet, as_json=as_json)


@command
def retry(
    context: typer.Context,
    job: JobFile,
    kind: Kinds = [],  # noqa: B006
    param: Params = [],  # noqa: B006
    set_: Sets = [],  # noqa: B006
    quiet: Quiet = False,  # noqa: FBT002
    as_json: AsJson = False,  # noqa: FBT002
) -> int:
    """Score the dead letters again and heal the output in place. Arguments after -- go to the Beam runner."""
    from schemas.tables import Kind

    strange = sorted(set(kind) - set(get_args(Kind)))
    if strange:
        raise JobError(f"--kind {strange[0]}: allowed: {', '.join(get_args(Kind))}")
    loaded = ready(job, param, set_)
    from pipeline.run import retry as start

    work = partial(start, kinds=kind, arguments=beam_arguments(context.args))
    return carried_out(work, loaded, quiet=quiet, as_json=as_json)


def ready(job: Path, param: list[str], set_: list[str]) -> Job:
    """Read a job file that is to be carried out at once. Raises JobError for what keeps this machine from it."""
    loaded = load(job, param, set_)
    problems = unready(loaded)
    if problems:
        raise JobError("\n".join(problems))
    if not loaded.service.tls.verify:
        typer.echo("* service.tls.verify is false: whoever answers for the service is believed", err=True)
    return loaded


def carried_out(start: Callable[..., Summary], job: Job, *, quiet: bool, as_json: bool) -> int:
    """Start a run and see it through: its progress, its answer, its interruption; return its exit code."""
    from pipeline.run import interrupt, new_run
    from pipeline.show import showing

    name = new_run()

    def watch(progress: Progress, rows: int) -> Any:
        return showing(progress, rows, quiet=quiet)

    with interruptible(lambda code: interrupt(job, name, code)):
        summary = start(job, name, watch=watch)
    unread = f", {summary.unread} files not read to their end" if summary.unread else ""
    text = (
        f"{summary.planned} rows: {summary.scored} scored, {summary.dead} dead letters, {summary.left} left{unread} "
        f"(this run: {summary.scored_by_this_run} scored, {summary.requests} requests, {summary.retries} retries, "
        f"{summary.seconds:.1f} s)"
    )
    if summary.scored:
        text += f"\nresults: {summary.output}/results"
    if summary.dead and not summary.message:
        text += f"\ndead letters: {summary.output}/errors" + (f"; {summary.cause}" if summary.cause else "")
    answer(summary._asdict(), text, as_json=as_json)
    if summary.message:
        complain(summary.message)
    return summary.exit_code


@command
def verify(
    target: Annotated[str, typer.Argument(metavar="JOB|OUT", help="A job file, or an output.", show_default=False)],
    param: Params = [],  # noqa: B006
    set_: Sets = [],  # noqa: B006
    as_json: AsJson = False,  # noqa: FBT002
) -> int:
    """Prove from the files alone that every row came out exactly once."""
    is_job = target.endswith((".yaml", ".yml")) or os.path.isfile(target)  # noqa: PTH113 - no error for what cannot be a path
    location = load(Path(target), param, set_).output.path if is_job else target  # a Path would spoil a URL's //
    from pipeline.storage import Store
    from pipeline.verify import verify as prove

    verdict = prove(Store(location))
    counts = f"{verdict.planned} rows = {verdict.scored} results + {verdict.dead} dead letters"
    text = f"{verdict.output}: {counts}: verified" if not verdict.breaches else f"{verdict.output}: not verified"
    answer(verdict._asdict(), text, as_json=as_json)
    if verdict.breaches:
        raise Incomplete("\n".join(verdict.breaches))
    return 0


@command
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8500,
    token_seconds: Annotated[float, typer.Option(help="Life of a token.")] = 86400,
    body_limit: Annotated[str, typer.Option(help="Largest request body.")] = "12MB",
    timeout: Annotated[str, typer.Option(help="The gateway's cut of one request.")] = "40s",
    slots: Annotated[int | None, typer.Option(help="Requests worked on at once; default: no bound.")] = None,
    latency: Annotated[str, typer.Option(help="Time of every request.")] = "0ms",
    row_latency: Annotated[str, typer.Option(help="Time of every row.")] = "0ms",
    rate: Annotated[str | None, typer.Option(help="Requests let through, such as 100/s.")] = None,
    faults: Annotated[Path | None, typer.Option(help="File with a schedule of faults.")] = None,
    chaos: Annotated[float, typer.Option(help="Share of requests that meet a random fault.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Which random faults.")] = 1,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM certificate: serve https.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key.")] = None,
) -> int:
    """Run the sandbox: a service that behaves like the platforms, with small real models behind it."""
    from pipeline.sandbox.server import Options
    from pipeline.sandbox.server import serve as listen
    from schemas import values
    from schemas.values import Rate

    listen(
        Options(
            host=host,
            port=port,
            token_seconds=token_seconds,
            body_limit=flag("--body-limit", values.size, body_limit),
            timeout=flag("--timeout", values.duration, timeout),
            slots=slots,
            latency=flag("--latency", values.duration, latency),
            row_latency=flag("--row-latency", values.duration, row_latency),
            rate=flag("--rate", Rate.read, rate).per_second if rate else None,
            faults=faults,
            chaos=chaos,
            seed=seed,
            tls_cert=tls_cert,
            tls_key=tls_key,
        )
    )
    return 0


@command
def schema() -> int:
    """Print the JSON Schema of the job file."""
    import json

    from pipeline.jobfile import json_schema

    typer.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))
    return 0


@command
def protocols(as_json: AsJson = False) -> int:  # noqa: FBT002
    """List the protocols with their options and a job file each."""
    from pipeline.catalogue import catalogue, in_words, transport_options

    answer({"protocols": catalogue(), "any": transport_options()}, in_words(), as_json=as_json)
    return 0


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,  # noqa: FBT002
) -> None:
    """Score large inputs offline through models that are deployed as real-time services."""
    if show:
        typer.echo(f"bulkscore {__version__}")
        raise typer.Exit


def load(path: Path, params: list[str], sets: list[str]) -> Job:
    """Read the job file with its parameters."""
    from pipeline.jobfile import load as read

    return read(path, params=pairs("--param", params), sets=pairs("--set", sets), today=datetime.now(UTC).date())


def schema_told(job: Job) -> dict[str, str]:
    """Say what was taken from `service.schema`, if there is one."""
    if job.service.contract is None:
        return {}
    from pipeline.contract import in_words

    fields = ", ".join(f"{name}: {kind}" for name, kind in job.output.prediction.items())
    prediction = f"{{{fields}}}" if fields else "JSON text"
    about = "rows are checked for" if job.service.protocol == "modelarts" else "requests were compared with"
    return {"schema": f"service.schema: {about} {in_words(job.service.contract)}; prediction is {prediction}"}


def checked(job: Job) -> list[str]:
    """Return what keeps this machine from running a valid job: local paths and secrets."""
    from pipeline.globs import nothing_at

    problems = unready(job)
    for path in job.input.path:
        folder = Path(path).is_dir()
        if "://" not in path and (folder or not any(glob.iglob(path, recursive=True))):  # noqa: PTH207 - absolute patterns
            problems.append(nothing_at(path, folder=folder))
    return problems


def unready(job: Job) -> list[str]:
    """Return what keeps this machine from calling the service; what is wrong with the input, a run sees for itself."""
    from pipeline.globs import keep_apart
    from pipeline.jobfile import missing_secrets

    for path in job.input.path:
        keep_apart(path, job.output.path, job.output.format)
    problems = missing_secrets(job) if job.runner.name == "local" else []
    files = {"ca": job.service.tls.ca, "cert": job.service.tls.cert, "key": job.service.tls.key}
    for key, file in files.items():
        if file and not Path(file).is_file():
            problems.append(f"service.tls.{key}: {file} does not exist")
    return problems


def pairs(flag_name: str, texts: list[str]) -> dict[str, str]:
    """Read `K=V` texts."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise JobError(f"{flag_name} {text!r} is not NAME=VALUE")
        found[name] = value
    return found


def flag(name: str, read: Callable[[Any], Any], text: str) -> Any:
    """Read the value of a flag that has the form of a job file's value."""
    try:
        return read(text)
    except ValueError as error:
        raise JobError(f"{name}: {error}") from None


def how_of(changed: str | None) -> How | None:
    """Read the value of `--changed`."""
    if changed not in {None, "rescore", "keep"}:
        raise JobError(f"--changed {changed}: allowed: rescore, keep")
    return cast("How | None", changed)


def beam_arguments(texts: list[str]) -> list[str]:
    """Return what came after `--`; a word that is no option was meant otherwise."""
    if texts and not texts[0].startswith("-"):
        raise JobError(f"{texts[0]!r} is one argument too many; options for the Beam runner stand after --")
    return texts


@contextmanager
def interruptible(stop: Callable[[int], None], *, clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """Let the first SIGINT or SIGTERM call `stop` with its exit code, and the second end the process.

    What comes together is one: `timeout` signals the process, and then its group.
    """
    received: list[float] = []

    def handle(number: int, _: object) -> None:
        received.append(clock())
        if len(received) > 1:
            if received[-1] - received[0] > _TOGETHER_SECONDS:
                os._exit(_SIGNALS[number])
            return
        typer.echo("* stopping: requests in flight end and are committed; once more to stop now", err=True)
        stop(_SIGNALS[number])

    before = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> None:
    """Run the command line."""
    app(prog_name="bulkscore")


if __name__ == "__main__":
    main()

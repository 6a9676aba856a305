"""The Beam wiring, and nothing else: splits in, receipts out. Rows never become elements and are never shuffled."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import BulkscoreError, JobError, StorageFailed
from pipeline.plan import grouped, weight
from pipeline.session import acquire, refuse, release
from schemas.plan import Order, Work
from schemas.receipt import Receipt

if TYPE_CHECKING:
    from pipeline.score import Scorer
    from schemas.job import Job

logging.disable(logging.WARNING)  # Beam warns, on the root logger, of optional clouds that are not installed
import apache_beam as beam  # noqa: E402
from apache_beam.options.pipeline_options import PipelineOptions  # noqa: E402
from apache_beam.runners.portability.fn_api_runner import fn_runner  # noqa: E402
from apache_beam.runners.runner import create_runner  # noqa: E402
from apache_beam.transforms.window import GlobalWindow  # noqa: E402
from apache_beam.utils.windowed_value import WindowedValue  # noqa: E402

logging.disable(logging.NOTSET)

SPLITS_AT_ONCE: Final = 3
"""Splits a worker overlaps, so that its window stays full while one split ends and the next one begins."""

SMALL_SPLITS_AT_ONCE: Final = 16
SMALL_ROWS: Final = 50_000
"""Where splits are small (many files, each a request or two) more are overlapped, with so many rows together: every
thread that scores keeps memory for the largest split it had."""

RUNNERS: Final = {"flink": "FlinkRunner", "spark": "SparkRunner", "prism": "PrismRunner", "dataflow": "DataflowRunner"}


class ScoreSplits(beam.DoFn):
    """Scores ranges of rows, several at once, and emits their receipts.

    It raises nothing for what the service, a row or the storage did: runners try a bundle again that raises.
    """

    def __init__(self, job: Job, order: Order) -> None:
        self._job = job
        self._order = order
        self._scorer: Scorer | None = None

    def setup(self) -> None:
        """Open the worker's scorer; secrets are resolved here and nowhere else."""
        gc.freeze()  # what is imported by now stays: no need to look through it for garbage again and again
        try:
            self._scorer = acquire(self._job, self._order)
        except BulkscoreError as error:  # such as a secret that this worker does not have
            self._scorer = None
            refuse(self._job, self._order.run, error)
        self._splits = ThreadPoolExecutor(SMALL_SPLITS_AT_ONCE, thread_name_prefix="split")

    def start_bundle(self) -> None:
        """Begin with nothing under way."""
        self._pending: dict[Future[list[Receipt]], int] = {}

    def process(self, work: Work) -> Iterator[Receipt]:
        """Start a range, once there is a place for it; emit the receipts of those that made way."""
        if self._scorer is None:
            return
        while self._is_full(work):
            wait(self._pending, return_when=FIRST_COMPLETED)  # whichever it is: a slow one keeps no other waiting
            yield from self._ended()
        self._pending[self._splits.submit(self._scorer.score, work)] = weight(work)

    def finish_bundle(self) -> Iterator[Any]:
        """Wait for the rest."""
        wait(self._pending)
        for receipt in self._ended():
            yield WindowedValue(receipt, GlobalWindow().max_timestamp(), (GlobalWindow(),))

    def _is_full(self, work: Work) -> bool:
        rows = sum(self._pending.values()) + weight(work)
        return len(self._pending) >= (SMALL_SPLITS_AT_ONCE if rows <= SMALL_ROWS else SPLITS_AT_ONCE)

    def _ended(self) -> Iterator[Receipt]:
        for future in [future for future in self._pending if future.done()]:
            del self._pending[future]
            yield from future.result()

    def teardown(self) -> None:
        """Let the threads go."""
        self._splits.shutdown()
        if self._scorer:
            release(self._order.run)


class ScoreRows(beam.PTransform):  # type: ignore[type-arg] # not subscriptable at run time
    """`PCollection[Work] -> PCollection[Receipt]`: scores ranges of rows and commits them to the job's output.

    An element may also be a tuple of pieces of work: engines want few elements. `order` may be just the run's name.
    """

    def __init__(self, job: Job, order: Order | str) -> None:
        super().__init__()
        self._job = job
        self._order = Order(order) if isinstance(order, str) else order

    def expand(self, work: Any) -> Any:
        """Spread the ranges over the workers and score them."""
        spread = work | "Spread" >> beam.Reshuffle()
        return spread | "Ungroup" >> beam.FlatMap(_pieces) | "Score" >> beam.ParDo(ScoreSplits(self._job, self._order))


def _pieces(element: Any) -> Iterable[Work]:
    return element if isinstance(element, tuple) else (element,)


def run_pipeline(job: Job, order: Order, work: Iterable[Work], arguments: Iterable[str]) -> None:
    """Run the pipeline to its end on the job's runner.

    Raises JobError for a runner or options that Beam does not know, StorageFailed when a remote runner fails; a failure
    of the local one is a defect, and comes as it is.
    """
    local = job.runner.name == "local"
    pipeline = beam.Pipeline(runner=_runner(job.runner.name), options=_options([*options(job), *arguments]))
    groups = grouped(list(work))
    _ = pipeline | "Plan" >> beam.Create(groups, reshuffle=False) | "ScoreRows" >> ScoreRows(job, order)
    try:
        pipeline.run().wait_until_finish()
    except Exception as error:
        if local:
            raise
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise StorageFailed(f"the runner {job.runner.name} failed: {told[-1]}; the same command resumes") from error


def _runner(name: str) -> Any:
    if name == "local":
        return fn_runner.FnApiRunner()
    try:
        return create_runner(RUNNERS.get(name, name))
    except (ValueError, ImportError, AttributeError) as error:
        known = ", ".join(["local", *RUNNERS])
        raise JobError(f"runner.name: {name!r}: {error}; allowed: {known}, or a Beam runner's class name") from None


def _options(flags: list[str]) -> PipelineOptions:
    try:
        found = PipelineOptions(flags=flags)
        found.get_all_options(retain_unknown_options=True)  # what Beam would only look at, and refuse, much later
    except SystemExit:  # argparse has said on stderr what it does not like
        raise JobError(f"runner.options: Beam does not take {' '.join(flags)}") from None
    return found


def options(job: Job) -> list[str]:
    """Return `runner.options` as the flags that Beam takes."""
    flags = []
    for name, value in job.runner.options.items():
        values = value if isinstance(value, list) else [value]
        flags += [f"--{name}" if one is True else f"--{name}={one}" for one in values if one is not False]
    return flags

"""The Beam wiring, and nothing else: splits in, receipts out. Rows never become elements and are never shuffled."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

from pipeline.session import acquire, release
from schemas.plan import Work
from schemas.receipt import Receipt

if TYPE_CHECKING:
    from schemas.job import Job

logging.disable(logging.WARNING)  # Beam warns, on the root logger, of optional clouds that are not installed
import apache_beam as beam  # noqa: E402
from apache_beam.options.pipeline_options import PipelineOptions  # noqa: E402
from apache_beam.runners.portability.fn_api_runner import fn_runner  # noqa: E402
from apache_beam.transforms.window import GlobalWindow  # noqa: E402
from apache_beam.utils.windowed_value import WindowedValue  # noqa: E402

logging.disable(logging.NOTSET)

SPLITS_AT_ONCE: Final = 3
"""Splits a worker overlaps, so that its window stays full while one split ends and the next one begins."""

RUNNERS: Final = {"flink": "FlinkRunner", "spark": "SparkRunner", "prism": "PrismRunner", "dataflow": "DataflowRunner"}


class ScoreSplits(beam.DoFn):
    """Scores ranges of rows, several at once, and emits their receipts.

    It raises nothing for what the service, a row or the storage did: runners try a bundle again that raises.
    """

    def __init__(self, job: Job, run: str) -> None:
        self._job = job
        self._run = run

    def setup(self) -> None:
        """Open the worker's scorer; secrets are resolved here and nowhere else."""
        gc.freeze()  # what is imported by now stays: no need to look through it for garbage again and again
        self._scorer = acquire(self._job, self._run)
        self._splits = ThreadPoolExecutor(SPLITS_AT_ONCE, thread_name_prefix="split")

    def start_bundle(self) -> None:
        """Begin with nothing under way."""
        self._pending: list[Future[list[Receipt]]] = []

    def process(self, work: Work) -> Iterator[Receipt]:
        """Start a range; emit what is done by now."""
        self._pending.append(self._splits.submit(self._scorer.score, work))
        done = [future for future in self._pending if future.done()]
        self._pending = [future for future in self._pending if future not in done]
        for future in done:
            yield from future.result()

    def finish_bundle(self) -> Iterator[Any]:
        """Wait for the rest."""
        for future in self._pending:
            for receipt in future.result():
                yield WindowedValue(receipt, GlobalWindow().max_timestamp(), (GlobalWindow(),))

    def teardown(self) -> None:
        """Let the threads go."""
        self._splits.shutdown()
        release(self._run)


class ScoreRows(beam.PTransform):  # type: ignore[type-arg] # not subscriptable at run time
    """`PCollection[Work] -> PCollection[Receipt]`: scores ranges of rows and commits them to the job's output."""

    def __init__(self, job: Job, run: str) -> None:
        super().__init__()
        self._job = job
        self._run = run

    def expand(self, work: Any) -> Any:
        """Spread the ranges over the workers and score them."""
        return work | "Spread" >> beam.Reshuffle() | "Score" >> beam.ParDo(ScoreSplits(self._job, self._run))


def run_pipeline(job: Job, run: str, work: Iterable[Work], arguments: Iterable[str]) -> None:
    """Run the pipeline to its end on the job's runner; raises what the runner raises."""
    name = job.runner.name
    flags = [*options(job), *arguments]
    runner = fn_runner.FnApiRunner() if name == "local" else RUNNERS.get(name, name)
    with beam.Pipeline(runner=runner, options=PipelineOptions(flags=flags)) as pipeline:
        _ = pipeline | "Plan" >> beam.Create(list(work), reshuffle=False) | "ScoreRows" >> ScoreRows(job, run)


def options(job: Job) -> list[str]:
    """Return `runner.options` as the flags that Beam takes."""
    flags = []
    for name, value in job.runner.options.items():
        values = value if isinstance(value, list) else [value]
        flags += [f"--{name}" if one is True else f"--{name}={one}" for one in values if one is not False]
    return flags

"""What runs over and over again need: a job's engine without Beam, a folder in memory, and a death at any write."""

from __future__ import annotations

import functools
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from hypothesis import settings
from msgspec import structs

from pipeline import beam
from pipeline.session import acquire, release
from pipeline.storage import Draft, Store

MEMORY = Path("/dev/shm")


def examples(share=1.0):
    """Try this share of the profile's examples: the same ones every time, but for those of the fuzzer."""
    count = max(1, round(settings.default.max_examples * share))
    return settings(max_examples=count, derandomize=settings.get_current_profile_name() != "fuzz")


class Killed(BaseException):
    """The process died: no handler of an error sees it, and nothing is written after it."""


@contextmanager
def place():
    """A folder of its own, in memory where the machine has such a one."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        yield Path(folder)


@contextmanager
def engine(pipeline):
    """Let runs use `pipeline(job, order, work)` in place of Beam's."""

    def run_pipeline(job, order, work, _arguments):
        return pipeline(job, order, list(work))

    with mock.patch.object(beam, "run_pipeline", run_pipeline):
        yield


def one_by_one(job, order, work):
    """Score one range after the other, in this thread."""
    scorer = acquire(job, order)
    try:
        for one in work:
            scorer.score(one)
    finally:
        release(order.run)


def other(order):
    """Return the order of a second worker process, which has a session of its own."""
    return structs.replace(order, run=f"{order.run}-again")


def again(job, order, work):
    """Score everything in one worker after the other, as runners do that lost the first one's answer."""
    one_by_one(job, order, work)
    one_by_one(job, other(order), work)


def twice(job, order, work):
    """Score everything in two workers at once, as runners do that doubt one of them; each has a service of its own."""
    ends = []

    def attempt(order):
        try:
            one_by_one(job, order, work)
        except BaseException as error:  # noqa: BLE001 - it goes on in the thread that waits
            ends.append(error)

    attempts = [threading.Thread(target=attempt, args=(one,)) for one in (order, other(order))]
    for one in attempts:
        one.start()
    for one in attempts:
        one.join()
    if ends:
        raise ends[0]


@contextmanager
def dying(writes):
    """Raise Killed at the write that follows so many, and at each later one; what was half written stays as it is."""
    left, lock = [writes], threading.Lock()

    def mortal(real):
        @functools.wraps(real)
        def write(*args, **options):
            with lock:
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
            return real(*args, **options)

        return write

    def unlink(path, missing_ok=False):  # noqa: FBT002 - as Path has it
        if left[0] >= 0:
            real_unlink(path, missing_ok)

    real_unlink = Path.unlink
    with (
        mock.patch.multiple(
            Store, create=mortal(Store.create), delete=mortal(Store.delete), delete_folder=mortal(Store.delete_folder)
        ),
        mock.patch.multiple(Draft, keep=mortal(Draft.keep), keep_new=mortal(Draft.keep_new)),
        mock.patch.object(Path, "unlink", unlink),
    ):
        yield

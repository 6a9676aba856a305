"""What an output holds: plans, receipts, stop. Reading and writing of the files that make a run resumable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from pipeline.errors import BulkscoreError, Held, Incomplete, JobError, Refused, StorageFailed
from pipeline.plan import counting
from schemas.plan import Plan, Source, Split
from schemas.receipt import Receipt, Stop

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pipeline.storage import Store

T = TypeVar("T")

STOP: Final = "stop.json"
SUCCESS: Final = "_SUCCESS"

_encoder: Final = msgspec.json.Encoder()
_plan: Final = msgspec.json.Decoder(Plan)
_receipt: Final = msgspec.json.Decoder(Receipt)
_stop: Final = msgspec.json.Decoder(Stop)
_BY_EXIT_CODE: Final = {one.exit_code: one for one in (JobError, Incomplete, Refused, Held, StorageFailed)}


class Planned:
    """All plans of an output together: sources by number, splits in order, columns of the first."""

    def __init__(self, plans: Iterable[Plan]) -> None:
        self.sources: dict[int, Source] = {}
        self.splits: list[Split] = []
        self.columns: dict[str, str] = {}
        self.count = 0
        for plan in plans:
            self.add(plan)

    def add(self, plan: Plan) -> None:
        """Add the next plan."""
        self.sources.update((source.number, source) for source in plan.sources)
        self.splits += plan.splits
        self.columns = self.columns or plan.columns
        self.count += 1

    @property
    def next_source(self) -> int:
        """The number of the next new source."""
        return max(self.sources, default=-1) + 1

    @property
    def rows(self) -> int:
        """Rows of all sources."""
        return sum(source.rows for source in self.sources.values())

    @property
    def versions(self) -> dict[int, str]:
        """The version of each source, by number."""
        return {number: source.version for number, source in self.sources.items()}


def read_plans(store: Store) -> Planned:
    """Read every plan of an output, oldest first; a draft that a crash left is none."""
    names = (name for name in store.names("plan") if name.endswith(".json"))
    return Planned(decoded(store, f"plan/{name}", _plan) for name in names)


def write_plan(store: Store, plan: Plan, number: int) -> None:
    """Write a plan; it is never changed afterwards."""
    store.write(f"plan/{number:06d}.json", msgspec.json.format(_encoder.encode(plan), indent=1))


def read_receipts(store: Store, source: int | None = None) -> list[Receipt]:
    """Read the receipts of an output, or those of one source; names tell them apart, so no other is opened."""
    start = "" if source is None else f"{source:06d}-"
    names = (name for name in store.names("receipts") if name.startswith(start) and name.endswith(".json"))
    return [decoded(store, f"receipts/{name}", _receipt) for name in names]


def counted(store: Store, versions: Mapping[int, str], source: int | None = None) -> list[Receipt]:
    """Read the receipts, of one source or all, and return those that count: their objects are there, too.

    An attempt that is late can write its receipt after its objects were swept as strays. Receipts are read before the
    objects are listed, since objects are written before receipts.
    """
    receipts = read_receipts(store, source)
    there = {f"{folder}/{name}" for folder in ("results", "errors") for name in store.names(folder)}
    return counting((one for one in receipts if there.issuperset(objects(one))), versions)


def objects(receipt: Receipt) -> set[str]:
    """Return the names of the objects that a receipt names."""
    return {one.name for one in (receipt.results, receipt.errors) if one}


def decoded(store: Store, name: str, decoder: msgspec.json.Decoder[T]) -> T:
    """Read one of our own small files. Raises JobError when somebody else has written into it."""
    try:
        return decoder.decode(store.read(name))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise JobError(
            f"{store.uri}/{name} is not as bulkscore wrote it: {error}; put it back, or take a new output.path"
        ) from None


def write_stop(store: Store, run: str, reason: BulkscoreError) -> None:
    """Tell every worker to stop, and why."""
    store.write(STOP, _encoder.encode(Stop(run, reason.exit_code, str(reason))))


def read_stop(store: Store, run: str) -> BulkscoreError | None:
    """Return why this run stands still, if it does."""
    if not store.exists(STOP):
        return None
    stop = decoded(store, STOP, _stop)
    return _BY_EXIT_CODE.get(stop.exit_code, BulkscoreError)(stop.message) if stop.run == run else None

"""What an output holds: plans, receipts, stop. Reading and writing of the files that make a run resumable."""

from __future__ import annotations

import re
import threading
import time
from bisect import bisect_left, insort
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar, cast

import msgspec
import pyarrow.parquet as pq

from pipeline.errors import BulkscoreError, Held, Incomplete, JobError, Refused, StorageFailed
from pipeline.plan import Range, counting, healing, remaining, subtract, tally
from schemas.plan import NO_END, Plan, Redo, Source, Split, Work
from schemas.receipt import Receipt, Stop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import pyarrow as pa

    from pipeline.plan import Tally
    from pipeline.storage import Store

T = TypeVar("T")

STOP: Final = "stop.json"
SUCCESS: Final = "_SUCCESS"

_NAME: Final = re.compile(r"\d{6,}-\d{12}-\d{12}-\d+-[0-9a-f]+\.json")
_LARGE: Final = 1_000_000
_READERS: Final = 8
_GROUP_ROWS: Final = 100_000
"""Rows of a listing that are decoded to find one."""
_encoder: Final = msgspec.json.Encoder()
_plan: Final = msgspec.json.Decoder(Plan)
_receipt: Final = msgspec.json.Decoder(Receipt)
_stop: Final = msgspec.json.Decoder(Stop)
_BY_EXIT_CODE: Final = {one.exit_code: one for one in (JobError, Incomplete, Refused, Held, StorageFailed)}


class Planned:
    """All plans of an output together: sources by number, splits in order, columns of the newest."""

    def __init__(self, plans: Iterable[Plan]) -> None:
        self.sources: dict[int, Source] = {}
        self.splits: list[Split] = []
        self.redo: list[Redo] = []
        self.columns: dict[str, str] = {}
        self.count = 0
        for plan in plans:
            self.add(plan)

    def add(self, plan: Plan) -> None:
        """Add the next plan; its sources take the place of earlier ones with their numbers."""
        again = {source.number for source in plan.sources} & self.sources.keys()
        if again:
            self.splits = [split for split in self.splits if split.source not in again]
        self.sources.update((source.number, source) for source in plan.sources)
        self.splits += plan.splits
        self.redo += plan.redo
        self.columns = plan.columns or self.columns
        self.count += 1

    @property
    def next_source(self) -> int:
        """The number of the next new source."""
        return max(self.sources, default=-1) + 1

    @property
    def versions(self) -> dict[int, str]:
        """The version of each source, by number."""
        return {number: source.version for number, source in self.sources.items()}

    def counting(self, receipts: Iterable[Receipt]) -> list[Receipt]:
        """Return the receipts that count."""
        return counting(receipts, self.versions, self.redo)

    def remaining(self, counted: Iterable[Receipt]) -> list[Work]:
        """Return the work that is left."""
        return remaining(self.sources, self.splits, counted, self.redo)

    def healing(self, receipts: Iterable[Receipt], kinds: Iterable[str] = ()) -> list[Work]:
        """Return the work of rewriting receipts."""
        return healing(self.sources, self.splits, receipts, kinds)

    def tally(self, counted: Sequence[Receipt]) -> Tally:
        """Count the rows of the output."""
        return tally(self.sources.values(), counted)


def read_plans(store: Store) -> Planned:
    """Read every plan of an output, oldest first; a draft that a crash left is none."""
    names = (name for name in store.names("plan") if name.endswith(".json"))
    planned = Planned(decoded(store, f"plan/{name}", _plan) for name in names)
    strange = next((split.source for split in planned.splits if split.source not in planned.sources), None)
    if strange is not None:
        raise JobError(
            f"{store.uri}/plan is not as bulkscore wrote it: there is no source {strange}; put it back, "
            "or take a new output.path"
        )
    return planned


def write_plan(store: Store, draft: NewPlan, number: int) -> None:
    """Write a plan, its listings first; it is never changed afterwards.

    Raises Held where another run has written that plan: whoever does not know it would number files anew. On a local
    disk a name is taken once; elsewhere each run has its own, and runs that see each other's all stand back.
    """
    for name, table in draft.listings.items():
        with store.create("plan") as file:
            pq.write_table(table, cast("Any", file), compression="zstd", row_group_size=_GROUP_ROWS)
            file.keep(name)
    content = _encoder.encode(draft.plan)
    content = msgspec.json.format(content, indent=1) if len(content) < _LARGE else content
    if store.local:
        alone = store.write_new(f"plan/{number:06d}.json", content)
    else:
        own = f"{number:06d}-{draft.plan.run}.json"
        store.write(f"plan/{own}", content)
        alone = not any(_is_plan(name, number) for name in store.names("plan") if name != own)
        if not alone:
            store.delete(f"plan/{own}")
    if not alone:
        raise Held(f"another run has just planned {store.uri}; run again when it is over")


def _is_plan(name: str, number: int) -> bool:
    return name.endswith(".json") and name.partition(".")[0].partition("-")[0] == f"{number:06d}"


class NewPlan(NamedTuple):
    """A plan that is not written yet, and the listings that its sources name, by their names."""

    plan: Plan
    listings: Mapping[str, pa.Table] = {}


class Receipts:
    """The receipts of an output: listed again and again, since others write them, but each read only once.

    An attempt that is late can write its receipt after its objects were swept as strays, so a receipt is `valid` only
    while its objects are there. Receipts are read before objects are looked for: those are written first.
    """

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[str, Receipt] = {}
        self._names: list[str] = []
        self._listed = float("-inf")
        self._patience = 0.0

    def all(self) -> list[Receipt]:
        """Return all receipts, by name, whether they count or not."""
        with self._lock:
            names = self._list()
        new = [name for name in names if name not in self._known]
        with ThreadPoolExecutor(_READERS) as pool:  # on an object store each is a request
            found = zip(new, pool.map(self._read, new), strict=True)
            known = {**self._known, **{name: one for name, one in found if one}}
        self._known = {name: known[name] for name in names if name in known}
        return list(self._known.values())

    def valid(self) -> list[Receipt]:
        """Return all receipts whose objects are there."""
        receipts = self.all()
        there = {f"{folder}/{name}" for folder in ("results", "errors") for name in self._store.names(folder)}
        return [one for one in receipts if there.issuperset(objects(one))]

    def add(self, receipt: Receipt) -> None:
        """Note a receipt that this process has written itself."""
        with self._lock:
            insort(self._names, f"{receipt.name}.json")

    def of(self, work: Work) -> list[Receipt]:
        """Return the valid receipts that decide what of a piece of work is done; names tell which: no other is read.

        Beside those that overlap it these are the ones that overlap those, and so on: they may keep them from counting.
        The listing is as old as twenty times what it takes, at most: splits may be many, and receipts too.
        """
        with self._lock:
            if self._clock() - self._listed >= self._patience:
                self._list()
            names = self._names[bisect_left(self._names, f"{work.source.number:06d}-") :]
        mine = takewhile(lambda name: _place(name)[0] == work.source.number, names)
        found = map(self._read, _deciding(mine, work.start, work.stop))
        return [one for one in found if one and all(map(self._store.exists, objects(one)))]

    def left(self, work: Work) -> list[Range]:
        """Return what no valid receipt covers of a piece of work, in order."""
        mine = (one for one in self.of(work) if one.generation >= work.generation)
        done = counting(mine, {work.source.number: work.source.version})
        stop = min([work.stop, *(one.stop for one in done if one.end)])
        return subtract(Range(work.start, stop), (Range(one.start, one.stop) for one in done))

    def _list(self) -> list[str]:
        began = self._clock()
        self._names = [name for name in self._store.names("receipts") if _NAME.fullmatch(name)]
        self._listed = self._clock()
        self._patience = 20 * (self._listed - began)
        return list(self._names)  # `add` changes the other one

    def _read(self, name: str) -> Receipt | None:
        """Read a receipt; None where another run has removed it since it was listed."""
        try:
            receipt = decoded(self._store, f"receipts/{name}", _receipt)
        except StorageFailed:
            if self._store.exists(f"receipts/{name}"):
                raise
            return None
        if f"{receipt.name}.json" != name or not 0 <= receipt.start <= receipt.stop < NO_END:
            raise JobError(
                f"{self._store.uri}/receipts/{name} is not as bulkscore wrote it: it speaks of {receipt.name}; "
                "put it back, or delete it and run again"
            )
        return receipt


def _deciding(names: Iterable[str], start: int, stop: int) -> list[str]:
    """Return those of one source's receipts, in order of their names, that hang together with rows `[start, stop)`."""
    found: list[str] = []
    group: list[str] = []
    low = high = 0
    for name in [*names, ""]:
        _, first, last = _place(name) if name else (0, NO_END, NO_END)
        if first >= high:  # nothing before it reaches so far
            found += group if low <= stop and start <= high else []
            group, low, high = [], first, first
        group.append(name)
        high = max(high, last)
    return found


def _place(name: str) -> tuple[int, int, int]:
    """Return (source, from, to) of a receipt's name."""
    source, start, stop, _ = name.split("-", 3)
    return int(source), int(start), int(stop)


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


def write_stop(store: Store, run: str, reason: BulkscoreError, *, unanswered: bool = False) -> None:
    """Tell every worker to stop, and why; `unanswered` where the service refused the job and no row has an answer."""
    store.write(STOP, _encoder.encode(Stop(run, reason.exit_code, str(reason), unanswered)))


def read_stop(store: Store, run: str) -> BulkscoreError | None:
    """Return why this run stands still, if it does."""
    stop = _read_stop(store)
    return _BY_EXIT_CODE.get(stop.exit_code, BulkscoreError)(stop.message) if stop and stop.run == run else None


def _read_stop(store: Store) -> Stop | None:
    return decoded(store, STOP, _stop) if store.exists(STOP) else None


def take_back(store: Store, receipts: Receipts) -> None:
    """Remove the receipts of a run that was refused before a row had an answer: rows died of a wrong contract.

    Any worker may have written them, while another was refused or before; so this is for when all of them have ended.
    """
    stop = None
    with suppress(JobError):  # what cannot be read is written anew by each run
        stop = _read_stop(store)
    if stop and stop.unanswered:
        written = [one for one in receipts.all() if one.run == stop.run]
        for one in written if not any(one.scored for one in written) else ():
            store.delete(f"receipts/{one.name}.json")

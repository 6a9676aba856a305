"""`bulkscore retry`: dead letters are asked again, once; what is good is copied, and no moment is without a receipt."""

from __future__ import annotations

import base64
import csv
import gzip
import json
import os
import shutil
import signal
import threading
from itertools import count
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import service
from anyarrow import KINDS, build, values_of
from engine import Killed, again, dying, engine, one_by_one, place, twice
from hypothesis import assume, given, reject
from hypothesis import strategies as st
from pyarrow import ipc

import jobs
from pipeline import plan, session, write
from pipeline import run as run_module
from pipeline.encode import RowEncoder
from pipeline.errors import JobError
from pipeline.forms import FORMS, PLACE, check_form
from pipeline.storage import Store
from pipeline.stored import Inserter, stored
from schemas.plan import Heal, Source, Split
from schemas.receipt import Receipt

INPUTS = ["parquet", "csv", "jsonl", "arrow", "manifest", "files"]
OUTPUTS = ["parquet", "jsonl", "csv"]
TYPED = {"predictresult": "string", "score": "double"}
OURS = {"request_uuid", "request_row", "attempts", "latency_ms", "scored_at"}
"""What belongs to one run, and stays with a row that is copied."""

UNSURE = ("_view", "dictionary<", "fixed_size_list<", "fixed_shape_tensor")
"""Types with values that Arrow does not write to Parquet, or writes and does not read again."""

_times = count(10**18)


class World:
    """Rows that are words, and a service that refuses some of them until it learns to take them."""

    def __init__(self, folder, recorded, form="parquet", **keys):
        self.folder, self.form, self.recorded, self.keys = folder, form, recorded, keys
        self.out = folder / "out"
        self.poison, self.misfit, self.slow, self.broken = set(), set(), set(), set()
        recorded.answer = self.answer

    def answer(self, call):
        words = [word_of(row) for row in call.rows]
        for bad, status, code in (
            (self.poison, 400, "MR.0105"),
            (self.slow, 504, "APIG.0201"),
            (self.broken, 500, "MR.0100"),
        ):
            if bad.intersection(words):
                return service.refusal(status, code)
        rows = [{"predictresult": f"<{word}>", "score": "much" if word in self.misfit else len(word)} for word in words]
        meta = json.loads(call.body)["meta"]
        return 200, {}, json.dumps({"meta": meta, "data": {"resp_data": rows}}).encode()

    @property
    def opened(self):
        """Whether rows are files that are opened."""
        return self.form in {"files", "manifest"}

    def write(self, name, words):
        """Write a file of these rows; where rows are files, one for each of them."""
        folder = self.folder / "in"
        folder.mkdir(exist_ok=True)
        for number, word in enumerate(words) if self.opened else ():
            self.put(folder / f"{name}-{number:03d}.bin", word.encode())
        path = folder / f"{name}.{'txt' if self.form == 'manifest' else self.form}"
        table = pa.table({"id": [f"{name}-{n:03d}" for n in range(len(words))], "word": words})
        if self.form == "parquet":
            pq.write_table(table, path)
        elif self.form == "arrow":
            with ipc.new_file(path, table.schema) as sink:
                sink.write_table(table, max_chunksize=4)
        elif self.form == "csv":
            self.put(path, "".join(f"{row}\n" for row in ["id,word", *map(",".join, rows_of(table))]).encode())
        elif self.form == "jsonl":
            self.put(path, "".join(f"{json.dumps(row)}\n" for row in table.to_pylist()).encode())
        elif self.form == "manifest":
            self.put(path, "".join(f"{name}-{number:03d}.bin\n" for number in range(len(words))).encode())

    def put(self, path, content):
        path.write_bytes(content)
        os.utime(path, ns=(0, next(_times)))

    def job(self, **keys):
        named = ["uri"] if self.opened else ["id"]
        suffix = {"manifest": "txt", "files": "bin"}.get(self.form, self.form)
        wanted = {
            "input": {
                "path": f"in/*.{suffix}",
                "format": self.form,
                "send": ["content" if self.opened else "word"],
                "keep": named,
            },
            "service": {"url": self.recorded.url, "auth": {"type": "none"}, "limits": {"rows": 4}},
            "output": {"path": "out"},
            **self.keys,
        }
        return jobs.job_file(self.folder, "", **{**wanted, **keys})

    def call(self, command, *options, **keys):
        """Run a command; returns what it left, its summary, and the words of each request that was answered."""
        before = len(self.recorded.calls)
        done = jobs.call(command, self.job(**keys), "-q", "--json", *options)
        calls = self.recorded.calls[before:]
        return done, json.loads(done.out) if done.out else None, [[word_of(row) for row in one.rows] for one in calls]

    def run(self, *options, **keys):
        return self.call("run", *options, **keys)

    def retry(self, *options, **keys):
        return self.call("retry", *options, **keys)

    def rows(self, out=None):
        """Read all results, whatever their form, in the order of the files' names."""
        return [row for path in sorted(((out or self.out) / "results").iterdir()) for row in rows_in(path)]

    def as_clean(self):
        """See that the output is as after one clean run: results in their order, and nothing left over."""
        assert jobs.proved(self.out) == ()
        named = {name.split("/")[1].split(".")[0] for name in objects(self.out)}
        assert named == set(jobs.receipts(self.out))
        assert not [name for name in jobs.files(self.out) if ".part-" in name]
        done, _, _ = self.run(output={**self.keys.get("output", {}), "path": "clean"})
        assert done.code == 0, done.err
        clean = self.folder / "clean"
        assert [without(row, OURS) for row in self.rows()] == [without(row, OURS) for row in self.rows(clean)]
        folders = [{one.name for one in out.iterdir() if one.is_dir()} for out in (self.out, clean)]
        assert folders[0] == folders[1], "an empty folder was left"
        shutil.rmtree(clean)


def rows_of(table):
    return zip(*(column.to_pylist() for column in table.columns), strict=True)


def word_of(row):
    return base64.b64decode(row["content"]).decode() if "content" in row else row["word"]


def rows_in(path):
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_bytes().splitlines()]
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def without(row, names):
    return {name: value for name, value in row.items() if name not in names}


def objects(out):
    return [name for name in jobs.files(out) if name.startswith(("results/", "errors/", "receipts/"))]


def words(many, start=0):
    return [f"w{number:03d}" for number in range(start, start + many)]


def flat(requests):
    return sorted(word for request in requests for word in request)


@pytest.fixture(scope="module")
def recorded():
    with service.recording() as found:
        yield found


@pytest.fixture
def make(recorded):
    with place() as folder:
        yield lambda *arguments, **keys: World(folder, recorded, *arguments, **keys)


@pytest.fixture
def _quick(monkeypatch):
    """No Beam in between, and ranges of about eight rows."""
    monkeypatch.setattr(plan, "MIN_SPLIT_ROWS", 8)
    with engine(one_by_one):
        yield


quick = pytest.mark.usefixtures("_quick")


def died(make, form="parquet", **keys):
    """Make an output with dead letters in three of four ranges."""
    world = make(form, **keys)
    world.write("a", words(20))
    world.write("b", words(3, 50))
    world.poison = {"w001", "w002", "w007", "w051"}
    done, summary, _ = world.run()
    assert (done.code, summary["dead"]) == (3, 4)
    return world


# What is healed


@quick
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("form", INPUTS)
def test_only_dead_rows_are_asked_and_the_output_is_as_after_a_clean_run(make, form, output):
    """Poison that the service learned to take: four rows are asked, all else is copied as it was."""
    world = died(make, form, output={"path": "out", "format": output})
    before = {row["row_uuid"]: row for row in world.rows()}
    world.poison.clear()
    done, summary, asked = world.retry()
    assert (done.code, done.err) == (0, "")
    assert flat(asked) == ["w001", "w002", "w007", "w051"]
    counts = ("planned", "scored", "dead", "left", "scored_by_this_run", "requests")
    assert [summary[name] for name in counts] == [23, 23, 0, 0, 4, len(asked)]
    after = {row["row_uuid"]: row for row in world.rows()}
    assert before.items() <= after.items()
    assert len(after) == 23
    assert jobs.letters(world.out) == []
    assert (world.out / "_SUCCESS").exists()
    world.as_clean()


@quick
@pytest.mark.parametrize("output", OUTPUTS)
def test_typed_predictions_are_copied_too(make, output):
    """Columns of declared fields, as they are."""
    typed = {"path": "out", "format": output, "prediction": TYPED}
    world = died(make, output=typed)
    before = {row["row_uuid"]: row for row in world.rows()}
    world.poison.clear()
    assert world.retry()[0].code == 0
    after = {row["row_uuid"]: row for row in world.rows()}
    assert before.items() <= after.items()
    world.as_clean()


def state(out):
    """Return all that is in an output but its lock, runs, and what tells how it was last called."""
    names = (name for name in jobs.files(out) if name.startswith(("plan/", "results/", "errors/", "receipts/")))
    return {name: (out / name).read_bytes() for name in names}


def generations(out):
    return sorted(name.split("-")[3] for name in jobs.receipts(out))


def kinds(out):
    return sorted((letter["kind"], letter["source_row"]) for letter in jobs.letters(out))


@quick
def test_a_row_that_dies_again_is_asked_once(make):
    """Its new letter takes the place of the old one; the next retry asks it again, and the others never more."""
    world = died(make)
    before = {letter["row_uuid"]: letter for letter in jobs.letters(world.out)}
    world.poison = {"w007"}
    done, summary, asked = world.retry()
    assert (done.code, summary["exit_code"], summary["scored_by_this_run"]) == (3, 3, 3)
    assert not (world.out / "_SUCCESS").exists()
    alone = [words for words in asked if words == ["w007"]]
    assert len(alone) == 1
    [letter] = jobs.letters(world.out)
    assert without(letter, {"request_uuid", "history"}) == without(
        before[letter["row_uuid"]], {"request_uuid", "history"}
    )
    assert letter["history"] != before[letter["row_uuid"]]["history"]
    assert generations(world.out) == ["0", "1", "1", "1"]
    assert jobs.proved(world.out) == ()
    assert flat(world.retry()[2]) == ["w007"]
    assert generations(world.out) == ["0", "1", "1", "2"]
    world.poison.clear()
    assert world.retry()[0].code == 0
    world.as_clean()


@quick
@pytest.mark.parametrize("output", OUTPUTS)
def test_letters_of_other_kinds_are_copied(make, output):
    """To the byte; a range without a wanted one is not touched, and what was too large or unreadable is asked too."""
    world = make("csv", output={"path": "out", "format": output, "prediction": TYPED})
    world.write("a", [*words(6), "w" * 900, "w007"])
    world.write("b", words(4, 50))
    text = (world.folder / "in" / "b.csv").read_text()
    world.put(world.folder / "in" / "b.csv", text.encode() + b"b-004,w054,too,many\n")
    world.poison, world.misfit = {"w001", "w050"}, {"w003", "w005"}
    limits = {"service__limits": {"rows": 4, "body": "800B"}}
    done, _, _ = world.run(**limits)
    assert done.code == 3
    all_kinds = ["mismatch", "mismatch", "rejected", "rejected", "too_large", "unreadable"]
    assert [kind for kind, _ in kinds(world.out)] == all_kinds
    untouched = [name for name in objects(world.out) if name.split("/")[1].startswith("000001")]
    lines = (world.out / "errors").glob("000000*")
    letters = {json.loads(line)["kind"]: line for path in lines for line in path.read_bytes().splitlines()}
    world.misfit.clear()
    done, summary, asked = world.retry("--kind", "mismatch", **limits)
    assert (done.code, summary["scored_by_this_run"], flat(asked)) == (3, 2, ["w003", "w005"])
    assert [kind for kind, _ in kinds(world.out)] == ["rejected", "rejected", "too_large", "unreadable"]
    assert set(untouched) <= set(objects(world.out))
    copied = [line for path in (world.out / "errors").glob("000000*") for line in path.read_bytes().splitlines()]
    assert copied == [letters["rejected"], letters["too_large"]]
    world.poison.clear()
    done, summary, asked = world.retry("--kind", "too_large", "--kind", "rejected")
    assert (summary["scored_by_this_run"], flat(asked)) == (3, sorted(["w" * 900, "w001", "w050"]))
    assert kinds(world.out) == [("unreadable", 4)]
    done, summary, asked = world.retry()
    assert (done.code, summary["dead"], asked) == (3, 1, [])
    assert kinds(world.out) == [("unreadable", 4)]
    assert jobs.proved(world.out) == ()


@quick
@pytest.mark.parametrize("form", ["manifest", "files"])
def test_of_whole_files_only_the_dead_are_opened(make, form):
    """Their neighbours may be gone; one that is gone itself stays a dead letter, and may come back."""
    world = died(make, form)
    for name in ("a-000", "a-003", "a-019"):
        (world.folder / "in" / f"{name}.bin").unlink()
    kept = world.folder / "kept"
    gone = world.folder / "in" / "a-007.bin"
    shutil.move(gone, kept)
    world.poison.clear()
    done, summary, asked = world.retry()
    assert (done.code, summary["dead"], flat(asked)) == (3, 1, ["w001", "w002", "w051"])
    [letter] = jobs.letters(world.out)
    assert letter["kind"] == "unreadable"
    assert gone.as_uri() in letter["message"]
    shutil.move(kept, gone)
    assert world.retry()[0].code == 0
    assert len(world.rows()) == 23
    assert jobs.proved(world.out) == ()


@quick
@pytest.mark.parametrize("form", ["jsonl.gz", "csv.gz"])
def test_a_source_whose_rows_were_not_known_keeps_its_end(make, form, monkeypatch):
    """Receipts of one request each: those healed are in the middle, and one of them is the last."""
    monkeypatch.setattr(write, "OBJECT_SECONDS", -1.0)
    world = make(form.removesuffix(".gz"))
    world.write("a", words(9))
    plain = world.folder / "in" / f"a.{world.form}"
    world.put(plain.with_name(f"a.{form}"), gzip.compress(plain.read_bytes()))
    plain.unlink()
    world.keys = {"input": {"path": f"in/a.{form}", "send": ["word"], "keep": ["id"]}}
    world.poison = {"w005", "w008"}
    assert world.run()[0].code == 3
    ends = {name.split("-")[2]: receipt.get("end") for name, receipt in jobs.receipts(world.out).items()}
    world.poison.clear()
    done, summary, asked = world.retry()
    assert (done.code, summary["unread"], flat(asked)) == (0, 0, ["w005", "w008"])
    assert ends == {name.split("-")[2]: receipt.get("end") for name, receipt in jobs.receipts(world.out).items()}
    assert world.run()[2] == []
    world.as_clean()


@quick
def test_without_letters_there_is_nothing_to_retry(make):
    """The summary says so, the output is as it was, and the exit code speaks of the whole of it."""
    world = make()
    world.write("a", words(5))
    world.run()
    before = state(world.out)
    done, summary, asked = world.retry()
    assert (done.code, asked, summary["scored"], summary["scored_by_this_run"]) == (0, [], 5, 0)
    assert state(world.out) == before
    assert (world.out / "_SUCCESS").exists()
    assert jobs.runs(world.out)[-1] == summary
    assert summary.keys() == jobs.runs(world.out)[0].keys()
    told = jobs.call("retry", world.job(), "-q").out
    assert told.startswith("5 rows: 5 scored, 0 dead letters, 0 left (this run: 0 scored, 0 requests, 0 retries, ")


@quick
def test_without_letters_of_a_kind_there_is_nothing_to_retry_either(make):
    """What died otherwise still decides the exit code; a kind that there is not is named."""
    world = died(make)
    before = state(world.out)
    done, _, asked = world.retry("--kind", "timeout")
    assert (done.code, asked, state(world.out)) == (3, [], before)
    done, _, _ = world.retry("--kind", "bad")
    assert (done.code, done.out) == (2, "")
    assert done.err == ("ERROR --kind bad: allowed: rejected, too_large, unreadable, mismatch, timeout, exhausted\n")


@quick
def test_an_allowed_letter_is_retried_and_success_comes_back(make):
    """Whether all of them were healed or not, as long as so many are allowed."""
    world = died(make, errors={"allow": 3})
    assert not (world.out / "_SUCCESS").exists()
    world.poison = {"w001"}
    assert world.retry()[0].code == 0
    assert (world.out / "_SUCCESS").exists()
    assert len(jobs.letters(world.out)) == 1
    assert jobs.proved(world.out) == ()


@quick
def test_rows_that_are_not_scored_yet_stay_so(make):
    """Exit 6 as for a run that was interrupted; the next run scores them."""
    world = died(make)
    lost = max(name for name, receipt in jobs.receipts(world.out).items() if not receipt["dead"])
    (world.out / "receipts" / f"{lost}.json").unlink()
    world.write("c", words(2, 90))
    world.poison.clear()
    done, summary, asked = world.retry()
    assert (done.code, flat(asked)) == (6, ["w001", "w002", "w007", "w051"])
    assert (summary["dead"], summary["left"]) == (0, 7)
    assert done.err == "ERROR 7 of 23 rows are not scored yet; bulkscore run does that\n"
    done, _, asked = world.run()
    assert (done.code, len(flat(asked))) == (0, 9)
    assert jobs.proved(world.out) == ()


# What keeps it from starting


def refuses(world, *options, **keys):
    """See that retry asks nothing and touches nothing; return exit code and line."""
    before = state(world.out)
    done, _, asked = world.retry(*options, **keys)
    assert (done.out, asked) == ("", [])
    assert state(world.out) == before
    [line] = done.err.splitlines()
    return done.code, line.removeprefix("ERROR ")


@quick
@pytest.mark.parametrize("form", INPUTS)
def test_changed_keys_and_files_are_refused(make, form):
    """As by run, where rows of the file must be read; elsewhere a change is passed over."""
    world = died(make, form)
    code, told = refuses(world, name="roses")
    assert (code, told.partition(": was")[0]) == (
        2,
        f"{world.out.as_uri()} was made by a job that answers differently: name",
    )
    suffix = {"files": "-001.bin", "manifest": ".txt"}.get(form, f".{form}")
    path = world.folder / "in" / f"a{suffix}"
    world.put(path, path.read_bytes() + b"\n")
    code, told = refuses(world)
    assert code == 2
    assert told.startswith(f"input.path: {path.as_uri()} changed ")
    assert "--changed rescore" in told


@quick
@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl", "arrow", "manifest"])
def test_a_file_that_is_gone_is_refused_where_it_must_be_read(make, form):
    """With letters in it, and not without."""
    world = died(make, form)
    suffix = "txt" if form == "manifest" else form
    path = world.folder / "in" / f"b.{suffix}"
    kept = world.folder / "kept"
    shutil.move(path, kept)
    code, told = refuses(world)
    assert (code, told.partition(";")[0]) == (2, f"input.path: {path.as_uri()} is gone since it was planned")
    shutil.move(kept, path)
    world.poison = {"w001"}
    assert world.retry()[0].code == 3
    path.unlink()
    world.poison.clear()
    assert world.retry()[0].code == 0


@quick
def test_an_output_that_was_never_planned_is_refused(make):
    """There is nothing to say about it, and nothing is made of it."""
    world = make()
    world.write("a", words(1))
    done, _, _ = world.retry()
    assert (done.code, done.err) == (
        2,
        f"ERROR output.path: nothing is planned in {world.out.as_uri()}, so there are no dead letters; run the job\n",
    )
    assert not world.out.exists()


@quick
def test_an_output_that_another_run_holds_is_left_alone(make):
    """Exit 5, as for two runs."""
    world = died(make)
    with run_module.lock(Store(str(world.out))), mock.patch.object(run_module, "lock", no_patience(run_module.lock)):
        code, _ = refuses(world)
    assert code == 5


def no_patience(lock):
    return lambda store: lock(store, 0.0)


@quick
@pytest.mark.parametrize("folder", ["results", "errors"])
def test_a_damaged_object_is_not_copied(make, folder):
    """It would get a new hash, and nobody could tell any more; exit 6 names it, and how it is mended."""
    world = died(make)
    path = min((world.out / folder).iterdir())
    content = path.read_bytes()
    path.write_bytes(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])
    before = state(world.out)
    done, _, asked = world.retry()
    assert (done.code, asked) == (6, [])
    assert f"wrong hash: {folder}/{path.name} is not what was written" in done.err
    assert state(world.out) == before
    receipt = world.out / "receipts" / f"{path.name.partition('.')[0]}.json"
    assert f"delete receipts/{receipt.name}, and run scores it anew" in done.err
    receipt.unlink()
    world.poison.clear()
    world.run()
    assert world.retry()[0].code == 0
    world.as_clean()


@quick
@pytest.mark.parametrize("damage", [lambda text: b"\0" + text[1:], lambda text: text[:-5], lambda text: b"\xff" + text])
@pytest.mark.parametrize("kinds", [(), ("--kind", "rejected")])
def test_letters_that_are_none_are_named(make, damage, kinds):
    """No JSON, cut, no text: exit 6 with the object and the receipt to delete, and no traceback."""
    world = died(make)
    path = min((world.out / "errors").iterdir())
    path.write_bytes(damage(path.read_bytes()))
    done, _, _ = world.retry(*kinds)
    assert done.code == 6
    [line] = [line for line in done.err.splitlines() if line.startswith("ERROR")]
    assert path.name in line
    assert f"delete receipts/{path.stem}.json, and run scores it anew" in line


# What may happen meanwhile


@quick
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("following", ["run", "retry"])
def test_a_death_at_any_write_costs_nothing(make, output, following):
    """The old receipt or the new one counts at every moment; whatever runs next leaves no trace of it."""
    world = died(make, output={"path": "out", "format": output})
    world.poison = {"w007"}
    shutil.copytree(world.out, world.folder / "before")
    for writes in count():
        shutil.rmtree(world.out)
        shutil.copytree(world.folder / "before", world.out)
        with dying(writes):
            try:
                survived = world.retry()[0].code == 3
            except Killed:
                survived = False
        assert not [breach for breach in jobs.proved(world.out) if not breach.startswith("object without receipt")]
        done, summary, asked = world.call(following)
        assert (done.code, summary["left"]) == (3, 0)
        assert following == "retry" or asked == []
        assert jobs.proved(world.out) == ()
        named = {name.split("/")[1].split(".")[0] for name in objects(world.out)}
        assert named == set(jobs.receipts(world.out))
        if survived:
            break
    assert writes > 10
    world.poison.clear()
    assert world.retry()[0].code == 0
    world.as_clean()


@pytest.mark.parametrize("way", [again, twice])
def test_two_workers_that_heal_the_same_count_once(make, monkeypatch, way):
    """As where a runner tries a bundle again, or runs it twice at once."""
    monkeypatch.setattr(plan, "MIN_SPLIT_ROWS", 8)
    with engine(one_by_one):
        world = died(make)
    world.poison.clear()
    with engine(way):
        done, summary, asked = world.retry()
    assert (done.code, summary["scored_by_this_run"]) == (0, 4)
    assert way is twice or flat(asked) == ["w001", "w002", "w007", "w051"]
    with engine(one_by_one):
        world.as_clean()


def test_beam_heals_several_ranges_at_once(make, monkeypatch):
    """The work carries all that a worker needs."""
    monkeypatch.setattr(plan, "MIN_SPLIT_ROWS", 8)
    with engine(one_by_one):
        world = died(make)
    world.poison.clear()
    done, summary, asked = world.retry("--", "--direct_num_workers=1")
    assert (done.code, summary["scored"], flat(asked)) == (0, 23, ["w001", "w002", "w007", "w051"])
    with engine(one_by_one):
        world.as_clean()


@quick
def test_a_service_that_refuses_the_job_leaves_the_letters(make):
    """Exit 4 with its reason; what was not asked stays as it was, and is asked the next time."""
    world = died(make)
    before = state(world.out)
    world.recorded.answer = lambda _: service.refusal(404, "APIG.0101")
    done, summary, _ = world.retry()
    assert (done.code, summary["dead"]) == (4, 4)
    assert state(world.out) == before
    world.recorded.answer = world.answer
    world.poison.clear()
    assert world.retry()[0].code == 0
    world.as_clean()


@quick
def test_what_an_interrupted_retry_did_not_ask_stays(make):
    """The request on its way is committed if its range needs no other; then exit 143, and the same command goes on."""
    world = died(make)

    def interrupted(call):
        os.kill(os.getpid(), signal.SIGTERM)
        one_session().stopping._event.wait(60)
        return world.answer(call)

    world.recorded.answer = interrupted
    world.poison.clear()
    done, summary, asked = world.retry()
    assert (done.code, flat(asked)) == (143, ["w001", "w002"])
    assert (summary["scored_by_this_run"], summary["dead"]) == (2, 2)
    assert "interrupted; the same command resumes" in done.err
    assert kinds(world.out) == [("rejected", 1), ("rejected", 7)]
    assert jobs.proved(world.out) == ()
    world.recorded.answer = world.answer
    assert flat(world.retry()[2]) == ["w007", "w051"]
    world.as_clean()


def one_session():
    """Return the one session there is."""
    [found] = [one for one in session._SESSIONS.values() if one.scorer]
    return found


def test_a_killed_retry_leaves_the_old_letters(make, monkeypatch):
    """The process dies while the service thinks: no receipt was given up for what was not there yet."""
    monkeypatch.setattr(plan, "MIN_SPLIT_ROWS", 8)
    with engine(one_by_one):
        world = died(make)
    before = {name: content for name, content in state(world.out).items() if not name.startswith("runs/")}
    asked, done = threading.Event(), threading.Event()

    def held(call):
        asked.set()
        done.wait(60)
        return world.answer(call)

    world.recorded.answer = held
    with jobs.process("retry", world.job(), "-q") as running:
        assert asked.wait(60)
        running.send_signal(signal.SIGKILL)
        running.wait()
    done.set()
    assert before.items() <= state(world.out).items()
    world.recorded.answer = world.answer
    world.poison.clear()
    with engine(one_by_one):
        assert world.retry()[0].code == 0
        world.as_clean()


# The parts


def test_ranges_that_are_healed_are_each_a_work_of_their_own():
    """A generation newer, entered at the last mark before it, and never joined with a neighbour."""
    source = Source(3, "file:///a.csv", "a.csv", 10**9, "v", None)
    splits = [Split(3, 0, 100_000, 0), Split(3, 100_000, None, 5_000)]
    receipts = [
        Receipt(3, start, start + 50_000, generation, "a", "v", 49_999, 1, "run")
        for start, generation in ((0, 0), (50_000, 4), (100_000, 1))
    ]
    work = plan.healing({3: source}, splits, receipts, ["timeout"])
    assert [(one.start, one.stop, one.generation, one.mark) for one in work] == [
        (0, 50_000, 1, (0, 0)),
        (50_000, 100_000, 5, (0, 0)),
        (100_000, 150_000, 2, (100_000, 5_000)),
    ]
    assert [one.heal for one in work] == [Heal(one, ("timeout",)) for one in receipts]
    assert plan.merged(work) == work
    assert [plan.asked(one) for one in work] == [1, 1, 1]


@given(data=st.data())
def test_stored_rows_of_any_type_are_copied_as_they_are(data):
    """In every form: what new rows are put among them is written as if it had been there from the start."""
    kind = data.draw(KINDS)
    values = data.draw(st.lists(values_of(kind), min_size=1, max_size=12))
    form = data.draw(st.sampled_from(OUTPUTS))
    assume("run_end_encoded<" not in str(kind))  # Arrow does not join pieces of all of them
    assume(form != "parquet" or not any(name in str(kind) for name in UNSURE))
    try:
        check_form(form, schema_with(kind))
    except JobError:
        reject()
    mask = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    try:
        copied(build(values, kind), form, np.array(mask, np.bool_), data.draw(st.integers(1, 4)))
    except JobError:  # seconds for which milliseconds have no room
        reject()


@pytest.mark.parametrize(
    "kept",
    [
        *(
            pa.array(one).dictionary_encode()
            for one in (["a", None, "b", "a"], [7, 8, None, 7], [True, False, True, True])
        ),
        pa.array(["a", None, "b" * 99, "a"], pa.string_view()),
    ],
    ids=["texts", "numbers", "truths", "views"],
)
@pytest.mark.parametrize("form", OUTPUTS)
def test_stored_dictionaries_and_views_stay_what_they_are(form, kept):
    """Parquet keeps only their values, where these are no texts."""
    copied(kept, form, np.array([True, False, True, True]), 1)


def schema_with(kind):
    return pa.schema([*PLACE, pa.field('kept "it", \n', kind)])


def copied(kept, form, old, size):
    """See that an object with new rows put among the `old` ones is as one that had them all from the start."""
    schema = schema_with(kept.type)
    rows = len(kept)
    columns = [pa.array(["file:///a"] * rows), pa.array(range(rows)), pa.array(words(rows)), kept]
    table = pa.table(columns, schema=schema)
    with place() as folder:
        store = Store(str(folder))
        put(store, f"results/all.{form}", schema, [table])
        put(store, f"results/old.{form}", schema, pieces_of(table, old, size))
        with store.create("results") as draft:
            numbers = lambda found: found.column("source_row").to_numpy()  # noqa: E731
            found = stored(store, f"results/old.{form}", schema)
            writer = Inserter(draft, schema, form, found, numbers)
            for piece in pieces_of(table, ~old, size):
                writer.write_table(piece)
            writer.close()
            draft.keep(f"results/new.{form}")
        paths = [folder / "results" / f"{name}.{form}" for name in ("all", "new")]
        if form == "parquet":
            whole, new = (pq.read_table(path) for path in paths)
            assert new.schema.equals(whole.schema)
            assert lines_of(new) == lines_of(whole)
        else:
            whole, new = (path.read_bytes() for path in paths)
            assert new == whole


def pieces_of(table, mask, size):
    """Cut the rows of a mask into tables of some rows; slices, since not all types can be filtered."""
    rows = [table.slice(row, 1) for row in np.flatnonzero(mask).tolist()]
    return [pa.concat_tables(rows[at : at + size]) for at in range(0, len(rows), size)]


def lines_of(table):
    [batch] = table.combine_chunks().to_batches()
    return RowEncoder(table.schema, table.schema.names, rename={}).encode(batch).lines


def put(store, name, schema, tables):
    with store.create("results") as draft:
        writer = FORMS[name.rpartition(".")[2]].writer(draft, schema)
        for table in tables:
            writer.write_table(table)
        writer.close()
        draft.keep(name)

"""Inputs and jobs that change between runs: what is asked again, what is refused, and what a crash in between costs."""

from __future__ import annotations

import base64
import gzip
import json
import os
import shutil
from contextlib import contextmanager, nullcontext
from itertools import count
from unittest import mock

import pyarrow as pa
import pytest
import service
from engine import Killed, dying, engine, one_by_one, place

import jobs
from pipeline import plan, write
from pipeline import run as run_module
from pipeline.errors import StorageFailed
from pipeline.storage import Store

ROWS = ["parquet", "csv", "jsonl"]
FORMATS = [*ROWS, "files"]
RESCORE, KEEP = ("--changed", "rescore"), ("--changed", "keep")
WAYS = "use --changed rescore to score changed files again, --changed keep to keep what is done, --restart, or a new"

_times = count(10**18)
"""Each file that is written has a time of its own, however coarse the clock is."""


class World:
    """An input of one format, the job over it, and a service that answers each row with its word and the model's name.

    A file of `format: files` is one row, whose word is all that the file holds.
    """

    def __init__(self, folder, form, recorded):
        self.folder, self.form, self.recorded = folder, form, recorded
        self.out = folder / "out"
        self.model = "m1"
        self.gone = set()
        recorded.answer = self.answer

    def answer(self, call):
        rows = [{"predictresult": f"{self.model} {word(row)}"} for row in call.rows]
        return 200, {}, json.dumps({"meta": json.loads(call.body)["meta"], "data": {"resp_data": rows}}).encode()

    def path(self, name):
        return self.folder / "in" / f"{name}.{'bin' if self.form == 'files' else self.form}"

    def write(self, name, *words):
        """Write an input file with these rows."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.form == "parquet":
            jobs.put(path, pa.table({"word": list(words)}))
        else:
            path.write_bytes(encoded(self.form, words))
        os.utime(path, ns=(0, next(_times)))
        return path.as_uri()

    def job(self, output="out", **keys):
        sent = "content" if self.form == "files" else "word"
        form = {"format": "files"} if self.form == "files" else {}
        wanted = {
            "input": {"path": f"in/*.{'bin' if self.form == 'files' else self.form}", "send": [sent], **form},
            "service": {"url": self.recorded.url, "auth": {"type": "none"}, "limits": {"rows": 1}},
            "output": {"path": output},
        }
        return jobs.job_file(self.folder, "", **{**wanted, **keys})

    def run(self, *options, **keys):
        """Run the command; returns what it left, its summary, and the words that it asked for, sorted."""
        before = len(self.recorded.calls)
        done = jobs.call("run", self.job(**keys), "-q", "--json", "--no-probe", *options)
        asked = sorted(word(row) for call in self.recorded.calls[before:] for row in call.rows)
        return done, json.loads(done.out) if done.out else None, asked

    def scores(self, *options, expect, **keys):
        """Run to the end, and see that exactly these words were asked for."""
        done, summary, asked = self.run(*options, **keys)
        assert (done.code, done.err, asked) == (0, "", sorted(expect))
        assert (summary["left"], summary["unread"]) == (0, 0)
        return summary

    def refuses(self, *options, **keys):
        """See that run and plan refuse with the same words, ask nothing and touch nothing; return the words."""
        before, calls = state(self.out), len(self.recorded.calls)
        planned = jobs.call("plan", self.job(**keys), *options)
        done, _, _ = self.run(*options, **keys)
        assert (done.code, done.out) == (2, "")
        assert planned == done
        assert state(self.out) == before
        assert len(self.recorded.calls) == calls
        [line] = done.err.splitlines()
        return line.removeprefix("ERROR ")

    def settled(self, **keys):
        """See that all is as after one clean run: nothing left to do, nothing left over."""
        self.scores(expect=[], **keys)
        assert jobs.proved(self.out) == ()
        assert (self.out / "_SUCCESS").exists()
        assert not [name for name in jobs.files(self.out) if ".part-" in name]
        assert {name.split("/")[1].split(".")[0] for name in objects(self.out)} == set(jobs.receipts(self.out))
        done, _, _ = self.run(output="clean", **keys)
        assert done.code == 0
        assert jobs.lasting(self.out) == jobs.lasting(self.folder / "clean")
        shutil.rmtree(self.folder / "clean")

    def answers(self):
        """Return what was answered, in the order of the input."""
        return [json.loads(row["prediction"])["predictresult"] for row in jobs.lasting(self.out)]

    def lose(self):
        """Lose the receipt of the last row."""
        receipts = jobs.receipts(self.out)
        last = max(name for name, receipt in receipts.items() if receipt["from"] < receipt["to"])
        (self.out / "receipts" / f"{last}.json").unlink()

    def delete(self, name):
        self.path(name).unlink()


def word(row):
    return base64.b64decode(row["content"]).decode() if "content" in row else row["word"]


def encoded(form, words):
    """Return a file of a form made of text, or of no form."""
    if form == "files":
        return " ".join(words).encode()
    if form.startswith("jsonl"):
        text = "".join(f"{json.dumps({'word': word})}\n" for word in words)
    else:
        text = "".join(f"{word}\n" for word in ["word", *words])
    return gzip.compress(text.encode()) if form.endswith(".gz") else text.encode()


def state(out):
    """Return all that is in an output, and what it holds; the lock is nothing."""
    return {name: (out / name).read_bytes() for name in jobs.files(out) if name != ".lock"}


def objects(out):
    return [name for name in jobs.files(out) if name.startswith(("results/", "errors/", "receipts/"))]


def generations(out):
    """Return the generations in objects' names, by source and row."""
    names = [name.split("-") for name in jobs.receipts(out)]
    return {(int(name[0]), int(name[1])): int(name[3]) for name in names}


@pytest.fixture(scope="module")
def recorded():
    with service.recording() as found:
        yield found


@pytest.fixture
def make(recorded):
    with place() as folder:
        yield lambda form: World(folder, form, recorded)


@pytest.fixture
def _quick(monkeypatch):
    """A receipt for each row, ranges one after the other, and no Beam in between."""
    monkeypatch.setattr(write, "OBJECT_SECONDS", -1.0)
    with engine(one_by_one):
        yield


@pytest.fixture
def _narrow(_quick, monkeypatch):
    """Splits of one row where rows are known, as with as many workers."""
    monkeypatch.setattr(plan, "MIN_SPLIT_ROWS", 1)


quick, narrow = pytest.mark.usefixtures("_quick"), pytest.mark.usefixtures("_narrow")


# New, changed and deleted files


@pytest.mark.parametrize("form", FORMATS)
def test_only_new_files_are_asked(make, form):
    """Wherever they are in the listing; ids and answers are those of a clean run over all files."""
    world = make(form)
    world.write("b", "one", "two")
    first = world.scores(expect=["one two"] if form == "files" else ["one", "two"])
    assert first["planned"] == (1 if form == "files" else 2)
    world.write("a", "three")
    world.write("c/not-here", "never")
    world.write("c", "four")
    summary = world.scores(expect=["four", "three"])
    assert summary["scored_by_this_run"] == 2
    world.settled()


@quick
@pytest.mark.parametrize("form", FORMATS)
def test_changed_files_are_refused(make, form):
    """Each is named, and no other; neither the output nor the service notices anything."""
    world = make(form)
    for name in "abc":
        world.write(name, "one", "two")
    world.run()
    changed = [world.write(name, "other") for name in "ac"]
    told = world.refuses()
    assert told.startswith("input.path: ")
    assert told.endswith(f" changed since planned; {WAYS} output.path")
    assert [uri in told for uri in (*changed, world.path("b").as_uri())] == [True, True, False]


@quick
@pytest.mark.parametrize("form", FORMATS)
def test_of_many_changed_files_some_are_named(make, form):
    """A line stays a line: five of them, and how many more there are."""
    world = make(form)
    for name in range(8):
        world.write(f"{name}", "one")
    world.run()
    uris = [world.write(f"{name}", "two") for name in range(8)]
    told = world.refuses()
    assert [uri in told for uri in uris] == [True] * 5 + [False] * 3
    assert " and 3 more changed since planned" in told


@narrow
@pytest.mark.parametrize("form", FORMATS)
def test_rescore_asks_the_rows_of_changed_files_again(make, form):
    """As a new generation; the old objects go, the answers are the new ones, and no other row is asked."""
    world = make(form)
    for name in "abc":
        world.write(name, f"{name}1", f"{name}2")
    world.run()
    before = set(objects(world.out))
    world.write("b", "b3", "b4", "b5")
    world.write("d", "d1")
    summary = world.scores(*RESCORE, expect=["b3 b4 b5", "d1"] if form == "files" else ["b3", "b4", "b5", "d1"])
    assert summary["planned"] == (4 if form == "files" else 8)
    old = {
        name for name in before if name.split("/")[1].startswith("000000-000000000001" if form == "files" else "000001")
    }
    assert before - set(objects(world.out)) == old != set()
    again = {place for place, generation in generations(world.out).items() if generation}
    assert again == ({(0, 1)} if form == "files" else {place for place in generations(world.out) if place[0] == 1})
    assert set(generations(world.out).values()) == {0, 1}
    world.settled()


def test_rescore_of_a_file_asks_again_what_shares_its_receipt(make):
    """A receipt counts as a whole or not at all, so the files of its range are asked together."""
    world = make("files")
    for name in "abc":
        world.write(name, name)
    world.scores(expect=["a", "b", "c"])
    assert len(jobs.receipts(world.out)) == 1
    world.write("b", "B")
    world.scores(*RESCORE, expect=["B", "a", "c"])
    assert list(generations(world.out).values()) == [1]
    world.settled()


@narrow
@pytest.mark.parametrize("form", FORMATS)
def test_a_file_may_change_again_and_again(make, form):
    """Each time is a newer generation, also of a file that was new in between."""
    world = make(form)
    world.write("a", "a0")
    world.scores(expect=["a0"])
    world.write("b", "b0")
    world.scores(expect=["b0"])
    for turn in range(1, 4):
        world.write("b", f"b{turn}")
        world.scores(*RESCORE, expect=[f"b{turn}"])
        assert set(generations(world.out).values()) == {0, turn}
    world.settled()


@quick
@pytest.mark.parametrize("form", FORMATS)
def test_rescore_and_keep_without_a_change_do_nothing(make, form):
    """Whoever always says so pays for what changed alone, from the first run on."""
    world = make(form)
    world.write("a", "one")
    for ways in (RESCORE, KEEP):
        world.scores("--restart", *ways, expect=["one"])
        before = {name: content for name, content in state(world.out).items() if not name.startswith("runs/")}
        world.scores(*ways, expect=[])
        assert before == {name: content for name, content in state(world.out).items() if not name.startswith("runs/")}


@quick
@pytest.mark.parametrize("form", FORMATS)
def test_keep_accepts_changed_files_that_are_done(make, form):
    """Nothing is asked, later runs do not mind, and the next change is one again."""
    world = make(form)
    world.write("a", "one")
    world.write("b", "two")
    world.run()
    before, answers = objects(world.out), world.answers()
    world.write("a", "new")
    assert json.loads(jobs.call("plan", world.job(), *KEEP, "--json").out)["left"] == 0
    world.scores(*KEEP, expect=[])
    world.scores(expect=[])
    assert (objects(world.out), world.answers()) == (before, answers)
    assert jobs.proved(world.out) == ()
    assert (world.out / "_SUCCESS").exists()
    uri = world.write("a", "newer")
    assert uri in world.refuses()
    world.scores(*RESCORE, expect=["newer"])
    world.settled()


@quick
@pytest.mark.parametrize("form", FORMATS)
def test_keep_refuses_a_changed_file_that_is_not_done(make, form):
    """What is left of it would be rows of another file; it is named, and one that is done is not."""
    world = make(form)
    world.write("a", "a1", "a2")
    world.write("b", "b1", "b2")
    world.run()
    world.lose()
    done, undone = world.write("a", "a3"), world.write("b", "b3")
    told = world.refuses(*KEEP)
    assert undone in told
    assert done not in told
    assert told.endswith(
        " changed before all rows were scored, and --changed keep takes only files that are done; "
        "use --changed rescore, --restart, or a new output.path"
    )


@quick
@pytest.mark.parametrize("form", FORMATS)
def test_deleted_files_stay_scored(make, form):
    """Also where others are new, or all are gone; put back as they were, they are still the same."""
    world = make(form)
    world.write("a", "one")
    world.write("b", "two")
    world.run()
    kept = world.folder / "kept"
    shutil.move(world.path("a"), kept)
    world.write("c", "three")
    assert world.scores(expect=["three"])["planned"] == 3
    assert world.answers() == ["m1 one", "m1 two", "m1 three"]
    world.delete("b")
    world.delete("c")
    assert world.scores(expect=[])["scored"] == 3
    assert jobs.proved(world.out) == ()
    shutil.move(kept, world.path("a"))
    world.scores(expect=[])


@quick
@pytest.mark.parametrize("form", ROWS)
def test_a_deleted_file_that_is_not_scored_yet_is_exit_6(make, form):
    """With its name; what can be scored is, and the file's return is all that is missing."""
    world = make(form)
    world.write("a", "one", "two")
    world.write("b", "three")
    world.run()
    for path in (world.out / "receipts").iterdir():
        path.unlink()
    kept = world.folder / "kept"
    shutil.move(world.path("b"), kept)
    done, summary, asked = world.run()
    assert (done.code, asked) == (6, ["one", "two"])
    assert world.path("b").as_uri() in done.err
    assert "is gone since it was planned" in done.err
    assert summary["scored"] == 2
    assert summary["left"] + summary["unread"] == 1
    assert not (world.out / "_SUCCESS").exists()
    shutil.move(kept, world.path("b"))
    world.scores(expect=["three"])
    world.settled()


@quick
def test_a_deleted_whole_file_that_is_not_scored_yet_is_a_dead_letter(make):
    """A row of its own is a row's trouble: exit 3, since none is allowed."""
    world = make("files")
    world.write("a", "one")
    uri = world.write("b", "two")
    world.run()
    for path in (world.out / "receipts").iterdir():
        path.unlink()
    world.delete("b")
    done, summary, asked = world.run()
    assert (done.code, asked) == (3, ["one"])
    assert (summary["scored"], summary["dead"], summary["left"]) == (1, 1, 0)
    [letter] = jobs.letters(world.out)
    assert (letter["kind"], letter["source"], letter["message"]) == (
        "unreadable",
        uri,
        f"{uri} is gone since it was planned",
    )
    assert jobs.proved(world.out) == ()


# Keys


@quick
@pytest.mark.parametrize("form", FORMATS)
def test_rescore_of_a_changed_key_asks_everything_again(make, form):
    """All old objects go, and all answers are the new model's."""
    world = make(form)
    world.write("a", "one")
    world.write("b", "two")
    world.run()
    world.write("c", "three")
    world.run()
    before = objects(world.out)
    world.model = "m2"
    told = world.refuses(service__version="v2")
    assert told.startswith(
        f'{world.out.as_uri()} was made by a job that answers differently: service.version: was null, is "v2"; '
    )
    world.write("b", "two!")
    world.scores(*RESCORE, expect=["one", "three", "two!"], service__version="v2")
    assert set(generations(world.out).values()) == {1}
    assert not set(before) & set(objects(world.out))
    assert world.answers() == ["m2 one", "m2 two!", "m2 three"]
    world.settled(service__version="v2")
    assert "service.version" in world.refuses()


@narrow
@pytest.mark.parametrize("form", FORMATS)
def test_keep_uses_a_changed_key_for_the_rest(make, form):
    """What is done stays, what is not done or new is asked anew, and later runs do not mind."""
    world = make(form)
    world.write("a", "one")
    world.write("b", "two")
    world.run()
    world.lose()
    world.write("c", "three")
    world.model = "m2"
    world.scores(*KEEP, expect=["three", "two"], service__version="v2")
    assert world.answers() == ["m1 one", "m2 two", "m2 three"]
    world.scores(expect=[], service__version="v2")
    assert jobs.proved(world.out) == ()
    assert "service.version" in world.refuses()


@quick
def test_keep_reads_the_rest_as_if_a_type_had_never_been_declared(make):
    """Its type is what the first file showed, in the same file as in new ones, and in later runs."""
    world = make("csv")
    declared = {"columns": {"word": "string"}, "path": "in/*.csv", "send": ["word"]}
    world.write("a", "1", "2")
    world.scores(input=declared, expect=["1", "2"])
    world.lose()
    world.write("b", "3")
    world.scores(*KEEP, expect=[2, 3])
    world.write("c", "4")
    world.scores(expect=[4])
    world.scores(*KEEP, input={**declared, "columns": {"word": "double"}}, expect=[])
    world.write("d", "5")
    world.scores(input={**declared, "columns": {"word": "double"}}, expect=[5.0])
    assert jobs.proved(world.out) == ()


@quick
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_rows_that_died_of_a_declared_type_are_healed_without_it(make, form):
    """The declaration is taken back, kept rows stay, and `retry` reads what died as the first file shows it."""
    world = make(form)
    wrong = {"columns": {"word": "int64"}, "path": f"in/*.{form}", "send": ["word"]}
    world.write("a", "one", "two")
    done, summary, asked = world.run(input=wrong)
    assert (done.code, summary["dead"], asked) == (3, 2, [])
    world.write("b", "three")
    done, summary, asked = world.run(*KEEP)
    assert (done.code, summary["dead"], asked) == (3, 2, ["three"])
    assert jobs.call("retry", world.job()).code == 0
    world.settled()


@quick
def test_keep_does_not_mix_two_types_of_a_kept_column(make):
    """It is a column of the results; another name of the same type, and a column that is not kept, are fine."""
    world = make("csv")
    world.write("a", "1")
    given = {"path": "in/*.csv", "send": ["word"], "keep": ["word"]}
    world.scores(input={**given, "columns": {"word": "i4"}}, expect=[1])
    for columns in ({}, {"word": "string"}):
        told = world.refuses(*KEEP, input={**given, "columns": columns})
        assert told.startswith('input.columns: was {"word":"i4"}, is {')
        assert "'word' is kept, and all results have one schema, so --changed keep cannot mix both; use --chan" in told
    world.scores(*KEEP, input={**given, "columns": {"word": "int32"}}, expect=[])
    world.scores(*RESCORE, input=given, expect=[1])
    assert jobs.proved(world.out) == ()


@quick
@pytest.mark.parametrize("form", FORMATS)
def test_keep_does_not_take_another_name(make, form):
    """Rows of two names would have ids that do not go together; to score everything again is fine."""
    world = make(form)
    world.write("a", "one")
    world.run()
    told = world.refuses(*KEEP, name="roses")
    assert told.startswith('name: was "iris", is "roses"; row_uuids are made of it')
    world.scores(*RESCORE, expect=["one"], name="roses")
    world.settled(name="roses")


@quick
def test_keep_does_not_number_half_a_file_in_another_way(make):
    """Without a header the rest would begin a row earlier, and one would be scored twice; once all is done, it may."""
    world = make("csv")
    world.write("a", "one", "two", "three")
    world.run()
    world.lose()
    keys = {"input__csv": {"header": False}, "input__columns": {"word": "string"}}
    told = world.refuses(*KEEP, **keys)
    assert told.startswith(
        "input.csv.header: was true, is false; rows are numbered by it, and not all planned ones are"
    )
    world.scores(expect=["three"], input__columns={})
    world.path("b").write_text("four\n")
    world.scores(*KEEP, expect=["four"], **keys)
    assert world.answers() == ["m1 one", "m1 two", "m1 three", "m1 four"]
    assert jobs.proved(world.out) == ()


@quick
@pytest.mark.parametrize("form", FORMATS)
def test_rescore_of_everything_needs_every_file(make, form):
    """One that is gone could not be scored again: it is named, and its results stay."""
    world = make(form)
    world.write("a", "one")
    uri = world.write("b", "two")
    world.run()
    world.delete("b")
    told = world.refuses(*RESCORE, service__version="v2")
    assert told.startswith(f"input.path: {uri} is gone, so that it cannot be scored again; ")
    world.scores(*RESCORE, expect=[])
    world.write("a", "new")
    world.scores(*RESCORE, expect=["new"])
    assert jobs.proved(world.out) == ()


@narrow
@pytest.mark.parametrize("form", FORMATS)
def test_a_rescored_file_that_is_gone_keeps_the_others_from_nothing(make, form):
    """Only what changed is asked again, whatever else was deleted."""
    world = make(form)
    world.write("a", "one")
    world.write("b", "two")
    world.run()
    world.delete("b")
    world.write("a", "ONE")
    world.scores(*RESCORE, expect=["ONE"])
    assert world.answers() == ["m1 ONE", "m1 two"]
    assert jobs.proved(world.out) == ()


def test_a_file_that_is_gone_is_not_lost_with_its_neighbour(make):
    """Their results share a receipt, which would be given up: the one that is gone is named, and stays scored."""
    world = make("files")
    for name in "abc":
        world.write(name, name)
    world.run()
    assert len(jobs.receipts(world.out)) == 1
    kept = world.folder / "kept"
    shutil.move(world.path("b"), kept)
    world.write("c", "C")
    told = world.refuses(*RESCORE)
    assert told.startswith(f"input.path: {world.path('b').as_uri()} is gone, so that it cannot be scored again; ")
    world.scores(*KEEP, expect=[])
    assert world.answers() == ["m1 a", "m1 b", "m1 c"]
    world.write("c", "CC")
    shutil.move(kept, world.path("b"))
    world.scores(*RESCORE, expect=["CC", "a", "b"])
    world.settled()


@quick
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("output__format", "jsonl"),
        ("output__prediction", {"predictresult": "string"}),
        ("input__keep", ["word"]),
    ],
)
def test_keep_does_not_mix_results_of_two_shapes(make, key, value):
    """Readers take all parts for one table; to score everything again is fine."""
    world = make("csv")
    world.write("a", "one")
    world.run()
    told = world.refuses(*KEEP, **{key: value})
    assert told.startswith(f"{key.replace('__', '.')}: was ")
    assert "; all results have one schema, so --changed keep cannot mix both; use --changed rescore" in told
    world.scores(*RESCORE, expect=["one"], **{key: value})
    assert jobs.proved(world.out) == ()


@quick
@pytest.mark.parametrize("form", FORMATS)
def test_keys_of_speed_place_and_verdict_never_refuse(make, form):
    """They are no matter of answers: neither are they asked about, nor is anything asked again."""
    world = make(form)
    world.write("a", "one")
    world.run()
    for key, value in {
        "service__limits": {"rows": 7, "body": "1MB", "timeout": "9s", "in_flight": 3, "rate": "5/s"},
        "service__headers": {"X-Team": "green"},
        "service__tls": {"verify": False},
        "retry": {"attempts": 2, "seconds": 5, "outage": "5s"},
        "errors": {"allow": "5%"},
        "runner": {"options": {"job_name": "x"}},
        "params": {"date": "today"},
    }.items():
        done, _, asked = world.run(**{key: value})
        assert (done.code, asked) == (0, []), (key, done.err)


@quick
@pytest.mark.parametrize(("before", "after"), [("csv", "files"), ("files", "csv")])
@pytest.mark.parametrize("how", [(), RESCORE, KEEP])
def test_rows_cannot_become_files_nor_files_rows(make, before, after, how):
    """What a row is has changed: neither can be kept beside the other, nor take its place."""
    world = make("csv")
    world.write("a", "one", "two")
    keys = {
        "csv": {"path": "in/*.csv", "send": ["word"], "format": "csv"},
        "files": {"path": "in/*.csv", "send": ["content"], "format": "files"},
    }
    world.run(input=keys[before])
    told = world.refuses(*how, input=keys[after])
    assert told.startswith(f"input.format: {after} does not go with {world.out.as_uri()}, where ")
    assert told.endswith(" planned; use --restart, or a new output.path")
    done, _, _ = world.run("--restart", input=keys[after])
    assert done.code == 0
    assert jobs.proved(world.out) == ()


# Restart, other jobs, moved inputs


@quick
@pytest.mark.parametrize("form", FORMATS)
def test_restart_begins_anew(make, form):
    """Whatever changed; only the summaries of runs stay."""
    world = make(form)
    world.write("a", "one")
    world.write("b", "two")
    world.run()
    before = objects(world.out)
    world.delete("a")
    world.write("b", "TWO")
    world.model = "m2"
    world.scores("--restart", expect=["TWO"], service__version="v2")
    assert not set(before) & set(objects(world.out))
    assert len(jobs.runs(world.out)) == 2
    assert [name for name in jobs.files(world.out / "plan") if name.endswith(".json")] == ["000000.json"]
    world.settled(service__version="v2")


@quick
@pytest.mark.parametrize("form", FORMATS)
def test_an_output_of_another_job_is_refused(make, form):
    """Each key that differs is named, with both values."""
    world = make(form)
    world.write("a", "one")
    world.run()
    shutil.copytree(world.folder / "in", world.folder / "elsewhere")
    told = world.refuses(name="roses", service__version="v7", output__format="jsonl")
    for key in (
        'name: was "iris", is "roses"',
        'service.version: was null, is "v7"',
        'output.format: was "parquet", is "jsonl"',
    ):
        assert key in told


@narrow
@pytest.mark.parametrize("form", FORMATS)
def test_an_input_that_moved_as_a_whole_is_the_same(make, form):
    """Nothing is asked again; what is left, new or changed is read where it is now."""
    world = make(form)
    for name in "abc":
        world.write(name, name)
    world.run()
    uuids = {row["row_uuid"] for row in jobs.lasting(world.out)}
    world.lose()
    shutil.move(world.folder / "in", world.folder / "elsewhere")
    given = json.loads(world.job().read_text())["input"]
    given["path"] = given["path"].replace("in/", "elsewhere/")
    world.scores(expect=["c"], input=given)
    assert {row["row_uuid"] for row in jobs.lasting(world.out)} == uuids
    assert jobs.proved(world.out) == ()
    changed = world.folder / "elsewhere" / world.path("a").name
    shutil.copy(world.folder / "elsewhere" / world.path("b").name, changed)
    os.utime(changed, ns=(0, next(_times)))
    assert changed.as_uri() in world.refuses(input=given)
    world.scores(*RESCORE, expect=["b"], input=given)
    assert {row["row_uuid"] for row in jobs.lasting(world.out)} == uuids
    assert jobs.proved(world.out) == ()


@narrow
@pytest.mark.parametrize("form", FORMATS)
def test_an_input_that_moved_is_estimated_and_verified(make, form):
    """`plan` finds the rows that are left where they are now, `verify` those that are done under their old names."""
    world = make(form)
    for name in "abc":
        world.write(name, name)
    world.run()
    world.lose()
    shutil.move(world.folder / "in", world.folder / "elsewhere")
    given = json.loads(world.job().read_text())["input"]
    given["path"] = given["path"].replace("in/", "elsewhere/")
    before = state(world.out)
    done = jobs.call("plan", world.job(input=given), "--json")
    assert (done.code, done.err) == (0, "")
    told = json.loads(done.out)
    assert [told[key] for key in ("files", "new_files", "done", "left", "requests")] == [3, 0, 2, 1, 1]
    assert state(world.out) == before
    world.scores(expect=["c"], input=given)
    done = jobs.call("verify", world.job(input=given))
    assert (done.code, done.err) == (0, "")
    assert done.out.endswith(": 3 rows = 3 results + 0 dead letters: verified\n")
    told = json.loads(jobs.call("plan", world.job(input=given), "--json").out)
    assert [told[key] for key in ("files", "new_files", "done", "left")] == [3, 0, 3, 0]


@quick
@pytest.mark.parametrize("form", FORMATS)
def test_files_are_not_scored_twice_after_a_move(make, form):
    """With patterns that begin elsewhere they would have other ids: that is told, as if they had always been there."""
    world = make(form)
    world.write("a", "one")
    world.run()
    shutil.move(world.folder / "in", world.folder / "moved")
    given = json.loads(world.job().read_text())["input"]
    moved = given["path"].replace("in/", "moved/")
    world.scores(expect=[], input={**given, "path": moved})
    world.write("b", "two")
    told = world.refuses(input={**given, "path": [moved, given["path"]]})
    assert "with other row_uuids, because the patterns begin elsewhere; take a new output.path, or --restart" in told


# What other plans and late attempts leave


@narrow
@pytest.mark.parametrize("form", FORMATS)
def test_two_runs_that_plan_at_once_do_not_share_a_plan(make, form):
    """Without a lock, as on an object store: the second to write its plan is held, and costs the first one nothing."""
    world = make(form)
    world.write("b", "b")
    real, first = run_module.draft, []

    def draft(*arguments):
        plan = real(*arguments)
        if not first:  # this run has its plan, but not written yet, when the other one begins and ends
            first.append(world.write("a", "a"))
            with mock.patch.object(run_module, "draft", real):
                world.scores(expect=["a", "b"])
            first.append(state(world.out))
        return plan

    with mock.patch.multiple(run_module, draft=draft, lock=lambda *_: nullcontext()):
        done = jobs.call("run", world.job(), "-q")
    assert (done.code, done.out) == (5, "")
    assert done.err == f"ERROR another run has just planned {world.out.as_uri()}; run again when it is over\n"
    now = state(world.out)
    assert {name: now.get(name) for name in first[1] if name != "_SUCCESS"} == {
        name: content for name, content in first[1].items() if name != "_SUCCESS"
    }
    world.settled()


@quick
def test_the_listing_of_a_plan_in_the_making_is_left_alone(make):
    """Another run writes it before its plan; once there is another plan of that number, nobody will name it."""
    world = make("files")
    world.write("a", "one")
    world.scores(expect=["one"])
    stray = world.out / "plan" / "000001-000001-20991231T000000-abcdef.parquet"
    stray.write_bytes(b"half a table")
    world.scores(expect=[])
    assert stray.exists()
    world.write("b", "two")
    world.scores(expect=["two"])
    assert not stray.exists()
    world.settled()


def borrow(world, output, folders=("results", "receipts")):
    """Put another output's objects in as if they were attempts of this one."""
    for folder in folders:
        for path in (world.folder / output / folder).iterdir():
            shutil.copy(path, world.out / folder / path.name)


@quick
@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl", "files"])
def test_receipts_of_other_splits_count_as_far_as_they_fit(make, form, monkeypatch):
    """Ranges that overlap, as from plans for other numbers of workers: each row once, and only the rest is asked."""
    world = make(form)
    words = [f"w{number:02d}" for number in range(12)]
    if form == "files":
        for one in words:
            world.write(one, one)
    else:
        world.write("a", *words)
    for output, rows in (("other", 5), ("out", 4)):
        monkeypatch.setattr(write, "OBJECT_SECONDS", 60.0)
        monkeypatch.setattr(plan, "MIN_SPLIT_ROWS", rows)
        keys = {"service": {"url": world.recorded.url, "limits": {"rows": 2}}}
        if form in {"csv", "jsonl"}:  # ranges of short lines follow from time alone
            monkeypatch.setattr(write, "OBJECT_SECONDS", -1.0)
            keys["service"]["limits"]["rows"] = rows
        world.run(output=output, **keys)
    first, *others = sorted((world.out / "receipts").iterdir())
    first.unlink()
    others[0].unlink()
    for path in sorted((world.folder / "other" / "receipts").iterdir())[1:]:
        path.unlink()
    borrow(world, "other")
    done, _, asked = world.run()
    borrowed = 12 // -(-12 // 5) if form in {"parquet", "files"} else 5
    assert (done.code, asked) == (0, words[borrowed:8])
    world.settled()


@narrow
@pytest.mark.parametrize("change", ["file", "key"])
@pytest.mark.parametrize("form", FORMATS)
def test_attempts_that_are_late_behind_a_rescore_do_not_count(make, form, change):
    """Two workers of an older run write after the new generation was planned, or done: their answers are old."""
    world = make(form)
    world.write("a", "a1")
    world.write("b", "b1")
    world.run()
    shutil.copytree(world.out, world.folder / "late-1")
    world.run(output="late-2")
    keys = {"service__version": "v2"} if change == "key" else {}
    world.model = "m2"
    if change == "file":
        world.write("a", "a2")
        world.write("b", "b2")
    with mock.patch.object(run_module._Run, "_score", side_effect=Killed), pytest.raises(Killed):
        world.run(*RESCORE, **keys)
    for output in ("late-1", "late-2"):
        borrow(world, output)
    done, _, asked = world.run(**keys)
    assert (done.code, asked) == (0, ["a2", "b2"] if change == "file" else ["a1", "b1"])
    world.settled(**keys)
    for output in ("late-1", "late-2"):
        borrow(world, output)
    world.scores(expect=[], **keys)
    assert set(generations(world.out).values()) == {1}
    world.settled(**keys)
    assert all(one.startswith("m2") for one in world.answers())


# Crashes


CHANGES = {"file": {}, "key": {"service__version": "v2"}}


def begun(world, keys):
    """Score two files; then one of them changes, a third one comes, and keys may make the answers other ones."""
    world.write("a", "a1")
    world.write("b", "b1")
    world.scores(expect=["a1", "b1"])
    world.write("b", "b2", "b3")
    world.write("c", "c1")
    world.model = "m2" if keys else "m1"


def broken(world, breaking, *options, **keys):
    """Run over the output as it is now, time and again, and break the run one write later each time.

    Yields after each run that broke, its exit code or None; the one that breaks no more must end well.
    """
    first = world.folder / "first"
    world.out.mkdir(exist_ok=True)
    shutil.copytree(world.out, first)
    for writes in count():
        shutil.rmtree(world.out)
        shutil.copytree(first, world.out)
        with breaking(writes) as failed:
            try:
                done, _, _ = world.run(*options, **keys)
            except Killed:
                done = None
        if done and not failed:
            assert (done.code, done.err) == (0, "")
            break
        yield done
    shutil.rmtree(first)


@contextmanager
def failing(writes):
    """Let the small object that follows so many fail, as on a full disk; those after it are well."""
    left, failed = [writes], []

    def failing_once(real):
        def write(store, name, content):
            left[0] -= 1
            if left[0] == -1:
                failed.append(name)
                raise StorageFailed(f"cannot write {name}: the disk is full")
            return real(store, name, content)

        return write

    with mock.patch.multiple(Store, write=failing_once(Store.write), write_new=failing_once(Store.write_new)):
        yield failed


def known(world, generation=0):
    """Return the names of receipts of a generation, or of a newer one, whose objects are there."""
    found = set()
    for name, receipt in jobs.receipts(world.out).items():
        named = [receipt[key]["name"] for key in ("results", "errors") if receipt.get(key)]
        if receipt["generation"] >= generation and all((world.out / one).exists() for one in named):
            found.add(name)
    return found


@narrow
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    ("form", "breaking", "code"),
    [
        ("parquet", dying, None),
        ("csv.gz", dying, None),
        ("files", dying, None),
        ("csv.gz", failing, 6),
        ("files", failing, 6),
    ],
)
def test_a_rescore_that_breaks_at_any_write_is_resumed(make, form, change, breaking, code):
    """By the plain command, once the new plan is there; else by the same one. What has a new receipt stays."""
    world, keys = make(form), CHANGES[change]
    begun(world, keys)
    refused = resumed = 0
    for failed in broken(world, breaking, *RESCORE, **keys):
        assert (failed and failed.code) == code
        there = known(world, generation=1)
        done, _, _ = world.run(**keys)
        if done.code == 2:
            assert "use --changed rescore" in done.err
            refused += 1
            done, _, _ = world.run(*RESCORE, **keys)
        else:
            resumed += 1
        assert (done.code, done.err) == (0, "")
        assert there <= set(jobs.receipts(world.out)), "what had a receipt was asked again"
        assert jobs.proved(world.out) == ()
        assert (world.out / "_SUCCESS").exists()
        assert all(one.startswith(world.model) for one in world.answers())
    assert refused > 0
    assert resumed > 3
    world.settled(**keys)


@narrow
@pytest.mark.parametrize("form", FORMATS)
def test_a_rescore_that_died_at_once_can_be_taken_back(make, form):
    """The job file is as it was: what is to be scored again is scored by the old job."""
    world = make(form)
    world.write("a", "a1")
    world.write("b", "b1")
    world.run()
    with mock.patch.object(run_module._Run, "_sign", side_effect=Killed), pytest.raises(Killed):
        world.run(*RESCORE, service__version="v2")
    assert not (world.out / "_SUCCESS").exists()
    assert jobs.proved(world.out)[0].startswith("missing: rows ")
    world.scores(expect=["a1", "b1"])
    world.settled()


@narrow
@pytest.mark.parametrize("form", ["csv", "files"])
def test_new_files_may_meet_a_crash_at_any_write(make, form):
    """A listing without its plan, a plan without its rows: the next run plans or scores just that."""
    world = make(form)
    world.write("a", "a1", "a2")
    world.run()
    world.write("b", "b1", "b2")
    for _ in broken(world, dying):
        there = known(world)
        done, _, asked = world.run()
        assert (done.code, done.err) == (0, "")
        assert set(asked) <= {"b1", "b2", "b1 b2"}
        assert there <= set(jobs.receipts(world.out))
        assert jobs.proved(world.out) == ()
    world.settled()


@narrow
@pytest.mark.parametrize("options", [(), ("--restart",)], ids=["plain", "restart"])
@pytest.mark.parametrize("form", ["parquet", "files"])
def test_a_restart_may_die_at_any_write(make, form, options):
    """The same command begins anew; the plain one goes on with what the restart had planned, or plans it itself."""
    world = make(form)
    world.write("a", "a1")
    world.write("b", "b1")
    world.run()
    world.model = "m2"
    deaths = 0
    for _ in broken(world, dying, "--restart"):
        deaths += 1
        done, _, _ = world.run(*options)
        assert (done.code, done.err) == (0, "")
        assert jobs.proved(world.out) == ()
        assert len(world.answers()) == 2
        if options:
            assert all(one.startswith("m2") for one in world.answers())
    assert deaths > 10
    world.settled()


# Sources whose rows only reading can tell


UNKNOWN = ["csv", "csv.gz", "jsonl.gz"]


@quick
@pytest.mark.parametrize("form", UNKNOWN)
def test_an_interrupted_file_of_unknown_rows_asks_no_row_again(make, form):
    """Wherever it died: what has a receipt is read over, and the end is found, be it right behind a closed object."""
    world = make(form)
    words = [f"w{number}" for number in range(5)]
    world.write("a", *words)
    counts = set()
    for _ in broken(world, dying):
        there = jobs.receipts(world.out)
        rows = sum(there[name]["to"] - there[name]["from"] for name in known(world))
        done, summary, asked = world.run()
        assert (done.code, done.err, asked) == (0, "", words[rows:])
        assert (summary["planned"], summary["scored"]) == (5, 5)
        ends = [(one["from"], one["to"]) for one in jobs.receipts(world.out).values() if one.get("end")]
        assert ends == [(5, 5)]
        assert jobs.proved(world.out) == ()
        counts.add(rows)
    assert counts == {0, 1, 2, 3, 4, 5}
    world.settled()


@quick
@pytest.mark.parametrize("form", UNKNOWN)
def test_a_file_that_is_not_read_to_its_end_is_told(make, form):
    """`unread` says how many, `planned` counts only rows that were found; exit 4 or 6, and no `_SUCCESS`."""
    world = make(form)
    world.write("a", "a0", "a1")
    world.write("b", *(f"b{number}" for number in range(6)))
    keys = {"service": {"url": world.recorded.url, "limits": {"rows": 1, "in_flight": 1}}}
    world.recorded.answer = lambda call: (
        service.refusal(403, "APIG.0302") if word(call.rows[0]) == "b3" else world.answer(call)
    )
    done, summary, asked = world.run(**keys)
    assert (done.code, asked[:6]) == (4, ["a0", "a1", "b0", "b1", "b2", "b3"])
    found = {one.removeprefix("m1 ") for one in world.answers()}
    assert found == set(asked) - {"b3"}  # the request after it may be under way already
    assert [summary[key] for key in ("planned", "scored", "left", "unread")] == [len(found), len(found), 0, 1]
    assert not (world.out / "_SUCCESS").exists()
    assert jobs.proved(world.out)[0].startswith("missing: rows ")
    with engine(lambda *_: None):  # no worker comes back
        done, summary, _ = world.run(**keys)
    assert done.code == 6
    assert summary["unread"] == 1
    with engine(lambda *_: None), mock.patch.object(run_module._Run, "_score", return_value=None):
        done, summary, _ = world.run(**keys)
    assert (done.code, done.err) == (6, "ERROR 1 files are not read to their end yet; the same command resumes\n")
    world.recorded.answer = world.answer
    world.scores(expect={"b3", "b4", "b5"} - found, **keys)
    world.settled(**keys)


@quick
@pytest.mark.parametrize("form", UNKNOWN)
@pytest.mark.parametrize(("first", "empty"), [("a", "b"), ("b", "a")])
def test_a_file_without_rows_is_read_to_its_end(make, form, first, empty):
    """Whether planning sees that it is empty or only reading does: nothing is asked, and nothing is left."""
    world = make(form)
    world.write(first, "one")
    world.write(empty)
    summary = world.scores(expect=["one"])
    assert (summary["planned"], summary["scored"]) == (1, 1)
    assert len(jobs.files(world.out / "results")) == 1
    world.settled()
    world.write(empty, "two")
    assert world.path(empty).as_uri() in world.refuses()
    world.scores(*RESCORE, expect=["two"])
    world.write(first)
    world.scores(*RESCORE, expect=[])
    assert world.answers() == ["m1 two"]
    world.settled()


@quick
@pytest.mark.parametrize("form", UNKNOWN)
@pytest.mark.parametrize(("bad", "code"), [(1, 0), (2, 3)])
def test_allowed_errors_are_a_share_of_the_rows_that_were_found(make, form, bad, code):
    """10 % of ten rows, which nobody knew before."""
    world = make(form)
    words = [f"{'bad' if number < bad else 'good'}{number}" for number in range(10)]
    world.write("a", *words)
    world.recorded.answer = lambda call: (
        service.refusal(400, "MR.0105") if word(call.rows[0]).startswith("bad") else world.answer(call)
    )
    done, summary, _ = world.run(errors={"allow": "10%"})
    assert [summary[key] for key in ("planned", "dead", "left", "unread")] == [10, bad, 0, 0]
    assert done.code == code
    assert (world.out / "_SUCCESS").exists() == (code == 0)


# Files made of lines, entered at marks


@quick
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_many_splits_of_jsonl_answer_like_one(make, newline, monkeypatch):
    """Rows have the same numbers, ids and answers wherever a worker enters the file, between blank lines too."""
    world = make("jsonl")
    lines = [
        json.dumps({"word": f"w{number}" + "é" * (number % 7)}) + newline * (1 + number % 3) for number in range(90)
    ]
    world.path("a").parent.mkdir()
    world.path("a").write_bytes(b"\xef\xbb\xbf" + "".join(lines).removesuffix(newline).encode())
    monkeypatch.setattr(write, "OBJECT_SECONDS", 60.0)
    assert world.run()[0].code == 0
    one = jobs.lasting(world.out)
    assert [row["source_row"] for row in one] == list(range(90))
    assert [json.loads(row["prediction"])["predictresult"].split()[1].rstrip("é") for row in one] == [
        f"w{number}" for number in range(90)
    ]
    assert len(jobs.receipts(world.out)) == 1
    monkeypatch.setattr("pipeline.lines.BLOCK", 200)
    monkeypatch.setattr(plan, "MIN_SPLIT_ROWS", 1)
    world.scores("--restart", expect=[json.loads(line)["word"] for line in lines])
    assert len(jobs.receipts(world.out)) > 5
    assert jobs.lasting(world.out) == one
    assert jobs.proved(world.out) == ()
    for path in sorted((world.out / "receipts").iterdir())[1::2]:
        path.unlink()
    done, _, _ = world.run()
    assert (done.code, jobs.lasting(world.out)) == (0, one)
    assert jobs.proved(world.out) == ()


@quick
def test_the_command_line_knows_two_ways(make):
    """Of run and of plan; anything else is one line."""
    world = make("csv")
    world.write("a", "one")
    told = "ERROR --changed again: allowed: rescore, keep\n"
    for command in ("run", "plan"):
        assert jobs.call(command, world.job(), "--changed", "again") == (2, "", told)


@narrow
def test_plan_tells_what_a_rescore_would_ask(make):
    """The same files and rows as the run finds, and nothing is written."""
    world = make("jsonl")
    world.write("a", "one", "two")
    world.write("b", "three")
    world.run()
    world.write("b", "four", "five")
    before = state(world.out)
    told = json.loads(jobs.call("plan", world.job(), *RESCORE, "--json").out)
    assert [told[key] for key in ("files", "new_files", "rows", "done", "left", "requests")] == [2, 0, 4, 2, 2, 2]
    told = json.loads(jobs.call("plan", world.job(service__version="v2"), *RESCORE, "--json").out)
    assert [told[key] for key in ("rows", "done", "left")] == [4, 0, 4]
    assert state(world.out) == before

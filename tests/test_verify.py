"""`verify` believes nothing: each breach is planted by hand in a good output, and named."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import jobs
from pipeline.forms import FORMS
from pipeline.sandbox.server import Options, running

POISON = ("iris-00003", "iris-00017")


@pytest.fixture(scope="module", params=FORMS)
def good(tmp_path_factory, request):
    """Make one good output of each form with results and dead letters: 20 rows in 2 ranges."""
    folder = tmp_path_factory.mktemp("good")
    jobs.put(folder / "in" / "a.parquet", jobs.flowers(20))
    faults = {f"row:id={one}": "MR.0105 always" for one in POISON}
    with pytest.MonkeyPatch.context() as patch, running(Options(port=0, faults=faults)) as url:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setattr("pipeline.plan.MIN_SPLIT_ROWS", 10)
        path = jobs.job_file(folder, url, input__send=[*jobs.SEND, "id"], errors__allow=2, output__format=request.param)
        assert jobs.score(path).exit_code == 0
    return folder / "out"


@pytest.fixture
def out(good, tmp_path):
    """Return a copy of the good output, to be spoiled."""
    return Path(shutil.copytree(good, tmp_path / "out"))


def first(out, folder):
    return min((out / folder).iterdir())


def reseal(out, folder, content):
    """Replace the first range's object, and let its receipt agree with size and hash: only the rows can tell."""
    path = first(out, folder)
    path.write_bytes(content)
    receipt_path = out / "receipts" / f"{path.stem}.json"
    receipt = json.loads(receipt_path.read_bytes())
    receipt[folder] |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    receipt_path.write_text(json.dumps(receipt))
    return path.stem


def rewritten(path, change):
    """Return an object's bytes after a change of its rows, a list of dicts."""
    if path.suffix == ".parquet":
        table, sink = pq.read_table(path), pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(change(table.to_pylist()), table.schema), sink)
        return sink.getvalue().to_pybytes()
    if path.suffix == ".jsonl":
        rows = change([json.loads(line) for line in path.read_bytes().splitlines()])
        return b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    text = io.StringIO()
    rows = change(list(csv.DictReader(io.StringIO(path.read_text("utf-8"), newline=""))))
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def respoiled(out, folder, change):
    """Change the rows of the first range's object, and let its receipt agree; returns the range's name."""
    return reseal(out, folder, rewritten(first(out, folder), change))


def scored(out):
    """Return what no run may change of every result."""
    rows = []
    for path in sorted((out / "results").iterdir()):
        rewritten(path, lambda found: rows.extend(found) or found)
    return sorted((int(row["source_row"]), row["row_uuid"], row["prediction"]) for row in rows)


def with_row(row, **values):
    """Return a change of one row's values."""
    return lambda rows: [{**one, **values} if at == row else one for at, one in enumerate(rows)]


def test_a_good_output_is_verified(out):
    """Nothing is planted, and nothing is found; a copy elsewhere is as good as the original."""
    assert jobs.proved(out) == ()
    done = jobs.call("verify", out)
    assert (done.code, done.err) == (0, "")
    assert done.out == f"{out.as_uri()}: 20 rows = 18 results + 2 dead letters: verified\n"


def test_a_breach_is_exit_3_with_a_line_each(out):
    """The command tells every breach on stderr, the verdict on stdout, and as JSON both in one object."""
    first(out, "results").unlink()
    first(out, "errors").unlink()
    done = jobs.call("verify", out)
    assert done.code == 3
    assert done.out == f"{out.as_uri()}: not verified\n"
    told = [line.partition(": ")[0] for line in done.err.splitlines()]
    assert told[:3] == ["ERROR receipt without object", "ERROR receipt without object", "ERROR missing"]
    assert told[-1] == "ERROR _SUCCESS stands without right"
    as_json = jobs.call("verify", out, "--json")
    assert as_json.code == 3
    assert len(json.loads(as_json.out)["breaches"]) == len(told)


def test_a_missing_receipt_is_missing_rows_and_objects_without_receipt(out):
    """What no receipt covers is not done, whatever lies there."""
    name, letters = first(out, "results").name, first(out, "errors").name
    first(out, "receipts").unlink()
    uri = json.loads((out / "plan" / "000000.json").read_bytes())["sources"][0]["uri"]
    assert jobs.proved(out) == (
        f"missing: rows 0 to 9 of {uri}",
        f"object without receipt: results/{name}; the next run removes it",
        f"object without receipt: errors/{letters}; the next run removes it",
        "_SUCCESS stands without right",
    )


def test_a_receipt_without_its_object_is_named(out):
    """The object is gone; its receipt says it was there."""
    name = first(out, "results").name
    first(out, "results").unlink()
    assert jobs.proved(out)[0] == f"receipt without object: results/{name}"


@pytest.mark.parametrize("name", ["x.parquet", ".part-0123"])
def test_an_object_without_receipt_is_named(out, name):
    """A stray is no row of ours, hidden or not."""
    (out / "results" / name).write_bytes(b"stray")
    assert f"object without receipt: results/{name}; the next run removes it" in jobs.proved(out)


@pytest.mark.parametrize("folder", ["results", "errors"])
@pytest.mark.parametrize("place", [0, -1])
def test_a_flipped_bit_is_a_wrong_hash(out, folder, place):
    """Size and rows are right; the bytes are not what was written."""
    path = first(out, folder)
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert jobs.proved(out)[0] == f"wrong hash: {folder}/{path.name} is not what was written"


def test_a_cut_object_is_a_wrong_hash(out):
    """Half an object is found before anybody tries to read it."""
    path = first(out, "results")
    path.write_bytes(path.read_bytes()[:100])
    assert jobs.proved(out)[0] == f"wrong hash: results/{path.name} is not what was written"


def test_missing_rows_within_an_object_are_named(out):
    """The object is sealed by its receipt, but a row of the range is in neither object."""
    name = respoiled(out, "results", lambda rows: rows[2:])
    assert jobs.proved(out)[:2] == (
        f"missing: 2 rows, such as 0, 1, of {name}",
        f"wrong count: {name} says 9 + 1 rows, its objects have 8",
    )


def test_doubled_rows_within_an_object_are_named(out):
    """The same row twice is worse than none."""
    name = respoiled(out, "results", lambda rows: [*rows, rows[4]])
    assert jobs.proved(out)[:2] == (
        f"doubled: 1 rows, such as 5, of {name}",
        f"wrong count: {name} says 9 + 1 rows, its objects have 11",
    )


def test_a_row_that_is_both_result_and_dead_letter_is_doubled(out):
    """Never both: the row of a dead letter comes out once more as a result, in place of another."""
    name = respoiled(out, "results", with_row(0, source_row=3))
    breaches = jobs.proved(out)
    assert f"missing: 1 rows, such as 0, of {name}" in breaches
    assert f"doubled: 1 rows, such as 3, of {name}" in breaches


def test_a_row_uuid_of_another_row_is_foreign(out):
    """Two answers that changed places: counts are right, names are not."""

    def swapped(rows):
        uuids = [row["row_uuid"] for row in rows]
        return with_row(1, row_uuid=uuids[0])(with_row(0, row_uuid=uuids[1])(rows))

    name = respoiled(out, "results", swapped)
    assert jobs.proved(out)[0] == f"foreign: 2 row_uuids, such as that of row 0, 1, in {name}"


def test_a_dead_letter_of_another_row_is_foreign(out):
    """Dead letters are rows too."""
    name = respoiled(out, "errors", with_row(0, row_uuid="00000000-0000-5000-8000-000000000000"))
    assert jobs.proved(out)[0] == f"foreign: 1 row_uuids, such as that of row 3, in {name}"


@pytest.mark.parametrize("row", [-1, 15, 10**15])
def test_a_row_of_another_range_is_foreign(out, row):
    """A receipt answers for its own rows, however far away the foreign one is."""
    name = respoiled(out, "results", with_row(0, source_row=row))
    breaches = jobs.proved(out)
    assert f"foreign: 1 rows, such as {row}, in {name}" in breaches
    assert f"missing: 1 rows, such as 0, of {name}" in breaches


@pytest.mark.parametrize("folder", ["results", "errors"])
def test_a_row_of_another_source_is_foreign(out, folder):
    """Its number and row_uuid may be right: it is not the row that was planned, which is therefore missing."""
    row = 0 if folder == "results" else 3
    name = respoiled(out, folder, with_row(0, source="file:///elsewhere/b.parquet"))
    assert jobs.proved(out)[:2] == (
        f"foreign: 1 rows from elsewhere, such as row {row} of file:///elsewhere/b.parquet, in {name}",
        f"missing: 1 rows, such as {row}, of {name}",
    )


def test_an_input_that_moved_as_a_whole_is_no_other_source(out):
    """What lies below the input's folder is what a row's identity is made of, and that is the same."""
    respoiled(out, "results", lambda rows: [{**row, "source": "s3://bucket/in/a.parquet"} for row in rows])
    assert jobs.proved(out) == ()


@pytest.mark.parametrize("folder", ["results", "errors"])
def test_an_object_of_another_form_is_unreadable(out, folder):
    """Sealed by its receipt, but nothing that has rows."""
    name = first(out, folder).name
    reseal(out, folder, b"{}{\n")
    assert jobs.proved(out)[0].startswith(f"unreadable: {folder}/{name}: it cannot be read as {name.split('.')[1]}: ")


def test_a_receipt_that_counts_more_rows_than_its_range_has_is_named(out):
    """Results and dead letters together are the rows, no more and no less."""
    path = first(out, "receipts")
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"scored": 12}))
    assert jobs.proved(out)[0] == f"wrong count: {path.stem} says 12 + 1 rows, its range has 10"


def test_a_receipt_behind_the_last_row_is_named(out):
    """Planning counted the rows: there are no others."""
    path = first(out, "plan")
    plan = json.loads(path.read_bytes())
    plan["sources"][0]["rows"] = 15
    path.write_text(json.dumps(plan))
    name = max(one.stem for one in (out / "receipts").iterdir())
    uri = plan["sources"][0]["uri"]
    assert f"foreign: {name} goes on behind the end of {uri}, which has 15 rows" in jobs.proved(out)


def test_a_null_row_number_is_a_breach(out):
    """A row that does not say which one it is, is nobody's."""
    name = respoiled(out, "results", with_row(0, source_row=None))
    assert f"foreign: 1 rows, such as -1, in {name}" in jobs.proved(out)


def test_two_receipts_of_the_same_rows_count_once(out):
    """A second attempt with objects of its own is named as a stray, and the rows are still right."""
    stem = first(out, "receipts").stem
    twin = f"{stem[:-12]}{'f' * 12}"
    receipt = json.loads(first(out, "receipts").read_bytes()) | {"attempt": "f" * 12}
    suffixes = {}
    for folder in ("results", "errors"):
        path = first(out, folder)
        suffixes[folder] = path.suffix
        shutil.copy(path, path.with_name(f"{twin}{path.suffix}"))
        receipt[folder]["name"] = f"{folder}/{twin}{path.suffix}"
    (out / "receipts" / f"{twin}.json").write_text(json.dumps(receipt))
    strays = [breach for breach in jobs.proved(out) if breach.startswith("object without receipt")]
    assert strays == [
        f"object without receipt: {folder}/{twin}{suffix}; the next run removes it"
        for folder, suffix in suffixes.items()
    ]


def test_success_without_right_is_named(out):
    """More dead letters than the job allowed: `_SUCCESS` may not stand."""
    job = json.loads((out / "job.json").read_bytes())
    job["errors"]["allow"] = "1"
    (out / "job.json").write_text(json.dumps(job))
    assert jobs.proved(out) == ("_SUCCESS stands without right: 2 of 20 rows are dead letters, errors.allow is 1",)
    (out / "_SUCCESS").unlink()
    assert jobs.proved(out) == ()


def test_an_unfinished_output_is_a_breach_even_without_success(out):
    """Exit 3 says that the output is incomplete, and from where to where."""
    (out / "_SUCCESS").unlink()
    for folder in ("receipts", "results", "errors"):
        first(out, folder).unlink()
    [breach] = jobs.proved(out)
    assert breach.startswith("missing: rows 0 to 9 of file://")
    assert jobs.call("verify", out).code == 3


@pytest.mark.parametrize("place", ["nowhere", "empty"])
def test_what_is_no_output_is_exit_2(tmp_path, place):
    """A folder without `job.json` cannot be proved, and is not written to."""
    (tmp_path / "empty").mkdir()
    done = jobs.call("verify", tmp_path / place)
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        f"ERROR {(tmp_path / place).as_uri()} has no job.json, so it is no output of bulkscore; "
        "name a job file or its output.path\n"
    )
    assert jobs.files(tmp_path) == []


def test_the_next_run_heals_what_verify_names(good, tmp_path, sandbox):
    """Strays go, rows without a receipt are asked again, and then the output is proved."""
    url = sandbox(faults={f"row:id={one}": "MR.0105 always" for one in POISON})
    folder = Path(shutil.copytree(good.parent, tmp_path / "healing"))
    path = jobs.job_file(
        folder, url, input__send=[*jobs.SEND, "id"], errors__allow=2, input__path=str(good.parent / "in" / "*.parquet"),
        output__format=first(good, "results").suffix[1:],
    )  # fmt: skip
    out = folder / "out"
    before = scored(out)
    first(out, "receipts").unlink()
    for name in ("results/x.parquet", "errors/.part-1", "receipts/.part-2", ".part-3", "plan/.part-4", "runs/.part-5"):
        (out / name).write_bytes(b"stray")
    assert jobs.score(path).exit_code == 0
    assert jobs.proved(out) == ()
    assert not [name for name in jobs.files(out) if ".part-" in name or name.endswith("x.parquet")]
    assert scored(out) == before
    assert (out / "_SUCCESS").exists()


def changed(path, change):
    """Change what is written in a small object."""
    values = json.loads(path.read_bytes())
    change(values)
    path.write_text(json.dumps(values))


DAMAGED = {
    "a split without its source": (
        lambda out: changed(out / "plan" / "000000.json", lambda plan: plan["sources"].clear()),
        "/plan is not as bulkscore wrote it: there is no source 0; put it back, or take a new output.path",
    ),
    "an allowance that is none": (
        lambda out: changed(out / "job.json", lambda job: job["errors"].update(allow="lots")),
        "/job.json is not as bulkscore wrote it: errors.allow: .*; put it back",
    ),
    "a receipt under another name": (
        lambda out: first(out, "receipts").rename(out / "receipts" / f"{'0' * 6}-{'0' * 12}-{'0' * 11}9-0-abc.json"),
        "/receipts/.*-0-abc.json is not as bulkscore wrote it: it speaks of .*; put it back, or delete it and run .*",
    ),
}


@pytest.mark.parametrize(("damage", "told"), DAMAGED.values(), ids=DAMAGED)
def test_what_cannot_be_judged_is_one_line(out, damage, told):
    """Exit 2: what is damaged, and how to mend it."""
    damage(out)
    done = jobs.call("verify", out)
    assert (done.code, done.out) == (2, "")
    assert re.fullmatch(f"ERROR {re.escape(out.as_uri())}{told}\n", done.err), done.err


def test_rows_that_no_split_has_are_missing(out):
    """A plan knows its rows twice: by its sources and by its splits."""
    changed(out / "plan" / "000000.json", lambda plan: plan["splits"].clear())
    for folder in ("receipts", "results", "errors"):
        first(out, folder).unlink()
    assert jobs.proved(out) == (
        "missing: 10 rows that no split of the plan has",
        "_SUCCESS stands without right",
    )
    assert jobs.call("verify", out).code == 3


def test_a_receipt_that_goes_far_behind_the_end_costs_no_memory(out):
    """However many rows it claims: it is named, and what is not there is not looked for."""
    path = max((out / "receipts").iterdir())
    changed(path, lambda receipt: receipt.update(to=10**12 - 1, scored=10**12 - 12))
    name = path.stem.replace("-000000000020-", "-999999999999-")
    path.rename(path.with_name(f"{name}.json"))
    done = jobs.call("verify", out)
    assert done.code == 3
    assert f"ERROR foreign: {name} goes on behind the end of file://" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("name", ["job.json", "iris", "job.yml"])
def test_a_job_file_may_have_any_name(good, tmp_path, name):
    """A file is a job, a folder an output."""
    path = jobs.job_file(tmp_path, "http://127.0.0.1:9", file=name, output__path=str(good))
    assert jobs.call("verify", path) == jobs.call("verify", good)
    assert jobs.call("verify", path).out.endswith(": verified\n")

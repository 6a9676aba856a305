"""`verify` believes nothing: each breach is planted by hand in a good output, and named."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import jobs
from pipeline.sandbox.server import Options, running

POISON = ("iris-00003", "iris-00017")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Make one good output with results and dead letters: 20 rows in 2 ranges."""
    folder = tmp_path_factory.mktemp("good")
    jobs.put(folder / "in" / "a.parquet", jobs.flowers(20))
    faults = {f"row:id={one}": "MR.0105 always" for one in POISON}
    with pytest.MonkeyPatch.context() as patch, running(Options(port=0, faults=faults)) as url:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setattr("pipeline.plan.MIN_SPLIT_ROWS", 10)
        path = jobs.job_file(folder, url, input__send=[*jobs.SEND, "id"], errors__allow=2)
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
    """Return a result object's bytes after a change of its table."""
    sink = pa.BufferOutputStream()
    pq.write_table(change(pq.read_table(path)), sink)
    return sink.getvalue().to_pybytes()


def with_row(table, row, **values):
    """Return the table with other values in one row."""
    rows = table.to_pylist()
    rows[row] |= values
    return pa.Table.from_pylist(rows, table.schema)


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
    name = first(out, "receipts").stem
    first(out, "receipts").unlink()
    uri = json.loads((out / "plan" / "000000.json").read_bytes())["sources"][0]["uri"]
    assert jobs.proved(out) == (
        f"missing: rows 0 to 9 of {uri}",
        f"object without receipt: results/{name}.parquet; the next run removes it",
        f"object without receipt: errors/{name}.jsonl; the next run removes it",
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
    name = reseal(out, "results", rewritten(first(out, "results"), lambda table: table.slice(2)))
    assert jobs.proved(out)[:2] == (
        f"missing: 2 rows, such as 0, 1, of {name}",
        f"wrong count: {name} says 9 + 1 rows, its objects have 8",
    )


def test_doubled_rows_within_an_object_are_named(out):
    """The same row twice is worse than none."""

    def doubled(table):
        return pa.concat_tables([table, table.slice(4, 1)])

    name = reseal(out, "results", rewritten(first(out, "results"), doubled))
    row = pq.read_table(first(out, "results"))["source_row"][4].as_py()
    assert jobs.proved(out)[:2] == (
        f"doubled: 1 rows, such as {row}, of {name}",
        f"wrong count: {name} says 9 + 1 rows, its objects have 11",
    )


def test_a_row_that_is_both_result_and_dead_letter_is_doubled(out):
    """Never both: the row of a dead letter comes out once more as a result, in place of another."""
    name = reseal(out, "results", rewritten(first(out, "results"), lambda table: with_row(table, 0, source_row=3)))
    breaches = jobs.proved(out)
    assert f"missing: 1 rows, such as 0, of {name}" in breaches
    assert f"doubled: 1 rows, such as 3, of {name}" in breaches


def test_a_row_uuid_of_another_row_is_foreign(out):
    """Two answers that changed places: counts are right, names are not."""

    def swapped(table):
        uuids = table["row_uuid"].to_pylist()
        return with_row(with_row(table, 0, row_uuid=uuids[1]), 1, row_uuid=uuids[0])

    name = reseal(out, "results", rewritten(first(out, "results"), swapped))
    assert jobs.proved(out)[0] == f"foreign: 2 row_uuids, such as that of row 0, 1, in {name}"


def test_a_dead_letter_of_another_row_is_foreign(out):
    """Dead letters are rows too."""
    letter = json.loads(first(out, "errors").read_text()) | {"row_uuid": "00000000-0000-5000-8000-000000000000"}
    name = reseal(out, "errors", json.dumps(letter).encode() + b"\n")
    assert jobs.proved(out)[0] == f"foreign: 1 row_uuids, such as that of row 3, in {name}"


@pytest.mark.parametrize("row", [-1, 15, 10**15])
def test_a_row_of_another_range_is_foreign(out, row):
    """A receipt answers for its own rows, however far away the foreign one is."""
    name = reseal(out, "results", rewritten(first(out, "results"), lambda table: with_row(table, 0, source_row=row)))
    breaches = jobs.proved(out)
    assert f"foreign: 1 rows, such as {row}, in {name}" in breaches
    assert f"missing: 1 rows, such as 0, of {name}" in breaches


def test_a_null_row_number_is_a_breach(out):
    """A row that does not say which one it is, is nobody's."""
    reseal(out, "results", rewritten(first(out, "results"), lambda table: with_row(table, 0, source_row=None)))
    assert jobs.proved(out)


def test_two_receipts_of_the_same_rows_count_once(out):
    """A second attempt with objects of its own is named as a stray, and the rows are still right."""
    stem = first(out, "receipts").stem
    twin = f"{stem[:-12]}{'f' * 12}"
    receipt = json.loads(first(out, "receipts").read_bytes()) | {"attempt": "f" * 12}
    for folder in ("results", "errors"):
        path = first(out, folder)
        shutil.copy(path, path.with_name(f"{twin}{path.suffix}"))
        receipt[folder]["name"] = f"{folder}/{twin}{path.suffix}"
    (out / "receipts" / f"{twin}.json").write_text(json.dumps(receipt))
    strays = [breach for breach in jobs.proved(out) if breach.startswith("object without receipt")]
    assert strays == [
        f"object without receipt: results/{twin}.parquet; the next run removes it",
        f"object without receipt: errors/{twin}.jsonl; the next run removes it",
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
        folder, url, input__send=[*jobs.SEND, "id"], errors__allow=2, input__path=str(good.parent / "in" / "*.parquet")
    )
    out = folder / "out"
    before = jobs.lasting(out)
    first(out, "receipts").unlink()
    for name in ("results/x.parquet", "errors/.part-1", "receipts/.part-2", ".part-3", "plan/.part-4", "runs/.part-5"):
        (out / name).write_bytes(b"stray")
    assert jobs.score(path).exit_code == 0
    assert jobs.proved(out) == ()
    assert not [name for name in jobs.files(out) if ".part-" in name or name.endswith("x.parquet")]
    assert jobs.lasting(out) == before
    assert (out / "_SUCCESS").exists()

"""What an output holds after runs: names, receipts, dead letters, summaries, and when `_SUCCESS` stands."""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64decode
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests

import jobs
from pipeline.ids import row_namer
from pipeline.sandbox.server import Options, running

NAME = re.compile(r"(\d{6})-(\d{12})-(\d{12})-(\d+)-([0-9a-f]{12})")
POISON = "iris-00006"


def _input(rows, start):
    """Return flowers with a text that is sometimes long, and a number that is sometimes none."""
    table = jobs.flowers(rows, start)
    ids = table["id"].to_pylist()
    notes = ["x" * 3000 if one == "iris-00011" else "short" for one in ids]
    counts = ["many" if one in {"iris-00002", "iris-00026"} else "7" for one in ids]
    return table.append_column("note", pa.array(notes)).append_column("count", pa.array(counts))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Run a job over two files, several row groups and splits, with a dead letter of each kind that costs one row."""
    folder = tmp_path_factory.mktemp("mixed")
    jobs.put(folder / "in" / "a.parquet", _input(25, 0), row_group_size=10)
    jobs.put(folder / "in" / "b.parquet", _input(12, 25), row_group_size=5)
    faults = {f"row:id={POISON}": "MR.0105 always", "1": ["503", "ok"]}
    with pytest.MonkeyPatch.context() as patch, running(Options(port=0, faults=faults)) as url:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setattr("pipeline.plan.MIN_SPLIT_ROWS", 10)
        path = jobs.job_file(
            folder, url,
            input={"path": "in/*.parquet", "keep": ["id", "count"], "columns": {"count": "int64"},
                   "send": [*jobs.SEND, "id", "note", "count"]},
            service__limits={"rows": 4, "body": 2000, "in_flight": 1}, errors__allow=4,
        )  # fmt: skip
        summary = jobs.score(path)
        yield SimpleNamespace(path=path, out=folder / "out", inputs=folder / "in", url=url, summary=summary)


def test_every_row_is_a_result_or_a_dead_letter(mixed):
    """Nothing is lost, nothing comes twice, and the summary counts what is there."""
    scored = [(row["source"], row["source_row"]) for row in jobs.results(mixed.out).to_pylist()]
    dead = [(row["source"], row["source_row"]) for row in jobs.letters(mixed.out)]
    a, b = ((mixed.inputs / name).as_uri() for name in ("a.parquet", "b.parquet"))
    assert sorted(scored + dead) == [(a, row) for row in range(25)] + [(b, row) for row in range(12)]
    counts = mixed.summary
    assert (counts.planned, counts.scored, counts.dead, counts.left) == (37, len(scored), len(dead), 0)
    assert (len(dead), counts.exit_code, counts.message) == (4, 0, "")
    assert jobs.proved(mixed.out) == ()


def test_objects_are_named_after_the_rows_they_cover(mixed):
    """`<source>-<from>-<to>-<generation>-<attempt>`, the same for results, dead letters and receipt."""
    folders = {"results": "parquet", "errors": "jsonl", "receipts": "json"}
    for folder, suffix in folders.items():
        for path in (mixed.out / folder).iterdir():
            assert path.suffix == f".{suffix}"
            assert NAME.fullmatch(path.stem)
            assert path.stem in jobs.receipts(mixed.out)


def test_receipts_tell_what_was_done(mixed):
    """Rows covered, counts, version, generation, and what it took; they cover each source without gap or overlap."""
    edges = {}
    for name, receipt in jobs.receipts(mixed.out).items():
        source, start, stop, generation, attempt = NAME.fullmatch(name).groups()
        named = [int(source), int(start), int(stop), int(generation), attempt]
        assert [receipt[key] for key in ("source", "from", "to", "generation", "attempt")] == named
        assert receipt["scored"] + receipt["dead"] == receipt["to"] - receipt["from"]
        assert receipt["run"] == mixed.summary.run
        assert receipt["started_at"] <= receipt["finished_at"]
        assert receipt["requests"] >= 1
        edges.setdefault(receipt["source"], []).append((receipt["from"], receipt["to"]))
    assert len(edges[0]) > 1
    for source, rows in ((0, 25), (1, 12)):
        covered = sorted(edges[source])
        assert [0, *(stop for _, stop in covered)] == [*(start for start, _ in covered), rows]


def test_receipts_count_every_request_and_its_bytes(mixed):
    """Also those that brought nothing but their halving: the sums are what the service saw."""
    seen = jobs.stats(mixed.url)
    kept = jobs.receipts(mixed.out).values()
    assert sum(one["requests"] for one in kept) == seen["requests"]
    assert sum(one["bytes_sent"] for one in kept) == seen["bytes_received"]


def test_end_is_told_only_of_a_source_s_last_rows(mixed):
    """A listing of receipts tells whether a source is done."""
    last = {(0, 25), (1, 12)}
    for receipt in jobs.receipts(mixed.out).values():
        assert receipt.get("end", False) == ((receipt["source"], receipt["to"]) in last)


def test_receipts_hold_the_version_of_the_file_that_was_read(mixed):
    """It is the one in the plan: size and time of change."""
    plan = json.loads((mixed.out / "plan" / "000000.json").read_bytes())
    versions = {source["number"]: source["version"] for source in plan["sources"]}
    stat = (mixed.inputs / "a.parquet").stat()
    assert versions[0] == f"{stat.st_size}-{stat.st_mtime_ns}"
    assert all(one["version"] == versions[one["source"]] for one in jobs.receipts(mixed.out).values())


def test_receipts_hold_size_and_hash_of_their_objects(mixed):
    """What they say of an object is what is on the disk; where there are no dead letters there is no object."""
    named = set()
    for name, receipt in jobs.receipts(mixed.out).items():
        for folder, count in (("results", receipt["scored"]), ("errors", receipt["dead"])):
            stored = receipt.get(folder)
            assert (stored is not None) == (count > 0)
            if stored:
                content = (mixed.out / stored["name"]).read_bytes()
                assert stored["name"].startswith(f"{folder}/{name}.")
                assert (stored["size"], stored["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
                named.add(stored["name"])
    there = {f"{folder}/{path.name}" for folder in ("results", "errors") for path in (mixed.out / folder).iterdir()}
    assert there == named


def test_results_are_in_input_order_and_share_one_schema(mixed):
    """Within an object rows ascend; all objects can be read as one table."""
    parts = [pq.read_table(path) for path in (mixed.out / "results").iterdir()]
    assert len(parts) > 1
    assert all(part.schema.equals(parts[0].schema, check_metadata=True) for part in parts)
    assert parts[0].schema.names[:2] == ["id", "count"]
    assert parts[0].schema.field("count").type == pa.int64()
    for part in parts:
        rows = part["source_row"].to_pylist()
        assert rows == sorted(rows)


def test_row_uuids_are_derived_from_job_path_and_row(mixed):
    """The path is the one below the input's fixed folder, so that nothing on this machine matters."""
    for row in [*jobs.results(mixed.out).to_pylist(), *jobs.letters(mixed.out)]:
        name, number = row["source"].rpartition("/")[2], row["source_row"]
        assert row["row_uuid"] == row_namer("iris", name)(number, number + 1)[0].as_py()


def test_attempts_count_the_tries_of_a_request(mixed):
    """One request, whichever came first, met a 503 and was sent twice; the others once."""
    attempts = {row["request_uuid"]: row["attempts"] for row in jobs.results(mixed.out).to_pylist()}
    assert sorted(attempts.values()) == [*[1] * (len(attempts) - 1), 2]


def test_dead_letters_have_the_documented_columns(mixed):
    """Each names its row, why it is dead, and what was sent."""
    columns = [
        "source",
        "source_row",
        "row_uuid",
        "request_uuid",
        "kind",
        "status",
        "code",
        "message",
        "history",
        "row",
        "keep",
    ]
    found = jobs.letters(mixed.out)
    assert [list(letter) for letter in found] == [columns] * 4
    kinds = {(letter["source"].rpartition("/")[2], letter["source_row"]): letter["kind"] for letter in found}
    assert kinds == {
        ("a.parquet", 2): "unreadable",
        ("a.parquet", 6): "rejected",
        ("a.parquet", 11): "too_large",
        ("b.parquet", 1): "unreadable",
    }


def test_a_rejected_row_tells_who_refused_it_and_how_often_it_was_tried(mixed):
    """Its request was halved until it was alone; the last reply is the reason, the history has the gateway's ids."""
    letter = next(one for one in jobs.letters(mixed.out) if one["kind"] == "rejected")
    assert (letter["status"], letter["code"]) == (400, "MR.0105")
    assert "Recognition failed" in letter["message"]
    assert letter["row"] == {**letter["row"], "id": POISON, "note": "short", "count": 7}
    assert letter["keep"] == {"id": POISON, "count": 7}
    assert re.fullmatch(r"[0-9a-f-]{36}", letter["request_uuid"])
    [attempt] = letter["history"]
    assert (attempt["status"], attempt["code"], attempt["action"]) == (400, "MR.0105", "reject")
    assert attempt["request_id"]
    assert attempt["server"] == "ModelArts"
    assert attempt["time"].endswith("+00:00")


def test_a_row_that_is_too_large_was_never_sent(mixed):
    """Sizes are known before: no request, no status, no history; the message has both sizes."""
    letter = next(one for one in jobs.letters(mixed.out) if one["kind"] == "too_large")
    assert (letter["request_uuid"], letter["status"], letter["code"], letter["history"]) == (None, None, None, [])
    assert "the limit is 2000" in letter["message"]
    assert letter["row"]["note"] == "x" * 3000
    assert letter["keep"] == {"id": "iris-00011", "count": 7}
    assert jobs.stats(mixed.url)["max_body"] <= 2000


def test_an_unreadable_row_tells_which_value_does_not_fit(mixed):
    """The column, the value and the declared type."""
    letter = next(one for one in jobs.letters(mixed.out) if one["kind"] == "unreadable")
    assert letter["message"] == "count is 'many', which is no int64"
    assert (letter["request_uuid"], letter["history"]) == (None, [])
    assert letter["keep"] == {"id": "iris-00002", "count": None}


def test_job_json_holds_the_job_without_secrets(mixed):
    """The reference is there, what it stands for is not; and the fingerprint by which a changed job is known."""
    text = (mixed.out / "job.json").read_text("utf-8")
    job = json.loads(text)
    assert job["name"] == "iris"
    assert job["service"]["auth"]["password"] == "${env:DEMO_PASSWORD}"
    assert re.fullmatch(r"[0-9a-f]{64}", job["fingerprint"])
    assert job["bulkscore"]


def test_no_secret_is_anywhere_in_the_output(sandbox, tmp_path, monkeypatch):
    """Neither a header's value nor a password nor a token is written anywhere, whatever else is."""
    url = sandbox(faults={"row:id=iris-00003": "MR.0105 always"}, record=50)
    monkeypatch.setenv("API_SECRET", "s3cr3t-header-value")
    jobs.put(tmp_path / "in" / "a.parquet", jobs.flowers(12))
    keys = {"service__headers": {"X-Secret": "${env:API_SECRET}", "X-Plain": "literal-in-the-file"}, "errors__allow": 1}
    path = jobs.job_file(tmp_path, url, input__send=[*jobs.SEND, "id"], **keys)
    done = jobs.call("run", path)
    sent = requests.get(f"{url}/stats?requests=1", timeout=10).json()["last_requests"]
    token = sent[0]["headers"]["x-auth-token"]
    assert sent[0]["headers"]["x-secret"] == "s3cr3t-header-value"
    assert done.code == 0
    written = [(tmp_path / "out" / name).read_bytes() for name in jobs.files(tmp_path / "out")]
    for secret in ("s3cr3t-header-value", "literal-in-the-file", token, token[:40]):
        assert not any(secret.encode() in content for content in written)
        assert secret not in done.out + done.err


def test_each_run_leaves_its_summary(mixed):
    """`runs/<run>.json` has what the command answered."""
    ran = jobs.runs(mixed.out)
    assert ran[0] == json.loads(json.dumps(mixed.summary._asdict()))
    assert (mixed.out / "runs" / f"{mixed.summary.run}.json").is_file()


@pytest.mark.parametrize(
    ("allow", "code"), [("0", 3), ("3", 3), ("4", 0), ("10%", 3), ("10.8%", 3), ("10.9%", 0), ("100%", 0)]
)
def test_success_is_a_matter_of_the_dead_letters_allowed(mixed, allow, code):
    """A count, or a percentage of all rows (4 of 37 are 10.81 %); exit code and `_SUCCESS` are judged each time."""
    seen = jobs.stats(mixed.url)
    summary = jobs.score(mixed.path, errors__allow=allow)
    assert summary.exit_code == code
    assert (mixed.out / "_SUCCESS").exists() == (code == 0)
    assert ("4 of 37 rows are dead letters" in summary.message) == (code == 3)
    assert jobs.stats(mixed.url) == seen


def test_too_many_dead_letters_are_exit_3(sandbox, tmp_path):
    """All is done, and the one line says how many, how many are allowed, why, and where to look."""
    url = sandbox(faults={"row:id=iris-00005": "MR.0105 always"})
    jobs.put(tmp_path / "in" / "a.parquet", jobs.flowers(20))
    done = jobs.call("run", jobs.job_file(tmp_path, url, input__send=[*jobs.SEND, "id"]))
    out = (tmp_path / "out").as_uri()
    assert done.code == 3
    why = f"1 rejected (400, MR.0105): 'Recognition failed'; see why in {out}/errors"
    assert done.err == f"ERROR 1 of 20 rows are dead letters, more than errors.allow (0); {why}\n"
    assert done.out.startswith("20 rows: 19 scored, 1 dead letters, 0 left")
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    assert jobs.proved(tmp_path / "out") == ()


def test_the_summary_names_only_folders_that_are_there(sandbox, tmp_path):
    """Dead letters that are allowed are still told where they lie; a run that scored nothing has no results."""
    jobs.put(tmp_path / "in" / "a.parquet", jobs.flowers(20))
    url = sandbox(faults={"row:id=iris-00005": "MR.0105 always"})
    out = (tmp_path / "out").as_uri()
    done = jobs.call("run", jobs.job_file(tmp_path, url, input__send=[*jobs.SEND, "id"], errors__allow=1))
    assert (done.code, done.err) == (0, "")
    assert done.out.endswith(
        f"\nresults: {out}/results\ndead letters: {out}/errors; 1 rejected (400, MR.0105): 'Recognition failed'\n"
    )
    none = jobs.job_file(tmp_path, f"{url}/nowhere", output__path=str(tmp_path / "none"))
    stopped = jobs.call("run", none)
    assert (stopped.code, stopped.out.count("\n")) == (4, 1)
    assert "results" not in stopped.out


def test_a_job_whose_columns_are_all_sent_keeps_nothing(sandbox, tmp_path):
    """Without `send` and `keep` every column is sent, and the results have ours alone."""
    url = sandbox(record=5)
    jobs.put(tmp_path / "in" / "a.parquet", jobs.flowers(3).drop_columns("id"))
    jobs.score(jobs.job_file(tmp_path, url, input={"path": "in/*.parquet"}))
    [sent] = requests.get(f"{url}/stats?requests=1", timeout=10).json()["last_requests"]
    body = json.loads(b64decode(sent["body"]))
    assert set(body["data"]["req_data"][0]) == set(jobs.SEND)
    assert jobs.results(tmp_path / "out").column_names[0] == "prediction"


def test_a_renamed_column_is_renamed_on_the_wire_alone(sandbox, tmp_path):
    """The service sees its own name, results have the input's."""
    jobs.put(tmp_path / "in" / "a.parquet", jobs.flowers(3).rename_columns(["id", "sl", *jobs.SEND[1:]]))
    keys = {"input__send": ["sl", *jobs.SEND[1:]], "input__rename": {"sl": "sepal_length"}, "input__keep": ["sl"]}
    summary = jobs.score(jobs.job_file(tmp_path, sandbox(), **keys))
    assert summary.exit_code == 0
    assert jobs.results(tmp_path / "out").column_names[0] == "sl"

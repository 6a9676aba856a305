"""What the product is for, end to end: the bytes on the wire, a million rows, and bodies at the edge of the limit."""

from __future__ import annotations

import base64
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
from service import fast

from jobs import SEND, job_file, letters, proved, put, receipts, results, score, stats

NO_AUTH = {"type": "none"}
BODY = 12_000_000
ENVELOPE = len('{"meta":{"uuid":"00000000-0000-4000-8000-000000000000"},"data":{"req_data":[]}}')
DOCUMENTED = pa.table({"sepal_length": [3], "sepal_width": [1], "petal_length": [2.2], "petal_width": [4]})
ROW = '{"sepal_length":3,"sepal_width":1,"petal_length":2.2,"petal_width":4}'


def seen(url):
    """Return what the sandbox recorded: (headers, body) of each request."""
    recorded = requests.get(f"{url}/stats?requests=1", timeout=30).json()["last_requests"]
    return [(one["headers"], base64.b64decode(one["body"])) for one in recorded]


@pytest.mark.parametrize(
    ("path", "options", "body"),
    [
        ("iris", {}, '{"meta":{"uuid":"U"},"data":{"req_data":[ROW]}}'),
        ("iris", {"meta": False}, '{"data":{"req_data":[ROW]}}'),
        ("iris/predictions/iris", {"wrapper": "data"}, '{"meta":{"uuid":"U"},"data":{"req_data":[ROW]}}'),
        ("iris-xgb", {"wrapper": "none"}, '{"meta":{"uuid":"U"},"req_data":[ROW]}'),
        ("iris-xgb", {"wrapper": "none", "meta": False}, '{"req_data":[ROW]}'),
    ],
)
def test_the_documents_own_example_goes_over_the_wire_byte_for_byte(sandbox, tmp_path, path, options, body):
    """Integers stay integers, and the request can be found by its uuid in three places."""
    url = sandbox(record=10)
    put(tmp_path / "in" / "iris.parquet", DOCUMENTED)
    service = {"service__url": f"{url}/v1/infers/{path}", "service__options": options}
    assert score(job_file(tmp_path, url, input={"path": "in/*.parquet"}, **service)).exit_code == 0
    [(headers, sent)] = seen(url)
    [row] = results(tmp_path / "out").to_pylist()
    assert sent.decode() == body.replace("U", row["request_uuid"]).replace("ROW", ROW)
    assert headers["content-type"] == "application/json"
    assert headers["content-length"] == str(len(sent))
    assert headers["x-auth-token"].startswith("MII")
    assert headers["x-request-id"] == row["request_uuid"]
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]", headers["traceparent"])
    assert "0" * 16 not in headers["traceparent"]
    assert json.loads(row["prediction"]).keys() == {"predictresult", "score"}


def test_a_million_rows_each_get_their_own_answer(tmp_path):
    """The service's answer is the row's own number; nothing is lost, doubled, or out of order within an object."""
    rows = 1_000_000
    number = np.arange(rows, dtype=np.float64)
    columns = {"sepal_length": number, **{name: number % (3 + index) for index, name in enumerate(SEND[1:])}}
    put(tmp_path / "in" / "rows.parquet", pa.table(columns))
    with fast() as url:
        keys = {"service__url": url, "service__auth": NO_AUTH, "service__limits": {"rows": 1000}}
        summary = score(job_file(tmp_path, "", input={"path": "in/*.parquet", "send": SEND}, **keys))
        seen_there = requests.get(f"{url}/stats", timeout=10).json()
    assert (summary.exit_code, summary.scored, summary.dead, summary.retries) == (0, rows, 0, 0)
    assert (seen_there["rows"], seen_there["requests"]) == (rows, rows // 1000)
    found = []
    for path in (tmp_path / "out" / "results").iterdir():
        part = pq.read_table(path, columns=["source_row", "prediction"])
        places = part["source_row"].to_numpy()
        assert (np.diff(places) == 1).all(), f"{path.name} is not in input order"
        assert answers(part["prediction"]) == places.tolist()
        found.append(places)
    assert (np.sort(np.concatenate(found)) == number).all()
    assert proved(tmp_path / "out") == ()


def answers(predictions):
    """Read the scores out of the answers' JSON."""
    return [one["score"] for one in json.loads(f"[{','.join(predictions.to_pylist())}]")]


def chinese(rows, seed=7):
    """Return texts of 2 KB in UTF-8, no two alike."""
    letters = np.random.default_rng(seed).integers(0x4E00, 0x9FA5, size=(rows, 682)).astype("<u4")
    return [line.tobytes().decode("utf-32-le") for line in letters]


def texts(columns):
    """Return iris rows with more columns."""
    rows = len(next(iter(columns.values())))
    return pa.table({name: np.arange(rows, dtype=np.float64) for name in SEND} | columns)


@pytest.mark.parametrize("limit", [BODY, 1_000_000])
def test_bodies_of_chinese_text_are_full_and_never_over_the_limit(sandbox, tmp_path, limit):
    """The server counts the bytes: none over the limit, and all but the last of a split at least 95 % of it."""
    rows = 12_000
    url = sandbox(record=1000, body_limit=limit)
    put(tmp_path / "in" / "text.parquet", texts({"text": chinese(rows)}))
    keys = {"input": {"path": "in/*.parquet"}, "service__limits": {"body": limit}}
    assert score(job_file(tmp_path, url, **keys)).scored == rows
    seen_there = stats(url)
    assert seen_there["bodies_over_limit"] == 0
    assert seen_there["max_body"] <= limit
    assert (seen_there["rows_received"], seen_there["by_status"].keys()) == (rows, {"200"})
    sizes = {headers["x-request-id"]: int(headers["content-length"]) for headers, _ in seen(url)}
    for bodies in bodies_of_splits(tmp_path / "out", sizes):
        assert len(bodies) > 1
        assert min(bodies[:-1]) >= 0.95 * limit, f"not full: {bodies}"


def bodies_of_splits(out, sizes):
    """Return the sizes of each split's requests, in row order."""
    table = results(out).select(["source_row", "request_uuid"]).sort_by("source_row").to_pydict()
    ranges = sorted((one["from"], one["to"]) for one in receipts(out).values())
    for start, stop in ranges:
        yield [sizes[uuid] for uuid in dict.fromkeys(table["request_uuid"][start:stop])]


def padded(size):
    """Return a text that makes a body of exactly that many bytes; nearly all its letters take three."""
    others = len('{"sepal_length":0.0,"sepal_width":0.0,"petal_length":0.0,"petal_width":0.0,"text":""}')
    room = size - ENVELOPE - others
    return "文" * (room // 3) + "x" * (room % 3)


def test_a_row_that_fills_a_body_to_the_byte_is_sent_and_one_byte_more_is_too_large(sandbox, tmp_path):
    """The edge is exact on both sides: the server accepts the one, and never hears of the other."""
    url = sandbox(record=10)
    for name, size in {"fits": BODY, "exceeds": BODY + 1}.items():
        put(tmp_path / "in" / f"{name}.parquet", texts({"text": [padded(size)]}))
    summary = score(job_file(tmp_path, url, input={"path": "in/*.parquet"}, service__limits={}, errors__allow=1))
    assert (summary.exit_code, summary.scored, summary.dead) == (0, 1, 1)
    [(headers, sent)] = seen(url)
    assert (headers["content-length"], len(sent)) == (str(BODY), BODY)
    seen_there = stats(url)
    assert (seen_there["requests"], seen_there["by_status"], seen_there["bodies_over_limit"]) == (1, {"200": 1}, 0)
    [row], [letter] = results(tmp_path / "out").to_pylist(), letters(tmp_path / "out")
    assert row["source"].endswith("fits.parquet")
    assert letter["source"].endswith("exceeds.parquet")
    assert (letter["kind"], letter["history"], letter["request_uuid"]) == ("too_large", [], None)
    assert str(BODY + 1) in letter["message"]
    assert proved(tmp_path / "out") == ()

"""What most dead letters died of: told in the run's one line, from as much of them as is read in a moment."""

from __future__ import annotations

import tracemalloc
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from service import recording, refusal, score

import jobs
from pipeline import causes
from pipeline.causes import Causes, Letter, cause_of
from pipeline.storage import Store
from schemas.receipt import Receipt, StoredObject


def told(*letters, dead=None):
    """Say what these letters died of; all of them, unless there are more."""
    found = Causes()
    found.add(letters)
    return found.told(len(letters) if dead is None else dead)


def wrong(row, code="MR.0105"):
    return Letter("rejected", 400, code, f"row {row}: 'x{row}' is not a number")


def test_the_most_frequent_cause_is_told_with_an_example():
    """Kind, status, code and a message; those that are not known are left out."""
    assert told(wrong(1)) == """1 rejected (400, MR.0105): "row 1: 'x1' is not a number\""""
    assert told(wrong(1, "MR.0101"), wrong(2), wrong(3)).startswith("2 rejected (400, MR.0105), such as \"row 2: 'x2'")
    assert told(Letter("unreadable", None, None, "no number")) == "1 unreadable: 'no number'"
    assert told() == ""


def test_messages_that_differ_by_numbers_and_quotes_are_one():
    """The example is no odd one, though it comes first."""
    odd = Letter("rejected", 400, "MR.0105", "out of luck")
    assert "such as \"row 1: 'x1' is not a number\"" in told(odd, *map(wrong, range(1, 4)))


def test_the_example_is_one_short_line():
    """Line ends and control characters do not reach the terminal."""
    line = told(Letter("mismatch", 200, None, f"no\n score; \x1b[2J{'a' * 9000}"))
    assert line.startswith(r"1 mismatch (200): 'no score; \x1b[2Jaaa")
    assert line.endswith("...")
    assert len(line) < 250


def test_letters_that_were_not_looked_at_are_not_counted():
    """The line says of how many it speaks."""
    assert told(wrong(1), wrong(2), dead=9).startswith("2 of the 2 looked at rejected (400, MR.0105)")


LETTERS = st.builds(
    Letter,
    st.sampled_from(["rejected", "exhausted"]),
    st.sampled_from([None, 400, 500]),
    st.sampled_from([None, "MR.0105"]),
    st.text(),
)


@given(st.lists(LETTERS, min_size=1))
def test_the_count_is_that_of_the_most_frequent_cause(letters):
    """Compared with a plain count of all of them."""
    [(_, count)] = Counter((one.kind, one.status, one.code) for one in letters).most_common(1)
    line = told(*letters)
    assert int(line.split()[0]) == count
    assert "\n" not in line


def test_any_number_of_causes_takes_as_much_memory():
    """Codes and messages that are all different are not all kept, and what is frequent is counted on."""
    found = Causes()
    found.add([wrong(1)])
    tracemalloc.start()
    try:
        for number in range(3000):
            text = "".join(chr(97 + int(digit)) for digit in str(number))
            found.add([Letter("rejected", 400, text, text * 100), wrong(number)])
        assert tracemalloc.get_traced_memory()[0] < 1_500_000
    finally:
        tracemalloc.stop()
    assert found.told(6001).startswith("3001 rejected (400, MR.0105), such as ")


def plain(folder, url, rows, **keys):
    """Write a job that sends one row a request, without credentials; `sepal_length` is the row's number."""
    table = jobs.flowers(rows)
    table = table.set_column(1, "sepal_length", [[float(row) for row in range(rows)]])
    jobs.put(folder / "in" / "a.parquet", table)
    keys = {"service": {"url": url, "auth": {"type": "none"}, "limits": {"rows": 1}}, **keys}
    return jobs.job_file(folder, url, **keys)


def mostly(call):
    """Refuse most rows for one reason, the fifth for another, and score the first ones."""
    row = call.places[0]
    return score(call) if row < 5 else refusal(400, "MR.0101" if row == 5 else "MR.0105")


@pytest.mark.parametrize("workers", [1, 2])
def test_the_last_line_says_what_most_rows_died_of(tmp_path, workers):
    """Whichever workers buried them, and in whichever run; the summary has it too."""
    with recording(mostly) as service:
        path = plain(tmp_path, service.url, 20, runner={"workers": workers})
        stopped = jobs.call("run", path, "--max-requests", 12)
        done = jobs.call("run", path, "--no-probe")
        again = jobs.call("run", path)
    place = f"see why in {(tmp_path / 'out').as_uri()}/errors"
    cause = "14 rejected (400, MR.0105), such as 'no'"
    assert stopped.code == 6
    assert done.err == f"ERROR 15 of 20 rows are dead letters, more than errors.allow (0); {cause}; {place}\n"
    assert (again.code, again.err) == (3, done.err)
    assert jobs.runs(tmp_path / "out")[-1]["cause"] == cause


def test_dead_letters_that_are_allowed_are_told_with_their_cause(tmp_path):
    """In the answer, for it is no error."""
    with recording(mostly) as service:
        done = jobs.call("run", plain(tmp_path, service.url, 20, errors={"allow": 15}))
    assert (done.code, done.err) == (0, "")
    assert done.out.endswith("/errors; 14 rejected (400, MR.0105), such as 'no'\n")


def test_letters_that_cannot_be_read_keep_nothing_from_being_told(tmp_path):
    """The line stays what it was without them; what else can be read is."""
    store = Store(str(tmp_path))
    names = [f"errors/{name}.jsonl" for name in ("gone", "spoiled", "cut", "good")]
    letter = b'{"kind": "timeout", "status": null, "code": null, "message": "slow", "row": {"x": 1}}\n'
    for name, content in zip(names[1:], (b"junk\n", letter[:9], letter), strict=True):
        store.write(name, content)
    receipts = [
        Receipt(0, row, row + 1, 0, "a", "v", 0, 1, "run", errors=StoredObject(name, 1, ""))
        for row, name in enumerate(names)
    ]
    assert cause_of(store, receipts[:3]) == ""
    assert cause_of(store, receipts) == "1 of the 1 looked at timeout: 'slow'"


def test_a_part_of_many_letters_is_read(tmp_path, monkeypatch):
    """Of a hundred objects some are opened, from the first to the last ones."""
    store = Store(str(tmp_path))
    receipts = []
    for row in range(100):
        text = f'{{"kind": "rejected", "status": 400, "code": "{"B" if row > 20 else "A"}", "message": "no"}}\n'
        store.write(f"errors/{row}.jsonl", text.encode())
        stored = StoredObject(f"errors/{row}.jsonl", len(text), "")
        receipts.append(Receipt(0, row, row + 1, 0, "a", "v", 0, 1, "run", errors=stored))
    opened = []
    monkeypatch.setattr(Store, "open", lambda self, name, real=Store.open: opened.append(name) or real(self, name))
    assert cause_of(store, receipts) == "12 of the 15 looked at rejected (400, B), such as 'no'"
    assert len(opened) <= causes._OBJECTS


def test_a_large_object_is_not_read_to_its_end(tmp_path):
    """Its first megabytes say enough."""
    store = Store(str(tmp_path))
    line = b'{"kind": "rejected", "status": 400, "code": "A", "message": "no", "row": "%s"}\n' % (b"x" * 1_000_000)
    store.write("errors/a.jsonl", line * 40)
    receipt = Receipt(0, 0, 40, 0, "a", "v", 0, 40, "run", errors=StoredObject("errors/a.jsonl", 0, ""))
    looked = int(cause_of(store, [receipt]).split()[3])
    assert 16 <= looked <= 24

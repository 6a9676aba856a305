from __future__ import annotations

import uuid

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ids import NAMESPACE, repeated, request_uuid, row_namer

texts = st.text(max_size=20)
starts = st.integers(0, 2**40)


def slow_name(job, path, row):
    return str(uuid.uuid5(uuid.uuid5(NAMESPACE, job), f"{path}:{row}"))


@given(job=texts, path=texts, start=starts, count=st.integers(0, 30))
def test_a_row_uuid_is_the_version_5_uuid_of_job_path_and_row(job, path, start, count):
    """The fast namer agrees with the standard library's `uuid.uuid5`, for any range of rows."""
    names = row_namer(job, path)(start, start + count)
    assert names.type == pa.string()
    assert names.to_pylist() == [slow_name(job, path, row) for row in range(start, start + count)]
    names.validate(full=True)


def test_row_uuids_never_change():
    """These ids are in outputs that exist: a change here would orphan them."""
    assert str(NAMESPACE) == "9f0e0085-a80c-5db9-9d4b-08a5d7e87f81"
    assert row_namer("iris-nightly", "part-0.parquet")(0, 2).to_pylist() == [
        "5d84ae5b-9149-5cf8-82fd-9e1bb98ed98a",
        "0c30e5ab-c032-570f-ac62-cbe53f98d520",
    ]
    assert row_namer("名前", "ünï/code.parquet")(10**12, 10**12 + 1).to_pylist() == [
        "7a3695a3-da7e-50da-8787-5569456e11ef"
    ]


def test_request_uuids_never_change():
    """The id of a request follows from its rows alone."""
    rows = row_namer("iris-nightly", "part-0.parquet")
    assert request_uuid(rows(0, 2)) == "938b67f3-ecbd-526e-914f-dcdf8a544012"
    assert request_uuid(rows(0, 0)) == "319e6c4a-3566-5169-b6c0-31599e280169"


@given(start=st.integers(0, 20), count=st.integers(0, 20), cut=st.integers(0, 20))
def test_a_request_uuid_depends_on_the_rows_and_not_on_their_memory(start, count, cut):
    """Slices of an array, arrays put together and fresh arrays of the same row_uuids have one id."""
    names = row_namer("job", "path")
    fresh = names(start, start + count)
    slow = str(uuid.uuid5(NAMESPACE, "".join(fresh.to_pylist())))
    sliced = names(0, 60).slice(start, count)
    joined = pa.concat_arrays([names(0, 60).slice(start, min(cut, count)), fresh.slice(min(cut, count))])
    assert {request_uuid(rows) for rows in (fresh, sliced, joined)} == {slow}


def test_other_rows_make_another_request():
    """Halves of a request, and the same rows in another order, have ids of their own."""
    rows = row_namer("job", "path")(0, 4)
    variants = [rows, rows.slice(0, 2), rows.slice(2, 2), rows.take(pa.array([3, 2, 1, 0]))]
    assert len({request_uuid(variant) for variant in variants}) == 4


def test_jobs_paths_and_rows_that_look_alike_have_different_ids():
    """The job, the path and the row are told apart, wherever digits and colons stand."""
    names = {
        row_namer(job, path)(row, row + 1)[0].as_py()
        for job, path, row in [("a", "b", 1), ("ab", "", 1), ("a", "b:1", 1), ("a", "b", 11), ("a", "b1", 1)]
    }
    assert len(names) == 5


def test_repeated_uuids_stand_one_after_the_other():
    """Each as often as it is asked for, also not at all."""
    one, two, three = (str(uuid.uuid5(NAMESPACE, text)) for text in "abc")
    assert repeated([one, two, three], [2, 0, 1]).to_pylist() == [one, one, three]

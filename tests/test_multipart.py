from __future__ import annotations

import json
from email import policy
from email.parser import BytesParser
from itertools import pairwise

import pyarrow as pa
import pytest
from forms import BOUNDARY, parsed
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import JobError
from pipeline.ids import row_namer
from pipeline.multipart import Multipart, type_of
from pipeline.pack import Block, Limits, pack
from pipeline.status import Action, Fault
from schemas.job import Input
from schemas.options import FileOptions

CONTENT = pa.record_batch({"content": [b"\x89PNG\r\n"], "name": ["7.png"]})
NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters='\\"'), min_size=1)
"""What a form can give back as it was: parsers disagree about backslashes, and quotes are percent-encoded."""


def adapter(boundary=BOUNDARY, **options):
    return Multipart(FileOptions(**{"field": "images", **options}), boundary)


def encoded(batch, *, uuids=None, **options):
    """Encode all rows of a batch, of which everything is sent that the options name."""
    protocol, given = adapter(**options), Input(path="x")
    encoder = protocol.encoder(given, batch.schema, protocol.columns(given, batch.schema.names))
    return encoder.encode(batch, uuids)


def bodies(batch, **options):
    """Return the body of each row."""
    found = encoded(batch, **options)
    starts = [0, *found.ends.tolist()]
    return [found.lines[start : end - 1] for start, end in pairwise(starts)]


def test_a_body_is_what_a_browser_sends():
    """To the byte: the file's field, its name, its type, and its content as it is."""
    assert bodies(CONTENT) == [
        f"--{BOUNDARY}\r\n"
        'Content-Disposition: form-data; name="images"; filename="7.png"\r\n'
        "Content-Type: image/png\r\n"
        "\r\n".encode()
        + b"\x89PNG\r\n"
        + f"\r\n--{BOUNDARY}--\r\n".encode()
    ]
    assert adapter().content_type == f"multipart/form-data; boundary={BOUNDARY}"


@given(
    content=st.binary(), name=NAMES, fields=st.dictionaries(NAMES, st.text(st.characters(exclude_categories=["Cs"])))
)
def test_another_parser_gets_everything_back(content, name, fields):
    """Bit for bit: any bytes, and names and fields in any language."""
    batch = pa.record_batch(
        {"content": [content], "name": [name]} | {f"c{n}": [v] for n, v in enumerate(fields.values())}
    )
    form = {field: {"$column": f"c{n}"} for n, field in enumerate(fields)}
    [body] = bodies(batch, form=form, part_type="image/x-test")
    assert parsed(body) == (list(fields.items()), [("images", name, "image/x-test", content)])


@given(
    content=st.binary(),
    name=st.text(st.characters(codec="ascii", exclude_categories=["Cc"], exclude_characters='\\"'), min_size=1),
)
def test_the_standard_librarys_parser_agrees(content, name):
    """It is made for mail, and takes names in ASCII."""
    [body] = bodies(pa.record_batch({"content": [content], "name": [name]}), form={"a": "b"})
    head = f"Content-Type: {adapter().content_type}\r\n\r\n".encode()
    field, file = BytesParser(policy=policy.HTTP).parsebytes(head + body).iter_parts()
    assert (field.get_param("name", header="Content-Disposition"), field.get_payload()) == ("a", "b")
    assert file.get_param("filename", header="Content-Disposition") == name
    assert file.get_payload(decode=True) == content


@given(st.lists(st.tuples(st.binary(), st.text(st.characters(exclude_categories=["Cs"])))))
def test_rows_are_cut_where_they_end(rows):
    """Whatever newlines the files have in them; and every row has its request."""
    batch = pa.record_batch(
        {
            "content": pa.array([one for one, _ in rows], pa.binary()),
            "name": pa.array([name for _, name in rows], pa.string()),
        }
    )
    uuids = row_namer("job", "path")(0, len(rows))
    block = Block(0, encoded(batch, uuids=uuids), uuids, batch.select([]))
    chunks = list(pack([block], Limits(12_000_000, 1), adapter().frame))
    assert [parsed(chunk.body)[1][0][3] for chunk in chunks] == [content for content, _ in rows]
    assert [json.loads(chunk.line(0))["size"] for chunk in chunks] == [len(content) for content, _ in rows]


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ('a"b.png', "a%22b.png"),
        ("a\r\nb.png", "a%0D%0Ab.png"),
        ("数字 七.png", "数字 七.png"),
        ("a\\b.png", "a\\b.png"),
        ("100%.png", "100%.png"),
        ("a;b='c'.png", "a;b='c'.png"),
    ],
)
def test_names_are_written_as_browsers_do(name, written):
    """UTF-8, with quotes and line ends percent-encoded and nothing else, so that no name can add a header."""
    [body] = bodies(pa.record_batch({"content": [b""], "name": [name]}))
    assert f'filename="{written}"\r\nContent-Type: image/png\r\n\r\n'.encode() in body


@pytest.mark.parametrize("names", [None, [None], [""], [7]])
def test_a_file_without_a_name_is_called_by_its_row_uuid(names):
    """No column `name`, a null or empty one, or one that is no text."""
    batch = pa.record_batch({"content": [b"x"]} | ({} if names is None else {"name": names}))
    uuids = row_namer("job", "path")(0, 1)
    found = encoded(batch, uuids=uuids)
    [(_, name, kind, _)] = parsed(found.lines[:-1])[1]
    assert (name, kind) == (uuids[0].as_py(), "application/octet-stream")
    assert len(encoded(batch).lines) == len(found.lines)


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        (".png", "image/png"),
        (".PNG", "image/png"),
        (".jpg", "image/jpeg"),
        (".webp", "image/webp"),
        (".wav", "audio/x-wav"),
        (".json", "application/json"),
        (".png.gz", "application/octet-stream"),
        (".gz", "application/octet-stream"),
        (".nobody-knows", "application/octet-stream"),
        ("", "application/octet-stream"),
    ],
)
def test_a_files_type_follows_from_its_name(suffix, kind):
    """By a table that is the same on every machine."""
    assert type_of(suffix) == kind


def test_names_without_end_are_not_all_remembered():
    """Each may have a suffix of its own."""
    for number in range(5000):
        type_of(f".{number}")
    assert type_of.cache_info().currsize <= 1024


def test_a_type_that_is_given_is_taken():
    """The documents' Java sample gives the form's own."""
    [body] = bodies(CONTENT, part_type="multipart/form-data")
    assert parsed(body)[1] == [("images", "7.png", "multipart/form-data", b"\x89PNG\r\n")]


def test_fields_are_constants_or_columns():
    """A text that names a column is that column's value, any other is a constant; a null is left out."""
    batch = pa.record_batch(
        {
            "content": [b"x", b"y"],
            "threshold": [0.5, None],
            "tags": [["a", "b"], []],
            "raw": [b"\x00\xff", b""],
            "day": pa.array([0, 1], pa.date32()),
        }
    )
    form = {
        "top": 5,
        "share": 3.0,
        "fast": True,
        "kind": "digits",
        "threshold": "threshold",
        "tags": {"$column": "tags"},
        "raw": "raw",
        "day": "day",
    }
    first, second = (dict(parsed(body)[0]) for body in bodies(batch, form=form))
    constants = {"top": "5", "share": "3.0", "fast": "true", "kind": "digits"}
    assert first == constants | {"threshold": "0.5", "tags": '["a","b"]', "raw": "AP8=", "day": "1970-01-01"}
    assert second == constants | {"tags": "[]", "raw": "", "day": "1970-01-02"}


def test_only_what_is_named_is_read():
    """The content, the name if there is one, and what the form names."""
    protocol = adapter(form={"a": {"$column": "x"}, "b": "y", "c": "constant"})
    assert protocol.columns(Input(path="x"), ["y", "z", "content", "name"]) == ("content", "x", "name", "y")
    assert protocol.columns(Input(path="x"), ["content", "x"]) == ("content", "x")
    assert protocol.named(Input(path="x")) == {"service.options.content": ["content"], "service.options.form": ["x"]}


def test_what_was_settled_at_the_plan_stays():
    """A later file with a column that is called as a constant is does not make another request."""
    given = Input(path="x", send=("content",))
    assert adapter(form={"b": "y"}).columns(given, ["content", "y"]) == ("content",)


def test_text_is_sent_as_utf8():
    """A content column may be text."""
    batch = pa.record_batch({"body": ["grün"]})
    assert parsed(bodies(batch, content="body")[0])[1][0][3] == "grün".encode()


@pytest.mark.parametrize(
    "kind", [pa.large_binary(), pa.binary(2), pa.binary_view(), pa.dictionary(pa.int8(), pa.binary())]
)
def test_bytes_are_bytes_however_they_are_stored(kind):
    """As Arrow has them."""
    batch = pa.record_batch({"content": pa.array([b"ab"], pa.binary()).cast(kind)})
    assert parsed(bodies(batch)[0])[1][0][3] == b"ab"


def test_a_null_is_no_file():
    """It is refused unsent; an empty file is sent."""
    batch = pa.record_batch({"content": pa.array([None, b""], pa.binary())})
    found = encoded(batch)
    assert found.refused == {0: "content is null"}
    assert parsed(bodies(batch)[1])[1][0][3] == b""


def test_a_value_that_must_not_be_sent_refuses_its_row():
    """NaN, where the job file says so."""
    batch = pa.record_batch({"content": [b"x", b"y"], "x": [1.0, float("nan")]})
    protocol, given = adapter(form={"x": "x"}), Input(path="x", nan="reject")
    found = protocol.encoder(given, batch.schema, ("content", "x")).encode(batch)
    assert found.refused == {1: "x is nan, and the job file says nan: reject"}


@pytest.mark.parametrize(
    ("batch", "options", "message"),
    [
        ({"content": [1]}, {}, "service.options.content: column 'content' has type int64; allowed: binary, or text"),
        (
            {"content": [b""], "x": pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])])},
            {"form": {"x": "x"}},
            "service.options.form: column 'x' has type sparse_union",
        ),
    ],
)
def test_a_column_that_cannot_be_sent_is_named(batch, options, message):
    """With the key, its type and what is allowed."""
    with pytest.raises(JobError) as caught:
        encoded(pa.record_batch(batch), **options)
    assert str(caught.value).startswith(message)


def test_a_dead_letter_shows_what_was_sent_but_not_the_bytes():
    """The name, the size and the form."""
    found = encoded(pa.record_batch({"content": [b"\xff" * 1000], "name": ["数.png"]}), form={"top": 5})
    assert json.loads(found.shown[0].as_py()) == {"name": "数.png", "size": 1000, "form": {"top": "5"}}


def test_a_captured_request_is_a_file_like_any_other():
    """It has another process's boundary in it, and not ours."""
    [captured] = bodies(CONTENT, boundary="f" * 32)
    [body] = bodies(pa.record_batch({"content": [captured]}))
    assert parsed(body)[1][0][3] == captured


def test_the_reply_is_the_answer():
    """Whole, and as it stands."""
    text = b'{"predicted_label": "7", "scores": [["7", 0.990]]}'
    assert adapter().read(200, {}, text + b"\n", uuid="u", rows=1).to_pylist() == [text.decode()]


@pytest.mark.parametrize(
    ("status", "body", "action"),
    [
        (200, b'{"erno":"MR.0105","msg":"Recognition failed","words_result":{}}', Action.REJECT),
        (200, b"<html>", Action.MISFIT),
        (200, b"", Action.MISFIT),
        (200, b'"\xff"', Action.MISFIT),
        (413, b"", Action.TOO_LARGE),
        (503, b"", Action.SLOWER),
    ],
)
def test_other_replies_are_faults(status, body, action):
    """By status, by `erno`, or because they are no JSON."""
    fault = adapter().read(status, {}, body, uuid="u", rows=1)
    assert isinstance(fault, Fault)
    assert fault.action is action


def test_an_erno_that_says_success_is_an_answer():
    """`MR.0100`, and numbers of a model's own."""
    for body in (b'{"erno":"MR.0100","msg":"Succeeded"}', b'{"erno":0}', b'{"erno":"0"}'):
        assert adapter().read(200, {}, body, uuid="u", rows=1).to_pylist() == [body.decode()]

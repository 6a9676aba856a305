from __future__ import annotations

import base64
import json

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.encode import RowEncoder
from pipeline.errors import JobError
from pipeline.ids import row_namer
from pipeline.pack import MAX_ROWS, Block, Limits, pack
from pipeline.status import Action, Fault
from pipeline.template import Template
from schemas.job import Input
from schemas.options import JsonOptions
from schemas.template import flattens_answers, jmes_path
from schemas.values import InvalidValueError

X = {"$column": "x"}
UNION = pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])])
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('ab"\\\n数 .', max_size=3), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def adapter(body, **options):
    return Template(JsonOptions(body=body, **options))


def requests(body, batch, *, rows=MAX_ROWS, nan="null"):
    """Return the bodies for a batch."""
    protocol = adapter(body)
    encoder = protocol.encoder(Input(path="x", nan=nan), batch.schema, protocol.columns(Input(path="x"), ()))
    block = Block(0, encoder.encode(batch), row_namer("job", "path")(0, batch.num_rows), batch.select([]))
    limits = Limits(12_000_000, min(rows, protocol.most_rows))
    return [chunk.body.decode() for chunk in pack([block], limits, protocol.frame)]


def read(reply, body=X, *, status=200, rows=1, **options):
    """Read a reply, which is JSON, or bytes as they are."""
    raw = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
    return adapter({"a": body} if body is X else body, **options).read(status, {}, raw, uuid="u", rows=rows)


def misfit(reply, message, **options):
    """See that a reply is none, and why."""
    fault = read(reply, **options)
    assert isinstance(fault, Fault)
    assert fault.action is Action.MISFIT
    assert message in fault.message


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        ({"input": X}, ['{"input":1.0}', '{"input":null}']),
        ({"image": {"$base64": "b"}}, ['{"image":"AP8="}', '{"image":""}']),
        ({"text": {"$base64": "t"}}, ['{"text":"5pWw"}', '{"text":null}']),
        ({"b": {"$column": "b"}}, ['{"b":"AP8="}', '{"b":""}']),
        ([X, {"$column": "t"}], ['[1.0,"数"]', "[null,null]"]),
        (X, ["1.0", "null"]),
        ({"$rows": X}, ["[1.0,null]"]),
        ({"a": 1, "in": {"$rows": [X, "k"]}, "z": {}}, ['{"a":1,"in":[[1.0,"k"],[null,"k"]],"z":{}}']),
        ({"$rows": {"x": X, "y": {"z": [X]}}}, ['[{"x":1.0,"y":{"z":[1.0]}},{"x":null,"y":{"z":[null]}}]']),
        ({"k": [1.5, True, None, {"": []}], 'q"\n': X}, [
            '{"k":[1.5,true,null,{"":[]}],"q\\"\\n":1.0}', '{"k":[1.5,true,null,{"":[]}],"q\\"\\n":null}',
        ]),
    ],
)  # fmt: skip
def test_a_template_is_filled_in(body, sent):
    """By the rules of the row: a point in every float, nulls sent, bytes as base64."""
    batch = pa.record_batch({"x": [1.0, None], "b": [b"\x00\xff", b""], "t": ["数", None]})
    assert requests(body, batch) == sent


@given(PLAIN, st.lists(PLAIN, max_size=4), st.booleans())
def test_what_is_constant_stays_as_it_is(constant, rows, several):
    """Any JSON around the rows and in them."""
    marked = {"c": constant, "x": {"$column": "x"}, "l": [constant, {"$column": "x"}]}
    body = {"before": constant, "rows": {"$rows": marked}, "behind": [constant]} if several else marked
    texts = pa.record_batch({"x": pa.array([json.dumps(row) for row in rows], pa.string())})
    filled = [{"c": constant, "x": json.dumps(row), "l": [constant, json.dumps(row)]} for row in rows]
    whole = [{"before": constant, "rows": filled, "behind": [constant]}] if rows else []
    assert [json.loads(one) for one in requests(body, texts)] == (whole if several else filled)


@given(st.lists(st.fixed_dictionaries({"x": st.floats(), "s": st.text(st.characters(exclude_categories=["Cs"]))})))
def test_a_row_is_sent_as_any_protocol_sends_it(rows):
    """A template that names all columns is what ModelArts rows are."""
    schema = pa.schema({"x": pa.float64(), "s": pa.string()})
    batch = pa.RecordBatch.from_pylist(rows, schema)
    protocol = adapter({"$rows": {name: {"$column": name} for name in schema.names}})
    ours = protocol.encoder(Input(path="x"), schema, ()).encode(batch)
    theirs = RowEncoder(schema, schema.names, rename={}).encode(batch)
    assert (ours.lines, ours.ends.tolist(), ours.refused) == (theirs.lines, theirs.ends.tolist(), theirs.refused)


@given(st.binary())
def test_base64_is_the_standard_one(content):
    """With padding, as the documents' Python sample makes it."""
    [sent] = requests({"image": {"$base64": "c"}}, pa.record_batch({"c": [content]}))
    assert json.loads(sent) == {"image": base64.b64encode(content).decode()}


@pytest.mark.parametrize(("body", "most"), [({"a": X}, 1), ({"a": {"$rows": X}}, MAX_ROWS)])
def test_without_rows_a_request_has_one(body, most):
    """Whatever the limits would allow."""
    assert adapter(body).most_rows == most


def test_rows_are_cut_and_joined_like_others():
    """Two requests of two rows and one."""
    sent = requests({"in": {"$rows": X}}, pa.record_batch({"x": [1, 2, 3]}), rows=2)
    assert sent == ['{"in":[1,2]}', '{"in":[3]}']


def test_only_the_columns_of_the_template_are_sent():
    """And it is the template that must have them."""
    body = {"$rows": {"a": {"$column": "y"}, "b": [{"$base64": "x"}, {"$column": "y"}]}}
    assert adapter(body).columns(Input(path="x"), ["x", "y", "z"]) == ("y", "x")
    assert adapter(body).named(Input(path="x")) == {"service.options.body": ("y", "x")}


def test_a_value_that_must_not_be_sent_refuses_its_row():
    """Where the job file says so; the fault names the column, wherever it stands in the template."""
    protocol, given = adapter({"$rows": {"a": [X]}}), Input(path="x", nan="reject")
    batch = pa.record_batch({"x": [1.0, float("nan")]})
    found = protocol.encoder(given, batch.schema, ("x",)).encode(batch)
    assert found.refused == {1: "x is nan, and the job file says nan: reject"}


@pytest.mark.parametrize(
    ("mark", "column", "message"),
    [
        ("$base64", pa.array([1]), "service.options.body: column 'x' has type int64; allowed: binary, or text"),
        ("$base64", pa.array([[b""]]), "service.options.body: column 'x' has type list<item: binary>; allowed"),
        ("$column", UNION, "service.options.body: column 'x' has type sparse_union"),
    ],
)
def test_a_column_that_cannot_be_sent_is_named(mark, column, message):
    """With the key, its type, and what is allowed."""
    with pytest.raises(JobError) as caught:
        requests({"a": {mark: "x"}}, pa.record_batch({"x": column}))
    assert str(caught.value).startswith(message)


def test_without_a_path_the_reply_is_the_answer():
    """Verbatim: spaces and digits are the model's own."""
    assert read(b' {"a": 1.10,\n "b":1e400} \n').to_pylist() == ['{"a": 1.10,\n "b":1e400}']


def test_without_a_path_the_reply_to_rows_is_their_list():
    """Each answer verbatim."""
    answers = read(b'[1.10, {"a" : 2}, null]', {"$rows": X}, rows=3)
    assert answers.to_pylist() == ["1.10", '{"a" : 2}', "null"]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("result.label", ['"七"']),
        ("result", ['{"label":"七","scores":[["七",0.99],["1",0.01]]}']),
        ("result.scores[0][1]", ["0.99"]),
        ("{l: result.label, best: max(result.scores[*][1])}", ['{"l":"七","best":0.99}']),
        ("id", ["12345678901234567890123"]),
        ("off", ["false"]),
        ("none", ["[]"]),
    ],
)
def test_a_path_finds_the_answer(path, found):
    """As JSON, written anew."""
    reply = {"result": {"label": "七", "scores": [["七", 0.99], ["1", 0.01]]}, "id": 12345678901234567890123}
    assert read(reply | {"off": False, "none": []}, answer=path).to_pylist() == found


def test_with_rows_a_path_finds_the_list_of_answers():
    """A null in it is a model's answer."""
    reply = {"out": [{"y": 1.5}, {"y": "b"}], "all": [1, None]}
    assert read(reply, {"$rows": X}, rows=2, answer="out[*].y").to_pylist() == ["1.5", '"b"']
    assert read(reply, {"$rows": X}, rows=2, answer="all").to_pylist() == ["1", "null"]


def test_a_path_that_finds_nothing_is_named():
    """With how the reply begins."""
    misfit({"b": 1}, "service.options.answer 'a.c' finds nothing in {\"b\": 1}", answer="a.c")
    misfit({"b": "x" * 999}, 'finds nothing in {"b": "xxx', answer="a")
    misfit({"b": 1}, "service.options.answer 'b' finds no list in", body={"$rows": X}, rows=1, answer="b")
    misfit({"b": "text"}, "service.options.answer 'sum(b)': In function sum(), invalid type", answer="sum(b)")
    misfit({"b": 1}, "service.options.answer '&b'", answer="&b")


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("path", [None, "out"])
def test_too_few_or_too_many_answers_are_no_answer(count, path):
    """Nobody knows which row each belongs to."""
    reply = {"out": list(range(count))} if path else list(range(count))
    misfit(reply, f"2 rows were sent, {count} answers came back", body={"$rows": X}, rows=2, answer=path)


@pytest.mark.parametrize("reply", [b"", b"<html>", b'{"a":1} x', b'{"a":NaN}', b"[" * 100_000, b'{"a":"\xff"}'])
@pytest.mark.parametrize(
    "options", [{}, {"answer": "a"}, {"body": {"$rows": X}}, {"body": {"$rows": X}, "answer": "a"}]
)
def test_a_reply_that_is_no_json_is_a_misfit(reply, options):
    """A failure of that request, never a guess, never an exception."""
    misfit(reply, "", **options)


@given(
    st.binary() | st.text().map(str.encode) | PLAIN.map(json.dumps).map(str.encode),
    st.sampled_from([None, "a", "[*].a", "length(@)", "sort(@)"]),
    st.booleans(),
)
def test_no_reply_raises(reply, path, several):
    """Any bytes are answers or a fault."""
    assert isinstance(read(reply, {"$rows": X} if several else X, answer=path), Fault | pa.Array)


@pytest.mark.parametrize("options", [{}, {"answer": "words_result"}, {"body": {"$rows": X}, "answer": "words_result"}])
@pytest.mark.parametrize("status", [200, 400, 500])
def test_the_models_own_failure_is_a_refusal_of_the_content(options, status):
    """The built-in server's `erno`, even with a 200 and where the path finds something."""
    reply = {"erno": "MR.0105", "msg": "Recognition failed", "words_result": {}}
    assert read(reply, status=status, **options) == Fault(
        Action.REJECT, status, "MR.0105", "Recognition failed", "model"
    )


def test_an_erno_that_says_success_is_an_answer():
    """`MR.0100`."""
    assert read({"erno": "MR.0100", "a": 1}, answer="a").to_pylist() == ["1"]


def test_other_statuses_are_judged_by_the_tables():
    """As for every protocol."""
    assert read(b"", status=413).action is Action.TOO_LARGE


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("a.", "'a.' is not a JMESPath: Expecting:"),
        ("a b", "'a b' is not a JMESPath: Unexpected token: b: Parse error at column 2"),
        ("foo[", "'foo[' is not a JMESPath: Invalid jmespath expression: Incomplete expression"),
        ("nofun(a)", "'nofun(a)' calls nofun(), which JMESPath has not; allowed: abs, avg,"),
        ("a[?x == `1`] | [0].sums(b)", "calls sums()"),
        ("a\nb", "allowed: text that is not empty, without control characters"),
        (5, "5 is not text"),
    ],
)
def test_a_path_that_is_none_is_refused(path, message):
    """With the place in it."""
    with pytest.raises(InvalidValueError) as caught:
        jmes_path(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_path_with_functions_is_taken():
    """Those that JMESPath has."""
    assert jmes_path("sort_by(a, &b)[-1].{n: length(c)}") == "sort_by(a, &b)[-1].{n: length(c)}"


JOINING = ["r[].l[]", "r[*].l | []", "map(&l, r)[]", "r[*].[a, b][]", "r[?ok].l[]", "d.*.l[]", "(r[*].l)[] | [*].x"]
KEEPING = ["r[].v", "r[]", "r[*].l[*]", "r[*].{a: l[]}", "map(&l[], r)", "r | [].v", "r[0].l[]", "r[*].l | [0].l[]"]


@pytest.mark.parametrize(("path", "joins"), [*((one, True) for one in JOINING), *((one, False) for one in KEEPING)])
def test_a_path_that_joins_the_lists_of_rows_is_known(path, joins):
    """Two answers of one row and none of the other are as many as there are rows, and look as good."""
    assert flattens_answers(path) is joins

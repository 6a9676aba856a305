"""A model package's config.json: what is taken from it, whatever its authors wrote, and what a job makes of it."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from service import recording

from jobs import ROOT, SEND, call, flowers, job_file, letters, loaded, proved, put, results
from pipeline.contract import RowCheck, UnusableError, contract_of, normal, prediction_of, rows_of
from pipeline.encode import Encoded
from pipeline.errors import JobError
from pipeline.jobfile import fingerprint, resolved

URL = "https://host/v1/infers/0123"
ROW = {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "string"}}}
ANSWER = {"type": "object", "properties": {"label": {"type": "string"}, "score": {"type": "number"}}}


def below(*names, of):
    """Nest a schema in objects."""
    for name in reversed(names):
        of = {"type": "object", "properties": {name: of}}
    return of


def rows(item, *names):
    return below(*names, of={"type": "array", "items": [item]})


def api(request=None, response=None, **keys):
    """Write one of `apis` as a config.json has it."""
    return {
        "url": "/",
        "method": "post",
        "request": {"Content-type": "application/json", "data": request or rows(ROW, "data", "req_data")},
        "response": {"Content-type": "application/json", "data": response or rows(ANSWER, "data", "resp_data")},
        **keys,
    }


def config(*apis):
    return {"model_type": "Image", "apis": list(apis)}


def faults(schema, *given_rows):
    """Return why rows do not fit, by position."""
    lines = [json.dumps(row).encode() + b"\n" for row in given_rows]
    encoded = Encoded(b"".join(lines), np.cumsum([len(line) for line in lines]), {})
    return {position: broken.message for position, broken in RowCheck(schema).unfit(encoded).items()}


JSON = json.dumps
MANAGED = {"protocol": "https", "url": "/", "method": "post"}
SAME = {
    "a config.json": config(api()),
    "types in the wrong spelling": config(
        {
            **api(),
            "procotol": "https",
            "request": {"Content-type": "applicaton/json", "data": rows(ROW, "data", "req_data")},
        }
    ),
    "`item` for `items`": config(api(below("data", "req_data", of={"type": "array", "item": [ROW]}))),
    "items that are no list": config(api(below("data", "req_data", of={"type": "array", "items": ROW}))),
    "no method and no url": config({key: value for key, value in api().items() if key not in ("url", "method")}),
    "schemas as texts": config(api(JSON(rows(ROW, "data", "req_data")), JSON(rows(ANSWER, "data", "resp_data")))),
    "the management API": {
        "model_id": "x",
        "apis": JSON(
            [
                {
                    **MANAGED,
                    "input_params": rows(ROW, "data", "req_data"),
                    "output_params": rows(ANSWER, "data", "resp_data"),
                }
            ]
        ),
    },
    "the management API with texts in texts": {
        "apis": JSON(
            [
                {
                    **MANAGED,
                    "input_params": JSON(rows(ROW, "data", "req_data")),
                    "output_params": JSON(rows(ANSWER, "data", "resp_data")),
                }
            ]
        )
    },
    "the management API's config": {"config": JSON(config(api()))},
    "parameters one by one": {
        "input_params": [
            {"param_name": "data", "param_type": "object", "param_desc": JSON(rows(ROW, "req_data"))},
        ],
        "output_params": [
            {"param_name": "data", "param_type": "object", "param_desc": JSON(rows(ANSWER, "resp_data"))},
        ],
    },
    "indexes of a batch service": config(
        api(
            rows(
                {
                    "type": "object",
                    "properties": {"a": {"type": "number", "index": 0}, "b": {"type": "string", "index": -1}},
                },
                "data",
                "req_data",
            )
        )
    ),
}


@pytest.mark.parametrize("case", SAME)
def test_one_interface_is_read_from_all_that_is_called_so(case):
    """Whatever its authors wrote, and wherever it was fetched."""
    contract = contract_of(SAME[case], [URL])
    assert rows_of(contract) == (ROW, True)
    assert prediction_of(contract) == {"label": "string", "score": "double"}


def test_xgboost_rows_are_at_the_top():
    """There is no `data` around them."""
    contract = contract_of(config(api(rows(ROW, "req_data"), rows(ANSWER, "resp_data"))), [URL])
    assert rows_of(contract) == (ROW, False)
    assert prediction_of(contract) == {"label": "string", "score": "double"}


NORMAL = {
    "a tuple stays one": (
        {"type": "array", "minItems": 2, "maxItems": 2, "items": [{"type": "string"}, {"type": "number"}]},
        {"type": "array", "minItems": 2, "maxItems": 2, "prefixItems": [{"type": "string"}, {"type": "number"}]},
    ),
    "a file": ({"type": "file"}, {"format": "file"}),
    "no type at all": ({}, {}),
    "null": (None, {}),
    "a type that is none": ({"type": "float", "minimum": 1}, {"minimum": 1}),
    "types, one of which is none": ({"type": ["number", "text"]}, {}),
    "types": ({"type": ["number", "null"]}, {"type": ["number", "null"]}),
    "required as it once was": ({"type": "string", "required": True}, {"type": "string"}),
    "a bound that is none": ({"minimum": "0", "exclusiveMinimum": True, "multipleOf": 0}, {}),
    "a pattern that is none": ({"pattern": "("}, {}),
    "a pattern of Python's own": ({"pattern": r"^a\Z"}, {}),
    "a pattern that Python warns of": ({"pattern": "[[a]"}, {"pattern": "[[a]"}),
    "a bound that is no number": ({"minimum": float("nan"), "maximum": float("inf"), "multipleOf": float("inf")}, {}),
    "a choice that JSON has not": ({"enum": [float("nan")], "const": float("-inf")}, {}),
    "other columns are welcome": ({"type": "object", "additionalProperties": False}, {"type": "object"}),
    "columns named like rules": (
        {"properties": {"items": {"type": "string"}, "type": {"type": "number"}, "index": {}}},
        {"properties": {"items": {"type": "string"}, "type": {"type": "number"}, "index": {}}},
    ),
    "empty properties": ({"type": "object", "properties": {}}, {"type": "object", "properties": {}}),
    "properties that are none": ({"type": "object", "properties": []}, {"type": "object"}),
    "items that are none": ({"type": "array", "items": []}, {"type": "array"}),
    "a reference": ({"$ref": "#/definitions/row"}, {}),
}


@pytest.mark.parametrize("case", NORMAL)
def test_a_schema_is_taken_for_what_it_means(case):
    """What is no JSON Schema is left out, rather than believed or stumbled over."""
    given_schema, meant = NORMAL[case]
    assert normal(given_schema) == meant
    RowCheck(meant)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["object", "array", "file"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "properties", "items", "item", "required", "enum", "minimum", "pattern", "minItems", "const"]
            )
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(anything, anything)
def test_no_schema_breaks_the_check_of_a_row(schema, row):
    """Whatever stands in a file, it can be compiled, and asked about anything."""
    try:
        found = rows_of(contract_of(config(api(rows(schema, "req_data"))), [URL]))
    except UnusableError:
        pytest.fail("there is an api")
    told = faults(found.schema, row)
    assert set(told) <= {0}


RULES = {
    "a wrong type": (ROW, {"a": "1", "b": ""}, 'a: "1" is not of type "number"'),
    "a null that is required": (ROW | {"required": ["a"]}, {"a": None}, 'a: null is not of type "number"'),
    "a missing column": ({"required": ["c"]}, {"a": 1}, '"c" is a required property'),
    "a bound": ({"properties": {"a": {"minimum": 0}}}, {"a": -1}, "a: -1 is less than the minimum of 0"),
    "a list": ({"properties": {"a": {"items": {"type": "integer"}}}}, {"a": [1, 2.5]}, "a.1: 2.5 is not of type"),
    "a tuple": ({"properties": {"a": {"prefixItems": [{}, {"type": "string"}]}}}, {"a": [1, 2]}, "a.1: 2 is not of"),
    "a choice": ({"properties": {"a": {"enum": ["x", "y"]}}}, {"a": "z"}, 'a: "z" is not one of'),
}


@pytest.mark.parametrize("case", RULES)
def test_a_row_that_does_not_fit_names_its_field_and_the_rule(case):
    """And the rows around it are none the worse."""
    schema, bad, words = RULES[case]
    good = {"a": [1, "2"], "b": "", "c": 1} if case == "a tuple" else None
    fine = good or {"a": {"a list": [1], "a choice": "x"}.get(case, 1), "b": "", "c": 1, "unknown": []}
    told = faults(schema, fine, bad, fine)
    assert list(told) == [1]
    assert told[1].startswith(f"not sent, by service.schema: {words}")


FITTING = {
    "an integer as a number": ({"type": "number"}, 3),
    "3.0 as an integer": ({"type": "integer"}, 3.0),
    "more than 64 bits": ({"type": "integer"}, 10**30),
    "a file as text": ({"format": "file"}, "aGVsbG8="),
    "anything": ({}, None),
    "a null that nobody requires": ({"type": "number", "minimum": 0}, None),
    "a null inside": (ROW, {"a": None, "b": "x"}),
    "a null in a list": ({"type": "array", "items": ROW}, [{"a": None}, {"a": 1}]),
    "a null in a tuple": ({"type": "array", "prefixItems": [ROW]}, [{"a": None}, {"a": "x"}]),
}


@pytest.mark.parametrize("case", FITTING)
def test_a_row_that_fits_is_let_through(case):
    """JSON has one kind of number, and what is not said is allowed."""
    schema, value = FITTING[case]
    assert faults({"properties": {"a": schema}}, {"a": value}) == {}


PREDICTIONS = {
    "all types": (
        {"a": {"type": "string"}, "b": {"type": "integer"}, "c": {"type": "number"}, "d": {"type": "boolean"}},
        {"a": "string", "b": "int64", "c": "double", "d": "bool"},
    ),
    "may be null": ({"a": {"type": ["string", "null"]}}, {"a": "string"}),
    "an object among them": ({"a": {"type": "string"}, "b": {"type": "object"}}, {}),
    "a type that is not said": ({"predict_result": {}}, {}),
    "two types": ({"a": {"type": ["string", "number"]}}, {}),
    "no fields": ({}, {}),
}


@pytest.mark.parametrize("case", PREDICTIONS)
def test_a_prediction_is_typed_where_every_field_has_one_type(case):
    """Else the answer stays JSON text, with all that it has."""
    fields, expected = PREDICTIONS[case]
    response = rows({"type": "object", "properties": fields}, "data", "resp_data")
    assert prediction_of(contract_of(config(api(response=response)), [URL])) == expected


POEM = {"type": "object", "properties": {"poem": {"type": "string"}}}
SEVERAL = config(
    api(),
    api(rows(POEM, "req_data"), url="/predictions/poetry"),
    api(rows(ANSWER, "req_data"), url="/predictions/poetry", method="GET"),
)
CHOICES = {
    "the default": (SEVERAL, URL, ROW),
    "a custom path": (SEVERAL, f"{URL}/predictions/poetry", POEM),
    "a custom path with a slash and a query": (SEVERAL, f"{URL}/predictions/poetry/?x=1", POEM),
    "another path": (SEVERAL, f"{URL}/notpredictions/poetry", ROW),
    "the only one": (config(api(rows(POEM, "req_data"), url="/elsewhere")), URL, POEM),
}


@pytest.mark.parametrize("case", CHOICES)
def test_the_url_chooses_the_interface(case):
    """By its custom path, at whole steps."""
    document, url, row = CHOICES[case]
    assert rows_of(contract_of(document, [url])).schema == row


UNUSABLE = {
    "no apis": ({"model_type": "Image"}, [URL], 'no "apis"'),
    "apis that are none": ({"apis": "x"}, [URL], 'no "apis"'),
    "not an object": ([1, 2], [URL], 'no "apis"'),
    "no fitting path": (
        config(api(url="/a"), api(rows(POEM, "req_data"), url="/b")),
        [URL],
        "none of its apis is at /v1/infers/0123; it has: /a, /b",
    ),
    "two interfaces": (SEVERAL, [URL, f"{URL}/predictions/poetry"], "differ"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_a_file_that_says_nothing_of_the_service_says_why(case):
    """In a line."""
    document, urls, words = UNUSABLE[case]
    with pytest.raises(UnusableError, match=words):
        contract_of(document, urls)


def job(folder, document, url="http://127.0.0.1:9", **keys):
    """Write a job over twelve flowers with a schema."""
    put(folder / "in" / "rows.parquet", flowers(12))
    text = document if isinstance(document, str) else json.dumps(document)
    (folder / "config.json").write_text(text, encoding="utf-8")
    place = {"service__url": url, "service__auth": {"type": "none"}, "service__schema": "config.json"}
    return job_file(folder, "", **{**place, **keys})


def test_the_schema_travels_in_the_job(tmp_path):
    """Workers elsewhere do not have the file; what it says decides the answers, and where it lies does not."""
    paths = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        paths.append(job(tmp_path / name, config(api())))
    here, there = map(loaded, paths)
    assert resolved(here)["service"]["schema"] == {
        "request": rows_of_all("req_data", ROW),
        "response": rows_of_all("resp_data", ANSWER),
    }
    assert here.output.prediction == {"label": "string", "score": "double"}
    assert fingerprint(here) == fingerprint(there)
    other = job(tmp_path / "there", config(api(rows(POEM, "data", "req_data"))))
    assert fingerprint(loaded(other)) != fingerprint(here)


def rows_of_all(name, item):
    return below("data", name, of={"type": "array", "items": item})


def test_a_prediction_of_the_job_file_is_kept(tmp_path):
    """Also where it says that there is to be none."""
    for said in ({}, {"label": "string"}):
        assert (
            loaded(job(tmp_path, config(api()), output={"path": "out", "prediction": said})).output.prediction == said
        )


def test_a_required_column_that_is_not_sent_is_an_error_of_the_job(tmp_path):
    """Not a dead letter for each row; a column may be renamed to it."""
    needed = config(api(rows({"required": ["length"]}, "data", "req_data")))
    send = {"path": "in/*.parquet", "send": ["sepal_length"]}
    with pytest.raises(JobError, match=r"input\.send: without 'length', which service\.schema requires"):
        loaded(job(tmp_path, needed, input=send))
    assert loaded(job(tmp_path, needed, input={**send, "rename": {"sepal_length": "length"}}))


BAD_FILES = {
    "no JSON": ("{", "config.json: Expecting"),
    "no apis": ({}, 'config.json: it has no "apis"'),
    "a wrapper": (
        config(api(rows(ROW, "req_data"))),
        "service.options.wrapper: service.schema has req_data at the top",
    ),
    "an image": (config(api(below("images", of={"type": "file"}))), "service.protocol: service.schema has no req_data"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_what_does_not_fit_the_job_is_an_error_of_it(tmp_path, case):
    """One line names the key, and the mend."""
    document, words = BAD_FILES[case]
    with pytest.raises(JobError) as caught:
        loaded(job(tmp_path, document))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_schema_that_is_not_there_is_an_error_of_the_job(tmp_path):
    """It is named."""
    path = job(tmp_path, config(api()))
    (tmp_path / "config.json").unlink()
    with pytest.raises(JobError, match=r"service\.schema: .*config\.json: No such file"):
        loaded(path)


IMAGE = config(api(below("images", of={"type": "file"})))
BODY = {"data": {"req_data": {"$rows": {"a": {"$column": "sepal_length"}}}}}
OTHER_PROTOCOLS = {
    "a file": (IMAGE, "file", {"field": "images"}, None),
    "a wrong field": (IMAGE, "file", {"field": "image"}, "options.field: 'image' is no input; did you mean 'images'?"),
    "a wrong form field": (IMAGE, "file", {"field": "images", "form": {"n": 1}}, "options.form.n: 'n' is no input"),
    "rows": (config(api()), "json", {"body": BODY}, None),
    "a key of rows": (
        config(api()),
        "json",
        {"body": {"data": {"req_data": {"$rows": {"aa": {"$column": "x"}}}}}},
        "options.body: 'data.req_data.aa' is not in service.schema; did you mean 'a'?",
    ),
    "a key": (
        config(api(below("image", of={"type": "string"}))),
        "json",
        {"body": {"images": {"$base64": "content"}}},
        "options.body: 'images' is not in service.schema; did you mean 'image'?",
    ),
    "nothing is said": (config(api({"type": "object"})), "json", {"body": {"x": {"$column": "x"}}}, None),
}


@pytest.mark.parametrize("case", OTHER_PROTOCOLS)
def test_names_of_inputs_are_compared_with_the_schema(tmp_path, case):
    """A form's fields and a template's keys must be there; the nearest is named."""
    document, protocol, options, words = OTHER_PROTOCOLS[case]
    keys = {"service__protocol": protocol, "service__options": options, "input": {"path": "in/*.parquet"}}
    path = job(tmp_path, document, service__limits={}, **keys)
    if words is None:
        assert loaded(path).service.contract
        return
    with pytest.raises(JobError) as caught:
        loaded(path)
    assert words in str(caught.value)


def test_an_unknown_key_knows_the_schema_by_its_name(tmp_path):
    """`contract` is our own word for it, and nobody else's."""
    for wrong in ("schemas", "contract"):
        with pytest.raises(JobError) as caught:
            loaded(job(tmp_path, config(api()), **{f"service__{wrong}": "x"}))
        assert f"service.{wrong}: unknown key" in str(caught.value)
        assert "schema" in str(caught.value).partition("allowed: ")[2]
        assert "contract" not in str(caught.value).partition("allowed: ")[2]


def iris(folder, url, *, bad=(), **keys):
    """Write a job over flowers with the shipped schema; some have a negative length, or none."""
    table = flowers(60)
    lengths = [{0: -1.0, 1: None}.get(bad.index(n) % 2, 0) if n in bad else 5.0 for n in range(60)]
    put(folder / "in" / "rows.parquet", table.set_column(1, "sepal_length", pa.array(lengths, pa.float64())))
    schema = str(ROOT / "jobs" / "data" / "iris-config.json")
    place = {"service__url": url, "service__auth": {"type": "none"}, "service__schema": schema}
    return job_file(folder, "", **{**place, **keys})


@pytest.mark.parametrize("workers", [1, 2])
def test_rows_that_do_not_fit_are_never_sent(tmp_path, workers):
    """Their dead letters name the field and the rule, and all others are scored, with typed answers."""
    bad = [3, 30, 31, 59]
    with recording() as service:
        path = iris(tmp_path, service.url, bad=bad, errors={"allow": len(bad)}, runner={"workers": workers})
        done = call("run", path)
    assert done.code == 0, done
    dead = letters(tmp_path / "out")
    assert [letter["source_row"] for letter in dead] == bad
    assert {(letter["kind"], letter["status"], letter["request_uuid"]) for letter in dead} == {("rejected", None, None)}
    assert dead[0]["message"].endswith("sepal_length: -1.0 is less than the minimum of 0")
    assert dead[1]["message"].endswith('sepal_length: null is not of type "number"')
    assert dead[0]["row"]["sepal_length"] == -1.0
    assert dead[0]["keep"] == {"id": "iris-00003"}
    sent = [row for one in service.calls for row in one.rows]
    assert (len(sent), {row["sepal_length"] for row in sent}) == (56, {5.0})
    assert proved(tmp_path / "out") == ()
    assert results(tmp_path / "out").schema.field("prediction").type == pa.struct([("predictresult", pa.string())])


def test_check_and_plan_tell_what_was_taken(tmp_path):
    """Types that nobody wrote into the job file are no surprise."""
    path = iris(tmp_path, "http://127.0.0.1:9")
    for command in ("check", "plan"):
        line = call(command, path).out.splitlines()[-1]
        assert line.startswith("service.schema: rows are checked for sepal_length (number), sepal_width (number)")
        assert line.endswith("prediction is {predictresult: string}")
        assert json.loads(call(command, path, "--json").out)["schema"] == line


def test_the_shipped_schema_fits_the_shipped_data(tmp_path, sandbox):
    """Every flower, against the sandbox."""
    flowers_of_all = pq.read_table(ROOT / "jobs" / "data" / "iris.parquet")
    assert (
        faults(
            rows_of(contract_of(json.loads((ROOT / "jobs" / "data" / "iris-config.json").read_bytes()), [URL])).schema,
            *flowers_of_all.select(SEND).to_pylist(),
        )
        == {}
    )
    url = sandbox()
    schema = str(ROOT / "jobs" / "data" / "iris-config.json")
    put(tmp_path / "in" / "rows.parquet", flowers_of_all)
    assert call("run", job_file(tmp_path, url, service__schema=schema)).code == 0
    assert results(tmp_path / "out").num_rows == flowers_of_all.num_rows


def named(*names):
    """Answer each row with the field whose turn it is by the row's place; None stands for a field that is null."""

    def answer(call):
        keys = [names[row % len(names)] for row in call.places]
        answers = [{key: "rose"} if key else {"predictresult": None} for key in keys]
        content = {"meta": json.loads(call.body)["meta"], "data": {"resp_data": answers}}
        return 200, {}, json.dumps(content).encode()

    return answer


def placed(folder, url, **keys):
    """Write a job over flowers whose first column is their place."""
    path = iris(folder, url, **keys)
    table = flowers(60)
    put(folder / "in" / "rows.parquet", table.set_column(1, "sepal_length", pa.array(map(float, range(60)))))
    return path


def test_answers_of_other_names_than_the_schemas_stop_the_job(tmp_path):
    """Nobody wrote these names into the job file, so nulls would surprise; written ones may be null."""
    with recording(named("label")) as service:
        path = placed(tmp_path, service.url, retry={"attempts": 2, "seconds": "2s"}, service__limits={"rows": 1})
        done = call("run", path)
        assert done.code == 4, done
        assert "no answer has predictresult, which service.schema promises; declare output.prediction" in done.err
        written = {"path": "written", "prediction": {"predictresult": "string", "label": "string"}}
        assert call("run", placed(tmp_path, service.url, output=written)).code == 0


def test_one_answer_without_any_name_of_the_schema_is_a_dead_letter(tmp_path):
    """Its neighbours are results; a field that is there and null is an answer."""
    with recording(named("predictresult", "error", None)) as service:
        done = call("run", placed(tmp_path, service.url, errors={"allow": 20}))
    assert done.code == 0, done
    dead = letters(tmp_path / "out")
    assert {letter["source_row"] for letter in dead} == set(range(1, 60, 3))
    assert dead[0]["kind"] == "mismatch"
    assert dead[0]["message"] == 'it has none of predictresult; the answer is {"error": "rose"}'
    assert proved(tmp_path / "out") == ()


@pytest.mark.parametrize("inline", [config(api()), {"apis": []}, [], {"request": {}}])
def test_a_schema_in_the_job_file_itself_is_an_error_of_the_job(tmp_path, inline):
    """In a line: it has a file of its own, as model packages have it."""
    with pytest.raises(JobError, match=r"service\.schema: .* is no path; put it into a file") as caught:
        loaded(job(tmp_path, config(api()), service__schema=inline))
    assert "\n" not in str(caught.value)

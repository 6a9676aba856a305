"""Jobs that send whole files, and JSON made from templates: from the input to the answer."""

from __future__ import annotations

import base64
import json
import shutil
from collections import Counter
from contextlib import suppress

import engine
import msgspec
import pyarrow as pa
import pytest
from forms import parsed
from service import recording, refusal

import jobs
from jobs import ROOT, call, job_file, letters, proved, put, results, score, stats
from pipeline.sandbox.forms import form_of

DIGITS = ROOT / "jobs" / "data" / "digits"
SEVEN = DIGITS / "7-1710.png"
BASE64 = {"image": {"$base64": "content"}}
FRAMING = len('{"image":""}')


def files_job(folder, url, *, path="in/*", form="files", **keys):
    """Write a job over whole files that are sent by multipart, one after the other."""
    given = {"path": path, "format": form, "keep": []}
    service = {"url": f"{url}/v1/infers/digits", "auth": jobs.token(url), "protocol": "file"}
    return job_file(folder, url, input=given, service=service | {"options": {"field": "images"}}, **keys)


def template_job(folder, url, body=BASE64, *, answer=None, **keys):
    """Write a job whose requests a template makes."""
    path = files_job(folder, url, **keys)
    values = json.loads(path.read_text())
    options = {"body": body} | ({"answer": answer} if answer else {})
    values["service"] |= {"protocol": "json", "options": options}
    path.write_text(json.dumps(values))
    return path


def fill(folder, *contents):
    """Write files called 0.png, 1.png, ... into `in`."""
    (folder / "in").mkdir(exist_ok=True)
    for number, content in enumerate(contents):
        (folder / "in" / f"{number}.png").write_bytes(content)


def predictions(out):
    return [json.loads(text) for text in results(out)["prediction"].to_pylist()]


def echo(sent):
    """Answer with how long the body is."""
    return 200, {}, json.dumps({"length": len(sent.body)}).encode()


def content_of(sent):
    """Return the file in a request."""
    [file] = form_of(sent.body, sent.headers["Content-Type"]).files.values()
    return file


@pytest.mark.parametrize(("job", "field"), [("digits-multipart", "predicted_label"), ("digits-base64", "label")])
def test_at_least_ninety_of_a_hundred_digits_are_found(sandbox, tmp_path, job, field):
    """The shipped jobs: each picture's answer is its own, and its name begins with what it is."""
    place = ["--param", f"service={sandbox()}", "--set", f"output.path={tmp_path / 'out'}"]
    done = call("run", ROOT / "jobs" / f"{job}.yaml", *place, "-q")
    assert done.code == 0, done.err
    rows = results(tmp_path / "out").to_pylist()
    assert len({row["name"] for row in rows}) == 100
    assert sum(row["name"][0] == row["prediction"][field] for row in rows) >= 90
    assert call("verify", ROOT / "jobs" / f"{job}.yaml", *place).code == 0


def test_both_ways_in_give_the_same_answers(sandbox, tmp_path):
    """A form and base64 carry the same picture."""
    url = sandbox()
    shutil.copytree(DIGITS, tmp_path / "in")
    ways = [
        files_job(tmp_path, url, output__path="form"),
        template_job(tmp_path, url, output__path="base64", file="b.yaml"),
    ]
    for way in ways:
        score(way)
    assert predictions(tmp_path / "form") == predictions(tmp_path / "base64")


def test_a_manifest_with_one_image_twenty_times_gives_twenty_results(sandbox, tmp_path):
    """Its rows are its lines; every one is asked."""
    url = sandbox()
    (tmp_path / "list.manifest").write_text(f"{SEVEN}\n" * 20)
    score(files_job(tmp_path, url, path="list.manifest", form="manifest"))
    rows = results(tmp_path / "out").to_pylist()
    assert [row["source_row"] for row in rows] == list(range(20))
    assert len({row["row_uuid"] for row in rows}) == 20
    assert {json.loads(row["prediction"])["predicted_label"] for row in rows} == {"7"}
    assert stats(url)["ok"] == 20
    assert not proved(tmp_path / "out")


def test_names_go_out_as_they_are(tmp_path):
    """In any language; each request has a form of its own, with one boundary."""
    names = ["数字 七.png", 'é".png', "a%20b.jpg", "no suffix"]
    (tmp_path / "in").mkdir()
    for name in names:
        (tmp_path / "in" / name).write_bytes(name.encode())
    with recording(echo) as service:
        score(files_job(tmp_path, "", service__url=service.url, service__auth={"type": "none"}))
    sent = sorted(
        (content_of(one).content.decode(), content_of(one).name, content_of(one).kind) for one in service.calls
    )
    kinds = {"jpg": "image/jpeg", "png": "image/png"}
    expected = [(name, name.replace('"', "%22"), kinds.get(name[-3:], "application/octet-stream")) for name in names]
    assert sent == sorted(expected)
    assert len({one.headers["Content-Type"] for one in service.calls}) == 1


def test_two_runs_have_two_boundaries(tmp_path):
    """So a captured request can be a file of the next run."""
    fill(tmp_path, b"x")
    with recording(echo) as service:
        for out in ("one", "two"):
            score(files_job(tmp_path, "", service__url=service.url, service__auth={"type": "none"}, output__path=out))
    assert len({one.headers["Content-Type"] for one in service.calls}) == 2


@pytest.mark.parametrize("over", [0, 1])
def test_the_largest_image_under_twelve_megabytes(tmp_path, over):
    """As {"image": ...} that is 8,999,991 bytes: one more is a dead letter, and never sent."""
    fill(tmp_path, b"\0" * (8_999_991 + over), b"x")
    with recording(echo) as service:
        score(template_job(tmp_path, "", service__url=service.url, service__auth={"type": "none"}))
    assert max(len(one.body) for one in service.calls) == (16 if over else 12_000_000)
    assert [letter["kind"] for letter in letters(tmp_path / "out")] == ["too_large"] * over
    if over:
        [letter] = letters(tmp_path / "out")
        assert letter["message"] == "alone it makes a body of 12000004 bytes; the limit is 12000000"
        assert letter["row"] == (tmp_path / "in" / "0.png").as_uri()
        assert letter["request_uuid"] is None


@pytest.mark.parametrize("over", [0, 1])
def test_a_forms_framing_counts(tmp_path, over):
    """To the byte."""
    fill(tmp_path, b"")
    keys = {"service__auth": {"type": "none"}}
    with recording(echo) as service:
        score(files_job(tmp_path, "", service__url=service.url, **keys))
        framing = len(service.calls[0].body)
        fill(tmp_path, b"\0" * (1000 - framing + over))
        score(
            files_job(tmp_path, "", service__url=service.url, service__limits={"body": 1000}, output__path="o", **keys)
        )
    assert [len(one.body) for one in service.calls[1:]] == ([] if over else [1000])
    assert [letter["kind"] for letter in letters(tmp_path / "o")] == ["too_large"] * over


@pytest.mark.parametrize("way", [files_job, template_job])
def test_an_empty_file_is_sent_and_the_model_says_what_it_is(sandbox, tmp_path, way):
    """Some models take nothing for something; this one refuses it, in the platform's words."""
    fill(tmp_path, SEVEN.read_bytes(), b"")
    score(way(tmp_path, sandbox(), errors__allow=1))
    [letter] = letters(tmp_path / "out")
    assert (letter["kind"], letter["status"], letter["code"]) == ("rejected", 400, "MR.0105")
    assert letter["message"] == "Recognition failed: the file is not a picture"
    assert letter["row"] == (tmp_path / "in" / "1.png").as_uri()
    assert len(predictions(tmp_path / "out")) == 1


def test_a_file_that_vanishes_after_planning_is_its_dead_letter(sandbox, tmp_path):
    """The others are scored."""
    fill(tmp_path, *[SEVEN.read_bytes()] * 3)
    path = files_job(tmp_path, sandbox())

    def vanishing(job, order, work):
        (tmp_path / "in" / "1.png").unlink(missing_ok=True)
        engine.one_by_one(job, order, work)

    with engine.engine(vanishing):
        score(path, probe=False)
    [letter] = letters(tmp_path / "out")
    assert (letter["kind"], letter["row"]) == ("unreadable", (tmp_path / "in" / "1.png").as_uri())
    assert letter["message"].endswith("is gone since it was planned")
    assert len(predictions(tmp_path / "out")) == 2


@pytest.mark.parametrize("way", ["file", "json"])
def test_a_binary_column_of_parquet_is_sent_too(sandbox, tmp_path, way):
    """With a name of its own, or its row's."""
    pictures = sorted(DIGITS.iterdir())[::10]
    table = pa.table({"id": range(len(pictures)), "photo": [one.read_bytes() for one in pictures]})
    put(tmp_path / "in" / "a.parquet", table)
    url = sandbox(record=100)
    options = {"file": {"field": "images", "content": "photo"}, "json": {"body": {"image": {"$base64": "photo"}}}}[way]
    service = {"url": f"{url}/v1/infers/digits", "auth": jobs.token(url), "protocol": way, "options": options}
    score(job_file(tmp_path, url, input={"path": "in/*.parquet", "keep": ["id"]}, service=service))
    rows = results(tmp_path / "out").to_pylist()
    found = [json.loads(row["prediction"])["predicted_label"] for row in rows]
    assert sum(label == one.name[0] for label, one in zip(found, pictures, strict=True)) >= 9
    assert not proved(tmp_path / "out")


def test_a_dead_letter_of_a_binary_column_shows_its_name_and_size(sandbox, tmp_path):
    """And the form, but none of the bytes; whether it was sent or not."""
    contents = [SEVEN.read_bytes(), b"no picture", b"\0" * 2000, None]
    table = pa.table({"content": contents, "name": ["a", "b", "c", "d"], "top": [1, 2, 3, 4]})
    put(tmp_path / "in" / "a.parquet", table)
    url = sandbox()
    service = {"url": f"{url}/v1/infers/digits", "auth": jobs.token(url), "protocol": "file", "limits": {"body": 1500}}
    options = {"field": "images", "form": {"top": "top"}}
    score(job_file(tmp_path, url, input={"path": "in/*.parquet"}, service=service | {"options": options}))
    found = {letter["source_row"]: (letter["kind"], letter["row"]) for letter in letters(tmp_path / "out")}
    assert found == {
        1: ("rejected", {"name": "b", "size": 10, "form": {"top": "2"}}),
        2: ("too_large", {"name": "c", "size": 2000, "form": {"top": "3"}}),
        3: ("unreadable", {"name": "d", "size": 0, "form": {"top": "4"}}),
    }
    assert len(predictions(tmp_path / "out")) == 1


def test_dead_files_are_healed(tmp_path):
    """`retry` sends them again, with a boundary of the new run."""
    fill(tmp_path, *(b"%d" % number for number in range(5)))
    bad = {b"1", b"3"}

    def answer(sent):
        return refusal(400, "MR.0105") if content_of(sent).content in bad else echo(sent)

    with recording(answer) as service:
        path = files_job(tmp_path, "", service__url=service.url, service__auth={"type": "none"}, errors__allow=5)
        assert score(path).dead == 2
        bad.clear()
        assert call("retry", path, "-q").code == 0
    assert len(predictions(tmp_path / "out")) == 5
    assert Counter(content_of(one).content for one in service.calls) == {b"0": 1, b"1": 2, b"2": 1, b"3": 2, b"4": 1}
    assert not proved(tmp_path / "out")


@pytest.mark.parametrize("way", [files_job, template_job])
def test_a_run_that_dies_is_finished_by_the_next(way):
    """At any write; every file has one result in the end."""
    for writes in range(1, 12, 3):
        with engine.place() as folder, recording(echo) as service, engine.engine(engine.one_by_one):
            fill(folder, *(b"%d" % number for number in range(6)))
            path = way(folder, "", service__url=service.url, service__auth={"type": "none"})
            with engine.dying(writes), suppress(engine.Killed):
                score(path)
            score(path)
            assert len(predictions(folder / "out")) == 6
            assert not proved(folder / "out")


def test_faults_on_the_way_cost_nothing(sandbox, tmp_path):
    """Scripted by the file's name: all digits come out once."""
    shutil.copytree(DIGITS, tmp_path / "in")
    faults = {
        "row:name=7-1710.png": [503, "drop", "truncate", "garbage", "crash"],
        "row:name=0-1697.png": "429 after 1s",
    }
    url = sandbox(faults=faults)
    score(files_job(tmp_path, url))
    assert len(predictions(tmp_path / "out")) == 100
    assert not proved(tmp_path / "out")
    assert {"drop", "truncate", "garbage", "crash"} <= set(stats(url)["by_fault"])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"protocol": "json", "options": {"body": {"a": {"$column": "nme"}}}},
            "service.options.body: IN has no column 'nme'; it has: content, uri, name, size",
        ),
        (
            {"protocol": "file", "options": {"field": "f", "content": "bytes"}},
            "service.options.content: IN has no column 'bytes'; it has: content, uri, name, size",
        ),
        (
            {"protocol": "file", "options": {"field": "f", "form": {"a": {"$column": "x"}}}},
            "service.options.form: IN has no column 'x'; it has: content, uri, name, size",
        ),
        (
            {"protocol": "json", "options": {"body": {"a": {"$base64": "size"}}}},
            "service.options.body: column 'size' has type int64; allowed: binary, or text (sent as UTF-8)",
        ),
        (
            {"protocol": "json", "options": {"body": {"a": {"$column": "name"}}, "answer": "a[*"}},
            "service.options.answer",
        ),
        (
            {"protocol": "file", "options": {"field": "f"}, "headers": {"content-type": "image/png"}},
            "service.headers.content-type",
        ),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_sent(tmp_path, keys, message):
    """One line, with the key, and exit 2."""
    fill(tmp_path, b"x")
    service = {"url": "http://127.0.0.1:9/", **keys}
    path = job_file(tmp_path, "", input={"path": "in/*", "format": "files"}, service=service)
    for command in ("plan", "run"):
        done = call(command, path)
        assert done.code == 2
        assert message.replace("IN", (tmp_path / "in" / "0.png").as_uri()) in done.err.replace("\n", " ")
        assert done.err.strip().count("\n") == 0


def test_folders_are_columns_of_templates_and_forms(tmp_path):
    """As Hive names them."""
    (tmp_path / "in" / "dt=2026-11-21").mkdir(parents=True)
    (tmp_path / "in" / "dt=2026-11-21" / "a.bin").write_bytes(b"x")
    with recording(echo) as service:
        keys = {"service__url": service.url, "service__auth": {"type": "none"}, "path": "in/**/*.bin"}
        score(template_job(tmp_path, "", {"day": {"$column": "dt"}, "n": {"$column": "size"}}, **keys))
        options = {"field": "f", "form": {"day": {"$column": "dt"}}}
        score(files_job(tmp_path, "", service__options=options, output__path="o", **keys))
    assert service.calls[0].body == b'{"day":"2026-11-21","n":1}'
    assert form_of(service.calls[1].body, service.calls[1].headers["Content-Type"]).fields == {"day": "2026-11-21"}


def poem(sent):
    """Answer a list of texts with how long each is."""
    return 200, {}, json.dumps({"poems": [{"n": len(text)} for text in json.loads(sent.body)["inputs"]]}).encode()


def test_rows_in_a_template_go_many_at_a_time(tmp_path):
    """A custom path, another method, a list of texts, and the answers found by a path."""
    texts = [f"{'x' * n}" for n in range(25)]
    put(tmp_path / "in" / "a.parquet", pa.table({"id": range(25), "text": texts}))
    with recording(poem) as service:
        options = {"body": {"inputs": {"$rows": {"$column": "text"}}, "top": 1}, "answer": "poems", "method": "PUT"}
        given = {
            "url": f"{service.url}/predictions/poetry",
            "protocol": "json",
            "options": options,
            "limits": {"rows": 10},
        }
        score(job_file(tmp_path, "", input={"path": "in/*.parquet", "keep": ["id"]}, service=given))
    assert [one["n"] for one in predictions(tmp_path / "out")] == list(range(25))
    assert {one.method for one in service.calls} == {"PUT"}
    assert max(len(json.loads(one.body)["inputs"]) for one in service.calls) == 10


def test_a_model_that_refuses_a_row_of_a_template_costs_that_row(tmp_path):
    """The request is split until it is alone; what is shown of it is what the template made of it."""

    def answer(sent):
        return refusal(400, "MR.0105") if "bad" in json.loads(sent.body)["inputs"] else poem(sent)

    put(tmp_path / "in" / "a.parquet", pa.table({"id": range(16), "text": ["ok"] * 11 + ["bad"] + ["ok"] * 4}))
    with recording(answer) as service:
        options = {"body": {"inputs": {"$rows": {"$column": "text"}}}, "answer": "poems"}
        given = {"url": service.url, "protocol": "json", "options": options, "limits": {"rows": 16}}
        score(job_file(tmp_path, "", input={"path": "in/*.parquet"}, service=given, errors__allow=1))
    [letter] = letters(tmp_path / "out")
    assert (letter["kind"], letter["source_row"], letter["row"]) == ("rejected", 11, "bad")
    assert len(predictions(tmp_path / "out")) == 15


@pytest.mark.parametrize("several", [False, True])
def test_a_path_that_finds_nothing_is_a_dead_letter_that_names_it(tmp_path, several):
    """Where others have an answer, it is that row's trouble."""

    def answer(sent):
        inputs = json.loads(sent.body)["in"]
        empty = inputs == "b" or "b" in inputs
        return 200, {}, json.dumps({"else": 1} if empty else {"out": list(inputs)}).encode()

    put(tmp_path / "in" / "a.parquet", pa.table({"t": list("aabaa")}))
    body = {"in": {"$rows": {"$column": "t"}} if several else {"$column": "t"}}
    with recording(answer) as service:
        given = {"url": service.url, "protocol": "json", "options": {"body": body, "answer": "out"}}
        path = job_file(tmp_path, "", input={"path": "in/*.parquet"}, service=given, retry={"attempts": 2})
        score(path)
    [letter] = letters(tmp_path / "out")
    assert (letter["kind"], letter["source_row"]) == ("mismatch", 2)
    assert letter["message"] == "service.options.answer 'out' finds nothing in {\"else\": 1}"


def test_fields_are_declared_of_answers_that_are_found(tmp_path):
    """An answer that is no object has none, and is a dead letter with the answer in it."""
    fill(tmp_path, b"a", b"bb", b"ccc")
    answers = [{"out": {"n": 1, "more": 2}}, {"out": 7}, {"out": {"n": "x"}}]

    def answer(sent):
        return 200, {}, json.dumps(answers[len(base64.b64decode(json.loads(sent.body)["image"])) - 1]).encode()

    with recording(answer) as service:
        keys = {"service__url": service.url, "service__auth": {"type": "none"}, "output__prediction": {"n": "int64"}}
        score(template_job(tmp_path, "", answer="out", errors__allow=2, **keys))
    assert results(tmp_path / "out")["prediction"].to_pylist() == [{"n": 1}]
    told = [letter["message"] for letter in letters(tmp_path / "out")]
    assert [letter["kind"] for letter in letters(tmp_path / "out")] == ["mismatch", "mismatch"]
    assert told[0].endswith("the answer is 7")
    assert told[1].endswith('the answer is {"n":"x"}')


def test_a_plan_tells_requests_and_bytes(sandbox, tmp_path):
    """One request a file; a form weighs what its files do, and its framing."""
    shutil.copytree(DIGITS, tmp_path / "in")
    path = files_job(tmp_path, sandbox())
    told = json.loads(call("plan", path, "--json").out)
    assert (told["rows"], told["requests"]) == (100, 100)
    put(tmp_path / "p" / "a.parquet", pa.table({"content": [b"x" * 1000] * 10}))
    path = files_job(tmp_path, sandbox(), path="p/*.parquet", form="parquet", output__path="o")
    told = json.loads(call("plan", path, "--json").out)
    assert told["requests"] == 10
    assert 11_000 < told["bytes"] < 13_000


def test_a_template_is_part_of_what_decides_the_answers(sandbox, tmp_path):
    """Another one is refused on an output that is there."""
    url = sandbox()
    fill(tmp_path, SEVEN.read_bytes())
    score(template_job(tmp_path, url))
    done = call("run", template_job(tmp_path, url, BASE64 | {"more": {"$column": "name"}}))
    assert done.code == 2
    assert "service.options.body: was" in done.err


def test_requests_are_read_by_others(tmp_path):
    """The body that went over the wire is a form for a parser that others wrote."""
    fill(tmp_path, SEVEN.read_bytes())
    with recording(echo) as service:
        score(files_job(tmp_path, "", service__url=service.url, service__auth={"type": "none"}))
    [sent] = service.calls
    boundary = sent.headers["Content-Type"].partition("boundary=")[2]
    assert parsed(sent.body, boundary)[1] == [("images", "0.png", "image/png", SEVEN.read_bytes())]
    assert msgspec.json.decode(echo(sent)[2]) == predictions(tmp_path / "out")[0]

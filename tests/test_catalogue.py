from __future__ import annotations

import json
import shutil

import modelservers
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from jsonschema import Draft202012Validator
from service import recording

import jobs
from pipeline.catalogue import catalogue, example
from pipeline.jobfile import json_schema
from pipeline.protocols import ADAPTERS
from schemas.options import OPTIONS

SANDBOX = ("modelarts", "file", "json", "mindspore")
SERVERS = ("tensorflow", "torchserve", "mlflow", "openai-chat", "openai-embeddings")
SECRETS = {"DEMO_PASSWORD": "demo", "API_KEY": "k"}
REAL = {"kserve": "kserve", "open-inference": "mlserver"}
FLOWERS = ("tensorflow", "torchserve", "mlflow")


@pytest.fixture
def folder(tmp_path):
    """A folder with the data that the examples read."""
    shutil.copytree(jobs.ROOT / "jobs" / "data", tmp_path / "data")
    return tmp_path


def written(folder, protocol):
    path = folder / "job.yaml"
    path.write_text(example(protocol), encoding="utf-8")
    return path


def service_url(service):
    return service.url.removesuffix("/v1/infers/iris")


def test_every_protocol_is_listed():
    """With its options, and for people as for machines."""
    done = jobs.call("protocols", "--json")
    listed = json.loads(done.out)["protocols"]
    assert [one["protocol"] for one in listed] == list(OPTIONS)
    assert set(OPTIONS) == set(ADAPTERS)
    text = jobs.call("protocols").out
    for one in listed:
        assert f"{one['protocol']}: {one['about']}\n" in text
        assert all(f"  {option['name']}: {option['about']}" in text for option in one["options"])
        assert all(option["about"] for option in one["options"])


def test_a_url_is_told_as_a_base_where_options_make_the_path():
    """With how a whole one ends."""
    (mindspore,) = (one for one in catalogue() if one["protocol"] == "mindspore")
    assert mindspore["url"] == "a server's base, or a URL that ends as /model/NAME[/version/V]:METHOD does"


def test_options_are_told_with_what_they_may_be():
    """And what they are by default."""
    (kserve,) = (one for one in catalogue() if one["protocol"] == "kserve")
    options = {one.pop("name"): one for one in kserve["options"]}
    assert set(options) == {"model", "rows"}
    assert options["rows"]["allowed"] == ["objects", "lists", "values"]
    assert (options["rows"]["default"], options["rows"]["required"]) == ("objects", False)


def test_who_takes_a_base_says_so():
    """Those that are called by the URL as it stands say that."""
    urls = {one["protocol"]: one["url"] for one in catalogue()}
    assert urls["kserve"] == "a server's base, or a URL that ends as /v1/models/NAME:predict does"
    assert urls["mindspore"] == "a server's base, or a URL that ends as /model/NAME[/version/V]:METHOD does"
    assert {name for name, url in urls.items() if url == "the full URL to call"} == {"modelarts", "file", "json"}


@pytest.mark.parametrize("protocol", list(OPTIONS))
def test_an_example_is_a_job_of_its_protocol(folder, protocol):
    """Without a key that it would not need; editors that know the schema say nothing against it."""
    path = written(folder, protocol)
    Draft202012Validator(json_schema()).validate(yaml.safe_load(example(protocol)))
    assert jobs.loaded(path).service.protocol == protocol
    assert jobs.call("check", path, env=SECRETS).code == 0


def test_every_example_is_run():
    """By one of the tests below, against the sandbox or the imitation of model servers."""
    assert sorted((*SANDBOX, *SERVERS, *REAL)) == sorted(OPTIONS)


@pytest.mark.parametrize("protocol", SANDBOX)
def test_an_example_runs_against_the_sandbox(folder, sandbox, protocol):
    """As it stands, but for the address."""
    done = jobs.call("run", written(folder, protocol), "-q", "--param", f"service={sandbox()}", env=SECRETS)
    assert done.code == 0, done.err
    assert not jobs.proved(folder / "results" / protocol)


@pytest.mark.parametrize("protocol", SERVERS)
def test_an_example_runs_against_a_model_server(folder, protocol):
    """As it stands, but for the address; every row has its own answer."""
    path = written(folder, protocol)
    with recording(modelservers.serve) as service:
        done = jobs.call("run", path, "-q", "--param", f"service={service_url(service)}", env=SECRETS)
    assert done.code == 0, done.err
    out = folder / "results" / protocol
    assert not jobs.proved(out)
    found = dict(zip(*(jobs.results(out)[name].to_pylist() for name in ("id", "prediction")), strict=True))
    assert found == expected(folder, protocol)


@pytest.mark.timeout(900)  # the first one may install a server
@pytest.mark.parametrize("protocol", list(REAL))
def test_an_example_runs_against_the_real_server(folder, model_server, protocol):
    """As it stands, but for the address."""
    path = written(folder, protocol)
    done = jobs.call("run", path, "-q", "--param", f"service={model_server(REAL[protocol]).url}")
    assert done.code == 0, done.err
    assert not jobs.proved(folder / "results" / protocol)


def expected(folder, protocol):
    """Return what each row's answer should be, by its id."""
    if protocol in FLOWERS:
        rows = pq.read_table(folder / "data" / "iris.parquet").to_pylist()
        sums = {row["id"]: modelservers.value([row[name] for name in jobs.SEND]) for row in rows}
        return {name: json.dumps(one) for name, one in sums.items()}
    lines = (folder / "data" / "texts.jsonl").read_text("utf-8").splitlines()
    texts = {row["id"]: row["text"] for row in map(json.loads, lines)}
    if protocol == "openai-embeddings":
        return {name: {"embedding": modelservers.vector(text)} for name, text in texts.items()}
    return {name: {"content": modelservers.reply(text), "finish_reason": "stop"} for name, text in texts.items()}


@pytest.mark.parametrize("protocol", FLOWERS)
def test_rows_that_the_model_cannot_take_are_the_only_dead_letters(tmp_path, protocol):
    """Whatever status they are dressed in; with the server's own words, and every other row is scored."""
    rows = jobs.flowers(60)
    bad = {7, 8, 41}
    values = [-1.0 if number in bad else value for number, value in enumerate(rows["sepal_length"].to_pylist())]
    rows = rows.set_column(1, "sepal_length", pa.array(values))
    jobs.put(tmp_path / "in" / "flowers.parquet", rows)
    path = {"tensorflow": "/v1/models/iris/versions/1:predict", "torchserve": "/predictions/iris"}
    with recording(modelservers.serve) as service:
        url = service_url(service) + path.get(protocol, "")
        keys = {"service__url": url, "service__protocol": protocol, "service__auth": {"type": "none"}}
        job = jobs.job_file(tmp_path, "", **keys, retry={"attempts": 2, "outage": "30s"}, errors__allow=3)
        summary = jobs.score(job)
    assert (summary.scored, summary.dead, summary.exit_code) == (57, 3, 0)
    assert {letter["source_row"] for letter in jobs.letters(tmp_path / "out")} == bad
    _, said = modelservers.CRASHES[url.removeprefix(service_url(service)) or "/invocations"]
    assert all(letter["message"] in said.values() for letter in jobs.letters(tmp_path / "out"))
    assert not jobs.proved(tmp_path / "out")


@pytest.mark.parametrize("protocol", FLOWERS)
def test_a_model_that_is_not_there_stops_the_job(tmp_path, protocol):
    """No row dies of a wrong name."""
    jobs.put(tmp_path / "in" / "flowers.parquet", jobs.flowers(5))
    with recording(modelservers.serve) as service:
        url = service_url(service) + ("/nowhere" if protocol == "mlflow" else "")
        options = {} if protocol == "mlflow" else {"model": "nope"}
        keys = {"service__url": url, "service__protocol": protocol, "service__auth": {"type": "none"}}
        done = jobs.call("run", jobs.job_file(tmp_path, "", **keys, service__options=options), "-q")
    assert done.code == 4
    assert "no route" in done.err
    assert len(service.calls) == 1

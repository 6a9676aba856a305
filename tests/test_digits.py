"""The digits service: pictures in, and what the platform says to what is none; the documents' own samples."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
from importlib.resources import files

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jobs import ROOT, stats
from pipeline.sandbox import digits
from pipeline.sandbox.forms import NotAFormError, form_of
from pipeline.sandbox.replies import Refusal

DIGITS = ROOT / "jobs" / "data" / "digits"
PICTURE = min(DIGITS.glob("7-*.png"))
USER = {"name": "demo", "password": "demo", "domain": {"name": "demo"}}
IDENTITY = {"methods": ["password"], "password": {"user": USER}}
TOKEN = {"auth": {"identity": IDENTITY, "scope": {"project": {"name": "demo"}}}}


def token_of(url):
    return requests.post(f"{url}/v3/auth/tokens", json=TOKEN, timeout=10).headers["X-Subject-Token"]


def ask(url, **given):
    """Ask with a token; returns the status and the answer."""
    headers = {"X-Auth-Token": token_of(url)} | given.pop("headers", {})
    reply = requests.post(f"{url}/v1/infers/digits", headers=headers, timeout=10, **given)
    return reply.status_code, reply.json()


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def service():
    from pipeline.sandbox.server import Options, running

    with running(Options(port=0)) as url:
        yield url


def test_the_model_is_a_real_one():
    """Nine of ten digits at the least that it was not trained on; their names tell what they are."""
    found = [
        (path.name[0], digits.predict(digits.points_of(path.read_bytes())).predicted_label) for path in DIGITS.iterdir()
    ]
    assert len(found) == 100
    assert sum(label == answer for label, answer in found) >= 90


def test_an_answer_is_as_the_platforms_samples_have_it(service):
    """The label, and all labels with their probabilities, the most probable first."""
    status, answer = ask(service, files={"images": PICTURE.read_bytes()})
    assert status == 200
    assert answer["predicted_label"] == answer["scores"][0][0] == "7"
    assert sorted(label for label, _ in answer["scores"]) == list("0123456789")
    shares = [share for _, share in answer["scores"]]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1)


@pytest.mark.parametrize("side", [8, 32, 100, 333])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
def test_pictures_of_any_size_are_read(side, mode):
    """And of any kind of colour."""
    with Image.open(PICTURE) as image:
        other = image.resize((side, side), Image.Resampling.BICUBIC).convert(mode)
    assert digits.predict(digits.points_of(png(other))).predicted_label == "7"


def test_the_documents_curl_sample_gets_an_answer(service):
    """`curl -kv -F 'images=@...' -H 'X-Auth-Token:...' -X POST URL`, with only token, URL and path changed."""
    if not shutil.which("curl"):
        pytest.skip("needs curl: install it with the machine's package manager")
    command = ["curl", "-kv", "-F", f"images=@{PICTURE}", "-H", f"X-Auth-Token:{token_of(service)}", "-X", "POST"]
    done = subprocess.run(
        [*command, f"{service}/v1/infers/digits"], capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(done.stdout)["predicted_label"] == "7"


def test_the_documents_python_sample_of_a_file_gets_an_answer(service):
    """`requests.post(url, headers=headers, files=files)`."""
    headers = {"X-Auth-Token": token_of(service)}
    with PICTURE.open("rb") as file:
        reply = requests.post(f"{service}/v1/infers/digits", headers=headers, files={"images": file}, timeout=10)
    assert (reply.status_code, reply.json()["predicted_label"]) == (200, "7")


def test_the_documents_python_sample_of_base64_gets_an_answer(service):
    """`requests.post(url, headers=headers, json=body)`."""
    headers = {"Content-Type": "application/json", "X-Auth-Token": token_of(service)}
    body = {"image": base64.b64encode(PICTURE.read_bytes()).decode("utf-8")}
    reply = requests.post(f"{service}/v1/infers/digits", headers=headers, json=body, timeout=10)
    assert (reply.status_code, reply.json()["predicted_label"]) == (200, "7")


def form(boundary):
    return {"Content-Type": f"multipart/form-data{boundary}"}


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        ({"files": {"image": b"x"}}, "MR.0101", "there is no file images"),
        ({"files": {"x": b"x"}, "data": {"images": "text"}}, "MR.0101", "there is no file images"),
        ({"files": {"images": b""}}, "MR.0105", "the file is not a picture"),
        ({"files": {"images": b"%PDF-1.7"}}, "MR.0105", "the file is not a picture"),
        ({"files": {"images": PICTURE.read_bytes()[:-30]}}, "MR.0105", "the picture is broken"),
        ({"json": {"images": ""}}, "MR.0101", "image is missing, or no text"),
        ({"json": {"image": 7}}, "MR.0101", "image is missing, or no text"),
        ({"json": {"image": "%"}}, "MR.0105", "image is not base64"),
        ({"json": {"image": "数"}}, "MR.0105", "image is not base64"),
        ({"json": {"image": "eA=="}}, "MR.0105", "the file is not a picture"),
        ({"data": b"x", "headers": form("; boundary=b")}, "MR.0101", "The input parameter is invalid"),
        ({"data": b"x", "headers": form("")}, "MR.0101", "The input parameter is invalid"),
        ({"data": b"--b\r\n", "headers": form("; boundary=b")}, "MR.0101", "the form has no end"),
    ],
)
def test_what_is_no_picture_is_refused_in_the_platforms_words(service, given, code, words):
    """The model server's."""
    status, answer = ask(service, **given)
    assert (status, answer["erno"]) == (400, code)
    assert words in answer["msg"]


def test_what_is_no_json_is_the_dispatchers_to_refuse(service):
    """As for every model."""
    assert ask(service, data=b"x")[1]["error_code"] == "ModelArts.4105"


def test_a_picture_that_would_fill_the_memory_is_refused():
    """A small file of a billion points."""
    bomb = bytearray(png(Image.new("1", (8, 8))))
    bomb[16:24] = (40_000).to_bytes(4, "big") * 2
    with pytest.raises(Refusal, match=r"MR\.0105"):
        digits.points_of(bytes(bomb))


@given(st.binary())
def test_any_bytes_are_a_picture_or_refused(content):
    """Never an exception of the library's."""
    with pytest.raises(Refusal):
        digits.points_of(content)


@given(st.binary(), st.integers(0, 200))
def test_a_broken_picture_is_a_picture_or_refused(noise, at):
    """Wherever it is broken."""
    content = PICTURE.read_bytes()
    try:
        points = digits.points_of(content[:at] + noise + content[at + len(noise) :])
    except Refusal:
        return
    assert points.shape == (64,)


def test_without_a_token_there_is_no_answer(service):
    """The gateway comes first."""
    reply = requests.post(f"{service}/v1/infers/digits", files={"images": PICTURE.read_bytes()}, timeout=10)
    assert (reply.status_code, reply.json()["error_code"]) == (401, "APIG.0301")


def test_a_form_over_the_limit_is_refused_by_the_gateway(sandbox):
    """Framing counts."""
    status, answer = ask(sandbox(body_limit=300), files={"images": PICTURE.read_bytes()})
    assert (status, answer["error_code"]) == (413, "APIG.0201")


def test_faults_are_scripted_by_the_files_name_or_a_field(sandbox):
    """As rows are of other models; what is about many rows leaves this one as it is."""
    url = sandbox(faults={"row:name=a.png": 503, "row:mode=x": "crash", 3: "short", 4: "garbage"})
    picture = PICTURE.read_bytes()
    assert ask(url, files={"images": ("a.png", picture)})[0] == 503
    crashed = requests.post(
        f"{url}/v1/infers/digits",
        headers={"X-Auth-Token": token_of(url)},
        files={"images": picture},
        data={"mode": "x"},
        timeout=10,
    )
    assert crashed.status_code == 500
    assert ask(url, files={"images": picture})[1]["predicted_label"] == "7"
    assert stats(url)["by_fault"] == {"503 ModelArts.4302": 1, "crash": 1, "short": 1}


@given(st.dictionaries(st.text("abc数", min_size=1), st.text()), st.binary())
def test_a_form_is_read_as_it_was_made(fields, content):
    """By the library that makes requests' forms."""
    texts = {name: value.encode("utf-8", "replace").decode() for name, value in fields.items()}
    request = requests.Request(
        "POST", "http://x", data=texts, files={"images": ("七.png", content, "image/png")}
    ).prepare()
    form = form_of(request.body, request.headers["Content-Type"])
    assert dict(form.fields) == texts
    assert dict(form.files) == {"images": ("七.png", "image/png", content)}


@pytest.mark.parametrize("kind", ["", "text/plain", "application/json", "multipart/mixed; boundary=b"])
def test_other_bodies_are_no_forms(kind):
    """By their type."""
    with pytest.raises(NotAFormError):
        form_of(b"", kind)


def test_the_manifest_lists_all_pictures():
    """Beside it, in order."""
    names = (ROOT / "jobs" / "data" / "digits.manifest").read_text().splitlines()
    assert names == [f"digits/{path.name}" for path in sorted(DIGITS.iterdir())]
    assert files("pipeline.sandbox").joinpath("digits_model.json").is_file()

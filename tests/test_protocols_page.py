"""What schemas/PROTOCOLS.md shows is true: rows for every protocol, the tested example, commands with their output."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import plugged
import pyarrow as pa
import pytest
import tensorwire
import test_docs as docs
import yaml
from service import recording

from pipeline.adapter import Action, Adapter
from pipeline.protocols import ADAPTERS
from schemas.options import OPTIONS

PAGE = (docs.ROOT / "schemas" / "PROTOCOLS.md").read_text(encoding="utf-8")
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
MOST = {"file": {"field": "f"}, "json": {"body": {"$rows": {"$column": "a"}}}}
TEMPLATES = {"model": "m", "messages": {"$column": "a"}, "input": {"$column": "a"}}


def section(title):
    """Give the text below a heading."""
    return re.split(r"^## .*\n", PAGE.partition(f"## {title}\n")[2], flags=re.MULTILINE)[0]


def rows(text):
    """Give the rows of a section's table, each a list of cells, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


def adapter(protocol):
    """Make one with the fewest options that it needs."""
    options = OPTIONS[protocol]
    needed = {name: one for name, one in TEMPLATES.items() if name in options.model_fields}
    return ADAPTERS[protocol](options(**MOST.get(protocol, needed)), "0" * 32)


@pytest.mark.parametrize("title", ["Requests", "Replies"])
def test_every_protocol_has_its_row(title):
    """In both tables, and no other has."""
    told = [name.strip("` ") for name, *_ in rows(section(title))]
    assert sorted(told) == sorted(OPTIONS)


def test_how_many_rows_a_request_has_is_told():
    """As the adapters have it."""
    told = {cells[0].strip("` "): cells[4] for cells in rows(section("Requests"))}
    found = {name: f"{adapter(name).most_rows:,}" for name in OPTIONS}
    assert {name: told[name].split()[0] for name in OPTIONS} == found


def test_every_part_of_an_adapter_is_told():
    """With its name, in the table of defaults; and every action of a fault."""
    text = section("One of your own")
    told = re.findall(r"`(\w+)", " ".join(re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)))
    public = {name for name in vars(Adapter) if not name.startswith("_")}
    assert public | {action.name for action in Action} == set(told)


def test_the_smallest_adapter_works():
    """It is run as it stands."""
    found: dict[str, object] = {}
    exec(docs.blocks(PAGE, "python")[0], found)  # what the page shows
    plugin = found["PROTOCOL"]
    mine = plugin.adapter(plugin.options())
    assert b'{"a":1}'.join(mine.frame("0" * 36)) == b'{"rows":[{"a":1}]}'
    answers = mine.read(200, {}, b'{"answers": [1, {"b": 2}]}', uuid="0" * 36, rows=2)
    assert answers.equals(pa.array(["1", '{"b":2}']))


def test_the_example_is_the_tested_one():
    """To the letter, with its project file."""
    assert docs.blocks(PAGE, "python")[1] == (plugged.EXAMPLE / "bulkscore_csv.py").read_text(encoding="utf-8")
    assert docs.blocks(PAGE, "toml") == [(plugged.EXAMPLE / "pyproject.toml").read_text(encoding="utf-8")]


def test_the_commands_print_what_the_page_shows(tmp_path, monkeypatch):
    """The package installed, the job checked, run and verified, against a server of CSV."""
    home, site = tmp_path / "bulkscore", tmp_path / "site"
    shutil.copytree(docs.ROOT / "jobs" / "data", home / "jobs" / "data")
    ignored = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
    shutil.copytree(plugged.EXAMPLE, home / "tests" / "example_protocol", ignore=ignored)
    for name, value in {**OFFLINE, "PIP_TARGET": str(site), "PYTHONPATH": str(site)}.items():
        monkeypatch.setenv(name, value)
    commands, outputs = zip(*docs.shown(section("One of your own")), strict=True)
    with recording(plugged.serve) as service:
        job = yaml.safe_load(docs.blocks(section("One of your own"), "yaml")[0])
        job["service"]["url"] = service.url
        (home / "csv.yaml").write_text(yaml.safe_dump(job), encoding="utf-8")
        found = docs.ran(commands, home, 0)
    assert [docs.normal(one, home, 0) for one in found] == [docs.normal(one, docs.HOME, 0) for one in outputs]


def test_the_job_that_sends_halves_prints_what_the_page_shows(tmp_path):
    """Checked, run and verified, against a server that has the binary extension, and that gives back what it got."""
    home = tmp_path / "bulkscore"
    shutil.copytree(docs.ROOT / "jobs" / "data", home / "jobs" / "data")
    part = section("Tensors as bytes")
    commands, outputs = zip(*docs.shown(part), strict=True)
    with recording(tensorwire.serve) as service:
        job = yaml.safe_load(docs.blocks(part, "yaml")[0])
        job["service"]["url"] = service.url.removesuffix("/v1/infers/iris")
        (home / "halves.yaml").write_text(yaml.safe_dump(job), encoding="utf-8")
        found = docs.ran(commands, home, 0)
    assert [docs.normal(one, home, 0) for one in found] == [docs.normal(one, docs.HOME, 0) for one in outputs]
    call = service.calls[0]
    assert call.path == "/v2/models/iris/infer"
    assert tensorwire.read(call.headers, call.body)[1]["input-0"].dtype == np.float16


def test_the_readme_leads_to_the_page():
    """And links on the page lead somewhere."""
    assert "(schemas/PROTOCOLS.md)" in docs.README
    for link in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (docs.ROOT / "schemas" / link).exists(), link
    assert Path(docs.ROOT / "schemas" / "PROTOCOLS.md").is_file()

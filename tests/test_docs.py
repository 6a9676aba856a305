"""What README.md shows is true: its commands run and print what it says, its tables leave nothing out."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import typer

from jobs import call, results
from pipeline import errors
from pipeline.cli import app
from pipeline.jobfile import load
from pipeline.sandbox.credentials import ENVIRONMENT
from schemas.job import leaves

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
HOME = "/home/you/bulkscore"  # where README's reader has the project
COMMANDS = typer.main.get_command(app).commands
END = "\x1e"  # ends a command's output; its exit code follows
TODAY = datetime(2026, 11, 21, tzinfo=UTC).date()


def sections():
    """Split README at its headings: title -> text."""
    titles = re.split(r"^##? (.*)\n", README, flags=re.MULTILINE)
    return dict(zip(titles[1::2], titles[2::2], strict=True))


def blocks(text, *kinds):
    """Give the fenced blocks of these kinds."""
    return [
        body for kind, body in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE) if kind in kinds
    ]


def shown(text):
    """Give the (command, output) pairs of a section."""
    return [
        (command, output)
        for block in blocks(text, "console")
        for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
    ]


def normal(text, home, port):
    """Replace what differs from run to run: the folder, ports, the request's time, and times of the clock."""
    text = text.replace(str(home), HOME).replace(f":{port}", ":8500")
    text = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", text)
    text = re.sub(r'"latency_ms": [\d.]+', '"latency_ms": N', text)
    text = re.sub(r"\d{4}-\d\d-\d\d[ T][\d:.]+\+00:00", "TIME", text)
    return re.sub(r"\d+\.\d s\)", "N s)", text)


@pytest.fixture
def home(tmp_path):
    """A copy of what README's commands use, with the installed packages as its `.venv`."""
    home = tmp_path / "bulkscore"
    shutil.copytree(ROOT / "jobs", home / "jobs")
    shutil.copy(ROOT / "Makefile", home)
    (home / ".venv").symlink_to(sys.prefix)
    return home


@pytest.fixture
def port(home):
    """A port that is free now, in place of the sandbox's usual one."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        free = listener.getsockname()[1]
    job = home / "jobs/iris.yaml"
    job.write_text(job.read_text().replace(":8500", f":{free}"))
    return free


def script(commands, port):
    """Write a section's commands as one shell script; a sandbox runs beside the others until the script ends."""
    lines = ["trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT"]
    for command in commands:
        if command.startswith("bulkscore serve"):
            lines += [
                f"{command} --port {port} >served 2>&1 &",
                "until grep -qs 'project id' served; do kill -0 $! || break; sleep 0.05; done; cat served",
            ]
        else:
            lines.append(recipe(command))
        lines.append(f"code=$?; printf '{END}%s\\n' $code; (exit $code)")
    return "\n".join(lines)


def recipe(command):
    """Give the command itself, and for `make run` its recipe: the set-up before it needs the network."""
    if command != "make run":
        return command
    return re.search(r"^run:.*\n\t@\$\(BIN\)/(.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]


def ran(commands, home, port):
    """Run commands in one shell; give the output of each."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {
        name: value for name, value in os.environ.items() if name not in {"MAKELEVEL", "MAKEFLAGS", "MFLAGS"}
    }
    done = subprocess.run(
        ["bash", "-c", script(commands, port)],
        cwd=home,
        env={**environment, "PATH": path, "PWD": str(home)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
        check=False,
    )
    return re.sub(rf"{END}\d+\n", END, done.stdout).split(END)[:-1]


@pytest.mark.parametrize("title", [title for title, text in sections().items() if shown(text)])
def test_commands_print_what_the_readme_shows(title, home, port):
    """Each section's commands, run one after the other in a fresh copy, print what stands below them."""
    commands, outputs = zip(*shown(sections()[title]), strict=True)

    found = ran(commands, home, port)

    expected = [normal(output, HOME, 8500) for output in outputs]
    assert [normal(output, home, port) for output in found] == expected


def test_the_command_for_other_runners_is_one():
    """Beam's own job service and worker pool are started elsewhere in the tests; here the command line is judged."""
    [command] = blocks(sections()["Other Beam runners"], "sh")
    words = shlex.split(command)

    context = COMMANDS["run"].make_context("run", words[2:])

    assert words[:2] == ["bulkscore", "run"]
    assert context.params["set_"] == ["runner.name=PortableRunner"]
    assert [word.partition("=")[0] for word in context.args] == [
        "--job_endpoint",
        "--environment_type",
        "--environment_config",
    ]


def test_the_cron_line_runs(home, port, monkeypatch):
    """The cron line, with its folder replaced, scores everything and writes the answer to its log."""
    monkeypatch.setenv("DEMO_PASSWORD", "demo")
    [line] = blocks(sections()["From cron"], "cron")
    command = line.split(maxsplit=5)[5].strip().replace("/srv/bulkscore", str(home))

    _, output = ran(["bulkscore serve", command], home, port)

    assert output == ""
    assert (home / "run.log").read_text().startswith("150 rows: 150 scored, 0 dead letters, 0 left")


def test_the_first_job_file_is_the_shipped_one(home):
    """The job file on the first screen is jobs/iris.yaml."""
    short = home / "jobs/short.yaml"
    short.write_text(blocks(README, "yaml")[0])

    assert load(short, today=TODAY) == load(home / "jobs/iris.yaml", today=TODAY)


@pytest.mark.parametrize("block", blocks(README, "yaml"))
def test_job_files_in_the_readme_are_valid(block, tmp_path):
    """Every job file shown can be loaded."""
    path = tmp_path / "job.yaml"
    path.write_text(block)

    assert load(path, today=TODAY).version == 1


def test_the_template_scores_as_the_protocol_does(home, sandbox):
    """The job with `$rows` gives each flower the answer that jobs/iris.yaml gives it."""
    [block] = [one for one in blocks(README, "yaml") if "$rows" in one]
    (home / "jobs/template.yaml").write_text(block)
    url = sandbox()
    told = {}
    for job, out in {"template": "iris-by-template", "iris": "iris"}.items():
        assert call("run", home / f"jobs/{job}.yaml", "--param", f"service={url}").code == 0
        table = results(home / "results" / out)
        told[job] = dict(zip(table["id"].to_pylist(), table["prediction"].to_pylist(), strict=True))
    assert len(told["iris"]) == 150
    assert {key: json.loads(one) for key, one in told["template"].items()} == {
        key: json.loads(one) for key, one in told["iris"].items()
    }


@pytest.mark.parametrize("job", sorted((ROOT / "jobs").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_jobs_pass_check(job, home, port):
    """`bulkscore check` finds nothing wrong in a shipped job whose parameter and secrets are given."""
    secrets = " ".join(f"{name}=x" for name in ENVIRONMENT)
    command = f"{secrets} bulkscore check jobs/{job.name} --param service=https://host.example"

    [output] = ran([command], home, port)

    assert output == f"jobs/{job.name}: job {job.stem} is valid\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_readme_and_has_help(name):
    """A command, and each of its options, says what it is for."""
    command = COMMANDS[name]

    assert f"| `bulkscore {name}" in README
    assert command.help
    assert [one.name for one in command.params if not one.help] == []


def test_every_option_of_the_sandbox_is_in_the_readme():
    """What the sandbox can be told stands in its section; address and certificate are as everywhere."""
    options = {option for one in COMMANDS["serve"].params for option in one.opts}

    missing = {option for option in options if f"`{option}`" not in README and f"{option} " not in README}

    assert missing <= {"--host", "--port", "--tls-cert", "--tls-key"}


def test_every_exit_code_is_in_the_readme():
    """The table of exit codes is complete, and has no code that does not exist."""
    classes = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, Exception)]
    plain = [value for name, value in vars(errors).items() if name.isupper() and isinstance(value, int)]

    told = re.findall(r"^\| (\d+) \|", sections()["Exit codes"], re.MULTILINE)

    assert sorted({str(one.exit_code) for one in classes} | {str(one) for one in plain}, key=int) == told


def test_every_key_of_the_job_file_is_in_the_readme():
    """The table of keys is that of the job file's types."""
    told = re.findall(r"^\| `([\w.]+)` \|", sections()["The job file"], re.MULTILINE)

    assert sorted(told) == sorted({path for path, _ in leaves()})

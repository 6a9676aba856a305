"""Packages with protocols: the example, built and installed beside the others, and small ones written by hand."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parent / "example_protocol"


def build(folder):
    """Install the example into a folder of its own, as pip does it, without the network; returns that folder."""
    source, target = folder / "source", folder / "site"
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    line = [sys.executable, "-m", "pip", "install", "--quiet", *offline, "--target", target, source]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    return target


def package(folder, module, text, *, name="csv", given="PROTOCOL"):
    """Write an installed package `module` that gives a protocol, whatever it may be."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{module}.py").write_text(text, encoding="utf-8")
    told = folder / f"{module}-1.0.dist-info"
    told.mkdir()
    (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n", encoding="utf-8")
    (told / "entry_points.txt").write_text(f"[bulkscore.protocols]\n{name} = {module}:{given}\n", encoding="utf-8")
    return folder


def read(body):
    """Return the rows of a request, each a list of numbers."""
    return [[float(field) for field in row] for row in csv.reader(io.StringIO(body.decode(), newline=""))]


def serve(call):
    """Answer each line by its own values; a flower whose first measure is negative is none, and 9 is too large."""
    rows = read(call.body)
    if any(row[0] == 9 for row in rows):
        return 413 if len(rows) > 1 else 400, {}, b"9 is too large"
    lines = [f"ERROR,not a flower: {row[0]}" if row[0] < 0 else f"setosa,{sum(row):.3f}" for row in rows]
    return 200, {"Content-Type": "text/csv"}, "".join(f"{line}\r\n" for line in lines).encode()

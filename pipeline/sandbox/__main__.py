"""`python -m pipeline.sandbox JOB`: start the sandbox, run a job against it, show a few results, stop the sandbox.

The job is run by the `bulkscore` command as a user would run it; it must have a parameter `service`, the base URL.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Final

from pipeline.sandbox.credentials import ENVIRONMENT
from pipeline.sandbox.options import Options
from pipeline.sandbox.server import running

SHOWN: Final = 3


def demo(job: str) -> int:
    """Return the exit code of the run."""
    text = Path(job).read_text(encoding="utf-8")
    with running(Options(port=0)) as url:
        print(f"* sandbox: {url}", file=sys.stderr)
        shown = ["bulkscore", "run", job, "--param", f"service={url}"]
        secrets = [f"{name}={value}" for name, value in ENVIRONMENT.items() if f"${{env:{name}}}" in text]
        print("*", *secrets, shlex.join(shown), file=sys.stderr, flush=True)
        command = [str(Path(sys.executable).with_name("bulkscore")), *shown[1:], "--json"]
        environment = {**os.environ, **ENVIRONMENT}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603 - ours
    if done.returncode == 0:
        show(json.loads(done.stdout))
    return done.returncode


def show(summary: dict[str, object]) -> None:
    """Print what came out, and where it is."""
    import pyarrow.dataset as ds

    folder = f"{summary['output']}/results"
    table = ds.dataset(folder, format="parquet")
    print(
        f"{summary['scored']} of {summary['planned']} rows scored, {summary['dead']} dead letters; the first {SHOWN}:"
    )
    for row in table.head(SHOWN).to_pylist():
        print(json.dumps(row, default=str))
    print(f"results: {folder}")


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_file():  # noqa: PLR2004
        sys.exit(f"{' '.join(sys.argv[1:]) or 'nothing'} is no job file; use: python -m pipeline.sandbox JOB")
    sys.exit(demo(sys.argv[1]))

"""Measures typed tensors beside a bare loop: CPU of a row of 224 x 224 x 3 float32 numbers, over MindSpore Serving.

Both are processes of their own that read the same Parquet file and ask the same server on loopback, with bodies of up
to 12 MB; the loop encodes a row by one call of base64, posts by `http.client`, and does nothing else. Start-up is the
same command on a few rows, and is subtracted. The two take turns, each turn is a pair, and the goal is for the median
of the pairs' ratios. Each answer is compared with its row.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median

from outside import HERE, ClientError, measure, server

BULKSCORE = str(Path(sys.executable).parent / "bulkscore")
SHAPE = (224, 224, 3)
FEW = 14  # rows: one request's
GOAL = 1.3
BODY = 12_000_000
TAIL = b'","type":"float32","shape":[150528]}}'


def write(path: str, count: int) -> None:
    """Write rows that are all different."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    size = SHAPE[0] * SHAPE[1] * SHAPE[2]
    schema = pa.schema({"id": pa.int64(), "image": pa.list_(pa.float32())})
    values = np.random.default_rng(1936).random(size, np.float32)
    with pq.ParquetWriter(path, schema, use_dictionary=False, compression="none") as file:
        for start in range(0, count, 50):
            ids = range(start, min(start + 50, count))
            images = pa.array(np.concatenate([np.roll(values, one) for one in ids]))
            lists = pa.ListArray.from_arrays(np.arange(len(ids) + 1, dtype=np.int32) * size, images)
            file.write_batch(pa.record_batch([pa.array(ids, pa.int64()), lists], schema))


def loop(source: str, url: str, target: str) -> None:
    """Do what somebody would write who has nothing else to do."""
    from base64 import b64encode
    from http.client import HTTPConnection
    from urllib.parse import urlsplit

    import pyarrow.parquet as pq

    parts = urlsplit(url)
    connection = HTTPConnection(parts.netloc)
    with Path(target).open("w") as out:
        for batch in pq.ParquetFile(source).iter_batches(FEW, columns=["image"], use_threads=False):
            rows = [b64encode(image.values.to_numpy()) for image in batch.column("image")]
            body = b",".join(b'{"image":{"b64":"%b%b' % (row, TAIL) for row in rows)
            connection.request("POST", parts.path, b'{"instances":[%b]}' % body)
            out.writelines(f"{one['crc']}\n" for one in json.loads(connection.getresponse().read())["instances"])


def recount(source: str, output: str) -> int:
    """See that each row has its own answer."""
    import zlib

    import pyarrow.dataset as ds
    import pyarrow.parquet as pq

    images = pq.ParquetFile(source).iter_batches(50, columns=["image"])
    expected = [zlib.crc32(image.values.to_numpy()) for batch in images for image in batch.column("image")]
    if Path(output).is_dir():
        table = ds.dataset(output + "/results").to_table(columns=["source_row", "prediction"]).sort_by("source_row")
        found = [json.loads(text)["crc"] for text in table["prediction"].to_pylist()]
    else:
        found = list(map(int, Path(output).read_text().split()))
    if found != expected:
        print(f"{len(found)} answers to {len(expected)} rows; {sum(map(int.__ne__, found, expected))} are wrong")
    return found != expected


def job(folder: Path, url: str, source: Path, out: Path) -> Path:
    """Write the job."""
    service = {"url": url, "protocol": "mindspore", "options": {"types": {"image": "float32"}}}
    given = {"path": str(source), "send": ["image"]}
    values = {"version": 1, "name": "images", "input": given, "service": service, "output": {"path": str(out)}}
    path = folder / "job.yaml"
    path.write_text(json.dumps(values))
    return path


def cpu(who: str, folder: Path, url: str, source: Path) -> float:
    """Return the CPU seconds that somebody takes for a file; its answers are right."""
    out = folder / who
    shutil.rmtree(out, ignore_errors=True) if out.is_dir() else out.unlink(missing_ok=True)
    me = [sys.executable, str(HERE / "images.py")]
    ours = [BULKSCORE, "run", "-q", str(job(folder, url, source, out))]
    done = measure(who, ours if who == "bulkscore" else [*me, "--loop", str(source), url, str(out)], folder)
    measure(f"the recount of {who}", [*me, "--count", str(source), str(out)], folder)
    return done.cpu


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=7)
    for hidden, words in (("--write", 2), ("--loop", 3), ("--count", 2)):
        parser.add_argument(hidden, nargs=words, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.write:
        return write(given.write[0], int(given.write[1])) or 0
    if given.loop:
        return loop(*given.loop) or 0
    if given.count:
        return recount(*given.count)
    pairs = []
    with tempfile.TemporaryDirectory(prefix="bulkscore-images-") as name, server() as url:
        folder, address = Path(name), url.partition("/v1/")[0] + "/model/images:predict"
        few, many = folder / "few.parquet", folder / "many.parquet"
        for path, count in ((few, FEW), (many, given.rows)):
            measure("the writer", [sys.executable, str(HERE / "images.py"), "--write", str(path), str(count)], folder)
        for turn in range(given.rounds):
            ours, theirs = (
                (cpu(who, folder, address, many) - cpu(who, folder, address, few)) / (given.rows - FEW) * 1000
                for who in ("bulkscore", "loop")
            )
            print(f"round {turn + 1} of {given.rounds}: {ours:.2f} ms a row; the loop {theirs:.2f} ms", flush=True)
            pairs.append((ours, theirs, ours / theirs))
    ours, theirs, ratio = (median(one) for one in zip(*pairs, strict=True))
    print(f"images of {SHAPE}: {ours:.2f} CPU ms a row, the bare loop {theirs:.2f}: {ratio:.2f} times", flush=True)
    if ratio > GOAL:
        print(f"MISSED images: {ratio:.2f} times the CPU of a bare loop (goal: {GOAL})", file=sys.stderr)
    return ratio > GOAL


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ClientError as error:
        sys.exit(f"bench: {error}")

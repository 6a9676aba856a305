"""Makes the benchmark's rows, and recounts what a client made of them.

`rows.py write FILE N` writes N rows of `id` (int64, not the row's number) and four float64 measurements, the same for
everyone. `rows.py count IN OUT` reads every result below OUT and prints a JSON line: how many answers there are, and
how many rows of IN have none, have several, or have an answer that is not their own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.parquet as pq

FIRST_ID = 7_000_000_000
FEATURES = {"sepal_length": (4.3, 7.9, 2), "sepal_width": (2.0, 4.4, 1), "petal_length": (1, 6.9, 1)}
FEATURES["petal_width"] = (0.1, 2.5, 1)


def write(path: str, count: int) -> None:
    """Write `count` rows, each measurement uniform in its range and rounded as a ruler rounds."""
    random = np.random.default_rng(1936)
    columns = {"id": np.arange(FIRST_ID, FIRST_ID + count)}
    columns |= {name: random.uniform(low, high, count).round(digits) for name, (low, high, digits) in FEATURES.items()}
    pq.write_table(pa.table(columns), path)


def scores(table: pa.Table) -> pa.ChunkedArray:
    """Return the `score` of each answer, whether it is a column, a field of `prediction` or inside its JSON text."""
    if "score" in table.column_names:
        return table["score"]
    prediction = table["prediction"].combine_chunks()
    if pa.types.is_struct(prediction.type):
        return pc.struct_field(prediction, "score")
    lines = "\n".join(text or '{"score": null}' for text in prediction.to_pylist()).encode()
    return pa.json.read_json(pa.BufferReader(lines))["score"]


def read(path: Path) -> pa.Table:
    return pa.json.read_json(path) if path.suffix == ".jsonl" else pq.read_table(path, partitioning=None)


def count(source: str, output: str) -> dict[str, int]:
    """Compare each answer with the row that its `id` (and its `source_row`, where there is one) names."""
    expected = pq.read_table(source, columns=["sepal_length"])["sepal_length"].to_numpy()
    seen, found = np.zeros(len(expected), int), dict.fromkeys(("answers", "foreign", "not_its_own", "out_of_order"), 0)
    for path in sorted(path for path in Path(output).rglob("*") if path.suffix in {".jsonl", ".parquet"}):
        table = read(path)
        row = table["id"].to_numpy() - FIRST_ID
        known = (row >= 0) & (row < len(expected))
        own = expected[row[known]] == scores(table).to_numpy()[known]
        np.add.at(seen, row[known], 1)
        found["answers"] += len(row)
        found["foreign"] += int((~known).sum())
        found["not_its_own"] += int((~own).sum())
        if "source_row" in table.column_names:
            found["not_its_own"] += int((table["source_row"].to_numpy() != row).sum())
            found["out_of_order"] += int((np.diff(row) <= 0).sum())
    return found | {"missing": int((seen == 0).sum()), "doubled": int((seen > 1).sum())}


if __name__ == "__main__":
    command, first, second = sys.argv[1:]
    if command == "write":
        write(first, int(second))
    else:
        sys.stdout.write(json.dumps(count(first, second)) + "\n")

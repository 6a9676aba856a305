"""A protocol for servers that take rows as lines of CSV, and answer with a line for each."""

from __future__ import annotations

import csv
import io
import json
from typing import Annotated

import pyarrow as pa

from pipeline.adapter import Action, Adapter, Character, Fault, JobError, Options, Plugin, Texts, marked


class CsvOptions(Options):
    """Rows as lines of CSV, and answers too."""

    answer: Annotated[Texts, marked("answers", "The names of an answer's fields, in order.")]
    delimiter: Annotated[Character, marked("answers", "What stands between fields.")] = ","


class Csv(Adapter):
    """Rows are packed as JSON, as by default, and sent as CSV."""

    content_type = "text/csv"

    def __init__(self, options):
        self._names = options.answer
        self._delimiter = options.delimiter

    def encoder(self, given, schema, send):
        for name in send:
            if pa.types.is_nested(schema.field(name).type):
                raise JobError(f"input.send: column {name!r} is a list or a struct; allowed in CSV: plain values")
        return super().encoder(given, schema, send)

    def wire(self, body):
        lines = io.StringIO(newline="")
        rows = json.loads(body, parse_float=str, parse_int=str)  # numbers keep their digits
        csv.writer(lines, delimiter=self._delimiter).writerows(row.values() for row in rows)
        return lines.getvalue().encode()

    def answers(self, body):
        lines = io.StringIO(body.decode(), newline="")
        return [self._answer(fields) for fields in csv.reader(lines, delimiter=self._delimiter)]

    def _answer(self, fields):
        if fields[0] == "ERROR":  # this row has failed, and no other
            return Fault(Action.REJECT, 200, None, fields[1], by="model")
        return dict(zip(self._names, fields, strict=True))


EXAMPLE = """\
version: 1
name: csv
params: {service: "http://127.0.0.1:8080"}
input:
  path: data/iris.parquet
  send: [sepal_length, sepal_width, petal_length, petal_width]
  keep: [id]
service:
  url: ${service}/predict
  protocol: csv
  options: {answer: [label, sum]}
output:
  path: results/csv
"""

PROTOCOL = Plugin(CsvOptions, Csv, EXAMPLE)

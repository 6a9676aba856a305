"""Beam's own way: RunInference with a RemoteModelHandler over `requests`, batches of 1,000, Parquet out."""

from __future__ import annotations

import sys
import uuid

import apache_beam as beam
import pyarrow as pa
import requests
from apache_beam.ml.inference.base import PredictionResult, RemoteModelHandler, RunInference
from apache_beam.options.pipeline_options import PipelineOptions

BATCH = int(sys.argv[4]) if len(sys.argv) > 4 else 1000
FEATURES = ["sepal_length", "sepal_width", "petal_length", "petal_width"]
SCHEMA = pa.schema({"id": pa.int64(), "request_uuid": pa.string(), "predictresult": pa.string(), "score": pa.float64()})


class Iris(RemoteModelHandler):
    def __init__(self, url):
        super().__init__(namespace="iris", num_retries=2)
        self.url = url

    def create_client(self):
        return requests.Session()

    def request(self, batch, model, inference_args=None):  # noqa: ARG002 - the base class's signature
        asked = str(uuid.uuid4())
        rows = [{name: row[name] for name in FEATURES} for row in batch]
        reply = model.post(self.url, json={"meta": {"uuid": asked}, "data": {"req_data": rows}}, timeout=60)
        reply.raise_for_status()
        answers = reply.json()["data"]["resp_data"]
        return [
            PredictionResult(row, answer | {"request_uuid": asked}) for row, answer in zip(batch, answers, strict=True)
        ]

    def batch_elements_kwargs(self):
        return {"min_batch_size": BATCH, "max_batch_size": BATCH}


def result(prediction):
    return {"id": prediction.example["id"], **prediction.inference}


def main(source, url, target):
    with beam.Pipeline(runner="FnApiRunner", options=PipelineOptions(flags=[])) as pipeline:
        rows = pipeline | beam.io.ReadFromParquet(source)
        results = rows | RunInference(Iris(url)) | beam.Map(result)
        results | beam.io.WriteToParquet(target + "/answers", SCHEMA, file_name_suffix=".parquet")


if __name__ == "__main__":
    main(*sys.argv[1:4])

"""The script everybody writes first: asyncio, aiohttp and json, 32 requests in flight, JSON Lines out, no retries."""

from __future__ import annotations

import asyncio
import json
import sys
import uuid

import aiohttp
import pyarrow.parquet as pq

IN_FLIGHT = 32
BATCH = int(sys.argv[4]) if len(sys.argv) > 4 else 1000
FEATURES = ["sepal_length", "sepal_width", "petal_length", "petal_width"]


async def score(session, url, rows):
    asked = str(uuid.uuid4())
    body = {"meta": {"uuid": asked}, "data": {"req_data": [{name: row[name] for name in FEATURES} for row in rows]}}
    async with session.post(url, json=body) as reply:
        reply.raise_for_status()
        answers = (await reply.json())["data"]["resp_data"]
    return [{"id": row["id"], "request_uuid": asked, **answer} for row, answer in zip(rows, answers, strict=True)]


async def worker(session, url, batches, out):
    for batch in batches:  # shared by all workers: each takes the next batch when it is free
        for answer in await score(session, url, batch.to_pylist()):
            out.write(json.dumps(answer) + "\n")


async def main(source, url, target):
    batches = pq.ParquetFile(source).iter_batches(batch_size=BATCH)
    connector = aiohttp.TCPConnector(limit=IN_FLIGHT)
    with open(target + "/answers.jsonl", "w") as out:  # noqa: ASYNC230, PTH123 - as everybody writes it
        async with aiohttp.ClientSession(connector=connector) as session:
            await asyncio.gather(*(worker(session, url, batches, out) for _ in range(IN_FLIGHT)))


asyncio.run(main(*sys.argv[1:4]))

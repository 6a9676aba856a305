"""Answers as the common model servers do, by the path that is asked: small, and strict about what they are sent.

Each row is answered by its own values, so that a row with another's answer is seen: flowers by the sum of their
measures, texts by their length. A flower whose first measure is negative is a row that the model cannot take.
"""

from __future__ import annotations

import json
from base64 import b64encode

import numpy as np
import tfserving

PREDICTIONS = {
    "/v1/models/iris:predict": "instances",
    "/predictions/iris": "instances",
    "/invocations": "dataframe_records",
}
USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
CRASHES = {
    "/v1/models/iris:predict": (500, {"error": "ValueError : Input X is negative"}),
    "/v1/models/iris/versions/1:predict": (400, {"error": "indices[0] = -1 is not in [0, 3)"}),
    "/predictions/iris": (503, {"code": 503, "type": "InternalServerException", "message": "Prediction failed"}),
    "/invocations": (400, {"error_code": "BAD_REQUEST", "message": "Invalid input. X is negative"}),
}


def value(row):
    """Return the prediction for a flower."""
    measures = list(row.values()) if isinstance(row, dict) else row
    return round(sum(measures), 6)


def negative(row):
    """Whether the model cannot take a flower."""
    return next(iter(row.values() if isinstance(row, dict) else row)) < 0


def serve(call):
    """Answer one request."""
    body = json.loads(call.body)
    if "/versions/" in call.path:
        return tfserving.serve(call)
    if call.path in PREDICTIONS:
        status, said = predict(call.path, body)
    elif call.path == "/v1/embeddings":
        status, said = 200, embed(body)
    elif call.path == "/v1/chat/completions":
        return talk(body)
    else:
        status, said = 404, {"error": f"no route {call.path}"}
    return status, {"Content-Type": "application/json"}, json.dumps(said).encode()


def predict(path, body):
    rows = body.get(PREDICTIONS[path])
    if rows is None:
        return 400, {"error": "no rows"}
    return CRASHES[path] if any(map(negative, rows)) else (200, {"predictions": [value(row) for row in rows]})


def vector(text):
    return [len(text), 0.5, -0.25]


def embed(body):
    """Answer in reverse, for `index` alone says whose a vector is."""
    found = [(index, np.array(vector(text), "<f4").tobytes()) for index, text in enumerate(body["input"])]
    assert body["encoding_format"] == "base64"
    data = [{"object": "embedding", "index": index, "embedding": b64encode(one).decode()} for index, one in found]
    return {"object": "list", "model": body["model"], "data": data[::-1], "usage": USAGE}


def reply(text):
    return f"I have read {len(text)} characters"


def talk(body):
    text = reply(body["messages"][-1]["content"])
    if not body.get("stream"):
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        said = {"object": "chat.completion", "model": body["model"], "choices": [choice], "usage": USAGE}
        return 200, {"Content-Type": "application/json"}, json.dumps(said).encode()
    deltas = [*({"content": word + " "} for word in text.split()[:-1]), {"content": text.split()[-1]}]
    chunks = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}], "usage": None} for delta in deltas]
    chunks += [{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}, {"choices": [], "usage": USAGE}]
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    return 200, {"Content-Type": "text/event-stream"}, ("".join(lines) + "data: [DONE]\n\n").encode()

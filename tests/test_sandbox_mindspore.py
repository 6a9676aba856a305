"""The sandbox's MindSpore Serving against what a real one (2.0.2) was recorded to say."""

from __future__ import annotations

import json
from base64 import b64decode
from pathlib import Path

import pytest
from demo import DEMO

from pipeline.sandbox.mindspore import answer
from pipeline.sandbox.tensors import Hangs

CASES = json.loads(Path(__file__).with_name("mindspore_cases.json").read_text(encoding="utf-8"))
NO_JSON = '{"error_msg":"Illegal JSON format.'
OWN_WORDS = {"lone surrogate"}  # its JSON parser says what it read last


def body_of(case):
    body = b64decode(case["base64"]) if "base64" in case else case["body"].encode()
    return body.ljust(case.get("padded", 0))


def said(case):
    """Return what the sandbox says, as text."""
    status, body = answer({"demo": DEMO}, case["method"], case["path"], body_of(case), 1 << 20)
    return status, body.decode()


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_the_sandbox_says_what_the_real_server_said(case):
    """Status and body are those that were recorded; a request that it never answered is not answered here either."""
    if case["status"] is None:
        with pytest.raises(Hangs):
            said(case)
        return
    status, text = said(case)
    assert status == case["status"]
    if case["name"] in OWN_WORDS:
        assert text.startswith(NO_JSON)
        assert case["response"].startswith(NO_JSON)
    else:
        assert text == case["response"]


def test_all_recorded_requests_are_there():
    """None of the 236 is left out."""
    assert len(CASES) == 236

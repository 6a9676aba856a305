"""A servable for tests: methods of which it can be seen what a stage was given, and some that fail."""

from __future__ import annotations

import numpy as np

from pipeline.sandbox.mindspore import Method


def describe(x):
    """Return type, dtype, shape and values of what the stage was given."""
    return f"str:{x}" if isinstance(x, str) else f"ndarray|{x.dtype}|{x.shape}|{x.tolist()}"


def bits(x):
    """Return dtype, shape and bytes of what the stage was given."""
    if isinstance(x, str):
        return "str", "[]", x.encode()
    return str(x.dtype), str(list(x.shape)), x.tobytes()


def doubled(x):
    """Fail on what is negative."""
    if x < 0:
        raise ValueError("negative not allowed")
    return x * 2


def tripled(x):
    """Fail on what is negative, in other words."""
    if x < 0:
        raise ValueError("negative in batch")
    return x * 3


def float32_only(x):
    """Refuse what a compiled model would: another type than its own."""
    if isinstance(x, str) or x.dtype != np.float32:
        raise TypeError("Given model input 0 data type does not match required float32")
    return x


SPECIAL = {
    "nan": np.float32("nan"),
    "inf": np.array([np.inf, -np.inf, 1.5], np.float32),
    "f16": np.array([1.1, 2.2], np.float16),
    "f64": np.array([0.1, 1e300]),
    "f32": np.array([0.1, 1e30, 16777217], np.float32),
    "u64": np.array([2**64 - 1], np.uint64),
    "i64": np.array([-(2**63)]),
    "i8": np.array([-1, 127], np.int8),
    "u8": np.array([0, 255], np.uint8),
    "empty": np.zeros((0,), np.float32),
    "empty2": np.zeros((2, 0), np.float32),
    "empty3": np.zeros((0, 2), np.float32),
    "scalar0d": np.array(5),
    "shape1": np.array([5]),
    "uni": '你好 😀 \x01 " \\ \n',
    "str": "hello",
    "bytes": bytes(range(256)),
    "b0": b"",
    "pyint": 7,
    "pyfloat": 7.5,
    "pybool": True,
    "bool2d": np.array([[True, False], [False, True]]),
}


def _bytes(x):
    return x.tobytes()


DEMO = {
    "echo": Method(("x",), ("out",), lambda x: x, "Function 'demo.f_echo'"),
    "describe": Method(("x",), ("desc",), describe, "Function 'demo.f_describe'"),
    "bits": Method(("x",), ("dtype", "shape", "bits"), bits, "Function 'demo.f_bits'"),
    "strict": Method(("x",), ("out",), float32_only, "Function 'demo.f_strict'"),
    "special": Method(("x",), ("out",), SPECIAL.__getitem__, "Function 'demo.f_special'"),
    "add": Method(("x1", "x2"), ("y",), lambda x1, x2: x1 + x2, "Function 'demo.f_add'"),
    "fail_neg": Method(("x",), ("out",), doubled, "Preprocess"),
    "batch_neg": Method(("x",), ("out",), tripled, "Postprocess"),
    "int_plus_1": Method(("int_val",), ("value",), lambda x: x + 1, "Function 'demo.f_int'"),
    "two": Method(("x",), ("zeta", "alpha"), lambda x: (x + 1, f"s{x}"), "Function 'demo.f_two'"),
    "order": Method(("x",), ("out",), lambda x: x, "Function 'demo.f_order'"),
    "str_concat": Method(("text1", "text2"), ("text",), lambda a, b: a + b, "Function 'demo.f_str'"),
    "bytes_concat": Method(("text1", "text2"), ("text",), lambda a, b: _bytes(a) + _bytes(b), "Function 'demo.f_b'"),
}

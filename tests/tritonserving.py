"""NVIDIA Triton, whose protocol's binary extension it is: installed once for all runs, on loopback, without a GPU.

Its server and its Python backend come with a package. One model gives back what it gets, another one refuses some.
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
from contextlib import contextmanager

import keystone
import pytest
from kserving import NEGATIVE, POISON, started
from realserving import free_port

PACKAGES = ["nvidia-pytriton==0.7.0"]
KINDS = {
    "BOOL": "BOOL",
    **{f"{sign}INT{bits}": f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": f"FP{bits}" for bits in (16, 32, 64)},
    "BYTES": "STRING",
}
"""By datatype, what a model's configuration calls it."""
MODEL = """
import sys
sys.path.insert(0, {site!r})  # the backend does not heed PYTHONPATH
import numpy as np
import triton_python_backend_utils as triton


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        tensors = [(one.name(), one.as_numpy()) for one in request.inputs()]
        if any(array.dtype == np.float16 and (array[:, 0] == {poison}).any() for _, array in tensors):
            return triton.InferenceResponse([], triton.TritonError({said!r}, triton.TritonError.INVALID_ARG))
        return triton.InferenceResponse([triton.Tensor(name, array) for name, array in tensors])
"""
MOST = 64  # rows that the model takes


@contextmanager
def running(folder):
    """Start the server; skips where it cannot be had."""
    venv, port = keystone.installed(PACKAGES), free_port()
    site = venv / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    triton = site / "pytriton" / "tritonserver"
    stub = triton / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
    if not stub.exists() or not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        pytest.skip("Triton's Python backend needs a Python of its own list, with a shared library")
    prepare(folder, site, triton, stub)
    libraries = f"{site / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}"
    where = [f"--model-repository={folder / 'models'}", f"--backend-directory={folder / 'backends'}"]
    alone = ["--allow-grpc=false", "--allow-metrics=false", "--http-address=127.0.0.1", f"--http-port={port}"]
    line = [triton / "bin" / "tritonserver", *where, *alone]
    with started(line, folder, port, "/v2/models/echo/ready", LD_LIBRARY_PATH=libraries) as server:
        yield server


def prepare(folder, site, triton, stub):
    """Write the model, and put the backend together for this Python."""
    shutil.copytree(triton / "backends", folder / "backends", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(stub / "triton_python_backend_stub", folder / "backends" / "python")
    model = folder / "models" / "echo"
    (model / "1").mkdir(parents=True)
    (model / "1" / "model.py").write_text(MODEL.format(site=str(site), poison=POISON, said=NEGATIVE))
    tensor = 'name: "{0}" data_type: TYPE_{1} dims: [-1]'
    inputs = ", ".join(f"{{{tensor.format(*one)} optional: true}}" for one in KINDS.items())
    outputs = ", ".join(f"{{{tensor.format(*one)}}}" for one in KINDS.items())
    head = f'backend: "python"\nmax_batch_size: {MOST}\n'
    (model / "config.pbtxt").write_text(f"{head}input [{inputs}]\noutput [{outputs}]\n")

"""No call needs more than 1 MB for each of its threads beyond its input and its output."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import DTypeLike
from oracle import OPS
from support import as_dtype, generator

import fastsoftmax
from fastsoftmax import _threads

MEGABYTE = 1 << 20


def allowed(backend: str, cols: int) -> int:
    """The reference works on a row at a time in a wider type; the others on blocks of one."""
    return MEGABYTE + (6 * 16 * cols if backend == "numpy" else 0)


pytestmark = pytest.mark.usefixtures("one_thread")

# float32 logits of 2 MB, so that no copy of them goes unseen.
ROWS, LENGTH = 16, 32000

EACH_OP = pytest.mark.parametrize("op", OPS)


@lru_cache
def normal() -> np.ndarray:
    return generator("memory").normal(size=ROWS * LENGTH).astype("f4")


def logits(rows: int = ROWS, length: int = LENGTH, dtype: DTypeLike = "f4") -> np.ndarray:
    return np.resize(normal(), (rows, length)).astype(dtype)


def peak(call: Callable[[], object]) -> int:
    """Bytes allocated at the worst moment of a call, its result included."""
    tracemalloc.start()
    try:
        tracemalloc.clear_traces()
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        result = call()
        _, most = tracemalloc.get_traced_memory()
        del result
    finally:
        tracemalloc.stop()
    return most - before


def swapped(x: np.ndarray) -> np.ndarray:
    return x.astype(x.dtype.newbyteorder("S"))


def unaligned(x: np.ndarray) -> np.ndarray:
    view = np.empty(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    view[...] = x
    return view


LAYOUTS: dict[str, Callable[[], tuple[np.ndarray, dict[str, object]]]] = {
    "contiguous": lambda: (logits(64), {}),
    "Fortran order": lambda: (np.asfortranarray(logits()), {}),
    "axis 0": lambda: (logits(LENGTH, ROWS), {"axis": 0}),
    "float16": lambda: (logits(dtype="f2"), {}),
    "bfloat16": lambda: (logits(dtype=as_dtype("bfloat16")), {}),
    "float16, columns": lambda: (logits(LENGTH, ROWS, "f2"), {"axis": 0}),
    "integers": lambda: (logits(dtype="i2"), {"dtype": "f4"}),
    "byte-swapped": lambda: (swapped(logits()), {}),
    "unaligned": lambda: (unaligned(logits()), {}),
    "every second": lambda: (logits(length=2 * LENGTH)[:, ::2], {}),
    "masked": lambda: (logits(), {"where": np.arange(LENGTH) % 3 > 0}),
    "masked throughout": lambda: (logits(), {"where": logits() > 0}),
    "a temperature each": lambda: (logits(), {"temperature": np.linspace(0.5, 2, ROWS)}),
    "small rows": lambda: (logits(30_000, 20), {}),
    "broadcast": lambda: (np.broadcast_to(logits(1), (ROWS, LENGTH)), {}),
    "float64 result": lambda: (logits(), {"dtype": "f8"}),
    "float16 result": lambda: (logits(), {"dtype": "f2"}),
}


@pytest.mark.parametrize("op", ["softmax", "logsumexp"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_peak(backend: str, op: str, layout: str) -> None:
    x, kwargs = LAYOUTS[layout]()
    kwargs = {"temperature": 0.7, **kwargs}
    function = getattr(fastsoftmax, op)
    function(x[:2], **{k: v for k, v in kwargs.items() if np.ndim(v) == 0})  # load what there is
    axis, dtype = kwargs.get("axis", -1), kwargs.pop("dtype", x.dtype.newbyteorder("="))
    out = np.empty(x.shape if op != "logsumexp" else np.delete(x.shape, axis), dtype)
    assert peak(lambda: function(x, out=out, **kwargs)) < allowed(backend, x.shape[axis])
    if layout in ("contiguous", "Fortran order", "float16"):
        assert (
            peak(lambda: function(x, dtype=dtype, **kwargs))
            < allowed(backend, x.shape[axis]) + out.nbytes
        )


@pytest.mark.parametrize(
    ("shape", "dtype"), [((64, LENGTH), "f4"), ((1, 2_000_000), "f4"), ((64, LENGTH), "i2")]
)
def test_peak_of_two_threads(
    backend: str, shape: tuple[int, int], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A pool that has had more to do would have more threads, each of which keeps memory of its own.
    monkeypatch.setattr(_threads, "_pool", _threads._Pool())
    fastsoftmax.set_num_threads(2)
    x = logits(*shape, dtype)
    out = np.empty(shape, "f4")
    call = lambda: fastsoftmax.softmax(x, temperature=0.7, out=out)  # noqa: E731
    call()  # load what there is
    assert peak(call) < 2 * allowed(backend, shape[1])


@EACH_OP
def test_peak_in_place_and_on_one_long_row(backend: str, op: str) -> None:
    function = getattr(fastsoftmax, op)
    long = logits(1, 2_000_000)
    function(long[:, :9])
    out = np.empty_like(long) if op != "logsumexp" else np.empty(1, "f4")
    assert peak(lambda: function(long, temperature=0.7, out=out)) < allowed(backend, long.size)
    if op != "logsumexp":
        assert peak(lambda: function(long, temperature=0.7, out=long)) < allowed(backend, long.size)


def test_peak_of_the_process() -> None:
    """What the kernels allocate themselves is seen by the operating system alone."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("needs /proc/self/clear_refs")
    script = """
import sys
import numpy as np
import fastsoftmax
from support import available, using
fastsoftmax.set_num_threads(1)

def kilobytes(field):
    for line in open("/proc/self/status"):
        if line.startswith(field):
            return int(line.split()[1])

x = np.ones((64, 32000), "f4")
out = np.ones_like(x)
for implementation in available():
    with using(implementation):
        for op in ("softmax", "log_softmax", "logsumexp"):
            place = out if op != "logsumexp" else out[:, 0]
            call = getattr(fastsoftmax, op)
            call(x, temperature=0.7, out=place)
            with open("/proc/self/clear_refs", "w") as f:
                f.write("5")
            before = kilobytes("VmRSS")
            call(x, temperature=0.7, out=place)
            print(implementation, op, kilobytes("VmHWM") - before)
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines
    # The kernel counts pages in batches; a copy of the logits would be 8000 kB.
    assert all(int(line[2]) < 2048 for line in lines), done.stdout

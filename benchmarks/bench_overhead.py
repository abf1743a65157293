"""What a call costs beside its work: eight numbers, and a second thread."""

import threading
from typing import Any

import numpy as np
import pytest

import fastsoftmax
from benchmarks.contenders import BACKENDS
from benchmarks.shapes import TEMPERATURE
from fastsoftmax import _threads
from fastsoftmax._ops import OPS


@pytest.mark.parametrize("with_out", [True, False], ids=["out", "no out"])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", BACKENDS)
def test_small_call(name: str, op: str, with_out: bool, benchmark: Any) -> None:
    reason = fastsoftmax.available_backends()[name]
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    function = getattr(fastsoftmax, op)
    x = np.arange(8, dtype=np.float32)
    given = {"out": np.empty((() if OPS[op].reduces else 8), np.float32)} if with_out else {}
    benchmark.group = f"{op} of 8 numbers"
    with fastsoftmax.use_backend(name):
        benchmark(lambda: function(x, temperature=TEMPERATURE, **given))


@pytest.mark.parametrize("both", [False, True], ids=["nothing to do", "both at once"])
def test_hand_off(both: bool, benchmark: Any) -> None:
    """To the pool and back: what the caller spends, and how long until both have worked."""
    wait = threading.Barrier(2).wait if both else int
    benchmark.group = "hand-off to two threads"
    benchmark(lambda: _threads._pool.run(lambda piece: wait(), 2, 2))

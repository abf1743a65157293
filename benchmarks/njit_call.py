"""``python -m benchmarks.njit_call [COLUMNS [ROUNDS]]``: what a call from jitted code costs.

A softmax of one row of float32 by `fastsoftmax.njit` and `fastsoftmax.njit_c`, and by their kernels
alone, called from jitted code too, with all that they take made before. All take turns. Prints the
time of the fastest tenth of the rounds, and its ratio to that of the kernel.
"""

import sys
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from fastsoftmax._c import ffi, lib

from benchmarks.timing import Task, interleaved, undisturbed
from fastsoftmax import _backends, njit, njit_c
from fastsoftmax._backends._c import _allocate
from fastsoftmax._backends._numba_call import SmallCall, contiguous_address
from fastsoftmax._backends._protocol import Batch
from fastsoftmax._numba import kernels

CALLS = 16  # of compiled code, for each from Python
T = 0.7


@numba.njit(nogil=True)
def by_njit(x, out):
    for _ in range(CALLS):
        njit.softmax(x, T, out)


@numba.njit(nogil=True)
def by_numba_kernel(workspace, row_state, table):
    for _ in range(CALLS):
        kernels.softmax(workspace, row_state, table, np.int64(0), np.int64(1))


@numba.njit(nogil=True)
def by_njit_c(x, out):
    for _ in range(CALLS):
        njit_c.softmax(x, T, out)


@numba.njit(nogil=True)
def by_c_function(batch, scratch):
    for _ in range(CALLS):
        njit_c._softmax(batch, 0, 1, scratch)


def tasks(cols: int) -> dict[str, Callable[[], Any]]:
    """Work by name; each kernel stands before what is compared with it."""
    x = np.random.default_rng(0).normal(size=(1, cols)).astype(np.float32) * 3
    out = np.empty_like(x)
    call = SmallCall("softmax", "f", x.shape)
    call.set(contiguous_address(x), contiguous_address(out), T)
    struct = _backends._load("c")._struct("softmax", Batch(x, 1, np.full(1, T)), out)
    scratch = _allocate(lib.fastsoftmax_scratch_size(struct.batch))
    batch, memory = (int(ffi.cast("intptr_t", p)) for p in (struct.batch, scratch))
    kept = struct, scratch  # of which the compiled code has the addresses alone
    return {
        "the Numba kernel": lambda: by_numba_kernel(call.workspace, call.row_state, call.table),
        "njit.softmax": lambda: by_njit(x[0], out[0]),
        "the C function": lambda: (by_c_function(batch, memory), kept),
        "njit_c.softmax": lambda: by_njit_c(x[0], out[0]),
    }


def main(cols: int = 32000, rounds: int = 501) -> None:
    work = tasks(cols)
    times = interleaved({name: Task(call) for name, call in work.items()}, rounds, 1e6)
    fast = {name: undisturbed(times[name]) / CALLS for name in work}
    names = list(work)
    for i, name in enumerate(names):
        kernel = fast[names[i - i % 2]]
        print(f"{name:<20}{fast[name]:>10.0f} ns{fast[name] / kernel:>9.4f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

"""The jitted kernels of `fastsoftmax._numba`."""

import ctypes
from typing import Any

import numpy as np

try:
    import llvmlite.binding
    import numba
except ModuleNotFoundError as cause:
    raise ImportError(
        'the numba backend needs numba: pip install "fastsoftmax[numba]"', name=cause.name
    ) from cause

from fastsoftmax._backends._numba_call import Call, SmallCall, contiguous_address, scratch
from fastsoftmax._backends._numba_scoring import NumbaScoring
from fastsoftmax._backends._protocol import Array, Batch
from fastsoftmax._numba import kernels
from fastsoftmax._ops import OPS

_SMALL_CALLS = 64  # that each thread keeps


def _interpreter() -> int:
    """The number of this interpreter in its process; the first one's is 0."""
    api = ctypes.pythonapi
    this = ctypes.PYFUNCTYPE(ctypes.c_void_p)(("PyInterpreterState_Get", api))
    number = ctypes.PYFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)
    return int(number(("PyInterpreterState_GetID", api))(this()))


if _interpreter() != 0:
    # To release an array they take the lock by PyGILState_Ensure, which knows the first one only.
    raise ImportError("functions of Numba never return in an interpreter beside the first")


class _SplitRow:
    """One row for several threads."""

    def __init__(self, op: str, batch: Batch, out: Array, row: int) -> None:
        self._operation: int = getattr(kernels, op.upper())
        self._reduces = OPS[op].reduces
        self._call, self._row = Call(batch, out), row
        self._state = self._call.shared_row_state()
        self.blocks: int = -(-self._call.cols // kernels.BLOCK)

    def reduce(self, begin: int, end: int) -> None:
        call = self._call
        kernels.reduce_row(call.workspace(), self._state, call.table, self._row, begin, end)

    def merge(self) -> None:
        call = self._call
        work = call.workspace()
        kernels.plan_row(self._operation, work, self._state, call.table, self._row)

    def write(self, begin: int, end: int) -> None:
        if self._reduces:
            return  # `merge` wrote the number
        call = self._call
        work = call.workspace()
        kernels.write_row(self._operation, work, self._state, call.table, self._row, begin, end)


class NumbaBackend(NumbaScoring):
    """Kernels compiled at the first call, or loaded from the cache: for float32, for float64."""

    name = "numba"
    new_team = None
    compiles = True

    def __init__(self) -> None:
        self._kernels: dict[str, Any] = {name: getattr(kernels, name) for name in OPS}

    def run(self, op: str, batch: Batch, out: Array, begin: int, end: int) -> None:
        if not batch.rows:
            return
        call = Call(batch, out)
        work, state = call.workspace(call.by_columns), call.row_state(op == "softmax")
        self._kernels[op](work, state, call.table, begin, end)

    def run_small(self, op: str, x: Array, temperature: float, out: Array | None) -> Array | None:
        dtype, shape, flags, reduces = x.dtype, x.shape, x.flags, OPS[op].reduces
        if (
            dtype.char not in "efd"
            or not dtype.isnative
            or not (flags.c_contiguous and flags.aligned)
            or not x.size
            or not shape
        ):
            return None
        result_shape = shape[:-1] if reduces else shape
        if out is None:
            out = np.empty(result_shape, dtype)
        elif (
            type(out) is not np.ndarray
            or out.dtype != dtype
            or out.shape != result_shape
            or not (out.flags.c_contiguous and out.flags.aligned and out.flags.writeable)
        ):
            return None
        source, target = contiguous_address(x), contiguous_address(out)
        apart = source >= target + out.nbytes or target >= source + x.nbytes
        # The output may be the input, and overlap it in no other way.
        if not apart and (source != target or reduces):
            return None
        # Taken out meanwhile: a signal handler may call for the same shape.
        calls, key = scratch.small, (op, dtype.char, shape)
        call = calls.pop(key, None) or SmallCall(*key)
        call.set(source, target, temperature)
        self._kernels[op](call.workspace, call.row_state, call.table, 0, call.rows)
        if len(calls) >= _SMALL_CALLS:
            calls.clear()
        calls[key] = call
        return out

    def split(self, op: str, batch: Batch, out: Array, row: int) -> _SplitRow:
        return _SplitRow(op, batch, out, row)

    def warmup(self) -> None:
        """Compile every kernel for every type, or load it."""
        for dtype in (np.float32, np.float64):
            self.warmup_normalizers(dtype)
            self.warmup_scoring(dtype)

    def warmup_normalizers(self, dtype: type) -> None:
        """The same for the operations of `OPS` and one type."""
        batch = Batch(np.zeros((1, 1), dtype), 1, np.ones(1))
        for name, op in OPS.items():
            out: Array = np.empty(1 if op.reduces else (1, 1), dtype)
            self.run(name, batch, out, 0, 1)
            row = self.split(name, batch, out, 0)
            row.reduce(0, 1)
            row.merge()
            row.write(0, 1)

    def describe(self) -> dict[str, str]:
        return {
            "numba": numba.__version__,
            "llvmlite": llvmlite.__version__,
            "CPU for LLVM": llvmlite.binding.get_host_cpu_name(),
            "numba cache": kernels.softmax.stats.cache_path or "none",
        }

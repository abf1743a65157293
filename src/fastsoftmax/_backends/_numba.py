"""The jitted kernels of `fastsoftmax._numba`."""

import math
from typing import Any

import numpy as np

try:
    import llvmlite.binding
    import numba
except ModuleNotFoundError as cause:
    raise ImportError(
        'the numba backend needs numba: pip install "fastsoftmax[numba]"', name=cause.name
    ) from cause

from fastsoftmax._backends._numpy_scoring import ReferenceScoring
from fastsoftmax._backends._protocol import Array, Batch
from fastsoftmax._numba import kernels, vectors
from fastsoftmax._ops import OPS

# By the character of a dtype, which is quicker to have than its name. "E" is ml_dtypes.bfloat16.
_TYPES = {"e": vectors.F16, "E": vectors.BF16, "f": vectors.F32, "d": vectors.F64}
# An output of this many bytes goes past the caches: it would push out all that is in them.
_STREAMED = 1 << 22


class _Call:
    """What the kernels take for a batch: a table, and memory to work in."""

    def __init__(self, batch: Batch, out: Array) -> None:
        x, where, temperature, first = batch.x, batch.where, batch.temperature, batch.row_axes
        shape, x_steps, out_steps, t_steps = x.shape, x.strides, out.strides, temperature.strides
        where_steps = x_steps if where is None else where.strides
        if first == 0:
            first, shape, t_steps = 1, (1, *shape), (0,)
            x_steps, out_steps, where_steps = (0, *x_steps), (0, *out_steps), (0, *where_steps)
        last, cols = len(shape) - 1, math.prod(shape[first:])
        itemsize = 8 if 8 in (x.itemsize, out.itemsize) else 4
        dense = first == last and x_steps[last] == x.itemsize
        native = dense and x.itemsize == itemsize and where is None
        direct = first == last == len(out_steps) - 1 and out_steps[last] == out.itemsize == itemsize
        # Rows that are short or lie side by side.
        by_columns = 0 < cols <= kernels.SHORT or (x_steps[first - 1] == x.itemsize and not dense)
        table = [
            first,
            last,
            cols,
            x.ctypes.data,
            out.ctypes.data,
            0 if where is None else where.ctypes.data,
            temperature.ctypes.data,
            _TYPES[x.dtype.char],
            _TYPES[out.dtype.char],
            where is not None,
            native,
            direct,
            out.nbytes >= _STREAMED,
            by_columns,
        ]
        # Where the operation reduces the output has no column axes, and a temperature never has.
        out_steps += (0,) * (last + 1 - len(out_steps))
        t_steps += (0,) * (last + 1 - first)
        for axis in zip(shape, x_steps, out_steps, where_steps, t_steps, strict=True):
            table += axis
        self.table = np.array(table, dtype=np.int64)
        self.dtype = np.dtype(np.float64 if itemsize == 8 else np.float32)
        self.cols, self.by_columns = cols, by_columns

    def workspace(self, by_columns: bool) -> Array:
        """Memory for one thread, with room for columns or not."""
        size = kernels.workspace_size(self.cols, self.dtype.itemsize, by_columns)
        return np.empty(-(-size // self.dtype.itemsize), self.dtype)

    def row_state(self) -> Array:
        """Memory for a row."""
        return np.empty(kernels.row_state_size(self.cols, self.dtype.itemsize), np.uint8)


class _SplitRow:
    """One row for several threads."""

    def __init__(self, op: str, batch: Batch, out: Array, row: int) -> None:
        self._operation: int = getattr(kernels, op.upper())
        self._reduces = OPS[op].reduces
        self._call, self._row = _Call(batch, out), row
        self._state = self._call.row_state()
        self._arrays = batch, out  # the table has nothing but their addresses
        self.blocks: int = -(-self._call.cols // kernels.BLOCK)

    def reduce(self, begin: int, end: int) -> None:
        call = self._call
        kernels.reduce_row(
            call.workspace(by_columns=False), self._state, call.table, self._row, begin, end
        )

    def merge(self) -> None:
        call = self._call
        work = call.workspace(by_columns=False)
        kernels.plan_row(self._operation, work, self._state, call.table, self._row)

    def write(self, begin: int, end: int) -> None:
        if self._reduces:
            return  # `merge` wrote the number
        call = self._call
        work = call.workspace(by_columns=False)
        kernels.write_row(self._operation, work, self._state, call.table, self._row, begin, end)


class NumbaBackend(ReferenceScoring):
    """Kernels compiled at the first call, or loaded from the cache: for float32, for float64."""

    name = "numba"

    def __init__(self) -> None:
        self._kernels: dict[str, Any] = {name: getattr(kernels, name) for name in OPS}

    def run(self, op: str, batch: Batch, out: Array, begin: int, end: int) -> None:
        if begin == end:
            return
        call = _Call(batch, out)
        work = call.workspace(call.by_columns)
        self._kernels[op](work, call.row_state(), call.table, begin, end)

    def run_small(self, *_: Any) -> None:
        """Nothing is quicker than `run`."""

    def split(self, op: str, batch: Batch, out: Array, row: int) -> _SplitRow:
        return _SplitRow(op, batch, out, row)

    def warmup(self) -> None:
        """Compile every kernel for every type, or load it."""
        for name, op in OPS.items():
            for dtype in (np.float32, np.float64):
                batch = Batch(np.zeros((1, 1), dtype), 1, np.ones(1))
                out = np.empty(1 if op.reduces else (1, 1), dtype)
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

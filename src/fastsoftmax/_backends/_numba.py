"""The jitted kernels of `fastsoftmax._numba`."""

import math
from functools import lru_cache
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


def _address(a: Array) -> int:
    address: int = a.__array_interface__["data"][0]
    return address


@lru_cache(maxsize=64)
def _sizes(cols: int, itemsize: int, by_columns: bool) -> tuple[int, int]:
    """Entries of a workspace, and bytes of the state of a row."""
    size = kernels.workspace_size(cols, itemsize, by_columns)
    return -(-size // itemsize), kernels.row_state_size(cols, itemsize)


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
            _address(x),
            _address(out),
            0 if where is None else _address(where),
            _address(temperature),
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
        return np.empty(_sizes(self.cols, self.dtype.itemsize, by_columns)[0], self.dtype)

    def row_state(self) -> Array:
        """Memory for a row."""
        return np.empty(_sizes(self.cols, self.dtype.itemsize, False)[1], np.uint8)


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

    def run_small(self, op: str, x: Array, temperature: float, out: Array | None) -> Array | None:
        dtype, shape, itemsize = x.dtype, x.shape, x.itemsize
        flags, reduces = x.flags, OPS[op].reduces
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
        source, target = _address(x), _address(out)
        apart = source >= target + out.nbytes or target >= source + x.nbytes
        # The output may be the input, and overlap it in no other way.
        if not apart and (source != target or reduces):
            return None
        cols = shape[-1]
        rows, code, arithmetic = x.size // cols, _TYPES[dtype.char], max(itemsize, 4)
        step = cols * itemsize
        along, across = (0, itemsize) if reduces else (itemsize, step)
        by_columns = cols <= kernels.SHORT
        native = itemsize == arithmetic
        # As the table of a batch; the temperature is its last entry.
        header = (1, 1, cols, source, target, 0, 0, code, code, False)
        axes = (rows, step, across, step, 0, cols, itemsize, along, itemsize, 0)
        table = np.array(
            (*header, native, native and not reduces, False, by_columns, *axes, 0), dtype=np.int64
        )
        table[6] = _address(table) + table.nbytes - 8
        table.view(np.float64)[-1] = temperature
        work, state = _sizes(cols, arithmetic, by_columns)
        self._kernels[op](
            np.empty(work, np.float64 if arithmetic == 8 else np.float32),
            np.empty(state, np.uint8),
            table,
            0,
            rows,
        )
        return out

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

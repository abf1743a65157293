"""A batch as the kernels of `fastsoftmax._numba` take it."""

import math
import threading
from ctypes import addressof, c_char
from functools import lru_cache
from typing import Any

import numpy as np

from fastsoftmax._backends._protocol import Array, Batch
from fastsoftmax._numba import kernels, vectors
from fastsoftmax._ops import OPS

# By the character of a dtype, which is quicker to have than its name. "E" is ml_dtypes.bfloat16.
TYPES = {"e": vectors.F16, "E": vectors.BF16, "f": vectors.F32, "d": vectors.F64}
# An output of this many bytes goes past the caches: it would push out all that is in them.
_STREAMED = 1 << 22


def address(a: Array | None) -> int:
    """The address of an array of any layout; 0 for None."""
    if a is None:
        return 0
    place: int = a.__array_interface__["data"][0]
    return place


def contiguous_address(a: Any) -> int:
    """The address of a contiguous array of a type that NumPy has, in fewer steps."""
    try:
        return addressof(c_char.from_buffer(a))
    except TypeError:  # it is read-only
        return address(a)


class _Scratch(threading.local):
    """Memory of each thread, kept between calls."""

    def __init__(self) -> None:
        self._arrays: dict[tuple[str, Any], Array] = {}
        self.small: dict[tuple[str, str, tuple[int, ...]], SmallCall] = {}

    def array(self, use: str, size: int, dtype: Any) -> Array:
        """Memory for a use, of at least so many bytes."""
        key = use, dtype
        a = self._arrays.get(key)
        if a is None or a.nbytes < size:
            self._arrays.pop(key, None)  # given back before more is taken
            a = self._arrays[key] = np.empty(-(-size // np.dtype(dtype).itemsize), dtype)
        return a

    def room(self, size: int) -> Array:
        """Memory for what an operation has beside; it lives no longer than the array is kept."""
        return self.array("room", size, np.float64)


scratch = _Scratch()


@lru_cache(maxsize=64)
def sizes(cols: int, itemsize: int, by_columns: bool, keeps: bool) -> tuple[int, int]:
    """Bytes of a workspace, and of the state of a row."""
    size = kernels.workspace_size(cols, itemsize, by_columns)
    return size, kernels.row_state_size(cols, itemsize, keeps)


def _extras(batch: Batch) -> Array | None:
    """What a batch has that softmax does not take, as kernels take it."""
    bitmask, edits = batch.bitmask, batch.edits
    if bitmask is None and edits is None:
        return None
    table = [address(bitmask), 0 if bitmask is None else bitmask.strides[0]]
    if edits is None:
        table += [0] * 5
    else:
        lists = edits.offsets, edits.ids, edits.bias, edits.penalty, edits.reduction
        table += map(address, lists)
    return np.array(table, dtype=np.int64)


class Call:
    """What the kernels take for a batch: a table, and memory to work in.

    Parameters
    ----------
    batch : Batch
    out : ndarray, optional
        Where rows, or a number for each, are written.
    wide : bool
        Whether the arithmetic is float64 whatever the logits are.
    """

    def __init__(self, batch: Batch, out: Array | None = None, wide: bool = False) -> None:
        x, where, temperature, first = batch.x, batch.where, batch.temperature, batch.row_axes
        shape, x_steps, t_steps = x.shape, x.strides, temperature.strides
        out_steps = () if out is None else out.strides
        where_steps = x_steps if where is None else where.strides
        if first == 0:
            first, shape, t_steps = 1, (1, *shape), (0,)
            x_steps, out_steps, where_steps = (0, *x_steps), (0, *out_steps), (0, *where_steps)
        last, cols = len(shape) - 1, math.prod(shape[first:])
        out_itemsize = 0 if out is None else out.itemsize
        itemsize = 8 if wide or 8 in (x.itemsize, out_itemsize) else 4
        dense = first == last and x_steps[last] == x.itemsize
        native = dense and x.itemsize == itemsize and where is None and batch.bitmask is None
        direct = first == last == len(out_steps) - 1 and out_steps[last] == out_itemsize == itemsize
        # Rows that are short or lie side by side.
        by_columns = 0 < cols <= kernels.SHORT or (x_steps[first - 1] == x.itemsize and not dense)
        extras = _extras(batch)
        table = [
            first,
            last,
            cols,
            address(x),
            address(out),
            address(where),
            address(temperature),
            TYPES[x.dtype.char],
            0 if out is None else TYPES[out.dtype.char],
            where is not None,
            native,
            direct,
            out is not None and out.nbytes >= _STREAMED,
            by_columns,
            address(extras),
        ]
        # Where the operation reduces the output has no column axes, and a temperature never has.
        out_steps += (0,) * (last + 1 - len(out_steps))
        t_steps += (0,) * (last + 1 - first)
        for axis in zip(shape, x_steps, out_steps, where_steps, t_steps, strict=True):
            table += axis
        self.table = np.array(table, dtype=np.int64)
        self.dtype = np.float64 if itemsize == 8 else np.float32
        self.cols, self.by_columns = cols, by_columns
        self._kept = batch, out, extras  # the table has nothing but their addresses

    def workspace(self, by_columns: bool = False) -> Array:
        """Memory for this thread, with room for columns or not."""
        size, _ = self._sizes(by_columns)
        return scratch.array("workspace", size, self.dtype)

    def row_state(self, keeps: bool = False) -> Array:
        """Memory for a row, with room for its terms or not."""
        _, size = self._sizes(False, keeps)
        return scratch.array("row", size, np.uint8)

    def shared_row_state(self) -> Array:
        """The same for several threads."""
        _, size = self._sizes(False, True)
        return np.empty(size, np.uint8)

    def _sizes(self, by_columns: bool, keeps: bool = False) -> tuple[int, int]:
        return sizes(self.cols, np.dtype(self.dtype).itemsize, by_columns, keeps)


class SmallCall:
    """The same for contiguous arrays of one shape and dtype, whose calls differ by little.

    Parameters
    ----------
    op : str
    char : str
        The character of the dtype.
    shape : tuple of int
    """

    def __init__(self, op: str, char: str, shape: tuple[int, ...]) -> None:
        reduces, cols = OPS[op].reduces, shape[-1]
        self.rows, itemsize = math.prod(shape) // cols, np.dtype(char).itemsize
        arithmetic = max(itemsize, 4)
        native, by_columns, step = itemsize == arithmetic, cols <= kernels.SHORT, cols * itemsize
        along, across = (0, itemsize) if reduces else (itemsize, step)
        code = TYPES[char]
        # The addresses come with a call; the temperature is the last entry.
        header = (1, 1, cols, 0, 0, 0, 0, code, code, False)
        flags = (native, native and not reduces, False, by_columns, 0)
        axes = (self.rows, step, across, step, 0, cols, itemsize, along, itemsize, 0)
        self.table = np.array((*header, *flags, *axes, 0), dtype=np.int64)
        self.table[6] = address(self.table) + self.table.nbytes - 8
        self._numbers = self.table.view(np.float64)
        work, _ = sizes(cols, arithmetic, by_columns, False)
        # As much as most calls need, so that these share one array and keep no smaller ones alive.
        _, state = sizes(max(cols, kernels.KEPT), arithmetic, False, True)
        self.workspace = scratch.array(
            "workspace", work, np.float64 if arithmetic == 8 else np.float32
        )
        self.row_state = scratch.array("row", state, np.uint8)

    def set(self, source: int, target: int, temperature: float) -> None:
        self.table[3], self.table[4] = source, target
        self._numbers[-1] = temperature

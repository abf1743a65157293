"""Logits with the vocabulary as their last axis: checked, and cut into batches for a backend."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from fastsoftmax import _backends, _threads
from fastsoftmax._api import _arguments, _dlpack
from fastsoftmax._backends._protocol import Batch, Edits

Array = NDArray[Any]
Int64 = NDArray[np.int64]

_RESULTS: dict[Any, np.dtype[Any]] = {
    np.dtype(np.float16): np.dtype(np.float32),
    np.dtype(np.float32): np.dtype(np.float32),
    np.dtype(np.float64): np.dtype(np.float64),
}
_NARROW = ("float16", "bfloat16", "float32")
# Entries that are converted at a time where no kernel reads the logits as they lie there, and of
# which a second look comes out of the cache.
CHUNK = 1 << 17


@dataclass(slots=True)
class Logits:
    """Checked logits and all that goes with each row of them.

    Attributes
    ----------
    x : ndarray
        Of shape (*shape, cols), any supported dtype and layout.
    shape : tuple of int
        The leading axes, which number the rows.
    rows, cols : int
    dtype : dtype
        Of real results: float32 for 16-bit and float32 logits, float64 for all else.
    temperature : ndarray of float64
        Of shape `shape`.
    where : ndarray of bool, optional
        Of x's shape.
    bitmask : ndarray of int32, optional
        Of shape (rows, words).
    foreign : DLPack array, optional
        What was given, if that was the array of another library.
    edits : Edits, optional
    """

    x: Array
    shape: tuple[int, ...]
    rows: int
    cols: int
    dtype: np.dtype[Any]
    temperature: NDArray[np.float64]
    where: NDArray[np.bool_] | None
    bitmask: NDArray[np.int32] | None
    foreign: Any = None
    edits: Edits | None = None

    def finish(self, values: NDArray[np.float64]) -> Any:
        """A real result in its own type, as the caller's library has it."""
        if self.dtype != np.float64:
            with np.errstate(over="ignore", under="ignore"):
                values = values.astype(self.dtype)
        return _dlpack.returned(values, self.foreign)

    def finish_ids(self, ids: Int64) -> Any:
        """A result of integers as the caller's library has it."""
        return _dlpack.returned(ids, self.foreign)

    def run(self, call: Callable[[slice, Batch, int, int], None], more: int = 0) -> None:
        """`run` of these logits alone."""
        run((self,), call, more)

    def index(self, rows: slice) -> Any:
        """The index of rows counted in C order; it gives them one axis."""
        if not self.shape:
            return (None,)
        if len(self.shape) == 1:
            return rows
        return np.unravel_index(np.arange(rows.start, rows.stop), self.shape)

    def take(self, ids: Int64) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """The logits of some entries of each row, (rows, m), and which of these are not masked."""
        places = ids.reshape((*self.shape, ids.shape[-1]))
        values = np.take_along_axis(self.x, places, -1).reshape(ids.shape)
        allowed = np.ones(ids.shape, np.bool_)
        if self.where is not None:
            allowed &= np.take_along_axis(self.where, places, -1).reshape(ids.shape)
        if self.bitmask is not None:
            words = np.take_along_axis(self.bitmask, ids // 32, -1)
            allowed &= (words >> (ids % 32) & 1).astype(np.bool_)
        return values.astype(np.float64), allowed

    @property
    def readable(self) -> bool:
        """Whether the kernels read the logits as they lie there."""
        x = self.x
        return _arguments.is_float(x.dtype) and x.dtype.isnative and x.flags.aligned

    def batch(self) -> Batch:
        """All rows, where they lie."""
        return Batch(
            self.x, len(self.shape), self.temperature, self.where, self.bitmask, self.edits
        )

    def copy(self, rows: slice) -> Batch:
        """Some rows, counted in C order, in an array that kernels can read."""
        dtype = self.x.dtype.newbyteorder("=") if _arguments.is_float(self.x.dtype) else np.float64
        index = self.index(rows)
        edits = self.edits
        if edits is not None:
            edits = Edits(
                edits.offsets[rows.start : rows.stop + 1],
                edits.ids,
                edits.bias,
                edits.penalty,
                edits.reduction,
            )
        return Batch(
            self.x[index].astype(dtype),
            1,
            self.temperature[index],
            None if self.where is None else self.where[index],
            None if self.bitmask is None else self.bitmask[rows],
            edits,
        )


def run(
    logits: Sequence[Logits], call: Callable[..., None], more: int = 0, *, copied: bool = False
) -> None:
    """Calls ``call(rows, *batches, begin, end)`` until all rows have been treated, in threads where
    that pays.

    Parameters
    ----------
    logits : sequence of Logits
        With the same rows.
    call : callable
        `rows` says which rows of the whole a batch is, and [begin, end) is a range of rows of that
        batch. There is one batch of all rows if kernels can read them, else there are copies of
        some rows each.
    more : int, optional
        A row takes as long as one that is so many entries longer.
    copied : bool, optional
        Whether copies are made in any case, and `call` makes one more.
    """
    rows, cols = logits[0].rows, logits[0].cols
    if not rows:
        return
    if not copied and all(each.readable for each in logits):
        batches = [each.batch() for each in logits]
        _threads.run_rows(
            partial(call, slice(0, rows), *batches),
            rows,
            rows * (cols + more),
            compiles=_backends.current().compiles,
        )
        return
    step = max(1, CHUNK // (len(logits) + copied) // max(cols, 1))

    def work(begin: int, end: int) -> None:
        for start in range(begin * step, min(end * step, rows), step):
            some = slice(start, min(start + step, rows))
            count = some.stop - start
            batches = [each.copy(some) for each in logits]
            _threads.run_rows(partial(call, some, *batches), count, count * (cols + more))
            del batches  # copies are given back before the next ones are made

    _threads.run_copies(work, -(-rows // step), rows * (cols + more), cols)


def parts(begin: int, end: int, step: int) -> list[tuple[int, int]]:
    """[begin, end) in ranges of `step` rows, and an empty range as it is."""
    ranges = [(start, min(start + step, end)) for start in range(begin, end, step)]
    return ranges or [(begin, end)]


def as_array(value: Any, name: str) -> tuple[Array, Any]:
    """An array, and the value itself if it is the array of another library."""
    if type(value) is np.ndarray:
        return value, None
    array = _arguments.as_array(value, name)
    return array, value if _dlpack.speaks(value) else None


def full(shape: int | tuple[int, ...], value: float) -> NDArray[np.float64]:
    """`np.full`, for small arrays in less time."""
    array = np.empty(shape)
    array.fill(value)
    return array


def as_logits(
    logits: ArrayLike,
    temperature: ArrayLike,
    where: ArrayLike | None = None,
    token_bitmask: ArrayLike | None = None,
    *,
    allow_zero: bool = True,
    name: str = "logits",
    temperature_name: str = "temperature",
) -> Logits:
    """Checks logits of shape (..., vocab) and what goes with them."""
    array, foreign = as_array(logits, name)
    dtype = _RESULTS.get(array.dtype)
    if dtype is None:
        if not _arguments.is_float(array.dtype) and array.dtype.kind not in "biu":
            raise TypeError(
                f"{name} has dtype {array.dtype}; it must be float16, bfloat16, float32, float64, "
                "bool or an integer"
            )
        narrow = array.dtype.newbyteorder("=").name in _NARROW
        dtype = np.dtype(np.float32 if narrow else np.float64)
    if array.ndim == 0:
        raise ValueError(f"{name} is a scalar; its last axis must be the vocabulary")
    _arguments.check_size(array, name)
    shape = array.shape[:-1]
    if type(temperature) is float and temperature > 0.0:
        t = full(shape, temperature)
    else:
        t = _arguments.as_temperature(
            temperature, array.shape, (array.ndim - 1,), allow_zero, temperature_name
        )
        t = np.broadcast_to(t[..., 0], shape)
    return Logits(
        array,
        shape,
        math.prod(shape),
        array.shape[-1],
        dtype,
        t,
        None if where is None else _arguments.as_where(where, array.shape, name),
        None if token_bitmask is None else _as_bitmask(token_bitmask, array.shape),
        foreign,
    )


def _as_bitmask(token_bitmask: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.int32]:
    """A packed mask as (rows, words)."""
    mask = _arguments.as_array(token_bitmask, "token_bitmask")
    if mask.dtype.newbyteorder("=") not in (np.dtype(np.int32), np.dtype(np.uint32)):
        raise TypeError(f"token_bitmask has dtype {mask.dtype}; it must be int32")
    mask = mask.astype(mask.dtype.newbyteorder("="), copy=False).view(np.int32)
    words = -(-shape[-1] // 32)
    rows = math.prod(shape[:-1])
    wanted = (*shape[:-1], words)
    try:
        full = np.broadcast_to(mask, wanted)
    except ValueError:
        full = None
    if full is None or mask.ndim == 0 or mask.shape[-1] != words:
        raise ValueError(
            f"token_bitmask has shape {mask.shape}; it must broadcast against {wanted}, a bit for "
            "each entry of the vocabulary"
        )
    if mask.size == words:
        return np.broadcast_to(np.ascontiguousarray(mask).reshape(1, words), (rows, words))
    return np.ascontiguousarray(full).reshape(rows, words)


def as_count(name: str, value: Any, limit: int | None = None) -> int:
    """A whole number from 0 to the size of the vocabulary, if that is the limit."""
    count = _arguments.as_integer(value, name)
    if limit is None and count < 0:
        raise ValueError(f"{name} is {_arguments.shown(count)}; it must not be negative")
    if limit is not None and not 0 <= count <= limit:
        shown = _arguments.shown(count)
        raise ValueError(f"{name} is {shown}; it must be in [0, {limit}], the vocabulary's size")
    return count


def as_ids(name: str, ids: ArrayLike) -> Array:
    """An array of integers."""
    array = _arguments.as_array(ids, name)
    if array.dtype.kind not in "iu":
        if array.size == 0 and array.dtype == np.float64:  # an empty list
            return array.astype(np.int64)
        raise _arguments.wrong_dtype(ids, array, name, "an integer")
    return array


def check_range(name: str, ids: Array, cols: int, wrong: NDArray[np.bool_] | None = None) -> Int64:
    """The ids as int64, C-contiguous, if all are in [0, cols).

    `wrong` says which are not, for a caller that lets some pass.
    """
    if wrong is None:
        wrong = (ids < 0) | (ids >= cols)
    if wrong.any():
        first = tuple(int(i) for i in np.argwhere(wrong)[0])
        place = f"[{', '.join(map(str, first))}]" if first else ""
        raise IndexError(f"{name}{place} is {ids[first]}; it must be in [0, {cols})")
    return np.array(ids, np.int64, copy=None, order="C")


def per_row(name: str, value: ArrayLike, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """One number for each row, flattened and contiguous; `dtype` is int64 or float64."""
    array = _arguments.as_array(value, name)
    kinds = "iu" if np.dtype(dtype).kind == "i" else "biuf"
    if array.dtype.kind not in kinds and array.dtype.name != "bfloat16":
        wanted = "an integer" if kinds == "iu" else "real"
        raise _arguments.wrong_dtype(value, array, name, wanted)
    try:
        full = np.broadcast_to(array, shape)
    except ValueError:
        raise ValueError(
            f"{name} has shape {array.shape}; it must broadcast against the rows, {shape}"
        ) from None
    if kinds == "biuf":
        full = _arguments.as_float64(full)
    elif array.dtype.kind == "u":
        # What int64 does not hold would turn negative; its largest number is as good here.
        full = np.minimum(full, np.uint64(2**63 - 1))
    return np.ascontiguousarray(full, dtype=dtype).reshape(-1)

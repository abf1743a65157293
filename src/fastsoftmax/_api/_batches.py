"""From checked arrays of any layout to the batches that a backend takes."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.exceptions import TooHardError
from numpy.typing import NDArray

from fastsoftmax import _backends, _threads
from fastsoftmax._backends._protocol import Backend, Batch
from fastsoftmax._ops import Op

Array = NDArray[Any]

# Entries that are copied at a time where kernels cannot read or write an array: few enough for the
# second-level cache and for a bound on memory, enough to hide the cost of the calls.
CHUNK = 32768

# Steps of the search for an entry that two arrays share, before they count as overlapping.
_EFFORT: Any = 1000


def run(
    op: Op,
    x: Array,
    axes: tuple[int, ...],
    temperature: NDArray[np.float64],
    where: NDArray[np.bool_] | None,
    out: Array,
) -> None:
    """Apply an operation to checked arguments.

    Parameters
    ----------
    op : Op
    x : ndarray
        Logits of any supported dtype and layout, at least one-dimensional.
    axes : tuple of int
        The axes of `x` that make a row, ascending.
    temperature : ndarray of float64
        Contiguous, with as many dimensions as `x`; each has x's length or is 1, as `axes` are.
    where : ndarray of bool, optional
        Of x's shape.
    out : ndarray
        Of x's shape, with `axes` of length 1 where the operation reduces.
    """
    if x.size == 0:
        out[...] = op.masked
        return
    apart = out
    if clash(x, out, temperature, where):
        apart = np.empty(out.shape, _native(out.dtype))
    backend = _backends.current()
    batch, rows = make(op, x, axes, temperature, where, apart)
    if _readable(x) and _readable(apart):
        _threads.run(backend, op, batch, rows)
    else:
        _run_copied(backend, op, batch, rows)
    if apart is not out:
        np.copyto(out, apart)


def make(
    op: Op,
    x: Array,
    axes: tuple[int, ...],
    temperature: NDArray[np.float64],
    where: NDArray[np.bool_] | None,
    out: Array,
) -> tuple[Batch, Array]:
    """The batch of arguments that `run` describes, and its view of `out`.

    Axes of length 1 are dropped, and neighbours that are one axis in every array are merged. Rows
    are numbered so that neighbours lie as close together in `x` as can be: rows do not know of each
    other, and columns of rows that lie side by side make whole vectors. The entries of a row stay
    in their order, which the result depends on.
    """
    shape, strides = x.shape, x.strides
    outer = [i for i in range(x.ndim) if i not in axes and shape[i] != 1]
    # Axes on which nothing changes come first: there is no vector in them.
    outer.sort(key=lambda i: abs(strides[i]) or math.inf, reverse=True)
    inner = [i for i in axes if shape[i] != 1]
    t_strides = [
        s if n != 1 else 0 for n, s in zip(temperature.shape, temperature.strides, strict=True)
    ]
    row_shape, (row_t_strides,) = _merged(outer, shape, (x, out, where), (t_strides,))
    col_shape, _ = _merged(inner, shape, (x, None if op.reduces else out, where))
    rest = [i for i in range(x.ndim) if i not in outer and i not in inner]
    order = (*outer, *inner, *rest)
    rows = row_shape + col_shape
    batch = Batch(
        x.transpose(order).reshape(rows),
        len(row_shape),
        np.ndarray(row_shape, np.float64, temperature, 0, row_t_strides),
        None if where is None else where.transpose(order).reshape(rows),
    )
    return batch, out.transpose(order).reshape(row_shape if op.reduces else rows)


def _merged(
    axes: Sequence[int],
    shape: tuple[int, ...],
    arrays: tuple[Array | None, ...],
    more: tuple[Sequence[int], ...] = (),
) -> tuple[tuple[int, ...], list[list[int]]]:
    """Lengths of `axes` after all are merged that are one axis in every array and by the strides
    in `more`, and the latter's strides for them. At least one axis is left, of length 1."""
    if not axes:
        return (1,), [[0] for _ in more]
    every = [a.strides for a in arrays if a is not None] + list(more)
    lengths = [shape[axes[0]]]
    kept = [axes[0]]
    for i in axes[1:]:
        if all(s[kept[-1]] == s[i] * shape[i] for s in every):
            lengths[-1] *= shape[i]
            kept[-1] = i
        else:
            lengths.append(shape[i])
            kept.append(i)
    return tuple(lengths), [[s[i] for i in kept] for s in more]


def _native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype if dtype.isnative else dtype.newbyteorder("=")


def _readable(a: Array) -> bool:
    """Whether kernels can work on an array where it lies."""
    return a.dtype.isnative and a.flags.aligned and a.dtype.kind not in "biu"


def clash(x: Array, out: Array, *others: Array | None) -> bool:
    """Whether what is written to `out` may be read afterwards: it may be x's very memory, but must
    overlap nothing else."""
    return (_overlap(x, out) and not _same_memory(x, out)) or any(
        other is not None and _overlap(other, out) for other in others
    )


def _same_memory(a: Array, b: Array) -> bool:
    """Whether each entry of one array lies where the other one's does."""
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and a.strides == b.strides
        and a.__array_interface__["data"][0] == b.__array_interface__["data"][0]
    )


def _overlap(a: Array, b: Array) -> bool:
    """Whether two arrays share memory, or may as far as one can tell in little time."""
    if not np.may_share_memory(a, b):
        return False
    try:
        return np.shares_memory(a, b, max_work=_EFFORT)
    except TooHardError:
        return True


def _run_copied(backend: Backend, op: Op, batch: Batch, out: Array) -> None:
    """Apply an operation to some rows at a time, of which those are copied that kernels cannot
    read or write. Each thread has copies of its own."""
    x_readable, out_readable = _readable(batch.x), _readable(out)
    x_dtype = np.dtype(np.float64) if batch.x.dtype.kind in "biu" else _native(batch.x.dtype)
    out_dtype = _native(out.dtype)
    chunks, index_of = _chunks(batch.x.shape, batch.row_axes)

    def work(begin: int, end: int) -> None:
        for index in map(index_of, range(begin, end)):
            x, target = batch.x[index], out[index]
            if not x_readable:
                x = np.array(x, x_dtype, order="C")
            place = target
            if not out_readable:
                in_place = not op.reduces and not x_readable and x_dtype == out_dtype
                place = x if in_place else np.empty(target.shape, out_dtype)
            part = Batch(
                x,
                batch.row_axes,
                batch.temperature[index],
                None if batch.where is None else batch.where[index],
            )
            _threads.run(backend, op, part, place)
            if place is not target:
                np.copyto(target, place)

    _threads.run_copies(work, chunks, batch.x.size, batch.cols)


def _chunks(shape: tuple[int, ...], outer: int) -> tuple[int, Callable[[int], tuple[Any, ...]]]:
    """How many pieces of about `CHUNK` entries or one row the first `outer` axes of a shape make,
    and a function that gives the index of each."""
    axis, below = 0, math.prod(shape[1:])
    while below > CHUNK and axis < outer - 1:
        axis += 1
        below //= shape[axis]
    step = max(1, CHUNK // below)
    steps = (1,) * axis + (step,)
    pieces = (*shape[:axis], -(-shape[axis] // step))

    def index_of(piece: int) -> tuple[Any, ...]:
        index: list[Any] = [...]
        for length, n in zip(reversed(pieces), reversed(steps), strict=True):
            piece, i = divmod(piece, length)
            index.append(slice(i * n, i * n + n))
        return tuple(reversed(index))

    return math.prod(pieces), index_of

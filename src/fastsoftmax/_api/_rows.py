"""From arrays of any layout to the batches of contiguous rows that a backend takes."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsoftmax import _backends
from fastsoftmax._ops import Op

Array = NDArray[Any]

# Entries that are copied at a time where a batch has to be copied: few enough for the second-level
# cache and for a bound on memory, enough to hide the cost of the calls.
CHUNK = 32768


def run(
    op: Op,
    x: Array,
    axes: tuple[int, ...],
    temperature: Array,
    where: Array | None,
    out: Array,
) -> None:
    """Apply an operation to checked arguments.

    Parameters
    ----------
    op : Op
    x : ndarray
        Logits of any supported dtype and layout, at least one-dimensional.
    axes : tuple of int
        The axes of `x` that make a row.
    temperature : ndarray
        Of shape (1,), or of x's shape with `axes` removed.
    where : ndarray of bool, optional
        Of x's shape.
    out : ndarray
        Of x's shape, or of that with `axes` removed where the operation reduces.
    """
    if out.size == 0:
        return
    wide = any(a.dtype.kind in "biu" or a.dtype.itemsize == 8 for a in (x, out))
    dtype = np.dtype(np.float64 if wide else np.float32)
    outer = tuple(i for i in range(x.ndim) if i not in axes)
    x = _apart(x, out)
    temperature = _apart(temperature, out)
    # Rows last: the outer axes in their order, then those of the row.
    order = outer + axes
    x = x.transpose(order)
    if not op.reduces:
        out = out.transpose(order)
    if where is not None:
        where = _apart(where, out).transpose(order)
    if temperature.shape == (1,):
        temperature = np.broadcast_to(temperature.reshape((1,) * len(outer)), x.shape[: len(outer)])
    for index in _chunks(x.shape, len(outer)):
        _run_chunk(
            op,
            dtype,
            len(outer),
            x[index],
            temperature[index],
            None if where is None else where[index],
            out[index],
        )


def run_direct(op: Op, x: Array, temperature: Array, out: Array) -> bool:
    """Hand the batch to the backend as it is, if that can be; returns whether it could.

    Every row has to lie there contiguous, in a type that the kernels read, and nothing may overlap
    but `out` that is `x`.

    `x` is reduced over its last axis; the temperature is of shape (1,) or that of the rows.
    """
    xf, of = x.flags, out.flags
    if (
        x.dtype != out.dtype
        or x.dtype.char not in "fd"
        or not x.dtype.isnative
        or not (xf.c_contiguous and xf.aligned and of.c_contiguous and of.aligned)
        or x.size == 0
    ):
        return False
    cols = x.shape[-1]
    if not op.reduces and out.ctypes.data == x.ctypes.data:
        pass
    elif np.may_share_memory(x, out):
        return False
    rows = x.reshape(-1, cols)
    _backends.current().run(
        op.name,
        rows,
        np.ascontiguousarray(temperature, dtype=np.float64).reshape(-1),
        out.reshape(-1) if op.reduces else out.reshape(rows.shape),
    )
    return True


def _apart(a: Array, out: Array) -> Array:
    """`a`, copied if it overlaps `out` in any other way than being it."""
    if not np.may_share_memory(a, out):
        return a
    same = (
        a.dtype == out.dtype
        and a.shape == out.shape
        and a.strides == out.strides
        and a.__array_interface__["data"] == out.__array_interface__["data"]
    )
    return a if same else a.copy()


def _chunks(shape: tuple[int, ...], outer: int) -> Iterator[tuple[Any, ...]]:
    """Cuts the first `outer` axes of a shape into pieces of about `CHUNK` entries or one row."""
    if outer == 0:
        yield (...,)
        return
    below = math.prod(shape[1:])
    step = max(1, CHUNK // max(below, 1))
    for start in range(0, shape[0], step):
        here = slice(start, min(start + step, shape[0]))
        if step > 1 or below <= CHUNK:
            yield (here, ...)
        else:
            for rest in _chunks(shape[1:], outer - 1):
                yield (here, *rest)


def _run_chunk(
    op: Op,
    dtype: np.dtype[Any],
    outer: int,
    x: Array,
    temperature: Array,
    where: Array | None,
    out: Array,
) -> None:
    cols = math.prod(x.shape[outer:])
    height = math.prod(x.shape[:outer])
    # Where `out` can hold the rows it is the scratch memory too.
    usable = not op.reduces and out.dtype is dtype and out.flags.c_contiguous and out.flags.aligned
    rows = out if usable else np.empty(x.shape, dtype)
    # Values too large for the narrower type become infinite, as they should.
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        np.copyto(rows, x, casting="unsafe")
        masked = None if where is None else ~where
        if masked is not None:
            np.copyto(rows, -np.inf, where=masked)
        batch = rows.reshape(height, cols)
        result = np.empty(height, dtype) if op.reduces else batch
        t = np.ascontiguousarray(temperature, dtype=np.float64).reshape(-1)
        _backends.current().run(op.name, batch, t, result)
        if op.reduces:
            np.copyto(out, result.reshape(out.shape), casting="unsafe")
            return
        if masked is not None:
            np.copyto(rows, op.masked, where=masked)
        if not usable:
            np.copyto(out, rows, casting="unsafe")

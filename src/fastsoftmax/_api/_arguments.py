"""Checks: every function returns what it was given in the one form the rest works with, or raises
an error that names the argument, what it was and what it must be."""

from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple
from numpy.typing import ArrayLike, DTypeLike, NDArray

from fastsoftmax._api import _dlpack

Array = NDArray[Any]

_FLOATS = ("float16", "bfloat16", "float32", "float64")
_NATIVE = {np.dtype(name) for name in ("float16", "float32", "float64")}
_FLOAT64 = np.dtype(np.float64)


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether a dtype is one of the four float types, in either byte order."""
    return dtype in _NATIVE or dtype.name in _FLOATS


def as_array(value: Any, name: str) -> Array:
    """An array, the memory of another library's array, or what an array-like is worth."""
    return _dlpack.as_ndarray(value, name) if _dlpack.speaks(value) else np.asarray(value)


def as_logits(x: ArrayLike) -> tuple[Array, np.dtype[Any]]:
    """The array of logits and the dtype that its result has by default."""
    array = as_array(x, "x")
    dtype = array.dtype
    if dtype in _NATIVE:
        return array, dtype
    if is_float(dtype):
        return array, dtype if dtype.isnative else dtype.newbyteorder("=")
    if dtype.kind in "biu":
        return array, _FLOAT64
    raise TypeError(f"x has dtype {dtype}; it must be {', '.join(_FLOATS)}, bool or an integer")


def as_axes(axis: int | tuple[int, ...] | None, ndim: int) -> tuple[int, ...]:
    """The axes to reduce, as ascending indices from 0; a scalar counts as one entry."""
    ndim = max(ndim, 1)
    if axis is None:
        return tuple(range(ndim))
    return tuple(sorted(normalize_axis_tuple(axis, ndim, "axis")))


def as_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """The dtype asked for."""
    if str(dtype) in ("bfloat16", "torch.bfloat16"):
        import ml_dtypes

        dtype = ml_dtypes.bfloat16
    try:
        result: np.dtype[Any] = np.dtype(dtype)
    except TypeError:
        # PyTorch's name of a type is NumPy's behind a dot.
        library, _, name = str(dtype).partition(".")
        if library != "torch" or name not in _FLOATS:
            raise TypeError(f"dtype is {dtype!r}; it must be one of {', '.join(_FLOATS)}") from None
        result = np.dtype(name)
    if not is_float(result):
        raise TypeError(f"dtype is {result}; it must be one of {', '.join(_FLOATS)}")
    return result if result.isnative else result.newbyteorder("=")


def as_out(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any] | None) -> Array:
    """The memory of the output, fit to hold the result."""
    if not (isinstance(out, np.ndarray) or _dlpack.speaks(out)):
        raise TypeError(f"out is a {type(out).__name__}; it must be an ndarray or DLPack array")
    array = as_array(out, "out")
    if not is_float(array.dtype):
        raise TypeError(f"out has dtype {array.dtype}; it must be one of {', '.join(_FLOATS)}")
    if dtype is not None and array.dtype.name != dtype.name:
        raise TypeError(f"out has dtype {array.dtype}; with dtype={dtype} it must have that")
    if array.shape != shape:
        raise ValueError(f"out has shape {array.shape}; it must be the result's, {shape}")
    if not array.flags.writeable:
        raise ValueError("out is read-only; it must be writeable")
    return array


def as_temperature(
    temperature: ArrayLike, shape: tuple[int, ...], axes: tuple[int, ...], allow_zero: bool
) -> NDArray[np.float64]:
    """The temperatures, with as many dimensions as the shape; each has its length or is 1."""
    array = as_array(temperature, "temperature")
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise TypeError(f"temperature has dtype {array.dtype}; it must be real")
    if array.size:
        lowest = float(array.min())
        if not lowest >= 0.0:
            raise ValueError(f"temperature is {lowest}; it must be >= 0 and not NaN")
        if lowest == 0.0 and not allow_zero:
            raise ValueError("temperature is 0.0; logsumexp has no limit there, it must be > 0")
        if lowest == 0.0:
            array = np.abs(array)  # -0.0 is 0
    kept = tuple(1 if i in axes else n for i, n in enumerate(shape))
    removed = tuple(n for i, n in enumerate(shape) if i not in axes)
    values = np.ascontiguousarray(array, np.float64)  # at least one-dimensional
    if array.ndim == len(shape):
        full, limits = array.shape, kept
    else:
        full, limits = (1,) * (len(removed) - array.ndim) + array.shape, removed
    if len(full) != len(limits) or any(n not in (1, m) for n, m in zip(full, limits, strict=True)):
        raise ValueError(
            f"temperature has shape {array.shape}; it must broadcast against {kept}, "
            f"or with fewer dimensions against {removed}"
        )
    if array.ndim != len(shape):
        given = iter(full)
        full = tuple(1 if i in axes else next(given) for i in range(len(shape)))
    return values.reshape(full)


def as_where(where: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The mask, of the shape of the logits."""
    array = as_array(where, "where")
    if array.dtype != np.bool_:
        raise TypeError(f"where has dtype {array.dtype}; it must be bool")
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise ValueError(
            f"where has shape {array.shape}; it must broadcast against x's, {shape}"
        ) from None

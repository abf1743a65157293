"""Checks: every function returns what it was given in the one form the rest works with, or raises
an error that names the argument, what it was and what it must be."""

import math
import operator
import reprlib
from typing import Any

import numpy as np
from numpy.exceptions import AxisError
from numpy.lib.array_utils import normalize_axis_tuple
from numpy.typing import ArrayLike, DTypeLike, NDArray

from fastsoftmax._api import _dlpack

Array = NDArray[Any]

_FLOATS = ("float16", "bfloat16", "float32", "float64")
_NATIVE = {np.dtype(name) for name in ("float16", "float32", "float64")}
_FLOAT64 = np.dtype(np.float64)

# Axes of NumPy's arrays.
MAX_AXES = 64

# Entries of the largest array: no size in bytes of anything that goes with them overflows. One of
# strides of 0 may claim to have more.
MOST = 1 << 56


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether a dtype is one of the four float types, in either byte order."""
    return dtype in _NATIVE or dtype.name in _FLOATS


def shown(value: Any) -> str:
    """A value in few words, whatever it is."""
    try:
        return reprlib.repr(value)
    except Exception:
        return f"a {type(value).__name__}"


def as_flag(value: Any, name: str) -> bool:
    """The truth of a value that has one."""
    try:
        return bool(value)
    except Exception:
        raise TypeError(f"{name} is {shown(value)}; it must be True or False") from None


def as_real(value: Any, name: str) -> float:
    """A real number."""
    array = as_array(value, name)
    if array.ndim or array.dtype.kind not in "biuf":
        raise TypeError(f"{name} is {shown(value)}; it must be a real number")
    return float(array)


def as_integer(value: Any, name: str) -> int:
    """An integer of any size."""
    try:
        return operator.index(value)
    except Exception:
        raise TypeError(f"{name} is {shown(value)}; it must be an integer") from None


def check_size(array: Array, name: str) -> None:
    """Refuses arrays that no memory could hold, of strides of 0 or without an entry."""
    if array.size > MOST or (array.size == 0 and math.prod(filter(None, array.shape)) > MOST):
        raise ValueError(f"{name} has shape {array.shape}; no memory holds so many entries")


def as_array(value: Any, name: str) -> Array:
    """An array, the memory of another library's array, or what an array-like is worth."""
    if type(value) is np.ndarray:
        return value
    if _dlpack.speaks(value):
        return _dlpack.as_ndarray(value, name)
    # NumPy imports np.ma when it is first asked for: only arrays of another class are.
    if isinstance(value, np.ndarray) and isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{name} is a masked array; pass {name}.data, and mask logits by "
            "where=~np.ma.getmaskarray(...)"
        )
    try:
        return np.asarray(value)
    except Exception as cause:  # of NumPy, or of what the value is made of
        kind = next((k for k in (ValueError, MemoryError) if isinstance(cause, k)), TypeError)
        raise kind(f"{name} is {shown(value)}; it cannot be read as an array: {cause}") from cause


def wrong_dtype(value: Any, array: Array, name: str, wanted: str) -> TypeError:
    """The error for a value that is an array of a wrong type; that of objects tells nothing."""
    if array.dtype == np.object_:
        return TypeError(f"{name} is {shown(value)}; it must be {wanted}, and fit a dtype")
    return TypeError(f"{name} has dtype {array.dtype}; it must be {wanted}")


def as_float64(array: Array) -> NDArray[np.float64]:
    """Real numbers in float64; those of wider types may overflow, and NaN stays NaN in silence."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return array.astype(np.float64, copy=False)


def as_logits(x: ArrayLike) -> tuple[Array, np.dtype[Any]]:
    """The array of logits and the dtype that its result has by default."""
    array = as_array(x, "x")
    check_size(array, "x")
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
    given: Any = axis
    try:
        each = [operator.index(i) for i in (given if isinstance(given, tuple | list) else [given])]
    except Exception:
        raise TypeError(
            f"axis is {shown(axis)}; it must be an integer, a tuple of integers or None"
        ) from None
    for i in each:
        if not -ndim <= i < ndim:
            raise AxisError(f"axis {shown(i)} is out of bounds for array of dimension {ndim}")
    return tuple(sorted(normalize_axis_tuple(each, ndim, "axis")))


def as_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """The dtype asked for."""
    try:
        text = str(dtype)
    except Exception:  # of lists in lists without end
        text = ""
    if text in ("bfloat16", "torch.bfloat16"):
        dtype = _dlpack.bfloat16_dtype()
    try:
        result: np.dtype[Any] = np.dtype(dtype)
    except Exception:  # of all kinds, for all that is no type
        # PyTorch's name of a type is NumPy's behind a dot.
        library, _, name = text.partition(".")
        if library != "torch" or name not in _FLOATS:
            raise TypeError(
                f"dtype is {shown(dtype)}; it must be one of {', '.join(_FLOATS)}"
            ) from None
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
    temperature: ArrayLike,
    shape: tuple[int, ...],
    axes: tuple[int, ...],
    allow_zero: bool,
    name: str = "temperature",
) -> NDArray[np.float64]:
    """The temperatures, with as many dimensions as the shape; each has its length or is 1."""
    array = as_array(temperature, name)
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise wrong_dtype(temperature, array, name, "real")
    kept = tuple(1 if i in axes else n for i, n in enumerate(shape))
    removed = tuple(n for i, n in enumerate(shape) if i not in axes)
    if array.ndim == len(shape):
        full, limits = array.shape, kept
    else:
        full, limits = (1,) * (len(removed) - array.ndim) + array.shape, removed
    if len(full) != len(limits) or any(n not in (1, m) for n, m in zip(full, limits, strict=True)):
        raise ValueError(
            f"{name} has shape {array.shape}; it must broadcast against {kept}, "
            f"or with fewer dimensions against {removed}"
        )
    values = np.ascontiguousarray(as_float64(array))  # at least one-dimensional
    if values.size:
        lowest = float(values.min())
        if not lowest >= 0.0:
            raise ValueError(f"{name} is {lowest}; it must be >= 0 and not NaN")
        if lowest == 0.0 and not allow_zero:
            raise ValueError(f"{name} is 0.0; logsumexp has no limit there, it must be > 0")
        if lowest == 0.0:
            values = np.abs(values)  # -0.0 is 0
    if array.ndim != len(shape):
        given = iter(full)
        full = tuple(1 if i in axes else next(given) for i in range(len(shape)))
    return values.reshape(full)


def as_where(where: ArrayLike, shape: tuple[int, ...], name: str = "x") -> NDArray[np.bool_]:
    """The mask, of the shape of the logits, which are called `name`."""
    array = as_array(where, "where")
    if array.dtype != np.bool_:
        raise TypeError(f"where has dtype {array.dtype}; it must be bool")
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise ValueError(
            f"where has shape {array.shape}; it must broadcast against that of {name}, {shape}"
        ) from None

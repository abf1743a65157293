"""softmax, log_softmax and logsumexp."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from fastsoftmax import _backends, _threads
from fastsoftmax._api import _arguments, _batches, _dlpack
from fastsoftmax._ops import OPS, Op

Axis = int | tuple[int, ...] | None


def _apply(
    op: Op,
    x: ArrayLike,
    axis: Axis,
    temperature: ArrayLike,
    where: ArrayLike | None,
    out: Any,
    dtype: DTypeLike | None,
    keepdims: bool = False,
) -> Any:
    foreign = None
    if type(x) is not np.ndarray and _dlpack.speaks(x):
        foreign, x = x, _dlpack.as_ndarray(x, "x")
    if (
        type(x) is np.ndarray
        and where is None
        and dtype is None
        and type(axis) is int
        and axis == -1
        and (type(temperature) is float or (type(temperature) is int and temperature < 1 << 53))
        and temperature > 0.0
        and not keepdims
    ):
        # Where the work is little, the steps below would take most of the time.
        backend = _backends.current()
        if x.size < _threads.ALONE_BELOW:
            result = backend.run_small(op.name, x, temperature, out)
        else:
            result = _threads.run_contiguous(backend, op.name, x, temperature, out)
        if result is not None:
            return result if out is not None else _dlpack.returned(result, foreign)
    logits, result_dtype = _arguments.as_logits(x)
    given = logits.shape
    axes = _arguments.as_axes(axis, logits.ndim)
    if dtype is not None:
        result_dtype = _arguments.as_dtype(dtype)
    if logits.ndim == 0:
        logits = logits.reshape(1)
    # With the axes of a row kept as 1 where it comes to a number.
    kept = shape = logits.shape
    if op.reduces:
        kept = tuple(1 if i in axes else n for i, n in enumerate(shape))
    if type(temperature) is float and temperature > 0.0:
        temperatures = np.full((1,) * logits.ndim, temperature)
    else:
        temperatures = _arguments.as_temperature(temperature, shape, axes, op.zero_temperature)
    mask = None if where is None else _arguments.as_where(where, given).reshape(shape)
    if not op.reduces:
        result_shape = given
    elif keepdims:
        result_shape = kept if given else ()
    else:
        result_shape = tuple(n for i, n in enumerate(shape) if i not in axes)
    if out is not None:
        result = _arguments.as_out(out, result_shape, None if dtype is None else result_dtype)
    elif foreign is not None:
        result = _dlpack.empty(result_shape, result_dtype)
    else:
        result = np.empty(result_shape, result_dtype)
    # Adding or dropping axes of length 1 never copies.
    _batches.run(op, logits, axes, temperatures, mask, result.reshape(kept))
    return out if out is not None else _dlpack.returned(result, foreign)


def softmax(
    x: ArrayLike,
    axis: Axis = -1,
    *,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    out: Any = None,
    dtype: DTypeLike | None = None,
) -> Any:
    """Probabilities ``exp(x / temperature) / sum(exp(x / temperature))``.

    Parameters
    ----------
    x : array_like
        Logits, of any shape and layout. float16, bfloat16 (ml_dtypes), float32 and float64 keep
        their dtype; bool and integers give float64. An array of another library that speaks DLPack,
        in CPU memory and without gradients, is read without a copy. So may those below be.
    axis : int, tuple of int or None, optional
        The axes that a row of logits lies along; all of them for None. Note that SciPy's default is
        None.
    temperature : array_like of real, optional
        One, or one per row: with as many dimensions as `x` it broadcasts against `x` with `axis`
        kept as 1, with fewer against the shape with `axis` removed. The limits are meant: 0 shares
        the mass evenly by the maxima, infinity by all entries above -infinity.
    where : array_like of bool, optional
        Broadcasts against `x`. Entries where it is False count for nothing, whatever they hold, and
        get 0.
    out : ndarray or DLPack array, optional
        Where the result goes: of its shape, and of one of the four float dtypes, which then is the
        result's. It may be `x`.
    dtype : dtype_like, optional
        The result's dtype, one of the four. With float64 on either side all is computed in float64,
        else in float32 with sums in float64.

    Returns
    -------
    ndarray, scalar or array of x's library
        Of the shape of `x`; `out` if that was given. A row with a NaN or +infinity in it, or with
        nothing above -infinity, is NaN.

    Raises
    ------
    TypeError
        If a dtype is not supported, or an array of another library cannot be read where it is.
    ValueError
        If a temperature is negative or NaN, or a shape does not fit, or `out` is read-only.
    numpy.exceptions.AxisError
        If there is no such axis.

    Notes
    -----
    One read of the logits finds the maximum and the sum together [1]_, block by block; the maximum
    is subtracted before anything is multiplied, so large logits lose nothing.

    References
    ----------
    .. [1] M. Milakov and N. Gimelshein, "Online normalizer calculation for softmax", 2018,
       arXiv:1805.02867.

    Examples
    --------
    >>> import fastsoftmax
    >>> fastsoftmax.softmax([1.0, 2.0, 3.0]).round(4)
    array([0.09  , 0.2447, 0.6652])
    >>> fastsoftmax.softmax([1.0, 2.0, 3.0], temperature=10).round(4)
    array([0.3006, 0.3322, 0.3672])
    >>> fastsoftmax.softmax([1.0, 3.0, 3.0], temperature=0)
    array([0. , 0.5, 0.5])
    """
    return _apply(OPS["softmax"], x, axis, temperature, where, out, dtype)


def log_softmax(
    x: ArrayLike,
    axis: Axis = -1,
    *,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    out: Any = None,
    dtype: DTypeLike | None = None,
) -> Any:
    """Log-probabilities ``x / temperature - log(sum(exp(x / temperature)))``.

    Parameters
    ----------
    x, axis, temperature, where, out, dtype
        As for `softmax`; a masked entry gets -infinity.

    Returns
    -------
    ndarray, scalar or array of x's library
        As for `softmax`. Finite wherever it can be: there is no probability that underflows on the
        way.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As for `softmax`.

    Notes
    -----
    The maximum is kept out of the sum, whose logarithm is taken as ``log1p`` [1]_: the
    log-probability of a near-certain entry keeps its relative precision.

    References
    ----------
    .. [1] P. Blanchard, D. J. Higham and N. J. Higham, "Accurately computing the log-sum-exp and
       softmax functions", IMA Journal of Numerical Analysis 41, 2021.

    Examples
    --------
    >>> import fastsoftmax
    >>> fastsoftmax.log_softmax([0.0, -30.0])
    array([-9.35762297e-14, -3.00000000e+01])
    """
    return _apply(OPS["log_softmax"], x, axis, temperature, where, out, dtype)


def logsumexp(
    x: ArrayLike,
    axis: Axis = -1,
    *,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    keepdims: bool = False,
    out: Any = None,
    dtype: DTypeLike | None = None,
) -> Any:
    """``log(sum(exp(x / temperature)))``, in one read and without a row of memory.

    Parameters
    ----------
    x, axis, temperature, where, out, dtype
        As for `softmax`; a masked entry counts for nothing. At a temperature of exactly 0 there is
        no limit.
    keepdims : bool, optional
        Whether the reduced axes stay, with length 1.

    Returns
    -------
    ndarray, scalar or array of x's library
        Of the shape of `x` without `axis`; a NumPy scalar if nothing is left of it. NaN for a row
        with a NaN in it, +infinity for one with +infinity, -infinity for one with nothing above
        -infinity.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As for `softmax`; ValueError for a temperature of 0 too.

    Notes
    -----
    See `log_softmax`.

    Examples
    --------
    >>> import fastsoftmax
    >>> float(fastsoftmax.logsumexp([0.0, -40.0]))
    4.248354255291589e-18
    """
    if type(keepdims) is not bool:
        keepdims = _arguments.as_flag(keepdims, "keepdims")
    return _apply(OPS["logsumexp"], x, axis, temperature, where, out, dtype, keepdims)

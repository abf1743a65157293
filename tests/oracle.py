"""Independent references the tests compare with; nothing here comes from the package.

`exact` works in 50-digit arithmetic (small arrays), `reference` in `np.longdouble` (any size),
which has 64 bits of mantissa on x86 and 113 on most others. Where it is no wider than float64,
quotients are carried with what their rounding lost and sums are exact. `reference` also states the
rules for special rows, masks and temperatures, in plain NumPy. `assert_close` holds a result
against it within the accuracy the package promises.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import mpmath
import numpy as np

OPS = ("softmax", "log_softmax", "logsumexp")

DIGITS = 50
LONGDOUBLE_IS_WIDE = np.finfo(np.longdouble).nmant > np.finfo(np.float64).nmant

# Bits of precision, and the exponent of the smallest normal number.
FORMATS = {
    "float16": (11, -14),
    "bfloat16": (8, -126),
    "float32": (24, -126),
    "float64": (53, -1022),
}


def wide(a: Any) -> np.ndarray:
    a = np.asarray(a)
    if a.dtype.name == "bfloat16":
        a = a.astype(np.float32)
    return a.astype(np.longdouble)


# ---- distances


def ulp(a: Any, dtype: Any) -> np.ndarray:
    """The spacing of `dtype` at `a`; below the normal range, the smallest denormal."""
    bits, smallest = FORMATS[np.dtype(dtype).name]
    a = np.where(np.isfinite(wide(a)), wide(a), 0)
    _, exponent = np.frexp(a)
    exponent = np.where(a == 0, smallest, exponent - 1)
    return np.ldexp(np.ones_like(a), np.clip(exponent, smallest, 1 - smallest) - (bits - 1))


def distance(got: Any, want: Any, dtype: Any) -> np.ndarray:
    """|got - want|, where NaN is at 0 from NaN and infinitely far from all else.

    So is an infinity in `want`. A finite `want` beyond the range of `dtype`, and a `got` that is
    infinite where `want` is not, both count as the first power of two beyond the range.
    """
    got, want = np.broadcast_arrays(wide(got), wide(want))
    _, smallest = FORMATS[np.dtype(dtype).name]
    with np.errstate(over="ignore", invalid="ignore"):
        beyond = np.ldexp(np.longdouble(1), 2 - smallest)
        gap = np.abs(np.clip(got, -beyond, beyond) - np.clip(want, -beyond, beyond))
    gap = np.where(np.isnan(gap) | np.isinf(want), np.inf, gap)
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    return np.where(same, 0, gap)


def ulp_diff(got: Any, want: Any, dtype: Any) -> np.ndarray:
    """|got - want| in units of the last place of `want` in `dtype`."""
    return distance(got, want, dtype) / ulp(want, dtype)


def exact_ulp_diff(got: Any, want: np.ndarray, dtype: Any) -> np.ndarray:
    """As `ulp_diff`, for the 50-digit numbers of `exact`, all in the range of `dtype`."""
    bits, smallest = FORMATS[np.dtype(dtype).name]
    got = np.asarray(got)
    assert got.shape == want.shape
    result = np.empty(want.shape)
    with mpmath.workdps(DIGITS):
        for index in np.ndindex(*want.shape):
            g, w = float(got[index]), want[index]
            exponent = int(mpmath.frexp(w)[1]) - 1 if w else smallest
            unit = mpmath.ldexp(1, max(exponent, smallest) - (bits - 1))
            result[index] = float(abs(mpmath.mpf(g) - w) / unit) if math.isfinite(g) else math.inf
    return result


# ---- rows


@dataclass(frozen=True)
class Rows:
    """An array as rows along its axis, with the temperature and the mask of each."""

    x: np.ndarray
    temperature: np.ndarray
    where: np.ndarray
    shape: tuple[int, ...]
    order: tuple[int, ...]
    rest_shape: tuple[int, ...]
    kept_shape: tuple[int, ...]

    def restore(self, rows: np.ndarray) -> np.ndarray:
        moved = rows.reshape([self.shape[d] for d in self.order])
        return moved.transpose(np.argsort(np.array(self.order, dtype=int)))

    def reduced(self, values: np.ndarray, keepdims: bool) -> np.ndarray:
        return values.reshape(self.kept_shape if keepdims else self.rest_shape)


def as_rows(x: Any, axis: Any = -1, temperature: Any = 1.0, where: Any = None) -> Rows:
    x = np.asarray(x)
    shape = x.shape
    if axis is None or x.ndim == 0:
        axes = tuple(range(x.ndim))
    else:
        axes = tuple(a % x.ndim for a in (axis if isinstance(axis, tuple) else (axis,)))
    rest = tuple(d for d in range(x.ndim) if d not in axes)
    order = rest + axes
    rest_shape = tuple(shape[d] for d in rest)
    kept_shape = tuple(1 if d in axes else shape[d] for d in range(x.ndim))
    two = (math.prod(rest_shape), math.prod(shape[d] for d in axes))
    t = np.asarray(temperature)
    t = np.broadcast_to(t, kept_shape if t.ndim == x.ndim else rest_shape)
    mask = np.broadcast_to(np.asarray(True if where is None else where), shape)
    return Rows(
        x=x.transpose(order).reshape(two),
        temperature=wide(t).reshape(two[0]),
        where=mask.transpose(order).reshape(two),
        shape=shape,
        order=order,
        rest_shape=rest_shape,
        kept_shape=kept_shape,
    )


def exact(op: str, x: Any, axis: Any = -1, temperature: Any = 1.0) -> np.ndarray:
    """The operation on finite entries at finite positive temperatures, as 50-digit numbers."""
    rows = as_rows(x, axis, np.asarray(temperature, dtype=np.float64))
    values = np.empty(rows.x.shape, dtype=object)
    sums = np.empty(len(rows.x), dtype=object)
    with mpmath.workdps(DIGITS):
        for i, row in enumerate(rows.x):
            t = mpmath.mpf(float(rows.temperature[i]))
            entries = [mpmath.mpf(float(v)) for v in row]
            first = max(range(len(entries)), key=entries.__getitem__)
            scaled = [(v - entries[first]) / t for v in entries]
            powers = [mpmath.exp(v) for v in scaled]
            rest = mpmath.fsum(p for j, p in enumerate(powers) if j != first)
            log_sum = mpmath.log1p(rest)
            sums[i] = entries[first] / t + log_sum
            values[i] = (
                [p / (1 + rest) for p in powers]
                if op == "softmax"
                else [s - log_sum for s in scaled]
            )
    return rows.reduced(sums, False) if op == "logsumexp" else rows.restore(values)


@dataclass(frozen=True)
class Reference:
    """What a call must give, and what its rounding error is allowed to grow with.

    `argument` is |x - max|/T for each entry (0 where the result is special); of logsumexp it is
    the larger of its two terms, |max|/T and log(sum).
    """

    value: np.ndarray
    argument: np.ndarray


def reference(
    op: str,
    x: Any,
    axis: Any = -1,
    temperature: Any = 1.0,
    where: Any = None,
    keepdims: bool = False,
    arithmetic: Any = None,
    compensated: bool = not LONGDOUBLE_IS_WIDE,
) -> Reference:
    """The operation by the rules, special rows before special temperatures.

    `arithmetic` is the type the package computes in, float32 or float64: a temperature whose
    reciprocal overflows in it counts as 0.
    """
    rows = as_rows(x, axis, temperature, where)
    arithmetic = np.dtype(arithmetic_of(rows.x.dtype) if arithmetic is None else arithmetic)
    a = wide(rows.x)
    a = np.where(rows.where, a, -np.inf)  # the value of a masked entry is never looked at
    t = rows.temperature[:, None]
    if compensated:
        a, t = a.astype(np.float64), t.astype(np.float64)
    with np.errstate(all="ignore"):
        largest = a.max(axis=1, initial=-np.inf, keepdims=True)
        nothing = ~rows.where.any(axis=1, keepdims=True)
        nan = np.isnan(a).any(axis=1, keepdims=True)
        posinf = (a == np.inf).any(axis=1, keepdims=True) & ~nan
        neginf = (largest == -np.inf) & ~nothing

        # a plain row, at any temperature
        limit = t * np.finfo(arithmetic).max < 1
        uniform = t == np.inf
        q, lost = _quotient(a, largest, np.where(limit | uniform, 1, t), compensated)
        q = np.where(limit, np.where(a == largest, 0, -np.inf), q)
        q = np.where(uniform, np.where(a == -np.inf, -np.inf, 0), q)
        lost = np.where(limit | uniform, 0, lost)
        power = np.where(q == -np.inf, 0, np.exp(q) * (1 + lost))
        first = np.zeros(a.shape, dtype=bool)
        if a.size:
            first[np.arange(len(a)), a.argmax(axis=1)] = True
        rest = _sum(np.where(first, 0, power), compensated)
        log_sum = np.log1p(rest)

        if op == "logsumexp":
            term, term_lost = _quotient(
                largest, np.zeros_like(largest), np.where(uniform, 1, t), compensated
            )
            term = np.where(uniform, 0, term)
            value = np.where(limit, term, (term + log_sum) + np.where(uniform, 0, term_lost))
            value = np.where(neginf | nothing, -np.inf, value)
            value = np.where(posinf, np.inf, value)
            value = np.where(nan, np.nan, value)
            argument = np.maximum(np.abs(term), log_sum)
            argument = np.where(np.isfinite(argument) & np.isfinite(value), argument, 0)
            return Reference(rows.reduced(value, keepdims), rows.reduced(argument, keepdims))

        value = power / (1 + rest) if op == "softmax" else (q - log_sum) + lost
        value = np.where(nan | posinf | neginf, np.nan, value)
        value = np.where(rows.where, value, 0 if op == "softmax" else -np.inf)
        argument = np.where(np.isfinite(q) & np.isfinite(value), np.abs(q), 0)
        return Reference(rows.restore(value), rows.restore(argument))


def _quotient(x: Any, largest: Any, t: Any, compensated: bool) -> tuple[Any, Any]:
    """(x - largest)/t, rounded, and what the rounding lost (0 where that does not matter)."""
    if not compensated:
        return (x - largest) / t, np.zeros(x.shape)
    half = np.where(np.isinf(x - largest) & np.isfinite(x), 0.5, 1.0)
    x, largest, t = x * half, largest * half, t * half
    difference = x - largest
    back = difference - x
    lost = (x - (difference - back)) - (largest + back)
    q = difference / t
    correction = (lost - _product_minus(q, t, difference)) / t
    return q, np.where(np.abs(correction) < 1e-9, correction, 0)


def _product_minus(a: Any, b: Any, p: Any) -> Any:
    """a*b - p to twice the precision, where p is about a*b (Dekker)."""

    def split(v: Any) -> tuple[Any, Any]:
        high = v * 134217729.0
        high = high - (high - v)
        return high, v - high

    (ah, al), (bh, bl) = split(a), split(b)
    return ((ah * bh - p) + ah * bl + al * bh) + al * bl


def _sum(a: np.ndarray, compensated: bool) -> np.ndarray:
    if compensated:
        return np.array([math.fsum(row) for row in a]).reshape(len(a), 1)
    return a.sum(axis=1, keepdims=True)


# ---- what the package promises


def arithmetic_of(x_dtype: Any, dtype: Any = None) -> np.dtype:
    """float32 for 16-bit and float32 arrays, float64 for all else and wherever float64 is asked
    for.
    """
    narrow = ("float16", "bfloat16", "float32")
    if np.dtype(x_dtype).name in narrow and (dtype is None or np.dtype(dtype).name in narrow):
        return np.dtype(np.float32)
    return np.dtype(np.float64)


def result_dtype(x_dtype: Any, dtype: Any = None) -> np.dtype:
    if dtype is not None:
        return np.dtype(dtype)
    name = np.dtype(x_dtype).name
    return np.dtype(x_dtype).newbyteorder("=") if name in FORMATS else np.dtype(np.float64)


def tolerance(op: str, want: Reference, arithmetic: Any, dtype: Any) -> np.ndarray:
    """How far a result of type `dtype` may be from `want`, entry by entry.

    Probabilities: 2 ULP (float64: 4) and the relative error |x - max|/T times half an epsilon,
    which is what one rounding of the exponent costs. Log-probabilities and logsumexp: 2 ULP and
    1e-7 (float64: 4 ULP and 1e-15). For float64 logsumexp is also given one rounding of each of
    its two terms, max/T and log(sum), which may cancel. A result of a narrower type is rounded
    once more.
    """
    arithmetic, dtype = np.dtype(arithmetic), np.dtype(dtype)
    bits, _ = FORMATS[arithmetic.name]
    value = np.where(np.isfinite(want.value), want.value, 0)
    single = arithmetic == np.float32
    allowed = (2 if single else 4) * ulp(value, arithmetic)
    if op == "softmax":
        allowed = allowed + want.argument * np.ldexp(np.longdouble(1), -bits) * value
    else:
        allowed = allowed + (1e-7 if single else 1e-15)
        if op == "logsumexp" and not single:
            allowed = allowed + want.argument * np.finfo(np.float64).eps
    if dtype != arithmetic and FORMATS[dtype.name][0] < bits:
        allowed = allowed + 0.5 * ulp(np.abs(value) + allowed, dtype)
        if dtype.name == "bfloat16":  # ml_dtypes rounds float64 to float32 on the way
            allowed = allowed + 0.5 * ulp(np.abs(value) + allowed, np.float32)
    return allowed


def assert_close(
    op: str, got: Any, x: Any, *, dtype: Any = None, want: Reference | None = None, **call: Any
) -> None:
    """`got`, which is `op(x, dtype=dtype, **call)`, is of the right shape and type and as exact as
    promised.
    """
    x_dtype = np.asarray(x).dtype
    arithmetic = arithmetic_of(x_dtype, dtype)
    if want is None:
        want = reference(op, x, arithmetic=arithmetic, **call)
    expected = result_dtype(x_dtype, dtype)
    assert got.dtype == expected, f"{op}: dtype {got.dtype}, not {expected}"
    assert got.shape == want.value.shape, f"{op}: shape {got.shape}, not {want.value.shape}"
    error = distance(got, want.value, expected)
    allowed = tolerance(op, want, arithmetic, expected)
    wrong = ~(error <= allowed)
    if wrong.any():
        worst = tuple(int(i) for i in np.argwhere(wrong)[np.argmax((error / allowed)[wrong])])
        off = ulp_diff(got[worst], want.value[worst], expected)
        details = repr(call)
        raise AssertionError(
            f"{op} of {x_dtype}{np.shape(x)} -> {expected}: {wrong.sum()} of {wrong.size} entries "
            f"are off; the worst at {worst}: got {got[worst]}, want {want.value[worst]}, error "
            f"{error[worst]:.3g} ({off:.3g} ULP), allowed {allowed[worst]:.3g}, |x - max|/T "
            f"{want.argument[worst]:.6g}; {details if len(details) < 400 else list(call)}"
        )

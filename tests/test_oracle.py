"""The references agree with each other, with SciPy and with PyTorch."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import scipy.special
from oracle import (
    FORMATS,
    OPS,
    Reference,
    assert_close,
    distance,
    exact,
    exact_ulp_diff,
    reference,
    ulp,
    ulp_diff,
    wide,
)
from support import generator

SCIPY = {op: getattr(scipy.special, op) for op in OPS}


def test_ulp() -> None:
    for dtype in (np.float16, np.float32, np.float64):
        info = np.finfo(dtype)
        a = np.array([1, 1.5, 2, info.max / 2, info.tiny, info.tiny / 4, 0], dtype=dtype)
        np.testing.assert_array_equal(ulp(a, dtype).astype(dtype), np.spacing(a))
        assert ulp(info.max, dtype) == 2 * np.spacing(info.max / 2)
    assert ulp(1.0, "float32") == 2.0**-23


def test_ulp_diff() -> None:
    f4 = np.float32
    inf, nan = np.inf, np.nan
    got = np.array(
        [1, np.nextafter(f4(1), f4(2)), 0.0, nan, inf, -inf, nan, inf, 1e-45, -3.4028235e38],
        dtype=f4,
    )
    want = np.array([1, 1, -0.0, nan, inf, -inf, 0, -inf, 0, -inf])
    np.testing.assert_array_equal(ulp_diff(got, want, f4), [0, 1, 0, 0, 0, 0, inf, inf, 1, inf])
    assert ulp_diff(f4(inf), 2.0**128, f4) == 0
    assert ulp_diff(f4(inf), 1e300, f4) == 0
    assert ulp_diff(f4(3e38), 1e300, f4) > 1e6
    assert ulp_diff(f4(nan), nan, f4) == 0
    assert distance(f4(0.5), 0.25, f4) == 0.25


def test_exact_ulp_diff() -> None:
    with mpmath.workdps(50):
        want = np.array([mpmath.mpf(1) + mpmath.mpf(2) ** -25, mpmath.mpf(10) ** -60], dtype=object)
    np.testing.assert_allclose(
        exact_ulp_diff(np.array([1, 1e-45], dtype="f4"), want, "f4"), [0.25, 1.0], atol=1e-10
    )
    assert exact_ulp_diff(np.array([np.nan], dtype="f4"), want[:1], "f4") == np.inf


def test_formats() -> None:
    for name in ("float16", "float32", "float64"):
        info = np.finfo(name)
        assert FORMATS[name] == (info.nmant + 1, info.minexp)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("axis", [0, 1, -1, (0, 2), (2, 0), None])
def test_scipy(op: str, axis: object) -> None:
    x = generator(op).normal(size=(3, 4, 5)) * 10
    for t in (1.0, 0.7, 12.0):
        want = SCIPY[op](x / t, axis=axis)
        np.testing.assert_allclose(
            np.float64(reference(op, x, axis, t).value), want, rtol=1e-13, atol=1e-15
        )
        np.testing.assert_allclose(np.float64(exact(op, x, axis, t)), want, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("op", OPS)
def test_torch(op: str) -> None:
    torch = pytest.importorskip("torch")
    x = generator(op).normal(size=(4, 50)) * 10
    x[0, 3], x[1, 7], x[2, 0], x[3] = np.nan, np.inf, -np.inf, -np.inf
    with np.errstate(all="ignore"):
        want = getattr(torch, op)(torch.from_numpy(x), dim=1).numpy()
        np.testing.assert_allclose(np.float64(reference(op, x).value), want, rtol=1e-13)
        np.testing.assert_allclose(
            np.float64(reference("logsumexp", x, keepdims=True).value),
            scipy.special.logsumexp(x, axis=1, keepdims=True),
            rtol=1e-13,
        )


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("compensated", [False, True])
def test_reference_against_50_digits(op: str, compensated: bool) -> None:
    rng = generator(op)
    x = rng.normal(size=(40, 30)) * 10.0 ** rng.uniform(-3, 3, size=(40, 1))
    t = 10.0 ** rng.uniform(-2, 2, size=40)
    want = exact(op, x, temperature=t)
    value = np.float64(reference(op, x, temperature=t, compensated=compensated).value)
    normal = np.vectorize(lambda w: abs(w) > 1e-290)(want)
    scale = np.abs(x).max(axis=-1) / t if op == "logsumexp" else 0 * t[:, None]
    error = np.abs(np.float64(value - want))
    assert (error <= 2 * np.abs(np.float64(want)) * 2.0**-52 + scale * 2.0**-52)[normal].all()


def test_wide_quotient_beyond_the_range_of_float64() -> None:
    x = np.array([1.7e308, -1.7e308])
    for compensated in (False, True):
        value = reference("softmax", x, temperature=1e308, compensated=compensated).value
        np.testing.assert_allclose(
            np.float64(value), scipy.special.softmax([1.7, -1.7]), rtol=1e-14
        )


def test_rules() -> None:
    """The rules themselves, on rows small enough to say the answer."""
    inf, nan = np.inf, np.nan

    def check(x, softmax, logsumexp, **kwargs):  # type: ignore[no-untyped-def]
        got = reference("softmax", x, **kwargs).value
        np.testing.assert_allclose(np.float64(got), softmax, rtol=1e-15)
        with np.errstate(divide="ignore"):
            log = np.float64(reference("log_softmax", x, **kwargs).value)
            np.testing.assert_allclose(log, np.log(np.asarray(softmax, dtype=float)), rtol=1e-15)
        if kwargs.get("temperature") != 0:
            got = np.float64(reference("logsumexp", x, **kwargs).value)
            np.testing.assert_allclose(got, logsumexp, rtol=1e-15)

    check([nan, inf, 1], [nan] * 3, nan)
    check([inf, -inf, 1], [nan] * 3, inf)
    check([-inf, -inf], [nan] * 2, -inf)
    check([nan, 1, 1], [0, 0.5, 0.5], 1 + np.log(2), where=[False, True, True])
    check([nan, 1, 1], [nan, nan, 0], nan, where=[True, True, False])
    check([inf, 1, 1], [nan, nan, 0], inf, where=[True, True, False])
    check([-inf, 1, 1], [nan, 0, 0], -inf, where=[True, False, False])
    check([nan, inf, 1], [0, 0, 0], -inf, where=False)
    check([1, 3, 3, -inf], [0, 0.5, 0.5, 0], None, temperature=0)
    check([1, 3, 3, -inf], [1 / 3, 1 / 3, 1 / 3, 0], np.log(3), temperature=inf)
    check([1, nan, 3, -inf], [nan] * 4, nan, temperature=inf)
    check([1, 3, 4], [0, 1, 0], inf, temperature=1e-310, where=[True, True, False])
    check(7.0, 1, 7)
    assert reference("logsumexp", np.zeros((3, 0))).value.tolist() == [-inf] * 3
    assert reference("softmax", np.zeros((0, 3))).value.shape == (0, 3)


def test_assert_close_tells_right_from_wrong() -> None:
    x = generator().normal(size=(3, 40)).astype("f4")
    right = reference("softmax", x).value.astype("f4")
    assert_close("softmax", right, x)
    wrong = right.copy()
    wrong[1, 5] *= np.float32(1 + 1e-6)
    with pytest.raises(AssertionError, match=r"1 of 120 entries are off; the worst at \(1, 5\)"):
        assert_close("softmax", wrong, x)
    with pytest.raises(AssertionError, match="dtype float64"):
        assert_close("softmax", wide(right).astype("f8"), x)
    with pytest.raises(AssertionError, match="shape"):
        assert_close("softmax", right[0], x)
    with pytest.raises(AssertionError, match="got nan"):
        assert_close("softmax", np.full_like(right, np.nan), x)
    zeros = Reference(np.zeros(2), np.zeros(2))
    with pytest.raises(AssertionError):
        assert_close("softmax", np.array([0, 1e-44], dtype="f4"), np.zeros(2, "f4"), want=zeros)

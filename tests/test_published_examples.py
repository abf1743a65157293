"""Numbers printed elsewhere, and limits anyone can work out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from fastsoftmax import log_softmax, logsumexp, softmax

pytestmark = pytest.mark.usefixtures("backend")

DTYPES = pytest.mark.parametrize(
    ("dtype", "rtol"), [("float64", 2e-15), ("float32", 5e-7)], ids=["float64", "float32"]
)
R = [1.0, 2.0, 3.0]
UNSAFE = [55.8906, -114.5621, 6.344, -30.2473, -44.144]


@DTYPES
@pytest.mark.parametrize(
    ("factor", "want"),
    [
        (1.0, [0.09003057, 0.24472847, 0.66524096]),
        (0.1, [0.30060961, 0.33222499, 0.3671654]),
        (10.0, [2.06106005e-09, 4.53978686e-05, 0.9999546]),
    ],
    ids=["r", "r/10", "10r"],
)
def test_softmax_of_1_2_3(dtype: str, rtol: float, factor: float, want: list[float]) -> None:
    """Printed to eight digits: as scaled logits and as a temperature."""
    printed = max(6e-8, 20 * rtol)
    r = np.array(R, dtype=dtype)
    assert_allclose(softmax(r * r.dtype.type(factor)), want, rtol=printed)
    assert_allclose(softmax(r, temperature=1 / factor), want, rtol=printed)
    exact = [math.exp(factor * (v - 3)) for v in R]
    exact = [v / sum(exact) for v in exact]
    assert_allclose(softmax(r, temperature=1 / factor), exact, rtol=4 * rtol)


@DTYPES
def test_logits_give_their_probabilities_back(dtype: str, rtol: float) -> None:
    x = np.log(np.array([0.25, 0.75])).astype(dtype)
    assert_allclose(softmax(x), [0.25, 0.75], rtol=rtol)
    assert_allclose(softmax(x, temperature=0.5), [0.1, 0.9], rtol=rtol)
    want = [0.44528931866219296, 0.5547106813378071]
    assert_allclose(softmax(x, temperature=5.0), want, rtol=rtol)
    assert_allclose(
        softmax(np.stack([x] * 3), temperature=[1.0, 0.5, 5.0]).sum(axis=1), 1, rtol=rtol
    )


@DTYPES
def test_where_the_textbook_formula_fails(dtype: str, rtol: float) -> None:
    """The logarithm of an underflown probability is -inf, and 0 times that is NaN."""
    x = np.array(UNSAFE, dtype=dtype)
    got = log_softmax(x)
    assert abs(got[2] - -49.5466) < 5e-5
    assert_allclose(got, np.array(UNSAFE) - 55.8906, rtol=10 * rtol, atol=1e-7)
    got = log_softmax(x, temperature=10.0)
    assert abs(got[2] - -4.9619) < 5e-5
    terms = [math.exp((v - UNSAFE[0]) / 10) for v in UNSAFE]
    want = [(v - UNSAFE[0]) / 10 - math.log(math.fsum(terms)) for v in UNSAFE]
    assert_allclose(got, want, rtol=10 * rtol)
    assert_allclose(logsumexp(x, temperature=10.0), 5.58906 + math.log(math.fsum(terms)), rtol=rtol)


@DTYPES
@pytest.mark.parametrize("tau", [5.0, 0.5])
def test_softmax_of_2_5_8(dtype: str, rtol: float, tau: float) -> None:
    powers = [math.exp(v / tau) for v in (2, 5, 8)]
    want = [p / sum(powers) for p in powers]
    got = softmax(np.array([2, 5, 8], dtype=dtype), temperature=tau)
    assert_allclose(got, want, rtol=8 * rtol)
    assert got[0] < got[1] < got[2]


@DTYPES
def test_clip_similarities(dtype: str, rtol: float) -> None:
    """Pairwise similarities of unit vectors, scaled by a logit scale per row: T = 1/scale."""
    rng = np.random.default_rng(7)
    image, text = rng.normal(size=(2, 6, 16))
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    similarity = (image @ text.T).astype(dtype)
    scale = np.array([1.0, 14.3, 100.0, 4.6, 50.0, 30.0])
    powers = np.exp(scale[:, None] * similarity.astype("f8"))
    want = powers / powers.sum(axis=1, keepdims=True)
    # The exponents reach 100, and each of their ULP is one of the result.
    assert_allclose(softmax(similarity, temperature=1 / scale), want, rtol=100 * rtol)
    assert_allclose(softmax(similarity, temperature=1 / scale[:, None]), want, rtol=100 * rtol)
    want = np.log(powers.sum(axis=1))
    assert_allclose(logsumexp(similarity, temperature=1 / scale), want, rtol=2 * rtol)
    # The other direction of the loss: over the images, a scale per text.
    powers = np.exp(scale * similarity.astype("f8"))
    want = powers / powers.sum(axis=0)
    got = softmax(similarity, axis=0, temperature=1 / scale)
    assert_allclose(got, want, rtol=100 * rtol)


@DTYPES
def test_limits_of_the_temperature(dtype: str, rtol: float) -> None:
    x = np.array([1, 4, 2, 4, -np.inf, 3], dtype=dtype)
    cold, hot = [0, 0.5, 0, 0.5, 0, 0], [0.2, 0.2, 0.2, 0.2, 0, 0.2]
    assert_array_equal(softmax(x, temperature=0), cold)
    assert_allclose(softmax(x, temperature=1e-6), cold, atol=1e-30)
    assert_allclose(softmax(x, temperature=np.inf), hot, rtol=rtol)
    assert_allclose(softmax(x, temperature=1e9), hot, rtol=1e-8 + rtol)
    with np.errstate(divide="ignore"):
        assert_allclose(log_softmax(x, temperature=0), np.log(cold), rtol=rtol)
        assert_allclose(log_softmax(x, temperature=np.inf), np.log(hot), rtol=rtol)
    assert_allclose(logsumexp(x, temperature=np.inf), math.log(5), rtol=rtol)
    assert_array_equal(softmax(np.array(R, dtype=dtype), temperature=0), [0, 0, 1])

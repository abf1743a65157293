"""cross_entropy, perplexity, token_logprobs, topk_logprobs, entropy, moments, kl_divergence."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import mpmath
import numpy as np
import pytest
import scipy.special
import scipy.stats
from numpy.testing import assert_allclose, assert_array_equal
from oracle import arithmetic_of, distance
from scoring_oracle import (
    allowed_error,
    has_distribution,
    logprobs,
    masked_logits,
    order,
    pack,
    rank,
    unpack,
)
from support import generator, real_token_ids, same_bits

import fastsoftmax
import fastsoftmax._backends
from fastsoftmax import (
    cross_entropy,
    entropy,
    kl_divergence,
    log_softmax,
    moments,
    openai_logprobs,
    perplexity,
    temperature_sweep,
    token_logprobs,
    topk_logprobs,
)
from fastsoftmax._backends._numpy_scoring import ReferenceScoring

INF, NAN = np.inf, np.nan
DTYPES = ("float16", "bfloat16", "float32", "float64")
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES)
LENGTHS = (1, 2, 3, 15, 16, 17, 31, 33, 64, 127, 1000, 2047, 2048, 2049, 4100, 33333)

pytestmark = pytest.mark.usefixtures("backend")


def make(shape: tuple[int, ...], dtype: str = "float32", scale: float = 4.0) -> np.ndarray:
    x = generator("scoring", shape, dtype).normal(size=shape) * scale
    return x.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def result_dtype(x: np.ndarray) -> np.dtype:
    return np.dtype(arithmetic_of(x.dtype))


def uses_the_reference() -> bool:
    """Whether the backend that serves scores with the reference."""
    return isinstance(fastsoftmax._backends.current(), ReferenceScoring)


def check_tokens(x: np.ndarray, ids: np.ndarray, temperature: object = 1.0, where=None) -> None:
    """token_logprobs of 2-D logits and 2-D ids against the oracle."""
    got = token_logprobs(x, ids, temperature=temperature, where=where)
    want = logprobs(x, temperature, where)
    value = np.take_along_axis(want.value, ids, axis=1)
    allowed = np.take_along_axis(allowed_error(want, x.dtype), ids, axis=1)
    assert got.logprobs.dtype == result_dtype(x)
    assert got.logprobs.shape == ids.shape
    error = distance(got.logprobs, value, result_dtype(x))
    assert (error <= allowed).all(), (error / allowed).max()
    values = masked_logits(x, where)
    ranks = [
        [rank(row, token) for token in tokens] for row, tokens in zip(values, ids, strict=True)
    ]
    assert got.ranks.dtype == np.int64
    assert_array_equal(got.ranks, ranks)


def check_topk(x: np.ndarray, k: int, temperature: object = 1.0, where=None) -> None:
    """topk_logprobs of 2-D logits against the oracle."""
    got = topk_logprobs(x, k, temperature=temperature, where=where)
    want = logprobs(x, temperature, where)
    allowed = allowed_error(want, x.dtype)
    assert got.ids.dtype == np.int64
    assert got.logprobs.dtype == result_dtype(x)
    assert got.ids.shape == got.logprobs.shape == (len(x), k)
    for i, values in enumerate(masked_logits(x, where)):
        best = order(values)[:k] if has_distribution(values) else []
        assert_array_equal(got.ids[i], best + [-1] * (k - len(best)))
        error = distance(got.logprobs[i, : len(best)], want.value[i, best], result_dtype(x))
        assert (error <= allowed[i, best]).all()
        assert np.isnan(got.logprobs[i, len(best) :]).all()


# ---- token_logprobs


@EACH_DTYPE
def test_token_logprobs(dtype: str) -> None:
    for n in LENGTHS:
        x = make((4, n), dtype)
        ids = generator("ids", n).integers(0, n, size=(4, 5))
        ids[:, 0] = np.argmax(x.astype("f8"), axis=1)
        ids[:, 1] = np.argmin(x.astype("f8"), axis=1)
        check_tokens(x, ids)
        check_tokens(x, ids, temperature=np.array([0.7, 1e-3, 30.0, INF]))
        check_tokens(x, ids, temperature=np.array([0.0, 1e-300, 1e-42, 1e30]))


@EACH_DTYPE
def test_token_logprobs_with_a_mask(dtype: str) -> None:
    for n in (1, 5, 33, 700, 5000):
        x = make((5, n), dtype)
        rng = generator("masked ids", n)
        where = rng.random((5, n)) < 0.7
        where[3] = False
        x[~where] = NAN
        ids = rng.integers(0, n, size=(5, 6))
        check_tokens(x, ids, where=where)
        check_tokens(x, ids, where=where, temperature=np.array([0.0, 0.5, INF, 1.0, 1e-300]))
        if n > 5:
            one_row = where[0]
            y = make((5, n), dtype)
            y[:, ~one_row] = INF
            check_tokens(y, ids, where=one_row)


def test_a_near_certain_token_keeps_its_relative_precision() -> None:
    for dtype in ("float32", "float64"):
        x = np.array([[0.0, -27.6], [0.0, -60.0]], dtype)
        want = [-math.log1p(math.exp(v)) for v in x[:, 1].astype(float)]
        rtol = 4e-7 if dtype == "float32" else 1e-15
        assert_allclose(token_logprobs(x, [0, 0]).logprobs, want, rtol=rtol)
        losses = cross_entropy(x, [0, 0], reduction="none")
        assert_allclose(losses, np.negative(want), rtol=rtol)
        assert_allclose(topk_logprobs(x, 1).logprobs[:, 0], want, rtol=rtol)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_in_50_digits(dtype: str) -> None:
    x = make((3, 40), dtype)
    got = token_logprobs(x, np.tile(np.arange(40), (3, 1)), temperature=0.7).logprobs
    m = moments(x, temperature=0.7)
    eps = 2.0 ** (-24 if dtype == "float32" else -53)
    with mpmath.workdps(50):
        t = mpmath.mpf(0.7)
        for i, row in enumerate(x):
            entries = [mpmath.mpf(float(v)) for v in row]
            powers = [mpmath.exp(v / t) for v in entries]
            total = mpmath.fsum(powers)
            p = [v / total for v in powers]
            for v in range(40):
                want = entries[v] / t - mpmath.log(total)
                limit = 1e-7 + 4 * eps * abs(want) if dtype == "float32" else 8 * eps * (1 - want)
                assert abs(float(got[i, v]) - want) <= limit
            mean = mpmath.fsum(a * b for a, b in zip(p, entries, strict=True))
            variance = mpmath.fsum(a * (b - mean) ** 2 for a, b in zip(p, entries, strict=True))
            want_entropy = -mpmath.fsum(a * mpmath.log(a) for a in p)
            loose = 64 * eps
            assert_allclose(float(m.logsumexp[i]), float(mpmath.log(total)), rtol=8 * eps)
            assert_allclose(float(m.mean[i]), float(mean), rtol=loose, atol=loose)
            assert_allclose(float(m.variance[i]), float(variance), rtol=loose, atol=loose)
            assert_allclose(float(m.entropy[i]), float(want_entropy), rtol=loose, atol=loose)


def test_shapes_of_token_ids() -> None:
    x = make((2, 3, 50))
    full = log_softmax(x)
    ids = generator("shapes").integers(0, 50, size=(2, 3))
    for given in (ids, ids.astype(np.int16), ids.astype(np.uint64), ids.tolist()):
        got = token_logprobs(x, given)
        assert got.logprobs.shape == got.ranks.shape == (2, 3)
        assert got.top_ids is None
        assert got.top_logprobs is None
        assert_allclose(
            got.logprobs, np.take_along_axis(full, ids[..., None], -1)[..., 0], rtol=1e-6
        )
    several = generator("several").integers(0, 50, size=(2, 3, 4))
    got = token_logprobs(x, several, top_n=2)
    assert got.logprobs.shape == got.ranks.shape == (2, 3, 4)
    assert got.top_ids.shape == got.top_logprobs.shape == (2, 3, 2)
    assert_allclose(got.logprobs, np.take_along_axis(full, several, -1), rtol=1e-6)
    assert_array_equal(token_logprobs(x, 7).logprobs, token_logprobs(x, [[7] * 3] * 2).logprobs)
    assert token_logprobs(x, np.empty((2, 3, 0), int)).logprobs.shape == (2, 3, 0)
    one = token_logprobs(x[0, 0], 7, top_n=3)
    assert isinstance(one.logprobs, np.float32)
    assert isinstance(one.ranks, np.int64)
    assert one.top_ids.shape == (3,)
    assert one.logprobs == token_logprobs(x, 7).logprobs[0, 0]
    assert token_logprobs(x[0, 0], [7, 8]).logprobs.shape == (2,)


def test_top_n_is_topk_logprobs(logits: np.ndarray) -> None:
    ids = real_token_ids()[:16]
    got = token_logprobs(logits, ids, top_n=20, temperature=0.7)
    top = topk_logprobs(logits, 20, temperature=0.7)
    assert_array_equal(got.top_ids, top.ids)
    assert same_bits(got.top_logprobs, top.logprobs)
    assert same_bits(got.logprobs, token_logprobs(logits, ids, temperature=0.7).logprobs)
    # A token among the best has there what it has here, and its rank says where.
    for i in range(16):
        assert token_logprobs(logits[i], top.ids[i, 4]).ranks <= 5
        again = token_logprobs(logits[i], top.ids[i], temperature=0.7).logprobs
        assert same_bits(again, top.logprobs[i])


# ---- special rows


def special_rows(dtype: str, n: int = 40) -> np.ndarray:
    x = make((8, n), dtype)
    x[0, n // 2] = NAN
    x[1, n - 1] = INF
    x[2] = -INF
    x[3, : n - 1] = -INF
    x[4, ::2] = -INF
    x[5, 3] = NAN
    x[5, 4] = INF
    x[6] = 7.0
    return x


@EACH_DTYPE
@pytest.mark.parametrize("n", [6, 40, 3000])
def test_special_rows(dtype: str, n: int) -> None:
    x = special_rows(dtype, n)
    ids = np.tile([0, 1, n // 2, n - 1], (8, 1))
    check_tokens(x, ids)
    check_topk(x, min(n, 30))
    where = np.ones((8, n), bool)
    where[:, 1] = False
    where[7] = False
    where[0, n // 2] = False
    for temperature in (1.0, 0.0, INF):
        check_tokens(x, ids, temperature, where=where)
        check_topk(x, min(n, 30), temperature, where=where)
    plain = [3, 4, 6, 7]
    for temperature in (1.0, 1e-323, INF):
        m = moments(x, temperature=temperature)
        kl = kl_divergence(x, x, temperature=temperature)
        for value in (entropy(x, temperature=temperature), m.mean, m.variance, kl):
            assert_array_equal(np.isnan(value), ~np.isin(np.arange(8), plain))
    assert_array_equal(np.isnan(entropy(x, temperature=0.0)), ~np.isin(np.arange(8), plain))
    want = scipy.special.logsumexp(x[:7].astype("f8"), axis=1)
    assert_allclose(moments(x).logsumexp[:7], want, rtol=4e-7)
    losses = cross_entropy(x, np.full(8, n - 1), reduction="none")
    assert_array_equal(np.isnan(losses), [True, True, True, False, False, True, False, False])
    assert np.isnan(cross_entropy(x, np.full(8, n - 1)))
    masked = moments(x, where=where)
    assert [float(v[7]) for v in masked] == [-INF, 0.0, 0.0, 0.0]
    assert entropy(x, where=where)[7] == 0.0
    assert kl_divergence(x, x, where=where)[7] == 0.0
    assert cross_entropy(x, np.full(8, 0), reduction="none", where=where)[7] == INF


@EACH_DTYPE
def test_limits_of_the_temperature(dtype: str) -> None:
    x = np.array([[1, 4, 2, 4, -INF, 3]], dtype=make((1,), dtype).dtype)
    ids = np.arange(6)[None]
    cold, hot = -math.log(2), -math.log(5)
    for t in (0.0, -0.0, 1e-320 if dtype == "float64" else 1e-300):
        got = token_logprobs(x, ids, temperature=t)
        assert_allclose(got.logprobs[0], [-INF, cold, -INF, cold, -INF, -INF], rtol=1e-7)
        assert_array_equal(got.ranks[0], [5, 1, 4, 1, 6, 3])
        top = topk_logprobs(x, 6, temperature=t)
        assert_array_equal(top.ids[0], [1, 3, 5, 2, 0, -1])
        assert_allclose(top.logprobs[0], [cold, cold, -INF, -INF, -INF, NAN], rtol=1e-7)
        assert_allclose(entropy(x, temperature=t), -cold, rtol=1e-7)
        assert cross_entropy(x, [0], temperature=t) == INF
    got = token_logprobs(x, ids, temperature=INF)
    assert_allclose(got.logprobs[0], [hot, hot, hot, hot, -INF, hot], rtol=1e-7)
    assert_array_equal(got.ranks[0], [5, 1, 4, 1, 6, 3])
    top = topk_logprobs(x, 6, temperature=INF)
    assert_array_equal(top.ids[0], [1, 3, 5, 2, 0, -1])
    m = moments(x, temperature=INF)
    assert_allclose([float(v[0]) for v in m], [-hot, 2.8, 1.36, -hot], rtol=1e-6)
    m = moments(x, temperature=1e-3)
    assert_allclose([float(v[0]) for v in m], [4000 - cold, 4.0, 0.0, -cold], rtol=1e-6)
    huge = moments(x, temperature=1e9)
    assert_allclose([float(v[0]) for v in huge], [-hot, 2.8, 1.36, -hot], rtol=1e-6)


# ---- topk_logprobs


@EACH_DTYPE
def test_topk(dtype: str) -> None:
    for n in LENGTHS:
        x = make((3, n), dtype)
        for k in {1, min(2, n), min(20, n), min(1024, n), min(n, 3000)}:
            check_topk(x, k, temperature=0.7)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_topk_with_ties(dtype: str) -> None:
    rng = generator("ties")
    for n in (7, 64, 1000, 5003):
        x = rng.integers(-2, 3, size=(4, n)).astype(dtype)
        x[0] = 1.5
        x[1] = 0.0
        x[1, ::3] = -0.0  # equal to 0
        for k in (1, 2, min(n, 50), n):
            check_topk(x, k)


def test_topk_in_the_worst_orders() -> None:
    n = 10_000
    rise = np.sort(make((n,)))
    stairs = np.arange(n) // 1024 + generator("stairs").random(n)  # blocks above all before them
    orders = [rise, rise[::-1], np.full(n, 2.0), np.roll(rise, 17), -np.abs(rise), stairs]
    x = np.stack(orders).astype("f4")
    x[4, -1] = 100
    for k in (1, 20, 64, 65, 128, 129, 256, 500, 1024, n):
        check_topk(x, k)


def test_topk_with_masks() -> None:
    x = make((4, 900))
    where = generator("topk mask").random((4, 900)) < 0.05
    where[2] = False
    x[~where] = 1e30
    check_topk(x, 100, where=where)
    x[0, where[0]] = -INF
    check_topk(x, 100, where=where)


def test_topk_beside_torch(logits: np.ndarray) -> None:
    torch = pytest.importorskip("torch")
    x = logits.astype("f4")
    want = torch.topk(torch.log_softmax(torch.tensor(x.astype("f8")) / 0.7, -1), 50)
    got = topk_logprobs(x, 50, temperature=0.7)
    assert_allclose(got.logprobs, want.values.numpy(), rtol=3e-7, atol=1e-7)
    assert_array_equal(np.take_along_axis(x, got.ids, 1), -np.sort(-x, axis=1)[:, :50])


# ---- cross_entropy


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy_beside_torch(dtype: str, smoothing: float, reduction: str) -> None:
    torch = pytest.importorskip("torch")
    rng = generator("cross entropy")
    for shape in ((6, 9), (2, 5, 1000), (3, 4100)):
        x = (rng.normal(size=shape) * 5).astype(dtype)
        y = rng.integers(0, shape[-1], size=shape[:-1])
        y.flat[1] = -100
        y.flat[2] = -7
        for ignore in (-100, -7):
            counted = np.where(y == -107 - ignore, 0, y)
            for t in (1.0, 0.6):
                want = torch.nn.functional.cross_entropy(
                    torch.tensor(x.astype("f8")).reshape(-1, shape[-1]) / t,
                    torch.tensor(counted).reshape(-1),
                    ignore_index=ignore,
                    label_smoothing=smoothing,
                    reduction=reduction,
                ).numpy()
                got = cross_entropy(
                    x,
                    counted,
                    temperature=t,
                    ignore_index=ignore,
                    label_smoothing=smoothing,
                    reduction=reduction,
                )
                assert got.dtype == dtype
                assert got.shape == (shape[:-1] if reduction == "none" else ())
                rtol = 2e-6 if dtype == "float32" else 1e-13
                assert_allclose(got, want.reshape(got.shape), rtol=rtol, atol=1e-7)


def test_cross_entropy_on_real_logits(logits: np.ndarray) -> None:
    torch = pytest.importorskip("torch")
    ids = real_token_ids()[:16]
    want = torch.nn.functional.cross_entropy(
        torch.tensor(logits.astype("f8")), torch.tensor(ids.astype("i8"))
    )
    assert_allclose(cross_entropy(logits, ids), want.item(), rtol=1e-6)
    assert_allclose(perplexity(logits, ids), math.exp(want.item()), rtol=1e-6)
    assert isinstance(perplexity(logits, ids), np.float32)


def test_ignored_rows_are_not_looked_at() -> None:
    x = make((4, 30))
    x[1] = NAN
    y = [3, -100, 29, -100]
    losses = cross_entropy(x, y, reduction="none")
    assert_array_equal(losses[[1, 3]], 0.0)
    want = cross_entropy(x[::2], [3, 29])
    assert cross_entropy(x, y) == want
    assert cross_entropy(x, y, label_smoothing=0.1) == cross_entropy(
        x[::2], [3, 29], label_smoothing=0.1
    )
    assert np.isnan(cross_entropy(x, [-100] * 4))
    assert cross_entropy(x, [-100] * 4, reduction="sum") == 0.0
    assert np.isnan(perplexity(x, [-100] * 4))
    assert np.isnan(cross_entropy(x[:0], np.empty(0, int)))
    assert cross_entropy(x[:0], np.empty(0, int), reduction="none").shape == (0,)
    # 29 is a token here, and there the mark of a row that does not count.
    assert cross_entropy(x[[0, 2]], [3, 29], ignore_index=29) == cross_entropy(x[:1], [3])


def test_smoothing_under_a_mask_is_that_of_the_smaller_vocabulary() -> None:
    torch = pytest.importorskip("torch")
    x = make((5, 200), "float64")
    keep = generator("smaller").random(200) < 0.4
    small = x[:, keep]
    y = generator("smaller y").integers(0, small.shape[1], size=5)
    x[:, ~keep] = NAN
    want = torch.nn.functional.cross_entropy(
        torch.tensor(small), torch.tensor(y), label_smoothing=0.2
    )
    got = cross_entropy(x, np.flatnonzero(keep)[y], label_smoothing=0.2, where=keep)
    assert_allclose(got, want.item(), rtol=1e-13)


def test_the_mean_is_accumulated_in_float64() -> None:
    """In float32 the sum of so many losses would stop to grow."""
    x = np.zeros((30_000, 2), "f4")
    x[:, 1] = np.linspace(0, 1e-3, len(x))
    y = np.zeros(len(x), int)
    losses = np.log1p(np.exp(x[:, 1].astype("f8")))
    assert_allclose(cross_entropy(x, y), losses.mean(), rtol=1e-7)


def test_infinite_losses() -> None:
    x = np.array([[0.0, -INF, 1.0]])
    assert cross_entropy(x, [1]) == INF
    assert perplexity(x, [1]) == INF
    assert cross_entropy(x, [0], where=[[False, True, True]]) == INF
    assert cross_entropy(x, [0], label_smoothing=0.1) == INF
    assert perplexity(np.array([[0.0, -800.0]], "f4"), [1]) == INF  # beyond float64


# ---- entropy, moments, KL


@EACH_DTYPE
@pytest.mark.parametrize("temperature", [1.0, 0.3, 20.0])
def test_moments(dtype: str, temperature: float) -> None:
    for n in LENGTHS:
        for shift in (0.0, 300.0):
            x = (make((3, n), dtype).astype("f8") + shift).astype(make((1,), dtype).dtype)
            a = x.astype(np.longdouble)
            top = a.max(axis=1, keepdims=True)
            z = (a - top) / np.longdouble(temperature)
            p = np.exp(z)
            p /= p.sum(axis=1, keepdims=True)
            mean = (p * (a - top)).sum(axis=1, keepdims=True)
            variance = (p * (a - top - mean) ** 2).sum(axis=1)
            plogp = -(p * np.log(p)).sum(axis=1)
            eps = float(np.finfo(result_dtype(x)).eps)
            square = (p * z * z).sum(axis=1)
            cube = (p * np.abs(z) ** 3).sum(axis=1)
            got = moments(x, temperature=temperature)
            assert all(v.dtype == result_dtype(x) and v.shape == (3,) for v in got)
            want = fastsoftmax.logsumexp(x, temperature=temperature, dtype=result_dtype(x))
            assert_allclose(got.logsumexp, want, rtol=4 * eps, atol=1e-7)
            size = np.abs(a).max()
            spread = temperature * (1 + square)
            assert (np.abs(got.mean - (top + mean)[:, 0]) <= 2 * eps * (size + spread)).all()
            limit = 4 * eps * temperature**2 * (1 + cube)
            assert (np.abs(got.variance - variance) <= limit).all()
            assert (np.abs(got.entropy - plogp) <= 2 * eps * (2 + square)).all()
            assert (got.variance >= 0).all()
            assert (got.entropy >= 0).all()
            assert same_bits(entropy(x, temperature=temperature), got.entropy)


def test_entropy_beside_scipy(logits: np.ndarray) -> None:
    x = logits.astype("f8")
    want = scipy.stats.entropy(scipy.special.softmax(x / 0.8, axis=1), axis=1)
    assert_allclose(entropy(logits, temperature=0.8), want, rtol=3e-6)
    assert_allclose(entropy(x, temperature=0.8), want, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_moments_of_every_size_of_logit(dtype: str) -> None:
    """Also where squares of logits leave the range of the arithmetic before they are weighed."""
    unit = make((3, 300), "float64", scale=1.0)
    for size in (1e-30, 1e-18, 1e-9, 1e9, 1e18, 1e30, 3e37):
        x = (unit * size).astype(dtype)
        for ratio in (0.3, 5.0, 40.0, 1e10, 1e21, 1e39):  # up to temperatures beyond float32
            t = np.longdouble(size * ratio)
            z = (x - x.max(axis=1, keepdims=True).astype(np.longdouble)) / t
            p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
            mean = (p * x).sum(axis=1)
            variance = (p * (x - mean[:, None]) ** 2).sum(axis=1)
            got = moments(x, temperature=size * ratio)
            rtol = 1e-5 if dtype == "float32" else 1e-12
            with np.errstate(over="ignore", under="ignore"):
                assert_allclose(got.mean, mean.astype(dtype), rtol=rtol, atol=size * rtol)
                want = variance.astype(dtype)
            assert_allclose(got.variance, want, rtol=rtol, atol=np.finfo(dtype).smallest_normal)
            entropy_of_rows = -(p * np.log(p)).sum(axis=1)
            assert_allclose(got.entropy, entropy_of_rows.astype(dtype), rtol=rtol)


def test_moments_are_the_derivatives_by_the_inverse_temperature() -> None:
    x = make((1, 500), "float64")
    b, h = 1.3, 1e-4
    around = [float(moments(x, temperature=1 / v).logsumexp[0]) for v in (b - h, b, b + h)]
    m = moments(x, temperature=1 / b)
    assert_allclose(m.mean[0], (around[2] - around[0]) / (2 * h), rtol=1e-6)
    assert_allclose(m.variance[0], (around[2] - 2 * around[1] + around[0]) / h**2, rtol=1e-4)


@EACH_DTYPE
def test_kl_divergence(dtype: str) -> None:
    for n in LENGTHS:
        p, q = make((3, n), dtype), make((3, n), dtype)[::-1].copy()
        t_p, t_q = np.array([1.0, 0.5, 3.0]), 2.0
        log_p = scipy.special.log_softmax(p.astype("f8") / t_p[:, None], axis=1)
        log_q = scipy.special.log_softmax(q.astype("f8") / t_q, axis=1)
        want = scipy.special.rel_entr(np.exp(log_p), np.exp(log_q)).sum(axis=1)
        got = kl_divergence(p, q, temperature=t_p, q_temperature=t_q)
        assert got.dtype == result_dtype(p)
        rtol = 1e-5 if got.dtype == np.float32 else 1e-12
        assert_allclose(got, want, rtol=rtol, atol=rtol)
        own = kl_divergence(p, p, temperature=0.7)
        assert (own >= 0).all()
        assert_allclose(own, 0.0, atol=2e-6 if got.dtype == np.float32 else 1e-14)


def test_kl_divergence_of_nearly_equal_rows() -> None:
    """Terms that cancel but for a millionth of them leave nothing of their rounding."""
    for n in (10, 2000, 5000):
        p = make((3, n), "float32")
        q = p + (make((3, n), "float64")[::-1] * 1e-4).astype("f4")
        log_p, log_q = logprobs(p).value, logprobs(q).value
        want = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
        assert (want < 1e-7).all()
        assert_allclose(kl_divergence(p, q), want.astype("f8"), rtol=1e-6)


def test_kl_divergence_beside_torch(logits: np.ndarray) -> None:
    torch = pytest.importorskip("torch")
    p, q = logits[:8].astype("f8"), logits[8:].astype("f8")
    want = torch.nn.functional.kl_div(
        torch.log_softmax(torch.tensor(q), -1),
        torch.log_softmax(torch.tensor(p), -1),
        log_target=True,
        reduction="none",
    ).sum(-1)
    assert_allclose(kl_divergence(logits[:8], logits[8:]), want.numpy(), rtol=1e-5)
    assert_allclose(kl_divergence(p, q), want.numpy(), rtol=1e-12)


def test_kl_divergence_of_two_dtypes_and_layouts() -> None:
    p = make((6, 70), "float64")
    q = np.asfortranarray(make((6, 70), "float16"))
    want = kl_divergence(p, q.astype("f8"))
    assert want.dtype == np.float64
    assert_allclose(kl_divergence(p, q), want, rtol=1e-13)
    assert_allclose(kl_divergence(p, np.asarray(q, ">f2")), want, rtol=1e-13)
    assert_allclose(kl_divergence(p.astype(">f8"), q), want, rtol=1e-13)
    assert_allclose(kl_divergence(p, q[0]), kl_divergence(p, np.tile(q[0], (6, 1))), rtol=1e-13)
    assert kl_divergence(p[0], q).shape == (6,)
    integers = np.arange(12).reshape(2, 6)
    assert_allclose(
        kl_divergence(integers, integers[:, ::-1]),
        kl_divergence(integers.astype("f8"), integers[:, ::-1].astype("f8")),
        rtol=1e-13,
    )
    large = make((1, 70), "float32") + np.float32(1e6)
    assert_allclose(kl_divergence(large, large), 0.0, atol=2e-6)


def test_divergence_at_temperatures_below_float32() -> None:
    """They are no limit: the arithmetic is float64 for logits of any type."""
    p, q = np.array([1.0, 2.0, 3.0]), np.array([-INF, 2.0, 3.0])
    for dtypes in (("f4", "f4"), ("f2", "f8"), ("f8", "f4")):
        a, b = p.astype(dtypes[0]), q.astype(dtypes[1])
        assert kl_divergence(a, b, temperature=1e-42) == INF
        assert kl_divergence(a, b, temperature=0) == 0
        assert_allclose(kl_divergence(b, a, temperature=1e-42), 0.0, atol=1e-12)


def test_infinite_divergence() -> None:
    p = np.array([[1.0, 2.0, -INF], [1.0, -INF, 3.0], [1.0, -2000.0, 3.0], [0, 0, 0]])
    q = np.array([[1.0, 2.0, 3.0], [1.0, -INF, 3.0], [1.0, -INF, 3.0], [NAN, 0, 0]])
    got = kl_divergence(p, q)
    want = scipy.special.rel_entr(*(scipy.special.softmax(a[0]) for a in (p, q))).sum()
    assert_allclose(got[0], want, rtol=1e-13)
    assert_array_equal(got[1:], [0.0, INF, NAN])
    where = [[True, False, True]] * 4
    assert_array_equal(np.isinf(kl_divergence(p, q, where=where)), [False] * 4)
    # At temperature 0 all mass is on the maxima.
    ties = np.array([[5.0, 5.0, 1.0]])
    assert_allclose(
        kl_divergence(ties, np.zeros((1, 3)), temperature=0, q_temperature=1),
        math.log(1.5),
        rtol=1e-13,
    )
    assert kl_divergence(np.zeros((1, 3)), ties, temperature=1, q_temperature=0) == INF


# ---- temperature_sweep


def test_temperature_sweep(logits: np.ndarray) -> None:
    temperatures = [0.3, 1.0, 2.5, INF]
    ids = real_token_ids()[:16]
    got = temperature_sweep(logits, temperatures, ids)
    assert got.logsumexp.shape == got.entropy.shape == got.nll.shape == (4, 16)
    assert got.nll.dtype == np.float32
    for i, t in enumerate(temperatures):
        m = moments(logits, temperature=t)
        assert same_bits(got.logsumexp[i], m.logsumexp)
        assert same_bits(got.entropy[i], m.entropy)
        assert same_bits(got.nll[i], cross_entropy(logits, ids, temperature=t, reduction="none"))
    x = logits.astype("f8").reshape(2, 8, -1)
    got = temperature_sweep(x, temperatures[:3], ids.reshape(2, 8))
    assert got.nll.shape == (3, 2, 8)
    for i, t in enumerate(temperatures[:3]):
        want = scipy.special.log_softmax(x / t, axis=-1)
        want = np.take_along_axis(want, ids.reshape(2, 8, 1), -1)[..., 0]
        assert_allclose(got.nll[i], -want, rtol=1e-12, atol=1e-15)


def test_temperature_sweep_of_one_row_and_with_masks() -> None:
    x = make((40,))
    where = np.arange(40) % 3 > 0
    got = temperature_sweep(x, [0.5, 2.0], 4, where=where)
    assert got.nll.shape == (2,)
    assert temperature_sweep(x, [0.5, 2.0]).nll is None
    for i, t in enumerate((0.5, 2.0)):
        assert got.entropy[i] == entropy(x, temperature=t, where=where)
        assert got.nll[i] == cross_entropy(x, 4, temperature=t, where=where)
    packed = temperature_sweep(x, [0.5, 2.0], 4, token_bitmask=pack(where))
    assert all(same_bits(a, b) for a, b in zip(got, packed, strict=True))
    assert temperature_sweep(x, []).entropy.shape == (0,)
    for bad in (1.0, [[1.0]]):
        with pytest.raises(ValueError, match="temperatures has shape"):
            temperature_sweep(x, bad)
    with pytest.raises(ValueError, match="temperatures is 0"):
        temperature_sweep(x, [1.0, 0.0])
    with pytest.raises(IndexError, match=r"targets is 40; it must be in \[0, 40\)"):
        temperature_sweep(x, [1.0], 40)


# ---- masks, layouts, batches


def backwards(x: np.ndarray) -> np.ndarray:
    return x[::-1] if isinstance(x, np.ndarray) else x.flip(0)


def all_functions(x: np.ndarray, ids: np.ndarray, **kwargs: object) -> list[np.ndarray]:
    """Every result of every function, of 2-D logits and one token a row."""
    return [
        *token_logprobs(x, ids, top_n=min(5, x.shape[1]), **kwargs),
        *topk_logprobs(x, min(7, x.shape[1]), **kwargs),
        *moments(x, **kwargs),
        cross_entropy(x, ids, reduction="none", label_smoothing=0.1, **kwargs),
        entropy(x, **kwargs),
        kl_divergence(x, backwards(x), **kwargs),
    ]


def test_the_packed_mask_by_hand() -> None:
    """Bit v % 32 of word v // 32 says whether token v is allowed."""
    x = np.zeros((1, 70), "f4")
    words = np.array([[1 | 1 << 31, 0, 1 << 5]], np.uint32)
    for mask in (words, words.view(np.int32)):
        got = topk_logprobs(x, 4, token_bitmask=mask)
        assert_array_equal(got.ids, [[0, 31, 69, -1]])
        assert_allclose(got.logprobs[0, :3], -math.log(3), rtol=1e-7)


@pytest.mark.parametrize("n", [1, 31, 32, 33, 64, 100, 4100])
def test_the_packed_mask_is_where(n: int) -> None:
    x = make((6, n))
    where = generator("packed", n).random((6, n)) < 0.5
    where[2] = False
    where[3] = True
    mask = pack(where)
    assert_array_equal(unpack(mask, n), where)
    ids = np.arange(6) % n
    want = all_functions(x, ids, where=where)
    for a, b in zip(all_functions(x, ids, token_bitmask=mask), want, strict=True):
        assert same_bits(a, b)
    spread = np.empty((6, 2 * mask.shape[1]), np.int32)
    spread[:, ::2] = mask
    # Bits beyond the vocabulary mean nothing.
    beyond = mask | ~pack(np.ones(n, bool))
    for other in (spread[:, ::2], beyond, mask.astype(">i4")):
        got = all_functions(x, ids, token_bitmask=other)
        assert all(same_bits(a, b) for a, b in zip(got, want, strict=True))
    one = all_functions(x, ids, token_bitmask=mask[0])
    want = all_functions(x, ids, where=where[0])
    assert all(same_bits(a, b) for a, b in zip(one, want, strict=True))
    other = generator("other", n).random(n) < 0.8
    both = all_functions(x, ids, token_bitmask=mask, where=other)
    want = all_functions(x, ids, where=where & other)
    assert all(same_bits(a, b) for a, b in zip(both, want, strict=True))
    three = entropy(x.reshape(2, 3, n), token_bitmask=mask.reshape(2, 3, -1))
    assert same_bits(three.reshape(-1), entropy(x, where=where))


def layouts(x: np.ndarray) -> dict[str, np.ndarray]:
    n = x.shape[1]
    every = np.zeros((len(x), 3 * n), x.dtype)
    every[:, ::3] = x
    raw = np.empty(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    raw[...] = x
    readonly = x.copy()
    readonly.flags.writeable = False
    result = {
        "Fortran": np.asfortranarray(x),
        "every third": every[:, ::3],
        "backwards": x[::-1, ::-1].copy()[::-1, ::-1],
        "read-only": readonly,
        "unaligned": raw,
    }
    if x.dtype.name != "bfloat16":
        result["byte-swapped"] = x.astype(x.dtype.newbyteorder("S"))
    return result


@EACH_DTYPE
def test_layouts_give_the_same_bits(dtype: str) -> None:
    for n in (5, 777, 5000):
        x = make((7, n), dtype)
        ids = np.arange(7) % n
        want = all_functions(x, ids, temperature=0.7)
        for name, y in layouts(x).items():
            before = y.tobytes()
            got = all_functions(y, ids, temperature=0.7)
            assert all(same_bits(a, b) for a, b in zip(got, want, strict=True)), name
            assert y.tobytes() == before


def test_integers_and_bools() -> None:
    x = generator("integers").integers(-9, 9, size=(4, 60))
    ids = np.arange(4)
    want = all_functions(x.astype("f8"), ids)
    for dtype in ("i1", "i8", ">i2", "u1"):
        y = x.astype(dtype)
        want = all_functions(y.astype("f8"), ids)
        assert all(same_bits(a, b) for a, b in zip(all_functions(y, ids), want, strict=True))
    flags = x > 0
    want = all_functions(flags.astype("f8"), ids)
    assert all(same_bits(a, b) for a, b in zip(all_functions(flags, ids), want, strict=True))
    many = np.tile(x.astype("i2"), (3000, 1))  # more than one piece is converted
    assert same_bits(entropy(many), np.tile(entropy(x), 3000))
    several = many.reshape(3, 1000, 4, 60)
    assert same_bits(entropy(several), np.tile(entropy(x), 3000).reshape(3, 1000, 4))


@EACH_DTYPE
def test_a_row_is_the_same_in_any_batch(dtype: str) -> None:
    x = make((40, 3001), dtype)
    ids = generator("any batch").integers(0, 3001, size=40)
    t = generator("any t").uniform(0.2, 3.0, size=40)
    whole = all_functions(x, ids, temperature=t)[:-1]  # but for KL, of the rows backwards
    for i in (0, 17, 39):
        alone = all_functions(x[i : i + 1], ids[i : i + 1], temperature=t[i : i + 1])[:-1]
        assert all(same_bits(a[0], b[i]) for a, b in zip(alone, whole, strict=True))
        one = topk_logprobs(x[i], 5, temperature=t[i])
        assert same_bits(one.logprobs, topk_logprobs(x, 5, temperature=t).logprobs[i])


def test_temperatures_broadcast_as_for_softmax() -> None:
    x = make((2, 3, 40))
    t = np.array([[0.5, 1.0, 2.0], [3.0, 4.0, 5.0]])
    want = np.array([[entropy(x[i, j], temperature=t[i, j]) for j in range(3)] for i in range(2)])
    assert same_bits(entropy(x, temperature=t), want)
    assert same_bits(entropy(x, temperature=t[..., None]), want)
    assert same_bits(entropy(x, temperature=t[0]), entropy(x, temperature=np.stack([t[0]] * 2)))
    ids = np.zeros((2, 3), int)
    losses = cross_entropy(x, ids, temperature=t, reduction="none")
    assert_allclose(losses[1, 2], cross_entropy(x[1, 2], 0, temperature=5.0))


def test_tensors_of_torch() -> None:
    """In without a copy, bfloat16 and float16 too, and out as tensors."""
    torch = pytest.importorskip("torch")
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        x = torch.tensor(make((4, 300))).to(dtype)
        same = x.float().numpy() if dtype != torch.float64 else x.numpy()
        ids = torch.tensor([3, 299, 0, 7])
        mask = torch.tensor(pack(np.arange(300) % 3 > 0))
        t = torch.tensor([0.5, 1.0, 2.0, 1.5])
        got = all_functions(x, ids, temperature=t, token_bitmask=mask)
        want = all_functions(same, ids.numpy(), temperature=t.numpy(), token_bitmask=mask.numpy())
        for a, b in zip(got, want, strict=True):
            assert isinstance(a, torch.Tensor)
            assert same_bits(a.numpy(), b)
        losses = cross_entropy(x, ids)
        assert isinstance(losses, torch.Tensor)
        assert losses.shape == ()
        assert losses.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert isinstance(perplexity(x, ids), torch.Tensor)
        sweep = temperature_sweep(x, t, ids)
        assert all(isinstance(v, torch.Tensor) and v.shape == (4, 4) for v in sweep)
        shape = openai_logprobs(ids, token_logprobs(x, ids, top_n=3), str)
        assert len(shape["content"]) == 4
    assert isinstance(kl_divergence(x.numpy(), x), torch.Tensor)
    assert isinstance(entropy(x.numpy(), temperature=t), np.ndarray)
    with pytest.raises(
        TypeError, match=r"logits requires grad; it must not: pass logits.detach\(\)"
    ):
        entropy(x.requires_grad_())


# ---- nothing to do


def test_no_rows_and_no_vocabulary() -> None:
    x = np.empty((0, 5), "f4")
    assert topk_logprobs(x, 3).ids.shape == (0, 3)
    assert token_logprobs(x, np.empty((0, 2), int), top_n=1).logprobs.shape == (0, 2)
    assert token_logprobs(x, []).logprobs.shape == (0,)
    assert entropy(x).shape == (0,)
    assert kl_divergence(x, x).shape == (0,)
    none = np.empty((3, 0), "f4")
    assert topk_logprobs(none, 0).ids.shape == (3, 0)
    assert_array_equal(entropy(none), [0.0] * 3)
    assert_array_equal(moments(none).logsumexp, [-INF] * 3)
    assert np.isnan(cross_entropy(none, [-100] * 3))
    assert token_logprobs(none, np.empty((3, 0), int)).logprobs.shape == (3, 0)
    with pytest.raises(IndexError, match=r"token_ids\[0\] is 0; it must be in \[0, 0\)"):
        token_logprobs(none, [0, 0, 0])
    one = np.array([[3.0]])
    assert [float(v[0]) for v in moments(one)] == [3.0, 3.0, 0.0, 0.0]
    assert token_logprobs(one, [0], top_n=1).logprobs == 0.0
    assert not np.signbit(cross_entropy(one, [0]))


# ---- errors


def test_errors() -> None:
    x = make((2, 3, 10))
    y = np.zeros((2, 3), int)
    for bad in (x.astype(complex), x.astype(str), x.astype(object)):
        for call in (
            entropy,
            moments,
            lambda a: topk_logprobs(a, 1),
            lambda a: cross_entropy(a, y),
        ):
            with pytest.raises(TypeError, match=r"logits has dtype .* it must be float16"):
                call(bad)
    with pytest.raises(TypeError, match="q_logits has dtype"):
        kl_divergence(x, x.astype(complex))
    for call in (entropy, lambda a: topk_logprobs(a, 0), lambda a: temperature_sweep(a, [1.0])):
        with pytest.raises(ValueError, match="logits is a scalar"):
            call(3.0)
    for t, message in ((-1.0, "temperature is -1.0"), (NAN, "temperature is nan")):
        with pytest.raises(ValueError, match=message):
            entropy(x, temperature=t)
    with pytest.raises(ValueError, match=r"temperature is 0\.0"):
        moments(x, temperature=0)
    with pytest.raises(ValueError, match=r"temperature has shape \(4,\)"):
        entropy(x, temperature=[1.0] * 4)
    for t in (-1.0, [[1.0, NAN, 3.0]] * 2):
        with pytest.raises(ValueError, match=r"q_temperature is (-1\.0|nan)"):
            kl_divergence(x, x, q_temperature=t)
    with pytest.raises(ValueError, match=r"where has shape .* that of logits, \(2, 3, 10\)"):
        entropy(x, where=np.ones(9, bool))
    with pytest.raises(TypeError, match="logits is a masked array"):
        entropy(np.ma.array(x))
    with pytest.raises(TypeError, match="targets is None; it must be an integer"):
        cross_entropy(x, None)
    with pytest.raises(TypeError, match="where has dtype"):
        entropy(x, where=np.ones(10))
    with pytest.raises(TypeError, match="token_bitmask has dtype int64; it must be int32"):
        entropy(x, token_bitmask=np.ones((2, 3, 1), int))
    for shape in ((2, 3, 2), (3, 2, 1), (4, 3, 1), ()):
        with pytest.raises(ValueError, match=r"token_bitmask has shape .*\(2, 3, 1\)"):
            entropy(x, token_bitmask=np.ones(shape, np.int32))
    with pytest.raises(IndexError, match=r"token_ids\[1, 0\] is 10; it must be in \[0, 10\)"):
        token_logprobs(x, [[0, 1, 2], [10, -1, 0]])
    with pytest.raises(IndexError, match=r"token_ids\[0, 2\] is -1; it must be in \[0, 10\)"):
        token_logprobs(x, [[0, 1, -1], [10, -1, 0]])
    with pytest.raises(IndexError, match="token_ids is 18446744073709551615"):
        token_logprobs(x[0, 0], np.uint64(2**64 - 1))
    with pytest.raises(IndexError, match=r"targets\[0, 1\] is -100"):
        cross_entropy(x, [[0, -100, 1], [1, 2, 3]], ignore_index=-1)
    with pytest.raises(TypeError, match="token_ids has dtype float64; it must be an integer"):
        token_logprobs(x, np.zeros((2, 3)))
    with pytest.raises(TypeError, match="targets has dtype bool"):
        cross_entropy(x, np.zeros((2, 3), bool))
    with pytest.raises(ValueError, match=r"targets has shape \(3,\); it must be .*\(2, 3\)"):
        cross_entropy(x, [0, 1, 2])
    with pytest.raises(ValueError, match=r"token_ids has shape \(4,\)"):
        token_logprobs(x, [0, 1, 2, 3])
    for call in (topk_logprobs, lambda a, k: token_logprobs(a, 0, top_n=k)):
        for bad in (-1, 11):
            with pytest.raises(ValueError, match=rf"is {bad}; it must be in \[0, 10\]"):
                call(x, bad)
        with pytest.raises(TypeError, match=r"is 1\.5; it must be an integer"):
            call(x, 1.5)
    with pytest.raises(ValueError, match="reduction is 'average'"):
        cross_entropy(x, y, reduction="average")
    for bad in (-0.1, 1.1, NAN):
        with pytest.raises(ValueError, match="label_smoothing is"):
            cross_entropy(x, y, label_smoothing=bad)
    with pytest.raises(ValueError, match=r"q_logits has shape \(2, 3, 1\)"):
        kl_divergence(x, x[..., :1])
    with pytest.raises(ValueError, match=r"q_logits has shape \(4, 3, 10\)"):
        kl_divergence(x, np.ones((4, 3, 10)))


# ---- the OpenAI shape


def test_openai_shape() -> None:
    words = [b"a", "é".encode(), b"\xe2\x82", "日".encode()]
    x = np.array([[1.0, 2.0, -INF, 0.0], [0.0, 0.0, 0.0, 5.0]])
    result = token_logprobs(x, [0, 3], top_n=4)
    got = openai_logprobs([0, 3], result, words.__getitem__)
    assert json.loads(json.dumps(got)) == got
    want = scipy.special.log_softmax(x, axis=1)
    assert [e["token"] for e in got["content"]] == ["a", "日"]
    assert got["content"][1]["bytes"] == [0xE6, 0x97, 0xA5]
    assert_allclose([e["logprob"] for e in got["content"]], want[[0, 1], [0, 3]], rtol=1e-14)
    top = got["content"][0]["top_logprobs"]
    assert [e["token"] for e in top] == ["é", "a", "日"]  # the third has no probability
    assert_allclose([e["logprob"] for e in top], want[0, [1, 0, 3]], rtol=1e-14)
    assert [e["bytes"] for e in got["content"][1]["top_logprobs"]][3] == [0xE2, 0x82]
    assert got["content"][1]["top_logprobs"][3]["token"] == "\ufffd"
    text = openai_logprobs([2], token_logprobs(x[:1], [2]), lambda i: "xyz"[i])
    assert text["content"] == [
        {"token": "z", "logprob": -9999.0, "bytes": [122], "top_logprobs": []}
    ]
    with pytest.raises(ValueError, match="of token 0 is NaN"):
        openai_logprobs([0], token_logprobs([[NAN, 0.0]], [0]), str)
    with pytest.raises(ValueError, match="both must be those of one sequence"):
        openai_logprobs([0, 1], token_logprobs(x[:1], [2]), str)


# ---- memory


def peak(call: Callable[[], object]) -> int:
    """Bytes allocated at the worst moment of a call."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        call()
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return most - before


@pytest.mark.usefixtures("one_thread")
def test_memory() -> None:
    """Nothing of the size of the logits is made, nor of a fraction of them."""
    rows, n = 64, 32000
    row = make((n,))
    # 10 MB and more to whoever copies them; the reference works on a row in a wider type.
    x = np.broadcast_to(row, (rows, n))
    allowed = (1 << 20) + (12 * 16 * n if uses_the_reference() else 0)
    converted = 2 * 8 * (1 << 17)  # of each side
    ids, where = np.arange(rows), np.broadcast_to(np.arange(n) % 3 > 0, (rows, n))
    cases = {
        "contiguous": (np.resize(row, (rows, n)), 0),
        "broadcast": (x, 0),
        "float16": (np.broadcast_to(row.astype("f2"), (rows, n)), 0),
        "byte-swapped": (np.broadcast_to(row.astype(">f4"), (rows, n)), converted),
        "integers": (np.broadcast_to((row * 9).astype("i1"), (rows, n)), converted),
    }
    calls = {
        "token_logprobs": lambda y: token_logprobs(y, ids, top_n=20),
        "cross_entropy": lambda y: cross_entropy(y, ids, label_smoothing=0.1, where=where),
        "moments": lambda y: moments(y, temperature=0.7, token_bitmask=pack(where[0])),
        "kl_divergence": lambda y: kl_divergence(y, x),
        "temperature_sweep": lambda y: temperature_sweep(y, [0.5, 1.0, 2.0], ids),
    }
    for name, (y, more) in cases.items():
        for function, call in calls.items():
            if name == "contiguous" or function in ("token_logprobs", "kl_divergence"):
                assert peak(lambda c=call, y=y: c(y)) < allowed + 2 * more, (name, function)


def test_memory_of_the_process(backend: str) -> None:
    """What the kernels allocate themselves is seen by the operating system alone."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("needs /proc/self/clear_refs")
    script = """
import sys
import numpy as np
import fastsoftmax
from test_scoring import uses_the_reference
from support import using

def kilobytes(field):
    for line in open("/proc/self/status"):
        if line.startswith(field):
            return int(line.split()[1])

x = np.ones((100, 32000), "f4")
ids = np.arange(100)
with using(sys.argv[1]):
    for call in (
        lambda: fastsoftmax.token_logprobs(x, ids, top_n=20),
        lambda: fastsoftmax.cross_entropy(x, ids, label_smoothing=0.1),
        lambda: fastsoftmax.moments(x, temperature=0.7),
        lambda: fastsoftmax.kl_divergence(x, x),
        lambda: fastsoftmax.sample(x, top_p=0.9, seed=1),
    ):
        call()
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")
        before = kilobytes("VmRSS")
        call()
        print(kilobytes("VmHWM") - before, int(uses_the_reference()))
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", script, backend],
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines
    # A copy of the logits would be 12800 kB.
    assert all(int(line[0]) < 2048 + 8192 * int(line[1]) for line in lines), done.stdout

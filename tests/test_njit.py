"""The functions for jitted code, called in jitted code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from support import generator, same_bits, why_not

import fastsoftmax

if why_not("numba") is not None:
    pytest.skip(str(why_not("numba")), allow_module_level=True)

import numba
from numba.core.errors import TypingError

from fastsoftmax import njit
from fastsoftmax._numba import extension

T = 0.7


def logits(*shape: int, dtype: str = "f4") -> np.ndarray:
    return (generator("njit", shape).normal(size=shape) * 3).astype(dtype)


def public(name: str, *args: Any, **kwargs: Any) -> Any:
    with fastsoftmax.use_backend("numba"):
        return getattr(fastsoftmax, name)(*args, **kwargs)


@numba.njit(nogil=True)
def everything(x, temperature, ids, uniforms):
    """All of it for a batch."""
    rows, count = x.shape[0], ids.shape[1]
    p, log_p = np.empty(x.shape, x.dtype), np.empty(x.shape, x.dtype)
    sums, entropies = np.empty(rows, x.dtype), np.empty(rows)
    njit.softmax(x, temperature, p)
    njit.log_softmax(x, temperature, log_p)
    njit.logsumexp(x, temperature, sums)
    njit.entropy(x, temperature, entropies)
    token_logprobs, ranks = np.empty((rows, count)), np.empty((rows, count), np.int64)
    njit.token_logprobs(x, ids, temperature, token_logprobs, ranks)
    best, best_logprobs = np.empty((rows, 5), np.int64), np.empty((rows, 5))
    njit.topk_logprobs(x, temperature, best, best_logprobs)
    drawn, drawn_logprobs = np.empty(uniforms.shape, np.int64), np.empty(uniforms.shape)
    njit.sample(x, uniforms, temperature, 40, 0.9, 0.001, drawn, drawn_logprobs)
    return (
        (p, log_p, sums, entropies),
        (token_logprobs, ranks, best, best_logprobs),
        (drawn, drawn_logprobs),
    )


# Each pair of types and layouts is compiled anew.
@pytest.mark.parametrize(
    ("dtype", "strided"),
    [
        pytest.param("f4", False, marks=pytest.mark.slow),
        ("f4", True),
        pytest.param("f8", False, marks=pytest.mark.slow),
    ],
)
def test_a_batch(dtype: str, strided: bool) -> None:
    """Rows that are short, long, side by side, backwards; a number or an array of temperatures."""
    draws = 3
    for rows, cols in ((20, 9), (3, 5000), (0, 7)):
        x = logits(rows, cols, dtype=dtype)
        if rows:
            x[1, 3] = -np.inf
            x[2, 4] = np.nan
        ids = generator("ids").integers(-1, cols, (rows, 4))
        u = np.array([[njit.uniform(5, i, 2, j) for j in range(draws)] for i in range(rows)])
        u = u.reshape(rows, draws)
        t = T if strided else np.linspace(0.5, 2, rows)
        columns = np.repeat(x, 2, axis=0).copy(order="F")[::2]
        backwards = np.repeat(x[::-1, ::-1], 2, axis=1)[::-1, ::-2]
        for y in (columns, backwards) if strided else (x,):
            assert_array_equal(y, x)
            (p, log_p, sums, entropies), tokens, draw = everything(y, t, ids, u)
            assert same_bits(p, public("softmax", x, temperature=t))
            assert same_bits(log_p, public("log_softmax", x, temperature=t))
            assert same_bits(sums, public("logsumexp", x, temperature=t))
            want = public("entropy", x, temperature=t)
            assert_array_equal(entropies.astype(dtype), want)
            want = public("token_logprobs", x, np.maximum(ids, 0), temperature=t)
            there = ids >= 0
            assert_array_equal(tokens[0].astype(dtype)[there], want.logprobs[there])
            assert np.isnan(tokens[0][~there]).all()
            assert_array_equal(tokens[1], np.where(there, want.ranks, 0))
            best = public("topk_logprobs", x, 5, temperature=t)
            assert_array_equal(tokens[2], best.ids)
            assert_array_equal(tokens[3].astype(dtype), best.logprobs)
            filters = {"top_k": 40, "top_p": 0.9, "min_p": 0.001}
            drawn = public("sample", x, temperature=t, **filters, seed=5, step=2, num_samples=draws)
            assert_array_equal(draw[0], drawn.ids)
            assert_array_equal(draw[1].astype(dtype), drawn.logprobs)


@numba.njit(nogil=True)
def row(x, ids, uniforms):
    p, log_p = np.empty(x.shape, x.dtype), x.copy()
    njit.softmax(x, 1, p)
    njit.log_softmax(log_p, 1.0, log_p)
    logprobs, ranks = np.empty(len(ids)), np.empty(len(ids), np.int64)
    njit.token_logprobs(x, ids, 1.0, logprobs, ranks)
    best, best_logprobs = np.empty(20, np.int64), np.empty(20)
    njit.topk_logprobs(x, 1.0, best, best_logprobs)
    drawn, drawn_logprobs = np.empty(len(uniforms), np.int64), np.empty(len(uniforms))
    njit.sample(x, uniforms, 1.0, 0, 1.0, 0.0, drawn, drawn_logprobs)
    return (p, log_p, njit.logsumexp(x, 1.0), njit.entropy(x, 1.0)), logprobs, ranks, best, drawn


def test_a_row() -> None:
    """In place, and for more entries than there are."""
    x, ids = logits(12), np.array([3, -1])
    u = np.array([0.0, 0.3, 1 - 2**-53])
    (p, log_p, log_sum, entropy), logprobs, ranks, best, drawn = row(x, ids, u)
    assert same_bits(p, public("softmax", x))
    assert same_bits(log_p, public("log_softmax", x))
    assert log_sum == public("logsumexp", x)
    assert np.float32(entropy) == public("entropy", x)
    assert_allclose(logprobs, [log_p[3], np.nan], rtol=1e-6)
    assert_array_equal(ranks, [1 + (x > x[3]).sum(), 0])
    assert_array_equal(best, [*np.argsort(-x), *[-1] * 8])
    sums = np.exp(log_p.astype("f8")).cumsum()
    assert_array_equal(drawn, [0, (sums > 0.3).argmax(), 11])


def test_wrong_numbers() -> None:
    x, out = logits(3, 5), np.empty((3, 5), "f4")
    ids, logprobs, ranks = np.zeros((3, 2), int), np.empty((3, 2)), np.zeros((3, 2), int)
    u = np.zeros((3, 2))
    few = np.ones(2)
    calls = [
        (njit.softmax, (x, -1.0, out), "temperature"),
        (njit.softmax, (x, np.nan, out), "temperature"),
        (njit.softmax, (x, few, out), "temperature"),
        (njit.softmax, (x, np.array([1.0, -1.0, 1.0]), out), "temperature"),
        (njit.log_softmax, (x, 1.0, out[:, 1:]), "shape"),
        (njit.logsumexp, (x, 1.0, out[:2, 0]), "each row"),
        (njit.logsumexp, (x, 0.0, out[:, 0]), "no limit"),
        (njit.entropy, (x, 1.0, few), "each row"),
        (njit.token_logprobs, (x, ids, 1.0, logprobs[:2], ranks), "shape"),
        (njit.token_logprobs, (x, ids, 1.0, logprobs, ranks[:2]), "shape"),
        (njit.topk_logprobs, (x, 1.0, ids[:2], logprobs[:2]), "shape"),
        (njit.sample, (x, u, 1.0, -2, 1.0, 0.0, ids, logprobs), "top_k"),
        (njit.sample, (x, u, 1.0, 0, 1.1, 0.0, ids, logprobs), "top_p"),
        (njit.sample, (x, u, 1.0, 0, 1.0, np.nan, ids, logprobs), "min_p"),
        (njit.sample, (x, u[:2], 1.0, 0, 1.0, 0.0, ids, logprobs), "uniforms"),
    ]
    for function, args, message in calls:
        with pytest.raises(ValueError, match=message):
            function(*args)
    for bad in (5, -2):
        ids[1, 1] = bad
        with pytest.raises(IndexError, match="ids"):
            njit.token_logprobs(x, ids, 1.0, logprobs, ranks)


def test_wrong_types() -> None:
    x, out, ids = logits(3, 5), np.empty((3, 5), "f4"), np.zeros((3, 2), int)
    for function, args, message in [
        (njit.softmax, (x.astype(int), 1.0, out), "logits are array"),
        (njit.softmax, (x[None], 1.0, out[None]), "logits are array"),
        (njit.softmax, (x, 1.0, out.astype("f8")), "out is array"),
        (njit.softmax, (x, 1j, out), "temperature is complex"),
        (njit.softmax, (x, np.ones(3, "f4"), out), "temperature is array"),
        (njit.logsumexp, (x, 1.0), "out is"),
        (njit.logsumexp, (x[0], 1.0, out[0]), "out is"),
        (njit.entropy, (x, 1.0, out[:, 0]), "out is"),
        (njit.topk_logprobs, (x, 1.0, ids, out), "logprobs is"),
        (njit.topk_logprobs, (x, 1.0, ids.T, np.empty((2, 3))), "ids is"),
    ]:
        with pytest.raises(TypingError, match=message):
            function(*args)


def test_many_threads() -> None:
    x = logits(40, 3000)
    ids, u = np.zeros((40, 1), int), generator("threads").random((40, 1))
    t = np.full(40, T)
    want = everything(x, t, ids, u)

    def one(i: int) -> Any:
        return everything(x[i : i + 1], t[i : i + 1], ids[i : i + 1], u[i : i + 1])

    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(one, range(40)))
    for group in range(3):
        for k, array in enumerate(want[group]):
            assert same_bits(np.concatenate([part[group][k] for part in parts]), array)


@numba.njit
def published(x, out):
    a = fastsoftmax.softmax(x)
    b = fastsoftmax.log_softmax(x, temperature=0.5)
    fastsoftmax.softmax(x, axis=1, temperature=2.0, out=out)
    return a, b, fastsoftmax.logsumexp(x, -1), fastsoftmax.logsumexp(x[0], temperature=3.0)


def test_the_public_functions() -> None:
    extension.init()
    x = logits(3, 40, dtype="f8")
    out = np.empty_like(x)
    a, b, c, d = published(x, out)
    assert same_bits(a, public("softmax", x))
    assert same_bits(b, public("log_softmax", x, temperature=0.5))
    assert same_bits(c, public("logsumexp", x))
    assert d == public("logsumexp", x[0], temperature=3.0)
    assert same_bits(out, public("softmax", x, temperature=2.0))
    with pytest.raises(ValueError, match="axis"):
        numba.njit(lambda x: fastsoftmax.softmax(x, axis=0))(x)
    for call in (
        lambda x: fastsoftmax.softmax(x, where=x > 0),
        lambda x: fastsoftmax.logsumexp(x, keepdims=True),
        lambda x: fastsoftmax.softmax(x, axis=(0, 1)),
    ):
        with pytest.raises(TypingError, match="in jitted code"):
            numba.njit(call)(x)


def test_the_entry_point() -> None:
    points = distribution("fastsoftmax").entry_points
    assert points.select(group="numba_extensions")["init"].load() is extension.init


def test_a_callers_cache(tmp_path: Path) -> None:
    """A second process compiles nothing, not even where the kernels' own cache is gone."""
    (tmp_path / "caller.py").write_text(
        textwrap.dedent("""
        import json
        import numba
        import numpy as np
        import fastsoftmax
        from fastsoftmax.njit import softmax

        @numba.njit(cache=True, nogil=True)
        def both(x):
            out = np.empty_like(x)
            softmax(x, 0.5, out)
            return out, fastsoftmax.softmax(x, temperature=0.5)

        a, b = both(np.array([0.0, 1.0, 2.0]))
        hits, misses = (sum(n.values()) for n in (both.stats.cache_hits, both.stats.cache_misses))
        print(json.dumps([a.tolist(), b.tolist(), hits, misses]))
        """)
    )
    results = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "caller.py"],
            cwd=tmp_path,
            env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        results.append(json.loads(done.stdout))
        for file in (tmp_path / "cache").glob("*/kernels.*"):
            file.unlink()
    (a, b, *first), (_, _, *second) = results
    assert a == b
    assert_allclose(a, fastsoftmax.softmax([0.0, 1.0, 2.0], temperature=0.5), rtol=1e-15)
    assert (first, second) == ([0, 1], [1, 0])

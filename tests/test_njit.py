"""The functions for jitted code, called in jitted code."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from functools import cache
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
KERNELS = ["numba", "c"]


def module_of(kernels: str) -> Any:
    """The functions for jitted code that call the kernels of a backend."""
    if kernels == "numba":
        return njit
    if why_not("c") is not None:
        pytest.skip(str(why_not("c")))
    return importlib.import_module("fastsoftmax.njit_c")


def logits(*shape: int, dtype: str = "f4") -> np.ndarray:
    return (generator("njit", shape).normal(size=shape) * 3).astype(dtype)


def public(name: str, *args: Any, kernels: str = "numba", **kwargs: Any) -> Any:
    with fastsoftmax.use_backend(kernels):
        return getattr(fastsoftmax, name)(*args, **kwargs)


@cache
def everything_of(kernels: str) -> Any:
    f = module_of(kernels)

    @numba.njit(nogil=True)
    def everything(x, temperature, ids, uniforms, where, bits):
        """All of it for a batch."""
        rows, count = x.shape[0], ids.shape[1]
        p, log_p = np.empty(x.shape, x.dtype), np.empty(x.shape, x.dtype)
        sums, entropies = np.empty(rows, x.dtype), np.empty(rows)
        f.softmax(x, temperature, p, where)
        f.log_softmax(x, temperature, log_p, where)
        f.logsumexp(x, temperature, sums, where)
        f.entropy(x, temperature, entropies, where, bits)
        token_logprobs, ranks = np.empty((rows, count)), np.empty((rows, count), np.int64)
        f.token_logprobs(x, ids, temperature, token_logprobs, ranks, where, bits)
        best, best_logprobs = np.empty((rows, 5), np.int64), np.empty((rows, 5))
        f.topk_logprobs(x, temperature, best, best_logprobs, where, bits)
        drawn, drawn_logprobs = np.empty(uniforms.shape, np.int64), np.empty(uniforms.shape)
        f.sample(
            x,
            uniforms,
            temperature,
            40,
            0.9,
            0.001,
            drawn,
            drawn_logprobs,
            where=where,
            token_bitmask=bits,
        )
        return (
            (p, log_p, sums, entropies),
            (token_logprobs, ranks, best, best_logprobs),
            (drawn, drawn_logprobs),
        )

    return everything


# Each pair of types and layouts is compiled anew.
@pytest.mark.parametrize(
    ("kernels", "dtype", "strided"),
    [
        pytest.param("numba", "f4", False, marks=pytest.mark.slow),
        ("numba", "f4", True),
        pytest.param("numba", "f8", False, marks=pytest.mark.slow),
        pytest.param("c", "f4", False, marks=pytest.mark.slow),
        ("c", "f4", True),
        ("c", "f8", False),
    ],
)
def test_a_batch(kernels: str, dtype: str, strided: bool) -> None:
    """Rows that are short, long, side by side and masked, or backwards; a number or an array of
    temperatures.
    """
    draws, everything = 3, everything_of(kernels)

    def of(name: str, *args: Any, **kwargs: Any) -> Any:
        return public(name, *args, kernels=kernels, **kwargs)

    for rows, cols in ((20, 9), (3, 5000)) + ((0, 7),) * (not strided):
        x = logits(rows, cols, dtype=dtype)
        if rows:
            x[1, 3] = -np.inf
            x[2, 4] = np.nan
        rng = generator("ids")
        ids = rng.integers(-1, cols, (rows, 4))
        u = np.array([[njit.uniform(5, i, 2, j) for j in range(draws)] for i in range(rows)])
        u = u.reshape(rows, draws)
        t = T if strided else np.linspace(0.5, 2, rows)
        backwards = np.repeat(x[::-1, ::-1], 2, axis=1)[::-1, ::-2]
        for y, share in ((in_columns(x), 0.9), (backwards, 1.0)) if strided else ((x, None),):
            assert_array_equal(y, x)
            where = bits = None
            if strided:
                allowed = rng.random((2, rows, cols)) < share
                allowed[0, 0] = share == 1.0
                where, bits = in_columns(allowed[0]), packed(allowed[1])
            (p, log_p, sums, entropies), tokens, draw = everything(y, t, ids, u, where, bits)
            mask = {"temperature": t, "where": where}
            assert same_bits(p, of("softmax", x, **mask))
            assert same_bits(log_p, of("log_softmax", x, **mask))
            assert same_bits(sums, of("logsumexp", x, **mask))
            mask["token_bitmask"] = bits
            want = of("entropy", x, **mask)
            assert_array_equal(entropies.astype(dtype), want)
            want = of("token_logprobs", x, np.maximum(ids, 0), **mask)
            there = ids >= 0
            assert_array_equal(tokens[0].astype(dtype)[there], want.logprobs[there])
            assert np.isnan(tokens[0][~there]).all()
            assert_array_equal(tokens[1], np.where(there, want.ranks, 0))
            best = of("topk_logprobs", x, 5, **mask)
            assert_array_equal(tokens[2], best.ids)
            assert_array_equal(tokens[3].astype(dtype), best.logprobs)
            filters = {"top_k": 40, "top_p": 0.9, "min_p": 0.001}
            drawn = of("sample", x, **mask, **filters, seed=5, step=2, num_samples=draws)
            assert_array_equal(draw[0], drawn.ids)
            assert_array_equal(draw[1].astype(dtype), drawn.logprobs)


def in_columns(a: np.ndarray) -> np.ndarray:
    """An equal array whose rows lie side by side, with others between them."""
    return np.repeat(a, 2, axis=0).copy(order="F")[::2]


def packed(mask: np.ndarray) -> np.ndarray:
    """A mask as bits in int32."""
    bits = np.zeros((mask.shape[0], -(-mask.shape[1] // 32) * 32), bool)
    bits[:, : mask.shape[1]] = mask
    return np.packbits(bits, axis=1, bitorder="little").view(np.int32)


@pytest.mark.parametrize("kernels", KERNELS)
def test_draws(kernels: str) -> None:
    """Everything that a draw can be asked for, for each row and for all, as the public function."""
    rows, cols, draws = 6, 200, 4
    x, rng = logits(rows, cols), generator("draws")
    u = np.array([[njit.uniform(3, i, 1, j) for j in range(draws)] for i in range(rows)])
    ids, logprobs = np.empty(u.shape, np.int64), np.empty(u.shape)
    bias_ids = rng.integers(-1, cols, (rows, 12))
    bias_ids[:, 3] = bias_ids[:, 9]  # a token may have more than one
    biases = rng.normal(size=bias_ids.shape)
    biases[:, 0] = -np.inf
    history = rng.integers(-1, 30, (rows, 50))
    each = {
        "top_k": rng.integers(-1, 60, rows),
        "top_p": rng.uniform(0.5, 1.0, rows),
        "min_p": rng.uniform(0.0, 0.01, rows),
        "repetition_penalty": rng.uniform(0.5, 2.0, rows),
        "presence_penalty": rng.normal(size=rows),
        "frequency_penalty": rng.normal(size=rows),
    }
    temperature = rng.uniform(0.5, 2.0, rows)
    lists = {"logit_bias": (bias_ids, biases), "history": history}
    where = rng.random(x.shape) < 0.8

    def check(replace: bool, **given: Any) -> None:
        f = module_of(kernels).sample
        f(x, u, temperature, ids=ids, logprobs=logprobs, replace=replace, **given)
        given |= {"temperature": temperature, "replace": replace, "num_samples": draws}
        want = public("sample", x, kernels=kernels, seed=3, step=1, **given)
        assert_array_equal(ids, want.ids)
        assert_array_equal(logprobs.astype("f4"), want.logprobs)

    for replace in (True, False):
        check(replace, **each, **lists, where=where)
    one = {"top_k": 2, "top_p": 1.0, "min_p": 0.0}  # of a row no more than two
    check(False, **one, logit_bias=(np.array([7, 3, 7]), np.array([9.0, -1.0, 3.0])))
    assert (ids[:, 0] == 7).any()
    assert (ids[:, 2:] == -1).all()


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_row(kernels: str) -> None:
    """In place, and for more entries than there are."""
    f = module_of(kernels)

    @numba.njit(nogil=True)
    def row(x, ids, uniforms):
        p, log_p = np.empty(x.shape, x.dtype), x.copy()
        f.softmax(x, 1, p)
        f.log_softmax(log_p, 1.0, log_p)
        logprobs, ranks = np.empty(len(ids)), np.empty(len(ids), np.int64)
        f.token_logprobs(x, ids, 1.0, logprobs, ranks)
        best, best_logprobs = np.empty(20, np.int64), np.empty(20)
        f.topk_logprobs(x, 1.0, best, best_logprobs)
        drawn, drawn_logprobs = np.empty(len(uniforms), np.int64), np.empty(len(uniforms))
        f.sample(x, uniforms, 1.0, 0, 1.0, 0.0, drawn, drawn_logprobs)
        return (p, log_p, f.logsumexp(x, 1.0), f.entropy(x, 1.0)), logprobs, ranks, best, drawn

    x, ids = logits(12), np.array([3, -1])
    u = np.array([0.0, 0.3, 1 - 2**-53])
    (p, log_p, log_sum, entropy), logprobs, ranks, best, drawn = row(x, ids, u)
    assert same_bits(p, public("softmax", x, kernels=kernels))
    assert same_bits(log_p, public("log_softmax", x, kernels=kernels))
    assert log_sum == public("logsumexp", x, kernels=kernels)
    assert np.float32(entropy) == public("entropy", x, kernels=kernels)
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
        (njit.token_logprobs, (x, ids, 1.0, np.ones((3, 2)), np.ones((3, 2))), "ranks is"),
    ]:
        with pytest.raises(TypingError, match=message):
            function(*args)


@pytest.mark.parametrize("kernels", KERNELS)
def test_read_only_outputs(kernels: str) -> None:
    """Kernels write to addresses: a store into a read-only map would end the process."""
    f = module_of(kernels)

    def frozen(a: np.ndarray) -> np.ndarray:
        a.flags.writeable = False
        return a

    x, u = logits(3, 5), frozen(np.zeros((3, 2)))
    ids, logprobs, ranks = np.zeros((3, 2), int), np.zeros((3, 2)), np.zeros((3, 2), int)
    fixed_ids, fixed_logprobs, fixed_ranks = (frozen(a.copy()) for a in (ids, logprobs, ranks))
    filters = (1.0, 0, 1.0, 0.0)
    for function, args, name in [
        (f.softmax, (x, 1.0, frozen(x.copy())), "out"),
        (f.log_softmax, (x, 1.0, frozen(x.copy())), "out"),
        (f.logsumexp, (x, 1.0, frozen(np.empty(3, "f4"))), "out"),
        (f.entropy, (x, 1.0, frozen(np.empty(3))), "out"),
        (f.token_logprobs, (x, ids, 1.0, fixed_logprobs, ranks), "logprobs"),
        (f.token_logprobs, (x, ids, 1.0, logprobs, fixed_ranks), "ranks"),
        (f.topk_logprobs, (x, 1.0, fixed_ids, logprobs), "ids"),
        (f.topk_logprobs, (x, 1.0, ids, fixed_logprobs), "logprobs"),
        (f.sample, (x, u, *filters, fixed_ids, logprobs), "ids"),
        (f.sample, (x, u, *filters, ids, fixed_logprobs), "logprobs"),
    ]:
        with pytest.raises(TypingError, match=f"{name} is .*; it must be writeable"):
            function(*args)
    f.token_logprobs(x, fixed_ids, 1.0, logprobs, ranks)  # which only reads the ids
    assert (ranks > 0).all()


def test_wrong_masks_and_lists() -> None:
    """By the C kernels, which are compiled sooner; the checks are those of both."""
    sample = module_of("c").sample
    rows, cols = 3, 70
    x, one = logits(rows, cols), np.ones(rows)
    ids, logprobs, u = np.zeros((rows, 2), int), np.empty((rows, 2)), np.zeros((rows, 2))
    few = {"ids": np.array([[1], [2], [-1]]), "values": np.zeros((rows, 1))}
    right = {
        "top_k": np.full(rows, 5),
        "top_p": one,
        "min_p": np.zeros(rows),
        "where": np.ones((rows, cols), bool),
        "token_bitmask": np.full((rows, 3), -1, np.int32),
        "logit_bias": (few["ids"], few["values"]),
        "history": np.zeros((rows, 1), int),
        "repetition_penalty": one,
        "presence_penalty": one,
        "frequency_penalty": one,
    }

    def call(**changes: Any) -> None:
        given = {**right, **changes}
        sample(x, u, 1.0, ids=ids, logprobs=logprobs, **given)

    call()
    assert (ids >= 0).all()
    for error, name, value, message in [
        (ValueError, "where", right["where"][:2], "where"),
        (ValueError, "token_bitmask", right["token_bitmask"][:2], "a bit for each"),
        (ValueError, "token_bitmask", np.zeros((rows, 2), np.int32), "a bit for each"),
        (ValueError, "token_bitmask", np.zeros((rows, 6), np.int32)[:, ::2], "contiguous"),
        (ValueError, "logit_bias", (few["ids"], np.zeros((rows, 2))), "one shape"),
        (ValueError, "logit_bias", (few["ids"][:2], few["values"][:2]), "a row for each"),
        (ValueError, "logit_bias", (few["ids"], few["values"] + np.inf), "finite"),
        (ValueError, "logit_bias", (few["ids"], few["values"] * np.nan), "finite"),
        (IndexError, "logit_bias", (few["ids"] + 68, few["values"]), "logit_bias"),
        (IndexError, "logit_bias", (np.array([-1]), np.zeros(1)), "logit_bias"),
        (ValueError, "history", right["history"][:2], "a row for each"),
        (IndexError, "history", right["history"] + cols, "history"),
        (ValueError, "repetition_penalty", 0 * one, "repetition_penalty"),
        (ValueError, "repetition_penalty", np.inf * one, "repetition_penalty"),
        (ValueError, "repetition_penalty", np.ones(2), "each row"),
        (ValueError, "presence_penalty", np.nan * one, "presence_penalty"),
        (ValueError, "frequency_penalty", np.inf * one, "frequency_penalty"),
        (ValueError, "history", None, "penalty is given"),
        (ValueError, "top_k", np.full(rows, -2), "top_k"),
        (ValueError, "top_p", np.ones(2), "each row"),
        (ValueError, "min_p", 2 * one, "min_p"),
        (TypingError, "where", np.ones((rows, cols), int), "where is array"),
        (TypingError, "where", np.ones(cols, bool), "where is array"),
        (TypingError, "token_bitmask", np.ones((rows, 3), int), "token_bitmask is array"),
        (TypingError, "logit_bias", few["ids"], "logit_bias is array"),
        (TypingError, "logit_bias", (few["values"], few["values"]), "logit_bias is"),
        (TypingError, "history", one, "history is array"),
        (TypingError, "top_k", 1.0, "top_k is float64"),
        (TypingError, "top_p", 1j, "top_p is complex"),
        (TypingError, "repetition_penalty", "no", "repetition_penalty is unicode"),
    ]:
        with pytest.raises(error, match=message):
            call(**{name: value})


@pytest.mark.parametrize("kernels", KERNELS)
def test_many_threads(kernels: str) -> None:
    """With the types of a batch that has been compiled."""
    everything, rng = everything_of(kernels), generator("threads")
    x, where = in_columns(logits(40, 3000)), in_columns(rng.random((40, 3000)) < 0.9)
    bits = packed(rng.random((40, 3000)) < 0.9)
    ids, u = np.zeros((40, 1), int), rng.random((40, 1))
    want = everything(x, T, ids, u, where, bits)

    def one(i: int) -> Any:
        rows = slice(i, i + 1)
        return everything(x[rows], T, ids[rows], u[rows], where[rows], bits[rows])

    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(one, range(40)))
    for group in range(3):
        for k, array in enumerate(want[group]):
            assert same_bits(np.concatenate([part[group][k] for part in parts]), array)


@numba.njit
def published(x, out):
    a = fastsoftmax.softmax(x, where=x > 0)
    b = fastsoftmax.log_softmax(x, temperature=0.5)
    fastsoftmax.softmax(x, axis=1, temperature=2.0, out=out)
    return a, b, fastsoftmax.logsumexp(x, -1), fastsoftmax.logsumexp(x[0], temperature=3.0)


def test_the_public_functions() -> None:
    extension.init()
    x = logits(3, 40, dtype="f8")
    out = np.empty_like(x)
    a, b, c, d = published(x, out)
    assert same_bits(a, public("softmax", x, where=x > 0))
    assert same_bits(b, public("log_softmax", x, temperature=0.5))
    assert same_bits(c, public("logsumexp", x))
    assert d == public("logsumexp", x[0], temperature=3.0)
    assert same_bits(out, public("softmax", x, temperature=2.0))
    with pytest.raises(ValueError, match="axis"):
        numba.njit(lambda x: fastsoftmax.softmax(x, axis=0))(x)
    for call in (
        lambda x: fastsoftmax.softmax(x, dtype=np.float32),
        lambda x: fastsoftmax.logsumexp(x, keepdims=True),
        lambda x: fastsoftmax.softmax(x, axis=(0, 1)),
    ):
        with pytest.raises(TypingError, match="in jitted code"):
            numba.njit(call)(x)
    out.flags.writeable = False
    with pytest.raises(TypingError, match=r"out is .*; it must be writeable"):
        numba.njit(lambda x, out: fastsoftmax.softmax(x, out=out))(x, out)


def test_the_entry_point() -> None:
    points = distribution("fastsoftmax").entry_points
    assert points.select(group="numba_extensions")["init"].load() is extension.init


CALLER = """
import json
import numba
import numpy as np
import fastsoftmax
from fastsoftmax import {module}

@numba.njit(cache=True, nogil=True)
def call(x):
    out = np.empty_like(x)
    {module}.softmax(x, 0.5, out)
    return out, {more}

out, more = call(np.array([0.0, 1.0, 2.0]))
hits, misses = (sum(n.values()) for n in (call.stats.cache_hits, call.stats.cache_misses))
print(json.dumps([out.tolist(), np.asarray(more).tolist(), hits, misses]))
"""


def run_twice(folder: Path, kernels: str, more: str, second: dict[str, str]) -> list[Any]:
    """What a caller with a cache prints in each of two processes."""
    module = module_of(kernels).__name__.rpartition(".")[2]
    (folder / "caller.py").write_text(CALLER.format(module=module, more=more))
    results = []
    for env in ({}, second):
        done = subprocess.run(
            [sys.executable, "caller.py"],
            cwd=folder,
            env=os.environ | {"NUMBA_CACHE_DIR": str(folder / "cache")} | env,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        results.append(json.loads(done.stdout))
        for file in (folder / "cache").glob("*/kernels.*"):
            file.unlink()
    want = public("softmax", [0.0, 1.0, 2.0], kernels=kernels, temperature=0.5).tolist()
    assert [result[0] for result in results] == [want, want]
    assert [result[2:] for result in results] == [[0, 1], [1, 0]]
    return [result[1] for result in results]


def test_a_callers_cache(tmp_path: Path) -> None:
    """A second process compiles nothing, not even where the kernels' own cache is gone."""
    more = "fastsoftmax.softmax(x, temperature=0.5)"
    a, b = run_twice(tmp_path, "numba", more, {})
    assert a == b == public("softmax", [0.0, 1.0, 2.0], temperature=0.5).tolist()


def test_a_callers_cache_of_c(tmp_path: Path) -> None:
    """Nor with another instruction set, which compiled code asks for when it runs."""
    isas = run_twice(tmp_path, "c", "njit_c._isa()", {"FASTSOFTMAX_ISA": "scalar"})
    lib = importlib.import_module("fastsoftmax._c").lib
    default = fastsoftmax._backends._load("c").isa
    assert isas == [getattr(lib, f"FASTSOFTMAX_ISA_{isa.upper()}") for isa in (default, "scalar")]


def test_the_example() -> None:
    """It checks by itself that it finds what is found with NumPy."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.beam_search", "200", "1"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    assert "faster by a factor of" in done.stdout


def test_the_c_kernels_need_aligned_arrays() -> None:
    memory = np.zeros(8 * 4 + 1, np.uint8)
    x = memory[1:].view(np.float64)
    with pytest.raises(ValueError, match="aligned"):
        module_of("c").softmax(x, 1.0, np.empty(4))


def test_the_c_kernels_are_missing() -> None:
    code = """
    import sys
    sys.modules["fastsoftmax._c"] = None
    import fastsoftmax
    try:
        import fastsoftmax.njit_c
    except fastsoftmax.BackendUnavailableError as error:
        print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
        env=os.environ | {"FASTSOFTMAX_BACKEND": ""},
    )
    assert done.stdout.startswith("the c backend is not available (fastsoftmax was installed wit")
    assert "install a C compiler" in done.stdout

"""sample and filtered_logprobs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from contextlib import nullcontext

import ml_dtypes
import numpy as np
import pytest
import scipy.stats
from numpy.testing import assert_allclose, assert_array_equal
from oracle import arithmetic_of
from scoring_oracle import draw, filtered, masked_logits, pack, seed_for, uniform
from support import generator, same_bits, using
from test_scoring import layouts, peak, uses_the_reference

import fastsoftmax
from fastsoftmax import filtered_logprobs, sample

INF, NAN = np.inf, np.nan
DTYPES = ("float16", "bfloat16", "float32", "float64")
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES)

pytestmark = pytest.mark.usefixtures("backend")


def make(shape: tuple[int, ...], dtype: str = "float32", scale: float = 3.0) -> np.ndarray:
    x = generator("sampling", shape, dtype).normal(size=shape) * scale
    return x.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def nearness(x: np.ndarray) -> float:
    """How near a decision may be for the arithmetic of the kernels to be excused."""
    return 1e-5 if arithmetic_of(x.dtype) == np.float32 else 1e-12


def assert_logprobs(got: np.ndarray, want: np.ndarray) -> None:
    """As exact as log_softmax promises to be; of finite numbers."""
    single = got.dtype == np.float32
    ulps, least = (2, 1e-7) if single else (4, 1e-15)
    error = np.abs(got - want.astype("f8"))
    allowed = ulps * np.finfo(got.dtype).eps * np.abs(want) + least
    assert (error <= allowed).all(), float((error / allowed).max(initial=0))


def rows_of(result: fastsoftmax.FilteredLogprobs) -> list[tuple[np.ndarray, np.ndarray]]:
    ends = result.offsets[1:-1]
    return list(zip(np.split(result.ids, ends), np.split(result.logprobs, ends), strict=True))


def check_filtered(
    x: np.ndarray,
    *,
    where: object = None,
    seeds: np.ndarray | None = None,
    implementations: Sequence[str] = (),
    **filters: object,
) -> int:
    """filtered_logprobs of 2-D logits against the oracle, and where there are seeds, sample.

    Of some implementations, or else of the one that serves. Returns how many rows were too near.
    """
    results = []
    for serving in [using(name) for name in implementations] or [nullcontext()]:
        with serving:
            got = filtered_logprobs(x, where=where, **filters)
            drawn = None if seeds is None else sample(x, where=where, seed=seeds, **filters)
        assert got.ids.dtype == got.offsets.dtype == np.int64
        assert got.logprobs.dtype == arithmetic_of(x.dtype)
        assert got.offsets[0] == 0
        assert got.offsets[-1] == len(got.ids) == len(got.logprobs)
        results.append((rows_of(got), drawn))
    each = {name: np.broadcast_to(value, len(x)) for name, value in filters.items()}
    near = 0
    for i in range(len(x)):
        values = masked_logits(x[i], None if where is None else np.broadcast_to(where, x.shape)[i])
        want_ids, want, margin = filtered(values, **{k: v[i] for k, v in each.items()})
        if margin < nearness(x):
            near += 1
            continue
        if seeds is not None and want_ids:
            place, distance = draw(want_ids, want, uniform(int(seeds[i])))
        for rows, drawn in results:
            ids, logprobs = rows[i]
            assert ids.tolist() == want_ids
            assert_logprobs(logprobs, want)
            if drawn is None:
                continue
            token, logprob = drawn.ids[i], drawn.logprobs[i]
            if not want_ids:
                assert token == -1
                assert np.isnan(logprob)
                continue
            if distance > nearness(x):
                assert token == want_ids[place]
            assert logprob == logprobs[want_ids.index(token)]
    return near


# ---- the draw


FILTERS: list[dict[str, object]] = [
    {},
    {"temperature": 0.7},
    {"temperature": 0.7, "top_k": 50, "top_p": 0.95, "min_p": 0.02},
    {"top_k": 3},
    {"top_k": 1},
    {"top_p": 0.9},
    {"top_p": 0.05},
    {"top_p": 0.0},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"temperature": 5.0, "top_k": 20, "top_p": 0.5},
    {"temperature": INF, "top_k": 7},
    {"temperature": 0.0, "min_p": 0.5},
]


@EACH_DTYPE
@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_each_uniform_draws_its_token(dtype: str, filters: dict[str, object]) -> None:
    """In the middle of every token's share, and at 0 and the largest uniform below 1."""
    for n in (1, 2, 5, 33, 300):
        x = make((n,), dtype)
        ids, logp, margin = filtered(masked_logits(x), **filters)
        if margin < nearness(x):
            continue
        edges = np.concatenate([[0], np.cumsum(np.exp(logp))])
        shares = np.diff(edges)
        wide = [i for i in range(len(ids)) if shares[i] > 1e-4]
        us = [float((edges[i] + edges[i + 1]) / 2) for i in wide]
        batch = np.broadcast_to(x, (len(us), n))
        got = sample(batch, seed=[seed_for(u) for u in us], **filters)
        assert_array_equal(got.ids, [ids[i] for i in wide])
        assert_logprobs(got.logprobs, logp[wide])
        ends = sample(np.stack([x, x]), seed=[seed_for(0.0), seed_for(1 - 2**-53)], **filters)
        first = [i for i in range(len(ids)) if shares[i] > 1e-300]
        assert ends.ids[0] == ids[first[0]]
        assert ends.ids[1] >= ids[wide[-1]]
        assert ends.ids[1] in ids


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_long_rows(dtype: str, logits: np.ndarray) -> None:
    """The token is the one whose share of the mass holds u, where that is not too near its edge."""
    rng = generator("long rows")
    rows = [make((n,), dtype) for n in (2047, 2048, 2049, 4097, 70_001)]
    rows.append(logits[0].astype(dtype))
    for x in rows:
        us = rng.random(24)
        for filters in ({"temperature": 0.8}, {"top_k": 100}, {"top_p": 0.9}, {"min_p": 0.001}):
            ids, logp, margin = filtered(masked_logits(x), **filters)
            if margin < nearness(x):
                continue
            batch = np.broadcast_to(x, (len(us), len(x)))
            got = sample(batch, seed=[seed_for(u) for u in us], **filters)
            for i, u in enumerate(us):
                place, distance = draw(ids, logp, u)
                if distance > nearness(x):
                    assert got.ids[i] == ids[place]
                    assert_allclose(got.logprobs[i], float(logp[place]), rtol=3e-7, atol=2e-7)


def test_edges_of_shares_that_are_exact() -> None:
    """Each of four equal tokens has a quarter; at an edge the next one begins."""
    below = 2.0**-53
    us = [0.0, 0.25 - below, 0.25, 0.5 - below, 0.5, 0.75 - below, 0.75, 1 - below]
    want = [0, 0, 1, 1, 2, 2, 3, 3]
    for dtype in ("float32", "float64"):
        x = np.full((8, 4), 1.5, dtype)
        seeds = [seed_for(u) for u in us]
        assert_array_equal(sample(x, seed=seeds).ids, want)
        wider = np.full((8, 4096), -INF, dtype)
        wider[:, 5::1024] = 7.0
        got = sample(wider, seed=seeds, temperature=0.3)
        assert_array_equal(got.ids, np.multiply(want, 1024) + 5)
        assert_allclose(got.logprobs, -math.log(4), rtol=2e-7)


def test_tail_tokens_can_be_drawn() -> None:
    """53-bit uniforms reach probabilities of 1e-9 and less, at either end of the vocabulary."""
    n = 152_064
    for dtype in ("float32", "float64"):
        x = np.full((2, n), -INF, dtype)
        x[:, n // 2] = 0.0
        x[0, n - 1] = x[1, 0] = math.log(1e-9)
        got = sample(x, seed=[seed_for(1 - 4e-10), seed_for(4e-10)])
        assert_array_equal(got.ids, [n - 1, 0])
        assert_allclose(got.logprobs, math.log(1e-9), rtol=1e-6)
        got = sample(x, seed=[seed_for(1 - 2e-9), seed_for(2e-9)])
        assert_array_equal(got.ids, [n // 2] * 2)
        assert_allclose(got.logprobs, -1e-9, rtol=1e-5)


def test_a_large_vocabulary_without_bias() -> None:
    """Beyond 2**24 entries no token is preferred, as it would be by sums in float32."""
    n = (1 << 24) + 3000
    x = np.zeros((1, n), "f4")
    for u in (0.999, 1 - 2.0**-53):
        got = sample(x, seed=[seed_for(u)])
        assert abs(int(got.ids[0]) - math.floor(u * n)) <= 1
        assert_allclose(got.logprobs, -math.log(n), rtol=1e-6)


def test_chi_square_over_152064_entries(backend: str) -> None:
    n, draws = 152_064, 1_000_000
    if backend == "c-scalar":  # half a minute
        n, draws = 7_001, 50_000
    x = make((1, n), "float32", scale=0.5)
    got = sample(x, num_samples=draws, seed=11)
    p = np.exp(x[0].astype("f8"))
    counts = np.bincount(got.ids[0], minlength=n)
    assert 1e-6 < scipy.stats.chisquare(counts, draws * p / p.sum()).pvalue < 1 - 1e-6


def test_chi_square_with_consecutive_seeds() -> None:
    n, rows = 40, 8_000
    x = np.broadcast_to(make((n,), scale=1.0), (rows, n))
    filters = {"temperature": 0.9, "top_k": 30, "top_p": 0.9, "min_p": 0.01}
    ids, logp, _ = filtered(masked_logits(x[0]), **filters)
    for seed in (np.arange(rows), 3, np.random.default_rng(generator("chi").integers(2**32))):
        got = sample(x, seed=seed, **filters).ids
        assert set(got) <= set(ids)
        counts = np.bincount(got, minlength=n)[ids]
        expected = rows * np.exp(logp).astype("f8")
        assert scipy.stats.chisquare(counts, expected / expected.sum() * rows).pvalue > 1e-6


# ---- filters


@EACH_DTYPE
def test_filters_against_the_oracle(dtype: str) -> None:
    near = total = 0
    for n in (1, 2, 3, 16, 17, 33, 64, 100, 1000, 2048, 5000):
        x = make((6, n), dtype)
        for filters in FILTERS:
            near += check_filtered(x, **filters)
            total += 6
    assert near < total / 20


def test_filters_row_by_row() -> None:
    """On or off for each row alone, and the same as for that row alone."""
    x = make((8, 500), "float64")
    filters = {
        "temperature": np.array([1.0, 0.5, 0.0, INF, 2.0, 1.0, 1.0, 0.7]),
        "top_k": np.array([0, 5, 10, -1, 499, 500, 501, 1]),
        "top_p": np.array([0.9, 1.0, 0.5, 0.2511, 0.0, 0.99, 1.0, 1.0]),
        "min_p": np.array([0.0, 0.1, 1.0, 0.5, 0.0, 0.001, 0.2, 0.0]),
    }
    assert check_filtered(x, **filters) == 0
    whole = sample(x, seed=np.arange(8), **filters)
    nuclei = rows_of(filtered_logprobs(x, **filters))
    for i in range(8):
        own = {name: float(v[i]) if name != "top_k" else int(v[i]) for name, v in filters.items()}
        one = sample(x[i], seed=i, **own)
        assert isinstance(one.ids, np.int64)
        assert one.ids == whole.ids[i]
        assert same_bits(one.logprobs, whole.logprobs[i])
        ids, logprobs, _ = filtered_logprobs(x[i], **own)
        assert_array_equal(ids, nuclei[i][0])
        assert same_bits(logprobs, nuclei[i][1])
        assert logprobs[ids == one.ids] == one.logprobs


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_ties(dtype: str) -> None:
    """The lowest ids of equal tokens survive, at the k-th place and at the crossing of top_p."""
    rng = generator("sampling ties")
    for n in (4, 10, 64, 1000, 4097):
        x = rng.integers(-1, 2, size=(4, n)).astype(dtype)
        x[0] = 2.5
        x[1] = np.where(np.arange(n) % 2, 0.0, -0.0)
        for k in {1, 2, 3, n // 2, n}:
            check_filtered(x, top_k=k)
            check_filtered(x, top_k=k, temperature=INF)
            check_filtered(x, top_k=k, temperature=0.0)
            check_filtered(x, top_k=k, min_p=0.9)
    # Of 8 equal tokens, 3/8 of the mass is exactly three.
    x = np.zeros((5, 8), dtype)
    shares = [0.375, 0.375 + 1e-12, 0.375 - 1e-12, 2.0**-60, 1 - 2.0**-53]
    got = rows_of(filtered_logprobs(x, top_p=shares))
    for (ids, logprobs), count in zip(got, (3, 4, 3, 1, 8), strict=True):
        assert_array_equal(ids, np.arange(count))
        assert_allclose(logprobs, -math.log(count), rtol=1e-7)
    # Equal ones around the crossing: 4 tokens with half of the mass between them.
    x = np.full((1, 9), math.log(0.125), "f8")
    x[0, [1, 4]] = math.log(0.25)
    x[0, [2, 8, 0]] = -INF
    ids = filtered_logprobs(x, top_p=0.7).ids
    assert_array_equal(ids, [1, 3, 4, 5])  # 0.25, 0.25, 0.125, 0.125
    # min_p keeps those as probable as it says.
    assert_array_equal(filtered_logprobs(np.zeros((1, 3), dtype), min_p=1.0).ids, [0, 1, 2])


def test_masses_are_summed_in_float64() -> None:
    """So many equal tokens that sums in float32 would stop to grow, or lose the crossing."""
    n = 300_000
    x = np.zeros((1, n), "f4")
    for share in (0.5, 0.25, 0.999):
        got = filtered_logprobs(x, top_p=share)
        assert abs(len(got.ids) - math.ceil(share * n)) <= 1
        assert got.ids[-1] == len(got.ids) - 1


def test_the_order_of_the_filters() -> None:
    """top_p is of what top_k left, after the temperature; min_p of what both left."""
    p = np.array([[0.4, 0.3, 0.2, 0.1]])
    x = np.log(p)
    assert_array_equal(filtered_logprobs(x, top_p=0.8).ids, [0, 1, 2])
    assert_array_equal(filtered_logprobs(x, top_k=3, top_p=0.75).ids, [0, 1])  # 7/9 reach it
    assert_array_equal(filtered_logprobs(x, temperature=0.25, top_p=0.7).ids, [0])
    assert_array_equal(filtered_logprobs(x, top_p=0.95, min_p=0.6).ids, [0, 1])
    got = filtered_logprobs(x, top_k=2)
    assert_allclose(np.exp(got.logprobs), [4 / 7, 3 / 7], rtol=1e-14)


@EACH_DTYPE
def test_masks(dtype: str) -> None:
    for n in (1, 31, 40, 700, 5000):
        x = make((6, n), dtype)
        where = generator("sampling mask", n).random((6, n)) < 0.4
        where[4] = False
        x[~where] = INF
        for filters in FILTERS:
            near = check_filtered(x, where=where, **filters)
            assert near <= 1
            got = sample(x, where=where, seed=5, **filters)
            packed = sample(x, token_bitmask=pack(where), seed=5, **filters)
            assert_array_equal(got.ids, packed.ids)
            assert same_bits(got.logprobs, packed.logprobs)
            nothing = ~where.any(axis=1)
            assert_array_equal(got.ids == -1, nothing)
            assert_array_equal(np.isnan(got.logprobs), nothing)
            drawn = got.ids[~nothing]
            assert where[~nothing][np.arange(len(drawn)), drawn].all()


def test_special_rows() -> None:
    """Nothing raises in the middle of a batch."""
    for n in (3, 50, 3000):
        x = make((7, n))
        x[0, n // 2] = NAN
        x[1, n - 1] = INF
        x[2] = -INF
        x[3, :-1] = -INF
        x[5] = [NAN, INF, -INF] + [0.0] * (n - 3)
        for filters in FILTERS:
            got = sample(x, seed=1, **filters)
            assert_array_equal(got.ids[[0, 1, 2, 5]], -1)
            assert np.isnan(got.logprobs[[0, 1, 2, 5]]).all()
            assert got.ids[3] == n - 1
            assert got.logprobs[3] == 0.0
            assert (got.ids[[4, 6]] >= 0).all()
            check_filtered(x, **filters)
    empty = sample(np.empty((2, 0), "f4"), top_k=3)
    assert_array_equal(empty.ids, [-1, -1])
    assert np.isnan(empty.logprobs).all()
    assert filtered_logprobs(np.empty((2, 0))).offsets.tolist() == [0, 0, 0]
    none = sample(np.empty((0, 5), "f4"))
    assert none.ids.shape == none.logprobs.shape == (0,)
    assert none.logprobs.dtype == np.float32
    assert filtered_logprobs(np.empty((0, 5))).offsets.tolist() == [0]


def test_limits_of_the_temperature() -> None:
    x = np.array([[1.0, 4.0, 2.0, 4.0, -INF, 3.0]] * 3, "f4")
    for t in (0.0, -0.0, 1e-300):
        got = sample(x, temperature=t, top_p=0.99, seed=[seed_for(u) for u in (0, 0.5, 0.99)])
        assert_array_equal(got.ids, [1, 1, 1])
        assert_array_equal(got.logprobs, 0.0)
        assert filtered_logprobs(x, temperature=t).ids.tolist() == [1, 1, 1]
    us = (0.0, 0.39, 0.99)
    got = sample(x, temperature=INF, seed=[seed_for(u) for u in us])
    assert_array_equal(got.ids, [0, 1, 5])
    assert_allclose(got.logprobs, -math.log(5), rtol=1e-7)
    # Which tokens are the most probable does not depend on the temperature.
    got = filtered_logprobs(x[0], temperature=INF, top_k=3)
    assert_array_equal(got.ids, [1, 3, 5])
    got = filtered_logprobs(x[0], temperature=INF, top_p=0.5)
    assert_array_equal(got.ids, [1, 3, 5])
    cold = np.array([[1.0, 1.0 + 1e-15]])
    assert filtered_logprobs(cold, temperature=1e-320).ids.tolist() == [1]


def test_large_logits() -> None:
    """Adding 1e6 to a row changes nothing beyond the rounding of the input."""
    x = np.round(make((3, 400)) * 4) / 4
    for filters in FILTERS:
        a, b = sample(x, seed=2, **filters), sample(x + np.float32(1e6), seed=2, **filters)
        assert_array_equal(a.ids, b.ids)
        assert_allclose(a.logprobs, b.logprobs, rtol=1e-6, atol=1e-7)
    huge = np.array([[-3e38, 3e38, 3e38, 0.0]], "f4")
    assert_array_equal(filtered_logprobs(huge, temperature=1e30).ids, [0, 1, 2, 3])
    assert_array_equal(filtered_logprobs(huge, min_p=0.1).ids, [1, 2])
    assert_allclose(sample(huge, seed=1).logprobs, -math.log(2), rtol=1e-7)


# ---- beside transformers


def test_beside_the_warpers_of_transformers() -> None:
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers.generation.logits_process")
    grid = itertools.product((0.5, 1.0, 1.7), (0, 1, 5, 40), (1.0, 0.95, 0.3), (0.0, 0.02, 0.4))
    shapes = [(4, 7), (3, 300), (1, 2100)]
    for dtype in ("float32", "float64"):
        for (temperature, top_k, top_p, min_p), shape in itertools.product(grid, shapes):
            x = make(shape, dtype)
            scores = torch.tensor(x.astype("f8"))
            warpers = [process.TemperatureLogitsWarper(temperature)]
            if top_k:
                warpers.append(process.TopKLogitsWarper(top_k))
            if top_p < 1:
                warpers.append(process.TopPLogitsWarper(top_p))
            if min_p:
                warpers.append(process.MinPLogitsWarper(min_p))
            for warper in warpers:
                scores = warper(None, scores)
            want = torch.log_softmax(scores, -1).numpy()
            filters = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
            got = rows_of(filtered_logprobs(x, **filters))
            for row, wanted, (ids, logprobs) in zip(x, want, got, strict=True):
                if filtered(masked_logits(row), **filters)[2] < nearness(x):
                    continue
                assert_array_equal(ids, np.flatnonzero(wanted > -INF))
                assert_allclose(logprobs, wanted[ids], rtol=1e-6, atol=2e-7)


def test_real_logits(logits: np.ndarray) -> None:
    near = sum(check_filtered(logits[::5], **filters) for filters in FILTERS)
    assert near < len(FILTERS) * 4 / 5


def many_rows(rows: int, seed: object, implementations: Sequence[str] = ()) -> None:
    """Random rows of all sizes and kinds against the oracle: what is left of them, and a draw."""
    rng = generator("many rows", seed)
    done = near = 0
    while done < rows:
        longest = 3000 if rng.random() < 0.99 else 150_000
        n = int(np.exp(rng.uniform(0, np.log(longest))))
        height = int(min(64, 1 + 20_000 // n))
        kind = rng.integers(5)
        x = rng.normal(size=(height, n)) * rng.choice([0.1, 1, 4, 20])
        if kind == 1:
            x = np.round(x)
        elif kind == 2:
            x = np.sort(x, axis=1)[:, :: rng.choice([1, -1])]
        elif kind == 3:
            x[rng.random(x.shape) < 0.5] = -INF
        elif kind == 4:
            x = np.abs(x) ** 2
        x = x.astype(rng.choice(["f2", "f4", "f8"]))
        where = None
        if rng.random() < 0.2:
            where = rng.random(x.shape) < rng.random((height, 1))
            x[~where] = NAN
        filters = {
            "temperature": np.exp(rng.normal(size=height)),
            "top_k": rng.integers(0, n + 2, size=height),
            "top_p": rng.choice([1.0, 0.9, 0.5], size=height) * rng.uniform(0.9, 1, size=height),
            "min_p": rng.choice([0.0, 0.0, 0.05, 0.5], size=height),
        }
        filters["temperature"][rng.random(height) < 0.05] = rng.choice([0.0, INF])
        filters["top_k"][rng.random(height) < 0.3] = 0
        filters["top_p"][rng.random(height) < 0.3] = 1.0
        seeds = rng.integers(0, 2**63, size=height)
        near += check_filtered(
            x, where=where, seeds=seeds, implementations=implementations, **filters
        )
        done += height
    # Rounded logits have equal sums that top_p meets by chance; all else is rarely near.
    assert near < rows / 20


def test_random_rows() -> None:
    many_rows(2000, 0)


# ---- seeds


def test_a_draw_depends_on_its_own_seed_alone() -> None:
    x = make((50, 3000))
    seeds = generator("own seeds").integers(0, 2**63, size=50)
    filters = {"temperature": 1.5, "top_p": 0.9}
    whole = sample(x, seed=seeds, **filters)
    shuffled = generator("shuffle").permutation(50)
    other = sample(x[shuffled], seed=seeds[shuffled], **filters)
    assert_array_equal(other.ids, whole.ids[shuffled])
    assert same_bits(other.logprobs, whole.logprobs[shuffled])
    for i in (0, 13, 49):
        one = sample(x[i], seed=int(seeds[i]), **filters)
        assert one.ids == whole.ids[i]
        # Batch-mates with other filters change nothing.
        t = np.full(50, 0.3)
        t[i] = 1.5
        mixed = sample(x, seed=seeds, temperature=t, top_p=np.where(t > 1, 0.9, 0.1))
        assert mixed.ids[i] == whole.ids[i]
        assert same_bits(mixed.logprobs[i], whole.logprobs[i])


def test_forms_of_seeds() -> None:
    x = make((4, 200))
    five = sample(x, seed=5)
    assert_array_equal(sample(x, seed=5).ids, five.ids)
    assert_array_equal(sample(x, seed=np.int32(5)).ids, five.ids)
    assert_array_equal(sample(x, seed=np.array(5)).ids, five.ids)
    assert_array_equal(sample(x.reshape(2, 2, 200), seed=5).ids, five.ids.reshape(2, 2))
    assert_array_equal(sample(x[:1], seed=5).ids, sample(x[:1], seed=[5]).ids)
    assert sample(x[0], seed=[5]).ids == sample(x[0], seed=5).ids == five.ids[0]
    own = sample(x, seed=[7, 7, 7, 7])
    assert_array_equal(own.ids, [sample(row, seed=7).ids for row in x])
    shaped = sample(x.reshape(2, 2, 200), seed=[[7, 8], [9, 10]])
    assert_array_equal(shaped.ids.ravel(), sample(x, seed=[7, 8, 9, 10]).ids)
    # 2**64 numbers: negative ones are at the end of them.
    assert_array_equal(sample(x, seed=-1).ids, sample(x, seed=2**64 - 1).ids)
    assert_array_equal(
        sample(x, seed=np.array([-1, 0, 1, 2])).ids,
        sample(x, seed=np.array([2**64 - 1, 0, 1, 2], np.uint64)).ids,
    )
    # NumPy makes float64 of this list.
    assert_array_equal(sample(x, seed=[2**64 - 1, 0, 1, 2]).ids, sample(x, seed=[-1, 0, 1, 2]).ids)
    wide = np.zeros((1, 100_000), "f4")
    assert len({int(sample(wide).ids[0]) for _ in range(20)}) > 10
    assert len({int(sample(wide, seed=1, step=t).ids[0]) for t in range(20)}) > 10
    stepped = sample(x, seed=5, step=[3, 3, 4, 4])
    assert_array_equal(stepped.ids[:2], sample(x, seed=5, step=3).ids[:2])


def test_a_generator_is_asked_once() -> None:
    x = make((2, 3, 400))
    got = sample(x, seed=np.random.default_rng(3))
    u = np.random.default_rng(3).random(6)
    want = sample(x, seed=np.array([seed_for(v) for v in u], np.uint64).reshape(2, 3))
    assert_array_equal(got.ids, want.ids)
    rng = np.random.default_rng(3)
    several = sample(x, seed=rng, num_samples=4)
    assert several.ids.shape == several.logprobs.shape == (2, 3, 4)
    again = np.random.default_rng(3)
    again.random(24)
    assert rng.random() == again.random()


# ---- several draws


def test_several_draws_with_replacement() -> None:
    x = make((3, 60))
    got = sample(x, num_samples=5, seed=9, temperature=0.8)
    for i in range(3):
        ids, logp, _ = filtered(masked_logits(x[i]), temperature=0.8)
        places = [draw(ids, logp, uniform(9, i, 0, j))[0] for j in range(5)]
        assert_array_equal(got.ids[i], [ids[p] for p in places])
        assert_allclose(got.logprobs[i], logp[places].astype("f8"), rtol=3e-7, atol=2e-7)
    assert_array_equal(sample(x, num_samples=1, seed=9).ids[:, 0], sample(x, seed=9).ids)
    assert_array_equal(
        sample(x, num_samples=3, seed=9).ids, sample(x, num_samples=9, seed=9).ids[:, :3]
    )
    assert sample(x, num_samples=0).ids.shape == (3, 0)
    cold = sample(x, num_samples=4, temperature=0)
    assert_array_equal(cold.ids, np.repeat(x.argmax(1)[:, None], 4, 1))


@EACH_DTYPE
def test_draws_without_replacement(dtype: str) -> None:
    """Each is what its uniform draws from those that are left."""
    for n, draws in ((1, 1), (5, 5), (40, 10), (3000, 20)):
        x = make((4, n), dtype)
        for filters in ({}, {"temperature": 0.5, "top_k": 30}, {"top_p": 0.9}):
            got = sample(x, num_samples=draws, replace=False, seed=4, **filters)
            for i in range(4):
                ids, logp, margin = filtered(masked_logits(x[i]), **filters)
                if margin < nearness(x):
                    continue
                left = dict(zip(ids, logp, strict=True))
                for j in range(draws):
                    if not left:
                        assert got.ids[i, j] == -1
                        assert np.isnan(got.logprobs[i, j])
                        continue
                    now = np.array(list(left.values()))
                    place, distance = draw(list(left), now - now.max(), uniform(4, i, 0, j))
                    token = list(left)[place]
                    if distance < nearness(x) * 10:
                        token = int(got.ids[i, j])
                        assert token in left
                    assert got.ids[i, j] == token
                    assert_allclose(
                        got.logprobs[i, j], float(left.pop(token)), rtol=3e-7, atol=3e-7
                    )


def test_the_distribution_without_replacement() -> None:
    p = np.array([0.5, 0.25, 0.15, 0.1])
    rows = 10_000
    x = np.broadcast_to(np.log(p), (rows, 4))
    got = sample(x, num_samples=3, replace=False, seed=6).ids
    orders = list(itertools.permutations(range(4), 3))
    want = [p[a] * p[b] / (1 - p[a]) * p[c] / (1 - p[a] - p[b]) for a, b, c in orders]
    codes = got @ [16, 4, 1]
    counts = [np.count_nonzero(codes == np.dot(o, [16, 4, 1])) for o in orders]
    assert sum(counts) == rows
    assert scipy.stats.chisquare(counts, np.multiply(want, rows)).pvalue > 1e-6


def test_nothing_is_lost_beside_what_has_been_drawn() -> None:
    """Tokens whose weights vanish beside the first one are drawn by their own proportions."""
    for dtype in ("float32", "float64"):
        gap = 60.0 if dtype == "float32" else 700.0
        x = np.array([0.0, -gap, -gap, -gap - 2000, -INF], dtype)
        batch = np.broadcast_to(x, (4, 5))
        seeds = []
        got = sample(batch, num_samples=5, replace=False, seed=[1, 2, 3, 4])
        for i in range(4):
            assert got.ids[i, 0] == 0
            second = 1 if uniform(i + 1, 0, 0, 1) < 0.5 else 2
            assert_array_equal(got.ids[i], [0, second, 3 - second, 3, -1])
            seeds.append(second)
            assert_allclose(got.logprobs[i, :4], [0, -gap, -gap, -gap - 2000], rtol=1e-6, atol=1e-9)
            assert np.isnan(got.logprobs[i, 4])


# ---- biases and penalties


BIAS_FORMS = {
    "mapping": lambda ids, values: dict(zip(ids, values, strict=True)),
    "pair": lambda ids, values: (ids, values),
    "mappings": lambda ids, values: [dict(zip(ids, values, strict=True))] * 3,
    "padded": lambda ids, values: (
        np.tile([*ids, -1, -9], (3, 1)),
        np.tile([*values, 7.0, 7.0], (3, 1)),
    ),
    "ragged": lambda ids, values: (np.tile(ids, 3), np.tile(values, 3), np.arange(4) * len(ids)),
    "split": lambda ids, values: ([*ids, *ids], [v - 1 for v in values] + [1.0] * len(ids)),
}


@pytest.mark.parametrize("form", BIAS_FORMS)
@EACH_DTYPE
def test_logit_bias(form: str, dtype: str) -> None:
    x = make((3, 3000), dtype)
    ids = [2999, 0, 17, 2048, 5]
    values = [2.0, -1.0, 3.5, -INF, 4.0]
    bias = BIAS_FORMS[form](ids, values)
    y = x.astype("f8" if dtype == "float64" else "f4")
    y[:, ids] += np.array(values, y.dtype)
    for filters in FILTERS:
        got, want = sample(x, seed=8, logit_bias=bias, **filters), sample(y, seed=8, **filters)
        assert_array_equal(got.ids, want.ids)
        assert_allclose(got.logprobs, want.logprobs, rtol=1e-6, atol=1e-6)
        a = filtered_logprobs(x, logit_bias=bias, **filters)
        b = filtered_logprobs(y, **filters)
        assert_array_equal(a.ids, b.ids)
        assert_array_equal(a.offsets, b.offsets)
        assert_allclose(a.logprobs, b.logprobs, rtol=1e-6, atol=1e-6)
    assert got.logprobs.dtype == (np.float64 if dtype == "float64" else np.float32)


def test_logit_bias_of_each_row() -> None:
    x = make((3, 20))
    bias = [{3: 50.0}, None, {7: 60.0, 8: -INF}]
    assert_array_equal(sample(x, logit_bias=bias, temperature=0).ids, [3, x[1].argmax(), 7])
    ragged = ([3, 7, 8], [50.0, 60.0, -INF], [0, 1, 1, 3])
    for form in (bias, ragged):
        got = filtered_logprobs(x, logit_bias=form)
        assert 8 not in rows_of(got)[2][0]
        assert same_bits(got.logprobs, filtered_logprobs(x, logit_bias=bias).logprobs)
    shaped = sample(x.reshape(1, 3, 20), logit_bias=bias, temperature=0)
    assert shaped.ids.tolist() == [[3, x[1].argmax(), 7]]
    # A masked token stays masked, and one of -infinity improbable.
    x[0, 3] = -INF
    assert sample(x, logit_bias=bias, temperature=0).ids[0] != 3
    where = np.arange(20) != 7
    assert sample(x, logit_bias=bias, temperature=0, where=where).ids[2] != 7


@EACH_DTYPE
def test_edits_are_rounded_to_the_type_of_the_arithmetic(dtype: str) -> None:
    """What rounds away breaks no tie."""
    x, small = np.ones((1, 2)), 1e-17 if dtype == "float64" else 1e-9
    x = x.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    penalty = {"history": [[0]], "presence_penalty": small}
    for edit in ({"logit_bias": {1: small}}, penalty):
        assert sample(x, temperature=0, **edit).ids == [0]
        got = filtered_logprobs(x, **edit)
        assert got.logprobs[0] == got.logprobs[1]


HISTORY = [[1, 5, 5, 9, 5], [0, 0, 2, -1, -1], [-1, -1, -1, -1, -1]]
HISTORIES = {
    "padded": HISTORY,
    "ragged": ([1, 5, 5, 9, 5, 0, 0, 2], [0, 5, 8, 8]),
}


@pytest.mark.parametrize("form", HISTORIES)
def test_penalties(form: str) -> None:
    x = make((3, 200), "float64")
    x[:, 5] = [2.0, -1.0, 0.5]
    repetition, presence, frequency = np.array([1.3, 0.8, 2.0]), 0.4, np.array([0.1, -0.2, 0.3])
    bias = {5: -0.5, 0: 1.0, 11: 2.0}
    y = x.copy()
    for i, seen in enumerate(HISTORY):
        for token, value in bias.items():
            y[i, token] += value
        for token in {t for t in seen if t >= 0}:
            v = y[i, token]
            v = v / repetition[i] if v > 0 else v * repetition[i]
            y[i, token] = v - presence - frequency[i] * seen.count(token)
    kwargs = {
        "history": HISTORIES[form],
        "repetition_penalty": repetition,
        "presence_penalty": presence,
        "frequency_penalty": frequency,
        "logit_bias": bias,
    }
    a, b = filtered_logprobs(x, **kwargs), filtered_logprobs(y)
    assert_array_equal(a.ids, b.ids)
    assert_allclose(a.logprobs, b.logprobs, rtol=1e-13)
    for filters in FILTERS:
        assert_array_equal(
            sample(x, seed=3, **kwargs, **filters).ids, sample(y, seed=3, **filters).ids
        )
    swapped = x.astype(">f8").reshape(3, 1, 200)  # converted in pieces
    kwargs["repetition_penalty"] = repetition[:, None]
    kwargs["frequency_penalty"] = frequency[:, None]
    if form == "padded":
        kwargs["history"] = np.array(HISTORY)[:, None]
    assert same_bits(filtered_logprobs(swapped, **kwargs).logprobs, a.logprobs)


def test_repetition_penalty_beside_transformers() -> None:
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers.generation.logits_process")
    x = make((4, 500), "float64")
    history = generator("history").integers(0, 500, size=(4, 60))
    for penalty in (0.7, 1.0, 1.2, 3.0):
        warper = process.RepetitionPenaltyLogitsProcessor(penalty)
        want = torch.log_softmax(warper(torch.tensor(history), torch.tensor(x)), -1).numpy()
        got = filtered_logprobs(x, history=history, repetition_penalty=penalty)
        assert_allclose(got.logprobs, want.ravel(), rtol=1e-13)


def test_penalties_of_nothing() -> None:
    x = make((2, 10))
    plain = filtered_logprobs(x)
    for history in (np.empty((2, 0), int), ([], [0, 0, 0]), [[-1], [-1]]):
        got = filtered_logprobs(x, history=history, repetition_penalty=5.0, presence_penalty=1.0)
        assert same_bits(got.logprobs, plain.logprobs)
    assert same_bits(filtered_logprobs(x, logit_bias={}).logprobs, plain.logprobs)
    one = sample(x[0], history=[1, 2, 3], presence_penalty=1e9, temperature=0)
    rest = x[0].copy()
    rest[1:4] = -INF
    assert one.ids == rest.argmax()
    assert sample(np.empty((2, 0)), logit_bias={}).ids.tolist() == [-1, -1]


# ---- layouts, dtypes, memory


@EACH_DTYPE
def test_layouts_give_the_same_bits(dtype: str) -> None:
    for n in (5, 777, 5000):
        x = make((7, n), dtype)
        kwargs = {
            "temperature": 0.8,
            "top_k": 300,
            "top_p": 0.9,
            "min_p": 0.01,
            "seed": 3,
            "logit_bias": {0: 1.0},
            "history": np.tile([1, 2, 2], (7, 1)),
            "presence_penalty": 0.5,
        }
        want = sample(x, **kwargs)
        del kwargs["seed"]
        nucleus = filtered_logprobs(x, **kwargs)
        for name, y in layouts(x).items():
            before = y.tobytes()
            got = sample(y, seed=3, **kwargs)
            assert_array_equal(got.ids, want.ids, name)
            assert same_bits(got.logprobs, want.logprobs)
            again = filtered_logprobs(y, **kwargs)
            assert all(same_bits(a, b) for a, b in zip(again, nucleus, strict=True)), name
            assert y.tobytes() == before
    if dtype != "float64":
        wide = sample(x.astype("f4"), seed=3, **kwargs)
        assert_array_equal(wide.ids, want.ids)
        assert same_bits(wide.logprobs, want.logprobs)


def test_tensors_of_torch() -> None:
    torch = pytest.importorskip("torch")
    x = torch.tensor(make((4, 300)))
    seeds = torch.tensor([3, -4, 5, 6])
    history = torch.tensor([[1, 2], [3, -1], [4, 4], [5, 6]])
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        y = x.to(dtype)
        kwargs = {"top_p": torch.tensor([0.9, 0.8, 0.7, 1.0]), "top_k": torch.tensor([0, 5, 9, -1])}
        kwargs |= {"history": history, "presence_penalty": 0.5}
        got = sample(y, seed=seeds, **kwargs)
        plain = {k: v.numpy() if hasattr(v, "numpy") else v for k, v in kwargs.items()}
        want = sample(y.float().numpy(), seed=seeds.numpy(), **plain)
        assert isinstance(got.ids, torch.Tensor)
        assert got.ids.dtype == torch.int64
        assert_array_equal(got.ids.numpy(), want.ids)
        assert same_bits(got.logprobs.numpy(), want.logprobs)
        nucleus = filtered_logprobs(y, **kwargs)
        assert all(isinstance(v, torch.Tensor) for v in nucleus)
        want = filtered_logprobs(y.float().numpy(), **plain)
        for a, b in zip(nucleus, want, strict=True):
            assert same_bits(a.numpy(), b)
    ragged = sample(y, history=(torch.tensor([1, 2]), torch.tensor([0, 1, 1, 2, 2])), top_k=1)
    assert isinstance(sample(y[0], seed=1).ids, torch.Tensor)
    assert ragged.ids.shape == (4,)


def test_integers() -> None:
    x = generator("integer logits").integers(-5, 5, size=(300, 700))
    got = sample(x, seed=3, top_p=0.9)
    want = sample(x.astype("f8"), seed=3, top_p=0.9)
    assert got.logprobs.dtype == np.float64
    assert_array_equal(got.ids, want.ids)
    got, want = filtered_logprobs(x, top_k=9), filtered_logprobs(x.astype("f8"), top_k=9)
    assert_array_equal(got.ids, want.ids)


@pytest.mark.usefixtures("one_thread")
def test_memory() -> None:
    rows, n = 64, 32000
    x = np.broadcast_to(make((n,)), (rows, n))
    allowed = (1 << 20) + (12 * 16 * n if uses_the_reference() else 0)
    bias = dict.fromkeys(range(100), 1.0)
    history = np.tile(np.arange(100), (rows, 1))
    for y, more in (
        (x, 0),
        (x.astype("f2"), 0),
        (np.broadcast_to(x[0].astype(">f4"), x.shape), 2 * 8 << 17),
    ):
        for kwargs in (
            {},
            {"temperature": 0.7, "top_k": 50, "top_p": 0.95, "min_p": 0.02},
            {"top_p": 0.95},
            {"logit_bias": bias, "history": history, "presence_penalty": 1.0},
        ):
            sample(y[:1], seed=1, **{k: v[:1] if k == "history" else v for k, v in kwargs.items()})
            assert peak(lambda y=y, k=kwargs: sample(y, seed=1, **k)) < allowed + more
        filtered_logprobs(y[:1], top_k=50)
        assert peak(lambda y=y: filtered_logprobs(y, top_k=50)) < allowed + more


# ---- errors


def test_top_k_beyond_int64_is_no_limit() -> None:
    x = make((2, 10))
    want = filtered_logprobs(x)
    for k in (2**70, np.uint64(2**63 + 5), np.array([2**64 - 1, 2**63], "u8"), np.uint8(10)):
        assert_array_equal(filtered_logprobs(x, top_k=k).offsets, want.offsets)


def test_errors() -> None:
    x = make((2, 3, 10))
    for name, bad, message in (
        ("top_k", -2, "top_k is -2; it must be positive, or 0 or -1"),
        ("top_k", [[1, 2, -5]] * 2, "top_k is -5"),
        ("top_p", 1.1, r"top_p is 1\.1; it must be in \[0, 1\]"),
        ("top_p", -0.1, r"top_p is -0\.1"),
        ("top_p", NAN, "top_p is nan"),
        ("min_p", 2, r"min_p is 2\.0; it must be in \[0, 1\]"),
        ("min_p", NAN, "min_p is nan"),
        ("temperature", -1, "temperature is -1"),
        ("top_k", [1, 2], r"top_k has shape \(2,\); it must broadcast .*\(2, 3\)"),
        ("top_p", [0.5] * 4, r"top_p has shape \(4,\)"),
        ("seed", [1, 2], r"seed has shape \(2,\); it must be one number or one for each row"),
        ("seed", 2**64, r"seed is 18446744073709551616; it must be in"),
        ("step", [[1, 2]], "step has shape"),
        ("step", -(2**63) - 1, "step is -9223372036854775809"),
        ("num_samples", -1, "num_samples is -1; it must not be negative"),
        ("token_bitmask", np.ones((2, 3, 2), "i4"), "token_bitmask has shape"),
        ("repetition_penalty", 1.2, "repetition_penalty is given but history is None"),
        ("presence_penalty", 1.2, "presence_penalty is given but history is None"),
        ("frequency_penalty", [[0, 0, 1.0]] * 2, "frequency_penalty is given but history is None"),
        ("repetition_penalty", 0.0, r"repetition_penalty is 0\.0; it must be positive"),
        ("presence_penalty", INF, "presence_penalty is inf; it must be finite"),
        ("logit_bias", {1: INF}, "logit_bias has the value inf; it must be finite or -infinity"),
        ("logit_bias", {1: NAN}, "logit_bias has the value nan"),
        ("logit_bias", [{1: 1.0}], "logit_bias has 1 mappings; it must have 6"),
        ("logit_bias", ([1, 2], [1.0, 2.0, 3.0]), "logit_bias has values of shape"),
        ("logit_bias", ([1], [1.0], [0, 1]), "logit_bias's offsets has shape"),
        ("logit_bias", ([1], [1.0], [0, 1, 0, 1, 1, 1, 1]), "logit_bias's offsets must rise"),
        ("logit_bias", ([[1]], [[1.0]]), r"logit_bias has shape \(1, 1\)"),
        ("history", [1, 2], r"history has shape \(2,\); it must be \(2, 3, 'length'\)"),
        ("history", ([1], [0, 1]), "history's offsets has shape"),
        ("history", ([1], [1] * 7), "history's offsets must rise from 0"),
        ("history", ([1], [0] * 6 + [2]), "history's offsets must rise from 0"),
        ("history", ([[1]], [0] * 6 + [1]), "history has ids of shape"),
        ("history", (1, 2, 3), "history has 3 parts"),
    ):
        with pytest.raises(ValueError, match=message):
            sample(x, **{name: bad})
    for name, bad, message in (
        ("top_k", 1.5, "top_k has dtype float64; it must be an integer"),
        ("top_k", None, "top_k is None; it must be an integer"),
        ("top_k", [2**70], r"top_k is \[1180591620717411303424\]; it must be an integer"),
        ("top_p", "a", "top_p has dtype"),
        ("seed", 1.5, r"seed is 1\.5; it must be an integer"),
        ("seed", [[0.5] * 3] * 2, r"seed is 0\.5; it must be an integer"),
        ("seed", np.ones((2, 3)), "seed has dtype float64; it must be an integer"),
        ("seed", "a", "seed is 'a'; it must be an integer"),
        ("step", None, "step is None; it must be an integer"),
        ("num_samples", 1.5, r"num_samples is 1\.5; it must be an integer"),
        ("logit_bias", 5, "logit_bias is a int; it must be a mapping"),
        ("logit_bias", [1, 2], "logit_bias is a sequence of other things than mappings"),
        ("logit_bias", {1: "a"}, "logit_bias has values of dtype"),
        ("logit_bias", {"a": 1.0}, "logit_bias has dtype"),
        ("history", np.zeros((2, 3, 4)), "history has dtype float64; it must be an integer"),
    ):
        with pytest.raises(TypeError, match=message):
            sample(x, **{name: bad})
    for name, bad, message in (
        ("logit_bias", {3: 1.0, 10: 1.0}, r"logit_bias\[1\] is 10; it must be in \[0, 10\)"),
        ("logit_bias", {-1: 1.0}, r"logit_bias\[0\] is -1"),
        ("history", np.full((2, 3, 2), 10), r"history\[0, 0, 0\] is 10; it must be in \[0, 10\)"),
        ("history", ([3, -1], [0] * 6 + [2]), r"history\[1\] is -1"),
    ):
        with pytest.raises(IndexError, match=message):
            sample(x, **{name: bad})
    for call in (sample, filtered_logprobs):
        with pytest.raises(ValueError, match="logits is a scalar"):
            call(1.0)
        with pytest.raises(TypeError, match="logits has dtype complex128"):
            call(x.astype(complex))


def test_a_row_may_not_be_longer_than_ids_of_32_bits() -> None:
    endless = np.lib.stride_tricks.as_strided(np.zeros(1, "f4"), (2**31,), (0,))
    with pytest.raises(ValueError, match="2147483648 logits"):
        sample(endless, seed=1)
    with pytest.raises(ValueError, match="2147483648 logits"):
        filtered_logprobs(endless)


def test_draws_in_doubt(backend: str) -> None:
    """Uniforms right beside the boundaries between tokens, where sums in float could not decide."""
    for n in (40_000, 5000, 300):
        x = make((n,), scale=2.0)
        weights = np.exp(x.astype("f8") - x.max())
        edges = np.cumsum(weights) / weights.sum()
        wide = np.flatnonzero((weights[:-1] > 1e-3) & (weights[1:] > 1e-3))
        wide = wide[:: 1 + len(wide) // 50]
        assert len(wide) > 5
        batch = np.broadcast_to(x, (len(wide), n))
        for nudge, step in ((-1e-11, 0), (1e-11, 1)):
            seeds = [seed_for(float(u)) for u in edges[wide] + nudge]
            assert_array_equal(sample(batch, seed=seeds).ids, wide + step)


def test_the_nucleus_in_doubt(backend: str) -> None:
    """Masses right beside those of whole tokens."""
    for n in (40_000, 5000):
        x = make((n,), scale=2.0)
        order = np.argsort(-x, kind="stable")
        weights = np.exp(x.astype("f8") - x.max())[order]
        mass = np.cumsum(weights) / weights.sum()
        for k in (1, 2, 10, 100, 1000):
            for nudge, more in ((-1e-11, 0), (1e-11, 1)):
                got = filtered_logprobs(x, top_p=mass[k - 1] + nudge)
                assert_array_equal(got.ids, np.sort(order[: k + more]))


def test_the_nucleus_needs_its_last_token(backend: str) -> None:
    """Rows of which every token is needed: rounding of a place among them loses none."""
    for dtype in ("float32", "float64"):
        for n in (60, 100, 1000):
            x = make((50, n), dtype, scale=0.5)
            for top_k in (0, n - 1):
                got = filtered_logprobs(x, top_k=top_k, top_p=1 - 1e-6)
                assert_array_equal(np.diff(got.offsets), top_k or n)


@EACH_DTYPE
def test_logprobs_of_many_equal_tokens(dtype: str) -> None:
    """Thousands of terms that are rounded the same way each do not add up to an error."""
    if dtype in ("float16", "bfloat16"):
        gaps = [0.5, 2.0, 7.0, 10.0]
    else:
        gaps = generator("equal").uniform(0.1, 12, size=8).astype(dtype).astype("f8").tolist()
    for n in (60, 1000, 2048, 5000, 60_000):
        x = make((len(gaps), n), dtype)
        x[:] = -np.array(gaps)[:, None]
        x[:, n // 3] = 0
        for filters, kept in (({}, n), ({"top_k": n - 1}, n - 1), ({"min_p": 1e-6}, n)):
            got = filtered_logprobs(x, **filters)
            assert_array_equal(np.diff(got.offsets), kept)
            for gap, (_, logprobs) in zip(gaps, rows_of(got), strict=True):
                largest = -np.log1p((kept - 1) * np.exp(np.longdouble(-gap)))
                want = np.full(kept, largest - np.longdouble(gap))
                want[n // 3] = largest
                assert_logprobs(logprobs, want)


def test_the_nucleus_of_nearly_all(backend: str) -> None:
    """Where rounding may leave no token to reach the mass: all stay, not the first alone."""
    for n in (2, 100, 5000, 40_000, 128_256):
        for scale in (1.0, 2.0, 4.0):
            x = make((n,), scale=scale)
            for top_p in (1 - 2.0**-53, 1 - 1e-15):
                got = filtered_logprobs(x, top_p=top_p)
                left_out = np.setdiff1d(np.arange(n), got.ids)
                p = np.exp(x.astype("f8") - x.max())
                assert p[left_out].sum() <= 1e-12 * p.sum()

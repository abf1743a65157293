"""Ordinary values: every length, real logits, large offsets, the same bits anywhere."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import cache

import numpy as np
import pytest
import scipy.special
from oracle import OPS, Reference, assert_close, reference
from support import available, generator, real_logits, real_token_ids, same_bits, using

import fastsoftmax
from fastsoftmax import log_softmax, logsumexp, softmax

DTYPES = ("float32", "float64")
EACH_OP = pytest.mark.parametrize("op", OPS)
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES)


def call(op: str, *args: object, **kwargs: object) -> np.ndarray:
    return getattr(fastsoftmax, op)(*args, **kwargs)


@cache
def random_case(
    op: str, rows: int, length: int, dtype: str, scale: float, temperature: float | None
) -> tuple[np.ndarray, np.ndarray, Reference]:
    """Normal logits, their temperatures (None: one per row) and what must come of them."""
    rng = generator("random", rows, length, dtype)
    x = (rng.normal(size=(rows, length)) * scale).astype(dtype)
    x.flags.writeable = False
    t = rng.uniform(0.3, 3, size=rows) if temperature is None else np.float64(temperature)
    return x, t, reference(op, x, temperature=t)


# ---- against the references


@EACH_OP
@EACH_DTYPE
def test_every_short_length(backend: str, op: str, dtype: str) -> None:
    for length in range(1, 141):
        x, t, want = random_case(op, 3, length, dtype, 5.0, 0.7)
        assert_close(op, call(op, x, temperature=t), x, want=want)


@EACH_OP
@EACH_DTYPE
@pytest.mark.parametrize("length", [*range(2046, 2051), *range(4095, 4098), 8193])
def test_lengths_around_blocks(backend: str, op: str, dtype: str, length: int) -> None:
    x, t, want = random_case(op, 3, length, dtype, 8.0, None)
    assert_close(op, call(op, x, temperature=t), x, want=want)


@EACH_OP
@pytest.mark.parametrize("length", range(131071, 131075))
def test_lengths_around_caches(backend: str, op: str, length: int) -> None:
    x, t, want = random_case(op, 1, length, "float32", 4.0, 1.3)
    assert_close(op, call(op, x, temperature=t), x, want=want)


@EACH_OP
@pytest.mark.parametrize(
    ("length", "dtype"), [(128256, "float32"), (262144, "float32"), (128256, "float64")]
)
def test_vocabularies(backend: str, op: str, length: int, dtype: str) -> None:
    x, t, want = random_case(op, 1, length, dtype, 3.0, 0.7)
    assert_close(op, call(op, x, temperature=t), x, want=want)


@cache
def real_case(op: str, dtype: str, temperature: float | None) -> tuple:
    x = real_logits().astype(dtype)
    t = np.geomspace(0.2, 8, len(x)) if temperature is None else temperature
    return x, t, reference(op, x, temperature=t)


@EACH_OP
@EACH_DTYPE
@pytest.mark.parametrize("temperature", [1.0, 0.7, None])
def test_real_logits(backend: str, op: str, dtype: str, temperature: float | None) -> None:
    x, t, want = real_case(op, dtype, temperature)
    assert_close(op, call(op, x, temperature=t), x, want=want)


def test_real_logits_find_their_tokens(backend: str, logits: np.ndarray) -> None:
    p = softmax(logits, dtype=np.float32)
    assert (p.argmax(axis=1) == real_token_ids()).sum() == 12
    assert ((p.max(axis=1) > 0.8).sum(), (p.max(axis=1) < 0.02).sum()) == (6, 6)


@EACH_OP
@pytest.mark.parametrize("axis", [-1, 0, None])
def test_scipy(backend: str, op: str, axis: int | None, rng: np.random.Generator) -> None:
    x = rng.normal(size=(37, 41)) * 10
    for t in (1.0, 0.7, 12.0):
        want = getattr(scipy.special, op)(x / t, axis=axis)
        got = call(op, x, axis=axis, temperature=t)
        np.testing.assert_allclose(got, want, rtol=2e-13, atol=2e-15)


@EACH_OP
def test_scipy_on_real_logits(backend: str, op: str, logits: np.ndarray) -> None:
    x = logits[:4].astype("f8")
    want = getattr(scipy.special, op)(x, axis=-1)
    np.testing.assert_allclose(call(op, x), want, rtol=2e-13, atol=2e-15)


@EACH_OP
@EACH_DTYPE
def test_a_temperature_for_each_row(backend: str, op: str, dtype: str) -> None:
    x, t, want = random_case(op, 50, 33, dtype, 5.0, None)
    assert_close(op, call(op, x, temperature=t), x, want=want)
    assert_close(op, call(op, x, temperature=t[:, None]), x, want=want)
    assert_close(op, call(op, x.T, 0, temperature=t).T, x, want=want)


# ---- shapes of rows


@EACH_DTYPE
@pytest.mark.parametrize("length", [5, 64, 1000, 5000])
def test_an_offset_changes_nothing(backend: str, dtype: str, length: int) -> None:
    """Multiples of 1/8 stay what they are when 1e6 is added, and so do the bits."""
    x = np.round(generator("offset", length).normal(size=(4, length)) * 80).astype(dtype) / 8
    assert np.array_equal((x + x.dtype.type(1e6)) - x.dtype.type(1e6), x)
    for t in (1.0, 0.7):
        for op in ("softmax", "log_softmax"):
            for offset in (1e6, -1e6):
                shifted = x + x.dtype.type(offset)
                got = call(op, shifted, temperature=t)
                assert same_bits(got, call(op, x, temperature=t))
                assert_close(op, got, shifted, temperature=t)


@EACH_OP
@EACH_DTYPE
@pytest.mark.parametrize("offset", [1e6, -1e6, 1e15, 1e30, -1e30])
def test_offsets(backend: str, op: str, dtype: str, offset: float) -> None:
    x = (generator("offsets").normal(size=(3, 3000)) * 10 + offset).astype(dtype)
    assert_close(op, call(op, x, temperature=0.7), x, temperature=0.7)
    if abs(offset) == 1e30:
        assert_close("softmax", softmax(x), x, want=Reference(np.full(x.shape, 1 / 3000), 0 * x))


@EACH_OP
@EACH_DTYPE
@pytest.mark.parametrize("length", [16, 100, 2048, 5000])
def test_orders_and_peaks(backend: str, op: str, dtype: str, length: int) -> None:
    """Sorted either way (a new maximum at each entry, or never), constant, peaked anywhere."""
    rng = generator("orders", length)
    up = np.sort(rng.normal(size=length) * 20)
    steep = np.linspace(-1000, 1000, length)
    peak = np.zeros(length)
    peak[length // 3] = 50
    rows = [up, up[::-1], steep, steep[::-1], np.full(length, -7.25), peak, -peak, np.zeros(length)]
    x = np.array(rows, dtype=dtype)
    assert_close(op, call(op, x), x)
    assert_close(op, call(op, x, temperature=2.5), x, temperature=2.5)


@EACH_DTYPE
def test_a_peak_is_exactly_one(backend: str, dtype: str) -> None:
    for length in (1, 2, 17, 100, 3000, 10000):
        for position in {0, length // 2, length - 1}:
            x = np.full(length, -1000, dtype=dtype)
            x[position] = 1000
            want = np.zeros(length)
            want[position] = 1
            np.testing.assert_array_equal(softmax(x), want)


def test_sums_are_one(backend: str, logits: np.ndarray) -> None:
    rows = [logits[:2].astype("f4")]
    rng = generator("sums")
    rows += [rng.normal(size=(1, n)).astype("f4") * 4 for n in (3, 100, 4097, 50257, 262144)]
    rows += [np.zeros((1, n), "f4") for n in (7, 1000, 131071)]
    for x in rows:
        for t in (0.5, 1.0, 3.0):
            total = softmax(x, temperature=t).sum(axis=-1, dtype=np.float64)
            assert abs(total - 1).max() < 1e-6, x.shape


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_flat_rows_of_16_bits(backend: str, name: str) -> None:
    """Sums in the logits' own type would stop growing at 2048, or at 256."""
    dtype = pytest.importorskip("ml_dtypes").bfloat16 if name == "bfloat16" else np.float16
    for length in (256, 512, 2048, 4096, 8192):
        x = np.full((2, length), 3, dtype=dtype)
        np.testing.assert_array_equal(softmax(x).astype("f8"), 1 / length)
        np.testing.assert_array_equal(softmax(x, axis=0).astype("f8"), 0.5)
        assert_close("logsumexp", logsumexp(x), x)


# ---- logits so far apart that their difference overflows


@EACH_DTYPE
@pytest.mark.parametrize("shape", [(40, 2), (40, 10), (40, 24), (40, 100), (20, 1000), (3, 5000)])
@pytest.mark.parametrize("axis", [0, 1])
def test_far_apart(backend: str, dtype: str, shape: tuple[int, int], axis: int) -> None:
    """x - max overflows from a maximum of half a ULP of the largest number on."""
    most = float(np.finfo(dtype).max)
    half_ulp = most * float(np.finfo(dtype).eps) / 4
    rng = generator("far", *shape, dtype)
    x = rng.normal(size=shape)
    tops = [half_ulp / 4, half_ulp, 2 * half_ulp, most / 8, most]
    for i, row in enumerate(x[1::3]):
        row[-2:] = [-most, tops[i % len(tops)]]
    x = np.ascontiguousarray(np.moveaxis(x.astype(dtype), 1, axis))
    for temperature in (2.0, 1000.0):
        for op in ("log_softmax", "softmax"):
            got = call(op, x, axis=axis, temperature=temperature)
            want = reference(op, x, axis=axis, temperature=temperature)
            assert_close(op, got, x, want=want)
    wide = np.moveaxis(np.asarray(x, np.longdouble), axis, 1)
    got = np.moveaxis(fastsoftmax.log_softmax(x, axis=axis, temperature=2.0), axis, 1)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got[1::3, -2], (wide[1::3, -2] - wide[1::3].max(1)) / 2, rtol=1e-6)


def test_scores_of_what_is_far_apart(backend: str) -> None:
    most = np.finfo(np.float64).max
    loss = fastsoftmax.cross_entropy(np.array([most, most]), 0, label_smoothing=0.1)
    assert loss == pytest.approx(math.log(2))
    x = np.array([-most, most])
    assert fastsoftmax.cross_entropy(x, 1, temperature=4.0, label_smoothing=0.5) == pytest.approx(
        most / 4 * 0.5
    )
    assert fastsoftmax.cross_entropy([-math.inf, 0.0], 1, label_smoothing=0.5) == math.inf
    found = fastsoftmax.moments(np.array([1e200, -1e200]), temperature=1e200)
    assert found.variance == math.inf
    assert fastsoftmax.moments(np.array([1e200, 1e200]), temperature=1e200).variance == 0
    flat, far = np.zeros(2), np.array([most, -most])
    assert fastsoftmax.kl_divergence(flat, far, q_temperature=4.0) == pytest.approx(most / 4)
    assert fastsoftmax.kl_divergence(flat, [0.0, -math.inf]) == math.inf
    rows = np.array([[1.0, 2.0], [most, -most], [0.0, 0.0]])
    each = [fastsoftmax.kl_divergence(flat, row, q_temperature=4.0) for row in rows]
    assert fastsoftmax.kl_divergence(np.zeros((3, 2)), rows, q_temperature=4.0).tolist() == each


# ---- logarithms near 0


@EACH_DTYPE
def test_log_probability_of_what_is_almost_certain(backend: str, dtype: str) -> None:
    """1 - 1e-13 and its like have a logarithm: log1p of what the other entries come to."""
    eps = np.finfo(dtype).eps

    def check(got: np.ndarray, want: float, gap: float) -> None:
        assert abs(float(got) / want - 1) < (2 + gap / 2) * eps

    x = np.array([0, -30], dtype=dtype)
    check(log_softmax(x)[0], -9.357622968839737e-14, 30)
    check(log_softmax(np.array([0, -20], dtype=dtype))[0], -2.0611536203143807e-09, 20)
    check(logsumexp(np.array([0, -40], dtype=dtype)), 4.248354255291589e-18, 40)
    check(logsumexp(np.array([-80, 0], dtype=dtype), temperature=2), 4.248354255291589e-18, 40)
    check(log_softmax(np.array([-20, 5, 5 - 60], dtype=dtype))[1], -1.3887943864867592e-11, 25)


def test_log_probability_as_printed(backend: str) -> None:
    assert abs(log_softmax([0.0, -30.0])[0] - -9.357622968839737e-14) < 1e-27
    got = log_softmax(np.array([0, -20], "f4"))[0]
    assert got.dtype == np.float32
    assert abs(got - -2.0611537e-09) < 4e-15
    assert abs(logsumexp([0.0, -40.0]) - 4.248354255291589e-18) < 1e-31


@EACH_DTYPE
def test_log_probability_with_the_maximum_anywhere(backend: str, dtype: str) -> None:
    """The maximum stays out of the sum of its own block and of the whole row."""
    gap = 40.0
    rtol = (4 + gap / 2) * np.finfo(dtype).eps
    for length in (2, 16, 17, 33, 100, 2049, 5000, 9001):
        want = math.log1p((length - 1) * math.exp(-gap))
        edges = {0, 1, 15, 16, 31, 63, 64, 1023, 2047, 2048, 4095, 4096, 8192, length - 1}
        for position in sorted(p for p in edges if p < length):
            x = np.full(length, 3 - gap, dtype=dtype)
            x[position] = 3
            got = log_softmax(x)[position]
            assert abs(got / -want - 1) < rtol, (length, position, got, -want)
            x -= 3
            got = logsumexp(x)
            assert abs(got / want - 1) < rtol, (length, position, got, want)


# ---- the same bits


def _layouts(row: np.ndarray) -> dict[str, tuple[np.ndarray, object, tuple[int, ...] | int]]:
    """The same row in other surroundings: the array, the axis, and where the row is in it."""
    n = len(row)
    rng = generator("layouts", n)

    def batch(rows: int, at: int) -> np.ndarray:
        x = (rng.normal(size=(rows, n)) * 30).astype(row.dtype)
        x[at] = row
        return x

    def inside(step: int, offset: int) -> np.ndarray:
        base = np.full(abs(step) * n + offset + 1, 1e4, dtype=row.dtype)
        view = base[offset : offset + abs(step) * n : abs(step)]
        view = view[::-1] if step < 0 else view
        view[:] = row
        return view

    odd = np.zeros(row.nbytes + 1, dtype=np.uint8)
    unaligned = odd[1:].view(row.dtype)
    unaligned[:] = row
    cube = (rng.normal(size=(3, n, 5)) * 30).astype(row.dtype)
    cube[1, :, 3] = row
    special = batch(4, 2)
    special[0], special[1, n // 2], special[3, 0] = -np.inf, np.nan, np.inf
    return {
        "first of 2": (batch(2, 0), -1, 0),
        "last of 3": (batch(3, 2), -1, 2),
        "in 17": (batch(17, 8), -1, 8),
        "in 64": (batch(64, 33), -1, 33),
        "among special rows": (special, -1, 2),
        **{f"offset {k}": (inside(1, k), -1, ()) for k in (1, 2, 3, 7)},
        "every second": (inside(2, 0), -1, ()),
        "every third, backwards": (inside(-3, 1), -1, ()),
        "backwards": (inside(-1, 0), -1, ()),
        "unaligned": (unaligned, -1, ()),
        "byte-swapped": (row.astype(row.dtype.newbyteorder()), -1, ()),
        "one column of 1": (row[:, None], 0, 0),
        "a column of 7": (np.ascontiguousarray(batch(7, 4).T), 0, 4),
        "a column of 70": (np.ascontiguousarray(batch(70, 65).T), 0, 65),
        "Fortran order": (np.asfortranarray(batch(5, 2)), -1, 2),
        "the middle axis": (cube, 1, (1, 3)),
        "broadcast": (np.broadcast_to(row, (3, n)), -1, 1),
        "rows backwards": (batch(6, 1)[::-1], -1, 4),
        "both axes": (row.reshape(1, n), None, 0),
    }


@EACH_OP
@EACH_DTYPE
@pytest.mark.parametrize("length", [1, 2, 7, 10, 31, 32, 33, 65, 128, 1000, 2049, 5003])
def test_a_row_gives_the_same_bits_anywhere(backend: str, op: str, dtype: str, length: int) -> None:
    row = (generator("bits", length).normal(size=length) * 6).astype(dtype)
    alone = call(op, row, temperature=0.7)
    for name, (x, axis, at) in _layouts(row).items():
        got = np.asarray(call(op, x, axis, temperature=0.7))
        if op == "logsumexp":
            index = () if axis is None else at
        elif axis == 0:
            index = (slice(None), at)
        elif axis == 1:
            index = (at[0], slice(None), at[1])
        else:
            index = at
        assert same_bits(got[index], alone), name


@EACH_OP
@EACH_DTYPE
@pytest.mark.parametrize("length", [3, 64, 1000, 5003])
def test_a_call_gives_the_same_bits_in_any_form(
    backend: str, op: str, dtype: str, length: int
) -> None:
    """A temperature per row, a mask of nothing, and any `out` change no bit."""
    x = (generator("forms", length).normal(size=(5, length)) * 6).astype(dtype)
    want = call(op, x, temperature=0.7)
    t = np.array([0.3, 0.7, 2.0, 0.7, 0.7])
    got = call(op, x, temperature=t)
    assert same_bits(got[[1, 3, 4]], want[[1, 3, 4]])
    assert same_bits(call(op, x, temperature=0.7, where=True), want)
    assert same_bits(call(op, x, temperature=0.7, where=np.ones(length, bool)), want)
    assert same_bits(call(op, x, temperature=0.7, dtype=dtype), want)
    for out in (
        np.empty_like(want),
        np.empty((*want.shape, 2), dtype=dtype)[..., 1],
        np.asfortranarray(np.empty_like(want)),
        np.empty_like(want)[::-1],
        np.empty(want.nbytes + 1, np.uint8)[1:].view(dtype).reshape(want.shape),
    ):
        call(op, x, temperature=0.7, out=out)
        assert same_bits(out, want)
    if op != "logsumexp":
        call(op, x, temperature=0.7, out=x)
        assert same_bits(x, want)


@EACH_OP
def test_masked_entries_leave_no_trace(backend: str, op: str, rng: np.random.Generator) -> None:
    """What a masked entry holds changes no bit."""
    x = (rng.normal(size=(6, 3001)) * 5).astype("f4")
    where = rng.random(x.shape) < 0.7
    want = call(op, x, temperature=0.7, where=where)
    for junk in (np.nan, np.inf, -np.inf, 3e38):
        assert same_bits(
            call(op, np.where(where, x, np.float32(junk)), temperature=0.7, where=where), want
        )


@EACH_OP
def test_python_threads_at_once(backend: str, op: str) -> None:
    xs = [(generator("at once", i).normal(size=(3, 4001)) * 5).astype("f4") for i in range(8)]
    want = [call(op, x, temperature=0.7) for x in xs]

    def work(i: int) -> bool:
        return all(same_bits(call(op, xs[i], temperature=0.7), want[i]) for _ in range(5))

    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(copy_context().run, work, i) for i in range(len(xs))]
        assert all(job.result() for job in jobs)


@EACH_OP
@EACH_DTYPE
def test_every_instruction_set_gives_the_same_bits(op: str, dtype: str) -> None:
    isas = [i for i in available() if i.startswith("c-")]
    if len(isas) < 2:
        pytest.skip("needs the C backend and two instruction sets")
    rng = generator("isas", dtype)
    for length in [*range(1, 70), 127, 128, 129, 1000, 2047, 2048, 2049, 4096, 5003, 140001]:
        x = (rng.normal(size=(2, length)) * 6).astype(dtype)
        for t in (1.0, 0.7):
            results = []
            for isa in isas:
                with using(isa):
                    results.append(call(op, x, temperature=t))
            for isa, got in zip(isas[1:], results[1:], strict=True):
                assert same_bits(got, results[0]), (length, isa, isas[0])

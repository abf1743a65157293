"""NaN, infinities and the limits of the temperature, at every position and length."""

from __future__ import annotations

import re

import numpy as np
import pytest
from oracle import OPS, assert_close, reference
from support import generator

import fastsoftmax
from fastsoftmax import log_softmax, logsumexp, softmax

DTYPES = ("float32", "float64")
EACH_OP = pytest.mark.parametrize("op", OPS)
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES)
NORMALISER = pytest.mark.parametrize("op", ["softmax", "log_softmax"])
INF, NAN = np.inf, np.nan

pytestmark = pytest.mark.usefixtures("backend")


def call(op: str, *args: object, **kwargs: object) -> np.ndarray:
    return getattr(fastsoftmax, op)(*args, **kwargs)


def check(op: str, x: np.ndarray, **kwargs: object) -> None:
    assert_close(op, call(op, x, **kwargs), x, **kwargs)


def with_special(length: int, positions: object, value: float, dtype: str) -> np.ndarray:
    """A row for each position with the value there, and a last row without it."""
    positions = np.asarray(positions)
    rng = generator("special", length)
    x = (rng.normal(size=(len(positions) + 1, length)) * 5).astype(dtype)
    x[np.arange(len(positions)), positions] = value
    return x


# ---- special entries


@EACH_OP
@EACH_DTYPE
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_at_every_position_of_short_rows(op: str, dtype: str, value: float) -> None:
    for length in range(1, 71):
        x = with_special(length, range(length), value, dtype)
        got = call(op, x)
        want = reference(op, x)
        if value != -INF:
            spoilt = NAN if op != "logsumexp" else value
            np.testing.assert_array_equal(got[:-1], np.full_like(got[:-1], spoilt))
            np.testing.assert_array_equal(np.isfinite(want.value[:-1]), False)
        assert_close(op, got, x, want=want)


@EACH_OP
@EACH_DTYPE
def test_among_many_short_rows(op: str, dtype: str) -> None:
    """A row with a special entry has the bits that it has alone, as have those beside it."""
    rng = generator("among", dtype)
    for length in range(1, 33):
        x = (rng.normal(size=(101, length)) * 5).astype(dtype)
        spoilt = np.flatnonzero(rng.random(101) < 0.3)
        x[spoilt, rng.integers(length, size=spoilt.size)] = rng.choice(
            [NAN, -NAN, INF, -INF], spoilt.size
        )
        x[spoilt[::2], 0] = -INF
        got = call(op, x)
        alone = np.concatenate([call(op, row[None]) for row in x])
        assert got.tobytes() == alone.tobytes(), length


@EACH_OP
@EACH_DTYPE
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("length", [127, 1025, 2047, 2048, 2049, 4096, 4097, 9000])
def test_at_the_edges_of_blocks(op: str, dtype: str, value: float, length: int) -> None:
    edges = [0, 1, 15, 16, 31, 32, 63, 64, 1023, 1024, 2047, 2048, 4095, 4096, 8191, 8192]
    edges += [length // 2, length - 2, length - 1]
    check(op, with_special(length, [p for p in edges if p < length], value, dtype), temperature=0.7)


@EACH_OP
@EACH_DTYPE
def test_rows_of_nothing_but_minus_infinity(op: str, dtype: str) -> None:
    for length in [*range(1, 131), 2047, 2048, 2049, 5000, 131073]:
        x = np.full((2, length), -INF, dtype=dtype)
        got = call(op, x)
        want = -INF if op == "logsumexp" else NAN
        np.testing.assert_array_equal(got, np.full_like(got, want), err_msg=str(length))


@EACH_OP
@EACH_DTYPE
def test_first_lanes_are_minus_infinity(op: str, dtype: str) -> None:
    for length in (2, 9, 17, 33, 65, 100, 129, 140, 2049, 4100, 9000):
        x = generator("lanes", length).normal(size=(12, length)).astype(dtype) * 4
        for row, lanes in zip(
            x, (1, 4, 8, 16, 31, 32, 64, 128, 2048, 4096, 8192, 10**6), strict=True
        ):
            row[: min(lanes, length - 1)] = -INF
        check(op, x)
        check(op, x[:, ::-1], temperature=3.0)
        check(op, x, temperature=INF)


@EACH_OP
@EACH_DTYPE
def test_special_entries_together(op: str, dtype: str) -> None:
    """NaN comes before +inf, +inf before -inf, wherever they stand."""
    for length in (3, 40, 2500):
        a, b = length // 3, length - 1
        pairs = [(NAN, INF), (INF, NAN), (NAN, -INF), (-INF, NAN), (INF, -INF), (-INF, INF)]
        x = np.zeros((len(pairs) + 2, length), dtype=dtype)
        for row, (first, second) in zip(x, pairs, strict=False):
            row[a], row[b] = first, second
        x[-2] = -INF
        x[-2, b] = NAN
        x[-1] = -INF
        x[-1, a] = INF
        check(op, x)
        got = logsumexp(x)
        np.testing.assert_array_equal(got, [NAN, NAN, NAN, NAN, INF, INF, NAN, INF])


@EACH_DTYPE
def test_any_nan_will_do(dtype: str) -> None:
    """Negative ones, signalling ones, ones with a payload."""
    unsigned = np.dtype(dtype.replace("float", "uint"))
    info = np.finfo(dtype)
    exponent = ((1 << info.nexp) - 1) << info.nmant
    sign = 1 << (8 * unsigned.itemsize - 1)
    payloads = [1, 12345, 1 << (info.nmant - 1), (1 << info.nmant) - 1]
    bits = np.array([exponent | p | s for p in payloads for s in (0, sign)], dtype=unsigned)
    nans = bits.view(dtype)
    for length in (1, 20, 70):
        x = np.zeros((len(nans), length), dtype=dtype)
        x[:, length // 2] = nans
        for op in OPS:
            assert np.isnan(call(op, x)).all()


@EACH_DTYPE
def test_extreme_but_finite(dtype: str) -> None:
    """The largest numbers are no infinities, and denormals no zeros."""
    info = np.finfo(dtype)
    rows = [
        [info.max, info.max, -info.max],
        [-info.max, -info.max, -info.max],
        [info.max, 0, 1],
        [-info.max, 0, 1],
        [info.tiny, -info.tiny, info.smallest_subnormal],
        [0.0, -0.0, -INF],
        [-info.max, -INF, -INF],
    ]
    x = np.array(rows, dtype=dtype)
    for op in OPS:
        for t in (1.0, 0.1, 1e-30, 1e30):
            check(op, x, temperature=t)


# ---- special temperatures


@NORMALISER
@EACH_DTYPE
def test_zero_temperature(op: str, dtype: str) -> None:
    """The mass goes evenly to the maxima, however many and wherever."""
    rng = generator("zero")
    for length in [*range(1, 71), 127, 2048, 2049, 5000, 9001]:
        x = rng.integers(-3, 4, size=(4, length)).astype(dtype)
        x[1] = 2.5
        x[2] = np.arange(length)
        x[3, rng.integers(length)] = 1e30
        for t in (0, 0.0, -0.0, np.zeros(4)):
            check(op, x, temperature=t)
        got = softmax(x, temperature=0)
        np.testing.assert_array_equal(got > 0, x == x.max(axis=1, keepdims=True))
        ties = (x == x.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True)
        shares = (1 / ties).astype(dtype)
        np.testing.assert_array_equal(got, np.where(got > 0, shares, 0))


@NORMALISER
@EACH_DTYPE
def test_zero_temperature_sees_the_last_bit(op: str, dtype: str) -> None:
    one = np.dtype(dtype).type(1)
    x = np.full((1, 3000), one)
    x[0, 2500] = np.nextafter(one, 2 * one)
    check(op, x, temperature=0)
    assert softmax(x, temperature=0)[0, 2500] == 1
    info = np.finfo(dtype)
    x = np.array([[0, info.smallest_subnormal, -info.smallest_subnormal]], dtype=dtype)
    np.testing.assert_array_equal(softmax(x, temperature=0), [[0, 1, 0]])


@EACH_OP
@EACH_DTYPE
def test_infinite_temperature(op: str, dtype: str) -> None:
    rng = generator("infinite")
    for length in [*range(1, 71), 127, 2048, 2049, 9001]:
        x = (rng.normal(size=(4, length)) * 10).astype(dtype)
        x[1, rng.random(length) < 0.5] = -INF
        x[1, -1] = 3e38
        x[2] = -3e38
        x[3] = 0
        check(op, x, temperature=INF)
        check(op, x, temperature=np.full(4, INF))


@EACH_OP
@EACH_DTYPE
@pytest.mark.parametrize("temperature", [1e-39, 1e-45, 1e-310, 5e-324])
def test_tiny_temperature(op: str, dtype: str, temperature: float) -> None:
    """As 0 where the reciprocal overflows; logsumexp is max/T, which overflows or does not."""
    rng = generator("tiny")
    for length in (1, 2, 7, 64, 100, 2049, 5000):
        x = (rng.normal(size=(4, length)) * 10).astype(dtype)
        x[1, -1] = x[1].max()
        x[2] = -np.abs(x[2]) - 1
        x[2, length // 2] = 0
        x[3] = -INF
        x[3, 0] = 2.5
        check(op, x, temperature=temperature)
    # Small logits over small temperatures: max/T is an ordinary number again.
    for row in ([1e-38, -INF], [1e-37, -1e-37], [-1e-37, -INF]):
        x = np.array(row, dtype=dtype)
        check(op, x, temperature=temperature)


@EACH_DTYPE
def test_logsumexp_at_a_tiny_temperature_does_not_count_the_maxima(dtype: str) -> None:
    tiny = 1e-39 if dtype == "float32" else 1e-310
    for length in (2, 40, 3000):
        x = np.zeros((2, length), dtype=dtype)
        x[1] = tiny
        np.testing.assert_array_equal(
            logsumexp(x, temperature=tiny), (x[:, 0].astype("f8") / tiny).astype(dtype)
        )


@EACH_DTYPE
def test_temperatures_between_the_extremes(dtype: str) -> None:
    """Temperatures near the ends of the type's range that do count as they are."""
    info = np.finfo(dtype)
    small = 4 / float(info.max)
    large = float(info.max) / 2
    for op in OPS:
        x = np.array([0, -small, -2 * small, -50 * small, -INF], dtype=dtype)
        if dtype == "float64":
            check(op, x, temperature=small)
        x = np.array([1, -1, 0.5, -0.25, 1 / 3], dtype=dtype) * info.max
        check(op, x, temperature=large)


@EACH_OP
def test_range_of_logits_wider_than_the_type(op: str) -> None:
    """max - min overflows, (max - min)/T does not."""
    x = np.array([3e38, -3e38], "f4")
    check(op, x, temperature=1e38)
    want = 1 / (1 + np.exp(-6))
    np.testing.assert_allclose(softmax(x, temperature=1e38), [want, np.exp(-6) * want], rtol=3e-6)
    for length in (2, 30, 2049, 5000):
        x = np.linspace(-3.4e38, 3.4e38, length).astype("f4")
        for t in (1e38, 3e37, 1e39, 1e45):
            check(op, x, temperature=t)
        check(op, x[::-1], temperature=1e38)
    for top, bottom in ((1.7e308, -1.7e308), (1e299, -1.797693e308), (1.79e308, -1e299)):
        for length in (2, 30, 2049):
            x = np.full(length, bottom)
            x[length // 2] = top
            check(op, x, temperature=1e308)
            check(op, x, temperature=3e307)
    check(op, 1.79e308 * np.linspace(-1, 1, 2049), temperature=1e308)


@NORMALISER
@pytest.mark.parametrize("axis", [-1, 0])
def test_special_rows_come_before_special_temperatures(op: str, axis: int) -> None:
    """Every kind of row at every kind of temperature, in one call, one temperature per row."""
    _special_rows_at_temperatures(op, axis, [0.0, INF, 0.7, 1.0, 1e-45, 1e-310, 1e30, 250.0])


@pytest.mark.parametrize("axis", [-1, 0])
def test_special_rows_come_before_special_temperatures_in_logsumexp(axis: int) -> None:
    _special_rows_at_temperatures("logsumexp", axis, [INF, 0.7, 1.0, 1e-45, 1e-310, 1e30, 250.0])


def _special_rows_at_temperatures(op: str, axis: int, temperatures: list[float]) -> None:
    rng = generator("special rows")
    for length in (1, 5, 33, 2100):
        rows = (rng.normal(size=(9, length)) * 5).astype("f4")
        rows[1, 0], rows[2, -1], rows[3] = NAN, INF, -INF
        rows[4, : length - 1] = -INF
        rows[5], rows[6, 0], rows[6, -1] = 4.0, INF, NAN
        rows[7, :-1] = -3e38
        t = np.tile(temperatures, len(rows))
        x = np.repeat(rows, len(temperatures), axis=0)
        check(op, x if axis == -1 else np.ascontiguousarray(x.T), axis=axis, temperature=t)
        where = rng.random(x.shape) < 0.6
        where[::13] = False
        if axis == 0:
            check(op, x.T, axis=0, temperature=t, where=where.T)
        else:
            check(op, x, temperature=t, where=where)


# ---- temperatures that are refused


@EACH_OP
@pytest.mark.parametrize(
    ("temperature", "named"),
    [
        (-1.5, "-1.5"),
        (-1e-300, "-1e-300"),
        (-INF, "-inf"),
        (NAN, "nan"),
        (-2, "-2"),
        (np.float32(-0.5), "-0.5"),
        ([1.0, -2.5, 3.0], "-2.5"),
        ([1.0, 1.0, NAN], "nan"),
        ([[0.5], [0.5], [-3.25]], "-3.25"),
        (np.array([INF, -4.0, 1.0], "f4"), "-4"),
    ],
)
def test_refused_temperatures(op: str, temperature: object, named: str) -> None:
    x = np.zeros((3, 4), "f4")
    with pytest.raises(ValueError, match=rf"(?s)temperature.*{re.escape(named)}"):
        call(op, x, temperature=temperature)


@pytest.mark.parametrize("temperature", [0, 0.0, -0.0, np.zeros(3), [1.0, 0.0, 2.0]])
def test_logsumexp_has_no_limit_at_zero(temperature: object) -> None:
    for x in (np.zeros((3, 4)), np.full((3, 4), NAN), np.zeros((3, 0))):
        with pytest.raises(ValueError, match=r"(?s)temperature.*0"):
            logsumexp(x, temperature=temperature)


def test_refused_before_anything_is_looked_at() -> None:
    """Also where no row would use the temperature."""
    for x in (np.zeros((0, 4)), np.zeros((4, 0)), np.full((2, 3), NAN)):
        for bad in (-1.0, NAN):
            for op in OPS:
                with pytest.raises(ValueError, match="temperature"):
                    call(op, x, temperature=bad)


def test_log_probabilities_at_zero_are_logs_of_shares() -> None:
    x = np.array([3, 1, 3, 3, -INF], "f4")
    np.testing.assert_allclose(
        log_softmax(x, temperature=0), [-np.log(3), -INF, -np.log(3), -np.log(3), -INF], rtol=1e-7
    )

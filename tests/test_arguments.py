"""What a call accepts, what it refuses, and in what form the answer comes."""

from __future__ import annotations

import array
import inspect
import itertools
import re

import numpy as np
import pytest
import scipy.special
from numpy.exceptions import AxisError
from numpy.testing import assert_array_equal
from oracle import OPS, arithmetic_of, assert_close, reference
from support import generator, same_bits

import fastsoftmax
from fastsoftmax import log_softmax, logsumexp, softmax

pytestmark = pytest.mark.usefixtures("backend")

EACH_OP = pytest.mark.parametrize("op", OPS)
NORMALISER = pytest.mark.parametrize("op", ["softmax", "log_softmax"])
INF, NAN = np.inf, np.nan
FLOATS = ("float16", "bfloat16", "float32", "float64")


def call(op: str, *args: object, **kwargs: object) -> np.ndarray:
    return getattr(fastsoftmax, op)(*args, **kwargs)


def check(op: str, x: np.ndarray, **kwargs: object) -> None:
    assert_close(op, call(op, x, **kwargs), x, **kwargs)


def float_type(name: str) -> np.dtype:
    if name == "bfloat16":
        return np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    return np.dtype(name)


def logits(*shape: int, dtype: object = "float32") -> np.ndarray:
    return (generator("logits", shape).normal(size=shape) * 4).astype(dtype)


def result_shape(op: str, x: np.ndarray, axis: object = -1) -> tuple[int, ...]:
    return reference(op, x, axis).value.shape


@pytest.mark.parametrize("op", OPS)
def test_signature(op: str) -> None:
    parameters = list(inspect.signature(getattr(fastsoftmax, op)).parameters.values())
    got = [(p.name, p.default, p.kind is p.KEYWORD_ONLY) for p in parameters]
    keepdims = [("keepdims", False, True)] if op == "logsumexp" else []
    assert got == [
        ("x", inspect.Parameter.empty, False),
        ("axis", -1, False),
        ("temperature", 1.0, True),
        ("where", None, True),
        *keepdims,
        ("out", None, True),
        ("dtype", None, True),
    ]


# ---- axis


@EACH_OP
@pytest.mark.parametrize("shape", [(5,), (4, 7), (3, 4, 5), (2, 3, 4, 5)])
def test_every_axis(op: str, shape: tuple[int, ...]) -> None:
    x = logits(*shape)
    for axis in range(-len(shape), len(shape)):
        check(op, x, axis=axis, temperature=0.7)
    check(op, x, axis=None, temperature=0.7)
    for count in range(1, len(shape) + 1):
        for axes in itertools.permutations(range(len(shape)), count):
            check(op, x, axis=axes, temperature=0.7)
            check(op, x, axis=tuple(a - len(shape) for a in axes), temperature=0.7)


@EACH_OP
def test_axes_that_make_long_rows(op: str) -> None:
    x = logits(30, 3, 70)
    check(op, x, axis=(0, 2), temperature=2.0)
    check(op, x, axis=None, temperature=2.0)
    check(op, x, axis=0)
    check(op, x.astype("f8"), axis=(2, 0))


@EACH_OP
def test_axis_is_positional_and_an_index(op: str) -> None:
    x = logits(3, 4)
    assert same_bits(call(op, x, 0), call(op, x, axis=0))
    assert same_bits(call(op, x, np.int64(0)), call(op, x, axis=0))
    assert same_bits(call(op, x, (np.int8(-1),)), call(op, x))


@EACH_OP
@pytest.mark.parametrize("axis", [2, -3, 100, (0, 2), (-3,)])
def test_axis_out_of_range(op: str, axis: object) -> None:
    with pytest.raises(AxisError, match="axis"):
        call(op, logits(3, 4), axis)


@EACH_OP
def test_bad_axis(op: str) -> None:
    x = logits(3, 4)
    with pytest.raises(ValueError, match="axis"):
        call(op, x, (0, 0))
    with pytest.raises(ValueError, match="axis"):
        call(op, x, (1, -1))
    for axis in (1.0, "0", [0.5]):
        with pytest.raises(TypeError):
            call(op, x, axis)
    with pytest.raises(AxisError):
        call(op, np.float64(3), 1)
    with pytest.raises(AxisError):
        call(op, np.float64(3), -2)


@pytest.mark.parametrize("axis", [-1, 0, None])
def test_a_scalar_counts_as_one_entry(axis: int | None) -> None:
    for x in (3.0, np.float64(3), np.array(3.0), 3, np.float32(3)):
        for t in (1.0, 0.5, 0.0, INF):
            assert softmax(x, axis, temperature=t) == 1.0
            assert log_softmax(x, axis, temperature=t) == 0.0
        assert logsumexp(x, axis, temperature=0.5) == 6.0
        for op in OPS:
            got = call(op, x, axis)
            assert np.shape(got) == ()
            assert isinstance(got, np.generic)
            assert got.dtype == (np.float32 if isinstance(x, np.float32) else np.float64)
    assert np.isnan(softmax(NAN, axis))
    assert np.isnan(softmax(INF, axis))
    assert np.isnan(softmax(-INF, axis))
    assert logsumexp(INF, axis) == INF
    assert logsumexp(-INF, axis) == -INF
    assert softmax(3.0, axis, where=False) == 0.0
    out = np.empty((), "f4")
    assert softmax(3.0, axis, out=out) is out
    assert out == 1


@pytest.mark.parametrize("name", FLOATS)
def test_full_reductions_give_a_numpy_scalar(name: str) -> None:
    dtype = float_type(name)
    x = logits(3, 4, dtype=dtype)
    for got in (logsumexp(x[0]), logsumexp(x, None), logsumexp(x, (0, 1)), logsumexp(x[0, 0])):
        assert type(got) is dtype.type
    assert type(logsumexp([1.0, 2.0])) is np.float64
    assert type(logsumexp([1, 2])) is np.float64
    assert isinstance(logsumexp(x), np.ndarray)
    assert isinstance(logsumexp(x[0], keepdims=True), np.ndarray)
    assert isinstance(softmax(x[0]), np.ndarray)


def test_keepdims() -> None:
    x = logits(2, 3, 4)
    for axis in (0, 1, -1, (0, 2), None, (0, 1, 2)):
        kept = logsumexp(x, axis, keepdims=True)
        assert kept.shape == np.sum(x, axis, keepdims=True).shape
        assert same_bits(kept.ravel(), np.asarray(logsumexp(x, axis)).ravel())
        out = np.empty(kept.shape, "f4")
        assert logsumexp(x, axis, keepdims=True, out=out) is out
        assert same_bits(out, kept)
    assert logsumexp(3.0, keepdims=True) == 3.0
    np.testing.assert_allclose(
        x - logsumexp(x, keepdims=True), log_softmax(x), rtol=1e-5, atol=1e-6
    )


# ---- temperature


@EACH_OP
@pytest.mark.parametrize(
    ("axis", "shape"),
    [
        # as many dimensions as x: the axis kept as 1
        (1, (2, 1, 5)),
        (1, (1, 1, 5)),
        (1, (2, 1, 1)),
        (1, (1, 1, 1)),
        (-1, (2, 3, 1)),
        (0, (1, 3, 5)),
        ((0, 2), (1, 3, 1)),
        (None, (1, 1, 1)),
        # fewer: the axis removed
        (1, (2, 5)),
        (1, (5,)),
        (1, (1,)),
        (1, (2, 1)),
        (1, (1, 5)),
        (-1, (2, 3)),
        (-1, (3,)),
        ((0, 2), (3,)),
        ((2, 0), (3,)),
        ((1, 2), (2,)),
        (None, ()),
        (1, ()),
    ],
)
def test_temperatures_broadcast(op: str, axis: object, shape: tuple[int, ...]) -> None:
    x = logits(2, 3, 5)
    t = generator("temperatures").uniform(0.2, 4, size=shape)
    check(op, x, axis=axis, temperature=t)
    check(op, x, axis=axis, temperature=t.astype("f4"))
    check(op, np.asfortranarray(x), axis=axis, temperature=t.copy(order="F"))


@EACH_OP
@pytest.mark.parametrize(
    ("axis", "shape"),
    [
        (-1, (5,)),
        (-1, (2,)),
        (1, (3,)),
        (1, (2, 3)),
        (1, (5, 2)),
        (1, (2, 3, 5)),
        (1, (1, 3, 1)),
        (1, (2, 1, 4)),
        (1, (0,)),
        (1, (2, 1, 5, 1)),
        (None, (2,)),
        ((0, 2), (2, 5)),
    ],
)
def test_temperatures_that_do_not_fit(op: str, axis: object, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"(?s)temperature.*{re.escape(str(shape))}"):
        call(op, logits(2, 3, 5), axis, temperature=np.ones(shape))


@EACH_OP
def test_a_temperature_does_not_widen_the_logits(op: str) -> None:
    for shape in ((3,), (3, 1)):
        with pytest.raises(ValueError, match="temperature"):
            call(op, logits(1, 5), temperature=np.ones(shape))


@EACH_OP
def test_temperatures_of_any_real_type(op: str) -> None:
    x = logits(3, 9)
    for t in (2, np.int8(2), np.float32(0.5), np.float16(0.5), np.array(2.0), np.array([[2]])):
        check(op, x, temperature=t)
    for t in ([1, 2, 3], (0.5, 1, 2), np.array([1, 2, 3], "u1"), np.array([1, 2, 3], ">f4")):
        check(op, x, temperature=t)
    check(op, x, temperature=np.array([9.0, 1, 2, 3])[:0:-1])
    check(op, x, temperature=np.broadcast_to(0.7, (3,)))


@EACH_OP
@pytest.mark.parametrize("bad", ["warm", 1j, None, [None, 1, 2], np.array([1, 2, 3], "M8[s]"), {}])
def test_temperatures_of_other_types(op: str, bad: object) -> None:
    with pytest.raises(TypeError, match="temperature"):
        call(op, logits(3, 4), temperature=bad)


@EACH_OP
def test_temperatures_that_float64_does_not_hold(op: str) -> None:
    """No warning of NumPy comes before the error."""
    x = logits(3, 4)
    with pytest.raises(TypeError, match=r"temperature is 1000.*; it must be real"):
        call(op, x, temperature=10**400)
    if np.finfo(np.longdouble).maxexp > 1024:
        assert same_bits(
            call(op, x, temperature=np.longdouble("1e4000")), call(op, x, temperature=np.inf)
        )
        with pytest.raises(ValueError, match=r"temperature is -inf"):
            call(op, x, temperature=np.longdouble("-1e4000"))
    with pytest.raises(ValueError, match="temperature is nan"):
        call(op, x, temperature=np.array([1, NAN, 1], float_type("bfloat16")))


# ---- where


@EACH_OP
@pytest.mark.parametrize("axis", [-1, 0, 1, (0, 2), None])
def test_masks(op: str, axis: object, rng: np.random.Generator) -> None:
    x = logits(4, 6, 5)
    x[0, 0], x[1, 2, 3], x[2, 1, 0], x[3] = NAN, INF, -INF, -INF
    masks = [
        rng.random(shape) < 0.6 for shape in ((4, 6, 5), (6, 5), (5,), (4, 1, 1), (1, 6, 1), ())
    ]
    for where in [*masks, True, False, ~np.isnan(x), np.isfinite(x), [True] * 4 + [False]]:
        check(op, x, axis=axis, where=where, temperature=0.7)
        check(op, x.astype("f8"), axis=axis, where=where)


@EACH_OP
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_masked_rows_of_every_length(op: str, dtype: str) -> None:
    rng = generator("masks")
    for length in [*range(1, 71), 2047, 2049, 5000]:
        x = (rng.normal(size=(6, length)) * 4).astype(dtype)
        where = rng.random(x.shape) < 0.5
        where[1], where[2], where[3, : length - 1] = False, True, False
        x[4, ::2], x[5] = NAN, -INF
        where[4, ::2] = False
        t = np.array([1, 0.7, 2, 1, 0.5, 1])
        check(op, x, where=where, temperature=t)
        check(op, x, where=where, temperature=INF)
        if op != "logsumexp":
            check(op, x, where=where, temperature=0)


def test_masks_by_hand() -> None:
    x = np.array([1.0, NAN, INF, 1.0, -INF])
    where = np.array([True, False, False, True, False])
    assert_array_equal(softmax(x, where=where), [0.5, 0, 0, 0.5, 0])
    assert_array_equal(log_softmax(x, where=where)[[1, 2, 4]], -INF)
    assert logsumexp(x, where=where) == 1 + np.log(2)
    assert_array_equal(softmax(x, where=False), np.zeros(5))
    assert_array_equal(log_softmax(x, where=False), np.full(5, -INF))
    assert logsumexp(x, where=False) == -INF
    only_minus_infinity = np.array([False, False, False, False, True])
    assert_array_equal(softmax(x, where=only_minus_infinity), [0, 0, 0, 0, NAN])
    assert_array_equal(log_softmax(x, where=only_minus_infinity), [-INF] * 4 + [NAN])
    assert logsumexp(x, where=only_minus_infinity) == -INF
    with_nan = np.array([True, True, False, True, False])
    assert_array_equal(softmax(x, where=with_nan), [NAN, NAN, 0, NAN, 0])
    with_infinity = np.array([True, False, True, False, False])
    assert_array_equal(softmax(x, where=with_infinity), [NAN, 0, NAN, 0, 0])
    assert logsumexp(x, where=with_infinity) == INF


def test_masks_agree_with_scipy() -> None:
    """SciPy's weights of 0 and 1 are a mask."""
    x, where = logits(5, 40, dtype="f8"), generator("weights").random((5, 40)) < 0.5
    want = scipy.special.logsumexp(x, axis=-1, b=where)
    np.testing.assert_allclose(logsumexp(x, where=where), want, rtol=1e-14)


@EACH_OP
@pytest.mark.parametrize("dtype", ["i1", "u1", "i8", "f4", "f8", object, "U5"])
def test_masks_must_be_bool(op: str, dtype: object) -> None:
    x = logits(3, 4)
    with pytest.raises(TypeError, match="where"):
        call(op, x, where=np.ones(x.shape).astype(dtype))
    with pytest.raises(TypeError, match="where"):
        call(op, x, where=1)


@EACH_OP
@pytest.mark.parametrize("shape", [(3,), (4, 3), (2, 3, 4), (3, 1, 4), (0,), (3, 4, 1)])
def test_masks_that_do_not_fit(op: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"(?s)where.*{re.escape(str(shape))}"):
        call(op, logits(3, 4), where=np.ones(shape, bool))


@EACH_OP
def test_masked_arrays_are_refused(op: str) -> None:
    """NumPy would give their data and lose the mask."""
    x = np.ma.array(logits(3, 4), mask=np.eye(3, 4, dtype=bool))
    with pytest.raises(TypeError, match=r"x is a masked array; pass x\.data, .*getmaskarray"):
        call(op, x)
    out = np.ma.array(call(op, x.data))
    for t in (1.0, [1.0, 2.0, 3.0]):
        with pytest.raises(TypeError, match="out is a masked array"):
            call(op, x.data, temperature=t, out=out)
    with pytest.raises(TypeError, match="temperature is a masked array"):
        call(op, x.data, temperature=np.ma.array([1.0, 2.0, 3.0]))


# ---- out


def empty_outs(shape: tuple[int, ...], dtype: object) -> dict[str, np.ndarray]:
    """Places for a result, in all sorts of memory, filled with a number no result is."""
    dtype = np.dtype(dtype)
    doubled = np.empty(tuple(2 * n for n in shape), dtype)
    odd = np.empty(int(np.prod(shape)) * dtype.itemsize + 1, np.uint8)[1:]
    outs = {
        "C order": np.empty(shape, dtype),
        "Fortran order": np.empty(shape, dtype, order="F"),
        "every second": doubled[tuple(slice(1, None, 2) for _ in shape)],
        "backwards": np.empty(shape, dtype)[tuple(slice(None, None, -1) for _ in shape)],
        "unaligned": odd.view(dtype).reshape(shape),
        "part of more": np.empty((*shape, 3), dtype)[..., 1],
    }
    for out in outs.values():
        out[...] = 77
    return outs


@EACH_OP
@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("axis", [-1, 0])
def test_out(op: str, name: str, axis: int) -> None:
    """`out` of any of the four types and of any layout; its type is the result's."""
    dtype = float_type(name)
    for x_name in FLOATS:
        x = logits(9, 35, dtype=float_type(x_name))
        want = call(op, x, axis, temperature=0.7, dtype=dtype)
        for layout, out in empty_outs(result_shape(op, x, axis), dtype).items():
            got = call(op, x, axis, temperature=0.7, out=out)
            assert got is out
            assert_close(op, out, x, axis=axis, temperature=0.7, dtype=dtype)
            assert same_bits(out, want), layout


@EACH_OP
def test_out_is_written_and_nothing_beside_it(op: str) -> None:
    x = logits(5, 37)
    shape = result_shape(op, x)
    for step in (1, 2, 3):
        base = np.full((2 + step * shape[0], *(n * step + 2 for n in shape[1:])), 77, "f4")
        index = tuple(slice(1, 1 + step * n, step) for n in shape)
        call(op, x, out=base[index])
        assert_close(op, base[index], x)
        base[index] = 77
        assert (base == 77).all()


@NORMALISER
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("axis", [-1, 0, None])
def test_in_place(op: str, dtype: str, axis: int | None) -> None:
    x = logits(40, 133, dtype=dtype)
    x[3, 4], x[7], x[9, 100] = NAN, -INF, INF
    where = generator("in place").random(x.shape) < 0.8
    for order in "CF":
        for kwargs in ({}, {"temperature": 0.7}, {"where": where}, {"temperature": 0}):
            want = call(op, x, axis, **kwargs)
            work = x.copy(order=order)
            assert call(op, work, axis, out=work, **kwargs) is work
            assert same_bits(work, want), (order, kwargs)
            alias = x.copy(order=order)
            call(op, alias, axis, out=alias[:], **kwargs)
            assert same_bits(alias, want)


@EACH_OP
@pytest.mark.parametrize("dtype", ["f4", "f8", "f2"])
def test_byte_swapped_out(op: str, dtype: str) -> None:
    """`out` in the other byte order, with native logits, with swapped ones, and in place."""
    swapped = np.dtype(dtype).newbyteorder("S")
    x = logits(6, 50, dtype=dtype)
    for axis in (-1, 0):
        want = call(op, x, axis, temperature=0.7)
        for logits_dtype in (np.dtype(dtype), swapped):
            out = np.full(want.shape, 77, swapped)
            assert call(op, x.astype(logits_dtype), axis, temperature=0.7, out=out) is out
            assert same_bits(out.astype(dtype), want)
        if op != "logsumexp":
            work = x.astype(swapped)
            call(op, work, axis, temperature=0.7, out=work)
            assert same_bits(work.astype(dtype), want)


def overlaps(dtype: object) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Views of logits and of the place for the result, in the same memory in different ways."""
    dtype = np.dtype(dtype)
    size = 30 * 130

    def fresh(extra: int = 0) -> np.ndarray:
        return (generator("overlap").normal(size=size + extra) * 5).astype(dtype)

    flat, square = fresh(400), fresh()[: 60 * 60].reshape(60, 60)
    one = fresh(1)
    rows = fresh(130).reshape(31, 130)
    both = fresh().reshape(30, 130)
    thick = fresh(size).reshape(60, 130)
    return {
        "later": (flat[:size].reshape(30, 130), flat[100 : 100 + size].reshape(30, 130)),
        "earlier": (
            flat[300 : 300 + size].reshape(30, 130),
            flat[100 : 100 + size].reshape(30, 130),
        ),
        "one entry later": (one[:size].reshape(30, 130), one[1:].reshape(30, 130)),
        "one entry earlier": (one[1:].reshape(30, 130), one[:size].reshape(30, 130)),
        "one row later": (rows[:-1], rows[1:]),
        "one row earlier": (rows[1:], rows[:-1]),
        "entries backwards": (both, both[:, ::-1]),
        "rows backwards": (both.copy(), both[::-1]),
        "rows and entries backwards": (both, both[::-1, ::-1]),
        "transposed": (square, square.T),
        "other stride": (thick[::2], thick[:30]),
        "interleaved": (thick[::2], thick[1::2]),
    }


@NORMALISER
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("which", list(overlaps("float32")))
@pytest.mark.parametrize("axis", [-1, 0])
def test_overlapping_out(op: str, dtype: str, which: str, axis: int) -> None:
    for kwargs in (
        {"temperature": 0.7},
        {"where": np.arange(60 if which == "transposed" else 130) % 3 > 0},
    ):
        x, out = overlaps(dtype)[which]
        want = call(op, x.copy(), axis, **kwargs)
        call(op, x, axis, out=out, **kwargs)
        assert same_bits(out, want)


def test_out_in_the_memory_of_other_arguments() -> None:
    """logsumexp into a column of its logits; a result over the mask, or over the temperatures."""
    x = logits(20, 50)
    want = logsumexp(x)
    for column in (0, 7, 49):
        work = x.copy()
        logsumexp(work, out=work[:, column])
        assert same_bits(work[:, column], want)
    work = x.copy()
    logsumexp(work, out=work[0, :20])
    assert same_bits(work[0, :20], want)
    work = x.copy()
    want = logsumexp(x, axis=0)
    logsumexp(work, axis=0, out=work[3])
    assert same_bits(work[3], want)

    t = np.linspace(0.5, 3, 20)
    want = logsumexp(x, temperature=t, dtype="f8")
    logsumexp(x, temperature=t, out=t)
    assert same_bits(t, want)
    t = np.linspace(0.5, 3, 20)
    want = logsumexp(x, temperature=t[::-1], dtype="f8")
    logsumexp(x, temperature=t[::-1], out=t)
    assert same_bits(t, want)

    memory = np.zeros(20 * 50 * 4, np.uint8)
    where = memory.view(bool)[1000:2000].reshape(20, 50)
    where[:] = generator("mask memory").random(where.shape) < 0.5
    want = softmax(x, where=where)
    out = memory.view("f4").reshape(20, 50)
    softmax(x, where=where, out=out)
    assert same_bits(out, want)


@NORMALISER
def test_out_of_another_type_in_the_memory_of_the_logits(op: str) -> None:
    for x_dtype, out_dtype in (("f4", "f8"), ("f8", "f4"), ("f2", "f4"), ("f4", "f2")):
        memory = np.zeros(8 * 31 * 77, np.uint8)
        count = 31 * 77
        x = memory[: count * np.dtype(x_dtype).itemsize].view(x_dtype).reshape(31, 77)
        out = memory[: count * np.dtype(out_dtype).itemsize].view(out_dtype).reshape(31, 77)
        x[:] = logits(31, 77)
        want = call(op, x.copy(), temperature=0.7, dtype=out_dtype)
        call(op, x, temperature=0.7, out=out)
        assert same_bits(out, want)


@EACH_OP
def test_out_of_the_wrong_shape(op: str) -> None:
    x = logits(3, 4)
    good = result_shape(op, x)
    for shape in ((4, 3), (12,), (3, 4, 1), (1, 3, 4), (), (3, 5), (4,), (3, 1), (1, 3)):
        if shape != good:
            with pytest.raises(ValueError, match=rf"(?s)out.*{re.escape(str(shape))}"):
                call(op, x, out=np.empty(shape, "f4"))
    with pytest.raises(ValueError, match="out"):
        logsumexp(x, keepdims=True, out=np.empty(3, "f4"))


@EACH_OP
def test_out_that_is_read_only(op: str) -> None:
    x = logits(3, 4)
    out = np.full(result_shape(op, x), 77, "f4")
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out"):
        call(op, x, out=out)
    assert (out == 77).all()
    with pytest.raises(ValueError, match="out"):
        call(op, x, out=np.broadcast_to(np.float32(0), out.shape))


@EACH_OP
@pytest.mark.parametrize("dtype", ["i4", "i8", "?", "c8", "c16", object, "U8", "g", "M8[s]"])
def test_out_of_the_wrong_type(op: str, dtype: str) -> None:
    if np.dtype(dtype) == np.float64:
        pytest.skip("long double is float64 here")
    x = logits(3, 4)
    with pytest.raises(TypeError, match="out"):
        call(op, x, out=np.zeros(result_shape(op, x), dtype))


@EACH_OP
def test_out_that_is_no_array(op: str) -> None:
    for out in ([[0.0] * 4] * 3, 3.0, "out", (np.empty((3, 4), "f4"),)):
        with pytest.raises(TypeError, match="out"):
            call(op, logits(3, 4), out=out)


@EACH_OP
def test_nothing_is_written_before_all_checks_pass(op: str) -> None:
    x = logits(3, 4)
    bad_calls = [
        {"temperature": -1.0},
        {"temperature": [1.0, 2.0, NAN]},
        {"temperature": np.ones(7)},
        {"temperature": "warm"},
        {"where": np.ones((3, 4))},
        {"where": np.ones((7, 3, 4), bool)},
        {"axis": 5},
        {"axis": (0, 0)},
        {"dtype": "i4"},
        {"dtype": "no such type"},
    ]
    if op == "logsumexp":
        bad_calls.append({"temperature": [1.0, 2.0, 0.0]})
    for kwargs in bad_calls:
        out = np.full(result_shape(op, x), 77, "f4")
        with pytest.raises((TypeError, ValueError)):
            call(op, x, out=out, **kwargs)
        assert (out == 77).all(), kwargs
        work = x.copy()
        if op != "logsumexp":
            with pytest.raises((TypeError, ValueError)):
                call(op, work, out=work, **kwargs)
            assert same_bits(work, x), kwargs


# ---- dtype


@EACH_OP
@pytest.mark.parametrize("x_name", [*FLOATS, "int64", "bool"])
@pytest.mark.parametrize("name", [None, *FLOATS])
def test_every_pair_of_types(op: str, x_name: str, name: str | None) -> None:
    """float64 on either side means float64 arithmetic, else it is float32."""
    x = logits(5, 67, dtype=float_type(x_name))
    dtype = None if name is None else float_type(name)
    for t in (1.0, 0.7):
        for axis in (-1, 0):
            got = call(op, x, axis, temperature=t, dtype=dtype)
            assert_close(op, got, x, axis=axis, temperature=t, dtype=dtype)
    long = logits(2, 5003, dtype=float_type(x_name))
    assert_close(op, call(op, long, dtype=dtype), long, dtype=dtype)


@EACH_OP
def test_float64_result_of_float32_logits_is_computed_in_float64(op: str) -> None:
    x = logits(4, 300)
    got = call(op, x, temperature=0.7, dtype="float64")
    want = call(op, x.astype("f8"), temperature=0.7)
    assert same_bits(got, want)
    assert arithmetic_of("f4", "f8") == np.float64
    assert abs(got - call(op, x, temperature=0.7)).max() > 0


@EACH_OP
def test_ways_to_name_a_type(op: str) -> None:
    x = logits(3, 4)
    want = call(op, x, dtype="float64")
    for dtype in (np.float64, np.dtype("f8"), float, "f8", "double"):
        assert same_bits(call(op, x, dtype=dtype), want)
    assert call(op, x, dtype=np.float16).dtype == np.float16
    bfloat16 = float_type("bfloat16")
    assert call(op, x, dtype=bfloat16).dtype == bfloat16
    assert call(op, x, dtype="bfloat16").dtype == bfloat16


@EACH_OP
@pytest.mark.parametrize(
    "dtype", [int, "i4", "u1", bool, complex, "c8", object, "U4", "M8[s]", "g"]
)
def test_types_of_results_there_are_not(op: str, dtype: object) -> None:
    if np.dtype(dtype) == np.float64:
        pytest.skip("long double is float64 here")
    with pytest.raises(TypeError, match="dtype"):
        call(op, logits(3, 4), dtype=dtype)
    with pytest.raises(TypeError):
        call(op, logits(3, 4), dtype="no such type")


@EACH_OP
def test_out_and_dtype_that_disagree(op: str) -> None:
    x = logits(3, 4)
    out = np.zeros(result_shape(op, x), "f4")
    call(op, x, out=out, dtype="f4")
    assert_close(op, out, x)
    with pytest.raises(TypeError, match="out"):
        call(op, x, out=out, dtype="f8")


@EACH_OP
@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?", ">i4"])
def test_integers_give_float64(op: str, dtype: str) -> None:
    x = generator("integers").integers(0, 2 if dtype == "?" else 100, size=(4, 21)).astype(dtype)
    for axis in (-1, 0, None):
        got = call(op, x, axis, temperature=3.0)
        assert_close(op, got, x.astype("f8"), axis=axis, temperature=3.0)
    want = getattr(scipy.special, op)(x.astype("f8"), axis=-1)
    np.testing.assert_allclose(call(op, x), want, rtol=1e-13, atol=1e-15)


def test_large_integers() -> None:
    x = np.array([2**62, 2**62 + 4096, 0])
    np.testing.assert_allclose(softmax(x, temperature=4096), [1 / (1 + np.e), np.e / (1 + np.e), 0])
    assert_array_equal(softmax(np.array([0, 255], "u1")), softmax([0.0, 255.0]))
    assert_array_equal(softmax(np.array([2**64 - 1, 0], "u8")), [1, 0])


@EACH_OP
@pytest.mark.parametrize(
    "x",
    [
        np.ones(3, "c8"),
        np.ones(3, complex),
        np.ones(3, object),
        np.array(["a", "b"]),
        np.array([b"a", b"b"]),
        np.ones(3, "M8[s]"),
        np.ones(3, "m8[s]"),
        np.ones(3, [("a", "f4")]),
        [1j, 2],
        [None, 1.0],
        "logits",
        None,
        {},
    ],
    ids=repr,
)
def test_types_of_logits_there_are_not(op: str, x: object) -> None:
    with pytest.raises(TypeError, match="x"):
        call(op, x)


# ---- shapes


@EACH_OP
@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (0, 0), (2, 0, 3), (2, 3, 0), (0, 2, 3)])
def test_empty(op: str, shape: tuple[int, ...]) -> None:
    for dtype in ("f4", "f8", "f2", "i8"):
        x = np.zeros(shape, dtype)
        for axis in (*range(-len(shape), len(shape)), None):
            got = call(op, x, axis)
            assert_close(op, got, x, axis=axis)
            assert (np.asarray(got) == -INF).all()
            call(op, x, axis, temperature=0.7, where=np.ones(shape, bool))
            out = np.full(np.shape(got), 77, "f4")
            assert call(op, x, axis, out=out) is out
            assert (out == -INF).all()


def test_empty_by_hand() -> None:
    assert softmax([]).shape == (0,)
    assert softmax([]).dtype == np.float64
    assert logsumexp([]) == -INF
    assert type(logsumexp([])) is np.float64
    assert_array_equal(logsumexp(np.zeros((3, 0))), [-INF] * 3)
    assert logsumexp(np.zeros((0, 3))).shape == (0,)
    assert_array_equal(logsumexp(np.zeros((0, 3)), axis=0), [-INF] * 3)
    assert_array_equal(
        logsumexp(np.zeros((2, 0, 3)), axis=1, keepdims=True), np.full((2, 1, 3), -INF)
    )
    assert logsumexp(np.zeros((0, 3)), axis=None) == -INF
    assert softmax(np.zeros((0, 3)), temperature=np.ones(0)).shape == (0, 3)


@EACH_OP
def test_many_dimensions(op: str) -> None:
    x = logits(*[2] * 10)
    for axis in (-1, 0, (1, 3, 9), None):
        check(op, x, axis=axis)
    check(op, logits(1, 1, 7, 1), axis=2)
    check(op, logits(5, 1))
    check(op, logits(1, 5))
    check(op, logits(5, 1), axis=0)


# ---- memory of the logits


def layouts(x: np.ndarray) -> dict[str, np.ndarray]:
    """Equal arrays in all sorts of memory."""
    n = x.ndim
    spaced = np.zeros(tuple(3 * k for k in x.shape), x.dtype)
    spaced = spaced[(slice(1, None, 3),) * n]
    odd = np.zeros(x.nbytes + 3, np.uint8)[3:].view(x.dtype).reshape(x.shape)
    crossed = np.zeros(tuple(2 * k for k in x.shape[::-1]), x.dtype).T[(slice(None, None, 2),) * n]
    record = np.zeros(x.shape, [("a", "u1"), ("x", x.dtype)])["x"]
    backwards = np.zeros_like(x)[(slice(None, None, -1),) * n]
    places = {"spaced": spaced, "unaligned": odd, "crossed": crossed, "record": record}
    places["backwards"] = backwards
    for place in places.values():
        place[...] = x
    read_only = x.copy()
    read_only.flags.writeable = False
    places |= {"Fortran": np.asfortranarray(x), "read-only": read_only}
    if x.dtype.isbuiltin == 1:
        places["swapped"] = x.astype(x.dtype.newbyteorder("S"))
        swapped = spaced.astype(x.dtype.newbyteorder("S"), order="F")
        places["swapped, Fortran"] = swapped
    return places


@EACH_OP
@pytest.mark.parametrize("name", [*FLOATS, "int32"])
@pytest.mark.parametrize("axis", [-1, 0, 1, (0, 2), None])
def test_layouts(op: str, name: str, axis: object) -> None:
    x = logits(5, 6, 37, dtype=float_type(name))
    want = np.asarray(call(op, x, axis, temperature=0.7))
    assert want.dtype.isnative
    t = np.full(logsumexp(x, axis, keepdims=True).shape, 0.7)
    for layout, view in layouts(x).items():
        before = view.copy()
        got = np.asarray(call(op, view, axis, temperature=0.7))
        assert same_bits(got, want), layout
        assert_close(op, got, view, axis=axis, temperature=0.7)
        assert same_bits(np.asarray(call(op, view, axis, temperature=t)), want), layout
        assert np.array_equal(view, before), f"{layout}: the input changed"


@EACH_OP
def test_broadcast_logits(op: str) -> None:
    """Strides of 0 in the rows, along them, or everywhere."""
    x = logits(5, 1)
    check(op, np.broadcast_to(x, (5, 41)))
    check(op, np.broadcast_to(x.T, (41, 5)), temperature=0.5)
    check(op, np.broadcast_to(np.float32(3), (4, 5)))
    check(op, np.broadcast_to(x, (5, 41)), axis=0)
    check(op, np.broadcast_to(x[:, 0], (3, 4, 5)), axis=(0, 2))
    check(op, np.lib.stride_tricks.sliding_window_view(logits(300), 130))


@EACH_OP
@pytest.mark.parametrize("name", FLOATS)
def test_the_input_never_changes(op: str, name: str) -> None:
    x = logits(7, 133, dtype=float_type(name))
    x[1, 5], x[2, 6], x[3] = NAN, INF, -INF
    t, where = np.linspace(0, 2, 7) + (op == "logsumexp"), generator().random(x.shape) < 0.5
    kept = x.copy(), t.copy(), where.copy()
    for axis in (-1, 0, None):
        for dtype in (None, "f4", "f8"):
            per_row = t if axis == -1 else 0.7
            call(op, x, axis, temperature=per_row, where=where, dtype=dtype)
            call(op, x, axis, temperature=per_row, dtype=dtype)
    assert same_bits(x, kept[0])
    assert same_bits(t, kept[1])
    assert np.array_equal(where, kept[2])


@EACH_OP
def test_results_are_fresh(op: str) -> None:
    """A result shares no memory with the input or with the next result."""
    x = logits(3, 40)
    first = call(op, x)
    copy = first.copy()
    second = call(op, -x)
    assert not np.shares_memory(first, x)
    assert not np.shares_memory(first, second)
    assert same_bits(first, copy)
    assert first.flags.writeable
    assert first.flags.c_contiguous


@EACH_OP
def test_array_likes(op: str) -> None:
    x = logits(3, 4, dtype="f8")
    want = call(op, x)
    for like in (x.tolist(), tuple(map(tuple, x.tolist())), memoryview(x), list(x)):
        assert same_bits(call(op, like), want)
    assert same_bits(call(op, array.array("f", [1, 2, 3])), call(op, np.array([1, 2, 3], "f4")))
    assert same_bits(call(op, [1, 2, 3]), call(op, np.array([1.0, 2.0, 3.0])))
    assert same_bits(call(op, [True, False]), call(op, np.array([1.0, 0.0])))
    assert call(op, [np.float32(1), np.float32(2)]).dtype == np.float32
    with pytest.raises(ValueError):
        call(op, [[1.0], [1.0, 2.0]])

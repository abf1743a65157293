"""Shapes x strides x types x axes x temperatures x masks, in combinations nobody thought of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from oracle import OPS, assert_close
from support import SEED, same_bits

import fastsoftmax

try:
    import ml_dtypes

    BFLOAT16 = [np.dtype(ml_dtypes.bfloat16)]
except ImportError:
    BFLOAT16 = []

FLOATS = [np.dtype(d) for d in ("f4", "f8", "f2")] + BFLOAT16
DTYPES = [*FLOATS, np.dtype(">f4"), np.dtype(">f8"), np.dtype("i4"), np.dtype("?")]
SIZES = st.one_of(st.integers(0, 9), st.sampled_from([16, 17, 33, 64, 70, 130]))
# The last two are 0 to float32 arithmetic, the last of them to float64 too.
TEMPERATURES = [1.0, 0.7, 2.5, 0.05, 40.0, 1e-30, 1e30, np.inf, 0.0, 1e-45, 1e-310]
VALUES = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e30, -1e30, 65504.0]

EACH_OP = pytest.mark.parametrize("op", OPS)


@dataclass
class Case:
    x: np.ndarray
    axis: Any
    temperature: Any
    where: Any
    dtype: Any

    @property
    def arguments(self) -> dict[str, Any]:
        return {"axis": self.axis, "temperature": self.temperature, "where": self.where}


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """An array of any type in memory of any layout, some of it holding special values."""
    shape = tuple(draw(st.lists(SIZES, min_size=0, max_size=4)))
    while np.prod(shape) > 20000:
        shape = shape[1:]
    dtype = draw(st.sampled_from(DTYPES))
    order = draw(st.permutations(range(len(shape))))
    steps = draw(st.tuples(*[st.sampled_from([1, 1, 1, 2, 3, -1, -2]) for _ in shape]))
    offset = draw(st.sampled_from([0, 0, 1, 3]))
    rng = np.random.default_rng([SEED, draw(st.integers(0, 2**32 - 1))])
    scale = draw(st.sampled_from([0.1, 3.0, 3.0, 30.0, 1000.0]))

    values = rng.normal(size=shape) * scale
    if draw(st.booleans()):
        values = np.round(values)
    special = rng.random(shape) < draw(st.sampled_from([0.0, 0.0, 0.01, 0.3]))
    values = np.where(
        special, rng.choice(draw(st.lists(st.sampled_from(VALUES), min_size=1))), values
    )
    if shape and draw(st.booleans()):
        values[..., : draw(st.integers(0, shape[-1]))] = -np.inf

    base_shape = [shape[d] * abs(steps[d]) for d in order]
    count = int(np.prod(base_shape))
    memory = np.zeros(count * dtype.itemsize + offset, np.uint8)[offset:]
    base = memory.view(dtype).reshape(base_shape).transpose(np.argsort(np.array(order, dtype=int)))
    x = base[(..., *(slice(None, None, s) for s in steps))]
    with np.errstate(all="ignore"):
        x[...] = np.nan_to_num(values, posinf=9, neginf=-9) if dtype.kind in "ib" else values
    return x


@st.composite
def cases(draw: st.DrawFn, op: str) -> Case:
    x = draw(arrays())
    if x.ndim == 0:
        axis = draw(st.sampled_from([-1, 0, None]))
    else:
        one = st.integers(-x.ndim, x.ndim - 1)
        several = st.lists(st.integers(0, x.ndim - 1), min_size=1, unique=True).map(tuple)
        axis = draw(st.one_of(st.just(-1), one, st.none(), several))
    reduced = range(x.ndim) if axis is None else axis if isinstance(axis, tuple) else [axis]
    reduced = [a % max(x.ndim, 1) for a in reduced]
    choices = TEMPERATURES[:-3] if op == "logsumexp" else TEMPERATURES
    rest = [n for d, n in enumerate(x.shape) if d not in reduced]
    if rest and draw(st.booleans()):
        if draw(st.booleans()):
            shape = [1 if d in reduced else n for d, n in enumerate(x.shape)]
        else:
            shape = rest
        shape = [draw(st.sampled_from([1, n])) for n in shape]
        picks = draw(st.lists(st.sampled_from(choices), min_size=1, max_size=6))
        t = np.resize(np.array(picks), shape)
    else:
        t = draw(st.sampled_from(choices))
    where = None
    if draw(st.booleans()):
        shape = [draw(st.sampled_from([1, n])) for n in x.shape]
        shape = shape[draw(st.integers(0, len(shape))) :]
        rng = np.random.default_rng([SEED, draw(st.integers(0, 2**32 - 1))])
        where = rng.random(shape) < draw(st.sampled_from([0.0, 0.3, 0.9, 1.0]))
        where = np.asarray(where)
    dtype = draw(st.sampled_from([None, None, *FLOATS]))
    return Case(x, axis, t, where, dtype)


@EACH_OP
@given(data=st.data())
def test_any_call(backend: str, op: str, data: st.DataObject) -> None:
    case = data.draw(cases(op))
    event(f"dtype {case.x.dtype}")
    event(f"temperature {'per row' if np.ndim(case.temperature) else case.temperature}")
    event(f"where {'no' if case.where is None else 'yes'}")
    before = case.x.copy()
    got = getattr(fastsoftmax, op)(case.x, dtype=case.dtype, **case.arguments)
    assert_close(op, got, case.x, dtype=case.dtype, **case.arguments)
    assert same_bits(case.x, before)


@EACH_OP
@given(data=st.data())
def test_any_out(backend: str, op: str, data: st.DataObject) -> None:
    """`out` in memory of any layout gets the bits that a fresh result has."""
    case = data.draw(cases(op))
    case.dtype = case.dtype or FLOATS[0]
    want = np.asarray(getattr(fastsoftmax, op)(case.x, dtype=case.dtype, **case.arguments))
    steps = data.draw(st.tuples(*[st.sampled_from([1, 1, 2, -1]) for _ in want.shape]))
    order = data.draw(st.permutations(range(want.ndim)))
    base = np.zeros([want.shape[d] * abs(steps[d]) for d in order], case.dtype)
    base = base.transpose(np.argsort(np.array(order, dtype=int)))
    out = base[(..., *(slice(None, None, s) for s in steps))]
    assert getattr(fastsoftmax, op)(case.x, out=out, **case.arguments) is out
    assert same_bits(out, want)


@pytest.mark.parametrize("op", ["softmax", "log_softmax"])
@given(data=st.data())
def test_any_overlap(backend: str, op: str, data: st.DataObject) -> None:
    """Logits and result anywhere in the same memory, in place included."""
    rows, length = data.draw(st.integers(1, 6)), data.draw(st.sampled_from([1, 2, 9, 33, 100]))
    dtype = data.draw(st.sampled_from(["f4", "f8", "f2"]))
    rng = np.random.default_rng([SEED, data.draw(st.integers(0, 2**32 - 1))])
    memory = (rng.normal(size=4 * rows * length + 8) * 5).astype(dtype)

    def view() -> np.ndarray:
        step = data.draw(st.sampled_from([1, 1, 2]))
        size = rows * length
        start = data.draw(st.integers(0, len(memory) - step * size))
        a = memory[start : start + step * size : step]
        a = a.reshape(length, rows).T if data.draw(st.booleans()) else a.reshape(rows, length)
        flips = data.draw(st.tuples(st.sampled_from([1, -1]), st.sampled_from([1, -1])))
        return a[:: flips[0], :: flips[1]]

    x = view()
    out = x if data.draw(st.booleans()) else view()
    axis = data.draw(st.sampled_from([-1, 0, None]))
    event(f"shares memory: {np.shares_memory(x, out)}")
    original = x.copy()
    getattr(fastsoftmax, op)(x, axis, temperature=0.7, out=out)
    assert_close(op, out, original, axis=axis, temperature=0.7)


@given(data=st.data())
def test_relations(backend: str, data: st.DataObject) -> None:
    """A permutation of a row permutes its result; logits at T are logits/T at 1; sums are 1."""
    length = data.draw(st.integers(1, 200))
    rng = np.random.default_rng([SEED, data.draw(st.integers(0, 2**32 - 1))])
    x = rng.normal(size=length) * data.draw(st.sampled_from([1.0, 20.0, 300.0]))
    t = data.draw(st.floats(0.01, 100))
    p = fastsoftmax.softmax(x, temperature=t)
    assert abs(p.sum() - 1) < 1e-13
    order = rng.permutation(length)
    np.testing.assert_allclose(fastsoftmax.softmax(x[order], temperature=t), p[order], rtol=1e-13)
    widest = np.ptp(x) / t
    np.testing.assert_allclose(
        fastsoftmax.softmax(x / t), p, rtol=1e-13 + widest * 1e-15, atol=5e-324
    )
    lse = fastsoftmax.logsumexp(x, temperature=t)
    assert lse >= x.max() / t - 1e-12 * abs(lse)
    np.testing.assert_allclose(
        fastsoftmax.log_softmax(x, temperature=t),
        x / t - lse,
        rtol=1e-12,
        atol=1e-12 * max(1, widest),
    )

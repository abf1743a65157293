"""The batches that backends are given: views of the arguments, with as few axes as can be."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

from fastsoftmax._api import _batches
from fastsoftmax._backends._protocol import Batch
from fastsoftmax._ops import OPS

SOFTMAX, LOGSUMEXP = OPS["softmax"], OPS["logsumexp"]


def make(op, x, axes, temperature=None, where=None, out=None) -> tuple[Batch, np.ndarray]:
    if temperature is None:
        temperature = np.full((1,) * x.ndim, 0.7)
    if out is None:
        kept = [1 if i in axes else n for i, n in enumerate(x.shape)]
        out = np.empty(kept if op.reduces else x.shape, np.float32)
    return _batches.make(op, x, axes, temperature, where, out)


def shapes(batch: Batch) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return batch.x.shape[: batch.row_axes], batch.x.shape[batch.row_axes :]


X = np.zeros((2, 3, 4, 5), np.float32)


@pytest.mark.parametrize(
    ("axes", "rows", "cols"),
    [
        ((3,), (24,), (5,)),
        ((2, 3), (6,), (20,)),
        ((0, 1, 2, 3), (1,), (120,)),
        ((0,), (60,), (2,)),
        ((0, 1), (20,), (6,)),
        ((1,), (2, 20), (3,)),
        ((1, 2), (2, 5), (12,)),
        ((0, 3), (12,), (2, 5)),
        ((0, 2), (3, 5), (2, 4)),
    ],
)
@pytest.mark.parametrize("op", [SOFTMAX, LOGSUMEXP])
def test_contiguous_logits(op, axes, rows, cols) -> None:
    batch, out = make(op, X, axes)
    assert shapes(batch) == (rows, cols)
    assert out.shape == (rows if op.reduces else rows + cols)
    assert batch.temperature.shape == rows
    assert set(batch.temperature.strides) == {0}


def test_axes_of_length_1_are_dropped() -> None:
    x = np.zeros((1, 7, 1, 5, 1), np.float32)
    batch, _ = make(SOFTMAX, x, (3,))
    assert shapes(batch) == ((7,), (5,))
    batch, _ = make(SOFTMAX, x, (2, 4))
    assert shapes(batch) == ((35,), (1,))
    batch, _ = make(SOFTMAX, x[:, :1, :, :1], (0,))
    assert shapes(batch) == ((1,), (1,))


def test_rows_lie_side_by_side() -> None:
    """The last row axis is the one with the smallest step, whatever the order of the axes."""
    x = np.zeros((6, 7, 8, 9), np.float32)
    for order in itertools.permutations(range(4)):
        view = x.transpose(order)
        for axis in range(4):
            batch, out = make(SOFTMAX, view, (axis,), out=np.empty_like(view))
            steps = [abs(s) for s in batch.x.strides[: batch.row_axes]]
            assert steps == sorted(steps, reverse=True)
            assert steps[-1] == (9 * 4 if x.shape[order[axis]] == 9 else 4)
            assert out.strides == batch.x.strides
    # ... but for a step of 0
    x = np.broadcast_to(np.zeros((6, 7, 1), np.float32), (6, 7, 8))
    batch, _ = make(SOFTMAX, x, (0,))
    assert shapes(batch) == ((8, 7), (6,))


def test_what_keeps_axes_apart() -> None:
    """Neighbours are merged only if that is right for every array."""
    x = np.zeros((4, 5, 6), np.float32)
    assert shapes(make(SOFTMAX, x, (2,))[0])[0] == (20,)
    where = np.broadcast_to(np.ones((5, 1), bool), x.shape)
    batch, _ = make(SOFTMAX, x, (2,), where=where)
    assert shapes(batch)[0] == (4, 5)
    assert batch.where.strides == (0, 1, 0)
    where = np.broadcast_to(np.ones((6,), bool), x.shape)
    assert shapes(make(SOFTMAX, x, (2,), where=where)[0]) == ((20,), (6,))
    assert shapes(make(SOFTMAX, x, (1, 2), where=where)[0]) == ((4,), (5, 6))
    t = np.ones((4, 1, 1))
    batch, _ = make(SOFTMAX, x, (2,), t)
    assert shapes(batch)[0] == (4, 5)
    assert batch.temperature.strides == (8, 0)
    assert shapes(make(SOFTMAX, x, (2,), np.ones((4, 5, 1)))[0])[0] == (20,)
    out = np.empty((8, 5, 6), np.float32)[::2]
    assert shapes(make(SOFTMAX, x, (2,), out=out)[0])[0] == (4, 5)
    out = np.empty((4, 5, 1), np.float32, order="F")
    assert shapes(make(LOGSUMEXP, x, (2,), out=out)[0])[0] == (4, 5)


@st.composite
def calls(draw):
    """Arguments of every layout, each entry of an array telling where it is."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=5)))
    ndim = len(shape)
    axes = tuple(sorted(draw(st.sets(st.integers(0, ndim - 1), min_size=1))))

    def strided(lengths, dtype, may_repeat):
        order = draw(st.permutations(range(ndim)))
        step, strides = 1, [0] * ndim
        for i in order:
            step += draw(st.integers(0, 1)) * step
            strides[i] = step
            step *= lengths[i]
        flat = np.arange(step).astype(dtype)
        strides = [s * flat.itemsize for s in strides]
        view = as_strided(flat, lengths, strides)
        view = view[tuple(slice(None, None, draw(st.sampled_from([1, -1]))) for _ in lengths)]
        if may_repeat:
            thin = tuple(slice(0, draw(st.sampled_from([1, n]))) for n in lengths)
            view = np.broadcast_to(view[thin], lengths)
        return view

    kept = tuple(1 if i in axes else n for i, n in enumerate(shape))
    op = draw(st.sampled_from([SOFTMAX, LOGSUMEXP]))
    x = strided(shape, "f8", True)
    where = strided(shape, "i4", True) % 2 == 0 if draw(st.booleans()) else None
    t_shape = tuple(draw(st.sampled_from([1, n])) for n in kept)
    temperature = np.arange(1.0, np.prod(t_shape) + 1).reshape(t_shape)
    out = strided(kept if op.reduces else shape, "f8", False)
    return op, x, axes, temperature, where, out


@given(calls())
def test_every_entry_keeps_its_row_and_its_place(call) -> None:
    op, x, axes, temperature, where, out = call
    batch, rows = _batches.make(*call)
    assert np.shares_memory(batch.x, x)
    assert np.shares_memory(rows, out)
    assert batch.row_axes >= 1
    assert batch.x.ndim > batch.row_axes

    others = tuple(i for i in range(x.ndim) if i not in axes)

    def lines(a):
        """One row of an argument after another."""
        a = np.broadcast_to(a, x.shape).transpose(others + axes)
        return a.reshape(int(np.prod(a.shape[: len(others)])), -1)

    def table(x, temperature, where, out):
        where = np.ones(x.shape) if where is None else where
        return sorted(np.hstack([lines(a) for a in (x, temperature, where, out)]).tolist())

    def made(a, is_row_wise):
        shape = batch.x.shape
        if is_row_wise:
            a = a.reshape(a.shape + (1,) * (len(shape) - a.ndim))
        return np.broadcast_to(a, shape).reshape(batch.rows, batch.cols)

    got = [
        made(batch.x, False),
        made(batch.temperature, True),
        np.ones((batch.rows, batch.cols)) if where is None else made(batch.where, False),
        made(rows, op.reduces),
    ]
    assert sorted(np.hstack(got).tolist()) == table(x, temperature, where, out)

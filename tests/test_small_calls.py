"""The shortest way to a backend: the bits of the long one, and nothing uncommon goes along it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from oracle import OPS, assert_close
from support import generator, same_bits

import fastsoftmax
from fastsoftmax import _backends

EACH_OP = pytest.mark.parametrize("op", OPS)
EACH_DTYPE = pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])


def logits(*shape: int, dtype: str = "float32") -> np.ndarray:
    return (generator("small", shape).normal(size=shape) * 4).astype(dtype)


def serves(backend: str) -> bool:
    return backend != "numpy"


@EACH_OP
@EACH_DTYPE
@pytest.mark.parametrize("shape", [(1,), (8,), (3, 5), (2, 3, 4), (1, 2049), (70, 33)])
def test_the_bits_are_those_of_the_long_way(
    backend: str, op: str, dtype: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, call = logits(*shape, dtype=dtype), getattr(fastsoftmax, op)
    server = _backends.current()
    got = server.run_small(op, x, 0.7, None)
    assert (got is not None) == serves(backend)
    short = call(x, temperature=0.7)
    assert_close(op, short, x, temperature=0.7)
    axis = x.ndim - 1  # an axis that is not -1 goes the long way
    long = call(x, axis, temperature=0.7) if axis else call(x, (0,), temperature=0.7)
    assert same_bits(short, long)
    assert type(short) is type(long)
    if got is not None:
        assert same_bits(got, long)
        out = np.full_like(np.asarray(got), 77)
        assert server.run_small(op, x, 0.7, out) is out
        assert same_bits(out, long)
        if op != "logsumexp":
            assert server.run_small(op, x, 0.7, x) is x
            assert same_bits(x, long)


def odd_memory(x: np.ndarray) -> np.ndarray:
    view = np.empty(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    view[...] = x
    return view


def read_only(x: np.ndarray) -> np.ndarray:
    x.flags.writeable = False
    return x


X = logits(6, 6)
UNCOMMON: dict[str, Callable[[], tuple[np.ndarray, object]]] = {
    "transposed": lambda: (X.T, None),
    "every second": lambda: (X[:, ::2], None),
    "backwards": lambda: (X[::-1], None),
    "unaligned": lambda: (odd_memory(X), None),
    "byte-swapped": lambda: (X.astype(X.dtype.newbyteorder("S")), None),
    "integers": lambda: (X.astype("i4"), None),
    "complex": lambda: (X.astype("c8"), None),
    "empty": lambda: (X[:0], None),
    "no entries": lambda: (X[:, :0], None),
    "scalar": lambda: (X[0, 0, ...], None),
    "out of another type": lambda: (X, np.empty((6, 6), "f8")),
    "out of another shape": lambda: (X, np.empty((6, 7), "f4")),
    "out that is flat": lambda: (X, np.empty(36, "f4")),
    "out that is a list": lambda: (X, [[0.0] * 6] * 6),
    "out that is a matrix": lambda: (X, np.empty((6, 6), "f4").view(np.recarray)),
    "out in columns": lambda: (X, np.empty((6, 6), "f4", order="F")),
    "out that is unaligned": lambda: (X, odd_memory(X)),
    "out that is read-only": lambda: (X, read_only(np.empty((6, 6), "f4"))),
    "out that overlaps": lambda: (lambda m: (m[:36].reshape(6, 6), m[1:37].reshape(6, 6)))(
        np.ones(40, "f4")
    ),
}


@pytest.mark.parametrize("which", UNCOMMON)
def test_what_is_uncommon_is_declined(backend: str, which: str) -> None:
    x, out = UNCOMMON[which]()
    before = np.array(out) if out is not None else None
    assert _backends.current().run_small("softmax", x, 0.7, out) is None
    if out is not None:
        assert np.array_equal(np.array(out), before, equal_nan=True), "nothing may be written"


def test_logsumexp_over_its_logits_is_declined(backend: str) -> None:
    x = logits(6, 6)
    kept = x.copy()
    assert _backends.current().run_small("logsumexp", x, 0.7, x[0]) is None
    assert _backends.current().run_small("logsumexp", x[:, :1].copy()[:, 0], 0.7, x) is None
    assert same_bits(x, kept)


@EACH_OP
def test_temperatures(backend: str, op: str) -> None:
    x = logits(4, 5)
    for t in (1, 2, 2**52, 0.5, np.inf, 1e-300):
        assert_close(op, getattr(fastsoftmax, op)(x, temperature=t), x, temperature=float(t))
    for t in (-1, -0.5, np.nan):
        with pytest.raises(ValueError, match="temperature"):
            getattr(fastsoftmax, op)(x, temperature=t)
    with pytest.raises(TypeError, match="temperature"):
        getattr(fastsoftmax, op)(x, temperature=10**400)

"""Every operation, backend and peer on every shape: a group for each operation and shape."""

from typing import Any

import numpy as np
import pytest
import scipy.special

from benchmarks.contenders import BACKENDS, MissingError, contender, peers
from benchmarks.shapes import SHAPES, Shape, logits
from fastsoftmax._ops import OPS

CASES = [(op, name) for op in OPS for name in (*BACKENDS, *peers(op))]


def prepare(op: str, name: str, shape: Shape) -> Any:
    who = contender(op, name)
    try:
        return who, who.prepare(logits(shape), shape.axis)
    except MissingError as reason:
        pytest.skip(f"{name}: {reason}")


@pytest.mark.parametrize(("op", "name"), CASES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_time(op: str, name: str, shape: Shape, benchmark: Any) -> None:
    who, call = prepare(op, name, shape)
    benchmark.group = f"{op} {shape}"
    benchmark.extra_info["entries"] = shape.size
    with who.context():
        benchmark(call)


@pytest.mark.parametrize(("op", "name"), CASES)
@pytest.mark.parametrize("shape", [Shape(8, 1000), Shape(30, 7, axis=0)], ids=str)
def test_contenders_agree(op: str, name: str, shape: Shape) -> None:
    """What is compared is the same work."""
    who, call = prepare(op, name, shape)
    if who.temperature is None:
        pytest.skip(f"{name} is other work")
    x = logits(shape).astype(np.float64) / who.temperature
    with who.context():
        result = np.asarray(call())
    expected = getattr(scipy.special, op)(x, axis=shape.axis)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)

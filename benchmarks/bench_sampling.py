"""Every choice of filters, backend and PyTorch's idiom: a group for each choice and shape."""

from typing import Any

import numpy as np
import pytest
import scipy.special

from benchmarks.bench_normalizers import prepare
from benchmarks.contenders import BACKENDS, FILTERS, SAMPLING, peers
from benchmarks.shapes import BATCHES, Shape, logits

CASES = [(op, name) for op in SAMPLING for name in (*BACKENDS, *peers(op))]
SHAPES = [Shape(rows, 128256, peaked=peaked) for rows in BATCHES for peaked in (False, True)]


@pytest.mark.parametrize(("op", "name"), CASES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_time(op: str, name: str, shape: Shape, benchmark: Any) -> None:
    who, call = prepare(op, name, shape)
    benchmark.group = f"{op} {shape}"
    benchmark.extra_info["entries"] = shape.size
    with who.context():
        benchmark(call)


def distribution(logits: Any, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Any:
    """What a row of logits is drawn from."""
    p = scipy.special.softmax(np.asarray(logits, np.float64))
    order = np.argsort(-p, kind="stable")
    kept = p[order][: top_k or None]
    kept = kept[(np.cumsum(kept) - kept) / kept.sum() < top_p]
    kept = kept[kept >= min_p * kept[0]]
    q = np.zeros_like(p)
    q[order[: len(kept)]] = kept / kept.sum()
    return q


@pytest.mark.parametrize(("op", "name"), CASES)
@pytest.mark.parametrize("shape", [Shape(8, 1000), Shape(8, 1000, peaked=True)], ids=str)
def test_contenders_agree(op: str, name: str, shape: Shape) -> None:
    """What is compared is the same work."""
    who, call = prepare(op, name, shape)
    if who.temperature is None:
        pytest.skip(f"{name} is other work")
    draws = 400
    with who.context():
        ids = np.stack([np.asarray(call()) for _ in range(draws)])
    for row, x in enumerate(logits(shape)):
        q = distribution(x / who.temperature, **FILTERS[op])
        assert np.all(q[ids[:, row]] > 0)
        # Of a right draw's counts one in a million misses this by chance.
        best = np.argmax(q)
        spread = np.sqrt(draws * q[best] * (1 - q[best]))
        assert abs(np.sum(ids[:, row] == best) - draws * q[best]) <= 5 * spread + 1

"""Every scoring query, backend and PyTorch's idiom: a group for each query and shape."""

from typing import Any

import numpy as np
import pytest
import scipy.special

from benchmarks.bench_normalizers import prepare
from benchmarks.contenders import BACKENDS, SCORING, peers, token_ids
from benchmarks.shapes import BATCHES, Shape, logits

CASES = [(op, name) for op in SCORING for name in (*BACKENDS, *peers(op))]
SHAPES = [Shape(rows, 128256, peaked=peaked) for rows in BATCHES for peaked in (False, True)]


@pytest.mark.parametrize(("op", "name"), CASES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_time(op: str, name: str, shape: Shape, benchmark: Any) -> None:
    who, call = prepare(op, name, shape)
    benchmark.group = f"{op} {shape}"
    benchmark.extra_info["entries"] = shape.size
    with who.context():
        benchmark(call)


@pytest.mark.parametrize(("op", "name"), CASES)
@pytest.mark.parametrize("shape", [Shape(8, 1000), Shape(8, 1000, peaked=True)], ids=str)
def test_contenders_agree(op: str, name: str, shape: Shape) -> None:
    """What is compared is the same work."""
    who, call = prepare(op, name, shape)
    if who.temperature is None:
        pytest.skip(f"{name} is other work")
    x = logits(shape)
    with who.context():
        result = np.asarray(call())
    logprobs = scipy.special.log_softmax(x.astype(np.float64) / who.temperature, axis=-1)
    chosen = logprobs[np.arange(shape.rows), token_ids(x)]
    expected = {
        "cross_entropy": -chosen.mean(),
        "token_logprobs": chosen,
        "topk_logprobs k=20": -np.sort(-logprobs)[:, :20],
        "entropy": scipy.special.entr(np.exp(logprobs)).sum(axis=-1),
        "kl_divergence": scipy.special.rel_entr(
            np.exp(logprobs), scipy.special.softmax(x.astype(np.float64), axis=-1)
        ).sum(axis=-1),
    }[op]
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)

"""SoftmaxState: any cut of the vocabulary gives the numbers of the whole rows."""

from __future__ import annotations

import itertools
import pickle
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from oracle import arithmetic_of, assert_close, distance, reference
from scoring_oracle import allowed_error, has_distribution, logprobs, masked_logits, order, pack
from support import generator, same_bits
from test_scoring import layouts, special_rows, uses_the_reference

import fastsoftmax
from fastsoftmax import SoftmaxState

INF, NAN = np.inf, np.nan
DTYPES = ("float16", "bfloat16", "float32", "float64")
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES)

pytestmark = pytest.mark.usefixtures("backend")


def make(shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    x = generator("state", shape, dtype).normal(size=shape) * 4
    return x.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def cuts(n: int, name: str) -> list[tuple[int, int]]:
    """Pieces of the vocabulary, in some order."""
    rng = generator("cuts", n, name)
    if name == "whole":
        edges = [0, n]
    elif name == "ones":
        edges = list(range(min(n, 40) + 1)) + ([n] if n > 40 else [])
    elif name == "blocks":
        edges = [*range(0, n, 2048), n]
    else:
        edges = sorted({0, n, *rng.integers(0, n + 1, size=5).tolist()})
    pieces = list(itertools.pairwise(edges))
    if name == "shuffled":
        rng.shuffle(pieces)
        pieces = [tuple(p) for p in pieces]
    return pieces


CUTS = ("whole", "ones", "blocks", "random", "shuffled")


def fed(
    x: np.ndarray, pieces: list[tuple[int, int]], where: np.ndarray | None = None, **kwargs: object
) -> SoftmaxState:
    """A state of every second piece, merged into one of the others."""
    states = [SoftmaxState(**kwargs), SoftmaxState(**kwargs)]
    for i, (a, b) in enumerate(pieces):
        mask = None if where is None else where[..., a:b]
        states[i % 2].update(x[..., a:b], start=a, where=mask)
    states[0].merge(states[1])
    return states[0]


def check(x: np.ndarray, cut: str, temperature: object = 1.0, where=None, k: int = 7) -> None:
    """All results of 2-D logits against the oracle."""
    n = x.shape[1]
    ids = generator("state ids", n).integers(0, n, size=(len(x), 4))
    state = fed(x, cuts(n, cut), where, temperature=temperature, k=k, token_ids=ids)
    narrow = arithmetic_of(x.dtype)
    want = logprobs(x, temperature, where)
    allowed = allowed_error(want, x.dtype)
    got = state.token_logprobs()
    assert got.dtype == narrow
    error = distance(got, np.take_along_axis(want.value, ids, 1), narrow)
    assert (error <= np.take_along_axis(allowed, ids, 1)).all()
    top = state.topk_logprobs()
    for i, values in enumerate(masked_logits(x, where)):
        best = order(values)[:k] if has_distribution(values) else []
        assert_array_equal(top.ids[i], best + [-1] * (k - len(best)))
        error = distance(top.logprobs[i, : len(best)], want.value[i, best], narrow)
        assert (error <= allowed[i, best]).all()
        assert np.isnan(top.logprobs[i, len(best) :]).all()
    if np.all(np.asarray(temperature) > 0):
        total = state.logsumexp()
        assert_close("logsumexp", total, x.astype(narrow), temperature=temperature, where=where)
    for log in (False, True):
        name = "log_softmax" if log else "softmax"
        pieces = [
            state.normalize(x[:, a:b], log=log, where=None if where is None else where[:, a:b])
            for a, b in cuts(n, "random")
        ]
        whole = np.concatenate(pieces, axis=1)
        assert_close(name, whole, x, temperature=temperature, where=where)


@EACH_DTYPE
@pytest.mark.parametrize("cut", CUTS)
def test_any_cut(dtype: str, cut: str) -> None:
    for n in (1, 2, 9, 40, 1000, 5000):
        x = make((4, n), dtype)
        check(x, cut)
        check(x, cut, temperature=np.array([0.5, 3.0, INF, 1e-3]))
        check(x, cut, temperature=np.array([0.0, 1.0, 1e-320 if dtype == "float64" else 1e-50, 1]))


@EACH_DTYPE
@pytest.mark.parametrize("cut", CUTS)
def test_special_rows_and_masks(dtype: str, cut: str) -> None:
    for n in (6, 300):
        x = special_rows(dtype, n)
        check(x, cut)
        where = generator("state mask", n).random(x.shape) < 0.6
        where[7] = False
        for temperature in (1.0, 0.0, INF):
            check(x, cut, temperature, where=where)


def test_ties_and_worst_orders() -> None:
    for n in (5, 64, 3000):
        x = np.stack([np.zeros(n), np.arange(n), -np.arange(n), np.arange(n) % 3]).astype("f4")
        for cut in CUTS:
            check(x, cut, k=min(n, 20))


def test_real_logits(logits: np.ndarray) -> None:
    for cut in ("blocks", "shuffled"):
        check(logits[:4], cut, temperature=0.7, k=20)


def test_a_near_certain_token_keeps_its_relative_precision() -> None:
    x = np.array([[-27.6, 0.0, -30.0]])
    for cut in ("whole", "ones"):
        state = fed(x, cuts(3, cut), token_ids=[1], k=1)
        want = reference("log_softmax", x).value[0, 1]
        assert_allclose(float(state.token_logprobs()[0]), float(want), rtol=1e-14)
        assert_allclose(float(state.topk_logprobs().logprobs[0, 0]), float(want), rtol=1e-14)
        assert_allclose(float(state.normalize(x, log=True)[0, 1]), float(want), rtol=1e-14)
    x = np.array([[0.0, -40.0]])
    assert fed(x, cuts(2, "ones")).logsumexp()[0] == 4.248354255291589e-18


def test_large_logits() -> None:
    x = np.array([[1e308, 1e308, -1e308, 0.0]])
    state = fed(x, cuts(4, "ones"), k=2, token_ids=[[0, 2]], temperature=1e10)
    assert_allclose(state.topk_logprobs().logprobs, np.log(0.5), rtol=1e-14)
    assert_allclose(state.token_logprobs(), [[np.log(0.5), -2e298]], rtol=1e-14)
    x = make((3, 2000)) + np.float32(1e6)
    check(x, "random")


def test_packed_masks() -> None:
    x = make((3, 100))
    where = generator("packed state").random((3, 100)) < 0.5
    state = SoftmaxState(k=5, token_ids=[3, 50, 99])
    for a, b in ((0, 33), (33, 100)):
        state.update(x[:, a:b], token_bitmask=pack(where[:, a:b]))
    want = fed(x, [(0, 33), (33, 100)], where, k=5, token_ids=[3, 50, 99])
    assert same_bits(state.logsumexp(), want.logsumexp())
    assert same_bits(state.token_logprobs(), want.token_logprobs())
    assert_array_equal(state.topk_logprobs().ids, want.topk_logprobs().ids)
    got = state.normalize(x, token_bitmask=pack(where))
    assert same_bits(got, state.normalize(x, where=where))


def test_shapes() -> None:
    x = make((2, 3, 50))
    state = SoftmaxState(temperature=[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], k=4, token_ids=7)
    assert state.shape is None
    state.update(x[..., :20])
    state.update(x[..., 20:])  # goes on where the last one ended
    assert state.shape == (2, 3)
    assert state.logsumexp().shape == (2, 3)
    assert state.topk_logprobs().ids.shape == (2, 3, 4)
    assert state.token_logprobs().shape == (2, 3)
    assert state.normalize(x).shape == (2, 3, 50)
    t = np.arange(1.0, 7.0).reshape(2, 3)
    want = fastsoftmax.token_logprobs(x, 7, temperature=t, top_n=4)
    assert_allclose(state.token_logprobs(), want.logprobs, rtol=1e-6)
    assert_array_equal(state.topk_logprobs().ids, want.top_ids)
    one = SoftmaxState(k=2, token_ids=[1, 2])
    one.update(x[0, 0])
    assert isinstance(one.logsumexp(), np.float32)
    assert one.topk_logprobs().ids.shape == one.token_logprobs().shape == (2,)
    assert_allclose(one.normalize(x[0, 0]).sum(), 1, rtol=1e-6)
    none = SoftmaxState(k=2)
    none.update(np.empty((0, 5)))
    assert none.topk_logprobs().ids.shape == (0, 2)
    assert none.normalize(np.empty((0, 5))).shape == (0, 5)
    void = SoftmaxState(k=1)
    void.update(np.empty((3, 0)))
    assert_array_equal(void.logsumexp(), [-INF] * 3)
    assert_array_equal(void.topk_logprobs().ids, [[-1]] * 3)


@EACH_DTYPE
def test_layouts_dtypes_and_out(dtype: str) -> None:
    x = make((5, 700), dtype)
    want = fed(x, cuts(700, "random"), k=3)
    p = want.normalize(x)
    assert p.dtype == x.dtype
    for y in layouts(x).values():
        state = fed(y, cuts(700, "random"), k=3)
        assert same_bits(state.logsumexp(), want.logsumexp())
        assert same_bits(state.normalize(y), p)
    for kind in ("f2", "f4", "f8", ">f4", ml_dtypes.bfloat16):
        out = np.empty(x.shape, kind)
        assert want.normalize(x, out) is out
        assert_allclose(out.astype("f8"), p.astype("f8"), rtol=1e-2, atol=1e-7)
    spread = np.zeros((5, 1400), x.dtype)
    want.normalize(x, spread[:, ::2])
    assert same_bits(spread[:, ::2].copy(), p)
    assert not spread[:, 1::2].any()
    y = x.copy()
    want.normalize(y, out=y)
    assert same_bits(y, p)
    wide = np.zeros((5, 701), x.dtype)
    wide[:, 1:] = x
    want.normalize(wide[:, 1:], out=wide[:, :-1])  # overlaps, shifted
    assert same_bits(wide[:, :-1].copy(), p)
    turned = x.copy()
    want.normalize(turned, out=turned[:, ::-1])
    assert same_bits(turned[:, ::-1].copy(), p)


def test_out_may_overlap_the_masks() -> None:
    x = make((3, 5))
    mask = generator("overlap").random((3, 5)) < 0.6
    want = fed(x, [(0, 5)], mask).normalize(x, where=mask)
    memory = np.zeros(60, "u1")
    out, where = memory.view("f4").reshape(3, 5), memory[:15].view(bool).reshape(3, 5)
    bits = memory[:12].view("i4").reshape(3, 1)
    for name, place, given in (("where", where, mask), ("token_bitmask", bits, pack(mask))):
        place[...] = given
        state = SoftmaxState()
        state.update(x, **{name: place})
        assert state.normalize(x, out, **{name: place}) is out
        assert same_bits(out, want)


def test_token_ids_are_copied() -> None:
    x, ids = make((2, 10)), np.array([3, 7])
    state = SoftmaxState(token_ids=ids)
    state.update(x[:, :5])
    ids[:] = 0
    state.update(x[:, 5:])
    want = fed(x, [(0, 5), (5, 10)], token_ids=[3, 7])
    assert_allclose(state.token_logprobs(), want.token_logprobs(), rtol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "temperature"), [("float32", 1e-39), ("float64", 1e-310), ("float64", 1e-320)]
)
def test_logsumexp_at_a_temperature_that_counts_as_zero(dtype: str, temperature: float) -> None:
    """It is max/T, however many maxima there are."""
    x = np.array([[0, 0, 0, -1], [temperature] * 4], dtype)
    got = fed(x, cuts(4, "ones"), temperature=temperature).logsumexp()
    assert_array_equal(got, (x[:, 0].astype("f8") / temperature).astype(dtype))


def test_tensors_of_torch() -> None:
    torch = pytest.importorskip("torch")
    x = make((3, 40))
    want = fed(x, [(0, 40)], k=2, token_ids=[1, 2, 3])
    for dtype in (torch.float32, torch.bfloat16):
        y = torch.tensor(x).to(dtype)
        state = SoftmaxState(k=2, token_ids=torch.tensor([1, 2, 3]), temperature=torch.tensor(1.0))
        state.update(y[:, :9])
        state.update(y[:, 9:])
        merged = SoftmaxState(k=2, token_ids=torch.tensor([1, 2, 3]), temperature=torch.tensor(1.0))
        merged.merge(pickle.loads(pickle.dumps(state)))
        for each in (state, merged):
            ids, logprobs = each.topk_logprobs()
            assert ids.dtype == torch.int64
            for result in (logprobs, each.logsumexp(), each.token_logprobs()):
                assert isinstance(result, torch.Tensor)
                assert result.dtype == torch.float32
        if dtype == torch.float32:
            assert same_bits(state.logsumexp().numpy(), want.logsumexp())
            assert_array_equal(state.topk_logprobs().ids.numpy(), want.topk_logprobs().ids)
        p = state.normalize(y)
        assert isinstance(p, torch.Tensor)
        assert p.dtype == dtype
        out = torch.empty((3, 40))
        assert state.normalize(y, out) is out
        assert_allclose(out.sum(1), 1, rtol=1e-6)
    assert want.normalize(x).dtype == np.float32


def test_integers() -> None:
    x = generator("integer state").integers(-5, 5, size=(400, 700))
    state = fed(x, cuts(700, "random"), k=3)
    want = fed(x.astype("f8"), cuts(700, "random"), k=3)
    assert state.logsumexp().dtype == np.float64
    assert same_bits(state.logsumexp(), want.logsumexp())
    assert same_bits(state.normalize(x), want.normalize(x.astype("f8")))


def test_a_wider_chunk_makes_the_result_wider() -> None:
    state = SoftmaxState()
    state.update(make((2, 5)))
    assert state.logsumexp().dtype == np.float32
    state.update(make((2, 5), "float64"))
    assert state.logsumexp().dtype == np.float64


def test_merging_copies_and_pickling() -> None:
    x = make((3, 90))
    parts = []
    for a in range(0, 90, 30):
        part = SoftmaxState(k=4, token_ids=[[5, 40], [31, 89], [0, 0]])
        part.update(x[:, a : a + 30], start=a)
        parts.append(pickle.loads(pickle.dumps(part)))
    want = fed(x, [(0, 90)], k=4, token_ids=[[5, 40], [31, 89], [0, 0]])
    for order_ in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        total = SoftmaxState(k=4, token_ids=[[5, 40], [31, 89], [0, 0]])
        for i in order_:
            total.merge(parts[i])
        total.merge(SoftmaxState(k=4, token_ids=[[5, 40], [31, 89], [0, 0]]))  # of nothing
        assert_allclose(total.logsumexp(), want.logsumexp(), rtol=1e-6)
        assert_array_equal(total.topk_logprobs().ids, want.topk_logprobs().ids)
        assert_allclose(total.token_logprobs(), want.token_logprobs(), rtol=1e-6)
    # What was merged has not changed.
    assert_allclose(parts[0].logsumexp(), fastsoftmax.logsumexp(x[:, :30]), rtol=1e-6)


def test_errors() -> None:
    x = make((2, 10))
    state = SoftmaxState(k=2, token_ids=[12, 3])
    for call in (state.logsumexp, state.topk_logprobs, state.token_logprobs):
        with pytest.raises(ValueError, match="has not been fed yet"):
            call()
    with pytest.raises(ValueError, match="has not been fed yet"):
        state.normalize(x)
    state.update(x)
    before = state.logsumexp()
    with pytest.raises(ValueError, match=r"chunk has rows of shape \(3,\); it must be \(2,\)"):
        state.update(make((3, 10)))
    with pytest.raises(ValueError, match=r"chunk has rows of shape \(2, 1\)"):
        state.normalize(x[:, None])
    with pytest.raises(TypeError, match="chunk has dtype complex128"):
        state.update(x.astype(complex))
    with pytest.raises(ValueError, match=r"where has shape \(3,\).* that of chunk, \(2, 10\)"):
        state.update(x, where=np.ones(3, bool))
    with pytest.raises(ValueError, match="start is -1; it must not be negative"):
        state.update(x, start=-1)
    with pytest.raises(ValueError, match="token 12 has not been fed yet"):
        state.token_logprobs()
    assert same_bits(state.logsumexp(), before)
    with pytest.raises(ValueError, match="token_ids is None"):
        fed(x, [(0, 10)]).token_logprobs()
    for other, message in (
        (SoftmaxState(k=3, token_ids=[12, 3]), "other has k = 3; it must be 2"),
        (SoftmaxState(k=2, token_ids=[12, 4]), "other has another token_ids"),
        (SoftmaxState(k=2), "other has another token_ids"),
        (SoftmaxState(k=2, token_ids=[12, 3], temperature=2), "other has another temperature"),
        (fed(make((3, 10)), [(0, 10)], k=2), r"other has rows of shape \(3,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            state.merge(other)
    with pytest.raises(TypeError, match="other is a int; it must be a SoftmaxState"):
        state.merge(1)
    with pytest.raises(ValueError, match=r"out has shape \(2, 9\)"):
        state.normalize(x, np.empty((2, 9)))
    with pytest.raises(TypeError, match="out has dtype int64"):
        state.normalize(x, np.empty((2, 10), int))
    with pytest.raises(ValueError, match="out is read-only"):
        state.normalize(x, np.broadcast_to(np.float32(0), (2, 10)))
    with pytest.raises(ValueError, match="temperature is -1"):
        SoftmaxState(temperature=-1)
    with pytest.raises(ValueError, match=r"temperature has shape \(3,\)"):
        SoftmaxState(temperature=[1, 2, 3]).update(x)
    with pytest.raises(ValueError, match=r"temperature is 0\.0"):
        fed(x, [(0, 10)], temperature=0).logsumexp()
    with pytest.raises(ValueError, match="k is -1; it must not be negative"):
        SoftmaxState(k=-1)
    with pytest.raises(TypeError, match=r"k is 1\.5; it must be an integer"):
        SoftmaxState(k=1.5)
    with pytest.raises(IndexError, match=r"token_ids\[1\] is -3"):
        SoftmaxState(token_ids=[1, -3])
    with pytest.raises(ValueError, match=r"token_ids has shape \(3,\)"):
        SoftmaxState(token_ids=[1, 2, 3]).update(x)


@pytest.mark.usefixtures("one_thread")
def test_memory() -> None:
    rows, n = 80, 32000
    x = np.broadcast_to(make((n,)), (rows, n))
    allowed = (1 << 20) + (12 * 16 * n if uses_the_reference() else 0)
    out = np.empty((rows, n), "f4")
    SoftmaxState(k=20, token_ids=3).update(x[:2, :8000])  # load what there is
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        state = SoftmaxState(k=20, token_ids=3)
        for a in range(0, n, 8000):
            state.update(x[:, a : a + 8000])
        state.normalize(x, out)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most - before < allowed

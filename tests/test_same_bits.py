"""A row's result is the same to the last bit wherever the row stands and whatever computes it.

For each implementation: 100,000 rows of many lengths, dtypes, temperatures and masks, in every
layout, position in a batch and number of threads. Between the instruction sets of the C backend:
the same rows, and a hash that is written down here, so that every build has to come to it. The
numbers come from a counter and integer arithmetic: they depend on no random generator and no
rounding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from oracle import OPS
from support import IMPLEMENTATIONS, as_dtype, available, same_bits, using

import fastsoftmax
from fastsoftmax import _threads

INF = np.inf
NAN = np.nan


# ---- numbers from a counter


def integers(stream: int, count: int) -> np.ndarray:
    """64 random bits for each of 0, 1, 2, ...: SplitMix64 (Steele, Lea and Flood 2014)."""
    z = np.arange(count, dtype=np.uint64) + np.uint64((stream << 36) + 1)
    z *= np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def test_the_counter_is_splitmix64() -> None:
    """The published sequence from the seed 0."""
    assert integers(0, 3).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def logits(stream: int, rows: int, cols: int, dtype: str) -> np.ndarray:
    """About normal, with a standard deviation near 5 and all bits of a float32 or float64 in use.

    Every step but the last rounding to 16 bits is exact. Each hundredth row or so holds a NaN,
    +infinity or -infinity, or is -infinity throughout.
    """
    z = integers(stream, rows * cols)
    x = np.zeros(z.shape, np.int64)
    for shift in (0, 16, 32, 48):
        x += ((z >> np.uint64(shift)) & np.uint64(0xFFFF)).astype(np.int64)
    x = ((x - 0x20000) << 5) + (z & np.uint64(31)).astype(np.int64)
    values = x.astype(np.float64) * 2.0**-18
    if dtype == "float64":
        values += (integers(stream + 1, rows * cols) >> np.uint64(44)).astype(np.float64) * 2.0**-38
    values = values.reshape(rows, cols)
    for row, bits in enumerate(integers(stream + 2, rows).tolist()):
        if bits % 128 == 1:
            values[row, bits // 128 % cols] = (NAN, INF, -INF)[bits // 2**40 % 3]
        elif bits % 512 == 2:
            values[row] = -INF
    return values.astype(np.float32 if dtype != "float64" else dtype).astype(as_dtype(dtype))


def temperatures(stream: int, rows: int) -> np.ndarray:
    choice = np.array([0.7, 1.0, 0.05, 3.0, 1e-300, 1e30, INF, 0.7])
    return choice[(integers(stream, rows) % np.uint64(len(choice))).astype(int)]


def mask(stream: int, rows: int, cols: int) -> np.ndarray:
    """Three of four entries; some rows have none."""
    where = (integers(stream, rows * cols) & np.uint64(3)).reshape(rows, cols) > 0
    where[(integers(stream + 1, rows) % np.uint64(64)) == 0] = False
    return where


# ---- groups of rows of one length


@dataclass(frozen=True)
class Group:
    rows: int
    cols: int
    dtype: str
    each: bool  # a temperature for each row
    masked: bool

    def arguments(self) -> tuple[np.ndarray, np.ndarray | float, np.ndarray | None]:
        stream = 16 * (self.cols + 200_000 * ("float32 float64 float16 bfloat16".index(self.dtype)))
        return (
            logits(stream, self.rows, self.cols, self.dtype),
            temperatures(stream + 3, self.rows) if self.each else 0.7,
            mask(stream + 4, self.rows, self.cols) if self.masked else None,
        )


DTYPES = ("float32", "float64", "float16", "bfloat16")


def _groups() -> Iterator[Group]:
    """Mostly short rows; 100,000 in all."""
    lengths = [*range(1, 36), 48, 63, 64, 65, 100, 127, 128, 129, 130]
    for i, cols in enumerate(lengths):
        for j, dtype in enumerate(DTYPES):
            rows = 1100 if dtype == "float32" else 360
            yield Group(
                rows + (i * 7 + j) % 5, cols, dtype, (i + j) % 2 == 1, (i // 2 + j) % 3 == 2
            )
    for i, cols in enumerate([191, 255, 256, 257, 500, 1000, 1023, 2047, 2048, 2049, 3000, 5000]):
        for j, dtype in enumerate(DTYPES):
            yield Group(250 if cols < 1000 else 30, cols, dtype, (i + j) % 2 == 0, (i + j) % 3 == 2)
    for j, dtype in enumerate(DTYPES):
        yield Group(5, 8193 + j, dtype, j % 2 == 0, j == 2)
    yield Group(2, 98_305, "float64", False, False)
    yield Group(2, 196_609, "float32", False, False)
    yield Group(1, 140_001, "float32", False, True)
    yield Group(1, 135_000, "bfloat16", True, False)


GROUPS = tuple(_groups())


def test_how_many_rows() -> None:
    assert sum(group.rows for group in GROUPS) >= 100_000
    assert sum(group.rows for group in GROUPS if group.cols > 8192) >= 20
    assert sum(group.rows for group in GROUPS if group.cols > 131_072) >= 4


def call(op: str, x, axis, temperature, where, **kwargs) -> np.ndarray:
    return getattr(fastsoftmax, op)(x, axis, temperature=temperature, where=where, **kwargs)


# ---- the same row elsewhere


def in_memory(a: np.ndarray, order: str) -> np.ndarray:
    """The same array with its entries elsewhere in memory."""
    rows, cols = a.shape
    if order == "every second":
        base = np.zeros((rows, 2 * cols), a.dtype)
        view = base[:, ::2]
    elif order == "backwards":
        view = np.zeros_like(a)[::-1, ::-1]
    elif order == "one entry further":
        view = np.zeros(a.size + 1, a.dtype)[1:].reshape(a.shape)
    elif order == "one byte further":
        view = np.zeros(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    elif order == "byte-swapped":
        view = np.zeros(a.shape, a.dtype.newbyteorder())
    elif order == "rows apart":
        view = np.zeros((rows, cols + 3), a.dtype)[:, 1 : cols + 1]
    else:
        assert order == "columns"
        view = np.zeros((cols, rows), a.dtype).T
    view[...] = a
    return view


ORDERS = ("every second", "backwards", "one entry further", "one byte further", "rows apart")


def places(
    op: str, x: np.ndarray, t: np.ndarray | float, where: np.ndarray | None
) -> Iterator[tuple[str, np.ndarray, slice | np.ndarray]]:
    """Results of the rows of x computed elsewhere, and which rows they are."""
    rows, cols = x.shape
    everything = slice(None)
    reduces = op == "logsumexp"

    for order in ORDERS:
        yield order, call(op, in_memory(x, order), -1, t, where), everything
    if x.dtype.name != "bfloat16":  # which has no byte order of its own
        yield "byte-swapped", call(op, in_memory(x, "byte-swapped"), -1, t, where), everything
    if where is not None:
        yield "a mask elsewhere", call(op, x, -1, t, in_memory(where, "columns")), everything

    # The other axis, and an axis in the middle.
    across = None if where is None else np.ascontiguousarray(where.T)
    got = call(op, np.ascontiguousarray(x.T), 0, t, across)
    yield "axis 0", got if reduces else got.T, everything
    if rows >= 6:
        some = rows // 3 * 3
        cube = np.ascontiguousarray(x[:some].reshape(3, -1, cols).transpose(0, 2, 1))
        cube_t = t if np.ndim(t) == 0 else t[:some].reshape(3, -1)
        cube_where = None if where is None else where[:some].reshape(3, -1, cols).transpose(0, 2, 1)
        got = call(op, cube, 1, cube_t, cube_where)
        got = got.reshape(some) if reduces else got.transpose(0, 2, 1).reshape(some, cols)
        yield "the middle axis", got, slice(some)

    # Other rows around, and none.
    shuffled = np.argsort(integers(5, rows), kind="stable")
    t_of = (lambda i: t) if np.ndim(t) == 0 else (lambda i: t[i])
    where_of = (lambda i: None) if where is None else (lambda i: where[i])
    got = call(op, x[shuffled], -1, t_of(shuffled), where_of(shuffled))
    yield "other rows around", got, shuffled
    few = slice(rows // 3, rows // 3 + 5)
    yield "a few rows", call(op, x[few], -1, t_of(few), where_of(few)), few
    for i in {0, rows // 2, rows - 1}:
        got = call(op, x[i], -1, t_of(i), where_of(i))
        yield "alone", np.asarray(got)[None], slice(i, i + 1)
        wide = np.broadcast_to(x[i], (3, cols))
        got = call(op, wide, -1, t_of(i), where_of(i))
        yield "broadcast", got[1:2], slice(i, i + 1)

    # The result elsewhere.
    shape = x.shape[:1] if reduces else x.shape
    out = np.zeros((*shape, 2), x.dtype)[..., 1]
    yield "out= with gaps", call(op, x, -1, t, where, out=out), everything
    if not reduces:
        yield "out= in columns", call(op, x, -1, t, where, out=np.empty_like(x.T).T), everything
        y = x.copy()
        yield "in place", call(op, y, -1, t, where, out=y), everything


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every call works in threads, and long rows are shared by them."""
    before = fastsoftmax.get_num_threads()
    monkeypatch.setattr(_threads, "SERIAL_BELOW", 1)
    monkeypatch.setattr(_threads, "ALONE_BELOW", 1)
    monkeypatch.setattr(_threads, "SPLIT_FROM", 3000)
    monkeypatch.setattr(_threads, "_GRAIN", 1)
    yield
    fastsoftmax.set_num_threads(before)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_hundred_thousand_rows(backend: str, eager: None, op: str, dtype: str) -> None:
    as_dtype(dtype)
    for group in (g for g in GROUPS if g.dtype == dtype):
        if backend == "numpy":  # slow, and built without lanes, blocks or tiles
            group = replace(group, rows=-(-group.rows // 10))
        x, t, where = group.arguments()
        fastsoftmax.set_num_threads(1)
        want = call(op, x, -1, t, where)
        for place, got, rows in places(op, x, t, where):
            assert same_bits(got, want[rows]), (place, group)
        for threads in (2, 3, 4):
            fastsoftmax.set_num_threads(threads)
            assert same_bits(call(op, x, -1, t, where), want), (threads, group)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_instruction_set(op: str, dtype: str) -> None:
    isas = [i for i in available() if i.startswith("c-")]
    if len(isas) < 2:
        pytest.skip("needs the C backend and two instruction sets")
    as_dtype(dtype)
    for group in (g for g in GROUPS if g.dtype == dtype):
        x, t, where = group.arguments()
        with using(isas[0]):
            want = call(op, x, -1, t, where)
        for isa in isas[1:]:
            with using(isa):
                assert same_bits(call(op, x, -1, t, where), want), (isas[0], isa, group)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("x_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_asked_for(backend: str, op: str, x_dtype: str, dtype: str) -> None:
    """A narrower result is the wider one, rounded; the layouts agree for every pair of dtypes."""
    given, asked = as_dtype(x_dtype), as_dtype(dtype)
    for cols in (3, 10, 40, 300, 2500):
        x = logits(77, 9, cols, x_dtype)
        want = call(op, x, -1, 0.7, None, dtype=asked)
        assert want.dtype == asked
        for order in ("columns", "every second", "one byte further"):
            got = call(op, in_memory(x, order), -1, 0.7, None, dtype=asked)
            assert same_bits(got, want), (order, cols)
        if given.itemsize == 2 and x_dtype != dtype != "float64":
            assert same_bits(call(op, x.astype("f4"), -1, 0.7, None, dtype=asked), want), cols


# ---- what every build has to come to

HASHES = {
    "softmax": "15e656fd30ac6c38f4562fb9536bc87c7c12df730e6c1490dcc8620adff46b16",
    "log_softmax": "a304d48c9b94d1c5b27ec473d3322eb7174bb452ab4c037c9ea41c96ee798652",
    "logsumexp": "083c8ff435f8c45afb978d4fc2af0d51ecf3aed4594796d8736ffc30ee56d7e4",
}


EACH_KERNEL = pytest.mark.parametrize(
    "backend", [name for name in IMPLEMENTATIONS if name != "numpy"], indirect=True
)


@EACH_KERNEL
@pytest.mark.parametrize("op", ["softmax", "log_softmax"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cols", [130, 1000, 2048, 2050, 4097, 31_999, 200_001])
def test_results_around_the_caches(backend: str, op: str, dtype: str, cols: int) -> None:
    """Those of large batches, of which rows are written while others are read."""
    kind = as_dtype(dtype)
    rows = (4 << 20) // (cols * kind.itemsize) + 3
    x = logits(900, rows, cols, dtype)
    t = temperatures(901, rows)
    expected = np.concatenate([call(op, x[i : i + 1], -1, heat, None) for i, heat in enumerate(t)])
    for gap, offset in ((0, 0), (0, 1), (1, 15), (3, 2)):
        # Between the rows, and of the first one.
        memory = np.full(rows * (cols + gap) + 16, 7, kind)
        out = memory[offset : offset + rows * (cols + gap)].reshape(rows, cols + gap)
        call(op, x, -1, t[:, None], None, out=out[:, :cols])
        assert same_bits(out[:, :cols], expected)
        between = [memory[:offset], memory[offset + out.size :], out[:, cols:].ravel()]
        assert (np.concatenate(between) == 7).all()


#: A logit of which the difference to another may overflow, or nearly does.
HUGE = {"float32": 1.2e38, "float64": 6e307, "float16": 6e4, "bfloat16": 1.2e38}


def awkward_logits(
    stream: int, rows: int, cols: int, dtype: str, special: int, empty: int, huge: slice
) -> np.ndarray:
    """Logits with more special rows: of each kind, and with one large entry, every `special`-th;
    those without a finite entry every `empty`-th; with a huge entry those of `huge`."""
    x = logits(stream, rows, cols, dtype)
    for i, entry in enumerate((NAN, INF, -INF, 40.0)):
        x[i + 3 :: special, (5 * i) % cols] = entry
    x[2::empty] = -INF
    x[huge, 0] = HUGE[dtype]
    return x


@EACH_KERNEL
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("dtype", "cols"),
    [(d, n) for d in DTYPES[:2] for n in (2, 3, 8, 10, 20, 33, 64, 127, 128, 129, 200, 1000, 2048)]
    + [(d, n) for d in DTYPES[2:] for n in (20, 33, 128, 129, 1000, 2048)],
)
def test_rows_in_flight(backend: str, op: str, dtype: str, cols: int) -> None:
    """Those of rows at one temperature, of which several are treated at a time, few and as many as
    go around the caches. Special rows, rows with one large entry, and rows of which differences of
    logits may overflow, are among them."""
    kind = as_dtype(dtype)
    many = (4 << 20) // (cols * kind.itemsize) + 3
    if backend == "c-scalar" and (cols <= 32 or dtype != "float32"):
        many = 301  # a hundred times as slow, and with the same ways to go
    for rows in (1, 2, 17, 41, 300, many):
        x = awkward_logits(902, rows, cols, dtype, 11, 13, slice(37, None, 140))
        # With a temperature for each they are treated one by one, or, the shortest, side by side.
        expected = call(op, x, -1, np.full(rows, 0.7), None)
        if rows < many:
            alone = [call(op, row[None], -1, 0.7, None) for row in x]
            assert same_bits(np.concatenate(alone), expected)
        for gap, offset in ((0, 0), (0, 4), (1, 15), (5, 2)):
            width = 1 if op == "logsumexp" else cols
            memory = np.full(rows * (width + gap) + 16, 7, kind)
            space = memory[offset : offset + rows * (width + gap)].reshape(rows, width + gap)
            out = space[:, 0] if op == "logsumexp" else space[:, :cols]
            call(op, x, -1, 0.7, None, out=out)
            assert same_bits(out, expected)
            between = [memory[:offset], memory[offset + space.size :], space[:, width:].ravel()]
            assert (np.concatenate(between) == 7).all()
            if op != "logsumexp":
                out[...] = x
                call(op, out, -1, 0.7, None, out=out)
                assert same_bits(out, expected)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [3, 16, 17, 40, 130, 180, 1000, 2048, 2049, 5000, 9000])
def test_tiles_in_flight(op: str, dtype: str, n: int) -> None:
    """Rows side by side in memory, which the C library treats in tiles, three at a time: as many as
    go around the caches, and few; with gaps, at places of a line that are not its beginning, and on
    a middle axis. Special rows and such as no tile takes are among them."""
    kind = as_dtype(dtype)
    for rows in (5, 200, (4 << 20) // (n * kind.itemsize) // 3 * 3 + 3):
        x = awkward_logits(903, rows, n, dtype, 151, 213, slice(1, None, 171))
        temperature = np.full(rows, 0.7)
        temperature[4::190] = 1e39
        for implementation in (name for name in available() if name.startswith("c")):
            if implementation == "c-scalar" and x.size > 200 * 2049:
                continue  # a hundred times as slow, and with the same tiles
            with using(implementation):
                expected = call(op, x, -1, temperature, None)
                for gap, offset in ((0, 0), (5, 3), (64, 32)):
                    memory = np.full(n * (rows + gap) + offset, 7, kind)
                    side = memory[offset:].reshape(n, rows + gap)[:, :rows]
                    side[...] = x.T
                    assert same_bits(call(op, side, 0, temperature, None).T, expected)
                    if op == "logsumexp":
                        continue
                    call(op, side, 0, temperature, None, out=side)
                    assert same_bits(side.T, expected)
                    side[...] = 7
                    assert (memory == 7).all()
                    call(op, np.ascontiguousarray(x.T), 0, temperature, None, out=side)
                    assert same_bits(side.T, expected)
                if rows % 3 == 0:
                    middle = np.ascontiguousarray(x.reshape(3, -1, n).swapaxes(1, 2))
                    got = call(op, middle, 1, temperature.reshape(3, -1), None)
                    got = got if op == "logsumexp" else got.swapaxes(1, 2)
                    assert same_bits(got.reshape(expected.shape), expected)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("dtype", "n"), [("float32", 200_001), ("float64", 100_001)])
def test_long_rows_side_by_side(op: str, dtype: str, n: int) -> None:
    """Some of their terms are computed again, as those of rows that lie one behind the other."""
    x = logits(906, 37, n, dtype)
    x[3, 5], x[4, -1], x[6, 70_000] = 60.0, 60.0, np.inf
    for implementation in (i for i in available() if i.startswith("c") and i != "c-scalar"):
        with using(implementation):
            expected = call(op, x, -1, 0.7, None)
            assert same_bits(call(op, np.ascontiguousarray(x.T), 0, 0.7, None).T, expected)


@EACH_KERNEL
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [1, 2, 4, 7, 8, 11, 16, 17, 25, 32])
def test_short_rows_side_by_side(backend: str, op: str, dtype: str, n: int) -> None:
    """At one temperature: few and as many as go around the caches, with results at every place of a
    line. Special rows and such as no register of rows takes are among them."""
    kind = as_dtype(dtype)
    many = (4 << 20) // (n * kind.itemsize) // 48 * 48 + 48
    for rows in (7, 16, 45, 300, many if backend != "c-scalar" else 301):
        x = awkward_logits(905, rows, n, dtype, 31, 43, slice(99, None, 1400))
        expected = call(op, x, -1, np.full(rows, 0.7), None)
        for gap, offset in ((16, 13), (5, 3), (0, 0), (64, 32))[: 2 if rows == many else 4]:
            memory = np.full(n * (rows + gap) + offset, 7, kind)
            side = memory[offset:].reshape(n, rows + gap)[:, :rows]
            side[...] = x.T
            assert same_bits(call(op, side, 0, 0.7, None).T, expected)
            if op == "logsumexp":
                continue
            call(op, side, 0, 0.7, None, out=side)
            assert same_bits(side.T, expected)
            call(op, np.ascontiguousarray(x.T), 0, 0.7, None, out=side)
            assert same_bits(side.T, expected)
            side[...] = 7
            assert (memory == 7).all()
        if rows % 3 == 0:
            middle = np.ascontiguousarray(x.reshape(3, -1, n).swapaxes(1, 2))
            got = call(op, middle, 1, np.array([0.7]), None)
            got = got if op == "logsumexp" else got.swapaxes(1, 2)
            assert same_bits(got.reshape(expected.shape), expected)


@pytest.mark.parametrize("op", ["softmax", "log_softmax"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("side", [96, 112, 208, 304])
def test_tiles_that_end_within_a_batch(op: str, dtype: str, side: int) -> None:
    """On a middle axis, rows side by side end with a narrow tile, and those behind them begin with
    a wide one where results begin with a line of the cache."""
    kind, n = as_dtype(dtype), 130
    x = logits(904, -(-(5 << 20) // (n * side * kind.itemsize)) * side, n, dtype)
    middle = np.ascontiguousarray(x.reshape(-1, side, n).swapaxes(1, 2))
    memory = np.empty(middle.size + 16, kind)
    start = -memory.ctypes.data % 64 // kind.itemsize
    out = memory[start : start + middle.size].reshape(middle.shape)
    for implementation in (name for name in available() if name.startswith("c")):
        with using(implementation):
            expected = call(op, x, -1, 0.7, None)
            call(op, middle, 1, 0.7, None, out=out)
            assert same_bits(out.swapaxes(1, 2).reshape(x.shape), expected)


@pytest.mark.parametrize("op", OPS)
def test_stored_hash(backend: str, op: str) -> None:
    """SHA-256 over the bits of all results; NaN counts as one value."""
    if not backend.startswith("c-"):
        pytest.skip("the bits of this backend are those of the libraries it rests on")
    pytest.importorskip("ml_dtypes")
    digest = hashlib.sha256()
    for i, cols in enumerate([*range(1, 140, 3), 255, 1000, 2049, 5000, 140_000, 200_000]):
        for dtype in DTYPES if cols < 6000 else DTYPES[:2]:
            rows = 1 if cols > 6000 else 21
            x = logits(1000 + 8 * i, rows, cols, dtype)
            t = temperatures(1003 + 8 * i, rows)
            for where in (None, mask(1004 + 8 * i, rows, cols)):
                got = call(op, x, -1, t, where)
                got = np.where(np.isnan(got), got.dtype.type(NAN), got).astype(got.dtype)
                digest.update(got.astype(got.dtype.newbyteorder("<"), copy=False).tobytes())
    assert digest.hexdigest() == HASHES[op]

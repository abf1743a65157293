"""Threads: how many, the same bits for any number, and nothing that hangs."""

from __future__ import annotations

import gc
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from oracle import OPS, assert_close
from support import generator, same_bits

import fastsoftmax
from fastsoftmax import _backends, _threads, get_num_threads, set_num_threads
from fastsoftmax._api import _batches, _vocab
from fastsoftmax._ops import OPS as TABLE

EACH_OP = pytest.mark.parametrize("op", OPS)
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    before = get_num_threads()
    yield
    set_num_threads(before)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads are used for small arrays too."""
    monkeypatch.setattr(_threads, "SERIAL_BELOW", 1)
    monkeypatch.setattr(_threads, "SPLIT_FROM", 3000)
    monkeypatch.setattr(_threads, "_GRAIN", 1)
    monkeypatch.setattr(_threads, "_TEAM_GRAIN", 1)
    monkeypatch.setattr(_threads, "_DEBT", 1 << 60)
    monkeypatch.setattr(_threads, "ALONE_BELOW", 1)
    monkeypatch.setattr(_batches, "CHUNK", 500)
    monkeypatch.setattr(_vocab, "CHUNK", 500)


def run(script: str, **env: str) -> subprocess.CompletedProcess[str]:
    settings = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith("FASTSOFTMAX_") and k != "OMP_NUM_THREADS"
    }
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        env={**settings, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def output(script: str, **env: str) -> str:
    done = run(script, **env)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


# ---- the same bits


def swapped(x: np.ndarray) -> np.ndarray:
    return x.astype(x.dtype.newbyteorder("S"))


def calls() -> dict[str, tuple[np.ndarray, dict[str, object]]]:
    rng = generator("threads")

    def normal(*shape: int, dtype: str = "f4") -> np.ndarray:
        return (rng.normal(size=shape) * 4).astype(dtype)

    long = normal(2, 9001)
    long[1, 5000] = np.inf
    return {
        "rows": (normal(301, 37), {}),
        "few rows": (normal(3, 700), {}),
        "small rows": (normal(2000, 3), {}),
        "one long row": (normal(20_001), {}),
        "long rows": (long, {"temperature": np.array([0.5, 2.0])}),
        "a long row of float64": (normal(1, 10_000, dtype="f8"), {"temperature": 0.7}),
        "a long row of float16": (normal(1, 10_000, dtype="f2"), {"temperature": 0.7}),
        "a long row with a step": (normal(2, 20_000)[:, ::-2], {"temperature": 0.7}),
        "a long masked row": (normal(1, 10_000), {"where": np.arange(10_000) % 3 > 0}),
        "a long column": (normal(10_000, 2), {"axis": 0}),
        "columns": (normal(37, 301), {"axis": 0, "temperature": rng.uniform(0.5, 2, 301)}),
        "middle axis": (normal(11, 23, 13), {"axis": 1}),
        "masked": (normal(97, 37), {"where": rng.random((97, 37)) < 0.5}),
        "other result": (normal(97, 37), {"dtype": "f8"}),
        "integers": (normal(97, 37).astype("i4"), {}),
        "long rows of integers": (normal(3, 9001).astype("i4"), {}),
        "byte-swapped": (swapped(normal(7, 11, 37)), {"axis": 1, "where": rng.random(37) < 0.7}),
        "byte-swapped columns": (swapped(normal(700, 3, dtype="f2").T), {"axis": 0}),
    }


@EACH_OP
def test_same_bits_for_any_number(backend: str, op: str, eager: None) -> None:
    call = getattr(fastsoftmax, op)
    for name, (x, kwargs) in calls().items():
        set_num_threads(1)
        want = np.asarray(call(x, **kwargs))
        for threads in (2, 3, 4):
            set_num_threads(threads)
            assert same_bits(np.asarray(call(x, **kwargs)), want), (name, threads)


def scores(x: np.ndarray, out: np.ndarray) -> list[np.ndarray]:
    """What scoring and sampling find, which copy what kernels cannot read."""
    f = fastsoftmax
    ids = np.arange(x.shape[0] * x.shape[1]).reshape(x.shape[:2]) % x.shape[2]
    state = f.SoftmaxState(k=3)
    state.update(x)
    found = (
        f.cross_entropy(x, ids, label_smoothing=0.1, reduction="none"),
        *f.token_logprobs(x, ids, top_n=4),
        *f.moments(x, temperature=np.linspace(0.5, 2, x.shape[1])),
        f.kl_divergence(x, x[::-1], where=out < 0.8),
        *f.temperature_sweep(x, [0.5, 2.0], ids),
        *f.sample(x, seed=1, top_p=0.9, logit_bias={3: 2.0}),
        *f.sample(x, seed=1, num_samples=20, replace=False),
        *f.filtered_logprobs(x, top_k=5),
        state.logsumexp(),
        *state.topk_logprobs(),
        state.normalize(x, out.copy()),
    )
    return [np.asarray(part) for part in found]


def test_same_scores_for_any_number(backend: str, eager: None) -> None:
    """Of logits that are read where they lie, and of those that are copied."""
    rng = generator("scores")
    x, out = (rng.normal(size=(5, 9, 61)) * 4).astype("f4"), rng.random((5, 9, 61))
    set_num_threads(1)
    want = scores(x, out)
    for threads in (1, 3):
        set_num_threads(threads)
        for given, place in ((x, out), (swapped(x), out), (x, swapped(out))):
            for part, (got, expected) in enumerate(zip(scores(given, place), want, strict=True)):
                assert same_bits(got.astype(expected.dtype), expected), (threads, part)


@pytest.mark.parametrize("call", [fastsoftmax.softmax, fastsoftmax.logsumexp, fastsoftmax.entropy])
def test_copies_are_made_in_threads(
    call: Callable[..., Any], eager: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each thread copies for itself: two at the same time."""
    together = threading.Barrier(2)
    names = []

    def met(module: Any, name: str) -> None:
        function = getattr(module, name)

        def wrapped(*arguments: Any) -> Any:
            names.append(threading.current_thread().name)
            if len(names) <= 2:
                together.wait(10)
            return function(*arguments)

        monkeypatch.setattr(module, name, wrapped)

    met(_threads, "run")
    met(_vocab.Logits, "copy")
    set_num_threads(2)
    call(np.ones((60, 100), ">f4"))
    assert len(set(names)) == 2
    assert len(names) == 12  # of 5 rows each


def test_a_row_that_threads_share_is_copied_once(
    eager: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []
    run = _threads.run

    def noted(*arguments: Any) -> None:
        names.append(threading.current_thread().name)
        run(*arguments)

    monkeypatch.setattr(_threads, "run", noted)
    set_num_threads(2)
    fastsoftmax.softmax(np.ones((6, 4000), ">f4"))
    assert names == [threading.current_thread().name] * 6


@pytest.mark.parametrize("op", ["softmax", "log_softmax"])
def test_in_place(backend: str, op: str, eager: None) -> None:
    call = getattr(fastsoftmax, op)
    set_num_threads(3)
    for shape in ((301, 37), (2, 9001)):
        x = generator(shape).normal(size=shape).astype("f4")
        work = x.copy()
        assert call(work, temperature=0.7, out=work) is work
        assert_close(op, work, x, temperature=0.7)


def test_real_sizes(backend: str) -> None:
    """With the sizes that are built in: many rows, and one row that is split."""
    if backend == "numpy":
        pytest.skip("the reference takes long, and treats all sizes alike")
    for shape in ((40, 20_000), (1, 1_200_000)):
        x = generator(shape).normal(size=shape).astype("f4")
        set_num_threads(1)
        want = fastsoftmax.softmax(x, temperature=0.7)
        set_num_threads(2)
        assert same_bits(fastsoftmax.softmax(x, temperature=0.7), want)


class Spy:
    """A backend that notes who calls it."""

    new_team = None
    compiles = True

    def __init__(self, blocks: int = 8) -> None:
        self.seen: list[tuple[int, int, str]] = []
        self.blocks = blocks
        self.together = threading.Barrier(2)

    def run(self, op, batch, out, begin, end) -> None:
        self.seen.append((begin, end, threading.current_thread().name))
        out[begin:end] = begin
        if begin < end and len(self.seen) <= 3:  # after an empty range, where it is shared
            self.together.wait(10)

    def split(self, op, batch, out, row) -> Spy:
        return self

    def reduce(self, begin, end) -> None:
        self.seen.append((begin, end, "reduce"))

    def merge(self) -> None:
        self.seen.append((0, 0, "merge"))

    def write(self, begin, end) -> None:
        self.seen.append((begin, end, "write"))


def batch(rows: int, cols: int) -> _backends._protocol.Batch:
    return _backends._protocol.Batch(np.zeros((rows, cols), "f4"), 1, np.ones(rows))


@pytest.mark.parametrize("rows", [2, 3, 7, 64, 65, 1000, 4097])
def test_every_row_once(rows: int, eager: None) -> None:
    set_num_threads(2)
    spy = Spy()
    _threads.run(spy, TABLE["softmax"], batch(rows, 100), np.empty((rows, 100), "f4"))
    # What is compiled when it is first called is compiled by the caller.
    assert spy.seen.pop(0) == (0, 0, threading.current_thread().name)
    ranges = sorted((begin, end) for begin, end, _ in spy.seen)
    assert [i for begin, end in ranges for i in range(begin, end)] == list(range(rows))
    assert all(begin < end for begin, end in ranges)
    assert len(ranges) > 1
    # Both waited for each other: the caller, and one of the pool.
    names = {name for _, _, name in spy.seen}
    assert threading.current_thread().name in names
    assert any(name.startswith("fastsoftmax") for name in names)


@pytest.mark.parametrize("blocks", [1, 2, 3, 8, 31])
@EACH_OP
def test_every_block_once(blocks: int, op: str, eager: None) -> None:
    set_num_threads(2)
    spy = Spy(blocks)
    _threads.run(spy, TABLE[op], batch(1, 5000), np.empty((1, 5000), "f4"))
    steps = [what for _, _, what in spy.seen]
    cut = steps.index("merge")
    assert set(steps[:cut]) == {"reduce"}
    assert set(steps[cut + 1 :]) == {"write"}
    for part in (spy.seen[:cut], spy.seen[cut + 1 :]):
        covered = [i for begin, end, _ in sorted(part) for i in range(begin, end)]
        assert covered == list(range(blocks))


def test_small_batches_stay_with_the_caller() -> None:
    set_num_threads(4)
    spy = Spy()
    spy.together = threading.Barrier(1)
    _threads.run(spy, TABLE["softmax"], batch(1000, 10), np.empty((1000, 10), "f4"))
    assert spy.seen == [(0, 1000, threading.current_thread().name)]


def test_use_backend_holds_in_the_pool(eager: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool's threads have contexts of their own, in which nothing was chosen."""
    set_num_threads(2)
    spy = Spy()
    monkeypatch.setitem(_backends._loaded, "numpy", spy)
    with _backends.use_backend("numpy"):
        fastsoftmax.softmax(np.zeros((50, 9), "f4"), where=True)
    assert len({name for _, _, name in spy.seen}) == 2


# ---- the pool


def together(pool: _threads._Pool, threads: int) -> set[str]:
    """The names of threads that work on one job at the same time."""
    barrier, names = threading.Barrier(threads), set()

    def work(piece: int) -> None:
        barrier.wait(10)
        names.add(threading.current_thread().name)

    pool.run(work, threads, threads)
    return names


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_so_many_work_at_once(threads: int) -> None:
    assert len(together(_threads._Pool(), threads)) == threads


def test_fewer_threads_than_there_are() -> None:
    pool = _threads._Pool()
    together(pool, 4)
    for threads in (1, 2, 3):
        names = set()

        def work(piece: int, names: set[str] = names) -> None:
            names.add(threading.current_thread().name)
            time.sleep(0.002)

        pool.run(work, 20, threads)
        assert len(names) <= threads


def test_an_error_of_the_pool_reaches_the_caller() -> None:
    pool = _threads._Pool()
    caller = threading.current_thread()
    barrier = threading.Barrier(2)

    def work(piece: int) -> None:
        if piece < 2:
            barrier.wait(10)
        if threading.current_thread() is not caller:
            raise KeyError("from the pool")
        time.sleep(0.01)

    for _ in range(3):
        with pytest.raises(KeyError, match="from the pool"):
            pool.run(work, 50, 2)
    assert len(together(pool, 2)) == 2


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_an_error_of_the_caller_leaves_nothing_running(error: type[BaseException]) -> None:
    pool = _threads._Pool()
    caller = threading.current_thread()
    barrier = threading.Barrier(2)
    running, after = 0, []

    def work(piece: int) -> None:
        nonlocal running
        if piece < 2:
            barrier.wait(10)
        if threading.current_thread() is caller:
            raise error
        running += 1
        time.sleep(0.05)
        running -= 1
        after.append(piece)

    with pytest.raises(error):
        pool.run(work, 50, 2)
    assert running == 0
    done = len(after)
    time.sleep(0.15)
    assert len(after) == done < 40  # one, unless everything stood still meanwhile
    assert len(together(pool, 2)) == 2


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_an_interrupt_while_the_caller_waits() -> None:
    """Control-C while only the pool still works: it is waited for, then the interrupt arrives."""
    pool = _threads._Pool()
    caller = threading.current_thread()
    barrier = threading.Barrier(2)
    finished = []

    def work(piece: int) -> None:
        barrier.wait(10)
        if threading.current_thread() is not caller:
            time.sleep(0.05)
            for _ in range(2):
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
                time.sleep(0.05)
            finished.append(piece)

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            pool.run(work, 2, 2)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert len(finished) == 1
    assert len(together(pool, 2)) == 2


def test_a_second_call_at_the_same_time_works_alone() -> None:
    pool = _threads._Pool()
    names = []

    def inner(piece: int) -> None:
        names.append(threading.current_thread().name)

    def other() -> None:
        pool.run(inner, 10, 2)

    def work(piece: int) -> None:
        if piece == 0:
            thread = threading.Thread(target=other, name="another caller")
            thread.start()
            thread.join(10)
            assert not thread.is_alive()

    pool.run(work, 2, 2)
    assert names == ["another caller"] * 10


def test_many_callers_at_once(backend: str, eager: None) -> None:
    set_num_threads(2)
    x = generator("callers").normal(size=(50, 90)).astype("f4")
    want = fastsoftmax.softmax(x, temperature=0.7)
    server, wrong = _backends.current(), []

    def caller() -> None:
        out = np.empty_like(x)
        for _ in range(20):
            out[...] = 0
            batch = _backends._protocol.Batch(x, 1, np.full(50, 0.7))
            _threads.run(server, TABLE["softmax"], batch, out)
            if not same_bits(out, want):
                wrong.append(1)

    threads = [threading.Thread(target=caller) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not wrong


def test_no_array_is_kept(eager: None) -> None:
    set_num_threads(2)

    class Work:
        def __call__(self, piece: int) -> None:
            time.sleep(0.001)

    for _ in range(20):
        work = Work()
        ref = weakref.ref(work)
        _threads._pool.run(work, 5, 2)
        del work
        gc.collect(0)  # all that is new
        assert ref() is None


# ---- the team of the C backend, whose threads take rows without the interpreter

needs_team = pytest.mark.skipif(
    fastsoftmax.available_backends()["c"] is not None or os.name != "posix",
    reason="needs the C backend and the atomic operations of GCC or Clang",
)


class Rows:
    """Stands for a function of the C library: notes which thread has taken which rows."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, together: int = 1, status: int = 0) -> None:
        from fastsoftmax._backends import _c

        self.seen: list[tuple[int, int, str]] = []
        self.barrier = threading.Barrier(together)
        self.status = status
        pointer = _c.ffi.callback("fsm_row_function", self.take)
        monkeypatch.setitem(_c._POINTERS, "softmax", pointer)

    def take(self, batch: object, begin: int, end: int, scratch: object) -> int:
        self.seen.append((begin, end, threading.current_thread().name))
        if len(self.seen) <= self.barrier.parties:
            self.barrier.wait(10)
        return self.status

    def run(self, rows: int, cols: int = 100) -> None:
        out = np.empty((rows, cols), "f4")
        _threads.run(_backends._load("c"), TABLE["softmax"], batch(rows, cols), out)

    @property
    def names(self) -> set[str]:
        return {name for _, _, name in self.seen}


@pytest.fixture
def patient(eager: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A pool of its own, whose helpers stay awake."""
    from fastsoftmax._backends import _c

    pool = _threads._Pool()
    monkeypatch.setattr(_threads, "_pool", pool)
    monkeypatch.setattr(_c, "_PATIENCE", 10**12)
    yield
    pool._team.dismiss()


@needs_team
@pytest.mark.parametrize("threads", [2, 3, 5])
@pytest.mark.parametrize("rows", [5, 64, 1000, 4097])
def test_a_team_takes_every_row_once(
    rows: int, threads: int, patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_num_threads(threads)
    for _ in range(3):  # helpers asleep, then awake
        spy = Rows(monkeypatch, together=threads)
        spy.run(rows)
        taken = sorted((begin, end) for begin, end, _ in spy.seen)
        assert [i for begin, end in taken for i in range(begin, end)] == list(range(rows))
        assert threading.current_thread().name in spy.names
        assert len(spy.names) == threads


@needs_team
def test_a_team_is_no_larger_than_it_may_be(patient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    set_num_threads(5)
    Rows(monkeypatch, together=5).run(1000)
    assert _threads._pool._team.waiting() == 4  # more than the next call may have
    set_num_threads(2)
    spy = Rows(monkeypatch, together=2)
    spy.run(1000)
    assert len(spy.names) == 2


@needs_team
def test_a_team_is_dismissed_for_other_work(patient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    set_num_threads(2)
    for _ in range(3):
        Rows(monkeypatch, together=2).run(1000)
        assert len(together(_threads._pool, 2)) == 2


@needs_team
def test_an_error_of_a_team_reaches_the_caller(
    patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_num_threads(2)
    with pytest.raises(RuntimeError, match="refused its arguments with status 3"):
        Rows(monkeypatch, together=2, status=3).run(1000)
    Rows(monkeypatch, together=2).run(1000)


@needs_team
@pytest.mark.parametrize("op", ["softmax", "log_softmax", "logsumexp"])
def test_contiguous_batches_in_a_team(
    op: str, patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row has its bits; what is no such batch goes the usual way."""
    x = generator("contiguous").normal(size=(100, 90)).astype("f4")
    call = getattr(fastsoftmax, op)
    with fastsoftmax.use_backend("c"):
        set_num_threads(1)
        want = call(x, temperature=0.7)
        set_num_threads(2)
        for _ in range(20):
            assert same_bits(call(x, temperature=0.7), want)
        assert same_bits(call(x[None], temperature=0.7)[0], want)
        memory = np.zeros(101 * 90, "f4")
        memory[:9000] = x.ravel()
        out = memory[50 : 50 + want.size].reshape(want.shape)
        call(memory[:9000].reshape(x.shape), temperature=0.7, out=out)
        assert same_bits(out, want)
        if op != "logsumexp":
            assert call(x.copy(), temperature=0.7, out=(y := x.copy())) is y
            assert same_bits(call(y := x.copy(), temperature=0.7, out=y), want)
        large = np.resize(x, (1100, 1000))  # around the caches
        want = call(large, temperature=0.7)
        apart = [np.zeros(a.nbytes + 64, "u1")[1 : a.nbytes + 1] for a in (large, want)]
        unaligned, out = (
            a.view("f4").reshape(b.shape) for a, b in zip(apart, (large, want), strict=True)
        )
        unaligned[...] = large
        assert same_bits(call(unaligned, temperature=0.7), want)
        assert same_bits(call(large, temperature=0.7, out=out), want)
        with pytest.raises(ValueError, match="temperature"):
            call(x, temperature=-1.0)
        assert call(np.empty((0, 5), "f4")).size == 0
        assert call(x.astype("i4")).dtype == np.float64
        assert call(np.ones((300, 3), "f2")).dtype == np.float16


@needs_team
def test_a_pool_rests_when_helpers_are_put_aside(
    patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For batches of any way to `run`, but not for those that take long."""
    set_num_threads(2)
    monkeypatch.setattr(_threads, "_DEBT", 0)
    monkeypatch.setattr(_threads, "_REST", 10**11)
    main, seen = threading.current_thread().name, []

    class Late(Rows):
        def take(self, batch: object, begin: int, end: int, scratch: object) -> int:
            status = super().take(batch, begin, end, scratch)
            if threading.current_thread().name != main:
                time.sleep(0.05)
            return status

    late = Late(monkeypatch, together=2)
    late.run(1000)
    assert len(late.names) == 2
    assert _threads._pool.rests()
    backend = SimpleNamespace(
        new_team=_backends._load("c").new_team, run=lambda *work: seen.append(work[-2:])
    )
    _threads.run(backend, TABLE["softmax"], batch(1000, 9), np.empty((1000, 9), "f4"))
    assert seen == [(0, 1000)]
    spy = Rows(monkeypatch, together=2)
    with fastsoftmax.use_backend("c"):
        fastsoftmax.softmax(np.zeros((100, 90), "f4"))
    assert not spy.seen  # alone, by another function
    monkeypatch.setattr(_threads, "_AT_ONCE", 8000)
    spy.run(1000)
    assert len(spy.names) == 2
    assert _threads._pool.rests()
    monkeypatch.setattr(_threads._pool, "_rests_until", time.perf_counter_ns())
    assert not _threads._pool.rests()


def test_the_account_of_a_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    now, pool = 0, _threads._Pool()
    monkeypatch.setattr(_threads, "perf_counter_ns", lambda: now)
    ms = 1_000_000
    for saved, rest in [(5, 0), (-2, 0), (-1, 0), (-1, 5), (-3, 10), (0.5, 0), (-4, 20)]:
        pool._enter(int(saved * ms))
        assert pool._rests_until == now + rest * ms or not rest
        assert pool.rests() == (rest > 0)
        now += 1000 * ms
        assert not pool.rests()
    pool._enter(ms)
    for rest in (5, 10, 20, 40, 80, 160, 320, 320):
        pool._enter(-4 * ms)
        assert pool._rests_until == now + rest * ms


@needs_team
def test_batches_that_follow_closely_are_shared(
    patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_num_threads(2)
    monkeypatch.setattr(_threads, "SERIAL_BELOW", 1 << 40)
    monkeypatch.setattr(_threads, "_CLOSE", 10**10)
    monkeypatch.setattr(_threads, "_ended", time.perf_counter_ns() - 10**11)
    x = np.zeros((100, 90), "f4")
    spy = Rows(monkeypatch, together=2)
    with fastsoftmax.use_backend("c"):
        fastsoftmax.softmax(x)
        assert not spy.seen  # alone, by another function
        fastsoftmax.softmax(x)
        taken = sorted((begin, end) for begin, end, _ in spy.seen)
        assert [i for begin, end in taken for i in range(begin, end)] == list(range(100))
        assert len(spy.names) == 2
        monkeypatch.setattr(_threads, "_CLOSE", 0)
        spy.seen.clear()
        fastsoftmax.softmax(x)
        assert not spy.seen


# ---- forks and endings


@needs_fork
def test_a_forked_child_uses_threads_of_its_own() -> None:
    script = """
        import os, threading
        import numpy as np
        import fastsoftmax
        from fastsoftmax import _threads
        fastsoftmax.set_num_threads(2)
        _threads.SERIAL_BELOW = _threads.ALONE_BELOW = 1
        def both():
            barrier = threading.Barrier(2)
            _threads._pool.run(lambda piece: barrier.wait(10), 2, 2)
        x = np.random.default_rng(0).normal(size=(300, 2000)).astype("f4")
        want = fastsoftmax.softmax(x)
        both()
        for _ in range(3):
            child = os.fork()
            if child == 0:
                both()
                os._exit(0 if np.array_equal(fastsoftmax.softmax(x), want) else 1)
            print(os.waitpid(child, 0)[1])
        both()
    """
    assert output(script).split() == ["0"] * 3


@needs_fork
def test_a_fork_in_the_middle_of_a_call_of_another_thread() -> None:
    script = """
        import os, sys, threading, warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
        import numpy as np
        import fastsoftmax
        from fastsoftmax import _threads
        fastsoftmax.set_num_threads(2)
        _threads.SERIAL_BELOW = _threads.ALONE_BELOW = 1
        forked, inside = threading.Event(), threading.Barrier(3)
        def work(piece):
            inside.wait(10)
            forked.wait(20)
        thread = threading.Thread(target=_threads._pool.run, args=(work, 2, 2))
        thread.start()
        inside.wait(10)  # both threads are at work, and the pool is busy
        x = np.random.default_rng(0).normal(size=(300, 2000)).astype("f4")
        child = os.fork()
        if child == 0:
            for _ in range(10):
                fastsoftmax.softmax(x)
            barrier = threading.Barrier(2)
            _threads._pool.run(lambda piece: barrier.wait(10), 2, 2)
            os._exit(0)
        print(os.waitpid(child, 0)[1])
        forked.set()
        thread.join(20)
        print(thread.is_alive())
    """
    assert output(script).split() == ["0", "False"]


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing(method: str, tmp_path: Path) -> None:
    import multiprocessing

    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"there is no {method} here")
    (tmp_path / "program.py").write_text(
        textwrap.dedent("""
            import multiprocessing, sys
            import numpy as np
            import fastsoftmax
            from fastsoftmax import _threads

            _threads.SERIAL_BELOW = _threads.ALONE_BELOW = 1

            def work(seed):
                x = np.random.default_rng(seed).normal(size=(300, 2000)).astype("f4")
                return float(fastsoftmax.softmax(x).sum())

            if __name__ == "__main__":
                fastsoftmax.set_num_threads(2)
                work(0)
                with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
                    print(*(round(v) for v in pool.map(work, range(4))))
        """)
    )
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py", method],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.split() == ["300"] * 4, done.stderr


def test_at_the_end_of_the_interpreter() -> None:
    """In functions that run at exit, and in the last destructors, with and without a pool."""
    script = """
        import atexit
        import numpy as np
        import fastsoftmax
        from fastsoftmax import _threads
        fastsoftmax.set_num_threads(3)
        _threads.SERIAL_BELOW = _threads.ALONE_BELOW = 1
        x = np.ones((300, 2000), "f4")
        class Late:
            call = fastsoftmax.softmax
            def __del__(self):
                print(round(float(Late.call(x, temperature=0.7).sum())))
        late = Late()
        late.itself = late
        atexit.register(lambda: print(round(float(fastsoftmax.softmax(x).sum()))))
        EARLY
    """
    for early in ("fastsoftmax.softmax(x)", ""):
        got = output(script.replace("EARLY", early)).split()
        assert got[0] == "300"
        assert set(got) == {"300"}


# ---- how many


def test_set_and_get(capsys: pytest.CaptureFixture[str]) -> None:
    for n in (1, 3, np.int64(2)):
        assert set_num_threads(n) is None
        assert get_num_threads() == n
        assert type(get_num_threads()) is int
        fastsoftmax.show_config()
        lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
        assert lines["threads"] == str(n)
    for bad in (0, -1, -(10**30)):
        with pytest.raises(ValueError, match=rf"n is {bad}"):
            set_num_threads(bad)
    for bad in (1.0, "2", None):
        with pytest.raises(TypeError, match=r"n is a (float|str|NoneType)"):
            set_num_threads(bad)
    assert get_num_threads() == 2


COUNT = "import fastsoftmax; print(fastsoftmax.get_num_threads())"


@pytest.mark.parametrize(
    ("env", "count"),
    [
        ({"FASTSOFTMAX_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "5"}, 5),
        ({"OMP_NUM_THREADS": "5", "FASTSOFTMAX_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "5", "FASTSOFTMAX_NUM_THREADS": ""}, 5),
        ({"OMP_NUM_THREADS": "6,2"}, 6),
        ({"OMP_NUM_THREADS": " 7 "}, 7),
        ({"OMP_NUM_THREADS": "many", "FASTSOFTMAX_NUM_THREADS": "1"}, 1),
    ],
)
def test_environment(env: dict[str, str], count: int) -> None:
    assert output(COUNT, **env) == str(count)


@pytest.mark.parametrize("variable", ["FASTSOFTMAX_NUM_THREADS", "OMP_NUM_THREADS"])
@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "²", "0x2"])
def test_bad_environment(variable: str, value: str) -> None:
    done = run(COUNT, **{variable: value})
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError")
    assert variable in last
    assert value in last
    assert "whole number" in last


def test_a_list_is_for_openmp_alone() -> None:
    assert "FASTSOFTMAX_NUM_THREADS" in run(COUNT, FASTSOFTMAX_NUM_THREADS="2,2").stderr


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
def test_affinity() -> None:
    cpu = min(os.sched_getaffinity(0))
    assert output(f"import os; os.sched_setaffinity(0, {{{cpu}}}); {COUNT}") == "1"
    assert int(output(COUNT)) <= len(os.sched_getaffinity(0))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


V2, V1 = "0::/a/b\n", "12:memory:/x\n4:cpu,cpuacct:/docker/x\n1:name=systemd:/x\n0::/x\n"


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        (None, {}, math.inf),
        (V2, {}, math.inf),
        (V2, {"a/b/cpu.max": "max 100000\n"}, math.inf),
        (V2, {"a/b/cpu.max": "150000 100000\n"}, 1.5),
        (V2, {"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "250000 100000\n"}, 2.5),
        (V2, {"a/b/cpu.max": "max 100000\n", "cpu.max": "20000 10000\n"}, 2),
        ("0::/\n", {"cpu.max": "300000 100000\n"}, 3),
        (V2, {"a/b/cpu.max": "nonsense"}, math.inf),
        (V2, {"a/b/cpu.max": "1 0"}, math.inf),
        (
            V1,
            {
                "cpu/docker/x/cpu.cfs_quota_us": "200000\n",
                "cpu/docker/x/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
        (V1, {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        (V1, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
    ],
)
def test_control_groups(
    groups: str | None, files: dict[str, str], limit: float, tmp_path: Path
) -> None:
    if groups is not None:
        write(tmp_path / "proc/self/cgroup", groups)
    for name, text in files.items():
        write(tmp_path / "sys/fs/cgroup" / name, text)
    assert _threads._cgroup_cpus(str(tmp_path)) == limit


@pytest.mark.parametrize(("limit", "count"), [(0.2, 1), (1.5, 2), (math.inf, 4), (9, 4)])
def test_a_part_of_a_cpu_is_a_thread(
    limit: float, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(_threads, "_cgroup_cpus", lambda: limit)
    assert _threads._cpus() == count


# ---- threadpoolctl

SEEN = """
    from threadpoolctl import threadpool_info, threadpool_limits
    def ours():
        return [i for i in threadpool_info() if i["user_api"] == "fastsoftmax"]
    (info,) = ours()
    assert info["num_threads"] == 3 and info["version"] == fastsoftmax.__version__, info
    with threadpool_limits(1):
        print(fastsoftmax.get_num_threads(), end=" ")
    with threadpool_limits(limits={"fastsoftmax": 2}):
        print(fastsoftmax.get_num_threads(), end=" ")
    print(fastsoftmax.get_num_threads(), len(ours()))
"""


@pytest.mark.skipif(
    fastsoftmax.available_backends()["c"] is not None or sys.platform == "win32",
    reason="threadpoolctl knows a pool by its library",
)
@pytest.mark.parametrize(
    "order",
    [
        "import threadpoolctl, fastsoftmax",
        "import fastsoftmax, numpy, threadpoolctl; fastsoftmax.softmax(numpy.ones((9, 200_000)))",
    ],
    ids=["before", "after"],
)
def test_threadpoolctl(order: str) -> None:
    pytest.importorskip("threadpoolctl")
    got = output(f"{order}\n{textwrap.dedent(SEEN)}", FASTSOFTMAX_NUM_THREADS="3")
    assert got == "1 2 3 1"


def test_threadpoolctl_is_not_imported() -> None:
    script = """
        import sys, numpy, fastsoftmax
        fastsoftmax.softmax(numpy.ones((9, 200000), 'f4'))
        print("threadpoolctl" in sys.modules)
    """
    assert output(script, FASTSOFTMAX_NUM_THREADS="2") == "False"

"""Many callers: threads on everything at once, processes, signals, pickles, other interpreters."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from support import available, generator, same_bits, using

import fastsoftmax
from fastsoftmax import _threads
from fastsoftmax._api import _sampling

needs_posix = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    before = fastsoftmax.get_num_threads()
    yield
    fastsoftmax.set_num_threads(before)


def python(script: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


# ---- every function at once


def tasks() -> dict[str, Callable[[], Any]]:
    """A call of every public function that computes, on shapes below and above those that are
    shared by the pool; each gives the same at any time."""
    rng = generator("callers")

    def normal(*shape: int, dtype: str = "f4") -> np.ndarray:
        return (rng.normal(size=shape) * 4).astype(dtype)

    small, wide = normal(7, 33), normal(3, 5000)
    columns, tall = normal(300, 41).T, normal(40_000, 17)  # the last is shared
    half, double = normal(9, 700, dtype="f2"), normal(5, 301, dtype="f8")
    long = normal(1, 1 << 20)  # its blocks are shared
    ids = rng.integers(0, 5000, 3)
    mask = rng.random((3, 5000)) < 0.7
    f = fastsoftmax

    def state() -> Any:
        left, right = f.SoftmaxState(k=3, token_ids=ids), f.SoftmaxState(k=3, token_ids=ids)
        left.update(wide[:, :2100])
        right.update(wide[:, 2100:], start=2100)
        left.merge(right)
        return (
            left.logsumexp(),
            *left.topk_logprobs(),
            left.token_logprobs(),
            left.normalize(wide[:, :2100]),
        )

    def in_place() -> Any:
        work = wide.copy()
        return f.log_softmax(work, temperature=1.7, out=work)

    return {
        "softmax": lambda: f.softmax(small, temperature=0.7),
        "softmax of columns": lambda: f.softmax(columns, where=columns > -3.0),
        "softmax of many rows": lambda: f.softmax(tall, temperature=0.7),
        "softmax of a long row": lambda: f.softmax(long, temperature=0.7),
        "log_softmax": lambda: f.log_softmax(half, temperature=[1.0] * 9),
        "log_softmax in place": in_place,
        "logsumexp": lambda: f.logsumexp(double),
        "logsumexp of many rows": lambda: f.logsumexp(tall),
        "cross_entropy": lambda: f.cross_entropy(wide, ids, label_smoothing=0.1),
        "perplexity": lambda: f.perplexity(wide, ids),
        "token_logprobs": lambda: f.token_logprobs(wide, ids, top_n=5),
        "topk_logprobs": lambda: f.topk_logprobs(wide, 7, where=mask),
        "entropy": lambda: f.entropy(half),
        "moments": lambda: f.moments(double, temperature=1.3),
        "kl_divergence": lambda: f.kl_divergence(wide, wide[::-1]),
        "temperature_sweep": lambda: f.temperature_sweep(wide, [0.5, 1.0, 2.0], ids),
        "sample": lambda: f.sample(wide, seed=3, temperature=0.8, top_k=50, top_p=0.9, min_p=0.01),
        "sample of many rows": lambda: f.sample(tall, seed=3),
        "draws": lambda: f.sample(half, seed=3, num_samples=4, replace=False, where=half > -9.0),
        "filtered_logprobs": lambda: f.filtered_logprobs(wide, top_p=0.8, logit_bias={3: 2.0}),
        "SoftmaxState": state,
    }


def parts(result: Any) -> tuple[np.ndarray, ...]:
    """The arrays of a result."""
    if isinstance(result, tuple):
        return tuple(np.asarray(part) for part in result if part is not None)
    return (np.asarray(result),)


def test_the_tasks_are_every_function() -> None:
    """One that is added has to be called here as well."""
    quick = {"available_backends", "backend", "get_num_threads", "set_num_threads", "show_config"}
    quick |= {"use_backend", "warmup", "openai_logprobs", "get_include", "get_library_dir"}
    names = {name for name in fastsoftmax.__all__ if callable(getattr(fastsoftmax, name))}
    results = {"FilteredLogprobs", "Moments", "Sample", "TemperatureSweep", "TokenLogprobs", "TopK"}
    assert names - quick - results - {"BackendUnavailableError"} <= set(tasks())


@pytest.mark.parametrize("seconds", [3.0, pytest.param(60.0, marks=pytest.mark.slow)])
def test_many_threads(seconds: float) -> None:
    """32 threads call everything on every implementation, while the number of threads of a call
    changes; each result has the bits that one thread computed before."""
    implementations = [i for i in available() if i != "numpy"] or ["numpy"]
    todo = tasks()
    fastsoftmax.set_num_threads(1)
    want: dict[tuple[str, str], tuple[np.ndarray, ...]] = {}
    for implementation in implementations:
        with using(implementation):
            for name, call in todo.items():
                want[implementation, name] = parts(call())
    keys, wrong, errors = list(want), [], []
    end = time.monotonic() + seconds
    done = [0] * 32

    def caller(number: int) -> None:
        rng = np.random.default_rng(number)
        try:
            while not done[number] or time.monotonic() < end:
                implementation, name = keys[rng.integers(len(keys))]
                if number == 0:
                    fastsoftmax.set_num_threads(int(rng.integers(1, 5)))
                with using(implementation):
                    got = parts(todo[name]())
                if not all(map(same_bits, got, want[implementation, name])):
                    wrong.append((implementation, name))
                done[number] += 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=caller, args=(i,)) for i in range(len(done))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 120)
        assert not thread.is_alive()
    assert not errors
    assert not wrong
    print(f"{sum(done)} calls in {seconds:.0f} s by {len(done)} threads")


# ---- processes


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_pool_of_processes_while_threads_work(method: str, tmp_path: Any) -> None:
    """Processes are started in the middle of calls that threads share, and every one computes."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"there is no {method} here")
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent("""
            import hashlib, multiprocessing, sys, threading, warnings
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
            import numpy as np
            import fastsoftmax as f

            def work(seed):
                x = np.random.default_rng(seed).normal(size=(300, 2000)).astype("f4")
                f.set_num_threads(2)
                parts = f.softmax(x), f.sample(x, seed=seed).ids, f.topk_logprobs(x, 5).logprobs
                return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()

            if __name__ == "__main__":
                want = [work(seed) for seed in range(6)]
                stop = threading.Event()
                x = np.ones((400, 3000), "f4")

                def busy():
                    while not stop.is_set():
                        f.softmax(x)

                threads = [threading.Thread(target=busy) for _ in range(3)]
                for thread in threads:
                    thread.start()
                context = multiprocessing.get_context(sys.argv[1])
                for _ in range(2):
                    with context.Pool(3) as pool:
                        print(pool.map(work, range(6)) == want)
                stop.set()
                for thread in threads:
                    thread.join(30)
        """)
    )
    done = subprocess.run(
        [sys.executable, program, method], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.stdout.split() == ["True", "True"], done.stderr


# ---- pickles and copies


def results() -> dict[str, Any]:
    f = fastsoftmax
    logits = generator("pickles").normal(size=(3, 50)).astype("f4")
    return {
        "Sample": f.sample(logits, seed=1),
        "FilteredLogprobs": f.filtered_logprobs(logits, top_k=3),
        "TopK": f.topk_logprobs(logits, 4),
        "TokenLogprobs": f.token_logprobs(logits, [1, 2, 3], top_n=2),
        "Moments": f.moments(logits),
        "TemperatureSweep": f.temperature_sweep(logits, [1.0, 2.0], [1, 2, 3]),
        "scalar": f.logsumexp(logits[0]),
    }


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_results_are_pickled(protocol: int) -> None:
    for name, value in results().items():
        back = pickle.loads(pickle.dumps(value, protocol))
        assert type(back) is type(value), name
        assert all(map(same_bits, parts(back), parts(value))), name
        assert all(map(same_bits, parts(copy.deepcopy(value)), parts(value))), name


def test_results_reach_another_process() -> None:
    script = """
        import pickle, sys
        values = pickle.load(sys.stdin.buffer)
        print(*sorted(type(value).__name__ for value in values))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        input=pickle.dumps(list(results().values())),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().split() == sorted(type(v).__name__ for v in results().values())


def test_a_state_goes_on_after_a_pickle() -> None:
    """Also one that has not been fed, and one copy leaves the other alone."""
    logits = generator("state").normal(size=(2, 90))
    want = fastsoftmax.SoftmaxState(k=2, temperature=[0.5, 2.0])
    fed = copy.deepcopy(pickle.loads(pickle.dumps(want)))
    for state in (want, fed):
        state.update(logits[:, :50])
    again = pickle.loads(pickle.dumps(fed))
    for state in (want, again):
        state.update(logits[:, 50:])
    assert same_bits(again.logsumexp(), want.logsumexp())
    assert all(map(same_bits, again.topk_logprobs(), want.topk_logprobs()))
    assert not same_bits(fed.logsumexp(), want.logsumexp())


def test_errors_are_pickled() -> None:
    """As processes hand them to each other."""
    try:
        raise fastsoftmax.BackendUnavailableError("no such thing") from KeyError("cause")
    except ImportError as error:
        back = pickle.loads(pickle.dumps(error))
    assert type(back) is fastsoftmax.BackendUnavailableError
    assert str(back) == "no such thing"
    for call in (
        lambda: fastsoftmax.softmax([1.0], temperature=-1),
        lambda: fastsoftmax.softmax([1.0], axis=4),
        lambda: fastsoftmax.cross_entropy([[1.0]], [3]),
    ):
        with pytest.raises(Exception, match=r"must be|out of bounds") as caught:
            call()
        again = pickle.loads(pickle.dumps(caught.value))
        assert type(again) is type(caught.value)
        assert str(again) == str(caught.value)


# ---- signals


class AlarmError(Exception):
    """What the signal raises, as Control-C raises KeyboardInterrupt."""


def calls(rows: int) -> dict[str, Callable[[], Any]]:
    """Calls that take little memory, and with 4,000,000 rows a minute or so."""
    row = generator("calls").normal(size=32_000).astype("f4")
    batch = np.broadcast_to(row, (rows, row.size))
    long = np.broadcast_to(np.float32(1.0), (1, rows * 32_768))
    f = fastsoftmax
    return {
        "logsumexp": lambda: f.logsumexp(batch),
        "logsumexp of a long row": lambda: f.logsumexp(long),
        "logsumexp of columns": lambda: f.logsumexp(batch.T, axis=0),
        "logsumexp of integers": lambda: f.logsumexp(np.broadcast_to(row > 0, batch.shape)),
        "entropy": lambda: f.entropy(batch),
        "topk_logprobs": lambda: f.topk_logprobs(batch, 1),
        "sample": lambda: f.sample(batch, seed=1, top_p=0.9),
        "draws": lambda: f.sample(row, seed=1, top_p=0.999, num_samples=rows),
        "filtered_logprobs": lambda: f.filtered_logprobs(batch, top_p=0.9),
    }


@needs_posix
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", list(calls(1)))
def test_a_signal_ends_a_call_within_a_second(backend: str, name: str, threads: int) -> None:
    if backend == "numpy":
        pytest.skip("rows are Python's own loop, which sees signals")
    fastsoftmax.set_num_threads(threads)
    # What Numba compiles is compiled before: an error that is raised while a destructor of the
    # compiler runs is lost.
    calls(400)[name]()
    call = calls(4_000_000)[name]

    def ring(number: int, frame: Any) -> None:
        raise AlarmError

    # In the time of the CPUs, whatever else these have to do.
    before = signal.signal(signal.SIGPROF, ring)
    try:
        start = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, 0.1)
        with pytest.raises(AlarmError):
            call()
        late = time.process_time() - start - 0.1
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    assert late < 1.0 * threads


@needs_posix
def test_control_c() -> None:
    """A program in the middle of a long call ends as one in a loop of Python does."""
    script = """
        import signal, numpy as np, fastsoftmax
        # Ignored, as in a shell's background, it would be so here too.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        batch = np.broadcast_to(np.ones(32_000, "f4"), (4_000_000, 32_000))
        fastsoftmax.logsumexp(batch[:1])
        print("begun", flush=True)
        fastsoftmax.logsumexp(batch)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        try:
            _, error = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGINT
    assert error.strip().endswith("KeyboardInterrupt")


def test_pieces_change_no_bits(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that are cut so that signals are seen give what they give in one piece."""
    x = generator("pieces").normal(size=(9, 4500)).astype("f4")

    def calls() -> list[np.ndarray]:
        found = [fastsoftmax.softmax(x, temperature=0.7), fastsoftmax.logsumexp(x[0])]
        for filters in ({}, {"top_k": 700}):
            found += fastsoftmax.sample(x, seed=4, num_samples=100, **filters)
        found += fastsoftmax.sample(x, seed=4, num_samples=100, replace=False)
        return [np.asarray(part) for part in found]

    for threads in (1, 2):
        fastsoftmax.set_num_threads(threads)
        with monkeypatch.context() as patch:
            want = calls()
            patch.setattr(_threads, "SERIAL_BELOW", 1)
            patch.setattr(_threads, "ALONE_BELOW", 1)
            patch.setattr(_threads, "_AT_ONCE", 2000)
            patch.setattr(_sampling, "_DRAWS", 7)
            assert all(map(same_bits, calls(), want))


# ---- the end of the interpreter, and others beside it


def test_the_interpreter_ends_while_threads_call() -> None:
    """Daemon threads in the middle of calls, with the pool alive, neither hang nor crash it."""
    script = """
        import threading, time
        import numpy as np
        import fastsoftmax
        fastsoftmax.set_num_threads(3)
        x = np.ones((400, 3000), "f4")
        def forever():
            while True:
                fastsoftmax.softmax(x, temperature=0.7)
                fastsoftmax.sample(x, seed=1)
        for _ in range(4):
            threading.Thread(target=forever, daemon=True).start()
        time.sleep(0.3)
        print("end", flush=True)
    """
    for _ in range(3):
        done = python(script)
        assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


@pytest.mark.parametrize("first", ["main", "other"])
def test_subinterpreters(first: str) -> None:
    """The first interpreter of a process that imports the package, and with it NumPy, has all of
    it, but Numba only if it is the process's first; another one gets one clear error."""
    script = """
        import importlib, sys, warnings
        for name in ("_interpreters", "_xxsubinterpreters"):
            try:
                interpreters = importlib.import_module(name)
                break
            except ImportError:
                pass
        else:
            sys.exit(77)
        use = '''
        import warnings
        warnings.simplefilter("ignore")  # NumPy's, of interpreters beside the first
        try:
            import numpy as np
            import fastsoftmax
            fastsoftmax.set_num_threads(2)
            total = fastsoftmax.softmax(np.ones((300, 3000), "f4")).sum()
            print(round(float(total)), fastsoftmax.sample(np.zeros((1, 3)), seed=1).ids.size)
        except ImportError as error:
            print("ImportError", *str(error).split())
        '''
        import textwrap
        use = textwrap.dedent(use)
        if sys.argv[1] == "main":
            exec(use)
        other = interpreters.create()
        interpreters.run_string(other, use)
        if sys.argv[1] == "main":
            exec(use)
    """
    done = python(script, first)
    if done.returncode == 77:
        pytest.skip("this Python has no module of interpreters")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    if first == "main":
        assert lines[0] == lines[2] == "300 1"
        assert lines[1] == "300 1" or lines[1].startswith("ImportError ")
    else:
        assert lines == ["300 1"] or lines[0].startswith("ImportError ")

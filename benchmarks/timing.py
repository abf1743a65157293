"""Timing in turn: whatever happens to the machine happens to all."""

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any


@dataclass(frozen=True, slots=True)
class Task:
    """Work, and the context it is done in."""

    call: Callable[[], Any]
    context: Callable[[], AbstractContextManager[None]] = nullcontext


@contextmanager
def _no_gc() -> Iterator[None]:
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _nanoseconds(call: Callable[[], Any], repeats: int) -> int:
    start = perf_counter_ns()
    for _ in range(repeats):
        call()
    return perf_counter_ns() - start


def interleaved(
    tasks: Mapping[str, Task], rounds: int, sample_ns: float = 5e6
) -> dict[str, list[float]]:
    """Nanoseconds that one call of each task took, one number a round.

    In each round every task is called once untimed, which brings its own data into the caches, and
    then as often as makes a sample of `sample_ns`. Each round begins with another task.
    """
    names = list(tasks)
    repeats = {}
    results: dict[str, list[float]] = {name: [] for name in names}
    with _no_gc():
        for name, task in tasks.items():
            with task.context():
                task.call()
                n = 1
                # A few calls first: the time of a single short one is mostly noise.
                while (elapsed := _nanoseconds(task.call, n)) < sample_ns / 20:
                    n *= 4
            repeats[name] = max(1, round(sample_ns * n / elapsed))
        for i in range(rounds):
            first = i % len(names)
            for name in names[first:] + names[:first]:
                task = tasks[name]
                with task.context():
                    task.call()
                    results[name].append(_nanoseconds(task.call, repeats[name]) / repeats[name])
    return results

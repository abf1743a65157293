"""Timing in turn: whatever happens to the machine happens to all."""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import cycle
from time import perf_counter_ns, process_time_ns
from typing import Any


@dataclass(frozen=True, slots=True)
class Task:
    """Work, and the context it is done in."""

    call: Callable[[], Any]
    context: Callable[[], AbstractContextManager[None]] = nullcontext


def in_turn(calls: Sequence[Callable[[], Any]]) -> Callable[[], Any]:
    """A function that calls the next of several at each call."""
    if len(calls) == 1:
        return calls[0]
    turns = cycle(calls)
    return lambda: next(turns)()


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


def _nanoseconds(call: Callable[[], Any], repeats: int, clock: Callable[[], int]) -> int:
    start = clock()
    for _ in range(repeats):
        call()
    return clock() - start


def interleaved(
    tasks: Mapping[str, Task], rounds: int, sample_ns: float = 5e6, cpu_time: bool = False
) -> dict[str, list[float]]:
    """Nanoseconds that one call of each task took, one number a round.

    In each round every task is called once untimed, which brings its own data into the caches, and
    then as often as makes a sample of `sample_ns`. Each round begins with another task. With
    `cpu_time` only the time counts that this process had a processor.
    """
    clock = process_time_ns if cpu_time else perf_counter_ns
    names = list(tasks)
    repeats = {}
    results: dict[str, list[float]] = {name: [] for name in names}
    with _no_gc():
        for name, task in tasks.items():
            with task.context():
                task.call()
                n = 1
                # A few calls first: the time of a single short one is mostly noise.
                while (elapsed := _nanoseconds(task.call, n, clock)) < sample_ns / 20:
                    n *= 4
            repeats[name] = max(1, round(sample_ns * n / elapsed))
        for i in range(rounds):
            first = i % len(names)
            for name in names[first:] + names[:first]:
                task = tasks[name]
                with task.context():
                    task.call()
                    n = repeats[name]
                    results[name].append(_nanoseconds(task.call, n, clock) / n)
    return results


def undisturbed(times: Sequence[float]) -> float:
    """What the fastest tenth of the rounds took, which all else on the machine has slowed least."""
    return sorted(times)[len(times) // 10]

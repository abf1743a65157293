"""``python -m benchmarks.report``: everything side by side in one run, and how near the goals are.

One thread unless said, output arrays given, medians over rounds in which all contenders take turns.
What is not installed is left out. Small arrays are in the caches; large ones, of a million entries
or more, come from memory, as the logits of a model do that has worked on something else meanwhile:
their copies take turns, twice as many as fill the last cache.

PyTorch's and SciPy's times for large arrays have the page faults of new memory in them, or not, as
the C library decides: their users meet both.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np

import fastsoftmax
from benchmarks.contenders import (
    BACKENDS,
    FILTERS,
    QUERIES,
    Contender,
    MissingError,
    contender,
    peers,
)
from benchmarks.shapes import SHAPES, TEMPERATURE, Shape, logits
from benchmarks.timing import Task, in_turn, interleaved
from fastsoftmax import _backends
from fastsoftmax._ops import OPS

OURS = "ours"  # the backend that --backend names


@dataclass(frozen=True, slots=True)
class Goal:
    """Our time over a peer's, at most `must`, better `aim`."""

    op: str
    shape: Shape
    peer: str
    must: float | None = None
    aim: float | None = None
    ours: str = OURS
    dtype: str = "float32"

    def text(self, backend: str) -> str:
        dtype = "" if self.dtype == "float32" else f" {self.dtype}"
        ours, peer = self.names(backend)
        return f"{self.op} {self.shape}{dtype}: {ours} / {peer}"

    def names(self, backend: str) -> tuple[str, str]:
        """The contenders, where `backend` is the one whose goals are checked."""
        return self.ours.replace(OURS, backend), self.peer.replace(OURS, backend)


STREAMS = 1_000_000  # entries of an array that is to come from memory
LARGE = Shape(64, 128256)
ONE = Shape(1, 128256)
MEDIUM = Shape(4096, 1000)
STREAMED = (LARGE, Shape(64, 32000), MEDIUM, Shape(16384, 128))
CACHED = (Shape(8, 1000), Shape(1, 32000))
BOTH = (LARGE, Shape(LARGE.rows, LARGE.cols, peaked=True))
BOTH_ONES = (ONE, Shape(ONE.rows, ONE.cols, peaked=True))
COLUMNS = tuple(
    Shape(n, cols, axis=0)
    for n, cols in ((10, 400_000), (100, 40_000), (5000, 1024), (32_000, 128))
)
THREADED = Shape(64, 32000)  # large enough to be shared at any time,
CLOSE = Shape(64, 16000)  # and where calls follow one another; x and out fit the caches
SAMPLE, MIN_P, TOP_P, ALL_FILTERS = FILTERS
BESIDE_MAX = {SAMPLE: 2.0, MIN_P: 2.0, TOP_P: 3.0, ALL_FILTERS: 2.0}
SPARE = 10.0  # microseconds that a batch of one has beside that

GOALS = (
    *(Goal("softmax", shape, "np.copyto", 1.15, 1.0) for shape in STREAMED),
    *(Goal("softmax", shape, "torch(x/T)", 0.6) for shape in STREAMED),
    Goal("softmax", ONE, "ONNX Runtime", 0.65, 0.5),
    Goal("softmax", ONE, "torch(x/T)", 0.35, 0.25),
    Goal("softmax", Shape(100000, 10), "ONNX Runtime", 0.4, 0.2),
    Goal("softmax", Shape(1000, 4096, axis=0), "np.copyto", 1.3, 1.0),
    *(Goal(op, shape, "np.copyto") for op in ("softmax", "log_softmax") for shape in COLUMNS),
    Goal("softmax", LARGE, "np.multiply in place", 1.15, 1.0, ours=f"{OURS} in place"),
    Goal("softmax", LARGE, "torch(x/T)", 1 / 2.5, 1 / 4, dtype="float16"),
    Goal("softmax", LARGE, "torch(x/T)", 1 / 1.6, 1 / 2, dtype="bfloat16"),
    Goal("softmax", LARGE, "NumPy passes", 1 / 3, dtype="float64"),
    *(Goal(op, s, "c", 1.6, 1.2, ours="numba") for op in OPS for s in (LARGE, MEDIUM)),
    *(Goal(op, s, "c", 2.2, 1.2, ours="numba") for op in OPS for s in CACHED),
    *(Goal(op, s, "c-avx512", 1.6, ours="c-avx2") for op in OPS for s in (LARGE, ONE, MEDIUM)),
    *(Goal(op, LARGE, "c-avx512", ours="c-scalar") for op in OPS),
    *(
        Goal(op, shape, "np.max", 1.3, 1.1)
        for op in ("logsumexp", "cross_entropy", "token_logprobs")
        for shape in BOTH
    ),
    *(Goal("entropy", shape, "np.max", 1.8) for shape in BOTH),
    *(Goal("topk_logprobs k=20", shape, "np.max", 1.6, 1.3) for shape in BOTH),
    *(Goal("topk_logprobs k=20", shape, "torch", 1 / 8) for shape in BOTH),
    *(
        Goal("topk_logprobs k=20", LARGE, OURS, 4.0, ours=f"{OURS} if {order}")
        for order in ("ascending", "descending", "all equal")
    ),
    *(
        Goal(op, shape, "torch")
        for op in ("cross_entropy", "token_logprobs", "entropy", "kl_divergence")
        for shape in BOTH
    ),
    *(Goal(op, shape, "np.max", must) for op, must in BESIDE_MAX.items() for shape in BOTH),
    *(Goal(op, shape, "torch", 1 / 100) for op in (TOP_P, ALL_FILTERS) for shape in BOTH),
    *(Goal(op, shape, "torch") for op in (SAMPLE, MIN_P) for shape in BOTH),
    *(Goal(op, shape, "np.max") for op in BESIDE_MAX for shape in BOTH_ONES),
    *(Goal(op, LARGE, "c", 1.6, 1.2, ours="numba") for op in QUERIES),
    Goal("softmax", THREADED, OURS, ours=f"{OURS} in 2 threads"),
)


@dataclass(frozen=True, slots=True)
class Options:
    backend: str
    rounds: int
    sample_ns: float
    in_cache: bool
    cpu_time: bool


@dataclass(frozen=True, slots=True)
class Figure:
    """A number that is no ratio of two timings."""

    work: str
    measure: Callable[[Options], float]
    unit: str = ""
    must: float | None = None
    aim: float | None = None


def _small_call(with_out: bool, options: Options) -> float:
    """Microseconds of one call on 8 numbers."""
    x = np.arange(8, dtype=np.float32)
    given = np.empty_like(x) if with_out else None
    task = Task(
        lambda: fastsoftmax.softmax(x, temperature=TEMPERATURE, out=given),
        partial(fastsoftmax.use_backend, options.backend),
    )
    times = interleaved({"call": task}, options.rounds, options.sample_ns, options.cpu_time)
    return statistics.median(times["call"]) / 1e3


def _python(code: str, backend: str) -> float:
    """The number that a program prints."""
    environment = os.environ | {"FASTSOFTMAX_BACKEND": backend, "OMP_NUM_THREADS": "1"}
    return float(
        subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            cwd=Path(__file__).parent.parent,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    )


def _import_ratio(options: Options) -> float:
    clock = "process_time" if options.cpu_time else "perf_counter"
    code = f"from time import {clock} as t; a = t(); import {{}}; print(t() - a)"
    modules = ("fastsoftmax", "numpy")
    times: dict[str, list[float]] = {module: [] for module in modules}
    for _ in range(max(7, options.rounds)):
        for module in modules:
            times[module].append(_python(code.format(module), options.backend))
    ours, numpy = (statistics.median(times[module]) for module in modules)
    return ours / numpy


_PEAK = f"""
import sys, tracemalloc
import numpy as np
import fastsoftmax
x = np.random.default_rng(0).standard_normal(({LARGE.rows}, {LARGE.cols}), dtype=np.float32)
out = np.empty_like(x)
out.fill(0)
# Whatever is loaded at the first call is no part of it.
fastsoftmax.softmax(x[:1], temperature={TEMPERATURE}, out=out[:1])
"""
_PEAK_TRACED = f"""{_PEAK}
tracemalloc.start()
fastsoftmax.softmax(x, temperature={TEMPERATURE}, out=out)
print(tracemalloc.get_traced_memory()[1] / 1e6)
"""
# The highest resident size of this process alone: that of getrusage counts the parent's, too.
_PEAK_RESIDENT = f"""{_PEAK}
def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
# From here on.
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = peak()
fastsoftmax.softmax(x, temperature={TEMPERATURE}, out=out)
print((peak() - before) * 1024 / 1e6)
"""


def _peak_traced(options: Options) -> float:
    return _python(_PEAK_TRACED, options.backend)


def _peak_resident(options: Options) -> float:
    if not os.path.exists("/proc/self/clear_refs"):
        raise MissingError("measured on Linux only")
    return _python(_PEAK_RESIDENT, options.backend)


def _beside_max(op: str, shape: Shape, options: Options) -> float:
    """Microseconds of a call beyond the multiple of np.max's that its goal allows."""
    names = (options.backend, "np.max")
    times = measure((op, shape, "float32"), names, options.rounds, options)
    ours, limit = (_median(times[name]) for name in names)
    return (ours - BESIDE_MAX[op] * limit) / 1e3


def _short_rows(op: str, cols: int, options: Options) -> float:
    """Time for an entry of a short row over that for one of a long row."""
    shapes = (Shape(LARGE.size // cols, cols), LARGE)
    who = contender(op, options.backend)
    tasks = {str(s): _task(who, s, _copies(logits(s), options.in_cache)) for s in shapes}
    times = interleaved(tasks, options.rounds, options.sample_ns, options.cpu_time)
    short, long = (_median(times[str(s)]) / s.size for s in shapes)
    return short / long


def _two_and_one(options: Options) -> tuple[float, float]:
    """The times of two threads and of one for a batch in the caches."""
    names = (f"{options.backend} in 2 threads", options.backend)
    options = replace(options, in_cache=True)
    times = measure(("softmax", CLOSE, "float32"), names, options.rounds, options)
    two, one = (_median(times[name]) for name in names)
    return two, one


def _two_threads(options: Options) -> float:
    """The time of two threads over that of one."""
    two, one = _two_and_one(options)
    return two / one


def _hand_off(options: Options) -> float:
    """Microseconds that two threads take beyond half the time of one."""
    two, one = _two_and_one(options)
    return (two - one / 2) / 1e3


FIGURES = (
    *(
        Figure(
            f"{op} {shape}: beyond {must:.0f} np.max", partial(_beside_max, op, shape), "us", SPARE
        )
        for op, must in BESIDE_MAX.items()
        for shape in BOTH_ONES
    ),
    *(
        Figure(
            f"{op}, an entry in rows of {cols} / in rows of {LARGE.cols}",
            partial(_short_rows, op, cols),
            "x",
            2.0,
        )
        for op in OPS
        for cols in (2, 3, 4, 7, 10, 20, 32, 64)
    ),
    Figure(f"softmax {CLOSE} in cache: 2 threads / 1", _two_threads, "x", 1 / 1.7),
    Figure(f"softmax {CLOSE} in cache: 2 threads beyond half of 1", _hand_off, "us", 60.0),
    Figure("one call on 8 numbers", partial(_small_call, True), "us", 3.0, 1.5),
    Figure("one call on 8 numbers without out=", partial(_small_call, False), "us"),
    Figure("import fastsoftmax / import numpy", _import_ratio, "", 1.3),
    Figure(f"memory beside x and out, softmax {LARGE}: NumPy's", _peak_traced, "MB", 1.0),
    Figure(f"memory beside x and out, softmax {LARGE}: resident", _peak_resident, "MB", 1.0),
)


# The machine


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.machine()


def _caches() -> dict[str, int]:
    """KiB of each level of cache that data goes through."""
    found = {}
    for directory in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (
            (directory / name).read_text().strip() for name in ("level", "type", "size")
        )
        if kind != "Instruction":
            found[f"L{level}"] = int(size.removesuffix("K"))
    return found


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def machine() -> dict[str, str]:
    """What the numbers depend on."""
    load = f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "unknown"
    return {
        "CPU": f"{_cpu_model()}, {os.cpu_count()} CPUs, load {load}",
        "caches": ", ".join(f"{k} {v} KiB" for k, v in _caches().items()) or "unknown",
        **{p: _version(p) for p in ("scipy", "torch", "onnxruntime", "numba")},
        **_backends.config(),
    }


# Measuring and printing


Key = tuple[str, Shape, str]
Times = dict[str, list[float] | str]  # of each contender, or why there are none


def _copies(x: np.ndarray, in_cache: bool) -> list[np.ndarray]:
    """The logits, as often as it takes for them to come from memory at every call."""
    if in_cache or x.size < STREAMS:
        return [x]
    # Within reason: some virtual machines claim the caches of many processors.
    total = min(2 * 1024 * max(_caches().values(), default=32 * 1024), 1 << 28)
    return [x, *(x.copy() for _ in range(total // x.nbytes))]


def _task(who: Contender, shape: Shape, copies: Sequence[np.ndarray]) -> Task:
    """The work on each of several copies in turn, done once: outputs have their memory."""
    calls = [who.prepare(x, shape.axis) for x in copies]
    with who.context():
        for call in calls:
            call()
    return Task(in_turn(calls), who.context)


def measure(key: Key, names: Iterable[str], rounds: int, options: Options) -> Times:
    """Time contenders in turn; a reason for each that cannot take part."""
    op, shape, dtype = key
    times: Times = {}
    tasks = {}
    copies: list[np.ndarray] = []
    for name in names:
        who = contender(op, name)
        try:
            copies = copies or _copies(logits(shape, dtype), options.in_cache)
            tasks[name] = _task(who, shape, copies)
        except MissingError as reason:
            times[name] = str(reason)
        except Exception as exc:
            # The others are measured all the same.
            times[name] = f"fails: {type(exc).__name__}"
    if tasks:
        # Time on the processor is that of all threads.
        cpu_time = options.cpu_time and not any("threads" in name for name in tasks)
        times |= interleaved(tasks, rounds, options.sample_ns, cpu_time)
    return times


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], wrap: int = 99) -> str:
    """Text in columns, all but the first flush right; headers are wrapped."""
    heads = [textwrap.wrap(h, wrap) or [""] for h in headers]
    height = max(map(len, heads))
    lines = [*zip(*([""] * (height - len(h)) + h for h in heads), strict=True), *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3g}"


def _goal_row(
    text: str, value: float | str, unit: str, must: float | None, aim: float | None
) -> tuple[str, ...]:
    if isinstance(value, str):
        return text, value, "", _number(must), _number(aim), "-"
    verdict = ""
    if must is not None:
        verdict = "pass" if value <= must else "MISS"
        if aim is not None and value <= aim:
            verdict = "pass, aim"
    return text, _number(value), unit, _number(must), _number(aim), verdict


def _ratio(ours: list[float] | str, peer: list[float] | str) -> float | str:
    """The median over rounds of one time over the other; the reason if one of them is missing."""
    if isinstance(ours, str):
        return ours
    if isinstance(peer, str):
        return peer
    return statistics.median(a / b for a, b in zip(ours, peer, strict=True))


def _median(times: list[float] | str) -> float:
    """The median time; `MissingError` with the reason why there is none."""
    if isinstance(times, str):
        raise MissingError(times)
    return statistics.median(times)


def _columns(op: str) -> list[str]:
    """The contenders in an operation's table of times."""
    # The reference sorts whole rows to answer a query: it is there to be right.
    backends = [name for name in BACKENDS if op in OPS or name != "numpy"]
    return [*backends, *peers(op)]


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer shapes, rounds and repetitions")
    parser.add_argument(
        "--only", metavar="PATTERN", default="", help="rows that match a regular expression"
    )
    parser.add_argument("--goals", action="store_true", help="no table of times, the goals alone")
    parser.add_argument(
        "--in-cache", action="store_true", help="the same arrays over and over, however large"
    )
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="time on the processor, not by the clock: for a machine with other work to do",
    )
    parser.add_argument("--rounds", type=int, help="default: 15; 5 with --quick")
    parser.add_argument("--json", metavar="FILE", help="write all that was measured, too")
    parser.add_argument(
        "--backend", choices=BACKENDS, default=fastsoftmax.backend(), help="whose goals to check"
    )
    args = parser.parse_args(argv)
    if args.rounds is None:
        args.rounds = 5 if args.quick else 15
    if args.rounds < 1:
        parser.error(f"--rounds is {args.rounds}; it must be at least 1")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    args = _arguments(argv)
    sample_ns = 2e6 if args.quick else 5e6
    options = Options(args.backend, args.rounds, sample_ns, args.in_cache, args.cpu_time)
    wanted = re.compile(args.only, re.IGNORECASE)
    facts = machine()
    width = max(map(len, facts))
    print("\n".join(f"{key:<{width}}  {value}" for key, value in facts.items()))

    goals = [goal for goal in GOALS if wanted.search(goal.text(args.backend))]
    plan: dict[Key, dict[str, None]] = {}  # contenders in the order of their turns
    table_keys: list[Key] = []
    if not args.goals:
        shapes = [s for s in SHAPES if not args.quick or any(s == g.shape for g in GOALS)]
        table_keys = [
            (op, shape, "float32")
            for op in (*OPS, *QUERIES)
            for shape in (shapes if op in OPS else (*BOTH_ONES, *BOTH))
            if wanted.search(f"{op} {shape}")
        ]
        for key in table_keys:
            plan[key] = dict.fromkeys(_columns(key[0]))
    for goal in goals:
        names = plan.setdefault((goal.op, goal.shape, goal.dtype), {})
        names |= dict.fromkeys(goal.names(args.backend))
    held_to = {(goal.op, goal.shape, goal.dtype) for goal in goals}

    results: dict[Key, Times] = {}
    for i, (key, names) in enumerate(plan.items()):
        _progress(f"{i + 1}/{len(plan)} {key[0]} {key[1]} {key[2]}")
        rounds = args.rounds if key in held_to else min(args.rounds, 5)
        results[key] = measure(key, names, rounds, options)
    _progress("")

    for op in (*OPS, *QUERIES):
        keys = [key for key in table_keys if key[0] == op]
        if not keys:
            continue
        columns = _columns(op)
        rows = []
        for key in keys:
            times = [results[key][name] for name in columns]
            cells = [
                "-" if isinstance(t, str) else _number(statistics.median(t) / key[1].size)
                for t in times
            ]
            rows.append((str(key[1]), *cells))
        print(f"\n{op}, float32, T = {TEMPERATURE}: ns per element\n")
        print(table(("", *columns), rows, wrap=10))
        for name in columns:
            reasons = {t for key in keys if isinstance(t := results[key][name], str)}
            for reason in sorted(reasons):
                print(f"{name}: {reason}")

    rows = []
    verdicts = []
    for goal in goals:
        times_of = results[goal.op, goal.shape, goal.dtype]
        value = _ratio(*(times_of[name] for name in goal.names(args.backend)))
        text = goal.text(args.backend)
        rows.append(_goal_row(text, value, "x", goal.must, goal.aim))
        verdicts.append({"work": text, "measured": value, "must": goal.must, "aim": goal.aim})
    for figure in FIGURES:
        if not wanted.search(figure.work):
            continue
        _progress(figure.work)
        try:
            value = figure.measure(options)
        except MissingError as reason:
            value = str(reason)
        rows.append(_goal_row(figure.work, value, figure.unit, figure.must, figure.aim))
        verdicts.append(
            {"work": figure.work, "measured": value, "must": figure.must, "aim": figure.aim}
        )
    _progress("")
    if rows:
        how = "out= given, one thread unless said"
        where = "in cache" if args.in_cache else "large arrays from memory"
        print(f"\nT = {TEMPERATURE}, {how}, {args.rounds} rounds, {where}\n")
        print(table(("", "measured", "", "must", "aim", ""), rows))

    if args.json:
        report = {
            "machine": facts,
            "times": [
                {"op": op, "shape": str(shape), "dtype": dtype, "contender": name, "ns": times}
                for (op, shape, dtype), measured in results.items()
                for name, times in measured.items()
            ],
            "goals": verdicts,
        }
        Path(args.json).write_text(json.dumps(report, indent=1, allow_nan=False))


if __name__ == "__main__":
    main()

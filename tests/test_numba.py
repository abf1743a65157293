"""What is particular to the Numba backend: vectors, layouts and types in memory, the cache."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracle import OPS, assert_close, reference
from support import generator, same_bits, why_not

import fastsoftmax
from fastsoftmax._backends._protocol import Batch

PACKAGE = Path(fastsoftmax.__file__).parent
EACH_OP = pytest.mark.parametrize("op", OPS)
EACH_DTYPE = pytest.mark.parametrize("dtype", ["float32", "float64"])

needs_numba = pytest.mark.skipif(why_not("numba") is not None, reason=str(why_not("numba")))


def backend() -> Any:
    return fastsoftmax._backends._load("numba")


def empty(op: str, x: np.ndarray, row_axes: int = 1, dtype: Any = None) -> np.ndarray:
    """Room for the result of an operation."""
    shape = x.shape[:row_axes] if op == "logsumexp" else x.shape
    return np.empty(shape, x.dtype if dtype is None else dtype)


def run(
    op: str,
    x: np.ndarray,
    temperature: Any = 0.7,
    out: np.ndarray | None = None,
    where: np.ndarray | None = None,
    row_axes: int = 1,
) -> Any:
    """A call of the backend itself, past the checks of the public functions."""
    if out is None:
        out = empty(op, x, row_axes)
    shape = x.shape[:row_axes]
    temperature = np.broadcast_to(np.asarray(temperature, dtype=np.float64), shape)
    batch = Batch(x, row_axes, temperature, where)
    backend().run(op, batch, out, 0, batch.rows)
    return out


def python(script: str, package: Path = PACKAGE, **environment: str | None) -> Any:
    """What a fresh interpreter prints as JSON; None takes a variable away."""
    given = os.environ | {"FASTSOFTMAX_BACKEND": "numba"} | environment
    # The package comes from where it is asked for, whatever hooks an editable install has.
    start = (
        "import sys, json; from importlib.machinery import PathFinder; "
        f"sys.path.insert(0, {str(package.parent)!r}); sys.meta_path.insert(0, PathFinder)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", start + script],
        env={name: value for name, value in given.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


# ---- the machine code

KERNELS = (*OPS, "reduce_row", "plan_row", "write_row")
SCORING = ("token_logprobs", "topk", "moments", "kl_divergence", "reduce", "normalize")
SAMPLING = ("sample", "survivors")


def listings(warmup: str, dtypes: list[str], kernels: dict[str, list[str]]) -> dict[str, str]:
    """The code of each kernel and type; {} where one came from a cache, which has no listing."""
    for dtype in dtypes:
        getattr(backend(), warmup)(np.dtype(dtype))
    functions = {
        name: getattr(import_module(f"fastsoftmax._numba.{module}"), name)
        for module, names in kernels.items()
        for name in names
    }
    if any(function.stats.cache_hits for function in functions.values()):
        return {}
    return {
        f"{name} {next(kind for kind in signature if hasattr(kind, 'dtype')).dtype}": text
        for name, function in functions.items()
        for signature, text in function.inspect_asm().items()
    }


def _listings(cache: Path, *what: Any) -> dict[str, str]:
    """Of this process, where that compiled them, or of one that does."""
    script = f"from test_numba import listings; print(json.dumps(listings(*{what!r})))"
    return listings(*what) or python(
        script, NUMBA_CACHE_DIR=str(cache), PYTHONPATH=str(Path(__file__).parent)
    )


@pytest.fixture(scope="module")
def assembly(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    cache = tmp_path_factory.mktemp("cache")
    return _listings(
        cache, "warmup_normalizers", ["float32", "float64"], {"kernels": list(KERNELS)}
    )


@pytest.fixture(scope="module")
def scoring_assembly(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """By name, for float32, but for the divergence, which is computed in float64 always."""
    kernels = {"scoring": list(SCORING), "sampling": list(SAMPLING)}
    cache = tmp_path_factory.mktemp("cache")
    found = _listings(cache, "warmup_scoring", ["float32"], kernels)
    return {
        name: found[f"{name} {'float64' if name == 'kl_divergence' else 'float32'}"]
        for name in (*SCORING, *SAMPLING)
    }


def _has_fma() -> bool:
    if why_not("numba") is not None:
        return False
    import llvmlite.binding

    features = llvmlite.binding.get_host_cpu_features()
    return bool(features.get("fma") and features.get("avx2"))


def _mathematical_functions(text: str) -> set[str]:
    """Which functions of the mathematical library the code of a kernel calls."""
    calls = re.findall(r"\$_*(\w+), %r\w+|\b(?:callq?|bl)\s+_*(\w+)", text)
    names = {name for pair in calls for name in pair if name}
    assert names, "no call of anything was recognised"
    functions = {"exp", "exp2", "expm1", "pow", "log1p", "log2", "fma", "fmax", "rint"}
    functions |= {name + "f" for name in functions} | {"log", "extendhfsf2", "truncsfhf2"}
    return names & functions


@needs_numba
@pytest.mark.parametrize("name", KERNELS)
@EACH_DTYPE
def test_no_function_of_the_mathematical_library(
    assembly: dict[str, str], name: str, dtype: str
) -> None:
    """But for what a row needs once: its temperature taken apart, the logarithm of a count."""
    allowed = {"log"} if name in (*OPS, "plan_row") else set()
    assert _mathematical_functions(assembly[f"{name} {dtype}"]) <= allowed


@needs_numba
@pytest.mark.parametrize("name", [*SCORING, *SAMPLING])
def test_scoring_calls_no_mathematical_library(scoring_assembly: dict[str, str], name: str) -> None:
    """But for the logarithm of a share of the mass, from which how far down to look follows."""
    allowed = {"log"} if name in SAMPLING else set()
    assert _mathematical_functions(scoring_assembly[name]) <= allowed


def _bodies(text: str) -> dict[str, str]:
    """The code of each function of the package in that of a kernel."""
    bodies: dict[str, str] = {}
    for symbol, body in re.findall(r"^(_ZN\S+):\n(.*?)\n\t\.size", text, re.M | re.S):
        function = re.search(r"(?:kernels|scoring|sampling)\d+(_[a-z_]+?)B\d", symbol)
        if function:
            bodies[function[1]] = bodies.get(function[1], "") + body
    return bodies


@needs_numba
@pytest.mark.skipif(not _has_fma(), reason="not an x86 CPU with AVX2 and FMA")
@pytest.mark.parametrize("name", OPS)
@EACH_DTYPE
def test_all_is_done_on_vectors(assembly: dict[str, str], name: str, dtype: str) -> None:
    packed, scalar = ("ps", "ss") if dtype == "float32" else ("pd", "sd")
    bodies = _bodies(assembly[f"{name} {dtype}"])
    wanted = {
        "_exponentials": rf"vfmadd\d+{packed}",
        "_maximum": rf"v(max|cmp\w*){packed}",
        "_terms_and_sum": r"vaddpd",
        "_sum_columns": r"vaddpd",
        "_load_tile": r"vp?(unpck|shuf|perm)\w*",
    }
    if name == "softmax":
        wanted |= {"_scale": rf"v(mul|fmadd\d+){packed}", "_store_tile": r"vp?(unpck|shuf|perm)\w*"}
        wanted |= {"_terms_beside": rf"v(max|cmp\w*){packed}"}
    if name == "log_softmax":
        wanted |= {"_log_probabilities": r"vfmadd\d+pd"}
    for function, instruction in wanted.items():
        assert re.search(rf"\b{instruction}\s.*%[yz]mm", bodies[function]), function
    # The polynomial alone has 6 or 11 of them.
    for function in {"_exponentials", "_terms_and_sum", "_terms_beside"} & set(bodies):
        count = len(re.findall(rf"\bvfmadd\d+{packed}\s.*%[yz]mm", bodies[function]))
        assert count >= 6, (function, count)
    for function in ("_exponentials", "_maximum", "_scale", "_log_probabilities"):
        numbers = re.findall(
            rf"\bv(?:add|sub|mul|div|max|fn?madd\d+)(?:{scalar})\s", bodies.get(function, "")
        )
        assert not numbers, function


@needs_numba
@pytest.mark.skipif(not _has_fma(), reason="not an x86 CPU with AVX2 and FMA")
@pytest.mark.parametrize(
    ("kernel", "function", "instructions"),
    [
        ("token_logprobs", "_exponentials", [r"vfmadd\d+ps"]),
        ("token_logprobs", "_count_above", [r"vcmp\w*ps", "vp(add|sub)d"]),
        ("topk", "_take_entries", [r"vcmp\w*ps", "tzcnt"]),
        ("moments", "_moment_sums", [r"vfmadd\d+ps", "vmulps", "vaddpd"]),
        ("kl_divergence", "_divergence", [r"vfmadd\d+pd", "vaddpd"]),
        ("sample", "_maximum_and_nan", ["vmaxps", r"vcmp\w*ps"]),
        ("sample", "_wide_sum", ["vcvtps2pd", r"vfmadd\d+pd", "vaddpd"]),
    ],
)
def test_scoring_is_done_on_vectors(
    scoring_assembly: dict[str, str], kernel: str, function: str, instructions: list[str]
) -> None:
    body = _bodies(scoring_assembly[kernel])[function]
    for instruction in instructions:
        assert re.search(rf"\b{instruction}[a-z]?\s", body), instruction
    assert not re.search(r"\bvfn?madd\d+s[sd]\s", body)


# ---- the same bits, whatever the way

# Every length up to some more than two groups, and around blocks.
LENGTHS = (*range(1, 301), 2047, 2048, 2049, 2050, 5000)


@needs_numba
@EACH_OP
@EACH_DTYPE
def test_bits_do_not_depend_on_the_layout(op: str, dtype: str) -> None:
    """Batch, position, alignment, columns, steps, masks, axes, threads: those of each row alone."""
    rng = generator("bits", dtype)
    rows = 20
    for length in LENGTHS:
        # Numbers that float16 has; one row is all but certain, and one is nearly so.
        x = (rng.normal(size=(rows, length)) * 4).astype(np.float16)
        x[3] *= 16
        x[4, 0] = 20
        half, x = x, x.astype(dtype)
        want = np.concatenate([run(op, x[i : i + 1]) for i in range(rows)])

        def check(what: str, got: np.ndarray, want: np.ndarray = want, n: int = length) -> None:
            assert same_bits(got, want), (what, n)

        columns = np.asfortranarray(x)
        aside = np.zeros((rows, 2 * length + 1), dtype)
        check("batch", run(op, x))
        check("columns", run(op, columns))
        if op != "logsumexp":
            check("columns to columns", run(op, columns, out=np.empty_like(columns)))
            check("rows to columns", run(op, x, out=np.empty_like(columns)))
            check("in place", run(op, x_copy := x.copy(), out=x_copy))
            check("columns in place", run(op, x_copy := columns.copy("F"), out=x_copy))
        aside[:, 1::2] = x
        check("every other entry", run(op, aside[:, 1::2]))
        aside[:, 1 : length + 1] = x
        check("apart, not aligned", run(op, aside[:, 1 : length + 1]))
        aside[::-1, length:0:-1] = x
        check("backwards", run(op, aside[::-1, length:0:-1]))
        if dtype == "float32":
            check("float16", run(op, half, out=empty(op, x)))
            check("columns of float16", run(op, np.asfortranarray(half), out=empty(op, x)))
        else:
            check("float32", run(op, x.astype("f4"), out=empty(op, x)))
        where = rng.random(x.shape) < 0.8
        where[:, 0] = True
        low, masked = np.where(where, x, -np.inf), np.where(where, x, np.nan)
        masked_want = run(op, low)
        check("mask", run(op, masked, where=where), masked_want)
        where = np.asfortranarray(where)
        check("columns of a mask", run(op, np.asfortranarray(masked), where=where), masked_want)
        if length % 6 == 0:
            shape = (rows, 2, length // 6, 3)
            several = np.zeros(shape, dtype).transpose(0, 1, 3, 2)
            several[:] = x.reshape(rows, 2, 3, length // 6)
            check("several axes", run(op, several).reshape(want.shape))
            check(
                "columns of several axes", run(op, np.asfortranarray(several)).reshape(want.shape)
            )
        for i in (2, 3, 4):
            out = empty(op, x)
            row = backend().split(op, Batch(x, 1, np.full(rows, 0.7)), out, i)
            for b in reversed(range(row.blocks)):
                row.reduce(b, b + 1)
            row.merge()
            for b in reversed(range(row.blocks)):
                row.write(b, b + 1)
            check("split", out[i], want[i])


@needs_numba
@pytest.mark.parametrize("op", ["softmax", "log_softmax"])
@EACH_DTYPE
def test_bits_do_not_depend_on_the_caches(op: str, dtype: str) -> None:
    """Large outputs go past them, in whole cache lines but for odd ends; terms of the first blocks
    of a long row are kept, others are computed again."""
    rng = generator("caches", dtype)
    for shape in ((600, 2003), (5, 300_001)):
        x = (rng.normal(size=shape) * 4).astype(dtype)
        assert x.nbytes > 1 << 22
        want = np.concatenate([run(op, x[i : i + 1].copy()) for i in range(len(x))])
        for offset in (0, 1, 5):
            memory = np.zeros(x.size + offset, dtype)
            out = memory[offset:].reshape(shape)
            assert same_bits(run(op, x, out=out), want)
            assert not memory[:offset].any()
            out[:] = x
            assert same_bits(run(op, out, out=out), want)
            memory = np.zeros(x.size + offset, dtype)
            columns = memory[offset:].reshape(shape[::-1])
            columns[:] = x.T
            assert same_bits(run(op, columns.T), want)
            assert same_bits(run(op, columns.T, out=columns.T), want)
            memory[:] = 0
            assert same_bits(run(op, x, out=columns.T), want)
            assert not memory[:offset].any()


@needs_numba
def test_many_threads() -> None:
    x = generator("threads").normal(size=(40, 5003)).astype("f4")
    want = run("softmax", x)
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(lambda i: run("softmax", x[i : i + 1]), range(len(x))))
    assert same_bits(np.concatenate(rows), want)


# ---- against the oracle

DTYPES = ("float16", "bfloat16", "float32", "float64")


def _dtype(name: str) -> np.dtype:
    return np.dtype(getattr(pytest.importorskip("ml_dtypes"), name) if name == "bfloat16" else name)


def _check(
    op: str, x: np.ndarray, axes: tuple[int, ...], dtype: Any = None, **call: Any
) -> np.ndarray:
    """The result for an array of any layout, which is as exact as promised."""
    rest = tuple(i for i in range(x.ndim) if i not in axes)
    order = rest + axes
    where = call.get("where")
    if where is not None:
        where = np.broadcast_to(where, x.shape).transpose(order)
    out = np.empty(x.shape, x.dtype if dtype is None else dtype).transpose(order)
    if op == "logsumexp":
        out = empty(op, out, len(rest))
    got = run(op, x.transpose(order), call.get("temperature", 1.0), out, where, len(rest))
    if op != "logsumexp":
        got = got.transpose(np.argsort(order))
    assert_close(op, got, x, axis=axes, dtype=dtype, **call)
    return got


@needs_numba
@EACH_OP
@pytest.mark.parametrize("x_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_pair_of_types(op: str, x_dtype: str, dtype: str) -> None:
    rng = generator("types", x_dtype, dtype)
    for shape in ((20, 10), (20, 3), (5, 333), (3, 2500), (40, 100)):
        x = (rng.normal(size=shape) * 4).astype(_dtype(x_dtype))
        for axis in (0, 1):
            _check(op, x, (axis,), _dtype(dtype), temperature=0.7)


def _layouts(x: np.ndarray) -> Iterator[np.ndarray]:
    """The same numbers in other places, or the same places for several numbers."""
    double = np.zeros([2 * n for n in x.shape], x.dtype)
    double[tuple(slice(None, None, 2) for _ in x.shape)] = x
    yield x
    yield np.asfortranarray(x)
    yield double[tuple(slice(None, None, 2) for _ in x.shape)]
    yield np.flip(np.flip(x).copy())
    yield np.broadcast_to(x[:1], x.shape)
    yield np.broadcast_to(x[..., :1], x.shape)


@needs_numba
@EACH_OP
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_layout(op: str, dtype: str) -> None:
    """Masks and temperatures among them, of which some count as 0 or infinity."""
    rng = generator("layouts", dtype)
    temperatures = [0.3, 0.7, 1.0, 20.0, 1e-320, 1e300, np.inf]
    for shape in ((20, 10), (3, 9), (17, 700), (3, 17, 5), (4, 3, 20, 2), (2, 3000)):
        x = (rng.normal(size=shape) * 4).astype(_dtype(dtype))
        for a in _layouts(x):
            for count in range(1, min(len(shape), 2) + 1):
                for axes in itertools.combinations(range(len(shape)), count):
                    rest = [n for i, n in enumerate(shape) if i not in axes]
                    t = rng.choice(temperatures, size=rest)
                    _check(op, a, axes, temperature=t)
                    _check(op, a, axes, temperature=0.7, where=rng.random(shape) < 0.7)
                    _check(op, a, axes, temperature=t, where=rng.random(shape[-1:]) < 0.7)


@needs_numba
@EACH_OP
@pytest.mark.parametrize("dtype", DTYPES)
def test_special_rows_among_others(op: str, dtype: str) -> None:
    rng = generator("special", dtype)
    numbers = np.array([np.nan, np.inf, -np.inf, -np.inf])
    for shape in ((40, 10), (40, 3), (30, 100), (6, 4500), (2500, 20)):
        x = (rng.normal(size=shape) * 4).astype(_dtype(dtype))
        places = tuple(rng.integers(0, n, 12) for n in shape)
        x[places] = rng.choice(numbers, size=12)
        x[1], x[:, 1] = -np.inf, -np.inf
        where = rng.random(shape) < 0.6
        where[2], where[:, 2] = False, False
        for temperature in (0.7, np.inf) if op == "logsumexp" else (0.0, 0.7, np.inf):
            for axis in (0, 1):
                _check(op, x, (axis,), temperature=temperature)
                _check(op, x, (axis,), temperature=temperature, where=where)


@needs_numba
@EACH_DTYPE
def test_blocks_far_below_the_maximum(dtype: str) -> None:
    """Their weight, times the factor of the exponentials, would be denormal."""
    far = 45 if dtype == "float32" else 360
    rng = generator("far", dtype)
    for depth in (1.0, 1.3, 1.8, 2.1, 3.0):
        x = (rng.uniform(0, far / 4, size=(8, 6000)) - depth * far).astype(dtype)
        x[::2, 5000] = x[1::2, 100] = 0
        for op in OPS:
            got = _check(op, x, (1,))
            assert same_bits(_check(op, np.asfortranarray(x), (1,)), got)


@needs_numba
@EACH_DTYPE
def test_the_logarithm_of_a_sum(dtype: str) -> None:
    """Rows of zeros, and of one zero and much smaller numbers: log(n), log1p(exp(-a))."""
    for n in (*range(1, 40), 1000, 5000):
        got = run("logsumexp", np.zeros((1, n), dtype), 1.0)
        assert abs(got[0] - np.log(n)) <= np.spacing(got[0]) * 1.01
    for a in (0.1, 0.5, 0.8, 0.88, 0.882, 1.0, 5.0, 30.0):
        x = np.array([[0, -a]], dtype)
        want = reference("logsumexp", x).value[0]
        assert abs(run("logsumexp", x, 1.0)[0] - want) <= 2 * np.spacing(x.dtype.type(want))


# ---- beside C


@needs_numba
@pytest.mark.skipif(why_not("c") is not None, reason=str(why_not("c")))
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_draws_as_c(dtype: str) -> None:
    """Both compute weights in float64, to 1e-13: a uniform tells them apart once in 1e11 draws."""
    filters: list[dict[str, Any]] = [
        {},
        {"top_k": 50},
        {"top_p": 0.95},
        {"top_p": [0.1, 0.5, 0.999, 1.0] * 5, "top_k": [3, 0, 4000, 1] * 5},
        {"min_p": 0.02},
        {"top_k": 50, "top_p": 0.95, "min_p": 0.02},
        {"temperature": [0.0, 0.3, 5.0, 1e30, np.inf] * 4, "top_p": 0.6},
        {"logit_bias": {3: 4.0, 9: -np.inf}, "history": [[1, 2, 3, 3]] * 20}
        | {"repetition_penalty": 1.3, "frequency_penalty": 0.2},
    ]
    for length in (7, 300, 5000, 40_000):
        rng = generator("same draws", dtype, length)
        x = (rng.normal(size=(20, max(length, 10))) * 3).astype(_dtype(dtype))
        where = rng.random(x.shape) < 0.9
        for chosen in filters:
            for how in ({}, {"replace": False, "where": where}):
                results = []
                for name in ("numba", "c"):
                    with fastsoftmax.use_backend(name):
                        results.append(
                            fastsoftmax.sample(x, seed=7, num_samples=8, **chosen, **how)
                        )
                ours, other = results
                np.testing.assert_array_equal(ours.ids, other.ids, err_msg=f"{length} {chosen}")
                np.testing.assert_allclose(ours.logprobs, other.logprobs, rtol=1e-6, atol=1e-7)


# ---- the 16-bit types

CONVERSIONS = """
import ml_dtypes, numpy as np
from numba import njit
from fastsoftmax._numba import kernels, vectors

@njit
def widen(a, kind, out, number):
    kernels._widen(a.ctypes.data, kind, a.size, out.ctypes.data, number)

@njit
def narrow(a, kind, out, number):
    kernels._narrow(a.ctypes.data, kind, a.size, out.ctypes.data, number)

def differ(a, b):
    same = (a == b) & (np.signbit(a) == np.signbit(b))
    return int((~same & ~(np.isnan(a) & np.isnan(b))).sum())

np.seterr(all="ignore")
result = {"hardware": vectors.HALF is not None}
every = np.arange(1 << 16, dtype=np.uint16)
for kind, dtype in ((vectors.F16, np.float16), (vectors.BF16, ml_dtypes.bfloat16)):
    for number in (np.float32, np.float64):
        name = f"{np.dtype(dtype)} {np.dtype(number)}"
        out = np.empty(1 << 16, number)
        widen(every, kind, out, number)
        result["widen " + name] = differ(out, every.view(dtype).astype(number))
        # All finite numbers, what lies in the middle of two, what is next to that, and beyond.
        finite = every.view(dtype).astype(np.float64)
        finite = np.sort(finite[np.isfinite(finite)])
        middle = ((finite[1:] + finite[:-1]) / 2).astype(number)
        up, down = (np.nextafter(middle, number(to)) for to in (np.inf, -np.inf))
        largest = finite[-1] + (finite[-1] - finite[-2]) / 2
        beyond = [largest, np.nextafter(largest, 0), 2 * largest, np.inf, np.nan, 1e-46]
        beyond = np.array(beyond).astype(number)
        a = np.concatenate([finite.astype(number), middle, up, down, beyond, -beyond])
        a = np.concatenate([a, np.zeros(-len(a) % vectors.LANES, number)])
        out = np.empty(len(a), np.uint16)
        narrow(a, kind, out, number)
        # To the nearest, of two to the even one: by the order of the numbers.
        i = np.clip(np.searchsorted(finite, a), 1, len(finite) - 1)
        low, high = finite[i - 1], finite[i]
        to_low, to_high = a.astype(np.longdouble) - low, high - a.astype(np.longdouble)
        odd = (low.astype(dtype).view(np.uint16) & 1).astype(bool)
        want = np.where((to_low < to_high) | ((to_low == to_high) & ~odd), low, high)
        want = np.where(np.abs(a) >= largest, np.copysign(np.inf, a), want)
        want = np.where(np.isnan(a), np.nan, np.copysign(want, a))
        result["narrow " + name] = differ(out.view(dtype).astype(np.float64), want)
print(json.dumps(result))
"""


@needs_numba
@pytest.mark.parametrize("cpu", ["this", "generic"])
def test_conversions(cpu: str, tmp_path: Path) -> None:
    """All numbers of 16 bits, and all that round to them; float64 is rounded once."""
    pytest.importorskip("ml_dtypes")
    plain = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""} if cpu == "generic" else {}
    result = python(CONVERSIONS, NUMBA_CACHE_DIR=str(tmp_path), **plain)
    assert not (result.pop("hardware") and plain)
    assert len(result) == 8
    assert set(result.values()) == {0}, result


# ---- signatures


@needs_numba
def test_one_signature_for_each_arithmetic() -> None:
    """Whatever the layout, the types in memory and the flags, nothing is compiled anew."""
    from fastsoftmax._numba import kernels

    backend().warmup()
    x = (generator("signatures").normal(size=(6, 2500)) * 5).astype("f4")
    locked = x.copy()
    locked.flags.writeable = False
    for op in OPS:
        want = run(op, x, [0.3, 0.7, 1, 2, 7, 0.7])
        assert same_bits(run(op, locked, [0.3, 0.7, 1, 2, 7, 0.7]), want)
        for dtype in ("e", "f", "d"):
            for a in (x, x.T, x[::-1, ::3], x.reshape(2, 3, 2500), locked):
                run(op, a.astype(dtype), row_axes=a.ndim - 1)
                run(op, a, out=empty(op, a, dtype=dtype), where=a > 0)
    assert same_bits(locked, x)
    for name in KERNELS:
        assert len(getattr(kernels, name).signatures) == 2, name


@needs_numba
def test_one_signature_of_scoring_for_each_arithmetic() -> None:
    from fastsoftmax._numba import sampling, scoring

    backend().warmup()
    x = (generator("signatures").normal(size=(6, 2500)) * 5).astype("f4")
    locked = x.copy()
    locked.flags.writeable = False
    ids = np.arange(6)
    with fastsoftmax.use_backend("numba"):
        for dtype in ("e", "f", "d"):
            for a in (x, np.asfortranarray(x), x[::-1, ::3], locked):
                y = a.astype(dtype, copy=a.dtype.char != dtype)
                fastsoftmax.token_logprobs(y, ids, top_n=3, where=a > 0)
                fastsoftmax.cross_entropy(y, ids, label_smoothing=0.1)
                fastsoftmax.entropy(y, temperature=[0.3, 0.7, 1, 2, 7, 0.7])
                fastsoftmax.kl_divergence(y, x[:, : y.shape[1]])
                fastsoftmax.sample(y, seed=1, num_samples=3, replace=False)
                fastsoftmax.sample(y, seed=1, top_k=5, top_p=0.9, min_p=0.1)
                fastsoftmax.filtered_logprobs(y, top_p=0.5)
                state = fastsoftmax.SoftmaxState()
                state.update(y)
                state.normalize(y)
    assert same_bits(locked, x)
    for name in SCORING:
        expected = 1 if name == "kl_divergence" else 2
        assert len(getattr(scoring, name).signatures) == expected, name
    for name in SAMPLING:
        assert len(getattr(sampling, name).signatures) == 2, name


@needs_numba
def test_the_caller_compiles() -> None:
    """And no thread that helps: an interrupt may leave the compiler's lock behind."""
    found = python(
        """
import threading
import numpy as np
from numba.core.dispatcher import Dispatcher
import fastsoftmax as f
names = []
compile = Dispatcher.compile
def noted(self, signature):
    names.append(threading.current_thread().name)
    return compile(self, signature)
Dispatcher.compile = noted
f.set_num_threads(2)
row = np.zeros(32_000, "f4")
batch, long = np.broadcast_to(row, (400, row.size)), np.zeros(3 << 20, "f4")
counts = [0]
for call in (
    lambda: f.softmax(batch),
    lambda: f.logsumexp(long),
    lambda: f.log_softmax(long),
    lambda: f.entropy(batch),
    lambda: f.topk_logprobs(batch, 1),
    lambda: f.token_logprobs(batch, np.zeros(400, int)),
    lambda: f.kl_divergence(batch, batch),
    lambda: f.SoftmaxState().update(batch),
    lambda: f.sample(batch, seed=1, top_p=0.9),
    lambda: f.filtered_logprobs(batch, top_p=0.9),
):
    call()
    counts.append(len(names))
print(json.dumps([counts, names]))
"""
    )
    counts, names = found
    assert counts == sorted(set(counts)), "each call compiles something"
    assert set(names) == {"MainThread"}


# ---- the compile cache


@needs_numba
@pytest.mark.parametrize(
    ("module", "constant", "other"),
    [
        ("kernels", "VECTORS", "vectors"),
        ("scoring", "KERNELS", "kernels"),
        ("sampling", "SCORING", "scoring"),
    ],
)
def test_the_cache_notices_a_change_in_another_file(module: str, constant: str, other: str) -> None:
    """It looks at the file of the kernels alone, which therefore changes with the other one."""
    text = (PACKAGE / "_numba" / f"{other}.py").read_bytes().replace(b"\r\n", b"\n")
    crc = zlib.crc32(text)
    assert getattr(import_module(f"fastsoftmax._numba.{module}"), constant) == crc, (
        f"{constant} of {module}.py must be {crc:#010x}"
    )


# Calls that come to the same numbers, and the kernels they use: few, which are compiled each time.
LOGSUMEXP = "np.exp(x - fastsoftmax.logsumexp(x))", "kernels.logsumexp"
TOPK = "np.exp(fastsoftmax.topk_logprobs(x, 3).logprobs)[::-1]", "scoring.topk"


def call(work: tuple[str, str], package: Path = PACKAGE, **environment: str | None) -> Any:
    """What a fresh interpreter says of a call and of the cache."""
    result = python(
        f"""
import numpy as np, fastsoftmax
from fastsoftmax._numba import kernels, scoring
x = np.array([0.0, 1.0, 2.0], "f4")
p = {work[0]}
stats = {work[1]}.stats
print(json.dumps({{
    "file": fastsoftmax.__file__,
    "p": p.tolist(),
    "hits": sum(stats.cache_hits.values()),
    "misses": sum(stats.cache_misses.values()),
    "cache": fastsoftmax._backends.config()["numba cache"],
}}))
""",
        package,
        **environment,
    )
    assert Path(result["file"]).parent == package
    np.testing.assert_allclose(result["p"], [0.09003057, 0.24472848, 0.66524094], rtol=1e-6)
    return result


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A copy of the package that nothing can be written to, by root neither."""
    package = tmp_path / "site" / "fastsoftmax"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    folders = [package, *(path for path in package.rglob("*") if path.is_dir())]
    for folder in folders:
        (folder / "__pycache__").touch()
        folder.chmod(0o555)
    yield package
    for folder in folders:
        folder.chmod(0o755)


@needs_numba
@pytest.mark.parametrize("work", [LOGSUMEXP, TOPK], ids=["logsumexp", "topk"])
def test_second_process_hits_the_cache(work: tuple[str, str], tmp_path: Path) -> None:
    first = call(work, NUMBA_CACHE_DIR=str(tmp_path))
    second = call(work, NUMBA_CACHE_DIR=str(tmp_path))
    assert (first["hits"], first["misses"]) == (0, 1)
    assert (second["hits"], second["misses"]) == (1, 0)
    assert second["p"] == first["p"]


@needs_numba
@pytest.mark.skipif(sys.platform != "linux", reason="the user's cache directory is Linux's")
def test_read_only_install(read_only: Path, tmp_path: Path) -> None:
    """The cache goes to the user's directory."""
    for hits in (0, 1):
        home = {"NUMBA_CACHE_DIR": None, "XDG_CACHE_HOME": str(tmp_path / "user")}
        result = call(TOPK, read_only, **home)
        assert Path(result["cache"]).is_relative_to(tmp_path / "user")
        assert (result["hits"], result["misses"]) == (hits, 1 - hits)


@needs_numba
@pytest.mark.skipif(sys.platform == "win32", reason="there is no such path")
def test_nowhere_to_write(read_only: Path) -> None:
    """No cache, and no "cannot cache function: no locator available" either."""
    home = None if sys.platform == "linux" else os.devnull
    nowhere = {"NUMBA_CACHE_DIR": None, "HOME": home, "XDG_CACHE_HOME": f"{os.devnull}/cache"}
    assert call(LOGSUMEXP, read_only, **nowhere)["cache"] == "none"


# ---- without numba


@pytest.mark.parametrize("missing", ["numba", "llvmlite"])
def test_without_numba(missing: str) -> None:
    result = python(
        f"""
sys.modules[{missing!r}] = None
import fastsoftmax
try:
    import fastsoftmax._backends._numba
except ImportError as error:
    print(json.dumps([str(error), type(error.__cause__).__name__]))
""",
        FASTSOFTMAX_BACKEND="numpy",
    )
    assert 'pip install "fastsoftmax[numba]"' in result[0]
    assert result[1] == "ModuleNotFoundError"

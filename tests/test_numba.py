"""What is particular to the Numba backend: vector code, signatures, the compile cache, no numba."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracle import OPS, assert_close
from support import generator, same_bits, why_not

import fastsoftmax

PACKAGE = Path(fastsoftmax.__file__).parent
EACH_OP = pytest.mark.parametrize("op", OPS)
EACH_DTYPE = pytest.mark.parametrize("dtype", ["float32", "float64"])

needs_numba = pytest.mark.skipif(why_not("numba") is not None, reason=str(why_not("numba")))


def run(op: str, x: np.ndarray, temperature: Any = 0.7, out: np.ndarray | None = None) -> Any:
    """A call of the backend itself, past the checks of the public functions."""
    from fastsoftmax._backends._numba import NumbaBackend

    if out is None:
        out = np.empty(len(x) if op == "logsumexp" else x.shape, x.dtype)
    NumbaBackend().run(op, x, np.atleast_1d(np.asarray(temperature, dtype=np.float64)), out)
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
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


# ---- the machine code


@pytest.fixture(scope="module")
def assembly(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The code of each kernel and type. Only what was compiled here has a listing."""
    return python(
        """
import fastsoftmax
from fastsoftmax._numba import kernels
fastsoftmax.warmup()
print(json.dumps({
    f"{op} {signature[0].dtype}": text
    for op in ("softmax", "log_softmax", "logsumexp")
    for signature, text in getattr(kernels, op).inspect_asm().items()
}))
""",
        NUMBA_CACHE_DIR=str(tmp_path_factory.mktemp("cache")),
    )


def _has_fma() -> bool:
    if why_not("numba") is not None:
        return False
    import llvmlite.binding

    features = llvmlite.binding.get_host_cpu_features()
    return bool(features.get("fma") and features.get("avx2"))


@needs_numba
@EACH_OP
@EACH_DTYPE
def test_no_exponential_is_called(assembly: dict[str, str], op: str, dtype: str) -> None:
    calls = re.findall(r"\$_*(\w+), %r\w+|\b(?:callq?|bl)\s+_*(\w+)", assembly[f"{op} {dtype}"])
    names = {name for pair in calls for name in pair if name}
    assert names, "no call of anything was recognised"
    assert not names & {"exp", "expf", "exp2", "exp2f", "expm1", "pow", "powf", "fma", "fmaf"}


@needs_numba
@pytest.mark.skipif(not _has_fma(), reason="not an x86 CPU with AVX2 and FMA")
@EACH_OP
@EACH_DTYPE
def test_loops_are_vectorised(assembly: dict[str, str], op: str, dtype: str) -> None:
    code = assembly[f"{op} {dtype}"]
    packed = "ps" if dtype == "float32" else "pd"
    # The polynomial alone has 6 or 11 of them.
    assert len(re.findall(rf"\bvfmadd\d+{packed}\s.*%[yz]mm", code)) >= 6
    assert re.search(rf"\bvmul{packed}\s.*%[yz]mm", code)
    # The maximum goes by the order of integers.
    size = "d" if dtype == "float32" else "[qd]"
    assert re.search(rf"\bv(pmaxs{size}|pcmpgt{size})\s.*%[yz]mm", code)


# ---- signatures and layouts


@needs_numba
@EACH_DTYPE
def test_one_signature_for_each_type(dtype: str) -> None:
    """Whatever the layout and the flags, nothing is compiled anew, and the bits are the same."""
    from fastsoftmax._numba import kernels

    fastsoftmax._backends._load("numba").warmup()
    x = (generator("layouts", dtype).normal(size=(6, 2500)) * 5).astype(dtype)
    t = np.array([0.3, 0.7, 1, 2, 7, 0.7])
    inside = np.zeros((6, 2600), dtype)[:, 3:2503]
    inside[:] = x
    locked, locked_t = x.copy(), t.copy()
    locked.flags.writeable = locked_t.flags.writeable = False
    for op in OPS:
        want = run(op, x, t)
        assert same_bits(run(op, inside, t), want)
        assert same_bits(run(op, locked, locked_t), want)
        assert same_bits(run(op, x[::-1], t[::-1].copy()), want[::-1])
        assert same_bits(run(op, np.broadcast_to(x[0], (6, 2500)), 0.3)[4], want[0])
        assert same_bits(run(op, x[2:3], t[2:3]), want[2:3])
        if op == "logsumexp":
            out = np.zeros(12, dtype)
            assert same_bits(run(op, x, t, out[::2]), want)
            assert not out[1::2].any()
        else:
            assert same_bits(run(op, x, t, inside), want)
            inside[:] = x
        assert len(getattr(kernels, op).signatures) == 2
    assert same_bits(locked, x)


@needs_numba
@pytest.mark.parametrize("op", ["softmax", "log_softmax"])
@EACH_DTYPE
def test_in_place(op: str, dtype: str) -> None:
    rng = generator("in place", dtype)
    for length in (1, 5, 127, 128, 129, 2047, 2048, 2049, 4096, 5003):
        for temperature in (0.0, 0.7, np.inf):
            x = (rng.normal(size=(2, length)) * 9).astype(dtype)
            want = run(op, x, temperature)
            assert same_bits(run(op, x, temperature, x), want), (length, temperature)


@needs_numba
@EACH_DTYPE
def test_blocks_far_below_the_maximum(dtype: str) -> None:
    """Their weight, times the bias of the exponentials, would be denormal."""
    far = 45 if dtype == "float32" else 360
    rng = generator("far", dtype)
    for depth in (1.0, 1.3, 1.8, 2.1, 3.0):
        x = (rng.uniform(0, far / 4, size=(2, 6000)) - depth * far).astype(dtype)
        x[0, 5000] = x[1, 100] = 0
        for op in OPS:
            assert_close(op, run(op, x, 1.0), x)


@needs_numba
def test_many_threads() -> None:
    x = generator("threads").normal(size=(40, 5003)).astype("f4")
    want = run("softmax", x)
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(lambda i: run("softmax", x[i : i + 1]), range(len(x))))
    assert same_bits(np.concatenate(rows), want)


# ---- the compile cache

CALL = """
import numpy as np, fastsoftmax
from fastsoftmax._numba import kernels
p = fastsoftmax.softmax(np.array([0.0, 1.0, 2.0], "f4"))
stats = kernels.softmax.stats
print(json.dumps({
    "file": fastsoftmax.__file__,
    "p": p.tolist(),
    "hits": sum(stats.cache_hits.values()),
    "misses": sum(stats.cache_misses.values()),
    "cache": fastsoftmax._backends.config()["numba cache"],
}))
"""


def _check(result: Any, package: Path) -> None:
    assert Path(result["file"]).parent == package
    np.testing.assert_allclose(result["p"], [0.09003057, 0.24472848, 0.66524094], rtol=1e-6)


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
def test_second_process_hits_the_cache(tmp_path: Path) -> None:
    first = python(CALL, NUMBA_CACHE_DIR=str(tmp_path))
    second = python(CALL, NUMBA_CACHE_DIR=str(tmp_path))
    assert (first["hits"], first["misses"]) == (0, 1)
    assert (second["hits"], second["misses"]) == (1, 0)
    assert second["p"] == first["p"]


@needs_numba
@pytest.mark.skipif(sys.platform != "linux", reason="the user's cache directory is Linux's")
def test_read_only_install(read_only: Path, tmp_path: Path) -> None:
    """The cache goes to the user's directory."""
    for hits in (0, 1):
        home = {"NUMBA_CACHE_DIR": None, "XDG_CACHE_HOME": str(tmp_path / "user")}
        result = python(CALL, read_only, **home)
        _check(result, read_only)
        assert Path(result["cache"]).is_relative_to(tmp_path / "user")
        assert (result["hits"], result["misses"]) == (hits, 1 - hits)


@needs_numba
@pytest.mark.skipif(sys.platform == "win32", reason="there is no such path")
def test_nowhere_to_write(read_only: Path) -> None:
    """No cache, and no "cannot cache function: no locator available" either."""
    home = None if sys.platform == "linux" else os.devnull
    nowhere = {"NUMBA_CACHE_DIR": None, "HOME": home, "XDG_CACHE_HOME": f"{os.devnull}/cache"}
    result = python(CALL, read_only, **nowhere)
    _check(result, read_only)
    assert result["cache"] == "none"


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

"""fastsoftmax score and fastsoftmax sample."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.special
from numpy.testing import assert_allclose, assert_array_equal
from test_cli import check_error, refused, run

import fastsoftmax
from fastsoftmax import _cli

Main = Callable[[list[str]], int]


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Main:
    """`main` without its handler of SIGTERM, which belongs to a process of its own."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return _cli.main


@pytest.fixture
def x(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(0, 4, (3, 4, 101)).astype(np.float32)


@pytest.fixture
def targets(rng: np.random.Generator) -> np.ndarray:
    ids = rng.integers(0, 101, (3, 4))
    ids[1, 2] = -100
    return ids


@pytest.fixture
def source(tmp_path: Path, x: np.ndarray) -> Path:
    np.save(tmp_path / "logits.npy", x)
    return tmp_path / "logits.npy"


@pytest.fixture
def tokens(tmp_path: Path, targets: np.ndarray) -> Path:
    np.save(tmp_path / "targets.npy", targets)
    return tmp_path / "targets.npy"


def losses(x: np.ndarray, targets: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    logp = scipy.special.log_softmax(x.astype("f8") / temperature, axis=-1)
    own = np.take_along_axis(logp, np.maximum(targets, 0)[..., None], -1)[..., 0]
    return np.where(targets < 0, 0.0, -own)


def printed(text: str) -> dict[str, float]:
    return {name: float(value) for name, value in map(str.split, text.splitlines())}


# ---- score


def test_score(source: Path, tokens: Path, x: np.ndarray, targets: np.ndarray) -> None:
    result = run("score", source, tokens, "--temperature", 0.7)
    assert (result.returncode, result.stderr) == (0, "")
    want = losses(x, targets, 0.7).sum() / 11
    got = printed(result.stdout)
    assert list(got) == ["tokens", "loss", "perplexity"]
    assert got["tokens"] == 11
    assert_allclose(got["loss"], want, rtol=1e-7)
    assert_allclose(got["perplexity"], math.exp(want), rtol=1e-6)


@pytest.mark.parametrize("size", [4, 500, 2000, 1 << 26])
def test_score_in_chunks(
    size: int,
    source: Path,
    tokens: Path,
    x,
    targets,
    tmp_path: Path,
    main: Main,
    capsys,
    monkeypatch,
) -> None:
    monkeypatch.setattr(_cli, "_CHUNK_BYTES", size)
    out = tmp_path / "losses.npy"
    assert main(["score", str(source), str(tokens), "-o", str(out)]) == 0
    want = losses(x, targets)
    got = np.load(out)
    assert got.dtype == np.float32
    assert_allclose(got, want, rtol=1e-6)
    assert_allclose(printed(capsys.readouterr().out)["loss"], want.sum() / 11, rtol=1e-7)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["logits.npy", "losses.npy", "targets.npy"]


def test_score_of_one_row_and_of_none(tmp_path: Path, main: Main, capsys) -> None:
    np.save(tmp_path / "x.npy", np.array([0.0, 0.0]))
    np.save(tmp_path / "y.npy", np.array(1))
    assert main(["score", str(tmp_path / "x.npy"), str(tmp_path / "y.npy")]) == 0
    got = printed(capsys.readouterr().out)
    assert_allclose(list(got.values()), [1, math.log(2), 2], rtol=1e-8)
    args = ["score", str(tmp_path / "x.npy"), str(tmp_path / "y.npy"), "--ignore-index", "1"]
    assert main(args) == 0
    got = printed(capsys.readouterr().out)
    assert got["tokens"] == 0
    assert math.isnan(got["loss"])
    assert math.isnan(got["perplexity"])


def test_score_refuses(source: Path, tokens: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "flat.npy", np.zeros(12, int))
    refused(run("score", source, tmp_path / "flat.npy"), "flat.npy has shape (12,)", "(3, 4)")
    np.save(tmp_path / "large.npy", np.full((3, 4), 101))
    refused(run("score", source, tmp_path / "large.npy"), "large.npy[0, 0] is 101", "[0, 101)")
    np.save(tmp_path / "real.npy", np.zeros((3, 4)))
    refused(run("score", source, tmp_path / "real.npy"), "real.npy has dtype float64")
    np.save(tmp_path / "complex.npy", np.zeros((3, 4, 5), complex))
    refused(run("score", tmp_path / "complex.npy", tokens), "complex.npy has dtype complex128")
    refused(run("score", source, tokens, "-t", -1), "temperature is -1")
    refused(run("score", source, tokens, "-o", source), "is the input")
    refused(run("score", source, tokens, "-o", tokens), "is the input")
    refused(run("score", source, tmp_path / "none.npy"), "cannot read", "none.npy")
    refused(run("score", source), "TARGETS.npy")
    np.save(tmp_path / "scalar.npy", np.float32(1))
    refused(run("score", tmp_path / "scalar.npy", tokens), "shape")


# ---- sample


ARGS = ("--temperature", 0.7, "--top-k", 20, "--top-p", 0.95, "--min-p", 0.01, "--seed", 1)
KWARGS = {"temperature": 0.7, "top_k": 20, "top_p": 0.95, "min_p": 0.01, "seed": 1}


def test_sample(source: Path, x: np.ndarray) -> None:
    result = run("sample", source, *ARGS)
    assert (result.returncode, result.stderr) == (0, "")
    want = fastsoftmax.sample(x, **KWARGS)
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert_array_equal([int(a) for a, _ in lines], want.ids.ravel())
    assert_allclose([float(b) for _, b in lines], want.logprobs.ravel(), rtol=1e-7)


@pytest.mark.parametrize("size", [4, 500, 2000, 1 << 26])
def test_sample_in_chunks(
    size: int, source: Path, x: np.ndarray, tmp_path: Path, main: Main, capsys, monkeypatch
) -> None:
    """A row draws the same however the file was cut."""
    monkeypatch.setattr(_cli, "_CHUNK_BYTES", size)
    out = tmp_path / "drawn.npz"
    assert main(["sample", str(source), *map(str, ARGS), "--output", str(out)]) == 0
    want = fastsoftmax.sample(x, **KWARGS)
    with np.load(out) as got:
        assert sorted(got) == ["ids", "logprobs"]
        assert_array_equal(got["ids"], want.ids)
        assert_array_equal(got["logprobs"], want.logprobs)
        assert got["logprobs"].dtype == np.float32
    assert capsys.readouterr().out == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["drawn.npz", "logits.npy"]


def test_sample_without_a_seed(tmp_path: Path, main: Main, capsys) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 1_000_000), "f4"))
    for _ in range(3):
        assert main(["sample", str(tmp_path / "x.npy")]) == 0
    assert len(set(capsys.readouterr().out.splitlines())) > 1


def test_sample_of_one_row_and_of_nothing_to_draw(tmp_path: Path, main: Main, capsys) -> None:
    np.save(tmp_path / "x.npy", np.array([0.0, 9.0, 3.0]))
    assert main(["sample", str(tmp_path / "x.npy"), "--temperature", "0"]) == 0
    assert capsys.readouterr().out == "1\t0\n"
    np.save(tmp_path / "x.npy", np.array([[0.0, np.nan]]))
    assert main(["sample", str(tmp_path / "x.npy")]) == 0
    assert capsys.readouterr().out == "-1\tnan\n"


def test_sample_of_no_rows(tmp_path: Path, main: Main, capsys) -> None:
    out = tmp_path / "drawn.npz"
    for shape in ((0, 4), (2, 0, 4), (0, 3, 4)):
        np.save(tmp_path / "x.npy", np.empty(shape, "f4"))
        assert main(["sample", str(tmp_path / "x.npy")]) == 0
        assert capsys.readouterr().out == ""
        assert main(["sample", str(tmp_path / "x.npy"), "-o", str(out)]) == 0
        with np.load(out) as got:
            assert got["ids"].shape == got["logprobs"].shape == shape[:-1]


@pytest.mark.parametrize("command", ["score", "sample"])
def test_output_in_no_directory(
    command: str, source: Path, tokens: Path, tmp_path: Path, main: Main, capsys, monkeypatch
) -> None:
    """That is said before the work."""
    monkeypatch.setattr(_cli, "_over", None)
    files = [source, tokens] if command == "score" else [source]
    check_error(capsys, main, (command, *files, "-o", tmp_path / "no" / "out"), "cannot write")


def test_nobody_reads_to_the_end(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((50_000, 2), "f4"))  # lines for more than a pipe holds
    args = [sys.executable, "-m", "fastsoftmax", "sample", str(tmp_path / "x.npy"), "-t", "0"]
    with subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline().split() == [b"0", b"0"]
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_sample_refuses(source: Path, tmp_path: Path) -> None:
    refused(run("sample", source, "--top-p", 1.5), "top_p is 1.5")
    refused(run("sample", source, "--top-k", -3), "top_k is -3")
    refused(run("sample", source, "--seed", 2**64), "seed is 18446744073709551616")
    refused(run("sample", source, "-o", source), "is the input")
    np.save(tmp_path / "text.npy", np.array([["a"]]))
    refused(run("sample", tmp_path / "text.npy"), "text.npy has dtype <U1")
    np.save(tmp_path / "scalar.npy", np.float32(1))
    refused(run("sample", tmp_path / "scalar.npy"), "scalar.npy is a scalar")


COMMANDS = {
    "score": ["score", "x.npy", "y.npy"],
    "sample": ["sample", "x.npy", "--top-p", "0.9", "-o", "drawn.npz"],
    "softmax": ["softmax", "x.npy", "p.npy", "--temperature", "0.7"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_memory_stays_constant(command: str, tmp_path: Path) -> None:
    """Files larger than the memory that may be had take no more of it than a few chunks, however
    large they are. The pages of mapped files count as well."""
    pytest.importorskip("resource")
    code = """
import os, resource, sys
import fastsoftmax
from fastsoftmax._backends._numpy_scoring import ReferenceScoring
from fastsoftmax._backends import current
from fastsoftmax._cli import main
if isinstance(current(), ReferenceScoring):
    sys.exit(77)
os.chdir("small")  # what is loaded and compiled at the first call is no part of it
main(sys.argv[2:])
os.chdir("..")
_, hard = resource.getrlimit(resource.RLIMIT_DATA)
resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[1]), hard))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
status = main(sys.argv[2:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
sys.exit(status)
"""
    n, most = 64000, []
    (tmp_path / "small").mkdir()
    np.save(tmp_path / "small" / "x.npy", np.zeros((2, n), "f2"))
    np.save(tmp_path / "small" / "y.npy", np.zeros(2, int))
    for rows in (1500, 3000):  # 192 and 384 MB
        x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float16, (rows, n))
        for i in range(0, rows, 500):
            x[i : i + 500] = np.linspace(0, 3, n, dtype="f2")
        size = x.nbytes
        del x
        np.save(tmp_path / "y.npy", np.zeros(rows, int))
        done = subprocess.run(
            [sys.executable, "-c", code, str(size), *COMMANDS[command]],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        if done.returncode == 77:
            pytest.skip("the reference takes minutes for this")
        assert done.returncode == 0, done.stderr
        most.append(int(done.stdout.splitlines()[-1]))  # kB
    assert max(most) < 160_000, most
    assert abs(most[1] - most[0]) < 40_000, most

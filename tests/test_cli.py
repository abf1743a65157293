"""The command line, from outside as its users run it and from inside with small chunks."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import scipy.special

import fastsoftmax
from fastsoftmax import _cli

COMMANDS = {
    "softmax": scipy.special.softmax,
    "log-softmax": scipy.special.log_softmax,
    "logsumexp": scipy.special.logsumexp,
}


def run(*args: object, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fastsoftmax", *map(str, args)],
        capture_output=True,
        text=True,
        env=os.environ | env,
        timeout=120,
    )


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> object:
    """`main` without its handler of SIGTERM, which belongs to a process of its own."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return _cli.main


@pytest.fixture
def x(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(0, 4, (6, 101)).astype(np.float32)


@pytest.fixture
def source(tmp_path: Path, x: np.ndarray) -> Path:
    path = tmp_path / "in.npy"
    np.save(path, x)
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out.npy"


def refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    """The run failed with status 2, one line that has these words in it, and nothing else."""
    assert result.returncode == 2, result
    assert result.stdout == ""
    assert result.stderr.startswith("fastsoftmax: error: ")
    assert result.stderr.endswith("\n")
    assert len(result.stderr.splitlines()) == 1, result.stderr
    for word in words:
        assert word in result.stderr


# From outside


@pytest.mark.parametrize("command", COMMANDS)
def test_result(command: str, source: Path, target: Path, x: np.ndarray) -> None:
    result = run(command, source, target, "--temperature", 0.7)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    actual = np.load(target)
    assert actual.dtype == np.float32
    expected = COMMANDS[command](x.astype(np.float64) / 0.7, axis=-1)
    np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=1e-6)
    assert sorted(p.name for p in source.parent.iterdir()) == ["in.npy", "out.npy"]


def test_replaces_an_old_output(source: Path, target: Path, x: np.ndarray) -> None:
    target.write_text("old")
    assert run("softmax", source, target).returncode == 0
    assert np.load(target).shape == x.shape


def test_info(source: Path) -> None:
    result = run("info", FASTSOFTMAX_BACKEND="numpy")
    assert result.returncode == 0
    assert fastsoftmax.__version__ in result.stdout
    assert "numpy" in result.stdout


def test_version() -> None:
    assert run("--version").stdout == f"fastsoftmax {fastsoftmax.__version__}\n"


def test_help_names_every_command() -> None:
    result = run("--help")
    assert result.returncode == 0
    for command in (*COMMANDS, "info", "config"):
        assert command in result.stdout


@pytest.mark.parametrize(
    ("args", "word"),
    [
        ((), "COMMAND"),
        (("soft",), "soft"),
        (("softmax", "in.npy"), "OUT.npy"),
        (("softmax", "in.npy", "out.npy", "--nonsense"), "--nonsense"),
        (("softmax", "in.npy", "out.npy", "--temperature", "warm"), "warm"),
        (("softmax", "in.npy", "out.npy", "--dtype", "int8"), "int8"),
    ],
)
def test_bad_usage(args: tuple[str, ...], word: str) -> None:
    refused(run(*args), word)


def test_missing_input(tmp_path: Path, target: Path) -> None:
    refused(run("softmax", tmp_path / "absent.npy", target), "absent.npy", "No such file")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt(number: signal.Signals, source: Path, target: Path) -> None:
    # The process signals itself in the middle of its work: there is no race to win.
    program = f"""
import os, signal, sys
import fastsoftmax
from fastsoftmax import _cli
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
def softmax(x, *args, original=fastsoftmax.softmax, **kwargs):
    if x.size:
        os.kill(os.getpid(), {int(number)})
    return original(x, *args, **kwargs)
fastsoftmax.softmax = softmax
sys.exit(_cli.main())
"""
    target.write_text("old")
    result = subprocess.run(
        [sys.executable, "-c", program, "softmax", source, target],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 128 + number
    assert result.stderr == ""
    assert target.read_text() == "old"
    assert sorted(p.name for p in source.parent.iterdir()) == ["in.npy", "out.npy"]


# From inside


def test_the_handler_of_signals_is_put_back(source: Path, target: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert _cli.main(["softmax", str(source), str(target)]) == 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_in_another_thread(source: Path, target: Path, x: np.ndarray) -> None:
    """Which may not handle signals."""
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(_cli.main, ["softmax", str(source), str(target)]).result() == 0
    assert np.load(target).shape == x.shape


def check_error(
    capsys: pytest.CaptureFixture[str], main: object, args: tuple[object, ...], *words: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(arg) for arg in args])
    captured = capsys.readouterr()
    refused(
        subprocess.CompletedProcess(args, caught.value.code, captured.out, captured.err), *words
    )


@pytest.mark.parametrize(
    ("array", "word"),
    [
        (np.array([1 + 2j]), "complex"),
        (np.array(["a"]), "<U1"),
        (np.array([(1, 2.0)], dtype="i4,f4"), "dtype"),
        (np.zeros((2, 3), "V2"), "bfloat16"),
        (np.array([None, {}]), "object"),
    ],
)
def test_unsupported_dtype(array, word, source, target, main, capsys) -> None:
    np.save(source, array, allow_pickle=True)
    check_error(capsys, main, ("softmax", source, target), "in.npy", word)
    assert not target.exists()


@pytest.mark.parametrize("content", [b"", b"1.0, 2.0\n", b"\x93NUMPY\x01\x00", b"PK\x03\x04" * 9])
def test_not_npy(content: bytes, source, target, main, capsys) -> None:
    source.write_bytes(content)
    check_error(capsys, main, ("softmax", source, target), "in.npy", ".npy file")


def test_truncated_input(source, target, main, capsys) -> None:
    source.write_bytes(source.read_bytes()[:-4])
    check_error(capsys, main, ("softmax", source, target), "in.npy")
    assert not target.exists()


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (("softmax", "--temperature", "-0.5"), "-0.5"),
        (("softmax", "--temperature", "nan"), "nan"),
        (("logsumexp", "--temperature", "0"), "> 0"),
        (("softmax", "--axis", "2"), "axis 2"),
        (("softmax", "--axis", "-3"), "axis -3"),
    ],
)
def test_bad_value(args, word, source, target, main, capsys) -> None:
    command, *options = args
    check_error(capsys, main, (command, source, target, *options), word)
    assert not target.exists()


def test_output_is_input(source, x, main, capsys) -> None:
    link = source.with_name("link.npy")
    link.hardlink_to(source)
    for output in (source, link):
        check_error(capsys, main, ("softmax", source, output), output.name, "is the input")
    np.testing.assert_array_equal(np.load(source), x)


def test_output_in_no_directory(source, tmp_path, main, capsys) -> None:
    check_error(capsys, main, ("softmax", source, tmp_path / "no" / "o.npy"), "o.npy")


def test_output_is_a_directory(source, tmp_path, main, capsys) -> None:
    check_error(capsys, main, ("softmax", source, tmp_path), "not a regular file")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write all")
def test_output_is_read_only(source, target, main, capsys) -> None:
    target.write_text("kept")
    target.chmod(stat.S_IRUSR)
    check_error(capsys, main, ("softmax", source, target), "read-only")
    assert target.read_text() == "kept"


def test_full_disk(source, target, main, capsys, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    check_error(capsys, main, ("softmax", source, target), "No space left")
    assert [p.name for p in source.parent.iterdir()] == ["in.npy"]


def test_crash_leaves_nothing_behind(source, target, main, monkeypatch) -> None:
    def crash(x: np.ndarray, *args: object, **kwargs: object) -> np.ndarray:
        if x.size:
            raise RuntimeError
        return x

    monkeypatch.setattr(fastsoftmax, "softmax", crash)
    with pytest.raises(RuntimeError):
        main(["softmax", str(source), str(target)])
    assert [p.name for p in source.parent.iterdir()] == ["in.npy"]


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_output_has_the_usual_permissions(source, target, main) -> None:
    assert main(["softmax", str(source), str(target)]) == 0
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE(source.stat().st_mode)


@pytest.mark.skipif(os.name != "posix", reason="links of POSIX")
def test_output_link_stays_a_link(source, target, tmp_path, main) -> None:
    target.symlink_to(tmp_path / "far.npy")
    assert main(["softmax", str(source), str(target)]) == 0
    assert target.is_symlink()
    assert np.load(tmp_path / "far.npy").shape == np.load(source).shape


@pytest.mark.parametrize("chunk_bytes", [1, 100, 3000, 1 << 20])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((), -1),
        ((7,), 0),
        ((1,), -1),
        ((40, 33), -1),
        ((40, 33), 0),
        ((4, 5, 60), 0),
        ((4, 5, 60), 1),
        ((4, 5, 60), -1),
        ((2, 3, 4, 5), -3),
        ((0, 5), -1),
        ((5, 0), -1),
        ((5, 0), 0),
        ((0,), 0),
    ],
)
@pytest.mark.parametrize("command", COMMANDS)
def test_chunks(
    command, shape, axis, order, chunk_bytes, rng, source, target, main, monkeypatch
) -> None:
    """Whatever the chunks, the file holds what the function returns."""
    monkeypatch.setattr(_cli, "_CHUNK_BYTES", chunk_bytes)
    x = np.asarray(rng.normal(0, 4, shape), dtype=np.float32, order=order)
    np.save(source, x)
    assert main([command, str(source), str(target), f"--axis={axis}", "-t", "0.7"]) == 0
    function = getattr(fastsoftmax, command.replace("-", "_"))
    expected = np.asarray(function(x, axis, temperature=0.7))
    actual = np.load(target)
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=1e-7)


def test_every_chunk_is_small(monkeypatch, source, target, main) -> None:
    sizes = []

    def softmax(x: np.ndarray, *args: object, **kwargs: object) -> object:
        sizes.append(x.size)
        return original(x, *args, **kwargs)

    original = fastsoftmax.softmax
    monkeypatch.setattr(fastsoftmax, "softmax", softmax)
    monkeypatch.setattr(_cli, "_CHUNK_BYTES", 4 * 1000)
    np.save(source, np.zeros((3, 50, 90), np.float32))
    for axis in range(3):
        sizes.clear()
        assert main(["softmax", str(source), str(target), f"--axis={axis}"]) == 0
        assert sum(sizes) == 3 * 50 * 90
        assert max(sizes) <= 1000


@pytest.mark.parametrize(
    ("dtype", "option", "expected"),
    [
        ("f2", None, "f2"),
        ("f2", "float32", "f4"),
        ("f4", "float64", "f8"),
        ("f8", "float16", "f2"),
        (">f4", None, "=f4"),
        ("i2", None, "f8"),
        ("?", "float32", "f4"),
    ],
)
def test_dtype(dtype, option, expected, source, target, main) -> None:
    x = np.arange(12).reshape(3, 4).astype(dtype)
    np.save(source, x)
    options = [] if option is None else ["--dtype", option]
    assert main(["softmax", str(source), str(target), *options]) == 0
    actual = np.load(target)
    assert actual.dtype == np.dtype(expected)
    np.testing.assert_allclose(
        actual, scipy.special.softmax(x.astype(np.float64), axis=-1), rtol=1e-3, atol=1e-7
    )


class Terminal:
    """A standard error output that claims to be a terminal."""

    def __init__(self) -> None:
        self.text = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass


@pytest.mark.parametrize("quiet", [False, True])
def test_progress_bar(quiet, source, target, main, monkeypatch) -> None:
    tqdm = pytest.importorskip("tqdm")
    monkeypatch.setattr(tqdm, "tqdm", lambda **options: original(**options | {"delay": 0}))
    original = tqdm.std.tqdm
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert main(["softmax", str(source), str(target), *["--quiet"] * quiet]) == 0
    assert bool(terminal.text) is not quiet


def test_no_bar_without_tqdm(source, target, main, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert main(["softmax", str(source), str(target)]) == 0
    assert terminal.text == ""

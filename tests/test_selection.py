"""Which backend serves: the environment, what is missing, and `use_backend`."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import textwrap
import threading
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import numpy as np
import pytest
from support import CAPS, X86, available, same_bits, using, why_not

import fastsoftmax
from fastsoftmax import BackendUnavailableError, available_backends, backend, use_backend

NAMES = ("c", "numba", "numpy")
REASONS = available_backends()
needs_c = pytest.mark.skipif(REASONS["c"] is not None, reason=f"c: {REASONS['c']}")
needs_numba = pytest.mark.skipif(REASONS["numba"] is not None, reason=f"numba: {REASONS['numba']}")
FOREIGN = tuple({"avx512", "avx2", "neon", "scalar"} - set(CAPS))

# Prefixes for scripts: a module that cannot be imported. The C module needs _cffi_backend to load.
WITHOUT_C = "import sys; sys.modules['_cffi_backend'] = None\n"
WITHOUT_NUMBA = "import sys; sys.modules['numba'] = sys.modules['llvmlite'] = None\n"


def run(script: str, tmp_path: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """A script in a fresh interpreter, with only the given settings of the package."""
    settings = {k: v for k, v in os.environ.items() if not k.startswith("FASTSOFTMAX_")}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        env={**settings, **env},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def output(script: str, tmp_path: Path, **env: str) -> str:
    done = run(script, tmp_path, **env)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


MISSING = pytest.mark.parametrize(
    ("name", "prefix"), [("c", WITHOUT_C), ("numba", WITHOUT_NUMBA)], ids=["c", "numba"]
)

WHICH = "import fastsoftmax; print(fastsoftmax.backend())"

# The error of an import, as the one who imports sees it.
IMPORT_ERROR = """
try:
    import fastsoftmax
except ImportError as error:
    print(type(error).__name__)
    print(repr(error.__cause__))
    print(error)
"""


# ---- FASTSOFTMAX_BACKEND


@pytest.mark.parametrize("name", NAMES)
def test_forced(name: str, tmp_path: Path) -> None:
    if REASONS[name] is not None:
        pytest.skip(f"{name}: {REASONS[name]}")
    script = WHICH + "; print(float(fastsoftmax.softmax([0.0, 0.0])[0]))"
    assert output(script, tmp_path, FASTSOFTMAX_BACKEND=name).split() == [name, "0.5"]


@pytest.mark.parametrize("value", [None, "auto"])
def test_auto_takes_the_first_that_works(value: str | None, tmp_path: Path) -> None:
    first = next(name for name in NAMES if REASONS[name] is None)
    env = {} if value is None else {"FASTSOFTMAX_BACKEND": value}
    assert output(WHICH, tmp_path, **env) == first


@pytest.mark.parametrize("value", ["cuda", "C", "numpy ", "c,numba", "avx2"])
def test_unknown_value(value: str, tmp_path: Path) -> None:
    kind, _, *text = output(IMPORT_ERROR, tmp_path, FASTSOFTMAX_BACKEND=value).splitlines()
    assert kind == "ImportError"
    message = " ".join(text)
    for word in ("FASTSOFTMAX_BACKEND", repr(value), "auto", *NAMES):
        assert word in message


@needs_c
def test_auto_falls_from_c_to_numba(tmp_path: Path) -> None:
    if REASONS["numba"] is not None:
        pytest.skip(f"numba: {REASONS['numba']}")
    script = WITHOUT_C + WHICH + "; print(fastsoftmax.available_backends())"
    name, reasons = output(script, tmp_path).splitlines()
    assert name == "numba"
    reasons = eval(reasons)
    assert set(reasons) == set(NAMES)
    assert "_cffi_backend" in reasons["c"]
    assert reasons["numba"] is None
    assert reasons["numpy"] is None


def test_auto_falls_to_numpy(tmp_path: Path) -> None:
    script = """
        import fastsoftmax
        print(fastsoftmax.backend())
        print(float(fastsoftmax.softmax([0.0, 0.0])[1]))
        print(fastsoftmax._backends.c_isas())
        print(fastsoftmax.available_backends())
        fastsoftmax.show_config()
    """
    script = WITHOUT_C + WITHOUT_NUMBA + textwrap.dedent(script)
    name, half, isas, reasons, *config = output(script, tmp_path).splitlines()
    assert (name, half, isas) == ("numpy", "0.5", "()")
    reasons = eval(reasons)
    assert isinstance(reasons["c"], str)
    assert "numba" in reasons["numba"]
    assert reasons["numpy"] is None
    # What was passed over and why is in the report too.
    assert reasons["c"] in "\n".join(config)
    assert reasons["numba"] in "\n".join(config)


@MISSING
def test_forced_but_missing(name: str, prefix: str, tmp_path: Path) -> None:
    script = prefix + IMPORT_ERROR
    kind, cause, *text = output(script, tmp_path, FASTSOFTMAX_BACKEND=name).splitlines()
    assert kind == "BackendUnavailableError"
    assert "Error" in cause, "it is chained from its cause"
    message = " ".join(text)
    assert name in message
    assert "install" in message, "it says what to do"
    assert ("compiler" if name == "c" else "fastsoftmax[numba]") in message


@MISSING
def test_use_backend_that_is_missing(name: str, prefix: str, tmp_path: Path) -> None:
    script = """
        import fastsoftmax
        for _ in range(2):
            try:
                with fastsoftmax.use_backend(NAME):
                    print("entered")
            except fastsoftmax.BackendUnavailableError as error:
                print(isinstance(error, ImportError), end=" ")
                print(error.__cause__ is not None, "install" in str(error))
        print(fastsoftmax.backend())
    """
    script = prefix + textwrap.dedent(script).replace("NAME", repr(name))
    got = output(script, tmp_path, FASTSOFTMAX_BACKEND="numpy").splitlines()
    assert got == ["True True True", "True True True", "numpy"]


@needs_c
def test_numba_is_imported_only_where_it_serves(tmp_path: Path) -> None:
    script = """
        import sys
        import fastsoftmax
        fastsoftmax.softmax([1.0, 2.0])
        fastsoftmax.warmup()
        fastsoftmax.show_config()
        print([m for m in ("numba", "llvmlite", "scipy", "torch", "ml_dtypes") if m in sys.modules])
    """
    for name in ("auto", "c", "numpy"):
        got = output(script, tmp_path, FASTSOFTMAX_BACKEND=name)
        assert got.splitlines()[-1] == "[]", name


@needs_numba
def test_numba_is_imported_where_it_serves(tmp_path: Path) -> None:
    script = "import sys, fastsoftmax; print('numba' in sys.modules)"
    assert output(script, tmp_path, FASTSOFTMAX_BACKEND="numba") == "True"


# ---- FASTSOFTMAX_ISA


def serving_isa(config: str) -> str:
    (line,) = (line for line in config.splitlines() if line.startswith("instruction set "))
    return line.split()[-1]


@needs_c
@pytest.mark.parametrize("cap", CAPS)
def test_instruction_set_cap(cap: str, tmp_path: Path) -> None:
    """The best the CPU has that is not above the cap."""
    isas = fastsoftmax._backends.c_isas()
    want = next(isa for isa in CAPS[CAPS.index(cap) :] if isa in isas)
    script = """
        import fastsoftmax
        fastsoftmax.show_config()
        print(fastsoftmax.softmax([0.0, 0.0, 0.0, 0.0])[0])
    """
    got = output(script, tmp_path, FASTSOFTMAX_ISA=cap)
    assert serving_isa(got) == want
    assert got.splitlines()[-1] == "0.25"


@needs_c
def test_no_cap_is_the_best_there_is(tmp_path: Path) -> None:
    script = "import fastsoftmax; fastsoftmax.show_config()"
    assert serving_isa(output(script, tmp_path)) == fastsoftmax._backends.c_isas()[0]


@needs_c
def test_instruction_sets_are_in_order() -> None:
    isas = fastsoftmax._backends.c_isas()
    assert isas[-1] == "scalar"
    assert list(isas) == [cap for cap in CAPS if cap in isas]


@pytest.mark.parametrize("value", ["sse9", "AVX2", *FOREIGN])
@pytest.mark.parametrize("name", ["auto", "numpy"])
def test_instruction_sets_there_are_not(value: str, name: str, tmp_path: Path) -> None:
    env = {"FASTSOFTMAX_ISA": value, "FASTSOFTMAX_BACKEND": name}
    kind, _, *text = output(IMPORT_ERROR, tmp_path, **env).splitlines()
    assert kind == "ImportError"
    message = " ".join(text)
    assert "FASTSOFTMAX_ISA" in message
    assert repr(value) in message
    listed = message.replace(repr(value), "")
    assert all(cap in listed for cap in CAPS)
    assert not any(cap in listed for cap in FOREIGN)


# ---- use_backend


def test_the_served_names() -> None:
    assert set(REASONS) == set(NAMES)
    assert list(REASONS) == list(NAMES)
    assert REASONS["numpy"] is None
    assert all(reason is None or reason for reason in REASONS.values())
    assert backend() in NAMES


def test_use_backend_nests_and_restores() -> None:
    before = backend()
    names = [name for name in NAMES if REASONS[name] is None]
    for outer in names:
        with use_backend(outer):
            assert backend() == outer
            for inner in names:
                with use_backend(inner):
                    assert backend() == inner
                assert backend() == outer
        assert backend() == before
    with pytest.raises(KeyError), use_backend("numpy"):
        raise KeyError
    assert backend() == before


def test_use_backend_takes_effect() -> None:
    """Another backend computes: the reference and the others differ in some last bit."""
    x = np.random.default_rng(5).normal(size=5000).astype("f4") * 5
    results = []
    for implementation in available():
        with using(implementation):
            assert backend() == implementation.partition("-")[0]
            results.append(fastsoftmax.softmax(x))
    if len(results) > 1:
        assert not all(same_bits(results[0], other) for other in results[1:])


def test_use_backend_refuses() -> None:
    before = backend()
    for name in ("cuda", "", "auto", None):
        with pytest.raises(ValueError, match=r"(?s)c.*numba.*numpy"), use_backend(name):
            pass
    for name, isa in (
        ("c", "sse9"),
        ("c", "AVX2"),
        ("numpy", "scalar"),
        *(("c", f) for f in FOREIGN),
    ):
        if name == "c" and REASONS["c"] is not None:
            continue
        wanted = "must be None" if name == "numpy" else "must be one of .*scalar"
        with pytest.raises(ValueError, match=f"isa is .*{wanted}"), use_backend(name, isa=isa):
            pass
    assert backend() == before


@needs_c
def test_an_instruction_set_this_cpu_lacks() -> None:
    for isa in set(CAPS) - set(fastsoftmax._backends.c_isas()):
        with pytest.raises(ValueError, match=isa), use_backend("c", isa=isa):
            pass


def test_other_threads_are_not_affected() -> None:
    before = backend()
    other = next((n for n in NAMES if REASONS[n] is None and n != before), None)
    if other is None:
        pytest.skip("needs two backends")
    entered, leave = threading.Event(), threading.Event()
    seen = []

    def elsewhere() -> None:
        with use_backend(other):
            seen.append(backend())
            entered.set()
            leave.wait(30)
        seen.append(backend())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    assert entered.wait(30)
    assert backend() == before
    with use_backend(before):
        leave.set()
        thread.join(30)
        assert backend() == before
    assert seen == [other, before]


def test_other_tasks_are_not_affected() -> None:
    before = backend()
    other = next((n for n in NAMES if REASONS[n] is None and n != before), None)
    if other is None:
        pytest.skip("needs two backends")

    async def inside(ready: asyncio.Event, done: asyncio.Event) -> str:
        with use_backend(other):
            ready.set()
            await done.wait()
            return backend()

    async def main() -> tuple[str, str]:
        ready, done = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(inside(ready, done))
        await ready.wait()
        here = backend()
        done.set()
        return here, await task

    assert asyncio.run(main()) == (before, other)


def test_backend_unavailable_error() -> None:
    assert issubclass(BackendUnavailableError, ImportError)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_computes(tmp_path: Path) -> None:
    script = """
        import os
        import numpy as np
        import fastsoftmax
        x = np.linspace(-5, 5, 100_000, dtype="f4").reshape(20, 5000)
        for name, reason in fastsoftmax.available_backends().items():
            if reason is None:
                with fastsoftmax.use_backend(name):
                    want = fastsoftmax.softmax(x)
                    child = os.fork()
                    if child == 0:
                        os._exit(0 if np.array_equal(fastsoftmax.softmax(x), want) else 1)
                    print(os.waitpid(child, 0)[1])
    """
    served = [name for name in NAMES if REASONS[name] is None]
    assert output(script, tmp_path).split() == ["0"] * len(served)


# ---- what the package says of itself


def test_show_config(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert fastsoftmax.show_config() is None
    text = capsys.readouterr().out
    lines = dict(line.split(maxsplit=1) for line in text.splitlines())
    name, _, isa = backend.partition("-")
    assert lines["fastsoftmax"] == fastsoftmax.__version__
    assert np.__version__ in lines["NumPy"]
    assert platform.python_version() in lines["Python"]
    assert lines["backend"] == name
    if isa:
        assert serving_isa(text) == isa
    if name == "numba":
        import numba

        assert numba.__version__ in text
    assert why_not(backend) is None


def test_warmup(backend: str) -> None:
    assert fastsoftmax.warmup() is None
    assert fastsoftmax.softmax([0.0, 0.0])[0] == 0.5


def test_public_names() -> None:
    wanted = {"softmax", "log_softmax", "logsumexp", "backend", "available_backends", "use_backend"}
    wanted |= {"show_config", "warmup", "BackendUnavailableError"}
    assert wanted <= set(fastsoftmax.__all__)
    assert all(hasattr(fastsoftmax, name) for name in fastsoftmax.__all__)


# ---- nothing breaks the import: whatever is broken, what is left serves

# What is found in the place of a module: an old numba beside a new NumPy, a library that does not
# load, a file of the user's that has the name, a failure of any other kind.
BROKEN = {
    "ImportError": "raise ImportError('Numba needs NumPy 1.26 or less')",
    "OSError": "raise OSError('libllvmlite.so: cannot open shared object file')",
    "AttributeError": "import numpy; numpy.no_such_name",
    "SystemError": "raise SystemError('initialization failed without raising an exception')",
    "RuntimeError": "raise RuntimeError('cannot cache function: no locator available')",
    "SyntaxError": "this is no Python",
    "": "empty = True",
}


def check_broken(name: str, file: Path, kind: str, tmp_path: Path) -> None:
    """A backend whose module is that file is passed over, and gives the reason when asked for."""
    module = {"c": "fastsoftmax._c", "numba": "numba"}[name]
    if name == "numba" and importlib.util.find_spec("llvmlite") is None:
        pytest.skip("needs llvmlite, which is imported first")
    script = f"""
        import importlib.util
        import sys

        class Finder:
            def find_spec(name, path=None, target=None):
                if name == {module!r}:
                    return importlib.util.spec_from_file_location(name, {str(file)!r})

        sys.meta_path.insert(0, Finder)
        import fastsoftmax
        print(fastsoftmax.backend() != {name!r})
        print(float(fastsoftmax.softmax([0.0, 0.0])[1]))
        reason = fastsoftmax.available_backends()[{name!r}]
        print(repr(reason))
        try:
            with fastsoftmax.use_backend({name!r}):
                print("entered")
        except fastsoftmax.BackendUnavailableError as error:
            print(reason in str(error), "install" in str(error), error.__cause__ is not None)
        fastsoftmax.show_config()
    """
    # The other backend that may be broken in this test is left out, which is quicker.
    prefix = WITHOUT_C if name == "numba" else WITHOUT_NUMBA
    lines = output(prefix + textwrap.dedent(script), tmp_path).splitlines()
    assert lines[:2] == ["True", "0.5"]
    assert kind in lines[2]
    assert lines[3] == "True True True"


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("name", ["c", "numba"])
def test_a_module_that_fails(name: str, kind: str, tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text(BROKEN[kind])
    check_broken(name, file, kind, tmp_path)


def test_a_c_module_of_another_machine(tmp_path: Path) -> None:
    file = tmp_path / f"broken{EXTENSION_SUFFIXES[-1]}"
    file.write_bytes(b"\x7fELF" + bytes(100))
    check_broken("c", file, "ImportError", tmp_path)


def test_variables_that_are_empty_count_as_unset(tmp_path: Path) -> None:
    names = ("FASTSOFTMAX_BACKEND", "FASTSOFTMAX_ISA", "FASTSOFTMAX_NUM_THREADS")
    script = WHICH + "; print(fastsoftmax.get_num_threads())"
    empty = output(script, tmp_path, **dict.fromkeys(names, ""))
    assert empty == output(script, tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="these are POSIX systems' places")
@pytest.mark.parametrize("name", ["auto", "numpy"])
def test_a_process_with_nowhere_to_write(name: str, tmp_path: Path) -> None:
    """No home, no cache, no temporary folder, a working directory that is gone, no streams."""
    script = """
        import os
        gone = os.path.abspath("gone")
        os.mkdir(gone)
        os.chdir(gone)
        os.rmdir(gone)
        for stream in (0, 1, 2):
            os.close(stream)
        import fastsoftmax
        good = fastsoftmax.softmax([0.0, 0.0])[1] == 0.5
        good &= int(fastsoftmax.sample([[0.0, 900.0]]).ids[0]) == 1
        fastsoftmax.warmup()
        os._exit(7 if good else 1)
    """
    nowhere = f"{os.devnull}/none"
    places = ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "NUMBA_CACHE_DIR")
    env = dict.fromkeys(places, nowhere)
    # With the missing folder on its path Python 3.13.0 does not even import NumPy.
    done = run(script, tmp_path, FASTSOFTMAX_BACKEND=name, PYTHONSAFEPATH="1", **env)
    assert done.returncode == 7, done.stderr


def test_importing_and_calling_writes_no_file(tmp_path: Path) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    places = ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "LOCALAPPDATA")
    for name in ("c", "numpy"):
        if REASONS[name] is None:
            script = "import fastsoftmax; fastsoftmax.softmax([1.0]); fastsoftmax.show_config()"
            output(script, here, FASTSOFTMAX_BACKEND=name, **dict.fromkeys(places, str(home)))
    assert list(home.iterdir()) == list(here.iterdir()) == []


@pytest.mark.parametrize("options", ["-O", "-OO", "-I", "-E", "-B"])
def test_python_s_own_options(options: str, tmp_path: Path) -> None:
    """Without assertions, without docstrings, apart from the user's site."""
    script = (
        "import fastsoftmax as f; print(f.softmax([0.0, 0.0])[0], f.sample([[0.0, 900.0]]).ids)"
    )
    done = subprocess.run(
        [sys.executable, options, "-W", "error", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == ("0.5 [1]", "")


@needs_c
@pytest.mark.skipif(not X86 or shutil.which("qemu-x86_64") is None, reason="needs qemu-x86_64")
@pytest.mark.parametrize(("cpu", "isa"), [("Nehalem", "scalar"), ("Haswell", "avx2")])
def test_an_older_cpu(cpu: str, isa: str, tmp_path: Path) -> None:
    """Emulated: an instruction that the CPU does not have would end the process."""
    script = """
        import numpy as np
        import fastsoftmax
        x = np.random.default_rng(0).normal(size=(3, 5000)).astype("f4")
        fastsoftmax.show_config()
        print(fastsoftmax.softmax(x).tobytes().hex() + str(fastsoftmax.sample(x, seed=1).ids))
    """
    done = subprocess.run(
        ["qemu-x86_64", "-cpu", cpu, sys.executable, "-c", textwrap.dedent(script)],
        # NumPy's matrix library may have been told which instructions to use.
        env={
            k: v for k, v in os.environ.items() if not k.startswith(("FASTSOFTMAX_", "OPENBLAS_"))
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *config, bits = done.stdout.splitlines()
    assert serving_isa("\n".join(config)) == isa
    assert bits == output(script, tmp_path).splitlines()[-1], "the same bits as here"

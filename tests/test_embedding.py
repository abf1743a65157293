"""The C library outside Python: each way to build with it, what it exports, and its example.

The commands and the CMake files are those of docs/embedding.md. What compiles the whole library is
marked slow."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import DATA, blocks, real_logits

import fastsoftmax

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"
HEADER = CSRC / "include" / "fastsoftmax.h"
EXAMPLE = CSRC / "example" / "sample_npy.c"
DOCUMENT = ROOT / "docs" / "embedding.md"
PUBLIC = set(re.findall(r"FASTSOFTMAX_API[^;]*?(fastsoftmax_\w+)\(", HEADER.read_text()))

LINUX = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("readelf") is None, reason="reads ELF files by binutils"
)
NEEDS_CC = pytest.mark.skipif(
    os.name != "posix" or shutil.which("cc") is None, reason="needs a C compiler"
)
_REASON = fastsoftmax.available_backends()["c"]
NEEDS_C = pytest.mark.skipif(_REASON is not None, reason=f"c: {_REASON}")
# What the documented commands draw.
ARGUMENTS = {"temperature": 0.7, "top_p": 0.95, "seed": 1}


def shell(command: str, where: Path, **env: str) -> str:
    """What a documented command prints, run where `csrc` and the others are those of the project,
    and `python` is this one."""
    for name in ("csrc", "tests", "benchmarks"):
        if not (where / name).exists():
            (where / name).symlink_to(ROOT / name)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["sh", "-euc", command],
        cwd=where,
        env={**os.environ, "PATH": path, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def section(title: str) -> str:
    """A part of the document."""
    (text,) = re.findall(
        rf"^#+ {title}\n(.*?)(?=^##|\Z)", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE
    )
    return text


def test_every_block_of_the_document_is_run() -> None:
    titles = re.findall(r"^#+ (.*)$", DOCUMENT.read_text(), re.MULTILINE)[1:]
    found = [(t, re.findall(r"^```(\w+)$", section(re.escape(t)), re.MULTILINE)) for t in titles]
    run = {
        "With one command": ["sh"],
        "Installed, with pkg-config": ["sh"],
        "Installed, with CMake": ["cmake"],
        "As a part of a CMake project": ["cmake"],
        "From the Python package": ["sh", "python"],  # Python: by test_examples
        "From C++": ["sh"],
        "An example": ["c", "text"],
        "What a call costs": ["sh"],
    }
    assert {title: languages for title, languages in found if languages} == run


def check_draws(printed: str, logits: np.ndarray, **arguments: object) -> None:
    """Ids and log-probabilities that the example printed are those of the Python package."""
    want = fastsoftmax.sample(np.atleast_2d(logits), **arguments)
    lines = [line.split("\t") for line in printed.splitlines() if "\t" in line]
    assert [int(token) for token, _ in lines] == want.ids.tolist()
    assert len(lines) == len(want.ids)
    got = np.array([float(logprob) for _, logprob in lines])
    np.testing.assert_allclose(got, want.logprobs, rtol=1e-6, atol=1e-9)


# ---- the header and the example are clean


@NEEDS_CC
@pytest.mark.parametrize("source", [HEADER, EXAMPLE], ids=lambda path: path.name)
@pytest.mark.parametrize(
    "compiler",
    ["cc -x c -std=c99", "cc -x c -std=c11", "c++ -x c++ -std=c++11", "c++ -x c++ -std=c++20"],
)
def test_compiles_without_a_warning(source: Path, compiler: str) -> None:
    if shutil.which(compiler.split()[0]) is None:
        pytest.skip("needs a C++ compiler")
    warnings = "-pedantic -Wall -Wextra -Wshadow -Wconversion -Werror"
    command = [*compiler.split(), *warnings.split(), f"-I{HEADER.parent}", "-fsyntax-only", source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_version_is_the_same_everywhere() -> None:
    parts = re.findall(r"#define FASTSOFTMAX_VERSION_\w+ (\d+)", HEADER.read_text())
    assert ".".join(parts) == fastsoftmax.__version__
    cmake = (CSRC / "CMakeLists.txt").read_text()
    assert re.findall(r"project\(fastsoftmax VERSION (\S+)", cmake) == [fastsoftmax.__version__]
    project = (ROOT / "pyproject.toml").read_text()
    assert re.findall(r'^version = "(.*)"', project, re.MULTILINE) == [fastsoftmax.__version__]


# ---- from the Python package


@NEEDS_C
def test_the_installed_header_is_this_one() -> None:
    assert (Path(fastsoftmax.get_include()) / "fastsoftmax.h").read_text() == HEADER.read_text()


def config(*options: str, prefix: str = "") -> subprocess.CompletedProcess[str]:
    script = f"import sys\n{prefix}\nfrom fastsoftmax._cli import main\nmain(sys.argv[1:])"
    return subprocess.run(
        [sys.executable, "-c", script, "config", *options],
        capture_output=True,
        text=True,
        check=False,
    )


@NEEDS_C
def test_config() -> None:
    cflags, libs, both = (
        shlex.split(config(*options).stdout) for options in (["--cflags"], ["--libs"], [])
    )
    assert cflags[0] == f"-I{fastsoftmax.get_include()}"
    assert libs[0] == f"-L{fastsoftmax.get_library_dir()}"
    assert cflags + libs == both == shlex.split(config("--cflags", "--libs").stdout)


WITHOUT_MODULE = "sys.modules['fastsoftmax._c'] = None"


def test_config_without_the_library() -> None:
    done = config("--cflags", prefix=WITHOUT_MODULE)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "installed without its C library" in line
    assert "install a C compiler" in line


def test_directories_without_the_library() -> None:
    script = f"""
import sys
{WITHOUT_MODULE}
import fastsoftmax
for function in (fastsoftmax.get_include, fastsoftmax.get_library_dir):
    try:
        function()
    except fastsoftmax.BackendUnavailableError as error:
        print("without its C library" in str(error))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "True"]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, built from the Python package by the documented command."""
    where = tmp_path_factory.mktemp("package")
    (command,) = blocks(section("From the Python package"), "sh")
    check_draws(shell(command, where), real_logits(), **ARGUMENTS)
    return where / "sample_npy"


def run_example(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, *map(str, arguments)], capture_output=True, text=True, check=False
    )


@NEEDS_C
@NEEDS_CC
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("layout", ["rows", "columns", "one row", "no rows"])
def test_the_example_draws_what_python_draws(
    program: Path, tmp_path: Path, dtype: str, layout: str
) -> None:
    x = np.random.default_rng(3).normal(scale=4, size=(41, 777)).astype(dtype)
    x = {"rows": x, "columns": np.asfortranarray(x), "one row": x[0], "no rows": x[:0]}[layout]
    path = tmp_path / "logits.npy"
    np.save(path, x)
    for flags, arguments in (
        ([], {"seed": 0}),
        (["-t", 0.7, "-s", 2**64 - 1, "-j", 7], {"temperature": 0.7, "seed": 2**64 - 1}),
        (
            ["-k", 50, "-p", 0.9, "-m", 0.02, "-s", 9, "-j", 64],
            {"top_k": 50, "top_p": 0.9, "min_p": 0.02, "seed": 9},
        ),
        (["-t", 0, "-j", 1], {"temperature": 0.0, "seed": 0}),
        (["-t", "inf", "-s", 4], {"temperature": np.inf, "seed": 4}),
    ):
        done = run_example(program, *flags, path)
        assert done.returncode == 0, done.stderr
        with fastsoftmax.use_backend("c"):
            check_draws(done.stdout, x, **arguments)


@NEEDS_C
@NEEDS_CC
@pytest.mark.skipif(
    platform.machine() != "x86_64" or shutil.which("qemu-x86_64") is None,
    reason="needs qemu-x86_64",
)
@pytest.mark.parametrize("cpu", ["Nehalem", "SandyBridge", "Haswell"])
def test_an_older_cpu_draws_the_same(program: Path, cpu: str) -> None:
    """Emulated: without AVX, without AVX2, without AVX-512."""
    arguments = ["-t", "0.7", "-p", "0.95", "-s", "1", DATA / "minilm_logits_f16.npy"]
    here, there = (
        subprocess.run([*emulator, program, *arguments], capture_output=True, check=True).stdout
        for emulator in ([], ["qemu-x86_64", "-cpu", cpu])
    )
    assert here == there


@NEEDS_C
@NEEDS_CC
def test_the_example_refuses_what_it_cannot_read(program: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.npy"
    x = np.zeros((4, 30), np.float32)
    for bad, word in (
        (x.astype(np.int32), "dtype"),
        (x.astype(x.dtype.newbyteorder()), "dtype"),
        (x[None], "shape"),
        (x[0, 0], "shape"),
    ):
        np.save(path, bad)
        done = run_example(program, path)
        assert done.returncode == 1
        assert word in done.stderr
    np.save(path, x)
    whole = path.read_bytes()
    for size in (*range(0, 160, 3), len(whole) - 1):
        path.write_bytes(whole[:size])
        done = run_example(program, path)
        assert (done.returncode, done.stdout) == (1, ""), size
    # More rows than there can be memory for, of nothing.
    path.write_bytes(
        whole.replace(b"(4, 30)", b"(4611686018427387904, 0)").replace(b" " * 17, b"", 1)
    )
    assert "memory" in run_example(program, path).stderr
    for arguments in ((), ("-t", -1, path), ("-p", 2, path), ("-j", 0, path), (path / "none",)):
        assert run_example(program, *arguments).returncode == 1


@NEEDS_C
@NEEDS_CC
def test_from_cpp(tmp_path: Path) -> None:
    if shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler")
    (command,) = blocks(section("From C\\+\\+"), "sh")
    shell(command, tmp_path)
    logits = DATA / "minilm_logits_f16.npy"
    done = run_example(tmp_path / "sample_npy", "-t", 0.7, "-p", 0.95, "-s", 1, logits)
    check_draws(done.stdout, real_logits(), **ARGUMENTS)


@NEEDS_C
@NEEDS_CC
def test_the_document_s_example(tmp_path: Path) -> None:
    text = section("An example")
    (program,), (printed,) = blocks(text, "c"), blocks(text, "text")
    (tmp_path / "example.c").write_text(program)
    flags = "$(python -m fastsoftmax config)"
    shell(f"cc -Wall -Wextra -Werror example.c {flags} -o example", tmp_path)
    assert shell("./example", tmp_path) == printed


@NEEDS_C
@NEEDS_CC
def test_what_a_call_costs(tmp_path: Path) -> None:
    (command,) = blocks(section("What a call costs"), "sh")
    printed = shell(command.replace("./c_call 32000", "./c_call 100 5"), tmp_path)
    assert [line.split()[-3:][1] for line in printed.splitlines()] == ["ns"] * 3


# ---- what is exported


def symbols(path: Path, *options: str) -> set[str]:
    done = subprocess.run(
        ["nm", "--defined-only", *options, path], capture_output=True, text=True, check=True
    )
    return {line.split()[-1] for line in done.stdout.splitlines() if len(line.split()) > 2}


def check_shared(path: Path, *others: str) -> None:
    """A shared object exports the functions of the header, and calls its own."""
    assert symbols(path, "-D") == PUBLIC | set(others)
    relocations = subprocess.run(
        ["readelf", "-rW", path], capture_output=True, text=True, check=True
    ).stdout
    assert "R_" in relocations
    assert not re.findall(r"fastsoftmax_\w+", relocations)


def check_static(path: Path) -> None:
    """A static library has the functions of the header; the rest is hidden, and has a prefix of its
    own."""
    listed = subprocess.run(["readelf", "-sW", path], capture_output=True, text=True, check=True)
    visible, hidden = set(), set()
    for line in listed.stdout.splitlines():
        words = line.split()
        if len(words) == 8 and words[4] == "GLOBAL" and words[6] != "UND":
            (hidden if words[5] == "HIDDEN" else visible).add(words[7])
    assert visible == PUBLIC
    assert hidden
    assert all(name.startswith("fsm_") for name in hidden)


@LINUX
@NEEDS_C
def test_exports_of_the_python_module() -> None:
    import fastsoftmax._c

    check_shared(Path(fastsoftmax._c.__file__), "PyInit__c")


@LINUX
@NEEDS_C
def test_exports_of_the_static_library() -> None:
    check_static(Path(fastsoftmax.get_library_dir()) / "libfastsoftmax.a")


@LINUX
@NEEDS_C
def test_the_library_needs_only_arithmetic() -> None:
    """No memory from the heap, no threads, no files, no environment, no errno, no locale."""
    static = Path(fastsoftmax.get_library_dir()) / "libfastsoftmax.a"
    done = subprocess.run(["nm", "-u", static], capture_output=True, text=True, check=True)
    needed = {words[1] for line in done.stdout.splitlines() if len(words := line.split()) == 2}
    own = {name for name in needed if name.startswith(("fsm_", "fastsoftmax_"))}
    runtime = {"_GLOBAL_OFFSET_TABLE_", "__stack_chk_fail"}
    assert needed - own - runtime <= {"memcpy", "memmove", "memset", "fma", "fmaf"}


def test_the_public_names() -> None:
    assert {"fastsoftmax_softmax", "fastsoftmax_uniform", "fastsoftmax_version"} <= PUBLIC
    assert all(name in HEADER.read_text() for name in PUBLIC)


# ---- status codes


@NEEDS_C
class TestStatus:
    """What the header says of bad arguments and of none: the code, and nothing written."""

    ROWS, COLS = 3, 5

    def setup_method(self) -> None:
        from fastsoftmax._c import ffi, lib

        self.ffi, self.lib = ffi, lib
        self.x = ffi.new("float[]", [float(i) for i in range(self.ROWS * self.COLS)])
        self.temperature = ffi.new("double[]", [1.0] * self.ROWS)
        self.out = ffi.new("float[]", [7.0] * (self.ROWS * self.COLS))
        self.axes = ffi.new(
            "fastsoftmax_axis[]",
            [(self.ROWS, self.COLS, self.COLS, 0, 1), (self.COLS, 1, 1, 0, 0)],
        )
        self.filters = ffi.new(
            "fastsoftmax_filters *",
            (
                self.kept("int64_t[]", [5] * self.ROWS),
                self.kept("double[]", [1.0] * self.ROWS),
                self.kept("double[]", [0.0] * self.ROWS),
            ),
        )
        self.ids = ffi.new("int64_t[]", [0] * 15)
        self.numbers = ffi.new("double[]", [0.5] * 15)
        self.results = ffi.new("double[]", [7.0] * 15)
        memory = ffi.new("char[]", 1 << 20)
        self.memory = memory
        self.scratch = ffi.cast("void *", (int(ffi.cast("uintptr_t", memory)) + 63) & ~63)

    def kept(self, kind: str, value: list[float]) -> object:
        """An array that lives as long as the test."""
        array = self.ffi.new(kind, value)
        self.__dict__.setdefault("_kept", []).append(array)
        return array

    def batch(self, **fields: object) -> object:
        f32 = self.lib.FASTSOFTMAX_F32
        wanted = {
            "isa": self.lib.FASTSOFTMAX_ISA_SCALAR,
            "x_dtype": f32,
            "out_dtype": f32,
            "row_axes": 1,
            "col_axes": 1,
            "axes": self.axes,
            "x": self.x,
            "temperature": self.temperature,
            "out": self.out,
        }
        return self.ffi.new("fastsoftmax_batch *", wanted | fields)

    def every_function(
        self, batch: object, begin: int = 0, end: int = 3, m: int = 1, k: int = 2, draws: int = 1
    ) -> dict[str, int]:
        """The status of each function that takes a row range."""
        lib, null, results = self.lib, self.ffi.NULL, self.results
        rows = (begin, end, self.scratch)
        return {
            "softmax": lib.fastsoftmax_softmax(batch, *rows),
            "log_softmax": lib.fastsoftmax_log_softmax(batch, *rows),
            "logsumexp": lib.fastsoftmax_logsumexp(batch, *rows),
            "token_logprobs": lib.fastsoftmax_token_logprobs(
                batch, self.ids, m, results, null, null, *rows
            ),
            "topk": lib.fastsoftmax_topk(batch, k, self.ids, results, *rows),
            "moments": lib.fastsoftmax_moments(batch, results, *rows),
            "kl_divergence": lib.fastsoftmax_kl_divergence(batch, batch, results, *rows),
            "reduce": lib.fastsoftmax_reduce(batch, results, results + 8, *rows),
            "normalize": lib.fastsoftmax_normalize(batch, self.numbers, self.numbers, 0, *rows),
            "sample": lib.fastsoftmax_sample(
                batch, self.filters, self.numbers, draws, 1, self.ids, results, *rows
            ),
            "count_survivors": lib.fastsoftmax_count_survivors(
                batch, self.filters, self.ids, *rows
            ),
            "survivors": lib.fastsoftmax_survivors(
                batch, self.filters, self.ids, self.ids, results, *rows
            ),
        }

    def check_untouched(self) -> None:
        assert list(self.out) == [7.0] * 15
        assert list(self.results) == [7.0] * 15
        assert list(self.ids) == [0] * 15

    def test_all_is_well(self) -> None:
        assert set(self.every_function(self.batch()).values()) == {self.lib.FASTSOFTMAX_OK}
        assert list(self.out) != [7.0] * 15

    def test_refused_by_all(self) -> None:
        lib = self.lib
        negative = self.ffi.new("fastsoftmax_axis[]", [(3, 5, 5, 0, 1), (-1, 1, 1, 0, 0)])
        arm = platform.machine() in ("aarch64", "arm64")
        foreign = lib.FASTSOFTMAX_ISA_AVX2 if arm else lib.FASTSOFTMAX_ISA_NEON
        for fields, rows, code in (
            ({"isa": 17}, (0, 3), lib.FASTSOFTMAX_BAD_ISA),
            ({"isa": foreign}, (0, 3), lib.FASTSOFTMAX_BAD_ISA),
            ({"x_dtype": 4}, (0, 3), lib.FASTSOFTMAX_BAD_DTYPE),
            ({"out_dtype": 9}, (0, 3), lib.FASTSOFTMAX_BAD_DTYPE),
            ({"axes": negative}, (0, 3), lib.FASTSOFTMAX_BAD_SHAPE),
            ({"row_axes": -1}, (0, 3), lib.FASTSOFTMAX_BAD_SHAPE),
            ({}, (0, 4), lib.FASTSOFTMAX_BAD_SHAPE),
            ({}, (-1, 3), lib.FASTSOFTMAX_BAD_SHAPE),
            ({}, (2, 1), lib.FASTSOFTMAX_BAD_SHAPE),
            ({"x": self.ffi.NULL}, (0, 3), lib.FASTSOFTMAX_BAD_POINTER),
            ({"temperature": self.ffi.NULL}, (0, 3), lib.FASTSOFTMAX_BAD_POINTER),
        ):
            got = self.every_function(self.batch(**fields), *rows)
            assert set(got.values()) == {code}, (fields, rows, got)
            self.check_untouched()

    def test_temperatures_of_the_row_range_count(self) -> None:
        for bad in (-1.0, float("nan"), -float("inf")):
            self.temperature[2] = bad
            got = self.every_function(self.batch())
            assert set(got.values()) == {self.lib.FASTSOFTMAX_BAD_TEMPERATURE}
            self.check_untouched()
        assert set(self.every_function(self.batch(), 0, 2).values()) == {self.lib.FASTSOFTMAX_OK}
        self.temperature[0] = 0.0
        got = self.every_function(self.batch(), 0, 1)
        assert got.pop("logsumexp") == self.lib.FASTSOFTMAX_BAD_TEMPERATURE
        assert set(got.values()) == {self.lib.FASTSOFTMAX_OK}

    def test_numbers_of_their_own(self) -> None:
        shape = self.lib.FASTSOFTMAX_BAD_SHAPE
        for name, kwargs in (
            ("topk", {"k": 0}),
            ("topk", {"k": 6}),
            ("token_logprobs", {"m": -1}),
            ("sample", {"draws": -1}),
        ):
            assert self.every_function(self.batch(), **kwargs)[name] == shape
        narrow = self.ffi.new("fastsoftmax_axis[]", [(3, 5, 5, 0, 1), (4, 1, 1, 0, 0)])
        status = self.lib.fastsoftmax_kl_divergence(
            self.batch(), self.batch(axes=narrow), self.results, 0, 3, self.scratch
        )
        assert status == shape

    def test_no_rows_need_no_arrays(self) -> None:
        null = self.ffi.NULL
        empty = self.batch(x=null, temperature=null, out=null)
        got = self.every_function(empty, 1, 1)
        assert set(got.values()) == {self.lib.FASTSOFTMAX_OK}
        self.check_untouched()

    def test_no_columns(self) -> None:
        axes = self.ffi.new("fastsoftmax_axis[]", [(3, 0, 1, 0, 1), (0, 1, 1, 0, 0)])
        batch = self.batch(axes=axes, x=self.ffi.NULL)
        lib, minus = self.lib, -float("inf")
        assert lib.fastsoftmax_softmax(batch, 0, 3, self.scratch) == lib.FASTSOFTMAX_OK
        self.check_untouched()
        assert lib.fastsoftmax_logsumexp(batch, 0, 3, self.scratch) == lib.FASTSOFTMAX_OK
        assert list(self.out)[:4] == [minus, minus, minus, 7.0]
        assert lib.fastsoftmax_moments(batch, self.results, 0, 3, self.scratch) == 0
        assert list(self.results)[:13] == [minus, 0.0, 0.0, 0.0] * 3 + [7.0]
        assert lib.fastsoftmax_kl_divergence(batch, batch, self.results, 0, 3, self.scratch) == 0
        assert list(self.results)[:4] == [0.0, 0.0, 0.0, 0.0]
        got = lib.fastsoftmax_sample(
            batch, self.filters, self.numbers, 1, 1, self.ids, self.results, 0, 3, self.scratch
        )
        assert got == lib.FASTSOFTMAX_OK
        assert list(self.ids)[:4] == [-1, -1, -1, 0]
        assert np.isnan(list(self.results)[:3]).all()
        assert lib.fastsoftmax_block_count(batch) == 0
        assert (
            lib.fastsoftmax_topk(batch, 1, self.ids, self.results, 0, 3, self.scratch)
            == lib.FASTSOFTMAX_BAD_SHAPE
        )

    def test_scratch_sizes(self) -> None:
        lib = self.lib
        good, bad = self.batch(), self.batch(x_dtype=7)
        assert 0 < lib.fastsoftmax_scratch_size(good) <= 1 << 20
        assert lib.fastsoftmax_scoring_scratch_size(good, 5) > 0
        assert lib.fastsoftmax_sample_scratch_size(good, self.filters) > 0
        assert lib.fastsoftmax_scratch_size(bad) == 0
        assert lib.fastsoftmax_scoring_scratch_size(bad, 5) == 0
        assert lib.fastsoftmax_scoring_scratch_size(good, -1) == 0
        assert lib.fastsoftmax_sample_scratch_size(bad, self.filters) == 0


# ---- each way to build the whole library


@pytest.mark.slow
@NEEDS_CC
def test_with_one_command(tmp_path: Path) -> None:
    (command,) = blocks(section("With one command"), "sh")
    check_draws(shell(command, tmp_path), real_logits(), **ARGUMENTS)


NEEDS_CMAKE = pytest.mark.skipif(shutil.which("cmake") is None, reason="needs CMake")
NEEDS_PKG_CONFIG = pytest.mark.skipif(shutil.which("pkg-config") is None, reason="needs pkg-config")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the documented commands have installed the library, moved to another place after."""
    where = tmp_path_factory.mktemp("installed")
    (commands,) = blocks(section("Installed, with pkg-config"), "sh")
    check_draws(shell(commands, where), real_logits(), **ARGUMENTS)
    return (where / "usr").rename(where / "moved")


@pytest.mark.slow
@NEEDS_CC
@NEEDS_CMAKE
@NEEDS_PKG_CONFIG
class TestInstalled:
    def test_files(self, installed: Path) -> None:
        names = {str(p.relative_to(installed)) for p in installed.rglob("*") if p.is_file()}
        assert {"include/fastsoftmax.h", "lib/libfastsoftmax.a"} <= names
        assert {"lib/pkgconfig/fastsoftmax.pc"} <= names
        assert not [name for name in names if name.startswith("include/") and "internal" in name]

    @LINUX
    def test_exports(self, installed: Path) -> None:
        check_shared(installed / "lib" / "libfastsoftmax.so")
        check_static(installed / "lib" / "libfastsoftmax.a")

    @LINUX
    def test_name_and_version(self, installed: Path) -> None:
        short = ".".join(fastsoftmax.__version__.split(".")[:2])
        library = installed / "lib" / "libfastsoftmax.so"
        assert library.resolve().name == f"libfastsoftmax.so.{fastsoftmax.__version__}"
        done = subprocess.run(
            ["readelf", "-dW", library], capture_output=True, text=True, check=True
        )
        assert re.findall(r"SONAME.*\[(.*)\]", done.stdout) == [f"libfastsoftmax.so.{short}"]
        loaded = ctypes.CDLL(str(library))
        loaded.fastsoftmax_version.restype = ctypes.c_char_p
        assert loaded.fastsoftmax_version().decode() == fastsoftmax.__version__

    @pytest.mark.parametrize("kind", ["", "--static"])
    def test_moved_and_pkg_config(self, installed: Path, tmp_path: Path, kind: str) -> None:
        env = {"PKG_CONFIG_PATH": str(installed / "lib" / "pkgconfig")}
        flags = f"$(pkg-config --cflags --libs {kind} fastsoftmax)"
        link = "-static" if kind else f"-Wl,-rpath,{installed}/lib"
        shell(f"cc -pthread {link} csrc/example/sample_npy.c {flags} -o a", tmp_path, **env)
        logits = DATA / "minilm_logits_f16.npy"
        done = run_example(tmp_path / "a", "-t", 0.7, "-p", 0.95, "-s", 1, logits)
        check_draws(done.stdout, real_logits(), **ARGUMENTS)
        version = shell("pkg-config --modversion fastsoftmax", tmp_path, **env)
        assert version.strip() == fastsoftmax.__version__

    @pytest.mark.parametrize("shared", ["OFF", "ON"])
    def test_find_package(self, installed: Path, tmp_path: Path, shared: str) -> None:
        (project,) = blocks(section("Installed, with CMake"), "cmake")
        options = f"-DCMAKE_PREFIX_PATH={installed} -DBUILD_SHARED_LIBS={shared}"
        self.build(project, options, tmp_path)
        needed = subprocess.run(
            ["readelf", "-dW", tmp_path / "build" / "sample_npy"], capture_output=True, text=True
        ).stdout
        assert ("libfastsoftmax.so" in needed) == (shared == "ON")

    def test_another_minor_version_is_refused(self, installed: Path, tmp_path: Path) -> None:
        (project,) = blocks(section("Installed, with CMake"), "cmake")
        major, minor, _ = fastsoftmax.__version__.split(".")
        for version in (f"{major}.{int(minor) + 1}", f"{int(major) + 1}.0"):
            other = project.replace(f"fastsoftmax {major}.{minor}", f"fastsoftmax {version}")
            assert other != project
            with pytest.raises(AssertionError, match=r"(?s)compatible.*version"):
                self.build(other, f"-DCMAKE_PREFIX_PATH={installed}", tmp_path)

    def test_add_subdirectory(self, tmp_path: Path) -> None:
        (project,) = blocks(section("Installed, with CMake"), "cmake")
        (line,) = blocks(section("As a part of a CMake project"), "cmake")
        project = re.sub(r"find_package\(fastsoftmax.*\n", line, project)
        project += "install(TARGETS sample_npy)\n"
        self.build(project, "", tmp_path)
        # Of the library it builds what it links to, and installs nothing.
        built = {p.name for p in (tmp_path / "build").rglob("*fastsoftmax.*")}
        assert built == {"libfastsoftmax.a"}
        shell("cmake --install build --prefix usr", tmp_path)
        assert [p.name for p in (tmp_path / "usr").rglob("*") if p.is_file()] == ["sample_npy"]

    def build(self, project: str, options: str, where: Path) -> None:
        (where / "CMakeLists.txt").write_text(project)
        shell(f"cmake -B build {options} && cmake --build build", where)
        logits = DATA / "minilm_logits_f16.npy"
        done = run_example(where / "build" / "sample_npy", "-t", 0.7, "-p", 0.95, "-s", 1, logits)
        check_draws(done.stdout, real_logits(), **ARGUMENTS)

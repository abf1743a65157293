"""Arguments of every wrong kind, in every place: one clear error, and nothing is written."""

from __future__ import annotations

import array
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import same_bits

import fastsoftmax as f

# What a call may raise. AxisError is a ValueError; MemoryError is NumPy's, with the shape in it.
ERRORS = (TypeError, ValueError, IndexError, MemoryError)

ROWS, COLS = 3, 8


class Interface:
    """What lies about itself in __array_interface__."""

    def __init__(self, **changes: Any) -> None:
        self.memory = np.zeros(24, "f4")
        self.__array_interface__ = {**self.memory.__array_interface__, **changes}


class Array:
    """What lies in __array__."""

    def __init__(self, result: Any) -> None:
        self.result = result

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


class Dlpack:
    """What lies in __dlpack__."""

    def __init__(self, result: Any, device: Any = (1, 0)) -> None:
        self.result, self.device = result, device

    def __dlpack_device__(self) -> Any:
        return self.device

    def __dlpack__(self, **kwargs: Any) -> Any:
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


class Sequence:
    """What lies in __len__."""

    def __init__(self, length: Any) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> float:
        if i > 5:
            raise IndexError
        return 1.0


class Number:
    """What raises when it is asked what it is."""

    def __index__(self) -> int:
        raise RuntimeError("no index")

    def __float__(self) -> float:
        raise RuntimeError("no float")


def endless() -> list[Any]:
    itself: list[Any] = []
    itself.append(itself)
    return itself


def nested(depth: int) -> Any:
    value: Any = 1.0
    for _ in range(depth):
        value = [value]
    return value


def hostile() -> dict[str, Any]:
    """A value of every kind that no argument expects everywhere."""
    consumed = np.zeros((ROWS, COLS), "f4").__dlpack__()
    np.from_dlpack(
        SimpleNamespace(__dlpack__=lambda **_: consumed, __dlpack_device__=lambda: (1, 0))
    )
    read_only = np.zeros((ROWS, COLS), "f4")
    read_only.flags.writeable = False
    integers = [-1, 0, 1, 7, 8, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30]
    integers += [-(2**31), -(2**63), -(2**63) - 1, -(10**30)]
    floats = [0.0, -0.0, 0.5, -1.0, np.nan, np.inf, -np.inf, 1e308, 5e-324, 1e-310]
    shapes = [(0,), (0, 0), (ROWS, 0), (0, COLS), (1,), (2,), (ROWS,), (COLS,), (ROWS, COLS)]
    shapes += [(COLS, ROWS), (1, 1), (1, ROWS, COLS), (2, ROWS, COLS), (1,) * 64, (ROWS, 1)]
    return {
        "None": None,
        "bool": True,
        "text": "abc",
        "number in text": "1.0",
        "empty text": "",
        "surrogate": "\ud800",
        "bytes": b"abc",
        "object": object(),
        "function": hostile,
        "type": float,
        "dtype": np.dtype("f4"),
        "generator": (i for i in range(3)),
        "iterator": iter([1.0, 2.0]),
        "range": range(COLS),
        "set": {1.0},
        "mapping": {0: 1.0},
        "mapping of texts": {"a": "b"},
        "mapping of None": {0: None},
        "mapping of nan": {0: np.nan},
        "mapping of large ids": {2**63: 1.0},
        "mapping of large integers": {0: 10**400},
        "tuple": (1.0, 2.0),
        "empty tuple": (),
        "pair": ([0, 1], [1.0, 2.0]),
        "triple": ([0, 1], [1.0, 2.0], [0, 1, 2, 2]),
        "triple of falling offsets": ([0, 1], [1.0, 2.0], [0, 2, 1, 2]),
        "triple of wild offsets": ([0, 1], [1.0, 2.0], [0, 2**63 - 1, -(2**63), 2]),
        "four": (1, 2, 3, 4),
        "empty list": [],
        "list of lists": [[]],
        "list of mappings": [{0: 1.0}, None, {COLS: 2.0}],
        "ragged": [[1.0], [1.0, 2.0]],
        "mixed": [1.0, "a", None],
        "deep": nested(70),
        "deeper": nested(3000),
        "endless": endless(),
        "complex": 1j,
        "huge integers": [10**400],
        "numbers that raise": Number(),
        "list of those": [Number()],
        "slice": slice(None),
        "ellipsis": ...,
        "exception": ValueError("x"),
        "memoryview": memoryview(b"12345678"),
        "array": array.array("d", [1.0, 2.0]),
        "SoftmaxState": f.SoftmaxState(k=1),
        "masked array": np.ma.masked_array(np.zeros(COLS), np.arange(COLS) % 2),
        "scalar": np.float32(1.0),
        "0-d": np.array(1.0),
        "0-d of object": np.array(None),
        "read-only": read_only,
        "broadcast": np.broadcast_to(np.float32(1.0), (ROWS, COLS)),
        "huge": np.broadcast_to(np.int8(1), (2**42, 2**20)),
        "huge row": np.broadcast_to(np.int8(1), (2**62,)),
        "huge and empty": np.broadcast_to(np.int8(1), (2**62, 0)),
        "backwards": np.zeros((ROWS, COLS), "f4")[::-1, ::-1],
        "unaligned": np.zeros(4 * ROWS * COLS + 1, "u1")[1:].view("f4").reshape(ROWS, COLS),
        "swapped": np.zeros((ROWS, COLS), ">f4"),
        **{f"zeros of {d}": np.zeros((ROWS, COLS), d) for d in ("i8", "?", "f2", "f8", "c8", "g")},
        **{f"zeros of {d}": np.zeros(ROWS, d) for d in ("i8", "u8", "?", "S3", "U3", "M8[s]")},
        **{f"zeros of {d}": np.zeros((ROWS, COLS), d) for d in ("O", "V4", "m8[s]", "i4,f4")},
        **{f"float {s}": np.zeros(s, "f4") for s in shapes},
        **{f"integer {s}": np.zeros(s, "i8") for s in shapes},
        "ids at the edges": np.array([2**63 - 1, -(2**63), 0]),
        "unsigned ids": np.array([2**64 - 1, 0, 0], "u8"),
        "nans": np.full(ROWS, np.nan),
        "negatives": np.full(ROWS, -1.0),
        **{f"integer {i}": i for i in integers},
        **{f"float {x}": x for x in floats},
        "interface of a negative shape": Interface(shape=(-1,)),
        "interface of a large shape": Interface(shape=(2**62, 4)),
        "interface of text": Interface(shape="abc"),
        "interface of a wrong type": Interface(typestr="<q9"),
        "interface without memory": Interface(data=None, shape=(2,)),
        "interface of strides": Interface(strides=(4, 4, 4)),
        "interface of version 99": Interface(version=99, shape=(4,)),
        "no interface": SimpleNamespace(__array_interface__=5),
        "array that raises": Array(RuntimeError("no array")),
        "array of text": Array("abc"),
        "array of None": Array(None),
        "array of objects": Array(np.array([None, 1])),
        "capsule that raises": Dlpack(RuntimeError("no capsule")),
        "capsule of None": Dlpack(None),
        "capsule of text": Dlpack("abc"),
        "capsule used twice": Dlpack(consumed),
        "device of text": Dlpack(None, "cpu"),
        "device of None": Dlpack(None, None),
        "device elsewhere": Dlpack(None, (2, 0)),
        "no device": SimpleNamespace(__dlpack__=lambda: None),
        "length that is negative": Sequence(-1),
        "length that is large": Sequence(2**62),
        "length that is wrong": Sequence(3),
    }


def valid() -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Every public function and method, with arguments that are right for all of its parameters."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, COLS)).astype("f4")
    where = rng.random((ROWS, COLS)) < 0.8
    bits = np.full((ROWS, 1), 0x5D, np.int32)
    ids = np.array([1, 2, 7])
    logits: dict[str, Any] = {"logits": x, "temperature": 0.7, "where": where}
    logits["token_bitmask"] = bits
    targets = {"targets": ids, "ignore_index": -100}
    penalties = {"history": ids[:, None], "repetition_penalty": 1.2, "presence_penalty": 0.1}
    penalties |= {"frequency_penalty": 0.1, "logit_bias": {1: 0.5}}
    filters = {"top_k": 5, "top_p": 0.9, "min_p": 0.01, **penalties}
    out = np.zeros((ROWS, COLS), "f4")
    row: dict[str, Any] = {"x": x, "axis": -1, "temperature": 0.7, "where": where, "dtype": "f4"}

    def state() -> f.SoftmaxState:
        fed = f.SoftmaxState(temperature=0.7, k=2, token_ids=ids)
        fed.update(x)
        return fed

    def with_backend(name: Any, isa: Any) -> None:
        with f.use_backend(name, isa=isa):
            pass

    chunk = {"chunk": x, "where": where, "token_bitmask": bits}
    watched = {"temperature": 0.7, "k": 2, "token_ids": ids}
    return {
        "softmax": (f.softmax, {**row, "out": out}),
        "log_softmax": (f.log_softmax, {**row, "out": out}),
        "logsumexp": (f.logsumexp, {**row, "keepdims": False, "out": out[:, 0]}),
        "cross_entropy": (
            f.cross_entropy,
            {**logits, **targets, "label_smoothing": 0.1, "reduction": "mean"},
        ),
        "perplexity": (f.perplexity, {**logits, **targets}),
        "token_logprobs": (f.token_logprobs, {**logits, "token_ids": ids, "top_n": 2}),
        "topk_logprobs": (f.topk_logprobs, {**logits, "k": 3}),
        "entropy": (f.entropy, logits),
        "moments": (f.moments, logits),
        "kl_divergence": (
            f.kl_divergence,
            {
                "p_logits": x,
                "q_logits": x[::-1],
                "temperature": 0.7,
                "q_temperature": 0.9,
                "where": where,
                "token_bitmask": bits,
            },
        ),
        "temperature_sweep": (
            f.temperature_sweep,
            {
                "logits": x,
                "temperatures": [0.5, 1.0],
                "targets": ids,
                "where": where,
                "token_bitmask": bits,
            },
        ),
        "openai_logprobs": (
            f.openai_logprobs,
            {"token_ids": ids, "result": f.token_logprobs(x, ids, top_n=2), "decode": str},
        ),
        "sample": (
            f.sample,
            {**logits, **filters, "seed": 1, "step": 0, "num_samples": 2, "replace": True},
        ),
        "filtered_logprobs": (f.filtered_logprobs, {**logits, **filters}),
        "SoftmaxState": (f.SoftmaxState, watched),
        "update": (lambda **kwargs: state().update(**kwargs), {**chunk, "start": COLS}),
        "merge": (lambda other: state().merge(other), {"other": state()}),
        "normalize": (
            lambda **kwargs: state().normalize(**kwargs),
            {**chunk, "out": out, "log": False},
        ),
        "set_num_threads": (f.set_num_threads, {"n": f.get_num_threads()}),
        "use_backend": (with_backend, {"name": "numpy", "isa": None}),
    }


# What is right, but would take all the memory there is; and a function that has errors of its own.
FINE = {("num_samples", "integer 2147483648"), ("num_samples", "integer 4294967296")}
FINE |= {("decode", "function")}
# Arguments that a message may call by what they belong to.
NAMES = {
    "cross_entropy": {"logits"},
    "update": {"start", "chunk"},
    "openai_logprobs": {"result", "token"},
}


def named(message: str, function: str, parameters: set[str]) -> bool:
    names = parameters | NAMES.get(function, set())
    return re.search(rf"\b({'|'.join(names)})\b", message) is not None


def check(name: str, call: Callable[..., Any], arguments: dict[str, Any], what: Any) -> None:
    """The call returns, or raises one clear error and has written nothing."""
    out = arguments.get("out")
    before = out.tobytes() if type(out) is np.ndarray and out.nbytes < 1 << 20 else None
    error: BaseException | None = None
    try:
        call(**arguments)
    except BaseException as raised:
        error = raised
    if error is None:
        return
    assert isinstance(error, ERRORS), (what, error)
    clear = named(str(error), name, set(arguments))
    if isinstance(error, MemoryError):
        clear |= "Unable to allocate" in str(error)
    assert clear, (what, error)
    assert before is None or out.tobytes() == before, (what, "was written in part")


def test_the_table_is_every_argument() -> None:
    functions = valid()
    quick = {"available_backends", "backend", "get_num_threads", "show_config", "warmup"}
    quick |= {"get_include", "get_library_dir"}
    results = {"FilteredLogprobs", "Moments", "Sample", "TemperatureSweep", "TokenLogprobs", "TopK"}
    names = {n for n in f.__all__ if callable(getattr(f, n))}
    assert names - quick - results - {"BackendUnavailableError"} <= set(functions)
    for name, (_, arguments) in functions.items():
        of = getattr(f, name, None) or getattr(f.SoftmaxState, name)
        assert set(inspect.signature(of).parameters) - {"self"} == set(arguments), name


def test_the_arguments_are_right(backend: str) -> None:
    for call, arguments in valid().values():
        call(**arguments)


@pytest.mark.parametrize("name", list(valid()))
def test_one_wrong_argument(backend: str, name: str) -> None:
    before = f.get_num_threads()
    try:
        for parameter in valid()[name][1]:
            call, arguments = valid()[name]
            for kind, value in hostile().items():
                if (parameter, kind) in FINE:
                    continue
                check(name, call, {**arguments, parameter: value}, (parameter, kind))
    finally:
        f.set_num_threads(before)


@pytest.mark.parametrize("name", list(valid()))
@given(data=st.data())
def test_several_wrong_arguments(name: str, data: st.DataObject) -> None:
    call, arguments = valid()[name]
    values = hostile()
    kinds = st.sampled_from([kind for kind in values if "huge" not in kind])
    some = data.draw(st.dictionaries(st.sampled_from(list(arguments)), kinds, min_size=1))
    some = {p: kind for p, kind in some.items() if (p, kind) not in FINE}
    before = f.get_num_threads()
    try:
        check(name, call, {**arguments, **{p: values[kind] for p, kind in some.items()}}, some)
    finally:
        f.set_num_threads(before)


# ---- memory of odd kinds


def test_memory_mapped_arrays(tmp_path: Path) -> None:
    """Read-only, copy-on-write and writeable ones, as logits and as output."""
    x = np.random.default_rng(0).normal(size=(5, 300)).astype("f4")
    np.save(tmp_path / "x.npy", x)
    want = f.softmax(x, temperature=0.7)
    for mode in ("r", "c", "r+"):
        mapped = np.load(tmp_path / "x.npy", mmap_mode=mode)
        assert same_bits(f.softmax(mapped, temperature=0.7), want)
        assert same_bits(f.sample(mapped, seed=1).logprobs, f.sample(x, seed=1).logprobs)
    with pytest.raises(ValueError, match="out is read-only"):
        f.softmax(x, out=np.load(tmp_path / "x.npy", mmap_mode="r"))
    f.softmax(x, temperature=0.7, out=np.load(tmp_path / "x.npy", mmap_mode="c"))
    assert same_bits(np.load(tmp_path / "x.npy"), x)
    out = np.load(tmp_path / "x.npy", mmap_mode="r+")
    assert f.softmax(out, temperature=0.7, out=out) is out
    out.flush()
    assert same_bits(np.load(tmp_path / "x.npy"), want)


def test_a_capsule_is_given_twice() -> None:
    """By us it is read both times; one that another library has used up is refused."""
    x = np.arange(6, dtype="f4").reshape(2, 3)
    capsule = x.__dlpack__()
    want = f.softmax(x)
    for _ in range(2):
        assert same_bits(np.asarray(f.softmax(Dlpack(capsule), out=np.empty_like(x))), want)
    kept = np.from_dlpack(
        SimpleNamespace(__dlpack__=lambda **_: capsule, __dlpack_device__=lambda: (1, 0))
    )
    with pytest.raises(TypeError, match="x gives a capsule called b'used_dltensor'"):
        f.softmax(Dlpack(capsule))
    assert same_bits(kept, x)


@pytest.mark.parametrize(
    "shape", [(2**62,), (2**40, 2**22), (2**62, 0), (0, 2**62), (2**31, 2**31, 1), (1, 2**57)]
)
def test_shapes_that_no_memory_holds(shape: tuple[int, ...]) -> None:
    x = np.broadcast_to(np.int8(1), shape)
    calls: list[Callable[..., Any]] = [f.softmax, f.logsumexp, f.entropy, f.sample]
    for call in [*calls, lambda x: f.topk_logprobs(x, 0)]:
        with pytest.raises((ValueError, MemoryError), match=r"no memory holds|Unable to allocate"):
            call(x)


def test_zeros_of_both_signs(backend: str) -> None:
    """Which of them is the maximum shows in no result, on no instruction set."""
    x = np.array([[-0.0, 0.0], [0.0, -0.0], [-0.0, -0.0]], "f4").repeat([1, 40], axis=1)
    for dtype in ("f4", "f8", "f2"):
        y = x.astype(dtype)
        for temperature in (0.0, 1e-45, 1e-310, 1.0, np.inf):
            draw = f.sample(y, temperature=temperature, top_k=1)
            assert not np.signbit(draw.logprobs).any()
            if temperature:
                assert not np.signbit(f.logsumexp(y, temperature=temperature)).any()
                assert not np.signbit(f.logsumexp(y.T, axis=0, temperature=temperature)).any()

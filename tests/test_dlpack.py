"""Arrays of other libraries: read and written where they are, and given back as they came."""

from __future__ import annotations

import ctypes
import gc
import sys
import weakref
from typing import Any

import numpy as np
import pytest
from oracle import OPS, assert_close
from support import generator, same_bits

import fastsoftmax
from fastsoftmax import log_softmax, logsumexp, softmax
from fastsoftmax._api import _dlpack

EACH_OP = pytest.mark.parametrize("op", OPS)


def call(op: str, *args: object, **kwargs: object) -> Any:
    return getattr(fastsoftmax, op)(*args, **kwargs)


def logits(*shape: int, dtype: object = "float32") -> np.ndarray:
    return (generator("dlpack", shape).normal(size=shape) * 4).astype(dtype)


# ---- a library that there is everywhere


class Foreign:
    """An array of a library that is not NumPy."""

    def __init__(self, array: np.ndarray, device: tuple[int, int] = (1, 0)) -> None:
        self.array, self.device = array, device
        self.asked: list[object] = []

    def __dlpack__(self, *, stream: object = None, max_version: object = None) -> object:
        self.asked.append(max_version)
        return self.array.__dlpack__(max_version=max_version)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device


class Old(Foreign):
    """From the time before versions."""

    def __dlpack__(self, stream: object = None) -> object:
        return self.array.__dlpack__()


KINDS = pytest.mark.parametrize("kind", [Foreign, Old])


@KINDS
@EACH_OP
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i4", "u1", "?"])
def test_a_foreign_array_is_read(backend: str, op: str, dtype: str, kind: type[Foreign]) -> None:
    x = logits(5, 6, dtype=dtype)
    for view in (x, x.T, x[::2, ::-1], x[:0], x[0], x[0, 0, ...], np.broadcast_to(x[0], (5, 6))):
        if kind is Old and not view.flags.writeable:
            continue  # NumPy exports no such thing without a version
        before = view.copy()
        for kwargs in ({}, {"temperature": 0.7}, {"axis": 0}):
            got = call(op, kind(view), **kwargs)
            assert isinstance(got, np.ndarray | np.generic), "there is nothing else to return"
            assert same_bits(got, call(op, view, **kwargs))
        assert same_bits(view, before)


@KINDS
def test_no_copy_is_made(kind: type[Foreign]) -> None:
    x = logits(7, 9)
    for view in (x, x.T, x[1::2, ::-3], x[3]):
        got = _dlpack.as_ndarray(kind(view), "x")
        assert got.ctypes.data == view.ctypes.data
        assert (got.shape, got.strides, got.dtype) == (view.shape, view.strides, view.dtype)


@KINDS
def test_memory_lives_as_long_as_it_is_needed(kind: type[Foreign]) -> None:
    class Owned(np.ndarray):
        """An array that can be watched."""

    x = np.ones(1000, "f4").view(Owned)
    ref = weakref.ref(x)
    view = _dlpack.as_ndarray(kind(x), "x")
    del x
    gc.collect()
    assert ref() is not None
    assert view.sum() == 1000
    del view
    gc.collect()
    assert ref() is None


def test_the_version_is_asked_for() -> None:
    x = Foreign(logits(3, 4))
    softmax(x)
    assert x.asked == [(1, 0)]


@KINDS
@EACH_OP
def test_all_arguments_may_be_foreign(backend: str, op: str, kind: type[Foreign]) -> None:
    x, t = logits(5, 6), np.linspace(0.5, 2, 5)
    where = generator("where").random((5, 6)) < 0.6
    want = call(op, x, temperature=t, where=where)
    assert same_bits(call(op, kind(x), temperature=kind(t), where=kind(where)), want)
    assert same_bits(call(op, x, temperature=kind(t.astype("f4").astype("f8")), where=where), want)
    out = np.empty_like(want)
    place = kind(out)
    assert call(op, x, temperature=kind(t), where=where, out=place) is place
    assert same_bits(out, want)
    if op != "logsumexp":
        place = kind(x)
        assert call(op, place, temperature=t, where=where, out=place) is place
        assert same_bits(x, want)


def test_out_has_to_fit() -> None:
    x = logits(3, 4)
    with pytest.raises(ValueError, match=r"out has shape \(4, 3\)"):
        softmax(x, out=Foreign(np.empty((4, 3), "f4")))
    with pytest.raises(TypeError, match="out has dtype int32"):
        softmax(x, out=Foreign(np.empty((3, 4), "i4")))
    with pytest.raises(TypeError, match="out has dtype float32; with dtype=float64"):
        softmax(x, out=Foreign(np.empty((3, 4), "f4")), dtype="f8")
    out = np.full((3, 4), 77, "f4")
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out is read-only"):
        softmax(x, out=Foreign(out))
    assert (out == 77).all()


@pytest.mark.parametrize("name", ["x", "temperature", "where", "out"])
@pytest.mark.parametrize(
    ("device", "words"), [((2, 1), "cuda:1"), ((8, 0), "metal:0"), ((99, 3), "number 99:3")]
)
def test_other_devices(name: str, device: tuple[int, int], words: str) -> None:
    class Untouchable(Foreign):
        def __dlpack__(self, **_: object) -> object:
            raise AssertionError("its memory is not here")

    arguments: dict[str, Any] = {"x": logits(3, 4)}
    arguments[name] = Untouchable(np.ones((3, 4), "f4"), device)
    with pytest.raises(TypeError, match=f"{name} is on device {words}; it must be in CPU memory"):
        softmax(**arguments)


@pytest.mark.parametrize("device", [(1, 0), (3, 0), (11, 0)])
def test_pinned_memory_is_cpu_memory(device: tuple[int, int]) -> None:
    x = logits(3, 4)
    assert same_bits(softmax(Foreign(x, device)), softmax(x))


@pytest.mark.parametrize("name", ["x", "temperature", "where", "out"])
def test_what_cannot_be_exported(name: str) -> None:
    class Sparse(Foreign):
        def __dlpack__(self, **_: object) -> object:
            raise BufferError("it has holes")

    arguments: dict[str, Any] = {"x": logits(3, 4)}
    arguments[name] = Sparse(np.ones((3, 4), "f4"))
    with pytest.raises(TypeError, match=f"{name} cannot be read through DLPack: it has holes"):
        softmax(**arguments)


new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype = ctypes.py_object
new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


class Made:
    """A capsule put together by hand over an array of 16-bit numbers."""

    def __init__(self, memory: np.ndarray, versioned: bool = True, **changes: int) -> None:
        self.memory, self.versioned = memory, versioned
        self.managed = _dlpack._Versioned(major=1)
        tensor = self.managed.tensor
        tensor.data = memory.ctypes.data
        tensor.device_type, tensor.ndim = 1, memory.ndim
        tensor.code, tensor.bits, tensor.lanes = 4, 16, 1
        self.shape = (ctypes.c_int64 * max(memory.ndim, 1))(*memory.shape)
        self.strides = (ctypes.c_int64 * max(memory.ndim, 1))(*(s // 2 for s in memory.strides))
        tensor.shape = ctypes.cast(self.shape, ctypes.POINTER(ctypes.c_int64))
        tensor.strides = ctypes.cast(self.strides, ctypes.POINTER(ctypes.c_int64))
        for name, value in changes.items():
            setattr(self.managed if hasattr(self.managed, name) else tensor, name, value)

    def __dlpack__(self, *, max_version: object = None) -> object:
        if self.versioned:
            return new_capsule(ctypes.addressof(self.managed), b"dltensor_versioned", None)
        return new_capsule(ctypes.addressof(self.managed.tensor), b"dltensor", None)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


@pytest.mark.parametrize("versioned", [True, False])
@EACH_OP
def test_bfloat16(backend: str, op: str, versioned: bool) -> None:
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    x = logits(6, 8).astype(bfloat16)
    for view in (x, x.T, x[::2, ::-1], x[0]):
        bits = view.view(np.uint16)
        got = call(op, Made(bits, versioned), temperature=0.7)
        assert_close(op, got, view, temperature=0.7)
        assert same_bits(np.asarray(got), np.asarray(call(op, view, temperature=0.7)))
    out = np.zeros(np.shape(call(op, x)), bfloat16)
    call(op, x, out=Made(out.view(np.uint16), versioned))
    assert same_bits(out, call(op, x))


def test_bfloat16_without_ml_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    made = Made(np.zeros((3, 4), np.uint16))
    for kwargs in ({"x": made}, {"x": logits(3, 4), "dtype": "bfloat16"}):
        with pytest.raises(ImportError, match=r"install it: pip install \"fastsoftmax\[bfloat16\]"):
            softmax(**kwargs)


def test_no_strides_are_those_of_c_order() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = logits(3, 4).astype(ml_dtypes.bfloat16)
    made = Made(x.view(np.uint16))
    made.managed.tensor.strides = None
    assert same_bits(_dlpack.as_ndarray(made, "x"), x)


def test_the_offset_counts() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = logits(20).astype(ml_dtypes.bfloat16)
    made = Made(x.view(np.uint16)[:10], byte_offset=20)
    assert same_bits(_dlpack.as_ndarray(made, "x"), x[10:])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"major": 2}, "DLPack 2"),
        ({"lanes": 4}, "4 at a time"),
        ({"code": 10, "bits": 8}, "type code 10 of 8 bits"),
        ({"code": 2, "bits": 8}, "type code 2 of 8 bits"),
        ({"code": 0, "bits": 4}, "type code 0 of 4 bits"),
        ({"code": 3}, "type code 3"),
    ],
)
def test_capsules_there_is_no_way_to_read(changes: dict[str, int], words: str) -> None:
    with pytest.raises(TypeError, match=f"x (comes as|has) .*{words}"):
        softmax(Made(np.zeros((3, 4), np.uint16), **changes))


@pytest.mark.parametrize("versioned", [True, False])
def test_a_read_only_capsule(versioned: bool) -> None:
    pytest.importorskip("ml_dtypes")
    made = Made(np.zeros((3, 4), np.uint16), versioned, flags=1)
    assert _dlpack.as_ndarray(made, "x").flags.writeable is not versioned
    empty = Made(np.zeros((3, 0), np.uint16), versioned, flags=1)
    assert _dlpack.as_ndarray(empty, "x").flags.writeable is not versioned


def test_aligned_memory() -> None:
    for shape in ((), (0, 3), (5,), (300, 7)):
        memory = _dlpack.empty(shape, np.dtype("f8"))
        assert memory.shape == shape
        assert memory.ctypes.data % 64 == 0 or memory.size == 0
        assert memory.flags.c_contiguous
        assert memory.flags.writeable


# ---- PyTorch


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


FLOATS = ("float16", "bfloat16", "float32", "float64")


def views(x: Any) -> dict[str, Any]:
    return {
        "contiguous": x,
        "transposed": x.permute(2, 0, 1),
        "every second": x[:, ::2],
        "last ones": x[..., 3:],
        "one row": x[0, 0],
        "a column": x[0, :, 1],
        "expanded": x[:1].expand(4, -1, -1),
        "no rows": x[:0],
        "no entries": x[..., :0],
        "number": x[0, 0, 0],
    }


@EACH_OP
@pytest.mark.parametrize("name", FLOATS)
def test_torch(backend: str, torch: Any, op: str, name: str) -> None:
    dtype = getattr(torch, name)
    x = torch.from_numpy(logits(4, 5, 6)).to(dtype)
    for view, tensor in views(x).items():
        before = tensor.clone()
        for axis in (-1, 0):
            got = call(op, tensor, axis, temperature=0.7)
            assert isinstance(got, torch.Tensor), view
            assert got.dtype == dtype
            # in float64, which PyTorch computes as it does float32, but rounds less
            scaled = tensor.double() / 0.7
            if op == "logsumexp":
                want = torch.logsumexp(scaled, axis) if tensor.ndim else scaled
            else:
                want = getattr(torch, op)(scaled, axis)
            assert got.shape == want.shape, view
            bits = {"float16": 11, "bfloat16": 8, "float32": 22, "float64": 48}[name]
            torch.testing.assert_close(got.double(), want, rtol=2.0**-bits, atol=2.0**-bits)
        assert torch.equal(tensor, before)


@EACH_OP
@pytest.mark.parametrize("name", FLOATS)
def test_torch_tensors_are_read_and_written_in_place(torch: Any, op: str, name: str) -> None:
    dtype = getattr(torch, name)
    x = torch.from_numpy(logits(9, 50)).to(dtype)
    array = _dlpack.as_ndarray(x, "x")
    assert array.ctypes.data == x.data_ptr()
    assert array.dtype.name == name
    want = call(op, x)
    out = torch.full_like(want, 77.0)
    address = out.data_ptr()
    assert call(op, x, out=out) is out
    assert out.data_ptr() == address
    assert torch.equal(out, want)
    wide = torch.full((*want.shape, 2), 77.0, dtype=dtype)
    call(op, x, out=wide[..., 1])
    assert torch.equal(wide[..., 1], want)
    assert (wide[..., 0] == 77).all()
    if op != "logsumexp":
        assert call(op, x, out=x) is x
        assert torch.equal(x, want)


def test_a_result_for_torch_is_not_copied(torch: Any) -> None:
    for name in FLOATS:
        dtype = np.dtype(name) if name != "bfloat16" else pytest.importorskip("ml_dtypes").bfloat16
        result = _dlpack.empty((30, 40), np.dtype(dtype))
        got = _dlpack.returned(result, torch.zeros(1))
        assert got.data_ptr() == result.ctypes.data
        assert got.dtype == getattr(torch, name)
        del result
        gc.collect()
        got.fill_(1)
        assert got.float().sum() == 1200


@EACH_OP
def test_torch_types_as_dtype(torch: Any, op: str) -> None:
    x = torch.from_numpy(logits(4, 30))
    for name in FLOATS:
        got = call(op, x, dtype=getattr(torch, name))
        assert got.dtype == getattr(torch, name)
        assert call(op, x.numpy(), dtype=getattr(torch, name)).dtype.name == name
    for bad in (torch.int8, torch.complex64, torch.float8_e4m3fn):
        with pytest.raises(TypeError, match=f"dtype is {bad}"):
            call(op, x, dtype=bad)
    assert call(op, torch.ones(3, dtype=torch.int64)).dtype == torch.float64
    assert call(op, torch.ones(3, dtype=torch.bool)).dtype == torch.float64


def test_torch_masks_and_temperatures(backend: str, torch: Any) -> None:
    x, where = torch.from_numpy(logits(4, 30)), torch.arange(30) % 3 > 0
    t = torch.linspace(0.5, 2, 4)
    for got in (
        softmax(x, temperature=t, where=where),
        softmax(x, temperature=t.bfloat16().double(), where=where),
    ):
        assert isinstance(got, torch.Tensor)
    got = softmax(x, temperature=t, where=where)
    want = torch.softmax((x / t[:, None]).masked_fill(~where, -torch.inf), -1)
    torch.testing.assert_close(got, want)
    assert softmax(x, temperature=torch.tensor(2.0)).shape == (4, 30)
    assert softmax(x, temperature=torch.tensor([1.5], dtype=torch.bfloat16)[0]).shape == (4, 30)
    # the kind of the logits decides
    assert isinstance(softmax(x.numpy(), temperature=t, where=where), np.ndarray)
    out = np.empty((4, 30), "f4")
    assert softmax(x, out=out) is out
    np.testing.assert_allclose(out, torch.softmax(x, -1).numpy(), rtol=1e-5)


@pytest.mark.parametrize("name", ["x", "temperature", "where", "out"])
def test_torch_tensors_with_gradients(torch: Any, name: str) -> None:
    arguments: dict[str, Any] = {"x": torch.ones(3, 4)}
    for tensor in (torch.nn.Parameter(torch.ones(3, 4)), torch.ones(3, 4, requires_grad=True) * 2):
        arguments[name] = tensor
        with pytest.raises(TypeError, match=rf"{name} requires grad.*{name}\.detach\(\)"):
            softmax(**arguments)
    assert softmax(tensor.detach()).shape == (3, 4)


@pytest.mark.parametrize("name", ["x", "temperature", "out"])
def test_torch_tensors_that_are_negated_views(torch: Any, name: str) -> None:
    """Of memory with the other sign, which the capsule does not tell."""
    arguments: dict[str, Any] = {"x": torch.ones(2)}
    negated = torch.tensor([1 + 2j, 3 + 1j]).conj().imag
    arguments[name] = negated
    with pytest.raises(TypeError, match=rf"{name} is a negated.*{name}\.resolve_neg\(\)"):
        softmax(**arguments)
    assert torch.equal(softmax(negated.resolve_neg()), softmax(torch.tensor([-2.0, -1.0])))
    with pytest.raises(TypeError, match=r"logits\.resolve_neg\(\)"):
        fastsoftmax.entropy(negated)


def test_torch_tensors_elsewhere(torch: Any) -> None:
    with pytest.raises(TypeError, match="x is on device meta; it must be in CPU memory"):
        softmax(torch.empty(3, device="meta"))
    with pytest.raises(TypeError, match=r"x cannot be read through DLPack.*strided"):
        softmax(torch.eye(3).to_sparse())
    with pytest.raises(TypeError, match="x has dtype complex64"):
        softmax(torch.ones(3, dtype=torch.complex64))
    with pytest.raises(TypeError, match="type code"):
        softmax(torch.ones(3, dtype=torch.float8_e4m3fn))


def test_torch_subclasses(torch: Any) -> None:
    parameter = torch.nn.Parameter(torch.ones(3, 4), requires_grad=False)
    assert type(softmax(parameter)) is torch.Tensor

    class Mine(torch.Tensor):
        """A kind of tensor from elsewhere."""

    assert isinstance(softmax(torch.ones(3).as_subclass(Mine)), torch.Tensor)


# ---- JAX


@pytest.fixture
def jax(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    return pytest.importorskip("jax")


@EACH_OP
@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
def test_jax(backend: str, jax: Any, op: str, name: str) -> None:
    x = jax.numpy.asarray(logits(40, 50)).astype(name)
    array = _dlpack.as_ndarray(x, "x")
    assert array.ctypes.data == x.unsafe_buffer_pointer()
    for axis in (-1, 0):
        got = call(op, x, axis, temperature=jax.numpy.float32(0.5))
        assert isinstance(got, jax.Array)
        assert got.dtype == x.dtype
        assert same_bits(np.asarray(got), call(op, np.asarray(x), axis, temperature=0.5))
    assert isinstance(logsumexp(x[0]), jax.Array)
    assert log_softmax(x[:0]).shape == (0, 50)


def test_jax_arrays_never_change(jax: Any) -> None:
    x = jax.numpy.asarray(logits(40, 50))
    before = np.array(x)
    with pytest.raises(ValueError, match="out is read-only"):
        softmax(x, out=x)
    assert same_bits(np.asarray(x), before)


def test_a_result_for_jax_is_not_copied(jax: Any) -> None:
    result = _dlpack.empty((300, 400), np.dtype("f4"))
    got = _dlpack.returned(result, jax.numpy.zeros(1))
    assert got.unsafe_buffer_pointer() == result.ctypes.data

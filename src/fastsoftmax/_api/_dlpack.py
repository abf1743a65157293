"""Arrays of other libraries, in and out without a copy.

NumPy reads DLPack too, but no bfloat16, and what comes in the form without a version it takes for
read-only. So the capsules are read here. A capsule that nobody renames gives the memory back when
it is collected: it is kept as the base of the array.

The structures are those of dlpack.h, https://dmlc.github.io/dlpack/latest/c_api.html.
"""

import ctypes
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_DEVICES = {1: "cpu", 2: "cuda", 3: "cuda_host", 7: "vulkan", 8: "metal", 10: "rocm"}
_DEVICES |= {11: "rocm_host", 13: "cuda_managed", 14: "oneapi"}
_IN_CPU_MEMORY = (1, 3, 11)
_KINDS = {0: "i", 1: "u", 2: "f", 5: "c", 6: "b"}
_BFLOAT = 4
_READ_ONLY = 1
# Libraries whose arrays never change, and that do not say so in the capsule.
_IMMUTABLE = ("jax", "jaxlib")


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


_name_of = ctypes.pythonapi.PyCapsule_GetName
_name_of.restype, _name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]
_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype, _pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


class _Memory:
    """What NumPy needs to know to make an array of a capsule's memory."""

    def __init__(self, capsule: Any, interface: dict[str, Any]) -> None:
        self.capsule = capsule
        self.__array_interface__ = interface


def speaks(value: Any) -> bool:
    """Whether a value is an array of another library."""
    return hasattr(value, "__dlpack__") and not isinstance(value, np.ndarray)


def as_ndarray(array: Any, name: str) -> Array:
    """The memory of a DLPack array in this computer's memory, read-only where its owner says so.

    Raises
    ------
    TypeError
        If that cannot be; it calls the array by `name`.
    """
    if getattr(array, "requires_grad", False):
        raise TypeError(f"{name} requires grad; it must not: pass {name}.detach()")
    if getattr(array, "is_neg", None) and array.is_neg():  # which no capsule tells
        raise TypeError(f"{name} is a negated view of memory; pass {name}.resolve_neg()")
    try:
        device, number = map(int, array.__dlpack_device__())
    except Exception as cause:
        place = f"is on device {array.device}" if hasattr(array, "device") else "is on no device"
        raise TypeError(f"{name} {place}; it must be in CPU memory: {cause}") from cause
    if device not in _IN_CPU_MEMORY:
        where = f"{_DEVICES.get(device, f'number {device}')}:{number}"
        raise TypeError(f"{name} is on device {where}; it must be in CPU memory")
    try:
        try:
            capsule = array.__dlpack__(max_version=(1, 0))
        except TypeError:  # from the time before versions
            capsule = array.__dlpack__()
    except Exception as cause:
        raise TypeError(f"{name} cannot be read through DLPack: {cause}") from cause
    result = _read(capsule, name)
    if type(array).__module__.partition(".")[0] in _IMMUTABLE:
        result.flags.writeable = False
    return result


def _read(capsule: Any, name: str) -> Array:
    if type(capsule).__name__ != "PyCapsule":
        raise TypeError(f"{name} gives a {type(capsule).__name__}; it must give a DLPack capsule")
    kind = _name_of(capsule)
    if kind not in (b"dltensor", b"dltensor_versioned"):
        raise TypeError(f"{name} gives a capsule called {kind!r}; it must be a DLPack one, unused")
    pointer = _pointer_of(capsule, kind)
    read_only = False
    if kind == b"dltensor_versioned":
        managed = _Versioned.from_address(pointer)
        if managed.major != 1:
            raise TypeError(f"{name} comes as DLPack {managed.major}; it must be version 1 or none")
        tensor, read_only = managed.tensor, bool(managed.flags & _READ_ONLY)
    else:
        tensor = _Tensor.from_address(pointer)
    bfloat16 = (tensor.code, tensor.bits) == (_BFLOAT, 16)
    try:
        dtype = np.dtype("u2" if bfloat16 else f"{_KINDS[tensor.code]}{tensor.bits // 8}")
    except (KeyError, TypeError):
        dtype = None
    if dtype is None or dtype.itemsize * 8 != tensor.bits or tensor.lanes != 1:
        raise TypeError(
            f"{name} has DLPack's type code {tensor.code} of {tensor.bits} bits, "
            f"{tensor.lanes} at a time, which NumPy does not have"
        )
    shape = tuple(tensor.shape[: tensor.ndim]) if tensor.ndim else ()
    if 0 in shape:  # there may be no memory
        result = np.empty(shape, dtype)
        result.flags.writeable = not read_only
    else:
        strides = None
        if tensor.ndim and tensor.strides:
            strides = tuple(s * dtype.itemsize for s in tensor.strides[: tensor.ndim])
        interface = {
            "version": 3,
            "shape": shape,
            "typestr": dtype.str,
            "data": ((tensor.data or 0) + tensor.byte_offset, read_only),
            "strides": strides,
        }
        try:
            result = np.asarray(_Memory(capsule, interface))
        except (TypeError, ValueError) as cause:
            raise TypeError(f"{name} cannot be read through DLPack: {cause}") from cause
    return result.view(bfloat16_dtype()) if bfloat16 else result


def bfloat16_dtype() -> np.dtype[Any]:
    """The type that NumPy does not have."""
    try:
        from ml_dtypes import bfloat16
    except ImportError as cause:
        raise ImportError(
            'bfloat16 needs ml_dtypes; install it: pip install "fastsoftmax[bfloat16]"'
        ) from cause
    result: np.dtype[Any] = np.dtype(bfloat16)
    return result


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Memory for a result that any library takes as it is: JAX copies what is not aligned so."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = np.empty(size + 63, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def returned(result: Array, foreign: Any) -> Any:
    """What the caller gets for a fresh result: an array of the library that `foreign` belongs to if
    that is not None, else the array itself or the one number in it."""
    return exported(result, None if foreign is None else _library_of(foreign))


def library_name(foreign: Any) -> str | None:
    """The name of the library that an array belongs to; None for None, or where it is not known."""
    library = None if foreign is None else _library_of(foreign)
    return None if library is None else library.__name__


def exported(result: Array, library: Any) -> Any:
    """As `returned`, for a library or, for NumPy, None."""
    if library is None:
        return result[()] if result.ndim == 0 else result
    if result.dtype.name == "bfloat16":  # which NumPy does not export
        return library.from_dlpack(result.view(np.int16)).view(library.bfloat16)
    return library.from_dlpack(result)


def _library_of(array: Any) -> Any:
    if hasattr(array, "__array_namespace__"):
        return array.__array_namespace__()
    for base in type(array).__mro__:
        library = sys.modules.get(base.__module__.partition(".")[0])
        if hasattr(library, "from_dlpack"):
            return library
    return None

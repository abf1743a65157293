"""The C library, through cffi."""

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsoftmax._backends._numpy_scoring import ReferenceScoring
from fastsoftmax._backends._protocol import Batch, SplitRow
from fastsoftmax._c import ffi, lib
from fastsoftmax._ops import OPS

_ISAS = {
    "avx512": lib.FASTSOFTMAX_ISA_AVX512,
    "avx2": lib.FASTSOFTMAX_ISA_AVX2,
    "neon": lib.FASTSOFTMAX_ISA_NEON,
    "scalar": lib.FASTSOFTMAX_ISA_SCALAR,
}
# All but bfloat16, which NumPy does not know.
_CODES = {
    np.dtype(np.float16): lib.FASTSOFTMAX_F16,
    np.dtype(np.float32): lib.FASTSOFTMAX_F32,
    np.dtype(np.float64): lib.FASTSOFTMAX_F64,
}
_FUNCTIONS: dict[str, Any] = {name: getattr(lib, f"fastsoftmax_{name}") for name in OPS}
_OPS: dict[str, int] = {name: getattr(lib, f"FASTSOFTMAX_OP_{name.upper()}") for name in OPS}

# The instruction sets this CPU runs, best first. Asked once: a virtual machine answers slowly.
ISAS = tuple(name for name, isa in _ISAS.items() if lib.fastsoftmax_has_isa(isa))


_BYTES = ffi.typeof("char[]")
_AXES = ffi.typeof("fastsoftmax_axis[]")
_BATCH = ffi.typeof("fastsoftmax_batch *")
_VOID, _DOUBLE, _MASK = map(ffi.typeof, ("void *", "double *", "uint8_t *"))


def _allocate(size: int) -> tuple[NDArray[np.uint8], Any]:
    """Memory aligned to 64 bytes, and its address."""
    memory = np.empty(size + 63, np.uint8)
    return memory, ffi.cast("void *", (memory.ctypes.data + 63) & ~63)


class _Scratch(threading.local):
    """Scratch memory of each thread, kept between calls.

    It starts with enough for all but enormous rows; pages that no call touches cost nothing.
    """

    def __init__(self) -> None:
        self.size = 1 << 20
        self.memory, self.pointer = _allocate(self.size)

    def of(self, batch: Any) -> Any:
        """Memory that is enough for a batch."""
        size = lib.fastsoftmax_scratch_size(batch)
        if size > self.size:
            self.memory, self.pointer = _allocate(size)
            self.size = size
        return self.pointer


_scratch = _Scratch()
_lend = ffi.from_buffer
_contiguous = lib.fastsoftmax_contiguous


class CBackend(ReferenceScoring):
    """The kernels of one instruction set.

    Parameters
    ----------
    isa : str, optional
        A name of `ISAS`; the best by default.
    """

    name = "c"

    def __init__(self, isa: str | None = None) -> None:
        self.isa = ISAS[0] if isa is None else isa
        self._isa = _ISAS[self.isa]

    def run(self, op: str, batch: Batch, out: NDArray[Any], begin: int, end: int) -> None:
        struct = self._struct(op, batch, out)
        _check(op, _FUNCTIONS[op](struct.batch, begin, end, _scratch.of(struct.batch)))

    def run_small(
        self, op: str, x: NDArray[Any], temperature: float, out: NDArray[Any] | None
    ) -> NDArray[Any] | None:
        dtype, shape, size = x.dtype, x.shape, x.size
        code = _CODES.get(dtype)
        if code is None or not size or not shape or not x.flags.c_contiguous:
            return None
        cols = shape[-1]
        result_shape = shape[:-1] if op == "logsumexp" else shape
        if out is None:
            out = np.empty(result_shape, dtype)
        elif type(out) is not np.ndarray or out.dtype != dtype or out.shape != result_shape:
            return None
        try:
            # Only memory that is contiguous is lent, and only such as may be written.
            x_memory, out_memory = _lend(_BYTES, x), _lend(_BYTES, out, True)
        except (ValueError, BufferError):
            return None
        status = _contiguous(
            _OPS[op],
            self._isa,
            code,
            size // cols,
            cols,
            x_memory,
            temperature,
            out_memory,
            _scratch.pointer,
        )
        return out if status == 0 else None

    def split(self, op: str, batch: Batch, out: NDArray[Any], row: int) -> SplitRow:
        return _SplitRow(op, self._struct(op, batch, out), row)

    def _struct(self, op: str, batch: Batch, out: NDArray[Any]) -> "_Struct":
        return _Struct(self._isa, not OPS[op].reduces, batch, out)

    def warmup(self) -> None:
        """There is nothing to load."""

    def describe(self) -> dict[str, str]:
        return {
            "C library": ffi.string(lib.fastsoftmax_version()).decode(),
            "instruction set": self.isa,
            "instruction sets": ", ".join(ISAS),
        }


def _address(pointer: Any, a: NDArray[Any]) -> Any:
    return ffi.cast(pointer, a.__array_interface__["data"][0])


class _Struct:
    """A batch as the library takes it, with all that it points to."""

    __slots__ = ("_kept", "batch")

    def __init__(self, isa: int, writes_rows: bool, batch: Batch, out: NDArray[Any]) -> None:
        x, where, t = batch.x, batch.where, batch.temperature
        rows = batch.row_axes
        zeros = (0,) * x.ndim
        none = zeros[rows:]
        x_size, out_size = x.itemsize, out.itemsize
        axes = ffi.new(
            _AXES,
            [
                (n, sx // x_size, so // out_size, sw, st // 8)
                for n, sx, so, sw, st in zip(
                    x.shape,
                    x.strides,
                    out.strides if writes_rows else out.strides + none,
                    zeros if where is None else where.strides,
                    t.strides + none,
                    strict=True,
                )
            ],
        )
        self.batch = ffi.new(
            _BATCH,
            (
                isa,
                _CODES.get(x.dtype, lib.FASTSOFTMAX_BF16),
                _CODES.get(out.dtype, lib.FASTSOFTMAX_BF16),
                rows,
                x.ndim - rows,
                axes,
                _address(_VOID, x),
                ffi.NULL if where is None else _address(_MASK, where),
                _address(_DOUBLE, t),
                _address(_VOID, out),
            ),
        )
        self._kept = axes, batch, out


class _SplitRow:
    """A row whose blocks are the library's."""

    def __init__(self, op: str, struct: _Struct, row: int) -> None:
        self._name, self._op, self._struct, self._row = op, _OPS[op], struct, row
        self._memory, self._shared = _allocate(lib.fastsoftmax_scratch_size(struct.batch))
        self.blocks: int = lib.fastsoftmax_block_count(struct.batch)

    def reduce(self, begin: int, end: int) -> None:
        batch = self._struct.batch
        status = lib.fastsoftmax_reduce_blocks(
            batch, self._op, self._row, begin, end, self._shared, _scratch.of(batch)
        )
        _check(self._name, status)

    def merge(self) -> None:
        batch = self._struct.batch
        status = lib.fastsoftmax_merge_blocks(
            batch, self._op, self._row, self._shared, _scratch.of(batch)
        )
        _check(self._name, status)

    def write(self, begin: int, end: int) -> None:
        batch = self._struct.batch
        status = lib.fastsoftmax_write_blocks(
            batch, self._op, self._row, begin, end, self._shared, _scratch.of(batch)
        )
        _check(self._name, status)


def _check(op: str, status: int) -> None:
    if status != lib.FASTSOFTMAX_OK:
        raise RuntimeError(f"fastsoftmax_{op} refused its arguments with status {status}")

"""The C library, through cffi."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsoftmax._c import ffi, lib
from fastsoftmax._ops import OPS

_ISAS = {
    "avx512": lib.FASTSOFTMAX_ISA_AVX512,
    "avx2": lib.FASTSOFTMAX_ISA_AVX2,
    "neon": lib.FASTSOFTMAX_ISA_NEON,
    "scalar": lib.FASTSOFTMAX_ISA_SCALAR,
}
_FUNCTIONS: dict[str, Any] = {name: getattr(lib, f"fastsoftmax_{name}") for name in OPS}
_DTYPES = {"f": lib.FASTSOFTMAX_F32, "d": lib.FASTSOFTMAX_F64}


# The instruction sets this CPU runs, best first. Asked once: a virtual machine answers slowly.
ISAS = tuple(name for name, isa in _ISAS.items() if lib.fastsoftmax_has_isa(isa))


def _address(a: NDArray[Any]) -> Any:
    # A buffer is quicker to ask for than an address, but only contiguous memory has one.
    if a.flags.c_contiguous:
        return ffi.from_buffer(a)
    return ffi.cast("void *", a.ctypes.data)


class CBackend:
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

    def run(
        self,
        op: str,
        x: NDArray[np.floating],
        temperature: NDArray[np.float64],
        out: NDArray[np.floating],
    ) -> None:
        rows, cols = x.shape
        itemsize = x.itemsize
        x_memory, t_memory, out_memory = _address(x), ffi.from_buffer(temperature), _address(out)
        batch = ffi.new(
            "fastsoftmax_batch *",
            (
                self._isa,
                _DTYPES[x.dtype.char],
                rows,
                cols,
                x_memory,
                x.strides[0] // itemsize,
                ffi.cast("double *", t_memory),
                int(len(temperature) > 1),
                out_memory,
                out.strides[0] // itemsize,
            ),
        )
        status = _FUNCTIONS[op](batch, 0, rows)
        if status != lib.FASTSOFTMAX_OK:
            raise RuntimeError(f"fastsoftmax_{op} refused its arguments with status {status}")

    def warmup(self) -> None:
        """There is nothing to load."""

    def describe(self) -> dict[str, str]:
        return {
            "C library": ffi.string(lib.fastsoftmax_version()).decode(),
            "instruction set": self.isa,
            "instruction sets": ", ".join(ISAS),
        }

"""The jitted kernels of `fastsoftmax._numba`."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    import llvmlite.binding
    import numba
except ModuleNotFoundError as cause:
    raise ImportError(
        'the numba backend needs numba: pip install "fastsoftmax[numba]"', name=cause.name
    ) from cause

from fastsoftmax._backends._numpy_scoring import ReferenceScoring
from fastsoftmax._numba import kernels
from fastsoftmax._ops import OPS


class _Unlocked:
    """Memory of an array that may not be written, offered as if it could be."""

    def __init__(self, a: NDArray[Any]) -> None:
        interface = a.__array_interface__
        address, _ = interface["data"]
        self.__array_interface__ = interface | {"data": (address, False)}
        self.owner = a


class NumbaBackend(ReferenceScoring):
    """Kernels compiled at the first call for each type, or loaded from the cache."""

    name = "numba"

    def __init__(self) -> None:
        self._kernels: dict[str, Any] = {name: getattr(kernels, name) for name in OPS}

    def run(
        self,
        op: str,
        x: NDArray[np.floating],
        temperature: NDArray[np.float64],
        out: NDArray[np.floating],
    ) -> None:
        rows = len(x)
        if not rows:
            return
        # Numba compiles anew for each layout, and for memory that is read-only. A kernel is given
        # writable first rows and the steps between rows: one signature for each type.
        if not x.flags.writeable:
            x = np.asarray(_Unlocked(x))
        if not temperature.flags.writeable:
            temperature = temperature.copy()
        first = out[0] if out.ndim == 2 else out[:1]
        self._kernels[op](x[0], x.strides[0], temperature, first, out.strides[0], rows)

    def run_small(self, *_: Any) -> None:
        """Nothing is quicker than `run`."""

    def warmup(self) -> None:
        """Compile every kernel for every type, or load it."""
        temperature = np.ones(1)
        for name, op in OPS.items():
            for dtype in (np.float32, np.float64):
                x = np.zeros((1, 1), dtype)
                self.run(name, x, temperature, np.empty(1 if op.reduces else (1, 1), dtype))

    def describe(self) -> dict[str, str]:
        return {
            "numba": numba.__version__,
            "llvmlite": llvmlite.__version__,
            "CPU for LLVM": llvmlite.binding.get_host_cpu_name(),
            "numba cache": kernels.softmax.stats.cache_path or "none",
        }

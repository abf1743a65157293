"""The reference: the plainest correct code, and the oracle of all other backends.

What other backends compute in float32 is computed in float64 here, and what they compute in float64
in NumPy's longdouble, which is wider on most platforms.
"""

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsoftmax._backends._numpy_scoring import ReferenceScoring
from fastsoftmax._backends._protocol import Batch, SplitRow
from fastsoftmax._ops import OPS

Array = NDArray[np.floating]
Result = Any  # a row, or a number


def _cold(row: Array, temperature: float) -> bool:
    """Whether a temperature counts as 0: log2(e)/T overflows in the arithmetic of the kernels."""
    arithmetic = np.float32 if row.dtype.char == "d" else np.float64
    return bool(temperature * float(np.finfo(arithmetic).max) < np.log2(np.e))


def _ready(row: Array, temperature: float) -> tuple[Any, Array]:
    """A row's maximum, and its differences from it over the temperature.

    Logits are quartered, which is exact, where the difference of two of them could overflow.
    """
    top: Any = row.max()
    if np.isinf(temperature):
        z = np.where(row > -np.inf, 0.0, -np.inf)
    elif _cold(row, temperature):
        z = np.where(row == top, 0.0, -np.inf)
    else:
        z = (row - top) / temperature
        if top > 1e300:
            z = (row / 4 - top / 4) / (temperature / 4)
    return top, z


def _log_sum(z: Array) -> Any:
    """log(sum(exp(z))) for max(z) = 0; one maximum is kept out of the sum (log1p)."""
    e = np.exp(z)
    e[np.argmax(z)] = 0.0
    return np.log1p(e.sum())


def _special(row: Array) -> bool:
    """Whether a row holds a NaN or +infinity, or nothing above -infinity."""
    return not bool(np.isfinite(row.max(initial=-np.inf)))


def softmax(row: Array, temperature: float) -> Result:
    if _special(row):
        return np.nan
    _, z = _ready(row, temperature)
    e = np.exp(z)
    return e / e.sum()


def log_softmax(row: Array, temperature: float) -> Result:
    if _special(row):
        return np.nan
    _, z = _ready(row, temperature)
    return z - _log_sum(z)


def logsumexp(row: Array, temperature: float) -> Result:
    if _special(row):
        return row.max(initial=-np.inf)
    top, z = _ready(row, temperature)
    if np.isinf(temperature):
        return _log_sum(z)
    if _cold(row, temperature):
        return top / temperature + 0.0  # no negative zero
    return top / temperature + _log_sum(z)


_KERNELS = {"softmax": softmax, "log_softmax": log_softmax, "logsumexp": logsumexp}


class NumpyBackend(ReferenceScoring):
    """Rows one at a time through the functions of this module."""

    name = "numpy"
    new_team = None
    compiles = False

    def run(self, op: str, batch: Batch, out: NDArray[Any], begin: int, end: int) -> None:
        kernel, spec = _KERNELS[op], OPS[op]
        row_shape, col_shape = batch.x.shape[: batch.row_axes], batch.x.shape[batch.row_axes :]
        wide = np.longdouble if np.float64 in (batch.x.dtype, out.dtype) else np.float64
        # Terms that underflow and results too large for the output's type are meant.
        with np.errstate(all="ignore"):
            for i in range(begin, end):
                index = np.unravel_index(i, row_shape)
                row = batch.x[index].astype(wide).ravel()
                # Masked entries are left out of the row: they do not touch what it comes to.
                kept = slice(None) if batch.where is None else batch.where[index].ravel()
                result = kernel(row[kept], float(batch.temperature[index]))
                if not spec.reduces:
                    row[:] = spec.masked
                    row[kept] = result
                    result = row.reshape(col_shape)
                out[index] = result

    def run_small(self, *_: Any) -> None:
        """Nothing is quicker than `run`."""

    def split(self, op: str, batch: Batch, out: NDArray[Any], row: int) -> SplitRow:
        return _OneBlock(self, op, batch, out, row)

    def warmup(self) -> None:
        """There is nothing to load."""

    def describe(self) -> dict[str, str]:
        return {"numpy": np.__version__}


class _OneBlock:
    """A row that is not split: all is done in one step."""

    blocks = 1

    def __init__(
        self, backend: NumpyBackend, op: str, batch: Batch, out: NDArray[Any], row: int
    ) -> None:
        self._run = partial(backend.run, op, batch, out, row, row + 1)

    def reduce(self, begin: int, end: int) -> None:
        """There is nothing to prepare."""

    def merge(self) -> None:
        self._run()

    def write(self, begin: int, end: int) -> None:
        """All is written."""

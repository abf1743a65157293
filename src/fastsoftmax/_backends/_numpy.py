"""The reference: the plainest correct code, and the oracle of all other backends.

float32 is computed in float64, and float64 in NumPy's longdouble, which is wider on most platforms.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Result = Any  # a row, or a number


def _ready(x: NDArray[np.floating], temperature: float) -> tuple[Any, Array]:
    """A row's maximum, and its differences from it over the temperature.

    A temperature so small that its reciprocal overflows is taken as 0. Logits are quartered, which
    is exact, where the difference of two of them could overflow.
    """
    row: Array = x.astype(np.float64 if x.dtype == np.float32 else np.longdouble)
    top: Any = row.max()
    if np.isinf(temperature):
        z = np.where(row > -np.inf, 0.0, -np.inf)
    elif temperature * float(np.finfo(x.dtype).max) < np.log2(np.e):
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


def _special(x: NDArray[np.floating]) -> bool:
    """Whether a row holds a NaN or +infinity, or nothing above -infinity."""
    return not bool(np.isfinite(x.max(initial=-np.inf)))


def softmax(x: NDArray[np.floating], temperature: float) -> Result:
    if _special(x):
        return np.nan
    _, z = _ready(x, temperature)
    e = np.exp(z)
    return e / e.sum()


def log_softmax(x: NDArray[np.floating], temperature: float) -> Result:
    if _special(x):
        return np.nan
    _, z = _ready(x, temperature)
    return z - _log_sum(z)


def logsumexp(x: NDArray[np.floating], temperature: float) -> Result:
    if _special(x):
        return float(x.max(initial=-np.inf))
    top, z = _ready(x, temperature)
    if np.isinf(temperature):
        return _log_sum(z)
    return top / temperature + _log_sum(z)


_KERNELS = {"softmax": softmax, "log_softmax": log_softmax, "logsumexp": logsumexp}


class NumpyBackend:
    """Rows one at a time through the functions of this module."""

    name = "numpy"

    def run(
        self,
        op: str,
        x: NDArray[np.floating],
        temperature: NDArray[np.float64],
        out: NDArray[np.floating],
    ) -> None:
        kernel = _KERNELS[op]
        # Terms that underflow and results too large for the output's type are meant.
        with np.errstate(all="ignore"):
            for i, t in enumerate(np.broadcast_to(temperature, len(x))):
                out[i] = kernel(x[i], float(t))

    def warmup(self) -> None:
        """There is nothing to load."""

    def describe(self) -> dict[str, str]:
        return {"numpy": np.__version__}

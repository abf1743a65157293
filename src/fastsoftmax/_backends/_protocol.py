"""What a backend is."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Backend(Protocol):
    """One implementation of every operation of `fastsoftmax._ops.OPS`."""

    name: str

    def run(
        self,
        op: str,
        x: NDArray[np.floating],
        temperature: NDArray[np.float64],
        out: NDArray[np.floating],
    ) -> None:
        """Apply an operation to the rows of a batch. Nothing is checked.

        Parameters
        ----------
        op : str
            A name of `OPS`.
        x : ndarray of float32 or float64, shape (rows, cols)
            Native and aligned, the entries of a row adjacent, any row stride. Never written unless
            it is `out`.
        temperature : ndarray of float64, shape (1,) or (rows,)
            Contiguous, not negative, not NaN.
        out : ndarray of x's dtype, shape (rows, cols), or (rows,) where the operation reduces
            As `x`. It may be the very memory of `x`; otherwise the two do not overlap.
        """
        ...

    def warmup(self) -> None:
        """Compile or load whatever the first call would."""
        ...

    def describe(self) -> dict[str, str]:
        """Versions and settings worth knowing in a bug report."""
        ...

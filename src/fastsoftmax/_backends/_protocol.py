"""What a backend is."""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(slots=True)
class Batch:
    """Rows of logits, checked: what every operation reads.

    Attributes
    ----------
    x : ndarray of float16, bfloat16, float32 or float64
        The logits: `row_axes` axes that number the rows, in C order, then the axes of a row, also
        in C order. Native and aligned; any strides, zero and negative ones too. Never written.
    row_axes : int
        How many of x's axes are row axes; at least one axis is left for the row.
    temperature : ndarray of float64
        Of the shape of the row axes, any strides. Not negative, not NaN.
    where : ndarray of bool, optional
        Of x's shape, any strides. Entries where it is False are masked: what they hold is never
        looked at.
    """

    x: Array
    row_axes: int
    temperature: NDArray[np.float64]
    where: NDArray[np.bool_] | None = None

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return math.prod(self.x.shape[: self.row_axes])

    @property
    def cols(self) -> int:
        """How many entries a row has."""
        return math.prod(self.x.shape[self.row_axes :])


class SplitRow(Protocol):
    """One row of a batch that several threads work on: `reduce` over all blocks, then `merge`, then
    `write` over all blocks. Ranges of blocks may be treated at the same time."""

    blocks: int

    def reduce(self, begin: int, end: int) -> None: ...
    def merge(self) -> None: ...
    def write(self, begin: int, end: int) -> None: ...


class Backend(Protocol):
    """One implementation of every operation of `fastsoftmax._ops.OPS`.

    Nothing is checked here. Every method may be called by many threads at once, and releases the
    GIL while it computes where it can.
    """

    name: str

    def run(self, op: str, batch: Batch, out: Array, begin: int, end: int) -> None:
        """Apply an operation to the rows [begin, end) of a batch.

        Parameters
        ----------
        op : str
            A name of `OPS`.
        batch : Batch
        out : ndarray of one of the four float dtypes, native and aligned, any strides
            Of x's shape, or of that of the row axes where the operation reduces. It may be the very
            memory of `x` (same dtype and strides); otherwise it overlaps nothing. The arithmetic is
            float64 where x or out is, else float32 with sums in float64.
        begin, end : int
            The range of rows, numbered in C order.
        """
        ...

    def run_small(self, op: str, x: Array, temperature: float, out: Array | None) -> Array | None:
        """Apply an operation over the last axis with the fewest steps, or do nothing at all.

        A backend may always leave it to `run`, and has to where anything is uncommon.

        Parameters
        ----------
        op : str
        x : ndarray
            Nothing is known of it.
        temperature : float
            Above 0.
        out : object
            None, or what the caller gave.

        Returns
        -------
        ndarray or None
            The result, which is `out` if that is not None; None if nothing was done.
        """
        ...

    def split(self, op: str, batch: Batch, out: Array, row: int) -> SplitRow:
        """The row `row`, made ready for several threads; the bits are those of `run`."""
        ...

    def warmup(self) -> None:
        """Compile or load whatever the first call would."""
        ...

    def describe(self) -> dict[str, str]:
        """Versions and settings worth knowing in a bug report."""
        ...

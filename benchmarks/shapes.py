"""What is measured: the shapes that occur in practice, and logits to fill them with."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

TEMPERATURE = 0.7
SEED = 0

VOCABULARIES = (1000, 32000, 50257, 128256, 151936, 262144)
BATCHES = (1, 8, 64)


@dataclass(frozen=True, slots=True)
class Shape:
    """A two-dimensional array of logits, the axis that a row lies along, and how they lie."""

    rows: int
    cols: int
    axis: int = -1
    peaked: bool = False

    @property
    def size(self) -> int:
        return self.rows * self.cols

    def __str__(self) -> str:
        axis = "" if self.axis == -1 else f" axis {self.axis}"
        return f"{self.rows}x{self.cols}{axis}{' peaked' if self.peaked else ''}"


SHAPES = (
    *(Shape(batch, vocabulary) for vocabulary in VOCABULARIES for batch in BATCHES),
    Shape(4096, 1000),
    Shape(16384, 128),
    Shape(100000, 10),
    Shape(1000, 4096, axis=0),
)


def as_dtype(name: str) -> np.dtype[Any]:
    """A dtype by its name; ImportError for bfloat16 without ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        name = ml_dtypes.bfloat16
    return np.dtype(name)


@lru_cache(maxsize=2)
def logits(shape: Shape, dtype: str = "float32") -> NDArray[Any]:
    """Normal numbers, the same ones at every call; read-only.

    Their standard deviation is 4. That of peaked ones is 2.5, and one entry of each row stands out
    as a language model's best token does: of 128256 at `TEMPERATURE` it has a probability of 0.4 in
    the mean over the rows, of 0.05 in some and nearly 1 in others.
    """
    rng = np.random.default_rng(SEED)
    x = rng.standard_normal((shape.rows, shape.cols), dtype=np.float32)
    x *= 2.5 if shape.peaked else 4
    if shape.peaked:
        along = shape.axis % 2
        rows = [1 if i == along else n for i, n in enumerate(x.shape)]
        best = rng.integers(x.shape[along], size=rows)
        np.put_along_axis(x, best, rng.normal(12, 3, rows).astype(np.float32), along)
    x = x.astype(as_dtype(dtype), copy=False)
    x.flags.writeable = False
    return x

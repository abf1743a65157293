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
    """A two-dimensional array of logits and the axis that a row lies along."""

    rows: int
    cols: int
    axis: int = -1

    @property
    def size(self) -> int:
        return self.rows * self.cols

    def __str__(self) -> str:
        return f"{self.rows}x{self.cols}" + ("" if self.axis == -1 else f" axis {self.axis}")


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
    """Normal numbers with a standard deviation of 4, the same ones at every call; read-only."""
    rng = np.random.default_rng(SEED)
    x = rng.standard_normal((shape.rows, shape.cols), dtype=np.float32)
    x *= 4
    x = x.astype(as_dtype(dtype), copy=False)
    x.flags.writeable = False
    return x

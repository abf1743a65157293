"""The random numbers of `sample`: a function of seed, row, step and draw, in plain integers.

`output(state, i)` is the number i of the SplitMix64 generator [1]_ that starts with `state`: the
finaliser of ``state + (i + 1) * 0x9E3779B97F4A7C15``, modulo 2**64. The uniform is found by going
down four such generators, each of which seeds the next::

    a = output(seed, 0)
    b = output(a, row)
    c = output(b, step)
    d = output(c, draw)
    u = (d >> 11) * 2.0**-53

References
----------
.. [1] G. L. Steele, D. Lea and C. H. Flood, "Fast splittable pseudorandom number generators",
   OOPSLA 2014, with the constants of S. Vigna's splitmix64.c.
"""

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsoftmax._api import _arguments

Array = NDArray[Any]
Float64 = NDArray[np.float64]
Seed = Any  # an int, an array of ints, a numpy Generator or None

_MASK = 0xFFFF_FFFF_FFFF_FFFF

# Uniforms up to which Python's integers are quicker than arrays.
_FEW = 4


def output(state: Any, index: Any) -> Any:
    """Number `index` of the SplitMix64 generator that starts with `state`.

    Parameters
    ----------
    state, index : int or ndarray of uint64
        Python's integers in [0, 2**64), or arrays, whose arithmetic is modulo 2**64.
    """
    z = (state + ((index + 1) * 0x9E37_79B9_7F4A_7C15 & _MASK)) & _MASK
    z = (z ^ (z >> 30)) * 0xBF58_476D_1CE4_E5B9 & _MASK
    z = (z ^ (z >> 27)) * 0x94D0_49BB_1331_11EB & _MASK
    return z ^ (z >> 31)


def _as_word(name: str, value: Any) -> int:
    """A Python integer in [0, 2**64); negative ones wrap around."""
    word = _arguments.as_integer(value, name)
    if not -(2**63) <= word < 2**64:
        raise ValueError(f"{name} is {_arguments.shown(word)}; it must be in [-2**63, 2**64)")
    return word & _MASK


def _as_words(name: str, value: Any, shape: tuple[int, ...], rows: int) -> Any:
    """As `_as_word` for one number; an array of uint64 for one a row."""
    if isinstance(value, int):
        return _as_word(name, value)
    array = _arguments.as_array(value, name)
    if array.ndim == 0:
        return _as_word(name, array.item())
    if array.dtype.kind not in "iu":
        if not isinstance(value, Sequence):
            raise TypeError(f"{name} has dtype {array.dtype}; it must be an integer")
        # NumPy makes floats of a list of integers of which some, not all, are beyond int64.
        objects = np.asarray(value, object)
        words = [_as_word(name, v) for v in objects.ravel()]
        array = np.array(words, np.uint64).reshape(objects.shape)
    if array.shape not in (shape, (rows,)):
        raise ValueError(
            f"{name} has shape {array.shape}; it must be one number or one for each row, {shape}"
        )
    return array.astype(np.uint64).reshape(-1)


def uniforms(
    seed: Seed, step: Any, shape: tuple[int, ...], draws: int, first_row: int = 0
) -> Float64:
    """Uniforms in [0, 1), (rows, draws).

    Parameters
    ----------
    seed : int, array_like of int, numpy.random.Generator or None
        One for all rows, one for each, a source of its own, or fresh entropy.
    step : int or array_like of int
        One for all rows or one for each.
    shape : tuple of int
        Of the rows.
    draws : int
        How many for each row.
    first_row : int, optional
        The number of the first row, where these are not all.
    """
    rows = math.prod(shape)
    steps = _as_words("step", step, shape, rows)
    if isinstance(seed, np.random.Generator):
        return seed.random((rows, draws), np.float64)
    if seed is None:
        seed = int.from_bytes(os.urandom(8), "little")
    seeds = _as_words("seed", seed, shape, rows)
    if rows * draws <= _FEW:
        words = []
        for i in range(rows):
            own = not isinstance(seeds, int)
            state = output(output(int(seeds[i]) if own else seeds, 0), 0 if own else first_row + i)
            state = output(state, steps if isinstance(steps, int) else int(steps[i]))
            words += [(output(state, j) >> 11) * 2.0**-53 for j in range(draws)]
        return np.array(words).reshape(rows, draws)
    if isinstance(seeds, int):
        state = output(output(seeds, 0), np.arange(first_row, first_row + rows, dtype=np.uint64))
    else:
        state = output(output(seeds, 0), 0)
    state = output(state, steps)
    numbers = output(state[:, None], np.arange(draws, dtype=np.uint64))
    result: Float64 = (numbers >> 11) * 2.0**-53
    return result

"""What Numba runs before it first compiles anything: the entry point ``numba_extensions``.

It lets jitted functions call the public `softmax`, `log_softmax` and `logsumexp`.
"""

import numpy as np
from numba import types
from numba.core.errors import TypingError
from numba.extending import overload

import fastsoftmax


def init() -> None:
    """Tell Numba what the public functions are in jitted code."""
    for name in ("softmax", "log_softmax"):
        overload(getattr(fastsoftmax, name))(_writes_rows(name))
    overload(fastsoftmax.logsumexp)(_logsumexp)


def _check(name, axis, **others):
    """What jitted code may not ask for; typing has no values, so the axis is looked at later."""
    from fastsoftmax._numba.arguments import is_none

    if not isinstance(axis, (types.Integer, types.Omitted, int)):
        raise TypingError(f"axis of {name} is {axis}; in jitted code it must be the last one")
    for what, given in others.items():
        if not is_none(given):
            raise TypingError(f"{name} takes no {what} in jitted code")


def _writes_rows(name):
    def typed(x, axis=-1, temperature=1.0, where=None, out=None, dtype=None):
        from fastsoftmax import njit
        from fastsoftmax._numba.arguments import is_none

        _check(name, axis, dtype=dtype)
        apply = getattr(njit, name)

        def new(x, axis=-1, temperature=1.0, where=None, out=None, dtype=None):
            if axis != -1 and axis != x.ndim - 1:
                raise ValueError("axis must be the last one in jitted code")
            result = np.empty(x.shape, x.dtype)
            apply(x, temperature, result, where)
            return result

        def given(x, axis=-1, temperature=1.0, where=None, out=None, dtype=None):
            if axis != -1 and axis != x.ndim - 1:
                raise ValueError("axis must be the last one in jitted code")
            apply(x, temperature, out, where)
            return out

        return new if is_none(out) else given

    return typed


def _logsumexp(x, axis=-1, temperature=1.0, where=None, keepdims=False, out=None, dtype=None):
    from fastsoftmax.njit import logsumexp

    _check("logsumexp", axis, out=out, dtype=dtype)
    if not isinstance(keepdims, (bool, types.Omitted)):
        raise TypingError("logsumexp takes no keepdims in jitted code")

    def row(x, axis=-1, temperature=1.0, where=None, keepdims=False, out=None, dtype=None):
        if axis != -1 and axis != 0:
            raise ValueError("axis must be the last one in jitted code")
        return logsumexp(x, temperature, None, where)

    def batch(x, axis=-1, temperature=1.0, where=None, keepdims=False, out=None, dtype=None):
        if axis != -1 and axis != 1:
            raise ValueError("axis must be the last one in jitted code")
        result = np.empty(x.shape[0], x.dtype)
        logsumexp(x, temperature, result, where)
        return result

    return row if x.ndim == 1 else batch

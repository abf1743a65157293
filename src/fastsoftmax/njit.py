"""The kernels for code that Numba compiles.

The functions here are called inside functions jitted by ``numba.njit``, or from Python. They hold
no Python object and do not need the interpreter's lock; a caller may be cached, as the kernels are.
Each call works in memory of its own, so any number of threads may be in them.

Logits are arrays of float32 or float64 of any strides: a row ``(vocab,)`` or a batch
``(rows, vocab)``. A temperature is a number or a contiguous array of float64, one for each row of a
batch. Outputs are given, one for a row where it has only one number; they must not overlap the
logits unless that is said. What results mean is said of the functions of the same names of
`fastsoftmax`; their bits are those of its Numba backend.

Functions raise ValueError or IndexError where shapes or numbers do not fit, and Numba's TypingError
where types do not.
"""

import numpy as np
from numba import njit, types
from numba.core.errors import TypingError
from numba.extending import overload

from fastsoftmax._numba import kernels as _kernels
from fastsoftmax._numba.kernels import log_softmax as _log_softmax
from fastsoftmax._numba.kernels import logsumexp as _logsumexp
from fastsoftmax._numba.kernels import row_state_size as _row_state_size
from fastsoftmax._numba.kernels import softmax as _softmax
from fastsoftmax._numba.kernels import workspace_size as _workspace_size
from fastsoftmax._numba.sampling import capacity as _capacity
from fastsoftmax._numba.sampling import room_size as _room_size
from fastsoftmax._numba.sampling import sample as _sample
from fastsoftmax._numba.scoring import best_room as _best_room
from fastsoftmax._numba.scoring import moments as _moments
from fastsoftmax._numba.scoring import moments_room as _moments_room
from fastsoftmax._numba.scoring import token_logprobs as _token_logprobs
from fastsoftmax._numba.scoring import topk as _topk
from fastsoftmax._numba.vectors import F32 as _F32
from fastsoftmax._numba.vectors import F64 as _F64
from fastsoftmax._numba.vectors import OPTIONS as _OPTIONS

__all__ = [
    "entropy",
    "log_softmax",
    "logsumexp",
    "sample",
    "softmax",
    "token_logprobs",
    "topk_logprobs",
    "uniform",
]

_jit = njit(**_OPTIONS)

_STREAMED = 1 << 22  # bytes of an output that goes past the caches
_FIELDS = int(_kernels.FIELDS)
_SIZE = _FIELDS + 11  # a batch: two axes, and a temperature behind it
_SHORT = _kernels.SHORT
# Arguments of the types that the backend gives: Numba compiles anew for a literal.
_ZERO, _TRUE = np.int64(0), np.bool_(True)


# --------------------------------------------------------------------------------------------------
# What depends on types


def _check_logits(x):
    if not (
        isinstance(x, types.Array)
        and x.ndim in (1, 2)
        and x.dtype in (types.float32, types.float64)
    ):
        raise TypingError(f"logits are {x}; they must be a 1-D or 2-D array of float32 or float64")


def _layout(x):
    """Rows, entries of a row, and the bytes from a row and from an entry to the next."""
    raise NotImplementedError


@overload(_layout)
def _overload_layout(x):
    _check_logits(x)
    if x.ndim == 1:
        return lambda x: (1, x.shape[0], 0, x.strides[0])
    return lambda x: (x.shape[0], x.shape[1], x.strides[0], x.strides[1])


def _code(x):
    """The type of an array in memory, as kernels have it."""
    raise NotImplementedError


@overload(_code)
def _overload_code(x):
    code = _F32 if x.dtype == types.float32 else _F64
    return lambda x: code


def _temperatures(temperature, rows, table):
    """The address of the temperature of the first row, and the bytes to the next one."""
    raise NotImplementedError


@overload(_temperatures)
def _overload_temperatures(temperature, rows, table):
    if isinstance(temperature, types.Number) and not isinstance(temperature, types.Complex):

        def one(temperature, rows, table):
            if not temperature >= 0.0:
                raise ValueError("temperature must not be negative or NaN")
            table.view(np.float64)[_SIZE - 1] = temperature
            return _address(table) + 8 * (_SIZE - 1), 0

        return one
    if isinstance(temperature, types.Array) and (
        temperature.ndim,
        temperature.layout,
        temperature.dtype,
    ) == (1, "C", types.float64):

        def many(temperature, rows, table):
            if temperature.shape[0] != rows:
                raise ValueError("temperature must be one number or one for each row")
            for t in temperature:
                if not t >= 0.0:
                    raise ValueError("temperature must not be negative or NaN")
            return _address(temperature), 8

        return many
    raise TypingError(
        f"temperature is {temperature}; it must be a number or a contiguous 1-D array of float64"
    )


# --------------------------------------------------------------------------------------------------
# What the kernels take


@_jit
def _address(a):
    return np.int64(a.ctypes.data)


@_jit
def _prepare(x, temperature, more):
    """The table of a batch, with room for `more` numbers of 8 bytes behind it from `_SIZE` on."""
    rows, cols, across, along = _layout(x)
    table = np.empty(_SIZE + more, np.int64)
    table[:_SIZE] = 0
    address, step = _temperatures(temperature, rows, table)
    table[0] = table[1] = 1
    table[2] = cols
    table[3] = _address(x)
    table[6] = address
    table[7] = _code(x)
    table[10] = along == x.itemsize
    # An axis is its length and its steps: of logits, output, mask and temperature.
    rows_axis, cols_axis = _FIELDS, _FIELDS + 5
    table[rows_axis], table[rows_axis + 1], table[rows_axis + 4] = rows, across, step
    table[cols_axis], table[cols_axis + 1] = cols, along
    return table


@_jit
def _by_columns(x):
    """Whether rows are short or lie side by side."""
    _, cols, across, along = _layout(x)
    return 0 < cols <= _SHORT or (across == x.itemsize and along != x.itemsize)


@_jit
def _memory(x, by_columns, keeps):
    """A workspace and the state of a row."""
    _, cols, _, _ = _layout(x)
    size = _workspace_size(cols, x.itemsize, by_columns)
    workspace = np.empty(size // x.itemsize + 1, x.dtype)
    return workspace, np.empty(_row_state_size(cols, x.itemsize, keeps), np.uint8)


@_jit
def _prepare_rows(x, temperature, out):
    """As `_prepare`, for an operation that writes rows."""
    if out.shape != x.shape:
        raise ValueError("out must have the shape of the logits")
    table = _prepare(x, temperature, 0)
    _, _, across, along = _layout(out)
    table[4] = _address(out)
    table[8] = _code(out)
    table[11] = along == out.itemsize
    table[12] = out.size * out.itemsize >= _STREAMED
    table[13] = _by_columns(x)
    table[_FIELDS + 2], table[_FIELDS + 7] = across, along
    return table


def _check_rows(x, out):
    raise NotImplementedError


@overload(_check_rows)
def _overload_check_rows(x, out):
    _check_logits(x)
    if not (isinstance(out, types.Array) and (out.ndim, out.dtype) == (x.ndim, x.dtype)):
        raise TypingError(f"out is {out}; it must be an array like the logits, which are {x}")
    return lambda x, out: None


# --------------------------------------------------------------------------------------------------
# Rows that are written


@_jit
def softmax(x, temperature, out):
    """Probabilities ``exp(x/T) / sum(exp(x/T))``.

    Parameters
    ----------
    x : array of float32 or float64, (vocab,) or (rows, vocab)
    temperature : float, or array of float64, (rows,)
    out : array of the shape and dtype of `x`
        It may be `x`.

    Examples
    --------
    >>> import numba
    >>> import numpy as np
    >>> from fastsoftmax.njit import softmax
    >>> @numba.njit(nogil=True)
    ... def largest_probability(x):
    ...     p = np.empty_like(x)
    ...     softmax(x, 1.0, p)
    ...     return p.max()
    >>> round(float(largest_probability(np.array([1.0, 2.0, 3.0]))), 4)
    0.6652
    """
    _check_rows(x, out)
    table = _prepare_rows(x, temperature, out)
    workspace, row_state = _memory(x, table[13] != 0, True)
    _softmax(workspace, row_state, table, _ZERO, table[_FIELDS])


@_jit
def log_softmax(x, temperature, out):
    """Log-probabilities; parameters as for `softmax`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax.njit import log_softmax
    >>> out = np.empty(2)
    >>> log_softmax(np.array([0.0, -30.0]), 1.0, out)
    >>> out
    array([-9.35762297e-14, -3.00000000e+01])
    """
    _check_rows(x, out)
    table = _prepare_rows(x, temperature, out)
    workspace, row_state = _memory(x, table[13] != 0, False)
    _log_softmax(workspace, row_state, table, _ZERO, table[_FIELDS])


# --------------------------------------------------------------------------------------------------
# One number for each row


def _is_zero(temperature):
    raise NotImplementedError


@overload(_is_zero)
def _overload_is_zero(temperature):
    if isinstance(temperature, types.Array):
        return lambda temperature: (temperature == 0.0).any()
    return lambda temperature: temperature == 0.0


@_jit
def _logsumexp_into(x, temperature, out):
    if _is_zero(temperature):
        raise ValueError("temperature is 0, where logsumexp has no limit")
    table = _prepare(x, temperature, 0)
    table[4], table[8] = _address(out), _code(out)
    table[13] = _by_columns(x)
    table[_FIELDS + 2] = out.strides[0]
    workspace, row_state = _memory(x, table[13] != 0, False)
    _logsumexp(workspace, row_state, table, _ZERO, table[_FIELDS])


@_jit
def _entropy_into(x, temperature, out):
    _, cols, _, _ = _layout(x)
    table = _prepare(x, temperature, _moments_room(cols) // 8 + 4)
    numbers = table.view(np.float64)
    workspace, row_state = _memory(x, False, False)
    # One row after the other, as the kernel has four results for each.
    room = _address(table) + 8 * _SIZE
    for row in range(table[_FIELDS]):
        _moments(workspace, row_state, table, room - 32 * row, room + 32, row, row + 1)
        out[row] = numbers[_SIZE + 3]


def _check_reduced(name, x, out):
    """Whether there is an output: for a batch, and not for a row."""
    _check_logits(x)
    if x.ndim == 1 and _is_none(out):
        return False
    dtype = x.dtype if name == "logsumexp" else types.float64
    if x.ndim == 2 and isinstance(out, types.Array) and (out.ndim, out.dtype) == (1, dtype):
        return True
    raise TypingError(
        f"out is {out}; for a row it must be left out, for a batch be a 1-D array of {dtype}"
    )


def _is_none(kind):
    """Whether an argument is None, or left out where that is the default."""
    return kind is None or isinstance(kind, types.NoneType) or getattr(kind, "value", 0) is None


def _logsumexp_of(x, temperature, out):
    raise NotImplementedError


@overload(_logsumexp_of)
def _overload_logsumexp_of(x, temperature, out):
    def row(x, temperature, out):
        result = np.empty(1, x.dtype)
        _logsumexp_into(x, temperature, result)
        return result[0]

    def batch(x, temperature, out):
        if out.shape[0] != x.shape[0]:
            raise ValueError("out must have a number for each row")
        _logsumexp_into(x, temperature, out)

    return batch if _check_reduced("logsumexp", x, out) else row


def _entropy_of(x, temperature, out):
    raise NotImplementedError


@overload(_entropy_of)
def _overload_entropy_of(x, temperature, out):
    def row(x, temperature, out):
        result = np.empty(1)
        _entropy_into(x, temperature, result)
        return result[0]

    def batch(x, temperature, out):
        if out.shape[0] != x.shape[0]:
            raise ValueError("out must have a number for each row")
        _entropy_into(x, temperature, out)

    return batch if _check_reduced("entropy", x, out) else row


@_jit
def logsumexp(x, temperature, out=None):
    """``log(sum(exp(x/T)))``.

    Parameters
    ----------
    x : array of float32 or float64, (vocab,) or (rows, vocab)
    temperature : float, or array of float64, (rows,)
        Not 0.
    out : array of the dtype of `x`, (rows,)
        For a batch; for a row it is left out.

    Returns
    -------
    float or None
        The number of a row, of the dtype of `x`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax.njit import logsumexp
    >>> float(logsumexp(np.array([0.0, -40.0]), 1.0))
    4.248354255291589e-18
    """
    return _logsumexp_of(x, temperature, out)


@_jit
def entropy(x, temperature, out=None):
    """The entropy in nats.

    Parameters
    ----------
    x : array of float32 or float64, (vocab,) or (rows, vocab)
    temperature : float, or array of float64, (rows,)
    out : array of float64, (rows,)
        For a batch; for a row it is left out.

    Returns
    -------
    float or None
        The entropy of a row.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax.njit import entropy
    >>> round(entropy(np.zeros(4), 1.0), 6)
    1.386294
    """
    return _entropy_of(x, temperature, out)


# --------------------------------------------------------------------------------------------------
# Single entries


def _check_entries(x, ids, numbers, more):
    """Types of ids, and of numbers beside them."""
    raise NotImplementedError


@overload(_check_entries)
def _overload_check_entries(x, ids, numbers, more):
    _check_logits(x)
    kinds = (("ids", ids, types.int64), ("logprobs", numbers, types.float64))
    if not _is_none(more):
        dtype = more.dtype if more.dtype in (types.int64, types.float64) else types.float64
        kinds += (("the third array", more, dtype),)
    for name, array, dtype in kinds:
        if not (
            isinstance(array, types.Array)
            and (array.ndim, array.layout, array.dtype) == (x.ndim, "C", dtype)
        ):
            raise TypingError(
                f"{name} is {array}; it must be a contiguous {x.ndim}-D array of {dtype}"
            )

    def check(x, ids, numbers, more):
        rows, _, _, _ = _layout(x)
        if numbers.shape != ids.shape or (x.ndim == 2 and ids.shape[0] != rows):
            raise ValueError("ids and logprobs must have one shape, with a row for each of logits")

    return check


@_jit
def token_logprobs(x, ids, temperature, logprobs, ranks):
    """Log-probabilities and ranks of given entries.

    Parameters
    ----------
    x : array of float32 or float64, (vocab,) or (rows, vocab)
    ids : array of int64, (m,) or (rows, m)
        In [0, vocab), or -1 for none.
    temperature : float, or array of float64, (rows,)
    logprobs : array of float64, of the shape of `ids`
        Output.
    ranks : array of int64, of the shape of `ids`
        Output: 1 + the number of entries that are strictly larger.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax.njit import token_logprobs
    >>> logprobs, ranks = np.empty(2), np.empty(2, np.int64)
    >>> token_logprobs(np.array([1.0, 3.0, 2.0]), np.array([1, 0]), 1.0, logprobs, ranks)
    >>> logprobs.round(4), ranks
    (array([-0.4076, -2.4076]), array([1, 3]))
    """
    _check_entries(x, ids, logprobs, ranks)
    if ranks.shape != ids.shape:
        raise ValueError("ranks must have the shape of ids")
    _, cols, _, _ = _layout(x)
    for i in ids.flat:
        if not -1 <= i < cols:
            raise IndexError("ids must be in [0, vocab), or -1")
    count = ids.shape[-1]
    table = _prepare(x, temperature, count)
    workspace, row_state = _memory(x, False, False)
    _token_logprobs(
        workspace,
        row_state,
        table,
        _address(ids),
        count,
        _address(logprobs),
        _address(ranks),
        _ZERO,
        _address(table) + 8 * _SIZE,
        _ZERO,
        table[_FIELDS],
    )


@_jit
def topk_logprobs(x, temperature, ids, logprobs):
    """The largest entries, from the largest down, with their log-probabilities.

    Parameters
    ----------
    x : array of float32 or float64, (vocab,) or (rows, vocab)
    temperature : float, or array of float64, (rows,)
    ids : array of int64, (k,) or (rows, k)
        Output; -1 behind the last entry above -infinity.
    logprobs : array of float64, of the shape of `ids`
        Output.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax.njit import topk_logprobs
    >>> ids, logprobs = np.empty(2, np.int64), np.empty(2)
    >>> topk_logprobs(np.array([1.0, 3.0, 2.0]), 1.0, ids, logprobs)
    >>> ids, logprobs.round(4)
    (array([1, 2]), array([-0.4076, -1.4076]))
    """
    _check_entries(x, ids, logprobs, None)
    k = ids.shape[-1]
    if k == 0:
        return
    size = _best_room(k)
    table = _prepare(x, temperature, 2 * size)
    room = _address(table) + 8 * _SIZE
    workspace, row_state = _memory(x, False, False)
    _topk(
        workspace,
        row_state,
        table,
        k,
        _address(ids),
        _address(logprobs),
        room,
        room + 8 * size,
        _ZERO,
        table[_FIELDS],
    )


# --------------------------------------------------------------------------------------------------
# Draws


@_jit
def _output(state, index):
    """Number `index` of the SplitMix64 generator that starts with `state`."""
    z = state + (index + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@_jit
def uniform(seed, row, step, draw):
    """The uniform that `fastsoftmax.sample` takes for an integer seed.

    Parameters
    ----------
    seed, row, step, draw : int
        The row is 0 where each row has a seed of its own, and the draw that of the row.

    Returns
    -------
    float

    Examples
    --------
    >>> from fastsoftmax.njit import uniform
    >>> round(uniform(5, 1, 0, 0), 6)
    0.319228
    """
    state = _output(np.uint64(seed), np.uint64(0))
    state = _output(_output(state, np.uint64(row)), np.uint64(step))
    return np.float64(_output(state, np.uint64(draw)) >> np.uint64(11)) * 2.0**-53


@_jit
def sample(x, uniforms, temperature, top_k, top_p, min_p, ids, logprobs):
    """Draws, with replacement, from what the filters leave.

    Parameters
    ----------
    x : array of float32 or float64, (vocab,) or (rows, vocab)
    uniforms : array of float64, (draws,) or (rows, draws)
        In [0, 1): see `uniform`.
    temperature : float, or array of float64, (rows,)
    top_k : int
        0 or -1 for all.
    top_p, min_p : float
        1 and 0 for all.
    ids : array of int64, of the shape of `uniforms`
        Output.
    logprobs : array of float64, of the shape of `uniforms`
        Output.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax.njit import sample, uniform
    >>> ids, logprobs = np.empty(2, np.int64), np.empty(2)
    >>> u = np.array([uniform(5, 0, step, 0) for step in range(2)])
    >>> sample(np.array([0.0, 1.0, 2.0]), u, 0.7, 2, 1.0, 0.0, ids, logprobs)
    >>> ids, logprobs.round(4)
    (array([2, 2]), array([-0.2148, -0.2148]))
    """
    _check_entries(x, ids, logprobs, uniforms)
    if uniforms.shape != ids.shape:
        raise ValueError("uniforms must have the shape of ids")
    if not (0.0 <= top_p <= 1.0 and 0.0 <= min_p <= 1.0):
        raise ValueError("top_p and min_p must be in [0, 1]")
    if top_k < -1:
        raise ValueError("top_k must be positive, or 0 or -1")
    rows, cols, _, _ = _layout(x)
    k = cols if top_k <= 0 or top_k >= cols else top_k
    capacity = _capacity(cols, k if k < cols else 1)
    table = _prepare(x, temperature, 3 * rows + _room_size(cols, capacity) // 8 + 1)
    numbers, start = table.view(np.float64), _SIZE
    table[start : start + rows] = k
    numbers[start + rows : start + 2 * rows] = top_p
    numbers[start + 2 * rows : start + 3 * rows] = min_p
    filters = _address(table) + 8 * start
    workspace, _ = _memory(x, False, False)
    _sample(
        workspace,
        table,
        filters,
        filters + 8 * rows,
        filters + 16 * rows,
        _address(uniforms),
        ids.shape[-1],
        _TRUE,
        _address(ids),
        _address(logprobs),
        filters + 24 * rows,
        capacity,
        _ZERO,
        table[_FIELDS],
    )

"""The kernels for code that Numba compiles.

The functions here are called inside functions jitted by ``numba.njit``, or from Python. They hold
no Python object and do not need the interpreter's lock; a caller may be cached, as the kernels are.
Each call works in memory of its own, so any number of threads may be in them.

Logits are arrays of float32 or float64 of any strides: a row ``(vocab,)`` or a batch
``(rows, vocab)``. A temperature is a number or a contiguous array of float64, one for each row of a
batch. Outputs are given, one for a row where it has only one number; they must not overlap the
logits unless that is said. A mask is left out, or `where`, an array of bool of the shape of the
logits, or `token_bitmask`, an array of int32 of shape (ceil(vocab / 32),) for a row and
(rows, ceil(vocab / 32)) for a batch, contiguous along a row; if both are given, either masks. What
results mean is said of the functions of the same names of `fastsoftmax`; their bits are those of
its Numba backend.

Functions raise ValueError or IndexError where shapes or numbers do not fit, and Numba's TypingError
where types do not.
"""

import numpy as np

from fastsoftmax._numba import arguments as _arguments
from fastsoftmax._numba import kernels as _kernels
from fastsoftmax._numba import sampling as _sampling
from fastsoftmax._numba import scoring as _scoring
from fastsoftmax._numba.arguments import address as _address
from fastsoftmax._numba.arguments import jit as _jit
from fastsoftmax._numba.arguments import layout as _layout

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

_ROWS, _BY_COLUMNS = _kernels.FIELDS, _kernels.BY_COLUMNS  # fields of a table
_ZERO = np.int64(0)  # of the type that the backend gives: Numba compiles anew for a literal


@_jit
def _memory(x, by_columns, keeps):
    """A workspace and the state of a row behind it, as one piece of memory is had sooner."""
    _, cols, _, _ = _layout(x)
    size = _kernels.workspace_size(cols, x.itemsize, by_columns) // x.itemsize + 1
    more = _kernels.row_state_size(cols, x.itemsize, keeps) // x.itemsize + 1
    workspace = np.empty(size + more, x.dtype)
    return workspace, workspace[size:].view(np.uint8)


@_jit
def _kept(memory):
    """Memory of which a kernel has the address alone lives until this is called."""


@_jit
def softmax(x, temperature, out, where=None):
    """Probabilities ``exp(x/T) / sum(exp(x/T))``.

    Parameters
    ----------
    x : array of float32 or float64, (vocab,) or (rows, vocab)
    temperature : float, or array of float64, (rows,)
    out : array of the shape and dtype of `x`
        It may be `x`.
    where : array of bool, of the shape of `x`, optional

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
    table = _arguments.rows(x, temperature, out, where)
    workspace, row_state = _memory(x, table[_BY_COLUMNS] != 0, True)
    _kernels.softmax(workspace, row_state, table, _ZERO, table[_ROWS])


@_jit
def log_softmax(x, temperature, out, where=None):
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
    table = _arguments.rows(x, temperature, out, where)
    workspace, row_state = _memory(x, table[_BY_COLUMNS] != 0, False)
    _kernels.log_softmax(workspace, row_state, table, _ZERO, table[_ROWS])


@_jit
def logsumexp(x, temperature, out=None, where=None):
    """``log(sum(exp(x/T)))``.

    Parameters
    ----------
    x : array of float32 or float64, (vocab,) or (rows, vocab)
    temperature : float, or array of float64, (rows,)
        Not 0.
    out : array of the dtype of `x`, (rows,)
        For a batch; for a row it is left out.
    where : array of bool, of the shape of `x`, optional

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
    results = _arguments.results(x, out, x.dtype)
    table = _arguments.reduced(x, temperature, results, where)
    workspace, row_state = _memory(x, table[_BY_COLUMNS] != 0, False)
    _kernels.logsumexp(workspace, row_state, table, _ZERO, table[_ROWS])
    return _arguments.returned(results, out)


@_jit
def entropy(x, temperature, out=None, where=None, token_bitmask=None):
    """The entropy in nats.

    Parameters
    ----------
    x : array of float32 or float64, (vocab,) or (rows, vocab)
    temperature : float, or array of float64, (rows,)
    out : array of float64, (rows,)
        For a batch; for a row it is left out.
    where, token_bitmask : array, optional

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
    results = _arguments.results(x, out, np.float64)
    table = _arguments.batch(x, temperature, where, token_bitmask)
    workspace, row_state = _memory(x, False, False)
    rows = table[_ROWS]
    room = np.empty(_scoring.moments_room(table[_kernels.COLS]) + 8, np.uint8)
    moments = np.empty((rows, 4))
    _scoring.moments(workspace, row_state, table, _address(moments), _address(room), _ZERO, rows)
    _kept(room)
    for row in range(rows):
        results[row] = moments[row, 3]
    return _arguments.returned(results, out)


@_jit
def token_logprobs(x, ids, temperature, logprobs, ranks, where=None, token_bitmask=None):
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
    where, token_bitmask : array, optional

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax.njit import token_logprobs
    >>> logprobs, ranks = np.empty(2), np.empty(2, np.int64)
    >>> token_logprobs(np.array([1.0, 3.0, 2.0]), np.array([1, 0]), 1.0, logprobs, ranks)
    >>> logprobs.round(4), ranks
    (array([-0.4076, -2.4076]), array([1, 3]))
    """
    table = _arguments.entries(x, temperature, ids, logprobs, ranks, where, token_bitmask)
    _arguments.check_ids(x, ids)
    workspace, row_state = _memory(x, False, False)
    count = ids.shape[-1]
    room = np.empty(count)
    _scoring.token_logprobs(
        workspace,
        row_state,
        table,
        _address(ids),
        count,
        _address(logprobs),
        _address(ranks),
        _ZERO,
        _address(room),
        _ZERO,
        table[_ROWS],
    )
    _kept(room)


@_jit
def topk_logprobs(x, temperature, ids, logprobs, where=None, token_bitmask=None):
    """The largest entries, from the largest down, with their log-probabilities.

    Parameters
    ----------
    x : array of float32 or float64, (vocab,) or (rows, vocab)
    temperature : float, or array of float64, (rows,)
    ids : array of int64, (k,) or (rows, k)
        Output; -1 behind the last entry above -infinity.
    logprobs : array of float64, of the shape of `ids`
        Output.
    where, token_bitmask : array, optional

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax.njit import topk_logprobs
    >>> ids, logprobs = np.empty(2, np.int64), np.empty(2)
    >>> topk_logprobs(np.array([1.0, 3.0, 2.0]), 1.0, ids, logprobs)
    >>> ids, logprobs.round(4)
    (array([1, 2]), array([-0.4076, -1.4076]))
    """
    table = _arguments.entries(x, temperature, ids, logprobs, None, where, token_bitmask)
    k = ids.shape[-1]
    if k == 0:
        return
    workspace, row_state = _memory(x, False, False)
    size = _scoring.best_room(k)
    room = np.empty(2 * size)
    _scoring.topk(
        workspace,
        row_state,
        table,
        k,
        _address(ids),
        _address(logprobs),
        _address(room),
        _address(room) + 8 * size,
        _ZERO,
        table[_ROWS],
    )
    _kept(room)


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
def sample(
    x,
    uniforms,
    temperature,
    top_k,
    top_p,
    min_p,
    ids,
    logprobs,
    replace=True,
    where=None,
    token_bitmask=None,
    logit_bias=None,
    history=None,
    repetition_penalty=1.0,
    presence_penalty=0.0,
    frequency_penalty=0.0,
):
    """Draws from what the filters leave.

    Parameters
    ----------
    x : array of float32 or float64, (vocab,) or (rows, vocab)
    uniforms : array of float64, (draws,) or (rows, draws)
        In [0, 1): see `uniform`.
    temperature : float, or array of float64, (rows,)
    top_k : int, or array of int, (rows,)
        0 or -1 for all.
    top_p, min_p : float, or array of float, (rows,)
        1 and 0 for all.
    ids : array of int64, of the shape of `uniforms`
        Output.
    logprobs : array of float64, of the shape of `uniforms`
        Output.
    replace : bool, optional
        Whether the draws of a row may repeat an entry.
    where, token_bitmask : array, optional
    logit_bias : tuple of arrays, optional
        ``(ids, values)``: of one axis for all rows, or of shape (rows, length), where negative ids
        are padding.
    history : array of int, (length,) or (rows, length), optional
        The tokens that the penalties are for; negative ones are padding.
    repetition_penalty, presence_penalty, frequency_penalty : float, or array of float, (rows,)

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax.njit import sample, uniform
    >>> ids, logprobs = np.empty(2, np.int64), np.empty(2)
    >>> u = np.array([uniform(5, 0, step, 0) for step in range(2)])
    >>> sample(np.array([0.0, 1.0, 2.0]), u, 0.7, 2, 1.0, 0.0, ids, logprobs)
    >>> ids, logprobs.round(4)
    (array([2, 2]), array([-0.2148, -0.2148]))
    >>> bias = np.array([2, 0]), np.array([-np.inf, 1.5])
    >>> x = np.array([0.0, 1.0, 2.0])
    >>> sample(x, u, 0.7, 0, 1.0, 0.0, ids, logprobs, replace=False, logit_bias=bias)
    >>> ids, logprobs.round(4)
    (array([1, 0]), array([-1.1128, -0.3985]))
    """
    table, largest = _arguments.draws(
        x,
        uniforms,
        temperature,
        (top_k, top_p, min_p),
        ids,
        logprobs,
        where,
        token_bitmask,
        logit_bias,
        history,
        (repetition_penalty, presence_penalty, frequency_penalty),
    )
    workspace, _ = _memory(x, False, False)
    cols, rows = table[_kernels.COLS], table[_ROWS]
    filters = _address(table) + 8 * _arguments.SIZE
    capacity = _sampling.capacity(cols, largest)
    room = np.empty(_sampling.room_size(cols, capacity), np.uint8)
    _sampling.sample(
        workspace,
        table,
        filters,
        filters + 8 * rows,
        filters + 16 * rows,
        _address(uniforms),
        ids.shape[-1],
        np.bool_(replace),
        _address(ids),
        _address(logprobs),
        _address(room),
        capacity,
        _ZERO,
        rows,
    )
    _kept(room)

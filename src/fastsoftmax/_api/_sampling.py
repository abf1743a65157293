"""sample and filtered_logprobs."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsoftmax import _backends
from fastsoftmax._api import _arguments, _edits, _uniforms, _vocab
from fastsoftmax._backends._protocol import Batch, Filters

Array = NDArray[Any]
# Made once: the annotations of a nested function are evaluated at every call.
Float64 = NDArray[np.float64]
Drawn = tuple[NDArray[np.int64], Float64]

# Draws of a row with replacement that are made in one call, which sees no signal, and how many
# entries take as long as a draw: from a few to 20,000.
_DRAWS = 4096
_DRAW = 1024


class Sample(NamedTuple):
    """What `sample` returns.

    Attributes
    ----------
    ids : ndarray of int64
        The tokens drawn; -1 where there was nothing to draw from.
    logprobs : ndarray of float32 or float64
        Their log-probabilities in the distribution they were drawn from.
    """

    ids: Any
    logprobs: Any


class FilteredLogprobs(NamedTuple):
    """What `filtered_logprobs` returns.

    Attributes
    ----------
    ids : ndarray of int64
        The tokens that are left, row after row, ascending within a row.
    logprobs : ndarray of float32 or float64
        Their log-probabilities among those that are left.
    offsets : ndarray of int64
        Row i, counted in C order, has the places ``offsets[i]`` to ``offsets[i + 1]``.
    """

    ids: Any
    logprobs: Any
    offsets: Any


def _as_filters(
    logits: _vocab.Logits, top_k: ArrayLike, top_p: ArrayLike, min_p: ArrayLike
) -> Filters:
    rows, cols = logits.rows, logits.cols
    if type(top_k) is int and top_k >= -1:
        k = np.full(rows, min(top_k, cols) if top_k > 0 else cols)
    else:
        k = _vocab.per_row("top_k", top_k, logits.shape, np.int64)
        if (k < -1).any():
            raise ValueError(
                f"top_k is {k[k < -1][0]}; it must be positive, or 0 or -1 for no limit"
            )
        k = np.where((k <= 0) | (k > cols), cols, k)
    return Filters(k, _as_share("top_p", top_p, logits), _as_share("min_p", min_p, logits))


_LONGEST = 2**31 - 1  # kernels number candidates with 32 bits


def _as_logits(
    logits: ArrayLike,
    temperature: ArrayLike,
    where: ArrayLike | None,
    token_bitmask: ArrayLike | None,
) -> _vocab.Logits:
    checked = _vocab.as_logits(logits, temperature, where, token_bitmask)
    if checked.cols > _LONGEST:
        raise ValueError(
            f"rows of {checked.cols} logits are too long to sample from: at most {_LONGEST}"
        )
    return checked


def _as_share(name: str, value: ArrayLike, logits: _vocab.Logits) -> NDArray[np.float64]:
    if type(value) is float and 0.0 <= value <= 1.0:
        return _vocab.full(logits.rows, value)
    share = _vocab.per_row(name, value, logits.shape, np.float64)
    right = (share >= 0.0) & (share <= 1.0)
    if not right.all():
        raise ValueError(f"{name} is {share[~right][0]}; it must be in [0, 1]")
    return share


def _some(filters: Filters, rows: slice) -> Filters:
    return Filters(filters.top_k[rows], filters.top_p[rows], filters.min_p[rows])


def sample(
    logits: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    top_k: ArrayLike = 0,
    top_p: ArrayLike = 1.0,
    min_p: ArrayLike = 0.0,
    seed: "int | ArrayLike | np.random.Generator | None" = None,  # not loaded for its name
    step: int | ArrayLike = 0,
    num_samples: int | None = None,
    replace: bool = True,
    where: ArrayLike | None = None,
    token_bitmask: ArrayLike | None = None,
    logit_bias: Any = None,
    history: Any = None,
    repetition_penalty: ArrayLike = 1.0,
    presence_penalty: ArrayLike = 0.0,
    frequency_penalty: ArrayLike = 0.0,
) -> Sample:
    """Draw a token from each row of logits.

    The logits are biased and penalised, divided by the temperature and filtered by `top_k`, `top_p`
    and `min_p`, in this order, which is that of Hugging Face transformers. The distribution is
    exact. Every parameter may be one for all rows or one for each.

    Parameters
    ----------
    logits : array_like, (..., vocab)
        Of any layout; float16, bfloat16 (ml_dtypes), float32, float64, bool or integers.
    temperature : array_like of real, optional
        One, or one per row, as for `softmax`. 0 draws the most probable token, the lowest id of
        equal ones, with probability 1; infinity draws evenly.
    top_k : array_like of int, optional
        Keeps the k most probable tokens, of equal ones the lowest ids. 0 and -1 keep all.
    top_p : array_like of real, optional
        Keeps the fewest most probable tokens whose mass reaches `top_p`, at least one; of equal
        ones the lowest ids. 1 keeps all.
    min_p : array_like of real, optional
        Keeps the tokens at least `min_p` times as probable as the most probable one. 0 keeps all.
    seed : int, array_like of int, numpy.random.Generator or None, optional
        An int: the draw of row i depends on the seed and i. One for each row: it depends on this
        seed alone, in any batch and at any place; ``seed=5`` for one row is ``seed=[5]``. A
        Generator: ``seed.random((rows, draws))`` is asked for once. None: it cannot be foreseen.
    step : int or array_like of int, optional
        What tells apart the draws of one row with one seed, such as the place in the text. Counts
        for nothing with a Generator.
    num_samples : int, optional
        Draws from each row; None draws one and adds no axis.
    replace : bool, optional
        Whether the draws of a row may repeat a token. If not, each is drawn from those that are
        left of the distribution.
    where : array_like of bool, optional
        Broadcasts against `logits`. Tokens where it is False are never drawn.
    token_bitmask : array_like of int32, (..., ceil(vocab / 32)), optional
        The same as bits: token v is allowed where bit ``v % 32`` of word ``v // 32`` is set.
    logit_bias : optional
        Added to the logits of some tokens; -infinity forbids them. A mapping of token ids to biases
        for all rows; a list with a mapping, or None, for each row; a tuple ``(ids, values)`` of one
        axis for all rows or of shape (..., length), where negative ids are padding; or a tuple
        ``(ids, values, offsets)``, where row i has the places ``offsets[i]`` to ``offsets[i + 1]``.
    history : optional
        The tokens that the penalties are for: an array of shape (..., length), where negative ids
        are padding, or a tuple ``(ids, offsets)``.
    repetition_penalty : array_like of real, optional
        Divides the positive logits of tokens in `history` and multiplies the others [1]_.
    presence_penalty : array_like of real, optional
        Is subtracted from the logits of tokens in `history`, after that.
    frequency_penalty : array_like of real, optional
        Is subtracted as often as they are in it.

    Returns
    -------
    Sample
        ``(ids, logprobs)`` of shape (...), or (..., num_samples). The log-probabilities are those
        of the filtered distribution: float32 for 16-bit and float32 logits, else float64. A row
        with a NaN or +infinity in it, or with nothing above -infinity, gives id -1 and NaN, and so
        do draws without replacement that find nothing left.

    Raises
    ------
    TypeError
        If a dtype is not supported.
    ValueError
        If a parameter is out of its range, a shape does not fit, or a row has more than
        2**31 - 1 entries.
    IndexError
        If a token of `logit_bias` or `history` is not in the vocabulary.

    Notes
    -----
    A row takes one uniform number u for each draw and returns the first token, by id, up to which
    the probabilities sum to more than u. With an integer seed it is made by four SplitMix64
    generators [2]_, each of which seeds the next; ``output(state, i)`` is the number i, from 0, of
    the one that starts with `state`, all modulo 2**64::

        def output(state, i):
            z = state + (i + 1) * 0x9E3779B97F4A7C15
            z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
            z = (z ^ (z >> 27)) * 0x94D049BB133111EB
            return z ^ (z >> 31)

        a = output(seed, 0)
        b = output(a, row)  # 0 where each row has its own seed
        c = output(b, step)
        d = output(c, draw)  # 0 for the first draw of a row
        u = (d >> 11) * 2.0**-53

    This function never changes. Negative seeds count as those 2**64 larger.

    References
    ----------
    .. [1] N. S. Keskar et al., "CTRL: a conditional transformer language model for controllable
       generation", 2019, arXiv:1909.05858.
    .. [2] G. L. Steele, D. Lea and C. H. Flood, "Fast splittable pseudorandom number generators",
       OOPSLA 2014.

    Examples
    --------
    >>> import fastsoftmax
    >>> logits = [[2.0, 1.0, 0.0, -1.0]] * 2
    >>> fastsoftmax.sample(logits, temperature=0.7, top_k=2, seed=[5, 6]).ids
    array([1, 0])
    >>> fastsoftmax.sample(logits, temperature=[0.0, 1.0], top_p=0.1).ids
    array([0, 0])
    >>> fastsoftmax.sample(logits, logit_bias={0: -float("inf")}, top_k=1).ids
    array([1, 1])
    """
    return sample_rows(
        logits,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        step=step,
        num_samples=num_samples,
        replace=replace,
        where=where,
        token_bitmask=token_bitmask,
        logit_bias=logit_bias,
        history=history,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
    )


def sample_rows(
    logits: ArrayLike,
    *,
    temperature: ArrayLike,
    top_k: ArrayLike,
    top_p: ArrayLike,
    min_p: ArrayLike,
    seed: Any,
    step: Any = 0,
    num_samples: int | None = None,
    replace: bool = True,
    where: ArrayLike | None = None,
    token_bitmask: ArrayLike | None = None,
    logit_bias: Any = None,
    history: Any = None,
    repetition_penalty: ArrayLike = 1.0,
    presence_penalty: ArrayLike = 0.0,
    frequency_penalty: ArrayLike = 0.0,
    first_row: int = 0,
) -> Sample:
    """`sample` for rows of which the first one is row `first_row` to the seed."""
    checked = _as_logits(logits, temperature, where, token_bitmask)
    filters = _as_filters(checked, top_k, top_p, min_p)
    replace = _arguments.as_flag(replace, "replace")
    draws = 1 if num_samples is None else _vocab.as_count("num_samples", num_samples)
    if checked.rows * draws > _arguments.MOST:
        raise ValueError(
            f"num_samples is {_arguments.shown(draws)}; no memory holds so many draws of "
            f"{checked.rows} rows"
        )
    checked.edits = _edits.as_edits(
        checked, logit_bias, history, repetition_penalty, presence_penalty, frequency_penalty
    )
    u = _uniforms.uniforms(seed, step, checked.shape, draws, first_row)
    backend = _backends.current()

    def draw(u: Float64) -> Drawn:
        ids, logprobs = np.empty(u.shape, np.int64), np.empty(u.shape)

        def call(rows: slice, batch: Batch, begin: int, end: int) -> None:
            some = _some(filters, rows)
            backend.sample(batch, some, u[rows], replace, ids[rows], logprobs[rows], begin, end)

        checked.run(call, (u.shape[1] - 1) * _DRAW)
        return ids, logprobs

    if draws == 0:
        ids, logprobs = np.empty(u.shape, np.int64), np.empty(u.shape)
    elif draws <= _DRAWS or not replace:
        ids, logprobs = draw(u)
    else:
        cuts = range(_DRAWS, draws, _DRAWS)
        parts = [draw(np.ascontiguousarray(part)) for part in np.split(u, cuts, axis=1)]
        ids, logprobs = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
    shape = checked.shape if num_samples is None else (*checked.shape, draws)
    return Sample(checked.finish_ids(ids.reshape(shape)), checked.finish(logprobs.reshape(shape)))


def filtered_logprobs(
    logits: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    top_k: ArrayLike = 0,
    top_p: ArrayLike = 1.0,
    min_p: ArrayLike = 0.0,
    where: ArrayLike | None = None,
    token_bitmask: ArrayLike | None = None,
    logit_bias: Any = None,
    history: Any = None,
    repetition_penalty: ArrayLike = 1.0,
    presence_penalty: ArrayLike = 0.0,
    frequency_penalty: ArrayLike = 0.0,
) -> FilteredLogprobs:
    """The tokens that `sample` would draw from, and their log-probabilities.

    Parameters
    ----------
    logits, temperature, top_k, top_p, min_p, where, token_bitmask, logit_bias, history, \
repetition_penalty, presence_penalty, frequency_penalty
        As for `sample`.

    Returns
    -------
    FilteredLogprobs
        ``(ids, logprobs, offsets)``. Rows are counted in C order; row i has the places
        ``offsets[i]`` to ``offsets[i + 1]`` of the first two, none where there is nothing to draw
        from. The log-probabilities are normalised over the tokens that are left.

    Raises
    ------
    TypeError, ValueError, IndexError
        As for `sample`.

    Notes
    -----
    This is a sparse matrix in CSR form:
    ``scipy.sparse.csr_array((logprobs, ids, offsets), shape=(rows, vocab))``.

    Examples
    --------
    >>> import fastsoftmax
    >>> nucleus = fastsoftmax.filtered_logprobs([[0.0, 3.0, 2.0], [9.0, 0.0, 0.0]], top_p=0.9)
    >>> nucleus.ids, nucleus.offsets
    (array([1, 2, 0]), array([0, 2, 3]))
    >>> nucleus.logprobs.round(6)
    array([-0.313262, -1.313262,  0.      ])
    """
    checked = _as_logits(logits, temperature, where, token_bitmask)
    filters = _as_filters(checked, top_k, top_p, min_p)
    checked.edits = _edits.as_edits(
        checked, logit_bias, history, repetition_penalty, presence_penalty, frequency_penalty
    )
    backend = _backends.current()
    offsets = np.zeros(checked.rows + 1, np.int64)
    counts = offsets[1:]

    def count(rows: slice, batch: Batch, begin: int, end: int) -> None:
        backend.count_survivors(batch, _some(filters, rows), counts[rows], begin, end)

    checked.run(count)
    np.cumsum(counts, out=counts)
    ids = np.empty(offsets[-1], np.int64)
    logprobs = np.empty(offsets[-1])

    def call(rows: slice, batch: Batch, begin: int, end: int) -> None:
        some = offsets[rows.start : rows.stop + 1]
        backend.survivors(batch, _some(filters, rows), some, ids, logprobs, begin, end)

    checked.run(call)
    return FilteredLogprobs(
        checked.finish_ids(ids), checked.finish(logprobs), checked.finish_ids(offsets)
    )

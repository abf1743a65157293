"""cross_entropy, perplexity, token_logprobs, topk_logprobs, entropy, moments, kl_divergence and
temperature_sweep: what is read off a row without writing one."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsoftmax import _backends
from fastsoftmax._api import _arguments, _vocab
from fastsoftmax._backends._protocol import Batch

Array = NDArray[Any]
Reduction = Literal["mean", "sum", "none"]


class TokenLogprobs(NamedTuple):
    """What `token_logprobs` returns.

    Attributes
    ----------
    logprobs : ndarray of float32 or float64
        The log-probability of each token asked for.
    ranks : ndarray of int64
        1 + the number of strictly more probable tokens; 0 in a row without a distribution.
    top_ids : ndarray of int64 or None
        The most probable tokens, of shape (..., top_n).
    top_logprobs : ndarray of float32 or float64, or None
        Their log-probabilities.
    """

    logprobs: Any
    ranks: Any
    top_ids: Any
    top_logprobs: Any


class TopK(NamedTuple):
    """What `topk_logprobs` returns.

    Attributes
    ----------
    ids : ndarray of int64
        The most probable tokens, of shape (..., k).
    logprobs : ndarray of float32 or float64
        Their log-probabilities.
    """

    ids: Any
    logprobs: Any


class Moments(NamedTuple):
    """What `moments` returns, each of the shape of the rows.

    Attributes
    ----------
    logsumexp : ndarray
        Of x/T.
    mean : ndarray
        The expected logit x under softmax(x/T).
    variance : ndarray
        The variance of the logit x.
    entropy : ndarray
        In nats.
    """

    logsumexp: Any
    mean: Any
    variance: Any
    entropy: Any


class TemperatureSweep(NamedTuple):
    """What `temperature_sweep` returns, each of shape (temperatures, ...).

    Attributes
    ----------
    logsumexp : ndarray
        Of x/T.
    entropy : ndarray
        In nats.
    nll : ndarray or None
        The negative log-likelihood of the targets.
    """

    logsumexp: Any
    entropy: Any
    nll: Any


def as_targets(
    name: str, targets: ArrayLike, shape: tuple[int, ...], ignore_index: int | None
) -> NDArray[np.int64]:
    """Targets for logits of a shape, checked: -1 for those that do not count."""
    ids = _vocab.as_ids(name, targets)
    if ids.shape != shape[:-1]:
        raise ValueError(
            f"{name} has shape {ids.shape}; it must be that of the logits without their last axis, "
            f"{shape[:-1]}"
        )
    cols = shape[-1]
    counted = np.ones(ids.shape, np.bool_)
    if ignore_index is not None:
        counted = ids != _arguments.as_integer(ignore_index, "ignore_index")
    wrong = counted & ((ids < 0) | (ids >= cols))
    return np.where(counted, _vocab.check_range(name, ids, cols, wrong), -1)


def _losses(
    logits: _vocab.Logits, ids: NDArray[np.int64], label_smoothing: float = 0.0
) -> NDArray[np.float64]:
    """The loss of each row in float64, 0 where the target is -1."""
    wanted = ids.reshape(-1, 1)
    logprobs = np.empty(wanted.shape)
    mean = np.empty(logits.rows) if label_smoothing else None
    backend = _backends.current()

    def call(rows: slice, batch: Batch, begin: int, end: int) -> None:
        backend.token_logprobs(
            batch,
            wanted[rows],
            logprobs[rows],
            None,
            None if mean is None else mean[rows],
            begin,
            end,
        )

    logits.run(call)
    loss = -logprobs[:, 0]
    if mean is not None:
        with np.errstate(invalid="ignore"):
            smooth = -label_smoothing * mean
            loss = smooth if label_smoothing == 1.0 else (1.0 - label_smoothing) * loss + smooth
    loss = np.where(wanted[:, 0] >= 0, loss, 0.0) + 0.0  # no negative zero
    return loss.reshape(ids.shape)


def token_losses(
    logits: ArrayLike, targets: NDArray[np.int64], temperature: ArrayLike
) -> NDArray[np.float64]:
    """`cross_entropy` of each row, in float64, of what `as_targets` returned."""
    return _losses(_vocab.as_logits(logits, temperature), targets)


def _mean(losses: NDArray[np.float64], ids: NDArray[np.int64]) -> np.float64:
    count = np.count_nonzero(ids >= 0)
    return losses.sum() / count if count else np.float64(np.nan)


def cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    where: ArrayLike | None = None,
    token_bitmask: ArrayLike | None = None,
) -> Any:
    """The negative log-likelihood of one target a row, without the log-probabilities of the rest.

    Parameters
    ----------
    logits : array_like, (..., vocab)
        Of any layout; float16, bfloat16 (ml_dtypes), float32, float64, bool or integers.
    targets : array_like of int, (...)
        The token of each row.
    temperature : array_like of real, optional
        One, or one per row, as for `softmax`.
    ignore_index : int, optional
        A row with this target is not read: its loss is 0 and the mean does not count it.
    label_smoothing : float, optional
        The share of the target's mass, in [0, 1], that is spread evenly over the vocabulary [1]_,
        of which masked tokens are no part.
    reduction : {"mean", "sum", "none"}, optional
        The mean over the rows that count, accumulated in float64; their sum; or each row's loss.
    where : array_like of bool, optional
        Broadcasts against `logits`. Tokens where it is False have probability 0, whatever their
        logits hold.
    token_bitmask : array_like of int32, (..., ceil(vocab / 32)), optional
        The same as bits: token v is allowed where bit ``v % 32`` of word ``v // 32`` is set.

    Returns
    -------
    scalar or ndarray
        float32 for 16-bit and float32 logits, else float64. NaN for the mean over no row.

    Raises
    ------
    TypeError
        If a dtype is not supported.
    ValueError
        If a temperature is negative or NaN, an option is not one of those listed, or a shape does
        not fit.
    IndexError
        If a target that counts is not in the vocabulary.

    Notes
    -----
    The numbers of ``torch.nn.functional.cross_entropy(logits / temperature, targets)``, but what is
    needed beyond the logits is one number a row. Of logits of more than two axes PyTorch has the
    classes on axis 1, (N, C, d); here they are on the last one. Targets are tokens; probabilities
    of classes are not supported. A target of probability 0 has an infinite loss.

    References
    ----------
    .. [1] C. Szegedy et al., "Rethinking the Inception architecture for computer vision", 2015,
       arXiv:1512.00567.

    Examples
    --------
    >>> import fastsoftmax
    >>> logits = [[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    >>> float(fastsoftmax.cross_entropy(logits, [0, 2]).round(6))
    0.753109
    >>> fastsoftmax.cross_entropy(logits, [0, -100], reduction="none").round(6)
    array([0.407606, 0.      ])
    """
    if not isinstance(reduction, str) or reduction not in ("mean", "sum", "none"):
        raise ValueError(
            f"reduction is {_arguments.shown(reduction)}; it must be one of mean, sum, none"
        )
    label_smoothing = _arguments.as_real(label_smoothing, "label_smoothing")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing is {label_smoothing}; it must be in [0, 1]")
    checked = _vocab.as_logits(logits, temperature, where, token_bitmask)
    ids = as_targets("targets", targets, checked.x.shape, ignore_index)
    losses = _losses(checked, ids, label_smoothing)
    if reduction == "none":
        return checked.finish(losses)
    result = _mean(losses, ids) if reduction == "mean" else losses.sum()
    return checked.finish(np.asarray(result))


def perplexity(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    ignore_index: int = -100,
    where: ArrayLike | None = None,
    token_bitmask: ArrayLike | None = None,
) -> Any:
    """The exponential of the mean cross-entropy.

    Parameters
    ----------
    logits, targets, temperature, ignore_index, where, token_bitmask
        As for `cross_entropy`.

    Returns
    -------
    scalar
        float32 for 16-bit and float32 logits, else float64; computed in float64.

    Raises
    ------
    TypeError, ValueError, IndexError
        As for `cross_entropy`.

    Examples
    --------
    >>> import fastsoftmax
    >>> float(fastsoftmax.perplexity([[0.0, 0.0, 0.0, 0.0]] * 2, [3, 1]).round(9))
    4.0
    """
    checked = _vocab.as_logits(logits, temperature, where, token_bitmask)
    ids = as_targets("targets", targets, checked.x.shape, ignore_index)
    losses = _losses(checked, ids)
    with np.errstate(over="ignore"):
        return checked.finish(np.asarray(np.exp(_mean(losses, ids))))


def token_logprobs(
    logits: ArrayLike,
    token_ids: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    top_n: int = 0,
    where: ArrayLike | None = None,
    token_bitmask: ArrayLike | None = None,
) -> TokenLogprobs:
    """Log-probabilities and ranks of given tokens, and the most probable ones beside them.

    Parameters
    ----------
    logits, temperature, where, token_bitmask
        As for `cross_entropy`.
    token_ids : array_like of int, (...) or (..., m)
        One or several tokens of each row. With fewer axes it broadcasts against (...).
    top_n : int, optional
        How many of the most probable tokens to return as well.

    Returns
    -------
    TokenLogprobs
        ``(logprobs, ranks, top_ids, top_logprobs)``, the first two of the shape that `token_ids`
        has after broadcasting, the others of shape (..., top_n), as of `topk_logprobs`, or None
        where `top_n` is 0.

    Raises
    ------
    TypeError, ValueError
        As for `cross_entropy`.
    IndexError
        If a token is not in the vocabulary.

    Notes
    -----
    The rank of a token is that of its logit: the temperature does not change the order of tokens,
    not even at 0 or infinity. Equal tokens have equal ranks.

    Examples
    --------
    >>> import fastsoftmax
    >>> result = fastsoftmax.token_logprobs([[2.0, 1.0, 0.0]], [1], top_n=2)
    >>> result.logprobs.round(6), result.ranks, result.top_ids
    (array([-1.407606]), array([2]), array([[0, 1]]))
    """
    checked = _vocab.as_logits(logits, temperature, where, token_bitmask)
    ids = _vocab.as_ids("token_ids", token_ids)
    lead = len(checked.shape)
    tail = ids.shape[-1:] if ids.ndim == lead + 1 else ()
    wanted = checked.shape + tail
    if ids.shape != wanted:
        try:
            ids = np.broadcast_to(ids, wanted)
        except ValueError:
            raise ValueError(
                f"token_ids has shape {ids.shape}; it must be that of the logits without their "
                f"last axis, {checked.shape}, or that and one axis more"
            ) from None
    k = _vocab.as_count("top_n", top_n, checked.cols)
    m = tail[0] if tail else 1
    ids = _vocab.check_range("token_ids", ids, checked.cols).reshape(checked.rows, m)
    logprobs = np.empty(ids.shape)
    ranks = np.empty(ids.shape, np.int64)
    top_ids = np.empty((checked.rows, k), np.int64)
    top_logprobs = np.empty((checked.rows, k))
    backend = _backends.current()
    # Rows that fit the cache: both looks at them cost one read of the logits.
    step = max(1, _vocab.CHUNK // max(checked.cols, 1)) if k else max(1, checked.rows)

    def call(rows: slice, batch: Batch, begin: int, end: int) -> None:
        for start, stop in _vocab.parts(begin, end, step):
            if m:
                backend.token_logprobs(
                    batch, ids[rows], logprobs[rows], ranks[rows], None, start, stop
                )
            if k:
                backend.topk(batch, k, top_ids[rows], top_logprobs[rows], start, stop)

    checked.run(call)
    top_shape = (*checked.shape, k)
    return TokenLogprobs(
        checked.finish(logprobs.reshape(wanted)),
        checked.finish_ids(ranks.reshape(wanted)),
        checked.finish_ids(top_ids.reshape(top_shape)) if k else None,
        checked.finish(top_logprobs.reshape(top_shape)) if k else None,
    )


def topk_logprobs(
    logits: ArrayLike,
    k: int,
    *,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    token_bitmask: ArrayLike | None = None,
) -> TopK:
    """The k most probable tokens of each row and their log-probabilities.

    Parameters
    ----------
    logits, temperature, where, token_bitmask
        As for `cross_entropy`.
    k : int
        How many, at most the size of the vocabulary.

    Returns
    -------
    TopK
        ``(ids, logprobs)`` of shape (..., k), the most probable first, equally probable ones by
        ascending id, normalised over the whole vocabulary. Tokens that are masked or have a logit
        of -infinity never appear: where nothing is left, and in a row without a distribution, the
        id is -1 and the log-probability NaN.

    Raises
    ------
    TypeError, ValueError
        As for `cross_entropy`; ValueError for a `k` beyond the vocabulary too.

    Notes
    -----
    The order is that of the logits at any temperature, so at 0 the tokens that follow the maxima
    are still told, with log-probabilities of -infinity.

    Examples
    --------
    >>> import fastsoftmax
    >>> ids, logprobs = fastsoftmax.topk_logprobs([[0.0, 2.0, 1.0, 2.0]], 3)
    >>> ids, logprobs.round(6)
    (array([[1, 3, 2]]), array([[-0.917576, -0.917576, -1.917576]]))
    """
    checked = _vocab.as_logits(logits, temperature, where, token_bitmask)
    k = _vocab.as_count("k", k, checked.cols)
    ids = np.empty((checked.rows, k), np.int64)
    logprobs = np.empty((checked.rows, k))
    backend = _backends.current()

    def call(rows: slice, batch: Batch, begin: int, end: int) -> None:
        backend.topk(batch, k, ids[rows], logprobs[rows], begin, end)

    if k:
        checked.run(call)
    shape = (*checked.shape, k)
    return TopK(checked.finish_ids(ids.reshape(shape)), checked.finish(logprobs.reshape(shape)))


def _moments(checked: _vocab.Logits) -> NDArray[np.float64]:
    """The four columns of `moments`, (*shape, 4)."""
    out = np.empty((checked.rows, 4))
    backend = _backends.current()

    def call(rows: slice, batch: Batch, begin: int, end: int) -> None:
        backend.moments(batch, out[rows], begin, end)

    checked.run(call)
    return out.reshape((*checked.shape, 4))


def entropy(
    logits: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    token_bitmask: ArrayLike | None = None,
) -> Any:
    """The entropy of each row's distribution, in nats.

    Parameters
    ----------
    logits, temperature, where, token_bitmask
        As for `cross_entropy`.

    Returns
    -------
    ndarray or scalar
        Of the shape of the rows. NaN for a row with a NaN or +infinity in it, or with nothing above
        -infinity; 0 for one of which all is masked.

    Raises
    ------
    TypeError, ValueError
        As for `cross_entropy`.

    Examples
    --------
    >>> import fastsoftmax
    >>> fastsoftmax.entropy([[0.0, 0.0], [0.0, 50.0]]).round(6)
    array([0.693147, 0.      ])
    """
    checked = _vocab.as_logits(logits, temperature, where, token_bitmask)
    return checked.finish(_moments(checked)[..., 3].copy())


def moments(
    logits: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    token_bitmask: ArrayLike | None = None,
) -> Moments:
    """Log-sum-exp, mean and variance of the logits, and entropy of each row, in one read.

    Parameters
    ----------
    logits, temperature, where, token_bitmask
        As for `cross_entropy`; a temperature of 0 has no log-sum-exp.

    Returns
    -------
    Moments
        ``(logsumexp, mean, variance, entropy)``, each of the shape of the rows; mean and variance
        are those of x under softmax(x/T). NaN for a row without a distribution, but for its
        log-sum-exp, which is as `logsumexp` says; a row of which all is masked has -infinity and
        0, 0, 0.

    Raises
    ------
    TypeError, ValueError
        As for `cross_entropy`; ValueError for a temperature of 0 too.

    Notes
    -----
    With ``b = 1/T``, mean and variance are the first two derivatives of the log-sum-exp of ``b*x``
    by ``b``: all that Newton's method needs to fit a temperature.

    Examples
    --------
    >>> import fastsoftmax
    >>> m = fastsoftmax.moments([1.0, 3.0], temperature=float("inf"))
    >>> float(m.mean), float(m.variance)
    (2.0, 1.0)
    """
    checked = _vocab.as_logits(logits, temperature, where, token_bitmask, allow_zero=False)
    out = _moments(checked)
    return Moments(*(checked.finish(out[..., i].copy()) for i in range(4)))


def kl_divergence(
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    q_temperature: ArrayLike | None = None,
    where: ArrayLike | None = None,
    token_bitmask: ArrayLike | None = None,
) -> Any:
    """The Kullback-Leibler divergence of the rows of q from those of p: sum(p * log(p / q)).

    Parameters
    ----------
    p_logits, q_logits : array_like, (..., vocab)
        Of the same shape, after broadcasting; the dtypes may differ.
    temperature : array_like of real, optional
        Of both.
    q_temperature : array_like of real, optional
        Of `q_logits`, if that is another one.
    where, token_bitmask
        As for `cross_entropy`, of both.

    Returns
    -------
    ndarray or scalar
        Of the shape of the rows, in nats; float64 if either side gives that, else float32.
        +infinity where p has mass on a token that has none in q. NaN where either has a row without
        a distribution; 0 for a row of which all is masked.

    Raises
    ------
    TypeError, ValueError
        As for `cross_entropy`.

    Examples
    --------
    >>> import fastsoftmax
    >>> float(fastsoftmax.kl_divergence([0.0, 0.0], [0.0, 1.0]).round(6))
    0.120115
    """
    p_array, p_foreign = _vocab.as_array(p_logits, "p_logits")
    q_array, q_foreign = _vocab.as_array(q_logits, "q_logits")
    try:
        if p_array.shape[-1:] != q_array.shape[-1:]:
            raise ValueError
        shape = np.broadcast_shapes(p_array.shape, q_array.shape)
    except ValueError:
        raise ValueError(
            f"q_logits has shape {q_array.shape}; it must broadcast against that of p_logits, "
            f"{p_array.shape}, and have the same vocabulary"
        ) from None
    p_array, q_array = np.broadcast_to(p_array, shape), np.broadcast_to(q_array, shape)
    p = _vocab.as_logits(p_array, temperature, where, token_bitmask, name="p_logits")
    q = _vocab.as_logits(
        q_array,
        temperature if q_temperature is None else q_temperature,
        where,
        token_bitmask,
        name="q_logits",
        temperature_name="temperature" if q_temperature is None else "q_temperature",
    )
    out = np.empty(p.rows)
    backend = _backends.current()

    def call(rows: slice, p: Batch, q: Batch, begin: int, end: int) -> None:
        backend.kl_divergence(p, q, out[rows], begin, end)

    _vocab.run((p, q), call)
    p.foreign = q_foreign if p_foreign is None else p_foreign
    p.dtype = np.result_type(p.dtype, q.dtype)
    return p.finish(out.reshape(p.shape))


def temperature_sweep(
    logits: ArrayLike,
    temperatures: ArrayLike,
    targets: ArrayLike | None = None,
    *,
    where: ArrayLike | None = None,
    token_bitmask: ArrayLike | None = None,
) -> TemperatureSweep:
    """Log-sum-exp, entropy and loss at several temperatures, in one read of the logits from memory.

    Parameters
    ----------
    logits, where, token_bitmask
        As for `cross_entropy`.
    temperatures : array_like of real, (n,)
        Positive; infinity too.
    targets : array_like of int, (...), optional
        The token of each row.

    Returns
    -------
    TemperatureSweep
        ``(logsumexp, entropy, nll)``, each of shape (n, ...); nll is None without `targets`.

    Raises
    ------
    TypeError, ValueError, IndexError
        As for `cross_entropy`; ValueError for a temperature of 0 too.

    Examples
    --------
    >>> import fastsoftmax
    >>> logits = [[4.0, 0.0, 0.0], [0.0, 4.0, 0.0], [4.0, 0.0, 0.0]]
    >>> sweep = fastsoftmax.temperature_sweep(logits, [1.0, 3.0, 9.0], targets=[0, 1, 2])
    >>> sweep.nll.mean(axis=-1).round(3)  # 3 is the best fit of these
    array([1.369, 0.868, 0.973])
    """
    t, _ = _vocab.as_array(temperatures, "temperatures")
    if t.ndim != 1:
        raise ValueError(f"temperatures has shape {t.shape}; it must have one axis")
    array, foreign = _vocab.as_array(logits, "logits")
    if array.ndim == 0:
        raise ValueError("logits is a scalar; its last axis must be the vocabulary")
    if array.ndim == _arguments.MAX_AXES:
        raise ValueError(f"logits has {array.ndim} axes; it must have fewer")
    shape, cols = array.shape[:-1], array.shape[-1]
    # The temperatures are the last of the axes that number the rows, so that a row is treated at
    # all of them while it is in the cache.
    spread = (*shape, t.size, cols)

    def along(name: str, value: ArrayLike, last: int) -> Array:
        a, _ = _vocab.as_array(value, name)
        if a.ndim > array.ndim:
            raise ValueError(f"{name} has {a.ndim} axes; it must broadcast against the logits")
        return a[..., None, :] if a.ndim else np.broadcast_to(a, (last,))

    try:
        repeated = np.broadcast_to(array[..., None, :], spread)
    except ValueError:
        raise ValueError(
            f"logits has shape {array.shape}; it is too large for {t.size} temperatures"
        ) from None
    checked = _vocab.as_logits(
        repeated,
        np.broadcast_to(t, spread[:-1]),
        None if where is None else along("where", where, cols),
        None if token_bitmask is None else along("token_bitmask", token_bitmask, 1),
        allow_zero=False,
        temperature_name="temperatures",
    )
    ids = None
    if targets is not None:
        ids = as_targets("targets", targets, array.shape, None)
        ids = np.ascontiguousarray(np.broadcast_to(ids[..., None], spread[:-1])).reshape(-1, 1)
    checked.foreign = foreign
    out = np.empty((checked.rows, 4))
    logprobs = np.empty((checked.rows, 1))
    backend = _backends.current()

    def call(rows: slice, batch: Batch, begin: int, end: int) -> None:
        step = max(1, t.size)
        for start, stop in _vocab.parts(begin, end, step):
            backend.moments(batch, out[rows], start, stop)
            if ids is not None:
                backend.token_logprobs(batch, ids[rows], logprobs[rows], None, None, start, stop)

    checked.run(call)

    def result(values: NDArray[np.float64]) -> Any:
        moved = np.moveaxis(values.reshape(spread[:-1]), -1, 0)
        return checked.finish(np.ascontiguousarray(moved))

    nll = None if ids is None else result(-logprobs[:, 0] + 0.0)
    return TemperatureSweep(result(out[:, 0]), result(out[:, 3]), nll)


def openai_logprobs(
    token_ids: ArrayLike, result: TokenLogprobs, decode: Callable[[int], str | bytes]
) -> dict[str, Any]:
    """One sequence of `token_logprobs` in the shape of the OpenAI chat completions' ``logprobs``.

    Parameters
    ----------
    token_ids : array_like of int, (n,)
        The tokens that were asked for, one for each place of the sequence.
    result : TokenLogprobs
        What `token_logprobs` returned for them, with `top_n` or without.
    decode : callable
        The text of one token id, or better its bytes: a token need not be whole characters.

    Returns
    -------
    dict
        ``{"content": [{"token", "logprob", "bytes", "top_logprobs"}, ...], "refusal": None}``,
        ready for JSON, which has no infinity: a log-probability of -infinity is -9999.0.

    Raises
    ------
    TypeError
        If `result` is no TokenLogprobs, `token_ids` are no integers, or `decode` is no function or
        returns neither str nor bytes.
    ValueError
        If the shapes are not those of one sequence, or a log-probability is NaN.

    Examples
    --------
    >>> import fastsoftmax
    >>> result = fastsoftmax.token_logprobs([[2.0, 2.0]], [1], top_n=1)
    >>> fastsoftmax.openai_logprobs([1], result, ["yes", "no"].__getitem__)["content"][0]["token"]
    'no'
    """
    if not isinstance(result, TokenLogprobs):
        raise TypeError(f"result is {_arguments.shown(result)}; it must be a TokenLogprobs")
    if not callable(decode):
        raise TypeError(f"decode is {_arguments.shown(decode)}; it must be a function")
    ids = _vocab.as_ids("token_ids", token_ids)
    logprobs, _ = _vocab.as_array(result.logprobs, "result")
    if ids.ndim != 1 or logprobs.shape != ids.shape:
        raise ValueError(
            f"token_ids has shape {ids.shape} and the result {logprobs.shape}; both "
            "must be those of one sequence, (n,)"
        )

    def entry(token: Any, logprob: Any) -> dict[str, Any]:
        text = decode(int(token))
        if not isinstance(text, str | bytes):
            raise TypeError(f"decode returned {_arguments.shown(text)}; it must be str or bytes")
        raw = text if isinstance(text, bytes) else text.encode()
        value = float(logprob)
        if np.isnan(value):
            raise ValueError(f"the log-probability of token {token} is NaN")
        return {
            "token": raw.decode(errors="replace"),
            "logprob": value if value > -np.inf else -9999.0,
            "bytes": list(raw),
        }

    content = []
    for i, (token, logprob) in enumerate(zip(ids, logprobs, strict=True)):
        top: list[dict[str, Any]] = []
        if result.top_ids is not None:
            pairs = zip(result.top_ids[i], result.top_logprobs[i], strict=True)
            top = [entry(t, v) for t, v in pairs if t >= 0]
        content.append({**entry(token, logprob), "top_logprobs": top})
    return {"content": content, "refusal": None}

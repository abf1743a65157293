"""SoftmaxState: what a softmax needs to know of a row that is seen in pieces."""

import sys
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsoftmax import _backends
from fastsoftmax._api import _arguments, _batches, _dlpack, _vocab
from fastsoftmax._api._scoring import TopK
from fastsoftmax._backends._protocol import Batch

Array = NDArray[Any]
Float64 = NDArray[np.float64]

# The largest id of a token.
_LAST = int(np.iinfo(np.int64).max)


class SoftmaxState:
    """Maximum, sum of exponentials and best entries of rows that are fed chunk by chunk.

    A chunk holds some consecutive entries of the vocabulary for every row. Chunks may come in any
    sizes and in any order, each entry once; states of other chunks of the same rows merge, also
    those of other threads, processes and machines. The results are those of the whole rows.

    Parameters
    ----------
    temperature : array_like of real, optional
        One, or one per row, as for `softmax`.
    k : int, optional
        How many of the most probable tokens to keep for `topk_logprobs`.
    token_ids : array_like of int, (...) or (..., m), optional
        The tokens of each row to watch for, for `token_logprobs`.

    Attributes
    ----------
    shape : tuple of int or None
        The shape of the rows; None before the first chunk.

    Raises
    ------
    TypeError, ValueError
        If an argument is not of its kind.

    Notes
    -----
    The pair of a maximum m and a sum of exp((x - m)/T) merges associatively [1]_, here in float64.
    The sum is kept without the term of the maximum, which is 1, so that its logarithm can be taken
    as log1p.

    References
    ----------
    .. [1] M. Milakov and N. Gimelshein, "Online normalizer calculation for softmax", 2018,
       arXiv:1805.02867.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax
    >>> logits = np.array([[1.0, 5.0, 2.0, 3.0]])
    >>> left, right = fastsoftmax.SoftmaxState(k=2), fastsoftmax.SoftmaxState(k=2)
    >>> left.update(logits[:, :2])
    >>> right.update(logits[:, 2:], start=2)
    >>> left.merge(right)
    >>> left.topk_logprobs().ids
    array([[1, 3]])
    >>> np.allclose(left.normalize(logits), fastsoftmax.softmax(logits))
    True
    """

    def __init__(
        self, *, temperature: ArrayLike = 1.0, k: int = 0, token_ids: ArrayLike | None = None
    ) -> None:
        t = _arguments.as_array(temperature, "temperature")
        _arguments.check_size(t, "temperature")
        if t.ndim == _arguments.MAX_AXES:
            raise ValueError(f"temperature has {t.ndim} axes; it must have fewer")
        t = np.array(t)
        _arguments.as_temperature(t, (*t.shape, 1), (t.ndim,), allow_zero=True)
        self.shape: tuple[int, ...] | None = None
        self._temperature = t
        self._k = _vocab.as_count("k", k)
        ids = None if token_ids is None else _vocab.as_ids("token_ids", token_ids)
        if ids is not None and (ids < 0).any():
            _vocab.check_range("token_ids", ids, _LAST)
        # A copy, as of the temperature: the caller's array may change.
        self._token_ids = None if ids is None else np.array(ids)
        self._next = 0

    def _begin(self, logits: _vocab.Logits) -> None:
        """Nothing yet, of rows as these."""
        rows, shape = logits.rows, logits.shape
        ids = np.empty((*shape, 0), np.int64) if self._token_ids is None else self._token_ids
        tail = ids.shape[-1:] if ids.ndim == len(shape) + 1 else ()
        try:
            ids = np.broadcast_to(ids, shape + tail)
        except ValueError:
            raise ValueError(
                f"token_ids has shape {ids.shape}; it must be that of the rows, {shape}, or that "
                "and one axis more"
            ) from None
        self.shape = shape
        self._dtype = logits.dtype
        self._library = _dlpack.library_name(logits.foreign)
        self._t = np.ascontiguousarray(logits.temperature).reshape(rows, 1)
        self._maximum = np.full(rows, -np.inf)
        self._rest = np.zeros(rows)
        self._top_ids = np.full((rows, self._k), -1, np.int64)
        self._top_logits = np.full((rows, self._k), -np.inf)
        self._token_shape = shape + tail
        self._ids = ids.astype(np.int64).reshape(rows, -1 if rows else 0)
        self._token_logits = np.full(self._ids.shape, -np.inf)
        self._token_seen = np.zeros(self._ids.shape, np.bool_)
        self._token_masked = np.zeros(self._ids.shape, np.bool_)

    def update(
        self,
        chunk: ArrayLike,
        start: int | None = None,
        *,
        where: ArrayLike | None = None,
        token_bitmask: ArrayLike | None = None,
    ) -> None:
        """Take in some entries of every row.

        Parameters
        ----------
        chunk : array_like, (..., n)
            The logits of the tokens `start` to ``start + n - 1``.
        start : int, optional
            The end of the last chunk that this state was fed by default, at first 0.
        where : array_like of bool, optional
            Broadcasts against `chunk`. Tokens where it is False count for nothing.
        token_bitmask : array_like of int32, (..., ceil(n / 32)), optional
            The same as bits, of which the first is that of token `start`.

        Raises
        ------
        TypeError, ValueError
            As for `cross_entropy`; ValueError if the rows are not those of the chunks before.
        """
        checked = _vocab.as_logits(chunk, self._temperature, where, token_bitmask, name="chunk")
        begin = self._next if start is None else _vocab.as_count("start", start)
        if begin > _LAST - checked.cols:
            raise ValueError(
                f"start is {_arguments.shown(begin)}; it must leave room for the chunk"
            )
        self._check_shape("chunk", checked.shape)
        part = SoftmaxState(temperature=self._temperature, k=self._k, token_ids=self._token_ids)
        part._begin(checked)
        part._read(checked, begin)
        self.merge(part)
        self._next = begin + checked.cols

    def _check_shape(self, name: str, shape: tuple[int, ...] | None) -> None:
        if None not in (self.shape, shape) and self.shape != shape:
            raise ValueError(f"{name} has rows of shape {shape}; it must be {self.shape}")

    def _read(self, logits: _vocab.Logits, start: int) -> None:
        """Become the state of a first chunk."""
        k = min(self._k, logits.cols)
        ids = np.empty((logits.rows, k), np.int64)
        logprobs = np.empty((logits.rows, k))
        backend = _backends.current()
        # Rows that fit the cache: both looks at them cost one read of the logits.
        step = max(1, _vocab.CHUNK // max(logits.cols, 1)) if k else max(1, logits.rows)

        def call(rows: slice, batch: Batch, begin: int, end: int) -> None:
            for first, last in _vocab.parts(begin, end, step):
                backend.reduce(batch, self._maximum[rows], self._rest[rows], first, last)
                if k:
                    backend.topk(batch, k, ids[rows], logprobs[rows], first, last)

        logits.run(call)
        if not logits.cols:
            return
        found = ids >= 0
        values, _ = logits.take(np.where(found, ids, 0))
        self._top_ids[:, :k] = np.where(found, ids + start, -1)
        self._top_logits[:, :k] = np.where(found, values, -np.inf)
        place = self._ids - start
        here = (place >= 0) & (place < logits.cols)
        values, allowed = logits.take(np.where(here, place, 0))
        self._token_seen = here
        self._token_masked = here & ~allowed
        self._token_logits = np.where(here & allowed, values, -np.inf)

    def merge(self, other: "SoftmaxState") -> None:
        """Take in what another state of the same rows has seen.

        Parameters
        ----------
        other : SoftmaxState
            Made with the same arguments; it does not change.

        Raises
        ------
        TypeError
            If `other` is none.
        ValueError
            If it has other rows or was made with other arguments.
        """
        if not isinstance(other, SoftmaxState):
            raise TypeError(f"other is a {type(other).__name__}; it must be a SoftmaxState")
        self._check_shape("other", other.shape)
        if self._k != other._k:
            raise ValueError(f"other has k = {other._k}; it must be {self._k}")
        for name, mine, its in (
            ("temperature", self._temperature, other._temperature),
            ("token_ids", self._token_ids, other._token_ids),
        ):
            if not np.array_equal(np.asarray(mine), np.asarray(its)):
                raise ValueError(f"other has another {name}; it must be the same")
        if other.shape is None:
            return
        if self.shape is None:
            for name, value in vars(other).items():
                setattr(self, name, value.copy() if isinstance(value, np.ndarray) else value)
            return
        dtype = np.result_type(self._dtype, other._dtype)
        top = np.maximum(self._maximum, other._maximum)
        mine, its = (
            self._weights(state._maximum, top, dtype) * (1.0 + state._rest)
            for state in (self, other)
        )
        # One maximum is left out of the sum, on the side that has it.
        first = self._maximum == top
        with np.errstate(invalid="ignore"):
            rest = np.where(first, self._rest + its, other._rest + mine)
        self._maximum = top
        self._rest = np.where(np.isfinite(top), rest, 0.0)
        ids = np.concatenate([self._top_ids, other._top_ids], axis=1)
        logits = np.concatenate([self._top_logits, other._top_logits], axis=1)
        order = np.lexsort((ids, -logits), axis=1)[:, : self._k]
        self._top_ids = np.take_along_axis(ids, order, axis=1)
        self._top_logits = np.take_along_axis(logits, order, axis=1)
        self._token_logits = np.where(other._token_seen, other._token_logits, self._token_logits)
        self._token_masked = self._token_masked | other._token_masked
        self._token_seen = self._token_seen | other._token_seen
        self._dtype = dtype
        self._library = self._library or other._library

    def _scaled(self, values: Float64, top: Float64, dtype: np.dtype[Any]) -> Float64:
        """(values - top)/T with the limits of the temperature, for (rows, n) and (rows, 1)."""
        t = self._t
        with np.errstate(all="ignore"):
            # A difference could overflow; quarters are exact there.
            z = np.where(np.abs(top) > 1e300, (values / 4 - top / 4) / (t / 4), (values - top) / t)
            z = np.where(self._cold(dtype), np.where(values == top, 0.0, -np.inf), z)
            z = np.where(np.isinf(t), np.where(values > -np.inf, 0.0, -np.inf), z)
        return z

    def _cold(self, dtype: np.dtype[Any]) -> NDArray[np.bool_]:
        """The temperatures that count as 0, (rows, 1): log2(e)/T overflows in the arithmetic of the
        kernels."""
        with np.errstate(over="ignore"):
            cold: NDArray[np.bool_] = self._t * float(np.finfo(dtype).max) < np.log2(np.e)
        return cold

    def _weights(self, maximum: Float64, top: Float64, dtype: np.dtype[Any]) -> Float64:
        with np.errstate(under="ignore"):
            weights: Float64 = np.exp(self._scaled(maximum[:, None], top[:, None], dtype))[:, 0]
        return weights

    def _require(self) -> tuple[int, ...]:
        if self.shape is None:
            raise ValueError("the state has not been fed yet")
        return self.shape

    def _logprobs(self, values: Float64) -> Float64:
        """Log-probabilities of logits, (rows, n); NaN in rows without a distribution."""
        z = self._scaled(values, self._maximum[:, None], self._dtype)
        return np.where(
            np.isfinite(self._maximum)[:, None], z - np.log1p(self._rest)[:, None], np.nan
        )

    def _finish(self, values: Float64) -> Any:
        """A real result in its own type, as the library of the chunks has it."""
        with np.errstate(over="ignore", under="ignore"):
            return self._exported(values.astype(self._dtype, copy=False))

    def _exported(self, result: Array) -> Any:
        library = None if self._library is None else sys.modules.get(self._library)
        return _dlpack.exported(result, library)

    def logsumexp(self) -> Any:
        """The log-sum-exp of x/T of the entries seen so far.

        Returns
        -------
        ndarray or scalar
            Of the shape of the rows, in the library of the chunks: float32 if all chunks were
            16-bit or float32, else float64.

        Raises
        ------
        ValueError
            If nothing has been fed yet, or a temperature is 0.
        """
        shape = self._require()
        t = self._t[:, 0]
        if (t == 0.0).any():
            raise ValueError("temperature is 0.0; logsumexp has no limit there, it must be > 0")
        with np.errstate(over="ignore", invalid="ignore"):
            term = np.where(np.isinf(t), 0.0, self._maximum / t)
        log_sum = np.where(self._cold(self._dtype)[:, 0], 0.0, np.log1p(self._rest))
        value = np.where(np.isfinite(self._maximum), term + log_sum, self._maximum)
        return self._finish(value.reshape(shape))

    def topk_logprobs(self) -> TopK:
        """The k most probable tokens of those seen so far, as `topk_logprobs` gives them.

        Returns
        -------
        TopK
            ``(ids, logprobs)`` of shape (..., k).

        Raises
        ------
        ValueError
            If nothing has been fed yet.
        """
        shape = (*self._require(), self._k)
        logprobs = self._logprobs(self._top_logits)
        ids = np.where(np.isfinite(self._maximum)[:, None], self._top_ids, -1)
        logprobs = np.where(ids >= 0, logprobs, np.nan)
        return TopK(self._exported(ids.reshape(shape)), self._finish(logprobs.reshape(shape)))

    def token_logprobs(self) -> Any:
        """The log-probabilities of `token_ids` among the entries seen so far.

        Returns
        -------
        ndarray or scalar
            Of the shape of `token_ids`.

        Raises
        ------
        ValueError
            If nothing has been fed yet, or a token was in no chunk.
        """
        self._require()
        if self._token_ids is None:
            raise ValueError("token_ids is None; the state has watched for no token")
        if not self._token_seen.all():
            raise ValueError(f"token {self._ids[~self._token_seen][0]} has not been fed yet")
        logprobs = np.where(self._token_masked, -np.inf, self._logprobs(self._token_logits))
        return self._finish(logprobs.reshape(self._token_shape))

    def normalize(
        self,
        chunk: ArrayLike,
        out: Any = None,
        *,
        log: bool = False,
        where: ArrayLike | None = None,
        token_bitmask: ArrayLike | None = None,
    ) -> Any:
        """The probabilities of a chunk in the whole of what has been seen.

        Parameters
        ----------
        chunk : array_like, (..., n)
            Logits that this state has been fed, with the same masks.
        out : ndarray or DLPack array, optional
            Where the result goes: of its shape and of one of the four float dtypes, which then is
            the result's. It may be `chunk`.
        log : bool, optional
            Whether to return log-probabilities.
        where, token_bitmask
            As for `update`. Masked tokens get 0, or -infinity.

        Returns
        -------
        ndarray or array of the chunk's library
            Of the shape of `chunk`, and of its dtype, or float64 for bool and integers; `out` if
            that was given.

        Raises
        ------
        TypeError, ValueError
            As for `softmax`; ValueError if nothing has been fed yet, too.
        """
        self._require()
        log = _arguments.as_flag(log, "log")
        checked = _vocab.as_logits(chunk, self._temperature, where, token_bitmask, name="chunk")
        self._check_shape("chunk", checked.shape)
        x = checked.x
        if out is not None:
            result = _arguments.as_out(out, x.shape, None)
        else:
            dtype = x.dtype.newbyteorder("=") if _arguments.is_float(x.dtype) else np.float64
            result = _dlpack.empty(x.shape, np.dtype(dtype))
        place = result
        if _batches.clash(x, result, checked.where, checked.bitmask):
            place = np.empty(x.shape, result.dtype.newbyteorder("="))
        backend = _backends.current()
        direct = place.dtype.isnative and place.flags.aligned and checked.readable

        def call(rows: slice, batch: Batch, begin: int, end: int) -> None:
            target = place if direct else np.empty(batch.x.shape, place.dtype.newbyteorder("="))
            maximum, rest = self._maximum[rows], self._rest[rows]
            backend.normalize(batch, maximum, rest, log, target, begin, end)
            if not direct:
                some = slice(rows.start + begin, rows.start + end)
                place[checked.index(some)] = target[begin:end]

        _vocab.run((checked,), call, copied=not direct)
        if place is not result:
            np.copyto(result, place)
        return _dlpack.returned(result, checked.foreign) if out is None else out

"""The reference of scoring and sampling: a row at a time, in a wider type, by sorting.

16-bit and float32 logits are computed in float64, and float64 in NumPy's longdouble, which is wider
on most platforms.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsoftmax._backends._protocol import Array, Batch, Edits, Filters, Float64, Int64

Wide = NDArray[np.floating]


def _row_index(batch: Batch, row: int) -> tuple[Any, ...]:
    return np.unravel_index(row, batch.x.shape[: batch.row_axes]) if batch.row_axes else ()


def _unmasked(batch: Batch, row: int) -> NDArray[np.bool_]:
    """Which entries of a row count."""
    unmasked = np.ones(batch.cols, np.bool_)
    if batch.where is not None:
        unmasked &= batch.where[_row_index(batch, row)].ravel()
    if batch.bitmask is not None:
        octets = batch.bitmask[row].astype("<i4").view(np.uint8)
        unmasked &= np.unpackbits(octets, count=batch.cols, bitorder="little").view(np.bool_)
    return unmasked


def _edited(x: Array, edits: Edits, row: int) -> Array:
    """A row with its edits made, in float64 and rounded to the type of the arithmetic."""
    here = slice(edits.offsets[row], edits.offsets[row + 1])
    ids, penalty = edits.ids[here], edits.penalty[here]
    result = x.astype(np.float64 if x.dtype == np.float64 else np.float32)
    with np.errstate(all="ignore"):
        y = x[ids].astype(np.float64) + edits.bias[here]
        result[ids] = np.where(y > 0, y / penalty, y * penalty) - edits.reduction[here]
    return result


class _Row:
    """One row: its unmasked entries and what is known of them.

    Attributes
    ----------
    unmasked : ndarray of bool
    values : ndarray
        The logits in the wider type; -infinity where masked.
    top : float
        The largest; NaN if there is a NaN.
    z : ndarray
        (values - top)/T, with the limits of the temperature; all NaN if the row has no
        distribution.
    """

    def __init__(self, batch: Batch, row: int, arithmetic: type | None = None) -> None:
        x = batch.x[_row_index(batch, row)].ravel()
        self.unmasked = _unmasked(batch, row)
        edited = x if batch.edits is None else _edited(x, batch.edits, row)
        values = edited.astype(np.longdouble if x.dtype == np.float64 else np.float64)
        self.values = np.where(self.unmasked, values, -np.inf)
        self.top = self.values.max(initial=-np.inf)
        self.temperature = float(batch.temperature[_row_index(batch, row)])
        if arithmetic is None:
            arithmetic = np.float64 if x.dtype == np.float64 else np.float32
        # log2(e)/T overflows in the arithmetic of the kernels.
        self.cold = self.temperature * float(np.finfo(arithmetic).max) < np.log2(np.e)
        self.z = self.scaled(self.top)

    @property
    def empty(self) -> bool:
        """Whether nothing is unmasked."""
        return not self.unmasked.any()

    @property
    def has_distribution(self) -> bool:
        return bool(np.isfinite(self.top))

    def scaled(self, top: Any) -> Wide:
        """(values - top)/T for a maximum that this row may be but a part of."""
        values = self.values
        if not np.isfinite(top):
            return np.full(values.shape, np.nan)
        if np.isinf(self.temperature):
            return np.where(values > -np.inf, 0.0, -np.inf)
        if self.cold:
            return np.where(values == top, 0.0, -np.inf)
        with np.errstate(over="ignore", under="ignore"):  # to -inf and to 0, which are right
            if top > 1e300:  # a difference could overflow; quarters are exact
                z: Wide = (values / 4 - top / 4) / (self.temperature / 4)
            else:
                z = (values - top) / self.temperature
        return z

    def order(self) -> Int64:
        """The entries above -infinity from the largest logit down, equal ones by ascending id."""
        order = np.argsort(-self.values, stable=True)
        return order[: np.count_nonzero(self.values > -np.inf)]


def _rest(z: Wide) -> Any:
    """The sum of exp(z) without one of the maxima, which are 0."""
    e = np.exp(z)
    e[np.argmax(z)] = 0.0
    return e.sum()


def _log_softmax(z: Wide) -> Wide:
    result: Wide = z - np.log1p(_rest(z)) + 0.0  # no negative zero
    return result


def _survivors(row: _Row, filters: Filters, i: int) -> Int64:
    """What the filters leave of row i, by ascending id."""
    if not row.has_distribution:
        return np.empty(0, np.int64)
    if row.cold:
        return np.array([np.argmax(row.values)])
    top_k, top_p, min_p = filters.top_k[i], filters.top_p[i], filters.min_p[i]
    if top_k >= len(row.values) and top_p == 1.0 and min_p == 0.0:
        return np.flatnonzero(row.values > -np.inf)
    best = row.order()
    best = best[:top_k]
    with np.errstate(under="ignore"):
        weights = np.exp(row.z[best])
    if top_p < 1.0:
        mass = np.cumsum(weights)
        # All that come before the sum reaches top_p, and the one with which it does.
        count = np.count_nonzero(mass < top_p * mass[-1]) + 1
        best, weights = best[:count], weights[:count]
    if min_p > 0.0:
        best = best[weights >= min_p]
    return np.sort(best)


def _draw(weights: Wide, uniforms: Wide) -> Int64:
    """The places of the first cumulative weights above `uniforms` of the whole."""
    mass = np.cumsum(weights)
    last = np.searchsorted(mass, mass[-1])  # what follows has no weight
    places: Int64 = np.minimum(np.searchsorted(mass, uniforms * mass[-1], side="right"), last)
    return places


def _draw_without_replacement(z: Wide, uniforms: Float64) -> list[int]:
    """One place after the other, each among those that are left."""
    left = np.arange(len(z))
    places: list[int] = []
    for u in uniforms[: len(z)]:
        here = z[left]
        with np.errstate(under="ignore"):
            place = int(_draw(np.exp(here - here.max()), u))
        places.append(int(left[place]))
        left = np.delete(left, place)
    return places


class ReferenceScoring:
    """The methods of `Backend` that score and sample."""

    def token_logprobs(
        self,
        batch: Batch,
        ids: Int64,
        logprobs: Float64,
        ranks: Int64 | None,
        mean: Float64 | None,
        begin: int,
        end: int,
    ) -> None:
        for i in range(begin, end):
            given = np.flatnonzero(ids[i] >= 0)
            logprobs[i] = np.nan
            if ranks is not None:
                ranks[i] = 0
            if mean is not None:
                mean[i] = np.nan
            if not given.size:
                continue
            row, wanted = _Row(batch, i), ids[i, given]
            if not row.has_distribution:
                logprobs[i, given] = np.where(row.unmasked[wanted], np.nan, -np.inf)
                if mean is not None and row.empty:
                    mean[i] = -np.inf
                continue
            with np.errstate(under="ignore"):
                logp = _log_softmax(row.z)
            logprobs[i, given] = logp[wanted]
            if mean is not None:
                mean[i] = logp[row.unmasked].mean()
            if ranks is not None:
                ranks[i, given] = [
                    1 + np.count_nonzero(row.values > value) for value in row.values[wanted]
                ]

    def topk(
        self, batch: Batch, k: int, ids: Int64, logprobs: Float64, begin: int, end: int
    ) -> None:
        ids[begin:end] = -1
        logprobs[begin:end] = np.nan
        for i in range(begin, end):
            row = _Row(batch, i)
            if not row.has_distribution:
                continue
            best = row.order()[:k]
            ids[i, : len(best)] = best
            with np.errstate(under="ignore"):
                logprobs[i, : len(best)] = _log_softmax(row.z)[best]

    def moments(self, batch: Batch, out: Float64, begin: int, end: int) -> None:
        for i in range(begin, end):
            row = _Row(batch, i)
            if not row.has_distribution:
                out[i] = row.top, *([0.0 if row.empty else np.nan] * 3)
                continue
            with np.errstate(under="ignore", over="ignore", divide="ignore", invalid="ignore"):
                p = np.exp(row.z)
                p /= p.sum()
                log_sum = np.log1p(_rest(row.z))
                there = p > 0.0
                p, z, x = p[there], row.z[there], row.values[there]
                mean = row.top + (p * (x - row.top)).sum()
                hot = np.isinf(row.temperature)
                out[i, 0] = log_sum if hot else row.top / row.temperature + log_sum
                out[i, 1] = mean
                out[i, 2] = (p * (x - mean) ** 2).sum()
                out[i, 3] = log_sum - (p * z).sum()
                if row.temperature == 0.0:
                    out[i, 0] = np.nan

    def kl_divergence(self, p: Batch, q: Batch, out: Float64, begin: int, end: int) -> None:
        for i in range(begin, end):
            p_row, q_row = _Row(p, i, np.float64), _Row(q, i, np.float64)
            if p_row.empty:
                out[i] = 0.0
            elif not (p_row.has_distribution and q_row.has_distribution):
                out[i] = np.nan
            else:
                there = p_row.z > -np.inf
                if (q_row.z[there] == -np.inf).any():
                    out[i] = np.inf
                    continue
                with np.errstate(under="ignore"):
                    log_p = _log_softmax(p_row.z)[there]
                    log_q = _log_softmax(q_row.z)[there]
                    out[i] = max(0.0, (np.exp(log_p) * (log_p - log_q)).sum())

    def reduce(self, batch: Batch, maximum: Float64, rest: Float64, begin: int, end: int) -> None:
        for i in range(begin, end):
            row = _Row(batch, i)
            maximum[i] = row.top
            with np.errstate(under="ignore"):
                rest[i] = _rest(row.z) if row.has_distribution else 0.0

    def normalize(
        self,
        batch: Batch,
        maximum: Float64,
        rest: Float64,
        log: bool,
        out: Array,
        begin: int,
        end: int,
    ) -> None:
        for i in range(begin, end):
            row = _Row(batch, i)
            with np.errstate(under="ignore", over="ignore", invalid="ignore"):
                z = row.scaled(row.values.dtype.type(maximum[i]))
                result = z - np.log1p(rest[i]) if log else np.exp(z) / (1.0 + rest[i])
                result = np.where(row.unmasked, result, -np.inf if log else 0.0)
                index = _row_index(batch, i)
                out[index] = result.reshape(out[index].shape)

    def sample(
        self,
        batch: Batch,
        filters: Filters,
        uniforms: Float64,
        replace: bool,
        ids: Int64,
        logprobs: Float64,
        begin: int,
        end: int,
    ) -> None:
        ids[begin:end] = -1
        logprobs[begin:end] = np.nan
        for i in range(begin, end):
            row = _Row(batch, i)
            survivors = _survivors(row, filters, i)
            if not survivors.size:
                continue
            z = row.z[survivors]
            with np.errstate(under="ignore"):
                if replace:
                    places: Any = _draw(np.exp(z), uniforms[i])
                else:
                    places = _draw_without_replacement(z, uniforms[i])
                ids[i, : len(places)] = survivors[places]
                logprobs[i, : len(places)] = _log_softmax(z)[places]

    def count_survivors(
        self, batch: Batch, filters: Filters, counts: Int64, begin: int, end: int
    ) -> None:
        for i in range(begin, end):
            counts[i] = len(_survivors(_Row(batch, i), filters, i))

    def survivors(
        self,
        batch: Batch,
        filters: Filters,
        offsets: Int64,
        ids: Int64,
        logprobs: Float64,
        begin: int,
        end: int,
    ) -> None:
        for i in range(begin, end):
            here = slice(offsets[i], offsets[i + 1])
            row = _Row(batch, i)
            survivors = _survivors(row, filters, i)
            if survivors.size:
                ids[here] = survivors
                with np.errstate(under="ignore"):
                    logprobs[here] = _log_softmax(row.z[survivors])

"""Biases and penalties in the one form that backends take."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsoftmax._api import _arguments, _vocab
from fastsoftmax._backends._protocol import Edits

Array = NDArray[Any]
Int64 = NDArray[np.int64]


def as_edits(
    logits: _vocab.Logits,
    logit_bias: Any,
    history: Any,
    repetition_penalty: ArrayLike,
    presence_penalty: ArrayLike,
    frequency_penalty: ArrayLike,
) -> Edits | None:
    """The edits that the arguments of `sample` ask for, checked; None for none."""
    penalties: Any = (repetition_penalty, presence_penalty, frequency_penalty)
    plain = all(type(penalty) in (int, float) for penalty in penalties)
    if logit_bias is None and history is None and plain and penalties == (1, 0, 0):
        return None
    rows, cols, shape = logits.rows, logits.cols, logits.shape
    repetition, presence, frequency = (
        _vocab.per_row(name, value, shape, np.float64)
        for name, value in (
            ("repetition_penalty", repetition_penalty),
            ("presence_penalty", presence_penalty),
            ("frequency_penalty", frequency_penalty),
        )
    )
    _check("repetition_penalty", repetition, (repetition > 0) & (repetition < np.inf), "positive")
    _check("presence_penalty", presence, np.isfinite(presence), "finite")
    _check("frequency_penalty", frequency, np.isfinite(frequency), "finite")
    if history is None:
        for name, values, off in (
            ("repetition_penalty", repetition, 1.0),
            ("presence_penalty", presence, 0.0),
            ("frequency_penalty", frequency, 0.0),
        ):
            if (values != off).any():
                raise ValueError(f"{name} is given but history is None; it must be the tokens")
    if logit_bias is None and history is None:
        return None
    # An entry of the vocabulary of a row is one number here.
    biased, biases = _as_bias(logit_bias, rows, cols, shape)
    seen = _as_history(history, rows, cols, shape)
    places = np.unique(np.concatenate([biased, seen]))
    row, ids = np.divmod(places, max(cols, 1))
    bias = np.zeros(places.size)
    np.add.at(bias, np.searchsorted(places, biased), biases)
    counts = np.bincount(np.searchsorted(places, seen), minlength=places.size)
    return Edits(
        np.searchsorted(places, np.arange(rows + 1) * cols).astype(np.int64),
        ids,
        bias,
        np.where(counts > 0, repetition[row], 1.0),
        np.where(counts > 0, presence[row] + frequency[row] * counts, 0.0),
    )


def _check(name: str, values: Array, right: NDArray[np.bool_], wanted: str) -> None:
    if not right.all():
        raise ValueError(f"{name} is {values[~right][0]}; it must be {wanted}")


def _offsets(name: str, offsets: ArrayLike, rows: int, size: int) -> Int64:
    array = _vocab.as_ids(name, offsets).astype(np.int64)
    if array.shape != (rows + 1,):
        raise ValueError(f"{name} has shape {array.shape}; it must be {(rows + 1,)}")
    if array[0] != 0 or array[-1] != size or (np.diff(array) < 0).any():
        raise ValueError(f"{name} must rise from 0 to the number of tokens, {size}")
    return array


def _entries(name: str, ids: Array, rows: int, cols: int, shape: tuple[int, ...]) -> Array:
    """Padded ids, (rows, length), as numbers of entries; -1 for padding, which is below 0."""
    if ids.ndim != len(shape) + 1 or ids.shape[:-1] != shape:
        raise ValueError(
            f"{name} has shape {ids.shape}; it must be {(*shape, 'length')}, the rows and one axis"
        )
    padding = ids < 0
    checked = _vocab.check_range(name, ids, cols, ids >= cols).reshape(rows, ids.shape[-1])
    numbers = checked + np.arange(rows, dtype=np.int64)[:, None] * cols
    return np.where(padding.reshape(numbers.shape), -1, numbers)


def _as_history(history: Any, rows: int, cols: int, shape: tuple[int, ...]) -> Int64:
    """The entries that have been seen, each as often as that."""
    if history is None:
        return np.empty(0, np.int64)
    if isinstance(history, tuple):
        if len(history) != 2:
            raise ValueError(f"history has {len(history)} parts; it must be (ids, offsets)")
        ids = _vocab.as_ids("history", history[0])
        if ids.ndim != 1:
            raise ValueError(f"history has ids of shape {ids.shape}; they must have one axis")
        offsets = _offsets("history's offsets", history[1], rows, ids.size)
        row = np.repeat(np.arange(rows, dtype=np.int64), np.diff(offsets))
        return _vocab.check_range("history", ids, cols) + row * cols
    numbers = _entries("history", _vocab.as_ids("history", history), rows, cols, shape)
    return numbers[numbers >= 0]


def _as_bias(
    logit_bias: Any, rows: int, cols: int, shape: tuple[int, ...]
) -> tuple[Int64, NDArray[np.float64]]:
    """The entries that have a bias, and these."""
    if logit_bias is None:
        return np.empty(0, np.int64), np.empty(0)
    if isinstance(logit_bias, Mapping):
        logit_bias = (list(logit_bias.keys()), list(logit_bias.values()))
    elif isinstance(logit_bias, Sequence) and not isinstance(logit_bias, tuple):
        each = [{} if bias is None else bias for bias in logit_bias]
        if not all(isinstance(bias, Mapping) for bias in each):
            raise TypeError("logit_bias is a sequence of other things than mappings")
        if len(each) != rows:
            raise ValueError(f"logit_bias has {len(each)} mappings; it must have {rows}")
        ends = np.cumsum([0] + [len(bias) for bias in each])
        flat = [pair for bias in each for pair in bias.items()]
        logit_bias = ([token for token, _ in flat], [value for _, value in flat], ends)
    if not isinstance(logit_bias, tuple) or len(logit_bias) not in (2, 3):
        raise TypeError(
            f"logit_bias is a {type(logit_bias).__name__}; it must be a mapping, one for each row, "
            "or a tuple (ids, values) or (ids, values, offsets)"
        )
    ids = _vocab.as_ids("logit_bias", logit_bias[0])
    values = _arguments.as_array(logit_bias[1], "logit_bias")
    if values.dtype.kind not in "biuf":
        raise TypeError(f"logit_bias has values of dtype {values.dtype}; they must be real")
    try:
        values = np.broadcast_to(values, ids.shape).astype(np.float64)
    except ValueError:
        raise ValueError(
            f"logit_bias has values of shape {values.shape}; it must be that of the ids, "
            f"{ids.shape}"
        ) from None
    if len(logit_bias) == 3:
        if ids.ndim != 1:
            raise ValueError(f"logit_bias has ids of shape {ids.shape}; they must have one axis")
        offsets = _offsets("logit_bias's offsets", logit_bias[2], rows, ids.size)
        row = np.repeat(np.arange(rows, dtype=np.int64), np.diff(offsets))
        numbers = _vocab.check_range("logit_bias", ids, cols) + row * cols
    elif ids.ndim == 1:
        checked = _vocab.check_range("logit_bias", ids, cols)
        numbers = (checked + np.arange(rows, dtype=np.int64)[:, None] * cols).reshape(-1)
        values = np.tile(values, rows)
    else:
        numbers = _entries("logit_bias", ids, rows, cols, shape).reshape(-1)
        values = values.reshape(-1)[numbers >= 0]
        numbers = numbers[numbers >= 0]
    right = values < np.inf
    if not right.all():
        raise ValueError(
            f"logit_bias has the value {values[~right][0]}; it must be finite or -infinity"
        )
    return numbers, values

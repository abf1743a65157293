"""What scoring and sampling must give, worked out plainly from longdouble log-probabilities."""

from __future__ import annotations

import numpy as np
from oracle import Reference, arithmetic_of, reference, tolerance, wide

INF = np.inf


def unpack(bitmask: np.ndarray, vocab: int) -> np.ndarray:
    """The mask that a packed one stands for, bit by bit."""
    bitmask = np.asarray(bitmask)
    return np.stack(
        [(bitmask[..., v // 32].astype(np.int64) >> (v % 32)) & 1 for v in range(vocab)], axis=-1
    ).astype(bool)


def pack(mask: np.ndarray) -> np.ndarray:
    """The packed form of a mask, bit by bit."""
    mask = np.asarray(mask)
    words = np.zeros((*mask.shape[:-1], -(-mask.shape[-1] // 32)), np.int64)
    for v in range(mask.shape[-1]):
        words[..., v // 32] |= mask[..., v].astype(np.int64) << (v % 32)
    return words.astype(np.uint32).view(np.int32)


def logprobs(x: np.ndarray, temperature: object = 1.0, where: object = None) -> Reference:
    return reference(
        "log_softmax", x, temperature=temperature, where=where, arithmetic=arithmetic_of(x.dtype)
    )


def allowed_error(want: Reference, x_dtype: object) -> np.ndarray:
    arithmetic = arithmetic_of(x_dtype)
    return tolerance("log_softmax", want, arithmetic, arithmetic)


def masked_logits(x: np.ndarray, where: object = None) -> np.ndarray:
    return wide(x) if where is None else np.where(np.broadcast_to(where, x.shape), wide(x), -INF)


def order(values: np.ndarray) -> list[int]:
    """The entries of one row above -infinity, the largest first, equal ones by ascending id."""
    return sorted((v for v in range(len(values)) if values[v] > -INF), key=lambda v: -values[v])


def has_distribution(values: np.ndarray) -> bool:
    return len(values) > 0 and bool(np.isfinite(values.max()))


def rank(values: np.ndarray, token: int) -> int:
    return 1 + np.count_nonzero(values > values[token]) if has_distribution(values) else 0

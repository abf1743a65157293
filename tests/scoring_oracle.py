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
    best = np.argsort(-values, kind="stable")
    return best[values[best] > -INF].tolist()


def has_distribution(values: np.ndarray) -> bool:
    return len(values) > 0 and bool(np.isfinite(values.max()))


def rank(values: np.ndarray, token: int) -> int:
    return 1 + np.count_nonzero(values > values[token]) if has_distribution(values) else 0


# ---- sampling


def filtered(
    values: np.ndarray,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> tuple[list[int], np.ndarray, float]:
    """What the filters leave of one row of longdouble logits, -infinity where masked.

    Returns the ids in ascending order, their log-probabilities, and how far the nearest decision
    was from falling the other way, relative to what was compared.
    """
    if not has_distribution(values):
        return [], np.empty(0, np.longdouble), INF
    best = order(values)
    margin = INF
    t = np.longdouble(temperature)
    top = values[best[0]]
    if temperature == 0:
        best, t = best[:1], np.longdouble(1)
    elif 1 <= top_k < len(best):
        best = best[:top_k]
    z = np.zeros(len(best), np.longdouble) if np.isinf(t) else (values[best] - top) / t
    e = np.exp(z)
    if top_p < 1:
        mass = np.cumsum(e)
        reached = mass >= top_p * mass[-1]
        kept = int(reached.argmax()) + 1
        margin = min(margin, float(np.abs(mass[:kept] / mass[-1] - top_p).min()))
        best, z, e = best[:kept], z[:kept], e[:kept]
    if min_p > 0:
        # The largest is 1 in any arithmetic, and so are those equal to it.
        margin = min(margin, float(np.abs(e[z < 0] / min_p - 1).min(initial=INF)))
        kept = int((e >= min_p).sum())
        best, z, e = best[:kept], z[:kept], e[:kept]
    ids = np.argsort(best, kind="stable")
    rest = e[1:].sum()  # the first is the largest, 1
    return [best[i] for i in ids], (z - np.log1p(rest))[ids], margin


def draw(ids: list[int], logp: np.ndarray, u: float) -> tuple[int, float]:
    """The token that u draws, and how far u is from drawing another one."""
    edges = np.cumsum(np.exp(logp))
    place = min(int(np.searchsorted(edges, u * edges[-1], side="right")), len(ids) - 1)
    return place, float(np.abs(edges / edges[-1] - u).min())


MASK = 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15


def mix(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


def uniform(seed: int, row: int = 0, step: int = 0, drawn: int = 0) -> float:
    """The documented function."""
    state = mix((seed + GAMMA) & MASK)
    for index in (row, step, drawn):
        state = mix((state + (index + 1) * GAMMA) & MASK)
    return (state >> 11) * 2.0**-53


def unmix(z: int) -> int:
    """The inverse of `mix`."""

    def unshift(v: int, by: int) -> int:
        result = v
        for _ in range(64 // by + 1):
            result = v ^ (result >> by)
        return result

    z = unshift(z, 31) * pow(0x94D049BB133111EB, -1, 2**64) & MASK
    z = unshift(z, 27) * pow(0xBF58476D1CE4E5B9, -1, 2**64) & MASK
    return unshift(z, 30)


def seed_for(u: float, row: int = 0, step: int = 0, drawn: int = 0) -> int:
    """A seed whose uniform is u, rounded down to 53 bits."""
    state = int(u * 2**53) << 11
    for index in (drawn, step, row, 0):
        state = (unmix(state) - (index + 1) * GAMMA) & MASK
    return state

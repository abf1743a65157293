"""What several test modules share: the seed, the implementations, the real logits, documents."""

from __future__ import annotations

import os
import platform
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

import fastsoftmax
import fastsoftmax._backends

DATA = Path(__file__).parent / "data"

X86 = platform.machine() in ("x86_64", "AMD64")
ARM = platform.machine() in ("aarch64", "arm64")
# The instruction sets of this architecture, from the best down: what FASTSOFTMAX_ISA may be.
CAPS = ("avx512", "avx2", "scalar") if X86 else ("neon", "scalar") if ARM else ("scalar",)
IMPLEMENTATIONS = ("numpy", "numba", *(f"c-{isa}" for isa in CAPS))


def _seed() -> int:
    text = os.environ.get("FASTSOFTMAX_TEST_SEED", "0")
    return int(np.random.SeedSequence().generate_state(1)[0]) if text == "random" else int(text)


SEED = _seed()


def generator(*key: object) -> np.random.Generator:
    """A stream of its own for each key, reproducible from the printed seed."""
    return np.random.default_rng([SEED, zlib.crc32(repr(key).encode())])


def why_not(implementation: str) -> str | None:
    """None, or why this implementation cannot be tested here."""
    name, _, isa = implementation.partition("-")
    forced = os.environ.get("FASTSOFTMAX_BACKEND", "auto")
    if forced not in ("auto", name):
        return f"FASTSOFTMAX_BACKEND={forced}"
    reason = fastsoftmax.available_backends()[name]
    if reason is not None:
        return f"{name}: {reason}"
    if isa and isa not in fastsoftmax._backends.c_isas():
        return f"this CPU has no {isa}"
    return None


def available() -> list[str]:
    return [i for i in IMPLEMENTATIONS if why_not(i) is None]


@contextmanager
def using(implementation: str) -> Iterator[None]:
    name, _, isa = implementation.partition("-")
    with fastsoftmax.use_backend(name, isa=isa) if isa else fastsoftmax.use_backend(name):
        yield


@lru_cache
def real_logits() -> np.ndarray:
    """float16 (16, 30522), read-only."""
    x = np.load(DATA / "minilm_logits_f16.npy")
    x.flags.writeable = False
    return x


@lru_cache
def real_token_ids() -> np.ndarray:
    x = np.load(DATA / "minilm_token_ids.npy")
    x.flags.writeable = False
    return x


def as_dtype(name: str) -> np.dtype:
    """A dtype by its name; a test that needs bfloat16 is skipped without ml_dtypes."""
    return np.dtype(pytest.importorskip("ml_dtypes").bfloat16 if name == "bfloat16" else name)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal to the last bit; of NaN only that it is NaN."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    unsigned = np.dtype(f"u{a.dtype.itemsize}")
    bits_a, bits_b = (np.ascontiguousarray(v).view(unsigned) for v in (a, b))
    return bool(((bits_a == bits_b) | ((a != a) & (b != b)).reshape(bits_a.shape)).all())


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a document in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)

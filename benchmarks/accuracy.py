"""``python -m benchmarks.accuracy``: errors beside those of the peers, as tables in Markdown.

Everything is compared with 50-digit arithmetic (mpmath), entry by entry. With --write the tables
take the place of those in docs/accuracy.md, which says what they show.
"""

import argparse
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
from numpy.typing import NDArray

import fastsoftmax
from benchmarks.contenders import MissingError, contender
from benchmarks.shapes import TEMPERATURE, as_dtype
from fastsoftmax import _backends
from fastsoftmax._ops import OPS

Array = NDArray[Any]

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "accuracy.md"

DTYPES = ("float32", "float64", "float16", "bfloat16")
# Bits of precision, the exponent of the smallest normal number; what is promised beside the
# rounding of the result: ULP of the arithmetic's type, and an absolute error of logarithms.
FORMATS = {
    "float32": (24, -126, 2, 1e-7),
    "float64": (53, -1022, 4, 1e-15),
    "float16": (11, -14, 2, 1e-7),
    "bfloat16": (8, -126, 2, 1e-7),
}
PEERS = {"NumPy": "NumPy passes", "SciPy": "SciPy", "PyTorch": "torch(x/T)"}


def batches(dtype: str) -> list[Array]:
    rng = np.random.default_rng(0)
    real = np.load(ROOT / "tests" / "data" / "minilm_logits_f16.npy")[:2]
    normal = [4 * rng.standard_normal(shape) for shape in ((300, 10), (20, 1000), (1, 50_000))]
    return [a.astype(np.float32).astype(as_dtype(dtype)) for a in (real, *normal)]


@dataclass(frozen=True)
class Exact:
    """Exact results, each as the sum of two doubles, and |x - max|/T for each entry."""

    high: Array
    low: Array
    argument: Array


def exact(op: str, x: Array) -> Exact:
    high, low, arguments = [], [], []
    with mpmath.workdps(50):
        t = mpmath.mpf(TEMPERATURE)
        for row in x.astype(np.float64).tolist():
            entries = [mpmath.mpf(v) for v in row]
            top = max(entries)
            first = entries.index(top)
            scaled = [(v - top) / t for v in entries]
            powers = [mpmath.exp(v) for v in scaled]
            rest = mpmath.fsum(p for i, p in enumerate(powers) if i != first)
            log_sum = mpmath.log1p(rest)
            if op == "softmax":
                values = [p / (1 + rest) for p in powers]
            elif op == "log_softmax":
                values = [s - log_sum for s in scaled]
            else:
                values = [top / t + log_sum]
            high.append([float(v) for v in values])
            low.append([float(v - mpmath.mpf(h)) for v, h in zip(values, high[-1], strict=True)])
            if op == "logsumexp":
                arguments.append([float(max(abs(top / t), log_sum))])
            else:
                arguments.append([-float(s) for s in scaled])
    shape = x.shape[:1] if op == "logsumexp" else x.shape
    return Exact(*(np.array(a).reshape(shape) for a in (high, low, arguments)))


def ulp(a: Array, dtype: str) -> Array:
    bits, smallest, _, _ = FORMATS[dtype]
    _, exponent = np.frexp(a)
    return np.ldexp(1.0, np.maximum(exponent - 1, smallest) - (bits - 1))


def bound(op: str, want: Exact, dtype: str) -> Array:
    """What is promised."""
    bits, _, ulps, absolute = FORMATS[dtype]
    arithmetic = "float64" if dtype == "float64" else "float32"
    value = np.abs(want.high)
    allowed = ulps * ulp(value, arithmetic)
    if op == "softmax":
        allowed = allowed + want.argument * 2.0 ** -FORMATS[arithmetic][0] * value
    else:
        allowed = allowed + absolute
        if op == "logsumexp" and dtype == "float64":
            allowed = allowed + want.argument * 2.0 ** (1 - bits)
    if dtype != arithmetic:
        allowed = allowed + 0.5 * ulp(value + allowed, dtype)
    return allowed


@dataclass(frozen=True)
class Errors:
    largest: float
    mean: float
    off_one: float
    share: float


def errors(op: str, dtype: str, results: list[Array], wants: list[Exact]) -> Errors:
    in_ulp, shares, off_one = [], [], 0.0
    for result, want in zip(results, wants, strict=True):
        got = result.astype(np.float64)
        error = np.abs((got - want.high) - want.low)
        in_ulp.append((error / ulp(want.high, dtype)).ravel())
        shares.append(float((error / bound(op, want, dtype)).max()))
        if op == "softmax":
            off_one = max(off_one, float(np.abs(got.sum(axis=-1) - 1).max()))
    flat = np.concatenate(in_ulp)
    return Errors(float(flat.max()), statistics.fmean(flat.tolist()), off_one, max(shares))


def ours() -> Iterator[tuple[str, list[str]]]:
    """What a row of a table is called, and the contenders that it stands for."""
    isas = _backends.c_isas()
    if isas:
        yield f"C ({', '.join(isas)})", [f"c-{isa}" for isa in isas]
    for name in ("numba", "numpy"):
        if fastsoftmax.available_backends()[name] is None:
            yield {"numba": "Numba", "numpy": "NumPy, the reference"}[name], [name]


def results_of(op: str, name: str, xs: list[Array]) -> list[Array]:
    who = contender(op, name)
    with who.context():
        return [np.array(as_numpy(who.prepare(x, -1)())) for x in xs]


def as_numpy(a: Any) -> Array:
    """A result of any peer; a bfloat16 tensor, which NumPy cannot take, as float32."""
    if hasattr(a, "detach"):
        a = a.float() if str(a.dtype) == "torch.bfloat16" else a
        a = a.numpy()
    return np.asarray(a)


def tables() -> Iterator[str]:
    for dtype in DTYPES:
        xs = batches(dtype)
        for op in OPS:
            wants = [exact(op, x) for x in xs]
            sums = op == "softmax"
            yield f"\n## {op}, {dtype}\n"
            off = " sum - 1 |" if sums else ""
            yield f"| | largest, ULP | mean, ULP |{off} share of the bound |"
            yield "|---|---|---|" + ("---|" if sums else "") + "---|"
            rows = [(label, names) for label, names in ours()]
            rows += [(label, [name]) for label, name in PEERS.items()]
            for label, names in rows:
                try:
                    results, *others = [results_of(op, name, xs) for name in names]
                except (MissingError, TypeError) as reason:
                    if isinstance(reason, TypeError) and dtype != "bfloat16":
                        raise
                    continue
                for other in others:
                    for a, b in zip(results, other, strict=True):
                        if a.tobytes() != b.tobytes():
                            raise AssertionError(f"{names} differ: {op}, {dtype}")
                e = errors(op, dtype, results, wants)
                off = f" {e.off_one:.1e} |" if sums else ""
                yield f"| {label} | {e.largest:.3g} | {e.mean:.3g} |{off} {e.share:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("--write", action="store_true", help="renew the tables in the docs")
    args = parser.parse_args()
    lines = []
    for line in tables():
        print(line, flush=True)
        lines.append(line + "\n")
    if args.write:
        text, _, _ = PAGE.read_text().partition("\n## ")
        PAGE.write_text(text + "".join(lines))


if __name__ == "__main__":
    main()

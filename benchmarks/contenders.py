"""Who is measured: this package's backends and, where they are installed, its peers.

A contender is prepared with an array of logits and gives a function without arguments that does the
work once and returns the result. Outputs are allocated and touched beforehand wherever a library
can be given one, so that no page fault is measured that its user could avoid. All run in one
thread unless their names say otherwise.

An operation is one of the package's table, or a query: a scoring or sampling function with what it
is asked.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fastsoftmax
from benchmarks.shapes import SEED, TEMPERATURE
from fastsoftmax import _backends
from fastsoftmax._ops import OPS

Array = NDArray[Any]
Call = Callable[[], Any]


class MissingError(Exception):
    """A contender cannot take part; the message says why."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to do an operation.

    Attributes
    ----------
    prepare : callable
        From logits and an axis to the work. Raises `MissingError`.
    context : callable
        Gives the context manager that the work is done in.
    temperature : float or None
        The temperature that is applied; None for work that computes something else (a copy).
    """

    prepare: Callable[[Array, int], Call]
    context: Callable[[], AbstractContextManager[None]] = nullcontext
    temperature: float | None = TEMPERATURE


def touched(shape: tuple[int, ...], dtype: Any) -> Array:
    """A new array whose pages are all there."""
    a = np.empty(shape, dtype)
    a.fill(0)
    return a


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked of rows of logits, and read from them alone: nothing of their size comes back.

    Attributes
    ----------
    ours, torch : callable
        From the logits and a token id for each row to the answer: this package's, and that of the
        idiom that PyTorch's users know for it. Of several arrays of answers it is one that can be
        compared.
    """

    ours: Callable[[Array, Array], Any]
    torch: Callable[[Any, Any], Any]


def token_ids(x: Array) -> Array:
    return np.random.default_rng(SEED).integers(x.shape[-1], size=len(x))


def reduced_shape(x: Array, axis: int) -> tuple[int, ...]:
    shape = list(x.shape)
    del shape[axis]
    return tuple(shape)


def output(op: str, x: Array, axis: int) -> Array:
    """Where an operation's result can go."""
    return touched(reduced_shape(x, axis) if OPS[op].reduces else x.shape, x.dtype)


# What memory and NumPy allow


def _copyto(x: Array, axis: int) -> Call:
    out = touched(x.shape, x.dtype)

    def call() -> Array:
        np.copyto(out, x)
        return out

    return call


def _max(x: Array, axis: int) -> Call:
    return partial(np.max, x, axis=axis, out=touched(reduced_shape(x, axis), x.dtype))


def _multiply_in_place(x: Array, axis: int) -> Call:
    y = x.copy()
    # A factor of 1 costs what any other does, and no number of repetitions leads to subnormals.
    return partial(np.multiply, y, y.dtype.type(1), out=y)


def _numpy(op: str, x: Array, axis: int) -> Call:
    """The usual three passes, without a single temporary array of the size of the logits."""
    out = touched(x.shape, x.dtype)
    top, total = (touched(np.max(x, axis=axis, keepdims=True).shape, x.dtype) for _ in range(2))
    scale = x.dtype.type(1 / TEMPERATURE)

    def exponentials() -> None:
        np.max(x, axis=axis, keepdims=True, out=top)
        np.subtract(x, top, out=out)
        np.multiply(out, scale, out=out)

    def softmax() -> Array:
        exponentials()
        np.exp(out, out=out)
        np.sum(out, axis=axis, keepdims=True, out=total)
        np.divide(out, total, out=out)
        return out

    result = touched(x.shape, x.dtype)

    def log_softmax() -> Array:
        exponentials()
        np.exp(out, out=result)
        np.sum(result, axis=axis, keepdims=True, out=total)
        np.subtract(out, np.log(total, out=total), out=result)
        return result

    def logsumexp() -> Any:
        exponentials()
        np.exp(out, out=out)
        np.sum(out, axis=axis, keepdims=True, out=total)
        return (np.log(total, out=total) + top * scale).reshape(reduced_shape(x, axis))

    return {"softmax": softmax, "log_softmax": log_softmax, "logsumexp": logsumexp}[op]


# SciPy


def _scipy(op: str, x: Array, axis: int) -> Call:
    try:
        import scipy.special
    except ImportError:
        raise MissingError("not installed") from None
    function = getattr(scipy.special, op)
    t = x.dtype.type(TEMPERATURE)
    return lambda: function(x / t, axis=axis)


# PyTorch


def _torch_tensor(x: Array) -> Any:
    try:
        import torch
    except ImportError:
        raise MissingError("not installed") from None
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        # Read-only memory is only read.
        warnings.simplefilter("ignore", UserWarning)
        if x.dtype.name == "bfloat16":
            return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(x)


def _torch(op: str, x: Array, axis: int) -> Call:
    tensor = _torch_tensor(x)
    import torch

    function = getattr(torch, op)
    return lambda: function(tensor / TEMPERATURE, axis)


def _torch_out(op: str, x: Array, axis: int) -> Call:
    """Without a temperature: what PyTorch can do when it is given the output."""
    tensor, out = _torch_tensor(x), _torch_tensor(output(op, x, axis))
    import torch

    function = getattr(torch, op)
    return lambda: function(tensor, axis, out=out)


def _torch_query(op: str, x: Array, axis: int) -> Call:
    return partial(QUERIES[op].torch, _torch_tensor(x), _torch_tensor(token_ids(x)))


def _inference_mode() -> AbstractContextManager[None]:
    import torch

    mode: AbstractContextManager[None] = torch.inference_mode()
    return mode


def _torch_cross_entropy(logits: Any, targets: Any) -> Any:
    import torch

    return torch.nn.functional.cross_entropy(logits / TEMPERATURE, targets)


def _torch_token_logprobs(logits: Any, ids: Any) -> Any:
    """With ranks, as inference servers return them."""
    logprobs = (logits / TEMPERATURE).log_softmax(-1)
    chosen = logprobs.gather(-1, ids[:, None])
    _ranks = 1 + (logprobs > chosen).sum(-1)
    return chosen[:, 0]


def _torch_topk_logprobs(k: int, logits: Any, ids: Any) -> Any:
    return (logits / TEMPERATURE).log_softmax(-1).topk(k).values


def _torch_entropy(logits: Any, ids: Any) -> Any:
    logprobs = (logits / TEMPERATURE).log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)


def _torch_kl_divergence(logits: Any, ids: Any) -> Any:
    import torch

    p, q = (logits / TEMPERATURE).log_softmax(-1), logits.log_softmax(-1)
    terms = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none")
    return terms.sum(-1)


def _torch_sample(
    logits: Any, ids: Any, *, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Any:
    """Softmax, for top-p a sort and running sums, masks, and a draw."""
    logits = logits / TEMPERATURE
    if top_k:
        logits.masked_fill_(logits < logits.topk(top_k).values[:, -1:], -np.inf)
    probs = order = logits.softmax(-1)
    if top_p < 1:
        probs, order = probs.sort(descending=True)
        probs.masked_fill_(probs.cumsum(-1) - probs >= top_p, 0)
    if min_p:
        probs.masked_fill_(probs < min_p * probs.amax(-1, keepdim=True), 0)
    drawn = probs.multinomial(1)
    return (order.gather(-1, drawn) if top_p < 1 else drawn)[:, 0]


# ONNX Runtime


def _onnx_session(op: str, x: Array, axis: int) -> Any:
    """A model of one node without a temperature."""
    try:
        import onnx
        import onnxruntime
    except ImportError:
        raise MissingError("not installed") from None
    if x.dtype not in (np.float32, np.float64):
        raise MissingError("no such kernel")
    nodes: dict[str, tuple[str, dict[str, Any]]] = {
        "softmax": ("Softmax", {"axis": axis}),
        "log_softmax": ("LogSoftmax", {"axis": axis}),
        "logsumexp": ("ReduceLogSumExp", {"axes": [axis], "keepdims": 0}),
    }
    node, attributes = nodes[op]
    helper, element = onnx.helper, onnx.helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        [helper.make_node(node, ["x"], ["y"], **attributes)],
        op,
        [helper.make_tensor_value_info("x", element, x.shape)],
        [helper.make_tensor_value_info("y", element, output(op, x, axis).shape)],
    )
    # Old versions, which every ONNX Runtime still reads.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _onnx(op: str, x: Array, axis: int) -> Call:
    session = _onnx_session(op, x, axis)
    feed = {"x": x}
    return lambda: session.run(None, feed)[0]


def _onnx_bound(op: str, x: Array, axis: int) -> Call:
    """With input and output bound: what ONNX Runtime can do when it is given the output."""
    session = _onnx_session(op, x, axis)
    import onnxruntime

    out = output(op, x, axis)
    binding = session.io_binding()
    for bind, name, array in ((binding.bind_input, "x", x), (binding.bind_output, "y", out)):
        bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def call() -> Array:
        session.run_with_iobinding(binding)
        return out

    # The library keeps addresses, not the arrays behind them.
    call.keep = (x, out, onnxruntime)  # type: ignore[attr-defined]
    return call


# This package


@contextmanager
def _serving(name: str, isa: str | None, threads: int) -> Iterator[None]:
    before = fastsoftmax.get_num_threads()
    fastsoftmax.set_num_threads(threads)
    try:
        with fastsoftmax.use_backend(name, isa=isa):
            yield
    finally:
        fastsoftmax.set_num_threads(before)


# The same logits in orders that are the worst for a threshold that rises, or look so.
_ORDERS: dict[str, Callable[[Array, int], Array]] = {
    "if ascending": np.sort,
    "if descending": lambda x, axis: -np.sort(-x, axis),
    "if all equal": lambda x, axis: np.ones_like(x),
}


def _ours(op: str, name: str, isa: str | None, how: str, x: Array, axis: int) -> Call:
    reason = fastsoftmax.available_backends()[name]
    if reason is not None:
        raise MissingError(reason)
    if isa is not None and isa not in _backends.c_isas():
        raise MissingError(f"this CPU has no {isa}")
    if how in _ORDERS:
        x = _ORDERS[how](x, axis)
    if op in QUERIES:
        return partial(QUERIES[op].ours, x, token_ids(x))
    function = getattr(fastsoftmax, op)
    if how == "in place":
        x = x.copy()
    out = x if how == "in place" else output(op, x, axis)
    return lambda: function(x, axis, temperature=TEMPERATURE, out=out)


def ours(op: str, text: str) -> Contender:
    """This package: "c", "numba" or "numpy"; "c-avx2" caps the instruction set, "c in place"
    has its output where its input is, "c in 2 threads" is the one that does not run in one, and
    "c if ascending", "c if descending", "c if all equal" are given such logits.
    """
    backend, _, how = text.partition(" ")
    name, _, isa = backend.partition("-")
    return Contender(
        partial(_ours, op, name, isa or None, how),
        partial(_serving, name, isa or None, 2 if how == "in 2 threads" else 1),
    )


def _sample(steps: Iterator[int], filters: dict[str, Any], x: Array, ids: Array) -> Array:
    # A new draw each time: where in a row it lies may matter.
    drawn = fastsoftmax.sample(x, temperature=TEMPERATURE, seed=SEED, step=next(steps), **filters)
    return drawn.ids


# The queries

SCORING = {
    "cross_entropy": Query(
        lambda x, ids: fastsoftmax.cross_entropy(x, ids, temperature=TEMPERATURE),
        _torch_cross_entropy,
    ),
    "token_logprobs": Query(
        lambda x, ids: fastsoftmax.token_logprobs(x, ids, temperature=TEMPERATURE).logprobs,
        _torch_token_logprobs,
    ),
    "topk_logprobs k=20": Query(
        lambda x, ids: fastsoftmax.topk_logprobs(x, 20, temperature=TEMPERATURE).logprobs,
        partial(_torch_topk_logprobs, 20),
    ),
    "entropy": Query(
        lambda x, ids: fastsoftmax.entropy(x, temperature=TEMPERATURE), _torch_entropy
    ),
    # Of the logits at the temperature from those at 1: one array is enough to time it.
    "kl_divergence": Query(
        lambda x, ids: fastsoftmax.kl_divergence(x, x, temperature=TEMPERATURE, q_temperature=1.0),
        _torch_kl_divergence,
    ),
}
FILTERS: dict[str, dict[str, Any]] = {
    "sample": {},
    "sample min_p=0.02": {"min_p": 0.02},
    "sample top_p=0.95": {"top_p": 0.95},
    "sample top_k=50 top_p=0.95 min_p=0.02": {"top_k": 50, "top_p": 0.95, "min_p": 0.02},
}
SAMPLING = {
    name: Query(partial(_sample, count(), filters), partial(_torch_sample, **filters))
    for name, filters in FILTERS.items()
}
QUERIES = SCORING | SAMPLING


_LIMITS = {
    "np.copyto": Contender(_copyto, temperature=None),
    "np.max": Contender(_max, temperature=None),
    "np.multiply in place": Contender(_multiply_in_place, temperature=None),
}
BACKENDS = ("c", "numba", "numpy")


def peers(op: str) -> dict[str, Contender]:
    """The contenders of an operation beside this package, by their names."""
    if op in QUERIES:
        return {
            "np.max": _LIMITS["np.max"],
            "torch": Contender(partial(_torch_query, op), _inference_mode),
        }
    limit = "np.max" if OPS[op].reduces else "np.copyto"
    return {
        limit: _LIMITS[limit],
        "NumPy passes": Contender(partial(_numpy, op)),
        "SciPy": Contender(partial(_scipy, op)),
        "torch(x/T)": Contender(partial(_torch, op), _inference_mode),
        "torch(x, out=)": Contender(partial(_torch_out, op), _inference_mode, temperature=1.0),
        "ONNX Runtime": Contender(partial(_onnx, op), temperature=1.0),
        "ONNX Runtime bound": Contender(partial(_onnx_bound, op), temperature=1.0),
    }


def contender(op: str, name: str) -> Contender:
    """A contender of an operation by its name."""
    found = _LIMITS | peers(op)
    return found[name] if name in found else ours(op, name)

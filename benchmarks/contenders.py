"""Who is measured: this package's backends and, where they are installed, its peers.

A contender is prepared with an array of logits and gives a function without arguments that does the
work once and returns the result. Outputs are allocated and touched beforehand wherever a library
can be given one, so that no page fault is measured that its user could avoid. All run in one
thread.
"""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fastsoftmax
from benchmarks.shapes import TEMPERATURE
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


def _ours(op: str, name: str, isa: str | None, in_place: bool, x: Array, axis: int) -> Call:
    reason = fastsoftmax.available_backends()[name]
    if reason is not None:
        raise MissingError(reason)
    if isa is not None and isa not in _backends.c_isas():
        raise MissingError(f"this CPU has no {isa}")
    function = getattr(fastsoftmax, op)
    if in_place:
        x = x.copy()
    out = x if in_place else output(op, x, axis)
    return lambda: function(x, axis, temperature=TEMPERATURE, out=out)


def ours(op: str, backend: str) -> Contender:
    """This package: "c", "numba" or "numpy"; "c-avx2" caps the instruction set, "c in place"
    has its output where its input is.
    """
    backend, _, where = backend.partition(" in ")
    name, _, isa = backend.partition("-")
    return Contender(
        partial(_ours, op, name, isa or None, where == "place"),
        partial(fastsoftmax.use_backend, name, isa=isa or None),
    )


_LIMITS = {
    "np.copyto": Contender(_copyto, temperature=None),
    "np.max": Contender(_max, temperature=None),
    "np.multiply in place": Contender(_multiply_in_place, temperature=None),
}
BACKENDS = ("c", "numba", "numpy")


def peers(op: str) -> dict[str, Contender]:
    """The contenders of an operation beside this package, by their names."""
    limit = "np.max" if OPS[op].reduces else "np.copyto"
    return {
        limit: _LIMITS[limit],
        "NumPy passes": Contender(partial(_numpy, op)),
        "SciPy": Contender(partial(_scipy, op)),
        "torch(x/T)": Contender(partial(_torch, op)),
        "torch(x, out=)": Contender(partial(_torch_out, op), temperature=1.0),
        "ONNX Runtime": Contender(partial(_onnx, op), temperature=1.0),
        "ONNX Runtime bound": Contender(partial(_onnx_bound, op), temperature=1.0),
    }


def contender(op: str, name: str) -> Contender:
    """A contender of an operation by its name."""
    found = _LIMITS | peers(op)
    return found[name] if name in found else ours(op, name)

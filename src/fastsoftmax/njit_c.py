"""The C kernels for code that Numba compiles.

The functions of `fastsoftmax.njit` with the same parameters, done by the C library of the package,
which compiled code calls by the names of its functions: less to compile, results with the bits of
the C backend, and the instruction set that it has (``FASTSOFTMAX_ISA``), whatever the process was
in which the caller was compiled. Arrays must be aligned to their entries.

The import raises `BackendUnavailableError` where the package has no C module.
"""

import importlib

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastsoftmax import _backends
from fastsoftmax._numba import arguments as _arguments
from fastsoftmax._numba import kernels as _kernels
from fastsoftmax._numba.arguments import address as _address
from fastsoftmax._numba.arguments import jit as _jit
from fastsoftmax.njit import uniform

__all__ = [
    "entropy",
    "log_softmax",
    "logsumexp",
    "sample",
    "softmax",
    "token_logprobs",
    "topk_logprobs",
    "uniform",
]

_backend = _backends._load("c")  # raises where there is none
_c = importlib.import_module("fastsoftmax._c")
_ffi, _lib = _c.ffi, _c.lib


# --------------------------------------------------------------------------------------------------
# What compiled code knows by its name alone, which is looked up when the code is loaded: a cached
# caller may be loaded as soon as this module has been.


def _function(name, *kinds, result=types.int32):
    """A function of the library, with pointers as numbers."""
    symbol = f"fastsoftmax_{name}"
    pointer = _ffi.cast("intptr_t", _ffi.addressof(_lib, symbol))
    llvmlite.binding.add_symbol(symbol, int(pointer))
    return types.ExternalFunction(symbol, result(*kinds))


_ONE = types.int64  # argument: a pointer or a number
_RANGE = (_ONE,) * 3  # of rows, and the scratch memory
_scratch_size = _function("scratch_size", _ONE, result=_ONE)
_scoring_scratch_size = _function("scoring_scratch_size", *(_ONE,) * 2, result=_ONE)
_sample_scratch_size = _function("sample_scratch_size", *(_ONE,) * 2, result=_ONE)
_softmax = _function("softmax", _ONE, *_RANGE)
_log_softmax = _function("log_softmax", _ONE, *_RANGE)
_logsumexp = _function("logsumexp", _ONE, *_RANGE)
_moments = _function("moments", *(_ONE,) * 2, *_RANGE)
_topk = _function("topk", *(_ONE,) * 4, *_RANGE)
_token_logprobs = _function("token_logprobs", *(_ONE,) * 6, *_RANGE)
_sample = _function("sample", *(_ONE,) * 4, types.int32, *(_ONE,) * 2, *_RANGE)

_isa_variable = _ffi.new("int32_t *", _backend._isa)
_ISA_SYMBOL = "fastsoftmax_njit_isa"
llvmlite.binding.add_symbol(_ISA_SYMBOL, int(_ffi.cast("intptr_t", _isa_variable)))


@intrinsic
def _isa(typingctx):
    """The instruction set of this process."""

    def codegen(context, builder, signature, args):
        variable = builder.module.globals.get(_ISA_SYMBOL)
        if variable is None:
            variable = ir.GlobalVariable(builder.module, ir.IntType(32), _ISA_SYMBOL)
        return builder.load(variable)

    return types.int32(), codegen


# --------------------------------------------------------------------------------------------------
# A batch as the library takes it


def _place(field, size):
    return _ffi.offsetof("fastsoftmax_batch", field) // size


_ISA, _X_DTYPE, _OUT_DTYPE, _ROW_AXES, _COL_AXES = (
    _place(field, 4) for field in ("isa", "x_dtype", "out_dtype", "row_axes", "col_axes")
)
_AXES, _X, _WHERE, _TEMPERATURE, _OUT, _BITMASK, _BITMASK_STRIDE, _EDITS = (
    _place(field, 8)
    for field in (
        *("axes", "x", "where", "temperature", "out"),
        *("bitmask", "bitmask_stride", "edits"),
    )
)
_ROWS = _kernels.FIELDS  # of a table
_WORDS = _ffi.sizeof("fastsoftmax_batch") // 8
_F32, _F64 = _lib.FASTSOFTMAX_F32, _lib.FASTSOFTMAX_F64


@_jit
def _batch(x, table):
    """The batch of a table, which it points into."""
    itemsize = x.itemsize
    batch = np.zeros(_WORDS + 10, np.int64)
    halves = batch.view(np.int32)
    halves[_ISA] = _isa()
    halves[_X_DTYPE] = halves[_OUT_DTYPE] = _F32 if itemsize == 4 else _F64
    halves[_ROW_AXES] = halves[_COL_AXES] = 1
    batch[_AXES] = _address(batch) + 8 * _WORDS
    batch[_X] = table[_kernels.X_ADDRESS]
    batch[_WHERE] = table[_kernels.WHERE_ADDRESS]
    batch[_TEMPERATURE] = table[_kernels.TEMPERATURE_ADDRESS]
    batch[_OUT] = table[_kernels.OUT_ADDRESS]
    extras = _arguments.EXTRAS
    batch[_BITMASK], batch[_BITMASK_STRIDE] = table[extras], table[extras + 1] // 4
    if table[extras + 2] != 0:
        batch[_EDITS] = _address(table) + 8 * (extras + 2)
    odd = table[_kernels.X_ADDRESS] | table[_kernels.OUT_ADDRESS]
    for axis in range(2):
        # Of logits, output, mask and temperature: bytes there, elements here.
        to, at = _WORDS + 5 * axis, _kernels.FIELDS + 5 * axis
        batch[to] = table[at]
        batch[to + 1] = table[at + 1] // itemsize
        batch[to + 2] = table[at + 2] // itemsize
        batch[to + 3] = table[at + 3]
        batch[to + 4] = table[at + 4] // 8
        odd |= table[at + 1] | table[at + 2]
    if odd % itemsize != 0 or table[_kernels.TEMPERATURE_ADDRESS] % 8 != 0:
        raise ValueError("arrays must be aligned to their entries for the C kernels")
    return batch


@_jit
def _scratch(size):
    """Memory of which a part of that size is aligned."""
    return np.empty(size + _kernels.CACHE_LINE, np.uint8)


@_jit
def _aligned(memory):
    line = _kernels.CACHE_LINE
    return (_address(memory) + line - 1) // line * line


@_jit
def _end(status, table, batch, memory):
    """What the library has the addresses of lives until this is called."""
    if status != 0:
        raise RuntimeError("the C library refused its arguments")


# --------------------------------------------------------------------------------------------------
# What callers see


@_jit
def softmax(x, temperature, out, where=None):
    """As `fastsoftmax.njit.softmax`."""
    table = _arguments.rows(x, temperature, out, where)
    batch = _batch(x, table)
    memory = _scratch(_scratch_size(_address(batch)))
    status = _softmax(_address(batch), 0, table[_ROWS], _aligned(memory))
    _end(status, table, batch, memory)


@_jit
def log_softmax(x, temperature, out, where=None):
    """As `fastsoftmax.njit.log_softmax`."""
    table = _arguments.rows(x, temperature, out, where)
    batch = _batch(x, table)
    memory = _scratch(_scratch_size(_address(batch)))
    status = _log_softmax(_address(batch), 0, table[_ROWS], _aligned(memory))
    _end(status, table, batch, memory)


@_jit
def logsumexp(x, temperature, out=None, where=None):
    """As `fastsoftmax.njit.logsumexp`."""
    results = _arguments.results(x, out, x.dtype)
    table = _arguments.reduced(x, temperature, results, where)
    batch = _batch(x, table)
    memory = _scratch(_scratch_size(_address(batch)))
    status = _logsumexp(_address(batch), 0, table[_ROWS], _aligned(memory))
    _end(status, table, batch, memory)
    return _arguments.returned(results, out)


@_jit
def entropy(x, temperature, out=None, where=None, token_bitmask=None):
    """As `fastsoftmax.njit.entropy`."""
    results = _arguments.results(x, out, np.float64)
    table = _arguments.batch(x, temperature, where, token_bitmask)
    batch, rows = _batch(x, table), table[_ROWS]
    memory = _scratch(_scoring_scratch_size(_address(batch), 0))
    moments = np.empty((rows, 4))
    status = _moments(_address(batch), _address(moments), 0, rows, _aligned(memory))
    _end(status, table, batch, memory)
    for row in range(rows):
        results[row] = moments[row, 3]
    return _arguments.returned(results, out)


@_jit
def token_logprobs(x, ids, temperature, logprobs, ranks, where=None, token_bitmask=None):
    """As `fastsoftmax.njit.token_logprobs`."""
    table = _arguments.entries(x, temperature, ids, logprobs, ranks, where, token_bitmask)
    _arguments.check_ids(x, ids)
    batch = _batch(x, table)
    memory = _scratch(_scoring_scratch_size(_address(batch), 0))
    status = _token_logprobs(
        _address(batch),
        _address(ids),
        ids.shape[-1],
        _address(logprobs),
        _address(ranks),
        0,
        0,
        table[_ROWS],
        _aligned(memory),
    )
    _end(status, table, batch, memory)


@_jit
def topk_logprobs(x, temperature, ids, logprobs, where=None, token_bitmask=None):
    """As `fastsoftmax.njit.topk_logprobs`."""
    table = _arguments.entries(x, temperature, ids, logprobs, None, where, token_bitmask)
    batch, rows = _batch(x, table), table[_ROWS]
    k = min(ids.shape[-1], table[_kernels.COLS])
    # The library has no places behind all entries.
    best, best_logprobs = np.empty((rows, k), np.int64), np.empty((rows, k))
    if k > 0:
        memory = _scratch(_scoring_scratch_size(_address(batch), k))
        status = _topk(
            _address(batch),
            k,
            _address(best),
            _address(best_logprobs),
            0,
            rows,
            _aligned(memory),
        )
        _end(status, table, batch, memory)
    all_ids, all_logprobs, count = ids.reshape(ids.size), logprobs.reshape(ids.size), ids.shape[-1]
    for i in range(ids.size):
        row, j = divmod(i, count)
        all_ids[i] = best[row, j] if j < k else -1
        all_logprobs[i] = best_logprobs[row, j] if j < k else np.nan


@_jit
def sample(
    x,
    uniforms,
    temperature,
    top_k,
    top_p,
    min_p,
    ids,
    logprobs,
    replace=True,
    where=None,
    token_bitmask=None,
    logit_bias=None,
    history=None,
    repetition_penalty=1.0,
    presence_penalty=0.0,
    frequency_penalty=0.0,
):
    """As `fastsoftmax.njit.sample`."""
    table, _ = _arguments.draws(
        x,
        uniforms,
        temperature,
        (top_k, top_p, min_p),
        ids,
        logprobs,
        where,
        token_bitmask,
        logit_bias,
        history,
        (repetition_penalty, presence_penalty, frequency_penalty),
    )
    batch, rows = _batch(x, table), table[_ROWS]
    filters = np.empty(3, np.int64)
    for i in range(3):
        filters[i] = _address(table) + 8 * (_arguments.SIZE + i * rows)
    memory = _scratch(_sample_scratch_size(_address(batch), _address(filters)))
    status = _sample(
        _address(batch),
        _address(filters),
        _address(uniforms),
        ids.shape[-1],
        replace,
        _address(ids),
        _address(logprobs),
        0,
        rows,
        _aligned(memory),
    )
    _end(status, table, batch, memory)
    _end(status, table, filters, memory)

"""Every jitted function of the package.

They share one file because Numba's cache notices a change in the file of the function it holds, and
in no other.

A row is cut into blocks that fit the first cache. Each block is summed against its own maximum and
blocks are merged in their order (Milakov and Gimelshein 2018, "Online normalizer calculation for
softmax", arXiv:1805.02867, per block instead of per entry). No floating-point flag is relaxed and
the order of sums is written down, so the bits of a result depend on the entries of the row alone.

A batch is addresses and strides, not arrays: Numba compiles anew for each type and layout of an
array. All arithmetic is done on `Vector`, LANES numbers of one type, because what LLVM makes of a
loop over numbers depends on too much. There are two ways through a batch:

- by rows: a row is a sequence of blocks of contiguous entries. A *source* yields them, from memory
  as they lie there, or gathered, widened and masked into a few KB of workspace.
- by columns, where the entries of LANES rows lie side by side, or where rows are so short that it
  pays to transpose them: vector j holds entry j of LANES rows. Whatever is special about a row
  (NaN, infinities, limits of the temperature) sends it the other way.

Functions take the type they compute in, float32 or float64, as their argument `number`. "Terms" are
exponentials that carry the factor of `_exp2`.
"""

import inspect
import math
import operator
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, models, overload, register_model

LANES = 16  # entries of a vector: two registers of AVX2, or one of AVX-512, hold them in float32
GROUP = 8 * LANES  # entries added as one tree
BLOCK = 2048  # entries that share a maximum: 8 KB of float32
SHORT = 64  # entries: rows up to here are transposed
TILE = 256  # bytes side by side that the column kernel takes at a time
KEPT = 2**19  # bytes of terms kept from the sum to the output; further ones are computed twice
AHEAD = 2 * BLOCK  # entries: far enough for DRAM, near enough for the first or second cache
CACHE_LINE = 64  # bytes
STREAMABLE = 512  # entries: a shorter run past the caches is not worth its odd ends

# Constants that are arguments of jitted functions have a type: Numba compiles anew for each literal.
SOFTMAX, LOG_SOFTMAX, LOGSUMEXP = map(np.int64, range(3))  # operations
F16, BF16, F32, F64 = range(4)  # types in memory
FINITE, ZERO, INFINITE = map(np.int64, range(3))  # how a row's temperature is to be taken
ORDINARY, SHARED, UNDEFINED = map(np.int64, range(3))  # how a row's output is to be written
NONE, ONE = np.int64(0), np.int64(1)
ONE_VECTOR = np.int64(LANES)

# A batch is a table of int64. These fields come first:
FIRST, LAST, COLS = map(np.int64, range(3))  # the first and last column axis, entries of a row
X_ADDRESS, OUT_ADDRESS, WHERE_ADDRESS, TEMPERATURE_ADDRESS = map(np.int64, range(3, 7))
X_TYPE, OUT_TYPE = map(np.int64, range(7, 9))
MASKED = np.int64(9)
NATIVE = np.int64(10)  # rows are contiguous, unmasked, of the type of the arithmetic
DIRECT = np.int64(11)  # rows of the output are contiguous, of the type of the arithmetic
STREAMED = np.int64(12)  # the output goes past the caches
BY_COLUMNS = np.int64(13)
# Then, for each axis, its length and the steps along it, in bytes:
FIELDS = np.int64(14)
LENGTH, X, OUT, WHERE, TEMPERATURE = map(np.int64, range(5))

# Where things are in a workspace, memory that one thread needs; each is large enough for float64.
RAW = 0  # a block as it is in memory
ENTRIES = RAW + 8 * (BLOCK + LANES)  # a block of a source
TERMS = ENTRIES + 8 * (BLOCK + LANES)  # a block of terms or of output
PART = TERMS + 8 * (BLOCK + LANES)  # a vector
ROWS = PART + 8 * LANES  # LANES short rows
SUMS = ROWS + 8 * LANES * (SHORT + 1)  # 2*LANES vectors of float64
# For each column of a tile:
SHRINKS = SUMS + 16 * LANES * LANES
HIS = SHRINKS + 2 * TILE
LOS = HIS + 2 * TILE
TEMPERATURES = LOS + 2 * TILE
TOPS = TEMPERATURES + 2 * TILE
BESTS = TOPS + 2 * TILE
TOTALS = BESTS + 2 * TILE
LOGS = TOTALS + 2 * TILE
CHUNKS = LOGS + 2 * TILE  # the tile: chunks of LANES columns, then states of longer columns

LOG2_E_HI = float.fromhex("0x1.71547652b82fep+0")
LOG2_E_LO = float.fromhex("0x1.777d0ffda0d24p-56")

_OPTIONS = {"nogil": True, "error_model": "numpy"}
# What is called once, or small, is part of its caller; what is called often stands for itself.
_inlined = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, forceinline=True, **_OPTIONS)
_jit = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, forceinline=False, **_OPTIONS)
_pasted = njit(inline="always", **_OPTIONS)


def _cached_jit(function):
    """Jit a kernel, cached on disk where a directory for that can be written."""
    try:
        return njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # "cannot cache function: no locator available"
        return njit(**_OPTIONS)(function)


# --------------------------------------------------------------------------------------------------
# Instructions: what LLVM is to do, said in its own words


class Vector(types.Type):
    """LANES numbers of one type. Arithmetic takes numbers beside vectors, as NumPy does."""

    def __init__(self, dtype):
        self.dtype = dtype
        super().__init__(name=f"Vector({dtype})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        number = manager.lookup(vector.dtype).get_value_type()
        super().__init__(manager, vector, ir.VectorType(number, LANES))


INT32, INT64 = ir.IntType(32), ir.IntType(64)
I8X, I16X, I32X, I64X = (ir.VectorType(ir.IntType(bits), LANES) for bits in (8, 16, 32, 64))
F32X, F64X = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(ir.DoubleType(), LANES)


class _Code:
    """What builds an instruction: LLVM's builder, and the types of arguments and result."""

    def __init__(self, context, builder, sig):
        self.context, self.builder, self.kinds = context, builder, sig.args
        self.result = context.get_value_type(sig.return_type)

    def __getattr__(self, name):
        return getattr(self.builder, name)

    def vectors(self, kinds, args):
        """Arguments, with numbers among them broadcast to the type of the vectors."""
        vector, result = _vector_of(kinds), []
        for kind, arg in zip(kinds, args, strict=True):
            if kind != vector:
                arg = self.broadcast(self.context.cast(self.builder, arg, kind, vector.dtype))
            result.append(arg)
        return result

    def broadcast(self, number):
        vector = ir.Constant(ir.VectorType(number.type, LANES), ir.Undefined)
        vector = self.insert_element(vector, number, ir.Constant(INT32, 0))
        return self.shuffle(vector, vector, [0] * LANES)

    def shuffle(self, a, b, lanes):
        mask = ir.Constant(ir.VectorType(INT32, len(lanes)), lanes)
        return self.shuffle_vector(a, b, mask)

    def halves(self, vector):
        lanes = list(range(vector.type.count))
        half = len(lanes) // 2
        return [self.shuffle(vector, vector, part) for part in (lanes[:half], lanes[half:])]

    def first(self, vector):
        return self.extract_element(vector, ir.Constant(INT32, 0))

    def pointer(self, address, to):
        return self.inttoptr(address, to.as_pointer())

    def align(self, number):
        return self.context.get_abi_sizeof(number)

    def lanes_below(self, size):
        return self.icmp_signed("<", ir.Constant(I64X, list(range(LANES))), self.broadcast(size))

    def call_llvm(self, name, result, args):
        kind = ir.FunctionType(result, [arg.type for arg in args])
        return self.call(cgutils.get_or_insert_function(self.module, kind, f"llvm.{name}"), args)


def _vector_of(kinds):
    """The type of the vectors among types; None if there is none, or more than one."""
    vectors = {kind for kind in kinds if isinstance(kind, Vector)}
    return vectors.pop() if len(vectors) == 1 else None


def _mangled(kind):
    """How LLVM writes a type in the name of an intrinsic."""
    if isinstance(kind, ir.VectorType):
        return f"v{kind.count}{_mangled(kind.element)}"
    return "f32" if kind == ir.FloatType() else "f64"


def _instruction(result, **options):
    """Make an intrinsic of a function that builds it, from the type of its result."""

    def decorate(build):
        def typed(typingctx, *kinds):
            def codegen(context, builder, sig, args):
                value = build(_Code(context, builder, sig), *args)
                return context.get_dummy_value() if value is None else value

            return result(*kinds)(*kinds), codegen

        typed.__name__, typed.__doc__ = build.__name__, build.__doc__
        typed.__signature__ = inspect.signature(build)
        return intrinsic(**options)(typed) if options else intrinsic(typed)

    return decorate


def _nothing(*kinds):
    return types.void


def _vector_like(number):
    return Vector(number.instance_type)


def _operator(function, floats, integers, comparison=None):
    """Define an operator on vectors by the names of what builds it."""

    @infer_global(function)
    class Template(AbstractTemplate):
        def generic(self, args, kws):
            vector = _vector_of(args)
            if vector is None or not all(a == vector or isinstance(a, types.Number) for a in args):
                return None
            return signature(Vector(types.boolean) if comparison else vector, *args)

    def lower(context, builder, sig, args):
        args = _Code(context, builder, sig).vectors(sig.args, args)
        is_float = isinstance(_vector_of(sig.args).dtype, types.Float)
        build = getattr(builder, floats if is_float else integers)
        return build(comparison, *args) if comparison else build(*args)

    for kinds in ((Vector, Vector), (Vector, types.Number), (types.Number, Vector)):
        lower_builtin(function, *kinds)(lower)


for _names in (
    (operator.add, "fadd", "add"),
    (operator.sub, "fsub", "sub"),
    (operator.mul, "fmul", "mul"),
    (operator.truediv, "fdiv", None),
    (operator.lshift, None, "shl"),
    (operator.rshift, None, "ashr"),
    (operator.and_, None, "and_"),
    (operator.gt, "fcmp_ordered", "icmp_signed", ">"),
    (operator.lt, "fcmp_ordered", "icmp_signed", "<"),
    (operator.eq, "fcmp_ordered", "icmp_signed", "=="),
    (operator.ne, "fcmp_unordered", "icmp_signed", "!="),
):
    _operator(*_names)


@_instruction(_nothing)
def _apart(code):
    """Keep LLVM from copying the function this stands in to wherever it is called from."""
    code.function.attributes.add("noinline")


@_instruction(lambda number: types.int64)
def _size_of(code, _):
    """Bytes of a number."""
    number = code.kinds[0].instance_type
    return ir.Constant(INT64, code.align(code.context.get_value_type(number)))


@_instruction(lambda condition, a, b: _vector_of((a, b)))
def _choose(code, condition, a, b):
    """`a` where the condition holds, `b` elsewhere."""
    return code.select(condition, *code.vectors(code.kinds[1:], (a, b)))


@_instruction(lambda a, b, c: _vector_of((a, b, c)) or a)
def _fma(code, a, b, c):
    """``a*b + c`` in one rounding where the CPU can, and in two where it would take a call."""
    args = [a, b, c]
    if _vector_of(code.kinds):
        args = code.vectors(code.kinds, args)
    return code.call_llvm(f"fmuladd.{_mangled(code.result)}", code.result, args)


@_instruction(Vector)
def _splat(code, number):
    return code.broadcast(number)


@_instruction(lambda vector, number: Vector(number.instance_type))
def _convert(code, vector, _):
    """Floats of one type as floats of another, rounded to nearest."""
    if vector.type == code.result:
        return vector
    return (code.fpext if code.result == F64X else code.fptrunc)(vector, code.result)


@_instruction(lambda vector: Vector(types.int32 if vector.dtype == types.float32 else types.int64))
def _bits(code, vector):
    """Floats as the integers that their bits are."""
    return code.bitcast(vector, code.result)


@_instruction(lambda vector: Vector(types.float32 if vector.dtype == types.int32 else types.float64))
def _of_bits(code, vector):
    """Floats of their bits."""
    return code.bitcast(vector, code.result)


@_instruction(lambda vector: Vector(types.float64))
def _to_float(code, vector):
    """Integers as float64."""
    return code.sitofp(vector, F64X)


@_instruction(lambda condition: types.boolean)
def _any(code, condition):
    bits = ir.IntType(LANES)
    return code.icmp_unsigned("!=", code.bitcast(condition, bits), ir.Constant(bits, 0))


@_instruction(lambda vector: vector.dtype)
def _largest(code, vector):
    """The largest number of a vector; any of them if a NaN is among them."""
    while vector.type.count > 1:
        a, b = code.halves(vector)
        vector = code.select(code.fcmp_ordered(">", a, b), a, b)
    return code.first(vector)


@_instruction(lambda vector: vector.dtype)
def _first(code, vector):
    return code.first(vector)


@_instruction(lambda total, lost: types.UniTuple(types.float64, 2))
def _sum_lanes(code, total, lost):
    """The sum of a vector as a tree, and what was lost to rounding before and here (two-sum)."""
    while total.type.count > 1:
        a, b = code.halves(total)
        lost = code.fadd(*code.halves(lost))
        total = code.fadd(a, b)
        back = code.fsub(total, a)
        lost_a, lost_b = code.fsub(a, code.fsub(total, back)), code.fsub(b, back)
        lost = code.fadd(lost, code.fadd(lost_a, lost_b))
    pair = code.context.get_value_type(types.UniTuple(types.float64, 2))(ir.Undefined)
    pair = code.insert_value(pair, code.first(total), 0)
    return code.insert_value(pair, code.first(lost), 1)


# ---- memory; addresses are integers


@_instruction(lambda address, number: number.instance_type)
def _get(code, address, _):
    """The number at an address."""
    return code.load(code.pointer(address, code.result), align=code.align(code.result))


@_instruction(_nothing)
def _set(code, address, number):
    code.store(number, code.pointer(address, number.type), align=code.align(number.type))


@_instruction(lambda address, number: _vector_like(number))
def _load(code, address, _):
    """The vector at an address."""
    align = code.align(code.result.element)
    return code.load(code.pointer(address, code.result), align=align)


@_instruction(_nothing)
def _store(code, address, vector):
    align = code.align(vector.type.element)
    code.store(vector, code.pointer(address, vector.type), align=align)


@_instruction(_nothing)
def _stream(code, address, vector):
    """Store a vector past the caches. The address is a multiple of CACHE_LINE."""
    store = code.store(vector, code.pointer(address, vector.type), align=CACHE_LINE)
    store.set_metadata("nontemporal", code.module.add_metadata([ir.Constant(INT32, 1)]))


@_instruction(_nothing)
def _fence(code):
    """After this other threads see what was stored past the caches."""
    code.fence("seq_cst")


@_instruction(lambda address, size, rest, number: _vector_like(number))
def _load_part(code, address, size, rest, _):
    """The first `size` numbers at an address, and `rest` in the other lanes."""
    number = code.kinds[3].instance_type
    rest = code.broadcast(code.context.cast(code.builder, rest, code.kinds[2], number))
    align = ir.Constant(INT32, code.align(code.result.element))
    args = [code.pointer(address, code.result), align, code.lanes_below(size), rest]
    return code.call_llvm(f"masked.load.{_mangled(code.result)}.p0", code.result, args)


@_instruction(_nothing)
def _store_part(code, address, vector, size):
    """Store the first `size` numbers of a vector."""
    align = ir.Constant(INT32, code.align(vector.type.element))
    args = [vector, code.pointer(address, vector.type), align, code.lanes_below(size)]
    code.call_llvm(f"masked.store.{_mangled(vector.type)}.p0", ir.VoidType(), args)


@_instruction(_nothing)
def _copy(code, target, source, size):
    """Copy `size` bytes between places that do not overlap."""
    target, source = (code.pointer(address, ir.IntType(8)) for address in (target, source))
    cgutils.raw_memcpy(code.builder, target, source, size, 1)


@_instruction(_nothing)
def _prefetch(code, address):
    """Ask for a cache line, which need not exist."""
    read, keep, data = (ir.Constant(INT32, i) for i in (0, 3, 1))
    args = [code.pointer(address, ir.IntType(8)), read, keep, data]
    code.call_llvm("prefetch.p0", ir.VoidType(), args)


@_instruction(lambda vector, address: vector)
def _mask(code, vector, address):
    """A vector with -inf in the lanes whose byte, among those at `address`, is 0."""
    flags = code.load(code.pointer(address, I8X), align=1)
    masked = code.icmp_unsigned("==", flags, ir.Constant(I8X, None))
    low = ir.Constant(vector.type, [ir.Constant(vector.type.element, -math.inf)] * LANES)
    return code.select(masked, low, vector)


def _transposed(code, vectors):
    """Four vectors, taken as groups of four numbers, with each 4x4 block of them transposed."""

    def shuffle(a, b, pattern):
        lanes = [g + i % 4 + (i // 4) * LANES for g in range(0, LANES, 4) for i in pattern]
        return code.shuffle(a, b, lanes)

    a, b, c, d = vectors
    ab, cd = (shuffle(*pair, (0, 4, 1, 5)) for pair in ((a, b), (c, d)))
    ab_high, cd_high = (shuffle(*pair, (2, 6, 3, 7)) for pair in ((a, b), (c, d)))
    return [
        shuffle(*pair, pattern)
        for pair in ((ab, cd), (ab_high, cd_high))
        for pattern in ((0, 1, 4, 5), (2, 3, 6, 7))
    ]


def _quarters(code, address, step, number):
    """Pointers to four numbers in each of LANES rows, grouped by the vector they go to."""
    for i in range(4):
        rows = [ir.Constant(INT64, i + 4 * group) for group in range(LANES // 4)]
        places = [code.add(address, code.mul(step, row)) for row in rows]
        yield [code.pointer(place, ir.VectorType(number, 4)) for place in places]


@_instruction(_nothing)
def _load_columns(code, source, step, target, _):
    """Four numbers from each of LANES rows, `step` bytes apart, to four vectors at `target`."""
    number = code.context.get_value_type(code.kinds[3].instance_type)
    align = code.align(number)
    rows = []
    for pointers in _quarters(code, source, step, number):
        parts = [code.load(pointer, align=align) for pointer in pointers]
        while len(parts) > 1:
            lanes = list(range(2 * parts[0].type.count))
            pairs = zip(parts[::2], parts[1::2], strict=True)
            parts = [code.shuffle(a, b, lanes) for a, b in pairs]
        rows += parts
    place = code.pointer(target, ir.VectorType(number, LANES))
    for i, column in enumerate(_transposed(code, rows)):
        code.store(column, code.gep(place, [ir.Constant(INT32, i)]), align=align)


@_instruction(_nothing)
def _store_columns(code, source, target, step, _):
    """Four vectors at `source` to four numbers in each of LANES rows, `step` bytes apart."""
    number = code.context.get_value_type(code.kinds[3].instance_type)
    align = code.align(number)
    place = code.pointer(source, ir.VectorType(number, LANES))
    places = [code.gep(place, [ir.Constant(INT32, i)]) for i in range(4)]
    rows = _transposed(code, [code.load(place, align=align) for place in places])
    for row, pointers in zip(rows, _quarters(code, target, step, number), strict=True):
        for group, pointer in enumerate(pointers):
            part = code.shuffle(row, row, list(range(4 * group, 4 * group + 4)))
            code.store(part, pointer, align=align)


# --------------------------------------------------------------------------------------------------
# The 16-bit types. Numba has no half on CPUs, and LLVM makes calls of it where the CPU has none.


class _Integers:
    """Vectors of int32 in expressions, with constants."""

    def __init__(self, code, value):
        self.code, self.value = code, value

    def _operand(self, other):
        return other.value if isinstance(other, _Integers) else ir.Constant(I32X, [other] * LANES)

    def _apply(self, name, other):
        value = getattr(self.code, name)(self.value, self._operand(other))
        return _Integers(self.code, value)

    def __add__(self, other):
        return self._apply("add", other)

    def __and__(self, other):
        return self._apply("and_", other)

    def __or__(self, other):
        return self._apply("or_", other)

    def __lshift__(self, other):
        return self._apply("shl", other)

    def __rshift__(self, other):
        return self._apply("lshr", other)

    def if_below(self, limit, a, b):
        below = self.code.icmp_signed("<", self.value, self._operand(limit))
        return _Integers(self.code, self.code.select(below, self._operand(a), self._operand(b)))

    def as_float(self, name, number):
        """The bits after ``fadd`` or ``fsub`` of a number."""
        operand = ir.Constant(F32X, [ir.Constant(ir.FloatType(), number)] * LANES)
        value = getattr(self.code, name)(self.code.bitcast(self.value, F32X), operand)
        return _Integers(self.code, self.code.bitcast(value, I32X))


@_instruction(lambda address, memory_type: Vector(types.float32), prefer_literal=True)
def _load_16(code, address, _):
    """The vector of float16 or bfloat16 at an address, in float32."""
    bits = code.load(code.pointer(address, I16X), align=2)
    bits = _Integers(code, code.zext(bits, I32X))
    if code.kinds[1].literal_value == BF16:
        result = bits << 16
    else:
        magnitude = (bits & 0x7FFF) << 13
        bias = (127 - 15) << 23
        normal = magnitude + bias
        # The exponent of a denormal is that of the least normal number, which has to go again.
        denormal = (magnitude + (bias + (1 << 23))).as_float("fsub", 2.0**-14)
        large = magnitude.if_below(31 << 23, normal, normal + bias)
        result = magnitude.if_below(1 << 23, denormal, large) | ((bits & 0x8000) << 16)
    return code.bitcast(result.value, F32X)


@_instruction(_nothing, prefer_literal=True)
def _store_16(code, address, vector, _):
    """Store float32 as float16 or bfloat16, rounded to nearest, ties to even."""
    bits = _Integers(code, code.bitcast(vector, I32X))
    magnitude, sign = bits & 0x7FFFFFFF, (bits >> 16) & 0x8000
    infinity = 0x7F800000
    if code.kinds[2].literal_value == BF16:
        result = (magnitude + 0x7FFF + ((magnitude >> 16) & 1)) >> 16
        result = magnitude.if_below(infinity + 1, result, 0x7FC0)
    else:
        normal = (magnitude + (0xFFF - (112 << 23)) + ((magnitude >> 13) & 1)) >> 13
        # In 1/2 + x the unit of the last place is that of a denormal.
        denormal = magnitude.as_float("fadd", 0.5) + -0x3F000000
        # From 2**16 up all is infinite, and too large for the sum before.
        large = magnitude.if_below(143 << 23, normal, 0x7C00)
        large = magnitude.if_below(infinity + 1, large, 0x7E00)
        result = magnitude.if_below(113 << 23, denormal, large)
    bits = code.trunc((result | sign).value, I16X)
    code.store(bits, code.pointer(address, I16X), align=2)


def _to_odd(vector):
    """Floats as float32, rounded to odd: another rounding to fewer bits is then the only one."""
    raise NotImplementedError


def _to_odd_f32(vector):
    return vector


def _to_odd_f64(vector):
    near = _convert(vector, np.float32)
    lost = vector - _convert(near, np.float64)
    bits = _bits(near)
    # Bits go up where the nearest is too near to 0, whatever the sign.
    up = lost * _convert(near, np.float64)
    other = _choose(up > 0.0, bits + 1, _choose(up < 0.0, bits - 1, bits))
    return _of_bits(_choose((bits & 1) == 0, other, bits))


@overload(_to_odd)
def _overload_to_odd(vector):
    return {types.float32: _to_odd_f32, types.float64: _to_odd_f64}.get(vector.dtype)


# --------------------------------------------------------------------------------------------------
# Exponential and logarithm


def _constants(text, number):
    return tuple(number(float.fromhex(word)) for word in text.split())


_F32 = np.float32
# 2**f - 1 = f*(c1 + c2*f + ...) for |f| <= 1/2; the relative error of 2**f is 8.8e-9.
A1, A2, A3, A4, A5, A6 = _constants(
    "0x1.62e430p-1 0x1.ebfbe0p-3 0x1.c6af6cp-5 0x1.3b2a52p-7 0x1.5f0950p-10 0x1.44140ep-13", _F32
)
# The same in float64; the relative error is 1.9e-17.
B1, B2, B3, B4, B5, B6, B7, B8, B9, B10, B11 = _constants(
    "0x1.62e42fefa39efp-1 0x1.ebfbdff82c598p-3 0x1.c6b08d704a0c2p-5 0x1.3b2ab6fba1d79p-7 "
    "0x1.5d87fe78a524cp-10 0x1.430913098972bp-13 0x1.ffcbfc6723a1cp-17 0x1.62bfd42983dbcp-20 "
    "0x1.b524faa3b0215p-24 0x1.e606db2aaa6f4p-28 0x1.e9d483077a0f7p-32",
    float,
)

# Exponentials carry a factor 2**64 (float32) or 2**512 (float64): all that do not come to 0 in the
# end are then normal numbers, and the one multiplication by which an exponential becomes a
# probability rounds correctly among the denormals too.
UNBIAS_F32, UNBIAS_F64 = 2.0**-64, 2.0**-512

# Adding the magic number leaves n = round(z) in the low bits of the sum, for |z| < 2**22 (float32)
# or 2**51 (float64), with n + bias + the exponent's own bias where an exponent's bits begin.
MAGIC_F32, MAGIC_F64 = _F32(1.5 * 2**23 + 64 + 127), 1.5 * 2**52 + 512 + 1023
# From here up 2**(n + bias) is normal; below, the result is 0 whatever the sum.
LOWEST_F32, LOWEST_F64 = _F32(MAGIC_F32 - 189), MAGIC_F64 - 1500


def _exp2(t, hi, lo):
    """``2**(t*(hi + lo))`` for t <= 0, times 2**64 (float32) or 2**512 (float64).

    Exactly that factor at t = 0; 0 at -inf; NaN where t is NaN or +inf. The product ``t*hi`` is
    kept whole by the fma: the error, 1 ULP at most, does not grow with the exponent.
    """
    raise NotImplementedError


def _exp2_f32(t, hi, lo):
    rounded = _fma(t, hi, MAGIC_F32)
    f = _fma(t, lo, _fma(t, hi, MAGIC_F32 - rounded))
    p = _fma(A6, f, A5)
    p = _fma(p, f, A4)
    p = _fma(p, f, A3)
    p = _fma(p, f, A2)
    p = _fma(p, f, A1)
    p = _fma(p, f, 1.0)
    p = p * _of_bits(_bits(rounded) << 23)
    # Not the other way round: a NaN has to go through.
    return _choose(rounded < LOWEST_F32, 0.0, p)


def _exp2_f64(t, hi, lo):
    rounded = _fma(t, hi, MAGIC_F64)
    f = _fma(t, lo, _fma(t, hi, MAGIC_F64 - rounded))
    p = _fma(B11, f, B10)
    p = _fma(p, f, B9)
    p = _fma(p, f, B8)
    p = _fma(p, f, B7)
    p = _fma(p, f, B6)
    p = _fma(p, f, B5)
    p = _fma(p, f, B4)
    p = _fma(p, f, B3)
    p = _fma(p, f, B2)
    p = _fma(p, f, B1)
    p = _fma(p, f, 1.0)
    p = p * _of_bits(_bits(rounded) << 52)
    return _choose(rounded < LOWEST_F64, 0.0, p)


@overload(_exp2)
def _overload_exp2(t, hi, lo):
    return {types.float32: _exp2_f32, types.float64: _exp2_f64}.get(t.dtype)


# Below, a total is taken as 1 and the rest, which is summed without the 1.
NEAR_ONE = float.fromhex("0x1.6a09e667f3bcdp+0")  # sqrt(2)
HALF_ROOT = np.float64(NEAR_ONE / 2).view(np.int64)
ONE_BITS = np.float64(1).view(np.int64)
LN2_HI, LN2_LO = 6.93147180369123816490e-01, 1.90821492927058770002e-10
# log(1 + f) = 2s + s*R(s*s) for s = f/(2 + f), as FreeBSD's msun has it (Sun Microsystems, 1993).
L1, L2, L3, L4, L5, L6, L7 = (
    6.666666666666735130e-01,
    3.999999999940941908e-01,
    2.857142874366239149e-01,
    2.222219843214978396e-01,
    1.818357216161805012e-01,
    1.531383769920937332e-01,
    1.479819860511658591e-01,
)


@_inlined
def _log_sum(total, rest):
    """log(total) for vectors of float64, from total - 1 where that is small. The error is 1 ULP."""
    # total = 2**n * (1 + f), with 1 + f between the square roots of 1/2 and 2.
    bits = _bits(total) + (ONE_BITS - HALF_ROOT)
    n = _to_float((bits >> 52) - 1023)
    f = _of_bits((bits & (2**52 - 1)) + HALF_ROOT) - 1.0
    near = total < NEAR_ONE
    n, f = _choose(near, 0.0, n), _choose(near, rest, f)
    s = f / (f + 2.0)
    z = s * s
    p = _fma(L7, z, L6)
    p = _fma(p, z, L5)
    p = _fma(p, z, L4)
    p = _fma(p, z, L3)
    p = _fma(p, z, L2)
    p = _fma(p, z, L1)
    square = f * f * 0.5
    return n * LN2_HI - ((square - (s * (square + z * p) + n * LN2_LO)) - f)


# --------------------------------------------------------------------------------------------------
# The temperature


class Scale(NamedTuple):
    """A temperature, as `_exp2` takes it.

    ``(x*shrink - max*shrink)*(hi + lo)`` is ``(x - max)*log2(e)/temperature``, in the type of the
    arithmetic and, with the other pair, in float64.
    """

    kind: int
    temperature: float
    shrink: float
    hi: float
    lo: float
    wide_hi: float
    wide_lo: float


@_jit
def _read_scale(temperature, number):
    """How to take a temperature.

    Logits and temperatures from 1 up are multiplied by `shrink`, a power of two, which brings the
    temperature to [1/2, 1). That is exact, and the difference of two logits then overflows only
    where the result does.
    """
    _apart()
    if _size_of(number) == 4:
        # From 2**200 up, (x - max)/T is nothing beside 1 even in float64.
        largest, least_exponent, infinite = 3.4028234663852886e38, -148, 2.0**200
    else:
        largest, least_exponent, infinite = 1.7976931348623157e308, -1074, np.inf
    kind = FINITE
    if temperature >= infinite:
        kind = INFINITE
    elif not LOG2_E_HI / abs(temperature) <= largest:  # -0.0 is a zero too
        kind = ZERO
    # At a limit only the special rows are looked for, which any temperature finds.
    taken = temperature if kind == FINITE else 1.0
    shrink = 1.0
    if taken >= 1.0:
        shrink = math.ldexp(1.0, max(-math.frexp(taken)[1], least_exponent))
    taken *= shrink
    hi = LOG2_E_HI / taken
    lo = (_fma(-hi, taken, LOG2_E_HI) + LOG2_E_LO) / taken
    narrow_lo = number((hi - np.float64(number(hi))) + lo)
    return Scale(kind, temperature, number(shrink), number(hi), narrow_lo, hi, lo)


# --------------------------------------------------------------------------------------------------
# Where things are


class Row(NamedTuple):
    """Addresses of the first entry of a row and of its temperature."""

    x: int
    out: int
    where: int
    temperature: int


class RowState(NamedTuple):
    """Addresses of what is known of a row, which threads that work on it share."""

    weights: int  # float64 for each block: its maximum, then exp((that - the row's maximum)/T)
    sums: int  # float64 for each block: its sum against its own maximum
    plan: int  # how to write the output
    kept: int  # terms of the first blocks
    blocks_kept: int


@_inlined
def _field(batch, field):
    return _get(batch + 8 * field, np.int64)


@_inlined
def _axis(batch, axis, which):
    return _get(batch + 8 * (FIELDS + 5 * axis + which), np.int64)


@_inlined
def _bytes_of(memory_type):
    """Bytes of a number of a type in memory."""
    return 1 << max(memory_type, 1)


@_jit
def _offset(batch, first, last, index, which):
    """Bytes to the entry that has an index in C order over the axes from `first` to `last`."""
    _apart()
    offset = 0
    for axis in range(last, first, -1):
        length = _axis(batch, axis, LENGTH)
        rest = index // length
        offset += (index - rest * length) * _axis(batch, axis, which)
        index = rest
    return offset + index * _axis(batch, first, which)


@_inlined
def _entry(batch, index, which):
    """Bytes from the first entry of a row to another."""
    first, last = _field(batch, FIRST), _field(batch, LAST)
    if first == last:
        return index * _axis(batch, last, which)
    return _offset(batch, first, last, index, which)


@_inlined
def _row(batch, r):
    """The row of a number."""
    last = _field(batch, FIRST) - 1
    return Row(
        _field(batch, X_ADDRESS) + _offset(batch, NONE, last, r, X),
        _field(batch, OUT_ADDRESS) + _offset(batch, NONE, last, r, OUT),
        _field(batch, WHERE_ADDRESS) + _offset(batch, NONE, last, r, WHERE),
        _field(batch, TEMPERATURE_ADDRESS) + _offset(batch, NONE, last, r, TEMPERATURE),
    )


@_inlined
def _across(batch, which):
    """Bytes from a row to its neighbour."""
    return _axis(batch, _field(batch, FIRST) - 1, which)


@_inlined
def _neighbour(batch, row, i):
    """The i-th row after a row."""
    return Row(
        row.x + i * _across(batch, X),
        row.out + i * _across(batch, OUT),
        row.where + i * _across(batch, WHERE),
        row.temperature + i * _across(batch, TEMPERATURE),
    )


@_inlined
def _blocks(cols):
    return -(-cols // BLOCK)


@_inlined
def _aligned(address):
    return -(-np.int64(address) // CACHE_LINE) * CACHE_LINE


@_inlined
def _chunk_size(cols, itemsize):
    """Bytes of a chunk of a tile."""
    return min(-(-cols // GROUP) * GROUP, BLOCK) * LANES * itemsize


@_inlined
def _row_state(address, cols, itemsize):
    size = 8 * (_blocks(cols) + LANES)
    weights = _aligned(address)
    kept = weights + 2 * size + CACHE_LINE
    blocks_kept = min(_blocks(cols), KEPT // (BLOCK * itemsize))
    return RowState(weights, weights + size, weights + 2 * size, kept, blocks_kept)


@_inlined
def _column_state(work, column, cols, itemsize):
    """The state of a column of more than one block."""
    size = 8 * (_blocks(cols) + LANES)
    states = work + CHUNKS + _chunk_size(cols, itemsize) * (TILE // itemsize // LANES)
    weights = states + 2 * column * size
    return RowState(weights, weights + size, NONE, NONE, NONE)


def workspace_size(cols, itemsize, by_columns):
    """Bytes of the workspace of a call."""
    size = CHUNKS + CACHE_LINE
    if by_columns:
        width = TILE // itemsize
        size += width * min(-(-cols // GROUP) * GROUP, BLOCK) * itemsize
        if cols > BLOCK:
            size += width * 16 * (-(-cols // BLOCK) + LANES)
    return size


def row_state_size(cols, itemsize):
    """Bytes of the state of a row."""
    blocks = -(-cols // BLOCK)
    kept = min(KEPT, -(-cols // GROUP) * GROUP * itemsize)
    return 16 * (blocks + LANES) + kept + 2 * CACHE_LINE


# --------------------------------------------------------------------------------------------------
# Sources yield contiguous entries in the type of the arithmetic, with -inf where they are masked;
# sinks write such entries to the output.


@_jit
def _move(source, source_step, target, target_step, size, itemsize):
    """Copy numbers, whatever they are, from one step to another."""
    _apart()
    if source_step == itemsize and target_step == itemsize:
        _copy(target, source, size * itemsize)
    elif itemsize == 1:
        for i in range(size):
            _set(target + i * target_step, _get(source + i * source_step, np.uint8))
    elif itemsize == 2:
        for i in range(size):
            _set(target + i * target_step, _get(source + i * source_step, np.uint16))
    elif itemsize == 4:
        for i in range(size):
            _set(target + i * target_step, _get(source + i * source_step, np.uint32))
    else:
        for i in range(size):
            _set(target + i * target_step, _get(source + i * source_step, np.uint64))


@_jit
def _widen(source, memory_type, size, target, number):
    """Convert from a type in memory, in whole vectors."""
    _apart()
    own = _size_of(number)
    for i in range(0, size, LANES):
        if memory_type == F32:
            vector = _convert(_load(source + 4 * i, np.float32), number)
        elif memory_type == F64:
            vector = _convert(_load(source + 8 * i, np.float64), number)
        elif memory_type == F16:
            vector = _convert(_load_16(source + 2 * i, F16), number)
        else:
            vector = _convert(_load_16(source + 2 * i, BF16), number)
        _store(target + own * i, vector)


@_jit
def _narrow(source, memory_type, size, target, number):
    """Convert to a type in memory, in whole vectors."""
    _apart()
    for i in range(0, size, LANES):
        vector = _load(source + _size_of(number) * i, number)
        if memory_type == F32:
            _store(target + 4 * i, _convert(vector, np.float32))
        elif memory_type == F64:
            _store(target + 8 * i, _convert(vector, np.float64))
        elif memory_type == F16:
            _store_16(target + 2 * i, _to_odd(vector), F16)
        else:
            _store_16(target + 2 * i, _to_odd(vector), BF16)


@_jit
def _take(source, step, memory_type, where, where_step, size, target, work, number):
    """Make a contiguous run of entries at a step; its last vector is filled up with anything.

    Nothing is masked if `where` is 0.
    """
    _apart()
    itemsize = _bytes_of(memory_type)
    if step != itemsize:
        _move(source, step, work + RAW, itemsize, size, itemsize)
        source = work + RAW
    whole = size - size % LANES
    _widen(source, memory_type, whole, target, number)
    if whole < size:
        _copy(work + PART, source + whole * itemsize, (size - whole) * itemsize)
        _widen(work + PART, memory_type, ONE_VECTOR, target + whole * _size_of(number), number)
    if where == 0:
        return
    _move(where, where_step, work + RAW, ONE, size, ONE)
    for i in range(0, size, LANES):
        place = target + i * _size_of(number)
        _store(place, _mask(_load(place, number), work + RAW + i))


@_jit
def _gather(batch, row, start, size, target, work, number):
    """Make a contiguous run of the entries of a row from `start` on."""
    _apart()
    last = _field(batch, LAST)
    length, step = _axis(batch, last, LENGTH), _axis(batch, last, X)
    where_step = _axis(batch, last, WHERE)
    done = 0
    while done < size:
        index = start + done
        count = min(length - index % length, size - done)
        source, where = row.x + _entry(batch, index, X), NONE
        if _field(batch, MASKED):
            where = row.where + _entry(batch, index, WHERE)
        place = target + done * _size_of(number)
        x_type = _field(batch, X_TYPE)
        _take(source, step, x_type, where, where_step, count, place, work, number)
        done += count


@_inlined
def _source(batch, row, start, size, work, number):
    """The address of a contiguous run of the entries of a row from `start` on."""
    if _field(batch, NATIVE):
        return row.x + start * _size_of(number)
    _gather(batch, row, start, size, work + ENTRIES, work, number)
    return work + ENTRIES


@_jit
def _put(source, size, target, step, memory_type, work, number):
    """Write a contiguous run of results to places at a step."""
    _apart()
    itemsize = _bytes_of(memory_type)
    if step != itemsize:
        _narrow(source, memory_type, size, work + RAW, number)
        _move(work + RAW, itemsize, target, step, size, itemsize)
        return
    whole = size - size % LANES
    _narrow(source, memory_type, whole, target, number)
    if whole < size:
        _narrow(source + whole * _size_of(number), memory_type, ONE_VECTOR, work + PART, number)
        _copy(target + whole * itemsize, work + PART, (size - whole) * itemsize)


@_jit
def _scatter(batch, row, start, size, source, work, number):
    """Write a contiguous run of results to a row of the output, from `start` on."""
    _apart()
    last = _field(batch, LAST)
    length, step = _axis(batch, last, LENGTH), _axis(batch, last, OUT)
    done = 0
    while done < size:
        index = start + done
        count = min(length - index % length, size - done)
        target, place = row.out + _entry(batch, index, OUT), source + done * _size_of(number)
        _put(place, count, target, step, _field(batch, OUT_TYPE), work, number)
        done += count


# --------------------------------------------------------------------------------------------------
# Blocks of a row, or of LANES columns: all but the sums treats them alike


@_jit
def _maximum(source, size, number):
    """The maximum of each lane; any entry of it if a NaN is among them."""
    _apart()
    low = number(-np.inf)
    a = b = c = d = _splat(low)
    step = LANES * _size_of(number)
    while size >= 4 * LANES:
        a = _larger(_load(source, number), a)
        b = _larger(_load(source + step, number), b)
        c = _larger(_load(source + 2 * step, number), c)
        d = _larger(_load(source + 3 * step, number), d)
        source += 4 * step
        size -= 4 * LANES
    while size >= LANES:
        a = _larger(_load(source, number), a)
        source += step
        size -= LANES
    if size > 0:
        a = _larger(_load_part(source, size, low, number), a)
    return _larger(_larger(a, b), _larger(c, d))


@_inlined
def _larger(a, b):
    return _choose(a > b, a, b)


@_jit
def _exponentials(source, size, top, shrink, hi, lo, target, ahead, lines, number):
    """Terms of ``exp((source - top)/T)``, with zeros up to a whole vector.

    Meanwhile as many cache lines for each GROUP are fetched from the address `ahead` on.
    """
    _apart()
    # With nothing but -inf the difference has to be -inf and not NaN: any finite number does.
    minus_top = _choose(top == -np.inf, 0.0 - shrink, top * (0.0 - shrink))
    step = LANES * _size_of(number)
    while size > 0:
        group = min(size, GROUP)
        for _ in range(lines):
            _prefetch(ahead)
            ahead += CACHE_LINE
        for _ in range(group // LANES):
            t = _fma(_load(source, number), shrink, minus_top)
            _store(target, _exp2(t, hi, lo))
            source += step
            target += step
        size -= group
        group %= LANES
        if group > 0:
            t = _fma(_load_part(source, group, -np.inf, number), shrink, minus_top)
            _store(target, _exp2(t, hi, lo))


@_inlined
def _unbias(number):
    """What takes the factor of `_exp2` from terms."""
    return UNBIAS_F32 if _size_of(number) == 4 else UNBIAS_F64


@_inlined
def _add(a, b):
    """Add two sums that have what they lost to rounding beside them (Knuth's two-sum)."""
    (a, lost_a), (b, lost_b) = a, b
    total = a + b
    back = total - a
    return total, (lost_a + lost_b) + ((a - (total - back)) + (b - back))


# The sum of GROUP terms is a tree: those 64 apart are added, then those 32 apart, and so on. It is
# exact where terms are equal. Where one outweighs the rest each rounding is felt in full, so few are
# let go: one in float32, after which float64 loses nothing worth keeping, or two in float64, after
# which errors are kept.


@_inlined
def _sum_eight(address, step, number):
    """The sum of eight vectors that are `step` bytes apart, in float64."""
    a = _load(address, number) + _load(address + 4 * step, number)
    b = _load(address + step, number) + _load(address + 5 * step, number)
    c = _load(address + 2 * step, number) + _load(address + 6 * step, number)
    d = _load(address + 3 * step, number) + _load(address + 7 * step, number)
    ac = _convert(a, np.float64) + _convert(c, np.float64)
    bd = _convert(b, np.float64) + _convert(d, np.float64)
    return _add_up((ac, _splat(0.0)), (bd, _splat(0.0)), number)


@_inlined
def _add_up(a, b, number):
    """`_add` in float64; sums of float32 lose nothing."""
    if _size_of(number) == 4:
        return a[0] + b[0], a[1]
    return _add(a, b)


@_jit
def _sum(terms, size, number):
    """The sum of the terms of a row. Zeros are written behind them, up to a whole GROUP."""
    _apart()
    step = LANES * _size_of(number)
    for i in range(-(-size // LANES), -(-size // GROUP) * (GROUP // LANES)):
        _store(terms + i * step, _splat(number(0)))
    total = (0.0, 0.0)
    for _ in range(-(-size // GROUP)):
        value, lost = _sum_lanes(*_sum_eight(terms, step, number))
        total = _add(total, (value, 0.0 if _size_of(number) == 4 else lost))
        terms += GROUP * _size_of(number)
    return (total[0] + total[1]) * _unbias(number)


@_jit
def _sum_columns(terms, size, work, number):
    """As `_sum` for LANES columns of `size` terms, in the same order."""
    _apart()
    step, wide = LANES * _size_of(number), LANES * 8
    zero = _splat(0.0)
    total = (zero, zero)
    while size > 0:
        count = min(size, GROUP)
        lanes = min(count, LANES)
        if count > LANES:
            for i in range(count, GROUP):
                _store(terms + i * step, _splat(number(0)))
        for i in range(lanes):
            place = work + SUMS + 2 * i * wide
            if count > LANES:
                value, lost = _sum_eight(terms + i * step, LANES * step, number)
            else:
                value, lost = _convert(_load(terms + i * step, number), np.float64), zero
            _store(place, value)
            if _size_of(number) == 8:
                _store(place + wide, lost)
        apart = LANES // 2
        while apart > 0:
            for i in range(lanes - apart):
                a, b = work + SUMS + 2 * i * wide, work + SUMS + 2 * (i + apart) * wide
                value, lost = _add_up(_sum_at(a, number), _sum_at(b, number), number)
                _store(a, value)
                if _size_of(number) == 8:
                    _store(a + wide, lost)
            lanes = min(lanes, apart)
            apart //= 2
        total = _add(total, _sum_at(work + SUMS, number))
        terms += GROUP * step
        size -= count
    return (total[0] + total[1]) * _unbias(number)


@_inlined
def _sum_at(address, number):
    """Sums and what they lost, as `_sum_columns` keeps them."""
    value = _load(address, np.float64)
    if _size_of(number) == 4:
        return value, _splat(0.0)
    return value, _load(address + LANES * 8, np.float64)


@_jit
def _without_top(terms, size, number):
    """Set to 0 the terms of entries that are the maximum."""
    _apart()
    top = number(1.0 / _unbias(number))
    for i in range(0, size, LANES):
        place = terms + i * _size_of(number)
        vector = _load(place, number)
        _store(place, _choose(vector == top, 0.0, vector))


@_jit
def _scale(terms, size, weight, target, streamed, number):
    """``terms*weight`` for weights in float64, without the factor of terms."""
    _apart()
    unbias = _unbias(number)
    # 2**-bias times a weight of this or more is normal.
    small = weight < (2.0**-62 if _size_of(number) == 4 else 2.0**-510)
    factor = _choose(small, weight, weight * unbias)
    hi = _convert(factor, number)
    lo = _convert(factor - _convert(hi, np.float64), number)
    step = LANES * _size_of(number)
    end = target + size * _size_of(number)
    place, offset = target, terms - target
    if streamed and size >= STREAMABLE:
        odd = -place % CACHE_LINE
        _store_part(place, _scaled(place + offset, hi, lo, number), odd // _size_of(number))
        place += odd
        while place <= end - step:
            _stream(place, _scaled(place + offset, hi, lo, number))
            place += step
    while place <= end - step:
        _store(place, _scaled(place + offset, hi, lo, number))
        place += step
    if place < end:
        rest = (end - place) // _size_of(number)
        _store_part(place, _scaled(place + offset, hi, lo, number), rest)
    if _any(small):
        after = _convert(_choose(small, _splat(unbias), _splat(1.0)), number)
        for i in range(size // LANES):
            _store(target + i * step, _load(target + i * step, number) * after)
        place = target + size // LANES * step
        if size % LANES:
            value = _load_part(place, size % LANES, 0.0, number) * after
            _store_part(place, value, size % LANES)


@_inlined
def _scaled(terms, hi, lo, number):
    term = _load(terms, number)
    return _fma(term, hi, term * lo)


@_jit
def _log_probabilities(source, size, top, log_sum, shrink, temperature, target, streamed, number):
    """``(source - top)/temperature - log_sum``, in float64 from vectors of it."""
    _apart()
    scale = shrink, 1.0 / (temperature * shrink)
    minus = top * (0.0 - shrink), 0.0 - log_sum
    step = LANES * _size_of(number)
    end = target + size * _size_of(number)
    place, offset = target, source - target
    if streamed and size >= STREAMABLE:
        odd = -place % CACHE_LINE
        first = _log_scaled(_load(place + offset, number), scale, minus, number)
        _store_part(place, first, odd // _size_of(number))
        place += odd
        while place <= end - step:
            _stream(place, _log_scaled(_load(place + offset, number), scale, minus, number))
            place += step
    while place <= end - step:
        _store(place, _log_scaled(_load(place + offset, number), scale, minus, number))
        place += step
    if place < end:
        rest = (end - place) // _size_of(number)
        x = _load_part(place + offset, rest, 0.0, number)
        _store_part(place, _log_scaled(x, scale, minus, number), rest)


@_inlined
def _log_scaled(x, scale, minus, number):
    t = _fma(_convert(x, np.float64), scale[0], minus[0])
    return _convert(_fma(t, scale[1], minus[1]), number)


# --------------------------------------------------------------------------------------------------
# By rows

# What a plan holds.
KIND, TOP, TOTAL, SHARE, REST, THRESHOLD = map(np.int64, range(6))


@_inlined
def _block_terms(b, state, work, number):
    """Where the terms of a block go."""
    return state.kept + b * BLOCK * _size_of(number) if b < state.blocks_kept else work + TERMS


@_inlined
def _reduce_blocks(batch, row, scale, begin, end, state, work, number):
    """Set the maxima and sums of a range of blocks, and keep their terms if there is room."""
    shrink, hi, lo = _splat(scale.shrink), _splat(scale.hi), _splat(scale.lo)
    itemsize = _bytes_of(_field(batch, X_TYPE))
    dense = _axis(batch, _field(batch, LAST), X) == itemsize
    lines = GROUP * itemsize // CACHE_LINE if dense else 0
    for b in range(begin, end):
        start = b * BLOCK
        size = min(BLOCK, _field(batch, COLS) - start)
        source = _source(batch, row, start, size, work, number)
        terms = _block_terms(b, state, work, number)
        top = _largest(_maximum(source, size, number))
        ahead = row.x + (start + AHEAD) * itemsize
        _exponentials(source, size, _splat(top), shrink, hi, lo, terms, ahead, lines, number)
        _set(state.sums + 8 * b, _sum(terms, size, number))
        _set(state.weights + 8 * b, np.float64(top))


@_jit
def _merge_blocks(blocks, scale, state):
    """Set the weights of the blocks.

    Returns
    -------
    top : float
        The maximum; not NaN, even if there is one in the row.
    best : int
        The (first) block that holds it.
    total : float
        The sum: NaN where a NaN or +inf is in the row, 0 where nothing is above -inf, else >= 1.
    """
    top, best = -np.inf, 0
    for b in range(blocks):
        m = _get(state.weights + 8 * b, np.float64)
        if m > top:
            top, best = m, b
    if blocks == 1:
        _set(state.weights, 1.0)
        return top, 0, _get(state.sums, np.float64)
    shrink, hi, lo = np.float64(scale.shrink), scale.wide_hi, scale.wide_lo
    _exponentials(
        state.weights,
        blocks,
        _splat(top),
        _splat(shrink),
        _splat(hi),
        _splat(lo),
        state.weights,
        NONE,
        NONE,
        np.float64,
    )
    for b in range(blocks):
        place = state.weights + 8 * b
        _set(place, _get(place, np.float64) * UNBIAS_F64)
    return top, best, _weighted_sum(blocks, state)


@_jit
def _weighted_sum(blocks, state):
    total = (0.0, 0.0)
    for b in range(blocks):
        weight = _get(state.weights + 8 * b, np.float64)
        total = _add(total, (weight * _get(state.sums + 8 * b, np.float64), 0.0))
    return total[0] + total[1]


@_jit
def _row_log_sum(batch, row, scale, top, best, total, state, work, number):
    """log(total) to full relative precision, however near to 1 `total` is.

    A total below NEAR_ONE holds the maximum once, and no other term near 1. The block that has it
    is then summed again without.
    """
    _apart()
    rest = 0.0
    if total < NEAR_ONE:
        start = best * BLOCK
        size = min(BLOCK, _field(batch, COLS) - start)
        source = _source(batch, row, start, size, work, number)
        shrink, hi, lo = _splat(scale.shrink), _splat(scale.hi), _splat(scale.lo)
        terms, highest = work + TERMS, _splat(number(top))
        _exponentials(source, size, highest, shrink, hi, lo, terms, NONE, NONE, number)
        _without_top(terms, size, number)
        _set(state.sums + 8 * best, _sum(terms, size, number))
        rest = _weighted_sum(_blocks(_field(batch, COLS)), state)
    return _first(_log_sum(_splat(total), _splat(rest)))


@_jit
def _count(batch, row, threshold, work, number):
    """How many entries of a row reach a threshold."""
    _apart()
    count = 0
    for start in range(0, _field(batch, COLS), BLOCK):
        size = min(BLOCK, _field(batch, COLS) - start)
        source = _source(batch, row, start, size, work, number)
        for i in range(size):
            count += _get(source + i * _size_of(number), number) >= threshold
    return np.float64(count)


@_jit
def _write_special(batch, row, start, size, plan, work, number):
    """The output of a row at a limit of the temperature, or that has none."""
    _apart()
    share = number(_get(plan + 8 * SHARE, np.float64))
    rest = number(_get(plan + 8 * REST, np.float64))
    threshold = _get(plan + 8 * THRESHOLD, np.float64)
    shared = _get(plan + 8 * KIND, np.int64) == SHARED
    source = work + ENTRIES
    if shared:
        source = _source(batch, row, start, size, work, number)
    for i in range(size):
        place = i * _size_of(number)
        if shared:
            reached = _get(source + place, number) >= threshold
        elif _field(batch, MASKED):
            reached = _get(row.where + _entry(batch, start + i, WHERE), np.uint8) != 0
        else:
            reached = True
        _set(work + TERMS + place, share if reached else rest)
    _scatter(batch, row, start, size, work + TERMS, work, number)


@_inlined
def _plan_row(operation, batch, row, scale, state, work, number):
    """Merge the blocks of a row and decide how to write its output; that of `logsumexp` is."""
    top, best, total = _merge_blocks(_blocks(_field(batch, COLS)), scale, state)
    # What an entry has to reach to share the mass at a limit of the temperature.
    threshold = top if scale.kind == ZERO else -np.finfo(np.float64).max
    if operation == LOGSUMEXP:
        if total != total:
            entries = _count(batch, row, -np.inf, work, number)
            result = np.nan if entries < _field(batch, COLS) else np.inf
        elif total == 0.0:
            result = -np.inf
        else:
            result = top / scale.temperature
            if scale.kind == FINITE:
                result += _row_log_sum(batch, row, scale, top, best, total, state, work, number)
            elif scale.kind == INFINITE:
                result += math.log(_count(batch, row, threshold, work, number))
        _set(work + TERMS, number(result))
        _put(work + TERMS, ONE, row.out, NONE, _field(batch, OUT_TYPE), work, number)
        return
    kind, share = ORDINARY, 0.0
    if not total > 0.0:
        kind, share = UNDEFINED, np.nan
    elif scale.kind != FINITE:
        kind, share = SHARED, _count(batch, row, threshold, work, number)
        share = 1.0 / share if operation == SOFTMAX else -math.log(share)
    elif operation == LOG_SOFTMAX:
        total = _row_log_sum(batch, row, scale, top, best, total, state, work, number)
    _set(state.plan + 8 * KIND, kind)
    _set(state.plan + 8 * TOP, top)
    _set(state.plan + 8 * TOTAL, total)
    _set(state.plan + 8 * SHARE, share)
    _set(state.plan + 8 * REST, 0.0 if operation == SOFTMAX else -np.inf)
    _set(state.plan + 8 * THRESHOLD, threshold)


@_inlined
def _write_blocks(operation, batch, row, scale, begin, end, state, work, number):
    """Write a range of blocks of the output of a row."""
    top = _get(state.plan + 8 * TOP, np.float64)
    total = _get(state.plan + 8 * TOTAL, np.float64)
    streamed = _field(batch, STREAMED) * _field(batch, DIRECT)
    for b in range(begin, end):
        start = b * BLOCK
        size = min(BLOCK, _field(batch, COLS) - start)
        if _get(state.plan + 8 * KIND, np.int64) != ORDINARY:
            _write_special(batch, row, start, size, state.plan, work, number)
            continue
        values = work + TERMS
        if operation == SOFTMAX:
            values = _block_terms(b, state, work, number)
        target = row.out + start * _size_of(number) if _field(batch, DIRECT) else values
        if operation == SOFTMAX:
            if b >= state.blocks_kept:
                source = _source(batch, row, start, size, work, number)
                highest = _splat(_largest(_maximum(source, size, number)))
                shrink, hi, lo = _splat(scale.shrink), _splat(scale.hi), _splat(scale.lo)
                _exponentials(source, size, highest, shrink, hi, lo, values, NONE, NONE, number)
            weight = _get(state.weights + 8 * b, np.float64) / total
            _scale(values, size, _splat(weight), target, streamed, number)
        else:
            source = _source(batch, row, start, size, work, number)
            shrink, t = _splat(np.float64(scale.shrink)), _splat(scale.temperature)
            tops, logs = _splat(top), _splat(total)
            _log_probabilities(
                source, size, tops, logs, shrink, t, target, streamed, number
            )
        if not _field(batch, DIRECT):
            _scatter(batch, row, start, size, values, work, number)


# --------------------------------------------------------------------------------------------------
# By columns. A tile holds the entries of one block of up to TILE bytes of neighbouring rows, in
# chunks: vector j of a chunk holds entry j of LANES rows.


@_jit
def _read_scales(batch, row, width, work, number):
    """Read the temperatures of columns; returns whether all are finite."""
    _apart()
    step = _across(batch, TEMPERATURE)
    temperature = _get(row.temperature, np.float64)
    if step == 0 and temperature == _get(work + TEMPERATURES, np.float64):
        return True  # as in the tile before
    itemsize = _size_of(number)
    scale = _read_scale(temperature, number)
    for column in range(TILE // itemsize):
        if column < width:
            t = _get(row.temperature + column * step, np.float64)
            if t != temperature:
                temperature = t
                scale = _read_scale(t, number)
        if scale.kind != FINITE:
            _set(work + TEMPERATURES, np.nan)
            return False
        _set(work + SHRINKS + column * itemsize, scale.shrink)
        _set(work + HIS + column * itemsize, scale.hi)
        _set(work + LOS + column * itemsize, scale.lo)
        _set(work + TEMPERATURES + column * 8, temperature)
    return True


@_inlined
def _is_transposed(batch, which, memory_type):
    """Whether short rows lie in memory one after the other and not side by side.

    Those of less than 4 entries are not worth it.
    """
    across = _across(batch, which) == _bytes_of(memory_type)
    return 4 <= _field(batch, COLS) <= SHORT and not across


@_jit
def _load_tile(batch, row, width, start, size, work, number):
    """Fill the tile with entries from `start` on of `width` rows."""
    _apart()
    own, step = _size_of(number), LANES * _size_of(number)
    x_type, x_step, where_step = _field(batch, X_TYPE), _across(batch, X), _across(batch, WHERE)
    chunk_size = _chunk_size(_field(batch, COLS), own)
    target = work + CHUNKS
    if _is_transposed(batch, X, x_type):
        for lane in range(0, width, LANES):
            count = min(width - lane, LANES)
            source, source_step = row.x + lane * x_step, x_step
            if count < LANES or not _field(batch, NATIVE):
                _load_rows(batch, _neighbour(batch, row, lane), count, work, number)
                source, source_step = work + ROWS, size * own
            for j in range(0, size, 4):
                j = min(j, size - 4)  # what is done twice comes to the same
                _load_columns(source + j * own, source_step, target + j * step, number)
            target += chunk_size
        return
    masked = _field(batch, MASKED)
    native = x_type == (F32 if own == 4 else F64) and x_step == own and not masked
    ahead = 16 * _axis(batch, _field(batch, LAST), X)
    for j in range(size):
        source, where = row.x + _entry(batch, start + j, X), NONE
        if native:
            for line in range(0, width * own, CACHE_LINE):
                _prefetch(source + ahead + line)
        else:
            if masked:
                where = row.where + _entry(batch, start + j, WHERE)
            entries = work + ENTRIES
            _take(source, x_step, x_type, where, where_step, width, entries, work, number)
            source = entries
        target = work + CHUNKS + j * step
        for _ in range(width // LANES):
            _store(target, _load(source, number))
            source += step
            target += chunk_size
        if width % LANES:
            _store(target, _load_part(source, width % LANES, 0.0, number))


@_jit
def _load_rows(batch, row, count, work, number):
    """Copy short rows into the workspace, and zeros for those up to LANES."""
    _apart()
    cols, itemsize = _field(batch, COLS), _bytes_of(_field(batch, X_TYPE))
    dense = _axis(batch, _field(batch, LAST), X) == itemsize and not _field(batch, MASKED)
    rows, size = work + ROWS, cols * _size_of(number)
    if dense and _across(batch, X) == cols * itemsize:
        x_type = _field(batch, X_TYPE)
        _take(row.x, itemsize, x_type, NONE, NONE, cols * count, rows, work, number)
    else:
        for i in range(count):
            _gather(batch, _neighbour(batch, row, i), NONE, cols, rows + i * size, work, number)
    for place in range(rows + count * size, rows + LANES * size, _size_of(number)):
        _set(place, number(0))


@_jit
def _store_tile(batch, row, width, start, size, work, number):
    """Write the tile to `width` rows of the output."""
    _apart()
    own, step = _size_of(number), LANES * _size_of(number)
    out_type, out_step = _field(batch, OUT_TYPE), _across(batch, OUT)
    chunk_size = _chunk_size(_field(batch, COLS), own)
    if _is_transposed(batch, OUT, out_type):
        source = work + CHUNKS
        for lane in range(0, width, LANES):
            count = min(width - lane, LANES)
            through = count < LANES or not _field(batch, DIRECT)
            target, target_step = row.out + lane * out_step, out_step
            if through:
                target, target_step = work + ROWS, size * own
            for j in range(0, size, 4):
                j = min(j, size - 4)
                _store_columns(source + j * step, target + j * own, target_step, number)
            if through:
                _store_rows(batch, _neighbour(batch, row, lane), count, work, number)
            source += chunk_size
        return
    direct = out_type == (F32 if own == 4 else F64) and out_step == own
    ahead = 16 * _axis(batch, _field(batch, LAST), OUT)
    streamed = _field(batch, STREAMED) and width % LANES == 0 and ahead % (16 * CACHE_LINE) == 0
    streamed = streamed and direct and row.out % CACHE_LINE == 0
    for j in range(size):
        target = row.out + _entry(batch, start + j, OUT)
        source = work + CHUNKS + j * step
        if streamed:
            for _ in range(width // LANES):
                _stream(target, _load(source, number))
                source += chunk_size
                target += step
            continue
        if direct:
            for line in range(0, width * own, CACHE_LINE):
                _prefetch(target + ahead + line)
        for lane in range(0, width, LANES):
            count = min(width - lane, LANES)
            if direct and count == LANES:
                _store(target, _load(source, number))
            else:
                _put(source, count, target, out_step, out_type, work, number)
            source += chunk_size
            target += LANES * out_step


@_jit
def _store_rows(batch, row, count, work, number):
    """Write short rows in the workspace to the output."""
    _apart()
    cols, itemsize = _field(batch, COLS), _bytes_of(_field(batch, OUT_TYPE))
    dense = _axis(batch, _field(batch, LAST), OUT) == itemsize
    rows, size = work + ROWS, cols * _size_of(number)
    if dense and _across(batch, OUT) == cols * itemsize:
        _put(rows, cols * count, row.out, itemsize, _field(batch, OUT_TYPE), work, number)
        return
    for i in range(count):
        _scatter(batch, _neighbour(batch, row, i), NONE, cols, rows + i * size, work, number)


@_inlined
def _chunk(batch, i, work, number):
    """The address of a chunk."""
    return work + CHUNKS + i * _chunk_size(_field(batch, COLS), _size_of(number))


@_inlined
def _column_terms(batch, chunk, size, work, number):
    """Replace the entries of a chunk by terms; returns the maxima."""
    source, lanes = _chunk(batch, chunk, work, number), chunk * LANES * _size_of(number)
    top = _maximum(source, size * LANES, number)
    shrink, hi = _load(work + SHRINKS + lanes, number), _load(work + HIS + lanes, number)
    lo = _load(work + LOS + lanes, number)
    _exponentials(source, size * LANES, top, shrink, hi, lo, source, NONE, NONE, number)
    return top


@_inlined
def _reduce_columns(batch, row, width, work, number):
    """Set the maxima and totals of columns; returns whether there is nothing special about them."""
    cols = _field(batch, COLS)
    # For columns up to a whole vector that do not exist.
    _store(work + TOTALS + 8 * (width - width % LANES), _splat(1.0))
    for b in range(_blocks(cols)):
        start = b * BLOCK
        size = min(BLOCK, cols - start)
        _load_tile(batch, row, width, start, size, work, number)
        for chunk in range(-(-width // LANES)):
            top = _column_terms(batch, chunk, size, work, number)
            total = _sum_columns(_chunk(batch, chunk, work, number), size, work, number)
            _store(work + TOPS + 8 * chunk * LANES, _convert(top, np.float64))
            _store(work + TOTALS + 8 * chunk * LANES, total)
        if cols > BLOCK:
            for column in range(width):
                state = _column_state(work, column, cols, _size_of(number))
                _set(state.weights + 8 * b, _get(work + TOPS + 8 * column, np.float64))
                _set(state.sums + 8 * b, _get(work + TOTALS + 8 * column, np.float64))
    if cols > BLOCK:
        for column in range(width):
            scale = _read_scale(_get(work + TEMPERATURES + 8 * column, np.float64), number)
            state = _column_state(work, column, cols, _size_of(number))
            top, best, total = _merge_blocks(_blocks(cols), scale, state)
            _set(work + TOPS + 8 * column, top)
            _set(work + BESTS + 8 * column, best)
            _set(work + TOTALS + 8 * column, total)
    ordinary = True
    for column in range(width):
        ordinary &= _get(work + TOTALS + 8 * column, np.float64) > 0.0
    return ordinary


@_jit
def _log_columns(batch, row, width, work, number):
    """Set the logarithms of the totals of columns."""
    _apart()
    cols = _field(batch, COLS)
    for lane in range(0, width, LANES):
        total = _load(work + TOTALS + 8 * lane, np.float64)
        rest = _splat(0.0)
        if cols <= BLOCK and _any(total < NEAR_ONE):
            terms = _chunk(batch, lane // LANES, work, number)
            _without_top(terms, cols * LANES, number)
            rest = _sum_columns(terms, cols, work, number)
        _store(work + LOGS + 8 * lane, _log_sum(total, rest))
    if cols > BLOCK:
        for column in range(width):
            top = _get(work + TOPS + 8 * column, np.float64)
            best = _get(work + BESTS + 8 * column, np.int64)
            total = _get(work + TOTALS + 8 * column, np.float64)
            if total < NEAR_ONE:
                scale = _read_scale(_get(work + TEMPERATURES + 8 * column, np.float64), number)
                state = _column_state(work, column, cols, _size_of(number))
                neighbour = _neighbour(batch, row, column)
                log_sum = _row_log_sum(
                    batch, neighbour, scale, top, best, total, state, work, number
                )
                _set(work + LOGS + 8 * column, log_sum)


@_pasted
def _columns(operation, batch, row, width, work, number):
    """Treat `width` neighbouring rows by columns, if there is nothing special about them.

    Returns whether that was so; otherwise nothing is written.
    """
    if not _read_scales(batch, row, width, work, number):
        return False
    if not _reduce_columns(batch, row, width, work, number):
        return False
    cols = _field(batch, COLS)
    if operation != SOFTMAX:
        _log_columns(batch, row, width, work, number)
    if operation == LOGSUMEXP:
        for lane in range(0, width, LANES):
            top = _load(work + TOPS + 8 * lane, np.float64)
            t, log_sum = _load(work + TEMPERATURES + 8 * lane, np.float64), work + LOGS + 8 * lane
            result = _convert(top / t + _load(log_sum, np.float64), number)
            _store(work + ENTRIES + lane * _size_of(number), result)
        step, out_type = _across(batch, OUT), _field(batch, OUT_TYPE)
        _put(work + ENTRIES, width, row.out, step, out_type, work, number)
        return True
    for b in range(_blocks(cols)):
        start = b * BLOCK
        size = min(BLOCK, cols - start)
        if cols > BLOCK or operation == LOG_SOFTMAX:
            _load_tile(batch, row, width, start, size, work, number)
        for chunk in range(-(-width // LANES)):
            values, lane = _chunk(batch, chunk, work, number), chunk * LANES
            if operation == SOFTMAX:
                weight = _splat(1.0)
                if cols > BLOCK:
                    _column_terms(batch, chunk, size, work, number)
                    for column in range(lane, min(lane + LANES, width)):
                        state = _column_state(work, column, cols, _size_of(number))
                        block_weight = _get(state.weights + 8 * b, np.float64)
                        _set(work + SUMS + 8 * (column - lane), block_weight)
                    weight = _load(work + SUMS, np.float64)
                weight = weight / _load(work + TOTALS + 8 * lane, np.float64)
                _scale(values, size * LANES, weight, values, NONE, number)
            else:
                top = _load(work + TOPS + 8 * lane, np.float64)
                log_sum = _load(work + LOGS + 8 * lane, np.float64)
                shrink = _load(work + SHRINKS + lane * _size_of(number), number)
                shrink = _convert(shrink, np.float64)
                t = _load(work + TEMPERATURES + 8 * lane, np.float64)
                _log_probabilities(
                    values, size * LANES, top, log_sum, shrink, t, values, NONE, number
                )
        _store_tile(batch, row, width, start, size, work, number)
    return True


# --------------------------------------------------------------------------------------------------
# The operations


@_pasted
def _run(operation, workspace, row_state, table, begin, end):
    number, itemsize = workspace.dtype.type, workspace.itemsize
    batch, work = np.int64(table.ctypes.data), _aligned(workspace.ctypes.data)
    cols = _field(batch, COLS)
    state = _row_state(row_state.ctypes.data, cols, itemsize)
    by_columns = _field(batch, BY_COLUMNS) != 0
    length = _axis(batch, _field(batch, FIRST) - 1, LENGTH)
    blocks, widest = _blocks(cols), TILE // itemsize
    _set(work + TEMPERATURES, np.nan)
    scale = _read_scale(1.0, number)
    while begin < end:
        # A stretch of neighbours.
        row = _row(batch, begin)
        width = min(end - begin, length - begin % length)
        done = NONE
        while by_columns and width - done >= LANES // 2:
            count = min(width - done, widest)
            # Tiles shall begin with a cache line of the output.
            odd = -(row.out + done * itemsize) % CACHE_LINE // itemsize
            if _field(batch, STREAMED) and LANES // 2 <= odd < count:
                count = odd
            if not _columns(operation, batch, _neighbour(batch, row, done), count, work, number):
                break
            done += count
        count = min(width - done, widest) if by_columns else width
        for i in range(done, done + count):
            neighbour = _neighbour(batch, row, i)
            temperature = _get(neighbour.temperature, np.float64)
            if temperature != scale.temperature:
                scale = _read_scale(temperature, number)
            _reduce_blocks(batch, neighbour, scale, NONE, blocks, state, work, number)
            _plan_row(operation, batch, neighbour, scale, state, work, number)
            if operation != LOGSUMEXP:
                _write_blocks(operation, batch, neighbour, scale, NONE, blocks, state, work, number)
        begin += done + count
    if _field(batch, STREAMED):
        _fence()


@_cached_jit
def softmax(workspace, row_state, table, begin, end):
    """Softmax of the rows [begin, end) of a batch. Nothing is checked.

    Parameters
    ----------
    workspace : array of float32 or float64
        Of the type of the arithmetic, of `workspace_size` bytes.
    row_state : array of uint8
        Of `row_state_size` bytes.
    table : array of int64
        The batch; see the top of this file.
    begin, end : int
    """
    _run(SOFTMAX, workspace, row_state, table, begin, end)


@_cached_jit
def log_softmax(workspace, row_state, table, begin, end):
    """Logarithms of the softmax; parameters as `softmax`."""
    _run(LOG_SOFTMAX, workspace, row_state, table, begin, end)


@_cached_jit
def logsumexp(workspace, row_state, table, begin, end):
    """``log(sum(exp(x/T)))``; parameters as `softmax`. No temperature is exactly 0."""
    _run(LOGSUMEXP, workspace, row_state, table, begin, end)


# ---- one row, by several threads


@_pasted
def _one_row(workspace, row_state, table, r):
    number, itemsize = workspace.dtype.type, workspace.itemsize
    batch, work = np.int64(table.ctypes.data), _aligned(workspace.ctypes.data)
    state = _row_state(row_state.ctypes.data, _field(batch, COLS), itemsize)
    row = _row(batch, r)
    return batch, row, _read_scale(_get(row.temperature, np.float64), number), state, work


@_cached_jit
def reduce_row(workspace, row_state, table, r, begin, end):
    """Reduce the blocks [begin, end) of a row.

    Parameters as `softmax`; `row_state` is the same for all calls for the row, at the same time
    too, and `workspace` is not.
    """
    batch, row, scale, state, work = _one_row(workspace, row_state, table, r)
    _reduce_blocks(batch, row, scale, begin, end, state, work, workspace.dtype.type)


@_cached_jit
def plan_row(operation, workspace, row_state, table, r):
    """Merge the blocks of a row, after all of them are reduced."""
    batch, row, scale, state, work = _one_row(workspace, row_state, table, r)
    _plan_row(operation, batch, row, scale, state, work, workspace.dtype.type)


@_cached_jit
def write_row(operation, workspace, row_state, table, r, begin, end):
    """Write the blocks [begin, end) of a row, after it was planned."""
    batch, row, scale, state, work = _one_row(workspace, row_state, table, r)
    number = workspace.dtype.type
    _write_blocks(operation, batch, row, scale, begin, end, state, work, number)
    if _field(batch, STREAMED):
        _fence()

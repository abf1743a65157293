"""Vectors for jitted functions: what LLVM is to do, said in its own words.

All arithmetic of the kernels is done on `Vector`, LANES numbers of one type, because what LLVM
makes of a loop over numbers depends on too much: whether arrays may overlap, where indices start,
whether a sum or a maximum may be taken in another order. A vector is as many registers as the CPU
needs for it. Memory is addressed by integers; nothing is checked.

No floating-point flag is relaxed, and every order of operations is written down.

`fastsoftmax._numba.kernels` holds a checksum of this file.
"""

import inspect
import math
import operator

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils, config
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, models, overload, register_model

LANES = 16  # two registers of AVX2, or one of AVX-512, hold as many float32
CACHE_LINE = 64  # bytes

F16, BF16, F32, F64 = range(4)  # types in memory

# Options of every jitted function. Those that Python never calls need no wrapper for it.
OPTIONS = {"nogil": True, "error_model": "numpy"}
inlined = njit(forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True, **OPTIONS)


# --------------------------------------------------------------------------------------------------
# What instructions are made of


class Vector(types.Type):
    """Numbers of one type, LANES of them or, where several vectors are worked on in step, more.

    Arithmetic takes numbers beside vectors, as NumPy does.
    """

    def __init__(self, dtype, lanes=LANES):
        self.dtype, self.lanes = dtype, lanes
        super().__init__(name=f"Vector({dtype}, {lanes})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        number = manager.lookup(vector.dtype).get_value_type()
        super().__init__(manager, vector, ir.VectorType(number, vector.lanes))


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
                number = self.context.cast(self.builder, arg, kind, vector.dtype)
                arg = self.broadcast(number, vector.lanes)
            result.append(arg)
        return result

    def broadcast(self, number, lanes=LANES):
        vector = ir.Constant(ir.VectorType(number.type, lanes), ir.Undefined)
        vector = self.insert_element(vector, number, ir.Constant(INT32, 0))
        return self.shuffle(vector, vector, [0] * lanes)

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


def _cpu_has(feature):
    """Whether the CPU that is compiled for has a feature, by LLVM's name for it."""
    features = config.CPU_FEATURES
    if features is None:
        features = llvmlite.binding.get_host_cpu_features().flatten()
    return f"+{feature}" in features.split(",")


# A chain of dependent operations is long, and a CPU looks ahead over few of them: so exponentials
# are computed for some registers in step, for as many as leave room for the rest.
_REGISTERS_IN_STEP = 4
_REGISTER = 512 if _cpu_has("avx512f") else 256 if _cpu_has("avx") else 128  # bits


def _in_step(number):
    """How many numbers of a type are worked on in step."""
    return max(_REGISTERS_IN_STEP * _REGISTER // number.bitwidth, LANES)


def _operator(function, floats, integers, comparison=None):
    """Define an operator on vectors by the names of what builds it."""

    @infer_global(function)
    class Template(AbstractTemplate):
        def generic(self, args, kws):
            vector = _vector_of(args)
            if vector is None or not all(a == vector or isinstance(a, types.Number) for a in args):
                return None
            result = Vector(types.boolean, vector.lanes) if comparison else vector
            return signature(result, *args)

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
    (operator.or_, None, "or_"),
    (operator.gt, "fcmp_ordered", "icmp_signed", ">"),
    (operator.ge, "fcmp_ordered", "icmp_signed", ">="),
    (operator.lt, "fcmp_ordered", "icmp_signed", "<"),
    (operator.eq, "fcmp_ordered", "icmp_signed", "=="),
    (operator.ne, "fcmp_unordered", "icmp_signed", "!="),
):
    _operator(*_names)


# --------------------------------------------------------------------------------------------------
# Instructions


@_instruction(_nothing)
def kept_apart(code):
    """Keep LLVM from copying the function this stands in to wherever it is called from."""
    code.function.attributes.add("noinline")


@_instruction(lambda number: types.int64)
def size_of(code, _):
    """Bytes of a number."""
    number = code.kinds[0].instance_type
    return ir.Constant(INT64, code.align(code.context.get_value_type(number)))


_SAME_SIZE = {
    types.float32: types.int32,
    types.float64: types.int64,
    types.int32: types.float32,
    types.int64: types.float64,
}


@_instruction(lambda condition, a, b: _vector_of((a, b)))
def choose(code, condition, a, b):
    """`a` where the condition holds, `b` elsewhere."""
    return code.select(condition, *code.vectors(code.kinds[1:], (a, b)))


@_instruction(lambda a, b, c: _vector_of((a, b, c)) or a)
def fma(code, a, b, c):
    """``a*b + c`` in one rounding where the CPU can, and in two where it would take a call."""
    args = [a, b, c]
    if _vector_of(code.kinds):
        args = code.vectors(code.kinds, args)
    return code.call_llvm(f"fmuladd.{_mangled(code.result)}", code.result, args)


@_instruction(Vector)
def splat(code, number):
    return code.broadcast(number)


@_instruction(lambda vector: Vector(vector.dtype, _in_step(vector.dtype)))
def repeated(code, vector):
    """The same vector for each of those that are in step."""
    times = code.result.count // LANES
    return code.shuffle(vector, vector, list(range(LANES)) * times)


@_instruction(lambda vector: Vector(vector.dtype))
def first_lanes(code, vector):
    """The first of the vectors that are in step."""
    return code.shuffle(vector, vector, list(range(LANES)))


@_instruction(lambda vector, number: Vector(number.instance_type))
def convert(code, vector, _):
    """Floats of one type as floats of another, rounded to nearest."""
    if vector.type == code.result:
        return vector
    return (code.fpext if code.result == F64X else code.fptrunc)(vector, code.result)


@_instruction(lambda vector: Vector(_SAME_SIZE[vector.dtype], vector.lanes))
def bits_of(code, vector):
    """Floats as the integers that their bits are."""
    return code.bitcast(vector, code.result)


@_instruction(lambda vector: Vector(_SAME_SIZE[vector.dtype], vector.lanes))
def floats_of(code, vector):
    """Floats of their bits."""
    return code.bitcast(vector, code.result)


@_instruction(lambda vector: Vector(types.float64))
def to_float(code, vector):
    """Integers as float64."""
    return code.sitofp(vector, F64X)


@_instruction(lambda condition: types.boolean)
def any_of(code, condition):
    bits = ir.IntType(LANES)
    return code.icmp_unsigned("!=", code.bitcast(condition, bits), ir.Constant(bits, 0))


@_instruction(lambda condition: types.int64)
def lanes_of(code, condition):
    """The lanes in which a condition holds, as bits."""
    return code.zext(code.bitcast(condition, ir.IntType(LANES)), INT64)


@_instruction(lambda number: Vector(_SAME_SIZE[number.instance_type]))
def no_counts(code, _):
    """A count of 0 for each lane, as `counted` takes it for vectors of a type."""
    return ir.Constant(code.result, [0] * LANES)


@_instruction(lambda counts, condition: counts)
def counted(code, counts, condition):
    """Counts with one more in the lanes in which a condition holds."""
    return code.sub(counts, code.sext(condition, code.result))


@_instruction(lambda counts: types.int64)
def sum_counts(code, counts):
    name = f"vector.reduce.add.v{LANES}i{counts.type.element.width}"
    return code.sext(code.call_llvm(name, counts.type.element, [counts]), INT64)


@_instruction(lambda bits: types.int64)
def lowest_bit(code, bits):
    """The place of the lowest bit that is set."""
    return code.cttz(bits, ir.Constant(ir.IntType(1), 1))


@_instruction(lambda vector: vector.dtype)
def largest(code, vector):
    """The largest number of a vector; any of them if a NaN is among them."""
    while vector.type.count > 1:
        a, b = code.halves(vector)
        vector = code.select(code.fcmp_ordered(">", a, b), a, b)
    return code.first(vector)


@_instruction(lambda vector: vector.dtype)
def first_of(code, vector):
    return code.first(vector)


@_instruction(lambda total, lost: types.UniTuple(types.float64, 2))
def sum_lanes(code, total, lost):
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


# --------------------------------------------------------------------------------------------------
# Memory


@_instruction(lambda address, number: number.instance_type)
def peek(code, address, _):
    """The number at an address."""
    return code.load(code.pointer(address, code.result), align=code.align(code.result))


@_instruction(_nothing)
def poke(code, address, number):
    code.store(number, code.pointer(address, number.type), align=code.align(number.type))


@_instruction(lambda address, number: _vector_like(number))
def load(code, address, _):
    """The vector at an address."""
    align = code.align(code.result.element)
    return code.load(code.pointer(address, code.result), align=align)


@_instruction(lambda number: types.int64)
def in_step(code, _):
    """How many numbers of a type are worked on in step."""
    return ir.Constant(INT64, _in_step(code.kinds[0].instance_type))


@_instruction(lambda address, number: Vector(number.instance_type, _in_step(number.instance_type)))
def load_in_step(code, address, _):
    """The vectors at an address that are worked on in step."""
    return code.load(code.pointer(address, code.result), align=code.align(code.result.element))


@_instruction(_nothing)
def store(code, address, vector):
    align = code.align(vector.type.element)
    place = code.pointer(address, ir.VectorType(vector.type.element, LANES))
    # One by one where they are in step: LLVM makes much of a load of a part of what was stored.
    for i in range(vector.type.count // LANES):
        part = code.shuffle(vector, vector, list(range(i * LANES, (i + 1) * LANES)))
        code.store(part, code.gep(place, [ir.Constant(INT32, i)]), align=align)


@_instruction(_nothing)
def stream(code, address, vector):
    """Store a vector past the caches. The address is a multiple of CACHE_LINE."""
    store = code.store(vector, code.pointer(address, vector.type), align=CACHE_LINE)
    store.set_metadata("nontemporal", code.module.add_metadata([ir.Constant(INT32, 1)]))


@_instruction(_nothing)
def fence(code):
    """After this other threads see what was stored past the caches."""
    code.fence("seq_cst")


@_instruction(lambda address, size, rest, number: _vector_like(number))
def load_part(code, address, size, rest, _):
    """The first `size` numbers at an address, and `rest` in the other lanes."""
    number = code.kinds[3].instance_type
    rest = code.broadcast(code.context.cast(code.builder, rest, code.kinds[2], number))
    align = ir.Constant(INT32, code.align(code.result.element))
    args = [code.pointer(address, code.result), align, code.lanes_below(size), rest]
    return code.call_llvm(f"masked.load.{_mangled(code.result)}.p0", code.result, args)


@_instruction(_nothing)
def store_part(code, address, vector, size):
    """Store the first `size` numbers of a vector."""
    align = ir.Constant(INT32, code.align(vector.type.element))
    args = [vector, code.pointer(address, vector.type), align, code.lanes_below(size)]
    code.call_llvm(f"masked.store.{_mangled(vector.type)}.p0", ir.VoidType(), args)


@_instruction(_nothing)
def copy_bytes(code, target, source, size):
    """Copy `size` bytes between places that do not overlap."""
    target, source = (code.pointer(address, ir.IntType(8)) for address in (target, source))
    cgutils.raw_memcpy(code.builder, target, source, size, 1)


@_instruction(_nothing)
def prefetch(code, address):
    """Ask for a cache line, which need not exist."""
    read, keep, data = (ir.Constant(INT32, i) for i in (0, 3, 1))
    args = [code.pointer(address, ir.IntType(8)), read, keep, data]
    code.call_llvm("prefetch.p0", ir.VoidType(), args)


@_instruction(lambda vector, address: vector)
def with_masked(code, vector, address):
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
def load_columns(code, source, step, target, _):
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
def store_columns(code, source, target, step, _):
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
# The 16-bit types, which Numba does not have


# Without a CPU that converts float16 LLVM would make calls.
HALF = ir.VectorType(ir.HalfType(), LANES) if _cpu_has("f16c") else None


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
def load_16(code, address, _):
    """The vector of float16 or bfloat16 at an address, in float32."""
    bits = code.load(code.pointer(address, I16X), align=2)
    bfloat16 = code.kinds[1].literal_value == BF16
    if HALF and not bfloat16:
        return code.fpext(code.bitcast(bits, HALF), F32X)
    bits = _Integers(code, code.zext(bits, I32X))
    if bfloat16:
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
def store_16(code, address, vector, _):
    """Store float32 as float16 or bfloat16, rounded to nearest, ties to even."""
    bfloat16 = code.kinds[2].literal_value == BF16
    if HALF and not bfloat16:
        code.store(code.fptrunc(vector, HALF), code.pointer(address, HALF), align=2)
        return
    bits = _Integers(code, code.bitcast(vector, I32X))
    magnitude, sign = bits & 0x7FFFFFFF, (bits >> 16) & 0x8000
    infinity = 0x7F800000
    if bfloat16:
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


def to_odd(vector):
    """Floats as float32, rounded to odd: another rounding to fewer bits is then the only one."""
    raise NotImplementedError


def _to_odd_f32(vector):
    return vector


def _to_odd_f64(vector):
    near = convert(vector, np.float32)
    lost = vector - convert(near, np.float64)
    bits = bits_of(near)
    # Bits go up where the nearest is too near to 0, whatever the sign.
    up = lost * convert(near, np.float64)
    other = choose(up > 0.0, bits + 1, choose(up < 0.0, bits - 1, bits))
    return floats_of(choose((bits & 1) == 0, other, bits))


@overload(to_odd)
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


def exp2(t, hi, lo):
    """``2**(t*(hi + lo))`` for t <= 0, times 2**64 (float32) or 2**512 (float64).

    Exactly that factor at t = 0; 0 at -inf; NaN where t is NaN or +inf. The product ``t*hi`` is
    kept whole by the fma: the error, 1 ULP at most, does not grow with the exponent.
    """
    raise NotImplementedError


def _exp2_f32(t, hi, lo):
    rounded = fma(t, hi, MAGIC_F32)
    f = fma(t, lo, fma(t, hi, MAGIC_F32 - rounded))
    p = fma(A6, f, A5)
    p = fma(p, f, A4)
    p = fma(p, f, A3)
    p = fma(p, f, A2)
    p = fma(p, f, A1)
    p = fma(p, f, 1.0)
    p = p * floats_of(bits_of(rounded) << 23)
    # Not the other way round: a NaN has to go through.
    return choose(rounded < LOWEST_F32, 0.0, p)


def _exp2_f64(t, hi, lo):
    rounded = fma(t, hi, MAGIC_F64)
    f = fma(t, lo, fma(t, hi, MAGIC_F64 - rounded))
    p = fma(B11, f, B10)
    p = fma(p, f, B9)
    p = fma(p, f, B8)
    p = fma(p, f, B7)
    p = fma(p, f, B6)
    p = fma(p, f, B5)
    p = fma(p, f, B4)
    p = fma(p, f, B3)
    p = fma(p, f, B2)
    p = fma(p, f, B1)
    p = fma(p, f, 1.0)
    p = p * floats_of(bits_of(rounded) << 52)
    return choose(rounded < LOWEST_F64, 0.0, p)


@overload(exp2)
def _overload_exp2(t, hi, lo):
    return {types.float32: _exp2_f32, types.float64: _exp2_f64}.get(t.dtype)


# As exp2 for float64, of degree 9; the relative error of 2**f is 3.7e-14.
W1, W2, W3, W4, W5, W6, W7, W8, W9 = _constants(
    "0x1.62e42fefa39efp-1 0x1.ebfbdff823cedp-3 0x1.c6b08d7047e52p-5 0x1.3b2ab7181b755p-7 "
    "0x1.5d87fe86fe88ep-10 0x1.4308ac85aa947p-13 0x1.ffcb9515a8016p-17 0x1.63d136366db24p-20 "
    "0x1.b63880a30e9ffp-24",
    float,
)


@inlined
def exp2_weight(t, hi):
    """``2**(t*hi)`` as `exp2` of float64 has it, less exact: for sums that a draw is compared with.

    The error is 3.7e-14 and 2**-53 for each unit of t*hi.
    """
    rounded = fma(t, hi, MAGIC_F64)
    f = fma(t, hi, MAGIC_F64 - rounded)
    p = fma(W9, f, W8)
    p = fma(p, f, W7)
    p = fma(p, f, W6)
    p = fma(p, f, W5)
    p = fma(p, f, W4)
    p = fma(p, f, W3)
    p = fma(p, f, W2)
    p = fma(p, f, W1)
    p = fma(p, f, 1.0)
    p = p * floats_of(bits_of(rounded) << 52)
    return choose(rounded < LOWEST_F64, 0.0, p)


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


@inlined
def log_of_sum(total, rest):
    """log(total) for vectors of float64, from total - 1 where that is small. The error is 1 ULP."""
    # total = 2**n * (1 + f), with 1 + f between the square roots of 1/2 and 2.
    bits = bits_of(total) + (ONE_BITS - HALF_ROOT)
    n = to_float((bits >> 52) - 1023)
    f = floats_of((bits & (2**52 - 1)) + HALF_ROOT) - 1.0
    near = total < NEAR_ONE
    n, f = choose(near, 0.0, n), choose(near, rest, f)
    s = f / (f + 2.0)
    z = s * s
    p = fma(L7, z, L6)
    p = fma(p, z, L5)
    p = fma(p, z, L4)
    p = fma(p, z, L3)
    p = fma(p, z, L2)
    p = fma(p, z, L1)
    square = f * f * 0.5
    return n * LN2_HI - ((square - (s * (square + z * p) + n * LN2_LO)) - f)

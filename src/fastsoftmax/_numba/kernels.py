"""Every jitted function of the package.

They share one file because Numba's cache notices a change in the file of the function it holds, and
in no other.

A row is cut into blocks that fit the first cache. Each block is summed against its own maximum and
blocks are merged in their order (Milakov and Gimelshein 2018, "Online normalizer calculation for
softmax", arXiv:1805.02867, per block instead of per entry). No floating-point flag is relaxed:
loops vectorise because each output depends on its own inputs alone, and the order of sums is
written down. So the bits of a result depend on the row alone, whatever the width of the registers.

LLVM vectorises a loop over ``range(size)`` that indexes contiguous arrays from 0. It does not where
indices start elsewhere (they may wrap around), nor where the input and the output of a loop turn
out to be the same memory under two names.
"""

import math

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from numba.np.arrayobj import populate_array

BLOCK = 2048  # entries that share a maximum: 8 KB of float32
LANES = 16  # entries added at once
GROUP = 8 * LANES  # entries added as a tree; the last block of a row is filled up to a multiple
AHEAD = 2 * BLOCK  # entries: far enough for DRAM, near enough for the first or second cache
CACHE_LINE = 64  # bytes

# How a row's temperature is to be taken.
FINITE, ZERO, INFINITE = 0, 1, 2

LOG2_E_HI = float.fromhex("0x1.71547652b82fep+0")
LOG2_E_LO = float.fromhex("0x1.777d0ffda0d24p-56")

_OPTIONS = {"nogil": True, "error_model": "numpy"}
# A call that is not inlined counts references to its arguments: half of the time of a short row.
_jit = njit(forceinline=True, **_OPTIONS)


def _cached_jit(function):
    """Jit a kernel, cached on disk where a directory for that can be written."""
    try:
        return njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # "cannot cache function: no locator available"
        return njit(**_OPTIONS)(function)


# --------------------------------------------------------------------------------------------------
# Intrinsics


@intrinsic
def _fma(typingctx, a, b, c):
    """``a*b + c`` in one rounding where the CPU can, and in two where it would take a call."""

    def codegen(context, builder, signature, args):
        kind = args[0].type
        function_type = ir.FunctionType(kind, [kind] * 3)
        function = builder.module.declare_intrinsic("llvm.fmuladd", [kind], function_type)
        return builder.call(function, args)

    return a(a, a, a), codegen


@intrinsic
def _view(typingctx, array, offset, size):
    """The `size` entries that lie `offset` bytes behind the first of a contiguous array.

    Cheaper than a slice, and contiguous where that of a two-dimensional array would not be known to
    be. The view borrows its memory: it must not outlive the array, which here either belongs to the
    caller of a kernel or lives as long as the kernel runs.
    """

    def codegen(context, builder, signature, args):
        make_array = context.make_array(signature.return_type)
        source = make_array(context, builder, args[0])
        view = make_array(context, builder)
        populate_array(
            view,
            data=cgutils.pointer_add(builder, source.data, args[1]),
            shape=[args[2]],
            strides=[source.itemsize],
            itemsize=source.itemsize,
            meminfo=None,
        )
        return view._getvalue()

    return array(array, types.intp, types.intp), codegen


@intrinsic
def _prefetch_group(typingctx, array, index):
    """Ask for the cache lines of the GROUP entries from `index` on, which need not exist."""

    def codegen(context, builder, signature, args):
        source = context.make_array(signature.args[0])(context, builder, args[0])
        address = builder.bitcast(builder.gep(source.data, [args[1]]), cgutils.voidptr_t)
        integer = ir.IntType(32)
        function = builder.module.declare_intrinsic(
            "llvm.prefetch",
            [address.type],
            ir.FunctionType(ir.VoidType(), [address.type, integer, integer, integer]),
        )
        read, keep, data = (ir.Constant(integer, i) for i in (0, 3, 1))
        itemsize = context.get_abi_sizeof(source.data.type.pointee)
        for offset in range(0, GROUP * itemsize, CACHE_LINE):
            line = builder.gep(address, [ir.Constant(ir.IntType(64), offset)])
            builder.call(function, [line, read, keep, data])
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


@intrinsic
def _sum_group(typingctx, array):
    """The sum of GROUP entries in float64, and what its rounding lost.

    A loop would be added from left to right, or in an order of LLVM's choice. This is a tree, which
    is exact where entries are equal. Where one entry outweighs the rest each rounding is felt in
    full, so few are let go: one in float32, after which float64 loses nothing worth keeping, or two
    in float64, after which errors are kept beside their sums (Knuth's two-sum).
    """

    def codegen(context, builder, signature, args):
        source = context.make_array(signature.args[0])(context, builder, args[0])
        number = source.data.type.pointee
        integer = ir.IntType(32)
        single = number == ir.FloatType()

        def add(a, b):
            (a, lost_before_a), (b, lost_before_b) = a, b
            total = builder.fadd(a, b)
            back = builder.fsub(total, a)
            lost_a = builder.fsub(a, builder.fsub(total, back))
            lost = builder.fadd(lost_a, builder.fsub(b, back))
            lost_before = builder.fadd(lost_before_a, lost_before_b)
            return total, builder.fadd(lost_before, lost)

        def in_pairs(function, parts):
            return [function(a, b) for a, b in zip(parts[::2], parts[1::2], strict=True)]

        def take(vectors, first, width):
            mask = ir.Constant(ir.VectorType(integer, width), list(range(first, first + width)))
            return [builder.shuffle_vector(vector, vector, mask) for vector in vectors]

        parts = []
        for i in range(0, GROUP, LANES):
            address = builder.gep(source.data, [ir.Constant(integer, i)])
            address = builder.bitcast(address, ir.VectorType(number, LANES).as_pointer())
            parts.append(builder.load(address, align=context.get_abi_sizeof(number)))
        parts = in_pairs(builder.fadd, parts)
        wide = ir.VectorType(ir.DoubleType(), LANES)
        if single:
            parts = [builder.fpext(part, wide) for part in parts]
        else:
            parts = in_pairs(builder.fadd, parts)
        parts = [(part, ir.Constant(wide, None)) for part in parts]
        while len(parts) > 1:
            parts = in_pairs(add, parts)
        (total,) = parts
        width = LANES
        while width > 1:
            width //= 2
            total = add(take(total, 0, width), take(total, width, width))
        total, lost = (builder.extract_element(v, ir.Constant(integer, 0)) for v in total)
        if single:
            lost = ir.Constant(ir.DoubleType(), 0.0)
        return context.make_tuple(builder, signature.return_type, (total, lost))

    return types.UniTuple(types.float64, 2)(array), codegen


# --------------------------------------------------------------------------------------------------
# The exponential


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
ZERO_F32, ONE_F32 = _F32(0), _F32(1)
MANTISSA_F32, MANTISSA_F64 = np.int32(23), np.int64(52)


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
    p = _fma(p, f, ONE_F32)
    p *= np.int32(np.float32(rounded).view(np.int32) << MANTISSA_F32).view(np.float32)
    # Not the other way round: a NaN has to go through.
    return ZERO_F32 if rounded < LOWEST_F32 else p


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
    p *= np.int64(np.float64(rounded).view(np.int64) << MANTISSA_F64).view(np.float64)
    return 0.0 if rounded < LOWEST_F64 else p


@overload(_exp2)
def _overload_exp2(t, hi, lo):
    return {types.float32: _exp2_f32, types.float64: _exp2_f64}.get(t)


# --------------------------------------------------------------------------------------------------
# The temperature


@_jit
def _split(shrink, temperature, number):
    """What ``_exp2`` needs to know of a temperature, in the type `number`.

    Returns
    -------
    shrink, hi, lo
        ``(x*shrink - max*shrink)*(hi + lo)`` is ``(x - max)*log2(e)/temperature``.
    """
    temperature *= shrink
    hi = LOG2_E_HI / temperature
    lo = (_fma(-hi, temperature, LOG2_E_HI) + LOG2_E_LO) / temperature
    return number(shrink), number(hi), number((hi - number(hi)) + lo)


@_jit
def _read_temperature(temperature, x):
    """How to take a temperature: ``(kind, shrink, scale in the type of x, scale in float64)``.

    Logits and temperatures from 1 up are multiplied by `shrink`, a power of two, which brings the
    temperature to [1/2, 1). That is exact, and the difference of two logits then overflows only
    where the result does.
    """
    if x.itemsize == 4:
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
    return kind, shrink, _split(shrink, taken, x.dtype.type), _split(shrink, taken, np.float64)


# --------------------------------------------------------------------------------------------------
# A block


@_jit
def _block(row, start):
    """The block of a row at `start`."""
    return _view(row, start * row.itemsize, min(BLOCK, row.size - start))


@_jit
def _whole_block(row, start, copied, scratch):
    """The block of a row at `start`, its length a multiple of GROUP.

    The last block is copied to `scratch` and filled up with -inf, unless it is whole; so is every
    block that is `copied`, which an output in the memory of its input asks for.
    """
    block = _block(row, start)
    if block.size == BLOCK and not copied:
        return block
    padded = _view(scratch, 0, -(-block.size // GROUP) * GROUP)
    _fill(_view(padded, (padded.size - GROUP) * row.itemsize, GROUP), -np.inf)
    _copy(block, padded)
    return padded


@_jit
def _fill(a, value):
    for i in range(a.size):
        a[i] = value


@_jit
def _copy(source, target):
    for i in range(source.size):
        target[i] = source[i]


def _maximum(block):
    """The maximum of a block; NaN if one with its sign bit clear is in it, other NaN are lost."""
    raise NotImplementedError


# Floats are in the order of the integers that their bits are, once the bits of the negative ones
# are flipped. A maximum of floats does not vectorise: its result depends on the order where a NaN
# is among them.
SIGN_F32, MAGNITUDE_F32, LEAST_F32 = np.int32(31), np.int32(2**31 - 1), np.int32(-(2**31))
SIGN_F64, MAGNITUDE_F64, LEAST_F64 = np.int64(63), np.int64(2**63 - 1), np.int64(-(2**63))


def _maximum_f32(block):
    bits = block.view(np.int32)
    top = LEAST_F32
    for i in range(bits.size):
        # Numba widens integers to 64 bits in every operation; LLVM narrows them again.
        top = max(top, np.int32(bits[i] ^ ((bits[i] >> SIGN_F32) & MAGNITUDE_F32)))
    return np.int32(top ^ ((top >> SIGN_F32) & MAGNITUDE_F32)).view(np.float32)


def _maximum_f64(block):
    bits = block.view(np.int64)
    top = LEAST_F64
    for i in range(bits.size):
        top = max(top, bits[i] ^ ((bits[i] >> SIGN_F64) & MAGNITUDE_F64))
    return np.int64(top ^ ((top >> SIGN_F64) & MAGNITUDE_F64)).view(np.float64)


@overload(_maximum)
def _overload_maximum(block):
    return {types.float32: _maximum_f32, types.float64: _maximum_f64}.get(block.dtype)


@_jit
def _exponentials(block, top, scale, terms):
    """``exp((block - top)/T)`` into `terms`, biased."""
    shrink, hi, lo = scale
    # With nothing but -inf the difference has to be -inf and not NaN: any finite number does.
    minus_top = -shrink if top == -np.inf else -top * shrink
    for i in range(block.size):
        terms[i] = _exp2(_fma(block[i], shrink, minus_top), hi, lo)


@_jit
def _sum_exponentials(block, top, scale, terms, row, ahead):
    """Fill `terms` for a multiple of GROUP entries, and add them up without the bias.

    Meanwhile as many entries of `row` as the block has are fetched from `ahead` on.
    """
    total = error = 0.0
    for start in range(0, block.size, GROUP):
        _prefetch_group(row, ahead + start)
        offset = start * block.itemsize
        group = _view(terms, offset, GROUP)
        _exponentials(_view(block, offset, GROUP), top, scale, group)
        total, error = _add(total, error, _sum_group(group))
    return (total + error) * _unbias(terms)


@_jit
def _sum(terms):
    """The sum of a multiple of GROUP biased terms, without the bias."""
    total = error = 0.0
    for start in range(0, terms.size, GROUP):
        group = _view(terms, start * terms.itemsize, GROUP)
        total, error = _add(total, error, _sum_group(group))
    return (total + error) * _unbias(terms)


@_jit
def _add(total, error, term):
    """Add two sums that have their rounding error beside them (Knuth's two-sum)."""
    term, term_error = term
    new = total + term
    back = new - total
    return new, (error + term_error) + ((total - (new - back)) + (term - back))


@_jit
def _unbias(a):
    return UNBIAS_F32 if a.itemsize == 4 else UNBIAS_F64


@_jit
def _multiply(a, hi, lo):
    """``a *= hi + lo``"""
    for i in range(a.size):
        a[i] = _fma(a[i], hi, a[i] * lo)


@_jit
def _multiply_into(a, hi, lo, out):
    for i in range(out.size):
        out[i] = _fma(a[i], hi, a[i] * lo)


@_jit
def _drop(terms, value):
    """Set the terms that are `value` to 0."""
    for i in range(terms.size):
        terms[i] = 0 if terms[i] == value else terms[i]


# --------------------------------------------------------------------------------------------------
# A row


@_jit
def _reduce_row(row, kept, copied, scale, wide_scale, scratch, weights, sums):
    """Sum the exponentials of a row against its maximum.

    Parameters
    ----------
    row : array
    kept : array
        As long as the row, for the biased exponentials of its whole blocks; those of a last block
        that is not whole stay in the second half of `scratch`. Empty: none are kept.
    copied : bool
        Whether `kept` is the memory of the row.
    scale, wide_scale : tuple
        What `_split` returns, in the row's type and in float64.
    scratch : array, shape (2*BLOCK,)
    weights : array of float64
        Set to exp((maximum of the block - maximum of the row)/T), for every block.
    sums : array of float64
        Set to the sum of every block against its own maximum.

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
    for b in range(sums.size):
        start = b * BLOCK
        block = _whole_block(row, start, copied, scratch)
        keep = kept.size - start >= BLOCK
        terms = _block(kept, start) if keep else _spare(scratch, block.size)
        m = _maximum(block)
        sums[b] = _sum_exponentials(block, m, scale, terms, row, start + AHEAD)
        weights[b] = m
        if m > top:
            top, best = np.float64(m), b
    if sums.size == 1:
        weights[0] = 1.0
        return top, 0, sums[0]
    _exponentials(weights, top, wide_scale, weights)
    _multiply(weights, UNBIAS_F64, 0.0)
    return top, best, _weighted_sum(weights, sums)


@_jit
def _spare(scratch, size):
    """Room for the terms of a block that are not kept."""
    return _view(scratch, BLOCK * scratch.itemsize, size)


@_jit
def _weighted_sum(weights, sums):
    total = error = 0.0
    for b in range(sums.size):
        total, error = _add(total, error, (weights[b] * sums[b], 0.0))
    return total + error


@_jit
def _log_total(row, top, best, total, scale, scratch, weights, sums):
    """log(total) to full relative precision, however near to 1 `total` is.

    A total below 1.5 holds the maximum once, and no other term near 1. The block that has it is
    then summed again without; the terms of the last block are still there.
    """
    if total >= 1.5:
        return math.log1p(total - 1.0)
    block = _whole_block(row, best * BLOCK, False, scratch)
    terms = _spare(scratch, block.size)
    if best < sums.size - 1:
        _exponentials(block, row.dtype.type(top), scale, terms)
    _drop(terms, terms.dtype.type(1.0 / _unbias(terms)))
    sums[best] = _sum(terms)
    return math.log1p(_weighted_sum(weights, sums))


@_jit
def _threshold(kind, top):
    """What an entry has to reach to share the mass at a limit of the temperature."""
    return top if kind == ZERO else -np.finfo(np.float64).max


@_jit
def _count(row, threshold):
    count = 0
    for i in range(row.size):
        count += row[i] >= threshold
    return np.float64(count)


@_jit
def _share(row, threshold, share, rest, out):
    for i in range(row.size):
        out[i] = share if row[i] >= threshold else rest


@_jit
def _has_nan(row):
    return _count(row, -np.inf) < row.size


@_jit
def _finish_block(out, weight, scratch):
    """Probabilities of the biased exponentials in `out` or, for a part of a block, in `scratch`."""
    number = out.dtype.type
    unbias = _unbias(out)
    # 2**-bias times a weight of this or more is normal.
    small = weight < (2.0**-62 if out.itemsize == 4 else 2.0**-510)
    factor = weight if small else weight * unbias
    hi = number(factor)
    lo = number(factor - hi)
    if out.size == BLOCK:
        _multiply(out, hi, lo)
    else:
        _multiply_into(_spare(scratch, out.size), hi, lo, out)
    if small:
        _multiply(out, number(unbias), number(0))


@_jit
def _log_probabilities(block, top, total, shrink, temperature, out):
    """``(block - top)/temperature - total``, for the logarithm `total` of a sum, in float64."""
    inverse = 1.0 / (temperature * shrink)
    for i in range(out.size):
        t = _fma(np.float64(block[i]), shrink, -top * shrink)
        out[i] = _fma(t, inverse, -total)


# --------------------------------------------------------------------------------------------------
# The operations


@_cached_jit
def softmax(x, x_step, temperature, out, out_step, rows):
    """Softmax of the rows of a batch. Nothing is checked.

    Parameters
    ----------
    x : array of float32 or float64, shape (cols,)
        The first row, contiguous.
    x_step : int
        Bytes from a row to the next.
    temperature : array of float64, shape (1,) or (rows,)
        Not negative, not NaN.
    out : array of x's dtype, shape (cols,)
        The first row of the output, contiguous. It may be the memory of `x`, with the same step;
        otherwise the two do not overlap.
    out_step : int
        Bytes from a row of the output to the next.
    rows : int
    """
    scratch = np.empty(2 * BLOCK, x.dtype)
    blocks = -(-x.size // BLOCK)
    weights, sums = np.empty(blocks), np.empty(blocks)
    in_place = x.ctypes.data == out.ctypes.data
    for r in range(rows):
        row, target = _view(x, r * x_step, x.size), _view(out, r * out_step, out.size)
        if r == 0 or temperature.size > 1:
            kind, _, scale, wide = _read_temperature(temperature[r], x)
        kept = target if kind == FINITE else _view(target, 0, 0)
        top, _, total = _reduce_row(row, kept, in_place, scale, wide, scratch, weights, sums)
        if not total > 0.0:
            target[:] = np.nan
        elif kind == FINITE:
            for b in range(blocks):
                _finish_block(_block(target, b * BLOCK), weights[b] / total, scratch)
        else:
            least = _threshold(kind, top)
            _share(row, least, 1.0 / _count(row, least), 0.0, target)


@_cached_jit
def log_softmax(x, x_step, temperature, out, out_step, rows):
    """Logarithms of the softmax of the rows of a batch; parameters as `softmax`."""
    scratch = np.empty(2 * BLOCK, x.dtype)
    blocks = -(-x.size // BLOCK)
    weights, sums = np.empty(blocks), np.empty(blocks)
    in_place = x.ctypes.data == out.ctypes.data
    for r in range(rows):
        row, target = _view(x, r * x_step, x.size), _view(out, r * out_step, out.size)
        if r == 0 or temperature.size > 1:
            t = temperature[r]
            kind, shrink, scale, wide = _read_temperature(t, x)
        nothing = _view(row, 0, 0)
        top, best, total = _reduce_row(row, nothing, False, scale, wide, scratch, weights, sums)
        if not total > 0.0:
            target[:] = np.nan
        elif kind == FINITE:
            log_total = _log_total(row, top, best, total, scale, scratch, weights, sums)
            for b in range(blocks):
                block, part = _block(row, b * BLOCK), _block(target, b * BLOCK)
                if in_place:
                    _copy(block, scratch)
                    block = scratch
                _log_probabilities(block, top, log_total, shrink, t, part)
        else:
            least = _threshold(kind, top)
            _share(row, least, -math.log(_count(row, least)), -np.inf, target)


@_cached_jit
def logsumexp(x, x_step, temperature, out, out_step, rows):
    """``log(sum(exp(x/T)))`` of the rows of a batch.

    Parameters as `softmax`, but `out` is the output of the first row, shape (1,). Rows may be
    empty, and no temperature is exactly 0.
    """
    scratch = np.empty(2 * BLOCK, x.dtype)
    blocks = -(-x.size // BLOCK)
    weights, sums = np.empty(blocks), np.empty(blocks)
    for r in range(rows):
        row = _view(x, r * x_step, x.size)
        if r == 0 or temperature.size > 1:
            t = temperature[r]
            kind, _, scale, wide = _read_temperature(t, x)
        nothing = _view(row, 0, 0)
        top, best, total = _reduce_row(row, nothing, False, scale, wide, scratch, weights, sums)
        if total != total:
            result = np.nan if _has_nan(row) else np.inf
        elif total == 0.0:
            result = -np.inf
        elif kind == FINITE:
            result = top / t + _log_total(row, top, best, total, scale, scratch, weights, sums)
        elif kind == ZERO:
            result = top / t
        else:
            result = top / t + math.log(_count(row, _threshold(kind, top)))
        _view(out, r * out_step, 1)[0] = result

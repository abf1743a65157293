"""The kernels.

A row is cut into blocks that fit the first cache. Each block is summed against its own maximum and
blocks are merged in their order (Milakov and Gimelshein 2018, "Online normalizer calculation for
softmax", arXiv:1805.02867, per block instead of per entry). So the bits of a result depend on the
entries of the row alone. There are two ways through a batch:

- by rows: a row is a sequence of blocks of contiguous entries. A source yields them, from memory as
  they lie there, or gathered, widened and masked into a few KB of workspace.
- by columns, where the entries of LANES rows lie side by side, or where rows are so short that it
  pays to transpose them: vector j holds entry j of LANES rows. Whatever is special about a row
  (NaN, infinities, limits of the temperature) sends it the other way.

A batch is addresses and strides, not arrays: Numba compiles anew for each type and layout of an
array. Functions take the type they compute in, float32 or float64, as their argument `number`.
"Terms" are exponentials that carry the factor of `exp2`.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numba.extending import overload, register_jitable

from fastsoftmax._numba.vectors import (
    BF16,
    CACHE_LINE,
    F16,
    F32,
    F64,
    LANES,
    NEAR_ONE,
    OPTIONS,
    UNBIAS_F32,
    UNBIAS_F64,
    any_of,
    choose,
    convert,
    copy_bytes,
    counted,
    exp2,
    fence,
    first_lanes,
    first_of,
    fma,
    in_step,
    inlined,
    kept_apart,
    largest,
    load,
    load_16,
    load_columns,
    load_in_step,
    load_part,
    log_of_sum,
    no_counts,
    peek,
    poke,
    prefetch,
    repeated,
    size_of,
    splat,
    store,
    store_16,
    store_columns,
    store_part,
    stream,
    sum_counts,
    sum_lanes,
    to_odd,
    with_masked,
)

# Numba's cache notices a change in this file and in no other. So this is the CRC-32 of vectors.py.
VECTORS = 0xE5440C57

GROUP = 8 * LANES  # entries added as one tree
BLOCK = 2048  # entries that share a maximum: 8 KB of float32
SHORT = 64  # entries: rows up to here are transposed
TILE = 256  # bytes side by side that are taken at a time by columns
KEPT = 2**19  # bytes of terms kept from the sum to the output; further ones are computed twice
AHEAD = 2 * BLOCK  # entries: far enough for DRAM, near enough for the first or second cache
PAGE = 4096  # bytes
STREAMABLE = 512  # entries: a shorter run past the caches is not worth its odd ends

# Constants that are arguments of jitted functions have a type: Numba compiles anew for a literal.
SOFTMAX, LOG_SOFTMAX, LOGSUMEXP = map(np.int64, range(3))  # operations
FINITE, ZERO, INFINITE = map(np.int64, range(3))  # how a row's temperature is to be taken
ORDINARY, SHARED, UNDEFINED = map(np.int64, range(3))  # how a row's output is to be written
NONE, ONE, ONE_VECTOR = map(np.int64, (0, 1, LANES))

# A batch is a table of int64. These fields come first:
FIRST, LAST, COLS = map(np.int64, range(3))  # the first and last column axis, entries of a row
X_ADDRESS, OUT_ADDRESS, WHERE_ADDRESS, TEMPERATURE_ADDRESS = map(np.int64, range(3, 7))
X_TYPE, OUT_TYPE = map(np.int64, range(7, 9))
MASKED = np.int64(9)
NATIVE = np.int64(10)  # rows are contiguous, unmasked, of the type of the arithmetic
DIRECT = np.int64(11)  # rows of the output are contiguous, of the type of the arithmetic
STREAMED = np.int64(12)  # the output goes past the caches
BY_COLUMNS = np.int64(13)
EXTRAS = np.int64(14)  # the address of what only scoring and sampling know, or 0
# Then, for each axis, its length and the steps along it, in bytes:
FIELDS = np.int64(15)
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
HELD = LOGS + 2 * TILE  # results that begin a vector of memory, with room for two of them
HELD_END = HELD + 16 * LANES  # the address that the next result would have, or 0
CHUNKS = HELD_END + CACHE_LINE  # the tile: chunks of LANES columns, then states of longer columns

LOG2_E_HI = float.fromhex("0x1.71547652b82fep+0")
LOG2_E_LO = float.fromhex("0x1.777d0ffda0d24p-56")

# What is called once, or small, is part of its caller; what is called often stands for itself.
_jit = njit(forceinline=False, no_cpython_wrapper=True, no_cfunc_wrapper=True, **OPTIONS)
_pasted = njit(inline="always", **OPTIONS)


def _cached_jit(function):
    """Jit a kernel, cached on disk where a directory for that can be written."""
    try:
        return njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # "cannot cache function: no locator available"
        return njit(**OPTIONS)(function)


# --------------------------------------------------------------------------------------------------
# The temperature


class Scale(NamedTuple):
    """A temperature, as `exp2` takes it.

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
    kept_apart()
    if size_of(number) == 4:
        # From 2**200 up, (x - max)/T is nothing beside 1 even in float64.
        limit, least_exponent, infinite = 3.4028234663852886e38, -148, 2.0**200
    else:
        limit, least_exponent, infinite = 1.7976931348623157e308, -1074, np.inf
    kind = FINITE
    if temperature >= infinite:
        kind = INFINITE
    elif not LOG2_E_HI / abs(temperature) <= limit:  # -0.0 is a zero too
        kind = ZERO
    # At a limit only the special rows are looked for, which any temperature finds.
    taken = temperature if kind == FINITE else 1.0
    shrink = 1.0
    if taken >= 1.0:
        shrink = math.ldexp(1.0, max(-math.frexp(taken)[1], least_exponent))
    taken *= shrink
    hi = LOG2_E_HI / taken
    lo = (fma(-hi, taken, LOG2_E_HI) + LOG2_E_LO) / taken
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


@inlined
def _field(batch, field):
    return peek(batch + 8 * field, np.int64)


@inlined
def _axis(batch, axis, which):
    return peek(batch + 8 * (FIELDS + 5 * axis + which), np.int64)


@inlined
def _bytes_of(memory_type):
    """Bytes of a number of a type in memory."""
    return 1 << max(memory_type, 1)


@_jit
def _offset(batch, first, last, index, which):
    """Bytes to the entry that has an index in C order over the axes from `first` to `last`."""
    kept_apart()
    offset = 0
    for axis in range(last, first, -1):
        length = _axis(batch, axis, LENGTH)
        rest = index // length
        offset += (index - rest * length) * _axis(batch, axis, which)
        index = rest
    return offset + index * _axis(batch, first, which)


@inlined
def _entry(batch, index, which):
    """Bytes from the first entry of a row to another."""
    first, last = _field(batch, FIRST), _field(batch, LAST)
    if first == last:
        return index * _axis(batch, last, which)
    return _offset(batch, first, last, index, which)


@inlined
def _row(batch, r):
    """The row of a number."""
    last = _field(batch, FIRST) - 1
    return Row(
        _field(batch, X_ADDRESS) + _offset(batch, NONE, last, r, X),
        _field(batch, OUT_ADDRESS) + _offset(batch, NONE, last, r, OUT),
        _field(batch, WHERE_ADDRESS) + _offset(batch, NONE, last, r, WHERE),
        _field(batch, TEMPERATURE_ADDRESS) + _offset(batch, NONE, last, r, TEMPERATURE),
    )


@inlined
def _across(batch, which):
    """Bytes from a row to its neighbour."""
    return _axis(batch, _field(batch, FIRST) - 1, which)


@inlined
def _neighbour(batch, row, i):
    """The i-th row after a row."""
    return Row(
        row.x + i * _across(batch, X),
        row.out + i * _across(batch, OUT),
        row.where + i * _across(batch, WHERE),
        row.temperature + i * _across(batch, TEMPERATURE),
    )


@inlined
def _blocks(cols):
    return -(-cols // BLOCK)


@inlined
def _aligned(address):
    return -(-np.int64(address) // CACHE_LINE) * CACHE_LINE


@inlined
def _chunk_size(cols, itemsize):
    """Bytes of a chunk of a tile."""
    return min(-(-cols // GROUP) * GROUP, BLOCK) * LANES * itemsize


@inlined
def _row_state(address, cols, itemsize, keeps):
    """The state of a row; `keeps` says whether terms are kept in it."""
    size = 8 * (_blocks(cols) + LANES)
    weights = _aligned(address)
    kept = weights + 2 * size + CACHE_LINE
    blocks_kept = min(_blocks(cols), KEPT // (BLOCK * itemsize)) if keeps else 0
    return RowState(weights, weights + size, weights + 2 * size, kept, blocks_kept)


@inlined
def _column_state(work, column, cols, itemsize):
    """The state of a column of more than one block."""
    size = 8 * (_blocks(cols) + LANES)
    states = work + CHUNKS + _chunk_size(cols, itemsize) * (TILE // itemsize // LANES)
    weights = states + 2 * column * size
    return RowState(weights, weights + size, NONE, NONE, NONE)


@register_jitable
def workspace_size(cols: int, itemsize: int, by_columns: bool) -> int:
    """Bytes of the workspace of a call."""
    size = CHUNKS + CACHE_LINE
    if by_columns:
        width = TILE // itemsize
        size += width * min(-(-cols // GROUP) * GROUP, BLOCK) * itemsize
        if cols > BLOCK:
            size += width * 16 * (-(-cols // BLOCK) + LANES)
    return size


@register_jitable
def row_state_size(cols: int, itemsize: int, keeps: bool) -> int:
    """Bytes of the state of a row."""
    blocks = -(-cols // BLOCK)
    kept = min(KEPT, -(-cols // GROUP) * GROUP * itemsize) if keeps else 0
    return 16 * (blocks + LANES) + kept + 2 * CACHE_LINE


# --------------------------------------------------------------------------------------------------
# Sources yield contiguous entries in the type of the arithmetic, with -inf where they are masked;
# sinks write such entries to the output.


@_jit
def _move(source, source_step, target, target_step, size, itemsize):
    """Copy numbers, whatever they are, from one step to another."""
    kept_apart()
    if source_step == itemsize and target_step == itemsize:
        copy_bytes(target, source, size * itemsize)
    elif itemsize == 1:
        for i in range(size):
            poke(target + i * target_step, peek(source + i * source_step, np.uint8))
    elif itemsize == 2:
        for i in range(size):
            poke(target + i * target_step, peek(source + i * source_step, np.uint16))
    elif itemsize == 4:
        for i in range(size):
            poke(target + i * target_step, peek(source + i * source_step, np.uint32))
    else:
        for i in range(size):
            poke(target + i * target_step, peek(source + i * source_step, np.uint64))


@_jit
def _widen(source, memory_type, size, target, number):
    """Convert from a type in memory, in whole vectors."""
    kept_apart()
    own = size_of(number)
    for i in range(0, size, LANES):
        if memory_type == F32:
            vector = convert(load(source + 4 * i, np.float32), number)
        elif memory_type == F64:
            vector = convert(load(source + 8 * i, np.float64), number)
        elif memory_type == F16:
            vector = convert(load_16(source + 2 * i, F16), number)
        else:
            vector = convert(load_16(source + 2 * i, BF16), number)
        store(target + own * i, vector)


@_jit
def _narrow(source, memory_type, size, target, number):
    """Convert to a type in memory, in whole vectors."""
    kept_apart()
    for i in range(0, size, LANES):
        vector = load(source + size_of(number) * i, number)
        if memory_type == F32:
            store(target + 4 * i, convert(vector, np.float32))
        elif memory_type == F64:
            store(target + 8 * i, convert(vector, np.float64))
        elif memory_type == F16:
            store_16(target + 2 * i, to_odd(vector), F16)
        else:
            store_16(target + 2 * i, to_odd(vector), BF16)


@_jit
def _take(source, step, memory_type, where, where_step, size, target, work, number):
    """Make a contiguous run of entries at a step; its last vector is filled up with anything.

    Nothing is masked if `where` is 0.
    """
    kept_apart()
    itemsize = _bytes_of(memory_type)
    if step != itemsize:
        _move(source, step, work + RAW, itemsize, size, itemsize)
        source = work + RAW
    whole = size - size % LANES
    _widen(source, memory_type, whole, target, number)
    if whole < size:
        copy_bytes(work + PART, source + whole * itemsize, (size - whole) * itemsize)
        _widen(work + PART, memory_type, ONE_VECTOR, target + whole * size_of(number), number)
    if where == 0:
        return
    _move(where, where_step, work + RAW, ONE, size, ONE)
    for i in range(0, size, LANES):
        place = target + i * size_of(number)
        store(place, with_masked(load(place, number), work + RAW + i))


@_jit
def _gather(batch, row, start, size, target, work, number):
    """Make a contiguous run of the entries of a row from `start` on."""
    kept_apart()
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
        place = target + done * size_of(number)
        x_type = _field(batch, X_TYPE)
        _take(source, step, x_type, where, where_step, count, place, work, number)
        done += count


def _source(batch, row, start, size, work, number):
    """The address of a contiguous run of the entries of a row from `start` on.

    What else but memory they come from is told by the type of `row`.
    """
    raise NotImplementedError


def _source_in_memory(batch, row, start, size, work, number):
    if _field(batch, NATIVE):
        return row.x + start * size_of(number)
    _gather(batch, row, start, size, work + ENTRIES, work, number)
    return work + ENTRIES


@overload(_source)
def _overload_source(batch, row, start, size, work, number):
    return _source_in_memory if row.instance_class is Row else None


@_jit
def _put(source, size, target, step, memory_type, work, number):
    """Write a contiguous run of results to places at a step."""
    kept_apart()
    itemsize = _bytes_of(memory_type)
    if step != itemsize:
        _narrow(source, memory_type, size, work + RAW, number)
        _move(work + RAW, itemsize, target, step, size, itemsize)
        return
    whole = size - size % LANES
    _narrow(source, memory_type, whole, target, number)
    if whole < size:
        _narrow(source + whole * size_of(number), memory_type, ONE_VECTOR, work + PART, number)
        copy_bytes(target + whole * itemsize, work + PART, (size - whole) * itemsize)


@_jit
def _scatter(batch, row, start, size, source, work, number):
    """Write a contiguous run of results to a row of the output, from `start` on."""
    kept_apart()
    last = _field(batch, LAST)
    length, step = _axis(batch, last, LENGTH), _axis(batch, last, OUT)
    done = 0
    while done < size:
        index = start + done
        count = min(length - index % length, size - done)
        target, place = row.out + _entry(batch, index, OUT), source + done * size_of(number)
        _put(place, count, target, step, _field(batch, OUT_TYPE), work, number)
        done += count


# --------------------------------------------------------------------------------------------------
# Blocks of a row, or of LANES columns: all but the sums treats them alike


@_jit
def _maximum(source, size, number):
    """The maximum of each lane; any entry of it if a NaN is among them."""
    kept_apart()
    low = number(-np.inf)
    a = b = c = d = splat(low)
    step = LANES * size_of(number)
    while size >= 4 * LANES:
        a = _larger(load(source, number), a)
        b = _larger(load(source + step, number), b)
        c = _larger(load(source + 2 * step, number), c)
        d = _larger(load(source + 3 * step, number), d)
        source += 4 * step
        size -= 4 * LANES
    while size >= LANES:
        a = _larger(load(source, number), a)
        source += step
        size -= LANES
    if size > 0:
        a = _larger(load_part(source, size, low, number), a)
    return _larger(_larger(a, b), _larger(c, d))


@inlined
def _larger(a, b):
    return choose(a > b, a, b)


class Heat(NamedTuple):
    """What terms are made with, in vectors of those in step: see `Scale`."""

    minus_top: float
    shrink: float
    hi: float
    lo: float


@inlined
def _heat(top, shrink, hi, lo):
    # With nothing but -inf the difference has to be -inf and not NaN: any finite number does.
    minus_top = choose(top == -np.inf, 0.0 - shrink, top * (0.0 - shrink))
    return Heat(repeated(minus_top), repeated(shrink), repeated(hi), repeated(lo))


@inlined
def _terms(source, size, target, heat, number):
    """Terms of a number of entries that is a multiple of those in step."""
    for _ in range(size // in_step(number)):
        t = fma(load_in_step(source, number), heat.shrink, heat.minus_top)
        store(target, exp2(t, heat.hi, heat.lo))
        source += in_step(number) * size_of(number)
        target += in_step(number) * size_of(number)


@_jit
def _exponentials(source, size, top, shrink, hi, lo, target, number):
    """Terms of ``exp((source - top)/T)``, with zeros up to a whole vector."""
    kept_apart()
    heat = _heat(top, shrink, hi, lo)
    whole = size - size % in_step(number)
    _terms(source, whole, target, heat, number)
    minus_top, step = first_lanes(heat.minus_top), LANES * size_of(number)
    source += whole * size_of(number)
    target += whole * size_of(number)
    size -= whole
    while size > 0:
        t = fma(load_part(source, size, -np.inf, number), shrink, minus_top)
        store(target, exp2(t, hi, lo))
        source += step
        target += step
        size -= LANES


@inlined
def _unbias(number):
    """What takes the factor of `exp2` from terms."""
    return UNBIAS_F32 if size_of(number) == 4 else UNBIAS_F64


@inlined
def _add(a, b):
    """Add two sums that have what they lost to rounding beside them (Knuth's two-sum)."""
    (a, lost_a), (b, lost_b) = a, b
    total = a + b
    back = total - a
    return total, (lost_a + lost_b) + ((a - (total - back)) + (b - back))


# Of each GROUP of terms those 64 apart are added, then those 32 and those 16 apart; groups are
# added lane by lane, and the lanes at last, again as a tree. It is exact where terms are equal.
# Where one outweighs the rest each rounding is felt in full, so few are let go: one in float32,
# after which float64 loses nothing worth keeping, or two in float64, after which errors are kept.


@inlined
def _sum_eight(address, step, number):
    """The sum of eight vectors that are `step` bytes apart, in float64."""
    a = load(address, number) + load(address + 4 * step, number)
    b = load(address + step, number) + load(address + 5 * step, number)
    c = load(address + 2 * step, number) + load(address + 6 * step, number)
    d = load(address + 3 * step, number) + load(address + 7 * step, number)
    ac = convert(a, np.float64) + convert(c, np.float64)
    bd = convert(b, np.float64) + convert(d, np.float64)
    return _add_up((ac, splat(0.0)), (bd, splat(0.0)), number)


@inlined
def _add_up(a, b, number):
    """`_add` in float64; sums of float32 lose nothing."""
    if size_of(number) == 4:
        return a[0] + b[0], a[1]
    return _add(a, b)


@inlined
def _add_groups(lanes, terms, size, number):
    """Add terms to the sums of lanes. Zeros are written behind them, up to a whole GROUP."""
    step = LANES * size_of(number)
    for i in range(-(-size // LANES), -(-size // GROUP) * (GROUP // LANES)):
        store(terms + i * step, splat(number(0)))
    for _ in range(-(-size // GROUP)):
        lanes = _add_up(lanes, _sum_eight(terms, step, number), number)
        terms += GROUP * size_of(number)
    return lanes


@inlined
def _sum_of_lanes(lanes, number):
    """The sum of a row from those of lanes."""
    value, lost = sum_lanes(lanes[0], lanes[1])
    return (value if size_of(number) == 4 else value + lost) * _unbias(number)


@_jit
def _sum(terms, size, number):
    """The sum of the terms of a row. Zeros are written behind them, up to a whole GROUP."""
    kept_apart()
    zero = splat(0.0)
    return _sum_of_lanes(_add_groups((zero, zero), terms, size, number), number)


@_jit
def _terms_and_sum(source, size, top, scale, target, ahead, lines, number):
    """Terms as `_exponentials` leaves them, and their sum.

    Meanwhile as many cache lines for each GROUP are fetched from the address `ahead` on.
    """
    kept_apart()
    shrink, hi, lo = splat(scale.shrink), splat(scale.hi), splat(scale.lo)
    heat, zero = _heat(splat(top), shrink, hi, lo), splat(0.0)
    lanes = (zero, zero)
    while size >= GROUP:
        for _ in range(lines):
            prefetch(ahead)
            ahead += CACHE_LINE
        _terms(source, GROUP, target, heat, number)
        lanes = _add_up(lanes, _sum_eight(target, LANES * size_of(number), number), number)
        source += GROUP * size_of(number)
        target += GROUP * size_of(number)
        size -= GROUP
    if size > 0:
        for _ in range(lines):
            prefetch(ahead)
            ahead += CACHE_LINE
        _exponentials(source, size, splat(top), shrink, hi, lo, target, number)
        lanes = _add_groups(lanes, target, size, number)
    return _sum_of_lanes(lanes, number)


@_jit
def _sum_columns(terms, size, work, number):
    """As `_sum` for LANES columns of `size` terms, in the same order."""
    kept_apart()
    step, wide = LANES * size_of(number), LANES * 8
    for start in range(0, size, GROUP):
        count = min(size - start, GROUP)
        if count > LANES:
            for i in range(count, GROUP):
                store(terms + i * step, splat(number(0)))
        for i in range(min(count, LANES)):
            place = work + SUMS + 2 * i * wide
            if count > LANES:
                value, lost = _sum_eight(terms + i * step, LANES * step, number)
            else:
                value, lost = convert(load(terms + i * step, number), np.float64), splat(0.0)
            if start > 0:
                value, lost = _add_up(_sum_at(place, number), (value, lost), number)
            _set_sum(place, value, lost, number)
        terms += GROUP * step
    lanes, apart = min(size, LANES), LANES // 2
    while apart > 0:
        for i in range(lanes - apart):
            a, b = work + SUMS + 2 * i * wide, work + SUMS + 2 * (i + apart) * wide
            value, lost = _add_up(_sum_at(a, number), _sum_at(b, number), number)
            _set_sum(a, value, lost, number)
        lanes = min(lanes, apart)
        apart //= 2
    total = _sum_at(work + SUMS, number)
    return (total[0] + total[1]) * _unbias(number)


@inlined
def _set_sum(address, value, lost, number):
    store(address, value)
    if size_of(number) == 8:
        store(address + LANES * 8, lost)


@inlined
def _sum_at(address, number):
    """Sums and what they lost, as `_sum_columns` keeps them."""
    value = load(address, np.float64)
    if size_of(number) == 4:
        return value, splat(0.0)
    return value, load(address + LANES * 8, np.float64)


@_jit
def _without_top(terms, size, number):
    """Set to 0 the terms of entries that are the maximum."""
    kept_apart()
    top = number(1.0 / _unbias(number))
    for i in range(0, size, LANES):
        place = terms + i * size_of(number)
        vector = load(place, number)
        store(place, choose(vector == top, 0.0, vector))


@_jit
def _scale(terms, size, weight, target, streamed, number):
    """``terms*weight`` for weights in float64, without the factor of terms."""
    kept_apart()
    unbias = _unbias(number)
    # 2**-bias times a weight of this or more is normal.
    small = weight < (2.0**-62 if size_of(number) == 4 else 2.0**-510)
    hi, lo = _in_two_parts(choose(small, weight, weight * unbias), number)
    step = LANES * size_of(number)
    end = target + size * size_of(number)
    place, offset = target, terms - target
    if streamed and size >= STREAMABLE:
        odd = -place % CACHE_LINE
        store_part(place, _scaled(place + offset, hi, lo, number), odd // size_of(number))
        place += odd
        while place <= end - step:
            stream(place, _scaled(place + offset, hi, lo, number))
            place += step
    while place <= end - step:
        store(place, _scaled(place + offset, hi, lo, number))
        place += step
    if place < end:
        rest = (end - place) // size_of(number)
        store_part(place, _scaled(place + offset, hi, lo, number), rest)
    if any_of(small):
        after = convert(choose(small, splat(unbias), splat(1.0)), number)
        for i in range(size // LANES):
            store(target + i * step, load(target + i * step, number) * after)
        place = target + size // LANES * step
        if size % LANES:
            value = load_part(place, size % LANES, 0.0, number) * after
            store_part(place, value, size % LANES)


@inlined
def _in_two_parts(factor, number):
    hi = convert(factor, number)
    return hi, convert(factor - convert(hi, np.float64), number)


@inlined
def _scaled(terms, hi, lo, number):
    term = load(terms, number)
    return fma(term, hi, term * lo)


@_jit
def _log_probabilities(source, size, top, log_sum, shrink, temperature, target, streamed, number):
    """``(source - top)/temperature - log_sum``, in float64 from vectors of it."""
    kept_apart()
    scale = shrink, 1.0 / (temperature * shrink)
    minus = top * (0.0 - shrink), 0.0 - log_sum
    step = LANES * size_of(number)
    end = target + size * size_of(number)
    place, offset = target, source - target
    if streamed and size >= STREAMABLE:
        odd = -place % CACHE_LINE
        first = _log_scaled(load(place + offset, number), scale, minus, number)
        store_part(place, first, odd // size_of(number))
        place += odd
        while place <= end - step:
            stream(place, _log_scaled(load(place + offset, number), scale, minus, number))
            place += step
    while place <= end - step:
        store(place, _log_scaled(load(place + offset, number), scale, minus, number))
        place += step
    if place < end:
        rest = (end - place) // size_of(number)
        x = load_part(place + offset, rest, 0.0, number)
        store_part(place, _log_scaled(x, scale, minus, number), rest)


@inlined
def _log_scaled(x, scale, minus, number):
    t = fma(convert(x, np.float64), scale[0], minus[0])
    return convert(fma(t, scale[1], minus[1]), number)


# --------------------------------------------------------------------------------------------------
# By rows

# What a plan holds.
KIND, TOP, TOTAL, SHARE, REST, THRESHOLD = map(np.int64, range(6))


@inlined
def _block_terms(b, state, work, number):
    """Where the terms of a block go."""
    return state.kept + b * BLOCK * size_of(number) if b < state.blocks_kept else work + TERMS


class Block(NamedTuple):
    """A block of a row: the address of its entries, their number, the largest of them."""

    source: int
    size: int
    top: float


@inlined
def _reduce_block(batch, row, scale, b, state, work, number):
    """Set the maximum and the sum of a block, and keep its terms if there is room."""
    itemsize = _bytes_of(_field(batch, X_TYPE))
    dense = _axis(batch, _field(batch, LAST), X) == itemsize
    lines = GROUP * itemsize // CACHE_LINE if dense else 0
    start = b * BLOCK
    size = min(BLOCK, _field(batch, COLS) - start)
    source = _source(batch, row, start, size, work, number)
    terms = _block_terms(b, state, work, number)
    top = largest(_maximum(source, size, number))
    ahead = row.x + (start + AHEAD) * itemsize
    total = _terms_and_sum(source, size, top, scale, terms, ahead, lines, number)
    poke(state.sums + 8 * b, total)
    poke(state.weights + 8 * b, np.float64(top))
    return Block(source, size, np.float64(top))


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
        m = peek(state.weights + 8 * b, np.float64)
        if m > top:
            top, best = m, b
    if blocks == 1:
        poke(state.weights, 1.0)
        return top, 0, peek(state.sums, np.float64)
    shrink, hi, lo = np.float64(scale.shrink), scale.wide_hi, scale.wide_lo
    _exponentials(
        state.weights,
        blocks,
        splat(top),
        splat(shrink),
        splat(hi),
        splat(lo),
        state.weights,
        np.float64,
    )
    for b in range(blocks):
        place = state.weights + 8 * b
        poke(place, peek(place, np.float64) * UNBIAS_F64)
    return top, best, _weighted_sum(blocks, state)


@_jit
def _weighted_sum(blocks, state):
    total = (0.0, 0.0)
    for b in range(blocks):
        weight = peek(state.weights + 8 * b, np.float64)
        total = _add(total, (weight * peek(state.sums + 8 * b, np.float64), 0.0))
    return total[0] + total[1]


@inlined
def _row_rest(batch, row, scale, top, best, total, state, work, number):
    """total - 1 to full relative precision.

    A total below NEAR_ONE holds the maximum once, and no other term near 1. The block that has it
    is then summed again without.
    """
    if not total < NEAR_ONE:
        return total - 1.0
    start = best * BLOCK
    size = min(BLOCK, _field(batch, COLS) - start)
    source = _source(batch, row, start, size, work, number)
    shrink, hi, lo = splat(scale.shrink), splat(scale.hi), splat(scale.lo)
    terms, highest = work + TERMS, splat(number(top))
    _exponentials(source, size, highest, shrink, hi, lo, terms, number)
    _without_top(terms, size, number)
    poke(state.sums + 8 * best, _sum(terms, size, number))
    return _weighted_sum(_blocks(_field(batch, COLS)), state)


@_jit
def _row_log_sum(batch, row, scale, top, best, total, state, work, number):
    """log(total) to full relative precision, however near to 1 `total` is."""
    kept_apart()
    rest = _row_rest(batch, row, scale, top, best, total, state, work, number)
    return first_of(log_of_sum(splat(total), splat(rest)))


@_jit
def _count(batch, row, threshold, work, number):
    """How many entries of a row reach a threshold."""
    kept_apart()
    count = no_counts(np.float64)
    for start in range(0, _field(batch, COLS), BLOCK):
        size = min(BLOCK, _field(batch, COLS) - start)
        source = _source(batch, row, start, size, work, number)
        while size > 0:
            x = load_part(source, size, np.nan, number)
            count = counted(count, convert(x, np.float64) >= threshold)
            source += LANES * size_of(number)
            size -= LANES
    return np.float64(sum_counts(count))


@_jit
def _write_special(batch, row, start, size, plan, work, number):
    """The output of a row at a limit of the temperature, or that has none."""
    kept_apart()
    share = number(peek(plan + 8 * SHARE, np.float64))
    rest = number(peek(plan + 8 * REST, np.float64))
    threshold = peek(plan + 8 * THRESHOLD, np.float64)
    shared = peek(plan + 8 * KIND, np.int64) == SHARED
    source = work + ENTRIES
    if shared:
        source = _source(batch, row, start, size, work, number)
    for i in range(size):
        place = i * size_of(number)
        if shared:
            reached = peek(source + place, number) >= threshold
        elif _field(batch, MASKED):
            reached = peek(row.where + _entry(batch, start + i, WHERE), np.uint8) != 0
        else:
            reached = True
        poke(work + TERMS + place, share if reached else rest)
    _scatter(batch, row, start, size, work + TERMS, work, number)


@inlined
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
            result = top / scale.temperature if top != 0.0 else 0.0  # not -0.0
            if scale.kind == FINITE:
                result += _row_log_sum(batch, row, scale, top, best, total, state, work, number)
            elif scale.kind == INFINITE:
                result += math.log(_count(batch, row, threshold, work, number))
        poke(work + TERMS, number(result))
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
    poke(state.plan + 8 * KIND, kind)
    poke(state.plan + 8 * TOP, top)
    poke(state.plan + 8 * TOTAL, total)
    poke(state.plan + 8 * SHARE, share)
    poke(state.plan + 8 * REST, 0.0 if operation == SOFTMAX else -np.inf)
    poke(state.plan + 8 * THRESHOLD, threshold)


@inlined
def _write_blocks(operation, batch, row, scale, begin, end, state, work, number):
    """Write a range of blocks of the output of a row."""
    top = peek(state.plan + 8 * TOP, np.float64)
    total = peek(state.plan + 8 * TOTAL, np.float64)
    streamed = _field(batch, STREAMED) * _field(batch, DIRECT)
    for b in range(begin, end):
        start = b * BLOCK
        size = min(BLOCK, _field(batch, COLS) - start)
        if peek(state.plan + 8 * KIND, np.int64) != ORDINARY:
            _write_special(batch, row, start, size, state.plan, work, number)
            continue
        values = work + TERMS
        if operation == SOFTMAX:
            values = _block_terms(b, state, work, number)
        target = row.out + start * size_of(number) if _field(batch, DIRECT) else values
        if operation == SOFTMAX:
            if b >= state.blocks_kept:
                source = _source(batch, row, start, size, work, number)
                highest = splat(largest(_maximum(source, size, number)))
                shrink, hi, lo = splat(scale.shrink), splat(scale.hi), splat(scale.lo)
                _exponentials(source, size, highest, shrink, hi, lo, values, number)
            weight = peek(state.weights + 8 * b, np.float64) / total
            _scale(values, size, splat(weight), target, streamed, number)
        else:
            source = _source(batch, row, start, size, work, number)
            shrink, t = splat(np.float64(scale.shrink)), splat(scale.temperature)
            tops, logs = splat(top), splat(total)
            _log_probabilities(source, size, tops, logs, shrink, t, target, streamed, number)
        if not _field(batch, DIRECT):
            _scatter(batch, row, start, size, values, work, number)


# Rows of one block in turn: the results of the row before are written, and the maximum of the row
# that follows is found, while the terms of a row are computed. So none waits for another's sum.


class Pending(NamedTuple):
    """A row of which there are the terms but not yet the results."""

    terms: int
    target: int
    total: float


class Factor(NamedTuple):
    """What turns terms into results, in two vectors, and where those go."""

    hi: float
    lo: float
    offset: int  # bytes from a result to its term
    streamed: bool  # whether results go past the caches


@inlined
def _put_vector(place, factor, number):
    result = _scaled(place + factor.offset, factor.hi, factor.lo, number)
    if factor.streamed:
        stream(place, result)
    else:
        store(place, result)


@inlined
def _put_group(place, factor, number):
    for i in range(0, GROUP * size_of(number), LANES * size_of(number)):
        _put_vector(place + i, factor, number)


# An ordinary store to a line that is not at hand holds up all that follow. So where results are
# streamed the vector of memory in which one row ends and the next begins is held until it is whole.


@inlined
def _put_first(place, factor, work, number):
    """Write the first results of a row; the next go to the address that is returned."""
    step = LANES * size_of(number)
    past, result = place % step, _scaled(place + factor.offset, factor.hi, factor.lo, number)
    if not factor.streamed:
        store(place, result)
    elif past > 0 and peek(work + HELD_END, np.int64) == place:
        store(work + HELD + past, result)
        stream(place - past, load(work + HELD, number))
        poke(work + HELD_END, NONE)
    else:
        _put_held(work, number)
        store_part(place, result, -place % step // size_of(number))
    return place + -place % step


@inlined
def _put_last(place, end, factor, work, number):
    """Write the results from a vector of memory on to the end of a row."""
    step = LANES * size_of(number)
    while place <= end - step:
        _put_vector(place, factor, number)
        place += step
    if place < end:
        result = _scaled(place + factor.offset, factor.hi, factor.lo, number)
        if factor.streamed:
            store(work + HELD, result)
            poke(work + HELD_END, end)
        else:
            store_part(place, result, (end - place) // size_of(number))


@inlined
def _put_held(work, number):
    """Write what is held."""
    end = peek(work + HELD_END, np.int64)
    if end != NONE:
        size = end % (LANES * size_of(number))
        store_part(end - size, load(work + HELD, number), size // size_of(number))
        poke(work + HELD_END, NONE)


@inlined
def _lead(source, target, number):
    """How many groups results go ahead of the logits that are read meanwhile.

    A load waits for an earlier store that is under way to the same place of another page.
    """
    group = GROUP * size_of(number)
    return 2 if (target - source - group // 4) % PAGE < 2 * group - group // 4 else 0


@_jit
def _terms_beside(source, size, top, scale, terms, following, pending, streamed, work, number):
    """The terms of a row and, beside them, the results of `pending` and a maximum.

    Returns
    -------
    total : float
        The sum of the terms.
    top : float
        The maximum of the `size` entries from the address `following` on.
    """
    kept_apart()
    shrink, hi, lo = splat(scale.shrink), splat(scale.hi), splat(scale.lo)
    heat, zero = _heat(splat(top), shrink, hi, lo), splat(0.0)
    weight_hi, weight_lo = _in_two_parts(splat(1.0 / pending.total * _unbias(number)), number)
    factor = Factor(weight_hi, weight_lo, pending.terms - pending.target, streamed)
    step, group, ahead = LANES * size_of(number), GROUP * size_of(number), AHEAD * size_of(number)
    lanes = (zero, zero)
    a = b = splat(number(-np.inf))
    end = pending.target + size * size_of(number)
    if streamed:
        # A touch of each page that the next results go to: streams wait for pages.
        prefetch(end)
        prefetch(end + PAGE)
    target = _put_first(pending.target, factor, work, number)
    for _ in range(_lead(source, target, number) if streamed else 0):
        if target + group <= end:
            _put_group(target, factor, number)
            target += group
    while size >= GROUP:
        for i in range(0, group, CACHE_LINE):
            prefetch(source + ahead + i)
        _terms(source, GROUP, terms, heat, number)
        for i in range(0, group, 2 * step):
            a = _larger(load(following + i, number), a)
            b = _larger(load(following + i + step, number), b)
        if target + group <= end:
            _put_group(target, factor, number)
            target += group
        lanes = _add_up(lanes, _sum_eight(terms, step, number), number)
        source += group
        following += group
        terms += group
        size -= GROUP
    _put_last(target, end, factor, work, number)
    if size > 0:
        for i in range(0, size * size_of(number), CACHE_LINE):
            prefetch(source + ahead + i)
        a = _larger(_maximum(following, size, number), a)
        _exponentials(source, size, splat(top), shrink, hi, lo, terms, number)
        lanes = _add_groups(lanes, terms, size, number)
    return _sum_of_lanes(lanes, number), largest(_larger(a, b))


@inlined
def _away_from(room, source, target):
    """A place for terms, less than a PAGE behind `room`.

    In their pages they are away from the entries that are read and the results that are written.
    """
    ahead = (target - source) % PAGE
    place = source + (2560 if 1024 <= ahead < 2048 else 1536)
    return room + (place - room) % PAGE // CACHE_LINE * CACHE_LINE


@inlined
def _go_in_turn(operation, batch):
    """Whether `_in_turn` is for the rows of a batch."""
    plain = _field(batch, NATIVE) * _field(batch, DIRECT) != 0
    return operation == SOFTMAX and plain and SHORT < _field(batch, COLS) <= BLOCK


@_jit
def _in_turn(batch, row, count, scale, work, number):
    """Softmax of neighbouring rows, up to one that is special; returns how many are done."""
    kept_apart()
    cols, x_step, out_step = _field(batch, COLS), _across(batch, X), _across(batch, OUT)
    streamed = _field(batch, STREAMED) != 0
    room, other = work + RAW, work + (RAW + PART) // 2 // CACHE_LINE * CACHE_LINE
    pending, top = Pending(NONE, NONE, 0.0), number(-np.inf)
    poke(work + HELD_END, NONE)
    done = 0
    while done < count:
        temperature = peek(row.temperature + done * _across(batch, TEMPERATURE), np.float64)
        if temperature != scale.temperature:
            scale = _read_scale(temperature, number)
        if scale.kind != FINITE:
            break
        source, target = row.x + done * x_step, row.out + done * out_step
        following = source + x_step if done + 1 < count else source
        terms = _away_from(room, source, target - out_step)
        if pending.target == NONE:
            top = largest(_maximum(source, cols, number))
            total = _terms_and_sum(source, cols, top, scale, terms, NONE, NONE, number)
            if done + 1 < count:
                top = largest(_maximum(following, cols, number))
        else:
            total, top = _terms_beside(
                source, cols, top, scale, terms, following, pending, streamed, work, number
            )
        if not total > 0.0:
            pending = Pending(NONE, NONE, 0.0)
            break
        pending = Pending(terms, target, total)
        room, other = other, room
        done += 1
    _put_held(work, number)
    if pending.target != NONE:
        weight = splat(1.0 / pending.total)
        _scale(pending.terms, cols, weight, pending.target, streamed, number)
    return done


# --------------------------------------------------------------------------------------------------
# By columns. A tile holds the entries of one block of up to TILE bytes of neighbouring rows, in
# chunks: vector j of a chunk holds entry j of LANES rows.


@_jit
def _read_scales(batch, row, width, work, number):
    """Read the temperatures of columns; returns whether all are finite."""
    kept_apart()
    step = _across(batch, TEMPERATURE)
    temperature = peek(row.temperature, np.float64)
    if step == 0 and temperature == peek(work + TEMPERATURES, np.float64):
        return True  # as in the tile before
    itemsize = size_of(number)
    scale = _read_scale(temperature, number)
    for column in range(TILE // itemsize):
        if column < width:
            t = peek(row.temperature + column * step, np.float64)
            if t != temperature:
                temperature = t
                scale = _read_scale(t, number)
        if scale.kind != FINITE:
            poke(work + TEMPERATURES, np.nan)
            return False
        poke(work + SHRINKS + column * itemsize, scale.shrink)
        poke(work + HIS + column * itemsize, scale.hi)
        poke(work + LOS + column * itemsize, scale.lo)
        poke(work + TEMPERATURES + column * 8, temperature)
    return True


@inlined
def _is_transposed(batch, which, memory_type):
    """Whether short rows lie in memory one after the other and not side by side.

    Those of less than 4 entries are not worth it.
    """
    across = _across(batch, which) == _bytes_of(memory_type)
    return 4 <= _field(batch, COLS) <= SHORT and not across


@_jit
def _load_tile(batch, row, width, start, size, work, number):
    """Fill the tile with entries from `start` on of `width` rows."""
    kept_apart()
    own, step = size_of(number), LANES * size_of(number)
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
                load_columns(source + j * own, source_step, target + j * step, number)
            target += chunk_size
        return
    masked = _field(batch, MASKED)
    native = x_type == (F32 if own == 4 else F64) and x_step == own and not masked
    ahead = 16 * _axis(batch, _field(batch, LAST), X)
    for j in range(size):
        source, where = row.x + _entry(batch, start + j, X), NONE
        if native:
            for line in range(0, width * own, CACHE_LINE):
                prefetch(source + ahead + line)
        else:
            if masked:
                where = row.where + _entry(batch, start + j, WHERE)
            entries = work + ENTRIES
            _take(source, x_step, x_type, where, where_step, width, entries, work, number)
            source = entries
        target = work + CHUNKS + j * step
        for _ in range(width // LANES):
            store(target, load(source, number))
            source += step
            target += chunk_size
        if width % LANES:
            store(target, load_part(source, width % LANES, 0.0, number))


@_jit
def _load_rows(batch, row, count, work, number):
    """Copy short rows into the workspace, and zeros for those up to LANES."""
    kept_apart()
    cols, itemsize = _field(batch, COLS), _bytes_of(_field(batch, X_TYPE))
    dense = _axis(batch, _field(batch, LAST), X) == itemsize and not _field(batch, MASKED)
    rows, size = work + ROWS, cols * size_of(number)
    if dense and _across(batch, X) == cols * itemsize:
        x_type = _field(batch, X_TYPE)
        _take(row.x, itemsize, x_type, NONE, NONE, cols * count, rows, work, number)
    else:
        for i in range(count):
            _gather(batch, _neighbour(batch, row, i), NONE, cols, rows + i * size, work, number)
    for place in range(rows + count * size, rows + LANES * size, size_of(number)):
        poke(place, number(0))


@_jit
def _store_tile(batch, row, width, start, size, work, number):
    """Write the tile to `width` rows of the output."""
    kept_apart()
    own, step = size_of(number), LANES * size_of(number)
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
                store_columns(source + j * step, target + j * own, target_step, number)
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
                stream(target, load(source, number))
                source += chunk_size
                target += step
            continue
        if direct:
            for line in range(0, width * own, CACHE_LINE):
                prefetch(target + ahead + line)
        for lane in range(0, width, LANES):
            count = min(width - lane, LANES)
            if direct and count == LANES:
                store(target, load(source, number))
            else:
                _put(source, count, target, out_step, out_type, work, number)
            source += chunk_size
            target += LANES * out_step


@_jit
def _store_rows(batch, row, count, work, number):
    """Write short rows in the workspace to the output."""
    kept_apart()
    cols, itemsize = _field(batch, COLS), _bytes_of(_field(batch, OUT_TYPE))
    dense = _axis(batch, _field(batch, LAST), OUT) == itemsize
    rows, size = work + ROWS, cols * size_of(number)
    if dense and _across(batch, OUT) == cols * itemsize:
        _put(rows, cols * count, row.out, itemsize, _field(batch, OUT_TYPE), work, number)
        return
    for i in range(count):
        _scatter(batch, _neighbour(batch, row, i), NONE, cols, rows + i * size, work, number)


@inlined
def _chunk(batch, i, work, number):
    """The address of a chunk."""
    return work + CHUNKS + i * _chunk_size(_field(batch, COLS), size_of(number))


@inlined
def _column_terms(batch, chunk, size, work, number):
    """Replace the entries of a chunk by terms; returns the maxima."""
    source, lanes = _chunk(batch, chunk, work, number), chunk * LANES * size_of(number)
    top = _maximum(source, size * LANES, number)
    shrink, hi = load(work + SHRINKS + lanes, number), load(work + HIS + lanes, number)
    lo = load(work + LOS + lanes, number)
    _exponentials(source, size * LANES, top, shrink, hi, lo, source, number)
    return top


@inlined
def _reduce_columns(batch, row, width, work, number):
    """Set the maxima and totals of columns; returns whether there is nothing special about them."""
    cols = _field(batch, COLS)
    if width % LANES:
        # Columns that do not exist.
        store(work + TOTALS + 8 * (width - width % LANES), splat(1.0))
    for b in range(_blocks(cols)):
        start = b * BLOCK
        size = min(BLOCK, cols - start)
        _load_tile(batch, row, width, start, size, work, number)
        for chunk in range(-(-width // LANES)):
            top = _column_terms(batch, chunk, size, work, number)
            total = _sum_columns(_chunk(batch, chunk, work, number), size, work, number)
            store(work + TOPS + 8 * chunk * LANES, convert(top, np.float64))
            store(work + TOTALS + 8 * chunk * LANES, total)
        if cols > BLOCK:
            for column in range(width):
                state = _column_state(work, column, cols, size_of(number))
                poke(state.weights + 8 * b, peek(work + TOPS + 8 * column, np.float64))
                poke(state.sums + 8 * b, peek(work + TOTALS + 8 * column, np.float64))
    if cols > BLOCK:
        for column in range(width):
            scale = _read_scale(peek(work + TEMPERATURES + 8 * column, np.float64), number)
            state = _column_state(work, column, cols, size_of(number))
            top, best, total = _merge_blocks(_blocks(cols), scale, state)
            poke(work + TOPS + 8 * column, top)
            poke(work + BESTS + 8 * column, best)
            poke(work + TOTALS + 8 * column, total)
    ordinary = True
    for column in range(width):
        ordinary &= peek(work + TOTALS + 8 * column, np.float64) > 0.0
    return ordinary


@_jit
def _log_columns(batch, row, width, work, number):
    """Set the logarithms of the totals of columns."""
    kept_apart()
    cols = _field(batch, COLS)
    for lane in range(0, width, LANES):
        total = load(work + TOTALS + 8 * lane, np.float64)
        rest = splat(0.0)
        if cols <= BLOCK and any_of(total < NEAR_ONE):
            terms = _chunk(batch, lane // LANES, work, number)
            _without_top(terms, cols * LANES, number)
            rest = _sum_columns(terms, cols, work, number)
        store(work + LOGS + 8 * lane, log_of_sum(total, rest))
    if cols > BLOCK:
        for column in range(width):
            top = peek(work + TOPS + 8 * column, np.float64)
            best = peek(work + BESTS + 8 * column, np.int64)
            total = peek(work + TOTALS + 8 * column, np.float64)
            if total < NEAR_ONE:
                scale = _read_scale(peek(work + TEMPERATURES + 8 * column, np.float64), number)
                state = _column_state(work, column, cols, size_of(number))
                neighbour = _neighbour(batch, row, column)
                log_sum = _row_log_sum(
                    batch, neighbour, scale, top, best, total, state, work, number
                )
                poke(work + LOGS + 8 * column, log_sum)


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
            top = load(work + TOPS + 8 * lane, np.float64)
            t, log_sum = load(work + TEMPERATURES + 8 * lane, np.float64), work + LOGS + 8 * lane
            result = convert(top / t + load(log_sum, np.float64), number)
            store(work + ENTRIES + lane * size_of(number), result)
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
                weight = splat(1.0)
                if cols > BLOCK:
                    _column_terms(batch, chunk, size, work, number)
                    for column in range(lane, min(lane + LANES, width)):
                        state = _column_state(work, column, cols, size_of(number))
                        block_weight = peek(state.weights + 8 * b, np.float64)
                        poke(work + SUMS + 8 * (column - lane), block_weight)
                    weight = load(work + SUMS, np.float64)
                weight = weight / load(work + TOTALS + 8 * lane, np.float64)
                _scale(values, size * LANES, weight, values, NONE, number)
            else:
                top = load(work + TOPS + 8 * lane, np.float64)
                log_sum = load(work + LOGS + 8 * lane, np.float64)
                shrink = load(work + SHRINKS + lane * size_of(number), number)
                shrink = convert(shrink, np.float64)
                t = load(work + TEMPERATURES + 8 * lane, np.float64)
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
    state = _row_state(row_state.ctypes.data, cols, itemsize, operation == SOFTMAX)
    by_columns = _field(batch, BY_COLUMNS) != 0
    length = _axis(batch, _field(batch, FIRST) - 1, LENGTH)
    blocks, widest = _blocks(cols), TILE // itemsize
    poke(work + TEMPERATURES, np.nan)
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
        if _go_in_turn(operation, batch):
            done = _in_turn(batch, row, width, scale, work, number)
            count = min(width - done, ONE)
        for i in range(done, done + count):
            neighbour = _neighbour(batch, row, i)
            temperature = peek(neighbour.temperature, np.float64)
            if temperature != scale.temperature:
                scale = _read_scale(temperature, number)
            for b in range(blocks):
                _reduce_block(batch, neighbour, scale, b, state, work, number)
            _plan_row(operation, batch, neighbour, scale, state, work, number)
            if operation != LOGSUMEXP:
                _write_blocks(operation, batch, neighbour, scale, NONE, blocks, state, work, number)
        begin += done + count
    if _field(batch, STREAMED):
        fence()


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
    state = _row_state(row_state.ctypes.data, _field(batch, COLS), itemsize, True)
    row = _row(batch, r)
    return batch, row, _read_scale(peek(row.temperature, np.float64), number), state, work


@_cached_jit
def reduce_row(workspace, row_state, table, r, begin, end):
    """Reduce the blocks [begin, end) of a row.

    Parameters as `softmax`; `row_state` is the same for all calls for the row, at the same time
    too, and `workspace` is not.
    """
    batch, row, scale, state, work = _one_row(workspace, row_state, table, r)
    for b in range(begin, end):
        _reduce_block(batch, row, scale, b, state, work, workspace.dtype.type)


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
        fence()

"""Kernels that read something off rows without writing them.

All results are in float64. A row is read once: what an operation wants beside the sums of the
blocks is taken from a block while that lies in the first cache.

Outputs and lists are addresses, as batches are; 0 stands for none. Candidates, of which the largest
are wanted, are two lists side by side: float64 values and int64 ids.
"""

from typing import NamedTuple

import numpy as np
from numba.extending import overload, register_jitable

from fastsoftmax._numba.kernels import (
    BLOCK,
    COLS,
    DIRECT,
    ENTRIES,
    EXTRAS,
    FINITE,
    GROUP,
    MASKED,
    NATIVE,
    NONE,
    ONE,
    STREAMED,
    TERMS,
    WHERE,
    ZERO,
    _add,
    _aligned,
    _blocks,
    _cached_jit,
    _count,
    _entry,
    _exponentials,
    _field,
    _gather,
    _jit,
    _larger,
    _log_probabilities,
    _maximum,
    _merge_blocks,
    _read_scale,
    _reduce_block,
    _row,
    _row_rest,
    _row_state,
    _scale,
    _scatter,
    _source,
    _unbias,
)
from fastsoftmax._numba.vectors import (
    LANES,
    UNBIAS_F64,
    any_of,
    choose,
    convert,
    counted,
    exp2,
    fence,
    first_of,
    fma,
    inlined,
    kept_apart,
    lanes_of,
    largest,
    load,
    load_part,
    log_of_sum,
    lowest_bit,
    no_counts,
    peek,
    poke,
    size_of,
    splat,
    store,
    sum_counts,
    sum_lanes,
)

# Numba's cache notices a change in this file and in no other. So this is the CRC-32 of kernels.py.
KERNELS = 0xBC752768

# What a batch has that only scoring and sampling know: addresses, 0 for what there is not.
BITMASK, BITMASK_STEP = map(np.int64, range(2))
OFFSETS, IDS, BIAS, PENALTY, REDUCTION = map(np.int64, range(2, 7))  # of edits

ONE_BIT, ALL_BITS = map(np.uint32, (1, 2**32 - 1))
RESIDUES = np.int64(GROUP)  # what a block's largest entries are bounded by
STEPS = 64  # of a selection before it sorts instead
AT_ONCE = 4 * LANES  # entries that are looked at together


# --------------------------------------------------------------------------------------------------
# The source


class Logits(NamedTuple):
    """A row that may have edits and a mask of bits: its number, and addresses as of `Row`."""

    index: int
    x: int
    out: int
    where: int
    temperature: int


@inlined
def _logits(batch, r):
    """The row of a number."""
    row = _row(batch, r)
    return Logits(r, row.x, row.out, row.where, row.temperature)


def _edited_source(batch, row, start, size, work, number):
    return _source_at(batch, row, start, size, work + ENTRIES, work, number)


@overload(_source)
def _overload_source(batch, row, start, size, work, number):
    return _edited_source if row.instance_class is Logits else None


@inlined
def _source_at(batch, row, start, size, target, work, number):
    """As `_source`; the run is at `target` unless it is in memory as it is needed."""
    if _field(batch, NATIVE):
        if not _field(batch, EXTRAS):
            return row.x + start * size_of(number)
        first, last = _edits(batch, row, start, size)
        if first == last:
            return row.x + start * size_of(number)
    _gather(batch, row, start, size, target, work, number)
    if _field(batch, EXTRAS):
        _edit(batch, row, start, size, target, number)
    return target


@inlined
def _extra(batch, which):
    return peek(_field(batch, EXTRAS) + 8 * which, np.int64)


@_jit
def _edits(batch, row, start, size):
    """The range of the edits of the entries of a row from `start` on."""
    kept_apart()
    offsets, ids = _extra(batch, OFFSETS), _extra(batch, IDS)
    if offsets == 0:
        return 0, 0
    end = peek(offsets + 8 * (row.index + 1), np.int64)
    low, high = peek(offsets + 8 * row.index, np.int64), end
    while low < high:
        middle = low + (high - low) // 2
        if peek(ids + 8 * middle, np.int64) < start:
            low = middle + 1
        else:
            high = middle
    high = low
    while high < end and peek(ids + 8 * high, np.int64) < start + size:
        high += 1
    return low, high


@_jit
def _edit(batch, row, start, size, target, number):
    """Edit entries that have been gathered, and mask them by bits."""
    kept_apart()
    first, last = _edits(batch, row, start, size)
    for i in range(8 * first, 8 * last, 8):
        place = target + (peek(_extra(batch, IDS) + i, np.int64) - start) * size_of(number)
        y = np.float64(peek(place, number)) + peek(_extra(batch, BIAS) + i, np.float64)
        penalty = peek(_extra(batch, PENALTY) + i, np.float64)
        y = y / penalty if y > 0.0 else y * penalty
        poke(place, number(y - peek(_extra(batch, REDUCTION) + i, np.float64)))
    if _extra(batch, BITMASK) == 0:
        return
    i = 0
    while i < size:
        word = _word(batch, row, start + i)
        end = min(i + 32 - (start + i) % 32, size)
        while i < end:
            if word == ALL_BITS:
                i = end
                break
            if not word >> np.uint32((start + i) % 32) & ONE_BIT:
                poke(target + i * size_of(number), number(-np.inf))
            i += 1


@inlined
def _word(batch, row, i):
    """The word of the mask of bits that holds that of an entry."""
    words = _extra(batch, BITMASK) + row.index * _extra(batch, BITMASK_STEP)
    return peek(words + i // 32 * 4, np.uint32)


@_jit
def _is_masked(batch, row, i):
    kept_apart()
    if _field(batch, MASKED) and peek(row.where + _entry(batch, i, WHERE), np.uint8) == 0:
        return True
    if _field(batch, EXTRAS) and _extra(batch, BITMASK):
        return not _word(batch, row, i) >> np.uint32(i % 32) & ONE_BIT
    return False


# --------------------------------------------------------------------------------------------------
# A row


class Scored(NamedTuple):
    """What the blocks of a row merge to."""

    special: bool  # whether the row has no distribution
    top: float
    rest: float  # the sum of the terms without the maximum's own 1
    log_sum: float


@inlined
def _open(workspace, row_state, table):
    """The addresses of a batch and of the workspace, and the state of its rows."""
    batch, work = np.int64(table.ctypes.data), _aligned(workspace.ctypes.data)
    cols, itemsize = _field(batch, COLS), workspace.itemsize
    return batch, work, _row_state(row_state.ctypes.data, cols, itemsize, False)


@inlined
def _scale_of(row, scale, number):
    """The scale of a row, given that of the row before."""
    temperature = peek(row.temperature, np.float64)
    if temperature == scale.temperature:
        return scale
    return _read_scale(temperature, number)


@inlined
def _threshold(scale, top):
    """What an entry has to reach to share the mass at a limit of the temperature."""
    return top if scale.kind == ZERO else -np.finfo(np.float64).max


@inlined
def _log1p(rest):
    return first_of(log_of_sum(splat(1.0 + rest), splat(rest)))


@_jit
def _conclude(batch, row, scale, state, work, number):
    """Merge the blocks of a row."""
    kept_apart()
    top, best, total = _merge_blocks(_blocks(_field(batch, COLS)), scale, state)
    if not total > 0.0:
        return Scored(True, top, 0.0, np.nan)
    if scale.kind == FINITE:
        rest = _row_rest(batch, row, scale, top, best, total, state, work, number)
    else:
        rest = _count(batch, row, _threshold(scale, top), work, number) - 1.0
    return Scored(False, top, rest, _log1p(rest))


@_jit
def _log_probability(x, scale, top, log_sum):
    kept_apart()
    if scale.kind != FINITE:
        return 0.0 - log_sum if x >= _threshold(scale, top) else -np.inf
    shrink = np.float64(scale.shrink)
    # In this order a difference of -0.0 comes to 0.0.
    return (x * shrink - top * shrink) / (scale.temperature * shrink) + (0.0 - log_sum)


@_jit
def _weight(difference, scale):
    """``exp(difference/T)`` for a difference up to 0, in float64, or a limit of it."""
    kept_apart()
    if scale.kind == FINITE:
        t = splat(difference * np.float64(scale.shrink))
        return first_of(exp2(t, splat(scale.wide_hi), splat(scale.wide_lo))) * UNBIAS_F64
    limit = difference == 0.0 if scale.kind == ZERO else difference > -np.inf
    return 1.0 if limit else 0.0


@_jit
def _entry_value(batch, row, i, work, number):
    kept_apart()
    return np.float64(peek(_source(batch, row, i, ONE, work, number), number))


@_jit
def _has_nan(batch, row, work, number):
    kept_apart()
    return _count(batch, row, -np.inf, work, number) < _field(batch, COLS)


@_jit
def _unmasked(batch, row):
    """How many entries of a row are not masked."""
    kept_apart()
    cols = count = _field(batch, COLS)
    if _field(batch, MASKED) or _field(batch, EXTRAS):
        for i in range(cols):
            count -= _is_masked(batch, row, i)
    return count


@inlined
def _load_at(source, i, size, number):
    """The vector of the entries from i on, with -inf for those from `size` on."""
    place = source + i * size_of(number)
    if i + LANES <= size:
        return load(place, number)
    return load_part(place, size - i, -np.inf, number)


@_jit
def _count_above(source, size, than, number):
    """How many entries are above `than`."""
    kept_apart()
    a = b = no_counts(number)
    step = LANES * size_of(number)
    while size >= 2 * LANES:
        a = counted(a, load(source, number) > than)
        b = counted(b, load(source + step, number) > than)
        source += 2 * step
        size -= 2 * LANES
    while size > 0:
        a = counted(a, _load_at(source, NONE, size, number) > than)
        source += step
        size -= LANES
    return sum_counts(a) + sum_counts(b)


# --------------------------------------------------------------------------------------------------
# Log-probabilities of given entries


@_jit
def _finite_sum(source, size, number):
    """The sum of the entries above -inf, and how many there are."""
    kept_apart()
    total = other = splat(0.0)
    count, step = no_counts(number), LANES * size_of(number)
    while size >= 2 * LANES:
        x, y = load(source, number), load(source + step, number)
        total = total + convert(choose(x > -np.inf, x, 0.0), np.float64)
        other = other + convert(choose(y > -np.inf, y, 0.0), np.float64)
        count = counted(counted(count, x > -np.inf), y > -np.inf)
        source += 2 * step
        size -= 2 * LANES
    while size > 0:
        x = _load_at(source, NONE, size, number)
        total = total + convert(choose(x > -np.inf, x, 0.0), np.float64)
        count = counted(count, x > -np.inf)
        source += step
        size -= LANES
    return sum_lanes(total + other, splat(0.0))[0], sum_counts(count)


@_jit
def _mean(batch, row, unmasked, work, number):
    """The mean of the `unmasked` entries that are not masked, where their sum overflows."""
    kept_apart()
    mean = 0.0
    for i in range(_field(batch, COLS)):
        if not _is_masked(batch, row, i):
            mean += _entry_value(batch, row, i, work, number) / unmasked
    return mean


@_cached_jit
def token_logprobs(
    workspace, row_state, table, ids, count, logprobs, ranks, mean, values, begin, end
):
    """Log-probabilities of `count` entries of each of the rows [begin, end), their ranks, and the
    mean of all log-probabilities of a row.

    Parameters
    ----------
    workspace, row_state, table
        As of `kernels.softmax`, without room for terms.
    ids, logprobs, ranks, mean : int
        As `Backend.token_logprobs` has them; the last two may be 0.
    count : int
    values : int
        Room for `count` numbers of float64.
    begin, end : int
    """
    number = workspace.dtype.type
    batch, work, state = _open(workspace, row_state, table)
    scale = _read_scale(1.0, number)
    for r in range(begin, end):
        row_ids, row_logprobs = ids + 8 * r * count, logprobs + 8 * r * count
        row_ranks = ranks + 8 * r * count
        wanted = False
        for j in range(0, 8 * count, 8):
            wanted |= peek(row_ids + j, np.int64) >= 0
            poke(row_logprobs + j, np.nan)
            if ranks:
                poke(row_ranks + j, NONE)
        if mean:
            poke(mean + 8 * r, np.nan)
        if not wanted:
            continue
        row = _logits(batch, r)
        scale = _scale_of(row, scale, number)
        for j in range(0, 8 * count, 8):
            i = peek(row_ids + j, np.int64)
            poke(values + j, _entry_value(batch, row, i, work, number) if i >= 0 else np.inf)
        total, finite = 0.0, 0
        for b in range(_blocks(_field(batch, COLS))):
            block = _reduce_block(batch, row, scale, b, state, work, number)
            if ranks:
                for j in range(0, 8 * count, 8):
                    value = peek(values + j, np.float64)
                    if block.top > value:
                        above = _count_above(block.source, block.size, number(value), number)
                        poke(row_ranks + j, peek(row_ranks + j, np.int64) + above)
            if mean:
                part = _finite_sum(block.source, block.size, number)
                total, finite = total + part[0], finite + part[1]
        scored = _conclude(batch, row, scale, state, work, number)
        for j in range(0, 8 * count, 8):
            i, rank = peek(row_ids + j, np.int64), NONE
            if i < 0:
                continue
            if not scored.special:
                value = peek(values + j, np.float64)
                result = _log_probability(value, scale, scored.top, scored.log_sum)
                poke(row_logprobs + j, result)
                if ranks:
                    rank = peek(row_ranks + j, np.int64) + 1
            elif _is_masked(batch, row, i):
                poke(row_logprobs + j, -np.inf)
            if ranks:
                poke(row_ranks + j, rank)
        if mean:
            unmasked = _unmasked(batch, row)
            if scored.special:
                result = np.nan if unmasked else -np.inf
            elif finite < unmasked or (scale.kind != FINITE and scored.rest + 1.0 < unmasked):
                result = -np.inf
            elif scale.kind == FINITE:
                middle = total / unmasked
                if not abs(middle) < np.inf:
                    middle = _mean(batch, row, unmasked, work, number)
                result = _log_probability(middle, scale, scored.top, scored.log_sum)
            else:
                result = 0.0 - scored.log_sum
            poke(mean + 8 * r, result)


# --------------------------------------------------------------------------------------------------
# The largest entries


class Candidates(NamedTuple):
    """Addresses of values and of ids."""

    values: int
    ids: int


@inlined
def _value(c, i):
    return peek(c.values + 8 * i, np.float64)


@inlined
def _id(c, i):
    return peek(c.ids + 8 * i, np.int64)


@inlined
def _put_candidate(c, i, value, index):
    poke(c.values + 8 * i, value)
    poke(c.ids + 8 * i, index)


@inlined
def _swap(c, i, j):
    value, index = _value(c, i), _id(c, i)
    _put_candidate(c, i, _value(c, j), _id(c, j))
    _put_candidate(c, j, value, index)


@inlined
def _precedes(value, index, other, other_index):
    """Whether a candidate comes before another: larger, or as large with a lower id."""
    return value > other or (value == other and index < other_index)


@inlined
def _before(c, i, j):
    return _precedes(_value(c, i), _id(c, i), _value(c, j), _id(c, j))


@_jit
def _sort(c, low, high):
    """Sort the candidates [low, high), largest first (heapsort: no bad case)."""
    kept_apart()
    size = high - low
    start = size // 2
    while size > 1:
        if start > 0:
            start -= 1
        else:
            size -= 1
            _swap(c, low, low + size)
        root = start
        while 2 * root + 1 < size:
            child = 2 * root + 1
            if child + 1 < size and _before(c, low + child, low + child + 1):
                child += 1
            if not _before(c, low + root, low + child):
                break
            _swap(c, low + root, low + child)
            root = child


@_jit
def _select(c, count, k):
    """Move the k candidates that come first to the front; returns the least value of them.

    Hoare's selection, the median of three as the pivot; after many steps, which an adversary could
    cause, sorting.
    """
    kept_apart()
    low, high, steps = 0, count, 0
    while high - low > 1:
        steps += 1
        if steps > STEPS:
            _sort(c, low, high)
            break
        middle, last = low + (high - low) // 2, high - 1
        if _before(c, middle, low):
            _swap(c, low, middle)
        if _before(c, last, middle):
            _swap(c, middle, last)
            if _before(c, middle, low):
                _swap(c, low, middle)
        value, index = _value(c, middle), _id(c, middle)
        i, j = low, high - 1
        while i <= j:
            while _precedes(_value(c, i), _id(c, i), value, index):
                i += 1
            while _precedes(value, index, _value(c, j), _id(c, j)):
                j -= 1
            if i <= j:
                _swap(c, i, j)
                i += 1
                j -= 1
        if k <= j + 1:
            high = j + 1
        elif k > i:
            low = i
        else:
            break
    least = np.inf
    for i in range(k):
        least = min(least, _value(c, i))
    return least


@_jit
def _block_bound(source, size, k, c, number):
    """A lower bound of the k-th largest of a block: that of the maxima of its residues.

    So of a block whose every entry is a new maximum (ascending logits) few are taken. What lies
    from `c` on is lost.
    """
    kept_apart()
    own = size_of(number)
    for j in range(0, RESIDUES, LANES):
        top = load(source + j * own, number)
        for i in range(RESIDUES, size - size % RESIDUES, RESIDUES):
            top = _larger(load(source + (i + j) * own, number), top)
        wide = convert(top, np.float64)
        store(c.values + 8 * j, choose(wide == wide, wide, -np.inf))
    for j in range(RESIDUES):
        poke(c.ids + 8 * j, j)
    return number(_select(c, RESIDUES, k))


@inlined
def _is_wanted(x, above, least):
    return (x > above) & (x >= least)


@inlined
def _append(lanes, place, index, c, count, number):
    """Append the entries in some lanes of a vector to candidates; returns how many these are."""
    while lanes:
        lane = lowest_bit(lanes)
        value = np.float64(peek(place + lane * size_of(number), number))
        _put_candidate(c, count, value, index + lane)
        count += 1
        lanes &= lanes - 1
    return count


@_jit
def _take_entries(source, size, start, above, least, c, count, number):
    """Append the entries that are above `above` and at least `least` to candidates.

    The first entry has id `start`. Returns how many candidates there are then.
    """
    kept_apart()
    step = LANES * size_of(number)
    place, i = source, 0
    while i + AT_ONCE <= size:
        first = _is_wanted(load(place, number), above, least)
        second = _is_wanted(load(place + step, number), above, least)
        third = _is_wanted(load(place + 2 * step, number), above, least)
        fourth = _is_wanted(load(place + 3 * step, number), above, least)
        if any_of(first | second | third | fourth):
            at = start + i
            count = _append(lanes_of(first), place, at, c, count, number)
            count = _append(lanes_of(second), place + step, at + LANES, c, count, number)
            count = _append(lanes_of(third), place + 2 * step, at + 2 * LANES, c, count, number)
            count = _append(lanes_of(fourth), place + 3 * step, at + 3 * LANES, c, count, number)
        place += 4 * step
        i += AT_ONCE
    while i < size:
        lanes = lanes_of(_is_wanted(_load_at(source, i, size, number), above, least))
        count = _append(lanes, source + i * size_of(number), start + i, c, count, number)
        i += LANES
    return count


class Best(NamedTuple):
    """How many candidates there are for the k largest entries, and a value that these are above."""

    count: int
    least: float


@inlined
def _take_best(best, k, source, size, start, top, c, number):
    """Look for the k largest among the entries of a block whose largest is `top`.

    Ids ascend, so an entry that is equal to the least of k comes too late.
    """
    if not top > best.least:
        return best
    least, bound = number(best.least), number(-np.inf)
    few = size < 2 * RESIDUES or k > RESIDUES // 2
    if not few and (best.least == -np.inf or _count_above(source, size, least, number) > 2 * k):
        free = Candidates(c.values + 8 * best.count, c.ids + 8 * best.count)
        bound = _block_bound(source, size, k, free, number)
    count = _take_entries(source, size, start, least, bound, c, best.count, number)
    best = Best(count, best.least)
    if count >= 2 * k + LANES or best.least == -np.inf:
        return _prune(best, k, c)
    return best


@_jit
def _prune(best, k, c):
    """Leave no more than k candidates."""
    kept_apart()
    if best.count <= k:
        return best
    return Best(k, _select(c, best.count, k))


@register_jitable
def best_room(k: int) -> int:
    """How many candidates there must be room for to find the k largest."""
    return 2 * k + 2 * BLOCK


@_cached_jit
def topk(workspace, row_state, table, k, ids, logprobs, values, indices, begin, end):
    """The k largest entries of each of the rows [begin, end).

    Parameters
    ----------
    workspace, row_state, table
        As of `kernels.softmax`, without room for terms.
    k : int
    ids, logprobs : int
        As `Backend.topk` has them.
    values, indices : int
        Room for `best_room(k)` numbers of 8 bytes each.
    begin, end : int
    """
    number = workspace.dtype.type
    batch, work, state = _open(workspace, row_state, table)
    scale = _read_scale(1.0, number)
    c = Candidates(values, indices)
    for r in range(begin, end):
        row = _logits(batch, r)
        scale = _scale_of(row, scale, number)
        best = Best(0, -np.inf)
        for b in range(_blocks(_field(batch, COLS))):
            block = _reduce_block(batch, row, scale, b, state, work, number)
            best = _take_best(best, k, block.source, block.size, b * BLOCK, block.top, c, number)
        scored = _conclude(batch, row, scale, state, work, number)
        count = NONE if scored.special else _prune(best, k, c).count
        _sort(c, NONE, count)
        for j in range(k):
            index, result = np.int64(-1), np.nan
            if j < count:
                index = _id(c, j)
                result = _log_probability(_value(c, j), scale, scored.top, scored.log_sum)
            poke(ids + 8 * (r * k + j), index)
            poke(logprobs + 8 * (r * k + j), result)


# --------------------------------------------------------------------------------------------------
# Moments


@inlined
def _add_part(total, value, number):
    """Add numbers to a sum in float64; that of float64 keeps what it loses."""
    wide = convert(value, np.float64)
    if size_of(number) == 4:
        return total[0] + wide, total[1]
    return _add(total, (wide, splat(0.0)))


@inlined
def _moment_terms(x, terms, minus_top, shrink, number):
    """Terms times t, and times t**2."""
    t = fma(x, shrink, minus_top)
    e = load(terms, number)
    first = choose(t > -np.inf, t, 0.0) * e
    return first, choose(t > -np.inf, t, 0.0) * first


@_jit
def _moment_sums(source, terms, size, top, shrink, number):
    """Sums of terms times ``t = (source - top)*shrink``, and times its square, without `shrink`.

    Behind the terms are zeros up to a whole GROUP.
    """
    kept_apart()
    minus_top = splat(number(0.0 - shrink if top == -np.inf else 0.0 - top * shrink))
    factor, step = splat(shrink), LANES * size_of(number)
    zero = (splat(0.0), splat(0.0))
    first, second = zero, zero
    for i in range(0, size, AT_ONCE):
        whole = i + AT_ONCE <= size
        place = source + i * size_of(number)
        if whole:
            x, y = load(place, number), load(place + step, number)
            z, w = load(place + 2 * step, number), load(place + 3 * step, number)
        else:
            x, y = _load_at(source, i, size, number), _load_at(source, i + LANES, size, number)
            z = _load_at(source, i + 2 * LANES, size, number)
            w = _load_at(source, i + 3 * LANES, size, number)
        a = _moment_terms(x, terms, minus_top, factor, number)
        b = _moment_terms(y, terms + step, minus_top, factor, number)
        c = _moment_terms(z, terms + 2 * step, minus_top, factor, number)
        d = _moment_terms(w, terms + 3 * step, minus_top, factor, number)
        first = _add_part(first, (a[0] + b[0]) + (c[0] + d[0]), number)
        second = _add_part(second, (a[1] + b[1]) + (c[1] + d[1]), number)
        terms += 4 * step
    one, two, unit = sum_lanes(*first), sum_lanes(*second), np.float64(shrink)
    unbias = np.float64(_unbias(number))
    return (one[0] + one[1]) * unbias / unit, (two[0] + two[1]) * unbias / unit / unit


@_jit
def _wide_moments(source, size, top, scale, number):
    """The same sums, and that of the terms, in float64 and for all temperatures."""
    kept_apart()
    zeroth = first = second = 0.0
    for i in range(size):
        x = np.float64(peek(source + i * size_of(number), number))
        weight = _weight(x - top, scale) if x > -np.inf else 0.0
        if weight > 0.0:
            zeroth += weight
            first += weight * (x - top)
            second += weight * (x - top) * (x - top)
    return zeroth, first, second


@register_jitable
def moments_room(cols: int) -> int:
    """Bytes of four numbers of float64 for each block."""
    return 32 * -(-cols // BLOCK)


@_cached_jit
def moments(workspace, row_state, table, out, sums, begin, end):
    """Log-sum-exp, mean, variance and entropy of the rows [begin, end).

    Parameters
    ----------
    workspace, row_state, table
        As of `kernels.softmax`, without room for terms.
    out : int
        As `Backend.moments` has it.
    sums : int
        Room for `moments_room` bytes.
    begin, end : int
    """
    number = workspace.dtype.type
    batch, work, state = _open(workspace, row_state, table)
    scale = _read_scale(1.0, number)
    blocks = _blocks(_field(batch, COLS))
    for r in range(begin, end):
        row, result = _logits(batch, r), out + 32 * r
        scale = _scale_of(row, scale, number)
        # Beyond, squares of distances that count would not be normal numbers of float32.
        narrow = scale.kind == FINITE and (size_of(number) == 8 or 1e-20 < scale.temperature < 1e9)
        for b in range(blocks):
            block = _reduce_block(batch, row, scale, b, state, work, number)
            zeroth = peek(state.sums + 8 * b, np.float64)
            if narrow:
                top = number(block.top)
                terms = work + TERMS
                first, second = _moment_sums(
                    block.source, terms, block.size, top, scale.shrink, number
                )
            else:
                zeroth, first, second = _wide_moments(
                    block.source, block.size, block.top, scale, number
                )
            place = sums + 32 * b
            poke(place, block.top)
            poke(place + 8, zeroth)
            poke(place + 16, first)
            poke(place + 24, second)
        scored = _conclude(batch, row, scale, state, work, number)
        top, t = scored.top, scale.temperature
        if scored.special:
            nan = _has_nan(batch, row, work, number)
            rest = 0.0 if not nan and _unmasked(batch, row) == 0 else np.nan
            poke(result, np.nan if nan else top)
            for j in range(8, 32, 8):
                poke(result + j, rest)
            continue
        zeroth = first = second = 0.0
        for b in range(blocks):
            place = sums + 32 * b
            shift = peek(place, np.float64) - top
            weight = peek(state.weights + 8 * b, np.float64)
            if scale.kind != FINITE:
                weight = _weight(shift, scale)
            if weight > 0.0:
                mass, middle = peek(place + 8, np.float64), peek(place + 16, np.float64)
                square = peek(place + 24, np.float64)
                zeroth += weight * mass
                first += weight * (middle + shift * mass)
                second += weight * (square + shift * (2.0 * middle + shift * mass))
        mean = first / zeroth
        poke(result, np.nan if t == 0.0 else top / t + scored.log_sum)
        poke(result + 8, top + mean)
        variance = second / zeroth - mean * mean
        if variance != variance:  # infinity less infinity
            variance = np.inf
        poke(result + 16, max(variance, 0.0))
        poke(result + 24, scored.log_sum - (mean / t if scale.kind == FINITE else 0.0))


# --------------------------------------------------------------------------------------------------
# Two batches


class Divergence(NamedTuple):
    """Sums over a block."""

    p: float  # the terms of p
    q: float
    cross: float  # terms of p times the difference of the logarithms of both terms
    lost: float  # how many entries are -inf in q alone


@inlined
def _minus_top(top, scale):
    shrink = np.float64(scale.shrink)
    return splat(0.0 - shrink if top == -np.inf else top * (0.0 - shrink))


@_jit
def _divergence(p, q, size, p_top, q_top, p_scale, q_scale):
    """For entries of float64 at two addresses, against a maximum each."""
    kept_apart()
    p_shrink, q_shrink = splat(np.float64(p_scale.shrink)), splat(np.float64(q_scale.shrink))
    p_minus, q_minus = _minus_top(p_top, p_scale), _minus_top(q_top, q_scale)
    p_hi, p_lo = splat(p_scale.wide_hi), splat(p_scale.wide_lo)
    q_hi, q_lo = splat(q_scale.wide_hi), splat(q_scale.wide_lo)
    p_inverse = splat(1.0 / (p_scale.temperature * np.float64(p_scale.shrink)))
    q_inverse = splat(1.0 / (q_scale.temperature * np.float64(q_scale.shrink)))
    p_sum, q_sum, cross, lost = splat(0.0), splat(0.0), splat(0.0), splat(0.0)
    for i in range(0, size, LANES):
        x, y = _load_at(p, i, size, np.float64), _load_at(q, i, size, np.float64)
        t, u = fma(x, p_shrink, p_minus), fma(y, q_shrink, q_minus)
        e = exp2(t, p_hi, p_lo) * UNBIAS_F64
        p_sum = p_sum + e
        q_sum = q_sum + exp2(u, q_hi, q_lo) * UNBIAS_F64
        in_p, in_q = x > -np.inf, y > -np.inf
        term = e * (t * p_inverse - u * q_inverse)
        cross = cross + choose((e > 0.0) & in_q, term, 0.0)
        lost = lost + choose(in_p, choose(in_q, splat(0.0), splat(1.0)), 0.0)
    zero = splat(0.0)
    return Divergence(
        sum_lanes(p_sum, zero)[0],
        sum_lanes(q_sum, zero)[0],
        sum_lanes(cross, zero)[0],
        sum_lanes(lost, zero)[0],
    )


@_jit
def _top_of_row(batch, row, work):
    """The largest entry in float64; NaN in a row without a distribution."""
    kept_apart()
    top, bad = -np.inf, False
    for start in range(0, _field(batch, COLS), BLOCK):
        size = min(BLOCK, _field(batch, COLS) - start)
        source = _source(batch, row, start, size, work, np.float64)
        for i in range(size):
            x = peek(source + 8 * i, np.float64)
            bad |= not x < np.inf
            top = max(top, x)
    return np.nan if bad or top == -np.inf else top


@_jit
def _limit_divergence(p_batch, q_batch, p, q, p_scale, q_scale, q_entries, work):
    """Where a temperature is at a limit which entries count is known after a read."""
    kept_apart()
    p_top, q_top = _top_of_row(p_batch, p, work), _top_of_row(q_batch, q, work)
    if p_top != p_top or q_top != q_top:
        return np.nan
    p_sum = q_sum = cross = 0.0
    for start in range(0, _field(p_batch, COLS), BLOCK):
        size = min(BLOCK, _field(p_batch, COLS) - start)
        x = _source(p_batch, p, start, size, work, np.float64)
        y = _source_at(q_batch, q, start, size, q_entries, work, np.float64)
        for i in range(0, 8 * size, 8):
            p_x, q_x = peek(x + i, np.float64), peek(y + i, np.float64)
            log_p = _log_probability(p_x, p_scale, p_top, 0.0)
            log_q = _log_probability(q_x, q_scale, q_top, 0.0)
            term = _weight(p_x - p_top, p_scale)
            p_sum += term
            q_sum += _weight(q_x - q_top, q_scale)
            if log_p > -np.inf:
                if not log_q > -np.inf:
                    return np.inf
                cross += term * (log_p - log_q)
    return cross / p_sum + _log1p(q_sum - 1.0) - _log1p(p_sum - 1.0)


@inlined
def _put_divergence(batch, row, result, out):
    """Write a result, which rounding may have brought below 0, or that of an empty row."""
    if result != result and _unmasked(batch, row) == 0:
        result = 0.0
    poke(out + 8 * row.index, 0.0 if result < 0.0 else result)


def divergence_room(cols: int) -> int:
    """Bytes of a block and a vector of float64, and of six numbers for each block."""
    return 8 * (BLOCK + LANES) + 48 * -(-cols // BLOCK)


@_cached_jit
def kl_divergence(workspace, p_table, q_table, out, q_entries, begin, end):
    """``sum(p * (log(p) - log(q)))`` of the rows [begin, end) of two batches, all in float64.

    Parameters
    ----------
    workspace : array of float64
    p_table, q_table : array of int64
        Batches, as of `kernels.softmax`.
    out : int
        As `Backend.kl_divergence` has it.
    q_entries : int
        Room for `divergence_room` bytes.
    begin, end : int
    """
    p_batch, q_batch = np.int64(p_table.ctypes.data), np.int64(q_table.ctypes.data)
    work, number = _aligned(workspace.ctypes.data), workspace.dtype.type
    cols, sums = _field(p_batch, COLS), q_entries + 8 * (BLOCK + LANES)
    p_scale = q_scale = _read_scale(1.0, number)
    for r in range(begin, end):
        p, q = _logits(p_batch, r), _logits(q_batch, r)
        p_scale, q_scale = _scale_of(p, p_scale, number), _scale_of(q, q_scale, number)
        if p_scale.kind != FINITE or q_scale.kind != FINITE:
            result = _limit_divergence(p_batch, q_batch, p, q, p_scale, q_scale, q_entries, work)
            _put_divergence(p_batch, p, result, out)
            continue
        p_top = q_top = -np.inf
        for b in range(_blocks(cols)):
            size = min(BLOCK, cols - b * BLOCK)
            x = _source(p_batch, p, b * BLOCK, size, work, number)
            y = _source_at(q_batch, q, b * BLOCK, size, q_entries, work, number)
            x_top, y_top = largest(_maximum(x, size, number)), largest(_maximum(y, size, number))
            part = _divergence(x, y, size, x_top, y_top, p_scale, q_scale)
            p_top, q_top = max(p_top, x_top), max(q_top, y_top)
            place = sums + 48 * b
            poke(place, x_top)
            poke(place + 8, y_top)
            poke(place + 16, part.p)
            poke(place + 24, part.q)
            poke(place + 32, part.cross)
            poke(place + 40, part.lost)
        p_sum = q_sum = cross = lost = 0.0
        for b in range(_blocks(cols)):
            place = sums + 48 * b
            x_shift, y_shift = peek(place, np.float64) - p_top, peek(place + 8, np.float64) - q_top
            part = peek(place + 16, np.float64)
            lost += peek(place + 40, np.float64)
            weight = _weight(y_shift, q_scale)
            if weight != 0.0:
                q_sum += weight * peek(place + 24, np.float64)
            weight = _weight(x_shift, p_scale)
            if weight != 0.0:
                p_sum += weight * part
                moved = x_shift / p_scale.temperature
                if y_shift > -np.inf:
                    moved -= y_shift / q_scale.temperature
                cross += weight * (peek(place + 32, np.float64) + part * moved)
        if not (p_sum > 0.0 and q_sum > 0.0):
            result = np.nan
        elif lost > 0.0:
            result = np.inf
        else:
            result = cross / p_sum + _log1p(q_sum - 1.0) - _log1p(p_sum - 1.0)
        _put_divergence(p_batch, p, result, out)


# --------------------------------------------------------------------------------------------------
# Rows that are parts of larger ones


@_cached_jit
def reduce(workspace, row_state, table, maximum, rest, begin, end):
    """The maximum and the rest of the sum of each of the rows [begin, end).

    Parameters
    ----------
    workspace, row_state, table
        As of `kernels.softmax`, without room for terms.
    maximum, rest : int
        As `Backend.reduce` has them.
    begin, end : int
    """
    number = workspace.dtype.type
    batch, work, state = _open(workspace, row_state, table)
    scale = _read_scale(1.0, number)
    for r in range(begin, end):
        row = _logits(batch, r)
        scale = _scale_of(row, scale, number)
        for b in range(_blocks(_field(batch, COLS))):
            _reduce_block(batch, row, scale, b, state, work, number)
        scored = _conclude(batch, row, scale, state, work, number)
        nan = scored.special and _has_nan(batch, row, work, number)
        poke(maximum + 8 * r, np.nan if nan else scored.top)
        poke(rest + 8 * r, scored.rest)


@_jit
def _write_limit(batch, row, scale, start, size, top, rest, log, work, number):
    """The output of a part of a row at a limit of the temperature, or of one that has none."""
    kept_apart()
    source, share = _source(batch, row, start, size, work, number), np.nan
    if abs(top) < np.inf:
        share = 0.0 - _log1p(rest) if log else 1.0 / (1.0 + rest)
    for i in range(size):
        place = i * size_of(number)
        if share == share:
            counts = np.float64(peek(source + place, number)) >= _threshold(scale, top)
        else:
            counts = not _is_masked(batch, row, start + i)
        poke(work + TERMS + place, number(share if counts else -np.inf if log else 0.0))
    _scatter(batch, row, start, size, work + TERMS, work, number)


@_cached_jit
def normalize(workspace, table, maximum, rest, log, begin, end):
    """Probabilities of the entries of the rows [begin, end), or the logarithms of these.

    Parameters
    ----------
    workspace, table
        As of `kernels.softmax`.
    maximum, rest : int
        As `Backend.normalize` has them.
    log : bool
    begin, end : int
    """
    number = workspace.dtype.type
    batch, work = np.int64(table.ctypes.data), _aligned(workspace.ctypes.data)
    scale = _read_scale(1.0, number)
    streamed = _field(batch, STREAMED) * _field(batch, DIRECT)
    for r in range(begin, end):
        row = _logits(batch, r)
        scale = _scale_of(row, scale, number)
        top, others = peek(maximum + 8 * r, np.float64), peek(rest + 8 * r, np.float64)
        log_sum, probability = _log1p(others), 1.0 / (1.0 + others)
        special = not abs(top) < np.inf or scale.kind != FINITE
        for b in range(_blocks(_field(batch, COLS))):
            start = b * BLOCK
            size = min(BLOCK, _field(batch, COLS) - start)
            if special:
                _write_limit(batch, row, scale, start, size, top, others, log, work, number)
                continue
            source, target = _source(batch, row, start, size, work, number), work + TERMS
            if _field(batch, DIRECT):
                target = row.out + start * size_of(number)
            if log:
                shrink, t = splat(np.float64(scale.shrink)), splat(scale.temperature)
                tops, logs = splat(top), splat(log_sum)
                _log_probabilities(source, size, tops, logs, shrink, t, target, streamed, number)
            else:
                shrink, hi, lo = splat(scale.shrink), splat(scale.hi), splat(scale.lo)
                terms, tops = work + TERMS, splat(number(top))
                _exponentials(source, size, tops, shrink, hi, lo, terms, number)
                _scale(terms, size, splat(probability), target, streamed, number)
            if not _field(batch, DIRECT):
                _scatter(batch, row, start, size, target, work, number)
    if _field(batch, STREAMED):
        fence()

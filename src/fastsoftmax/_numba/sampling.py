"""Kernels that draw from rows: temperature, top-k, top-p, min-p and the draw.

A row is read once and a little more. What is drawn is decided by weights exp((x - max)/T) and sums
of them in float64 whatever the logits are, so that every implementation that does the same draws
the same. With top-k or min-p weights are needed for some candidates only, and the read looks for
these and the maximum. Otherwise blocks are summed, and a uniform picks a block by the prefix of the
sums and then an entry within it. For top-p, entries below (1 - top_p)/vocab of the mass cannot be
needed: all of them together are less than what may be left out. The crossing entry is found among
the others by the masses of equal ranges of logits, narrowed until few are left: linear for any
input.

Blocks of float32 are summed in float32 at first, as by every other operation. A decision that the
error of these sums could change is taken again with exact ones, which is rare.
"""

import math
from typing import NamedTuple

import numpy as np
from numba.extending import register_jitable

from fastsoftmax._numba.kernels import (
    BLOCK,
    COLS,
    F32,
    F64,
    FINITE,
    LAST,
    NONE,
    X_TYPE,
    ZERO,
    RowState,
    X,
    _add,
    _aligned,
    _axis,
    _blocks,
    _bytes_of,
    _cached_jit,
    _exponentials,
    _field,
    _jit,
    _larger,
    _maximum,
    _read_scale,
    _reduce_block,
    _source,
    _take,
)
from fastsoftmax._numba.scoring import (
    AT_ONCE,
    Best,
    Candidates,
    _count_above,
    _id,
    _load_at,
    _log1p,
    _log_probability,
    _logits,
    _precedes,
    _prune,
    _put_candidate,
    _scale_of,
    _swap,
    _take_best,
    _take_entries,
    _value,
    best_room,
)
from fastsoftmax._numba.vectors import (
    CACHE_LINE,
    LANES,
    UNBIAS_F64,
    convert,
    counted,
    exp2_weight,
    fma,
    inlined,
    kept_apart,
    largest,
    load,
    load_part,
    no_counts,
    peek,
    poke,
    prefetch,
    size_of,
    splat,
    store,
    sum_counts,
    sum_lanes,
)

# Numba's cache notices a change in this file and in no other. So this is the CRC-32 of scoring.py.
SCORING = 0xA49B3AE5

BINS = 1024  # ranges of logits
FEW = 48  # candidates that are sorted
DOUBT = 2.0**-21  # relative error of sums in float32: of a term, and of an addition
AHEAD = 4 * BLOCK  # entries: a read that does little has to ask earlier
LEAST_F32, LEAST_F64 = (float(np.finfo(number).min) for number in (np.float32, np.float64))


# --------------------------------------------------------------------------------------------------
# Memory, and what is known of a row


class Room(NamedTuple):
    """Addresses of memory for one row."""

    # Of each block: the maximum, the sum against it, what that counts in the row.
    tops: int
    sums: int
    masses: int
    bins: int
    few: Candidates
    few_weights: int
    block: int  # its entries in float64
    weights: int  # of candidates, or of a block
    c: Candidates


class Filters(NamedTuple):
    """Addresses of the filters of the rows."""

    top_k: int
    top_p: int
    min_p: int


class Draw(NamedTuple):
    """What the filters leave of a row."""

    special: bool  # there is no distribution
    plain: bool  # all entries above -infinity are left, and there are no candidates
    exact: bool  # whether the sums of blocks are as exact as weights
    count: int  # of survivors among the candidates
    top: float
    total: float  # of the weights of what is left
    rest: float  # the same without one of the largest, which are 1


@inlined
def _room_at(address, cols, capacity):
    each, block = 8 * (_blocks(cols) + LANES), 8 * (BLOCK + LANES)
    tops = _aligned(address)
    bins = tops + 3 * each
    few = bins + 8 * BINS
    entries = few + 24 * FEW
    weights = entries + block
    values = weights + 8 * capacity
    return Room(
        tops,
        tops + each,
        tops + 2 * each,
        bins,
        Candidates(few, few + 8 * FEW),
        few + 16 * FEW,
        entries,
        weights,
        Candidates(values, values + 8 * capacity),
    )


@register_jitable
def capacity(cols: int, top_k: int) -> int:
    """How many candidates there must be room for, for values of top-k up to one below `cols`."""
    return max(cols, best_room(top_k)) + LANES


@register_jitable
def room_size(cols: int, capacity: int) -> int:
    """Bytes of the memory for one row."""
    blocks = 24 * (-(-cols // BLOCK) + LANES)
    return CACHE_LINE + blocks + 8 * BINS + 24 * FEW + 8 * (BLOCK + LANES) + 24 * capacity


# --------------------------------------------------------------------------------------------------
# Weights


@_jit
def _maximum_and_nan(source, size, ahead, lines, number):
    """The largest of some entries, and whether there is a NaN among them.

    Meanwhile as many cache lines for each four vectors are fetched from the address `ahead` on.
    """
    kept_apart()
    a = b = c = d = splat(number(-np.inf))
    nan = no_counts(number)
    step = LANES * size_of(number)
    while size >= 4 * LANES:
        for _ in range(lines):
            prefetch(ahead)
            ahead += CACHE_LINE
        x, y = load(source, number), load(source + step, number)
        z, w = load(source + 2 * step, number), load(source + 3 * step, number)
        a, b, c, d = _larger(x, a), _larger(y, b), _larger(z, c), _larger(w, d)
        nan = counted(nan, (x != x) | (y != y))
        nan = counted(nan, (z != z) | (w != w))
        source += 4 * step
        size -= 4 * LANES
    while size > 0:
        x = _load_at(source, NONE, size, number)
        a = _larger(x, a)
        nan = counted(nan, x != x)
        source += step
        size -= LANES
    return largest(_larger(_larger(a, b), _larger(c, d))), sum_counts(nan) > 0


@_jit
def _wide_sum(source, size, top, scale, number):
    """The sum of ``exp((x - top)/T)`` in float64, of float32."""
    kept_apart()
    shrink, hi = splat(np.float64(scale.shrink)), splat(scale.wide_hi)
    minus_top = splat(0.0 if top == -np.inf else 0.0 - top * np.float64(scale.shrink))
    a, b, step = splat(0.0), splat(0.0), LANES * size_of(number)
    while size >= 2 * LANES:
        t = fma(convert(load(source, number), np.float64), shrink, minus_top)
        u = fma(convert(load(source + step, number), np.float64), shrink, minus_top)
        a = a + exp2_weight(t, hi)
        b = b + exp2_weight(u, hi)
        source += 2 * step
        size -= 2 * LANES
    while size > 0:
        t = fma(convert(_load_at(source, NONE, size, number), np.float64), shrink, minus_top)
        a = a + exp2_weight(t, hi)
        source += step
        size -= LANES
    return sum_lanes(a + b, splat(0.0))[0] * UNBIAS_F64


@_jit
def _weigh(values, count, top, scale, weights):
    """Weights of values of float64 against `top`, with zeros up to a whole vector."""
    kept_apart()
    if scale.kind == FINITE:
        tops, shrink = splat(top), splat(np.float64(scale.shrink))
        hi, lo = splat(scale.wide_hi), splat(scale.wide_lo)
        _exponentials(values, count, tops, shrink, hi, lo, weights, np.float64)
        for i in range(0, 8 * count, 8 * LANES):
            store(weights + i, load(weights + i, np.float64) * UNBIAS_F64)
        return
    for i in range(0, 8 * count, 8):
        value = peek(values + i, np.float64)
        counts = value == top if scale.kind == ZERO else value > -np.inf
        poke(weights + i, 1.0 if counts else 0.0)


@_jit
def _block_entries(batch, row, b, room, work, number):
    """Make a block of entries in float64; returns how many."""
    kept_apart()
    size = min(BLOCK, _field(batch, COLS) - b * BLOCK)
    source, own = _source(batch, row, b * BLOCK, size, work, number), size_of(number)
    memory_type = F32 if own == 4 else F64
    _take(source, own, memory_type, NONE, NONE, size, room.block, work, np.float64)
    return size


@_jit
def _mass(weights, count):
    """The sum of weights, with what additions lose: thousands of equal roundings would show."""
    kept_apart()
    total = (splat(0.0), splat(0.0))
    while count >= LANES:
        total = _add(total, (load(weights, np.float64), splat(0.0)))
        weights += 8 * LANES
        count -= LANES
    if count > 0:
        total = _add(total, (load_part(weights, count, 0.0, np.float64), splat(0.0)))
    mass, lost = sum_lanes(total[0], total[1])
    return mass + lost


@_jit
def _sum_exactly(batch, row, scale, room, work, number):
    """Set the sums of the blocks in float64."""
    kept_apart()
    cols = _field(batch, COLS)
    for b in range(_blocks(cols)):
        size = min(BLOCK, cols - b * BLOCK)
        source = _source(batch, row, b * BLOCK, size, work, number)
        top = peek(room.tops + 8 * b, np.float64)
        poke(room.sums + 8 * b, _wide_sum(source, size, top, scale, number))


# --------------------------------------------------------------------------------------------------
# Filters


@inlined
def _least_at(top, distance, number):
    """What is not below this is at most so far below the maximum, with a margin for the rounding of
    the threshold: what is too much is left out later."""
    exact = top - distance - 1e-6 * (abs(top) + distance)
    return number(max(exact, LEAST_F32 if size_of(number) == 4 else LEAST_F64))


@_jit
def _take_near(batch, row, top, distance, room, work, number):
    """Candidates of what is at most so far below the maximum; returns how many."""
    kept_apart()
    least = _least_at(top, distance, number)
    count, above = NONE, number(-np.inf)
    for b in range(_blocks(_field(batch, COLS))):
        if peek(room.tops + 8 * b, np.float64) >= least:
            start = b * BLOCK
            size = min(BLOCK, _field(batch, COLS) - start)
            source = _source(batch, row, start, size, work, number)
            count = _take_entries(source, size, start, above, least, room.c, count, number)
    return count


@_jit
def _likely_distance(batch, row, scale, top, may, furthest, room, work, number):
    """About how far below the maximum a share `may` of the mass lies, by what two blocks tell.

    -1 if that is beyond `furthest`.
    """
    kept_apart()
    third, per_unit = _blocks(_field(batch, COLS)) // 3, BINS / furthest
    least, above = _least_at(top, furthest, number), number(-np.inf)
    count, below = NONE, 0.0
    for b in (third, 2 * third):
        source = _source(batch, row, b * BLOCK, BLOCK, work, number)
        count = _take_entries(source, BLOCK, b * BLOCK, above, least, room.c, count, number)
        below += peek(room.masses + 8 * b, np.float64)
    _weigh(room.c.values, count, top, scale, room.weights)
    below = max(below - _mass(room.weights, count), 0.0)
    for i in range(0, 8 * BINS, 8):
        poke(room.bins + i, 0.0)
    for i in range(count):
        at = min((top - _value(room.c, i)) * per_unit, BINS - 1.0)
        place = room.bins + 8 * np.int64(at)
        poke(place, peek(place, np.float64) + peek(room.weights + 8 * i, np.float64))
    i = BINS
    while i > 1 and below + peek(room.bins + 8 * (i - 1), np.float64) <= may:
        i -= 1
        below += peek(room.bins + 8 * i, np.float64)
    return i / per_unit if i < BINS else -1.0


@_jit
def _take_nucleus(batch, row, scale, top_p, top, total, doubt, room, work, number):
    """Candidates for top-p with their weights, all that can be needed among them.

    `total` is the mass of all entries, with a relative error of `doubt`. Returns how many there
    are.
    """
    kept_apart()
    cols, out, distance = _field(batch, COLS), 1.0 - top_p, np.inf
    if scale.kind == FINITE:
        # What is below this share of the mass is less than what may be left out, taken together; a
        # little lower for what rounding may do.
        distance = scale.temperature * 1.000001 * -math.log(out / cols * total * 0.999)
        if _blocks(cols) >= 8 and out > 1e-6:
            # Mostly far fewer entries will do: those above about half of what may be left out.
            may = 0.5 * out * total * (2.0 * BLOCK) / cols
            nearer = _likely_distance(batch, row, scale, top, may, distance, room, work, number)
            if nearer >= 0.0:
                count = _take_near(batch, row, top, nearer, room, work, number)
                _weigh(room.c.values, count, top, scale, room.weights)
                # Whether all that is needed has been taken is known by its mass.
                if _mass(room.weights, count) >= top_p * total * (1.0 + 1e-12 + 4.0 * doubt):
                    return count
    count = _take_near(batch, row, top, distance, room, work, number)
    _weigh(room.c.values, count, top, scale, room.weights)
    return count


@_jit
def _crossing(room, count, top, target, doubt):
    """The last candidate, by value, then id, that is needed for a mass of at least `target`.

    The range of values that holds it is cut into equal bins, of which the one that reaches the
    target is the next range. Returns its value, its id, and whether no error of `doubt` in the
    target could change it. `top` is the largest.
    """
    kept_apart()
    c, before, inside = room.c, 0.0, count
    bottom = top
    for i in range(count):
        bottom = min(bottom, _value(c, i))
    while inside > FEW and top > bottom:
        # Quarters, so that the range of a row of huge logits does not overflow.
        high = top / 4
        per_unit = (BINS - 1) / (high - bottom / 4)
        if not per_unit < 1e300:
            break  # as good as equal
        for i in range(0, 8 * BINS, 8):
            poke(room.bins + i, 0.0)
        for i in range(count):
            value = _value(c, i)
            if bottom <= value <= top:
                place = room.bins + 8 * np.int64((high - value / 4) * per_unit)
                weight = peek(room.weights + 8 * i, np.float64)
                poke(place, peek(place, np.float64) + weight)
        # The bin that reaches the target, or the last one should rounding leave none.
        last, b = np.int64((high - bottom / 4) * per_unit), NONE
        while b < last and before + peek(room.bins + 8 * b, np.float64) < target:
            before += peek(room.bins + 8 * b, np.float64)
            b += 1
        highest, lowest, inside = bottom, top, NONE
        for i in range(count):
            value = _value(c, i)
            if bottom <= value <= top and np.int64((high - value / 4) * per_unit) == b:
                highest, lowest = max(highest, value), min(lowest, value)
                inside += 1
        top, bottom = highest, lowest
    few, size, total = room.few, NONE, before
    value, index = bottom, np.int64(np.iinfo(np.int64).max)
    for i in range(count):
        if not bottom <= _value(c, i) <= top:
            continue
        weight = peek(room.weights + 8 * i, np.float64)
        if inside > FEW:  # equal, and in order
            value, index = _value(c, i), _id(c, i)
            before = total
            total += weight
            if total >= target:
                break
            continue
        at = size
        size += 1
        while at > 0 and _precedes(_value(c, i), _id(c, i), _value(few, at - 1), _id(few, at - 1)):
            _put_candidate(few, at, _value(few, at - 1), _id(few, at - 1))
            poke(room.few_weights + 8 * at, peek(room.few_weights + 8 * (at - 1), np.float64))
            at -= 1
        _put_candidate(few, at, _value(c, i), _id(c, i))
        poke(room.few_weights + 8 * at, weight)
    for i in range(size):
        value, index = _value(few, i), _id(few, i)
        before = total
        total += peek(room.few_weights + 8 * i, np.float64)
        if total >= target:
            break
    sure = (before == 0.0 or target - before > doubt) and total - target > doubt
    return value, index, sure


@_jit
def _sort_by_id(c, count):
    """Sort candidates upward (heapsort)."""
    kept_apart()
    start = count // 2
    while count > 1:
        if start > 0:
            start -= 1
        else:
            count -= 1
            _swap(c, 0, count)
        root = start
        while 2 * root + 1 < count:
            child = 2 * root + 1
            if child + 1 < count and _id(c, child) < _id(c, child + 1):
                child += 1
            if _id(c, root) >= _id(c, child):
                break
            _swap(c, root, child)
            root = child


@inlined
def _keep(room, i, kept, keeps):
    """Move a candidate with its weight to the front if it is kept; returns how many are.

    It is copied anyway, as no branch is foretold: what is overwritten was not kept.
    """
    _put_candidate(room.c, kept, _value(room.c, i), _id(room.c, i))
    poke(room.weights + 8 * kept, peek(room.weights + 8 * i, np.float64))
    return kept + keeps


@_jit
def _plain_rest(batch, row, scale, top, room, work, number):
    """The mass of all entries without one of the largest, which outweighs them."""
    kept_apart()
    rest, own = (0.0, 0.0), np.int64(-1)
    for b in range(_blocks(_field(batch, COLS))):
        if own < 0 and peek(room.tops + 8 * b, np.float64) == top:
            own = b
        else:
            rest = _add(rest, (peek(room.masses + 8 * b, np.float64), 0.0))
    size = _block_entries(batch, row, own, room, work, number)
    _weigh(room.block, size, top, scale, room.weights)
    i = 0
    while peek(room.block + i, np.float64) != top:
        i += 8
    poke(room.weights + i, 0.0)
    rest = _add(rest, (_mass(room.weights, size), 0.0))
    return rest[0] + rest[1]


@_jit
def _sum_masses(blocks, top, scale, room):
    """Set what blocks count against `top`; returns their sum with what it loses to rounding."""
    kept_apart()
    _weigh(room.tops, blocks, top, scale, room.masses)
    total = (0.0, 0.0)
    for i in range(0, 8 * blocks, 8):
        mass = 0.0
        if peek(room.tops + i, np.float64) > -np.inf:
            # At a limit nothing is left out that is counted.
            weight = peek(room.masses + i, np.float64) if scale.kind == FINITE else 1.0
            mass = weight * peek(room.sums + i, np.float64)
        poke(room.masses + i, mass)
        total = _add(total, (mass, 0.0))
    return total


@_jit
def _filter_row(batch, row, scale, filters, room, work, number):
    """Read a row and apply its filters."""
    kept_apart()
    cols = _field(batch, COLS)
    blocks, finite = _blocks(cols), scale.kind == FINITE
    top_k, top_p, min_p = np.int64(1), 1.0, 0.0
    if scale.kind != ZERO:
        top_k = min(peek(filters.top_k + 8 * row.index, np.int64), cols)
        top_p = peek(filters.top_p + 8 * row.index, np.float64)
        min_p = peek(filters.min_p + 8 * row.index, np.float64)
    few = top_k < cols or scale.kind == ZERO
    plain = not few and top_p == 1.0 and min_p == 0.0
    sums = plain or (not few and top_p < 1.0)
    itemsize = _bytes_of(_field(batch, X_TYPE))
    dense = _axis(batch, _field(batch, LAST), X) == itemsize
    lines = 4 * LANES * itemsize // CACHE_LINE if dense else 0
    best, top, bad = Best(0, -np.inf), -np.inf, False
    state = RowState(room.tops, room.sums, NONE, NONE, NONE)
    for b in range(blocks):
        if sums and finite:
            top = max(top, _reduce_block(batch, row, scale, b, state, work, number).top)
            bad |= not peek(room.sums + 8 * b, np.float64) >= 0.0
            continue
        start = b * BLOCK
        size = min(BLOCK, cols - start)
        source = _source(batch, row, start, size, work, number)
        ahead = row.x + (start + AHEAD) * itemsize
        highest, nan = _maximum_and_nan(source, size, ahead, lines, number)
        bad |= nan
        block_top = np.float64(highest)
        poke(room.tops + 8 * b, block_top)
        top = max(top, block_top)
        if few:
            best = _take_best(best, top_k, source, size, start, block_top, room.c, number)
        elif sums:
            # At a limit all that is above -infinity counts.
            entries = _count_above(source, size, number(-np.inf), number)
            poke(room.sums + 8 * b, np.float64(entries))
    exact = few or size_of(number) == 8 or not finite
    if bad or not abs(top) < np.inf:
        return Draw(True, plain, exact, 0, top, 0.0, 0.0)
    mass = (0.0, 0.0)
    if sums:
        mass = _sum_masses(blocks, top, scale, room)
    total = mass[0] + mass[1]
    if plain:
        rest = (mass[0] - 1.0) + mass[1]
        if total < 1.5 and finite:
            rest = _plain_rest(batch, row, scale, top, room, work, number)
        return Draw(False, plain, exact, 0, top, total, rest)
    if few:
        count = _prune(best, top_k, room.c).count
        _sort_by_id(room.c, count)
        _weigh(room.c.values, count, top, scale, room.weights)
        total = _mass(room.weights, count)
    elif top_p < 1.0:
        doubt = 0.0 if exact else DOUBT
        count = _take_nucleus(batch, row, scale, top_p, top, total, doubt, room, work, number)
    else:
        distance = scale.temperature * 1.000001 * -math.log(min_p * 0.999) if finite else np.inf
        count = _take_near(batch, row, top, distance, room, work, number)
        _weigh(room.c.values, count, top, scale, room.weights)
    if top_p < 1.0:
        doubt = 0.0 if exact else 2.0 * DOUBT * total
        value, index, sure = _crossing(room, count, top, top_p * total, doubt)
        if not (sure or exact):
            _sum_exactly(batch, row, scale, room, work, number)
            mass = _sum_masses(blocks, top, scale, room)
            target = top_p * (mass[0] + mass[1])
            value, index, sure = _crossing(room, count, top, target, 0.0)
        kept = NONE
        for i in range(count):
            own = _value(room.c, i)
            before = (own > value) | ((own == value) & (_id(room.c, i) <= index))
            kept = _keep(room, i, kept, before)
        count = kept
    if min_p > 0.0:
        kept = NONE
        for i in range(count):
            kept = _keep(room, i, kept, peek(room.weights + 8 * i, np.float64) >= min_p)
        count = kept
    own = NONE
    while _value(room.c, own) != top:
        own += 1
    after = own + 1
    rest = _mass(room.weights, own) + _mass(room.weights + 8 * after, count - after)
    return Draw(False, plain, exact, count, top, 1.0 + rest, rest)


# --------------------------------------------------------------------------------------------------
# Draws


@inlined
def _survivor_log_probability(draw, scale, x):
    return _log_probability(x, scale, draw.top, _log1p(draw.rest))


@_jit
def _pick(weights, count, target, before):
    """The place up to which weights sum to more than `target`, and their sum up to there; behind
    all if there is none."""
    kept_apart()
    place = NONE
    while place + AT_ONCE <= count:
        total = before + _mass(weights + 8 * place, AT_ONCE)
        if total > target:
            break
        before = total
        place += AT_ONCE
    while place < count:
        before += peek(weights + 8 * place, np.float64)
        if before > target:
            break
        place += 1
    return place, before


@inlined
def _last_of_weight(weights, count):
    """The place behind the last positive weight."""
    while count > 0 and not peek(weights + 8 * (count - 1), np.float64) > 0.0:
        count -= 1
    return count


@_jit
def _left_of_block(batch, row, scale, b, drawn, count, top, room, work, number):
    """Make what is left of a block, with its weights against `top`; returns its size."""
    kept_apart()
    size = _block_entries(batch, row, b, room, work, number)
    for i in range(0, 8 * count, 8):
        at = peek(drawn + i, np.int64) - b * BLOCK
        if 0 <= at < size:
            poke(room.block + 8 * at, -np.inf)
    _weigh(room.block, size, top, scale, room.weights)
    return size


@_jit
def _draw_quickly(batch, row, scale, u, draw, room, work, number):
    """One draw from all entries of a row, from sums of blocks in float32.

    Returns its id and its value; -1 where their error could change it.
    """
    kept_apart()
    blocks, target, doubt = _blocks(_field(batch, COLS)), u * draw.total, 2.0 * DOUBT * draw.total
    before, b = 0.0, NONE
    while b < blocks - 1 and before + peek(room.masses + 8 * b, np.float64) <= target:
        before += peek(room.masses + 8 * b, np.float64)
        b += 1
    size = _block_entries(batch, row, b, room, work, number)
    _weigh(room.block, size, draw.top, scale, room.weights)
    place, total = _pick(room.weights, size, target, before)
    if place == size or total - target <= doubt:
        return np.int64(-1), np.nan
    before = total - peek(room.weights + 8 * place, np.float64)
    if before > 0.0 and target - before <= doubt:
        return np.int64(-1), np.nan
    return b * BLOCK + place, peek(room.block + 8 * place, np.float64)


@_jit
def _draw_plain(batch, row, scale, u, drawn, count, room, work, number):
    """One draw from all entries of a row but `count` that have been drawn.

    Returns its id, or -1, and its value.
    """
    kept_apart()
    blocks = _blocks(_field(batch, COLS))
    if count:
        # The block of the last one drawn, again, against what is left of it.
        b = peek(drawn + 8 * (count - 1), np.int64) // BLOCK
        size = _left_of_block(batch, row, scale, b, drawn, count, 0.0, room, work, number)
        highest = largest(_maximum(room.block, size, np.float64))
        _weigh(room.block, size, highest, scale, room.weights)
        poke(room.tops + 8 * b, highest)
        poke(room.sums + 8 * b, _mass(room.weights, size))
    top = largest(_maximum(room.tops, blocks, np.float64))
    if top == -np.inf:
        return np.int64(-1), np.nan
    mass = _sum_masses(blocks, top, scale, room)
    target, before, b = u * (mass[0] + mass[1]), 0.0, NONE
    while b < blocks - 1 and before + peek(room.masses + 8 * b, np.float64) <= target:
        before += peek(room.masses + 8 * b, np.float64)
        b += 1
    # Should rounding leave nothing in the block, the next one has it, or else the last of all.
    while b < blocks:
        size = _left_of_block(batch, row, scale, b, drawn, count, top, room, work, number)
        place, before = _pick(room.weights, size, target, before)
        if place < size:
            return b * BLOCK + place, peek(room.block + 8 * place, np.float64)
        b += 1
    while b > 0:
        b -= 1
        size = _left_of_block(batch, row, scale, b, drawn, count, top, room, work, number)
        place = _last_of_weight(room.weights, size) - 1
        if place >= 0:
            return b * BLOCK + place, peek(room.block + 8 * place, np.float64)
    return np.int64(-1), np.nan


@_jit
def _leave_out(scale, place, count, room):
    """Take a candidate out and weigh the rest against the largest left; returns its mass."""
    kept_apart()
    top = -np.inf
    for i in range(count - 1):
        if i >= place:
            _put_candidate(room.c, i, _value(room.c, i + 1), _id(room.c, i + 1))
        top = max(top, _value(room.c, i))
    _weigh(room.c.values, count - 1, top, scale, room.weights)
    return _mass(room.weights, count - 1)


@_cached_jit
def sample(
    workspace,
    table,
    top_k,
    top_p,
    min_p,
    uniforms,
    draws,
    replace,
    ids,
    logprobs,
    memory,
    capacity,
    begin,
    end,
):
    """Draws from each of the rows [begin, end).

    Parameters
    ----------
    workspace, table
        As of `kernels.softmax`.
    top_k, top_p, min_p, uniforms, ids, logprobs : int
        As `Backend.sample` has them.
    draws : int
        How many for each row.
    replace : bool
    memory : int
        Of `room_size` bytes.
    capacity : int
        See the function of that name.
    begin, end : int
    """
    number = workspace.dtype.type
    batch, work = np.int64(table.ctypes.data), _aligned(workspace.ctypes.data)
    room = _room_at(memory, _field(batch, COLS), capacity)
    filters = Filters(top_k, top_p, min_p)
    scale = _read_scale(1.0, number)
    for r in range(begin, end):
        row, first = _logits(batch, r), 8 * r * draws
        scale = _scale_of(row, scale, number)
        for i in range(first, first + 8 * draws, 8):
            poke(ids + i, np.int64(-1))
            poke(logprobs + i, np.nan)
        draw = _filter_row(batch, row, scale, filters, room, work, number)
        if draw.special:
            continue
        count, total, exact = draw.count, draw.total, draw.exact
        for j in range(draws):
            place, index, value = first + 8 * j, np.int64(-1), np.nan
            u = peek(uniforms + place, np.float64)
            if draw.plain:
                drawn = NONE if replace else j
                if not exact and drawn == 0:
                    index, value = _draw_quickly(batch, row, scale, u, draw, room, work, number)
                if index < 0:
                    if not exact:
                        _sum_exactly(batch, row, scale, room, work, number)
                        exact = True
                    index, value = _draw_plain(
                        batch, row, scale, u, ids + first, drawn, room, work, number
                    )
            elif count > 0:
                at, _ = _pick(room.weights, count, u * total, 0.0)
                if at == count:  # rounding
                    at = max(_last_of_weight(room.weights, count) - 1, 0)
                index, value = _id(room.c, at), _value(room.c, at)
                if not replace:
                    total = _leave_out(scale, at, count, room)
                    count -= 1
            if index < 0:
                break
            poke(ids + place, index)
            poke(logprobs + place, _survivor_log_probability(draw, scale, value))


@_cached_jit
def survivors(
    workspace,
    table,
    top_k,
    top_p,
    min_p,
    counts,
    offsets,
    ids,
    logprobs,
    memory,
    capacity,
    begin,
    end,
):
    """What the filters leave of each of the rows [begin, end), or only how many entries that is.

    Parameters
    ----------
    workspace, table
        As of `kernels.softmax`.
    top_k, top_p, min_p : int
        As `Backend.survivors` has them.
    counts : int
        As `Backend.count_survivors` has it; if it is 0, the next three are written.
    offsets, ids, logprobs : int
        As `Backend.survivors` has them.
    memory, capacity : int
        As of `sample`.
    begin, end : int
    """
    number = workspace.dtype.type
    batch, work = np.int64(table.ctypes.data), _aligned(workspace.ctypes.data)
    cols = _field(batch, COLS)
    room = _room_at(memory, cols, capacity)
    filters = Filters(top_k, top_p, min_p)
    scale = _read_scale(1.0, number)
    for r in range(begin, end):
        row, place = _logits(batch, r), NONE
        scale = _scale_of(row, scale, number)
        draw = _filter_row(batch, row, scale, filters, room, work, number)
        count = NONE if draw.special else draw.count
        if not counts:
            place = 8 * peek(offsets + 8 * r, np.int64)
            for i in range(count):
                poke(ids + place, _id(room.c, i))
                result = _survivor_log_probability(draw, scale, _value(room.c, i))
                poke(logprobs + place, result)
                place += 8
        for b in range(_blocks(cols) if draw.plain and not draw.special else 0):
            size = _block_entries(batch, row, b, room, work, number)
            for i in range(size):
                value = peek(room.block + 8 * i, np.float64)
                if not value > -np.inf:
                    continue
                count += 1
                if not counts:
                    poke(ids + place, b * BLOCK + i)
                    poke(logprobs + place, _survivor_log_probability(draw, scale, value))
                    place += 8
        if counts:
            poke(counts + 8 * r, count)

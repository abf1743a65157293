"""What jitted code is called with: checked, and put into the table of a batch that kernels take.

What depends on the types of arguments is decided by overloads.
"""

import numpy as np
from numba import njit, types
from numba.core.errors import TypingError
from numba.extending import overload

from fastsoftmax._numba import kernels
from fastsoftmax._numba.vectors import F32, F64, OPTIONS

jit = njit(**OPTIONS)

_STREAMED = 1 << 22  # bytes of an output that goes past the caches
FIELDS = int(kernels.FIELDS)
# A batch has two axes. Behind them stand a temperature for all rows, and what only scoring and
# sampling know.
TEMPERATURE = FIELDS + 10
EXTRAS = TEMPERATURE + 1
SIZE = EXTRAS + 7
_SHORT = kernels.SHORT
_LONGEST = 2**31 - 1  # kernels number candidates with 32 bits


def is_none(kind):
    """Whether an argument is None, or left out where that is the default."""
    return kind is None or isinstance(kind, types.NoneType) or getattr(kind, "value", 0) is None


def _is_real(kind):
    return isinstance(kind, types.Number) and not isinstance(kind, types.Complex)


@jit
def address(a):
    return np.int64(a.ctypes.data)


def _check_writeable(name, array):
    # Kernels write to addresses, of which nothing else knows that they are read-only.
    if not array.mutable:
        raise TypingError(f"{name} is {array}; it must be writeable")


# --------------------------------------------------------------------------------------------------
# Logits


def _check_logits(x):
    if not (
        isinstance(x, types.Array)
        and x.ndim in (1, 2)
        and x.dtype in (types.float32, types.float64)
    ):
        raise TypingError(f"logits are {x}; they must be a 1-D or 2-D array of float32 or float64")


def layout(x):
    """Rows, entries of a row, and the bytes from a row and from an entry to the next."""
    raise NotImplementedError


@overload(layout)
def _overload_layout(x):
    _check_logits(x)
    if x.ndim == 1:
        return lambda x: (1, x.shape[0], 0, x.strides[0])
    return lambda x: (x.shape[0], x.shape[1], x.strides[0], x.strides[1])


def _steps(a):
    """The bytes from a row and from an entry to the next."""
    raise NotImplementedError


@overload(_steps)
def _overload_steps(a):
    if a.ndim == 1:
        return lambda a: (0, a.strides[0])
    return lambda a: (a.strides[0], a.strides[1])


def _code(x):
    """The type of an array in memory, as kernels have it."""
    raise NotImplementedError


@overload(_code)
def _overload_code(x):
    code = F32 if x.dtype == types.float32 else F64
    return lambda x: code


def _temperatures(temperature, rows, table):
    """The address of the temperature of the first row, and the bytes to the next one."""
    raise NotImplementedError


@overload(_temperatures)
def _overload_temperatures(temperature, rows, table):
    if _is_real(temperature):

        def one(temperature, rows, table):
            if not temperature >= 0.0:
                raise ValueError("temperature must not be negative or NaN")
            table.view(np.float64)[TEMPERATURE] = temperature
            return address(table) + 8 * TEMPERATURE, 0

        return one
    if isinstance(temperature, types.Array) and (
        temperature.ndim,
        temperature.layout,
        temperature.dtype,
    ) == (1, "C", types.float64):

        def many(temperature, rows, table):
            if temperature.shape[0] != rows:
                raise ValueError("temperature must be one number or one for each row")
            for t in temperature:
                if not t >= 0.0:
                    raise ValueError("temperature must not be negative or NaN")
            return address(temperature), 8

        return many
    raise TypingError(
        f"temperature is {temperature}; it must be a number or a contiguous 1-D array of float64"
    )


def _set_where(table, x, where):
    raise NotImplementedError


@overload(_set_where)
def _overload_set_where(table, x, where):
    if is_none(where):
        return lambda table, x, where: None
    if not (isinstance(where, types.Array) and (where.ndim, where.dtype) == (x.ndim, types.bool_)):
        raise TypingError(f"where is {where}; it must be a {x.ndim}-D array of bool")

    def given(table, x, where):
        if where.shape != x.shape:
            raise ValueError("where must have the shape of the logits")
        table[kernels.WHERE_ADDRESS], table[kernels.MASKED] = address(where), 1
        table[kernels.NATIVE] = 0
        table[FIELDS + 3], table[FIELDS + 8] = _steps(where)

    return given


def _set_bitmask(table, x, token_bitmask):
    raise NotImplementedError


@overload(_set_bitmask)
def _overload_set_bitmask(table, x, token_bitmask):
    if is_none(token_bitmask):
        return lambda table, x, token_bitmask: None
    if not (
        isinstance(token_bitmask, types.Array)
        and token_bitmask.ndim == x.ndim
        and token_bitmask.dtype in (types.int32, types.uint32)
    ):
        raise TypingError(
            f"token_bitmask is {token_bitmask}; it must be a {x.ndim}-D array of int32"
        )

    def given(table, x, token_bitmask):
        rows, cols, _, _ = layout(x)
        words, (across, along) = (cols + 31) // 32, _steps(token_bitmask)
        if token_bitmask.shape[-1] != words or token_bitmask.size != rows * words:
            raise ValueError("token_bitmask must have a bit for each of the logits")
        if along != 4 and words > 1:
            raise ValueError("token_bitmask must be contiguous along a row")
        table[EXTRAS], table[EXTRAS + 1] = address(token_bitmask), across
        table[kernels.EXTRAS], table[kernels.NATIVE] = address(table) + 8 * EXTRAS, 0

    return given


@jit
def _prepare(x, temperature, where, token_bitmask, more):
    """The table of a batch, with room for `more` numbers of 8 bytes behind it from `SIZE` on."""
    rows, cols, across, along = layout(x)
    table = np.empty(SIZE + more, np.int64)
    table[:SIZE] = 0
    first, step = _temperatures(temperature, rows, table)
    table[kernels.FIRST] = table[kernels.LAST] = 1
    table[kernels.COLS] = cols
    table[kernels.X_ADDRESS] = address(x)
    table[kernels.TEMPERATURE_ADDRESS] = first
    table[kernels.X_TYPE] = _code(x)
    table[kernels.NATIVE] = along == x.itemsize
    # An axis is its length and its steps: of logits, output, mask and temperature.
    rows_axis, cols_axis = FIELDS, FIELDS + 5
    table[rows_axis], table[rows_axis + 1], table[rows_axis + 4] = rows, across, step
    table[cols_axis], table[cols_axis + 1] = cols, along
    _set_where(table, x, where)
    _set_bitmask(table, x, token_bitmask)
    return table


@jit
def batch(x, temperature, where, token_bitmask):
    """The table of a batch that is only read."""
    return _prepare(x, temperature, where, token_bitmask, 0)


@jit
def _by_columns(x):
    """Whether rows are short or lie side by side."""
    _, cols, across, along = layout(x)
    return 0 < cols <= _SHORT or (across == x.itemsize and along != x.itemsize)


# --------------------------------------------------------------------------------------------------
# Rows that are written


def _check_rows(x, out):
    raise NotImplementedError


@overload(_check_rows)
def _overload_check_rows(x, out):
    _check_logits(x)
    if not (isinstance(out, types.Array) and (out.ndim, out.dtype) == (x.ndim, x.dtype)):
        raise TypingError(f"out is {out}; it must be an array like the logits, which are {x}")
    _check_writeable("out", out)
    return lambda x, out: None


@jit
def rows(x, temperature, out, where):
    """The table for an operation that writes rows."""
    _check_rows(x, out)
    if out.shape != x.shape:
        raise ValueError("out must have the shape of the logits")
    table = batch(x, temperature, where, None)
    table[kernels.OUT_ADDRESS] = address(out)
    table[kernels.OUT_TYPE] = _code(out)
    across, along = _steps(out)
    table[kernels.DIRECT] = along == out.itemsize
    table[kernels.STREAMED] = out.size * out.itemsize >= _STREAMED
    table[kernels.BY_COLUMNS] = _by_columns(x)
    table[FIELDS + 2], table[FIELDS + 7] = across, along
    return table


# --------------------------------------------------------------------------------------------------
# One number for each row


def _is_zero(temperature):
    raise NotImplementedError


@overload(_is_zero)
def _overload_is_zero(temperature):
    if isinstance(temperature, types.Array):
        return lambda temperature: (temperature == 0.0).any()
    return lambda temperature: temperature == 0.0


@jit
def reduced(x, temperature, result, where):
    """The table for logsumexp, whose results go to an array."""
    if _is_zero(temperature):
        raise ValueError("temperature is 0, where logsumexp has no limit")
    table = batch(x, temperature, where, None)
    table[kernels.OUT_ADDRESS], table[kernels.OUT_TYPE] = address(result), _code(result)
    table[kernels.BY_COLUMNS] = _by_columns(x)
    table[FIELDS + 2] = result.strides[0]
    return table


def _has_output(x, out, dtype):
    """Whether there is an output: for a batch, and not for a row."""
    _check_logits(x)
    if x.ndim == 1 and is_none(out):
        return False
    if x.ndim == 2 and isinstance(out, types.Array) and (out.ndim, out.dtype) == (1, dtype):
        _check_writeable("out", out)
        return True
    raise TypingError(
        f"out is {out}; for a row it must be left out, for a batch be a 1-D array of {dtype}"
    )


def results(x, out, dtype):
    """Where the number of each row is written: the output, or an array for that of one row."""
    raise NotImplementedError


@overload(results)
def _overload_results(x, out, dtype):
    def given(x, out, dtype):
        if out.shape[0] != x.shape[0]:
            raise ValueError("out must have a number for each row")
        return out

    return given if _has_output(x, out, dtype.dtype) else lambda x, out, dtype: np.empty(1, dtype)


def returned(results, out):
    """The number of one row; nothing where there is an output."""
    raise NotImplementedError


@overload(returned)
def _overload_returned(results, out):
    return (lambda results, out: results[0]) if is_none(out) else (lambda results, out: None)


# --------------------------------------------------------------------------------------------------
# Single entries


def _check_entries(x, ids, logprobs, ranks, uniforms):
    """Types and shapes of ids, and of numbers beside them, of which some are left out."""
    raise NotImplementedError


@overload(_check_entries)
def _overload_check_entries(x, ids, logprobs, ranks, uniforms):
    _check_logits(x)
    # With ranks the ids are given; without they are an output.
    kinds = [
        ("ids", ids, types.int64, is_none(ranks)),
        ("logprobs", logprobs, types.float64, True),
        ("ranks", ranks, types.int64, True),
        ("uniforms", uniforms, types.float64, False),
    ]
    for name, array, dtype, written in kinds:
        if name in ("ranks", "uniforms") and is_none(array):
            continue
        if not (
            isinstance(array, types.Array)
            and (array.ndim, array.layout, array.dtype) == (x.ndim, "C", dtype)
        ):
            raise TypingError(
                f"{name} is {array}; it must be a contiguous {x.ndim}-D array of {dtype}"
            )
        if written:
            _check_writeable(name, array)

    def check(x, ids, logprobs, ranks, uniforms):
        rows, _, _, _ = layout(x)
        if logprobs.shape != ids.shape or (x.ndim == 2 and ids.shape[0] != rows):
            raise ValueError("ids and logprobs must have one shape, with a row for each of logits")
        if not (_has_shape(ranks, ids.shape) and _has_shape(uniforms, ids.shape)):
            raise ValueError("uniforms or ranks must have the shape of ids")

    return check


def _has_shape(a, shape):
    """Whether an array has a shape, or is left out."""
    raise NotImplementedError


@overload(_has_shape)
def _overload_has_shape(a, shape):
    return (lambda a, shape: True) if is_none(a) else (lambda a, shape: a.shape == shape)


@jit
def entries(x, temperature, ids, logprobs, ranks, where, token_bitmask):
    """The table for log-probabilities; with `ranks` the ids are given, without they are written."""
    _check_entries(x, ids, logprobs, ranks, None)
    return batch(x, temperature, where, token_bitmask)


@jit
def check_ids(x, ids):
    _, cols, _, _ = layout(x)
    for i in ids.flat:
        if not -1 <= i < cols:
            raise IndexError("ids must be in [0, vocab), or -1")


# --------------------------------------------------------------------------------------------------
# Draws: filters


_PARAMETERS = (
    *("top_k", "top_p", "min_p"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)


def _check_parameters(filters, penalties):
    """Types of parameters, which are one number or one for each row."""
    raise NotImplementedError


@overload(_check_parameters)
def _overload_check_parameters(filters, penalties):
    for i, (name, given) in enumerate(zip(_PARAMETERS, (*filters, *penalties), strict=True)):
        kind = given
        if isinstance(given, types.Array) and given.ndim == 1:
            kind = given.dtype
        if not (isinstance(kind, types.Integer) if i == 0 else _is_real(kind)):
            wanted = "an integer" if i == 0 else "a number"
            raise TypingError(f"{name} is {given}; it must be {wanted}, or a 1-D array of them")
    return lambda filters, penalties: None


def _of_row(parameter, row, rows):
    """The value of a parameter for a row."""
    raise NotImplementedError


@overload(_of_row)
def _overload_of_row(parameter, row, rows):
    if not isinstance(parameter, types.Array):
        return lambda parameter, row, rows: parameter

    def of_row(parameter, row, rows):
        if parameter.shape[0] != rows:
            raise ValueError("a parameter must be one number or one for each row")
        return parameter[row]

    return of_row


@jit
def _set_filters(table, start, x, top_k, top_p, min_p):
    """Put the filters into the table; returns the largest top-k that is one."""
    rows, cols, _, _ = layout(x)
    numbers, largest = table.view(np.float64), 1
    for row in range(rows):
        k, p = np.int64(_of_row(top_k, row, rows)), np.float64(_of_row(top_p, row, rows))
        least = np.float64(_of_row(min_p, row, rows))
        if k < -1:
            raise ValueError("top_k must be positive, or 0 or -1")
        if not (0.0 <= p <= 1.0 and 0.0 <= least <= 1.0):
            raise ValueError("top_p and min_p must be in [0, 1]")
        if k <= 0 or k >= cols:
            k = cols
        else:
            largest = max(largest, k)
        table[start + row] = k
        numbers[start + rows + row] = p
        numbers[start + 2 * rows + row] = least
    return largest


# --------------------------------------------------------------------------------------------------
# Draws: biases and penalties, as sorted lists of entries


def _check_edits(x, logit_bias, history):
    raise NotImplementedError


@overload(_check_edits)
def _overload_check_edits(x, logit_bias, history):
    def is_ids(kind, dims):
        return (
            isinstance(kind, types.Array)
            and kind.ndim in dims
            and isinstance(kind.dtype, types.Integer)
        )

    if not is_none(history) and not is_ids(history, (x.ndim,)):
        raise TypingError(f"history is {history}; it must be a {x.ndim}-D array of integers")
    if not is_none(logit_bias):
        if not (isinstance(logit_bias, types.BaseTuple) and len(logit_bias) == 2):
            raise TypingError(f"logit_bias is {logit_bias}; it must be a tuple (ids, values)")
        ids, values = logit_bias
        if not (
            is_ids(ids, (1, x.ndim))
            and isinstance(values, types.Array)
            and values.ndim == ids.ndim
            and _is_real(values.dtype)
        ):
            raise TypingError(
                f"logit_bias is {logit_bias}; it must be ids and values of one axis, or of two "
                "for a batch"
            )

    def check(x, logit_bias, history):
        rows, _, _, _ = layout(x)
        if _rows_of(history, rows) != rows or _rows_of(logit_bias, rows) != rows:
            raise ValueError("history and logit_bias must have a row for each of logits")

    return check


def _rows_of(given, rows):
    """The rows of a history or of biases; `rows` where there are none."""
    raise NotImplementedError


@overload(_rows_of)
def _overload_rows_of(given, rows):
    if isinstance(given, types.BaseTuple):

        def biases(given, rows):
            if given[1].shape != given[0].shape:
                raise ValueError("logit_bias must have ids and values of one shape")
            return _rows_of(given[0], rows)

        return biases
    if isinstance(given, types.Array) and given.ndim == 2:
        return lambda given, rows: given.shape[0]
    return lambda given, rows: rows


def _length(given):
    """How many entries a history or biases have for a row."""
    raise NotImplementedError


@overload(_length)
def _overload_length(given):
    if is_none(given):
        return lambda given: 0
    if isinstance(given, types.BaseTuple):
        return lambda given: given[0].shape[-1]
    return lambda given: given.shape[-1]


def _entry(a, row, j):
    """Entry j of a row of an array of one axis for all rows, or of two."""
    raise NotImplementedError


@overload(_entry)
def _overload_entry(a, row, j):
    if not isinstance(a, types.Array):
        return None
    if a.ndim == 1:
        return lambda a, row, j: a[j]
    return lambda a, row, j: a[row, j]


def _bias(logit_bias, row, j, cols):
    """The id of a bias, -1 for padding, and the bias."""
    raise NotImplementedError


@overload(_bias)
def _overload_bias(logit_bias, row, j, cols):
    if is_none(logit_bias):
        return lambda logit_bias, row, j, cols: (-1, 0.0)
    if not isinstance(logit_bias, types.BaseTuple):
        return None  # of which `_check_edits` says what is wrong
    padded = getattr(logit_bias[0], "ndim", 1) == 2

    def bias(logit_bias, row, j, cols):
        ids, values = logit_bias
        i, value = np.int64(_entry(ids, row, j)), np.float64(_entry(values, row, j))
        if i >= cols or (i < 0 and not padded):
            raise IndexError("logit_bias must have ids in [0, vocab)")
        if i >= 0 and not value < np.inf:
            raise ValueError("logit_bias must be finite or -infinity")
        return i, value

    return bias


def _seen(history, row, j, cols):
    """An id of the history; below 0 for padding."""
    raise NotImplementedError


@overload(_seen)
def _overload_seen(history, row, j, cols):
    if is_none(history):
        return lambda history, row, j, cols: -1

    def seen(history, row, j, cols):
        i = np.int64(_entry(history, row, j))
        if i >= cols:
            raise IndexError("history must have ids in [0, vocab)")
        return i

    return seen


@jit
def _penalties_of(penalties, row, rows):
    """The penalties of a row."""
    repetition = np.float64(_of_row(penalties[0], row, rows))
    presence = np.float64(_of_row(penalties[1], row, rows))
    frequency = np.float64(_of_row(penalties[2], row, rows))
    if not 0.0 < repetition < np.inf:
        raise ValueError("repetition_penalty must be positive and finite")
    if not (abs(presence) < np.inf and abs(frequency) < np.inf):
        raise ValueError("presence_penalty and frequency_penalty must be finite")
    return repetition, presence, frequency


@jit
def _set_edits(table, start, x, logit_bias, history, penalties):
    """Put the list of edits of each row into the table."""
    rows, cols, _, _ = layout(x)
    biases = _length(logit_bias)
    length = biases + _length(history)
    numbers = table.view(np.float64)
    offsets, ids = start, start + rows + 1
    bias = ids + rows * length
    penalty = bias + rows * length
    reduction = penalty + rows * length
    keys, place = np.empty(length, np.int64), 0
    table[offsets] = 0
    for row in range(rows):
        repetition, presence, frequency = _penalties_of(penalties, row, rows)
        # Sorted by id, then by where they stand.
        count = 0
        for j in range(length):
            if j < biases:
                i, _ = _bias(logit_bias, row, j, cols)
            else:
                i = _seen(history, row, j - biases, cols)
            if i >= 0:
                keys[count] = i << 32 | j
                count += 1
        keys[:count].sort()
        last, times = -1, 0
        for key in keys[:count]:
            i, j = key >> 32, key & 0xFFFFFFFF
            if i != last:
                table[ids + place] = i
                numbers[bias + place] = numbers[reduction + place] = 0.0
                numbers[penalty + place] = 1.0
                place += 1
                last, times = i, 0
            if j < biases:
                numbers[bias + place - 1] += _bias(logit_bias, row, j, cols)[1]
            else:
                times += 1
                numbers[penalty + place - 1] = repetition
                numbers[reduction + place - 1] = presence + frequency * times
        table[offsets + row + 1] = place
    for i, first in enumerate((offsets, ids, bias, penalty, reduction)):
        table[EXTRAS + 2 + i] = address(table) + 8 * first
    table[kernels.EXTRAS] = address(table) + 8 * EXTRAS


def _check_unused(history, penalties, rows):
    """Without a history there must be no penalty."""
    raise NotImplementedError


@overload(_check_unused)
def _overload_check_unused(history, penalties, rows):
    if not is_none(history):
        return lambda history, penalties, rows: None

    def unused(history, penalties, rows):
        for row in range(rows):
            if _penalties_of(penalties, row, rows) != (1.0, 0.0, 0.0):
                raise ValueError("a penalty is given but history is None; it must be the tokens")

    return unused


def _edit(table, start, x, logit_bias, history, penalties):
    raise NotImplementedError


@overload(_edit)
def _overload_edit(table, start, x, logit_bias, history, penalties):
    if is_none(history) and is_none(logit_bias):
        return lambda table, start, x, logit_bias, history, penalties: None
    return lambda table, start, x, logit_bias, history, penalties: _set_edits(
        table, start, x, logit_bias, history, penalties
    )


@jit
def _edits_size(x, logit_bias, history):
    """How many numbers the edits need room for."""
    rows, _, _, _ = layout(x)
    return rows + 1 + 4 * rows * (_length(logit_bias) + _length(history))


@jit
def draws(
    x,
    uniforms,
    temperature,
    filters,
    ids,
    logprobs,
    where,
    token_bitmask,
    logit_bias,
    history,
    penalties,
):
    """The table for draws, with the filters of all rows behind it from `SIZE` on, and the largest
    top-k that is one."""
    _check_entries(x, ids, logprobs, None, uniforms)
    _check_parameters(filters, penalties)
    _check_edits(x, logit_bias, history)
    rows, cols, _, _ = layout(x)
    _check_unused(history, penalties, rows)
    if cols > _LONGEST:
        raise ValueError("rows of more than 2**31 - 1 logits are too long to sample from")
    more = 3 * rows + _edits_size(x, logit_bias, history)
    table = _prepare(x, temperature, where, token_bitmask, more)
    largest = _set_filters(table, SIZE, x, filters[0], filters[1], filters[2])
    _edit(table, SIZE + 3 * rows, x, logit_bias, history, penalties)
    return table, largest

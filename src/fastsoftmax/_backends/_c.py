"""The C library, through cffi."""

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsoftmax._backends._protocol import Array, Batch, Filters, Float64, Int64, SplitRow
from fastsoftmax._c import ffi, lib
from fastsoftmax._ops import OPS

_ISAS = {
    "avx512": lib.FASTSOFTMAX_ISA_AVX512,
    "avx2": lib.FASTSOFTMAX_ISA_AVX2,
    "neon": lib.FASTSOFTMAX_ISA_NEON,
    "scalar": lib.FASTSOFTMAX_ISA_SCALAR,
}
# All but bfloat16, which NumPy does not know.
_CODES = {
    np.dtype(np.float16): lib.FASTSOFTMAX_F16,
    np.dtype(np.float32): lib.FASTSOFTMAX_F32,
    np.dtype(np.float64): lib.FASTSOFTMAX_F64,
}
_FUNCTIONS: dict[str, Any] = {name: getattr(lib, f"fastsoftmax_{name}") for name in OPS}
_POINTERS: dict[str, Any] = {name: ffi.addressof(lib, f"fastsoftmax_{name}") for name in OPS}
_OPS: dict[str, int] = {name: getattr(lib, f"FASTSOFTMAX_OP_{name.upper()}") for name in OPS}

# The instruction sets this CPU runs, best first. Asked once: a virtual machine answers slowly.
ISAS = tuple(name for name, isa in _ISAS.items() if lib.fastsoftmax_has_isa(isa))


_BYTES = ffi.typeof("char[]")
_AXES = ffi.typeof("fastsoftmax_axis[]")
_BATCH = ffi.typeof("fastsoftmax_batch *")
_VOID, _DOUBLE, _INT64 = map(ffi.typeof, ("void *", "double *", "int64_t *"))
_MASK, _WORDS = map(ffi.typeof, ("uint8_t *", "uint32_t *"))


def _allocate(size: int) -> Any:
    """Memory aligned to 64 bytes, which lives as long as what is returned."""
    memory = np.empty(size + 63, np.uint8)
    start = -memory.ctypes.data % 64
    return ffi.from_buffer(_BYTES, memory[start : start + size])


class _Scratch(threading.local):
    """Scratch memory of each thread, kept between calls.

    When the interpreter ends it takes back what is a thread's own, of daemon threads in the middle
    of a call too. The call keeps its memory by what it was given.
    """

    size = 0
    memory: Any = ffi.NULL

    def of(self, batch: Any) -> Any:
        """Memory that is enough for a batch."""
        return self.sized(lib.fastsoftmax_scratch_size(batch))

    def for_scoring(self, batch: Any, k: int = 0) -> Any:
        """Memory that is enough for a function that scores."""
        return self.sized(lib.fastsoftmax_scoring_scratch_size(batch, k))

    def for_sampling(self, batch: Any, filters: Any) -> Any:
        """Memory that is enough for a function that takes filters."""
        return self.sized(lib.fastsoftmax_sample_scratch_size(batch, filters))

    def sized(self, size: int) -> Any:
        """Memory of at least so many bytes."""
        if size > self.size:
            self.size, self.memory = 0, ffi.NULL  # given back before more is taken
            self.memory = _allocate(size)
            self.size = size
        return self.memory


_scratch = _Scratch()
# For `fastsoftmax_contiguous` on rows of up to a million entries; pages that no call touches cost
# nothing.
_ENOUGH = 1 << 20
_lend = ffi.from_buffer
_contiguous = lib.fastsoftmax_contiguous


# How long a thread that has helped waits in a loop for more, in ns: calls that follow one another
# closely wake it once, and a CPU is not kept from others for long.
_PATIENCE = 200_000


class CTeam:
    """The threads that help: see csrc/python/team.h."""

    def __init__(self) -> None:
        self._team = ffi.new("fsm_team *")

    def lead(
        self,
        backend: "CBackend",
        helpers: int,
        step: int,
        op: str,
        batch: Batch,
        out: NDArray[Any],
        begin: int,
        end: int,
    ) -> None:
        struct = backend._struct(op, batch, out).batch
        status = lib.fsm_team_lead(
            self._team,
            _POINTERS[op],
            struct,
            begin,
            end,
            step,
            helpers,
            lib.fastsoftmax_scratch_size(struct),
            _scratch.of(struct),
        )
        _check(op, status)

    def run_small(
        self,
        backend: "CBackend",
        helpers: int,
        step: int,
        op: str,
        x: Array,
        temperature: float,
        out: Array | None,
    ) -> Array | None:
        return backend.run_small(op, x, temperature, out, (self._team, helpers, step))

    def alone(self) -> int:
        alone: int = lib.fsm_team_alone(self._team)
        return alone

    def waiting(self) -> int:
        waiting: int = lib.fsm_team_waiting(self._team)
        return waiting

    def help(self) -> None:
        needed = 0
        while True:
            memory = _scratch.sized(needed)
            needed = lib.fsm_team_help(self._team, memory, _scratch.size, _PATIENCE)
            if not needed:
                return

    def dismiss(self) -> None:
        lib.fsm_team_dismiss(self._team)


class CBackend:
    """The kernels of one instruction set.

    Parameters
    ----------
    isa : str, optional
        A name of `ISAS`; the best by default.
    """

    name = "c"
    new_team = CTeam if lib.fsm_team_supported() else None
    compiles = False

    def __init__(self, isa: str | None = None) -> None:
        self.isa = ISAS[0] if isa is None else isa
        self._isa = _ISAS[self.isa]

    def run(self, op: str, batch: Batch, out: NDArray[Any], begin: int, end: int) -> None:
        struct = self._struct(op, batch, out)
        _check(op, _FUNCTIONS[op](struct.batch, begin, end, _scratch.of(struct.batch)))

    def run_small(
        self,
        op: str,
        x: NDArray[Any],
        temperature: float,
        out: NDArray[Any] | None,
        share: tuple[Any, int, int] | None = None,
    ) -> NDArray[Any] | None:
        dtype, shape, size = x.dtype, x.shape, x.size
        code = _CODES.get(dtype)
        if code is None or not size or not shape or not x.flags.c_contiguous:
            return None
        cols = shape[-1]
        result_shape = shape[:-1] if op == "logsumexp" else shape
        if out is None:
            out = np.empty(result_shape, dtype)
        elif type(out) is not np.ndarray or out.dtype != dtype or out.shape != result_shape:
            return None
        try:
            # Only memory that is contiguous is lent, and only such as may be written.
            x_memory, out_memory = _lend(_BYTES, x), _lend(_BYTES, out, True)
        except (ValueError, BufferError):
            return None
        scratch = _scratch.memory if _scratch.size >= _ENOUGH else _scratch.sized(_ENOUGH)
        rows = size // cols
        if share is None:
            status = _contiguous(
                _OPS[op], self._isa, code, rows, cols, x_memory, temperature, out_memory, scratch
            )
        elif not (x.flags.aligned and out.flags.aligned) or (
            out is not x and np.may_share_memory(out, x)
        ):
            return None
        else:
            team, helpers, step = share
            status = lib.fsm_team_contiguous(
                team,
                step,
                helpers,
                _POINTERS[op],
                op != "logsumexp",
                self._isa,
                code,
                rows,
                cols,
                x_memory,
                temperature,
                out_memory,
                scratch,
                _scratch.size,
            )
        return out if status == 0 else None

    def split(self, op: str, batch: Batch, out: NDArray[Any], row: int) -> SplitRow:
        return _SplitRow(op, self._struct(op, batch, out), row)

    def _struct(self, op: str, batch: Batch, out: NDArray[Any]) -> "_Struct":
        return _Struct(self._isa, not OPS[op].reduces, batch, out)

    def token_logprobs(
        self,
        batch: Batch,
        ids: Int64,
        logprobs: Float64,
        ranks: Int64 | None,
        mean: Float64 | None,
        begin: int,
        end: int,
    ) -> None:
        struct = _Struct(self._isa, False, batch, None)
        status = lib.fastsoftmax_token_logprobs(
            struct.batch,
            _lend("int64_t[]", ids),
            ids.shape[1],
            _lend("double[]", logprobs),
            ffi.NULL if ranks is None else _lend("int64_t[]", ranks),
            ffi.NULL if mean is None else _lend("double[]", mean),
            begin,
            end,
            _scratch.for_scoring(struct.batch),
        )
        _check("token_logprobs", status)

    def topk(
        self, batch: Batch, k: int, ids: Int64, logprobs: Float64, begin: int, end: int
    ) -> None:
        struct = _Struct(self._isa, False, batch, None)
        scratch = _scratch.for_scoring(struct.batch, k)
        status = lib.fastsoftmax_topk(
            struct.batch,
            k,
            _lend("int64_t[]", ids),
            _lend("double[]", logprobs),
            begin,
            end,
            scratch,
        )
        _check("topk", status)

    def moments(self, batch: Batch, out: Float64, begin: int, end: int) -> None:
        struct = _Struct(self._isa, False, batch, None)
        status = lib.fastsoftmax_moments(
            struct.batch, _lend("double[]", out), begin, end, _scratch.for_scoring(struct.batch)
        )
        _check("moments", status)

    def kl_divergence(self, p: Batch, q: Batch, out: Float64, begin: int, end: int) -> None:
        p_struct, q_struct = (_Struct(self._isa, False, batch, None) for batch in (p, q))
        scratch = _scratch.for_scoring(p_struct.batch)
        status = lib.fastsoftmax_kl_divergence(
            p_struct.batch, q_struct.batch, _lend("double[]", out), begin, end, scratch
        )
        _check("kl_divergence", status)

    def reduce(self, batch: Batch, maximum: Float64, rest: Float64, begin: int, end: int) -> None:
        struct = _Struct(self._isa, False, batch, None)
        status = lib.fastsoftmax_reduce(
            struct.batch,
            _lend("double[]", maximum),
            _lend("double[]", rest),
            begin,
            end,
            _scratch.for_scoring(struct.batch),
        )
        _check("reduce", status)

    def normalize(
        self,
        batch: Batch,
        maximum: Float64,
        rest: Float64,
        log: bool,
        out: Array,
        begin: int,
        end: int,
    ) -> None:
        struct = _Struct(self._isa, True, batch, out)
        status = lib.fastsoftmax_normalize(
            struct.batch,
            _lend("double[]", maximum),
            _lend("double[]", rest),
            log,
            begin,
            end,
            _scratch.for_scoring(struct.batch),
        )
        _check("normalize", status)

    def sample(
        self,
        batch: Batch,
        filters: Filters,
        uniforms: Float64,
        replace: bool,
        ids: Int64,
        logprobs: Float64,
        begin: int,
        end: int,
    ) -> None:
        struct, chosen = _Struct(self._isa, False, batch, None), _filters(filters)
        status = lib.fastsoftmax_sample(
            struct.batch,
            chosen,
            _lend("double[]", uniforms),
            uniforms.shape[1],
            replace,
            _lend("int64_t[]", ids),
            _lend("double[]", logprobs),
            begin,
            end,
            _scratch.for_sampling(struct.batch, chosen),
        )
        _check("sample", status)

    def count_survivors(
        self, batch: Batch, filters: Filters, counts: Int64, begin: int, end: int
    ) -> None:
        struct, chosen = _Struct(self._isa, False, batch, None), _filters(filters)
        scratch = _scratch.for_sampling(struct.batch, chosen)
        status = lib.fastsoftmax_count_survivors(
            struct.batch, chosen, _lend("int64_t[]", counts), begin, end, scratch
        )
        _check("count_survivors", status)

    def survivors(
        self,
        batch: Batch,
        filters: Filters,
        offsets: Int64,
        ids: Int64,
        logprobs: Float64,
        begin: int,
        end: int,
    ) -> None:
        struct, chosen = _Struct(self._isa, False, batch, None), _filters(filters)
        status = lib.fastsoftmax_survivors(
            struct.batch,
            chosen,
            _lend("int64_t[]", offsets),
            _lend("int64_t[]", ids),
            _lend("double[]", logprobs),
            begin,
            end,
            _scratch.for_sampling(struct.batch, chosen),
        )
        _check("survivors", status)

    def warmup(self) -> None:
        """There is nothing to load."""

    def describe(self) -> dict[str, str]:
        return {
            "C library": ffi.string(lib.fastsoftmax_version()).decode(),
            "instruction set": self.isa,
            "instruction sets": ", ".join(ISAS),
        }


def _address(pointer: Any, a: NDArray[Any]) -> Any:
    return ffi.cast(pointer, a.__array_interface__["data"][0])


class _Struct:
    """A batch as the library takes it, with all that it points to.

    `out` is None for a function that has its own outputs.
    """

    __slots__ = ("_kept", "batch")

    def __init__(self, isa: int, writes_rows: bool, batch: Batch, out: Array | None) -> None:
        x, where, t = batch.x, batch.where, batch.temperature
        rows = batch.row_axes
        zeros = (0,) * x.ndim
        none = zeros[rows:]
        x_size = x.itemsize
        if out is None:
            out_size, out_strides = 1, zeros
        else:
            out_size = out.itemsize
            out_strides = out.strides if writes_rows else out.strides + none
        axes = ffi.new(
            _AXES,
            [
                (n, sx // x_size, so // out_size, sw, st // 8)
                for n, sx, so, sw, st in zip(
                    x.shape,
                    x.strides,
                    out_strides,
                    zeros if where is None else where.strides,
                    t.strides + none,
                    strict=True,
                )
            ],
        )
        x_code = _CODES.get(x.dtype, lib.FASTSOFTMAX_BF16)
        bitmask, edits = batch.bitmask, ffi.NULL
        if batch.edits is not None:
            e = batch.edits
            edits = ffi.new(
                "fastsoftmax_edits *",
                [
                    _address(pointer, a)
                    for pointer, a in (
                        (_INT64, e.offsets),
                        (_INT64, e.ids),
                        (_DOUBLE, e.bias),
                        (_DOUBLE, e.penalty),
                        (_DOUBLE, e.reduction),
                    )
                ],
            )
        self.batch = ffi.new(
            _BATCH,
            (
                isa,
                x_code,
                x_code if out is None else _CODES.get(out.dtype, lib.FASTSOFTMAX_BF16),
                rows,
                x.ndim - rows,
                axes,
                _address(_VOID, x),
                ffi.NULL if where is None else _address(_MASK, where),
                _address(_DOUBLE, t),
                ffi.NULL if out is None else _address(_VOID, out),
                ffi.NULL if bitmask is None else _address(_WORDS, bitmask),
                0 if bitmask is None else bitmask.strides[0] // 4,
                edits,
            ),
        )
        self._kept = axes, edits, batch, out


class _SplitRow:
    """A row whose blocks are the library's."""

    def __init__(self, op: str, struct: _Struct, row: int) -> None:
        self._name, self._op, self._struct, self._row = op, _OPS[op], struct, row
        self._shared = _allocate(lib.fastsoftmax_scratch_size(struct.batch))
        self.blocks: int = lib.fastsoftmax_block_count(struct.batch)

    def reduce(self, begin: int, end: int) -> None:
        batch = self._struct.batch
        status = lib.fastsoftmax_reduce_blocks(
            batch, self._op, self._row, begin, end, self._shared, _scratch.of(batch)
        )
        _check(self._name, status)

    def merge(self) -> None:
        batch = self._struct.batch
        status = lib.fastsoftmax_merge_blocks(
            batch, self._op, self._row, self._shared, _scratch.of(batch)
        )
        _check(self._name, status)

    def write(self, begin: int, end: int) -> None:
        batch = self._struct.batch
        status = lib.fastsoftmax_write_blocks(
            batch, self._op, self._row, begin, end, self._shared, _scratch.of(batch)
        )
        _check(self._name, status)


def _filters(filters: Filters) -> Any:
    """Filters as the library takes them; they live no longer than their arrays."""
    return ffi.new(
        "fastsoftmax_filters *",
        (
            _address(_INT64, filters.top_k),
            _address(_DOUBLE, filters.top_p),
            _address(_DOUBLE, filters.min_p),
        ),
    )


def _check(op: str, status: int) -> None:
    if status != lib.FASTSOFTMAX_OK:
        raise RuntimeError(f"fastsoftmax_{op} refused its arguments with status {status}")

"""Scoring and sampling by the jitted kernels, which are compiled or loaded when first needed."""

import numpy as np

from fastsoftmax._backends._numba_call import Call, address, scratch
from fastsoftmax._backends._protocol import Array, Batch, Filters, Float64, Int64


class NumbaScoring:
    """The methods of `Backend` that score and sample."""

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
        from fastsoftmax._numba import scoring

        call, count = Call(batch), ids.shape[1]
        room = scratch.room(8 * count)
        scoring.token_logprobs(
            call.workspace(),
            call.row_state(),
            call.table,
            address(ids),
            count,
            address(logprobs),
            address(ranks),
            address(mean),
            address(room),
            begin,
            end,
        )

    def topk(
        self, batch: Batch, k: int, ids: Int64, logprobs: Float64, begin: int, end: int
    ) -> None:
        from fastsoftmax._numba import scoring

        call, size = Call(batch), 8 * scoring.best_room(k)
        room = scratch.room(2 * size)
        scoring.topk(
            call.workspace(),
            call.row_state(),
            call.table,
            k,
            address(ids),
            address(logprobs),
            address(room),
            address(room) + size,
            begin,
            end,
        )

    def moments(self, batch: Batch, out: Float64, begin: int, end: int) -> None:
        from fastsoftmax._numba import scoring

        call = Call(batch)
        room = scratch.room(scoring.moments_room(call.cols))
        scoring.moments(
            call.workspace(), call.row_state(), call.table, address(out), address(room), begin, end
        )

    def kl_divergence(self, p: Batch, q: Batch, out: Float64, begin: int, end: int) -> None:
        from fastsoftmax._numba import scoring

        p_call, q_call = Call(p, wide=True), Call(q, wide=True)
        room = scratch.room(scoring.divergence_room(p_call.cols))
        scoring.kl_divergence(
            p_call.workspace(), p_call.table, q_call.table, address(out), address(room), begin, end
        )

    def reduce(self, batch: Batch, maximum: Float64, rest: Float64, begin: int, end: int) -> None:
        from fastsoftmax._numba import scoring

        call = Call(batch)
        scoring.reduce(
            call.workspace(),
            call.row_state(),
            call.table,
            address(maximum),
            address(rest),
            begin,
            end,
        )

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
        from fastsoftmax._numba import scoring

        call = Call(batch, out)
        scoring.normalize(
            call.workspace(),
            call.table,
            address(maximum),
            address(rest),
            log,
            begin,
            end,
        )

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
        from fastsoftmax._numba import sampling

        call = Call(batch)
        room, capacity = _room(call, filters)
        sampling.sample(
            call.workspace(),
            call.table,
            *_addresses(filters),
            address(uniforms),
            uniforms.shape[1],
            replace,
            address(ids),
            address(logprobs),
            address(room),
            capacity,
            begin,
            end,
        )

    def count_survivors(
        self, batch: Batch, filters: Filters, counts: Int64, begin: int, end: int
    ) -> None:
        from fastsoftmax._numba import sampling

        call = Call(batch)
        room, capacity = _room(call, filters)
        sampling.survivors(
            call.workspace(),
            call.table,
            *_addresses(filters),
            address(counts),
            0,
            0,
            0,
            address(room),
            capacity,
            begin,
            end,
        )

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
        from fastsoftmax._numba import sampling

        call = Call(batch)
        room, capacity = _room(call, filters)
        sampling.survivors(
            call.workspace(),
            call.table,
            *_addresses(filters),
            0,
            address(offsets),
            address(ids),
            address(logprobs),
            address(room),
            capacity,
            begin,
            end,
        )

    def warmup_scoring(self, dtype: type) -> None:
        """Compile or load all of these kernels for one type."""
        x = Batch(np.zeros((1, 1), dtype), 1, np.ones(1))
        reals, one, ids = np.zeros((1, 4)), np.zeros((1, 1)), np.zeros((1, 1), np.int64)
        filters = Filters(np.ones(1, np.int64), np.ones(1), np.zeros(1))
        self.token_logprobs(x, ids, one, None, None, 0, 1)
        self.topk(x, 1, ids, one, 0, 1)
        self.moments(x, reals, 0, 1)
        self.kl_divergence(x, x, one, 0, 1)
        self.reduce(x, one, one, 0, 1)
        self.normalize(x, one, one, False, np.empty((1, 1), dtype), 0, 1)
        self.sample(x, filters, one, True, ids, one, 0, 1)
        self.count_survivors(x, filters, ids, 0, 1)


def _addresses(filters: Filters) -> tuple[int, int, int]:
    return address(filters.top_k), address(filters.top_p), address(filters.min_p)


def _room(call: Call, filters: Filters) -> tuple[Array, int]:
    """Memory to sample in, and how many candidates it has room for."""
    from fastsoftmax._numba import sampling

    top_k = filters.top_k
    capacity = sampling.capacity(call.cols, int(top_k[top_k < call.cols].max(initial=1)))
    return scratch.room(sampling.room_size(call.cols, capacity)), capacity

"""Scoring by the jitted kernels, which are compiled or loaded when first needed."""

from fastsoftmax._backends._numba_call import Call, address, scratch
from fastsoftmax._backends._numpy_scoring import ReferenceScoring
from fastsoftmax._backends._protocol import Array, Batch, Float64, Int64


class NumbaScoring(ReferenceScoring):
    """The methods of `Backend` that score; the reference samples."""

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
        scoring.token_logprobs(
            call.workspace(),
            call.row_state(),
            call.table,
            address(ids),
            count,
            address(logprobs),
            address(ranks),
            address(mean),
            scratch.room(8 * count),
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
            room,
            room + size,
            begin,
            end,
        )

    def moments(self, batch: Batch, out: Float64, begin: int, end: int) -> None:
        from fastsoftmax._numba import scoring

        call = Call(batch)
        room = scratch.room(scoring.moments_room(call.cols))
        scoring.moments(
            call.workspace(), call.row_state(), call.table, address(out), room, begin, end
        )

    def kl_divergence(self, p: Batch, q: Batch, out: Float64, begin: int, end: int) -> None:
        from fastsoftmax._numba import scoring

        p_call, q_call = Call(p, wide=True), Call(q, wide=True)
        room = scratch.room(scoring.divergence_room(p_call.cols))
        scoring.kl_divergence(
            p_call.workspace(), p_call.table, q_call.table, address(out), room, begin, end
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
            call.row_state(),
            call.table,
            address(maximum),
            address(rest),
            log,
            begin,
            end,
        )

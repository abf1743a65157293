"""The table of operations: it drives the API, the backends, the tests and the benchmarks."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Op:
    """An operation on the rows of a batch.

    Attributes
    ----------
    name : str
        The name of the public function, of every backend's kernel and, behind ``fastsoftmax_``, of
        the C function.
    reduces : bool
        Whether a row comes to one number instead of a row.
    masked : float
        What a masked entry gets; for an operation that reduces, what a row with nothing unmasked
        comes to.
    zero_temperature : bool
        Whether the result has a limit at a temperature of exactly 0.
    """

    name: str
    reduces: bool
    masked: float
    zero_temperature: bool


_INF = float("inf")

OPS = {
    op.name: op
    for op in (
        Op("softmax", reduces=False, masked=0.0, zero_temperature=True),
        Op("log_softmax", reduces=False, masked=-_INF, zero_temperature=True),
        Op("logsumexp", reduces=True, masked=-_INF, zero_temperature=False),
    )
}

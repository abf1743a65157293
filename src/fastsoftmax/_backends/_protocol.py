"""What a backend is."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


@dataclass(slots=True)
class Edits:
    """Changes to single logits, made as they are read: for each row a sorted list of entries.

    The logit x of a listed entry becomes y, computed in float64 and rounded to the type of the
    arithmetic::

        y = x + bias
        y = y / penalty if y > 0 else y * penalty
        y = y - reduction

    An entry that is masked stays masked.

    Attributes
    ----------
    offsets : ndarray of int64, (rows + 1,)
        Row i owns the places [offsets[i], offsets[i + 1]) of the other arrays; the first offset
        need not be 0. C-contiguous, as all of these arrays.
    ids : ndarray of int64
        The entries in [0, cols), ascending within a row and none twice.
    bias : ndarray of float64
        Finite or -infinity.
    penalty : ndarray of float64
        Finite and positive.
    reduction : ndarray of float64
        Finite.
    """

    offsets: Int64
    ids: Int64
    bias: Float64
    penalty: Float64
    reduction: Float64


@dataclass(slots=True)
class Filters:
    """What is left of each row to draw from: C-contiguous arrays, one number per row.

    The filters apply one after the other to the entries ordered from the largest logit down, those
    of equal logits by ascending id. That order does not depend on the temperature, so each filter
    keeps a prefix of it. Entries that are masked or -infinity are not in it. At a temperature of 0
    (or so small that it counts as 0) the first entry alone is left, whatever the filters say.

    Attributes
    ----------
    top_k : ndarray of int64
        The first min(top_k, cols) entries survive; at least 1, and cols switches it off.
    top_p : ndarray of float64, in [0, 1]
        Of those the fewest first ones survive whose mass exp((x - max)/T), summed in float64,
        reaches `top_p` times the mass of all that top_k left (>=), at least one. 1 switches it off.
    min_p : ndarray of float64, in [0, 1]
        Of those the entries survive with exp((x - max)/T) >= min_p. 0 switches it off.
    """

    top_k: Int64
    top_p: Float64
    min_p: Float64


@dataclass(slots=True)
class Batch:
    """Rows of logits, checked: what every operation reads.

    Attributes
    ----------
    x : ndarray of float16, bfloat16, float32 or float64
        The logits: `row_axes` axes that number the rows, in C order, then the axes of a row, also
        in C order. Native and aligned; any strides, zero and negative ones too. Never written.
    row_axes : int
        How many of x's axes are row axes; at least one axis is left for the row.
    temperature : ndarray of float64
        Of the shape of the row axes, any strides. Not negative, not NaN.
    where : ndarray of bool, optional
        Of x's shape, any strides. Entries where it is False are masked: what they hold is never
        looked at.
    bitmask : ndarray of int32, optional
        Of shape (rows, ceil(cols / 32)), the words of a row contiguous, the rows at any distance (0
        too). Entry v is masked where bit v % 32 of word v // 32 is not set. With `where`, an entry
        is masked if either masks it. Only for the methods that score and sample.
    edits : Edits, optional
        Only for `sample`, `count_survivors` and `survivors`.
    """

    x: Array
    row_axes: int
    temperature: NDArray[np.float64]
    where: NDArray[np.bool_] | None = None
    bitmask: NDArray[np.int32] | None = None
    edits: Edits | None = None

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return math.prod(self.x.shape[: self.row_axes])

    @property
    def cols(self) -> int:
        """How many entries a row has."""
        return math.prod(self.x.shape[self.row_axes :])


class SplitRow(Protocol):
    """One row of a batch that several threads work on: `reduce` over all blocks, then `merge`, then
    `write` over all blocks. Ranges of blocks may be treated at the same time."""

    blocks: int

    def reduce(self, begin: int, end: int) -> None: ...
    def merge(self) -> None: ...
    def write(self, begin: int, end: int) -> None: ...


class Team(Protocol):
    """Threads that take the rows of a batch in turn without the interpreter.

    One thread leads at a time. Others help, and after that are awake for a while.
    """

    def lead(
        self,
        backend: Any,
        helpers: int,
        step: int,
        op: str,
        batch: Batch,
        out: Array,
        begin: int,
        end: int,
    ) -> None:
        """As `run` of a backend that made a team, in pieces of `step` rows."""
        ...

    def run_small(
        self,
        backend: Any,
        helpers: int,
        step: int,
        op: str,
        x: Array,
        temperature: float,
        out: Array | None,
    ) -> Array | None:
        """As `run_small` of a backend that made a team, in pieces of `step` rows."""
        ...

    def alone(self) -> int:
        """How many ns those who led would have worked alone, since this was asked last."""
        ...

    def waiting(self) -> int:
        """How many helpers are awake."""
        ...

    def help(self) -> None:
        """Help with every batch, until there has been none for a while."""
        ...

    def dismiss(self) -> None:
        """Let helpers return now."""
        ...


class Backend(Protocol):
    """One implementation of every operation of `fastsoftmax._ops.OPS`, and of scoring and sampling.

    Nothing is checked here. Every method may be called by many threads at once, and releases the
    GIL while it computes where it can.

    The methods that score and sample read the rows [begin, end) of a batch, numbered in C order,
    and write the places of these rows in their outputs, which are C-contiguous with the rows of the
    batch as their first axis. Nothing that they need beyond the outputs grows with the number of
    rows. Real outputs are float64 whatever the logits are; the arithmetic is that of the operations
    above. Log-probabilities keep the maximum out of the sum and take its logarithm as log1p. What
    is said of a temperature of 0 is meant for every one so small that it counts as 0.

    A row has *no distribution* if an unmasked entry is NaN or +infinity, or if nothing is above
    -infinity; it is *empty* if all of its entries are masked, or if it has none.
    """

    name: str

    def run(self, op: str, batch: Batch, out: Array, begin: int, end: int) -> None:
        """Apply an operation to the rows [begin, end) of a batch.

        Parameters
        ----------
        op : str
            A name of `OPS`.
        batch : Batch
        out : ndarray of one of the four float dtypes, native and aligned, any strides
            Of x's shape, or of that of the row axes where the operation reduces. It may be the very
            memory of `x` (same dtype and strides); otherwise it overlaps nothing. The arithmetic is
            float64 where x or out is, else float32 with sums in float64.
        begin, end : int
            The range of rows, numbered in C order.
        """
        ...

    @property
    def new_team(self) -> Callable[[], Team] | None:
        """What makes a team for this kind of backend; None where there is no such thing."""
        ...

    @property
    def compiles(self) -> bool:
        """Whether kernels are compiled when they are first called, for no rows too."""
        ...

    def run_small(self, op: str, x: Array, temperature: float, out: Array | None) -> Array | None:
        """Apply an operation over the last axis with the fewest steps, or do nothing at all.

        A backend may always leave it to `run`, and has to where anything is uncommon.

        Parameters
        ----------
        op : str
        x : ndarray
            Nothing is known of it.
        temperature : float
            Above 0.
        out : object
            None, or what the caller gave.

        Returns
        -------
        ndarray or None
            The result, which is `out` if that is not None; None if nothing was done.
        """
        ...

    def split(self, op: str, batch: Batch, out: Array, row: int) -> SplitRow:
        """The row `row`, made ready for several threads; the bits are those of `run`."""
        ...

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
        """The log-probabilities of given entries of each row.

        Parameters
        ----------
        batch : Batch
        ids : ndarray of int64, (rows, m)
            In [0, cols), or -1 for none. A row of which all ids are -1 need not be read.
        logprobs : ndarray of float64, (rows, m)
            Output. -infinity for an entry that is masked or -infinity, also where the row has no
            distribution if it is masked; NaN for any other entry of such a row and for an id of -1.
            At temperature 0 minus the logarithm of the number of maxima at these, -infinity
            elsewhere.
        ranks : ndarray of int64, (rows, m), optional
            Output. 1 + the number of unmasked entries whose logit is strictly larger, at any
            temperature (it does not change the order). 0 where the row has no distribution and for
            an id of -1.
        mean : ndarray of float64, (rows,), optional
            Output. The mean of the log-probabilities of the unmasked entries: -infinity if one of
            them is that, or if the row is empty; NaN if it has no distribution otherwise or was not
            read.
        """
        ...

    def topk(
        self, batch: Batch, k: int, ids: Int64, logprobs: Float64, begin: int, end: int
    ) -> None:
        """The k entries of each row with the largest logits, downward, equal ones by ascending id.

        The order is that of the logits at any temperature. Entries that are masked or -infinity
        never appear. The places beyond the last entry, and all places of a row without a
        distribution, hold id -1 and NaN.

        Parameters
        ----------
        batch : Batch
        k : int
            In [1, cols].
        ids : ndarray of int64, (rows, k)
            Output.
        logprobs : ndarray of float64, (rows, k)
            Output, normalised over all unmasked entries. At temperature 0 as for `token_logprobs`.
        """
        ...

    def moments(self, batch: Batch, out: Float64, begin: int, end: int) -> None:
        """Four numbers a row: log-sum-exp of x/T, mean and variance of x, entropy.

        Mean and variance are those of the logits, not of x/T, under softmax(x/T); entries of
        probability 0 count for nothing. A row without a distribution has NaN in all columns but the
        first, which is NaN, +infinity or -infinity as `logsumexp` says; an empty row has -infinity,
        0, 0, 0. The first column is NaN at a temperature of exactly 0, where it has no limit.

        Parameters
        ----------
        batch : Batch
        out : ndarray of float64, (rows, 4)
        """
        ...

    def kl_divergence(self, p: Batch, q: Batch, out: Float64, begin: int, end: int) -> None:
        """sum(p * (log(p) - log(q))) of each row of two batches.

        An entry whose logit in p is -infinity (or which is not a maximum at temperature 0) counts
        for nothing; the result is +infinity if that is so in q alone, even where the probability in
        p underflows. Never below 0. NaN if either row has no distribution; 0 if it is empty.

        Parameters
        ----------
        p, q : Batch
            Of the same shape and with the same row axes and masks; dtypes, strides and
            temperatures are each batch's own. The arithmetic is float64 whatever they hold.
        out : ndarray of float64, (rows,)
        """
        ...

    def reduce(self, batch: Batch, maximum: Float64, rest: Float64, begin: int, end: int) -> None:
        """Each row as (maximum, rest), which merge associatively.

        log-sum-exp is maximum/T + log1p(rest); maximum/T alone at a temperature that counts as 0.

        Parameters
        ----------
        batch : Batch
        maximum : ndarray of float64, (rows,)
            Output. The largest unmasked logit, exactly; NaN if one of them is NaN; -infinity if
            there are none.
        rest : ndarray of float64, (rows,)
            Output. The sum of exp((x - maximum)/T) over the unmasked entries but one that is equal
            to the maximum: 0 for a single entry, the number of the other maxima at temperature 0,
            that of the other entries above -infinity at temperature infinity. 0 where the maximum
            is not finite.
        """
        ...

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
        """The probabilities of entries of larger rows that are known by (maximum, rest).

        Parameters
        ----------
        batch : Batch
        maximum, rest : ndarray of float64, (rows,), C-contiguous
            As of `reduce`, of all entries of the larger row; the maximum is not less than any entry
            here. Where it is not finite the larger row has no distribution.
        log : bool
            Whether to write log-probabilities.
        out : ndarray of one of the four float dtypes, native and aligned, any strides
            As of `run`: exp((x - maximum)/T)/(1 + rest) or its logarithm, with the limits of the
            temperature; 0 or -infinity where masked, else NaN where there is no distribution.
        """
        ...

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
        """Draws from what the filters leave of each row.

        With survivors of weight w = exp((x - max)/T) in the order of their ids and W the sum of
        their weights, in float64, a uniform u draws the first one up to which the weights sum to
        more than u * W; the last one of positive weight should rounding leave none.

        Parameters
        ----------
        batch : Batch
        filters : Filters
        uniforms : ndarray of float64, (rows, n)
            In [0, 1): one for each draw. n is at least 1 and may be large: the cost of a draw must
            not grow with cols but by some blocks of it.
        replace : bool
            Whether a token may be drawn again. If not, what has been drawn is left out of the
            weights and of W for the later draws of the row, in the order of the uniforms; max is
            then the largest logit that is left, so that no weight is lost to rounding beside what
            has been drawn, and any survivor can be.
        ids : ndarray of int64, (rows, n)
            Output. -1 in a row without a distribution, and for draws beyond the last survivor.
        logprobs : ndarray of float64, (rows, n)
            Output. The log-probability among all survivors of the row, whatever has been drawn
            before: x/T normalised over the survivors, as exact as `token_logprobs`; 0 at
            temperature 0. NaN where the id is -1.
        """
        ...

    def count_survivors(
        self, batch: Batch, filters: Filters, counts: Int64, begin: int, end: int
    ) -> None:
        """How many entries of each row the filters leave: 0 where it has no distribution.

        Parameters
        ----------
        batch : Batch
        filters : Filters
        counts : ndarray of int64, (rows,)
            Output.
        """
        ...

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
        """The entries of each row that the filters leave, by ascending id.

        Parameters
        ----------
        batch : Batch
        filters : Filters
        offsets : ndarray of int64, (rows + 1,)
            Row i has the places [offsets[i], offsets[i + 1]) of the outputs, as many as
            `count_survivors` counts for it. The first offset need not be 0.
        ids : ndarray of int64
            Output.
        logprobs : ndarray of float64
            Output. As of `sample`.
        """
        ...

    def warmup(self) -> None:
        """Compile or load whatever the first call would."""
        ...

    def describe(self) -> dict[str, str]:
        """Versions and settings worth knowing in a bug report."""
        ...

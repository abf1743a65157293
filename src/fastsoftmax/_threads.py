"""How many threads work on a call, and the pool they belong to.

Kernels never look at signals, so no call of one is long: large batches and long rows are cut even
where one thread does all of the work, and Control-C is seen between two pieces.

The pool is a queue and some daemon threads that start with the first call large enough for them.
The caller works too and takes on whatever is left, so it never waits for a thread that has not
begun: where no thread can be had (a second call at the same time, the end of the interpreter) the
caller does everything. A forked child starts with a pool of its own, without threads.

threadpoolctl finds thread pools by the libraries that are loaded; it sees and limits this one
wherever the C module is loaded, if it was imported before fastsoftmax or before the first call that
works in threads. It is never imported from here.
"""

import math
import operator
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from time import perf_counter_ns
from typing import Any

from numpy.typing import NDArray

from fastsoftmax._backends._protocol import Backend, Batch, Team
from fastsoftmax._ops import Op

# Entries below which a batch is not worth waking a thread for: some 250 us of work at memory speed.
# On a machine of one's own a thread is awake after 10 to 20 us, on a virtual one whose other CPU
# sleeps or is busy after up to 90, of which the caller spends 40 on the call that wakes it.
SERIAL_BELOW = 3 << 19

# Entries below which a batch is not worth a thread that is awake.
ALONE_BELOW = 3 << 17

# Batches between those are shared where they follow one another this closely, in ns: the thread
# that is woken for one of them is still awake at the next.
_CLOSE = 100_000

# Where CPUs are busy with other work, a helper that all wait for gets its turn after some ms, or
# takes that of the caller. So a pool has an account of the ns that a team has saved: it is never
# above _CREDIT, and below -_DEBT the pool rests, for _REST at first and twice as long each time
# that the account has not been at _CREDIT in between.
_CREDIT = 1_000_000
_DEBT = 2_000_000
_REST = 5_000_000
_LONGEST_REST = 320_000_000

# Entries of a row from which it is shared by the threads where there are few rows. Two steps, each
# of which wakes the threads, need twice the work.
SPLIT_FROM = 1 << 20

# Entries that are taken at a time, at least: some 100 us of work. Between two pieces a thread may
# have to wait for the interpreter's lock; not in a team, for which a tenth will do.
_GRAIN = 1 << 18
_TEAM_GRAIN = 1 << 15

# Entries that are worked on in one call, at most: some ms of work for most kernels, 0.2 s for the
# slowest.
_AT_ONCE = 1 << 22

# Rows are dealt out in multiples of this where there are enough: whole vectors and cache lines of
# rows that lie side by side.
_ROWS = 64

# Pieces for each thread, so that none waits long for another that the system has put aside.
_PIECES = 4


def run(backend: Backend, op: Op, batch: Batch, out: NDArray[Any]) -> None:
    """Apply an operation to all rows of a batch; the bits are the same for any number of threads.

    Parameters are those of `Backend.run`.
    """
    threads, size = _limit, batch.x.size
    rows = batch.rows
    few = threads > 1 and rows < _PIECES * threads
    if size < SERIAL_BELOW or _at_once(size, threads):
        backend.run(op.name, batch, out, 0, rows)
    elif size // rows >= (SPLIT_FROM if few else _AT_ONCE):
        for row in range(rows):
            _run_split(backend, op, batch, out, row, threads)
    elif not _run_in_team(backend, op, batch, out, threads):
        run_rows(
            lambda begin, end: backend.run(op.name, batch, out, begin, end),
            rows,
            size,
            compiles=backend.compiles,
        )


def run_contiguous(
    backend: Backend, op: str, x: NDArray[Any], temperature: float, out: NDArray[Any] | None
) -> NDArray[Any] | None:
    """`Backend.run_small` for batches of ALONE_BELOW entries and more, by a team where that pays.

    Returns None, and has done nothing, for what `run` has to do.
    """
    global _ended
    size, threads, new_team, result = x.size, _limit, backend.new_team, None
    single = _at_once(size, threads)
    alone = size < SERIAL_BELOW or (single and new_team is not None)
    if (
        new_team is not None
        and threads > 1
        and not single
        and x.ndim > 1
        and size <= _AT_ONCE * threads
    ):
        rows = size // max(x.shape[-1], 1)
        step = _step(rows, size, threads, _TEAM_GRAIN) if rows else 1

        def work(team: Team) -> None:
            nonlocal result
            result = team.run_small(backend, threads - 1, step, op, x, temperature, out)

        close = perf_counter_ns() - _ended < _CLOSE
        if rows >= _PIECES * threads and (close or not alone):
            _pool.lead(new_team, threads - 1, work)
    if result is None and alone:
        result = backend.run_small(op, x, temperature, out)
    _ended = perf_counter_ns()
    return result


# When the last of those batches was done.
_ended = 0


def _at_once(size: int, threads: int) -> bool:
    """Whether a batch of so many entries goes in one call though it is large enough to share."""
    return size <= _AT_ONCE and (threads == 1 or _pool.rests())


def run_rows(
    work: Callable[[int, int], None], rows: int, size: int, *, compiles: bool = False
) -> None:
    """Call ``work(begin, end)`` on ranges that make up all rows, in threads where that pays.

    Parameters
    ----------
    work : callable
        What any number of threads may do at once.
    rows : int
    size : int
        Entries of all rows together, or as many as would take as long.
    compiles : bool, optional
        Whether kernels are compiled when they are first called. Then the caller does the work for
        no rows first: an interrupt may leave the compiler's lock behind, and threads that help
        would wait for it for ever.
    """
    threads = _limit
    if size < SERIAL_BELOW or rows < 2 or (threads == 1 and size <= _AT_ONCE):
        work(0, rows)
        return
    step = _step(rows, size, threads, _GRAIN)
    if compiles:
        work(0, 0)

    def piece(i: int) -> None:
        work(i * step, min(i * step + step, rows))

    _pool.run(piece, -(-rows // step), threads)


def run_copies(work: Callable[[int, int], None], copies: int, size: int, cols: int) -> None:
    """`run_rows` for work that copies a piece of the input for each of its numbers.

    Parameters
    ----------
    work : callable
    copies : int
    size : int
        Entries of all copies together.
    cols : int
        Entries of a row. There are no two copies at a time of a row that threads may share.
    """
    if cols < SPLIT_FROM:
        run_rows(work, copies, size)
    else:
        work(0, copies)


def _step(rows: int, size: int, threads: int, grain: int) -> int:
    """Rows of a piece."""
    step = -(-rows // min(_pieces(size, threads, grain), rows))
    return -(-step // _ROWS) * _ROWS if step > _ROWS else step


def _pieces(size: int, threads: int, grain: int) -> int:
    """How many pieces are enough for the threads, and small enough."""
    wanted = min(threads * _PIECES, max(size // grain, threads))
    return max(wanted, -(-size // _AT_ONCE))


def _run_in_team(backend: Backend, op: Op, batch: Batch, out: NDArray[Any], threads: int) -> bool:
    """Let threads take the rows of a batch without the interpreter, if they can."""
    if backend.new_team is None or threads == 1 or batch.rows < 2:
        return False
    step = _step(batch.rows, batch.x.size, threads, _TEAM_GRAIN)
    helpers = min(threads, -(-batch.rows // step)) - 1

    def work(team: Team) -> None:
        at_once = step * threads * _PIECES
        for begin in range(0, batch.rows, at_once):
            end = min(begin + at_once, batch.rows)
            team.lead(backend, helpers, step, op.name, batch, out, begin, end)

    return _pool.lead(backend.new_team, helpers, work)


def _run_split(
    backend: Backend, op: Op, batch: Batch, out: NDArray[Any], row: int, threads: int
) -> None:
    """Work on the blocks of one row in threads; for `compiles`, see `run_rows`."""
    split = backend.split(op.name, batch, out, row)
    pieces = min(_pieces(batch.cols, threads, _GRAIN), split.blocks)
    edges = [split.blocks * i // pieces for i in range(pieces + 1)]
    if backend.compiles:
        split.reduce(0, 0)
    _pool.run(lambda i: split.reduce(edges[i], edges[i + 1]), pieces, threads)
    split.merge()
    if op.reduces:  # one number
        split.write(0, split.blocks)
    else:
        if backend.compiles:
            split.write(0, 0)
        _pool.run(lambda i: split.write(edges[i], edges[i + 1]), pieces, threads)


class _Job:
    """Pieces of work, numbered from 0, that several threads take in turn."""

    def __init__(self, work: Callable[[int], None], pieces: int) -> None:
        self._work: Callable[[int], None] | None = work
        self._pieces = pieces
        self._next = 0
        self._helpers = 0
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        # Held until the last helper has left a job that is closed.
        self._left = threading.Lock()
        self._left.acquire()
        self._closed = False

    def run(self) -> None:
        """What the caller does: work, then wait until nobody else does, whatever happens."""
        try:
            self._take()
        finally:
            self._close()
        if self._error is not None:
            raise self._error

    def help(self) -> None:
        """What a thread of the pool does."""
        with self._lock:
            if self._closed:
                return
            self._helpers += 1
        try:
            self._take()
        except BaseException as error:
            with self._lock:
                self._error = error
                self._next = self._pieces
        finally:
            with self._lock:
                self._helpers -= 1
                if self._closed and self._helpers == 0:
                    self._left.release()

    def _take(self) -> None:
        work = self._work
        assert work is not None
        while True:
            with self._lock:
                piece = self._next
                if piece >= self._pieces:
                    return
                self._next = piece + 1
            work(piece)

    def _close(self) -> None:
        """Take no more pieces, and wait for those that are being worked on.

        An interrupt here is put off until the arrays are nobody's.
        """
        interrupt = None
        while True:
            try:
                with self._lock:
                    self._closed = True
                    self._next = self._pieces
                    waiting = self._helpers > 0
                if waiting:
                    self._left.acquire()
                break
            except BaseException as error:
                interrupt = error
        # A thread that comes late finds a job that keeps no arrays.
        self._work = None
        if interrupt is not None:
            raise interrupt


class _Pool:
    """Daemon threads that help with one job at a time."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job | Team] = SimpleQueue()
        self._threads = 0
        self._team: Team | None = None
        self._account = self._rest = self._rests_until = 0
        self._busy = threading.Lock()

    def run(self, work: Callable[[int], None], pieces: int, threads: int) -> None:
        """Call ``work(0)`` to ``work(pieces - 1)``, in `threads` threads if they are free."""
        helpers = min(threads, pieces) - 1
        if helpers < 1 or not self._busy.acquire(blocking=False):
            for piece in range(pieces):
                work(piece)
            return
        try:
            if self._team is not None:
                self._team.dismiss()
            job = _Job(work, pieces)
            for _ in range(min(helpers, self._grow(helpers))):
                self._jobs.put(job)
            job.run()
        finally:
            self._busy.release()

    def lead(
        self, new_team: Callable[[], Team], helpers: int, work: Callable[[Team], None]
    ) -> bool:
        """Call `work` with a team that so many threads help, unless the pool is busy."""
        if not self._busy.acquire(blocking=False):
            return False
        started = perf_counter_ns()
        try:
            if self._team is None:
                self._team = new_team()
            # A thread that helps is awake and needs no call, nor does one that has been called.
            awake = self._team.waiting() + self._jobs.qsize()
            for _ in range(min(helpers, self._grow(helpers)) - awake):
                self._jobs.put(self._team)
            work(self._team)
            self._enter(self._team.alone() - (perf_counter_ns() - started))
        finally:
            self._busy.release()
        return True

    def _enter(self, saved: int) -> None:
        """Enter what a batch has saved in the account."""
        self._account = min(self._account + saved, _CREDIT)
        if self._account == _CREDIT:
            self._rest = 0
        elif self._account < -_DEBT:
            self._rest = min(2 * self._rest or _REST, _LONGEST_REST)
            self._rests_until = perf_counter_ns() + self._rest
            self._account = 0

    def rests(self) -> bool:
        """Whether batches that take no more than some ms are better not shared."""
        return perf_counter_ns() < self._rests_until

    def _grow(self, threads: int) -> int:
        """Start threads until there are so many, or as many as can be had."""
        if "threadpoolctl" in sys.modules:
            _register()
        while self._threads < threads:
            name = f"fastsoftmax-{self._threads + 1}"
            thread = threading.Thread(target=self._serve, name=name, daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the interpreter is ending, or the system has no more
                break
            self._threads += 1
        return self._threads

    def _serve(self) -> None:
        while True:
            with suppress(MemoryError):  # for a team's scratch memory: others do the work
                self._jobs.get().help()


_pool = _Pool()


def _after_fork() -> None:
    """In the child only the thread that forked is left, and any lock may be held for ever."""
    global _pool
    _pool = _Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def _cgroup_cpus(root: str = "") -> float:
    """How many CPUs the control groups of this process let it use; infinity for no limit.

    `root` stands before all paths, for tests.
    """
    limit = math.inf
    try:
        lines = _read(f"{root}/proc/self/cgroup").splitlines()
    except OSError:
        return limit
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            mount, files = f"{root}/sys/fs/cgroup", ["cpu.max"]
        elif "cpu" in controllers.split(","):
            mount, files = f"{root}/sys/fs/cgroup/cpu", ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        else:
            continue
        # A limit on any group above counts. In a container the paths of its groups may not be there
        # but the root of its tree is.
        while True:
            try:
                quota, period = " ".join(_read(f"{mount}{path}/{name}") for name in files).split()
                if quota not in ("max", "-1"):
                    limit = min(limit, int(quota) / int(period))
            except (OSError, ValueError, ZeroDivisionError):
                pass
            if path in ("", "/"):
                break
            path = path.rpartition("/")[0]
    return limit


def _cpus() -> int:
    """How many CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    return max(1, min(count, math.ceil(min(_cgroup_cpus(), count))))


def _from_environment() -> int:
    """The number of threads to begin with."""
    for variable in ("FASTSOFTMAX_NUM_THREADS", "OMP_NUM_THREADS"):
        text = os.environ.get(variable, "").strip()
        # OpenMP takes a list, one number for each level of nesting.
        first = text.partition(",")[0].strip() if variable == "OMP_NUM_THREADS" else text
        if not text:
            continue
        if not (first.isascii() and first.isdigit() and int(first) > 0):
            raise ImportError(f"{variable} is {text!r}; it must be a whole number, 1 or more")
        return int(first)
    return _cpus()


_limit = _from_environment()


def get_num_threads() -> int:
    """How many threads a call may work in, the caller's among them.

    Returns
    -------
    int
        At first the value of FASTSOFTMAX_NUM_THREADS, else that of OMP_NUM_THREADS, else the number
        of CPUs that this process may use.

    Examples
    --------
    >>> import fastsoftmax
    >>> fastsoftmax.get_num_threads() >= 1
    True
    """
    return _limit


def set_num_threads(n: int) -> None:
    """Let calls work in up to `n` threads, the caller's among them, in the whole process.

    Small calls work in one whatever the number, and so does a call that is made while another one
    works in threads. No result depends on it.

    Parameters
    ----------
    n : int
        1 or more.

    Raises
    ------
    TypeError
        If `n` is not an integer.
    ValueError
        If it is less than 1.

    Examples
    --------
    >>> import fastsoftmax
    >>> before = fastsoftmax.get_num_threads()
    >>> fastsoftmax.set_num_threads(1)
    >>> fastsoftmax.get_num_threads()
    1
    >>> fastsoftmax.set_num_threads(before)
    """
    global _limit
    try:
        count = operator.index(n)
    except Exception:
        raise TypeError(f"n is a {type(n).__name__}; it must be an integer") from None
    if count < 1:
        raise ValueError(f"n is {count}; it must be 1 or more")
    _limit = count


# Held from then on.
_registered = threading.Lock()


def _register() -> None:
    """Make this pool known to threadpoolctl, which has been imported."""
    threadpoolctl: Any = sys.modules.get("threadpoolctl")
    if not hasattr(threadpoolctl, "register") or not _registered.acquire(blocking=False):
        return
    base: Any = threadpoolctl.LibController

    class Controller(base):  # type: ignore[misc]
        """The thread pool of fastsoftmax."""

        user_api = "fastsoftmax"
        internal_api = "fastsoftmax"
        filename_prefixes = ("_c.",)
        check_symbols = ("fastsoftmax_version",)

        def get_num_threads(self) -> int:
            return get_num_threads()

        def set_num_threads(self, num_threads: int) -> None:
            set_num_threads(num_threads)

        def get_version(self) -> str:
            from fastsoftmax import __version__

            return __version__

    threadpoolctl.register(Controller)


_register()

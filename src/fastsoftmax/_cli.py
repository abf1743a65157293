"""The command line: a file of logits in, a file or lines of results out, chunk by chunk.

What is as large as the logits is never in memory; `score` and `sample` hold some numbers a row.
"""

import argparse
import errno
import math
import mmap
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import numpy as np
from numpy.lib.array_utils import normalize_axis_index
from numpy.lib.format import open_memmap

import fastsoftmax
from fastsoftmax import _embed
from fastsoftmax._api._sampling import sample_rows
from fastsoftmax._api._scoring import as_targets, token_losses
from fastsoftmax._ops import OPS

# Input that is worked on at a time. Large enough for a file that is read in columns to be read in
# pieces of some length, small beside the memory of any machine.
_CHUNK_BYTES = 1 << 26

_COMMANDS = {
    "softmax": ("softmax", "probabilities"),
    "log-softmax": ("log_softmax", "log-probabilities"),
    "logsumexp": ("logsumexp", "log of the sum of exponentials; the axis is removed"),
}

Index = tuple[slice, ...]


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"fastsoftmax: error: {' '.join(message.split())}\n")


def _parser() -> _Parser:
    parser = _Parser(
        prog="fastsoftmax",
        description="Temperature softmax of .npy files, also of those larger than memory.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action="version", version=f"fastsoftmax {fastsoftmax.__version__}"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command, (_, summary) in _COMMANDS.items():
        sub = commands.add_parser(command, help=summary, description=f"{summary} of the logits")
        sub.add_argument("input", metavar="IN.npy", help="logits, of any number of dimensions")
        sub.add_argument("output", metavar="OUT.npy", help="appears when all is done")
        sub.add_argument(
            "-t", "--temperature", type=float, default=1.0, help="divides the logits (default: 1)"
        )
        sub.add_argument(
            "--axis", type=int, default=-1, help="that a row of logits lies along (default: -1)"
        )
        sub.add_argument(
            "--dtype",
            choices=("float16", "float32", "float64"),
            help="of the output (default: that of the input; float64 for integers)",
        )
        sub.add_argument("-q", "--quiet", action="store_true", help="no progress bar")
    _add_score(commands)
    _add_sample(commands)
    commands.add_parser("info", help="versions, and the backend that serves")
    summary = "compiler and linker flags of the C library; both without an option"
    config = commands.add_parser("config", help=summary, description=summary)
    config.add_argument("--cflags", action="store_true", help="what to compile with")
    config.add_argument("--libs", action="store_true", help="what to link with")
    return parser


def _add_score(commands: Any) -> None:
    summary = "mean loss and perplexity of given tokens"
    sub = commands.add_parser("score", help=summary, description=summary)
    sub.add_argument("input", metavar="LOGITS.npy", help="logits, the vocabulary as the last axis")
    sub.add_argument("targets", metavar="TARGETS.npy", help="a token id for each row of logits")
    sub.add_argument(
        "-t", "--temperature", type=float, default=1.0, help="divides the logits (default: 1)"
    )
    sub.add_argument(
        "--ignore-index", type=int, default=-100, help="target that does not count (default: -100)"
    )
    sub.add_argument("-o", "--output", metavar="LOSSES.npy", help="the loss of each row as well")
    sub.add_argument("-q", "--quiet", action="store_true", help="no progress bar")


def _add_sample(commands: Any) -> None:
    summary = "draw a token from each row of logits"
    sub = commands.add_parser(
        "sample",
        help=summary,
        description=f"{summary}; prints a line with its id and log-probability for each",
    )
    sub.add_argument("input", metavar="LOGITS.npy", help="logits, the vocabulary as the last axis")
    sub.add_argument(
        "-t", "--temperature", type=float, default=1.0, help="divides the logits (default: 1)"
    )
    sub.add_argument(
        "--top-k", type=int, default=0, help="most probable tokens kept (default: all)"
    )
    sub.add_argument("--top-p", type=float, default=1.0, help="mass that is kept (default: 1)")
    sub.add_argument(
        "--min-p", type=float, default=0.0, help="least share of the best token's (default: 0)"
    )
    sub.add_argument("--seed", type=int, help="makes the draw repeatable")
    sub.add_argument(
        "-o", "--output", metavar="OUT.npz", help="write arrays ids and logprobs, print nothing"
    )
    sub.add_argument("-q", "--quiet", action="store_true", help="no progress bar")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments without the program's name; those of the process by default.

    Returns
    -------
    int
        The exit status: 0, 130 after an interrupt, or 1 if nobody reads the output to its end.

    Raises
    ------
    SystemExit
        With status 2 after an error, which is one line on the standard error output.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    commands = {"info": _info, "config": _config, "score": _score, "sample": _sample}
    try:
        with _exit_when_terminated():
            commands.get(args.command, _convert)(args, parser.error)
        print(end="", flush=True)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # What is left in the buffer would fail again when the interpreter flushes it.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return 1
    return 0


@contextmanager
def _exit_when_terminated() -> Iterator[None]:
    """So that a run that is told to stop removes its temporary file, too."""
    # No other thread may set a handler, and one that is not Python's could not be put back.
    own = threading.current_thread() is threading.main_thread()
    if not own or signal.getsignal(signal.SIGTERM) is None:
        yield
        return
    earlier = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def _info(args: argparse.Namespace, error: Callable[[str], NoReturn]) -> None:
    """Print versions and settings."""
    fastsoftmax.show_config()


def _config(args: argparse.Namespace, error: Callable[[str], NoReturn]) -> None:
    """Print the flags to build with."""
    both = not (args.cflags or args.libs)
    try:
        print(_embed.flags(cflags=args.cflags or both, libs=args.libs or both))
    except fastsoftmax.BackendUnavailableError as exc:
        error(str(exc))


def _convert(args: argparse.Namespace, error: Callable[[str], NoReturn]) -> None:
    """Apply the operation that the arguments name to a file."""
    name, _ = _COMMANDS[args.command]
    function = getattr(fastsoftmax, name)
    x = _open_logits(args.input, error)
    try:
        axis = normalize_axis_index(args.axis, max(x.ndim, 1))
        # No rows are enough to have the arguments checked and to learn the result's dtype.
        probe = function(np.empty((0, 1), x.dtype), temperature=args.temperature, dtype=args.dtype)
    except (TypeError, ValueError) as exc:
        message = str(exc)
        error(message.replace("x has", f"{args.input} has", 1))
    shape = x.shape
    if OPS[name].reduces:
        shape = shape[:axis] + shape[axis + 1 :]

    with _replaced(args.output, (args.input,), error) as temporary:
        out = _open_output(temporary, probe.dtype, shape)
        _run(function, x, axis, args.temperature, out, args.quiet)
        # Windows renames no file that is mapped.
        del out


def _score(args: argparse.Namespace, error: Callable[[str], NoReturn]) -> None:
    """Print the loss of a file of targets."""
    x = _open_logits(args.input, error)
    targets = _open_input(args.targets, error)
    try:
        # No rows are enough to have the arguments checked and to learn the result's dtype.
        probe = fastsoftmax.entropy(np.empty((0, 1), x.dtype), temperature=args.temperature)
        if x.ndim == 0 or targets.shape != x.shape[:-1]:
            raise ValueError(
                f"{args.targets} has shape {targets.shape}; it must be that of {args.input} "
                f"without its last axis, {x.shape[:-1]}"
            )
        ids = as_targets("targets", targets, x.shape, args.ignore_index)
    except (TypeError, ValueError, IndexError) as exc:
        message = str(exc).replace("logits has", f"{args.input} has", 1)
        error(message.replace("targets", args.targets, 1) if "targets" in message[:7] else message)
    losses = np.empty(targets.shape)

    def score(index: Index, logits: Any) -> None:
        here: Any = (*index[: losses.ndim], ...)
        losses[here] = token_losses(logits, ids[here], args.temperature)

    if args.output is None:
        _over(x, score, args.quiet)
    else:
        with (
            _replaced(args.output, (args.input, args.targets), error) as temporary,
            open(temporary, "xb") as file,  # before the work: it may not be possible
        ):
            _over(x, score, args.quiet)
            np.save(file, losses.astype(probe.dtype))
    count = int(np.count_nonzero(ids >= 0))
    loss = losses.sum() / count if count else math.nan
    with np.errstate(over="ignore"):
        print(f"tokens      {count}\nloss        {loss:.9g}\nperplexity  {np.exp(loss):.9g}")


def _sample(args: argparse.Namespace, error: Callable[[str], NoReturn]) -> None:
    """Print or write a draw from each row of a file."""
    x = _open_logits(args.input, error)
    kwargs = {
        "temperature": args.temperature,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "min_p": args.min_p,
    }
    # What every chunk's rows are numbered on from.
    seed = int.from_bytes(os.urandom(8), "little") if args.seed is None else args.seed
    try:
        if x.ndim == 0:
            raise ValueError("logits is a scalar; its last axis must be the vocabulary")
        probe = fastsoftmax.sample(np.empty((1, 1), x.dtype), seed=seed, **kwargs)
    except (TypeError, ValueError) as exc:
        error(str(exc).replace("logits", args.input, 1))
    ids = np.empty(x.shape[:-1], np.int64)
    logprobs = np.empty(x.shape[:-1], probe.logprobs.dtype)

    def draw(index: Index, logits: Any) -> None:
        index = index[: ids.ndim]
        here: Any = (*index, ...)
        first = tuple(i.start or 0 for i in index) + (0,) * (ids.ndim - len(index))
        row = int(np.ravel_multi_index(first, ids.shape)) if first and ids.size else 0
        ids[here], logprobs[here] = sample_rows(logits, seed=seed, first_row=row, **kwargs)

    if args.output is None:
        _over(x, draw, args.quiet)
        for token, logprob in zip(ids.flat, logprobs.flat, strict=True):
            print(f"{token}\t{logprob + 0.0:.9g}")  # no negative zero
        return
    with (
        _replaced(args.output, (args.input,), error) as temporary,
        open(temporary, "xb") as file,
    ):
        _over(x, draw, args.quiet)
        np.savez(file, ids=ids, logprobs=logprobs)


@contextmanager
def _replaced(
    path: str, inputs: tuple[str, ...], error: Callable[[str], NoReturn]
) -> Iterator[str]:
    """The name of a temporary file, to be made, that takes the place of `path` in the end."""
    # The target of a link is replaced, not the link.
    output = os.path.realpath(path)
    if os.path.exists(output):
        if not os.path.isfile(output):
            error(f"{path} is not a regular file")
        if any(os.path.samefile(name, output) for name in inputs):
            error(f"{path} is the input; the output must be another file")
        if not os.access(output, os.W_OK):
            error(f"cannot write {path}: it is read-only")
    temporary = os.path.join(os.path.dirname(output), f".fastsoftmax-{os.urandom(6).hex()}.tmp")
    try:
        yield temporary
        os.replace(temporary, output)
    except OSError as exc:
        error(f"cannot write {path}: {exc.strerror or exc}")
    finally:
        with suppress(OSError):
            os.remove(temporary)


def _open_logits(path: str, error: Callable[[str], NoReturn]) -> Any:
    x = _open_input(path, error)
    if x.dtype.kind == "V" and x.dtype.names is None:
        error(
            f"{path} has dtype {x.dtype}; .npy has no name for bfloat16: "
            "convert the logits to float32 before they are saved"
        )
    return x


def _open_input(path: str, error: Callable[[str], NoReturn]) -> Any:
    try:
        return open_memmap(path, mode="r")
    except OSError as exc:
        error(f"cannot read {path}: {exc.strerror or exc}")
    except (ValueError, TypeError, OverflowError, MemoryError) as exc:
        error(f"cannot read {path} as a .npy file: {exc}")


def _open_output(path: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
    # Created here and by nobody else; it gets the permissions of any new file.
    with open(path, "xb"):
        pass
    out = open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):
        # A disk that is full is an error now, not a signal that kills at some later store.
        try:
            with open(path, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))
        except OSError as exc:
            # Not every file system can.
            if exc.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
    return out


def _run(
    function: Callable[..., Any], x: Any, axis: int, temperature: float, out: Any, quiet: bool
) -> None:
    """Apply a function that writes chunk by chunk."""

    def write(index: Index, logits: Any) -> None:
        out_index = index if out.ndim == x.ndim else index[:axis] + index[axis + 1 :]
        function(logits, axis, temperature=temperature, out=out[(*out_index, ...)])
        _release(out)

    _over(x, write, quiet, axis)


def _over(x: Any, work: Callable[[Index, Any], None], quiet: bool, axis: int = -1) -> None:
    """Call ``work(index, logits)`` for the chunks of a mapped file, none of which cuts `axis`."""
    bar = None if quiet else _progress_bar(x.size)
    try:
        for index in _chunks(x.shape, axis % max(x.ndim, 1), _CHUNK_BYTES // x.itemsize):
            # The ellipsis makes an array of what would be a scalar.
            logits = x[(*index, ...)]
            work(index, logits)
            _release(x)
            if bar is not None:
                bar.update(logits.size)
    finally:
        if bar is not None:
            bar.close()


def _chunks(shape: tuple[int, ...], axis: int, size: int) -> Iterator[Index]:
    """Indices that cut an array into pieces of about `size` entries, never across `axis`."""
    if math.prod(shape) <= size or not shape:
        yield ()
    elif axis == 0:
        for index in _chunks(shape[1:], -1, max(1, size // shape[0])):
            yield (slice(None), *index)
    else:
        step = max(1, size // math.prod(shape[1:]))
        for start in range(0, shape[0], step):
            for index in _chunks(shape[1:], axis - 1, size):
                yield (slice(start, start + step), *index)


def _release(mapped: Any) -> None:
    """Take a mapped file's pages out of this process; what was written stays written."""
    if isinstance(mapped.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapped.base.madvise(mmap.MADV_DONTNEED)


def _progress_bar(total: int) -> Any:
    """A bar for work of more than a second, if somebody sees it and tqdm is there to draw it."""
    if not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(total=total, unit=" entries", unit_scale=True, delay=1, leave=False)

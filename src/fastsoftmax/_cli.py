"""The command line: a .npy file of logits in, a .npy file of results out, in constant memory."""

import argparse
import errno
import math
import mmap
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NoReturn

import numpy as np
from numpy.lib.array_utils import normalize_axis_index
from numpy.lib.format import open_memmap

import fastsoftmax
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
    commands.add_parser("info", help="versions, and the backend that serves")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments without the program's name; those of the process by default.

    Returns
    -------
    int
        The exit status: 0, or 130 after an interrupt.

    Raises
    ------
    SystemExit
        With status 2 after an error, which is one line on the standard error output.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    if args.command == "info":
        fastsoftmax.show_config()
        return 0
    try:
        # So that a run that is told to stop removes its temporary file, too.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        _convert(args, parser.error)
    except KeyboardInterrupt:
        return 130
    return 0


def _convert(args: argparse.Namespace, error: Callable[[str], NoReturn]) -> None:
    """Apply the operation that the arguments name to a file."""
    name, _ = _COMMANDS[args.command]
    function = getattr(fastsoftmax, name)
    x = _open_input(args.input, error)
    if x.dtype.kind == "V" and x.dtype.names is None:
        error(
            f"{args.input} has dtype {x.dtype}; .npy has no name for bfloat16: "
            "convert the logits to float32 before they are saved"
        )
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

    # The target of a link is replaced, not the link.
    output = os.path.realpath(args.output)
    if os.path.exists(output):
        if not os.path.isfile(output):
            error(f"{args.output} is not a regular file")
        if os.path.samefile(args.input, output):
            error(f"{args.output} is the input; the output must be another file")
        if not os.access(output, os.W_OK):
            error(f"cannot write {args.output}: it is read-only")
    temporary = os.path.join(os.path.dirname(output), f".fastsoftmax-{os.urandom(6).hex()}.tmp")
    try:
        out = _open_output(temporary, probe.dtype, shape)
        _run(function, x, axis, args.temperature, out, args.quiet)
        # Windows renames no file that is mapped.
        del out
        os.replace(temporary, output)
    except OSError as exc:
        error(f"cannot write {args.output}: {exc.strerror or exc}")
    finally:
        with suppress(OSError):
            os.remove(temporary)


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
    """Apply a function chunk by chunk."""
    bar = None if quiet else _progress_bar(x.size)
    try:
        for index in _chunks(x.shape, axis, _CHUNK_BYTES // x.itemsize):
            # The ellipsis makes an array of what would be a scalar.
            logits = x[(*index, ...)]
            out_index = index if out.ndim == x.ndim else index[:axis] + index[axis + 1 :]
            function(logits, axis, temperature=temperature, out=out[(*out_index, ...)])
            _release(x)
            _release(out)
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

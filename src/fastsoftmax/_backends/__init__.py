"""Which backend serves: decided at import, changed by `use_backend`."""

import os
import platform
import reprlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

from fastsoftmax._backends._protocol import Backend
from fastsoftmax._errors import BackendUnavailableError

# What to do for a backend that is missing.
REMEDIES = {
    "c": "install a C compiler and reinstall fastsoftmax with FASTSOFTMAX_REQUIRE_C=1 set, "
    "which shows why the build fails (pip install --no-binary fastsoftmax --no-cache-dir)",
    "numba": 'install it: pip install "fastsoftmax[numba]"',
    "numpy": "reinstall fastsoftmax",
}
_ARCH = {"x86_64": "x86", "AMD64": "x86", "arm64": "arm", "aarch64": "arm"}.get(
    platform.machine(), "other"
)
# The caps of this architecture, from the best down.
_CAPS = {"x86": ("avx512", "avx2", "scalar"), "arm": ("neon", "scalar")}.get(_ARCH, ("scalar",))


def _load_c() -> Backend:
    from fastsoftmax._backends._c import ISAS, CBackend

    cap = os.environ.get("FASTSOFTMAX_ISA") or _CAPS[0]
    allowed = _CAPS[_CAPS.index(cap) :]
    return CBackend(next(isa for isa in ISAS if isa in allowed))


def _load_numba() -> Backend:
    from fastsoftmax._backends._numba import NumbaBackend

    return NumbaBackend()


def _load_numpy() -> Backend:
    from fastsoftmax._backends._numpy import NumpyBackend

    return NumpyBackend()


# In the order in which `auto` tries them.
_LOADERS: dict[str, Callable[[], Backend]] = {
    "c": _load_c,
    "numba": _load_numba,
    "numpy": _load_numpy,
}
_loaded: dict[str, Backend] = {}
_failed: dict[str, Exception] = {}


def _load(name: str) -> Backend:
    """A backend by its name, loaded once; a failure is remembered and raised again."""
    if name in _failed:
        raise _unavailable(name) from _failed[name]
    if name not in _loaded:
        try:
            _loaded.setdefault(name, _LOADERS[name]())  # another thread may have been quicker
        except Exception as cause:
            # Whatever a broken installation raises, another backend may still serve.
            _failed[name] = cause
            raise _unavailable(name) from cause
    return _loaded[name]


def _unavailable(name: str) -> BackendUnavailableError:
    return BackendUnavailableError(
        f"the {name} backend is not available ({_reason(name)}); to have it, {REMEDIES[name]}"
    )


def _reason(name: str) -> str:
    cause = _failed[name]
    if name == "c" and isinstance(cause, ModuleNotFoundError) and cause.name == "fastsoftmax._c":
        return "fastsoftmax was installed without its C module"
    return f"{type(cause).__name__}: {cause}"


def _check_choice(variable: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ImportError(f"{variable} is {value!r}; it must be one of {', '.join(choices)}")


def _select() -> Backend:
    """The backend that FASTSOFTMAX_BACKEND and FASTSOFTMAX_ISA ask for."""
    choice = os.environ.get("FASTSOFTMAX_BACKEND") or "auto"
    _check_choice("FASTSOFTMAX_BACKEND", choice, ("auto", *_LOADERS))
    _check_choice("FASTSOFTMAX_ISA", os.environ.get("FASTSOFTMAX_ISA") or _CAPS[0], _CAPS)
    if choice != "auto":
        return _load(choice)
    for name in _LOADERS:
        try:
            return _load(name)
        except BackendUnavailableError:
            continue
    raise AssertionError("the numpy backend always loads")


_default = _select()
_override: ContextVar[Backend | None] = ContextVar("fastsoftmax_backend", default=None)


def current() -> Backend:
    """The backend that serves here."""
    return _override.get() or _default


def backend() -> str:
    """The name of the backend that serves: "c", "numba" or "numpy".

    Returns
    -------
    str

    Examples
    --------
    >>> import fastsoftmax
    >>> fastsoftmax.backend() in ("c", "numba", "numpy")
    True
    """
    return current().name


def available_backends() -> dict[str, str | None]:
    """Every backend, with the reason why it is not available.

    Loads those that have not been tried yet (numba takes a moment).

    Returns
    -------
    dict of str to str or None
        None for a backend that is available.

    Examples
    --------
    >>> import fastsoftmax
    >>> fastsoftmax.available_backends()["numpy"] is None
    True
    """
    reasons: dict[str, str | None] = {}
    for name in _LOADERS:
        try:
            _load(name)
            reasons[name] = None
        except BackendUnavailableError:
            reasons[name] = _reason(name)
    return reasons


def c_isas() -> tuple[str, ...]:
    """The instruction sets the C backend can use here, best first; empty without it."""
    try:
        _load("c")
    except BackendUnavailableError:
        return ()
    from fastsoftmax._backends._c import ISAS

    return ISAS


@contextmanager
def use_backend(name: str, *, isa: str | None = None) -> Iterator[None]:
    """Let another backend serve within a ``with`` block.

    The choice is a context variable: other threads and tasks are not affected.

    Parameters
    ----------
    name : {"c", "numba", "numpy"}
    isa : str, optional
        For the C backend: the instruction set to use, one that this CPU has.

    Raises
    ------
    BackendUnavailableError
        If the backend cannot serve.
    ValueError
        If there is no backend of that name, or the instruction set is not to be had.

    Examples
    --------
    >>> import fastsoftmax
    >>> with fastsoftmax.use_backend("numpy"):
    ...     fastsoftmax.backend()
    'numpy'
    """
    if not isinstance(name, str) or name not in _LOADERS:
        raise ValueError(f"name is {reprlib.repr(name)}; it must be one of {', '.join(_LOADERS)}")
    chosen = _load(name)
    if isa is not None:
        if name != "c" or isa not in c_isas():
            wanted = f"one of {', '.join(c_isas())}" if name == "c" else "None"
            raise ValueError(
                f"isa is {reprlib.repr(isa)}; for the {name} backend it must be {wanted}"
            )
        from fastsoftmax._backends._c import CBackend

        chosen = CBackend(isa)
    token = _override.set(chosen)
    try:
        yield
    finally:
        _override.reset(token)


def warmup() -> None:
    """Compile or load whatever the first call of the backend that serves would.

    Examples
    --------
    >>> import fastsoftmax
    >>> fastsoftmax.warmup()
    """
    current().warmup()


def config() -> dict[str, str]:
    """What `show_config` prints."""
    from fastsoftmax import __version__, _threads

    reasons = dict.fromkeys(_loaded.copy(), "loaded")
    reasons |= {name: f"not available: {_reason(name)}" for name in _failed.copy()}
    return {
        "fastsoftmax": __version__,
        "backend": backend(),
        **current().describe(),
        "threads": str(_threads.get_num_threads()),
        **{f"{name} backend": reasons.get(name, "not loaded") for name in _LOADERS},
        "Python": platform.python_version(),
        "NumPy": np.__version__,
        "platform": f"{sys.platform} {platform.machine()}",
        **{k: v for k, v in sorted(os.environ.items()) if k.startswith("FASTSOFTMAX_")},
    }


def show_config() -> None:
    """Print versions, the backend that serves, its instruction set, how many threads, and why other
    backends do not serve.

    Examples
    --------
    >>> import fastsoftmax
    >>> fastsoftmax.show_config()  # doctest: +ELLIPSIS
    fastsoftmax...
    """
    settings = config()
    width = max(map(len, settings))
    for key, value in settings.items():
        print(f"{key:<{width}}  {value}")

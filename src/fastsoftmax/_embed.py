"""Where the C library lies that a program outside Python compiles and links with."""

import os
import sys

from fastsoftmax import _backends
from fastsoftmax._errors import BackendUnavailableError


def _directory(name: str) -> str:
    """A directory of the C library, which is installed beside the C module."""
    import importlib.util  # which the package's import is spared

    spec = importlib.util.find_spec("fastsoftmax._c")
    if spec is not None and spec.origin is not None:
        path = os.path.join(os.path.dirname(os.path.abspath(spec.origin)), name)
        if os.path.isdir(path):
            return path
    raise BackendUnavailableError(
        f"fastsoftmax was installed without its C library; to have it, {_backends.REMEDIES['c']}"
    )


def get_include() -> str:
    """The directory of ``fastsoftmax.h``.

    Returns
    -------
    str

    Raises
    ------
    BackendUnavailableError
        If the package was installed without its C library.

    Examples
    --------
    >>> import os
    >>> import fastsoftmax
    >>> os.listdir(fastsoftmax.get_include())
    ['fastsoftmax.h']
    """
    return _directory("include")


def get_library_dir() -> str:
    """The directory of the static C library, ``libfastsoftmax.a`` (``fastsoftmax_static.lib`` on
    Windows).

    Returns
    -------
    str

    Raises
    ------
    BackendUnavailableError
        If the package was installed without its C library.

    Examples
    --------
    >>> import os
    >>> import fastsoftmax
    >>> os.listdir(fastsoftmax.get_library_dir())
    ['libfastsoftmax.a']
    """
    return _directory("lib")


def flags(*, cflags: bool, libs: bool) -> str:
    """What a C compiler is told, quoted for a shell."""
    import shlex

    words = []
    windows = sys.platform == "win32"
    if cflags:
        words += [f"-I{get_include()}"] + ["-DFASTSOFTMAX_STATIC"] * windows
    if libs:
        name = "fastsoftmax_static" if windows else "fastsoftmax"
        words += [f"-L{get_library_dir()}", f"-l{name}"] + ["-lm"] * (not windows)
    return shlex.join(words)

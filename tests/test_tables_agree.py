"""The table of operations, the C header, the cdef and every backend name the same."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from fastsoftmax._backends import _numpy
from fastsoftmax._ops import OPS

CSRC = Path(__file__).parents[1] / "csrc"
# What takes a batch, a range of its rows, and scratch memory is an operation.
DECLARED = re.compile(
    r"fastsoftmax_status\s+fastsoftmax_(\w+)\(const fastsoftmax_batch \*\w*,"
    r"\s*int64_t\s*\w*,\s*int64_t\s*\w*,\s*void"
)


@pytest.mark.parametrize("file", ["include/fastsoftmax.h", "python/_c.cdef.txt"])
def test_the_c_declarations(file: str) -> None:
    text = (CSRC / file).read_text()
    assert DECLARED.findall(text) == list(OPS)
    assert re.findall(r"\bFASTSOFTMAX_OP_(\w+)", text) == [name.upper() for name in OPS]


def test_the_reference() -> None:
    assert list(_numpy._KERNELS) == list(OPS)


@pytest.mark.skipif(find_spec("numba") is None, reason="numba is not installed")
def test_the_numba_kernels() -> None:
    from fastsoftmax._numba import kernels

    assert [name for name in OPS if not hasattr(kernels, name)] == []


def test_every_operation_is_public() -> None:
    import fastsoftmax

    assert set(OPS) <= set(fastsoftmax.__all__)

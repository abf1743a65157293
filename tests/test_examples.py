"""The examples in the docstrings run, and print what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import numpy as np
import pytest

import fastsoftmax

MODULES = [
    name
    for _, name, _ in pkgutil.walk_packages(fastsoftmax.__path__, "fastsoftmax.")
    if name.rpartition(".")[2] not in ("__main__", "_c")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ImportError as cause:
        pytest.skip(f"needs {cause.name}")
    with np.printoptions(legacy=False):
        results = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert results.failed == 0


def test_every_public_function_has_an_example() -> None:
    bare = [
        name
        for name in fastsoftmax.__all__
        if not isinstance(getattr(fastsoftmax, name), type)
        and ">>>" not in (getattr(fastsoftmax, name).__doc__ or "")
    ]
    assert bare == []

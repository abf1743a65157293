"""The examples in the docstrings and the documents run, and print what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest
from support import blocks

import fastsoftmax

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
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
    if name == "fastsoftmax._embed":
        pytest.importorskip("fastsoftmax._c")
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


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents(document: Path) -> None:
    python = blocks(document.read_text(), "python")
    assert [block for block in python if ">>>" not in block] == []
    for library in ("torch", "numba"):
        if any(f"import {library}" in block for block in python):
            pytest.importorskip(library)
    if any("get_include" in block or "njit_c" in block for block in python):
        pytest.importorskip("fastsoftmax._c")
    with np.printoptions(legacy=False):
        results = doctest.testfile(str(document), module_relative=False)
    assert results.failed == 0
    assert bool(results.attempted) == bool(python)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_every_public_name_is_in_the_api_document() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    assert [name for name in fastsoftmax.__all__ if not re.search(rf"\b{name}\b", text)] == []

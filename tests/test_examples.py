"""The examples in the docstrings and the documents run, and print what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

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


def blocks(document: Path, language: str) -> list[str]:
    """The fenced blocks of a document in a language."""
    return re.findall(
        rf"^```{language}\n(.*?)^```$", document.read_text(), re.DOTALL | re.MULTILINE
    )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents(document: Path) -> None:
    python = blocks(document, "python")
    assert [block for block in python if ">>>" not in block] == []
    if any("import torch" in block for block in python):
        pytest.importorskip("torch")
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


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_the_c_example(tmp_path: Path) -> None:
    document = ROOT / "docs" / "embedding.md"
    (program,), (command,) = blocks(document, "c"), blocks(document, "sh")
    (printed,) = blocks(document, "text")
    (tmp_path / "example.c").write_text(program)
    (tmp_path / "csrc").symlink_to(ROOT / "csrc")
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    result = subprocess.run([tmp_path / "example"], capture_output=True, text=True, check=True)
    assert result.stdout == printed

"""What an import costs: whole processes, those of NumPy alone and of none beside them."""

import os
import subprocess
import sys
from typing import Any

import pytest

import fastsoftmax


@pytest.mark.parametrize("name", ["auto", "c", "numba", "numpy", "NumPy alone", "Python alone"])
def test_import(name: str, benchmark: Any) -> None:
    reason = fastsoftmax.available_backends().get(name)
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    code = {"NumPy alone": "import numpy", "Python alone": ""}.get(name, "import fastsoftmax")
    environment = dict(os.environ)
    # An installed package has its bytecode; the first round writes it where it is not.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    if code == "import fastsoftmax":
        environment["FASTSOFTMAX_BACKEND"] = name
    benchmark.group = "a process that imports"
    benchmark.pedantic(
        lambda: subprocess.run([sys.executable, "-c", code], env=environment, check=True),
        rounds=10,
        warmup_rounds=1,
    )

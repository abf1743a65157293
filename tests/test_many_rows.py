"""Filters and draws of millions of random rows, all implementations beside one oracle."""

from __future__ import annotations

import pytest
from support import available
from test_sampling import many_rows


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(50))
def test_millions_of_random_rows(seed: int) -> None:
    many_rows(40_000, seed + 1, available())

"""Fixtures: every test that takes `backend` runs on each implementation there is here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from support import IMPLEMENTATIONS, SEED, available, generator, real_logits, using, why_not

import fastsoftmax

_checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile(
    "ci",
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    print_blob=True,
    suppress_health_check=_checks,
)
settings.register_profile(
    "explore", settings.get_profile("ci"), max_examples=2000, derandomize=False
)
settings.load_profile(os.environ.get("FASTSOFTMAX_HYPOTHESIS_PROFILE", "ci"))


def pytest_report_header() -> list[str]:
    return [
        f"fastsoftmax: seed {SEED} (FASTSOFTMAX_TEST_SEED sets it; random takes a fresh one)",
        f"fastsoftmax: testing {', '.join(available()) or 'no implementation'}",
    ]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n 2` one process does all that Numba compiles, so that it is compiled once, but for
    functions of callers; else the tests of a function stay together."""
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            if "njit" in nodeid:
                return "njit"
            compiled = "numba" in nodeid or "many_threads" in nodeid
            return "numba" if compiled else nodeid.partition("[")[0]

    return Scheduler(config, log)


def _required(implementation: str) -> bool:
    """Whether it is missing though asked for; a missing instruction set never counts."""
    name = implementation.partition("-")[0]
    reason = why_not(implementation) or ""
    return (
        reason.startswith(f"{name}:")
        and os.environ.get(f"FASTSOFTMAX_REQUIRE_{name.upper()}") == "1"
    )


@pytest.fixture(params=IMPLEMENTATIONS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the implementation that serves during the test."""
    reason = why_not(request.param)
    if reason is not None:
        if _required(request.param):
            pytest.fail(reason)
        pytest.skip(reason)
    with using(request.param):
        yield request.param


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For what is promised of each thread of a call, or measured."""
    before = fastsoftmax.get_num_threads()
    fastsoftmax.set_num_threads(1)
    yield
    fastsoftmax.set_num_threads(before)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """The same stream for every implementation of one test."""
    return generator(request.node.module.__name__, request.node.originalname)


@pytest.fixture(scope="session")
def logits() -> np.ndarray:
    """Real logits: float16 (16, 30522), read-only."""
    return real_logits()

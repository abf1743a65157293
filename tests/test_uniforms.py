"""The random numbers of `sample`, which no backend has a part in."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from numpy.testing import assert_array_equal
from scoring_oracle import mix, seed_for, uniform, unmix

from fastsoftmax._api import _uniforms


def test_splitmix64_by_its_published_outputs() -> None:
    want = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [_uniforms.output(1234567, i) for i in range(5)] == want
    got = _uniforms.output(np.full(5, 1234567, np.uint64), np.arange(5, dtype=np.uint64))
    assert got.tolist() == want


def test_the_oracle_can_be_inverted() -> None:
    for word in (0, 1, 2**63, 2**64 - 1, 0x0123456789ABCDEF):
        assert unmix(mix(word)) == word
    for u in (0.0, 0.25, 1 - 2**-53, 0.3):
        assert uniform(seed_for(u, 3, 7, 2), 3, 7, 2) == int(u * 2**53) / 2**53


def test_the_c_library_has_the_same_function() -> None:
    c = pytest.importorskip("fastsoftmax._c")
    words = (0, 1, 5, 2**63, 2**64 - 1)
    for seed, row, step, draw in itertools.product(words, repeat=4):
        want = int(uniform(seed, row, step, draw) * 2**53) / 2**53
        assert c.lib.fastsoftmax_uniform(seed, row, step, draw) == want


def test_uniforms_are_the_documented_function() -> None:
    seeds = [0, 1, 5, 2**63, 2**64 - 1, -1]
    for shape, draws in (((1,), 1), ((3,), 1), ((2, 3), 4), ((50,), 1)):
        rows = math.prod(shape)
        for seed, step in itertools.product(seeds, (0, 1, 2**64 - 1)):
            got = _uniforms.uniforms(seed, step, shape, draws)
            want = [[uniform(seed, i, step, j) for j in range(draws)] for i in range(rows)]
            assert_array_equal(got, want)
        own = np.arange(rows) * 1000 - 7
        steps = np.arange(rows) * 3
        got = _uniforms.uniforms(own, steps.reshape(shape), shape, draws)
        want = [
            [uniform(int(own[i]), 0, int(steps[i]), j) for j in range(draws)] for i in range(rows)
        ]
        assert_array_equal(got, want)
    later = _uniforms.uniforms(9, 0, (30,), 2)
    assert_array_equal(_uniforms.uniforms(9, 0, (10,), 2, 20), later[20:])
    assert_array_equal(_uniforms.uniforms(9, 0, (1,), 2, 29), later[29:])


def test_consecutive_seeds_fill_a_vocabulary_evenly() -> None:
    """No token of 152,064 is missed, whether seeds, rows, steps or draws count up."""
    vocab, n = 152_064, 3_000_000
    numbers = np.arange(n)
    for u in (
        _uniforms.uniforms(numbers, 0, (n,), 1),
        _uniforms.uniforms(1, 0, (n,), 1),
        _uniforms.uniforms(np.ones(n, int), numbers, (n,), 1),
        _uniforms.uniforms(1, 0, (1,), n),
    ):
        assert u.min() >= 0
        assert u.max() < 1
        counts = np.bincount((u.ravel() * vocab).astype(int), minlength=vocab)
        p = scipy.stats.chisquare(counts).pvalue
        assert 1e-6 < p < 1 - 1e-6
        # Neighbours know nothing of each other.
        pairs = (u.ravel()[:-1] * 64).astype(int) * 64 + (u.ravel()[1:] * 64).astype(int)
        assert scipy.stats.chisquare(np.bincount(pairs, minlength=4096)).pvalue > 1e-6

"""``python -m benchmarks.beam_search [VOCAB [ROUNDS]]``: a beam search, jitted and in NumPy.

The example of `fastsoftmax.njit`. The model is a table with the logits of what follows each token;
the search keeps the most probable sequences of each length. The same is done with NumPy's calls,
all beams at a time, and finds the same sequences. Prints the time of the fastest tenth of the
rounds, and the factor.
"""

import sys
from typing import Any

import numba
import numpy as np

from benchmarks.timing import Task, interleaved, undisturbed
from fastsoftmax.njit import topk_logprobs

WIDTH, STEPS, FIRST = 4, 20, 0


@numba.njit(nogil=True)
def search(logits, first, width, steps):
    """The likeliest sequences of `steps` tokens after the first, and their log-probabilities."""
    tokens, scores = np.full((width, steps + 1), first), np.full(width, -np.inf)
    scores[0] = 0.0
    ids, logprobs = np.empty((width, width), np.int64), np.empty((width, width))
    for step in range(steps):
        for beam in range(width):
            row = logits[tokens[beam, step]]
            topk_logprobs(row, 1.0, ids[beam], logprobs[beam])
            logprobs[beam] += scores[beam]
        best = np.argsort(-logprobs.ravel())[:width]
        tokens = tokens[best // width]
        tokens[:, step + 1] = ids.ravel()[best]
        scores = logprobs.ravel()[best]
    return tokens, scores


def search_with_numpy(logits: Any, first: int, width: int, steps: int) -> tuple[Any, Any]:
    """The same, all beams at a time."""
    tokens, scores = np.full((width, steps + 1), first), np.full(width, -np.inf, np.float32)
    scores[0] = 0.0
    vocab = logits.shape[1]
    for step in range(steps):
        x = logits[tokens[:, step]]
        x -= x.max(axis=1, keepdims=True)
        x -= np.log(np.exp(x).sum(axis=1, keepdims=True))
        x += scores[:, None]
        flat = x.ravel()
        best = np.argpartition(flat, -width)[-width:]
        best = best[np.argsort(-flat[best])]
        tokens = tokens[best // vocab]
        tokens[:, step + 1] = best % vocab
        scores = flat[best]
    return tokens, scores


def main(vocab: int = 4000, rounds: int = 201) -> None:
    rng = np.random.default_rng(0)
    logits = 3 * rng.standard_normal((vocab, vocab), np.float32)
    ours, theirs = "njit", "NumPy"
    work = {
        ours: Task(lambda: search(logits, FIRST, WIDTH, STEPS)),
        theirs: Task(lambda: search_with_numpy(logits, FIRST, WIDTH, STEPS)),
    }
    (tokens, scores), (their_tokens, their_scores) = (work[name].call() for name in work)
    np.testing.assert_array_equal(tokens, their_tokens)
    np.testing.assert_allclose(scores, their_scores, rtol=1e-4)
    times = interleaved(work, rounds, 1e6)
    fast = {name: undisturbed(times[name]) for name in work}
    for name in work:
        print(f"{name:<6}{fast[name] / STEPS / 1e3:>8.1f} us a step")
    print(f"faster by a factor of {fast[theirs] / fast[ours]:.1f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

"""For llama-cpp-python: a token id from an array of scores."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

import fastsoftmax


def sample_token(
    scores: ArrayLike,
    last_tokens: Sequence[int] | ArrayLike = (),
    *,
    temperature: float = 0.8,
    top_k: int = 40,
    top_p: float = 0.95,
    min_p: float = 0.05,
    repeat_penalty: float = 1.0,
    frequency_penalty: float = 0.0,
    presence_penalty: float = 0.0,
    logit_bias: Mapping[int, float] | None = None,
    seed: Any = None,
    step: int = 0,
) -> int:
    """Draw the next token from the scores of a ``llama_cpp.Llama``.

    Parameters
    ----------
    scores : array_like, (vocab,)
        A row of ``llama.scores``: ``llama.scores[llama.n_tokens - 1]`` is the last one.
    last_tokens : sequence of int, optional
        The tokens that the penalties are for.
    temperature, top_k, top_p, min_p, repeat_penalty, frequency_penalty, presence_penalty, \
logit_bias : optional
        By the names and with the defaults of llama-cpp-python, for whom a `temperature` of 0 or
        less is greedy and a `top_k` of 0 or less keeps all.
    seed, step : optional
        As for `fastsoftmax.sample`: ``step=llama.n_tokens`` tells the draws of one text apart.

    Returns
    -------
    int
        The token, or -1 if the scores have a NaN or +infinity in them, or nothing above -infinity.

    Raises
    ------
    TypeError, ValueError, IndexError
        As for `fastsoftmax.sample`.

    Notes
    -----
    The temperature comes before the filters, as in `fastsoftmax.sample`; llama.cpp's own chain
    applies it after them.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax.adapters.llama_cpp import sample_token
    >>> scores = np.array([0.0, 5.0, 4.0], np.float32)
    >>> sample_token(scores, temperature=0.0)
    1
    >>> sample_token(scores, [1], temperature=0.0, presence_penalty=3.0)
    2
    """
    row = np.asarray(scores)
    if row.ndim != 1:
        raise ValueError(f"scores has shape {row.shape}; it must be one row, (vocab,)")
    history = np.asarray(last_tokens)
    penalised = (repeat_penalty, frequency_penalty, presence_penalty) != (1, 0, 0)
    drawn = fastsoftmax.sample(
        row,
        temperature=max(temperature, 0.0),
        top_k=max(top_k, 0),
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        step=step,
        logit_bias=logit_bias,
        history=history if penalised else None,
        repetition_penalty=repeat_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
    )
    return int(drawn.ids)

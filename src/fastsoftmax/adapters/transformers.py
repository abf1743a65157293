"""For Hugging Face transformers: `generate` draws its tokens with `fastsoftmax.sample`."""

import os
from typing import Any

import torch
from transformers import LogitsProcessor

import fastsoftmax


class SamplingProcessor(LogitsProcessor):
    """A logits processor that draws, and leaves the token it drew as the only one possible.

    It belongs at the end of the processors, with ``do_sample=False``: `generate` then has nothing
    left to do but to find the one finite score. The filters of the generation config are not to be
    given beside those here.

    Parameters
    ----------
    temperature, top_k, top_p, min_p : optional
        As for `fastsoftmax.sample`.
    repetition_penalty, presence_penalty, frequency_penalty, logit_bias : optional
        As for `fastsoftmax.sample`; the history is all of the input and what was generated.
    seed : int, array_like of int, numpy.random.Generator or None, optional
        As for `fastsoftmax.sample`. The length of the text is the step, so that a sequence with a
        seed of its own is continued the same in any batch. None takes fresh entropy once.

    Notes
    -----
    A row without a distribution is left as it is. Beam search is not for this.

    Examples
    --------
    >>> import torch, transformers
    >>> from fastsoftmax.adapters.transformers import SamplingProcessor
    >>> config = transformers.GPT2Config(
    ...     vocab_size=50, n_positions=32, n_embd=8, n_layer=1, n_head=1,
    ...     bos_token_id=None, eos_token_id=None,
    ... )
    >>> model = transformers.GPT2LMHeadModel(config)
    >>> ids = model.generate(
    ...     torch.tensor([[1, 2, 3]]),
    ...     attention_mask=torch.ones(1, 3),
    ...     max_new_tokens=5,
    ...     do_sample=False,
    ...     logits_processor=[SamplingProcessor(temperature=0.7, top_p=0.95, seed=1)],
    ... )
    >>> tuple(ids.shape)
    (1, 8)
    """

    def __init__(
        self,
        *,
        temperature: Any = 1.0,
        top_k: Any = 0,
        top_p: Any = 1.0,
        min_p: Any = 0.0,
        repetition_penalty: Any = 1.0,
        presence_penalty: Any = 0.0,
        frequency_penalty: Any = 0.0,
        logit_bias: Any = None,
        seed: Any = None,
    ) -> None:
        self.parameters = {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "repetition_penalty": repetition_penalty,
            "presence_penalty": presence_penalty,
            "frequency_penalty": frequency_penalty,
            "logit_bias": logit_bias,
        }
        self.seed = int.from_bytes(os.urandom(8), "little") if seed is None else seed
        penalties = (repetition_penalty, presence_penalty, frequency_penalty)
        # One for each row counts as a penalty whatever it holds: with a history it may be none.
        self._penalised = not all(
            isinstance(penalty, int | float) and penalty == off
            for penalty, off in zip(penalties, (1, 0, 0), strict=True)
        )

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores of which one a row is 0 and all others are -infinity."""
        drawn = fastsoftmax.sample(
            scores.detach().cpu(),
            history=input_ids.cpu() if self._penalised else None,
            seed=self.seed,
            step=input_ids.shape[-1],
            **self.parameters,
        )
        ids = torch.as_tensor(drawn.ids, device=scores.device)[:, None]
        result = torch.full_like(scores, -torch.inf)
        result.scatter_(1, ids.clamp(min=0), 0.0)
        nothing = ids < 0
        return torch.where(nothing, scores, result) if bool(nothing.any()) else result

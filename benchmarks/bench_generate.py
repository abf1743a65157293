"""`generate()` of a small GPT-2 with the vocabulary of GPT-2: its own sampling, and ours.

Thirty-two tokens at a time. The weights are random: nothing is downloaded. What the model itself
takes is the group's `greedy`.
"""

from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOKENS = 32
FILTERS = {"temperature": 0.7, "top_k": 50, "top_p": 0.95, "min_p": 0.02}
NUCLEUS = {"temperature": 0.7, "top_k": 0, "top_p": 0.95}


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = transformers.GPT2Config(
        n_embd=64, n_layer=2, n_head=2, n_positions=128, bos_token_id=None, eos_token_id=None
    )
    return transformers.GPT2LMHeadModel(config).eval()


@pytest.mark.parametrize("filters", [FILTERS, NUCLEUS], ids=["top-k, top-p, min-p", "top-p"])
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("who", ["greedy", "transformers", "fastsoftmax"])
def test_time(who: str, batch: int, filters: dict[str, Any], model: Any, benchmark: Any) -> None:
    from fastsoftmax.adapters.transformers import SamplingProcessor

    prompt = torch.randint(0, 50257, (batch, 4))
    how: dict[str, Any] = {
        "greedy": {"do_sample": False},
        "transformers": {"do_sample": True, **filters},
        "fastsoftmax": {
            "do_sample": False,
            "logits_processor": [SamplingProcessor(**filters, seed=1)],
        },
    }[who]
    benchmark.group = f"{TOKENS} tokens, {batch} at a time, {', '.join(filters)}"
    ids = benchmark(
        model.generate,
        prompt,
        attention_mask=torch.ones_like(prompt),
        pad_token_id=0,
        max_new_tokens=TOKENS,
        **how,
    )
    assert ids.shape == (batch, 4 + TOKENS)

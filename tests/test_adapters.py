"""The adapters beside the libraries they are for."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.stats
from support import generator

import fastsoftmax
from fastsoftmax.adapters.llama_cpp import sample_token

pytestmark = pytest.mark.usefixtures("backend")

VOCAB = 60
FILTERS = {"temperature": 0.8, "top_k": 30, "top_p": 0.9, "min_p": 0.02}


@pytest.fixture(scope="module")
def model() -> object:
    """GPT-2 with random weights."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=VOCAB,
        n_positions=64,
        n_embd=16,
        n_layer=1,
        n_head=2,
        bos_token_id=None,
        eos_token_id=None,
        initializer_range=1.0,
    )
    return transformers.GPT2LMHeadModel(config).eval()


def generate(
    model: object, prompt: np.ndarray, new: int, *processors: object, **kwargs: object
) -> np.ndarray:
    import torch

    ids = torch.tensor(prompt)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers itself
        return model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            pad_token_id=0,
            **{"do_sample": False, "logits_processor": list(processors), **kwargs},
        ).numpy()


def next_logits(model: object, prompt: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.tensor(prompt)).logits[:, -1].numpy()


def test_generate_draws_with_sample(model: object) -> None:
    """Every token is what `sample` draws from the model's logits there."""
    from fastsoftmax.adapters.transformers import SamplingProcessor

    prompt = np.array([[1, 2, 3], [4, 5, 6]])
    penalties = {"repetition_penalty": 1.3, "frequency_penalty": 0.2, "logit_bias": {7: 2.0}}
    for more in ({}, penalties):
        ids = generate(model, prompt, 12, SamplingProcessor(**FILTERS, **more, seed=[3, 4]))
        assert ids.shape == (2, 15)
        assert (ids[:, :3] == prompt).all()
        for length in range(3, 15):
            text = ids[:, :length]
            drawn = fastsoftmax.sample(
                next_logits(model, text),
                seed=[3, 4],
                step=length,
                history=text if more else None,
                **FILTERS,
                **more,
            )
            np.testing.assert_array_equal(drawn.ids, ids[:, length])
    alone = generate(model, prompt[1:], 12, SamplingProcessor(**FILTERS, **penalties, seed=[4]))
    np.testing.assert_array_equal(alone[0], ids[1])


@pytest.mark.parametrize("name", ["repetition_penalty", "presence_penalty", "frequency_penalty"])
def test_penalties_of_each_row(name: str) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from fastsoftmax.adapters.transformers import SamplingProcessor

    scores = generator("penalties").normal(size=(2, VOCAB)).astype("f4")
    ids = np.argsort(-scores)[:, :3]
    for values in ([1.0, 9.0], [1.0, 1.0]):
        want = fastsoftmax.sample(scores, seed=1, step=3, history=ids, **{name: values}, top_k=5)
        for given in (np.array(values), torch.tensor(values)):
            processor = SamplingProcessor(**{name: given}, seed=1, top_k=5)
            got = processor(torch.tensor(ids), torch.tensor(scores))
            np.testing.assert_array_equal(got.argmax(1), want.ids)


def test_generate_has_the_same_distribution(model: object) -> None:
    """As many first tokens from both as make a difference visible."""
    from fastsoftmax.adapters.transformers import SamplingProcessor

    rows = 3000
    prompt = np.tile([[5, 9]], (rows, 1))
    nucleus = fastsoftmax.filtered_logprobs(next_logits(model, prompt[:1])[0], **FILTERS)
    ours = generate(model, prompt, 1, SamplingProcessor(**FILTERS, seed=1))[:, -1]
    theirs = generate(model, prompt, 1, do_sample=True, **FILTERS)[:, -1]
    expected = rows * np.exp(nucleus.logprobs.astype("f8"))
    assert len(expected) > 3
    for drawn in (ours, theirs):
        assert set(drawn) <= set(nucleus.ids)
        counts = np.bincount(drawn, minlength=VOCAB)[nucleus.ids]
        assert scipy.stats.chisquare(counts, expected / expected.sum() * rows).pvalue > 1e-6


def test_processor_leaves_its_input_alone_and_rows_without_a_distribution() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from fastsoftmax.adapters.transformers import SamplingProcessor

    scores = torch.tensor([[0.0, 5.0, 1.0], [0.0, torch.nan, 1.0]])
    before = scores.clone()
    processor = SamplingProcessor(temperature=0.0)
    got = processor(torch.zeros((2, 4), dtype=torch.long), scores)
    assert torch.equal(scores.nan_to_num(7), before.nan_to_num(7))
    assert got[0].tolist() == [-torch.inf, 0.0, -torch.inf]
    assert torch.equal(got[1].nan_to_num(7), scores[1].nan_to_num(7))
    # Two processors without a seed differ, one repeats itself.
    flat = torch.zeros((1, 100_000))
    ids = torch.zeros((1, 1), dtype=torch.long)
    first, second = SamplingProcessor(), SamplingProcessor()
    assert first(ids, flat).argmax() == first(ids, flat).argmax()
    assert first(ids, flat).argmax() != second(ids, flat).argmax()


def test_llama_cpp_scores() -> None:
    scores = generator("llama").normal(size=(5, 500)).astype("f4") * 3
    for row in scores:
        for seed in range(5):
            got = sample_token(row, seed=seed, step=7)
            assert type(got) is int
            want = fastsoftmax.sample(
                row, temperature=0.8, top_k=40, top_p=0.95, min_p=0.05, seed=seed, step=7
            )
            assert got == want.ids
            got = sample_token(
                row,
                [1, 2, 2],
                seed=seed,
                repeat_penalty=1.1,
                frequency_penalty=0.3,
                presence_penalty=0.2,
                logit_bias={9: 4.0},
                temperature=1.5,
                top_k=-1,
                top_p=1.0,
                min_p=0.0,
            )
            want = fastsoftmax.sample(
                row,
                history=[1, 2, 2],
                seed=seed,
                repetition_penalty=1.1,
                frequency_penalty=0.3,
                presence_penalty=0.2,
                logit_bias={9: 4.0},
                temperature=1.5,
            )
            assert got == want.ids
        assert sample_token(row, temperature=0) == sample_token(row, temperature=-1) == row.argmax()
    assert sample_token(scores[0], presence_penalty=1.0, temperature=0) == scores[0].argmax()
    assert sample_token([0.0, np.nan]) == -1
    with pytest.raises(ValueError, match=r"scores has shape \(5, 500\); it must be one row"):
        sample_token(scores)
    with pytest.raises(IndexError, match=r"history\[0\] is 500"):
        sample_token(scores[0], [500], presence_penalty=1.0)

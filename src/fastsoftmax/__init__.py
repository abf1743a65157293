"""Softmax, log-probabilities, scores and samples of batches of logits, with temperature, at memory
speed."""

from fastsoftmax._api import log_softmax, logsumexp, softmax
from fastsoftmax._api._sampling import FilteredLogprobs, Sample, filtered_logprobs, sample
from fastsoftmax._api._scoring import (
    Moments,
    TemperatureSweep,
    TokenLogprobs,
    TopK,
    cross_entropy,
    entropy,
    kl_divergence,
    moments,
    openai_logprobs,
    perplexity,
    temperature_sweep,
    token_logprobs,
    topk_logprobs,
)
from fastsoftmax._api._state import SoftmaxState
from fastsoftmax._backends import (
    available_backends,
    backend,
    show_config,
    use_backend,
    warmup,
)
from fastsoftmax._embed import get_include, get_library_dir
from fastsoftmax._errors import BackendUnavailableError
from fastsoftmax._threads import get_num_threads, set_num_threads

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailableError",
    "FilteredLogprobs",
    "Moments",
    "Sample",
    "SoftmaxState",
    "TemperatureSweep",
    "TokenLogprobs",
    "TopK",
    "available_backends",
    "backend",
    "cross_entropy",
    "entropy",
    "filtered_logprobs",
    "get_include",
    "get_library_dir",
    "get_num_threads",
    "kl_divergence",
    "log_softmax",
    "logsumexp",
    "moments",
    "openai_logprobs",
    "perplexity",
    "sample",
    "set_num_threads",
    "show_config",
    "softmax",
    "temperature_sweep",
    "token_logprobs",
    "topk_logprobs",
    "use_backend",
    "warmup",
]

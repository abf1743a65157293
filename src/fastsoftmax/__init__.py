"""Temperature softmax, log-softmax and log-sum-exp of batches of logits, at memory speed."""

from fastsoftmax._api import log_softmax, logsumexp, softmax
from fastsoftmax._backends import (
    available_backends,
    backend,
    show_config,
    use_backend,
    warmup,
)
from fastsoftmax._errors import BackendUnavailableError
from fastsoftmax._threads import get_num_threads, set_num_threads

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailableError",
    "available_backends",
    "backend",
    "get_num_threads",
    "log_softmax",
    "logsumexp",
    "set_num_threads",
    "show_config",
    "softmax",
    "use_backend",
    "warmup",
]

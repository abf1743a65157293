"""The public functions: the only place that checks arguments."""

from fastsoftmax._api._normalizers import log_softmax, logsumexp, softmax

__all__ = ["log_softmax", "logsumexp", "softmax"]

"""Exceptions of the package."""


class BackendUnavailableError(ImportError):
    """A backend was asked for by name and cannot serve; the cause is chained."""

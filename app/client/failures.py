"""Failures of the client, by what they mean for the rest of its work."""


class TransferFailed(Exception):
    """One file cannot be sent or fetched; the others can. `code` is the service's problem code, or one of ours."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class AccessDenied(Exception):
    """The service refuses the token, so nothing else will go through either."""


class Unreachable(Exception):
    """The service has not answered for as long as the caller is patient."""


class ConnectionBroken(Exception):
    """A request ended without an answer; whether the service acted on it is unknown."""


class SourceChanged(Exception):
    """A file was changed, replaced or deleted while it was read."""


class Misused(Exception):
    """The command was called in a way that cannot work; nothing was done."""

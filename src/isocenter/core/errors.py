"""What can go wrong, as types.

Every error that a user can cause carries a sentence that says what is wrong and what to do next. The text is shown to
clients as it stands, so it never holds patient data, a server path or an internal exception's words. `exit_code` is the
command line's; `http/errors.py` maps the same classes to statuses.
"""

from __future__ import annotations


class IsocenterError(Exception):
    """Base of all errors that Isocenter raises on purpose."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class UsageError(IsocenterError):
    """The request itself is wrong: a missing field, a value out of range, an unknown option."""

    exit_code = 2


class InputError(IsocenterError):
    """The bytes handed in cannot be read as what they claim to be."""

    exit_code = 3


class LimitError(InputError):
    """The input is larger than a limit allows.

    `limit` is the name of the setting and `value` what it is set to; both are part of the message.
    """

    def __init__(self, what: str, *, limit: str, value: int | float) -> None:
        super().__init__(f"{what}; the limit is {limit} = {value:,}".replace(",", " "))
        self.limit = limit
        self.value = value


class GeometryError(InputError):
    """The voxels can be read, but where they lie in the patient cannot be told reliably."""


class UnsupportedError(InputError):
    """Well-formed input of a kind that is not handled (a modality, a transfer syntax, a number of dimensions)."""


class PromptError(UsageError):
    """A prompt lies outside the volume, or the model does not take prompts of this kind."""


class UnknownPromptError(PromptError):
    """A text prompt that no loaded model understands."""


class ModelError(IsocenterError):
    """A model cannot be used: not installed, weights missing or broken."""

    exit_code = 4


class UnknownModelError(ModelError):
    """No model of this name exists here."""


class MemoryLimitError(IsocenterError):
    """There is not enough memory, on the device or in the host, for this request."""

    exit_code = 5


class BusyError(IsocenterError):
    """Too much work is waiting already; `retry_after` says in how many seconds to try again."""

    def __init__(self, message: str, *, retry_after: int = 5) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NotFoundError(IsocenterError):
    """A session, artifact or other named thing does not exist (any more)."""


class ConflictError(IsocenterError):
    """What was asked for does not go with the state that the thing is in, such as cancelling what has ended."""


class StoreError(IsocenterError):
    """State cannot be read or written just now (a full disk, a database or object store that is away); worth trying again."""

    def __init__(self, message: str, *, retry_after: int = 5) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class CancelledError(IsocenterError):
    """The work was stopped because its caller went away or asked for it."""


class DeadlineError(IsocenterError):
    """The work took longer than it may and was given up."""

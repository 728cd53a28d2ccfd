"""What a job is, the states that it can be in, and every way from one to another. Nothing else decides about states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class State(StrEnum):
    """Where a job stands."""

    PENDING = "pending"  #: waits for a worker, perhaps not for the first time
    RUNNING = "running"  #: one worker holds it, as long as it gives signs of life
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class What(StrEnum):
    """What happens to a job: the names in its audit trail."""

    SUBMITTED = "submitted"
    CLAIMED = "claimed"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    RELEASED = "released"  #: given back by its worker, to be tried again
    LOST = "lost"  #: taken from a worker that gave no sign of life
    RETRIED = "retried"  #: started anew by a person
    KEPT = "kept"  #: to stay until a person says otherwise
    LET_GO = "let_go"  #: to go with its age again
    DELETED = "deleted"


#: For each thing that happens: the states in which it can, and the one it leads to.
TRANSITIONS: Mapping[What, tuple[frozenset[State], State]] = {
    What.CLAIMED: (frozenset({State.PENDING}), State.RUNNING),
    What.COMPLETED: (frozenset({State.RUNNING}), State.COMPLETED),
    What.FAILED: (frozenset({State.RUNNING}), State.FAILED),
    What.RELEASED: (frozenset({State.RUNNING}), State.PENDING),
    What.LOST: (frozenset({State.RUNNING}), State.PENDING),
    What.CANCELLED: (frozenset({State.PENDING, State.RUNNING}), State.CANCELLED),
    What.RETRIED: (frozenset({State.FAILED, State.CANCELLED}), State.PENDING),
}
ENDED = frozenset({State.COMPLETED, State.FAILED, State.CANCELLED})
#: The most and the least urgent.
PRIORITIES = (0, 9)
NORMAL = 5
#: Whose work a job is: "gpu" for what a card speeds up (processors take the overflow), "cpu" for what it does not.
QUEUES = ("gpu", "cpu")


@dataclass(frozen=True)
class Stored:
    """A file of a job in the object store. name: "scan.nii.gz", "mask.nii.gz", never the client's own."""

    name: str
    digest: str
    bytes: int
    media_type: str = "application/octet-stream"


@dataclass(frozen=True)
class NewJob:
    """A job to submit.

    kind: which handler takes it. request: plain data for the handler. inputs: by name. priority: 0..9, 9 first. owner:
    who asked, hashed. max_attempts: how often it is tried whose worker dies.
    """

    kind: str
    request: Mapping[str, Any]
    inputs: Sequence[Stored] = ()
    queue: str = "cpu"
    priority: int = NORMAL
    model: str | None = None
    owner: str | None = None
    study_id: str | None = None
    series_id: str | None = None
    max_attempts: int = 3


@dataclass(frozen=True)
class Job:
    """A row of the table. Times are seconds since 1970, by the database's clock.

    fence: counts up whenever the job changes hands; who holds an older one can change nothing any more. releases: how
    often it was given back through no fault of its own. progress: 0..1, of the attempt that runs. error_code: see
    `worker.CODES`; error: a sentence. kept: neither its age nor anybody's need for space takes it or its files away.
    """

    id: str
    kind: str
    state: State
    queue: str
    priority: int
    attempts: int
    releases: int
    max_attempts: int
    fence: int
    worker: str | None
    lease_until: float | None
    heartbeat: float | None
    not_before: float
    created: float
    started: float | None
    finished: float | None
    progress: float
    message: str
    model: str | None
    owner: str | None
    study_id: str | None
    series_id: str | None
    request: Mapping[str, Any]
    inputs: tuple[Stored, ...]
    artifacts: tuple[Stored, ...]
    facts: Mapping[str, Any]
    seconds: Mapping[str, float]
    error_code: str | None
    error: str | None
    kept: bool

    @property
    def ended(self) -> bool:
        """Whether nothing happens to it any more by itself."""
        return self.state in ENDED

    def artifact(self, name: str) -> Stored | None:
        """The result file of this name."""
        return next((a for a in self.artifacts if a.name == name), None)


@dataclass(frozen=True)
class Event:
    """A line of a job's audit trail."""

    at: float
    what: str
    state: str
    fence: int
    worker: str | None
    detail: str | None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Standing:
    """The queue at a moment: jobs by queue and state, age of the oldest that waits (seconds), live workers by role."""

    counts: Mapping[tuple[str, State], int] = field(default_factory=dict)
    oldest: Mapping[str, float] = field(default_factory=dict)
    workers: Mapping[str, int] = field(default_factory=dict)

    @property
    def waiting(self) -> int:
        """Jobs that wait, in all queues."""
        return sum(n for (_, state), n in self.counts.items() if state is State.PENDING)

"""The program's end of BiomedParse's process: started when it is needed, watched, and killed when it says nothing for too long."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from numpy.typing import NDArray

import isocenter
from isocenter.core.errors import CancelledError, DeadlineError, IsocenterError, MemoryLimitError, ModelError
from isocenter.core.model import Run
from isocenter.models._biomedparse import frames

_FAILED = {
    "weights": "BP3D_CKPT does not hold the weights of this BiomedParse; fetch them again",
    "code": "the code that BP3D_CODE names is not BiomedParse v2 (branch v2 of its repository), or of a version that is not known here",
    "library": "a library that BiomedParse's code needs is not installed here; install it with: pip install 'isocenter[torch,biomedparse]'",
    "numbers": "BiomedParse answered with values that are not finite numbers; its weights are broken or do not suit this scan",
}
#: Of the environment, what a process needs to compute; keys and addresses of this program are not its business.
_PASSED = (
    "PATH",
    "HOME",
    "LANG",
    "LD_LIBRARY_PATH",
    "TMPDIR",
    "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "HF_HOME",
    "OMP_NUM_THREADS",
    "SYSTEMROOT",
    "ORT_DISABLE_TELEMETRY",
)
#: Seconds between two looks at whether the caller is still there.
_LOOK = 0.2
#: Seconds that it has to notice, at its next batch of slices, that nobody wants the answer; then it is killed.
_GRACE = 10.0


class Child:
    """One process with the network in it. For one caller at a time."""

    def __init__(self, settings: dict[str, Any], timeout: float) -> None:
        self._settings = settings
        self._timeout = timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._said: Queue[Any] = Queue()

    def start(self, run: Run) -> None:
        """Start it and load the network, unless it is there. Raises `CancelledError`, `DeadlineError` and what keeps it from loading."""
        if self._process is not None and self._process.poll() is None:
            return
        self.stop()
        passed = {name: os.environ[name] for name in _PASSED if name in os.environ}
        source = str(Path(isocenter.__file__).parent.parent)
        # Nothing is fetched while serving: its text encoder must lie in the hub's cache.
        environment = passed | {"ISOCENTER_SOURCE": source, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        script = Path(__file__).with_name("worker.py")
        self._process = subprocess.Popen(  # noqa: S603 - our own script
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
        if run.cancelled():  # before `kill` could see the process
            self.stop()
            raise CancelledError("the work was cancelled")
        self._said = Queue()
        threading.Thread(target=_listen, args=(self._process, self._said), daemon=True, name="biomedparse").start()
        self._ask({"do": "load", **self._settings}, None, run)

    def find(self, request: dict[str, Any], volume: NDArray[Any], run: Run) -> tuple[dict[str, Any], NDArray[Any]]:
        """The answer to a request; see `worker.find`."""
        self.start(run)
        head, answer = self._ask({"do": "find", **self._settings, **request}, volume, run)
        if answer is None:
            raise self._gone()
        return head, answer

    def kill(self) -> None:
        """End it from another thread; the call that waits for it fails and puts the rest away."""
        process = self._process
        if process is not None:
            process.kill()

    def stop(self) -> None:
        """Kill it, if it is there."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def _ask(self, head: dict[str, Any], array: NDArray[Any] | None, run: Run) -> tuple[dict[str, Any], NDArray[Any] | None]:
        """Send a message and wait for its answer, telling how far it is and whether to go on in between."""
        self._send(head, array)
        while True:
            answer, data = self._next(run)
            if "progress" in answer:
                cancelled = run.cancelled()
                self._send({"go": not cancelled}, None)
                if not cancelled:
                    run.progress(float(answer["progress"]), "slices")
            elif answer.get("stopped"):
                raise CancelledError("the work was cancelled")
            elif "failed" in answer:
                raise self._failed(str(answer["failed"]), head["do"] == "load")
            else:
                return answer, data

    def _send(self, head: dict[str, Any], array: NDArray[Any] | None) -> None:
        assert self._process is not None and self._process.stdin is not None  # noqa: S101, PT018 - for the type checker
        try:
            frames.write(self._process.stdin, head, array)  # type: ignore[arg-type]
        except OSError:
            raise self._gone() from None

    def _next(self, run: Run) -> tuple[dict[str, Any], NDArray[Any] | None]:
        """The next message. Raises `DeadlineError` after the process was killed for its silence."""
        waited = unwanted = 0.0
        while True:
            try:
                message = self._said.get(timeout=_LOOK)
            except Empty:
                waited += _LOOK
                unwanted = unwanted + _LOOK if run.cancelled() else 0.0
                if unwanted >= _GRACE:
                    self.stop()
                    raise CancelledError("the work was cancelled") from None
                if waited >= self._timeout:
                    self.stop()
                    raise DeadlineError(f"BiomedParse said nothing for {self._timeout:g} s and was stopped; BP3D_TIMEOUT allows it more") from None
                continue
            if message is None:
                raise self._gone()
            answer: tuple[dict[str, Any], NDArray[Any] | None] = message
            return answer

    def _gone(self) -> ModelError:
        self.stop()
        return ModelError("BiomedParse's process ended unexpectedly; the next request starts it again")

    def _failed(self, kind: str, loading: bool) -> IsocenterError:
        if loading or kind == "memory":
            self.stop()  # with all that it holds
        if kind == "memory":
            return MemoryLimitError("BiomedParse ran out of memory; give it fewer slices at once or another device")
        return ModelError(_FAILED.get(kind, "BiomedParse's code failed; run the server with this scan alone and see its own log"))


def _listen(process: subprocess.Popen[bytes], said: Queue[Any]) -> None:
    """Put what the process says into the queue, None when it ends."""
    try:
        while True:
            said.put(frames.read(process.stdout))  # type: ignore[arg-type]
    except (EOFError, OSError, ValueError, KeyError, TypeError):
        said.put(None)

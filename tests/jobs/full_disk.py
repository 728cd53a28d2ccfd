"""Run in a mount namespace of its own: `unshare -m python full_disk.py FOLDER`.

A file system of 4 MB is mounted on FOLDER and filled, a job is worked on whose result does not fit, then room is made.
Prints one line of JSON with what was seen.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from isocenter.core.errors import StoreError
from isocenter.core.settings import Settings
from isocenter.jobs.backend import Backend
from isocenter.jobs.handler import JobResult, Product
from isocenter.jobs.table import NewJob


def until(condition: Callable[[], bool]) -> None:
    """Wait for it; two minutes at most, and what was not to be waited for is seen in what is printed."""
    deadline = time.monotonic() + 120
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)


def main(folder: Path) -> None:
    objects = folder / "objects"
    objects.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(objects)], check=True)
    backend = Backend(Settings(home=folder, job_lease=1.0, min_free_bytes=0))
    result = os.urandom(2_000_000)
    ballast = objects / "ballast"
    with ballast.open("wb") as file:
        try:
            while True:
                file.write(b"x" * 65536)
                file.flush()
        except OSError as error:
            full = error.errno
    try:
        backend.objects.put(b"y" * 100_000)
        refused = ""
    except StoreError as error:
        refused = error.message
    writable = backend.writable
    worker = backend.worker(lambda given, run: JobResult((Product("a.bin", result),)))
    worker.start()
    job, _ = backend.submit(NewJob("x", {}))
    until(lambda: backend.queue.get(job.id).state == "running")
    time.sleep(1.0)  # in which it tries to put its result there
    waiting = backend.queue.get(job.id)
    halves = [str(stored) for stored, _ in backend.objects.items()]
    ballast.unlink()
    until(lambda: backend.queue.get(job.id).ended)
    done = backend.queue.get(job.id)
    seen = {
        "errno": full, "refused": refused, "writable": writable, "state_while_full": waiting.state, "halves": halves,
        "state": done.state, "attempts": done.attempts, "fence": done.fence, "writable_again": backend.writable,
        "right": done.artifacts != () and b"".join(backend.objects.read(done.artifacts[0].digest)) == result,
        "parts": len(list((objects / "parts").iterdir())),
    }  # fmt: skip
    worker.stop(5)
    backend.close()
    print(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

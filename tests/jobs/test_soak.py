"""The soak of `benchmarks/soak.py`, short: files, connections, threads and processes are given back. Whether memory is flat takes longer to
see than a test may run.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.soak import CACHES, Clients, Sample
from tests.http.conftest import serve

#: Full after a round or two.
SMALL: dict[str, Any] = CACHES | {"ISOCENTER_VOLUME_CACHE_BYTES": "4000000", "ISOCENTER_SESSION_CACHE_BYTES": "4000000"}
WARM, MORE = 1, 2


def rest(root: psutil.Process) -> Sample:
    """The process tree when nothing is done any more: clients have gone, and nothing is closed later."""
    deadline, last = time.monotonic() + 240, None
    while True:
        time.sleep(1.0)
        try:
            now = Sample.of(root, 0.0)
        except (psutil.Error, OSError):
            now = None  # a process of it ended while they were counted
        counts = now and (now.files, now.connections, now.threads, now.processes)
        if now and counts == last and now.connections <= 2:
            return now
        assert time.monotonic() < deadline, now
        last = counts


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's counts of memory and files")
def test_mixed_work_leaves_nothing_behind(tmp_path: Path) -> None:
    with serve(tmp_path, **SMALL) as ((address,), _):
        (root,) = [child for child in psutil.Process().children() if str(tmp_path) == child.cwd()]
        clients = Clients(address, 0, rounds=WARM)
        clients.join()
        before = rest(root)
        more = Clients(address, 1000, rounds=MORE)
        more.join()
        after = rest(root)
    assert not clients.faults + more.faults
    assert more.counts["job 201"] == more.counts["delete 204"] == MORE
    assert after.processes <= before.processes
    assert after.connections <= before.connections
    assert after.files <= before.files + 24, "a pool may have opened some; 40 requests would have left more"
    assert after.threads <= before.threads + 8

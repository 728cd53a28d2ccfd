"""Series on their way: images that came one by one until they are a job, and jobs until their results have been sent.

Everything lies in files, so that nothing is lost when the process dies: a series until the job table has its job, a job's
destinations until each of them has kept the result.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, cast

from blake3 import blake3

from isocenter.core.errors import LimitError, StoreError
from isocenter.core.settings import Settings
from isocenter.io.dimse import Arrived, place
from isocenter.io.upload import Upload

_FACTS, _DONE = "facts.json", "done.json"
#: Seconds that a series stays after it became a job: images that come late make a job of the whole.
STAYS = 3600.0
#: Seconds between two attempts to send, at first and at most, and in all.
_PAUSES, _GIVE_UP = (5.0, 600.0), 7 * 86400.0


@dataclass(frozen=True)
class Series:
    """A series that came in. sender: an AE title."""

    folder: Path
    series_uid: str
    modality: str
    body_part: str
    description: str
    sender: str

    def files(self) -> list[Path]:
        """Its images, in an order that depends on nothing but them."""
        return sorted(self.folder.glob("*.dcm"))

    @contextmanager
    def packed(self, limit: int) -> Iterator[Upload]:
        """As one archive, the same for the same images."""
        with Upload("series.zip", limit=limit) as upload:
            sink = cast(IO[bytes], _Sink(upload))  # it needs no more of a file than these two
            with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
                for file in self.files():
                    with file.open("rb") as data, archive.open(zipfile.ZipInfo(file.stem), "w", force_zip64=True) as member:
                        shutil.copyfileobj(data, member, 1 << 20)
            upload.finish()
            yield upload


class _Sink:
    """What `zipfile` writes to, from front to back."""

    def __init__(self, upload: Upload) -> None:
        self._upload = upload

    def write(self, data: bytes) -> int:
        self._upload.write(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""


class Inbox:
    """Series in a folder, one folder each. `keep` may be called from several threads."""

    def __init__(self, settings: Settings) -> None:
        self._folder = settings.home / "listen" / "incoming"
        self._settings = settings
        #: When an image last came, of series since this process began.
        self._touched: dict[str, float] = {}
        self._began = time.monotonic()

    def keep(self, image: Arrived) -> None:
        """Have an image on the disk. Raises `StoreError` or `LimitError`."""
        name = blake3(f"{image.sender}\0{image.study_uid}\0{image.series.series_uid}".encode("utf-8", "replace")).hexdigest()[:32]
        folder = self._folder / name
        self._touched[name] = time.monotonic()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if shutil.disk_usage(folder).free < self._settings.min_free_bytes:
                raise StoreError("the disk is nearly full")
            images = sum(name.endswith(".dcm") for name in os.listdir(folder))
            if images >= min(self._settings.max_archive_members, self._settings.max_frames):
                raise LimitError("the series has too many images", limit="max_archive_members", value=self._settings.max_archive_members)
        except OSError:
            raise StoreError("the disk is full or cannot be written to") from None
        if not (folder / _FACTS).exists():
            facts = {"series_uid": image.series.series_uid, "modality": image.series.modality, "body_part": image.series.body_part}
            put(folder / _FACTS, {**facts, "description": image.series.description, "sender": image.sender})
        place(image.path, folder / f"{blake3(image.sop_uid.encode('utf-8', 'replace')).hexdigest()[:32]}.dcm")
        self._touched[name] = time.monotonic()

    def complete(self, settle: float) -> list[Series]:
        """Series for which nothing came for `settle` seconds, and that are no job yet as they are now."""
        found = []
        for folder in sorted(self._folder.glob("*")):
            quiet = time.monotonic() - self._touched.get(folder.name, self._began)
            facts = get(folder / _FACTS)
            if quiet >= settle and facts is not None and get(folder / _DONE) != _state(folder):
                found.append(Series(folder, **facts))
        return found

    def done(self, series: Series, images: Sequence[Path]) -> None:
        """A series of these images was dealt with; it goes after a while, unless more comes."""
        put(series.folder / _DONE, _names(images))

    def sweep(self) -> int:
        """Remove series that were dealt with a while ago; returns how many."""
        gone = 0
        for marker in self._folder.glob(f"*/{_DONE}"):
            folder = marker.parent
            with suppress(OSError):
                if time.time() - marker.stat().st_mtime > STAYS and get(marker) == _state(folder):
                    shutil.rmtree(folder)
                    self._touched.pop(folder.name, None)
                    gone += 1
        return gone


def _state(folder: Path) -> dict[str, Any]:
    return _names(folder.glob("*.dcm"))


def _names(files: Any) -> dict[str, Any]:
    names = sorted(f.name for f in files)
    return {"images": len(names), "names": blake3("\n".join(names).encode()).hexdigest()}


@dataclass
class Sending:
    """A job whose results go to nodes. left: [file, node] of what is not there yet. tries, next: of sending (seconds since 1970)."""

    job_id: str
    left: list[list[str]]
    began: float
    tries: int = 0
    next: float = 0.0


class Outbox:
    """Jobs whose results are to be sent, one file each."""

    def __init__(self, settings: Settings) -> None:
        self._folder = settings.home / "listen" / "sending"

    def add(self, job_id: str, files: Sequence[str], nodes: Sequence[str]) -> None:
        """Have a job's files sent to these nodes once they are there. Raises `StoreError`."""
        if left := [[file, node] for node in nodes for file in files]:
            put(self._folder / f"{job_id}.json", asdict(Sending(job_id, left, time.time())))

    def due(self) -> list[Sending]:
        """Those whose time it is."""
        waiting = [Sending(**data) for path in sorted(self._folder.glob("*.json")) if (data := get(path)) is not None]
        return [s for s in waiting if s.next <= time.time()]

    def deliver(self, sending: Sending, send: Callable[[str, str], None]) -> None:
        """Call `send` with each file and node that is left; what raises `StoreError` is tried again later, for a week."""
        reason = ""
        for pair in list(sending.left):
            try:
                send(*pair)
                sending.left.remove(pair)
            except StoreError as error:
                reason = error.message
        if not sending.left:
            self.drop(sending)
            return
        if time.time() - sending.began > _GIVE_UP:
            self.drop(sending)
            raise StoreError(f"given up after a week: {reason}")
        first, most = _PAUSES
        sending.next = time.time() + min(first * 2**sending.tries, most)
        sending.tries += 1
        put(self._folder / f"{sending.job_id}.json", asdict(sending))
        raise StoreError(reason)

    def drop(self, sending: Sending) -> None:
        """Nothing is to be sent any more."""
        (self._folder / f"{sending.job_id}.json").unlink(missing_ok=True)


def put(path: Path, data: dict[str, Any]) -> None:
    """Write plain data as `place` writes a file."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    source = path.with_name(f".{path.name}.new")
    try:
        source.write_text(json.dumps(data))
        place(source, path)
    except OSError:
        raise StoreError("the disk is full or cannot be written to") from None
    finally:
        with suppress(OSError):
            source.unlink(missing_ok=True)


def get(path: Path) -> dict[str, Any] | None:
    """Plain data, None where there is none."""
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None

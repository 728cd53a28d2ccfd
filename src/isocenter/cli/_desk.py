"""Where a command's jobs go: the table that this machine's settings name, or a server at an address."""

from __future__ import annotations

import json
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from blake3 import blake3

from isocenter.core.errors import ConflictError, InputError, IsocenterError, MemoryLimitError, ModelError, NotFoundError, StoreError, UsageError

if TYPE_CHECKING:
    from isocenter.core.settings import Settings
    from isocenter.jobs.table import Job

_CHUNK = 1 << 20
_BOUNDARY = "isocenter-7d1c0f5ab1e64c0f"
#: Which error a job's or a server's refusal is here, so that the exit code tells as much as without a queue.
_BY_CODE: Mapping[str, type[IsocenterError]] = {
    "input": InputError, "limit": InputError, "geometry": InputError, "unsupported": InputError, "usage": UsageError, "prompt": UsageError,
    "model": ModelError, "memory": MemoryLimitError,
}  # fmt: skip
_BY_STATUS: Mapping[int, type[IsocenterError]] = {
    400: UsageError, 401: UsageError, 403: UsageError, 404: NotFoundError, 409: ConflictError, 413: InputError, 415: InputError, 422: UsageError,
    503: StoreError, 507: MemoryLimitError,
}  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """A job as one waits for it. artifacts: result files with their BLAKE3."""

    id: str
    status: str
    progress: float
    message: str
    error_code: str | None
    error: str | None
    artifacts: Mapping[str, str]

    @property
    def ended(self) -> bool:
        """Whether there is nothing to wait for any more."""
        return self.status not in ("pending", "running")

    def check(self) -> None:
        """Raise what went wrong, unless it is completed."""
        if self.status == "failed":
            raise _BY_CODE.get(self.error_code or "", IsocenterError)(self.error or "the job failed")
        if self.status != "completed":
            raise IsocenterError(f"the job was {self.status}")


class Desk(Protocol):
    """Takes jobs in and gives their results out."""

    def submit(self, scan: Path, request: Mapping[str, Any], key: str) -> Seen:
        """Queue a scan; the same key again is the same job."""

    def look(self, job_id: str) -> Seen:
        """The job now. Raises `StoreError` where that cannot be said just now."""

    def fetch(self, job: Seen, name: str) -> bytes:
        """A result file, checked."""

    def idle(self) -> str | None:
        """Why nobody will take a job, where that is known."""

    def close(self) -> None:
        """Done."""


class LocalDesk:
    """The job table and the object store of the settings."""

    def __init__(self, settings: Settings) -> None:
        from isocenter.jobs.backend import Backend

        self._settings = settings
        self._backend = Backend(settings)

    def submit(self, scan: Path, request: Mapping[str, Any], key: str) -> Seen:
        """See `Desk`."""
        from isocenter import jobservice
        from isocenter.io.upload import Upload
        from isocenter.service import Service

        service = Service(self._settings)
        try:
            with Upload(scan.name, limit=self._settings.max_upload_bytes) as upload, scan.open("rb") as file:
                for chunk in iter(lambda: file.read(_CHUNK), b""):
                    upload.write(chunk)
                upload.finish()
                job, _ = jobservice.submit(service, self._backend, jobservice.SegmentRequest(**request), upload, key=key)
        finally:
            service.close()
        return _seen(job)

    def look(self, job_id: str) -> Seen:
        """See `Desk`."""
        return _seen(self._backend.queue.get(job_id))

    def fetch(self, job: Seen, name: str) -> bytes:
        """See `Desk`."""
        return b"".join(self._backend.objects.read(job.artifacts[name]))

    def idle(self) -> str | None:
        """See `Desk`."""
        if self._backend.queue.standing().workers:
            return None
        return 'no worker is there yet: start "isocenter serve" or "isocenter worker"; the job waits for it'

    def close(self) -> None:
        """See `Desk`."""
        self._backend.close()


def _seen(job: Job) -> Seen:
    files = {a.name: a.digest for a in job.artifacts}
    return Seen(job.id, job.state.value, job.progress, job.message, job.error_code, job.error, files)


class ServerDesk:
    """A server's job API."""

    def __init__(self, address: str, key: str | None) -> None:
        address = address if "://" in address else f"http://{address}"
        if not address.startswith(("http://", "https://")):
            raise UsageError("--server is an address such as http://127.0.0.1:8000")
        self._address = address.rstrip("/")
        self._key = key

    def submit(self, scan: Path, request: Mapping[str, Any], key: str) -> Seen:
        """See `Desk`."""
        self._ask("/api/v1/jobs?limit=1")  # a wrong key or address is known before the scan is sent
        with scan.open("rb") as file:
            suffix = "".join(scan.suffixes[-2:]) if scan.name.lower().endswith((".nii.gz", ".seg.nrrd")) else scan.suffix
            head = (
                f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="job"\r\n\r\n{json.dumps(request)}\r\n'
                f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="scan{suffix}"\r\n\r\n'
            ).encode()
            tail = f"\r\n--{_BOUNDARY}--\r\n".encode()
            headers = {
                "Content-Type": f"multipart/form-data; boundary={_BOUNDARY}",
                "Content-Length": str(len(head) + scan.stat().st_size + len(tail)),
                "Idempotency-Key": key,
            }
            return _told(self._ask("/api/v1/jobs", _body(head, file, tail), headers))

    def look(self, job_id: str) -> Seen:
        """See `Desk`."""
        return _told(self._ask(f"/api/v1/jobs/{job_id}"))

    def fetch(self, job: Seen, name: str) -> bytes:
        """See `Desk`."""
        data = self._get(f"/api/v1/jobs/{job.id}/artifacts/{name}")
        if blake3(data).hexdigest() != job.artifacts[name]:
            raise StoreError(f"{name} came damaged; fetch it again with --job {job.id}")
        return data

    def idle(self) -> str | None:
        """See `Desk`."""
        return None

    def close(self) -> None:
        """See `Desk`."""

    def _ask(self, path: str, body: Iterator[bytes] | None = None, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
        try:
            answer = json.loads(self._get(path, body, headers))
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise IsocenterError(f"what answers at {self._address} is no Isocenter server")
        return answer

    def _get(self, path: str, body: Iterator[bytes] | None = None, headers: Mapping[str, str] | None = None) -> bytes:
        request = urllib.request.Request(self._address + path, body, dict(headers or {}))  # noqa: S310 - http(s), see above
        if self._key:
            request.add_unredirected_header("X-API-Key", self._key)  # an object store that downloads are sent to has no use for it
        try:
            with urllib.request.urlopen(request, timeout=600 if body is not None else 60) as answer:  # noqa: S310
                data: bytes = answer.read()
                return data
        except urllib.error.HTTPError as error:
            raise _refused(error) from None
        except OSError as error:
            reason = getattr(error, "reason", None) or error
            raise StoreError(
                f"the server at {self._address} cannot be reached ({getattr(reason, 'strerror', None) or type(reason).__name__})"
            ) from None


def _body(head: bytes, file: BinaryIO, tail: bytes) -> Iterator[bytes]:
    yield head
    yield from iter(lambda: file.read(_CHUNK), b"")
    yield tail


def _refused(error: urllib.error.HTTPError) -> IsocenterError:
    """A server's refusal as the error that it was there."""
    try:
        detail = json.loads(error.read(1 << 16))["detail"]
    except (ValueError, KeyError, TypeError, OSError):
        detail = None
    text = detail if isinstance(detail, str) else f"the server answered {error.code}"
    if error.code == 401:
        text = "the server wants a key: set ISOCENTER_API_KEY"
    return _BY_STATUS.get(error.code, IsocenterError)(text)


def _told(answer: Mapping[str, Any]) -> Seen:
    try:
        files = {a["name"]: a["blake3"] for a in answer["artifacts"]}
        return Seen(answer["id"], answer["status"], answer["progress"], answer["message"], answer["error_code"], answer["error"], files)
    except (KeyError, TypeError):
        raise IsocenterError("what answers there is no Isocenter server") from None


def packed(source: Path, use: Callable[[Path], Seen]) -> Seen:
    """`use` of a scan as one file: a folder becomes a ZIP archive, the same for the same files, that holds none of their names."""
    if source.is_file():
        return use(source)
    files = sorted(f for f in source.rglob("*") if f.is_file() and not f.name.startswith("."))
    if not files:
        raise InputError(f"there is no file or folder {source}" if not source.exists() else f"there are no files in {source}")
    with tempfile.TemporaryDirectory(prefix="isocenter-") as folder:
        archive = Path(folder) / "scan.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as out:
            for number, file in enumerate(files):
                with file.open("rb") as data, out.open(zipfile.ZipInfo(f"{number:06}"), "w", force_zip64=True) as member:
                    for chunk in iter(lambda data=data: data.read(_CHUNK), b""):  # type: ignore[misc]
                        member.write(chunk)
        return use(archive)

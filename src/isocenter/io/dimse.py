"""DICOM over its own network protocol (PS3.7, PS3.8), by pynetdicom: images come in by C-STORE, results go out by C-STORE.

What comes in lies on the disk before its sender is told that it is kept. It is read by the same guarded door as any upload.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from isocenter.core.errors import IsocenterError, LimitError, StoreError, UsageError
from isocenter.core.settings import Limits
from isocenter.io import study
from isocenter.io.archive import Part
from isocenter.io.dimse_tls import Tls, greet

log = structlog.get_logger("isocenter.dicom")
#: Statuses of C-STORE (PS3.4 B.2.3).
_KEPT, _NO_SPACE, _NOT_UNDERSTOOD = 0x0000, 0xA700, 0xC000
#: Associations at once; seconds of silence after which one is ended.
_ASSOCIATIONS, SILENCE = 16, 60


@dataclass(frozen=True)
class Arrived:
    """An image that came in. path: a file that is the receiver's to take. sender: its AE title."""

    path: Path
    study_uid: str
    sop_uid: str
    sender: str
    series: study.SeriesFacts


@dataclass(frozen=True)
class Peer:
    """Another DICOM node. tls: whether it speaks it. name: what its certificate says it is, where that is not `host`."""

    host: str
    port: int
    ae_title: str
    tls: bool = False
    name: str | None = None


def check_installed() -> None:
    """Raise `UsageError` where pynetdicom is missing."""
    if importlib.util.find_spec("pynetdicom") is None:
        raise UsageError("DICOM over the network needs a package that is not installed: pip install 'isocenter[dicom-net]'")


class Receiver:
    """A C-STORE and C-ECHO SCP. `keep` is handed each image and raises where it cannot be kept.

    allowed: AE titles that may call, empty for any. max_bytes: of one image. tls: in clear text where it has no certificate.
    """

    def __init__(
        self,
        keep: Callable[[Arrived], None],
        limits: Limits,
        *,
        ae_title: str,
        host: str,
        port: int,
        allowed: Sequence[str] = (),
        max_bytes: int,
        tls: Tls | None = None,
    ) -> None:
        check_installed()
        self._tls = tls.server(SILENCE) if tls is not None and tls.certificate is not None else None
        self._keep, self._limits, self._max_bytes = keep, limits, max_bytes
        self._title, self._address, self._allowed = ae_title, (host, port), list(allowed)
        self._server: Any = None
        self._came: dict[Any, int] = {}
        self._lock = threading.Lock()

    def start(self) -> int:
        """Listen; returns the port. Raises `UsageError` where it is taken."""
        from pynetdicom import AE, AllStoragePresentationContexts, _config, evt
        from pynetdicom.sop_class import Verification

        _quiet()
        _config.STORE_RECV_CHUNKED_DATASET = True  # into a file as it comes, not into memory
        ae = AE(ae_title=self._title)
        ae.require_called_aet = True
        ae.require_calling_aet = self._allowed
        ae.maximum_associations = _ASSOCIATIONS
        ae.network_timeout = ae.acse_timeout = ae.dimse_timeout = SILENCE
        ae.add_supported_context(Verification)
        for context in AllStoragePresentationContexts:
            ae.add_supported_context(context.abstract_syntax, _syntaxes())
        handlers = [
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_DATA_RECV, self._count),
            (evt.EVT_CONN_CLOSE, self._closed),
            (evt.EVT_REJECTED, lambda event: log.warning("an association was refused: the AE title is not allowed, or too many are open")),
        ]
        try:
            self._server = ae.start_server(self._address, block=False, ssl_context=self._tls, evt_handlers=handlers)
        except OSError as error:
            raise UsageError(f"cannot listen on {self._address[0]}:{self._address[1]} ({error.strerror}); choose another --port") from None
        return int(self._server.server_address[1])

    def stop(self) -> None:
        """Listen no more; associations that are open are ended."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    @property
    def open(self) -> int:
        """Associations that are open."""
        return len(self._server.active_associations) if self._server is not None else 0

    def _store(self, event: Any) -> int:
        path: Path = event.dataset_path
        with self._lock:
            self._came[event.assoc] = 0
        try:
            if path.stat().st_size > self._max_bytes:
                raise LimitError("the image is too large", limit="dicom_max_bytes", value=self._max_bytes)
            with path.open("rb") as file:
                # Named: images come one by one, and only their UIDs say which belong together.
                facts = study.describe(Part(path.stat().st_size, file=file), self._limits, named=True)
            sop_uid = str(event.request.AffectedSOPInstanceUID)[:64]
            self._keep(Arrived(path, facts.study_uid, sop_uid, str(event.assoc.requestor.ae_title).strip()[:16], facts.series[0]))
        except (StoreError, LimitError, OSError) as error:
            log.error("an image could not be kept", reason=error.message if isinstance(error, IsocenterError) else type(error).__name__)
            return _NO_SPACE
        except IsocenterError as error:
            log.warning("what came is no image that can be read", reason=error.message)
            return _NOT_UNDERSTOOD
        except Exception as error:  # whatever a sender makes of a header, the others go on
            log.error("an image could not be taken in", error=type(error).__name__, exc_info=error)
            return _NOT_UNDERSTOOD
        finally:
            _forget(getattr(event.request, "_dataset_file", None), path)
        return _KEPT

    def _count(self, event: Any) -> None:
        """End an association that sends more than one image may have, while it comes."""
        with self._lock:
            self._came[event.assoc] = came = self._came.get(event.assoc, 0) + len(event.data)
        if came > self._max_bytes + (1 << 20):
            log.error("an association was ended: one image had more than dicom_max_bytes", limit=self._max_bytes)
            event.assoc.abort()

    def _closed(self, event: Any) -> None:
        with self._lock:
            self._came.pop(event.assoc, None)
        waiting = event.assoc.dul.to_user_queue
        if event.assoc.requestor.primitive is None and waiting.empty():
            waiting.put(None)  # who left before asking for an association, such as a balancer's probe, would be waited for
        # An image that broke off in the middle.
        message = getattr(event.assoc.dimse, "message", None)
        _forget(getattr(message, "_data_set_file", None), getattr(message, "_data_set_path", None))


def _quiet() -> None:
    """What goes wrong is said here, in a line; the library would say it too, with tracebacks."""
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)


def _forget(file: Any, path: Any) -> None:
    """Close and remove a file that the library made for an image: it leaves both to whoever took the image."""
    if file is not None:
        file.close()
    if isinstance(path, Path):
        path.unlink(missing_ok=True)


def _syntaxes() -> list[str]:
    """Transfer syntaxes that the door reads."""
    from pynetdicom import ALL_TRANSFER_SYNTAXES

    return [str(uid) for uid in ALL_TRANSFER_SYNTAXES]


def send(data: bytes, peer: Peer, *, ae_title: str, tls: Tls | None = None) -> None:
    """Store a DICOM file at a node. tls: ours, for a node that speaks it; its certificate is checked.

    Raises `StoreError` where it cannot be reached, cannot be believed or does not keep it: worth another try.
    """
    from pydicom import dcmread
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
    from pynetdicom import AE

    _quiet()
    secured = ((tls or Tls()).client(), peer.name or peer.host) if peer.tls else None
    _knock(peer, secured)
    dataset = dcmread(io.BytesIO(data))  # ours
    ae = AE(ae_title=ae_title)
    ae.network_timeout = ae.acse_timeout = ae.dimse_timeout = ae.connection_timeout = SILENCE
    own = dataset.file_meta.TransferSyntaxUID
    ae.add_requested_context(dataset.SOPClassUID, list(dict.fromkeys([own, ExplicitVRLittleEndian, ImplicitVRLittleEndian])))
    association = ae.associate(peer.host, peer.port, ae_title=peer.ae_title, tls_args=secured)
    if not association.is_established:
        raise StoreError("the DICOM node refuses the association" + (", or the certificate that it was shown" if secured else ""))
    try:
        status = association.send_c_store(dataset)
    except ValueError:
        raise StoreError("the DICOM node takes no objects of this kind") from None
    finally:
        with contextlib.suppress(RuntimeError):
            association.release()
    code = getattr(status, "Status", None)
    # Warnings (Bxxx) say that it was kept.
    if code is None or not (code == _KEPT or code & 0xF000 == 0xB000):
        raise StoreError("the DICOM node did not answer" if code is None else f"the DICOM node did not keep it (status {code:04X})")


def _knock(peer: Peer, secured: tuple[ssl.SSLContext, str] | None) -> None:
    """See whether a node is there: the library leaves a socket behind for each connection that is refused, and does not say why.

    secured: for TLS, the context and the name that its certificate must bear.
    """
    try:
        plain = socket.create_connection((peer.host, peer.port), SILENCE)
    except OSError:
        raise StoreError("the DICOM node cannot be reached") from None
    with plain:
        if secured is not None:
            greet(plain, *secured)


def place(source: Path, target: Path) -> None:
    """Copy a file so that it is there whole or not at all, and on the disk. Raises `StoreError` for a full disk."""
    partial = target.with_name(f".{target.name}.part")
    try:
        with source.open("rb") as old, partial.open("wb") as new:
            while piece := old.read(1 << 20):
                new.write(piece)
            new.flush()
            os.fsync(new.fileno())
        partial.replace(target)
        if os.name == "posix":  # its name too
            descriptor = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise StoreError("the disk is full or cannot be written to") from None

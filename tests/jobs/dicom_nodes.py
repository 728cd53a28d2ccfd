"""DICOM nodes for the tests: a sender, an archive, and our own listener, on this machine's loopback."""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import Comprehensive3DSRStorage, ExplicitVRLittleEndian, SegmentationStorage
from pynetdicom import AE, build_context, evt
from pynetdicom.sop_class import CTImageStorage, Verification

from isocenter.core.settings import Settings
from isocenter.jobs.backend import Backend
from isocenter.listenservice import Listener, Rules
from isocenter.service import Service

#: Marks modules that speak DICOM: the library leaves a socket or a file to the collector where an association breaks off.
LEFT_TO_THE_COLLECTOR = [pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"), pytest.mark.usefixtures("collected")]


def rules_of(text: str, tmp_path: Path, port: int = 1) -> Rules:
    """Rules whose text says `{port}` where the archive's port belongs."""
    path = tmp_path / "rules.toml"
    path.write_text(text.replace("{port}", str(port)))
    return Rules.read(path)


@contextlib.contextmanager
def listening(settings: Settings, service: Service, backend: Backend, found: Rules) -> Iterator[int]:
    """Our listener; yields its port."""
    listener = Listener(settings, service, backend, found)
    port = listener.start()
    try:
        yield port
    finally:
        listener.stop()


@contextlib.contextmanager
def pacs(
    port: int,
    *,
    kinds: tuple[str, ...] = (SegmentationStorage, Comprehensive3DSRStorage),
    tls: ssl.SSLContext | None = None,
    status: Callable[[Dataset], int] = lambda dataset: 0x0000,
) -> Iterator[list[Dataset]]:
    """An archive that keeps what is sent to it, where `status` is 0."""
    kept: list[Dataset] = []

    def store(event: Any) -> int:
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        if not (code := status(dataset)):
            kept.append(dataset)
        return code

    ae = AE(ae_title="PACS")
    ae.require_called_aet = True
    for kind in kinds:
        ae.add_supported_context(kind)
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, store)], ssl_context=tls)
    try:
        yield kept
    finally:
        server.shutdown()
        server.server_close()


def call(
    port: int, datasets: list[Dataset], *, own: str = "SCANNER", other: str = "ISOCENTER", tls: tuple[ssl.SSLContext, str] | None = None
) -> list[int | None]:
    """The statuses of storing these; None where no answer came, an empty list where the association was refused."""
    ae = AE(ae_title=own)
    kinds = {dataset.SOPClassUID for dataset in datasets} | {CTImageStorage}
    contexts = [build_context(kind, [ExplicitVRLittleEndian]) for kind in kinds]
    association = ae.associate("127.0.0.1", port, contexts=[*contexts, build_context(Verification)], ae_title=other, tls_args=tls)
    if not association.is_established:
        return []
    try:
        assert association.send_c_echo().Status == 0x0000
        return [getattr(_ready(association).send_c_store(dataset), "Status", None) for dataset in datasets]
    finally:
        if association.is_established:
            association.release()


def _ready(association: Any) -> Any:
    """The library's own thread listens again. Where it has not noticed yet that the last answer came, it takes the next one away."""
    while association.is_established and association._is_paused:
        time.sleep(0.0005)
    return association


def until(condition: Callable[[], Any], seconds: float = 120) -> None:
    """Wait for something."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)

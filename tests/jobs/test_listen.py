"""DICOM over its own network: real associations in and out, on this machine's loopback."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.uid import ExplicitVRLittleEndian, SegmentationStorage
from pynetdicom import AE, build_context, evt
from pynetdicom.sop_class import CTImageStorage, Verification
from typer.testing import CliRunner

from isocenter import jobservice
from isocenter.cli import app
from isocenter.core.errors import UsageError
from isocenter.core.phantom import phantom
from isocenter.core.settings import Settings
from isocenter.jobs import inbox
from isocenter.jobs.backend import Backend
from isocenter.listenservice import Listener, Rules
from isocenter.service import Service
from tests.http.conftest import dicom_series
from tests.jobs.servers import free_port

#: The library under the test leaves a socket or a file to the collector where an association breaks off.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
RULES = """
[[rules]]
name = "never"
modality = "MR"
model = "tissue"
prompts = ["lungs"]

[[rules]]
name = "lungs"
modality = "^CT$"
sender = "scanner"
min_images = 2
model = "tissue"
prompts = ["lungs"]
priority = 7
send_to = ["pacs"]

[destinations.pacs]
host = "127.0.0.1"
port = {port}
ae_title = "PACS"
"""


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    """What it left is collected here, and not in another test."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def images() -> list[Dataset]:
    files = dicom_series(phantom((24, 48, 48)).volume.array.astype(np.int16), patient="Jane^Doe")
    return [dcmread(DicomBytesIO(data)) for data in files]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    made = Service(Settings(home=tmp_path_factory.mktemp("service"), decoders=0))
    yield made
    made.close()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, dicom_port=0, dicom_settle=1.0, dicom_allowed=("SCANNER",), min_free_bytes=0, decoders=0)


@pytest.fixture
def backend(settings: Settings) -> Iterator[Backend]:
    made = Backend(settings)
    yield made
    made.close()


def rules(tmp_path: Path, port: int = 1) -> Rules:
    path = tmp_path / "rules.toml"
    path.write_text(RULES.replace("{port}", str(port)))
    return Rules.read(path)


@contextlib.contextmanager
def listening(settings: Settings, service: Service, backend: Backend, found: Rules) -> Iterator[int]:
    listener = Listener(settings, service, backend, found)
    port = listener.start()
    try:
        yield port
    finally:
        listener.stop()


@contextlib.contextmanager
def pacs(port: int) -> Iterator[list[Dataset]]:
    """A node that keeps what is sent to it."""
    kept: list[Dataset] = []

    def store(event: Any) -> int:
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        kept.append(dataset)
        return 0x0000

    ae = AE(ae_title="PACS")
    ae.require_called_aet = True
    ae.add_supported_context(SegmentationStorage)
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    try:
        yield kept
    finally:
        server.shutdown()
        server.server_close()


def call(port: int, datasets: list[Dataset], *, own: str = "SCANNER", other: str = "ISOCENTER") -> list[int | None]:
    """The statuses of storing these; None where no answer came."""
    ae = AE(ae_title=own)
    kinds = {dataset.SOPClassUID for dataset in datasets} | {CTImageStorage}
    contexts = [build_context(kind, [ExplicitVRLittleEndian]) for kind in kinds]
    association = ae.associate("127.0.0.1", port, contexts=[*contexts, build_context(Verification)], ae_title=other)
    if not association.is_established:
        return []
    try:
        assert association.send_c_echo().Status == 0x0000
        return [getattr(association.send_c_store(dataset), "Status", None) for dataset in datasets]
    finally:
        if association.is_established:
            association.release()


def until(condition: Callable[[], Any], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_series_comes_in_and_its_segmentation_goes_back(
    settings: Settings, service: Service, backend: Backend, images: list[Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The destination is away at first, and the listener is stopped and started between; nothing is lost, nothing comes twice."""
    monkeypatch.setattr(inbox, "_PAUSES", (0.2, 0.2))
    port = free_port()
    found = rules(tmp_path, port)
    worker = backend.worker(jobservice.handler(service))

    def waiting() -> list[dict[str, Any]]:
        return [inbox.get(path) or {} for path in (tmp_path / "listen" / "sending").glob("*.json")]

    with listening(settings, service, backend, found) as here:
        assert call(here, images) == [0x0000] * len(images)
        until(lambda: backend.queue.page()[1] == 1)
        (job,) = backend.queue.page()[0]
        assert (job.priority, job.model, job.request["prompts"]) == (7, "tissue", ["lungs"])
        assert "Jane" not in repr(job)
        until(lambda: len(waiting()) == 1)
        assert worker.work_once()
        until(lambda: any(s.get("tries", 0) > 0 for s in waiting()))
    assert len(waiting()) == 1
    with pacs(port) as kept, listening(settings, service, backend, found):
        until(lambda: not waiting())
        assert len(kept) == 1
    seg = kept[0]
    assert (seg.Modality, seg.SegmentSequence[0].SegmentLabel) == ("SEG", "lungs")
    assert (seg.StudyInstanceUID, seg.PatientID) == (images[0].StudyInstanceUID, "Jane^Doe")
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == images[0].SeriesInstanceUID
    assert (seg.pixel_array > 0).any()
    assert backend.queue.page()[1] == 1
    assert not list(Path(tmp_path / "listen").rglob(".*")), "no halves are left"


def test_what_came_before_a_restart_becomes_a_job_and_late_images_one_of_the_whole(
    settings: Settings, service: Service, backend: Backend, images: list[Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = rules(tmp_path)
    slow = settings.model_copy(update={"dicom_settle": 3600.0})
    with listening(slow, service, backend, found) as here:
        assert call(here, images[:12]) == [0x0000] * 12
    assert backend.queue.page()[1] == 0
    listener = Listener(settings, service, backend, found)

    def queued() -> int:
        listener.look()
        return backend.queue.page()[1]

    until(lambda: queued() == 1)
    (job,) = backend.queue.page()[0]
    (folder,) = (tmp_path / "listen" / "incoming").iterdir()
    # As if the process had died between the table and the folder: it is the same job.
    (folder / "done.json").unlink()
    listener.look()
    assert [j.id for j in backend.queue.page()[0]] == [job.id]
    with listening(settings, service, backend, found) as here:
        assert call(here, images[12:]) == [0x0000] * 12
        until(lambda: backend.queue.page()[1] == 2)
    whole = backend.queue.page()[0][0]
    assert whole.inputs[0].bytes > 1.8 * job.inputs[0].bytes
    listener.look()
    assert backend.queue.page()[1] == 2
    monkeypatch.setattr(inbox, "STAYS", -1.0)
    listener.look()
    assert not list((tmp_path / "listen" / "incoming").iterdir())


def test_who_may_call_and_what_may_come(
    settings: Settings, service: Service, backend: Backend, images: list[Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = rules(tmp_path)
    tight = settings.model_copy(update={"dicom_max_bytes": 20_000, "max_frames": 3})
    with listening(tight, service, backend, found) as here:
        assert call(here, images[:1], own="STRANGER") == []
        assert call(here, images[:1], other="SOMEBODY") == []
        noimage = Dataset()
        noimage.file_meta = images[0].file_meta
        noimage.SOPClassUID, noimage.SOPInstanceUID, noimage.StudyInstanceUID = CTImageStorage, "1.2.3.4", "1.2.3"
        assert call(here, [noimage]) == [0xC000]
        large = Dataset()
        large.update(images[1])
        large.file_meta = images[1].file_meta
        large.PixelData = bytes(2_000_000)
        assert call(here, [large]) in ([None], [0xA700]), "the association is ended while it comes"
        assert call(here, images[:4]) == [0x0000, 0x0000, 0x0000, 0xA700]
    full = settings.model_copy(update={"min_free_bytes": 2**60})
    with listening(full, service, backend, found) as here:
        assert call(here, images[:1]) == [0xA700]


def test_what_no_rule_is_for_stays_no_job(settings: Settings, service: Service, backend: Backend, images: list[Dataset], tmp_path: Path) -> None:
    with listening(settings, service, backend, rules(tmp_path)) as here:
        assert call(here, images[:1]) == [0x0000]  # the rule wants two
        until(lambda: list((tmp_path / "listen" / "incoming").glob("*/done.json")))
    assert backend.queue.page()[1] == 0


def test_several_senders_at_once(settings: Settings, service: Service, backend: Backend, images: list[Dataset], tmp_path: Path) -> None:
    """Each sender's series is its own, though the series is the same."""
    everybody = settings.model_copy(update={"dicom_allowed": ()})
    with listening(everybody, service, backend, rules(tmp_path)) as here:
        threads = [threading.Thread(target=call, args=(here, images), kwargs={"own": f"SCANNER{n}"}) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        until(lambda: backend.queue.page()[1] == 3)
    assert len({job.inputs[0].digest for job in backend.queue.page()[0]}) == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x =", "not TOML"),
        ("", "rules"),
        ("[[rules]]\nname = 'a'\nmodel = 'tissue'\nprompts = ['lungs']\nsend_to = ['x']", "no destination"),
        ("[[rules]]\nname = 'a'\nmodality = '('\nmodel = 'tissue'", "no regular expression"),
        ("[[rules]]\nname = 'a'\nmodel = 'nosuch'\nprompts = ['lungs']", "the rule 'a' cannot be followed"),
        ("[[rules]]\nname = 'a'\nmodel = 'tissue'\nprompts = ['lungs']\nbodypart = 'x'", "bodypart"),
    ],
)
def test_rules_that_cannot_be_meant(text: str, says: str, tmp_path: Path, service: Service) -> None:
    (tmp_path / "rules.toml").write_text(text)
    with pytest.raises(UsageError) as wrong:
        Rules.read(tmp_path / "rules.toml").check(service.registry)
    assert says in wrong.value.message


def test_the_command_checks_before_it_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOCENTER_HOME", str(tmp_path))
    (tmp_path / "rules.toml").write_text(RULES.replace("{port}", "104"))

    def run(*args: str) -> Any:
        return CliRunner().invoke(app, ["listen", *args])

    done = run("--rules", str(tmp_path / "rules.toml"), "--check")
    assert (done.exit_code, done.stdout) == (0, "2 rules, 1 destinations: nothing is wrong with them\n")
    assert run("--check").exit_code == 2
    refused = run("--rules", str(tmp_path / "rules.toml"), "--host", "0.0.0.0")
    assert refused.exit_code == 2
    assert "--allow" in refused.stderr

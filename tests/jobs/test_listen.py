"""DICOM over its own network: real associations in and out, on this machine's loopback."""

from __future__ import annotations

import copy
import socket
import threading
from pathlib import Path
from typing import Any

import highdicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import SegmentationStorage
from pynetdicom.sop_class import CTImageStorage
from typer.testing import CliRunner

from isocenter import jobservice
from isocenter.cli import app
from isocenter.core.errors import UsageError
from isocenter.core.settings import Settings
from isocenter.io import dimse
from isocenter.jobs import inbox
from isocenter.jobs.backend import Backend
from isocenter.listenservice import Listener, Rules
from isocenter.service import Service
from tests.jobs.dicom_nodes import LEFT_TO_THE_COLLECTOR, call, listening, pacs, rules_of, until
from tests.ports import free_port

pytestmark = LEFT_TO_THE_COLLECTOR
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


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, dicom_port=0, dicom_settle=3.0, dicom_allowed=("SCANNER",), min_free_bytes=0, decoders=0)


def rules(tmp_path: Path, port: int = 1) -> Rules:
    return rules_of(RULES, tmp_path, port)


def check_segmentation(dataset: Dataset, images: list[Dataset]) -> None:
    segmentation = highdicom.seg.Segmentation.from_dataset(dataset)
    assert segmentation.get_segment_description(1).segment_label == "lungs"
    assert same_patient(dataset) == same_patient(images[0])
    assert dataset.ReferencedSeriesSequence[0].SeriesInstanceUID == images[0].SeriesInstanceUID
    sent = {image.SOPInstanceUID for image in images}
    named = {uid for _, _, uid in segmentation.get_source_image_uids()}
    assert named <= sent
    assert len(named) > 5
    assert (dataset.pixel_array > 0).any()


def check_report(dataset: Dataset, segmentation: Dataset, images: list[Dataset], facts: dict[str, Any]) -> None:
    """facts: of the job's measurements.json."""
    report = highdicom.sr.Comprehensive3DSR.from_dataset(dataset)
    assert same_patient(dataset) == same_patient(images[0])
    evidence = {i.ReferencedSOPInstanceUID: s.SeriesInstanceUID for study in evidence_of(dataset) for s in study for i in s.ReferencedSOPSequence}
    assert evidence.pop(segmentation.SOPInstanceUID) == segmentation.SeriesInstanceUID
    assert evidence == {image.SOPInstanceUID: image.SeriesInstanceUID for image in images}
    content = report.content
    assert isinstance(content, highdicom.sr.MeasurementReport)
    uid = segmentation.SegmentSequence[0].TrackingUID
    (inside,) = content.get_volumetric_roi_measurement_groups(tracking_uid=uid)
    assert inside.finding_type.meaning == segmentation.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeMeaning
    reference = next(item for item in inside[0].ContentSequence if item.ValueType == "IMAGE").ReferencedSOPSequence[0]
    assert (reference.ReferencedSOPInstanceUID, reference.ReferencedSegmentNumber) == (segmentation.SOPInstanceUID, 1)
    figures = {(m.name.meaning, m.derivation.meaning if m.derivation else None): m for m in inside.get_measurements()}
    assert figures["Volume", None].value == pytest.approx(facts["volume_mm3"])
    assert figures["Volume", None].unit.value == "mm3"
    assert figures["Attenuation Coefficient", "Mean"].value == pytest.approx(facts["mean"])
    (across,) = content.get_image_measurement_groups(tracking_uid=uid)
    lines = {m.name.meaning: m for m in across.get_measurements()}
    assert lines["Long axis"].value == pytest.approx(facts["longest_mm"], abs=1e-3)
    assert lines["Short axis"].value == pytest.approx(facts["short_axis_mm"], abs=1e-3)


def evidence_of(dataset: Dataset) -> list[Any]:
    return [study.ReferencedSeriesSequence for study in dataset.CurrentRequestedProcedureEvidenceSequence]


def same_patient(dataset: Dataset) -> list[str]:
    names = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID", "AccessionNumber")
    return [str(dataset.get(name, "") or "") for name in names]


def test_a_series_comes_in_and_its_segmentation_goes_back(
    settings: Settings, service: Service, backend: Backend, images: list[Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The destination is away at first, and the listener is stopped and started between; nothing is lost, nothing comes twice.

    What goes back is read by highdicom: a SEG and a report (TID 1500) that refer to the series that came, of its patient and study.
    """
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
        assert [dataset.Modality for dataset in kept] == ["SEG", "SR"]
    facts = backend.queue.get(job.id).facts["labels"][0]
    check_segmentation(kept[0], images)
    check_report(kept[1], kept[0], images, facts)
    assert backend.queue.page()[1] == 1
    assert not list(Path(tmp_path / "listen").rglob(".*")), "no halves are left"


def test_what_an_archive_does_not_take_holds_nothing_else_up(
    settings: Settings, service: Service, backend: Backend, images: list[Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two archives, one of which knows no reports until it is updated: each gets each object once. A rule may send the report alone."""
    monkeypatch.setattr(inbox, "_PAUSES", (0.2, 0.2))
    ports = [free_port(), free_port()]
    path = tmp_path / "rules.toml"
    path.write_text(
        RULES.replace("{port}", str(ports[0])).replace('["pacs"]', '["pacs", "other"]')
        + f'[destinations.other]\nhost = "127.0.0.1"\nport = {ports[1]}\nae_title = "PACS"\n'
    )
    sending = tmp_path / "listen" / "sending"
    everybody = settings.model_copy(update={"dicom_allowed": ()})

    def left() -> list[Any]:
        return [pair for file in sending.glob("*.json") for pair in (inbox.get(file) or {"left": []})["left"]]

    worker = backend.worker(jobservice.handler(service))
    with pacs(ports[0], kinds=(SegmentationStorage,)) as old, pacs(ports[1]) as other:
        with listening(settings, service, backend, Rules.read(path)) as here:
            assert call(here, images) == [0x0000] * len(images)
            until(left)
            assert worker.work_once()
            until(lambda: left() == [["measurements.dcm", "pacs"]])
        assert [d.Modality for d in old] == ["SEG"]
        assert [d.Modality for d in other] == ["SEG", "SR"]
        path.write_text(path.read_text().replace('model = "tissue"', 'model = "tissue"\nsend = ["sr"]'))
        alone = Rules.read(path)
        assert alone.rules[1].request().formats == ("dicom_sr", "measurements")
    with pacs(ports[0]) as new, pacs(ports[1]) as other, listening(everybody, service, backend, alone) as here:
        until(lambda: not left())
        assert [d.Modality for d in new] == ["SR"]
        assert call(here, images[:20], own="SCANNER2") == [0x0000] * 20
        until(left)
        assert worker.work_once()
        until(lambda: not left())
    assert [d.Modality for d in (*new[1:], *other)] == ["SR", "SR"]
    named = {i.ReferencedSOPInstanceUID for study in evidence_of(other[0]) for series in study for i in series.ReferencedSOPSequence}
    assert named == {image.SOPInstanceUID for image in images[:20]}, "the scan alone"


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
        for name in ("StudyInstanceUID", "SeriesInstanceUID"):
            unnamed = copy.deepcopy(images[0])
            setattr(unnamed, name, "")
            assert call(here, [unnamed]) == [0xC000], "nothing says with which images it belongs together"
        large = Dataset()
        large.update(images[1])
        large.file_meta = images[1].file_meta
        large.PixelData = bytes(2_000_000)
        assert call(here, [large]) in ([None], [0xA700]), "the association is ended while it comes"
        assert call(here, images[:4]) == [0x0000, 0x0000, 0x0000, 0xA700]
    full = settings.model_copy(update={"min_free_bytes": 2**60})
    with listening(full, service, backend, found) as here:
        assert call(here, images[:1]) == [0xA700]


def test_who_connects_and_leaves_takes_no_place(
    settings: Settings, service: Service, backend: Backend, images: list[Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a balancer's probes do: more of them than there may be associations hold nobody up."""
    monkeypatch.setattr(dimse, "SILENCE", 600)
    listener = Listener(settings, service, backend, rules(tmp_path))
    here = listener.start()
    try:
        for _ in range(40):
            socket.create_connection(("127.0.0.1", here)).close()
        until(lambda: listener.busy == 0)
        assert call(here, images[:1]) == [0x0000]
    finally:
        listener.stop()


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
        ("[[rules]]\nname = 'a'\nmodel = 'tissue'\nprompts = ['lungs']\nsend = ['rtstruct']", "'seg' or 'sr'"),
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

"""De-identification: nothing of the patient is left, and what tells one scan from another still does."""

from __future__ import annotations

import io
import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from typer.testing import CliRunner

from isocenter.cli import app
from isocenter.core.errors import InputError, UnsupportedError
from isocenter.core.settings import Limits
from isocenter.io import door
from isocenter.io.deidentify import Deidentifier, clean_words, key_of, shifted
from tests.dicom_study import ACCESSION, FIRST, NUMBER, write_dicom_study
from tests.io import dicom_files

KEY = bytes(range(32))
SECRETS = ["Liddell", "LIDDELL", "Alice", NUMBER, ACCESSION, "Dodgson", "Charles", "Christ", "Wonderland", "18520504", "Hare", "172Y", "WONDERLAND"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dicom_study(tmp_path_factory.mktemp("dicom") / "study", days=(0.0, 42.0), shape=(8, 24, 24))


def one(**changes: Any) -> bytes:
    return dicom_files.data_of(dicom_files.image(dicom_files.voxels()[0], **changes))


def clean(data: bytes, key: bytes = KEY, **options: Any) -> Dataset:
    return pydicom.dcmread(io.BytesIO(Deidentifier(key).clean(data, **options).data))


def test_nothing_of_the_patient_is_left(study: Path) -> None:
    for file in (study / "visit-1").iterdir():
        raw = file.read_bytes()
        assert all(secret.encode() in raw for secret in SECRETS), "the test's own scan says all of it"
        made = Deidentifier(KEY).clean(raw)
        for secret in SECRETS:
            assert secret.encode() not in made.data, secret
            assert secret not in made.name + made.series + made.pseudonym
        dataset = pydicom.dcmread(io.BytesIO(made.data))
        assert dataset.PatientID == str(dataset.PatientName) == made.pseudonym
        assert dataset.PatientIdentityRemoved == "YES"
        assert {c.CodeValue for c in dataset.DeidentificationMethodCodeSequence} == {"113100", "113105", "113107"}
        assert dataset.SeriesDescription == "ABDOMEN axial 5.0 mm"
        assert dataset.StudyDescription == "CT Thorax for"
        before = pydicom.dcmread(file)
        assert dataset.PixelData == before.PixelData
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID != before.SOPInstanceUID
        assert "SourceApplicationEntityTitle" not in dataset.file_meta
        assert not [e for e in dataset.iterall() if e.tag.is_private]


def test_the_scan_is_the_same_scan(study: Path, tmp_path: Path) -> None:
    ran = CliRunner().invoke(app, ["deidentify", str(study), str(tmp_path / "out"), "--key", str(tmp_path / "key"), "--json"])
    assert ran.exit_code == 0, ran.output
    told = json.loads(ran.stdout)
    assert told["written"] == 16
    assert "burned" in told["pixels"]
    (patient,) = told["patients"]
    folders = sorted((tmp_path / "out" / patient).iterdir())
    assert len(folders) == 2
    before = {door.read_path(study / f"visit-{k}", limits=Limits()).key for k in (1, 2)}
    assert {door.read_path(folder, limits=Limits()).key for folder in folders} == before
    assert (tmp_path / "key").stat().st_mode & 0o077 == 0
    again = CliRunner().invoke(app, ["deidentify", str(study), str(tmp_path / "again"), "--key", str(tmp_path / "key"), "--json"])
    assert again.exit_code == 0
    files = {p.relative_to(tmp_path / "out"): p.read_bytes() for p in (tmp_path / "out").rglob("*.dcm")}
    assert files == {p.relative_to(tmp_path / "again"): p.read_bytes() for p in (tmp_path / "again").rglob("*.dcm")}


def test_dates_move_together_and_references_still_hold(study: Path) -> None:
    cleaner = Deidentifier(KEY)
    visits = [
        [pydicom.dcmread(io.BytesIO(cleaner.clean(f.read_bytes()).data)) for f in sorted((study / v).iterdir())] for v in ("visit-1", "visit-2")
    ]
    days = [date.fromisoformat(f"{d[:4]}-{d[4:6]}-{d[6:]}") for d in (visits[0][0].StudyDate, visits[1][0].StudyDate)]
    assert (days[1] - days[0]).days == 42
    assert days[0] < FIRST
    first = visits[0][0]
    assert first.StudyDate == first.SeriesDate == first.AcquisitionDate == str(first.AcquisitionDateTime)[:8]
    assert str(first.AcquisitionDateTime).endswith("101112.500000+0100"), "times of day and zones stay"
    assert first.StudyTime == "101112.5"
    for files in visits:
        known = {d.SOPInstanceUID for d in files}
        assert all(d.SourceImageSequence[0].ReferencedSOPInstanceUID == files[0].SOPInstanceUID for d in files)
        assert len(known) == 8
        assert len({d.SeriesInstanceUID for d in files}) == len({d.FrameOfReferenceUID for d in files}) == 1
    assert first.SOPClassUID == "1.2.840.10008.5.1.4.1.1.2", "UIDs of the standard are nobody's"


def test_another_key_another_person(study: Path) -> None:
    data = (study / "visit-1" / "000.dcm").read_bytes()
    here, there = clean(data), clean(data, bytes(reversed(KEY)))
    assert here.PatientID != there.PatientID
    assert here.StudyInstanceUID != there.StudyInstanceUID


def test_two_patients_stay_two() -> None:
    a, b = (clean(one(PatientID=p)) for p in ("A-1", "B-2"))
    assert a.PatientID != b.PatientID
    # Without number and name, studies are told apart.
    c, d = (clean(one(PatientID="", PatientName="", StudyInstanceUID=u)) for u in ("1.2.3", "1.2.4"))
    assert c.PatientID != d.PatientID


def test_names_in_odd_places_are_found() -> None:
    inner = Dataset()
    inner.CodeValue, inner.CodingSchemeDesignator, inner.CodeMeaning = "1", "99X", "Scan of SECRET"
    inner.add_new(0x00091001, "LO", "SECRET-ID")
    data = one(ProcedureCodeSequence=Sequence([inner]), KVP="120", FilterType="Secret", ScanOptions="HELICAL")
    made = clean(data)
    assert "SECRET" not in str(made).upper()
    assert (made.FilterType, made.ScanOptions) == ("", "HELICAL")


def test_overlays_go_and_unknown_elements_too() -> None:
    dataset = dicom_files.image(dicom_files.voxels()[0])
    dataset.add_new(0x60003000, "OW", b"\0\1" * 8)
    dataset.add_new(0x60004000, "LT", "Secret")
    dataset.add_new(0x00200061, "UN", b"who knows")
    made = clean(dicom_files.data_of(dataset))
    assert all(tag not in made for tag in (0x60003000, 0x60004000, 0x00200061))


def test_what_cannot_be_cleaned_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="burned"):
        clean(one(BurnedInAnnotation="YES"))
    assert clean(one(BurnedInAnnotation="YES"), burned_in=True).BurnedInAnnotation == "YES"
    with pytest.raises(UnsupportedError, match="not an image"):
        clean(one(PixelData=None))
    with pytest.raises(InputError, match="32 bytes"):
        Deidentifier(b"short")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.dcm").write_bytes(one())
    (tmp_path / "in" / "b.dcm").write_bytes(one(PixelData=None))
    (tmp_path / "in" / "c.dcm").write_bytes(one()[:400])
    (tmp_path / "in" / "readme.txt").write_text("nothing")
    ran = CliRunner().invoke(app, ["deidentify", str(tmp_path / "in"), str(tmp_path / "out"), "--key", str(tmp_path / "key")])
    assert ran.exit_code == 8
    assert len(list((tmp_path / "out").rglob("*.dcm"))) == 1
    assert CliRunner().invoke(app, ["deidentify", str(tmp_path / "in"), str(tmp_path / "in" / "out")]).exit_code == 2
    assert CliRunner().invoke(app, ["deidentify", str(tmp_path / "none"), str(tmp_path / "out")]).exit_code == 3


@pytest.mark.parametrize("folder", ["totalsegmentator/example_ct_dicom", "dcm_qa_decubitus/In", "niivue/enh.dcm"])
def test_real_scans_are_read_the_same(data: Path, tmp_path: Path, folder: str) -> None:
    ran = CliRunner().invoke(app, ["deidentify", str(data / folder), str(tmp_path / "out"), "--key", str(tmp_path / "key"), "--json"])
    assert json.loads(ran.stdout)["written"] > 0
    before, after = door.read_path(data / folder, limits=Limits()), door.read_path(tmp_path / "out", limits=Limits())
    assert np.array_equal(before.array, after.array)
    assert before.grid.same_as(after.grid)


def test_dates_that_are_none() -> None:
    assert shifted("20240301", -1) == "20240229"
    assert shifted("20240301103000.5", -1) == "20240229103000.5"
    assert shifted("202403", -1) == shifted("someday", -1) == shifted("", -1) == shifted("20241345", -3) == ""
    days = {Deidentifier(KEY).days(f"patient {k}") for k in range(200)}
    assert max(days) < 0
    assert min(days) >= -1825
    assert len(days) > 150


def test_words_that_are_nobodys_name() -> None:
    assert clean_words("CT Abdomen^Smith 5.0 mm, 12345678 02.03.1970 (late)") == "CT Abdomen 5.0 mm late"


def test_a_key_is_made_once(tmp_path: Path) -> None:
    first = key_of(tmp_path / "key")
    assert len(first) == 32
    assert key_of(tmp_path / "key") == first

"""What a clinic takes from `isocenter track`: every format is read again by somebody else's program, and none names the patient unasked."""

from __future__ import annotations

import csv
import gzip
import importlib
import io
import json
import pkgutil
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.sr._concepts_dict import concepts
from typer.testing import CliRunner

import isocenter.io
from isocenter.analysis.case import Case, assemble
from isocenter.analysis.case_response import CRITERIA
from isocenter.analysis.report import fhir, formats, tables
from isocenter.analysis.report.told import Told
from isocenter.cli import app
from isocenter.core import terminology
from isocenter.core.errors import UsageError
from isocenter.core.segmentation import Code
from isocenter.core.settings import Settings
from isocenter.io import sr_response, visits
from isocenter.service import Service
from isocenter.trackservice import TrackOptions, told, track
from tests.dicom_study import ACCESSION, NAME, NUMBER, write_dicom_study

#: What must be nowhere unless it was asked for.
SECRETS = [NAME, NAME.split("^")[0], NUMBER, ACCESSION, "Dodgson", "Christ Church", "Wonderland", "18520504", "1852-05-04"]
#: What shows the words of a PDF, and what it says of itself.
PDF_TOOLS: tuple[tuple[str, tuple[str, ...]], ...] = (("pdftotext", ("-",)), ("pdfinfo", ()))
VISITS = ("visit-1", "visit-2", "visit-3")


@pytest.fixture(scope="module")
def service(home: Path) -> Iterator[Service]:
    made = Service(Settings(home=home))
    yield made
    made.close()


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dicom_study(tmp_path_factory.mktemp("dicom") / "study")


@pytest.fixture(scope="module")
def done(study: Path, service: Service, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Case]:
    out = tmp_path_factory.mktemp("out")
    return out, track(service, study, out, options=TrackOptions(registration=None, formats=("all",)))


def ready(service: Service, study: Path, done: tuple[Path, Case], **options: Any) -> Told:
    return told(service, visits.read(study, service.settings), done[1], done[0], options=TrackOptions(registration=None, **options))


def groups(path: Path) -> tuple[Any, Any]:
    """A report as highdicom reads it: the dataset and its content."""
    dataset = highdicom.sr.Comprehensive3DSR.from_dataset(pydicom.dcmread(path))
    return dataset, highdicom.sr.MeasurementReport.from_sequence([dataset])


def test_every_format_writes_its_files(done: tuple[Path, Case]) -> None:
    files = {p.relative_to(done[0]).as_posix() for p in done[0].rglob("*") if p.is_file() and "processed" not in p.parts}
    dicom = {f"dicom/{v}_{kind}.dcm" for v in VISITS for kind in ("seg", "sr")}
    assert files == {"case.json", "measurements.csv", "response.csv", "report.html", "report.pdf", "fhir.json"} | dicom


def test_nobody_is_named_unasked(done: tuple[Path, Case]) -> None:
    for file in (p for p in done[0].rglob("*") if p.is_file()):
        data = file.read_bytes()
        if file.suffix == ".dcm":
            data = str(pydicom.dcmread(file)).encode() + data
        if file.suffix == ".pdf":
            continue  # its streams are compressed; the words are those of the page
        for secret in SECRETS:
            assert secret.encode() not in data, f"{file.name} says {secret}"


#: Codes that pydicom's dictionaries (PS3.16, 2024) have not, with the place where each was looked up.
ELSEWHERE = {
    # HL7/fhir-mCODE-ig, TumorSize.fsh
    ("LN", "21889-1"): "Size Tumor",
    ("LN", "33728-7"): "Size.maximum dimension in Tumor",
    ("LN", "33729-5"): "Size additional dimension in Tumor",
    # medizininformatik-initiative/kerndatensatz-bildgebung, Valueset-Observation-Recist-Coding.fsh
    ("RADLEX", "RID11511"): "complete imaging response",
    ("RADLEX", "RID11513"): "partial response",
    ("RADLEX", "RID11514"): "stable disease",
    ("RADLEX", "RID11515"): "progressive disease",
    # HL7/fhir-mCODE-ig: value set of the sites of Wilms tumours, and specimens of lungs in HL7's guides ("... structure")
    ("SCT", "18639004"): "Left kidney",
    ("SCT", "9846003"): "Right kidney",
    ("SCT", "44029006"): "Left lung",
    ("SCT", "3341006"): "Right lung",
    # JP Core of HL7 Japan, by LOINC's own name; PS3.16 calls it "Diagnostic Imaging Report"
    ("LN", "18748-4"): "Diagnostic imaging study",
    # highdicom's templates, which write these by themselves
    ("NCIt", "C67447"): "Activity Session",
    ("UMLS", "C2348792"): "Time Point",
    ("SCT", "260753009"): "Source",
    ("RFC5646", "en-US"): "English (United States)",
    ("UCUM", "{-1:1}"): "{-1:1}",
    ("UCUM", "{pixels}"): "Pixels",
    # FHIR R4's own: terminologies.html, v2 table 0074
    ("http://terminology.hl7.org/CodeSystem/observation-category", "imaging"): "",
    ("http://terminology.hl7.org/CodeSystem/v2-0074", "RAD"): "Radiology",
}


def known(scheme: str, value: str, meaning: str) -> bool:
    """Whether a code is published with this meaning."""
    if scheme in {sr_response.OWN, "urn:isocenter:code"}:
        return bool(meaning)
    if (scheme, value) in ELSEWHERE:
        return ELSEWHERE[scheme, value] == meaning
    said = [entry[value][0] for entry in concepts.get(scheme, {}).values() if value in entry]
    return bool(said) and (scheme == "UCUM" or meaning.lower() in {words.lower() for words in said})


def coded_in_dicom(dataset: Any) -> Iterator[tuple[str, str, str]]:
    if "CodeValue" in dataset:
        yield dataset.CodingSchemeDesignator, dataset.CodeValue, dataset.CodeMeaning
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield from coded_in_dicom(item)


def coded_in_fhir(node: Any) -> Iterator[tuple[str, str, str | None]]:
    if isinstance(node, dict):
        if "system" in node and "code" in node:
            yield node["system"], node["code"], node.get("display")
        for value in node.values():
            yield from coded_in_fhir(value)
    elif isinstance(node, list):
        for value in node:
            yield from coded_in_fhir(value)


def test_every_code_is_a_published_one(done: tuple[Path, Case]) -> None:
    """None from memory: what is written, and what might be for other organs, modalities and responses."""
    schemes = {"http://snomed.info/sct": "SCT", "http://loinc.org": "LN", "http://radlex.org": "RADLEX", "http://unitsofmeasure.org": "UCUM"}
    schemes["http://dicom.nlm.nih.gov/resources/ontology/DCM"] = "DCM"
    found = {code for file in (done[0] / "dicom").iterdir() for code in coded_in_dicom(pydicom.dcmread(file))}
    assert len(found) > 30
    plain = set(coded_in_fhir(json.loads((done[0] / "fhir.json").read_text())))
    assert len(plain) > 10
    # A modality's code stands without its meaning, which DICOM has longer ("Computed Tomography").
    found |= {(schemes.get(system, system), value, words or "") for system, value, words in plain if words or system not in schemes}
    assert {value for system, value, words in plain if not words and schemes.get(system) == "DCM"} == {"CT"}
    found |= {("UCUM", value, "") for system, value, _ in plain if schemes.get(system) == "UCUM"}
    labels = [terminology.label(name) for name in terminology.NAMES]
    tables = [code for label in labels for code in (label.type, label.category) if code]
    modules = [importlib.import_module(f"isocenter.io.{m.name}") for m in pkgutil.iter_modules(isocenter.io.__path__) if m.name.startswith("sr")]
    for value in (v for module in (terminology, fhir, *modules) for v in vars(module).values()):
        tables += [code for code in (value.values() if isinstance(value, dict) else [value]) if isinstance(code, Code)]
    assert len(tables) > 60
    found |= {(code.scheme, code.value, code.meaning) for code in tables}
    assert not {code for code in found if not known(*code)}


def test_a_report_holds_the_measurements(done: tuple[Path, Case]) -> None:
    case = done[1]
    for name in VISITS:
        dataset, content = groups(done[0] / "dicom" / f"{name}_sr.dcm")
        segmentation = pydicom.dcmread(done[0] / "dicom" / f"{name}_seg.dcm")
        assert dataset.PatientID == "alice"
        by_track = {lesion.track: lesion for lesion in case.at(name)}
        space = content.get_volumetric_roi_measurement_groups()
        assert {g.tracking_identifier for g in space} == set(by_track)
        for group in space:
            lesion = by_track[group.tracking_identifier]
            (volume,) = group.get_measurements(name=pydicom.sr.codedict.codes.SCT.Volume)
            assert volume.value == pytest.approx(lesion.volume_mm3, abs=1e-3)
            assert volume.unit.value == "mm3"
            assert group.finding_sites[0].value.value == "10200004"
            assert group.referenced_segment.referenced_sop_instance_uid == segmentation.SOPInstanceUID
        plane = {g.tracking_identifier: g for g in content.get_image_measurement_groups()}
        for identifier, lesion in by_track.items():
            (long,) = plane[identifier].get_measurements(name=pydicom.sr.codedict.codes.SCT.LongAxis)
            (short,) = plane[identifier].get_measurements(name=pydicom.sr.codedict.codes.SCT.ShortAxis)
            assert (long.value, short.value) == pytest.approx((lesion.longest_mm, lesion.short_axis_mm), abs=1e-3)
        response = plane["RECIST 1.1"]
        said = {e.name.value: e.value.value for e in response.get_qualitative_evaluations()}
        known = next(
            (r for r in case.responses["recist_1.1"] if r.day == next(v.timepoint.day for v in case.visits if v.timepoint.timepoint_id == name)), None
        )
        assert said.get("112048") == ({"SD": "RID11514", "PR": "RID11513", "PD": "RID11515"}[str(known.category)] if known else None)


@pytest.fixture(scope="module")
def judged(done: tuple[Path, Case], service: Service, study: Path) -> Told:
    """The same lesions judged by every criterion, with a partial response that nobody saw again."""
    case = done[1]
    shrunk = tuple(v if v.timepoint.timepoint_id != "visit-3" else replace(v, found=(v.found or ())[1:]) for v in case.visits)
    again = assemble(case.patient, shrunk, criteria=tuple(CRITERIA), growing=False)
    assert (str(again.best_overall), str(again.best_seen)) == ("SD", "PR")
    return replace(ready(service, study, done), case=again)


def test_every_criterion_and_both_best_responses_are_in_the_reports(judged: Told, tmp_path: Path) -> None:
    files = dict(formats.FORMATS["sr"].write(judged))
    path = tmp_path / "sr.dcm"
    path.write_bytes(files["dicom/visit-3_sr.dcm"])
    _, content = groups(path)
    by_name = {g.tracking_identifier: g for g in content.get_image_measurement_groups()}
    assert {"RECIST 1.1", "iRECIST", "mRECIST", "RANO", "volumetric response"} <= set(by_name)
    assert by_name["RANO"].method.value == "C114879"
    recist = by_name["RECIST 1.1"]
    said = {e.name.value: e.value.value for e in recist.get_qualitative_evaluations()}
    assert said == {"112048": "RID11513", "112049": "RID11514", "best-overall-unconfirmed": "RID11513"}
    figures = {m.name.value: m.value for m in recist.get_measurements()}
    response, chances, sd = judged.case.responses["recist_1.1"][-1], judged.case.chances[-1], judged.case.sums_sd_mm[-1]
    assert figures["sum-of-diameters"] == pytest.approx(response.sum, abs=1e-3)
    assert figures["sum-sd"] == pytest.approx(sd, abs=1e-3)
    for category, chance in chances.items():
        assert figures[f"probability-{str(category).lower()}"] == pytest.approx(100 * chance)
    words = [
        item.TextValue for item in recist[0].ContentSequence if item.ValueType == "TEXT" and item.ConceptNameCodeSequence[0].CodeValue == "121106"
    ]
    assert words[:-1] == list(response.reasons)
    assert words[-1].startswith("best overall response PR, confirmed SD")
    irecist = {e.name.value: e.value.value for e in by_name["iRECIST"].get_qualitative_evaluations()}
    assert irecist == {"112048": str(judged.case.irecist[-1].category)}
    if shutil.which("dciodvfy"):
        ran = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
        assert "Error" not in ran.stderr, ran.stderr
    if shutil.which("dsrdump"):
        ran = subprocess.run(["dsrdump", "+Pc", str(path)], capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        assert "without confirmation" in ran.stdout
    coded = set(coded_in_dicom(pydicom.dcmread(path)))
    assert not {code for code in coded if not known(*code)}
    assert all(len(meaning) <= 64 for _, _, meaning in coded)


def test_every_criterion_and_both_best_responses_are_in_fhir(judged: Told) -> None:
    from fhir.resources.R4B.bundle import Bundle

    plain = fhir.bundle(judged)
    Bundle.model_validate(plain)
    seen = [e["resource"] for e in plain["entry"] if e["resource"]["resourceType"] == "Observation"]
    best = {o["code"]["coding"][0]["code"]: o for o in seen if "best" in o["code"]["text"]}
    assert best["112049"]["valueCodeableConcept"]["coding"][0]["code"] == "RID11514"
    assert best["112049"]["note"][0]["text"].startswith("best overall response PR, confirmed SD")
    assert best["best-overall-unconfirmed"]["valueCodeableConcept"]["coding"][0]["code"] == "RID11513"
    (report,) = (e["resource"] for e in plain["entry"] if e["resource"]["resourceType"] == "DiagnosticReport")
    assert [c["coding"][0]["code"] for c in report["conclusionCode"]] == ["RID11514", "RID11513"]
    visits = [o for o in seen if o["code"]["coding"][0]["code"] == "112048"]
    assert {o["method"]["text"] for o in visits} == {"RECIST 1.1", "iRECIST", "mRECIST", "RANO", "volumetric response"}
    assert len(visits) == 10
    parts = {c["code"]["coding"][0]["code"]: c["valueQuantity"] for c in visits[0]["component"]}
    chances = judged.case.chances[0]
    assert {c: parts[f"probability-{str(c).lower()}"]["value"] for c in chances} == pytest.approx({c: 100 * p for c, p in chances.items()})
    assert parts["sum-sd"]["unit"] == "mm"


def test_what_a_reader_could_not_assess_has_no_figures_and_says_so(done: tuple[Path, Case], service: Service, study: Path) -> None:
    case = done[1]
    blind = assemble(case.patient, case.visits, growing=False, inevaluable=(("visit-2", ("visit-1", "lesion-1")),))
    hidden = replace(ready(service, study, done), case=blind)
    (lesion,) = (k for k in (*blind.lesions, *blind.unseen) if not k.evaluable)
    seen = [e["resource"] for e in fhir.bundle(hidden)["entry"] if e["resource"]["resourceType"] == "Observation"]
    (told,) = (o for o in seen if any("dataAbsentReason" in part for part in o.get("component", ())))
    assert {i["value"] for i in told["identifier"]} >= {lesion.track}
    assert all("not evaluable" in part["dataAbsentReason"]["text"] for part in told["component"])
    row = next(r for r in csv.DictReader(io.StringIO(tables.measurements(hidden))) if r["evaluable"] == "false")
    assert (row["timepoint_id"], row["longest_mm"], row["volume_mm3"]) == ("visit-2", "", "")
    files = dict(formats.FORMATS["sr"].write(hidden))
    assert highdicom.sr.Comprehensive3DSR.from_dataset(pydicom.dcmread(io.BytesIO(files["dicom/visit-2_sr.dcm"])))
    assert "not evaluable" in dict(formats.FORMATS["html"].write(hidden))["report.html"].decode()


def test_the_table_of_responses_has_every_criterion(judged: Told) -> None:
    rows = list(csv.DictReader(io.StringIO(tables.responses(judged))))
    visits = [row for row in rows if row["assessment"] == "visit"]
    assert [r["criterion"] for r in visits] == [c for c in ("RECIST 1.1", "volumetric response", "mRECIST", "RANO", "iRECIST") for _ in range(2)]
    assert [r["category"] for r in visits[:2]] == [str(r.category) for r in judged.case.responses["recist_1.1"]]
    for row, chances, sd in zip(visits[:2], judged.case.chances, judged.case.sums_sd_mm, strict=True):
        said = {name.removeprefix("probability_"): float(row[name]) for name in row if name.startswith("probability_")}
        assert sum(said.values()) == pytest.approx(1)
        assert {c: p for c, p in said.items() if p} == pytest.approx({str(c): p for c, p in chances.items()}, rel=1e-4)
        assert float(row["sum_sd"]) == pytest.approx(sd, rel=1e-4)
    assert [(r["assessment"], r["category"]) for r in rows[-2:]] == [
        ("best overall response, confirmed", "SD"),
        ("best overall response, without confirmation", "PR"),
    ]
    assert rows[-2]["reasons"].startswith("best overall response PR, confirmed SD")


def test_a_caliper_is_as_long_as_its_figure(done: tuple[Path, Case], study: Path) -> None:
    """The line that a viewer draws on the slice that the report names, in that slice's own pixels, has the length in mm."""
    sources = {str(d.SOPInstanceUID): d for d in (pydicom.dcmread(f, stop_before_pixels=True) for f in (study / "visit-1").iterdir())}
    _, content = groups(done[0] / "dicom" / "visit-1_sr.dcm")
    lines = 0
    for group in content.get_image_measurement_groups():
        for measurement in group.get_measurements():
            if measurement.unit.value != "mm" or not (coordinates := measurement.referenced_coordinates):
                continue
            (row, column) = (
                float(v) for v in sources[str(coordinates[0].ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID)].PixelSpacing
            )
            a, b = np.array(coordinates[0].GraphicData).reshape(2, 2)
            assert np.hypot((a[0] - b[0]) * column, (a[1] - b[1]) * row) == pytest.approx(measurement.value, abs=0.01)
            lines += 1
    assert lines == 4


def test_a_caliper_lies_on_its_lesion(done: tuple[Path, Case]) -> None:
    """Middle of the long axis of each lesion, through the slice's own geometry, against the lesion's centre in the patient."""
    segmentation = highdicom.seg.Segmentation.from_dataset(pydicom.dcmread(done[0] / "dicom" / "visit-2_seg.dcm"))
    whole = segmentation.get_volume(combine_segments=True, allow_missing_positions=True)
    for number, lesion in enumerate(done[1].at("visit-2"), start=1):
        index = np.argwhere(whole.array == number)
        centre = (whole.affine @ np.append(index.mean(axis=0), 1))[:3]
        assert centre == pytest.approx(lesion.centroid_lps_mm, abs=1e-3)
        description = segmentation.SegmentSequence[number - 1]
        assert description.TrackingID == lesion.track
        assert description.AnatomicRegionSequence[0].CodeMeaning == "Liver"


def test_a_lesion_is_one_over_all_visits(done: tuple[Path, Case]) -> None:
    uids = []
    for name in VISITS:
        segmentation = pydicom.dcmread(done[0] / "dicom" / f"{name}_seg.dcm")
        uids.append({s.TrackingID: s.TrackingUID for s in segmentation.SegmentSequence})
    assert uids[0] == uids[1] == uids[2]
    assert len(set(uids[0].values())) == 2


def test_a_name_that_a_reader_gave_is_in_every_object(done: tuple[Path, Case], service: Service, study: Path) -> None:
    named = replace(ready(service, study, done), case=replace(done[1], names={"L1": "dome of the liver"}))
    files = dict(formats.FORMATS["sr"].write(named))
    for name in VISITS:
        segmentation = pydicom.dcmread(io.BytesIO(files[f"dicom/{name}_seg.dcm"]))
        assert [s.TrackingID for s in segmentation.SegmentSequence] == ["L1 (dome of the liver)", "L2"]
        assert segmentation.SegmentSequence[0].SegmentLabel.startswith("L1 (dome of the liver)")
        assert b"L1 (dome of the liver)" in files[f"dicom/{name}_sr.dcm"]
    assert "L1 (dome of the liver)" in json.dumps(fhir.bundle(named))


@pytest.mark.skipif(shutil.which("dsrdump") is None, reason="needs dsrdump (dcmtk)")
def test_dcmtk_reads_the_reports(done: tuple[Path, Case]) -> None:
    for name in VISITS:
        ran = subprocess.run(["dsrdump", "+Pc", str(done[0] / "dicom" / f"{name}_sr.dcm")], capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        # Of UTF-8 it says that its check of values does not know it, which is a warning.
        assert not [line for line in ran.stderr.splitlines() if not line.startswith("W: The VR checker")]
        assert "Comprehensive 3D SR Document" in ran.stdout
        assert "Long axis" in ran.stdout


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs dciodvfy (dicom3tools)")
def test_the_objects_are_what_the_standard_wants(done: tuple[Path, Case]) -> None:
    for file in sorted((done[0] / "dicom").iterdir()):
        ran = subprocess.run(["dciodvfy", str(file)], capture_output=True, text=True, check=False)
        assert "Error" not in ran.stderr, ran.stderr
        assert ("Comprehensive3DSR" if "_sr" in file.name else "Segmentation") in ran.stderr.splitlines(), "it knew what it looked at"


def test_the_bundle_is_fhir(done: tuple[Path, Case]) -> None:
    from fhir.resources.R4B.bundle import Bundle

    text = (done[0] / "fhir.json").read_text()
    bundle = Bundle.model_validate_json(text)
    assert bundle.type == "transaction"
    plain = json.loads(text)
    resources = {entry["fullUrl"]: entry["resource"] for entry in plain["entry"]}
    kinds = [r["resourceType"] for r in resources.values()]
    # Two visits after the baseline, by RECIST and by volume, and the best overall response with confirmation and without.
    assert kinds.count("Observation") == len(done[1].lesions) + 2 * 2 + 2
    assert kinds.count("ImagingStudy") == 3
    (report,) = (r for r in resources.values() if r["resourceType"] == "DiagnosticReport")
    assert len(report["result"]) == kinds.count("Observation")

    def references(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            if isinstance(node.get("reference"), str):
                yield node["reference"]
            for value in node.values():
                yield from references(value)
        elif isinstance(node, list):
            for value in node:
                yield from references(value)

    assert set(references(plain)) <= set(resources), "every reference leads to an entry of the bundle"
    sizes = [r for r in resources.values() if r.get("code", {}).get("coding", [{}])[0].get("code") == "21889-1"]
    longest = sorted(c["valueQuantity"]["value"] for r in sizes for c in r["component"] if c["code"]["coding"][0]["code"] == "33728-7")
    assert longest == pytest.approx(sorted(lesion.longest_mm or 0 for lesion in done[1].lesions), abs=1e-3)
    assert {c["valueQuantity"]["code"] for r in sizes for c in r["component"]} == {"mm", "mm3", "[hnsf'U]"}


def test_the_pdf_says_what_the_page_says(done: tuple[Path, Case], service: Service, study: Path) -> None:
    data = (done[0] / "report.pdf").read_bytes()
    assert data.startswith(b"%PDF-")
    assert data.count(b"/Type /Page\n") + data.count(b"/Type /Page ") >= 2
    again = formats.one_file(ready(service, study, done), "pdf")
    assert again.data == data, "the same case gives the same file"
    if shutil.which("pdftotext"):
        words = subprocess.run(["pdftotext", "-layout", str(done[0] / "report.pdf"), "-"], capture_output=True, text=True, check=True).stdout
        assert "Research use only" in words
        for lesion in done[1].lesions:
            assert f"{lesion.longest_mm:.1f}" in words
        assert not any(secret in words for secret in SECRETS)
        heads = {"Summary", "Response by RECIST 1.1", "Lesions", "Growth, forecast and what-if", "Notes and provenance"}
        said = [line.strip() for line in words.splitlines()]
        assert heads <= {line.strip("\f") for line in said}
        for page in words.split("\f"):
            lines = [line.strip() for line in page.splitlines() if line.strip() and "research use only, not a medical device" not in line]
            assert not lines or lines[-1] not in heads, "a heading stays with what follows"
        assert "Treatment: chemotherapy, day " in words


def test_scans_without_the_patient_keep_their_intervals_in_every_output(service: Service, study: Path, tmp_path: Path) -> None:
    """From the archive's files to reports: neither who it was nor when is in any of them, and the days between are what they were."""
    scans, clean = tmp_path / "scans", tmp_path / "clean"
    for name in VISITS:
        shutil.copytree(study / name, scans / name)
    ran = CliRunner().invoke(app, ["deidentify", str(scans), str(clean), "--key", str(tmp_path / "key")])
    assert ran.exit_code == 0, ran.output
    folders = {str(pydicom.dcmread(next(f.iterdir()), stop_before_pixels=True).StudyDate): f for f in clean.glob("*/*")}
    facts = json.loads((study / "study.json").read_text())
    true = [date.fromisoformat(visit["date"]) for visit in facts["visits"]]
    for visit, (when, folder) in zip(facts["visits"], sorted(folders.items()), strict=True):
        shutil.copy(study / visit["mask"], clean)
        visit |= {"image": str(folder.relative_to(clean)), "date": f"{when[:4]}-{when[4:6]}-{when[6:]}"}
    (clean / "study.json").write_text(json.dumps(facts | {"patient_id": "P-1"}))
    out = tmp_path / "out"
    track(service, clean, out, options=TrackOptions(registration=None, preprocessed=False, formats=("all",)))

    told = [date.fromisoformat(visit["date"]) for visit in facts["visits"]]
    assert [b - a for a, b in pairwise(told)] == [b - a for a, b in pairwise(true)]
    assert not set(told) & set(true)
    case = json.loads((out / "case.json").read_text())
    assert [t["scan_date"] for t in case["timepoints"]] == [d.isoformat() for d in told]
    for name, day in zip(VISITS, told, strict=True):
        assert {str(pydicom.dcmread(out / "dicom" / f"{name}_{kind}.dcm").StudyDate) for kind in ("seg", "sr")} == {day.strftime("%Y%m%d")}
    bundle = json.loads((out / "fhir.json").read_text())
    dated = {r["resource"]["effectiveDateTime"] for r in bundle["entry"] if "effectiveDateTime" in r["resource"]}
    assert dated == {d.isoformat() for d in told}
    assert {row["day"] for row in csv.DictReader(io.StringIO((out / "response.csv").read_text()))} == {"42", "126", ""}
    known = [f"{d:{form}}".encode() for d in true for form in ("%Y%m%d", "%Y-%m-%d")] + [secret.encode() for secret in SECRETS]
    for file in (p for p in out.rglob("*") if p.is_file()):
        data = file.read_bytes()
        if file.name.endswith(".gz"):
            data = gzip.decompress(data)
        if file.suffix == ".pdf" and shutil.which("pdftotext"):
            words = [subprocess.run([tool, str(file), *more], capture_output=True, check=True).stdout for tool, more in PDF_TOOLS]
            assert told[0].isoformat().encode() in words[0]
            data += b"".join(words)
        assert not [secret for secret in known if secret in data or secret.decode() in str(file.relative_to(out))], file.name


def test_one_file_of_several_is_an_archive(done: tuple[Path, Case], service: Service, study: Path) -> None:
    made = formats.one_file(ready(service, study, done), "sr")
    assert (made.name, made.media_type) == ("sr.zip", "application/zip")
    with zipfile.ZipFile(io.BytesIO(made.data)) as archive:
        assert sorted(archive.namelist()) == sorted(f"{v}_{kind}.dcm" for v in VISITS for kind in ("seg", "sr"))
    page = formats.one_file(ready(service, study, done), "html")
    assert (page.name, page.media_type) == ("report.html", "text/html")


def test_who_asks_gets_the_patient(done: tuple[Path, Case], service: Service, study: Path) -> None:
    asked = ready(service, study, done, identity=True)
    for name in ("json", "html", "fhir"):
        text = formats.one_file(asked, name).data.decode()
        assert "Liddell" in text, name
        assert NUMBER in text, name
        assert "1852-05-04" in text, name
    with zipfile.ZipFile(io.BytesIO(formats.one_file(asked, "sr").data)) as archive:
        for file in archive.namelist():
            dataset = pydicom.dcmread(io.BytesIO(archive.read(file)))
            assert (dataset.PatientID, str(dataset.PatientName), dataset.AccessionNumber) == (NUMBER, NAME, ACCESSION)
    from fhir.resources.R4B.bundle import Bundle

    Bundle.model_validate_json(formats.one_file(asked, "fhir").data)


def test_a_scan_that_is_no_dicom_has_no_dicom_objects(service: Service, tmp_path: Path) -> None:
    from isocenter.demo.patient import write_study

    write_study(tmp_path / "study", shape=(32, 48, 48), masks=True)
    told_json = json.loads((tmp_path / "study" / "study.json").read_text())
    del told_json["visits"][1:]
    (tmp_path / "study" / "study.json").write_text(json.dumps(told_json))
    with pytest.raises(UsageError, match="no visit has any"):
        track(service, tmp_path / "study", tmp_path / "out", options=TrackOptions(registration=None, formats=("sr",)))
    with pytest.raises(UsageError, match="no scan says who the patient is"):
        track(service, tmp_path / "study", tmp_path / "out", options=TrackOptions(registration=None, identity=True))


def test_visits_without_a_lesion_are_told_in_every_format(service: Service, tmp_path: Path) -> None:
    """An empty mask is an answer: nothing is there. It is no missing scan, and no error."""
    import nibabel as nib

    from isocenter.demo.patient import write_study

    write_study(tmp_path / "study", shape=(32, 48, 48), masks=True)
    facts = json.loads((tmp_path / "study" / "study.json").read_text())
    del facts["visits"][3:]
    for visit in facts["visits"][1:]:
        file = tmp_path / "study" / visit["mask"]
        mask = nib.load(file)
        nib.save(nib.Nifti1Image(np.zeros(mask.shape, np.uint8), mask.affine), file)
    (tmp_path / "study" / "study.json").write_text(json.dumps(facts))
    names = ("json", "csv", "html", "pdf", "fhir")
    case = track(service, tmp_path / "study", tmp_path / "out", options=TrackOptions(registration=None, formats=names))
    assert [len(v.found or ()) for v in case.visits] == [2, 0, 0]
    assert [str(r.category) for r in case.responses["recist_1.1"]] == ["CR", "CR"]
    assert (tmp_path / "out" / "report.pdf").is_file()
    for visit in facts["visits"][:1]:
        (tmp_path / "study" / visit["mask"]).write_bytes((tmp_path / "study" / facts["visits"][1]["mask"]).read_bytes())
    none = track(service, tmp_path / "study", tmp_path / "none", options=TrackOptions(registration=None, formats=names))
    assert not none.lesions
    assert "no lesion" in (tmp_path / "none" / "report.html").read_text().lower()


def test_an_unknown_format_stops_before_any_work(study: Path, tmp_path: Path) -> None:
    ran = CliRunner().invoke(app, ["track", str(study), "-o", str(tmp_path / "out"), "--format", "docx"])
    assert ran.exit_code == 2
    assert not (tmp_path / "out").exists()

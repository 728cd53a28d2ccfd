"""A case as a FHIR R4 bundle (HL7 4.0.1): a DiagnosticReport, an Observation for every lesion at every visit and for every response.

The bundle is a transaction: posted to a server's base address it is taken as a whole or not at all. Sizes are coded as mCODE
codes them (LOINC), volumes and body sites by SNOMED CT, response by RadLex; units are UCUM's. What no published code says
has one of our own, or words alone. Everything is "preliminary": nobody has read it yet.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

from isocenter.analysis.case import MeasuredVisit
from isocenter.analysis.report.judged import Best, Judgement, best, judgements
from isocenter.analysis.report.told import Told
from isocenter.core import terminology
from isocenter.core.patient import Lesion, Timepoint
from isocenter.core.provenance import RESEARCH_USE
from isocenter.core.segmentation import Code
from isocenter.io import sr_response, uids

Resource = dict[str, Any]
#: Coding schemes as DICOM names them, and FHIR's addresses of the same.
_SYSTEMS = {
    "SCT": "http://snomed.info/sct",
    "LN": "http://loinc.org",
    "DCM": "http://dicom.nlm.nih.gov/resources/ontology/DCM",
    "RADLEX": "http://radlex.org",
    "NCIt": "http://ncicb.nci.nih.gov/xml/owl/EVS/Thesaurus.owl",
    sr_response.OWN: "urn:isocenter:code",
}
_UCUM = "http://unitsofmeasure.org"
#: Where identifiers come from that this program makes: pseudonyms, and names of lesions.
PSEUDONYMS, TRACKS = "urn:isocenter:pseudonym", "urn:isocenter:track"
_SIZE = Code("21889-1", "LN", "Size Tumor")
_LONGEST = Code("33728-7", "LN", "Size.maximum dimension in Tumor")
_SHORT = Code("33729-5", "LN", "Size additional dimension in Tumor")
_VOLUME = Code("118565006", "SCT", "Volume")
_ATTENUATION = Code("112031", "DCM", "Attenuation Coefficient")
_REPORT = Code("18748-4", "LN", "Diagnostic imaging study")
_SEXES = {"M": "male", "F": "female", "O": "other"}
_LIMITS_SD = 1.96


def bundle(told: Told) -> Resource:
    """The bundle, as JSON takes it. Patient fields are in it where `told.identity` has them; else the pseudonym alone."""
    return _Writer(told).bundle()


class _Writer:
    """Resources in the order in which they refer to each other; ids are derived, so that the same case gives the same bundle."""

    def __init__(self, told: Told) -> None:
        self._told, self._case = told, told.case
        self._entries: list[Resource] = []

    def bundle(self) -> Resource:
        patient = self._add("patient", self._patient())
        device = self._add("device", self._device())
        scans = {v.timepoint.timepoint_id: self._scan(v, patient) for v in self._case.visits}
        results = []
        for visit in self._case.visits:
            study = scans[visit.timepoint.timepoint_id]
            missing = [lesion for lesion in self._case.unseen if lesion.timepoint_id == visit.timepoint.timepoint_id]
            for lesion in (*self._case.at(visit.timepoint.timepoint_id), *missing):
                results.append(
                    self._add(
                        f"{lesion.timepoint_id}/{lesion.lesion_id or lesion.track}", self._lesion(lesion, visit.timepoint, patient, device, study)
                    )
                )
            for one in judgements(self._case):
                if one.day == visit.timepoint.day:
                    name = f"response {visit.timepoint.timepoint_id} {one.criterion}"
                    results.append(self._add(name, self._response(one, visit.timepoint, patient, device, study)))
        for overall in best(self._case):
            results.append(self._add(overall.words, self._best(overall, patient, device)))
        studies = [study for study in scans.values() if study is not None]
        self._add("report", self._report(patient, results, studies))
        return {"resourceType": "Bundle", "type": "transaction", "entry": self._entries}

    def _add(self, name: str, resource: Resource) -> Resource:
        """Add an entry; returns a reference to it."""
        address = uuid.uuid5(uuid.NAMESPACE_URL, f"urn:isocenter:{self._case.patient.patient_id}:{name}").urn
        request = {"method": "POST", "url": resource["resourceType"]}
        if name == "patient":
            identifier = resource["identifier"][0]
            # The patient is the one whom the server has already, if it has.
            request["ifNoneExist"] = f"identifier={identifier['system']}|{identifier['value']}"
        self._entries.append({"fullUrl": address, "resource": resource, "request": request})
        return {"reference": address}

    # What it is about

    def _patient(self) -> Resource:
        patient: Resource = {"resourceType": "Patient", "identifier": [{"system": PSEUDONYMS, "value": self._case.patient.patient_id}]}
        who = self._told.identity
        if who is not None:
            if who.patient_id:
                patient["identifier"].append({"use": "usual", "value": who.patient_id})
            if who.name:
                patient["name"] = [{"text": who.name}]
            if who.birth_date:
                patient["birthDate"] = who.birth_date.isoformat()
            if who.sex in _SEXES:
                patient["gender"] = _SEXES[who.sex]
        return patient

    def _device(self) -> Resource:
        name = {"name": "Isocenter", "type": "model-name"}
        return {"resourceType": "Device", "deviceName": [name], "version": [{"value": self._told.version}], "note": [{"text": RESEARCH_USE}]}

    def _scan(self, visit: MeasuredVisit, patient: Resource) -> Resource | None:
        """The visit's ImagingStudy, None where its scan did not come as DICOM."""
        scan = self._told.scan(visit.timepoint.timepoint_id) if visit.found is not None else None
        uid = uids.study_uid(scan.volume) if scan else None
        if scan is None or uid is None:
            return None
        study: Resource = {
            "resourceType": "ImagingStudy",
            "identifier": [{"system": "urn:dicom:uid", "value": f"urn:oid:{uid}"}],
            "status": "available",
            "subject": patient,
        }
        if visit.timepoint.scan_date:
            study["started"] = visit.timepoint.scan_date.isoformat()
        source = scan.volume.source
        if source.series_uid and scan.volume.modality:
            modality = {"system": _SYSTEMS["DCM"], "code": scan.volume.modality}
            study["series"] = [{"uid": source.series_uid, "modality": modality, "numberOfInstances": len(source.headers)}]
        return self._add(f"scan {visit.timepoint.timepoint_id}", study)

    # What was found

    def _observation(self, code: Code, point: Timepoint | None, patient: Resource, device: Resource, study: Resource | None) -> Resource:
        made: Resource = {
            "resourceType": "Observation",
            "status": "preliminary",
            "category": [{"coding": [{"system": "http://terminology.hl7.org/CodeSystem/observation-category", "code": "imaging"}]}],
            "code": _concept(code),
            "subject": patient,
            "device": device,
        }
        if point is not None:
            made["note"] = [{"text": f"visit {point.timepoint_id}, day {point.day:g} after the first"}]
            if point.scan_date:
                made["effectiveDateTime"] = point.scan_date.isoformat()
        if study is not None:
            made["derivedFrom"] = [study]
        return made

    def _lesion(self, lesion: Lesion, point: Timepoint, patient: Resource, device: Resource, study: Resource | None) -> Resource:
        made = self._observation(_SIZE, point, patient, device, study)
        uid = self._told.tracking_uid(lesion.track)
        made["identifier"] = [{"system": "urn:dicom:uid", "value": f"urn:oid:{uid}"}, {"system": TRACKS, "value": lesion.track}]
        site = terminology.site(lesion.organ)
        if site is not None or lesion.organ:
            made["bodySite"] = _concept(site, lesion.organ)
        made["component"] = list(_components(lesion))
        role = "target" if lesion.is_target else "new" if lesion.is_new else "non-target"
        made["note"].append(
            {"text": f"{role}{' lymph node' if lesion.is_node else ''} lesion {self._told.case.called(lesion.track)}, found by: {lesion.method}"}
        )
        if lesion.sd_mm is not None and lesion.longest_mm is not None:
            made["note"].append({"text": f"95 % limits of the longest diameter: +-{_LIMITS_SD * lesion.sd_mm:.1f} mm"})
        if lesion.touches_border:
            made["note"].append({"text": "cut off by the edge of the scan: sizes are least values"})
        return made

    def _response(self, one: Judgement, point: Timepoint, patient: Resource, device: Resource, study: Resource | None) -> Resource:
        made = self._observation(sr_response.CURRENT, point, patient, device, study)
        made["method"] = _concept(sr_response.CRITERIA[one.criterion], one.criterion)
        code = sr_response.RESPONSES[one.category]
        made["valueCodeableConcept"] = _concept(code, f"{one.category}: {code.meaning}")
        figures = [
            (sr_response.SUMS[one.unit], one.response.sum, one.unit),
            (sr_response.SUM_SD, one.sd, one.unit),
            (sr_response.FROM_BASELINE, one.response.percent_baseline, "%"),
            (sr_response.FROM_NADIR, one.response.percent_nadir, "%"),
            *((sr_response.chance(category), 100 * p, "%") for category, p in one.chances.items()),
        ]
        parts = [{"code": _concept(code), "valueQuantity": _quantity(value, unit)} for code, value, unit in figures if value is not None]
        if parts:
            made["component"] = parts
        made["note"] += [{"text": reason} for reason in one.reasons]
        return made

    def _best(self, overall: Best, patient: Resource, device: Resource) -> Resource:
        """A best overall response, over all visits."""
        code = sr_response.BEST if overall.confirmed else sr_response.BEST_UNCONFIRMED
        made = self._observation(code, None, patient, device, None)
        made["code"]["text"] = overall.words
        made["method"] = _concept(sr_response.CRITERIA["RECIST 1.1"])
        value = sr_response.RESPONSES[overall.category]
        made["valueCodeableConcept"] = _concept(value, f"{overall.category}: {value.meaning}")
        if (period := self._period()) is not None:
            made["effectivePeriod"] = period
        if overall.why:
            made["note"] = [{"text": overall.why}]
        return made

    def _period(self) -> Resource | None:
        """First and last date of the visits, None where they have none."""
        dates = [v.timepoint.scan_date for v in self._case.visits if v.timepoint.scan_date]
        return {"start": min(dates).isoformat(), "end": max(dates).isoformat()} if dates else None

    def _report(self, patient: Resource, results: list[Resource], studies: list[Resource]) -> Resource:
        report: Resource = {
            "resourceType": "DiagnosticReport",
            "status": "preliminary",
            "category": [{"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0074", "code": "RAD", "display": "Radiology"}]}],
            "code": _concept(_REPORT),
            "subject": patient,
            "conclusion": "\n".join([*(f"{title}. {text}" for title, text in self._told.story.parts), self._told.source]),
        }
        # Each only where there is one: FHIR has no empty lists.
        if results:
            report["result"] = results
        if studies:
            report["imagingStudy"] = studies
        if (period := self._period()) is not None:
            report["effectivePeriod"] = period
        codes = [_concept(sr_response.RESPONSES[b.category], f"{b.words.capitalize()}: {b.category}") for b in best(self._case)]
        if codes:
            report["conclusionCode"] = codes
        return report


def _components(lesion: Lesion) -> Iterator[Resource]:
    """The figures of a lesion; one that could not be had says why."""
    rows = [
        ("longest_mm", _LONGEST, lesion.longest_mm, "mm"),
        ("short_axis_mm", _SHORT, lesion.short_axis_mm, "mm"),
        ("volume_mm3", _VOLUME, lesion.volume_mm3, "mm3"),
    ]
    if lesion.unit == "HU":
        rows.append(("mean", _ATTENUATION, lesion.mean, "[hnsf'U]"))
    for name, code, value, unit in rows:
        if value is not None:
            yield {"code": _concept(code), "valueQuantity": _quantity(value, unit)}
        else:
            absent = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/data-absent-reason", "code": "unknown"}]}
            if name in lesion.reasons:
                absent["text"] = lesion.reasons[name]  # type: ignore[assignment]
            yield {"code": _concept(code), "dataAbsentReason": absent}


def _quantity(value: float, unit: str) -> Resource:
    return {"value": round(float(value), 4), "unit": "HU" if unit.startswith("[") else unit, "system": _UCUM, "code": unit}


def _concept(code: Code | None, text: str | None = None) -> Resource:
    """A CodeableConcept: the code where there is one, and words."""
    made: Resource = {"text": text or (code.meaning if code else "")}
    if code is not None:
        made["coding"] = [{"system": _SYSTEMS[code.scheme], "code": code.value, "display": code.meaning}]
    return made

"""A response to treatment in a DICOM structured report: a group of TID 1501 (PS3.16) for each criterion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from isocenter.core.segmentation import Code
from isocenter.io.sr_content import coded, figure
from isocenter.io.uids import derived_uid

#: Codes of our own, where no published one says it.
OWN = "99ISOCENTER"
#: Categories of response at a visit. PS3.16 has codes for target and non-target lesions alone (CID 6144), none for the whole;
#: these are RadLex's, as the imaging module of the German Medical Informatics Initiative's FHIR guide takes them for RECIST.
RESPONSES = {
    "CR": Code("RID11511", "RADLEX", "complete imaging response"),
    "PR": Code("RID11513", "RADLEX", "partial response"),
    "SD": Code("RID11514", "RADLEX", "stable disease"),
    "PD": Code("RID11515", "RADLEX", "progressive disease"),
    "NON-CR/NON-PD": Code("112046", "DCM", "Non-Target Lesion Incomplete Response or Stable Disease"),
    "NE": Code("not-evaluable", OWN, "Response not evaluable"),
    "iCR": Code("iCR", OWN, "Immune complete response"),
    "iPR": Code("iPR", OWN, "Immune partial response"),
    "iSD": Code("iSD", OWN, "Immune stable disease"),
    "iUPD": Code("iUPD", OWN, "Immune unconfirmed progressive disease"),
    "iCPD": Code("iCPD", OWN, "Immune confirmed progressive disease"),
    "NON-iCR/NON-iUPD": Code("non-iCR-non-iUPD", OWN, "Neither iCR nor iUPD"),
}
#: Criteria: those of CID 6147, and our own codes for the others.
CRITERIA = {
    "RECIST 1.1": Code("126081", "DCM", "RECIST 1.1"),
    "RANO": Code("C114879", "NCIt", "RANO"),
    "iRECIST": Code("irecist", OWN, "iRECIST"),
    "mRECIST": Code("mrecist", OWN, "mRECIST"),
    "volumetric response": Code("volumetric", OWN, "Response by volume"),
}
CURRENT = Code("112048", "DCM", "Current Response")
#: RECIST 1.1 wants it confirmed (section 4.6.1); what was seen without that is no such thing, and says so.
BEST = Code("112049", "DCM", "Best Overall Response")
BEST_UNCONFIRMED = Code("best-overall-unconfirmed", OWN, "Best overall response, without confirmation")
COMMENT = Code("121106", "DCM", "Comment")
#: What the sum adds up, by its unit.
SUMS = {
    "mm": Code("sum-of-diameters", OWN, "Sum of target lesion diameters"),
    "mm2": Code("sum-of-products", OWN, "Sum of products of target lesion diameters"),
    "mm3": Code("sum-of-volumes", OWN, "Sum of target lesion volumes"),
}
SUM_SD = Code("sum-sd", OWN, "Standard deviation of sum of target lesion diameters")
FROM_BASELINE = Code("change-from-baseline", OWN, "Change of sum since baseline")
FROM_NADIR = Code("change-from-nadir", OWN, "Change of sum since smallest")


def chance(category: str) -> Code:
    """The code of a category's probability; `category`: a key of `RESPONSES`."""
    return Code(f"probability-{category.replace('/', '-').lower()}", OWN, f"Probability of {category}")


@dataclass(frozen=True)
class Assessment:
    """The response at a visit by one criterion.

    criteria: a key of `CRITERIA`. category: a key of `RESPONSES`, None at the baseline. total: the sum, in `unit` (of `SUMS`), sd its
    standard deviation. chances: 0..1 by category. best_overall: confirmed, best_seen: without confirmation; at the last visit. reasons: in words.
    """

    criteria: str
    category: str | None
    total: float | None
    unit: str = "mm"
    sd: float | None = None
    percent_from_baseline: float | None = None
    percent_from_nadir: float | None = None
    chances: Mapping[str, float] = field(default_factory=dict)
    best_overall: str | None = None
    best_seen: str | None = None
    reasons: tuple[str, ...] = ()


def response_group(assessment: Assessment, time_point: Any, made_of: str) -> Any:
    """TID 1501: the sum, its change, the categories, their probabilities, and why. time_point: highdicom's context of the visit.

    made_of: UIDs are derived from this text.
    """
    import highdicom as hd
    from pydicom.sr.codedict import codes

    unit = coded({"mm": Code("mm", "UCUM", "mm"), "mm2": Code("mm2", "UCUM", "mm2"), "mm3": Code("mm3", "UCUM", "mm3")}[assessment.unit])
    percent = codes.UCUM.Percent
    figures = [
        *figure(coded(SUMS[assessment.unit]), assessment.total, unit),
        *figure(coded(SUM_SD), assessment.sd, unit),
        *figure(coded(FROM_BASELINE), assessment.percent_from_baseline, percent),
        *figure(coded(FROM_NADIR), assessment.percent_from_nadir, percent),
        *(m for category, p in assessment.chances.items() for m in figure(coded(chance(category)), 100 * p, percent)),
    ]
    categories = [(CURRENT, assessment.category), (BEST, assessment.best_overall), (BEST_UNCONFIRMED, assessment.best_seen)]
    words = [hd.sr.QualitativeEvaluation(name=coded(name), value=coded(RESPONSES[value])) for name, value in categories if value is not None]
    group = hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=derived_uid(made_of, assessment.criteria), identifier=assessment.criteria),
        time_point_context=time_point,
        finding_type=coded(Code("112020", "DCM", "Response Evaluation")),
        method=coded(CRITERIA[assessment.criteria]),
        measurements=figures or None,
        qualitative_evaluations=words or None,
    )
    for reason in assessment.reasons:
        # The template takes evaluations in words too; highdicom has no type for these.
        group[0].ContentSequence.append(hd.sr.TextContentItem(coded(COMMENT), reason, relationship_type=hd.sr.RelationshipTypeValues.CONTAINS))
    return group

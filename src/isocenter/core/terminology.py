"""Names, SNOMED CT codes and colours of the structures that Isocenter's own models name.

Codes and meanings are those of DICOM PS3.16 (CID 7150-7154, 7166, 7192 and the anatomy CIDs). PS3.16 says a side by a
modifier; where there is no place for one, the sided structures of SNOMED CT itself stand. A test looks every code up.
Colours are the usual ones of anatomy atlases, sRGB.
"""

from __future__ import annotations

from isocenter.core.segmentation import Code, Label

TISSUE = Code("85756007", "SCT", "Tissue")
ORGAN = Code("91723000", "SCT", "Anatomical Structure")
ABNORMAL = Code("49755003", "SCT", "Morphologically Abnormal Structure")

_STRUCTURES: dict[str, tuple[Code, str, str, tuple[int, int, int]]] = {
    "body": (ORGAN, "38266002", "Entire body", (177, 122, 101)),
    "lungs": (ORGAN, "39607008", "Lung", (197, 165, 145)),
    "lung_left": (ORGAN, "44029006", "Left lung", (172, 138, 115)),
    "lung_right": (ORGAN, "3341006", "Right lung", (202, 164, 140)),
    "airways": (ORGAN, "89187006", "Airway structure", (182, 228, 255)),
    "trachea": (ORGAN, "44567001", "Trachea", (182, 228, 255)),
    "bone": (ORGAN, "272673000", "Bone", (241, 214, 145)),
    "fat": (TISSUE, "55603005", "Fat", (230, 220, 70)),
    "muscle": (TISSUE, "91727004", "Muscle", (192, 104, 88)),
    "air": (TISSUE, "15158005", "Air", (150, 200, 240)),
    "liver": (ORGAN, "10200004", "Liver", (221, 130, 101)),
    "spleen": (ORGAN, "78961009", "Spleen", (157, 108, 162)),
    "kidneys": (ORGAN, "64033007", "Kidney", (185, 102, 83)),
    "kidney_left": (ORGAN, "18639004", "Left kidney", (212, 126, 151)),
    "kidney_right": (ORGAN, "9846003", "Right kidney", (185, 102, 83)),
    "aorta": (ORGAN, "15825003", "Aorta", (224, 97, 76)),
    "heart": (ORGAN, "80891009", "Heart", (206, 110, 84)),
    "stomach": (ORGAN, "69695003", "Stomach", (216, 132, 105)),
    "pancreas": (ORGAN, "15776009", "Pancreas", (249, 180, 111)),
    "gallbladder": (ORGAN, "28231008", "Gallbladder", (139, 150, 98)),
    "bladder": (ORGAN, "89837001", "Bladder", (222, 154, 132)),
    "brain": (ORGAN, "12738006", "Brain", (250, 250, 225)),
    "ribs": (ORGAN, "113197003", "Rib", (253, 232, 158)),
    "sternum": (ORGAN, "56873002", "Sternum", (244, 217, 154)),
    "spine": (ORGAN, "421060004", "Spine", (226, 202, 134)),
    "lesion": (ABNORMAL, "52988006", "Lesion", (144, 238, 144)),
    "region": (TISSUE, "85756007", "Tissue", (128, 174, 128)),
}
#: Names that `label` has codes for.
NAMES = tuple(_STRUCTURES)


def label(name: str, value: int = 1) -> Label:
    """The label for a structure's name; an unknown name gets the code for tissue and a colour made from the name."""
    known = _STRUCTURES.get(name)
    if known is None:
        seed = sum((i + 1) * ord(c) for i, c in enumerate(name))
        return Label(value, name, TISSUE, Code("85756007", "SCT", "Tissue"), (64 + seed * 37 % 192, 64 + seed * 59 % 192, 64 + seed * 83 % 192))
    category, code, meaning, colour = known
    return Label(value, name, category, Code(code, "SCT", meaning), colour)


#: How people call organs in a study's labels, by the names above.
_ALIASES = {"lung": "lungs", "kidney": "kidneys", "left lung": "lung_left", "right lung": "lung_right", "left kidney": "kidney_left",
            "right kidney": "kidney_right", "urinary bladder": "bladder", "rib": "ribs", "vertebra": "spine"}  # fmt: skip
_SITES = {
    "lymph node": Code("59441001", "SCT", "Lymph Node"),
    "node": Code("59441001", "SCT", "Lymph Node"),
    "breast": Code("76752008", "SCT", "Breast"),
    "colon": Code("71854001", "SCT", "Colon"),
    "prostate": Code("41216001", "SCT", "Prostate"),
    "adrenal gland": Code("23451007", "SCT", "Adrenal gland"),
    "mediastinum": Code("72410000", "SCT", "Mediastinum"),
    "neck": Code("45048000", "SCT", "Neck"),
    "pleura": Code("3120008", "SCT", "Pleura"),
    "abdomen": Code("818981001", "SCT", "Abdomen"),
    "pelvis": Code("816092008", "SCT", "Pelvis"),
}


def site(name: str | None) -> Code | None:
    """The SNOMED CT code of the organ or region that somebody named; None where it is not known."""
    key = (name or "").strip().lower().replace("_", " ")
    known = _STRUCTURES.get(_ALIASES.get(key, key.replace(" ", "_")))
    if known is not None and known[0] is ORGAN:
        return Code(known[1], "SCT", known[2])
    return _SITES.get(key)

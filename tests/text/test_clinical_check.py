"""The clinical check on pairs of sentences as radiologists write them: what differs is found, what only reads differently is not."""

from __future__ import annotations

import pytest

from isocenter.analysis.clinical_check import clinical

#: (candidate, reference)
SAME = [
    ("There is a 12 mm nodule in the right upper lobe.", "A 1.2 cm nodule is seen in the right upper lobe."),
    ("No pleural effusion or pneumothorax.", "There is no evidence of pneumothorax or pleural effusion."),
    ("Liver lesion measures 2.3 x 1.8 cm.", "Hepatic lesion measuring 23 x 18 mm."),
    ("Heart size is normal. Lungs are clear.", "The lungs are clear and the heart is normal in size."),
    ("Bilateral pleural effusions.", "Pleural effusions are present in both the left and the right pleural space."),
    ("Small left pleural effusion, unchanged since 03/12/2021.", "Small left pleural effusion, stable compared with 12 March 2021."),
    ("The nodule measures 8mm.", "8 mm nodule."),
    ("Volume of the lesion is 1.5 L.", "Lesion volume 1500 ml."),
    ("Nodule 6-8 mm.", "Nodule measuring 6 to 8 mm."),
    ("Without acute fracture.", "No acute fracture."),
    ("Left lower lobe consolidation.", "Consolidation in the left lower lobe."),
    ("The right kidney is normal; the left kidney shows a cyst of 14 mm.", "Left renal cyst, 1.4 cm. Normal right kidney."),
    ("T2 hyperintense lesion at L4-L5.", "At L4-L5 there is a T2 hyperintense lesion."),
    ("Two nodules measuring 4 mm and 6 mm.", "2 nodules of 0.4 and 0.6 cm."),
    ("Pneumothorax is not seen.", "No pneumothorax."),
    ("The pleural effusion has resolved.", "No residual pleural effusion."),
    ("Comparison: 2020-05-01. 7 mm nodule.", "Comparison: 1 May 2020. 7 mm nodule."),
    ("Lymph nodes up to 1,5 cm.", "Lymph nodes up to 15 mm."),
    (
        "The cardiomediastinal silhouette is within normal limits. No focal consolidation, pleural effusion or pneumothorax is seen.",
        "Heart size normal. Lungs are clear without focal consolidation. There is no pneumothorax or pleural effusion.",
    ),
    ("1. Stable 6 mm right middle lobe nodule. 2. No new nodules.", "RML nodule measures 0.6 cm, unchanged. No new pulmonary nodule."),
    ("IMPRESSION: 1. 4.5 cm infrarenal abdominal aortic aneurysm.", "Abdominal aortic aneurysm, infrarenal, measuring 45 mm."),
    ("Status post right mastectomy. No evidence of recurrence.", "Postsurgical changes of right mastectomy, without evidence of local recurrence."),
    ("There is moderate left-sided pleural effusion with adjacent atelectasis.", "Moderate pleural effusion on the left with adjacent atelectasis."),
    (
        "No acute intracranial abnormality. Mild chronic small vessel ischemic change.",
        "No acute intracranial abnormality is identified. There is mild small vessel ischemic disease.",
    ),
    (
        "Both kidneys enhance symmetrically. No hydronephrosis.",
        "The kidneys enhance symmetrically bilaterally; there is no hydronephrosis on either side.",
    ),
    ("Left adnexal cyst 3.1 x 2.8 x 2.5 cm.", "There is a cyst in the left adnexa measuring 31 x 28 x 25 mm."),
    ("Endotracheal tube tip is 4 cm above the carina.", "ET tube terminates approximately 4.0 cm above the carina."),
    ("No pneumothorax. Right chest tube in place.", "Right-sided chest tube is in place. Pneumothorax is no longer seen."),
    ("Previously seen left lower lobe opacity has resolved.", "Interval resolution of the left lower lobe opacity."),
    ("The gallbladder is surgically absent.", "Status post cholecystectomy; the gallbladder is absent."),
    ("Grade 1 anterolisthesis of L4 on L5.", "There is grade 1 anterolisthesis at L4-L5."),
    ("Follow-up CT in 6-12 months is recommended.", "Recommend follow-up CT in 6 to 12 months."),
    ("Hepatic cyst in segment 7, 2 cm.", "20 mm cyst in segment 7 of the liver."),
    ("Unremarkable spleen. Pancreas without focal lesion.", "The spleen is unremarkable and there is no focal lesion of the pancreas."),
    ("CT from 5 January 2022 is compared.", "Comparison is made with CT dated 01/05/2022."),
    (
        "Fluid in the right maxillary sinus. The left maxillary sinus is clear.",
        "The left maxillary sinus is clear; there is fluid in the right maxillary sinus.",
    ),
    ("Pulmonary embolism is not excluded.", "Pulmonary embolism cannot be ruled out."),
    ("The appendix is not visualized.", "Appendix not seen."),
    ("Small bilateral effusions, right greater than left.", "Small bilateral pleural effusions, larger on the right than on the left."),
    ("Lungs: Clear. No nodules.\nPleura: No effusion.\nHeart: Normal size.", "No effusion or nodule. The lungs are clear; heart size is normal."),
    ("Osseous structures are intact without fracture or dislocation.", "No fracture. No dislocation."),
    ("BI-RADS 2: benign findings. No suspicious mass.", "No suspicious mass. BI-RADS category 2."),
    ("Compared with 12/01/2023 the nodule increased from 4 to 7 mm.", "The nodule measures 7 mm (previously 4 mm on 1 Dec 2023)."),
    ("Bones: no suspicious lytic or sclerotic lesion.", "There are no lytic or sclerotic osseous lesions."),
    (
        "Ventricles and sulci are normal in size. There is no mass effect, hemorrhage, or acute infarct.",
        "No hemorrhage or mass effect. No evidence of acute infarct. Ventricles normal.",
    ),
    ("Right upper lobe mass, 3.4 cm (series 4, image 52).", "34 mm mass in the right upper lobe (series 4, image 52)."),
    ("Bilateral lower lobe opacities.", "Opacities in the left and right lower lobes."),
    ("Prostate volume is 45 cc.", "Prostate volume: 45 ml."),
    ("Small hiatal hernia. The adrenal glands are normal bilaterally.", "Normal adrenals. Small hiatal hernia."),
    ("PICC line from the right with tip in the SVC.", "Right PICC with tip in SVC."),
    ("Disc protrusion at L4/5 and L5/S1.", "L4-L5 and L5-S1 disc protrusions."),
    ("No large-vessel occlusion is demonstrated.", "There is no evidence for large vessel occlusion."),
    (
        "Opacity persists in the left base, likely atelectasis; infection is not excluded.",
        "Left basilar opacity, which may represent atelectasis or infection.",
    ),
]
#: (candidate, reference, kinds of what differs)
DIFFERENT = [
    ("There is a 12 mm nodule in the right upper lobe.", "There is a 15 mm nodule in the right upper lobe.", {"number"}),
    ("Lesion 3 x 4 x 5 cm.", "Lesion 3 x 4 x 6 cm.", {"number"}),
    ("Two nodules, 4 mm and 6 mm.", "Two nodules, 4 mm and 9 mm.", {"number"}),
    ("Three pulmonary nodules.", "Two pulmonary nodules.", {"number"}),
    ("Ejection fraction 55 %.", "Ejection fraction 35%.", {"number"}),
    ("A nodule is seen in the liver.", "A 22 mm nodule is seen in the liver.", {"number"}),
    ("Aortic diameter 4.2 cm.", "Aortic diameter 42 cm.", {"number"}),
    ("Mean attenuation of -10 HU.", "Mean attenuation of 10 HU.", {"number"}),
    ("Nodule of 8 cm.", "Nodule of 8 mm.", {"unit"}),
    ("Cyst measuring 3 cm.", "Cyst measuring 3 mm.", {"unit"}),
    ("Fluid collection of 50 ml.", "Fluid collection of 50 mm.", {"unit"}),
    ("Left pleural effusion.", "Right pleural effusion.", {"laterality"}),
    ("Mass in the left breast at 3 o'clock.", "Mass in the right breast at 3 o'clock.", {"laterality"}),
    ("Unilateral hydronephrosis on the left.", "Unilateral hydronephrosis on the right.", {"laterality"}),
    ("Bilateral adrenal nodules.", "Left adrenal nodule.", {"laterality"}),
    ("Opacity in the LLL.", "Opacity in the RLL.", {"laterality"}),
    (
        "Infarct in the territory of the left MCA. Right MCA is patent.",
        "Infarct in the territory of the right MCA. Left MCA is patent.",
        {"laterality"},
    ),
    ("Fracture of the 5th rib on the left side.", "Fracture of the 5th rib on the right side.", {"laterality"}),
    ("There is a pneumothorax.", "There is no pneumothorax.", {"negation"}),
    ("No evidence of pulmonary embolism.", "Pulmonary embolism in the segmental arteries.", {"negation"}),
    ("Pleural effusion is absent.", "Pleural effusion is present.", {"negation"}),
    ("Lungs are clear without consolidation, effusion, or edema.", "Lungs show consolidation, without effusion or edema.", {"negation"}),
    ("No fracture but joint effusion is seen.", "Fracture and joint effusion are seen.", {"negation"}),
    ("Midline shift is not present.", "Midline shift of 6 mm.", {"negation", "number"}),
    ("No focal lesion. There is hepatic steatosis.", "No focal lesion. No hepatic steatosis.", {"negation"}),
    ("Gallstones are seen, cholecystitis is ruled out.", "Gallstones with cholecystitis.", {"negation"}),
    ("A 5 mm nodule in the left lung. No effusion.", "A 9 mm nodule in the right lung. Effusion is present.", {"laterality", "negation", "number"}),
    ("Findings suggest no acute intracranial hemorrhage.", "Acute intracranial hemorrhage cannot be excluded.", {"negation"}),
    ("IMPRESSION: 1. 5.4 cm infrarenal abdominal aortic aneurysm.", "Abdominal aortic aneurysm, infrarenal, measuring 45 mm.", {"number"}),
    ("Endotracheal tube tip is 4 mm above the carina.", "ET tube terminates approximately 4 cm above the carina.", {"unit"}),
    (
        "Status post left mastectomy. No evidence of recurrence.",
        "Postsurgical changes of right mastectomy, without evidence of local recurrence.",
        {"laterality"},
    ),
    (
        "There is moderate right-sided pleural effusion with adjacent atelectasis.",
        "Moderate pleural effusion on the left with adjacent atelectasis.",
        {"laterality"},
    ),
    (
        "The cardiomediastinal silhouette is normal. Focal consolidation is seen. No pneumothorax.",
        "Lungs are clear without focal consolidation. No pneumothorax.",
        {"negation"},
    ),
    ("Hydronephrosis is seen on the right.", "There is no hydronephrosis.", {"negation"}),
    ("Hydronephrosis is seen on the right.", "Hydronephrosis is seen on the left.", {"laterality"}),
    ("Grade 1 anterolisthesis of L5 on S1.", "Grade 1 anterolisthesis of L4 on L5.", {"number"}),
    (
        "Fluid in the left maxillary sinus. The right maxillary sinus is clear.",
        "The left maxillary sinus is clear; there is fluid in the right maxillary sinus.",
        {"laterality"},
    ),
    ("Multiple nodules, the largest 11 mm in the left upper lobe.", "Multiple nodules, the largest 11 mm in the right upper lobe.", {"laterality"}),
    ("Follow-up CT in 3 months is recommended.", "Follow-up CT in 3 weeks is recommended.", {"unit"}),
    ("Four metastases in the liver, largest 3 cm.", "Three metastases in the liver, largest 3 cm.", {"number"}),
    ("There is mass effect and midline shift.", "No mass effect or midline shift.", {"negation"}),
    ("No hemorrhage, mass effect, or midline shift.", "Hemorrhage without mass effect or midline shift.", {"negation"}),
    ("Aneurysm of the left MCA, 7 mm.", "7 mm aneurysm of the right MCA.", {"laterality"}),
    ("Acute fracture of the distal radius.", "No acute fracture of the distal radius, but soft tissue swelling.", {"negation"}),
    ("Fracture of the 6th left rib.", "Fracture of the left 7th rib.", {"number"}),
    ("Pneumothorax, small, on the right, 2 cm at the apex.", "Small right apical pneumothorax, 2 mm.", {"unit"}),
    ("The lymph nodes are enlarged, up to 18 mm.", "The lymph nodes are not enlarged.", {"negation", "number"}),
    ("Cyst in the left kidney. No stones in the right kidney.", "Cyst in the right kidney. No stones in the left kidney.", {"laterality"}),
    ("Effusion, left. Nodule 4 mm, right.", "Effusion, right. Nodule 4 mm, left.", {"laterality"}),
    ("Negative for pulmonary embolism.", "Positive for pulmonary embolism.", {"negation"}),
    ("The effusion has not resolved.", "The effusion has resolved.", {"negation"}),
    ("Ejection fraction 55%.", "Ejection fraction 45-50%.", {"number"}),
    ("T12 compression fracture with 50% height loss.", "T11 compression fracture with 50 percent loss of height.", {"number"}),
    ("Kidney stone of 4 mm in the left ureter.", "Left ureteral stone, 14 mm.", {"number"}),
    ("Deep vein thrombosis in the right femoral vein.", "No deep vein thrombosis.", {"negation"}),
    ("No deep vein thrombosis of the right leg.", "Deep vein thrombosis in the left leg.", {"laterality", "negation"}),
    ("Left ventricle is dilated. LVEF 30 %.", "Left ventricle is not dilated. LVEF 30%.", {"negation"}),
    ("Free air under the right hemidiaphragm.", "No free air.", {"negation"}),
    ("The mass measures 5.2 x 4.1 x 3.9 cm.", "The mass measures 5.2 x 4.1 x 3.9 mm.", {"unit"}),
    ("Pulmonary nodule 5mm RUL; no lymphadenopathy.", "Pulmonary nodule 5 mm LUL. No lymphadenopathy.", {"laterality"}),
    (
        "Subdural hematoma along the left convexity, 9 mm thick, with 4 mm midline shift.",
        "Subdural hematoma along the right convexity, 9 mm thick, with 4 mm midline shift to the left.",
        {"laterality"},
    ),
    ("Pericardial effusion, no pleural effusion.", "Pericardial effusion and pleural effusion.", {"negation"}),
    ("Patient denies trauma. There is an old fracture.", "Patient with trauma. There is an old fracture.", {"negation"}),
    ("Cardiomegaly without pulmonary edema.", "Pulmonary edema and cardiomegaly.", {"negation"}),
    ("Five lumbar vertebrae. Scoliosis of 12 degrees.", "5 lumbar vertebrae. Scoliosis of 22°.", {"number"}),
    (
        "The left ovary is normal; the right ovary contains a 3 cm cyst.",
        "The right ovary is normal; the left ovary contains a 3 cm cyst.",
        {"laterality"},
    ),
    ("SUVmax 8.2.", "SUVmax 2.8.", {"number"}),
]


@pytest.mark.parametrize(("candidate", "reference"), SAME)
def test_other_words_for_the_same_finding(candidate: str, reference: str) -> None:
    assert clinical(candidate, reference) == []
    assert clinical(reference, candidate) == []


@pytest.mark.parametrize(("candidate", "reference", "kinds"), DIFFERENT)
def test_what_differs_is_found_in_both_directions(candidate: str, reference: str, kinds: set[str]) -> None:
    assert {d.kind for d in clinical(candidate, reference)} == kinds
    assert {d.kind for d in clinical(reference, candidate)} == kinds


def test_a_difference_names_what_either_report_says() -> None:
    (unit,) = clinical("Nodule of 8 cm.", "Nodule of 8 mm.")
    assert (unit.kind, unit.what, unit.reference, unit.candidate) == ("unit", "8", "8 mm", "8 cm")
    side, *_ = clinical("Mass in the left breast.", "Mass in the right breast.")
    assert (side.kind, side.what, side.reference, side.candidate) == ("laterality", "breast", "right", "left")
    (negation,) = clinical("Fracture.", "No fracture.")
    assert (negation.what, negation.reference, negation.candidate) == ("fracture", "negated", "affirmed")

"""What is told of a patient: narratives, answers to questions, and reports in every format there is."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.engine import Connection

from isocenter import narrateservice, trackservice
from isocenter.analysis.case import Case
from isocenter.analysis.narrative import template
from isocenter.analysis.narrative.template import Narrative
from isocenter.analysis.pictures import lesion_picture, shown
from isocenter.analysis.report import formats
from isocenter.analysis.report.formats import OneFile
from isocenter.core.errors import IsocenterError
from isocenter.core.model import QUIET, Run
from isocenter.core.patient import Identity
from isocenter.io import door
from isocenter.io.visits import StudyFiles, VisitFiles
from isocenter.patients import audit
from isocenter.patients.audit import Who
from isocenter.patients.cases import Known
from isocenter.patients.job import SOURCE
from isocenter.patients.options import options_of
from isocenter.patients.records import VisitRow
from isocenter.patients.service import Patients
from isocenter.store.tables import NARRATIVES

_STORY = {"key_findings", "uncertainty_statement", "recist_trajectory", "trend", "data_quality", "model", "disclaimer"}


@dataclass(frozen=True)
class Text:
    """A narrative or an answer on record. revision: of the patient's record that it is about."""

    id: str
    patient_id: str
    at: float
    revision: int
    kind: str
    model: str
    answer: Mapping[str, Any]
    provenance: Mapping[str, Any]

    @property
    def story(self) -> Narrative:
        """The narrative's parts."""
        return Narrative(**{k: v for k, v in self.answer.items() if k in _STORY})


def narrate(patients: Patients, patient_id: str, who: Who, *, model: str | None = None, report: bool = True, run: Run = QUIET) -> Text:
    """Have the case told, and keep it with its prompt and check. See `narrateservice.tell`."""
    known = patients.known(patient_id)
    case = patients.cases.whole(known)
    pictures: list[NDArray[np.uint8]] = []
    if model != narrateservice.TEMPLATE and narrateservice.narrators(patients.service):
        pictures = _pictures(patients, known)
    told = narrateservice.tell(patients.service, case, model=model, report=report, pictures=pictures, run=run)
    return _kept(patients, known, who, "narrative", told.story.model, asdict(told.story), told.provenance.as_dict())


def ask(patients: Patients, patient_id: str, who: Who, question: str, *, model: str | None = None, run: Run = QUIET) -> Text:
    """Answer a free question from the case alone, and keep both. See `narrateservice.ask`."""
    known = patients.known(patient_id)
    answer, provenance = narrateservice.ask(patients.service, patients.cases.whole(known), question, model=model, run=run)
    facts = {"question": question, "answer": answer.text, "refused": answer.refused, "disclaimer": answer.disclaimer}
    return _kept(patients, known, who, "ask", provenance.model, facts, provenance.as_dict())


def latest(patients: Patients, patient_id: str) -> Text | None:
    """The newest narrative of the case as it is now, None where there is none (any more)."""
    patient = patients.records.get(patient_id)
    which = NARRATIVES.c.patient_id == patient_id, NARRATIVES.c.kind == "narrative", NARRATIVES.c.revision == patient.revision
    found = sa.select(*(NARRATIVES.c[n] for n in Text.__dataclass_fields__)).where(*which).order_by(NARRATIVES.c.number.desc()).limit(1)
    row = patients.backend.database.read(lambda c: c.execute(found).mappings().first())
    return None if row is None else Text(**row)


def page(patients: Patients, patient_id: str, *, skip: int, limit: int) -> tuple[list[Text], int]:
    """Narratives and answers, newest first, and how many there are."""
    patients.records.get(patient_id)
    of = NARRATIVES.c.patient_id == patient_id
    found = sa.select(*(NARRATIVES.c[n] for n in Text.__dataclass_fields__)).where(of).order_by(NARRATIVES.c.number.desc()).offset(skip).limit(limit)
    total = sa.select(sa.func.count()).select_from(NARRATIVES).where(of)
    return patients.backend.database.read(lambda c: ([Text(**row) for row in c.execute(found).mappings()], int(c.scalar(total) or 0)))


def report(patients: Patients, patient_id: str, who: Who, name: str, *, identity: bool = False) -> OneFile:
    """The case in one of `formats.FORMATS`, with the newest narrative of the case as it is, else the template's.

    identity: who the patient is, as kept or as the scans' headers say; asking for it is noted. Raises `UsageError`.
    """
    formats.chosen([name])
    known = patients.known(patient_id)
    case = patients.cases.whole(known)
    written = latest(patients, patient_id)
    story = written.story if written else template.write(case)
    scratch = patients.backend.settings.home / "scratch"
    scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=scratch, ignore_cleanup_errors=True) as folder:
        made = _written(patients, known, case, story, name, Path(folder), identity)
    more = {"format": name, "patient_fields": identity, "revision": known.patient.revision}
    patients.records.noted(patient_id, who, "report", component="report", metadata=more)
    return made


def _written(patients: Patients, known: Known, case: Case, story: Narrative, name: str, out: Path, identity: bool) -> OneFile:
    files = tuple(_laid_out(patients, row, out) for row in known.rows)
    study = StudyFiles(known.patient.id, files)
    kept = _identity(known.patient.private)
    options = replace(options_of(known.patient.options), identity=identity and kept is None)
    ready = trackservice.told(patients.service, study, case, out, options=options, story=story)
    return formats.one_file(replace(ready, identity=kept) if identity and kept else ready, name)


def _identity(private: Mapping[str, str]) -> Identity | None:
    """Who the patient is, as it was kept; None where nothing was."""
    if not private:
        return None
    born = None
    with suppress(ValueError):
        born = date.fromisoformat(private.get("birth_date", ""))
    return Identity(private.get("patient_id", ""), private.get("name", ""), born, private.get("sex", ""))


def _laid_out(patients: Patients, row: VisitRow, out: Path) -> VisitFiles:
    """A visit's files where writers of reports look for them."""
    folder = out / "processed" / row.patient_id / row.timepoint_id
    folder.mkdir(parents=True)
    places = {}
    for name in ("scan.nii.gz", "mask.npy", "slices.npz", SOURCE):
        stored = row.file(name)
        if stored is not None:
            (folder / "fetched").mkdir(exist_ok=True)
            places[name] = patients.backend.objects.fetch(stored.digest, folder / "fetched")
            if name != SOURCE:
                _placed(places[name], folder / name)
    when = date.fromisoformat(row.scan_date) if row.scan_date else None
    image = places.get(SOURCE) or (folder / "scan.nii.gz" if "scan.nii.gz" in places else None)
    series = row.measured.get("series_uid") if SOURCE in places else None
    return VisitFiles(row.timepoint_id, row.day, when, image, series, row.modality)


def _placed(file: Path, target: Path) -> None:
    """A file under another name: a link where the system allows one."""
    try:
        target.symlink_to(file.resolve())
    except OSError:
        shutil.copyfile(file, target)


def _pictures(patients: Patients, known: Known) -> list[NDArray[np.uint8]]:
    """The largest lesion, as `shown` chooses; a scan that cannot be read any more shows nothing."""
    rows = {r.timepoint_id: r for r in known.rows}
    pictures = []
    for visit, size in shown(known.case, known.case.visits):
        stored = rows[visit].file("scan.nii.gz")
        if stored is None:
            continue
        with suppress(IsocenterError), tempfile.TemporaryDirectory() as folder:
            path = patients.backend.objects.fetch(stored.digest, Path(folder))
            scan = door.read_path(path, limits=patients.service.settings, modality=rows[visit].modality)
            pictures.append(lesion_picture(scan, size))
    return pictures


def _kept(patients: Patients, known: Known, who: Who, kind: str, model: str, answer: Mapping[str, Any], provenance: Mapping[str, Any]) -> Text:
    database, patient_id = patients.backend.database, known.patient.id
    row_id = str(uuid.uuid4())

    def work(connection: Connection) -> Text:
        audit.turn(connection, patient_id)
        values = {"id": row_id, "patient_id": patient_id, "at": database.now, "revision": known.patient.revision, "kind": kind}
        connection.execute(sa.insert(NARRATIVES).values(**values, model=model[:128], answer=dict(answer), provenance=dict(provenance)))
        audit.note(connection, database.now, who, kind, patient_id, component="narrative", metadata={"id": row_id, "model": model[:128]})
        row = connection.execute(sa.select(*(NARRATIVES.c[n] for n in Text.__dataclass_fields__)).where(NARRATIVES.c.id == row_id)).mappings()
        return Text(**row.one())

    return database.write(work)

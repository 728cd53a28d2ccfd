"""A series by its id alone, where nobody says which study it belongs to."""

from __future__ import annotations

import sqlalchemy as sa

from isocenter.core.errors import NotFoundError
from isocenter.jobs.backend import Backend
from isocenter.jobs.studies import Studies, Study, StudySeries
from isocenter.store.tables import STUDIES


def find_series(backend: Backend, studies: Studies, series_id: str) -> tuple[Study, StudySeries]:
    """The series of this id and its study. Raises `NotFoundError`."""
    holds = sa.cast(STUDIES.c.series, sa.Text).contains(f'"{series_id}"', autoescape=True)
    candidates = backend.database.read(lambda c: list(c.scalars(sa.select(STUDIES.c.id).where(holds).limit(8))))
    for study_id in candidates:
        study = studies.get(study_id)
        for entry in study.series:
            if entry.id == series_id:
                return study, entry
    raise NotFoundError("Series not found")

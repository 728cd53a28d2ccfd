"""One visit: its scan is read, its lesions are found and measured, and both are kept in files.

What is already there and was made from the same bytes, with the same settings, is taken as it is, step by step: another least size of a
lesion segments nothing again, another spacing for networks measures nothing again, another mask leaves the scan's own files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from isocenter.analysis import appearance, lesions, slices
from isocenter.analysis.case import NO_SCAN, Found, MeasuredVisit
from isocenter.analysis.report.scans import each_lesion
from isocenter.core.errors import GeometryError, IsocenterError, ModelError, UsageError
from isocenter.core.geometry import onto
from isocenter.core.model import QUIET, Run, Task
from isocenter.core.patient import Timepoint
from isocenter.core.prompts import Box, Point, Prompt, Text, Voxel
from isocenter.core.volume import Volume
from isocenter.followup import files
from isocenter.followup.options import TrackOptions
from isocenter.io import door, nifti, write
from isocenter.io.visits import StudyFiles, VisitFiles
from isocenter.service import Service

#: Anything that changes a step's answer changes its number: the scan's own file, what networks take, masks, and what is measured in them.
_SCAN_VERSION, _PREPARED_VERSION, _MASK_VERSION, _VERSION = "3", "1", "1", "6"
_BLOCK = 4 * 1024 * 1024
_PREPARED, _MASKED = (files.PREPROCESSED,), (files.MASK, files.MASK_ARRAY)
_MEASURED = (files.MEASUREMENTS, files.EMBEDDING, files.SLICES)


@dataclass(frozen=True)
class VisitKey:
    """What a visit's files were made from, step by step: the scan's file, the one for networks, the masks, and the figures."""

    scan: str
    prepared: str
    mask: str
    whole: str


def visit_key(service: Service, study: StudyFiles, visit: VisitFiles, options: TrackOptions) -> VisitKey:
    """Bytes of scan and mask, clicks, and everything that changes the answer."""
    scan = _digest(visit.files or _files(visit.image))
    scan.update(repr((_SCAN_VERSION, visit.series_uid, visit.modality)).encode())
    own = scan.hexdigest()
    spec = service.registry.spec(options.model) if options.model and not visit.mask and not visit.marks else None
    used = (spec.id, spec.version, spec.weights_sha256, options.labels) if spec else ()
    mask = _digest(_files(visit.mask))
    mask.update(repr((_MASK_VERSION, own, visit.clicks, visit.boxes, used)).encode())
    labels = sorted(study.organs.items()), sorted(study.nodes)
    return VisitKey(
        own[:32], _key(_PREPARED_VERSION, own, options.spacing_mm), mask.hexdigest()[:32], _key(_VERSION, mask.hexdigest(), options.least_mm3, labels)
    )


def _key(*facts: object) -> str:
    return blake3(repr(facts).encode()).hexdigest()[:32]


def _digest(paths: Iterable[Path]) -> blake3:
    digest = blake3()
    for file in paths:
        with file.open("rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
    return digest


def _files(path: Path | None) -> Iterator[Path]:
    if path is not None and path.is_file():
        yield path
    elif path is not None:
        yield from sorted(p for p in path.rglob("*") if p.is_file())


def measure_visit(
    service: Service,
    study: StudyFiles,
    visit: VisitFiles,
    folder: Path,
    options: TrackOptions,
    run: Run = QUIET,
    *,
    opened: Callable[[Volume], None] = lambda scan: None,
) -> MeasuredVisit:
    """One visit's lesions; its files lie in `folder` afterwards. A visit that cannot be read counts as not evaluated, and says why.

    opened: is given the scan where it had to be read. Raises `ModelError` where no model can find its lesions.
    """
    point = Timepoint(visit.id, visit.day, visit.scan_date, visit.modality)
    if visit.image is None:
        return MeasuredVisit(point, None, new_lesions=visit.new_lesions, reason=NO_SCAN, assessment=visit.assessment)
    try:
        key = visit_key(service, study, visit, options)
        known = files.kept(folder, key.whole) if _there(folder, key, options) else None
        if known is None:
            scan = open_scan(service, visit)
            known = _measure(service, study, visit, scan, folder, options, key, run)
            opened(scan)
    except ModelError:
        raise
    except IsocenterError as error:
        return MeasuredVisit(point, None, new_lesions=visit.new_lesions, reason=error.message, assessment=visit.assessment)
    found, spacing, notes = known
    return MeasuredVisit(point, found, spacing, None, visit.new_lesions, None, notes, assessment=visit.assessment)


def open_scan(service: Service, visit: VisitFiles) -> Volume:
    """A visit's scan. Raises `UsageError` where it has none, and what reading raises."""
    if visit.image is None:
        raise UsageError("this visit has no scan")
    return service.open_path(visit.image, series_uid=visit.series_uid, modality=visit.modality)


def _there(folder: Path, key: VisitKey, options: TrackOptions) -> bool:
    """Whether a visit's files are all there, as they were written, and of what is asked for."""
    state = files.read_json(folder / files.STATE) or {}
    wanted = {"scan": key.scan, "mask": key.mask, "key": key.whole, **({"prepared": key.prepared} if options.preprocessed else {})}
    return all(state.get(which) == made for which, made in wanted.items()) and files.intact(folder, state)


def _measure(
    service: Service, study: StudyFiles, visit: VisitFiles, scan: Volume, folder: Path, options: TrackOptions, key: VisitKey, run: Run
) -> files.Kept:
    """Segment and measure a visit, and leave its files: those steps that something changed for.

    Raises `GeometryError` for a scan whose file does not say how large a voxel is.
    """
    if scan.source.scale != "full":
        raise GeometryError("the scan's file does not say how large its voxels are, so nothing can be measured in it")
    state = files.read_json(folder / files.STATE) or {}
    scanned = state.get("scan") == key.scan and files.intact(folder, state, (files.SCAN,))
    prepared = state.get("prepared") == key.prepared and files.intact(folder, state, _PREPARED)
    masked = state.get("mask") == key.mask and files.intact(folder, state, _MASKED)
    measured = files.kept(folder, key.whole) if masked and files.intact(folder, state, _MEASURED) else None
    if masked:
        mask, (method, notes) = np.load(folder / files.MASK_ARRAY, allow_pickle=False), state["masked"]
    else:
        mask, method, notes = _mask(service, visit, scan, options, run)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / files.STATE).unlink(missing_ok=True)
    if not scanned:
        files.save(folder / files.SCAN, write.encode_image(scan, ".nii.gz"))
    if not prepared:
        (folder / files.PREPROCESSED).unlink(missing_ok=True)
        prepared = options.preprocessed
        if prepared and scan.grid.is_orthogonal:
            files.save_preprocessed(folder / files.PREPROCESSED, scan, spacing_mm=options.spacing_mm)
    if not masked:
        header = write.nifti_header_of(scan)
        files.save(folder / files.MASK, nifti.write(mask, scan.grid, header=header, compress=True, description="isocenter track"))
        files.save_array(folder / files.MASK_ARRAY, mask)
    if measured is None:
        found, vectors, touching = _lesions(study, mask, scan, method, options)
        measured = found, scan.spacing, (*notes, *touching)
        files.save_array(folder / files.EMBEDDING, vectors)
        files.save_arrays(folder / files.SLICES, slices.arrays(scan, mask, (f.size for f in found)))
        facts = {
            "lesions": [{**asdict(f), "appearance": None} for f in found],
            "spacing_mm": scan.spacing,
            "modality": scan.modality,
            "notes": measured[2],
            "embedding": f"{appearance.NAME} {appearance.VERSION}",
        }
        files.save(folder / files.MEASUREMENTS, files.json_bytes(facts))
    # Last: a visit whose files are not all there has no state, and is made again.
    made = {"key": key.whole, "scan": key.scan, "mask": key.mask, "prepared": key.prepared if prepared else None, "volume": scan.key}
    sizes = files.sizes(folder, (files.SCAN, *_PREPARED, *_MASKED, *_MEASURED))
    files.save(folder / files.STATE, files.json_bytes({**made, "masked": [method, notes], "files": sizes}))
    return measured


def _mask(service: Service, visit: VisitFiles, scan: Volume, options: TrackOptions, run: Run) -> tuple[NDArray[np.generic], str, tuple[str, ...]]:
    """The label map of a visit's lesions, how it was made, and what its reader should know."""
    notes = scan.source.notes
    if visit.mask is not None:
        given = door.read_path(visit.mask, limits=service.settings)
        values = onto(given.array, given.grid, scan.grid)
        if values.dtype.kind == "f" and not np.array_equal(values, np.rint(values)):
            raise UsageError("the mask holds values that are no labels; give a label map")
        if float(values.min()) < 0 or float(values.max()) > 65535:
            raise UsageError("the mask's labels must lie between 0 and 65535")
        return np.ascontiguousarray(values, dtype=np.uint8 if values.max() < 256 else np.uint16), "given", notes
    if visit.clicks or visit.boxes:
        mask = np.zeros(scan.shape, np.uint8)
        clicked: list[list[Prompt]] = [[Point((z, y, x)) for x, y, z in clicks] for clicks in visit.clicks]
        boxed: list[list[Prompt]] = [[Box((c, b, a), (f + 1, e + 1, d + 1))] for a, b, c, d, e, f in visit.boxes]
        for k, prompts in enumerate((*clicked, *boxed), start=1):
            parts = lesions.split(service.segment(scan, prompts, run=run).mask)
            points = [p.zyx for p in prompts if isinstance(p, Point)]
            meant = [part for part in parts if any(_holds(part, p) for p in points)] if points else parts[:1]
            for box, inside in meant:
                there = mask[box]
                there[inside & (there == 0)] = k
            if len(meant) < len(parts):
                notes = (*notes, f"lesion {k}: {len(parts) - len(meant)} parts apart from the {'clicks' if points else 'largest one'} were left out")
        return mask, "clicks", notes
    if options.model is None:
        raise ModelError(
            "a visit has no mask, clicks or boxes, and no model was named: give --model (`isocenter models list` shows what is installed), "
            "or list masks, clicks or boxes in a study.json"
        )
    spec = service.registry.spec(options.model)
    if spec.task is Task.SEGMENT:
        result = service.label(scan, model=spec.id, labels=options.labels or None, run=run)
    else:
        words = options.labels or ("lesion", "tumor")
        result = service.segment(scan, [Text(w) for w in words], model=spec.id, run=run)
    said = dict.fromkeys((*notes, *result.provenance.notes, f"segmented by {spec.id} {spec.version}"))  # a model passes on what the scan says
    return result.mask, "model", tuple(said)


def _holds(part: tuple[tuple[slice, slice, slice], NDArray[np.bool_]], zyx: Voxel) -> bool:
    """Whether a part of a mask, in its box, holds a point (voxel indices z, y, x)."""
    box, inside = part
    place = [v - side.start for v, side in zip(zyx, box, strict=True)]
    return all(0 <= at < n for at, n in zip(place, inside.shape, strict=True)) and bool(inside[tuple(place)])


def _lesions(
    study: StudyFiles, mask: NDArray[np.generic], scan: Volume, method: str, options: TrackOptions
) -> tuple[tuple[Found, ...], NDArray[np.float32], tuple[str, ...]]:
    """Every connected lesion of every label, largest first within a label, with its appearance; and what a given mask's reader should know."""
    found: list[Found] = []
    vectors: list[NDArray[np.float32]] = []
    touching: set[tuple[int, int]] = set()
    for label, box, inside in each_lesion(mask, scan.grid, options.least_mm3):
        if method == "given":
            touching |= {(min(label, other), max(label, other)) for other in lesions.neighbours(mask, label, box, inside)}
        size = lesions.measure_lesion(inside, box, scan.grid, scan)
        vector = appearance.vector(inside, box, size, scan)
        vectors.append(vector)
        name = f"lesion-{len(found) + 1}"
        organ = study.organs.get(label) or None
        found.append(Found(name, size, label, organ, label in study.nodes, method, tuple(float(v) for v in vector)))
    table = np.stack(vectors) if vectors else np.zeros((0, appearance.DIMENSIONS), np.float32)
    pairs = ", ".join(f"{one} and {other}" for one, other in sorted(touching))
    said = f"labels {pairs} of the mask touch, and count as lesions of their own; give the parts of one lesion one label"
    # What a model leaves in specks is noise; what a person drew may be what is left of a lesion.
    left = (int(np.count_nonzero(mask)) - sum(f.size.voxels for f in found)) * scan.grid.voxel_mm3
    specks = f"specks below {options.least_mm3:g} mm³ ({left:.3g} mm³ in all) are no lesions; one that shrank so far counts as gone"
    return tuple(found), table, (*((said,) if touching else ()), *((specks,) if left > 0 and method == "given" else ()))

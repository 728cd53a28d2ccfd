"""A registration in files: what SimpleITK makes of them is where `carry` leads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from isocenter.analysis.tracking import transforms
from isocenter.analysis.tracking.deform import Region, carry

MATRIX = np.array([[1.01, 0.02, 0.0, 5.0], [-0.02, 0.99, 0.01, -3.0], [0.0, 0.0, 1.0, 8.0], [0.0, 0.0, 0.0, 1.0]])


def region(name: str, low: int, shape: tuple[int, int, int], step: float, inside: Any, reason: str = "") -> Region:
    """A smooth field over part of a body."""
    z, y, x = np.indices(shape) * step
    shift = np.stack([np.sin(x / 20) + low, np.cos(y / 25), 0.02 * z], axis=-1).astype(np.float32)
    held = np.zeros(shape, bool)
    held[inside] = True
    return Region(name, shift, held, (10.0, -20.0, 30.0), step, (0.5, 0.9), (0.1, 0.2), 0.0, (0.5, 1.5), reason)


def test_simpleitk_reads_what_was_written(tmp_path: Path) -> None:
    lungs = region("lungs", 2, (20, 20, 20), 2.0, np.s_[5:15, 5:15, 5:15])
    body = region("body", -2, (14, 14, 14), 3.0, np.s_[:])
    found = transforms.field_of((lungs, body))
    assert found is not None
    assert found.step == 2.0
    transforms.write_affine(tmp_path / "a.tfm", MATRIX)
    transforms.write_field(tmp_path / "f.nii.gz", found)
    field = sitk.DisplacementFieldTransform(sitk.ReadImage(str(tmp_path / "f.nii.gz"), sitk.sitkVectorFloat64))
    both = sitk.CompositeTransform([sitk.ReadTransform(str(tmp_path / "a.tfm")), field])
    rng = np.random.default_rng(1)
    deep = np.array([10.0, -20.0, 30.0]) + rng.uniform(14, 26, (20, 3))  # well within the lungs
    beside = np.array([10.0, -20.0, 30.0]) + np.column_stack([rng.uniform(31, 36, 20), rng.uniform(3, 36, (20, 2))])
    points = np.concatenate([deep, beside])
    theirs = np.array([both.TransformPoint(p.tolist()) for p in points])
    assert np.abs(theirs - carry(points, MATRIX, (lungs, body))).max() < 0.05
    again = transforms.read_field(tmp_path / "f.nii.gz")
    assert again is not None
    ours = (points + again.at(points)) @ MATRIX[:3, :3].T + MATRIX[:3, 3]
    assert np.abs(ours - theirs).max() < 1e-4


def test_a_field_that_was_refused_is_not_in_it(tmp_path: Path) -> None:
    lungs = region("lungs", 2, (20, 20, 20), 2.0, np.s_[5:15, 5:15, 5:15])
    body = region("body", -2, (14, 14, 14), 3.0, np.s_[:], reason="folded")
    found = transforms.field_of((lungs, body))
    assert found is not None
    away = np.array([[44.0, 0.0, 50.0]])
    assert not found.at(away).any()
    assert found.at(np.array([[30.0, 0.0, 50.0]])).any()
    assert transforms.field_of((body,)) is None
    assert transforms.field_of(()) is None
    assert transforms.read_field(tmp_path / "none.nii.gz") is None

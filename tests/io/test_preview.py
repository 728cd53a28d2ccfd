"""The picture of an answer: sides, planes and proportions are a radiologist's, whatever way the scan is stored."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from isocenter.core.geometry import Grid
from isocenter.core.provenance import Provenance
from isocenter.core.segmentation import Label, Segmentation
from isocenter.core.settings import Limits
from isocenter.core.terminology import label
from isocenter.core.volume import Source, Volume
from isocenter.io import door, preview

RED = (255, 0, 0)


def drawn(data: bytes) -> NDArray[np.uint8]:
    image = Image.open(io.BytesIO(data))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB"))


def answer(volume: Volume, mask: NDArray[np.uint8], *labels: Label) -> Segmentation:
    return Segmentation(mask, volume.grid, labels or (Label(1, "thing", colour=RED),), Provenance("tissue", "1.0", volume.key))


def reddish(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    wide = picture.astype(int)
    return (wide[..., 0] > wide[..., 1] + 60) & (wide[..., 0] > wide[..., 2] + 60)


def corner_blob(directions: tuple[int, int, int], order: tuple[int, int, int]) -> tuple[Volume, NDArray[np.uint8]]:
    """40 x 40 x 40 mm with a blob in the patient's right, anterior, superior corner, its axes stored in any order and sense."""
    mask = np.zeros((40, 40, 40), np.uint8)
    mask[30:36, 4:10, 4:10] = 1  # LPS: superior, anterior, right
    affine = np.eye(4)
    array = mask
    for axis, sense in enumerate(directions):  # x, y, z
        if sense < 0:
            array = np.flip(array, 2 - axis)
            affine[axis, axis], affine[axis, 3] = -1, 39
    columns = affine[:, [*order, 3]]
    array = np.transpose(array, [2 - order[2 - i] for i in range(3)])
    return Volume.on_grid(np.zeros((40, 40, 40), np.int16), Grid.from_affine_lps(columns, (40, 40, 40))), np.ascontiguousarray(array)


@pytest.mark.parametrize("directions", list(itertools.product((1, -1), repeat=3)))
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_all_orientations_show_the_same_picture(directions: tuple[int, int, int], order: tuple[int, int, int]) -> None:
    volume, mask = corner_blob(directions, order)
    picture = drawn(preview.png(volume, answer(volume, mask)))
    red = reddish(picture)[:430]
    width = red.shape[1] // 3
    centres = [np.argwhere(red[:, i * width : (i + 1) * width]).mean(axis=0) / (red.shape[0], width) for i in range(3)]
    axial, coronal, sagittal = centres
    assert axial[1] < 0.4  # the patient's right on the left
    assert axial[0] < 0.4  # anterior up
    assert coronal[1] < 0.4
    assert coronal[0] < 0.4  # superior up
    assert sagittal[1] < 0.4  # anterior on the left
    assert sagittal[0] < 0.4


def test_proportions_are_those_of_the_patient() -> None:
    volume = Volume(np.zeros((10, 80, 80), np.int16), spacing=(1, 1, 8))
    mask = np.zeros(volume.shape, np.uint8)
    mask[2:8, 16:64, 16:64] = 1  # 48 mm along each axis
    red = reddish(drawn(preview.png(volume, answer(volume, mask))))[:430]
    width = red.shape[1] // 3
    for i in range(3):
        panel = np.argwhere(red[:, i * width : (i + 1) * width])
        height, breadth = panel.max(axis=0) - panel.min(axis=0) + 1
        assert height == pytest.approx(breadth, rel=0.06)


def test_a_picture_is_shown_as_one_plane_without_millimetres() -> None:
    volume = Volume(np.full((1, 50, 80), 100, np.uint8), source=Source("picture"))
    mask = np.zeros(volume.shape, np.uint8)
    mask[0, 10:20, 10:30] = 1
    picture = drawn(preview.png(volume, answer(volume, mask)))
    rows, columns = np.argwhere(reddish(picture)[: picture.shape[0] - 70]).T
    assert (columns.max() - columns.min()) == pytest.approx(2 * (rows.max() - rows.min()), rel=0.05)


@pytest.mark.parametrize("height", [8, 20, 40, 59, 60, 72, 89, 90, 200])
def test_no_caption_covers_another(height: int) -> None:
    """On the flat planes of few slices the plane's name stood on the letter of its left side."""
    draw = ImageDraw.Draw(Image.new("RGB", (400, 400)))
    plane = preview.Plane("sagittal", 2, 123, 256, (height, 300.0), "APSI")
    captions = preview.captions(plane, height, 300)
    assert [text for text, _, _ in captions] == [*"APSI"[: 4 if height >= 90 else 2], "sagittal 124/256"]
    font = ImageFont.load_default(13)
    boxes = [draw.textbbox((x + 50, y + 50), text, font=font, anchor=anchor, stroke_width=1) for text, (x, y), anchor in captions]
    for a, b in itertools.combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (a, b)


def test_odd_volumes() -> None:
    for array in (np.zeros((3, 4, 5)), np.full((1, 1, 7), 3.0), np.zeros((60, 2, 2), np.uint8), np.zeros((1, 1, 1)), np.ones((4, 400, 3))):
        volume = Volume(array)
        drawn(preview.png(volume))
        drawn(preview.png(volume, answer(volume, np.ones(array.shape, np.uint8))))
        drawn(preview.png(volume, answer(volume, np.zeros(array.shape, np.uint8), *(label(f"name {i}", i) for i in range(1, 60)))))


def test_labels_of_like_colours_can_be_told_apart() -> None:
    volume = Volume(np.zeros((30, 60, 60), np.int16))
    mask = np.zeros(volume.shape, np.uint8)
    mask[5:25, 5:25, 5:55], mask[5:25, 35:55, 5:55] = 1, 2
    picture = drawn(preview.png(volume, answer(volume, mask, label("liver", 1), label("kidneys", 2))))
    colours, counts = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
    strong = colours[(counts > 100) & (np.ptp(colours, axis=1) > 60)].astype(int)
    assert np.linalg.norm(strong[:, None] - strong[None], axis=-1).max() > 75


def test_a_real_ct_has_its_window(data: Path) -> None:
    volume = door.read_path(data / "totalsegmentator/example_ct_sm.nii.gz", limits=Limits())
    picture = drawn(preview.png(volume))
    assert picture.max() > 240
    assert np.isin(picture.reshape(-1, 3).mean(axis=1).round(), range(100, 180)).mean() > 0.05  # soft tissue is mid-grey

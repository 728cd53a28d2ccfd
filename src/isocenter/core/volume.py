"""`Volume`: a scan, its place in the patient, and what is known of where it came from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from isocenter.core.errors import GeometryError, InputError
from isocenter.core.geometry import IDENTITY, Grid, Triple


@dataclass(frozen=True)
class Series:
    """One DICOM series seen in the input (also those that were not chosen)."""

    uid: str
    modality: str
    images: int
    rows: int = 0
    columns: int = 0


@dataclass(frozen=True)
class Source:
    """Where a volume came from, as far as an answer in the same format needs it. Holds no text for people to read.

    format: "nifti", "dicom", "nrrd", "metaimage", "picture" or "array". notes: sentences on what reading changed or
    guessed, shown with the answer. header: the NIfTI header's bytes (so that a mask repeats its affine bit by bit).
    headers: per slice, in array order, the DICOM file without its pixels (for DICOM SEG). series: all that were found;
    series_uid: the one chosen. flipped: the array runs against the instance numbers (MONAI Label's `flipped`).
    """

    format: str = "array"
    notes: tuple[str, ...] = ()
    header: bytes | None = None
    headers: tuple[bytes, ...] = field(default=(), repr=False)
    series: tuple[Series, ...] = ()
    series_uid: str | None = None
    flipped: bool = False


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan that is ready to use.

    array: (z, y, x), C-contiguous, read-only, of a real number type. spacing (mm), origin (mm) and direction as ITK has
    them, in (x, y, z) and LPS. modality: a DICOM modality such as "CT" and "MR", or None when nobody knows. unit: "HU"
    or "a.u.". key: hash of voxels and geometry, made when not given; it never depends on a file or folder name.
    Raises `InputError` or `GeometryError` when any of it does not fit.
    """

    array: NDArray[np.generic]
    spacing: Triple = (1.0, 1.0, 1.0)
    origin: Triple = (0.0, 0.0, 0.0)
    direction: tuple[Triple, Triple, Triple] = IDENTITY
    modality: str | None = None
    unit: str = "a.u."
    key: str = ""
    source: Source = field(default_factory=Source)

    def __post_init__(self) -> None:
        array = self.array
        if array.ndim != 3:
            raise GeometryError(f"a volume needs three axes (z, y, x), not {array.ndim}")
        if array.dtype.kind not in "iufb":
            raise InputError(f"voxels must be real numbers, not {array.dtype}")
        # Native byte order and C order once, here, so that no kernel behind has to ask.
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
        array = array.view()
        array.flags.writeable = False
        object.__setattr__(self, "array", array)
        z, y, x = array.shape
        object.__setattr__(self, "_grid", Grid((z, y, x), self.spacing, self.origin, self.direction))
        if not self.key:
            object.__setattr__(self, "key", content_key(array, self.grid))

    @classmethod
    def on_grid(
        cls, array: NDArray[np.generic], grid: Grid, *, modality: str | None = None, unit: str = "a.u.", key: str = "", source: Source | None = None
    ) -> Volume:
        """A volume of `array` (z, y, x) on `grid`."""
        if tuple(array.shape) != grid.shape:
            raise GeometryError(f"the array has shape {array.shape}, its grid {grid.shape}")
        return cls(array, grid.spacing, grid.origin, grid.direction, modality, unit, key, source or Source())

    @property
    def grid(self) -> Grid:
        """Shape and place of the voxels."""
        return self._grid  # type: ignore[attr-defined, no-any-return]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels (z, y, x)."""
        return self.grid.shape

    @property
    def spacing_zyx(self) -> Triple:
        """Spacing in the order of the array's axes, mm."""
        return self.grid.spacing_zyx

    def with_modality(self, modality: str | None, unit: str, *notes: str) -> Volume:
        """The same voxels with another modality; `notes` are added to those of the source."""
        source = replace(self.source, notes=self.source.notes + notes)
        return replace(self, modality=modality, unit=unit, source=source)

    def __repr__(self) -> str:
        z, y, x = self.shape
        spacing = " x ".join(f"{s:.4g}" for s in self.spacing)
        return (
            f"Volume({x} x {y} x {z} voxels of {spacing} mm, {self.grid.orientation}, {self.modality or 'unknown modality'}, "
            f"{self.array.dtype}, {self.array.nbytes / 1e6:.1f} MB, {self.key[:12]})"
        )


def content_key(array: NDArray[np.generic], grid: Grid) -> str:
    """Hash of voxels and geometry, 32 hexadecimal digits: equal exactly when both are equal (BLAKE3, cut to 128 bits)."""
    digest = blake3()
    digest.update(repr((array.dtype.str, grid)).encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:32]

"""`Volume`: a scan, its place in the patient, and what is known of where it came from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from isocenter.core.errors import GeometryError, InputError
from isocenter.core.geometry import IDENTITY, Grid, Triple
from isocenter.core.rescaled import Rescaled, Voxels

Scale = Literal["full", "plane", "none"]


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
    scale: "full"; "plane" where the file of a single slice does not say how thick it is, so that no volume can be had; "none" where
    it does not say how large its pixels are, so that no length can be had either.
    """

    format: str = "array"
    notes: tuple[str, ...] = ()
    header: bytes | None = None
    headers: tuple[bytes, ...] = field(default=(), repr=False)
    series: tuple[Series, ...] = ()
    series_uid: str | None = None
    flipped: bool = False
    scale: Scale = "full"


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan that is ready to use.

    voxels: (z, y, x), C-contiguous, read-only, of a real number type: an array, or integers that become float32 where they
    are looked at (`Rescaled`). `voxels[...]` and iteration give parts of it as arrays, `array` all of it. spacing (mm),
    origin (mm) and direction as ITK has them, in (x, y, z) and LPS. modality: a DICOM modality such as "CT" and "MR", or
    None when nobody knows. unit: "HU" or "a.u.". key: hash of voxels and geometry, made when not given; it never depends on
    a file or folder name.
    Raises `InputError` or `GeometryError` when any of it does not fit.
    """

    voxels: Voxels
    spacing: Triple = (1.0, 1.0, 1.0)
    origin: Triple = (0.0, 0.0, 0.0)
    direction: tuple[Triple, Triple, Triple] = IDENTITY
    modality: str | None = None
    unit: str = "a.u."
    key: str = ""
    source: Source = field(default_factory=Source)

    def __post_init__(self) -> None:
        voxels = self.voxels
        if voxels.ndim != 3:
            raise GeometryError(f"a volume needs three axes (z, y, x), not {voxels.ndim}")
        if not isinstance(voxels, Rescaled):
            if voxels.dtype.kind not in "iufb":
                raise InputError(f"voxels must be real numbers, not {voxels.dtype}")
            # Native byte order and C order once, here, so that no kernel behind has to ask.
            voxels = np.ascontiguousarray(voxels, dtype=voxels.dtype.newbyteorder("=")).view()
            voxels.flags.writeable = False
            object.__setattr__(self, "voxels", voxels)
        z, y, x = voxels.shape
        object.__setattr__(self, "_grid", Grid((z, y, x), self.spacing, self.origin, self.direction))
        if not self.key:
            object.__setattr__(self, "key", content_key(voxels, self.grid))

    @classmethod
    def on_grid(
        cls, array: Voxels, grid: Grid, *, modality: str | None = None, unit: str = "a.u.", key: str = "", source: Source | None = None
    ) -> Volume:
        """A volume of `array` (z, y, x) on `grid`."""
        if tuple(array.shape) != grid.shape:
            raise GeometryError(f"the array has shape {array.shape}, its grid {grid.shape}")
        return cls(array, grid.spacing, grid.origin, grid.direction, modality, unit, key, source or Source())

    @property
    def array(self) -> NDArray[np.generic]:
        """All voxels. Of `Rescaled` ones a float32 array that is made here: hold it while it is needed, no longer."""
        return self.voxels.whole() if isinstance(self.voxels, Rescaled) else self.voxels

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The numbers' type as `array` has it."""
        return self.voxels.dtype

    @property
    def nbytes(self) -> int:
        """Memory of the voxels as they are kept."""
        return self.voxels.nbytes

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
            f"{self.dtype}, {self.nbytes / 1e6:.1f} MB, {self.key[:12]})"
        )


def content_key(voxels: Voxels, grid: Grid) -> str:
    """Hash of voxels and geometry, 32 hexadecimal digits: equal exactly when both are equal (BLAKE3, cut to 128 bits).

    `Rescaled` voxels are hashed as they are stored, with their line.
    """
    digest = blake3()
    if isinstance(voxels, Rescaled):
        digest.update(repr((voxels.slope, voxels.inter)).encode())
        voxels = voxels.stored
    digest.update(repr((voxels.dtype.str, grid)).encode())
    digest.update(np.ascontiguousarray(voxels).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:32]

"""`config.json`: what is known of a network beside its file, in the style of nnU-Net's plans.

See docs/models-onnx.md for every key. What is not there is the default of nnU-Net; what is there and cannot be meant is a
`ModelError` that names the key.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from isocenter.core import terminology
from isocenter.core.errors import ModelError
from isocenter.core.segmentation import Label

Shape = tuple[int, int, int]
Triple = tuple[float, float, float]
MAX_CONFIG_BYTES = 16 * 1024 * 1024


class Inference(StrEnum):
    """How a network is brought over a volume that is larger than its input."""

    SLIDING_WINDOW = "sliding_window"  #: overlapping windows of `patch`, blended
    FULLY_CONVOLUTIONAL = "fully_convolutional"  #: the whole volume at once, or in tiles that know their surroundings
    FIXED = "fixed"  #: the whole volume stretched to `patch`


class Scheme(StrEnum):
    """How intensities become the network's input, by nnU-Net's names."""

    CT = "CTNormalization"
    Z_SCORE = "ZScoreNormalization"
    UNIT = "RescaleTo01Normalization"
    RGB = "RGBTo01Normalization"
    QUANTILE = "QuantileNormalization"  #: two percentiles to 0 and 1, cut off there
    NONE = "NoNormalization"


#: Model types and the way of inference that they stand for.
_TYPES = {"nnunet": Inference.SLIDING_WINDOW, "meshnet": Inference.FULLY_CONVOLUTIONAL, **{kind.value: kind for kind in Inference}}


@dataclass(frozen=True)
class Plan:
    """A configuration that is complete. Shapes, spacings (mm) and axes are in the network's own (z, y, x).

    orientation: where the network's x, y, z point in the patient. patch: the window, or the input of a fixed network; None:
    what the network says. spacing: None leaves the scan's own. properties: intensities of the training data (mean, std, percentiles).
    flat: the network takes slices; `patch`, `halo` and `tile` are one slice deep, the spacing of slices is the scan's own.
    classes: channels of the output, background among them; 1 for a single probability or logit that is cut at `threshold`.
    halo: how far a fully convolutional network looks around each voxel. multiple: its input's sizes must be multiples of it.
    step: distance of windows as a part of `patch`; even: spread evenly (nnU-Net) or each a step on (MONAI).
    mirror: axes of test-time mirroring; mirrored: whether it is done unless asked otherwise. largest: labels of which only the
    largest component is kept. crop: leave out the margin of zeros.
    """

    network: str
    inference: Inference
    patch: Shape | None
    spacing: Triple | None
    orientation: str
    scheme: Scheme
    properties: Mapping[str, float]
    masked: bool
    labels: tuple[Label, ...]
    classes: int
    threshold: float
    modality: str
    halo: Shape | None
    multiple: int
    tile: Shape | None
    step: float
    gaussian: bool
    even: bool
    mirror: tuple[int, ...]
    mirrored: bool
    largest: tuple[str, ...]
    crop: bool
    synonyms: Mapping[str, str]
    about: Mapping[str, str]
    flat: bool = False


def read(folder: Path) -> dict[str, Any]:
    """The configuration in a folder as it stands. Raises `ModelError`."""
    path = folder / "config.json"
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ModelError("config.json is too large to be a network's configuration")
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ModelError(f"the model folder '{folder.name}' has no config.json; docs/models-onnx.md says what it holds") from None
    except (OSError, ValueError, RecursionError):
        raise ModelError(f"config.json of the model '{folder.name}' is not readable JSON") from None
    if not isinstance(found, dict):
        raise ModelError(f"config.json of the model '{folder.name}' must be a JSON object")
    return found


def parse(raw: Mapping[str, Any], network: str) -> Plan:
    """The plan that a configuration stands for; `network` is the file's name, for messages."""
    if not {"model_type", "model_parameters", "dataset_parameters", "postprocessing"} & set(raw):
        raise ModelError("config.json says nothing of a network: it has none of model_type, model_parameters and dataset_parameters")
    parameters, dataset = _mapping(raw, "model_parameters"), _mapping(raw, "dataset_parameters")
    kind = str(raw.get("model_type", "nnunet")).lower()
    if kind not in _TYPES:
        raise ModelError(f"config.json: model_type '{kind[:40]}' is not run here; there are: {', '.join(_TYPES)}")
    inference = _TYPES[kind]
    if "inference" in parameters:
        inference = _choice(Inference, parameters["inference"], "inference")
    scheme, masked = _scheme(parameters)
    channels = dataset.get("channels", {})
    if isinstance(channels, Mapping | list) and len(channels) > 1:
        raise ModelError(f"config.json: the network takes {len(channels)} channels (several scans of one patient); only one is possible here")
    channel = _mapping(channels, "0") if isinstance(channels, Mapping) else {}
    labels, classes = _classes(dataset)
    post = _mapping(raw, "postprocessing")
    given = parameters.get("patch_size")
    flat = isinstance(given, list) and len(given) == 2
    return Plan(
        network=network,
        inference=inference,
        patch=_shape(parameters, "patch_size", flat=flat),
        spacing=None if inference is Inference.FIXED else _spacing(parameters, flat),
        orientation=_orientation(parameters.get("orientation", "LPS")),
        scheme=scheme,
        properties=_numbers(_mapping(channel, "foreground_properties") or _mapping(parameters, "normalization_parameters")),
        masked=masked,
        labels=labels,
        classes=classes,
        threshold=_number(parameters, "threshold", 0.5, -1e6, 1e6),
        modality=_modality(raw, dataset, channel, scheme),
        halo=_shape(parameters, "halo", flat=flat, least=0, slices=0),
        multiple=int(_number(parameters, "size_multiple", 1, 1, 1024)),
        tile=_shape(parameters, "tile_size", flat=flat),
        step=_number(parameters, "step_size", 0.5, 0.05, 1),
        gaussian=bool(parameters.get("use_gaussian", True)),
        even=str(parameters.get("window_placement", "even")) != "dense",
        mirror=_axes(parameters, flat),
        mirrored=bool(parameters.get("use_tta", False)),
        largest=_largest(post.get("keep_largest", []), labels),
        crop=bool(parameters.get("crop_to_nonzero", inference is Inference.SLIDING_WINDOW)),
        synonyms={str(word): str(name) for word, name in _mapping(dataset, "synonyms").items()},
        about={key: str(raw[key]) for key in ("name", "version", "description", "license", "licence", "citation") if raw.get(key)},
        flat=flat,
    )


def _mapping(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = raw.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ModelError(f"config.json: {key} must be an object")
    return value


def _number(raw: Mapping[str, Any], key: str, default: float, low: float, high: float) -> float:
    value = raw.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not low <= value <= high:
        raise ModelError(f"config.json: {key} must be a number of {low:g} to {high:g}")
    return float(value)


def _numbers(raw: Mapping[str, Any]) -> dict[str, float]:
    """What is a finite number in an object."""
    return {k: float(v) for k, v in raw.items() if isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)}


def _axis_values(raw: Mapping[str, Any], key: str, flat: bool) -> list[float] | None:
    """A number an axis: [Z, Y, X], or [Y, X] of a network of slices."""
    value, count = raw.get(key), 2 if flat else 3
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != count or len(_numbers({str(i): v for i, v in enumerate(value)})) != count:
        if key == "patch_size":
            raise ModelError("config.json: patch_size must be three numbers [Z, Y, X], or two [Y, X] of a network of slices")
        why = "two numbers [Y, X], as patch_size has two" if flat else "three numbers [Z, Y, X]"
        raise ModelError(f"config.json: {key} must be {why}")
    return [float(v) for v in value]


def _shape(raw: Mapping[str, Any], key: str, *, flat: bool, least: int = 1, slices: int = 1) -> Shape | None:
    """slices: the size across the slices of a network that takes these."""
    value = raw.get(key)
    single = isinstance(value, int) and not isinstance(value, bool)
    sizes = _axis_values({key: [value] * (2 if flat else 3)} if single else raw, key, flat)
    if sizes is None:
        return None
    if any(n != int(n) or not least <= n <= 4096 for n in sizes):
        raise ModelError(f"config.json: {key} must be whole numbers of {least} to 4096")
    z, y, x = [slices, *sizes] if flat else sizes
    return int(z), int(y), int(x)


def _spacing(raw: Mapping[str, Any], flat: bool) -> Triple | None:
    if "spacing" in raw and raw["spacing"] is None:
        return None
    value = _axis_values(raw, "spacing", flat) or [1.0, 1.0, 1.0][flat:]
    if min(value) < 0.01 or max(value) > 100:
        kind = "two numbers of 0.01 to 100 mm [Y, X]" if flat else "three numbers of 0.01 to 100 mm [Z, Y, X]"
        raise ModelError(f"config.json: spacing must be {kind}, or null for the scan's own")
    z, y, x = [1.0, *value] if flat else value
    return z, y, x


def _orientation(value: Any) -> str:
    letters = str(value).upper()
    if len(letters) != 3 or {"LRPASI".find(letter) // 2 for letter in letters} != {0, 1, 2}:
        raise ModelError('config.json: orientation must be three letters such as "LPS": where the network\'s x, y and z point')
    return letters


def _choice(kinds: type[Inference], value: Any, key: str) -> Inference:
    try:
        return kinds(value)
    except ValueError:
        raise ModelError(f"config.json: {key} must be one of {', '.join(kinds)}") from None


def _scheme(parameters: Mapping[str, Any]) -> tuple[Scheme, bool]:
    schemes = parameters.get("normalization_schemes", [Scheme.CT.value])
    name = schemes[0] if isinstance(schemes, list) and schemes else schemes
    try:
        scheme = Scheme(name)
    except ValueError:
        raise ModelError(f"config.json: the normalisation '{str(name)[:40]}' is not known; there are: {', '.join(Scheme)}") from None
    masks = parameters.get("use_mask_for_norm", False)
    return scheme, bool(masks[0] if isinstance(masks, list) and masks else masks)


def _classes(dataset: Mapping[str, Any]) -> tuple[tuple[Label, ...], int]:
    """Labels, without the background, and how many channels the output has."""
    names = dataset.get("class_names", {})
    if isinstance(names, list):
        names = {str(i): name for i, name in enumerate(names)}
    if not isinstance(names, Mapping) or not all(str(k).isdigit() and isinstance(v, str) and v.strip() for k, v in names.items()):
        raise ModelError('config.json: class_names must be an object such as {"1": "liver"}')
    named = {int(k): v.strip() for k, v in names.items() if int(k) > 0}
    classes = int(_number(dataset, "num_classes", max(named, default=1) + 1, 1, 65_536))
    if named and max(named) >= max(classes, 2):
        raise ModelError(f"config.json: class {max(named)} is named, but num_classes is {classes} (the background counted)")
    values = range(1, max(classes, 2))
    if len({named.get(v, f"class_{v}") for v in values}) < len(values):
        raise ModelError("config.json: two classes have the same name")
    return tuple(terminology.label(_tidy(named.get(value, f"class_{value}")), value) for value in values), classes


def _tidy(name: str) -> str:
    """A class's name as the house writes them: lower case, words joined by underscores."""
    return "_".join("".join(c if c.isalnum() else " " for c in name.lower()).split()) or "class"


def _modality(raw: Mapping[str, Any], dataset: Mapping[str, Any], channel: Mapping[str, Any], scheme: Scheme) -> str:
    """The DICOM modality that the network is for; "" for any."""
    said = dataset.get("modality") or raw.get("modality") or channel.get("name") or ""
    word = str(said).upper().replace("MRI", "MR").replace("_", " ").split() or [""]
    known = next((m for m in ("CT", "MR", "PT", "US") if m in word or (m == "MR" and word[0] in ("T1", "T2", "FLAIR", "T1W", "T2W"))), "")
    return known or ("CT" if scheme is Scheme.CT else "")


def _axes(raw: Mapping[str, Any], flat: bool) -> tuple[int, ...]:
    """Axes of mirroring among (z, y, x); a network of slices counts its own, 0 for y and 1 for x."""
    count = 2 if flat else 3
    value = raw.get("mirror_axes", list(range(count)))
    if not isinstance(value, list) or not all(isinstance(axis, int) and 0 <= axis < count for axis in value):
        names = "0 (y) and 1 (x)" if flat else "0 (z), 1 (y) and 2 (x)"
        raise ModelError(f"config.json: mirror_axes must be a list of {names}")
    return tuple(sorted({axis + flat for axis in value}))


def _largest(value: Any, labels: Sequence[Label]) -> tuple[str, ...]:
    """Names of the labels of which the largest component is kept: true for all, or a list of names or numbers."""
    if isinstance(value, bool):
        return tuple(label.name for label in labels) if value else ()
    by_key = {**{label.name: label.name for label in labels}, **{str(label.value): label.name for label in labels}}
    try:
        return tuple(by_key[_tidy(str(item))] for item in value)
    except (TypeError, KeyError):
        raise ModelError("config.json: keep_largest must be true, false or a list of class names") from None

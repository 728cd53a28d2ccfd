"""A trained-model folder of nnU-Net v2, as far as it can be known without torch.

    plans.json  dataset.json  fold_0/checkpoint_final.pth  [fold_1/... fold_all/...]

Everything that the plans name is code of nnU-Net that will be called, so only names of the right kind are let through.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from isocenter.core import terminology
from isocenter.core.errors import ModelError
from isocenter.core.segmentation import Label
from isocenter.models import _weights

#: In the order of preference; safetensors hold no code at all.
CHECKPOINTS = ("checkpoint_final.safetensors", "checkpoint_final.pth", "checkpoint_best.safetensors", "checkpoint_best.pth")
READERS = ("SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient", "Tiff3DIO", "NaturalImage2DIO")
NORMALISATIONS = ("CTNormalization", "ZScoreNormalization", "NoNormalization", "RescaleTo01Normalization", "RGBTo01Normalization")
RESAMPLINGS = ("resample_data_or_seg_to_shape", "resample_torch_simple", "resample_torch_fornnunet", "no_resampling_hack")
_NETWORK = re.compile(r"dynamic_network_architectures\.architectures\.[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_MODULE = re.compile(r"torch\.nn(\.[A-Za-z_]\w*)+")
_ORIENTATION = re.compile(r"[LRAPSI]{3}")
_MR = {"mri", "mr", "t1", "t1w", "t1c", "t1ce", "t1gd", "t2", "t2w", "flair", "adc", "dwi", "pd", "swi"}
#: How far below the folder given the trained model may lie: archives hold `Dataset291_.../nnUNetTrainer__.../`.
_DEPTH = 3


@dataclass(frozen=True)
class Trained:
    """What a folder says of itself.

    name: the configuration, "3d_fullres". checkpoints: one a fold. orientation: where x, y and z of the arrays point that
    the network was trained on ("RAS"), None where nobody says. regions: labels are nested regions.
    """

    folder: Path
    name: str
    plans: Mapping[str, Any]
    dataset: Mapping[str, Any]
    configuration: Mapping[str, Any]
    checkpoints: tuple[Path, ...]
    labels: tuple[Label, ...]
    regions: bool
    modality: str | None
    orientation: str | None

    @property
    def heads(self) -> int:
        """Channels of the network's output."""
        return len(self.labels) if self.regions else len(self.labels) + 1


def read(folder: Path, options: Mapping[str, Any]) -> Trained:
    """The trained model in or below `folder`. Raises `ModelError` for one that cannot be used here.

    options: `configuration`, `folds` and `orientation`, where the folder does not say or the catalog knows better.
    """
    folder = find(folder)
    plans, dataset = read_json(folder / "plans.json"), read_json(folder / "dataset.json")
    try:
        return _trained(folder, plans, dataset, options)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        raise ModelError("plans.json or dataset.json is not as nnU-Net v2 writes it; models of nnU-Net v1 are not supported") from None


def read_all(folder: Path, options: Mapping[str, Any]) -> tuple[Trained, ...]:
    """The trained model in or below `folder`, or all of them in the order of their names, where `options` has `parts`: each then
    knows some of the structures, and their answers are one. Raises `ModelError` for one that cannot be used here.
    """
    if not options.get("parts"):
        return (read(folder, options),)
    parts = tuple(read(place, options) for place in _all(folder))
    names = [label.name for part in parts for label in part.labels]
    if not parts or len(set(names)) != len(names):
        raise ModelError("the folder's networks are no parts of one answer: there are none, or two of them name the same structure")
    if len({(part.modality, part.orientation) for part in parts}) != 1:
        raise ModelError("the folder's networks are no parts of one answer: they were trained on scans of different kinds")
    return parts


def joined(parts: Sequence[Trained], names: Sequence[str] = ()) -> tuple[Label, ...]:
    """The labels of all parts, numbered on from part to part, which for TotalSegmentator's five is its own numbering 1 to 117.

    names: what the publisher's program calls the values 1, 2, 3 and so on, whatever the folder says; TotalSegmentator names
    its structures by such a table. Taken where there is one for each label.
    """
    labels = parts[0].labels
    if len(parts) > 1:
        every = [label for part in parts for label in sorted(part.labels, key=lambda label: label.value)]
        labels = tuple(replace(label, value=number) for number, label in enumerate(every, start=1))
    if len(names) != len(labels) or any(part.regions for part in parts):
        return labels
    return tuple(terminology.label(names[label.value - 1].lower(), label.value) for label in labels)


def _trained(folder: Path, plans: dict[str, Any], dataset: dict[str, Any], options: Mapping[str, Any]) -> Trained:
    name = _configuration(folder, plans, options)
    configuration = inherited(plans["configurations"], name)
    _check_plans(plans, configuration, name)
    channels = list((dataset.get("channel_names") or dataset["modality"]).values())
    if len(channels) != 1:
        raise ModelError(
            f"the network takes {len(channels)} images at once ({', '.join(map(str, channels))[:80]}); only networks of one image are supported"
        )
    labels, regions = _labels(dataset)
    orientation = (
        options.get("orientation") or dataset.get("orientation") or ("RAS" if plans["image_reader_writer"].endswith("WithReorient") else None)
    )
    if orientation is not None and not is_orientation(orientation):
        raise ModelError('the orientation must be three letters such as "RAS", one for each of x, y and z')
    paths = checkpoints(folder, options.get("folds"))
    channel = str(channels[0]).lower()
    modality = "CT" if "ct" in re.split(r"[^a-z]+", channel) else "MR" if channel in _MR else None
    return Trained(folder, name, plans, dataset, configuration, paths, labels, regions, modality, orientation)


def is_orientation(text: Any) -> bool:
    """Whether this names a direction for each of x, y and z, as "RAS" does."""
    return isinstance(text, str) and bool(_ORIENTATION.fullmatch(text)) and all(any(c in pair for c in text) for pair in ("LR", "AP", "SI"))


def find(folder: Path) -> Path:
    """The one folder in or below this one that holds a trained model."""
    found = _all(folder)
    if len(found) > 1:
        raise ModelError(f"the folder holds {len(found)} trained models; give each a folder of its own")
    if not found:
        raise ModelError("the folder holds no plans.json beside a dataset.json, so it is no trained model of nnU-Net v2")
    return found[0]


def _all(folder: Path) -> list[Path]:
    """The folders in or below this one that hold a trained model, at the first depth at which there are any, by name."""
    if not folder.is_dir():
        raise ModelError("there is no such folder; install the model again")
    for depth in range(_DEPTH):
        if found := sorted(p.parent for p in folder.glob("*/" * depth + "plans.json") if (p.parent / "dataset.json").is_file()):
            return found
    return []


def read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise ModelError(f"its {path.name} cannot be read; is it valid JSON?") from None
    if not isinstance(data, dict):
        raise ModelError(f"its {path.name} is not a JSON object")
    return data


def _configuration(folder: Path, plans: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """Which of the plans' configurations was trained: as the folder's name, the options or the plans themselves say.

    nnU-Net names the folder after what it trained, so that name knows best; plans hold many configurations.
    """
    there = list(plans["configurations"])
    _, named, trained = folder.name.rpartition("__")
    name = trained if named and trained in there else options.get("configuration")
    if name in there:
        return str(name)
    for usual in ("3d_fullres", "3d_lowres", "2d"):
        if usual in there:
            return usual
    if len(there) == 1:
        return str(there[0])
    raise ModelError(f"plans.json has no configuration '{str(name)[:40]}'; it has: {', '.join(there)[:120]}")


def inherited(configurations: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A configuration with what it takes over from others."""
    chain: list[Mapping[str, Any]] = []
    wanted: str | None = name
    while wanted is not None:
        if len(chain) > len(configurations):
            raise ModelError("configurations in plans.json inherit from each other in a circle")
        chain.append(configurations[wanted])
        wanted = chain[-1].get("inherits_from")
    merged: dict[str, Any] = {}
    for part in reversed(chain):
        merged.update(part)
    return merged


def _check_plans(plans: Mapping[str, Any], configuration: Mapping[str, Any], name: str) -> None:
    """Refuse what would call other code than nnU-Net's networks, normalisation and resampling, and what cannot run here."""
    if configuration.get("previous_stage"):
        raise ModelError(f"'{name}' is the second network of a cascade and needs the first one's answer; install 3d_fullres or 3d_lowres")
    names: list[tuple[str, Any, bool]] = [("image_reader_writer", plans["image_reader_writer"], plans["image_reader_writer"] in READERS)]
    names += [("normalization_schemes", n, n in NORMALISATIONS) for n in configuration["normalization_schemes"]]
    names += [
        (k, configuration[k], configuration[k] in RESAMPLINGS) for k in ("resampling_fn_data", "resampling_fn_probabilities", "resampling_fn_seg")
    ]
    names += [("preprocessor_name", configuration["preprocessor_name"], configuration["preprocessor_name"] == "DefaultPreprocessor")]
    names += [("label_manager", plans.get("label_manager", "LabelManager"), plans.get("label_manager", "LabelManager") == "LabelManager")]
    names += _network_names(configuration)
    _refuse(names)
    patch, spacing = configuration["patch_size"], configuration["spacing"]
    if len(patch) not in (2, 3) or len(spacing) != len(patch) or min(patch) < 1 or not all(math.isfinite(s) and s > 0 for s in spacing):
        raise ModelError("patch_size and spacing in plans.json must be two or three positive numbers each")
    if sorted(plans["transpose_forward"]) != [0, 1, 2] or [plans["transpose_forward"][i] for i in plans["transpose_backward"]] != [0, 1, 2]:
        raise ModelError("transpose_forward and transpose_backward in plans.json do not undo each other")


def check_network(configuration: Mapping[str, Any]) -> None:
    """Refuse a configuration whose network is none of nnU-Net's. Raises `ModelError`."""
    _refuse(_network_names(configuration))


def _network_names(configuration: Mapping[str, Any]) -> list[tuple[str, Any, bool]]:
    """What a configuration names as code of its network: key, name, whether it may be called."""
    network = configuration.get("architecture")
    if network is None:
        old = configuration["UNet_class_name"]
        return [("UNet_class_name", old, old in ("PlainConvUNet", "ResidualEncoderUNet"))]
    kinds = network["arch_kwargs"]
    names = [("network_class_name", network["network_class_name"], bool(_NETWORK.fullmatch(network["network_class_name"])))]
    return names + [(k, kinds[k], kinds[k] is None or bool(_MODULE.fullmatch(kinds[k]))) for k in network["_kw_requires_import"]]


def _refuse(names: list[tuple[str, Any, bool]]) -> None:
    for key, value, known in names:
        if not known:
            raise ModelError(f"plans.json asks for '{str(value)[:60]}' as {key}, which is not supported here")


def _labels(dataset: Mapping[str, Any]) -> tuple[tuple[Label, ...], bool]:
    """The labels by value, without background and what is ignored; whether they are nested regions."""
    named = {str(k): v for k, v in dataset["labels"].items() if k != "ignore"}
    if named.pop("background", None) != 0:
        raise ModelError("dataset.json must name a background with the value 0")
    regions = any(isinstance(v, list) and len(v) > 1 for v in named.values())
    values = [int(v) for v in dataset["regions_class_order"]] if regions else [int(v[0] if isinstance(v, list) else v) for v in named.values()]
    if not values or len(values) != len(named) or len(set(values)) != len(values):
        raise ModelError("dataset.json must give every label a value of its own")
    if not regions and sorted(values) != list(range(1, len(values) + 1)):
        raise ModelError("the labels' values in dataset.json must be 1, 2, 3 and so on")
    found = [terminology.label(re.sub(r"[\s-]+", "_", name.strip().lower()), value) for name, value in zip(named, values, strict=True)]
    return tuple(found if regions else sorted(found, key=lambda label: label.value)), regions


def checkpoints(folder: Path, folds: Any) -> tuple[Path, ...]:
    """One file of weights a fold: the folds asked for, else `fold_all`, else all that are there."""
    there = {p.name.removeprefix("fold_"): p for p in sorted(folder.glob("fold_*")) if p.is_dir()}
    wanted = [str(f) for f in folds] if folds else ["all"] if "all" in there else sorted(there)
    found = []
    for fold in wanted:
        path = next((p for n in CHECKPOINTS if fold in there and (p := there[fold] / n).is_file()), None)
        if path is None:
            raise ModelError(f"fold_{fold[:10]} holds no checkpoint_final.pth (or .safetensors); install the model again")
        _weights.check(path)
        found.append(path)
    if not found:
        raise ModelError("the folder holds plans but no fold_* with weights; install the model again")
    return tuple(found)


def scratch_bytes(trained: Trained) -> int:
    """A guess of the memory of one tile's activations and of the answer before it is cut to labels; peaks measured correct it."""
    network = trained.configuration.get("architecture", {}).get("arch_kwargs", {})
    features = int((network.get("features_per_stage") or [trained.configuration.get("UNet_base_num_features", 32)])[0])
    tile = math.prod(trained.configuration["patch_size"]) * features * 4 * 6
    image = math.prod(trained.configuration.get("median_image_size_in_voxels") or [256] * 3)
    return int(tile + image * (2 * trained.heads + 16))

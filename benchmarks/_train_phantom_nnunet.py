"""Train a small nnU-Net on the phantom and write it as a trained-model folder, as nnU-Net lays one out.

    python -m benchmarks._train_phantom_nnunet tests/data/phantom_nnunet
    python -m benchmarks._train_phantom_nnunet tests/data/phantom_nnunet --resume --steps 250

The network sees arrays in RAS order at 5.4 mm, which `plans.json` says by naming a reader that reorients: so a model adapter
that confuses axes, flips, spacings or labels cannot score well with it. Augmented by rotation, size, thick slices and noise;
the second call goes on at a low rate with other patients. Some minutes on two quiet cores; the same seed gives the same
weights on the same machine. Weights are kept as float16.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isocenter.core.geometry import reorient
from isocenter.core.phantom import Lesion, phantom

LABELS = ("liver", "spleen", "kidney_left", "kidney_right", "lung_left", "lung_right")
SPACING_MM = 5.4
PATCH = 48
FEATURES = (8, 16, 32, 48)
#: Mean, deviation and percentiles of the foreground, HU, as nnU-Net's fingerprint has them.
INTENSITY = {"mean": -350.0, "std": 450.0, "percentile_00_5": -1000.0, "percentile_99_5": 250.0}


def plans() -> dict[str, Any]:
    """What nnU-Net's planner would have written, for a network of our own size."""
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    stages = len(FEATURES)
    network = {
        "n_stages": stages,
        "features_per_stage": list(FEATURES),
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [1] * (stages - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [PATCH] * 3,
        "median_image_size_in_voxels": [71, 71, 71],
        "spacing": [SPACING_MM] * 3,
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {**resampling, "order": 3},
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True},
        "resampling_fn_probabilities_kwargs": resampling,
        "batch_dice": False,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": network,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    return {
        "dataset_name": "Dataset900_Phantom",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [SPACING_MM] * 3,
        "original_median_shape_after_transp": [71, 71, 71],
        "image_reader_writer": "SimpleITKIOWithReorient",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": INTENSITY},
    }


def dataset() -> dict[str, Any]:
    """`dataset.json`."""
    labels = {"background": 0} | {name: value for value, name in enumerate(LABELS, start=1)}
    return {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 0, "file_ending": ".nii.gz", "name": "Phantom"}


def case(rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """A patient of another size, at another place: HU and labels, (z, y, x) towards S, A, R."""
    lesions = [Lesion(tuple(rng.uniform((-110, -40, -80), (-40, 20, -30))), float(rng.uniform(6, 16)), float(rng.uniform(30, 70))) for _ in range(2)]
    made = phantom(
        (71, 71, 71),
        (SPACING_MM,) * 3,
        seed=int(rng.integers(1 << 30)),
        noise_hu=float(rng.uniform(3, 15)),
        lesions=lesions,
        shift_mm=tuple(rng.uniform(-25, 25, 3)),
        scale=float(rng.uniform(0.88, 1.12)),
        table=bool(rng.integers(2)),
    )
    labels = np.zeros(made.volume.shape, np.uint8)
    for value, name in enumerate(LABELS, start=1):
        labels[made.masks[name]] = value
    grid = made.volume.grid
    hu = reorient(made.volume.array, grid, "RAS").astype(np.float32)
    return hu, np.ascontiguousarray(reorient(labels, grid, "RAS")).astype(np.uint8)


def turn(rng: np.random.Generator, degrees: float) -> NDArray[np.float64]:
    """A rotation about an axis in any direction."""
    axis = rng.standard_normal(3)
    axis /= np.linalg.norm(axis)
    angle = np.deg2rad(rng.uniform(-degrees, degrees))
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.asarray(np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross)


def patch(hu: NDArray[np.float32], labels: NDArray[np.uint8], rng: np.random.Generator) -> tuple[Any, Any]:
    """One augmented patch: normalised values (1, P, P, P) and labels (P, P, P) as torch has them."""
    import torch
    from torch.nn.functional import avg_pool3d, grid_sample, interpolate

    size = np.array(hu.shape, float)
    matrix = turn(rng, 28) * rng.uniform(0.85, 1.18, 3)
    margin = 0.35 * PATCH
    centre = rng.uniform(margin, size - margin)
    if rng.random() < 0.5:
        found = np.argwhere(labels == rng.integers(1, len(LABELS) + 1))
        centre = found[rng.integers(len(found))] + rng.uniform(-8, 8, 3)
    offsets = np.arange(PATCH) - (PATCH - 1) / 2
    places = np.stack(np.meshgrid(offsets, offsets, offsets, indexing="ij"), -1) @ matrix.T + centre
    where = torch.from_numpy((2 * places[..., ::-1] / (size[::-1] - 1) - 1).astype(np.float32).copy())[None]
    values = grid_sample(torch.from_numpy(hu + 1000.0)[None, None], where, align_corners=True) - 1000
    truth = grid_sample(torch.from_numpy(labels.astype(np.float32))[None, None], where, mode="nearest", align_corners=True)
    if rng.random() < 0.3:  # thick slices along one axis
        step = [1, 1, 1]
        step[rng.integers(3)] = 2
        values = interpolate(avg_pool3d(values, step), size=values.shape[2:], mode="trilinear")
    values = values + torch.from_numpy(rng.standard_normal(values.shape).astype(np.float32)) * rng.uniform(0, 25)
    clipped = values.clamp(INTENSITY["percentile_00_5"], INTENSITY["percentile_99_5"])
    return (clipped[0] - INTENSITY["mean"]) / INTENSITY["std"], truth[0, 0].long()


def loss_of(logits: Any, truth: Any) -> Any:
    """Cross entropy plus soft Dice over the foreground, as nnU-Net has it."""
    import torch

    probability = torch.softmax(logits, 1)
    wanted = torch.nn.functional.one_hot(truth, logits.shape[1]).permute(0, 4, 1, 2, 3).to(probability)
    axes = (0, 2, 3, 4)
    overlap = (2 * (probability * wanted).sum(axes) + 1) / (probability.sum(axes) + wanted.sum(axes) + 1)
    return torch.nn.functional.cross_entropy(logits, truth) + 1 - overlap[1:].mean()


def train(folder: Path, *, steps: int, batch: int = 2, cases: int = 24, resume: bool = False) -> float:
    """Write the folder; returns the mean loss of the last steps. bfloat16 on one core: more of them wait for each other."""
    import torch
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from safetensors.torch import load_file, save_file

    seed = int(resume)
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    design = plans()["configurations"]["3d_fullres"]["architecture"]
    network = get_network_from_plans(
        design["network_class_name"], design["arch_kwargs"], design["_kw_requires_import"], 1, len(LABELS) + 1, deep_supervision=False
    ).to(memory_format=torch.channels_last_3d)
    fold = folder / "fold_all"
    if resume:
        known = load_file(fold / "checkpoint_final.safetensors")
        missing = network.load_state_dict({name: value.float() for name, value in known.items()}, strict=False)
        print(f"resumed; {len(missing.missing_keys)} further names of the same tensors")
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3 if resume else 6e-3, total_steps=steps)
    bank = [case(rng) for _ in range(cases)]
    started, losses = time.perf_counter(), []
    for step in range(steps):
        pairs = [patch(*bank[rng.integers(cases)], rng) for _ in range(batch)]
        values, truth = (torch.stack(side) for side in zip(*pairs, strict=True))
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(values.to(memory_format=torch.channels_last_3d))
        loss = loss_of(logits.float(), truth)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        if step % 50 == 49:
            print(f"{step + 1}/{steps} loss {np.mean(losses[-50:]):.3f} {time.perf_counter() - started:.0f} s", flush=True)
    fold.mkdir(parents=True, exist_ok=True)
    (folder / "plans.json").write_text(json.dumps(plans(), indent=1) + "\n")
    (folder / "dataset.json").write_text(json.dumps(dataset(), indent=1) + "\n")
    # The library's networks hold the same tensor under several names; one is kept.
    once = {value.data_ptr(): name for name, value in reversed(network.state_dict().items())}
    weights = {name: network.state_dict()[name].half().contiguous() for name in sorted(once.values())}
    about = {"trainer_name": "nnUNetTrainer", "configuration": "3d_fullres", "inference_allowed_mirroring_axes": "null"}
    save_file(weights, fold / "checkpoint_final.safetensors", metadata=about)
    return float(np.mean(losses[-50:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=2200)
    parser.add_argument("--resume", action="store_true", help="go on with the weights that are in the folder")
    args = parser.parse_args()
    print(f"loss {train(args.folder, steps=args.steps, resume=args.resume):.3f}")


if __name__ == "__main__":
    main()

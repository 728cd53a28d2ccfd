"""nnU-Net's prediction, tile by tile so that it can be watched and stopped, and label by label so that it stays small.

The numbers are those of nnU-Net's own `nnUNetPredictor`: its preprocessing, tiles, Gaussian weights, mirroring, float16
sums and resampling. Two things differ in how, not in what: no thread of its own feeds the tiles, and the answer is resampled
one label after the other with a running maximum, where the library holds all labels on the scan's grid at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from numpy.typing import NDArray

from isocenter.core.errors import ModelError
from isocenter.core.model import Run
from isocenter.models._nnunet.folder import Trained
from isocenter.models._nnunet.network import Network

Index = tuple[Any, ...]


def segment(
    network: Network,
    scans: Sequence[tuple[NDArray[np.float32], Sequence[float]]],
    *,
    device: str,
    precision: str,
    mirror: bool,
    step: float,
    run: Run,
) -> list[NDArray[Any]]:
    """Labels of each scan, an array in the frame of nnU-Net's readers and its spacing (mm), both (z, y, x).

    Scans are prepared and cut to labels each by itself. Between that the slices of all whose planes have one size go through
    a 2-D network as those of one scan do, `run.batch` tiles at once; a 3-D network takes one after the other.
    """
    trained = network.trained
    run.check(0.0, "preparing")
    prepared = []
    for array, spacing in scans:
        properties: dict[str, Any] = {"spacing": [float(s) for s in spacing]}
        data, _, properties = DefaultPreprocessor(verbose=False).run_case_npy(
            array[None], None, properties, network.plans, network.configuration, dict(trained.dataset)
        )
        prepared.append((torch.from_numpy(data), properties))
    axes = network.mirrored if mirror else ()
    flat = len(network.configuration.patch_size) == 2
    alike: dict[Any, list[int]] = {}
    for number, (image, _) in enumerate(prepared):
        alike.setdefault(tuple(image.shape[2:]) if flat else number, []).append(number)
    found: dict[int, NDArray[Any]] = {}
    for numbers in alike.values():
        images = [prepared[number][0] for number in numbers]
        with torch.inference_mode():
            together = torch.cat(images, 1) if len(images) > 1 else images[0]
            logits = _logits(network, trained.heads, together, device=device, precision=precision, axes=axes, step=step, run=run)
        for number, mine in zip(numbers, logits.split([image.shape[1] for image in images], 1), strict=True):
            found[number] = _labels(network, trained, mine, prepared[number][1], run)
    return [found[number] for number in range(len(scans))]


def _logits(
    network: Network, heads: int, data: torch.Tensor, *, device: str, precision: str, axes: tuple[int, ...], step: float, run: Run
) -> torch.Tensor:
    """(heads, z, y, x) float16 on the network's grid, averaged over the folds."""
    patch = network.configuration.patch_size
    padded, kept = pad_nd_image(data, patch, "constant", {"value": 0}, True, None)
    tiles = _tiles(padded.shape[1:], patch, step)
    module = network.module.to(device)
    total = torch.zeros(0)
    count = max(1, len(network.folds))
    for fold in range(count):
        if network.folds:
            module.load_state_dict(network.folds[fold])
        watched = Run(
            lambda done, message, fold=fold: run.progress(0.1 + 0.7 * (fold + done) / count, message),  # type: ignore[misc]
            run.cancelled,
            run.batch,
        )
        with _autocast(device, precision):
            try:
                part = _sum(module, heads, padded, tiles, patch, device, device, axes, watched)
            except torch.OutOfMemoryError:
                if device == "cpu":
                    raise
                part = _sum(module, heads, padded, tiles, patch, device, "cpu", axes, watched)
        part = part.to("cpu")
        total = total.add_(part) if fold else part
    if count > 1:
        total /= count
    return total[(slice(None), *kept[1:])]


def _autocast(device: str, precision: str) -> Any:
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.partition(":")[0], dtype=torch.bfloat16 if precision == "bfloat16" else torch.float16)


def _tiles(shape: Sequence[int], patch: Sequence[int], step: float) -> list[Index]:
    """Where the tiles lie, in nnU-Net's order; a 2-D network takes slice by slice along the first axis."""
    steps = compute_steps_for_sliding_window(tuple(shape[-len(patch) :]), tuple(patch), step)
    corners = [tuple(slice(a, a + p) for a, p in zip(corner, patch, strict=True)) for corner in itertools.product(*steps)]
    slices: list[tuple[int, ...]] = [()] if len(patch) == 3 else [(z,) for z in range(shape[0])]
    return [(slice(None), *z, *corner) for z in slices for corner in corners]


def _sum(
    module: Any, heads: int, data: torch.Tensor, tiles: list[Index], patch: Sequence[int], device: str, held: str, axes: tuple[int, ...], run: Run
) -> torch.Tensor:
    """All tiles weighted and summed on the device `held`."""
    data = data.to(held)
    logits = torch.zeros((heads, *data.shape[1:]), dtype=torch.half, device=held)
    weights = torch.zeros(data.shape[1:], dtype=torch.half, device=held)
    gaussian = compute_gaussian(tuple(patch), sigma_scale=1 / 8, value_scaling_factor=10, device=torch.device(held))
    size = max(1, run.batch)
    for start in range(0, len(tiles), size):
        run.check(start / len(tiles), f"tile {start + 1} of {len(tiles)}")
        group = tiles[start : start + size]
        answers = _mirrored(module, torch.stack([data[tile] for tile in group]).to(device), axes).to(held)
        for tile, answer in zip(group, answers, strict=True):
            answer *= gaussian
            logits[tile] += answer
            weights[tile[1:]] += gaussian
    return torch.div(logits, weights, out=logits)


def _mirrored(module: Any, x: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    """The mean over all combinations of flips along `axes`."""
    answer: torch.Tensor = module(x)
    flips = [c for n in range(len(axes)) for c in itertools.combinations([a + 2 for a in axes], n + 1)]
    for flip in flips:
        answer += torch.flip(module(torch.flip(x, flip)), flip)
    return answer.div_(len(flips) + 1) if flips else answer


def _labels(network: Network, trained: Trained, logits: torch.Tensor, properties: dict[str, Any], run: Run) -> NDArray[Any]:
    """The label map on the scan's own grid: resampled, cut to labels, put back where the scan was cropped and transposed."""
    shape = properties["shape_after_cropping_and_before_resampling"]
    spacing = [properties["spacing"][i] for i in network.plans.transpose_forward]
    own = list(network.configuration.spacing)
    own = own if len(own) == len(shape) else [spacing[0], *own]
    inside = np.zeros(tuple(shape), np.uint8 if max(label.value for label in trained.labels) < 256 else np.uint16)
    best: NDArray[Any] | None = None
    for channel in range(trained.heads):
        run.check(0.8 + 0.2 * channel / trained.heads, "resampling")
        if not bool(torch.isfinite(logits[channel]).all()):
            raise ModelError("the network answered with values that are not finite numbers; its weights are broken or do not suit this scan")
        plane = np.asarray(network.configuration.resampling_fn_probabilities(logits[channel : channel + 1], shape, own, spacing))[0]
        if trained.regions:
            inside[(torch.sigmoid(torch.from_numpy(plane).float()) > 0.5).numpy()] = trained.labels[channel].value
        elif best is None:
            best = plane.copy()
        else:
            larger = plane > best
            best[larger] = plane[larger]
            inside[larger] = channel
    whole = np.zeros(tuple(properties["shape_before_cropping"]), inside.dtype)
    whole[tuple(slice(int(a), int(b)) for a, b in properties["bbox_used_for_cropping"])] = inside
    run.check(1.0, "done")
    return np.ascontiguousarray(whole.transpose(network.plans.transpose_backward))

"""Train a tiny SAM on phantoms, for the tests: `python -m benchmarks._train_phantom_sam tests/data/sam_phantom`.

Arguments: the folder, how many steps, which round this is, and the side of the network's pictures; from round 1 on it goes on from
the folder's network, with other phantoms. The network in the tests had rounds 0 to 4 of 2400, 1200, 1600, 900 and 4000 steps with
pictures of 96 pixels, whose masks of 48 were too coarse for organs of 30 voxels, and round 5 of 4000 steps with 128.

A network with random weights cannot show that a prompt, a picture or a mask lies in the wrong frame; this one can: it
knows the phantom's anatomy in all three planes, mirrored and turned, from points, boxes and what the next slice held. It
knows nothing else. Seeds are fixed; a round takes minutes on two cores. Pictures and prompts are made by the served model's own code.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isocenter.core.phantom import LESIONS, phantom

PATCH = 8
STRUCTURES = ("liver", "lung_left", "lung_right", "heart", "spleen")
#: Pictures a step, and structures asked for on each.
PICTURES, ASKED = 4, 4
LEAST = 12  #: voxels of a structure in a slice that is asked for


@dataclass(frozen=True)
class Scan:
    """One phantom. hu (z, y, x), codes: 1 + index in `STRUCTURES`, spacing (z, y, x) in mm."""

    hu: NDArray[np.int16]
    codes: NDArray[np.uint8]
    spacing: tuple[float, float, float]


@dataclass(frozen=True)
class Asked:
    """A structure in a slice: its mask, and the mask that prompts are made of (its own or a neighbour slice's)."""

    truth: NDArray[np.bool_]
    hint: NDArray[np.bool_]


def scans(rng: np.random.Generator, count: int, first: int = 100) -> list[Scan]:
    """Phantoms of many sizes, voxels and places."""
    made = []
    for seed in range(count):
        shape = (int(rng.integers(32, 80)), int(rng.integers(52, 84)), int(rng.integers(52, 84)))
        shift = rng.uniform(-18, 18, 3)
        found = phantom(
            shape,
            seed=first + seed,
            noise_hu=float(rng.uniform(5, 20)),
            scale=float(rng.uniform(0.9, 1.12)),
            shift_mm=(float(shift[0]), float(shift[1]), float(shift[2])),
            lesions=LESIONS if seed % 2 else (),
            table=bool(seed % 3),
        )
        codes = np.zeros(shape, np.uint8)
        for code, name in enumerate(STRUCTURES, 1):
            codes[found.masks[name]] = code
        made.append(Scan(np.asarray(found.volume.array, np.int16), codes, found.volume.spacing_zyx))
    return made


def plane(scan: Scan, rng: np.random.Generator) -> tuple[NDArray[np.int16], NDArray[np.uint8], NDArray[np.uint8], tuple[float, float]]:
    """A random slice of a random plane, mirrored and turned: values, codes, a neighbour's codes, pixel spacing (mm)."""
    axis = int(rng.integers(3))
    hu, codes = np.moveaxis(scan.hu, axis, 0), np.moveaxis(scan.codes, axis, 0)
    spacing = tuple(s for i, s in enumerate(scan.spacing) if i != axis)
    z = int(rng.integers(1, len(hu) - 1))
    parts = [hu[z], codes[z], codes[z + int(rng.choice([-1, 1]))]]
    if rng.random() < 0.5:
        parts, spacing = [p.T for p in parts], spacing[::-1]
    for turned in (0, 1):
        if rng.random() < 0.5:
            parts = [np.flip(p, turned) for p in parts]
    return parts[0], parts[1], parts[2], (spacing[0], spacing[1])


def asked(codes: NDArray[np.uint8], beside: NDArray[np.uint8], rng: np.random.Generator) -> list[Asked]:
    """Structures to ask for; now and then one that has just ended in this slice."""
    here = [c for c in range(1, len(STRUCTURES) + 1) if (codes == c).sum() >= LEAST]
    ended = [c for c in range(1, len(STRUCTURES) + 1) if (beside == c).sum() >= LEAST and not (codes == c).any()]
    if not here:
        return []
    chosen = []
    for _ in range(ASKED):
        if ended and rng.random() < 0.25:
            code = int(rng.choice(ended))
            chosen.append(Asked(codes == code, beside == code))
        else:
            code = int(rng.choice(here))
            other = beside == code
            from_beside = rng.random() < 0.4 and other.sum() >= LEAST
            chosen.append(Asked(codes == code, other if from_beside else codes == code))
    return chosen


def batch(pool: list[Scan], rng: np.random.Generator, mode: str, side: int) -> dict[str, Any]:
    """One step's tensors, for pictures of side x side."""
    import torch

    from isocenter.models._sam.frame import Recipe
    from isocenter.models._sam.slices import centre
    from isocenter.models._sam.slices import grown as margin
    from isocenter.models._sam.windows import for_value, to_grey

    recipe = Recipe(size=side)
    pictures: list[Any] = []
    targets: list[Any] = []
    points, labels, boxes = [], [], []
    extra = int(rng.integers(0, 3)) if mode == "point" else 0
    while len(pictures) < PICTURES:
        hu, codes, beside, spacing = plane(pool[int(rng.integers(len(pool)))], rng)
        wanted = asked(codes, beside, rng)
        if not wanted:
            continue
        if mode == "point":
            wanted = [a if a.truth.any() else next(b for b in asked(codes, codes, rng) if b.truth.any()) for a in wanted]
        # All structures of a picture share its window, so they are asked for by one that shows the first of them.
        shown = wanted[0].hint if wanted[0].truth.any() else codes > 0
        frame = recipe.frame((hu.shape[0], hu.shape[1]), spacing)
        pictures.append(recipe.pixels(to_grey(hu, for_value(float(np.median(hu[shown])))), frame))
        picture_points, picture_labels, picture_boxes = [], [], []
        for ask in wanted:
            source = ask.truth if mode == "point" else ask.hint
            where = np.argwhere(source)
            first = centre(source) if mode == "both" else tuple(where[rng.integers(len(where))])
            clicks, signs = [frame.point(*first)], [1]
            for _ in range(extra):
                positive = rng.random() < 0.4
                place = where if positive else np.argwhere(~source & _near(source))
                clicks.append(frame.point(*place[rng.integers(len(place))]))
                signs.append(int(positive))
            lo, hi = where.min(0), where.max(0) + 1
            if rng.random() < 0.5:
                jitter = np.maximum(1, 0.08 * (hi - lo))
                lo, hi = lo + rng.uniform(-jitter, jitter * 0.5), hi + rng.uniform(-jitter * 0.5, jitter)
            else:
                lo, hi = margin(lo, hi, source.shape)
            picture_points.append(clicks)
            picture_labels.append(signs)
            picture_boxes.append(frame.box(lo, hi))
            whole = torch.zeros(side, side)
            resized = torch.nn.functional.interpolate(
                torch.from_numpy(ask.truth.astype(np.float32))[None, None], size=frame.inner, mode="bilinear", antialias=True
            )
            whole[: frame.inner[0], : frame.inner[1]] = resized[0, 0]
            targets.append(torch.nn.functional.avg_pool2d(whole[None], 2)[0])
        points.append(picture_points)
        labels.append(picture_labels)
        boxes.append(picture_boxes)
    tensors: dict[str, Any] = {"pixel_values": torch.stack(pictures), "targets": torch.stack(targets).view(PICTURES, ASKED, side // 2, side // 2)}
    if mode != "box":
        tensors |= {"input_points": torch.tensor(points), "input_labels": torch.tensor(labels)}
    if mode != "point":
        tensors["input_boxes"] = torch.tensor(boxes)
    return tensors


def _near(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    where = np.argwhere(mask)
    lo, hi = np.maximum(where.min(0) - 6, 0), where.max(0) + 7
    near = np.zeros_like(mask)
    near[lo[0] : hi[0], lo[1] : hi[1]] = True
    return near


def network(side: int) -> Any:
    """The tiny SAM for pictures of side x side, with random weights."""
    import torch
    from transformers import SamConfig, SamModel

    vision: dict[str, Any] = {"hidden_size": 64, "output_channels": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    vision |= {"image_size": side, "patch_size": PATCH, "window_size": side // 16, "global_attn_indexes": [1, 3], "num_pos_feats": 32}
    vision |= {"mlp_ratio": 3.0, "mlp_dim": 192, "initializer_range": 0.02}
    prompt = {"hidden_size": 64, "image_size": side, "patch_size": PATCH, "mask_input_channels": 8}
    decoder = {"hidden_size": 64, "mlp_dim": 128, "num_attention_heads": 4, "iou_head_hidden_dim": 64}
    made = SamModel(SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder))
    # The library draws frequencies that are too high to learn places from; SAM's own were drawn with a deviation of one.
    torch.nn.init.normal_(made.shared_image_embedding.positional_embedding)
    return made


def grown(folder: Path, side: int) -> Any:
    """The folder's network for pictures of side x side: what it learned of places is interpolated where they were smaller."""
    import torch
    from transformers import SamModel

    old = SamModel.from_pretrained(folder, dtype=torch.float32).state_dict()
    made = network(side)
    for name, tensor in made.state_dict().items():
        was = old[name]
        if was.shape != tensor.shape and was.ndim == 4:  # positions (1, rows, columns, channels)
            was = torch.nn.functional.interpolate(was.permute(0, 3, 1, 2), size=tensor.shape[1:3], mode="bicubic").permute(0, 2, 3, 1)
        elif was.shape != tensor.shape:  # relative positions (distances, channels)
            was = torch.nn.functional.interpolate(was.T[None], size=tensor.shape[0], mode="linear")[0].T
        tensor.copy_(was)
    return made


def losses(logits: Any, ious: Any, targets: Any) -> Any:
    """Per structure and mask: cross entropy, Dice and how wrong the network is about its own overlap."""
    import torch

    wanted = targets[:, :, None].expand_as(logits)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean((-1, -2))
    share = logits.sigmoid()
    dice = 1 - (2 * (share * wanted).sum((-1, -2)) + 1) / (share.sum((-1, -2)) + wanted.sum((-1, -2)) + 1)
    with torch.no_grad():
        mine, true = logits > 0, wanted > 0.5
        overlap = ((mine & true).sum((-1, -2)) + 1e-6) / ((mine | true).sum((-1, -2)) + 1e-6)
        overlap = torch.where((mine | true).any(-1).any(-1), overlap, torch.zeros_like(overlap))
    return 5 * entropy + dice, (ious - overlap).square()


def train(model: Any, steps: int, pool: list[Scan], rng: np.random.Generator) -> Any:
    """The trained network."""
    import torch

    torch.set_num_threads(1)  # as quick on a busy machine, and the sums come in the same order everywhere
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, total_steps=steps, pct_start=0.1)
    started, shown = time.perf_counter(), []
    for step in range(steps):
        mode = ("point", "box", "both")[step % 3]
        tensors = batch(pool, rng, mode, model.config.vision_config.image_size)
        targets = tensors.pop("targets")
        ambiguous = mode == "point" and tensors["input_points"].shape[2] == 1
        out = model(**tensors, multimask_output=ambiguous)
        mask_loss, iou_loss = losses(out.pred_masks, out.iou_scores, targets)
        loss = mask_loss.min(-1).values.mean() + 0.1 * mask_loss.mean() + iou_loss.mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        shown.append(float(loss))
        if step % 100 == 99:
            print(f"{step + 1:5d} loss {np.mean(shown[-99:]):.4f} {time.perf_counter() - started:.0f} s", flush=True)
            save(model, Path(sys.argv[1]))
    return model.eval()


def save(model: Any, folder: Path) -> None:
    """The network as a folder that transformers reads, in float16."""
    import copy

    import torch

    folder.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).to(torch.float16).save_pretrained(folder)
    side = model.config.vision_config.image_size
    picture = {"image_processor_type": "SamImageProcessor", "size": {"longest_edge": side}, "pad_size": {"height": side, "width": side}}
    (folder / "preprocessor_config.json").write_text(json.dumps(picture, indent=2) + "\n")


def main() -> None:
    """Train and write the folder named on the command line."""
    import torch

    folder, steps = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3000
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    side = int(sys.argv[4]) if len(sys.argv) > 4 else 128
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    pool = scans(rng, 40, first=1000 * seed + 100)
    print(f"{len(pool)} phantoms", flush=True)
    start = grown(folder, side) if seed else network(side)
    save(train(start, steps, pool, rng), folder)


if __name__ == "__main__":
    main()

"""The process that runs BiomedParse: started as a script with the pipes to the program as its standard input and output.

It imports the code of BiomedParse's repository from the folder that it is told, builds the network by the repository's
configuration (Hydra) and answers one request after the other. After each batch of slices it asks whether to go on.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

SIDE = 512  #: the network's pictures
EXISTENCE = 0.5  #: a slice on which the structure is less sure to be is left out, as BiomedParse's own script does


class Stopped(Exception):  # noqa: N818 - no error
    """Nobody wants the answer any more."""


def main() -> None:
    """Serve until the pipe is closed."""
    # What libraries print must not get between the messages.
    source, target = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    sys.path.pop(0)  # this script's folder
    sys.path.insert(0, os.environ["ISOCENTER_SOURCE"])
    from isocenter.models._biomedparse import frames

    network: Any = None
    while True:
        try:
            head, array = frames.read(source)
        except EOFError:
            return
        try:
            if head["do"] == "load":
                network = load(head)
                frames.write(target, {"done": True})
            else:
                answer, existence = find(network, head, array, lambda done: ask(source, target, done))
                frames.write(target, {"done": True, "existence": existence}, answer)
        except Stopped:
            frames.write(target, {"stopped": True})
        except Exception as error:  # whatever the foreign code raises: its kind goes back, its words to this process's log
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            frames.write(target, {"failed": kind_of(error)})


def kind_of(error: Exception) -> str:
    """What the program tells its user: "memory", "weights", "code", "library", "numbers" or "run"."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "memory"
    if isinstance(error, ImportError):
        return "library"
    return str(error) if isinstance(error, Told) else "run"


class Told(Exception):  # noqa: N818 - its message is one of the kinds
    """An error whose kind is known."""


def ask(source: BinaryIO, target: BinaryIO, done: float) -> None:
    """Say how far it is and wait for a word. Raises `Stopped`."""
    from isocenter.models._biomedparse import frames

    frames.write(target, {"progress": done})
    head, _ = frames.read(source)
    if not head.get("go"):
        raise Stopped


def load(head: dict[str, Any]) -> Any:
    """The network of the repository's own configuration with its weights, on its device."""
    code = head["code"]
    sys.path.insert(0, code)
    os.chdir(code)  # its code opens files beside it
    import torch

    torch.set_num_threads(int(head["threads"]))
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    try:
        with initialize_config_dir(version_base=None, config_dir=str(Path(code) / "configs" / "model")):
            network = instantiate(compose(config_name="biomedparse_3D"), _convert_="object")
    except ImportError:
        raise
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        raise Told("library" if isinstance(error.__cause__, ImportError) else "code") from error
    try:
        loaded = network.load_pretrained(head["weights"])
    except Exception as error:
        raise Told("weights") from error
    if getattr(loaded, "missing_keys", None):  # it loads what fits and only warns of the rest
        raise Told("weights")
    return network.to(head["device"]).eval()


def find(network: Any, head: dict[str, Any], array: Any, asked: Callable[[float], None]) -> tuple[Any, list[list[float]]]:
    """255 times the probability, rounded down, and whether it exceeds the threshold, both uint8; and the existence on each slice.

    array: the slices of one volume (slices, rows, columns), answered as (2, texts, slices, rows, columns). With `sizes` in
    the head, pictures that have nothing to do with each other, of these (rows, columns), one after the other in one
    row of bytes; answered likewise, (2, texts, rows, columns) each. threshold: one a picture, or one for all slices.
    Existence: a number a text and slice.
    """
    import torch

    texts, batch = head["texts"], int(head["batch"])
    pictures = head.get("sizes")
    slices = list(array) if pictures is None else list(_pictures(array, pictures))
    places = [_Place.of(*plane.shape) for plane in slices]
    images = torch.cat([_resized(torch.from_numpy(place.square(plane))) for place, plane in zip(places, slices, strict=True)])
    done = [0]

    def watch(module: Any, inputs: tuple[Any, ...]) -> Any:
        asked(min(1.0, done[0] / len(images)))
        first, done[0] = done[0], done[0] + batch
        return None if pictures is None else (_alone(inputs[0], images[first : done[0]]), *inputs[1:])

    hook = network.backbone.register_forward_pre_hook(watch)
    device = head["device"]
    kind = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(head["precision"])
    try:
        with torch.inference_mode(), torch.autocast(device.partition(":")[0], dtype=kind, enabled=kind is not None):
            inputs = {"image": images[None].to(device), "text": ["[SEP]".join(texts)]}
            found = network(inputs, mode="eval", slice_batch_size=batch)["predictions"]
            masks, existence = found["pred_gmasks"], found["object_existence"].float().sigmoid().cpu()
            if masks.shape[:2] != (len(texts), len(slices)) or tuple(existence.shape) != (len(texts), len(slices)):
                raise Told("code")
            if not bool(torch.isfinite(existence).all()):
                raise Told("numbers")
            thresholds = [float(t) for t in (head["threshold"] if pictures is not None else [head["threshold"]] * len(slices))]
            answers = [
                np.stack([place.answer(masks[text, z], float(existence[text, z]), thresholds[z]) for text in range(len(texts))], axis=1)
                for z, place in enumerate(places)
            ]
    finally:
        hook.remove()
    whole = np.stack(answers, axis=2) if pictures is None else np.concatenate([answer.reshape(-1) for answer in answers])
    return whole, existence.tolist()


def _pictures(array: Any, sizes: Sequence[Sequence[int]]) -> Iterator[Any]:
    first = 0
    for rows, columns in sizes:
        yield array[first : first + rows * columns].reshape(rows, columns)
        first += rows * columns


def _alone(colours: Any, pictures: Any) -> Any:
    """The network's colours are a slice and its two neighbours; pictures have none, and are shown as a single one would be.

    colours: (pictures, 3, 512, 512), the picture itself first, scaled by a number and moved by another. Raises `Told` for
    colours that are made otherwise: what one client sent must not get into another's answer.
    """
    import torch

    own = colours[:, :1]
    for shown, meant in zip(own[:, 0].float(), pictures.to(own.device).float(), strict=True):
        spread, scale = meant.max() - meant.min(), shown.max() - shown.min()
        if not bool(torch.allclose((shown - shown.min()) * spread, (meant - meant.min()) * scale, rtol=0, atol=0.02 * float(spread * scale) + 1e-6)):
            raise Told("code")
    return own.expand_as(colours)


@dataclass(frozen=True)
class _Place:
    """Where a slice of (rows, columns) lies in its square of `side`: in the middle."""

    rows: int
    columns: int
    side: int
    top: int
    left: int

    @classmethod
    def of(cls, rows: int, columns: int) -> _Place:
        side = max(rows, columns)
        return cls(rows, columns, side, (side - rows) // 2, (side - columns) // 2)

    def square(self, plane: Any) -> Any:
        """(1, side, side), black around the slice."""
        square = np.zeros((1, self.side, self.side), np.uint8)
        square[0, self.top : self.top + self.rows, self.left : self.left + self.columns] = plane
        return square

    def answer(self, logits: Any, existence: float, threshold: float) -> Any:
        """(2, rows, columns) uint8 from the network's logits: the probability and the mask. Raises `Told`.

        As BiomedParse's script: to 512 first, as logits. Back to the scan's pixels as probabilities, never as whole numbers.
        """
        import torch
        from torch.nn.functional import interpolate

        logits = interpolate(logits[None, None].float(), (SIDE, SIDE), mode="bicubic", align_corners=False, antialias=True)
        if not bool(torch.isfinite(logits).all()):
            raise Told("numbers")
        likely = interpolate(logits.sigmoid(), (self.side, self.side), mode="bilinear", align_corners=False, antialias=self.side < SIDE)[0, 0]
        likely = likely[self.top : self.top + self.rows, self.left : self.left + self.columns].clamp(0, 1) * float(existence > EXISTENCE)
        return np.stack([(likely * 255).floor().byte().cpu().numpy(), (likely > threshold).byte().cpu().numpy()])


def _resized(part: Any) -> Any:
    """Slices as whole numbers of 0..255, 512 x 512."""
    from torch.nn.functional import interpolate

    resized = interpolate(part[None].float(), (SIDE, SIDE), mode="bicubic", align_corners=False)[0]
    return resized.clamp(0, 255).int()


if __name__ == "__main__":
    main()

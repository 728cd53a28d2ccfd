"""The process that runs BiomedParse: started as a script with the pipes to the program as its standard input and output.

It imports the code of BiomedParse's repository from the folder that it is told, builds the network by the repository's
configuration (Hydra) and answers one request after the other. After each batch of slices it asks whether to go on.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
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


def find(network: Any, head: dict[str, Any], volume: Any, asked: Callable[[float], None]) -> tuple[Any, list[float]]:
    """(2, texts, slices, rows, columns) uint8: 255 times the probability, rounded down, and whether it exceeds the threshold.

    volume: (slices, rows, columns) uint8. Also the surest slice's existence, a number a text.
    """
    import torch
    from torch.nn.functional import interpolate

    texts, batch, threshold = head["texts"], int(head["batch"]), float(head["threshold"])
    depth, rows, columns = volume.shape
    side = max(rows, columns)
    top, left = (side - rows) // 2, (side - columns) // 2
    square = np.zeros((depth, side, side), np.uint8)
    square[:, top : top + rows, left : left + columns] = volume
    images = torch.cat([_resized(torch.from_numpy(part.copy())) for part in np.array_split(square, -(-depth // 16))])
    done = [0]

    def watch(module: Any, inputs: Any) -> None:
        asked(min(1.0, done[0] / depth))
        done[0] += batch

    hook = network.backbone.register_forward_pre_hook(watch)
    device = head["device"]
    kind = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(head["precision"])
    try:
        with torch.inference_mode(), torch.autocast(device.partition(":")[0], dtype=kind, enabled=kind is not None):
            inputs = {"image": images[None].to(device), "text": ["[SEP]".join(texts)]}
            found = network(inputs, mode="eval", slice_batch_size=batch)["predictions"]
            masks, existence = found["pred_gmasks"], found["object_existence"].float().sigmoid().cpu()
            if masks.shape[:2] != (len(texts), depth) or tuple(existence.shape) != (len(texts), depth):
                raise Told("code")
            answer = np.empty((2, len(texts), depth, rows, columns), np.uint8)
            for text in range(len(texts)):
                for z in range(depth):
                    # As BiomedParse's script: to 512 first, as logits. Back to the scan's pixels as probabilities, never as whole numbers.
                    logits = interpolate(masks[text, z][None, None].float(), (SIDE, SIDE), mode="bicubic", align_corners=False, antialias=True)
                    if not bool(torch.isfinite(logits).all()) or not bool(torch.isfinite(existence).all()):
                        raise Told("numbers")
                    likely = interpolate(logits.sigmoid(), (side, side), mode="bilinear", align_corners=False, antialias=side < SIDE)[0, 0]
                    likely = likely[top : top + rows, left : left + columns].clamp(0, 1) * float(existence[text, z] > EXISTENCE)
                    answer[0, text, z] = (likely * 255).floor().byte().cpu().numpy()
                    answer[1, text, z] = (likely > threshold).byte().cpu().numpy()
    finally:
        hook.remove()
    return answer, [float(v) for v in existence.amax(dim=1)]


def _resized(part: Any) -> Any:
    """Slices as whole numbers of 0..255, 512 x 512."""
    from torch.nn.functional import interpolate

    resized = interpolate(part[None].float(), (SIDE, SIDE), mode="bicubic", align_corners=False)[0]
    return resized.clamp(0, 255).int()


if __name__ == "__main__":
    main()

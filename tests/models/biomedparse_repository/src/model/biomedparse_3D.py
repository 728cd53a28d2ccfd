"""The stand-in's network: grey levels to logits, by a convolution of one weight a colour."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn


class BiomedParseModel(nn.Module):  # type: ignore[misc]
    def __init__(self, convolute_outputs: bool, edge_queries: int) -> None:
        super().__init__()
        assert (convolute_outputs, edge_queries) == (False, 4), "as the configuration says"
        self.backbone = nn.Conv2d(3, 1, 1)
        print("a line on the standard output, as libraries print them", flush=True)

    def load_pretrained(self, path: str) -> Any:
        while Path(path).with_name("hang").exists():
            time.sleep(0.05)
        state = torch.load(Path(path), map_location="cpu", weights_only=True)["state_dict"]
        return self.load_state_dict({name.removeprefix("model."): value for name, value in state.items()}, strict=False)

    def forward(self, inputs: dict[str, Any], mode: str, slice_batch_size: int) -> dict[str, Any]:
        image, (joined,) = inputs["image"], inputs["text"]
        assert mode == "eval"
        assert image.dtype == torch.int32
        assert image.shape[0] == 1
        assert image.shape[2:] == (512, 512)
        assert int(image.min()) >= 0
        assert int(image.max()) <= 255
        texts = joined.split("[SEP]")
        for text, act in {"hang": lambda: time.sleep(600), "crash": lambda: os._exit(3), "memory": fail}.items():
            if text in texts:
                act()
        slices = image[0].float()
        around = [slices, torch.cat((slices[1:2], slices[:-1])), torch.cat((slices[1:], slices[-2:-1]))] if len(slices) > 1 else [slices] * 3
        colours = torch.stack(around, 1)
        grey = torch.cat([self.backbone(colours[i : i + slice_batch_size]) for i in range(0, len(slices), slice_batch_size)])
        small = nn.functional.avg_pool2d(grey, 4)[:, 0]
        masks = torch.stack([self.answer(text, small) for text in texts])
        existence = torch.where(slices.amax((1, 2)) > 180, 6.0, -6.0).repeat(len(texts), 1)
        return {"predictions": {"pred_gmasks": masks, "object_existence": existence, "edge_masks": None}}

    def answer(self, text: str, grey: torch.Tensor) -> torch.Tensor:
        if text == "corner":  # the picture's upper left
            masks = torch.full_like(grey, -8.0)
            masks[:, :64, :64] = 8.0
            return masks
        if text == "nan":
            return grey * torch.nan
        return (grey - 128) / 16 * (-1 if text == "dark" else 1)


def fail() -> None:
    raise MemoryError

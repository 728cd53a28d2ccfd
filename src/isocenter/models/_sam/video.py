"""SAM 2, MedSAM2 and SAM 3's tracker on a scan: slices are the frames of a film, followed with the network's own memory.

The library's session object is handed frames and features that are made when they are wanted, in `Prepared`'s bounded
memory, and is trimmed after every frame: as it is, it would hold the whole film and 4 MB for each frame followed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from isocenter.models._sam import network, windows
from isocenter.models._sam.ahead import pixels
from isocenter.models._sam.features import Prepared
from isocenter.models._sam.frame import Recipe
from isocenter.models._sam.network import Network, finite
from isocenter.models._sam.session import Hints, Plane, Said, SliceSession, Takes
from isocenter.models._sam.slices import consistent
from isocenter.models._sam.windows import Window

#: Slices in a row without the structure after which it is not looked for any further.
_PATIENCE = 3
#: Slices of a prior mask that condition the memory, spread evenly.
_MOST_MASKS = 8
#: The one structure of a session, as the library numbers it.
_OBJECT = 1
#: What the networks call the corners of a box among points.
_CORNERS = (2, 3)


@dataclass(frozen=True)
class Tracker:
    """A loaded video network. session: the library's class; window: fixed, or None; batch: slices encoded at once.

    positions: the positional encodings of the feature maps, the same for every slice, filled by the first one.
    """

    network: Network
    recipe: Recipe
    session: Any
    window: Window | None
    batch: int
    positions: list[Any] = field(default_factory=list)

    def begin(self, prepared: Prepared) -> SliceSession:
        """A session on a volume."""

        def answer(said: Said) -> dict[int, Plane]:
            return Film(self, prepared, windows.choose(prepared.volume, said.prompts, self.window)).follow(said)

        return SliceSession(prepared, Takes(self.network.id), answer)

    def encode(self, pixels: Sequence[Any], network: Network) -> list[tuple[Any, ...]]:
        """The features of pictures (3, size, size), in host memory. network: this one, or the one that took its place."""
        with network.running() as module:
            seen = module.get_image_features(torch.stack(list(pixels)).to(network.device), return_dict=True)
            maps = [finite(m).cpu() for m in seen.fpn_hidden_states]
            if not self.positions:
                self.positions.extend(p[:, :1].cpu() for p in seen.fpn_position_encoding)
        return [tuple(m[:, i : i + 1].clone() for m in maps) for i in range(len(pixels))]

    def close(self) -> None:
        """Give the memory back."""
        self.positions.clear()
        self.network.close()


class Film(Mapping[int, Any]):
    """One volume through one window, as the library's session sees it: its frames, and its cache of features."""

    def __init__(self, tracker: Tracker, prepared: Prepared, window: Window) -> None:
        self._tracker = tracker
        self._network = network.current(tracker.network)
        self._prepared = prepared
        self._window = window
        self._frame = tracker.recipe.frame(prepared.plane, prepared.spacing)

    def __len__(self) -> int:
        return self._prepared.volume.shape[0]

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    def __getitem__(self, z: int) -> Any:
        return pixels(self._prepared, z, self._window, self._tracker.recipe)

    # The two methods of the library's cache.

    def get_vision_features(self, z: int) -> dict[str, Any]:
        """The features of slice z on the network's device."""
        (features,) = self._features([z])
        device = self._network.device
        return {"vision_feats": [f.to(device) for f in features], "vision_pos_embeds": [p.to(device) for p in self._tracker.positions]}

    def cache_vision_features(self, z: int, features: Mapping[str, Any]) -> None:
        """Nothing: they are kept already."""

    def follow(self, said: Said) -> dict[int, Plane]:
        """The structure in every slice in which it was found."""
        keys = {z: h for z, h in said.slices.items() if h.positive}
        found = {z: h.mask for z, h in keys.items() if h.mask is not None}
        told = {z: h for z, h in keys.items() if h.points or h.box is not None}
        first, last = max(0, said.reach[0]), min(len(self), said.reach[1])
        if not told and len(found) > 1:
            # A prior mask of several slices says where the structure ends; what lies between its slices is followed.
            first, last = min(found), max(found) + 1
        masks = sorted(z for z in found if z not in told)
        chosen = {masks[i] for i in np.unique(np.linspace(0, len(masks) - 1, min(len(masks), _MOST_MASKS)).round().astype(int))} if masks else set()
        start = min([*told, *chosen])
        if not told and set(range(first, last)) <= set(found):
            return consistent(found, set(keys), smooth=False)
        state = self._begin()
        with self._network.running() as module:
            for z in sorted([*told, *chosen]):
                self._tell(state, z, keys[z])
                plane = self._see(module, state, z, reverse=False)
                if z in told:
                    found[z] = plane
            for step, end in ((1, last), (-1, first - 1)):
                empty = 0
                beyond = max([*told, *chosen]) if step > 0 else start
                for z in range(start, end, step):
                    if z in said.slices and z not in keys:
                        self._correct(state, z, said.slices[z], reverse=step < 0)
                    plane = self._see(module, state, z, reverse=step < 0)
                    self._trim(state, z, start, module)
                    if z not in keys:
                        found[z] = plane
                    empty = 0 if plane.any() else empty + 1
                    if empty >= _PATIENCE and (z - beyond) * step > 0:
                        break
        return consistent(found, set(keys), smooth=False)

    def _begin(self) -> Any:
        """The library's session, with this film in the places of its frames and its cache."""
        rows, columns = self._prepared.plane
        state = self._tracker.session(video_height=rows, video_width=columns, inference_device=self._network.device, dtype=torch.float32)
        state.inference_state_device = self._network.device
        state.processed_frames = self
        state.cache = self
        return state

    def _tell(self, state: Any, z: int, hints: Hints) -> None:
        """Give the session what a person said on slice z."""
        obj = state.obj_id_to_idx(_OBJECT)
        if hints.mask is not None and not hints.points and hints.box is None:
            mask = torch.from_numpy(np.ascontiguousarray(hints.mask)).float()[None, None]
            square = (self._frame.size, self._frame.size)
            resized = torch.nn.functional.interpolate(mask, size=square, mode="bilinear", align_corners=False, antialias=True)
            state.add_mask_inputs(obj, z, (resized >= 0.5).float())
        else:
            coordinates = [self._frame.point(y, x) for y, x, _ in hints.points]
            labels = [int(positive) for *_, positive in hints.points]
            box = hints.box if hints.box is not None else _bounds(hints.mask)
            if box is not None:
                x1, y1, x2, y2 = self._frame.box(*box)
                coordinates, labels = [(x1, y1), (x2, y2), *coordinates], [*_CORNERS, *labels]
            points = torch.tensor([[coordinates]], dtype=torch.float32)
            state.add_point_inputs(obj, z, {"point_coords": points, "point_labels": torch.tensor([[labels]], dtype=torch.int32)})
        state.obj_with_new_inputs = [_OBJECT]

    def _correct(self, state: Any, z: int, hints: Hints, *, reverse: bool) -> None:
        """Negative points alone say nothing of where the structure is: they correct what the memory expects on slice z."""
        state.frames_tracked_per_obj[state.obj_id_to_idx(_OBJECT)][z] = {"reverse": reverse}
        self._tell(state, z, hints)

    def _see(self, module: Any, state: Any, z: int, *, reverse: bool) -> Plane:
        """The network's answer on slice z."""
        out = module(inference_session=state, frame_idx=z, reverse=reverse)
        logits = finite(out.pred_masks.float())
        plane: Plane = (self._frame.restore(logits.reshape(-1, *logits.shape[-2:])[:1])[0] > 0).cpu().numpy()
        return plane

    def _trim(self, state: Any, z: int, start: int, module: Any) -> None:
        """Forget what no later frame asks for."""
        window = max(module.config.num_maskmem, module.config.max_object_pointers_in_encoder)
        for outputs in state.output_dict_per_obj.values():
            for kept in outputs["cond_frame_outputs"].values():
                kept.pop("high_res_masks", None)
            others = outputs["non_cond_frame_outputs"]
            for index in [i for i in others if abs(i - z) > window and abs(i - start) > window]:
                del others[index]
            if z in others:
                others[z].pop("high_res_masks", None)

    def _features(self, slices: list[int]) -> list[tuple[Any, ...]]:
        def encode(part: list[int]) -> list[tuple[Any, ...]]:
            return self._tracker.encode([self[z] for z in part], self._network)

        if not self._tracker.positions:
            # Features may have been kept from before the network was loaded again; the encodings go with the network.
            encode(slices[:1])
        return self._prepared.features(slices, self._window, encode, self._tracker.batch, self._network.fingerprint)


def _bounds(mask: Plane | None) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """The box around a mask that is not empty."""
    if mask is None:
        return None
    where = np.argwhere(mask)
    (y0, x0), (y1, x1) = where.min(axis=0).tolist(), (where.max(axis=0) + 1).tolist()
    return (y0, x0), (y1, x1)

"""MONAI Label's answers to clicks and words: what clients look for first, and the mask in the order they read it."""

from __future__ import annotations

import time
from typing import Any

from fastapi.responses import Response

from isocenter.answers import Clicked, Found
from isocenter.core import terminology
from isocenter.core.errors import PromptError, UsageError
from isocenter.core.model import Question
from isocenter.core.prompts import union
from isocenter.core.segmentation import Segmentation
from isocenter.core.volume import Volume
from isocenter.http import monai_params as wire
from isocenter.http.context import Context
from isocenter.http.multipart import Output, new_boundary, respond
from isocenter.io import write
from isocenter.io.wire_mask import WireMask, write_wire


async def answer(here: Context, volume: Volume, params: wire.Params, owner: str, output: Output | None) -> Response:
    """A click's or a text's answer in the form that `output` asks for."""
    boundary = new_boundary()
    avoid = (b"\r\n\r\n", boundary.encode())
    want_image = output is not Output.JSON
    prompts = params.prompts(volume.shape[0], flipped=volume.source.flipped)
    if not prompts and not params.texts:
        raise PromptError("no prompts: give pos_points, pos_boxes, pos_scribbles, pos_lassos or texts")

    def click() -> tuple[dict[str, Any], bytes]:
        started = time.perf_counter()
        with here.service.click(volume, prompts, owner=owner) as clicked:
            elapsed = time.perf_counter() - started
            clicked.session.state["stale"] = union(clicked.session.state.get("stale"), clicked.changed)
            body = _encode_click(clicked, volume, params, output, avoid) if want_image else b""
            stages = {**clicked.provenance.seconds, "encode": round(time.perf_counter() - started - elapsed, 4)}
            head = _head(params, volume, elapsed, "sam2_pred" if params.sam else "nninter_pred")
            return {**head, "model": clicked.provenance.model, "latencies": stages, "notes": list(clicked.provenance.notes)}, body

    def encoded(found: Found, elapsed: float) -> tuple[dict[str, Any], bytes]:
        finding = found.findings[0]
        result = Segmentation(finding.mask, volume.grid, (finding.label,), found.provenance, {finding.label.name: finding.presence})
        head = {**_head(params, volume, elapsed, ""), "voxtell_elapsed": round(elapsed, 4), "label_name": params.texts[0]}
        facts = {"model": found.provenance.model, "presence_confidence": finding.presence, "notes": list(found.provenance.notes)}
        return {**head, **facts}, _encode(result, volume, params, output, avoid) if want_image else b""

    if prompts:
        if (looked := await here.read(lambda: here.service.look_soon(volume, prompts))) is not None:
            await here.wait(looked)
        head, body = await here.infer(click)
    else:
        started = time.perf_counter()
        asked = await here.read(lambda: here.service.find_soon(Question(volume, tuple(params.texts[:1]))))
        (found,) = await here.wait(asked)
        elapsed = time.perf_counter() - started
        head, body = await here.read(lambda: encoded(found, elapsed))
    return respond(head, body, output, params.extension if params.world else ".nii.gz", boundary)


def _head(params: wire.Params, volume: Volume, elapsed: float, prefix: str) -> dict[str, Any]:
    """The keys that clients look for; `prompt_info` must come first."""
    return {
        "prompt_info": params.echo,
        "sam_elapsed" if params.sam else "nninter_elapsed": round(elapsed, 4),
        "flipped": volume.source.flipped,
        "label_name": f"{prefix}_{time.strftime('%Y%m%d%H%M%S')}",
    }


def _encode_click(clicked: Clicked, volume: Volume, params: wire.Params, output: Output | None, avoid: tuple[bytes, ...]) -> bytes:
    if params.world or output is Output.DICOM_SEG:
        return _encode(Segmentation(clicked.mask, volume.grid, (terminology.label("region"),), clicked.provenance), volume, params, output, avoid)
    # The copy in the wire's axis order stays with the session; only what changed since it was last sent is turned again.
    state = clicked.session.state
    if "wire" not in state:
        state["wire"] = WireMask(volume.shape)
    wire_mask: WireMask = state["wire"]
    if (stale := state.pop("stale", None)) is not None:
        wire_mask.update(clicked.mask, stale)
    return wire_mask.gz(avoid=avoid)


def _encode(result: Segmentation, volume: Volume, params: wire.Params, output: Output | None, avoid: tuple[bytes, ...]) -> bytes:
    if output is Output.DICOM_SEG:
        if not volume.source.headers:
            raise UsageError("DICOM SEG format is not supported in a non-DICOM datastore")
        return write.encode(result, ".dcm", volume)
    if params.world:
        return write.encode(result, params.extension, volume)
    return write_wire(result.mask, avoid)

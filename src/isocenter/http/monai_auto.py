"""MONAI Label's automatic models: a scan in, the whole label map out, in the image's true geometry."""

from __future__ import annotations

import time
from typing import Any

from fastapi.responses import Response

from isocenter.core.model import ModelSpec
from isocenter.http import monai_params as wire
from isocenter.http.context import Context
from isocenter.http.multipart import Output, new_boundary, respond
from isocenter.io import write
from isocenter.io.upload import Upload


def entry(spec: ModelSpec) -> dict[str, Any]:
    """The model as `/info/` lists it."""
    return {
        "type": "segmentation",
        "labels": {label.name: label.value for label in spec.labels},
        "dimension": 3,
        "description": spec.description,
        "config": {**spec.options, "device": list(spec.devices)},
        "version": spec.version,
        "weights_sha256": spec.weights_sha256,
    }


async def answer(here: Context, spec: ModelSpec, params: wire.Params, file: Upload, output: Output | None) -> Response:
    """A model that needs no prompts; its options may stand in `params`, `texts` name the labels to keep."""
    volume = await here.read(lambda: here.service.open(file))
    options = {key: params.raw[key] for key in spec.options if key in params.raw}
    boundary = new_boundary()

    asked = await here.read(lambda: here.service.label_soon(volume, model=spec.id, options=options, labels=params.texts))
    (result,) = await here.wait(asked)

    def told() -> tuple[dict[str, Any], bytes]:
        origin = result.provenance
        started = time.perf_counter()
        suffix = ".dcm" if output is Output.DICOM_SEG else params.extension
        body = b"" if output is Output.JSON else write.encode(result, suffix, volume)
        encode = round(time.perf_counter() - started, 4)
        head = {
            "label_names": {label.name: label.value for label in result.labels},
            "latencies": {**origin.seconds, "encode": encode, "total": round(sum(origin.seconds.values()) + encode, 4)},
            "model": origin.model,
            "version": origin.version,
            "weights_sha256": origin.weights_sha256,
            "notes": list(origin.notes),
        }
        return head, body

    head, body = await here.read(told)
    return respond(head, body, output, params.extension, boundary)

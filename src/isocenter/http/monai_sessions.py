"""MONAI Label's sessions: a scan that is uploaded once and named afterwards. There are none here, on one server or on many.

Each `/infer` carries its scan, and a server that has seen it does not decode it again; so any server behind a balancer can answer.
The protocol has a status for servers without sessions (406), which its clients know.
"""

from __future__ import annotations

from fastapi import APIRouter, HTTPException

router = APIRouter(include_in_schema=False)
_NONE = "Sessions are disabled: send the scan as the form field `file` with each request to /infer; one that was seen before is not decoded again"


@router.put("/session/")
async def create() -> None:
    """What is sent is not read."""
    raise HTTPException(406, _NONE)


@router.get("/session/{session_id}")
@router.delete("/session/{session_id}")
async def one(session_id: str) -> None:
    """No session has an id."""
    raise HTTPException(406, _NONE)

"""Two servers over one PostgreSQL and S3: everything that one keeps between requests is replayed by the other, read from what they share, or refused
in a sentence that says what to do. Each request is sent to a server that is chosen, so that no luck of a balancer hides anything."""

from __future__ import annotations

import io
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isocenter.core.phantom import phantom
from isocenter.io import nifti
from tests.http.conftest import serve
from tests.jobs import servers
from tests.jobs.conftest import new_database
from tests.jobs.test_processes import ask, form


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, postgres: servers.Postgres, swift: servers.Swift) -> Iterator[tuple[str, str]]:
    """The addresses of both; jobs wait."""
    shared: dict[str, Any] = {
        "DATABASE_URL": new_database(postgres), "MINIO_ENDPOINT": f"127.0.0.1:{swift.port}", "MINIO_ACCESS_KEY": "test:tester",
        "MINIO_SECRET_KEY": "testing", "MINIO_BUCKET_NAME": "pair", "ISOCENTER_DECODERS": "0", "ISOCENTER_JOB_WORKERS": "0",
        "ISOCENTER_MIN_FREE_BYTES": "0",
    }  # fmt: skip
    homes = [tmp_path_factory.mktemp(name) for name in ("one", "two")]
    with serve(homes[0], **shared) as (one, _), serve(homes[1], **shared) as (two, _):
        yield one[0], two[0]
        assert not any((Path(home) / "objects").exists() for home in homes)


@pytest.fixture(scope="module")
def scan() -> bytes:
    ct = phantom((24, 48, 48)).volume
    return nifti.write(ct.array, ct.grid)


def infer(address: str, scan: bytes, client: str, **params: Any) -> bytes:
    """An answer of MONAI Label's `/infer`, as OHIF's viewer asks: the scan and all prompts each time."""
    fields = json.dumps({"nninter": True, "client_id": client, "result_extension": ".nii.gz", **params})
    body, kind = form(scan, "a.nii.gz", params=fields)
    request = urllib.request.Request(f"{address}/infer/segmentation?output=image", body, {"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=120) as answer:
        data: bytes = answer.read()
        return data


def refused(address: str, path: str, body: bytes | None = None, kind: str = "application/json", method: str | None = None) -> tuple[int, str]:
    """The status and the sentence of a refusal."""
    with pytest.raises(urllib.error.HTTPError) as wrong:
        ask(address, path, body, kind, method)
    return wrong.value.code, json.loads(wrong.value.read())["detail"]


CLICKS: list[dict[str, Any]] = [
    {"pos_points": [[24, 24, 12]]},
    {"pos_points": [[24, 24, 12], [14, 24, 12]]},
    {"pos_points": [[24, 24, 12], [14, 24, 12]], "neg_points": [[30, 30, 12]]},
    {"pos_points": [[24, 24, 12], [14, 24, 12]], "neg_points": [[30, 30, 12]], "neg_scribbles": [[[18, 22, 12], [18, 26, 12]]]},
]


def test_clicks_are_replayed(pair: tuple[str, str], scan: bytes) -> None:
    """Each click goes to the other server than the one before. The masks are those of a client that stays with one of them."""
    staying = [infer(pair[0], scan, "staying", **clicks) for clicks in CLICKS]
    for first in (0, 1):
        wandering = [infer(pair[(first + number) % 2], scan, f"wandering {first}", **clicks) for number, clicks in enumerate(CLICKS)]
        assert wandering == staying
    assert len(set(staying)) >= 3, "clicks change something"


#: A point that adds, one that takes away, one that adds again right beside that; then the second is taken back and said anew.
TURNS: list[dict[str, Any]] = [
    {"pos_points": [[24, 24, 12]]},
    {"pos_points": [[24, 24, 12]], "neg_points": [[18, 24, 12]]},
    {"pos_points": [[24, 24, 12], [20, 24, 12]], "neg_points": [[18, 24, 12]]},
    {"pos_points": [[24, 24, 12], [20, 24, 12]]},
    {"pos_points": [[24, 24, 12], [20, 24, 12]], "neg_points": [[18, 24, 12]]},
]


def test_the_order_of_clicks_travels(pair: tuple[str, str], scan: bytes) -> None:
    """Clients send what adds before what takes away. In which order it came only the servers know, and they tell each other."""
    staying = [infer(pair[0], scan, "stays", **turn) for turn in TURNS]
    assert staying[2] != infer(pair[0], scan, "comes late", **TURNS[2]), "the order counts"
    assert staying[2] != staying[4]
    for number, route in enumerate(((0, 1, 0, 1, 0), (0, 0, 1, 1, 1), (1, 0, 0, 1, 0), (0, 0, 0, 0, 1))):
        assert [infer(pair[server], scan, f"route {number}", **turn) for server, turn in zip(route, TURNS, strict=True)] == staying, route


def test_what_one_forgets_the_other_does_not_bring_back(pair: tuple[str, str], scan: bytes) -> None:
    """`init` and `reset` reach one server; the other still holds a session, which follows the prompts that are sent and nothing else."""
    fresh = infer(pair[0], scan, "fresh", pos_points=[[14, 24, 12]])
    for mode in ("reset", "init"):
        client = f"again after {mode}"
        for address in pair:
            infer(address, scan, client, **CLICKS[-1])
        infer(pair[0], scan, client, nninter=mode)
        assert infer(pair[1], scan, client, pos_points=[[14, 24, 12]]) == fresh
        assert infer(pair[0], scan, client, pos_points=[[14, 24, 12]]) == fresh


def test_ids_of_scans_are_refused_by_who_does_not_hold_them(pair: tuple[str, str], scan: bytes) -> None:
    """A scan that was sent once is in one server's memory; the protocol's own ids of images and sessions stand for nothing at any of them."""
    key = ask(pair[0], "/api/v1/volumes", *form(scan, "a.nii.gz"))["key"]
    body, kind = form(b"", "", volume=key, prompts='["lungs"]', answer="json")
    # Not a file of no bytes, but none: a field that says nothing.
    body = body.replace(b'name="file"; filename=""', b'name="modality"')
    assert ask(pair[0], f"/api/v1/volumes/{key}")["key"] == key
    assert ask(pair[0], "/api/v1/segment", body, kind)["labels"][0]["name"] == "lungs"
    for refusal in (refused(pair[1], f"/api/v1/volumes/{key}"), refused(pair[1], "/api/v1/segment", body, kind)):
        assert refusal[0] == 404
        assert "send it again" in refusal[1]
        assert "always to the same one" in refusal[1]
    assert ask(pair[1], "/api/v1/volumes", *form(scan, "a.nii.gz"))["key"] == key, "and then it is there, under the same key"
    assert ask(pair[1], "/api/v1/segment", body, kind)["labels"][0]["name"] == "lungs"
    empty, kind = form(b"", "", params='{"nninter": true}')
    empty = empty.replace(b'name="file"; filename=""', b'name="unused"')
    for address in pair:
        assert refused(address, "/infer/segmentation?image=1.2.3", empty, kind) == (
            404,
            "Image NOT Found; this server keeps no datastore, send the series as the form field `file`",
        )
        assert refused(address, "/infer/segmentation?session_id=abc", empty, kind)[0] == 404
        for method, path in (("PUT", "/session/"), ("GET", "/session/abc"), ("DELETE", "/session/abc"), ("PUT", "/monai/session/")):
            status, told = refused(address, path, empty if method == "PUT" else None, kind, method)
            assert status == 406
            assert "send the scan as the form field `file`" in told


def test_files_jobs_and_patients_are_the_same(pair: tuple[str, str], scan: bytes) -> None:
    one, two = pair
    facts = ask(one, "/api/v1/segment", *form(scan, "a.nii.gz", prompts='["lungs"]', answer="json", format="npz"))
    with urllib.request.urlopen(two + facts["mask_url"], timeout=60) as answer:
        mask = answer.read()
    assert len(mask) == facts["bytes"]
    assert np.load(io.BytesIO(mask))["seg"].any()
    headers = {"Content-Type": "application/json", "Idempotency-Key": "k"}
    study = {"prompts": ["lungs"]}

    def submit(address: str, prompts: list[str]) -> tuple[int, Any]:
        body, kind = form(scan, "a.nii.gz", job=json.dumps({**study, "prompts": prompts}))
        request = urllib.request.Request(address + "/api/v1/jobs", body, {**headers, "Content-Type": kind})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    status, job = submit(one, ["lungs"])
    assert status == 201
    assert submit(two, ["lungs"]) == (200, job)
    assert submit(two, ["bone"])[0] == 409
    # Its events are followed at one server while it is cancelled at the other.
    with urllib.request.urlopen(f"{one}/api/v1/jobs/{job['id']}/events", timeout=120) as events:
        assert events.readline().strip()
        assert ask(two, f"/api/v1/jobs/{job['id']}/cancel", b"")["status"] == "cancelled"
        assert b"event: end" in events.read()
    assert ask(one, f"/api/v1/jobs/{job['id']}") == ask(two, f"/api/v1/jobs/{job['id']}")
    ask(one, "/api/v1/patients", b'{"patient_id": "P-1"}')
    assert ask(two, "/api/v1/patients/P-1")["patient_id"] == "P-1"
    assert refused(two, "/api/v1/patients", b'{"patient_id": "P-1"}')[0] == 409

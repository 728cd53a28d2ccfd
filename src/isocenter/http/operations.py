"""Health, readiness, metrics, interactive documentation, and the page at the root."""

from __future__ import annotations

import asyncio
import importlib.metadata
import time
from importlib.resources import as_file, files
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from isocenter.core.provenance import RESEARCH_USE
from isocenter.http.context import Here
from isocenter.http.job_metrics import JobMetrics
from isocenter.http.jobdesk import JobDesk
from isocenter.http.system import RuntimeMetrics

router = APIRouter(tags=["Operations"])
VERSION = importlib.metadata.version("isocenter")

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Isocenter</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:44rem;margin:3rem auto;padding:0 1rem}}code,pre{{background:#8882;padding:.1em .3em}}
pre{{padding:1em;overflow:auto}}</style>
<h1>Isocenter {version}</h1><p>Up. {use}</p>
<ul><li><a href="docs">API, to try out</a><li><a href="info/">Models and labels</a> (MONAI Label)<li><a href="healthz">Health</a>,
<a href="readyz">readiness</a>, <a href="metrics">metrics</a></ul>
<p>A mask for a CT:</p><pre>curl -F file=@ct.nii.gz -F prompts=lungs {base}api/biomedparse/v1/predict-3d-nifti</pre></html>"""


@router.get("/", response_model=None)
async def root(request: Request) -> Response:
    """`{"status": "UP"}`; a browser gets a page."""
    if "text/html" in request.headers.get("accept", ""):
        return HTMLResponse(_PAGE.format(version=VERSION, use=RESEARCH_USE, base=request.base_url))
    return JSONResponse({"status": "UP"})


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process is alive; answered from the event loop alone."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(request: Request) -> JSONResponse:
    """Whether requests should be sent here. 503 until the kernels are compiled and the database answers, while draining, and
    where nothing can be stored.
    """
    desk: JobDesk | None = getattr(request.app.state, "jobs", None)
    status = "ready" if getattr(request.app.state, "ready", False) else "warming up"
    if desk is not None and desk.draining:
        status = "draining"
    elif desk is not None and not desk.opened:
        status = "waiting for the database"
    elif desk is not None and status == "ready" and not await asyncio.to_thread(desk.writable):
        status = "the disk is full, or the database or the object store cannot be written to"
    return JSONResponse({"status": status}, 200 if status == "ready" else 503)


class Metrics:
    """What is counted. One object an application, so that several can live in one process (as in the tests)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("isocenter_requests", "Requests by route, method and status", ("route", "method", "status"), registry=self.registry)
        self.seconds = Histogram("isocenter_request_seconds", "Time to the last byte of the answer", ("route",), registry=self.registry)
        self.waiting = Gauge("isocenter_inference_waiting", "Inferences queued or running", registry=self.registry)
        self.volumes = Gauge("isocenter_volume_cache_bytes", "Memory held by decoded volumes", registry=self.registry)
        self.sessions = Gauge("isocenter_sessions", "Interactive sessions", registry=self.registry)
        self.jobs = JobMetrics(self.registry)
        self.runtime = RuntimeMetrics(self.registry)


class Measure:
    """ASGI middleware that counts and times requests by their route's template, never by the path itself."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and look at its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            self._metrics.requests.labels(route, scope["method"], status).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - started)


@router.get("/metrics")
async def metrics(request: Request, here: Here) -> Response:
    """Prometheus metrics."""
    counted: Metrics = request.app.state.metrics
    counted.waiting.set(here.service.runtime.waiting)
    counted.volumes.set(here.service.volumes.nbytes)
    counted.sessions.set(len(here.service.sessions))
    desk: JobDesk | None = getattr(request.app.state, "jobs", None)
    if desk is not None:
        await asyncio.to_thread(counted.jobs.read, desk)
    return Response(generate_latest(counted.registry), media_type=CONTENT_TYPE_LATEST)


def mount_docs(app: FastAPI) -> None:
    """`/docs`, with the assets that an installed package carries, so that it works without the internet."""
    with as_file(files("fastapi_offline") / "static") as folder:
        app.mount("/docs/assets", StaticFiles(directory=Path(folder)), name="docs-assets")

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        root = request.scope.get("root_path", "").rstrip("/")
        return get_swagger_ui_html(
            openapi_url=f"{root}/openapi.json",
            title="Isocenter API",
            swagger_js_url=f"{root}/docs/assets/swagger-ui-bundle.js",
            swagger_css_url=f"{root}/docs/assets/swagger-ui.css",
            swagger_favicon_url=f"{root}/docs/assets/favicon.png",
        )

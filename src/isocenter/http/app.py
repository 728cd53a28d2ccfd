"""The application: one service, every protocol's adapter, and what stands in front of them."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import time
from collections.abc import AsyncIterator

import structlog
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from isocenter.core.errors import StoreError, UsageError
from isocenter.core.provenance import RESEARCH_USE
from isocenter.core.settings import Settings
from isocenter.http import (
    biomedparse,
    describe,
    errors,
    idle,
    inference,
    jobs,
    monai_sessions,
    monailabel,
    native,
    operations,
    patient_cases,
    patient_changes,
    patient_stories,
    patients,
    studies,
    system,
    text,
)
from isocenter.http.context import Context
from isocenter.http.guard import Guard
from isocenter.http.idle import Idle, IdleClock
from isocenter.http.jobdesk import JobDesk
from isocenter.io import pixels
from isocenter.runtime.priority import settle_down
from isocenter.service import Service
from isocenter.textservice import TextService

log = structlog.get_logger("isocenter")
#: Seconds for which the database is waited for before the server answers without it.
_AT_ONCE = 1.0
LOCALHOST = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?"


def create_app(settings: Settings) -> FastAPI:
    """The application for these settings. Starting it starts the decoders and compiles the kernels in the background."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        context = app.state.context = Context(Service(settings))
        app.state.metrics.runtime.watch(context.service.runtime)
        app.state.text = TextService(settings, reserve=context.service.runtime.reserve)
        desk = app.state.jobs = JobDesk(settings, context.service)
        unfit: UsageError | None = None
        try:
            await asyncio.to_thread(desk.open, _AT_ONCE)
        except StoreError:
            pass
        except UsageError as error:  # a database that will never do: the server says so and ends
            unfit = app.state.failed = error
            app.state.stop()
        log.info(f"Using Models: {list(monailabel.entries(context.service.models()))}")
        if settings.decoders:
            await context.read(lambda: pixels.start(settings.decoders, settings))
        background: list[asyncio.Task[None]] = []
        if unfit is None:
            background.append(asyncio.create_task(_warm(app)))
            background.append(asyncio.create_task(_sweep(context, desk, settings.artifact_sweep)))
            background.append(asyncio.create_task(desk.tidy()))
        if not desk.opened and unfit is None:
            background.append(asyncio.create_task(_opened(app, desk)))
        if settings.idle_exit is not None:
            background.append(asyncio.create_task(idle.watch(app.state.idle, settings.idle_exit, lambda: bool(desk.worker and desk.worker.busy))))
        try:
            yield
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await asyncio.to_thread(desk.close)
            await asyncio.to_thread(context.close)
            await asyncio.to_thread(app.state.text.close)
            pixels.stop()

    app = FastAPI(
        title="Isocenter",
        description=RESEARCH_USE,
        version=operations.VERSION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.metrics = operations.Metrics()
    app.state.stop = lambda: os.kill(os.getpid(), signal.SIGTERM)
    errors.install(app)
    # The texts' routes first: theirs are the smallest requests, and routes are looked through in this order.
    app.include_router(text.router)
    app.include_router(operations.router)
    app.include_router(system.router)
    app.include_router(native.router)
    app.include_router(describe.router)
    app.include_router(biomedparse.router)
    app.include_router(biomedparse.files)
    app.include_router(monailabel.router)
    app.include_router(monai_sessions.router)
    app.include_router(jobs.router)
    app.include_router(studies.router)
    app.include_router(patients.router)
    app.include_router(patient_cases.router)
    app.include_router(patient_changes.router)
    app.include_router(patient_stories.router)
    app.include_router(inference.router)
    app.add_api_route("/monai/", operations.root, include_in_schema=False, response_model=None)
    app.include_router(monailabel.router, prefix="/monai", include_in_schema=False)
    app.include_router(monai_sessions.router, prefix="/monai")
    operations.mount_docs(app)
    clock = app.state.idle = IdleClock()
    app.add_middleware(Idle, clock=clock)
    # Added last means asked first: CORS answers preflights, the guard refuses strangers, then the request is measured.
    app.add_middleware(operations.Measure, metrics=app.state.metrics)
    app.add_middleware(Guard, settings=settings)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=list(settings.cors_origins),
        allow_origin_regex=LOCALHOST,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=["Content-Disposition", *(f"X-Isocenter-{name}" for name in ("Model", "Version", "Weights", "Provenance"))],
    )
    return app


async def _opened(app: FastAPI, desk: JobDesk) -> None:
    """Wait for a database that was away when the server started; end the server where it stays away."""
    log.warning("the database cannot be reached; waiting for it", seconds=desk.settings.database_wait)
    until = time.monotonic() + desk.settings.database_wait
    while not desk.opened:
        try:
            await asyncio.to_thread(desk.open, _AT_ONCE)
        except StoreError as error:
            if time.monotonic() > until:
                app.state.failed = StoreError(f"{error.message}; see DATABASE_URL and POSTGRES_*, or have ISOCENTER_DATABASE_WAIT wait longer")
                app.state.stop()
                return
            await asyncio.sleep(0.5)
        except UsageError as error:
            app.state.failed = error
            app.state.stop()
            return
        except Exception as error:  # a schema that cannot be brought up to date, say
            log.error("the job table cannot be opened", error=type(error).__name__, exc_info=error)
            app.state.failed = StoreError("the job table cannot be opened; the log says more")
            app.state.stop()
            return
    log.info("the database answers")


async def _warm(app: FastAPI) -> None:
    """Compile (or load) the kernels, look at the devices, then say that the server is ready."""
    context: Context = app.state.context
    await asyncio.to_thread(context.service.runtime.announce)
    await context.infer(context.service.warm, seconds=math.inf)
    await asyncio.to_thread(app.state.text.warm)
    await asyncio.to_thread(settle_down)
    app.state.ready = True
    log.info("ready")


async def _sweep(context: Context, desk: JobDesk, period: float) -> None:
    while True:
        try:
            await context.read(context.service.sweep)
            await asyncio.to_thread(desk.sweep)
        except Exception as error:  # one bad round must not end them all
            log.error("sweeping failed", error=type(error).__name__, exc_info=error)
        await asyncio.sleep(period)

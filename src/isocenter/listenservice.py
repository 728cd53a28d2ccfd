"""What comes by DICOM's network becomes jobs by rules, and their results go back the same way."""

from __future__ import annotations

import re
import threading
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import structlog
from blake3 import blake3
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from isocenter import jobservice
from isocenter.core.errors import IsocenterError, NotFoundError, StoreError, UsageError
from isocenter.core.settings import Settings
from isocenter.io import dimse
from isocenter.io.dimse_tls import Tls
from isocenter.jobs.backend import Backend
from isocenter.jobs.inbox import Inbox, Outbox, Sending, Series
from isocenter.jobs.table import NORMAL, State
from isocenter.models.registry import Registry
from isocenter.service import Service

log = structlog.get_logger("isocenter.dicom")
#: Seconds between two looks at what came and what is to be sent.
_LOOK = 0.5
#: What may be sent back of a job, as the formats of jobs call it.
_OBJECTS = {"seg": "dicom_seg", "sr": "dicom_sr"}


class Destination(BaseModel):
    """A DICOM node that results are sent to."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    host: str = Field(min_length=1, max_length=253)
    port: int = Field(ge=1, le=65535)
    ae_title: str = Field(min_length=1, max_length=16)
    tls: bool = False
    tls_name: str | None = Field(None, min_length=1, max_length=253)

    @property
    def peer(self) -> dimse.Peer:
        """As the network calls it."""
        return dimse.Peer(self.host, self.port, self.ae_title, self.tls, self.tls_name)


class Rule(BaseModel):
    """Which series become which job. Texts of the series are matched as regular expressions, anywhere and in any case."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(min_length=1, max_length=64)
    modality: str = ""
    body_part: str = ""
    series_description: str = ""
    sender: str = ""
    min_images: int = Field(1, ge=1)
    model: str | None = None
    prompts: list[Any] = []
    labels: list[str] = []
    parameters: dict[str, Any] = {}
    priority: int = Field(NORMAL, ge=0, le=9)
    queue: str | None = Field(None, pattern="^(gpu|cpu)$")
    send: tuple[Literal["seg", "sr"], ...] = Field(("seg", "sr"), min_length=1)
    send_to: list[str] = []

    @field_validator("modality", "body_part", "series_description", "sender")
    @classmethod
    def _pattern(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error:
            raise ValueError("this is no regular expression") from None
        return value

    def fits(self, series: Series, images: int) -> bool:
        """Whether a series is meant."""
        pairs = (
            (self.modality, series.modality),
            (self.body_part, series.body_part),
            (self.series_description, series.description),
            (self.sender, series.sender),
        )
        return images >= self.min_images and all(re.search(pattern, text, re.IGNORECASE) for pattern, text in pairs if pattern)

    @property
    def formats(self) -> tuple[str, ...]:
        """What is made to be sent, each once."""
        return tuple(dict.fromkeys(_OBJECTS[kind] for kind in self.send))

    def request(self, series_uid: str | None = None) -> jobservice.SegmentRequest:
        """The job's request."""
        return jobservice.SegmentRequest(
            model=self.model,
            prompts=[*self.prompts, *self.labels],
            parameters=self.parameters,
            formats=(*self.formats, "measurements"),
            series_uid=series_uid,
            priority=self.priority,
            queue=self.queue,
        )


class Rules(BaseModel):
    """The rules' file: the first rule that fits makes the job."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    rules: list[Rule] = Field(min_length=1)
    destinations: Mapping[str, Destination] = {}

    @classmethod
    def read(cls, path: Path) -> Rules:
        """The rules in a TOML file. Raises `UsageError` that says what is wrong with it."""
        try:
            rules = cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except OSError:
            raise UsageError(f"the rules' file {path} cannot be read") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{path.name} is not TOML: {str(error)[:120]}") from None
        except ValidationError as error:
            first = error.errors()[0]
            raise UsageError(f"{path.name}: {'.'.join(str(p) for p in first['loc'])}: {first['msg']}") from None
        for rule in rules.rules:
            unknown = [name for name in rule.send_to if name not in rules.destinations]
            if unknown:
                raise UsageError(f"{path.name}: the rule '{rule.name}' sends to '{unknown[0]}', which is no destination")
        return rules

    def check(self, registry: Registry) -> None:
        """Raise `UsageError` for a rule that no model here can follow."""
        for rule in self.rules:
            try:
                rule.request().check(registry)
            except IsocenterError as error:
                raise UsageError(f"the rule '{rule.name}' cannot be followed: {error.message}") from None


def tls_of(settings: Settings) -> Tls:
    """What the settings say of TLS. Raises `UsageError` for what cannot be meant or read."""
    tls = Tls(settings.dicom_tls_cert, settings.dicom_tls_key, settings.dicom_tls_ca, settings.dicom_tls_client_cert)
    tls.check()
    return tls


class Listener:
    """Receives, queues and sends until it is stopped."""

    def __init__(self, settings: Settings, service: Service, backend: Backend, rules: Rules) -> None:
        rules.check(service.registry)
        self._settings, self._service, self._backend, self._rules = settings, service, backend, rules
        self._inbox, self._outbox = Inbox(settings), Outbox(settings)
        self._tls = tls_of(settings)
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._receiver = dimse.Receiver(
            self._inbox.keep,
            settings,
            ae_title=settings.dicom_ae_title,
            host=settings.dicom_host,
            port=settings.dicom_port,
            allowed=settings.dicom_allowed,
            max_bytes=settings.dicom_max_bytes,
            tls=self._tls,
        )

    def start(self) -> int:
        """Begin; returns the port. What was left from before is gone on with."""
        port = self._receiver.start()
        self._thread = threading.Thread(target=self._run, name="listen", daemon=True)
        self._thread.start()
        return port

    def stop(self) -> None:
        """End. What has not become a job or has not been sent stays for the next time."""
        self._receiver.stop()
        self._over.set()
        if self._thread is not None:
            self._thread.join(30.0)

    @property
    def busy(self) -> int:
        """Senders that are connected."""
        return self._receiver.open

    def _run(self) -> None:
        while not self._over.wait(_LOOK):
            try:
                self.look()
            except StoreError as error:
                log.warning("the job table or the disk is away; trying again", reason=error.message)
            except Exception as error:  # one bad round must not end them all
                log.error("a round failed", error=type(error).__name__, exc_info=error)

    def look(self) -> None:
        """Queue what is complete and send what is due."""
        # While somebody is connected, more may come after a pause.
        settle = max(self._settings.dicom_settle, dimse.SILENCE) if self.busy else self._settings.dicom_settle
        for series in self._inbox.complete(settle):
            self._queue(series)
        for sending in self._outbox.due():
            self._send(sending)
        self._inbox.sweep()

    def _queue(self, series: Series) -> None:
        """A job of a series, by the first rule that fits. Not twice, also where the process died between table and folder."""
        images = series.files()
        rule = next((r for r in self._rules.rules if r.fits(series, len(images))), None)
        if rule is None:
            log.info("no rule is for this series", modality=series.modality, images=len(images))
            self._inbox.done(series, images)
            return
        try:
            with series.packed(self._settings.max_upload_bytes) as upload:
                key = blake3(f"listen\0{series.folder.name}\0{upload.digest}\0{rule.model_dump_json()}".encode()).hexdigest()
                job, _ = jobservice.submit(self._service, self._backend, rule.request(series.series_uid), upload, key=key)
        except StoreError:
            raise
        except IsocenterError as error:
            log.error("a series became no job", rule=rule.name, images=len(images), reason=error.message)
            self._inbox.done(series, images)
            return
        self._outbox.add(job.id, [jobservice.FORMATS[name][0] for name in rule.formats], rule.send_to)
        self._inbox.done(series, images)
        log.info("queued", job=job.id, rule=rule.name, images=len(images))

    def _send(self, sending: Sending) -> None:
        """A job's result to where it is to go, once it is there."""
        try:
            job = self._backend.queue.get(sending.job_id)
        except NotFoundError:
            log.warning("a job was deleted before its result was sent", job=sending.job_id)
            self._outbox.drop(sending)
            return
        if not job.ended:
            return
        if job.state is not State.COMPLETED:
            log.error("a job has no result to send", job=job.id, state=job.state.value, code=job.error_code)
            self._outbox.drop(sending)
            return

        def send(file: str, name: str) -> None:
            if name not in self._rules.destinations:
                raise StoreError(f"there is no destination '{name}' in the rules any more")
            result = job.artifact(file)
            if result is None:
                log.error("a job has no such result to send", job=job.id, file=file)
                return
            data = b"".join(self._backend.objects.read(result.digest))
            dimse.send(data, self._rules.destinations[name].peer, ae_title=self._settings.dicom_ae_title, tls=self._tls)
            log.info("sent", job=job.id, file=file, to=name)

        try:
            self._outbox.deliver(sending, send)
        except StoreError as error:
            log.warning("a result could not be sent; trying again later", job=job.id, to=sending.left, reason=error.message)

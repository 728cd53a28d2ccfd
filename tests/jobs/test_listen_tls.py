"""DICOM over TLS, both ways, with certificates made on the spot: real handshakes on this machine's loopback."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from structlog.testing import capture_logs
from typer.testing import CliRunner

from isocenter import jobservice
from isocenter.cli import app
from isocenter.core.errors import StoreError, UsageError
from isocenter.core.settings import Settings
from isocenter.io import dimse
from isocenter.io.dimse_tls import Tls
from isocenter.jobs import inbox
from isocenter.jobs.backend import Backend
from isocenter.listenservice import Rules
from isocenter.service import Service
from tests.certificates import Authority, Pair
from tests.jobs.dicom_nodes import LEFT_TO_THE_COLLECTOR, call, listening, pacs, rules_of, until
from tests.ports import free_port

pytestmark = LEFT_TO_THE_COLLECTOR
RULES = """
[[rules]]
name = "lungs"
model = "tissue"
prompts = ["lungs"]
send_to = ["pacs"]

[destinations.pacs]
host = "127.0.0.1"
port = {port}
ae_title = "PACS"
tls = true
tls_name = "pacs.example.org"
"""


@dataclass(frozen=True)
class Keys:
    authority: Authority
    stranger: Authority
    ours: Pair
    scanner: Pair
    archive: Pair


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    folder = tmp_path_factory.mktemp("keys")
    authority = Authority(folder, "hospital")
    return Keys(authority, Authority(folder, "somebody"), authority.issue("here"), authority.issue("scanner"), authority.issue("pacs.example.org"))


@pytest.fixture
def settings(tmp_path: Path, keys: Keys) -> Settings:
    return Settings(
        home=tmp_path,
        dicom_port=0,
        dicom_settle=3.0,
        dicom_allowed=("SCANNER",),
        dicom_tls_cert=keys.ours.certificate,
        dicom_tls_key=keys.ours.key,
        dicom_tls_ca=keys.authority.path,
        dicom_tls_client_cert=True,
        min_free_bytes=0,
        decoders=0,
    )


def rules(tmp_path: Path, port: int = 1) -> Rules:
    return rules_of(RULES, tmp_path, port)


def test_a_series_comes_and_its_results_go_encrypted(
    settings: Settings, service: Service, backend: Backend, images: list[Dataset], keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both sides show certificates and check them. The archive cannot be believed at first, and nothing is sent to it."""
    monkeypatch.setattr(inbox, "_PAUSES", (0.2, 0.2))
    port = free_port()
    scanner = keys.scanner.context(ssl.Purpose.SERVER_AUTH, keys.authority.path)

    def waiting() -> list[dict[str, Any]]:
        return [inbox.get(path) or {} for path in (tmp_path / "listen" / "sending").glob("*.json")]

    with listening(settings, service, backend, rules(tmp_path, port)) as here:
        assert call(here, images, tls=(scanner, "127.0.0.1")) == [0x0000] * len(images)
        until(lambda: waiting())
        assert backend.worker(jobservice.handler(service)).work_once()
        false = keys.stranger.issue("pacs.example.org").context(ssl.Purpose.CLIENT_AUTH, keys.authority.path)
        with pacs(port, tls=false) as kept:
            until(lambda: any(s.get("tries", 0) > 0 for s in waiting()))
            assert not kept
    with (
        pacs(port, tls=keys.archive.context(ssl.Purpose.CLIENT_AUTH, keys.authority.path)) as kept,
        listening(settings, service, backend, rules(tmp_path, port)),
    ):
        until(lambda: not waiting())
    assert [(dataset.Modality, dataset.StudyInstanceUID) for dataset in kept] == [
        ("SEG", images[0].StudyInstanceUID),
        ("SR", images[0].StudyInstanceUID),
    ]


def test_who_shows_no_certificate_of_the_authority_cannot_call(
    settings: Settings, service: Service, backend: Backend, images: list[Dataset], keys: Keys, tmp_path: Path
) -> None:
    nothing = keys.scanner.context(ssl.Purpose.SERVER_AUTH, keys.authority.path, show=False)
    other = keys.stranger.issue("scanner").context(ssl.Purpose.SERVER_AUTH, keys.authority.path)
    right = keys.scanner.context(ssl.Purpose.SERVER_AUTH, keys.authority.path)
    structlog.reset_defaults()  # warnings are wanted here
    with (
        capture_logs() as logs,
        listening(settings, service, backend, rules(tmp_path)) as here,
        socket.create_connection(("127.0.0.1", here)) as silent,
    ):
        # One who connects and says nothing keeps nobody waiting.
        assert call(here, images[:1], tls=(right, "127.0.0.1")) == [0x0000]
        assert call(here, images[:1]) == [], "in clear text"
        assert call(here, images[:1], tls=(nothing, "127.0.0.1")) == []
        assert call(here, images[:1], tls=(other, "127.0.0.1")) == []
        assert call(here, images[:1], own="STRANGER", tls=(right, "127.0.0.1")) == [], "a certificate is no AE title"
        assert silent.fileno() != -1
    assert sum("handshake" in entry["event"] for entry in logs) >= 3
    open_to_all = settings.model_copy(update={"dicom_tls_client_cert": False})
    with listening(open_to_all, service, backend, rules(tmp_path)) as here:
        assert call(here, images[:1], tls=(nothing, "127.0.0.1")) == [0x0000]
        assert call(here, images[:1]) == [], "in clear text"


def test_what_is_wrong_with_a_destination_is_said(images: list[Dataset], keys: Keys) -> None:
    ours = Tls(keys.ours.certificate, keys.ours.key, keys.authority.path)
    data = DicomBytesIO()
    images[0].save_as(data, enforce_file_format=True)
    archive = keys.archive.context(ssl.Purpose.CLIENT_AUTH, keys.authority.path)
    port = free_port()

    def refused(peer: dimse.Peer, tls: Tls) -> str:
        with pytest.raises(StoreError) as wrong:
            dimse.send(data.getvalue(), peer, ae_title="ISOCENTER", tls=tls)
        return wrong.value.message

    with pacs(port, kinds=(str(images[0].SOPClassUID),), tls=archive) as kept:
        assert "not valid for '127.0.0.1'" in refused(dimse.Peer("127.0.0.1", port, "PACS", tls=True), ours)
        named = dimse.Peer("127.0.0.1", port, "PACS", tls=True, name="pacs.example.org")
        assert "certificate is not accepted" in refused(named, Tls(authorities=keys.stranger.path))
        assert "TLS" in (said := refused(named, Tls(authorities=keys.authority.path))) or "certificate that it was shown" in said
        assert refused(dimse.Peer("127.0.0.1", port, "PACS"), ours) == "the DICOM node refuses the association"
        assert not kept
        dimse.send(data.getvalue(), named, ae_title="ISOCENTER", tls=ours)
        assert len(kept) == 1
    with pacs(port, kinds=(str(images[0].SOPClassUID),)):
        assert "does not speak TLS" in refused(named, ours)


def test_files_that_cannot_be_used(keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = keys.ours
    locked = Authority(tmp_path, "locked").issue("here", password=b"x")
    for tls, says in (
        (Tls(own.certificate, keys.scanner.key), "cannot be used"),
        (Tls(tmp_path / "none", own.key), "cannot be used"),
        (Tls(locked.certificate, locked.key), "which has no password"),
        (Tls(key=own.key), "no dicom_tls_cert"),
        (Tls(own.certificate, own.key, own.key), "dicom_tls_ca"),
        (Tls(own.certificate, own.key, callers_show=True), "dicom_tls_client_cert needs"),
    ):
        with pytest.raises(UsageError) as wrong:
            tls.check()
        assert says in wrong.value.message
    monkeypatch.setenv("ISOCENTER_HOME", str(tmp_path))
    (tmp_path / "rules.toml").write_text(RULES.replace("{port}", "104"))
    told = ["listen", "--rules", str(tmp_path / "rules.toml"), "--check", "--tls-cert", str(own.certificate)]
    assert CliRunner().invoke(app, told).exit_code == 2
    assert CliRunner().invoke(app, [*told, "--tls-key", str(own.key), "--tls-client-cert"]).exit_code == 2
    done = CliRunner().invoke(app, [*told, "--tls-key", str(own.key), "--tls-client-cert", "--tls-ca", str(keys.authority.path)])
    assert done.exit_code == 0, done.stderr

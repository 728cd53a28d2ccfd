"""`isocenter listen`: takes series from PACS and routers by C-STORE, queues jobs by rule, and sends DICOM SEG and SR back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isocenter.core.errors import UsageError

EXAMPLES = (
    "isocenter listen --rules rules.toml --port 11112 --allow PACS --allow ROUTER1",
    "isocenter listen --rules rules.toml --host 0.0.0.0 --ae-title ISOCENTER --allow PACS",
    "isocenter listen --rules rules.toml --check",
)
Rules = Annotated[
    Path | None,
    typer.Option("--rules", metavar="FILE", help="The rules, as TOML.", show_default="ISOCENTER_DICOM_RULES, or listen.toml in the home folder"),
]
Title = Annotated[str | None, typer.Option("--ae-title", metavar="AET", help="Its own AE title.", show_default="ISOCENTER")]
Host = Annotated[str | None, typer.Option(metavar="ADDRESS", help="Where it listens.", show_default="127.0.0.1")]
Port = Annotated[int | None, typer.Option("--port", "-p", min=0, max=65535, metavar="N", help="Its port.", show_default="11112")]
Allow = Annotated[
    list[str] | None, typer.Option("--allow", metavar="AET", help="An AE title that may call. Repeatable.", show_default="any, on 127.0.0.1")
]
Certificate = Annotated[
    Path | None, typer.Option("--tls-cert", metavar="FILE", help="Speak TLS, with this certificate (PEM).", show_default="ISOCENTER_DICOM_TLS_CERT")
]
Key = Annotated[Path | None, typer.Option("--tls-key", metavar="FILE", help="Its key (PEM).", show_default="in the certificate's file")]
Authorities = Annotated[
    Path | None, typer.Option("--tls-ca", metavar="FILE", help="Who signs the other nodes' certificates (PEM).", show_default="the system's")
]
Shown = Annotated[bool | None, typer.Option("--tls-client-cert", help="Callers must show such a certificate.", show_default="they need none")]
Check = Annotated[bool, typer.Option("--check", help="Read the rules, say what is wrong with them, and end.")]


def listen(
    rules: Rules = None,
    ae_title: Title = None,
    host: Host = None,
    port: Port = None,
    allow: Allow = None,
    tls_cert: Certificate = None,
    tls_key: Key = None,
    tls_ca: Authorities = None,
    tls_client_cert: Shown = None,
    check: Check = False,
) -> None:
    """Receive DICOM series over the network (C-STORE), queue a job for each by rule, and send DICOM SEG and SR to where the rule says.

    The first rule fits whose modality, body_part, series_description and sender (regular expressions) are found in the series:

    [[rules]] name = "lungs", modality = "CT", body_part = "CHEST", model = "tissue", prompts = ["lungs"], send_to = ["pacs"]

    [destinations.pacs] host = "10.0.0.5", port = 104, ae_title = "PACS"

    A server or a worker with the same settings does the jobs. What came stays on the disk until its job is in the table, and results are
    sent again until the destination has kept them, also after a restart.
    """
    import structlog

    from isocenter.cli.chosen import settings
    from isocenter.http import logs
    from isocenter.io import dimse
    from isocenter.jobs.backend import Backend
    from isocenter.jobs.processes import run_until_stopped
    from isocenter.listenservice import Listener, tls_of
    from isocenter.listenservice import Rules as RulesFile
    from isocenter.service import Service

    dimse.check_installed()
    given = {
        "dicom_rules": rules,
        "dicom_ae_title": ae_title,
        "dicom_host": host,
        "dicom_port": port,
        "dicom_allowed": tuple(allow) if allow else None,
        "dicom_tls_cert": tls_cert,
        "dicom_tls_key": tls_key,
        "dicom_tls_ca": tls_ca,
        "dicom_tls_client_cert": tls_client_cert,
    }
    chosen = settings(**{name: value for name, value in given.items() if value is not None})
    found = RulesFile.read(chosen.dicom_rules or chosen.home / "listen.toml")
    _check_address(chosen.dicom_host, chosen.dicom_allowed, chosen.insecure)
    tls_of(chosen)
    logs.configure(chosen)
    service = Service(chosen)
    found.check(service.registry)
    if check:
        typer.echo(f"{len(found.rules)} rules, {len(found.destinations)} destinations: nothing is wrong with them")
        return
    backend = Backend(chosen, patience=chosen.database_wait)
    listener = Listener(chosen, service, backend, found)
    log = structlog.get_logger("isocenter.dicom")

    def start() -> None:
        log.info(f"Listening for DICOM as {chosen.dicom_ae_title} on {chosen.dicom_host}:{listener.start()}")
        if not backend.queue.standing().workers:
            log.warning('no worker is there yet: start "isocenter serve" or "isocenter worker"; jobs wait for it')

    run_until_stopped(start, listener.stop)
    backend.close()
    service.close()


def _check_address(host: str, allowed: tuple[str, ...], insecure: bool) -> None:
    """Raise `UsageError` where strangers could send."""
    import ipaddress

    try:
        here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        here = host == "localhost"
    if not (here or allowed or insecure):
        raise UsageError(
            f"listening on {host} would take images from anybody on the network; name who may call with --allow, or pass ISOCENTER_INSECURE=1"
        )

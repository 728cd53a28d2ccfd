"""TLS for DICOM's network protocol (PS3.15 B.12, "BCP 195"): who we are, whom we believe, and what we ask of callers."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from isocenter.core.errors import StoreError, UsageError

log = structlog.get_logger("isocenter.dicom")


@dataclass(frozen=True)
class Tls:
    """certificate, key: ours, PEM, the certificate with those between it and its authority. authorities: those that sign the certificates of other
    nodes, PEM; the system's where there is none. callers_show: callers must show a certificate of these authorities.
    """

    certificate: Path | None = None
    key: Path | None = None
    authorities: Path | None = None
    callers_show: bool = False

    def check(self) -> None:
        """Raise `UsageError` for what cannot be meant or read."""
        if self.key is not None and self.certificate is None:
            raise UsageError("dicom_tls_key is set, and no dicom_tls_cert that it belongs to")
        if self.callers_show and (self.certificate is None or self.authorities is None):
            raise UsageError("dicom_tls_client_cert needs dicom_tls_cert, and dicom_tls_ca: the authority whose certificates callers must show")
        if self.certificate is not None:
            self.server()
        self.client()

    def server(self, silence: float = 60.0) -> ssl.SSLContext:
        """For those who call. silence: seconds that one may be silent.

        A handshake is made by the connection's own thread, so that nobody waits for a caller that is silent.
        """
        context = _Accepting(ssl.PROTOCOL_TLS_SERVER)
        context.silence = silence
        context.sslsocket_class = _Accepted
        self._load(context)
        context.verify_mode = ssl.CERT_REQUIRED if self.callers_show else ssl.CERT_NONE
        return context

    def client(self) -> ssl.SSLContext:
        """For those whom we call: their certificate must be an authority's, and name them."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._load(context)
        if self.authorities is None:
            context.load_default_certs()
        return context

    def _load(self, context: ssl.SSLContext) -> None:
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            if self.certificate is not None:
                # Without a password the library would ask the terminal for one.
                context.load_cert_chain(self.certificate, self.key, password="")
        except (OSError, ValueError):
            raise UsageError(
                f"dicom_tls_cert {self.certificate} and dicom_tls_key {self.key or 'in it'} cannot be used: a PEM certificate and its key, "
                "which has no password, are needed"
            ) from None
        try:
            if self.authorities is not None:
                context.load_verify_locations(self.authorities)
        except (OSError, ValueError):
            raise UsageError(f"dicom_tls_ca {self.authorities} cannot be used: a file of PEM certificates is needed") from None


class _Accepting(ssl.SSLContext):
    """Wraps connections that were accepted without waiting for their handshake."""

    silence: float

    def wrap_socket(self, sock: Any, *args: Any, **options: Any) -> ssl.SSLSocket:
        return super().wrap_socket(sock, *args, **{**options, "do_handshake_on_connect": False})


class _Accepted(ssl.SSLSocket):
    """A connection whose handshake is made when it is first read from, and has the time of one silence, as all that follows."""

    _greeted = False

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        if not self._greeted:
            self._greeted = True
            self.settimeout(getattr(self.context, "silence", None))
            try:
                self.do_handshake()
            except OSError as error:
                log.warning("a caller's TLS handshake failed", reason=getattr(error, "reason", None) or type(error).__name__)
                self.close()  # the library does not, where there is nobody at the other end any more
                raise
        return super().recv(buflen, flags)


def greet(plain: Any, context: ssl.SSLContext, name: str) -> None:
    """A handshake with a node, over a connection that is closed afterwards. Raises `StoreError` that says what is wrong with it."""
    try:
        with context.wrap_socket(plain, server_hostname=name):
            pass
    except ssl.SSLCertVerificationError as error:
        raise StoreError(f"the DICOM node's certificate is not accepted: {error.verify_message}") from None
    except OSError as error:
        raise StoreError(f"the DICOM node does not speak TLS with us ({getattr(error, 'reason', None) or type(error).__name__})") from None

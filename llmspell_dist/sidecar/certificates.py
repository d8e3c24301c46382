"""Certificates that are renewed: whether the files say something else, and whether it is usable."""

from __future__ import annotations

import ssl
from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmspell_dist.sidecar.settings import TLS

__all__ = ["CertificateFiles"]


class CertificateFiles:
    """The files of a certificate, its key and the clients' authority. Blocks."""

    def __init__(self, tls: TLS) -> None:
        self._tls = tls
        self._known = self._content()

    def changed(self) -> bool:
        """Return whether there is a new certificate, which fits its key; each is told once.

        `OSError` (`ssl.SSLError` among them) if what is there cannot be used: told once too.
        """
        content = self._content()
        if content == self._known:
            return False
        self._known = content
        tls = self._tls
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls.certificate, tls.key)
        if tls.client_ca is not None:
            context.load_verify_locations(tls.client_ca)
        return True

    def _content(self) -> bytes:
        """Return a digest of all of them; of one that is not there, that it is not."""
        whole = sha256()
        for path in (self._tls.certificate, self._tls.key, self._tls.client_ca):
            try:
                part = b"" if path is None else path.read_bytes()
            except OSError:
                part = b""
            whole.update(sha256(part).digest())
        return whole.digest()

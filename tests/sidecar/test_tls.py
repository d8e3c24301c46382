"""TLS, and mutual TLS: who has no certificate of the right authority gets no answer at all."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import httpx
import pytest
import trustme
from fix_sidecar import Sidecar, StartSidecar

from llmspell_dist.sidecar.settings import TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """The authority of the server, and of the clients that it trusts."""
    return trustme.CA()


def _files(authority: trustme.CA, folder: Path) -> TLS:
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    chain, key, ca = folder / "tls.crt", folder / "tls.key", folder / "ca.crt"
    chain.write_bytes(b"".join(part.bytes() for part in certificate.cert_chain_pems))
    key.write_bytes(certificate.private_key_pem.bytes())
    authority.cert_pem.write_to_path(str(ca))
    return TLS(chain, key, ca)


def _context(authority: trustme.CA, client: trustme.LeafCert | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if client is not None:
        client.configure_cert(context)
    return context


async def _status(sidecar: Sidecar, context: ssl.SSLContext) -> int:
    url = sidecar.url.replace("http://", "https://")
    async with httpx.AsyncClient(verify=context) as http:
        return (await http.get(f"{url}/livez")).status_code


async def test_it_is_served_over_tls_and_not_in_the_clear(
    start_sidecar: StartSidecar, authority: trustme.CA, tmp_path: Path
) -> None:
    """A client that trusts the authority is answered; plain HTTP to the port is not."""
    files = _files(authority, tmp_path)
    sidecar: Sidecar = await start_sidecar(tls=TLS(files.certificate, files.key))
    assert await _status(sidecar, _context(authority)) == 200
    with pytest.raises(httpx.TransportError):
        await sidecar.ask("GET", "/livez")
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        await _status(sidecar, ssl.create_default_context())


async def test_with_a_client_authority_only_its_clients_are_answered(
    start_sidecar: StartSidecar, authority: trustme.CA, tmp_path: Path
) -> None:
    """No certificate, or one of another authority: the connection ends before any answer."""
    sidecar: Sidecar = await start_sidecar(tls=_files(authority, tmp_path))
    mine = authority.issue_cert("app@example.org")
    foreign = trustme.CA().issue_cert("app@example.org")
    assert await _status(sidecar, _context(authority, mine)) == 200
    for client in (None, foreign):
        with pytest.raises((httpx.TransportError, ssl.SSLError)):
            await _status(sidecar, _context(authority, client))


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are looked at without a pause."""
    monkeypatch.setattr("llmspell_dist.sidecar.serving.RENEW_EVERY_S", 0.01)


@pytest.mark.usefixtures("at_once")
async def test_a_renewed_certificate_is_shown_without_a_restart(
    start_sidecar: StartSidecar, authority: trustme.CA, tmp_path: Path
) -> None:
    """What is under way on a connection of before is answered; new connections see the new one."""
    files = _files(authority, tmp_path)
    sidecar: Sidecar = await start_sidecar(tls=TLS(files.certificate, files.key))
    other = trustme.CA()
    url = sidecar.url.replace("http://", "https://")
    async with httpx.AsyncClient(verify=_context(authority), timeout=20) as before:
        lease = f"{url}/v1/leases/agent:a/main"
        assert (await before.post(lease, json={"owner": "one"})).status_code == 200
        waiting = asyncio.create_task(before.post(lease, json={"owner": "two", "wait": 1}))
        _files(other, tmp_path)
        async with asyncio.timeout(20):
            while not await _is_shown(sidecar, other):  # noqa: ASYNC110 - nobody tells a client
                await asyncio.sleep(0.05)
        assert (await waiting).json()["code"] == "LEASE_UNAVAILABLE"
    assert await _status(sidecar, _context(other)) == 200


@pytest.mark.usefixtures("at_once")
async def test_a_certificate_that_does_not_fit_its_key_is_not_used(
    start_sidecar: StartSidecar,
    authority: trustme.CA,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The old one stays, the log says why, and it is used once the key is there too."""
    files = _files(authority, tmp_path)
    sidecar: Sidecar = await start_sidecar(tls=TLS(files.certificate, files.key))
    other = trustme.CA()
    (tmp_path / "new").mkdir()
    new = _files(other, tmp_path / "new")
    new.certificate.replace(files.certificate)
    async with asyncio.timeout(20):
        while "the new certificate is not used" not in caplog.text:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.05)
    assert await _status(sidecar, _context(authority)) == 200
    new.key.replace(files.key)
    async with asyncio.timeout(20):
        while not await _is_shown(sidecar, other):  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.05)


async def _is_shown(sidecar: Sidecar, authority: trustme.CA) -> bool:
    """Return whether a new connection is shown a certificate of that authority."""
    try:
        return await _status(sidecar, _context(authority)) == 200
    except httpx.ConnectError:
        return False

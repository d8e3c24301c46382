"""One state of an access file, in force: who a request comes from.

A reload makes another one, and with it go all answers that were kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from hashlib import sha256
from hmac import compare_digest
from typing import Final

from llmspell_dist.sidecar.auth.bearer import MAX_CREDENTIAL, SCHEME, credential_of
from llmspell_dist.sidecar.auth.clocks import Clocks
from llmspell_dist.sidecar.auth.entries import Entries, KeySource
from llmspell_dist.sidecar.auth.errors import UnauthenticatedError
from llmspell_dist.sidecar.auth.grants import GrantSet, Principal
from llmspell_dist.sidecar.auth.jwts import VerifiedJWT, Verifier
from llmspell_dist.sidecar.auth.keysets import KeySet
from llmspell_dist.sidecar.auth.minting import (
    SECRET_CHARACTERS,
    SECRET_PREFIX,
    digest_of,
    is_well_formed,
)
from llmspell_dist.sidecar.auth.peers import Peer

__all__ = ["Rules"]

_MAX_JWTS: Final = 4096
_MAX_PEERS: Final = 1024
_TOKEN_BEGIN: Final = SCHEME + SECRET_PREFIX
_SCHEME_LENGTH: Final = len(SCHEME)
_TOKEN_LENGTH: Final = _SCHEME_LENGTH + SECRET_CHARACTERS
_NO_DIGEST: Final = bytes(32)


class Rules:
    """Tells whom a request comes from, by the entries of one access file."""

    def __init__(
        self, entries: Entries, keysets: Mapping[KeySource, KeySet], *, clocks: Clocks
    ) -> None:
        self.entries = entries
        self.keysets = keysets
        self._now = clocks.now
        # A digest cannot be approached digit by digit, as nobody can choose the digest of what is
        # sent: finding it in a dict tells nothing about the secret.
        self._tokens = {entry.digest: entry for entry in entries.tokens}
        self._verifier = Verifier(entries.issuers, keysets, clocks=clocks)
        self._verified: OrderedDict[bytes, VerifiedJWT] = OrderedDict()
        self._peers: dict[tuple[int, int], Principal | None] = {}

    def known(self, authorization: str | None, peer: Peer | None) -> Principal | None:
        """Return the principal if that takes no waiting and no doubt is left, else None."""
        if authorization is None:
            return self._without_credentials(peer)
        if authorization.startswith(_TOKEN_BEGIN) and len(authorization) == _TOKEN_LENGTH:
            # Not by way of functions: this line of calls is what every request pays.
            digest = sha256(authorization[_SCHEME_LENGTH:].encode("ascii", "replace")).digest()
            entry = self._tokens.get(digest)
            if entry is None or not compare_digest(entry.digest, digest):
                return None
            return entry.principal if self._now() < entry.expires else None
        if not self._verified or not authorization.startswith(SCHEME):
            return None
        return self._known_jwt(authorization)

    def _known_jwt(self, authorization: str) -> Principal | None:
        if len(authorization) > MAX_CREDENTIAL or not authorization.isascii():
            return None
        digest = digest_of(authorization[_SCHEME_LENGTH:])
        verified = self._verified.get(digest)
        if verified is None:
            return None
        if not verified.holds(self._now()):
            del self._verified[digest]
            return None
        self._verified.move_to_end(digest)
        return verified.principal

    async def authenticate(self, authorization: str | None, peer: Peer | None) -> Principal:
        """Return the principal; `UnauthenticatedError` if the request is nobody's.

        Credentials that are given must be good: there is no falling back to peer or anonymous.
        """
        if authorization is None:
            principal = self._without_credentials(peer)
            if principal is None:
                who = "" if peer is None else f", and no [[peer]] for uid {peer.uid}"
                raise UnauthenticatedError(f"no credentials{who}", given=False)
            return principal
        credential = credential_of(authorization)
        if credential.startswith(SECRET_PREFIX):
            return self._token(credential)
        if credential.count(".") != 2:
            raise UnauthenticatedError("the credential is neither a token nor a JWT")
        verified = await self._verifier.verify(credential)
        self._verified[digest_of(credential)] = verified
        if len(self._verified) > _MAX_JWTS:
            self._verified.popitem(last=False)
        return verified.principal

    def _token(self, credential: str) -> Principal:
        digest = digest_of(credential)
        entry = self._tokens.get(digest)
        same = compare_digest(_NO_DIGEST if entry is None else entry.digest, digest)
        if not is_well_formed(credential):
            raise UnauthenticatedError("the token is mistyped, or not made by this program")
        if entry is None or not same:
            raise UnauthenticatedError("the token is not in the access file")
        if self._now() >= entry.expires:
            raise UnauthenticatedError(f"token {entry.principal.name}: expired")
        return entry.principal

    def _without_credentials(self, peer: Peer | None) -> Principal | None:
        found = None if peer is None or not self.entries.peers else self._of_peer(peer)
        return found or self.entries.anonymous

    def _of_peer(self, peer: Peer) -> Principal | None:
        who = peer.uid, peer.gid
        if who in self._peers:
            return self._peers[who]
        grants = [
            grant
            for entry in self.entries.peers
            if entry.uid in (None, peer.uid) and entry.gid in (None, peer.gid)
            for grant in entry.grants
        ]
        principal = Principal(f"uid-{peer.uid}", "peer", GrantSet(grants)) if grants else None
        if len(self._peers) >= _MAX_PEERS:
            self._peers.clear()
        self._peers[who] = principal
        return principal

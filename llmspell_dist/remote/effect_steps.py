"""Effects that run once, through a sidecar: claimed and settled there, carried out here."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.agents.effect_steps import EffectSteps
from llmspell_dist.agents.effects import EffectRecord, EffectStatus, Seen, effect_key
from llmspell_dist.agents.errors import EffectTakenOverError
from llmspell_dist.errors import CodecError, LimitError
from llmspell_dist.remote.agent_documents import effect_of
from llmspell_dist.remote.agent_steps import agent_path
from llmspell_dist.remote.documents import pack_map
from llmspell_dist.remote.driver import Ask, asked
from llmspell_dist.remote.reads import GONE
from llmspell_dist.remote.writes import said_ttl
from llmspell_dist.revision import Revision

if TYPE_CHECKING:
    from llmspell_dist.agents.handle import HandleSteps
    from llmspell_dist.remote.transport import Answer
    from llmspell_dist.state.steps import Steps
    from llmspell_dist.ttl import TTL

__all__ = ["RemoteEffectSteps"]

_TOO_LARGE: Final = "BODY_TOO_LARGE"


class RemoteEffectSteps(EffectSteps):
    """The effects of one agent, asked of a sidecar."""

    def __init__(self, handle: HandleSteps) -> None:
        super().__init__(handle)
        self._unstorable: Revision | None = None
        """The claim whose outcome the sidecar stored as unknown, since its result does not fit."""

    def _ask(self, key: str, what: str, body: dict[str, Any]) -> Steps[Answer]:
        return (yield from self._sent(key, what, self._packed(body)))

    def _packed(self, body: dict[str, Any]) -> dict[bytes, bytes]:
        encode = self.core.values.codec.encode
        return {encode(name): encode(value) for name, value in body.items()}

    def _sent(self, key: str, what: str, packed: dict[bytes, bytes]) -> Steps[Answer]:
        path = agent_path(self.agent_id, "effects", key, what)
        return (yield from asked(Ask("POST", path, packed=pack_map(packed))))

    def _result(self, key: str, result: Any) -> dict[bytes, bytes]:
        """Return a result for a body; one that cannot be stored raises before anything is sent."""
        state_key, scope, values = effect_key(key), self.scope.scope, self.core.values
        state_class = self.core.rules.resolve(scope, state_key)
        try:
            packed = values.encode_element(result, state_class, scope.text, state_key)
        except (CodecError, LimitError) as error:
            raise error.inside(".result") from None
        return {values.codec.encode("result"): packed}

    def look(self, key: str) -> Steps[Seen]:
        """Return an effect's record together with the server's time."""
        effect_key(key)
        path = agent_path(self.agent_id, "effects", key)
        answer = yield from asked(Ask("GET", path, {"recorded": True}, accept=GONE))
        if answer.status == 404:
            return Seen(self.agent_id, key, None, datetime.now(UTC))  # nobody goes by it then
        said = dict(answer.document)
        now = said.pop("time")
        return Seen(self.agent_id, key, effect_of(said), now)

    def listed(self) -> Steps[list[EffectRecord]]:
        """Return all effects of the agent; claims that were left behind as unknown."""
        answer = yield from asked(Ask("GET", agent_path(self.agent_id, "effects")))
        return [effect_of(one) for one in answer.document["effects"]]

    # --- claiming

    def claim(self, key: str, by: str, limit_ms: int, retry_failed: bool) -> Steps[EffectRecord]:
        """Return a claim of one's own, or the record of what has happened already."""
        body = {"by": by, "limit": limit_ms / 1000, "retry_failed": retry_failed}
        return effect_of((yield from self._ask(key, "claim", body)).document)

    def retry(self, key: str, by: str, limit_ms: int) -> Steps[EffectRecord]:
        """Return a claim of one's own of an effect that did not happen, as the caller says."""
        body = {"by": by, "limit": limit_ms / 1000}
        return effect_of((yield from self._ask(key, "retry", body)).document)

    def renew(self, claim: EffectRecord, by: str, limit_ms: int) -> Steps[EffectRecord | None]:
        """Return a claim of one's own with its whole limit; None if it is another's."""
        body = {"by": by, "limit": limit_ms / 1000, "renews": str(claim.revision)}
        try:
            return effect_of((yield from self._ask(claim.key, "claim", body)).document)
        except EffectTakenOverError:
            return None

    # --- settling

    def settle(
        self,
        claim: EffectRecord,
        status: EffectStatus,
        result: Any,
        reason: str | None,
        keep: TTL,
    ) -> Steps[Revision]:
        """Say how a claimed effect ended; `EffectTakenOverError` if the claim is gone."""
        assert claim.revision is not None  # noqa: S101 - claiming it gave one
        said = {"claim": str(claim.revision)}
        if status is not EffectStatus.COMMITTED:
            if claim.revision == self._unstorable:
                return claim.revision  # the sidecar has said so
            unknown = status is EffectStatus.UNKNOWN
            body = said | {"reason": reason or "", "unknown": unknown}
            answer = yield from self._ask(claim.key, "fail", body)
            return Revision.parse(answer.document["revision"])
        packed = self._packed(said | _kept(keep)) | self._result(claim.key, result)
        try:
            answer = yield from self._sent(claim.key, "complete", packed)
        except (CodecError, LimitError) as error:
            if error.code != _TOO_LARGE:  # that was not even looked at
                self._unstorable = claim.revision
            raise
        return Revision.parse(answer.document["revision"])

    def resolve(self, key: str, by: str, limit_ms: int, result: Any, keep: TTL) -> Steps[None]:
        """Say that an effect of unknown outcome did happen, and with what result."""
        body = {"by": by, "limit": limit_ms / 1000} | _kept(keep)
        yield from self._sent(key, "resolve", self._packed(body) | self._result(key, result))


def _kept(keep: TTL) -> dict[str, Any]:
    seconds = said_ttl(keep)
    return {"keep": seconds if isinstance(seconds, float) else None}

"""Plans of what is to be pruned, kept until somebody says that they are to be carried out."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.sidecar.documents import as_document
from llmspell_dist.sidecar.errors import NotFoundError

if TYPE_CHECKING:
    from llmspell_dist.backup.retention.plan import PrunePlan
    from llmspell_dist.backup.upkeep import Pruned
    from llmspell_dist.sidecar.services import Services

__all__ = ["Plans", "plan_details"]

_MOST: Final = 16
_KEPT_S: Final = 3600.0


class Plans:
    """The last plans that this sidecar gave, each for an hour and for one use."""

    def __init__(self, _: Services | None = None) -> None:
        self._known: dict[str, tuple[float, str, Pruned]] = {}

    @staticmethod
    def checked(policy: str | None) -> str:
        """Return the policy; there must be one to plan by."""
        if policy is None:
            raise InvalidArgumentError("policy", None, "must be given, or a plan")
        return policy

    def keep(self, policy: str, planned: Pruned) -> str:
        """Keep a plan; its id."""
        while len(self._known) >= _MOST:
            del self._known[next(iter(self._known))]
        plan_id = uuid4().hex
        self._known[plan_id] = monotonic() + _KEPT_S, policy, planned
        return plan_id

    def take(self, plan_id: str, policy: str | None) -> tuple[str, Pruned]:
        """Return a plan and its policy, once; `NotFoundError` if it is not known any more."""
        until, planned_by, planned = self._known.get(plan_id, (0.0, "", None))
        if planned is None or monotonic() > until:
            raise NotFoundError(f"plan {plan_id!r}: make it again")
        if policy not in {None, planned_by}:
            raise InvalidArgumentError("policy", policy, f"must be that of the plan: {planned_by}")
        del self._known[plan_id]
        return planned_by, planned


def plan_details(plan: PrunePlan) -> dict[str, Any]:
    """Return what a plan knows of each backup, without its objects, and of segments of the log."""
    decisions = []
    for one in plan.decisions:
        backup = as_document(one.backup)
        del backup["objects"]
        backup["tags"].sort()
        decisions.append({"backup": backup, "stays": one.stays, "because": one.because})
    return {"decisions": decisions, "log_segments": as_document(plan.segments)}

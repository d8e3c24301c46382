"""Locust's users: each role of a mix as a class, over the sidecar or over the library."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import gevent
from locust import User, constant, constant_throughput, task

from loadtests.agents_shape import Trace
from loadtests.connection import Connection
from loadtests.follower import Follower
from loadtests.library_user import Engine
from loadtests.mixes import Role, Share
from loadtests.recorder import Recorder
from loadtests.settings import LoadSettings
from loadtests.sidecar_calls import SidecarCalls
from loadtests.steps import Step

if TYPE_CHECKING:
    from locust.env import Environment

__all__ = ["Load", "users_of"]

_CHECK_EVERY_S: Final = 0.5


class Load:
    """What the users of one Locust process share."""

    def __init__(self, settings: LoadSettings, traces: list[Trace]) -> None:
        self.settings = settings
        self.traces = traces
        self.recorder = Recorder(settings.stages)
        self.environment: Environment | None = None
        self.engine: Engine | None = None
        self._numbers: dict[str, int] = {}

    def number(self, role: Role) -> int:
        """Return the next user's number in its role, from 0."""
        number = self._numbers.get(role.name, 0)
        self._numbers[role.name] = number + 1
        return number

    def took(self, name: str, ms: float, size: int, failure: Exception | None) -> None:
        """Tell Locust and the recorder of one request."""
        self.recorder.took(name, ms, failure)
        assert self.environment is not None
        self.environment.events.request.fire(  # type: ignore[no-untyped-call]
            request_type=self.settings.target,
            name=name,
            response_time=ms,
            response_length=size,
            exception=failure,
            context={},
        )


class _LoadUser(User):
    """What all users of a load have."""

    abstract = True
    load: Load
    role: Role

    def on_start(self) -> None:
        self.number = self.load.number(self.role)
        self.name = f"{self.load.settings.run}-{self.role.name}-{self.number}"
        self.load.recorder.wants(self.role.offered)
        self.begin()

    def on_stop(self) -> None:
        self.load.recorder.wants(-self.role.offered)
        self.finish()

    def begin(self) -> None:
        """Get ready."""

    def finish(self) -> None:
        """Give back what was taken."""


class _SidecarUser(_LoadUser):
    """Does the steps of its script over HTTP."""

    abstract = True

    def begin(self) -> None:
        load, settings = self.load, self.load.settings
        connection = Connection(str(self.host), settings.token)
        self.calls = SidecarCalls(
            connection, settings.run, self.name, load.recorder.ledger, load.took
        )
        self.script: Iterator[Step] = self.role.script(load.traces, self.number)
        if self.role.rate:
            gevent.sleep(random.random() / self.role.rate)  # users who came together part here

    def finish(self) -> None:
        self.calls.connection.close()

    @task
    def step(self) -> None:
        """Do the next step."""
        self.calls.perform(next(self.script))


class _SidecarFollower(_LoadUser):
    """Listens to a feed, and counts what is delivered."""

    abstract = True
    wait_time = constant(_CHECK_EVERY_S)

    def begin(self) -> None:
        load, settings = self.load, self.load.settings
        self.follower = Follower(
            Connection(str(self.host), settings.token, patience_s=60.0),
            settings.run,
            self.number,
            load.recorder.ledger,
            load.took,
        )
        self.reading = gevent.spawn(self.follower.follow)

    def finish(self) -> None:
        self.reading.kill()
        self.follower.connection.close()

    @task
    def look(self) -> None:
        """See that it still listens: who fails to is a failure of the test."""
        if self.reading.ready():
            raise RuntimeError("a subscriber has ended")


class _LibraryUser(_LoadUser):
    """Stands for one coroutine of the engine, which does the steps."""

    abstract = True
    wait_time = constant(_CHECK_EVERY_S)

    def begin(self) -> None:
        assert self.load.engine is not None
        self.load.engine.start_user(self.role.name, self.number, self.name)

    def finish(self) -> None:
        assert self.load.engine is not None
        self.load.engine.stop_user(self.name)

    @task
    def look(self) -> None:
        """See that the engine runs."""
        assert self.load.engine is not None
        self.load.engine.check()


def users_of(load: Load) -> Iterator[type[User]]:
    """Yield a class for each role of the mix."""
    for share in load.settings.mix:
        yield _class_of(load, share)


def _class_of(load: Load, share: Share) -> type[User]:
    role = share.role
    if load.settings.target == "library":
        base: type[_LoadUser] = _LibraryUser
    else:
        base = _SidecarFollower if role.watches else _SidecarUser
    given: dict[str, Any] = {"load": load, "role": role, "weight": share.weight, "abstract": False}
    if share.fixed:
        given["fixed_count"] = share.fixed
    if base is _SidecarUser:
        given["wait_time"] = constant_throughput(role.rate) if role.rate else constant(0)
    return type(role.name.capitalize(), (base,), given)

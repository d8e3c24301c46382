"""What Locust loads: ``locust -f loadtests/locustfile.py --host http://127.0.0.1:8750``.

The environment says the mix and the rest (`loadtests.settings`). Without ``LLMSPELL_LOAD_STAGES``
Locust's own options say how many users there are and for how long; master and workers too.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gevent
from locust import events
from locust.runners import MasterRunner

sys.path.insert(0, str(Path(__file__).parent.parent))

from loadtests.agents_shape import load_traces
from loadtests.library_user import Engine
from loadtests.settings import load_settings
from loadtests.shapes import staged
from loadtests.users import Load, users_of

if TYPE_CHECKING:
    from locust.env import Environment

_load = Load(load_settings(), load_traces(load_settings().data))
globals().update({user.__name__: user for user in users_of(_load)})
if _load.settings.stages:
    Staged = staged(_load.settings.stages, _load.recorder.overloaded, _load.recorder.end)


@events.init.add_listener  # type: ignore[untyped-decorator]
def _prepare(environment: Environment, **_: Any) -> None:
    _load.environment = environment
    # Loading took a while that the loop has not noticed: Locust's timer would end so much early.
    gevent.get_hub().loop.update_now()
    if _load.settings.target == "library" and not isinstance(environment.runner, MasterRunner):
        _load.engine = Engine(_load.settings, _load.recorder, environment.stats)


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def _begin(**_: Any) -> None:
    _load.recorder.begin()


@events.test_stop.add_listener  # type: ignore[untyped-decorator]
def _end(**_: Any) -> None:
    if _load.engine is not None:
        _load.engine.close()
    if _load.settings.facts is not None:
        _load.recorder.write(_load.settings.facts)

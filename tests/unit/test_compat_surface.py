"""The locks look like redis-py's, and their errors are caught as its and as ours."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import pytest
import redis
import redis.asyncio
import redis.asyncio.lock
import redis.exceptions
import redis.lock

from llmspell_dist import compat
from llmspell_dist.compat import LockError, LockNotOwnedError, LockStoreError, LockTimeoutError
from llmspell_dist.errors import (
    InvalidArgumentError,
    InvalidTTLError,
    LeaseError,
    SpellError,
    StoreLoadingError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from llmspell_dist.redis.lock_errors import redis_errors

pytestmark = pytest.mark.unit

BOTH = pytest.mark.parametrize(
    ("ours", "theirs"),
    [(compat.Lock, redis.lock.Lock), (compat.AsyncLock, redis.asyncio.lock.Lock)],
    ids=["blocking", "async"],
)


def _parameters(function: Any) -> list[tuple[str, Any, Any]]:
    return [(p.name, p.default, p.kind) for p in inspect.signature(function).parameters.values()]


@BOTH
@pytest.mark.parametrize(
    "method",
    ["__init__", "acquire", "release", "extend", "reacquire", "locked", "owned"],
)
def test_a_method_takes_what_redis_pys_takes(ours: Any, theirs: Any, method: str) -> None:
    """The same names in the same order, with the same defaults."""
    assert _parameters(getattr(ours, method)) == _parameters(getattr(theirs, method))


def test_the_two_surfaces_have_the_same_methods() -> None:
    """Blocking and asynchronous differ only in ``await``."""

    def names(cls: type) -> set[str]:
        found = {name for name in dir(cls) if not name.startswith("_")}
        enters = {name.replace("__a", "__") for name in vars(cls) if "enter" in name}
        return found | enters

    assert names(compat.Lock) == names(compat.AsyncLock)


@BOTH
def test_the_arguments_are_attributes_as_in_redis_py(ours: Any, theirs: Any) -> None:
    """Code that reads or changes them goes on working; nothing is connected."""
    client = redis.Redis(port=1)
    values = ("job", 5, 0.2, False, 3, False, False)
    mine, other = ours(client, *values), theirs(client, *values)
    for name in _parameters(theirs.__init__)[1:]:
        assert getattr(mine, name[0]) == getattr(other, name[0])
    assert mine.local.token is other.local.token is None
    assert mine.lease is None
    assert "job" in repr(mine)


@BOTH
@pytest.mark.parametrize("timeout", [0.01, -1, 86_401, float("nan"), float("inf")])
def test_a_timeout_that_cannot_be_is_refused(ours: Any, theirs: Any, timeout: float) -> None:
    """When the lock is made, with the limits."""
    with pytest.raises(InvalidTTLError, match=r"0\.05"):
        ours(redis.Redis(port=1), "job", timeout=timeout)


@BOTH
@pytest.mark.parametrize("client", [None, "redis://localhost", object()])
def test_what_is_no_client_is_refused(ours: Any, theirs: Any, client: Any) -> None:
    """When the lock is made."""
    with pytest.raises(InvalidArgumentError, match="redis must be a client"):
        ours(client, "job")


# --- errors ---------------------------------------------------------------------------------------


def test_a_lock_error_is_redis_pys_and_ours() -> None:
    """Whatever existing code catches, and what ours catches."""
    error = LockError("custom:job", "job", "release", "it is not held here")
    for kind in (redis.exceptions.LockError, redis.RedisError, ValueError, LeaseError, SpellError):
        assert isinstance(error, kind)
    assert not isinstance(error, redis.exceptions.LockNotOwnedError)
    assert str(error) == "cannot release the lock 'job': it is not held here"
    assert error.message == str(error)
    assert (error.lock_name, error.code) == ("job", "LOCK")
    assert repr(error) == f"LockError({str(error)!r})"
    assert error.facts == {
        "scope": "custom:job",
        "name": "main",
        "lock_name": "job",
        "operation": "release",
        "reason": "it is not held here",
    }


def test_a_lock_not_owned_error_is_one_of_both_trees() -> None:
    """And a `LockError` of both."""
    error = LockNotOwnedError("custom:job", b"job", "extend", "its time was over", current="me")
    assert isinstance(error, (redis.exceptions.LockNotOwnedError))
    assert isinstance(error, LockError)
    assert (error.current, error.code) == ("me", "LOCK_NOT_OWNED")
    assert error.facts["lock_name"] == b"job"


def test_errors_survive_pickling_with_all_their_facts() -> None:
    """A copy in another process is the same."""
    for error in (
        LockError("custom:job", "job", "release", "why"),
        LockNotOwnedError("custom:job", b"job", "extend", "why", current="me"),
        LockStoreError("h:1", "refused"),
        LockTimeoutError("h:1", "late", True),
    ):
        copy: Any = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
        assert type(copy) is type(error)
        assert (copy.facts, str(copy), repr(copy)) == (error.facts, str(error), repr(error))


@pytest.mark.parametrize(
    ("raised", "ours", "theirs"),
    [
        (StoreTimeoutError("h:1", "late", True), LockTimeoutError, redis.TimeoutError),
        (StoreUnavailableError("h:1", "refused"), LockStoreError, redis.ConnectionError),
        (StoreLoadingError("h:1", "LOADING"), LockStoreError, redis.ConnectionError),
    ],
    ids=["timeout", "refused", "loading"],
)
def test_a_server_out_of_reach_is_raised_as_redis_py_raises_it(
    raised: StoreUnavailableError, ours: type[SpellError], theirs: type[Exception]
) -> None:
    """Same facts and message; what it was is the cause."""
    with pytest.raises(theirs) as caught, redis_errors:
        raise raised
    error: Any = caught.value
    assert type(error) is ours
    assert isinstance(error, StoreUnavailableError)
    assert error.__cause__ is raised
    assert (error.facts, str(error)) == (raised.facts, str(raised))
    assert error.retryable is raised.retryable

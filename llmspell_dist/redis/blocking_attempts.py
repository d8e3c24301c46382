"""How a blocking call is tried until it succeeds: what may be sent again, and for how long."""

from __future__ import annotations

import ssl
import time
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from llmspell_dist.backoff import Backoff
from llmspell_dist.errors import (
    OutcomeUnknownError,
    StoreAuthenticationError,
    StorePermissionError,
    StoreProtocolError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from llmspell_dist.redis.commands import Command, ScriptCall
from llmspell_dist.redis.commits import RENEW_RING, RETRY, pack_group
from llmspell_dist.redis.durable import AckLevel, ack_request, ack_result
from llmspell_dist.redis.replies import (
    NOSCRIPT,
    RETRIED,
    error_code,
    error_from_reply,
    nothing_ran,
    refused_by_role,
    system_said,
)
from llmspell_dist.redis.resp import ErrorReply, ProtocolError
from llmspell_dist.redis.ring import Operation, Ring, ring_key

if TYPE_CHECKING:
    from llmspell_dist.redis.blocking_socket import BlockingSocket
    from llmspell_dist.redis.connection import EndpointResolver, ServerInfo
    from llmspell_dist.redis.groups import SizedCommit
    from llmspell_dist.redis.options import LaneOptions

__all__ = ["Attempts", "AttemptsDriver", "Call", "CommitRequest", "Read", "Request"]

_FATAL = (StoreAuthenticationError, StorePermissionError, StoreProtocolError)
_PEEK_AFTER_S = 0.005
"""After so long idle a connection is looked at before it is used: what was never sent need not be
called unknown."""


class AttemptsDriver(Protocol):
    """The driver, as its calls see it."""

    resolver: EndpointResolver
    options: LaneOptions
    info: ServerInfo | None

    @property
    def server(self) -> str:
        """What errors call the server."""

    @property
    def closed(self) -> bool:
        """Whether calls are to give up."""

    def replicas_known(self, info: ServerInfo | None) -> int:
        """Return how many replicas "all" means."""


class Request:
    """What differs between reads, calls and commits when an attempt fails."""

    sent = False
    """Whether it may have reached the server over a connection that was lost."""

    def send(self, driver: AttemptsDriver, connection: BlockingSocket) -> Any:
        """Make one attempt; an error reply is returned."""
        raise NotImplementedError

    def without_script(self) -> bool:
        """Send the script's body from now on; False if there is none to send."""
        return False

    def may_send_again(self) -> bool:
        """Whether a second attempt is safe after a lost connection."""
        return True

    def unsure(self, text: str) -> bool:  # noqa: ARG002 - others look at it
        """Whether the write may have happened although this was the answer."""
        return False

    def operation(self) -> Operation | None:
        """Return what settles the outcome later, if anything does."""
        return None


class Read(Request):
    """A read, packed."""

    def __init__(self, packed: bytes) -> None:
        self._packed = packed

    def send(self, driver: AttemptsDriver, connection: BlockingSocket) -> Any:  # noqa: ARG002
        """Make one attempt."""
        return connection.round_trip(self._packed)


class Call(Request):
    """A command or a script call."""

    def __init__(self, command: Command | ScriptCall) -> None:
        self._command = command
        self._with_body = False

    def send(self, driver: AttemptsDriver, connection: BlockingSocket) -> Any:  # noqa: ARG002 - a Waiter
        """Make one attempt."""
        return connection.round_trip(self._command.request(with_body=self._with_body))

    def without_script(self) -> bool:
        """Send the body from now on, if there is one."""
        possible = isinstance(self._command, ScriptCall) and not self._with_body
        self._with_body = True
        return possible

    def may_send_again(self) -> bool:
        """Only what is no write."""
        return not self._command.write

    def unsure(self, text: str) -> bool:
        """Judge the server's words."""
        return self._command.write and not nothing_ran(text)


class CommitRequest(Request):
    """A commit; it keeps the ring of the first connection that it was numbered for."""

    def __init__(
        self, commit: SizedCommit, ack: AckLevel | None, operation: Operation | None = None
    ) -> None:
        self._commit = commit
        self._ack = ack if ack is not None and (ack.local_fsync or ack.replicas) else None
        self._with_body = False
        self._ring: Ring | None = None
        self._sequence = 0
        if operation is not None:
            self.sent = True
            self._sequence = operation.sequence
            elapsed_s = time.time() - operation.at
            self._ring = Ring.of_operation(operation, ring_key, elapsed_s=elapsed_s)

    def send(self, driver: AttemptsDriver, connection: BlockingSocket) -> Any:
        """Make one attempt."""
        ring = self._ring
        if ring is None:
            ring = self._ring = connection.ring
            self._sequence = ring.take_one()
        shard, now = self._commit.shard, monotonic()
        flags = ring.flags(shard, now)
        if self.sent:
            flags |= RETRY | RENEW_RING
        items: Any = [(self._sequence, flags, self._commit)]
        packed = pack_group(ring.key(shard), items, eval_body=self._with_body)
        acknowledged = None
        known = 0
        if self._ack is None:
            reply = connection.round_trip(packed)
        else:
            known = driver.replicas_known(connection.info)
            timeout_s = driver.options.ack_timeout
            connection.patience(driver.options.call_timeout + timeout_s)
            packed += ack_request(self._ack, known, timeout_s)
            reply, acknowledged = connection.round_trips(packed, 2)
            connection.patience(driver.options.call_timeout)
        if type(reply) is ErrorReply:
            return reply
        if type(reply) is list and (refused := refused_by_role(reply)):
            return refused
        if type(reply) is not list or len(reply) != 1:
            said = "the commit script answered no outcome"
            raise OutcomeUnknownError(driver.server, said, operation=self.operation())
        ring.acknowledged(shard, now, flags)
        if self._ack is not None and isinstance(reply[0], bytes):
            acked = ack_result(reply[0], self._ack, known, acknowledged)
            if not acked.reached:
                acked.operation = self.operation()
            return acked
        return reply[0]

    def without_script(self) -> bool:
        """Send the body from now on, if there is one."""
        possible = not self._with_body
        self._with_body = True
        return possible

    def unsure(self, text: str) -> bool:
        """Judge the server's words."""
        return self.sent or not nothing_ran(text)

    def operation(self) -> Operation | None:
        """Name the commit and its id."""
        if self._ring is None:
            return None
        return Operation(
            self._ring.client.decode(),
            self._sequence,
            self._commit,
            ack=self._ack,
            expected=self._ring.expects(self._commit.shard, monotonic()),
        )


class Attempts:
    """The attempts of one request on one connection, until it succeeds or its budget is used up."""

    def __init__(
        self, driver: AttemptsDriver, connection: BlockingSocket, request: Request
    ) -> None:
        self._driver = driver
        self._connection = connection
        self._request = request
        self._deadline = monotonic() + driver.options.retry_budget
        self._backoff = Backoff.within(driver.options.retry_budget)

    def run(self) -> Any:
        """Return the reply, or raise what the last attempt showed."""
        request, connection = self._request, self._connection
        while True:
            self._connect()
            try:
                reply = request.send(self._driver, connection)
            except (OSError, ProtocolError) as error:
                request.sent = request.sent or connection.left
                cls, said = self._judge(error)
                if connection.left and not request.may_send_again():
                    raise cls(self._driver.server, said, may_have_happened=True) from error
                self._pause(cls, said, error, first_free=True)
                continue
            if type(reply) is not ErrorReply:
                return reply
            code = error_code(reply.text)
            if code == NOSCRIPT and request.without_script():
                continue
            refusal = error_from_reply(
                reply,
                self._driver.server,
                may_have_happened=request.unsure(reply.text),
                operation=request.operation() if request.unsure(reply.text) else None,
            )
            if code not in RETRIED:
                raise refusal
            if code == "READONLY":
                connection.disconnect()  # the next one may lead to the new primary
            pause = self._backoff.next_s()
            if monotonic() + pause >= self._deadline:
                raise refusal
            time.sleep(pause)

    def _connect(self) -> None:
        connection, driver = self._connection, self._driver
        if connection.connected:
            idle_s = monotonic() - connection.used_at
            if idle_s < _PEEK_AFTER_S or not connection.is_stale():
                return
            connection.disconnect()
        while True:
            if driver.closed:
                self._give_up(StoreUnavailableError, "the client was closed", None)
            try:
                connection.connect(driver.resolver.resolve_blocking())
            except (ssl.SSLCertVerificationError, *_FATAL) as error:
                cls, said = self._judge(error)
                self._give_up(cls, said, error)
            except (OSError, ProtocolError, StoreUnavailableError) as error:
                cls, said = self._judge(error)
                self._pause(cls, said, error)
            else:
                driver.info = connection.info
                return

    def _judge(self, error: Exception) -> tuple[type[StoreUnavailableError], str]:
        if isinstance(error, StoreUnavailableError):
            return type(error), error.said
        if isinstance(error, ProtocolError):
            return StoreProtocolError, f"not the Redis protocol: {error}"
        if isinstance(error, (BlockingIOError, TimeoutError, ssl.SSLWantReadError)):
            return StoreTimeoutError, f"no reply within {self._driver.options.call_timeout:g} s"
        return StoreUnavailableError, system_said(error)

    def _pause(
        self,
        cls: type[StoreUnavailableError],
        said: str,
        error: Exception,
        *,
        first_free: bool = False,
    ) -> None:
        """Wait before the next attempt, or give up if the budget is used up by then."""
        pause = self._backoff.next_s()
        if first_free and self._backoff.failures == 1:
            pause = 0.0
        if monotonic() + pause >= self._deadline:
            self._give_up(cls, said, error)
        time.sleep(pause)

    def _give_up(
        self, cls: type[StoreUnavailableError], said: str, error: Exception | None
    ) -> NoReturn:
        request = self._request
        operation = request.operation()
        if request.sent and operation is not None:
            raise OutcomeUnknownError(self._driver.server, said, operation=operation) from error
        raise cls(self._driver.server, said) from error

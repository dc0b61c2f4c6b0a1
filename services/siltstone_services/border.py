"""What every call passes on its way in and out: limits, time, and the translation of errors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from siltstone.config import GatewayConfig
from siltstone.errors import InvalidInput, Overloaded, SiltstoneError, Unavailable
from siltstone.traceparent import trace_fields, traceparent_of
from siltstone_services.logs import frames_of
from siltstone_services.status import to_status

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Undecodable:
    num_bytes: int


class Border(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Stands before every method of ours; health and reflection pass untouched."""

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        self._num_calls = 0
        self.is_draining = False
        """New calls are refused; what waits for something to happen is to end."""
        self._changed = asyncio.Condition()

    async def drain(self, budget_s: float) -> int:
        """Refuses new calls from now on, and returns how many have not ended within the budget."""
        self.is_draining = True
        try:
            async with asyncio.timeout(budget_s), self._changed:
                await self._changed.wait_for(lambda: self._num_calls == 0)
        except TimeoutError:
            pass
        return self._num_calls

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """Wraps the handler of a method of ours."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith("/siltstone."):
            return handler
        behaviour = handler.unary_stream if handler.response_streaming else handler.unary_unary
        wrap = (
            grpc.unary_stream_rpc_method_handler if handler.response_streaming else grpc.unary_unary_rpc_method_handler
        )

        # A stream's behaviour writes to the context itself: a generator could be left waiting at a yield, outside of
        # the time allowed and of the clean-up.
        async def guarded(request: Any, context: Any) -> Any:
            async with self._guard(method, context):
                if isinstance(request, _Undecodable):
                    raise InvalidInput(
                        "request", "a protobuf message, its texts in UTF-8", f"{request.num_bytes} other bytes"
                    )
                return await behaviour(request, context)

        return wrap(
            guarded,
            request_deserializer=_or_undecodable(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )

    @asynccontextmanager
    async def _guard(self, method: str, context: Any) -> AsyncIterator[None]:
        if self.is_draining:
            await _abort(context, Unavailable("the server", "it is stopping"))
        if self._num_calls >= self._config.max_calls:
            await _abort(context, Overloaded("the gateway", self._config.max_calls, self._config.retry_after_s))
        self._num_calls += 1
        try:
            async with asyncio.timeout(self._config.max_call_s):
                yield
        except SiltstoneError as error:
            _LOG.info("call refused", extra={"method": method, "error": type(error).__name__, **_trace_of(context)})
            await _abort(context, error)
        except TimeoutError:
            _LOG.info("call out of time", extra={"method": method, **_trace_of(context)})
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"longer than {self._config.max_call_s:g} s")
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            told = {"error": type(error).__name__, "where": frames_of(error)}
            _LOG.error("call failed", extra={"method": method, **told, **_trace_of(context)})
            await context.abort(grpc.StatusCode.INTERNAL, f"internal error ({type(error).__name__})")
        finally:
            self._num_calls -= 1
            async with self._changed:
                self._changed.notify_all()


def _trace_of(context: Any) -> dict[str, str]:
    return trace_fields(traceparent_of(context.invocation_metadata() or ()))


async def _abort(context: Any, error: SiltstoneError) -> None:
    await context.abort_with_status(rpc_status.to_status(to_status(error)))


def _or_undecodable(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Makes a deserializer hand bytes it cannot read on, so that the caller gets a clear answer."""

    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            return _Undecodable(len(data))

    return read

"""ASGI middleware of an engine's HTTP server: a request for `sentiment@stable` goes on as one for the version that it means now.

The body's `model` becomes the fixed name, such as `sentiment@7-1a2b3c4d`: the engine loads and caches by a name that never changes its
meaning, a request under way keeps its version, and the answer's `model` says which version answered. A name that the aggregator
refuses is answered here, with the reason. Names of the base model and of adapters that others loaded pass.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from compeft_client.serving.model_name import model_name_of
from compeft_client.serving.resolver_values import Resolved
from compeft_core.errors import CompeftError, InputError, LimitError
from compeft_proto.errors import ForbiddenError, TransferError, TrustError, UnknownExpertError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MOST_BYTES = 64 * 2**20
"""Of a body that is looked into; a larger one passes as it is."""
STATUSES: tuple[tuple[type[CompeftError], int], ...] = (
    (UnknownExpertError, 404),
    (ForbiddenError, 403),
    (TrustError, 403),
    (TransferError, 503),
    (InputError, 400),
    (LimitError, 400),
    (CompeftError, 409),
)


class ChannelMiddleware:
    """resolve: name -> its expert, for names that `claims` says are ours. Both may block: they run in a thread."""

    def __init__(self, app: App, resolve: Callable[[str], Resolved], claims: Callable[[str], bool]) -> None:
        self._app, self._resolve, self._claims = app, resolve, claims

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["method"] != "POST" or not _is_small_json(scope):
            await self._app(scope, receive, send)
            return
        body = await _read(receive)
        fields = _fields(body)
        model = fields.get("model") if fields else None
        if fields is None or not isinstance(model, str) or not is_expert_name(model) or not self._claims(model):
            await self._app(scope, _again(body, receive), send)
            return
        try:
            found = await asyncio.to_thread(self._resolve, model)
        except CompeftError as error:
            await _refuse(send, error, model)
            return
        if found.name != model:
            body = json.dumps(fields | {"model": found.name}, ensure_ascii=False).encode()
        await self._app(_with_length(scope, len(body)), _again(body, receive), send)


def is_expert_name(text: str) -> bool:
    """Whether a text has the form of a model name of ours."""
    try:
        model_name_of(text)
    except InputError:
        return False
    return True


def _is_small_json(scope: Scope) -> bool:
    headers = dict(scope["headers"])
    length = headers.get(b"content-length", b"0")
    kind = headers.get(b"content-type", b"application/json").partition(b";")[0].strip()
    return kind.lower() == b"application/json" and length.isdigit() and int(length) <= MOST_BYTES


async def _read(receive: Receive) -> bytes:
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b"".join(parts)
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


def _fields(body: bytes) -> dict[str, object] | None:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _again(body: bytes, receive: Receive) -> Receive:
    """Hands out the body once, then what comes from the connection, such as that it was closed."""
    left = [body]

    async def again() -> Message:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        return await receive()

    return again


def _with_length(scope: Scope, length: int) -> Scope:
    kept = [(name, value) for name, value in scope["headers"] if name not in (b"content-length", b"transfer-encoding")]
    return {**scope, "headers": [*kept, (b"content-length", str(length).encode())]}


async def _refuse(send: Send, error: CompeftError, model: str) -> None:
    status = next(status for kind, status in STATUSES if isinstance(error, kind))
    said = {"error": {"message": f"{model}: {error}", "type": error.code, "param": "model", "code": status}}
    body = json.dumps(said).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

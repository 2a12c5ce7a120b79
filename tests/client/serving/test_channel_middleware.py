"""The middleware before an engine's routes: which version a request means, what is refused, and what passes untouched."""

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compeft_client.serving.channel_middleware import ChannelMiddleware, Message, Receive, Scope, Send
from compeft_client.serving.resolver import ExpertResolver
from compeft_client.serving.resolver_values import ResolverSettings
from compeft_proto.clock import now_ms
from compeft_server.admin import policy_admin
from tests.client.delivery.conftest import PACKAGE, edge_at, packed, publisher
from tests.rounds.conftest import World

BASE = "org/base"


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """An engine that answers with what it was asked, as it arrived."""
    message = await receive()
    assert len(message["body"]) == int(dict(scope["headers"])[b"content-length"])
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": message["body"]})


@pytest.fixture
def resolver(world: World, tmp_path: Path) -> Iterator[ExpertResolver]:
    for seed in (1, 2):
        with publisher(world) as client:
            client.push(PACKAGE, packed(tmp_path, seed).read_bytes())
    policy_admin.promote(world.ledger, PACKAGE, 0, "stable", now_ms())
    made = ExpertResolver(edge_at(world, "engine", world.enrol("engine")), ResolverSettings(tmp_path / "cache", fresh_s=0.0))
    yield made
    made.close()


def ask(resolver: ExpertResolver, body: bytes, method: str = "POST") -> tuple[int, Any]:
    """Status and answer, through the middleware to `echo`."""
    sent: list[Message] = []
    halves = [body[: len(body) // 2], body[len(body) // 2 :]]
    parts = [{"type": "http.request", "body": half, "more_body": more} for half, more in zip(halves, (True, False), strict=True)]
    headers = [(b"content-type", b"application/json; charset=utf-8"), (b"content-length", str(len(body)).encode())]

    async def receive() -> Message:
        return parts.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    async def whole(scope: Scope, again: Receive, answer: Send) -> None:
        if method == "POST":
            await echo(scope, again, answer)
        else:
            await answer({"type": "http.response.start", "status": 204, "headers": []})
            await answer({"type": "http.response.body", "body": b"{}"})

    app = ChannelMiddleware(whole, resolver.resolve, lambda model: model != BASE)
    asyncio.run(app({"type": "http", "method": method, "headers": headers}, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"])


def test_a_channel_becomes_the_version_that_it_means_now(world: World, resolver: ExpertResolver) -> None:
    asked = {"model": f"{PACKAGE}@stable", "prompt": "é", "temperature": 0.1, "stop": ["a"]}
    status, first = ask(resolver, json.dumps(asked).encode())
    policy_admin.promote(world.ledger, PACKAGE, 1, "stable", now_ms())
    _, second = ask(resolver, json.dumps(asked).encode())
    assert status == 200
    assert first | {"model": 0} == second | {"model": 0} == asked | {"model": 0}
    assert [name.rpartition("-")[0] for name in (first["model"], second["model"])] == [f"{PACKAGE}@0", f"{PACKAGE}@1"]
    assert ask(resolver, json.dumps({"model": first["model"]}).encode())[1]["model"] == first["model"]


def test_what_is_not_an_experts_name_passes_untouched(resolver: ExpertResolver) -> None:
    for model in (BASE, "with space", "", 7, None):
        body = json.dumps({"model": model}, indent=3).encode()
        assert ask(resolver, body) == (200, {"model": model})
    assert ask(resolver, b"[1, 2]") == (200, [1, 2])
    assert ask(resolver, b"{}", "GET") == (204, {})
    assert resolver.counts.requests == 0


def test_a_refusal_is_answered_with_its_reason(world: World, resolver: ExpertResolver) -> None:
    status, said = ask(resolver, b'{"model": "nothing@stable"}')
    assert (status, said["error"]["type"]) == (404, "unknown_expert")
    policy_admin.retire(world.ledger, PACKAGE, 1, now_ms())
    status, said = ask(resolver, json.dumps({"model": f"{PACKAGE}@1"}).encode())
    assert status in (403, 404)
    assert "retired" in said["error"]["message"]


def test_no_request_fails_while_a_channel_is_promoted(world: World, resolver: ExpertResolver) -> None:
    body, seen, failed = json.dumps({"model": f"{PACKAGE}@stable"}).encode(), list[str](), list[object]()

    def run() -> None:
        for _ in range(25):
            status, said = ask(resolver, body)
            seen.append(said["model"]) if status == 200 else failed.append(said)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    policy_admin.promote(world.ledger, PACKAGE, 1, "stable", now_ms())
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(seen) == 200
    assert ask(resolver, body)[1]["model"].startswith(f"{PACKAGE}@1-")

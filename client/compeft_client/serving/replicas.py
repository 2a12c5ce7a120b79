"""Loads an expert's directory into every replica of an engine that has no resolver, all of them or none.

    vLLM    POST /v1/load_lora_adapter     {"lora_name": "sentiment@7-1a2b3c4d", "lora_path": "/srv/..."}   200 and a text
            POST /v1/unload_lora_adapter   {"lora_name": ...}
    SGLang  POST /load_lora_adapter        {"lora_name": ..., "lora_path": ...}                             200 and {"success": true}
            POST /unload_lora_adapter      {"lora_name": ...}

Each version has a name of its own, so no cache of the engine mixes two. A replica that has the name already counts as loaded: calls may
be repeated after a crash. If one replica fails for good, those that were loaded are unloaded again, and the version before goes on. What
is loaded where is kept in a file, written before and after the calls.
"""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from compeft_client.durable_files import write_durably
from compeft_core.errors import InputError
from compeft_proto.errors import TransferError

VLLM, SGLANG = "vllm", "sglang"
PATHS = {VLLM: ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"), SGLANG: ("/load_lora_adapter", "/unload_lora_adapter")}
LOADED_ALREADY = ("already been loaded", "already loaded", "already exists")
"""Words of an engine's refusal that mean that the name is there."""
NOT_THERE = ("cannot be found", "not found", "not loaded", "does not exist")
MOST_ANSWER_BYTES = 2**16


@dataclass(frozen=True, slots=True)
class Replica:
    """One engine: its address without a path, and its kind, VLLM or SGLANG."""

    url: str
    kind: str = VLLM


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """tries: calls of one replica before it counts as failed; pause_s: before the second, twice as long before each next."""

    replicas: Sequence[Replica]
    tries: int = 4
    pause_s: float = 0.5
    timeout_s: float = 120.0
    sleep: Callable[[float], object] = field(default=time.sleep)


def replica_of(text: str) -> Replica:
    """`http://HOST:PORT`, or `sglang+http://HOST:PORT`. Errors: InputError."""
    kind, plus, url = text.partition("+")
    kind, url = (kind, url) if plus else (VLLM, text)
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.path.strip("/") and not parts.query
        right = right and (parts.port is None or parts.port > 0)
    except ValueError:
        right = False
    if kind not in PATHS or not right:
        raise InputError(f"invalid --load {text[:80]!a}: expected http://HOST:PORT for vLLM, or sglang+http://HOST:PORT")
    return Replica(url.rstrip("/"), kind)


def load_everywhere(settings: LoadSettings, name: str, directory: Path) -> None:
    """Load a directory under `name` into all replicas, or into none. Errors: TransferError that names each replica that failed."""
    done: list[Replica] = []
    for replica in settings.replicas:
        try:
            _call(settings, replica, 0, {"lora_name": name, "lora_path": str(directory)}, LOADED_ALREADY)
        except TransferError as error:
            left = [str(problem) for other in done if (problem := _unloaded(settings, other, name))]
            more = f"; still loaded where it was: {'; '.join(left)}" if left else ""
            raise TransferError(f"{name} is loaded in none of {len(settings.replicas)} replicas: {error}{more}") from error
        done.append(replica)


def unload_everywhere(settings: LoadSettings, name: str) -> list[str]:
    """Unload a name from all replicas; what failed, a line each."""
    return [str(problem) for replica in settings.replicas if (problem := _unloaded(settings, replica, name))]


def _unloaded(settings: LoadSettings, replica: Replica, name: str) -> TransferError | None:
    try:
        _call(settings, replica, 1, {"lora_name": name}, NOT_THERE)
    except TransferError as error:
        return error
    return None


def _call(settings: LoadSettings, replica: Replica, which: int, fields: dict[str, str], fine: Sequence[str]) -> None:
    """Errors: TransferError after the last try, or at once for a refusal that a retry does not change."""
    pause = settings.pause_s
    for number in range(settings.tries):
        if number:
            settings.sleep(pause)
            pause *= 2
        status, text = _posted(replica.url + PATHS[replica.kind][which], fields, settings.timeout_s)
        if _succeeded(status, text) or any(words in text for words in fine):
            return
        if 400 <= status < 500 and status not in (408, 425, 429):
            break
    raise TransferError(f"{replica.url} answers {status or 'nothing'}: {text[:200]}")


def _succeeded(status: int, text: str) -> bool:
    """SGLang answers 200 with `success: false` in some versions."""
    if status != 200:
        return False
    try:
        found = json.loads(text)
    except ValueError:
        return True
    return not (isinstance(found, dict) and found.get("success") is False)


def _posted(url: str, fields: dict[str, str], timeout_s: float) -> tuple[int, str]:
    """Status and text of the answer; status 0: there was none."""
    request = urllib.request.Request(url, json.dumps(fields).encode(), {"Content-Type": "application/json"})  # noqa: S310  # http(s)
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:  # noqa: S310  # checked by `replica_of`
            return answer.status, answer.read(MOST_ANSWER_BYTES).decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read(MOST_ANSWER_BYTES).decode(errors="replace")
    except (urllib.error.URLError, OSError, ValueError) as error:
        return 0, str(getattr(error, "reason", error))


@dataclass(frozen=True, slots=True)
class LoadState:
    """name: what every replica serves, or empty; moving: what is being loaded, or empty; old: names that are still to be unloaded."""

    name: str = ""
    moving: str = ""
    old: tuple[str, ...] = ()


def read_state(file: Path) -> LoadState:
    """The state before a restart; an empty one if the file is missing. Errors: InputError if it is damaged."""
    if not file.exists():
        return LoadState()
    try:
        found = json.loads(file.read_bytes())
        return LoadState(str(found["name"]), str(found["moving"]), tuple(map(str, found["old"])))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{file} is damaged: unload the engines' adapters and remove it") from error


def write_state(file: Path, state: LoadState) -> None:
    """Keep a state durably. Errors: InputError."""
    write_durably(file, json.dumps({"name": state.name, "moving": state.moving, "old": list(state.old)}).encode())


def roll_out(settings: LoadSettings, file: Path, name: str, directory: Path) -> list[str]:
    """Bring all replicas to `name`, then unload what they had; nothing if they have it. What could not be unloaded, a line each.

    Errors: TransferError if one replica cannot load it: then none has it, and what they had goes on.
    """
    state = read_state(file)
    if state.moving and state.moving not in (name, state.name):
        state = LoadState(state.name, "", (*state.old, state.moving))
    if state.name != name:
        write_state(file, LoadState(state.name, name, state.old))
        try:
            load_everywhere(settings, name, directory)
        except TransferError:
            write_state(file, LoadState(state.name, "", (*state.old, name)))
            raise
        before = (state.name,) if state.name else ()
        state = LoadState(name, "", tuple(dict.fromkeys(old for old in (*state.old, *before) if old != name)))
        write_state(file, state)
    problems = []
    for old in state.old:
        failed = unload_everywhere(settings, old)
        problems += failed
        if not failed:
            state = LoadState(state.name, "", tuple(one for one in state.old if one != old))
            write_state(file, state)
    return problems

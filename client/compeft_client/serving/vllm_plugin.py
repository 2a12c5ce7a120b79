"""vLLM's plug-in: experts of an aggregator by name, as LoRA adapters of a running engine.

    VLLM_PLUGINS=compeft COMPEFT_SITE=/var/lib/compeft-edge VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve BASE --enable-lora

Two entry points (`vllm_entry`): `vllm.general_plugins` registers a LoRA resolver for fixed names; `vllm.endpoint_plugins` puts
the middleware before vLLM's routes that turns `sentiment@stable` into the fixed name. Everything that decides lies in `resolver`.
"""

import asyncio
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from compeft_client.identity.edge_config import edge_of
from compeft_client.identity.key_files import load_public_key
from compeft_client.serving.channel_middleware import ChannelMiddleware, is_expert_name
from compeft_client.serving.engine_fit import EngineLimits
from compeft_client.serving.resolver import ExpertResolver
from compeft_client.serving.resolver_values import ResolverSettings
from compeft_client.serving.served_base import UNKNOWN_BASE, ServedBase, served_base
from compeft_client.serving.vllm_entry import NAME
from compeft_core.budget import bytes_of
from compeft_core.errors import CompeftError, InputError

DEFAULT_BYTES = "4GB"


class Served:
    """The one resolver of this process, made when it is first needed: vLLM loads plug-ins in all its processes."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._lock = threading.Lock()
        self._resolver: ExpertResolver | None = None
        self.max_rank = 0
        self.base_names: frozenset[str] = frozenset()
        self.models: Any = None

    def resolver(self, base: str) -> ExpertResolver:
        """The resolver for a served base model: a folder, or a name. Errors: InputError and those of reading the base's weights."""
        with self._lock:
            if self._resolver is None:
                said = self._environment
                settings = settings_of(said, self.max_rank)
                self._resolver = ExpertResolver(edge_of({"site": _needed(said, "COMPEFT_SITE")}), settings, _base(said, base))
            return self._resolver

    @property
    def made(self) -> ExpertResolver | None:
        """The resolver, if there was a request for one."""
        return self._resolver

    def claims(self, model: str) -> bool:
        """Whether a name is not the base model's, nor that of an adapter loaded in another way."""
        if model in self.base_names:
            return False
        loaded = self.models.lora_requests.get(model) if self.models is not None else None
        made = self._resolver
        return loaded is None or (made is not None and Path(loaded.lora_path).is_relative_to(made.cache.folder))

    def forget_evicted(self) -> None:
        """Take names whose directory is gone from vLLM's table, so that it asks again, and its memory stays flat."""
        made = self._resolver
        if made is None or self.models is None:
            return
        for name, request in list(self.models.lora_requests.items()):
            path = Path(request.lora_path)
            if path.is_relative_to(made.cache.folder) and not path.is_dir():
                self.models.lora_requests.pop(name, None)
                self.models.lora_resolver_lock.pop(name, None)


def settings_of(environment: Mapping[str, str], max_rank: int) -> ResolverSettings:
    """The settings that COMPEFT_... variables say. Errors: InputError."""
    site = Path(_needed(environment, "COMPEFT_SITE"))
    publisher = environment.get("COMPEFT_PUBLISHER")
    return ResolverSettings(
        Path(environment.get("COMPEFT_CACHE") or site / "serving"),
        max_bytes=bytes_of(environment.get("COMPEFT_CACHE_BYTES", DEFAULT_BYTES)),
        fresh_s=_seconds(environment, "COMPEFT_FRESH_S", 0.5),
        publisher=load_public_key(Path(publisher)) if publisher else None,
        init=environment.get("COMPEFT_INIT"),
        require_base=environment.get("COMPEFT_REQUIRE_BASE", "0") not in ("", "0"),
        limits=EngineLimits("vLLM", max_rank),
    )


def _needed(environment: Mapping[str, str], name: str) -> str:
    if not environment.get(name):
        raise InputError(f"missing {name}: set it to the folder that `compeft enroll` made")
    return environment[name]


def _seconds(environment: Mapping[str, str], name: str, usual: float) -> float:
    text = environment.get(name, str(usual))
    try:
        seconds = float(text)
    except ValueError as error:
        raise InputError(f"invalid {name} {text!r}: expected seconds, such as {usual:g}") from error
    if not 0 <= seconds < float("inf"):
        raise InputError(f"invalid {name} {text!r}: expected 0 or more seconds, such as {usual:g}")
    return seconds


def _base(environment: Mapping[str, str], base: str) -> ServedBase:
    """The digests of the served model, where its folder is known. Errors: those of `served_base` for a folder that was named."""
    folder = Path(environment.get("COMPEFT_BASE") or base)
    return served_base(folder) if folder.is_dir() else UNKNOWN_BASE


SERVED = Served(os.environ)


async def resolve_lora(base_model_name: str, lora_name: str) -> Any:
    """VLLM's request for the adapter that a name stands for; None if it is not one of ours, or refused."""
    from vllm.lora.request import LoRARequest

    if not is_expert_name(lora_name) or not SERVED.claims(lora_name):
        return None
    try:
        found = await asyncio.to_thread(lambda: SERVED.resolver(base_model_name).resolve(lora_name))
    except CompeftError as error:
        _logger().warning("%s: %s", lora_name, error)
        return None
    name = found.name if found.name == lora_name else f"{found.name} ({lora_name})"
    return LoRARequest(lora_name=name, lora_int_id=found.adapter_id, lora_path=str(found.directory))


class EndpointPlugin:
    """Entry point of `vllm.endpoint_plugins`: the middleware before vLLM's routes, and the resolver's metrics beside vLLM's."""

    name = NAME
    required_tasks = None

    def __init__(self) -> None:
        self._model = ""

    def attach_router(self, app: Any) -> None:
        """Put the middleware in; no routes."""
        app.add_middleware(ChannelMiddleware, resolve=self._resolve, claims=SERVED.claims)

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Learn the engine's limits; read the base's weights before the first request. Errors: those of `Served.resolver`."""
        if engine_client is None:
            return
        self._model = str(engine_client.model_config.model)
        SERVED.models = state.openai_serving_models
        SERVED.base_names = frozenset(model.name for model in SERVED.models.base_model_paths)
        lora = engine_client.vllm_config.lora_config
        SERVED.max_rank = int(lora.max_lora_rank) if lora else 0
        await asyncio.to_thread(SERVED.resolver, self._model)
        _register_metrics()

    def _resolve(self, model: str) -> Any:
        found = SERVED.resolver(self._model).resolve(model)
        SERVED.forget_evicted()
        return found


def _register_metrics() -> None:
    from prometheus_client import REGISTRY
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.registry import Collector

    class ServingCollector(Collector):
        def collect(self) -> Iterable[Any]:
            """The resolver's figures now."""
            made = SERVED.made
            if made is None:
                return
            version = GaugeMetricFamily("compeft_serving_version", "Version served under a name.", labels=["name"])
            age = GaugeMetricFamily("compeft_serving_age_seconds", "Since the aggregator confirmed a name.", labels=["name"])
            for name, (number, seconds) in made.ages.items():
                version.add_metric([name], number)
                age.add_metric([name], seconds)
            yield from (version, age)
            yield GaugeMetricFamily("compeft_serving_cache_bytes", "Decoded experts on disk.", value=made.cache.held_bytes)
            counts = made.counts
            totals = {
                "requests": counts.requests,
                "hits": counts.hits,
                "misses": counts.misses,
                "refused": counts.refused,
                "away": counts.away,
                "evictions": made.cache.evictions,
                "transferred_bytes": counts.transferred_bytes,
                "transfer_seconds": counts.transfer_s,
                "decode_seconds": counts.decode_s,
            }
            for name, value in totals.items():
                yield CounterMetricFamily(f"compeft_serving_{name}", f"Serving of experts: {name}.", value=value)

    REGISTRY.register(ServingCollector())


def _logger() -> Any:
    from vllm.logger import init_logger

    return init_logger("vllm.compeft")

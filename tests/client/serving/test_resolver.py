"""The resolver against a real aggregator: names, channels, policy, retirement, an aggregator that is away, the cache."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from compeft_client.exchange.package_client import PackageClient
from compeft_client.packing.pack import PackSettings, save_compressed, unpack
from compeft_client.serving.engine_fit import EngineLimits
from compeft_client.serving.resolver import ExpertResolver
from compeft_client.serving.resolver_values import ResolverSettings
from compeft_client.serving.served_base import UNKNOWN_BASE, ServedBase
from compeft_core.errors import InputError
from compeft_proto.clock import now_ms
from compeft_proto.errors import ForbiddenError, TransferError, UnknownExpertError, UnknownKeyError, WrongBaseError
from compeft_proto.keys import new_key
from compeft_server.admin import policy_admin
from tests.client import builders
from tests.client.delivery.conftest import PACKAGE, edge_at, packed, publisher
from tests.rounds.conftest import World

Make = Callable[..., ExpertResolver]


@pytest.fixture
def make(world: World, tmp_path: Path) -> Iterator[Make]:
    """Resolvers of one enrolled engine, each with settings of its own; its cache folder stays the same."""
    edge, made = edge_at(world, "engine", world.enrol("engine")), list[ExpertResolver]()

    def resolver(base: ServedBase = UNKNOWN_BASE, address: str = "", **settings: object) -> ExpertResolver:
        for before in made:
            before.close()
        chosen = ResolverSettings(**{"cache": tmp_path / "cache", "fresh_s": 0.0, "away_s": 0.0} | settings)  # type: ignore[arg-type]
        made.append(ExpertResolver(replace(edge, address=address or edge.address), chosen, base))
        return made[-1]

    yield resolver
    for one in made:
        one.close()


def push(world: World, file: Path, name: str = PACKAGE) -> bytes:
    with publisher(world) as client:
        return client.push(name, file.read_bytes()).sha256


def move(world: World, version: int, channel: str = "stable") -> None:
    policy_admin.promote(world.ledger, PACKAGE, version, channel, now_ms())


def test_a_name_leads_to_the_expert_that_pull_would_write(world: World, tmp_path: Path, make: Make) -> None:
    digest = push(world, packed(tmp_path, 1))
    found = make().resolve(PACKAGE)
    unpack(tmp_path / "expert-1.expert", tmp_path / "back")
    names = ("adapter_model.safetensors", "adapter_config.json")
    assert [(found.directory / n).read_bytes() for n in names] == [(tmp_path / "back" / n).read_bytes() for n in names]
    assert (found.name, found.version, found.digest) == (f"{PACKAGE}@0-{digest.hex()[:8]}", 0, digest)
    assert 1 <= found.adapter_id < 2**62


def test_every_form_of_a_name_leads_to_the_same_directory_and_id(world: World, tmp_path: Path, make: Make) -> None:
    digest = push(world, packed(tmp_path, 1)).hex()
    push(world, packed(tmp_path, 2))
    move(world, 0)
    resolver = make()
    forms = ("@stable", "@0", f"@0-{digest[:8]}", f"@sha256:{digest}", f"@sha256:{digest[:16]}")
    found = [resolver.resolve(PACKAGE + form) for form in forms]
    assert {(one.name, one.adapter_id, one.directory) for one in found} == {
        (found[0].name, found[0].adapter_id, found[0].directory)
    }
    assert resolver.counts.misses == 1
    with pytest.raises(UnknownExpertError, match="has digest"):
        resolver.resolve(f"{PACKAGE}@1-{digest[:8]}")
    with pytest.raises(UnknownExpertError, match="no version of digest 0123456789abcdef"):
        resolver.resolve(f"{PACKAGE}@sha256:0123456789abcdef")


def test_a_promoted_channel_is_served_with_the_next_request_and_back_after_a_roll_back(
    world: World, tmp_path: Path, make: Make
) -> None:
    digests = [push(world, packed(tmp_path, seed)) for seed in (1, 2)]
    move(world, 0)
    resolver = make()
    seen = [resolver.resolve(f"{PACKAGE}@stable")]
    move(world, 1)
    seen.append(resolver.resolve(f"{PACKAGE}@stable"))
    assert [one.digest for one in seen] == digests
    assert seen[0].directory.is_dir()
    assert seen[0].name != seen[1].name
    move(world, 0)
    assert resolver.resolve(f"{PACKAGE}@stable").name == seen[0].name
    assert resolver.counts.misses == 2


def test_within_fresh_s_the_aggregator_is_not_asked_again(world: World, tmp_path: Path, make: Make) -> None:
    push(world, packed(tmp_path, 1))
    move(world, 0)
    resolver = make(fresh_s=3600.0)
    before = resolver.resolve(f"{PACKAGE}@stable")
    push(world, packed(tmp_path, 2))
    move(world, 1)
    assert resolver.resolve(f"{PACKAGE}@stable").name == before.name
    assert resolver.resolve(f"{PACKAGE}@1").version == 1


def test_without_the_aggregator_the_last_verified_version_goes_on_after_a_restart_too(
    world: World, tmp_path: Path, make: Make
) -> None:
    push(world, packed(tmp_path, 1))
    move(world, 0)
    before = make().resolve(f"{PACKAGE}@stable")
    away = make(address="127.0.0.1:1")
    again = away.resolve(f"{PACKAGE}@stable")
    assert (again.name, again.directory) == (before.name, before.directory)
    assert again.age_s > 0
    assert away.ages[f"{PACKAGE}@stable"][0] == 0
    assert away.counts.away == 1
    with pytest.raises(TransferError):
        away.resolve(f"{PACKAGE}@canary")


def test_what_the_aggregator_refuses_is_refused_at_once_though_it_is_cached(world: World, tmp_path: Path, make: Make) -> None:
    push(world, packed(tmp_path, 1))
    resolver = make()
    resolver.resolve(PACKAGE)
    policy_admin.rule(world.ledger, "deny", PACKAGE, "engine", ["fetch"], now_ms())
    with pytest.raises((ForbiddenError, UnknownExpertError), match=PACKAGE):
        resolver.resolve(PACKAGE)
    assert resolver.counts.refused == 1
    assert PACKAGE not in resolver.ages


def test_a_retired_version_is_refused_at_once_and_the_channel_that_left_it_goes_on(
    world: World, tmp_path: Path, make: Make
) -> None:
    for seed in (1, 2):
        push(world, packed(tmp_path, seed))
    move(world, 0)
    resolver = make()
    resolver.resolve(f"{PACKAGE}@1")
    policy_admin.retire(world.ledger, PACKAGE, 1, now_ms())
    with pytest.raises((ForbiddenError, UnknownExpertError), match="retired"):
        resolver.resolve(f"{PACKAGE}@1")
    assert resolver.resolve(f"{PACKAGE}@stable").version == 0


def test_a_stranger_is_refused(world: World, tmp_path: Path) -> None:
    push(world, packed(tmp_path, 1))
    stranger = ExpertResolver(edge_at(world, "x", new_key()), ResolverSettings(tmp_path / "other"))
    with pytest.raises(UnknownKeyError):
        stranger.resolve(PACKAGE)
    stranger.close()


def test_an_expert_for_another_base_is_refused_before_it_is_served(world: World, tmp_path: Path, make: Make) -> None:
    directory = builders.write_adapter(tmp_path / "a", builders.tuned(builders.initial()))
    said = {"compeft.base_weights": "ab" * 32, "compeft.base_tokenizer": "cd" * 32}
    save_compressed(directory, tmp_path / "a.expert", PackSettings(statements=said))
    push(world, tmp_path / "a.expert")
    for base, noun in ((ServedBase(b"\x01" * 32), "weights"), (ServedBase(b"\xab" * 32, b"\x01" * 32), "tokenizer")):
        with pytest.raises(WrongBaseError, match=f"{PACKAGE}@0-.* is for a base model with {noun}"):
            make(base).resolve(PACKAGE)
    assert make(ServedBase(b"\xab" * 32, b"\xcd" * 32), require_base=True).resolve(PACKAGE).version == 0
    push(world, packed(tmp_path, 1))
    with pytest.raises(InputError, match="does not say which base weights"):
        make(ServedBase(b"\xab" * 32), require_base=True).resolve(PACKAGE)
    assert make(ServedBase(b"\xab" * 32)).resolve(PACKAGE).version == 1


def test_a_rank_above_the_engines_is_said_or_mended_where_components_are_few(world: World, tmp_path: Path, make: Make) -> None:
    tensors = builders.tuned(builders.initial())
    directory = builders.write_adapter(tmp_path / "a", tensors)
    save_compressed(directory, tmp_path / "whole.expert", PackSettings(density=0.5))
    push(world, tmp_path / "whole.expert")
    with pytest.raises(InputError, match="has rank 4, vLLM serves ranks to 2: start it with a higher --max-lora-rank"):
        make(limits=EngineLimits("vLLM", 2)).resolve(PACKAGE)
    thin = {n: v.copy() for n, v in tensors.items()}
    for name, values in thin.items():
        values[(slice(2, None),) if "lora_A" in name else (slice(None), slice(2, None))] = 0
    builders.write_adapter(tmp_path / "b", thin)
    save_compressed(tmp_path / "b", tmp_path / "thin.expert", PackSettings(density=0.999))
    push(world, tmp_path / "thin.expert", "thin")
    found = make(limits=EngineLimits("vLLM", 2)).resolve("thin")
    unpack(tmp_path / "thin.expert", tmp_path / "back")
    config = json.loads((found.directory / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (2, 2)
    wanted, got = (load_file(d / "adapter_model.safetensors") for d in (tmp_path / "back", found.directory))
    for name in builders.names()[::2]:
        b = name.replace("lora_A", "lora_B")
        np.testing.assert_allclose(got[b] @ got[name], 2 * wanted[b] @ wanted[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("option", ["use_dora", "lora_bias", "modules_to_save"])
def test_what_an_engine_does_not_serve_is_named_before_it_is_asked(world: World, tmp_path: Path, make: Make, option: str) -> None:
    value = ["head"] if option == "modules_to_save" else True
    directory = builders.write_adapter(tmp_path / "a", builders.tuned(builders.initial()), **{option: value})
    save_compressed(directory, tmp_path / "a.expert", PackSettings(density=0.05))
    push(world, tmp_path / "a.expert")
    resolver = make()
    with pytest.raises(InputError, match=f"{PACKAGE}@0-.* has {option}"):
        resolver.resolve(PACKAGE)
    assert resolver.cache.digests == []


def test_the_cache_is_bounded_and_what_left_it_comes_back(world: World, tmp_path: Path, make: Make) -> None:
    for seed in range(4):
        push(world, packed(tmp_path, seed))
    resolver = make()
    one = resolver.resolve(f"{PACKAGE}@0").directory
    size = sum(file.stat().st_size for file in one.iterdir())
    resolver = make(max_bytes=2 * size + size // 2)
    resolver.cache._keep_s = 0.0  # the test cannot wait a minute
    seen = [resolver.resolve(f"{PACKAGE}@{version}") for version in (0, 1, 2, 3)]
    assert [s.directory.is_dir() for s in seen] == [False, False, True, True]
    assert resolver.cache.held_bytes <= 2 * size + size // 2
    assert resolver.resolve(f"{PACKAGE}@0").directory.is_dir()
    assert resolver.cache.evictions == 3


def test_two_engines_on_one_machine_have_a_slot_each(world: World, tmp_path: Path, make: Make) -> None:
    push(world, packed(tmp_path, 1))
    first = make()
    edge = edge_at(world, "other", world.enrol("other"))
    second = ExpertResolver(edge, ResolverSettings(tmp_path / "cache"))
    assert first.resolve(PACKAGE).directory != second.resolve(PACKAGE).directory
    assert {first.cache.folder.name, second.cache.folder.name} == {"slot-0", "slot-1"}
    second.close()


def test_a_composed_expert_is_served_too(world: World, make: Make) -> None:
    with pytest.raises(InputError, match="sentiment@0-"):
        make().resolve("sentiment")


def test_only_the_publisher_named_is_served(world: World, tmp_path: Path, make: Make) -> None:
    push(world, packed(tmp_path, 1))
    with pytest.raises(UnknownKeyError):
        make(publisher=new_key().public).resolve(PACKAGE)
    assert make(publisher=world.conductor_key.public).resolve(PACKAGE).version == 0


@pytest.mark.parametrize("name", ["a b", "", "x@", "x@sha256:zz", "../x", "x@a:b"])
def test_an_invalid_name_is_refused_before_anything_is_asked(make: Make, name: str) -> None:
    with pytest.raises(InputError):
        make(address="127.0.0.1:1").resolve(name)


def test_packages_of_one_client_are_not_disturbed(world: World, tmp_path: Path, make: Make) -> None:
    """The resolver's memory is its own: the site's may be in use by `compeft watch`."""
    push(world, packed(tmp_path, 1))
    with PackageClient(edge_at(world, "site", world.enrol("site"))) as other:
        assert other.fetch(PACKAGE).version == make().resolve(PACKAGE).version

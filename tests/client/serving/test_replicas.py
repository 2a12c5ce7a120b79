"""Load calls against real HTTP servers that answer as vLLM and SGLang document it: all replicas or none, retries, restarts."""

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from compeft_client.cli.main import run
from compeft_client.serving.replicas import LoadSettings, LoadState, Replica, read_state, replica_of, roll_out, write_state
from compeft_core.errors import InputError
from compeft_proto.errors import TransferError
from tests.client.delivery.conftest import PACKAGE, edge_at, packed, publisher
from tests.rounds.conftest import World


class Engine(ThreadingHTTPServer):
    """A replica: `loaded` names with their paths; `broken`: how many of its next answers are errors; `refuses`: this name, for good."""

    def __init__(self, kind: str = "vllm") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.kind, self.loaded, self.broken, self.refuses, self.calls = kind, dict[str, str](), 0, "", 0

    @property
    def replica(self) -> Replica:
        return Replica(f"http://127.0.0.1:{self.server_address[1]}", self.kind)


class _Handler(BaseHTTPRequestHandler):
    server: Engine

    def do_POST(self) -> None:
        engine, fields = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        engine.calls += 1
        prefix = "/v1" if engine.kind == "vllm" else ""
        assert self.path in (f"{prefix}/load_lora_adapter", f"{prefix}/unload_lora_adapter")
        name, loading = fields["lora_name"], "/load" in self.path
        if engine.broken:
            engine.broken -= 1
            return self._answer(503, "starting")
        if engine.refuses == name and loading:
            return self._fail("LoRA rank 64 is greater than max_lora_rank 16.")
        if loading and name in engine.loaded:
            return self._fail(f"The lora adapter '{name}' has already been loaded.")
        if not loading and name not in engine.loaded:
            return self._fail(f"The lora adapter '{name}' cannot be found.")
        if loading:
            engine.loaded[name] = fields["lora_path"]
        else:
            del engine.loaded[name]
        done = "Success: done." if engine.kind == "vllm" else json.dumps({"success": True, "loaded_adapters": engine.loaded})
        return self._answer(200, done)

    def _fail(self, why: str) -> None:
        if self.server.kind == "vllm":
            self._answer(400, json.dumps({"error": {"message": why, "code": 400}}))
        else:
            self._answer(200, json.dumps({"success": False, "error_message": why}))

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def engines(*kinds: str) -> Iterator[list[Engine]]:
    with ExitStack() as stack:
        made = []
        for kind in kinds:
            engine = stack.enter_context(Engine(kind))
            threading.Thread(target=engine.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
            stack.callback(engine.shutdown)
            made.append(engine)
        yield made


def settings(made: list[Engine]) -> LoadSettings:
    return LoadSettings([engine.replica for engine in made], sleep=lambda _s: None)


def test_all_replicas_get_the_new_version_and_lose_the_old_one(tmp_path: Path) -> None:
    with engines("vllm", "sglang", "vllm") as made:
        for name in ("x@0-aaaaaaaa", "x@1-bbbbbbbb", "x@1-bbbbbbbb"):
            assert roll_out(settings(made), tmp_path / "state", name, tmp_path / name) == []
            assert [engine.loaded for engine in made] == [{name: str(tmp_path / name)}] * 3
        assert [engine.calls for engine in made] == [3, 3, 3]


def test_a_replica_that_is_starting_is_called_again(tmp_path: Path) -> None:
    with engines("vllm", "sglang") as made:
        made[1].broken = 3
        roll_out(settings(made), tmp_path / "state", "x@0", tmp_path)
        assert [list(engine.loaded) for engine in made] == [["x@0"]] * 2


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_one_refusal_leaves_every_replica_at_the_version_before(tmp_path: Path, kind: str) -> None:
    with engines("vllm", kind, "vllm") as made:
        roll_out(settings(made), tmp_path / "state", "x@0", tmp_path)
        made[1].refuses = "x@1"
        with pytest.raises(TransferError, match=r"x@1 is loaded in none of 3 replicas: .*rank 64 is greater"):
            roll_out(settings(made), tmp_path / "state", "x@1", tmp_path)
        assert [list(engine.loaded) for engine in made] == [["x@0"]] * 3
        made[1].refuses = ""
        assert roll_out(settings(made), tmp_path / "state", "x@1", tmp_path) == []
        assert [list(engine.loaded) for engine in made] == [["x@1"]] * 3


def test_a_replica_that_is_away_is_named_and_nothing_changes(tmp_path: Path) -> None:
    with engines("vllm") as made:
        gone = LoadSettings([made[0].replica, Replica("http://127.0.0.1:9")], tries=2, sleep=lambda _s: None)
        with pytest.raises(TransferError, match=r"127\.0\.0\.1:9 answers nothing"):
            roll_out(gone, tmp_path / "state", "x@0", tmp_path)
        assert made[0].loaded == {}
        assert read_state(tmp_path / "state").name == ""


@pytest.mark.parametrize("reached", [0, 1, 2])
def test_a_crash_in_the_middle_of_a_roll_out_is_carried_on_after_a_restart(tmp_path: Path, reached: int) -> None:
    with engines("vllm", "sglang") as made:
        roll_out(settings(made), tmp_path / "state", "x@0", tmp_path)
        write_state(tmp_path / "state", LoadState("x@0", "x@1"))
        for engine in made[:reached]:
            engine.loaded["x@1"] = "here"
        assert roll_out(settings(made), tmp_path / "state", "x@1", tmp_path) == []
        assert [list(engine.loaded) for engine in made] == [["x@1"]] * 2
        write_state(tmp_path / "state", LoadState("x@1", "x@2"))
        made[0].loaded["x@2"] = "here"
        assert roll_out(settings(made), tmp_path / "state", "x@3", tmp_path) == []
        assert [list(engine.loaded) for engine in made] == [["x@3"]] * 2


def test_what_could_not_be_unloaded_is_said_and_tried_again(tmp_path: Path) -> None:
    with engines("vllm", "vllm") as made:
        roll_out(settings(made), tmp_path / "state", "x@0", tmp_path)
        made[1].loaded["x@1"] = "loaded by hand"
        made[1].broken = 0
        twice = LoadSettings([engine.replica for engine in made], tries=1, sleep=lambda _s: None)
        made[0].broken = 0
        made[1].loaded.pop("x@1")
        roll_out(twice, tmp_path / "state", "x@1", tmp_path)
        write_state(tmp_path / "state", LoadState("x@1", "", ("x@0",)))
        made[0].loaded["x@0"] = "again"
        made[0].broken = 1
        assert [line.split(" answers ")[1] for line in roll_out(twice, tmp_path / "state", "x@1", tmp_path)] == ["503: starting"]
        assert roll_out(twice, tmp_path / "state", "x@1", tmp_path) == []
        assert list(made[0].loaded) == ["x@1"]


def test_addresses_are_checked_before_anything_is_called(tmp_path: Path) -> None:
    assert replica_of("http://a:8000/") == Replica("http://a:8000")
    assert replica_of("sglang+https://a") == Replica("https://a", "sglang")
    for text in ("a:8000", "file:///etc", "tgi+http://a", "http://a:8000/v1", "http://", "http://a:99999999"):
        with pytest.raises(InputError, match="invalid --load"):
            replica_of(text)
    (tmp_path / "state").write_text("{}")
    with pytest.raises(InputError, match="is damaged"):
        read_state(tmp_path / "state")


def test_watch_loads_each_version_under_a_name_of_its_own(world: World, tmp_path: Path) -> None:
    edge = edge_at(world, "reader", world.enrol("reader"))
    (tmp_path / "reader.key").write_bytes(edge.key.to_pem())
    (tmp_path / "reader.key").chmod(0o600)
    (tmp_path / "aggregator.pub").write_bytes(world.aggregator.public.to_pem())
    reach = ["--aggregator", world.address, "--aggregator-key", str(tmp_path / "aggregator.pub")]
    reach += ["--key", str(tmp_path / "reader.key"), "--state-dir", str(tmp_path / "state"), "--once"]
    with engines("vllm", "sglang") as made:
        urls = ["--load", made[0].replica.url, "--load", f"sglang+{made[1].replica.url}"]
        for version in (0, 1):
            with publisher(world) as client:
                digest = client.push(PACKAGE, packed(tmp_path, version).read_bytes()).sha256
            assert run(["watch", PACKAGE, "-o", str(tmp_path / "here"), *urls, *reach]) == 0
            name = f"{PACKAGE}@{version}-{digest.hex()[:8]}"
            assert [list(engine.loaded) for engine in made] == [[name]] * 2
            assert (Path(made[0].loaded[name]) / "adapter_model.safetensors").is_file()
            assert Path(made[0].loaded[name]) == (tmp_path / "here").resolve()
        assert run(["watch", PACKAGE, "-o", str(tmp_path / "here"), "--load", "tgi+http://x", *reach]) == 3

"""A vLLM server as a process of its own, and calls to it."""

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PATIENCE_S = 460.0


@dataclass(frozen=True)
class Engine:
    """Where it listens, its log, and its process."""

    url: str
    log: Path
    process: "subprocess.Popen[bytes]"

    def complete(self, model: str, prompt: Sequence[int], tokens: int) -> dict[str, object]:
        """Greedy tokens after a prompt of token ids, with the log probabilities of the likeliest two."""
        return self.post(
            "/v1/completions",
            {
                "model": model,
                "prompt": list(prompt),
                "max_tokens": tokens,
                "temperature": 0,
                "logprobs": 2,
                "return_tokens_as_token_ids": True,
                "ignore_eos": True,
            },
        )

    def post(self, path: str, fields: Mapping[str, object]) -> dict[str, object]:
        """The JSON answer. Errors: HTTPError."""
        request = urllib.request.Request(self.url + path, json.dumps(fields).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            data = answer.read()
        return json.loads(data) if data.startswith(b"{") else {"text": data.decode()}  # type: ignore[no-any-return]

    def get(self, path: str) -> str:
        """The text of an answer."""
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return str(answer.read().decode())


@contextmanager
def vllm(
    programs: Path, base: Path, log: Path, environment: Mapping[str, str], meanwhile: Callable[[], object] = lambda: None
) -> Iterator[Engine]:
    """Serves until the block ends; `meanwhile` is called while it starts. Errors: RuntimeError if it does not come up."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(programs / "vllm"), "serve", str(base), "--host", "127.0.0.1", "--port", str(port), "--enable-lora"]
    command += ["--max-lora-rank", "16", "--max-model-len", "512", "--max-num-seqs", "8", "--enforce-eager", "--dtype", "float32"]
    said = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "OMP_NUM_THREADS": "2",
        "HF_HUB_OFFLINE": "1",
    }
    said |= {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=os.environ | said | dict(environment))
    engine = Engine(f"http://127.0.0.1:{port}", log, process)
    try:
        meanwhile()
        _wait(engine)
        yield engine
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(engine: Engine) -> None:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until and engine.process.poll() is None:
        try:
            engine.get("/health")
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(1)
    end = engine.log.read_text(errors="replace")[-3000:]
    code = engine.process.poll()
    how = f"did not come up within {PATIENCE_S:.0f} s" if code is None else f"ended with exit code {code} before it served"
    raise RuntimeError(f"vLLM {how}: {end}")

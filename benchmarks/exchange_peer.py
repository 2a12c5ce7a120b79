"""The named peer: a plain gRPC stream of the same bytes over the same TLS, without manifests, signatures, digests or a disk.

`python -m benchmarks.exchange_peer CERT KEY CLIENT_CA` serves it and prints its port.
"""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

METHOD = "/benchmark.Plain/Upload"
OPTIONS = [("grpc.max_receive_message_length", 2**23), ("grpc.use_local_subchannel_pool", 1)]


def count(parts: Iterator[bytes], _context: grpc.ServicerContext) -> bytes:
    return str(sum(map(len, parts))).encode()


def serve(certificate: Path, key: Path, authority: Path) -> None:
    server = grpc.server(ThreadPoolExecutor(4), options=OPTIONS)
    methods = {"Upload": grpc.stream_unary_rpc_method_handler(count)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("benchmark.Plain", methods),))
    pair = (key.read_bytes(), certificate.read_bytes())
    secret = grpc.ssl_server_credentials([pair], authority.read_bytes(), require_client_auth=True)
    print(server.add_secure_port("localhost:0", secret), flush=True)
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    serve(*map(Path, sys.argv[1:4]))

"""Real servers for the tests, started once a test process: PostgreSQL, and an S3 that speaks HTTP (moto's).

PostgreSQL runs as a user that is not root, in a directory of its own, reached by a socket file only. `COMPEFT_TEST_DATABASE`, the URL
of a database in which schemas may be made, is used instead where it is set. Where neither is there, tests are skipped; in CI they fail.
"""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy.engine import URL, make_url

START_S = 60.0
QUICK = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "listen_addresses": ""}


@contextmanager
def postgresql() -> Iterator[URL]:
    """A running PostgreSQL; a database, by a user who may make schemas in it."""
    if given := os.environ.get("COMPEFT_TEST_DATABASE"):
        yield make_url(given)
        return
    found = [Path(shutil.which("initdb") or "/nowhere"), *sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))]
    initdb = next((path for path in found if path.exists()), None)
    if initdb is None:
        missing("no PostgreSQL here: install it, or set COMPEFT_TEST_DATABASE")
    user = _user()
    with tempfile.TemporaryDirectory(prefix="compeft-pg-", ignore_cleanup_errors=True) as folder:
        os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
        yield from _serve(initdb.resolve(), Path(folder), user)


def _serve(initdb: Path, folder: Path, user: str) -> Iterator[URL]:
    data, as_user = folder / "data", user if os.getuid() == 0 else None
    make = [initdb, "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale", "C.UTF-8", "--no-sync"]
    subprocess.run(make, check=True, capture_output=True, user=as_user, cwd=folder)
    settings = [argument for name, value in QUICK.items() for argument in ("-c", f"{name}={value}")]
    with (folder / "log").open("wb") as log:
        command = [initdb.with_name("postgres"), "-D", data, "-k", folder, *settings]
        process = subprocess.Popen(command, stdout=log, stderr=log, user=as_user, cwd=folder)
    url = URL.create("postgresql+psycopg", "postgres", database="postgres", query={"host": str(folder)})
    try:
        until(lambda: _answers(url), process, folder / "log")
        yield url
    finally:
        process.send_signal(signal.SIGQUIT)
        process.wait(START_S)


@contextmanager
def s3() -> Iterator[str]:
    """A running S3 with nothing in it; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        until(lambda: _connects(port), process, None)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(START_S)


def make_bucket(address: str, name: str) -> None:
    """An empty bucket."""
    with urllib.request.urlopen(urllib.request.Request(f"{address}/{name}", method="PUT"), timeout=START_S) as answer:
        assert answer.status == 200


def s3_environment(address: str) -> dict[str, str]:
    """What a process needs to reach the server."""
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "anybody",
        "AWS_SECRET_ACCESS_KEY": "anything",
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }


@contextmanager
def database(server: URL) -> Iterator[str]:
    """An empty database, for as long as it is wanted; its URL. It is a schema, which is made and dropped a hundred times as fast."""
    name = f"compeft_{uuid.uuid4().hex}"
    with connect(server) as connection:
        connection.execute(f"CREATE SCHEMA {name}".encode())
    yield server.update_query_dict({"options": f"-csearch_path={name}"}).render_as_string(hide_password=False)
    with connect(server) as connection:
        connection.execute(f"DROP SCHEMA {name} CASCADE".encode())


def connect(url: URL) -> psycopg.Connection[tuple[object, ...]]:
    """A connection outside of any transaction."""
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(plain, autocommit=True, connect_timeout=5)


def missing(reason: str) -> None:
    """Skip, but never in CI."""
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)


def until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path | None) -> None:
    """Wait for a server."""
    give_up = time.monotonic() + START_S
    while not ready():
        said = log.read_text() if log else ""
        assert process.poll() is None, f"the server has ended: {said}"
        assert time.monotonic() < give_up, f"the server does not answer: {said}"
        time.sleep(0.05)


def _answers(url: URL) -> bool:
    try:
        connect(url).close()
    except psycopg.OperationalError:
        return False
    return True


def _connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def _user() -> str:
    """PostgreSQL refuses to run as root."""
    if os.getuid():
        return pwd.getpwuid(os.getuid()).pw_name
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"

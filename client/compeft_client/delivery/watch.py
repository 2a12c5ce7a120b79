"""Keep a folder at an expert's newest version: what `compeft watch` does. The folder's name is a link, and the link is what changes.

`DIR` points to a sibling, `.DIR.VERSION-DIGEST`, which is complete before the link is replaced by one rename; so whoever opens `DIR`
finds the old version or the new one, never half of one. The sibling before stays, for those who have just opened it; older ones go.
"""

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from compeft_client.delivery.pull import Delivered, PullOptions, Reference, deliver
from compeft_client.durable_files import write_durably
from compeft_client.exchange.package_client import PackageClient
from compeft_client.identity.edge_config import Edge
from compeft_core.errors import InputError
from compeft_proto.errors import RefusedError, TransferError
from compeft_proto.sync_answer import Progress, Tick

KILL_S = 5.0
"""How long a command has to end after it was told to."""


@dataclass(frozen=True, slots=True)
class WatchSettings:
    """What to follow, the folder to keep, the command to run after each change (empty: none), and how often to ask.

    load: called with version, digest in hexadecimal digits (16) and folder at each look, and to be repeated without harm: it returns what
    went wrong and does not matter, a line each.
    """

    reference: Reference
    directory: Path
    command: Sequence[str] = ()
    every_s: float = 30.0
    options: PullOptions = field(default_factory=PullOptions)
    load: Callable[[int, str, Path], Sequence[str]] | None = None


@dataclass(frozen=True, slots=True)
class WatchCallbacks:
    """Callbacks: `changed` for each new version, `trouble` for each new reason why it is missing."""

    changed: Callable[[Delivered], None]
    trouble: Callable[[str], None]


class Stopped(Exception):  # noqa: N818  # no error: somebody asked
    """Told to stop in the middle of a transfer; what has arrived is kept."""


def watch(edge: Edge, settings: WatchSettings, stop: threading.Event, callbacks: WatchCallbacks) -> None:
    """Follow until `stop`. An aggregator that is away, or refuses, is asked again; nothing here changes meanwhile.

    Errors: InputError if the folder is not a link; TrustError, FormatError and LimitError, which waiting does not mend.
    """
    check_directory(settings.directory)
    edge, last = replace(edge, patience_s=0.0), ""
    while not stop.is_set():
        try:
            with PackageClient(edge) as client:
                while not stop.is_set():
                    follow(client, edge, settings, stop, callbacks)
                    last = ""
                    stop.wait(settings.every_s)
        except Stopped:
            return
        except (TransferError, RefusedError) as error:
            if str(error) != last:
                callbacks.trouble(str(error))
            last = str(error)
            stop.wait(settings.every_s)


def follow(client: PackageClient, edge: Edge, settings: WatchSettings, stop: threading.Event, callbacks: WatchCallbacks) -> bool:
    """One look: bring the folder to the newest version if it is not there, load it, run the command. Whether the command, if any,
    succeeded. Errors: those of `deliver` and of `settings.load`.
    """
    newest = client.newest(settings.reference.expert, settings.reference.version, settings.reference.channel)
    if _current(settings.directory) != _place(settings.directory, newest.version, newest.state_digest).name:
        delivered = deliver(edge, settings.reference, _fresh(settings.directory), settings.options, _until(stop))
        _switch(settings.directory, delivered)
        callbacks.changed(delivered)
    if settings.load is not None:
        current = settings.directory.absolute().parent / _current(settings.directory)
        version, _, digest = current.name.removeprefix(f".{settings.directory.name}.").partition("-")
        for problem in settings.load(int(version), digest, current):
            callbacks.trouble(problem)
    return not settings.command or _ran(settings) == _current(settings.directory) or _run(settings, stop, callbacks)


def check_directory(directory: Path) -> None:
    """Errors: InputError if there is something that is not a link of ours, or no folder to put it in."""
    if not directory.parent.is_dir():
        raise InputError(f"{directory.parent} is not a folder: make it first")
    if directory.exists() and not directory.is_symlink():
        raise InputError(f"{directory} is there and no link: watch keeps a link to a folder beside it, choose another name")


def _current(directory: Path) -> str:
    """The name of the sibling that the link points to; empty if no link exists."""
    return os.readlink(directory) if directory.is_symlink() else ""


def _place(directory: Path, version: int, digest: bytes) -> Path:
    return directory.parent / f".{directory.name}.{version}-{digest.hex()[:16]}"


def _fresh(directory: Path) -> Path:
    """A sibling to write to; what an earlier, broken try left there is gone."""
    folder = directory.parent / f".{directory.name}.new"
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def _switch(directory: Path, delivered: Delivered) -> None:
    """Give the fresh sibling its name and turn the link to it, durably."""
    before, place = _current(directory), _place(directory, delivered.version, delivered.digest)
    if place.name != before:
        shutil.rmtree(place, ignore_errors=True)
        (directory.parent / f".{directory.name}.new").replace(place)
    link = directory.parent / f".{directory.name}.link"
    link.unlink(missing_ok=True)
    link.symlink_to(place.name)
    link.replace(directory)
    folder = os.open(directory.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    for old in directory.parent.glob(f".{directory.name}.*-*"):
        if old.name not in (before, place.name) and old.is_dir():
            shutil.rmtree(old, ignore_errors=True)


def _run(settings: WatchSettings, stop: threading.Event, callbacks: WatchCallbacks) -> bool:
    """Run the command; whether it succeeded. It is told to end when we are."""
    current = _current(settings.directory)
    version = current.removeprefix(f".{settings.directory.name}.").partition("-")[0]
    told = {
        "COMPEFT_EXPERT": settings.reference.expert,
        "COMPEFT_VERSION": version,
        "COMPEFT_DIRECTORY": str(settings.directory.absolute()),
    }
    try:
        child = subprocess.Popen(settings.command, env=os.environ | told)  # noqa: S603  # the user's own command, no shell
    except OSError as error:
        raise InputError(f"cannot run {settings.command[0]}: {error.strerror}") from error
    code = _ended(child, stop)
    if stop.is_set():
        return False
    write_durably(_ran_file(settings), current.encode())
    if code:
        callbacks.trouble(f"{settings.command[0]} ended with code {code} after {settings.reference.expert} version {version}")
    return code == 0


def _ended(child: "subprocess.Popen[bytes]", stop: threading.Event) -> int:
    while child.poll() is None:
        if stop.wait(0.05):
            child.terminate()
            try:
                return child.wait(KILL_S)
            except subprocess.TimeoutExpired:
                child.kill()
    return child.wait()


def _ran(settings: WatchSettings) -> str:
    """After which change the command ran last: if we ended between a change and its command, it still runs."""
    file = _ran_file(settings)
    return file.read_text() if file.exists() else ""


def _ran_file(settings: WatchSettings) -> Path:
    return settings.directory.parent / f".{settings.directory.name}.ran"


def _until(stop: threading.Event) -> Progress:
    """Progress that nobody watches, and that ends the transfer once `stop` is set."""

    @contextmanager
    def progress(_total: int) -> Iterator[Tick]:
        def tick(_done: int) -> None:
            if stop.is_set():
                raise Stopped

        yield tick

    return progress

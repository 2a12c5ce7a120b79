"""The conductor's connection to an aggregator: publish an expert, open and close rounds, report quality. No Flower in here."""

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compeft_core.errors import FormatError, InputError
from compeft_core.privacy.terms import ClientPrivacy
from compeft_proto import answer_checks
from compeft_proto import envelope as dsse
from compeft_proto.aggregator_connection import NONCE_BYTES, AggregatorConnection, date
from compeft_proto.chunk_refs import refs_of
from compeft_proto.clock import now_ms
from compeft_proto.keys import PublicKey, SigningKey, public_keys_from_pem, signing_key_from_pem
from compeft_proto.merge_settings import MergeSettings
from compeft_proto.privacy_terms import privacy_to_proto
from compeft_proto.site_layout import FILES, INDEX, SIMULATED_CONDUCTOR, SITE_VARIABLE, site_options
from compeft_proto.sync_answer import Answer, MemoryCache, fetch
from compeft_proto.transport import ClientTls, offer
from compeft_proto.v1 import exchange_pb2 as xp
from compeft_proto.v1 import expert_pb2 as pb
from compeft_proto.v1.envelope_pb2 import Envelope
from compeft_server.domain.records import Arm
from compeft_server.private_files import read_file, read_private

NEEDED = ("aggregator", "aggregator-key", "conductor-key")
TLS = {"tls-ca": read_file, "tls-cert": read_file, "tls-key": read_private}


@dataclass(frozen=True, slots=True)
class ConductorConfig:
    """Who this conductor is and whom it trusts; `older` are keys that the aggregator had before. Without TLS: loopback only."""

    address: str
    key: SigningKey
    aggregator: PublicKey
    tls: ClientTls | None = None
    older: tuple[PublicKey, ...] = ()


@dataclass(frozen=True, slots=True)
class ClientMetric:
    """A task metric of one arm at one version, of one client."""

    run: str
    round: int
    version: int
    arm: Arm
    client: str
    metric: str
    value: float
    num_examples: float


def conductor_config(config: Mapping[str, object]) -> ConductorConfig:
    """The conductor that a run's configuration describes: `site`, a folder from `compeft enroll`; or `aggregator` host:port,
    `aggregator-key` and `conductor-key` files, and PEM files `tls-ca`, `tls-cert`, `tls-key` for anything but loopback; what is given
    comes before what is in the folder. Where it says none of these, the folder is the one that the environment variable COMPEFT_SITE names,
    or the conductor's in a folder of simulated sites. Errors: InputError, ForbiddenError.
    """
    config = {name: value for name, value in config.items() if value}
    if not {"site", *NEEDED} & set(config) and os.environ.get(SITE_VARIABLE):
        config = {**config, "site": own_or_simulated_site(Path(os.environ[SITE_VARIABLE]))}
    config = {**_site(Path(str(config["site"]))), **config} if "site" in config else config
    missing = [name for name in NEEDED if not config.get(name)]
    if missing:
        raise InputError(
            f"no site for the conductor: set {SITE_VARIABLE} to the folder that `compeft enroll` made, or give site or "
            f"{', '.join(missing)} with flwr run -c"
        )
    key, trusted = Path(str(config["conductor-key"])), Path(str(config["aggregator-key"]))
    tls = [read(Path(str(config[name]))) for name, read in TLS.items() if config.get(name)]
    if tls and len(tls) < 3:
        raise InputError("run configuration has some of tls-ca, tls-cert and tls-key: TLS needs all three")
    newest, *older = public_keys_from_pem(read_file(trusted), str(trusted))
    return ConductorConfig(
        address=str(config["aggregator"]),
        key=signing_key_from_pem(read_file(key), str(key), key.stat().st_mode),
        aggregator=newest,
        tls=ClientTls(*tls) if tls else None,
        older=tuple(older),
    )


Station, station_of = ConductorConfig, conductor_config
"""The names of earlier versions: apps that call them run unchanged."""


class Conductor:
    """Commands to one aggregator. Every method raises the aggregator's typed refusal, or UnreachableError."""

    def __init__(self, config: ConductorConfig) -> None:
        keys = (config.aggregator, *config.older)
        self._connection = AggregatorConnection(config.key, config.address, config.tls, keys)

    def check_reachable(self) -> None:
        """Ask the aggregator for its key rotations, which changes nothing. Errors: UnreachableError if nothing answers."""
        self._connection.check_reachable()

    def publish(self, genesis: pb.Genesis, snapshot: bytes = b"") -> pb.VersionManifest:
        """Create an expert with this version 0. Errors: ConflictError if the name is taken."""
        key = self._connection.key
        genesis.keyid, genesis.issued_at_ms = key.keyid, now_ms()
        if genesis.WhichOneof("initial") == "snapshot":
            genesis.snapshot.chunks.extend(refs_of(snapshot))
        answer = self._connection.submit(dsse.seal(key, dsse.GENESIS, genesis), genesis.snapshot.chunks, snapshot)
        return self._connection.opened(answer, dsse.VERSION)

    def open_round(
        self,
        expert: str,
        run: str,
        number: int,
        deadline_s: float,
        max_staleness: int = 0,
        *,
        privacy: ClientPrivacy | None = None,
        asked: int = 0,
    ) -> pb.RoundStatement:
        """Collect updates for this round on top of the newest version, for at most `deadline_s` seconds; and updates of the run's
        earlier rounds that come late, by at most `max_staleness` versions. privacy: terms of a private round, whose statement has the clip
        in force; asked: the number of clients that are asked.

        Errors: PrivacySpentError if the bound of the terms leaves no further round.
        """
        deadline_ms = now_ms() + int(1000 * deadline_s)
        opening = pb.RoundOpening(
            expert=expert, run=run, round=number, deadline_ms=deadline_ms, max_staleness=max_staleness, asked=asked
        )
        if privacy is not None:
            opening.privacy.CopyFrom(privacy_to_proto(privacy))
        return self._conduct(dsse.ROUND_OPENING, opening, dsse.ROUND_STATEMENT)

    def close_round(
        self, expert: str, run: str, number: int, settings: MergeSettings | str, *more: Any, **named: Any
    ) -> pb.RoundStatement:
        """Merge what was accepted and publish the optimizer's step as the next version, by `settings`: a `MergeSettings`, or its fields in
        their order (method, coefficient, compression and so on).

        Errors: InputError, and the round stays open, if the method is not to be had with these parameters and that many updates.
        """
        chosen = settings if isinstance(settings, MergeSettings) else MergeSettings(settings, *more, **named)
        return self._conduct(dsse.ROUND_CLOSING, chosen.closing(expert, run, number), dsse.ROUND_STATEMENT)

    def fetch(self, expert: str, have: int, want: int, run: str, number: int) -> tuple[Answer, list[bytes]]:
        """What leads from version `have` (-1: none) to `want`, signed, with its payloads; on behalf of this round.

        Errors: those of a client's sync, `compeft_proto.answer_checks`.
        """
        kept, keyid = MemoryCache(), self._connection.key.keyid
        request = pb.SyncRequest(expert=expert, keyid=keyid, want_version=want, run=run, round=number)
        if have >= 0:
            request.have_version = have

        def attempt() -> tuple[Answer, list[bytes]]:
            date(request)
            with self._connection.ask(request) as dialogue:
                answer = self._connection.read(dialogue, request)
                answer_checks.check_statement(answer.statement, request, have)
                answer_checks.check_steps(answer.steps, answer.statement)
                return answer, fetch(dialogue, kept, answer.needed)

        return self._connection.retried(attempt)

    def carry_request(self, request: Envelope) -> list[bytes]:
        """The aggregator's answer to a client's sealed request, in boxes that only this client opens.

        Errors: those of a client's sync; LimitError if the answer is too large for a letter.
        """

        def attempt() -> list[bytes]:
            boxes = []
            with self._connection.call(request) as dialogue:
                while not (reply := dialogue.receive()).listed:
                    boxes.append(reply.box)
            return boxes

        return self._connection.persist(attempt)

    def carry_update(self, letter: xp.Letter) -> pb.Receipt:
        """Hand in the update of a client's letter; the receipt. Errors: those of a client's submit."""
        boxes = {chunk.sha256: chunk.box for chunk in letter.chunks}

        def part(wanted: xp.NeededChunk) -> list[xp.SubmitRequest]:
            if wanted.sha256 not in boxes:
                raise FormatError(f"the letter lacks chunk {wanted.sha256.hex()[:16]}")
            return [xp.SubmitRequest(box=boxes[wanted.sha256])]

        def attempt() -> Envelope:
            asked = self._connection.head_size()
            with self._connection.submission() as dialogue:
                answer = offer(dialogue, xp.SubmitRequest(box=letter.update, head_size=asked), part)
            self._connection.follow_submission(asked, dialogue)
            return answer

        return self._connection.opened(self._connection.persist(attempt), dsse.RECEIPT)

    def report(self, expert: str, measured: ClientMetric) -> None:
        """Put a task metric beside the bytes. The same again is nothing."""
        report = pb.QualityReport(
            expert=expert,
            run=measured.run,
            round=measured.round,
            version=measured.version,
            arm=measured.arm,
            client=measured.client,
            metric=pb.Metric(name=measured.metric, value=measured.value),
            weight=measured.num_examples,
        )
        self._conduct(dsse.QUALITY, report, dsse.RECORDED)

    def _conduct(
        self,
        kind: dsse.PayloadType[dsse.M],
        command: dsse.M,
        answer: dsse.PayloadType[dsse.N],
    ) -> dsse.N:
        key = self._connection.key
        command.keyid, command.nonce = key.keyid, secrets.token_bytes(NONCE_BYTES)  # type: ignore[attr-defined]  # as below
        command.issued_at_ms = now_ms()  # type: ignore[attr-defined]  # every command has these four
        command.head_size = asked = self._connection.head_size()  # type: ignore[attr-defined]  # as below
        found = self._connection.command(dsse.seal(key, kind, command), answer)
        self._connection.follow_log(asked, found.head)  # type: ignore[attr-defined]  # and every answer this one
        return found


def own_or_simulated_site(folder: Path) -> Path:
    """`folder`, or the simulated conductor's site in it if it is a folder of simulated sites."""
    simulated = folder / SIMULATED_CONDUCTOR
    return simulated if not (folder / INDEX).exists() and simulated.is_dir() else folder


def _site(folder: Path) -> dict[str, object]:
    """What a site folder holds, under the names of `conductor_config`. Errors: InputError, ForbiddenError if others may enter it."""
    if not (folder / INDEX).is_file():
        raise InputError(f"{folder} is not a site folder, it has no {INDEX}: make one with `compeft enroll`")
    present = {file for file in FILES.values() if (folder / file).exists()}
    found = site_options(str(folder), folder.stat().st_mode, read_file(folder / INDEX), present)
    return {"conductor-key": found.pop("key", None), **found}

"""An edge client's local configuration: from the names and paths that the site's operator wrote to an `Edge`.

    from compeft_client import Edge, edge_of

    edge: Edge = edge_of({"site": "/var/lib/compeft-edge", "patience-s": 60})

The names are those of the options of `compeft join`, and of a SuperNode's node configuration.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from compeft_client.durable_files import read_file, read_private, write_durably
from compeft_client.identity.certificates import check_lasting
from compeft_client.identity.key_files import load_public_keys, load_signing_key
from compeft_client.identity.site_folder import complete
from compeft_core.budget import bytes_of
from compeft_core.errors import InputError
from compeft_proto.clock import now_ms
from compeft_proto.keys import PublicKey, SigningKey
from compeft_proto.transport import ClientTls

NEEDED = ("aggregator", "aggregator-key", "key", "state-dir")
TLS = ("tls-ca", "tls-cert", "tls-key")
PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Edge:
    """Who this client is, whom it trusts, where it keeps its memory. Without TLS the address must be loopback. A transfer that
    fails is tried again, from where it stopped, for `patience_s` seconds without success. `older` are keys that the aggregator had
    before: versions that they signed still hold, everything else must be signed by `aggregator`, or by a key that it introduced; `learn`
    is the file of public keys that such a key is written to. `max_update_bytes`, `max_upload_s`: the density of a round is lowered where
    its update would take more, or longer at the rate of the upload before.
    """

    address: str
    key: SigningKey
    aggregator: PublicKey
    state: Path
    tls: ClientTls | None = None
    patience_s: float = PATIENCE_S
    older: tuple[PublicKey, ...] = ()
    learn: Path | None = None
    max_update_bytes: int | None = None
    max_upload_s: float | None = None

    def learned(self, keys: tuple[PublicKey, ...]) -> None:
        """The aggregator has changed its key."""
        if self.learn is not None:
            write_durably(self.learn, b"".join(key.to_pem() for key in keys))


def edge_of(config: Mapping[str, object]) -> Edge:
    """The client that the options of a command, or a SuperNode's --node-config, describe.

    site: folder that holds all that is not given beside it; aggregator: host:port; aggregator-key: file with its public key, older
    ones after it; key: file with this client's private key; state-dir: folder for its memory; patience-s: seconds to try a failing
    transfer again; max-update: most bytes of one update, such as 200kB, for which the density is lowered if need be; max-upload-s: most
    seconds of one, at the rate of the upload before; tls-ca, tls-cert, tls-key: PEM files, all three or none. Errors: InputError,
    ForbiddenError.
    """
    config = complete(config)
    missing = [name for name in NEEDED if not config.get(name)]
    if missing:
        raise InputError(
            "missing --site: give the folder that `compeft enroll` made, or set COMPEFT_SITE"
            if len(missing) == len(NEEDED)
            else f"missing --{', --'.join(missing)}: give each, or --site with the folder that `compeft enroll` made"
        )
    given = [name for name in TLS if config.get(name)]
    if given and len(given) < len(TLS):
        raise InputError(f"only {', '.join(given)} of TLS: it needs {', '.join(TLS)}")
    known = Path(str(config["aggregator-key"]))
    newest, *older = load_public_keys(known)
    return Edge(
        address=str(config["aggregator"]),
        key=load_signing_key(Path(str(config["key"]))),
        aggregator=newest,
        state=Path(str(config["state-dir"])),
        tls=_tls(config) if given else None,
        patience_s=float(str(config.get("patience-s", PATIENCE_S))),
        older=tuple(older),
        max_update_bytes=bytes_of(str(config["max-update"])) if config.get("max-update") else None,
        max_upload_s=seconds_of("max-upload-s", config) if config.get("max-upload-s") is not None else None,
        learn=known if "site" in config else None,
    )


def seconds_of(name: str, config: Mapping[str, object]) -> float:
    """A time above 0 in a configuration. Errors: InputError."""
    try:
        seconds = float(str(config[name]))
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InputError(f"{name} is {config[name]!r}: give seconds, more than 0")
    return seconds


def _tls(config: Mapping[str, object]) -> ClientTls:
    authority, certificate, key = (Path(str(config[name])) for name in TLS)
    check_lasting(read_file(certificate), str(certificate), now_ms())
    return ClientTls(read_file(authority), read_file(certificate), read_private(key))

"""An edge client's local configuration: from the names and paths that the site's operator wrote to an `Edge`."""

from collections.abc import Mapping
from pathlib import Path

from compeft_client.exchange import PATIENCE_S, Edge
from compeft_core.errors import InputError
from compeft_proto.keys import PublicKey, SigningKey, public_key_from_pem, signing_key_from_pem
from compeft_proto.transport import Tls

NEEDED = ("aggregator", "aggregator-key", "key", "state-dir")
TLS = ("tls-ca", "tls-cert", "tls-key")


def edge_of(config: Mapping[str, object]) -> Edge:
    """The client that a SuperNode's --node-config describes.

    aggregator: host:port; aggregator-key: file with its public key; key: file with this client's private key; state-dir: folder
    for its memory; patience-s: seconds to try a failing transfer again; tls-ca, tls-cert, tls-key: PEM files, all three or none.
    Errors: InputError, ForbiddenError.
    """
    missing = [name for name in NEEDED if not config.get(name)]
    if missing:
        raise InputError(f"node configuration lacks {', '.join(missing)}: start this node with `compeft join`")
    given = [name for name in TLS if config.get(name)]
    if given and len(given) < len(TLS):
        raise InputError(f"node configuration has {', '.join(given)} only, TLS needs {', '.join(TLS)}")
    tls = Tls(*(read_file(Path(str(config[name]))) for name in ("tls-ca", "tls-cert", "tls-key"))) if given else None
    return Edge(
        address=str(config["aggregator"]),
        key=load_signing_key(Path(str(config["key"]))),
        aggregator=load_public_key(Path(str(config["aggregator-key"]))),
        state=Path(str(config["state-dir"])),
        tls=tls,
        patience_s=float(str(config.get("patience-s", PATIENCE_S))),
    )


def load_signing_key(path: Path) -> SigningKey:
    """A private key from a file. Errors: InputError if there is none, ForbiddenError if others may read it."""
    return signing_key_from_pem(read_file(path), str(path), path.stat().st_mode)


def load_public_key(path: Path) -> PublicKey:
    """A public key from a file. Errors: InputError."""
    return public_key_from_pem(read_file(path), str(path))


def read_file(path: Path) -> bytes:
    """The bytes of a file. Errors: InputError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error

"""Certificates that the aggregator's authority gives to services beside it: a reverse proxy, Flower's SuperLink, the live page.

A folder gets two files, each replaced as a whole: `server.pem` (certificate, chain to the old authority, key; mode 0600) and
`ca.crt` (the authorities to believe). The authority's own key stays where it is.
"""

from pathlib import Path

from compeft_core.errors import InputError
from compeft_proto.errors import ConflictError
from compeft_server.identity import authority_files as files
from compeft_server.identity import certificate_authority as ca
from compeft_server.private_files import read_file, read_private, write_durably

CERTIFICATE, AUTHORITIES = "server.pem", "ca.crt"


def issue(data: Path, folder: Path, hosts: list[str], now_ms: int) -> bool:
    """A certificate for `hosts` in `folder`, unless the one there will do; whether it is new.

    The one there will do if it is for these names, of the authority that signs today, and more than a third of its life is left; the
    authorities in the folder are brought up to date either way. Errors: InputError if the data directory has no authority,
    ConflictError if the folder is the authority's own.
    """
    if folder.resolve() == (data / files.FOLDER).resolve():
        raise ConflictError(f"{folder} is the authority's own folder: choose another one")
    trust = files.load(data)
    folder.mkdir(parents=True, mode=0o700, exist_ok=True)
    fresh = not _will_do(folder, trust, hosts, now_ms)
    if fresh:
        certificate, key = ca.issue_server(trust.current, hosts, now_ms)
        chain = [ca.cross_sign(trust.old, trust.current.certificate, now_ms)] if trust.old else []
        write_durably(folder / CERTIFICATE, ca.pem(certificate, *chain) + ca.key_pem(key), mode=0o600)
    authorities = folder / AUTHORITIES
    if not authorities.exists() or read_file(authorities) != trust.bundle:
        write_durably(authorities, trust.bundle)
        return True
    return fresh


def _will_do(folder: Path, trust: files.Trust, hosts: list[str], now_ms: int) -> bool:
    path = folder / CERTIFICATE
    if not path.exists():
        return False
    try:
        found = ca.certificates_from_pem(read_private(path), str(path))[0]
    except InputError:
        return False
    same = found.issuer == trust.current.certificate.subject and set(ca.hosts_of(found)) == set(hosts)
    return same and not ca.is_due(found, now_ms)

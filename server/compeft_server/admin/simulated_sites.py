"""Members for a simulation: keys made and enrolled here at the aggregator, in site folders as `compeft enroll` writes them.

For clients that all run on this machine. A real client makes its own key, which never leaves it (`compeft clients invite`).
"""

import json
from collections.abc import Sequence
from pathlib import Path

from compeft_core.errors import InputError
from compeft_proto.clock import now_ms
from compeft_proto.keys import new_key, signing_key_from_pem
from compeft_proto.site_layout import FILES, INDEX, SIMULATED_CONDUCTOR, simulated
from compeft_proto.transport import LOOPBACK
from compeft_server.admin import policy_admin
from compeft_server.data_directory import open_ledger
from compeft_server.domain.records import Role
from compeft_server.identity.aggregator_keys import earlier_keys, own_key
from compeft_server.private_files import read_file, write_durably


def make_sites(data: Path, sites: Path, clients: int, address: str, experts: Sequence[str]) -> list[str]:
    """Site folders in `sites` for `clients` edge clients and one conductor of the aggregator in `data`; their members' names.
    The clients may contribute to these experts and fetch them.

    What is there already is kept, so more clients may be added. Errors: InputError if `address` is not on this machine; ConflictError if
    a member of such a name has another key.
    """
    if not address.startswith(LOOPBACK):
        raise InputError(f"{address} is not on this machine: simulated clients reach the aggregator over loopback only")
    members: list[tuple[str, Role]] = [(SIMULATED_CONDUCTOR, "conductor"), *((simulated(n), "edge") for n in range(clients))]
    for name, role in members:
        if not (sites / name / INDEX).exists():
            _make_site(data, sites / name, role, address)
            for expert in experts if role == "edge" else ():
                policy_admin.rule(open_ledger(data), "allow", expert, name, policy_admin.USUAL[role], now_ms())
    return [name for name, _ in members]


def _make_site(data: Path, folder: Path, role: Role, address: str) -> None:
    """One site folder, its index last; a key that an earlier attempt made is used again."""
    path = folder / FILES["key"]
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        write_durably(path, new_key().to_pem(), mode=0o600)
    public = signing_key_from_pem(read_file(path), str(path), path.stat().st_mode).public
    open_ledger(data).enrol(folder.name, public, role, now_ms())
    write_durably(folder / FILES["aggregator-key"], b"".join(k.to_pem() for k in (own_key(data).public, *earlier_keys(data))))
    write_durably(folder / INDEX, json.dumps({"aggregator": address, "name": folder.name, "role": role}).encode(), mode=0o600)

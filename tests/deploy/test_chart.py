"""The chart as helm renders it: what Kubernetes' own schemas accept, what is refused before it is installed, a start that really runs."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from compeft_server.identity.aggregator_keys import own_key
from tests.deploy.conftest import DEPLOY, program
from tests.deploy.federation import BIN
from tests.deploy.test_images import check

CHART = DEPLOY / "helm" / "compeft-aggregator"
CASES = sorted((CHART / "ci").glob("*-values.yaml"))
CUSTOM = {"ServiceMonitor"}
"""Kinds that Kubernetes itself does not know."""
VERSIONS = ["1.30", "1.37"]


def helm(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [program("helm", "deploy/helm/get-helm.sh FOLDER"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def rendered(values: Path, *extra: str) -> dict[tuple[str, str], dict[str, Any]]:
    """What helm makes of the chart, by kind and name."""
    done = helm("template", "compeft", CHART, "-f", values, *extra)
    assert (done.returncode, done.stderr) == (0, "")
    found = [document for document in yaml.safe_load_all(done.stdout) if document]
    return {(document["kind"], document["metadata"]["name"]): document for document in found}


def pod_of(found: dict[tuple[str, str], dict[str, Any]]) -> dict[str, Any]:
    return next(d for (kind, _), d in found.items() if kind in ("StatefulSet", "Deployment"))["spec"]["template"]["spec"]


@pytest.mark.parametrize("values", CASES, ids=lambda path: path.name)
def test_helm_finds_no_fault(values: Path) -> None:
    done = helm("lint", "--strict", CHART, "-f", values)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("values", CASES, ids=lambda path: path.name)
def test_kubernetes_schemas_accept_every_document(values: Path, version: str) -> None:
    documents = rendered(values)
    assert len(documents) >= 5
    for (kind, _), document in documents.items():
        if kind not in CUSTOM:
            kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("values", CASES, ids=lambda path: path.name)
def test_every_container_is_confined_and_runs_a_command_that_exists(values: Path) -> None:
    pod = pod_of(rendered(values))
    assert (pod["securityContext"]["runAsNonRoot"], pod["securityContext"]["runAsUser"]) == (True, 10001)
    assert not pod["automountServiceAccountToken"]
    for container in pod["initContainers"] + pod["containers"]:
        context = container["securityContext"]
        assert (context["readOnlyRootFilesystem"], context["allowPrivilegeEscalation"]) == (True, False)
        assert context["capabilities"]["drop"] == ["ALL"]
        assert "limits" in container["resources"]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if "exec" in container.get(probe, {}):
                check([word.partition("=")[0] for word in container[probe]["exec"]["command"][1:]])
    aggregator = pod["containers"][0]
    check([word.partition("=")[0] for word in aggregator["args"]])


def test_one_aggregator_has_a_volume_and_many_have_none() -> None:
    one, many = (rendered(CHART / "ci" / f"{name}-values.yaml") for name in ("one", "many"))
    assert one["StatefulSet", "compeft"]["spec"]["volumeClaimTemplates"]
    assert not [kind for kind, _ in one if kind in ("PodDisruptionBudget", "HorizontalPodAutoscaler")]
    assert "replicas" not in many["Deployment", "compeft"]["spec"], "the autoscaler sets it"
    assert many["HorizontalPodAutoscaler", "compeft"]["spec"]["scaleTargetRef"]["kind"] == "Deployment"
    assert {"name": "data", "emptyDir": {"sizeLimit": "10Gi"}} in pod_of(many)["volumes"]


REFUSED = {
    "several on one SQLite file": (["replicas=2"], "one SQLite file has one aggregator"),
    "a database without a bucket": (["database=postgresql+psycopg://u@h/d"], "database and store go together"),
    "no volume and no identity": (["database=postgresql+psycopg://u@h/d", "store=s3://b/p"], "need identitySecret"),
    "a page without a password": (["dashboard.enabled=true"], "needs dashboard.passwordSecret"),
    "metrics without a page": (["serviceMonitor.enabled=true"], "needs dashboard.enabled"),
    "no host": (["hosts=null"], "hosts"),
    "another database": (["database=mysql://h/d", "store=s3://b/p"], "database"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_in_one_line(case: str) -> None:
    settings, reason = REFUSED[case]
    hosts = [] if "hosts=null" in settings else ["--set", "hosts={agg.example}"]
    done = helm("template", "compeft", CHART, *hosts, *(word for setting in settings for word in ("--set", setting)))
    assert done.returncode != 0
    assert reason in done.stderr


def start(pod: dict[str, Any], folder: Path) -> None:
    """Run the first container's script for real, in `folder`."""
    script = pod["initContainers"][0]["args"][0]
    for inside, outside in (("/var/lib/compeft", "data"), ("/identity", "identity"), ("/page", "page")):
        script = script.replace(f"{inside}/", f"{folder}/{outside}/")
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-euc", script], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr


def test_the_first_container_makes_an_identity_once_and_takes_the_one_it_is_given(tmp_path: Path) -> None:
    pod = pod_of(rendered(CHART / "ci" / "one-values.yaml"))
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        (folder / "page").mkdir(parents=True)
        (folder / "page" / "password").write_text("a password of some length\n")
    (first / "data").mkdir()
    start(pod, first)
    data = first / "data" / "data"
    own_key(data)
    authority, key = (data / "ca" / "authority.pem").read_bytes(), (data / "aggregator.key").read_bytes()
    start(pod, first)
    assert (data / "ca" / "authority.pem").read_bytes() == authority, "a second start changes nothing"

    (second / "identity").mkdir()
    for name in ("aggregator.key", "ca/authority.pem", "ca/server.pem"):
        (second / "identity" / Path(name).name).write_bytes((data / name).read_bytes())
    (second / "data").mkdir()
    start(pod, second)
    taken = second / "data" / "data"
    assert (taken / "aggregator.key").read_bytes() == key
    assert (taken / "ca" / "authority.pem").read_bytes() == authority
    assert [oct(p.stat().st_mode & 0o777) for p in (taken / "aggregator.key", taken / "ca", taken)] == ["0o600", "0o700", "0o700"]
    shown = subprocess.run([BIN / "compeft", "ca", "show", "--data", taken, "--format", "json"], capture_output=True, check=True)
    assert json.loads(shown.stdout)["authority"]["fingerprint"]

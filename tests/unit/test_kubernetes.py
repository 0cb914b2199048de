"""The manifests of config/kubernetes: Kubernetes' own schemas, agentd's own reading of its part, and what must fit together."""

import tomllib
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from agentd.config import load
from agentd.intake.probe import probe_address
from agentd.paths import socket_path
from agentd.platforms import load as load_platform
from agentd.units import parse_duration, parse_size

FOLDER = Path(__file__).parents[2] / "config/kubernetes"
MANIFESTS = sorted(FOLDER.glob("*.yaml"))
FROM_FIELDS = {"metadata.name": "pod-7", "spec.nodeName": "node-1"}


def documents(path):
    return [each for each in yaml.safe_load_all(path.read_text()) if each is not None]


def of_kind(path, *kinds):
    [found] = [each for each in documents(path) if each["kind"] in kinds]
    return found


def pod(path):
    return of_kind(path, "Deployment", "DaemonSet")["spec"]["template"]["spec"]


def container(path, name):
    spec = pod(path)
    return next(each for each in [*spec.get("initContainers", []), *spec["containers"]] if each["name"] == name)


def environment(of):
    """A container's variables, as kubelet would set them."""
    return {
        each["name"]: each.get("value") or FROM_FIELDS[each["valueFrom"]["fieldRef"]["fieldPath"]]
        for each in of.get("env", [])
    }


def configured(path, tmp_path):
    """The configuration that agentd would read there."""
    file = tmp_path / "agentd.toml"
    file.write_text(of_kind(path, "ConfigMap")["data"]["agentd.toml"])
    env = environment(container(path, "agentd"))
    return load(file, env, 10001, lambda platform: load_platform(platform).calls).config, env


def ids(path):
    return path.stem


def test_there_are_both():
    """A sidecar beside an agent, and a daemon for a node."""
    assert [path.stem for path in MANIFESTS] == ["daemonset", "sidecar"]


@pytest.mark.parametrize("version", ["1.29", "1.37"])
@pytest.mark.parametrize("path", MANIFESTS, ids=ids)
def test_kubernetes_schemas_take_it(path, version):
    """By the oldest release in which native sidecars are on, and by a new one; unknown fields are refused."""
    for document in documents(path):
        kubernetes_validate.validate(document, version, strict=True)


def test_a_mistyped_field_would_be_found():
    """The check above is one: `restartPolicys` is refused."""
    deployment = of_kind(FOLDER / "sidecar.yaml", "Deployment")
    deployment["spec"]["template"]["spec"]["initContainers"][0]["restartPolicys"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, "1.37", strict=True)


@pytest.mark.parametrize("path", MANIFESTS, ids=ids)
def test_agentd_takes_its_configuration(path, tmp_path):
    """ConfigMap and variables together load, say where they come from, and their places are in volumes that are mounted writable."""
    config, env = configured(path, tmp_path)
    assert list(config.destinations) == ["agentos"]
    assert config.identity.service
    assert config.identity.host in FROM_FIELDS.values()
    assert socket_path(env, 10001) == config.listen.socket
    mounts = {each["mountPath"]: each for each in container(path, "agentd")["volumeMounts"]}
    for place in (config.listen.socket, config.spool.directory):
        assert "readOnly" not in mounts[str(Path(place).parent)]
    secret = config.destinations["agentos"].api_key
    assert secret.credential in of_kind(path, "Secret")["stringData"]
    assert mounts[env["CREDENTIALS_DIRECTORY"]]["readOnly"] is True
    assert env["AGENTD_CONFIG"] in mounts


@pytest.mark.parametrize("path", MANIFESTS, ids=ids)
def test_probes_ask_where_agentd_answers(path, tmp_path):
    """Port and paths are `listen.probe`'s; no probe asks after a platform."""
    config, _ = configured(path, tmp_path)
    agentd = container(path, "agentd")
    host, port = probe_address(config.listen.probe)
    assert (host, [each["containerPort"] for each in agentd["ports"] if each["name"] == "probe"]) == ("0.0.0.0", [port])
    asked = {name: agentd[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert {name: (each["path"], each["port"]) for name, each in asked.items()} == {
        "startupProbe": ("/readyz", "probe"), "readinessProbe": ("/readyz", "probe"), "livenessProbe": ("/healthz", "probe"),
    }  # fmt: skip


@pytest.mark.parametrize("path", MANIFESTS, ids=ids)
def test_a_stop_leaves_time_to_drain(path, tmp_path):
    """Promise 7: kubelet's grace is longer than `shutdown.drain_timeout`, with some seconds for the last commit."""
    config, _ = configured(path, tmp_path)
    assert pod(path)["terminationGracePeriodSeconds"] >= config.shutdown.drain_timeout + 5


@pytest.mark.parametrize("path", MANIFESTS, ids=ids)
def test_agentd_may_do_little(path):
    """Not root, nothing to write but its volumes, no capability, no way to more."""
    context = pod(path)["securityContext"] | container(path, "agentd")["securityContext"]
    assert context["runAsUser"] > 0
    assert context["runAsNonRoot"] is True
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    [secret] = [each["secret"] for each in pod(path)["volumes"] if "secret" in each]
    assert secret["defaultMode"] == 0o440


def test_the_sidecar_is_a_native_one(tmp_path):
    """It restarts by itself, begins before the agent and is another user; the agent may connect and can't put a socket in its place."""
    path = FOLDER / "sidecar.yaml"
    config, _ = configured(path, tmp_path)
    agentd, agent = container(path, "agentd"), container(path, "agent")
    assert agentd in pod(path)["initContainers"]
    assert agentd["restartPolicy"] == "Always"
    assert agentd["securityContext"]["runAsUser"] != agent["securityContext"]["runAsUser"]
    assert environment(agent)["AGENTD_SOCKET"] == config.listen.socket
    assert agent["volumeMounts"] == [{"name": "socket", "mountPath": "/run/agentd", "readOnly": True}]
    assert config.listen.mode == "0660"
    [state] = [each["emptyDir"] for each in pod(path)["volumes"] if each["name"] == "state"]
    limit = parse_size(state["sizeLimit"].replace("Gi", "GiB"))
    assert limit >= config.spool.max_bytes + config.journal.max_bytes + config.dead_letters.max_bytes


def test_the_daemonsets_agents_share_no_socket(tmp_path):
    """One folder of the host for one agent, mounted read-only by it; the configuration lets it speak for itself alone."""
    path = FOLDER / "daemonset.yaml"
    config, _ = configured(path, tmp_path)
    agent = of_kind(path, "Pod")["spec"]
    folders = {each["name"]: each["hostPath"]["path"] for each in pod(path)["volumes"] if "hostPath" in each}
    assert folders == {"socket": "/run/agentd-billing", "state": "/var/lib/agentd-billing"}
    assert [each["hostPath"]["path"] for each in agent["volumes"]] == [folders["socket"]]
    [mount] = agent["containers"][0]["volumeMounts"]
    assert mount["readOnly"] is True
    assert (
        environment(agent["containers"][0])["AGENTD_SOCKET"]
        == f"{mount['mountPath']}/agentd.sock"
        == config.listen.socket
    )
    destination = config.destinations["agentos"]
    assert list(destination.agents) == [destination.agent_id]
    assert of_kind(path, "DaemonSet")["spec"]["updateStrategy"]["rollingUpdate"]["maxSurge"] == 0


@pytest.mark.parametrize("path", MANIFESTS, ids=ids)
def test_the_embedded_toml_is_plain(path):
    """What stands in the ConfigMap is a file as one would write it: no secret, durations with units."""
    table = tomllib.loads(of_kind(path, "ConfigMap")["data"]["agentd.toml"])
    assert parse_duration(table["shutdown"]["drain_timeout"]) > 0
    assert table["destinations"]["agentos"]["api_key"] == {"credential": "agentos"}

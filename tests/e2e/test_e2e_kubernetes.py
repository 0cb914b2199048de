"""What config/kubernetes says, done by hand: its users, groups, volumes and read-only root, in a mount namespace without a cluster."""

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from harness import clean_environment, others_must_read_agentd, wait_for

MANIFESTS = Path(__file__).parents[2] / "config/kubernetes"
# Becomes a container's user after everything is imported: the interpreter need not lie where that user may read
_CONTAINER = """
import ctypes, importlib, json, os, pkgutil, sys
import agentd
for module in pkgutil.walk_packages(agentd.__path__, "agentd."):
    if not module.name.endswith(("__main__", "recorder")) and ".sandbox" not in module.name:
        importlib.import_module(module.name)
import encodings.idna
asked = json.loads(sys.argv[1])
os.environ.clear(); os.environ.update(asked["env"]); os.chdir("/")
os.setgroups(asked["groups"]); os.setresgid(*[asked["gid"]] * 3); os.setresuid(*[asked["uid"]] * 3)
assert ctypes.CDLL(None).prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS: allowPrivilegeEscalation: false
try:
    open("/tmp/agentd-is-the-root-read-only", "w")
except OSError:
    pass
else:
    raise SystemExit("the root can be written to")
if asked["script"]:
    exec(asked["script"])
else:
    sys.argv = asked["command"]
    agentd.cli.main(prog_name="agentd")
"""
_AGENT = """
from agentd import Client
import os
try:
    os.unlink(os.environ["AGENTD_SOCKET"])
except OSError:
    pass
else:
    raise SystemExit("the agent could take the socket away")
with Client() as client, client.start_run(external_run_id="r-pod") as run:
    run.emit("said", {"by": "the pod"})
    flushed = client.flush(10)
    assert flushed, (flushed, client.stats())
"""

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare"),
    reason="needs root and unshare(1) for users and mounts of containers",
)


def pod_of(name, kind):
    documents = yaml.safe_load_all((MANIFESTS / name).read_text())
    return next(each for each in documents if each and each["kind"] == kind)["spec"]["template"]["spec"]


class Node:
    """A pod's volumes as kubelet makes them, and its containers as processes; the manifest's paths lie below `top`."""

    def __init__(self, world, pod):
        self.world, self.pod = world, pod
        self.top = world.folder / "pod"
        world.folder.chmod(0o755)
        self.top.mkdir(0o755)
        group = pod["securityContext"]["fsGroup"]
        self.volumes = {}
        for volume in pod["volumes"]:
            place = self.top / "volumes/kubernetes.io~empty-dir" / volume["name"]
            place.mkdir(parents=True)
            if "emptyDir" in volume:
                os.chown(place, 0, group)
                place.chmod(0o2777)
            self.volumes[volume["name"]] = place
        self._write("credentials", "agentos", "aos_agent_of_the_pod", 0o440, group)
        config = yaml.safe_load_all((MANIFESTS / "sidecar.yaml").read_text())
        text = next(each for each in config if each["kind"] == "ConfigMap")["data"]["agentd.toml"]
        self._write("config", "agentd.toml", self.below(text, "agentd"), 0o644, 0)

    def _write(self, volume, name, text, mode, group):
        path = self.volumes[volume] / name
        path.write_text(text)
        os.chown(path, 0, group)
        path.chmod(mode)

    def below(self, text, container):
        """A text with the manifest's paths as that container has them here."""
        for path in ("/run/agentd", "/var/lib/agentd", "/etc/agentd"):
            text = text.replace(path, f"{self.top}/{container}{path}")
        return text

    @contextmanager
    def container(self, name, script=None, **more):
        """A container of the pod: its own mounts, root read-only, its user and groups. Its process."""
        found = next(each for each in [*self.pod["initContainers"], *self.pod["containers"]] if each["name"] == name)
        lines = ["set -e"]
        for mount in found["volumeMounts"]:
            source = self.volumes[mount["name"]] / mount.get("subPath", "")
            place = Path(self.below(mount["mountPath"], name))
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch() if source.is_file() else place.mkdir(exist_ok=True)
            lines.append(f"mount --bind {source} {place}")
            if mount.get("readOnly"):
                lines.append(f"mount -o remount,bind,ro {place}")
        lines += ["mount -o remount,bind,ro /", 'exec "$@"']
        env = {each["name"]: self.below(each.get("value", "pod-7"), name) for each in found["env"]}
        context = found["securityContext"]
        asked = {
            "env": clean_environment(Path("/"), **(env | more)), "uid": context["runAsUser"], "gid": context["runAsGroup"],
            "groups": [self.pod["securityContext"]["fsGroup"]], "command": found["command"], "script": script,
        }  # fmt: skip
        process = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", "\n".join(lines), "-", sys.executable, "-c", _CONTAINER, json.dumps(asked)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_the_sidecars_manifest_works(world):
    """An agent under its own user hands a record through the read-only mount; agentd, with nothing to write but its volumes, delivers it."""
    others_must_read_agentd()
    node = Node(world, pod_of("sidecar.yaml", "Deployment"))
    port = free_port()
    more = {
        "AGENTD_LISTEN__PROBE": f"127.0.0.1:{port}",
        "AGENTD_DESTINATIONS__AGENTOS__BASE_URL": f"{world.platform.url}/agentos",
    }
    with node.container("agentd", **more) as agentd:

        def is_ready():
            assert agentd.poll() is None, agentd.stdout.read()
            try:
                return urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5).status == 200
            except OSError:
                return False

        wait_for(is_ready, 30)
        with node.container("agent", script=_AGENT) as agent:
            out, _ = agent.communicate(timeout=40)
            assert agent.returncode == 0, out
        agentd.terminate()
        out, _ = agentd.communicate(timeout=30)
        assert agentd.returncode == 0, out
    run = world.platform.run("r-pod")
    assert run["status"] == "completed"
    assert run["input"]["agentd_identity"] == {"host": "pod-7", "service": "billing-agent"}
    state = node.volumes["state"] / "state"
    assert (state.stat().st_uid, state.stat().st_mode & 0o777) == (10001, 0o700)


def test_the_folders_of_the_daemonset_are_handed_over(world):
    """Root with two capabilities gives both folders to agentd, also a second time, when they are agentd's already."""
    if not shutil.which("setpriv"):
        pytest.skip("needs setpriv(1)")
    [folders] = [each for each in pod_of("daemonset.yaml", "DaemonSet")["initContainers"] if each["name"] == "folders"]
    assert folders["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["CHOWN", "FOWNER"]}
    places = {mount["mountPath"]: world.folder / mount["name"] for mount in folders["volumeMounts"]}
    command = list(folders["command"])
    for path, place in places.items():
        place.mkdir(0o755)
        command[-1] = command[-1].replace(path, str(place))
    kept = "-all,+chown,+fowner"
    for _ in range(2):
        subprocess.run(["setpriv", "--bounding-set", kept, "--no-new-privs", *command], check=True)
    found = [(each.stat().st_uid, each.stat().st_gid, each.stat().st_mode & 0o777) for each in places.values()]
    assert found == [(10001, 10000, 0o755), (10001, 10000, 0o700)]

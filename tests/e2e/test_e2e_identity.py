"""`[identity]` over restarts: what was sealed under one identity is repeated under it (promise 4), new batches bear the new one."""

import json
import signal

from harness import Frames, http_call, wait_for

from agentd import __version__

FACES = ("agentos", "ascend")


def tell(world, daemon, *records):
    with Frames(daemon) as client:
        assert client.deliver(world.ledger, list(records)) == {}


def inputs(world):
    return {run: world.platform.run(run)["input"] for run in ("r-1", "r-2")}


def test_a_sealed_batch_keeps_its_identity_over_a_restart(world):
    """Promise 4: killed between two tries and started as somebody else, agentd sends the same bytes; the next run bears the new name."""
    daemon = world.daemon(identity={"service": "before", "host": "h1"}, retry={"initial": "50ms", "max": "200ms"})
    world.platform.faults("cut,path=/api/ingest/v1/run/start")
    tell(world, daemon, world.ledger.start("r-1", input={"n": 1}), world.ledger.event("r-1"))
    wait_for(lambda: world.platform.repeats(2), 15, "it was not tried twice")
    daemon.kill()
    daemon.configure(identity={"service": "after", "version": "2", "host": "h2"})
    daemon.start()
    tell(world, daemon, world.ledger.start("r-2", input={"n": 2}))
    world.platform.faults()
    daemon.drained()
    found = inputs(world)
    assert found["r-1"] == {"n": 1, "agentd_identity": {"host": "h1", "service": "before"}}
    assert found["r-2"] == {"n": 2, "agentd_identity": {"host": "h2", "service": "after", "version": "2"}}
    assert all(repeat.same_body for repeat in world.platform.repeats(2).values())


def test_a_reload_changes_it_for_what_is_sealed_from_then_on(world):
    """No restart, no batch under two identities: what waits sealed goes as it was, the next bears the new one."""
    daemon = world.daemon(identity={"service": "before", "host": "h"}, retry={"initial": "50ms", "max": "200ms"})
    world.platform.faults("cut,path=/api/ingest/v1/run/start")
    tell(world, daemon, world.ledger.start("r-1"))
    wait_for(lambda: world.platform.repeats(2), 15, "it was not tried twice")
    daemon.configure(identity={"service": "after", "host": "h"})
    daemon.signal(signal.SIGHUP)
    wait_for(lambda: daemon.entries("reloaded"), 10)
    world.platform.faults()
    tell(world, daemon, world.ledger.start("r-2"))
    daemon.drained()
    services = {run: given["agentd_identity"]["service"] for run, given in inputs(world).items()}
    assert services == {"r-1": "before", "r-2": "after"}
    assert all(repeat.same_body for repeat in world.platform.repeats(2).values())


def test_config_says_where_each_part_comes_from(world):
    """`agentd config` names OpenTelemetry's variable, the file and the machine."""
    path = world.folder / "identity.toml"
    path.write_text('[identity]\nenvironment = "prod"\n')
    done = world.cli("--config", str(path), "config", OTEL_SERVICE_NAME="billing", AGENTOS_API_KEY="k")
    lines = {
        line.split(" = ")[0]: line
        for line in done.stdout.partition("[identity]")[2].partition("\n\n")[0].splitlines()
        if line
    }
    assert '"billing"' in lines["service"]
    assert lines["service"].endswith("environment: OTEL_SERVICE_NAME")
    assert lines["environment"].endswith(f"file: {path}")
    assert lines["host"].endswith("default for this user")
    assert json.loads(world.cli("--config", str(path), "config", "--json").stdout)["identity"]["service"] == ""


def test_every_request_bears_it_on_the_wire(world):
    """Records, gates and the read that guards one: `User-Agent`; to ASCEND `X-Environment` too, and the action's context."""
    seen = []
    for name, face in world.platform.faces.items():
        answer = face.answer
        face.answer = lambda call, name=name, answer=answer: (seen.append((name, call)), answer(call))[1]
    ascend = {
        "platform": "ascend", "agent_id": "bot", "base_url": f"{world.platform.url}/ascend", "api_key": {"env": "KEY"},
    }  # fmt: skip
    daemon = world.daemon(
        identity={"service": "billing", "environment": "prod", "host": "h"}, **{"destinations.ascend": ascend}
    )
    tell(world, daemon, world.ledger.start("r-1"), world.ledger.event("r-1"))
    asked = {"gate": "action", "to": "ascend", "request": {"action_type": "query", "resource": "db"}}
    status, verdict = http_call(daemon.socket, "POST", "/v1/gate", json.dumps(asked).encode())
    assert (status, verdict["verdict"]) == (200, "allow")
    daemon.drained()
    headers = [{name.lower(): value for name, value in call.headers.items()} for _, call in seen]
    said = {each["user-agent"] for each in headers}
    assert said == {f"agentd/{__version__} (service=billing; environment=prod; host=h)"}
    environments = {(name, each.get("x-environment")) for (name, _), each in zip(seen, headers, strict=True)}
    assert environments == {("agentos", None), ("ascend", "prod")}
    [submit] = [json.loads(call.body) for name, call in seen if call.path.endswith("/submit")]
    assert submit["context"]["agentd_identity"] == {"host": "h", "service": "billing", "environment": "prod"}

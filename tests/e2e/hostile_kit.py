"""A stage for platforms that behave as they like: one daemon, one sandbox, and a script of records and gates for each face.

A round throws switches and faults, plays a face's script, waits until nothing moves any more, puts everything back, and says in
one word a step what came of it:

    gates      allow, deny, review, pending, unavailable; `pending>allow`: after a person had said yes
    records    delivered, dead:CAUSE; `kept>delivered`: only once the platform was itself again

What the platform holds is asked of the sandbox, never of agentd.
"""

import contextlib
import itertools
import json
import time
import urllib.error
import uuid
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from harness import AGENT, KEY, Frames, World, http_call, wait_for
from hostile_scripts import AFTER_END, IDS, SCRIPTS, Part, call, rulebook

from agentd.sandbox.faults import Fault

FACES = ("agentos", "aegis", "ascend", "decidefyi", "decisionos")
SANDBOX_AGENT = str(uuid.uuid5(uuid.NAMESPACE_URL, "agentd:sandbox"))  # the one that the emulated workspace has
PERSON = {"ascend": "approve", "aegis": "approve", "agentos": "answer"}  # what somebody says to what waits
# Waits that fit a test; keys that fit the daemon's.
CALM = (
    "aegis.decision_delay=0",
    "agentos.human_input=answer",
    "agentos.human_input_poll=100ms",
    f"ascend.signing_secret={KEY}",
)
PATIENCE_S = 5.0  # the deadline of what will be decided
HASTE_S = {"aegis": 0.6}  # and of what won't; an intent is looked at first after half a second
LEAST_HASTE_S = 0.15
_MINUTE_S = 60.0
_ROWS = 40  # a round makes fewer
_TOO_MANY = 429


class Round(NamedTuple):
    """What is to be played. `expected` says of each step what should come of it; patience alone depends on it."""

    faces: tuple[str, ...]
    expected: Mapping[str, str]
    switches: tuple[str, ...] = ()
    faults: tuple[str | Fault, ...] = ()
    once: str = ""  # a fault that meets the first try of every call, one call after the other
    at: tuple[str, ...] = ()  # the steps that it meets, instead of all
    restart: bool = False  # the platform asked for a rest that a test does not sit through
    person: bool = True  # whether somebody says yes to what waits
    used_up: str = ""  # a path that is called until the limit of the minute is reached


class Stage:
    """One world for all rounds."""

    def __init__(self) -> None:
        self.world = World(FACES)
        self._pool = ThreadPoolExecutor(16)
        self._rounds = 0
        agents = {"agentos": AGENT, "aegis": AGENT, "ascend": "billing-bot", "decisionos": SANDBOX_AGENT}
        destinations: dict[str, dict[str, Any]] = {
            f"destinations.{name}": {
                "platform": name, "base_url": f"{self.world.platform.url}/{name}", "api_key": {"env": "KEY"},
                "timeout": "300ms", **({"agent_id": agents[name]} if name in agents else {}),
            }
            for name in FACES
        }  # fmt: skip
        destinations["destinations.ascend"]["signing_secret"] = {"env": "KEY"}
        common = {
            "intake": {"reference_wait": "50ms"},
            "batch": {"max_interval": "10ms"},
            "retry": {"initial": "20ms", "max": "250ms"},
        }
        self.daemon = self.world.daemon(**common, **destinations)
        self.daemon.expected = {"paused"}
        # somebody has decided already this month: a quota of one is used up, whichever round comes first
        made = {"agentId": SANDBOX_AGENT, "context": "before", "requestId": "before"}
        call(self.world, "/decisionos/api/public/v1/decisions", made)

    def __repr__(self) -> str:
        return f"<Stage after {self._rounds} rounds, {self.daemon}>"

    @property
    def sandbox(self) -> Any:
        return self.world.platform.sandbox

    def rows(self, face: str) -> list[dict[str, Any]]:
        """The newest that a platform holds, whole."""

        def look() -> list[dict[str, Any]]:
            of = self.world.platform.faces[face]
            return [{**row, **of.run(row["id"])} for row in of.runs(_ROWS)]

        return self.world.platform.ask(look)

    # -- the platforms' moods --------------------------------------------------------------------------------------------

    def throw(self, *switches: str) -> None:
        def all_of_them() -> None:
            for switch in switches:
                face, _, rest = switch.partition(".")
                name, _, value = rest.partition("=")
                self.sandbox._emulation.throw_one(face, name, value)

        self.world.platform.ask(all_of_them)

    def calm(self) -> None:
        """Every switch where it stands by default, no fault, and nothing that still hangs."""

        def all_of_them() -> None:
            for face in self.world.platform.faces.values():
                face.switches = type(face.switches)()
            self.sandbox._emulation.wall = time.time

        hung = any(fault.get("hang") for fault in self.world.platform.ask(self.sandbox.faults.listing))
        self.world.platform.faults()
        self.world.platform.ask(all_of_them)
        self.throw(*CALM)
        if hung:
            self.world.platform.down()
            self.world.platform.up()

    def _use_up(self, path: str) -> None:
        """The platform's minute has just begun, and what it allows for it is used up."""
        shift = _MINUTE_S - time.time() % _MINUTE_S
        self.world.platform.ask(lambda: setattr(self.sandbox._emulation, "wall", lambda: time.time() + shift))
        with contextlib.suppress(urllib.error.HTTPError):
            call(self.world, path)

    # -- a round -----------------------------------------------------------------------------------------------------------

    def play(self, game: Round) -> dict[str, str]:
        """What came of each step. Raises AssertionError where agentd and the platform contradict one another."""
        self._rounds += 1
        run = f"r{self._rounds}"
        self.calm()
        parts = {face: SCRIPTS[face](run, self.world) for face in game.faces}
        self.throw(*game.switches)
        if game.used_up:
            self._use_up(game.used_up)
        self.world.platform.faults(*game.faults)
        played = Played(self, game, run, parts)
        played.hand_in({"start": [self.world.ledger.start(run)]})
        played.hand_in({name: of for name, of in played.agentos.items() if name not in AFTER_END})
        played.ask_all()
        played.hand_in(played.elsewhere)
        played.hand_in(
            {name: of for name, of in played.agentos.items() if name in AFTER_END}
            or {"end": [self.world.ledger.end(run)]}
        )
        played.settle()
        self.calm()
        if game.restart:
            assert self.daemon.stop() == 0, self.daemon.tail()
            self.daemon.start()
        played.finish_gates()
        http_call(self.daemon.socket, "POST", "/v1/flush?until=stored&timeout=5")
        for name in FACES:
            self.daemon.drained(destination=name)
        found = played.outcomes()
        self._close_circuits()
        return found

    def _close_circuits(self) -> None:
        """What was away is asked again until it counts as there."""
        probes = {
            "agentos": ("invoke", {"input": {}}), "aegis": ("intent", {"amount": 1, "currency": "USD", "reason": "probe"}),
            "ascend": ("action", {"action_type": "query", "resource": "r"}), "decidefyi": ("decide", rulebook(discount=1)),
            "decisionos": ("decision", {"context": "probe"}),
        }  # fmt: skip

        def closed() -> bool:
            found = self.daemon.status()["destinations"]
            away = [name for name in FACES if found[name]["gates"]["circuit"] == "open"]
            for name in away:
                self.post_gate({"gate": probes[name][0], "request": probes[name][1], "deadline": 1.0})
            return not away

        wait_for(closed, 15, self.daemon.status)

    def post_gate(self, body: dict[str, Any]) -> dict[str, Any]:
        status, answer = http_call(self.daemon.socket, "POST", "/v1/gate", json.dumps(body).encode())
        assert status == 200, answer
        return answer

    def look(self, gate_id: str, wait_s: float) -> dict[str, Any]:
        status, answer = http_call(self.daemon.socket, "GET", f"/v1/gates/{gate_id}?wait={wait_s}")
        assert status == 200, answer
        return answer

    def close(self) -> None:
        self._pool.shutdown()
        self.world.close()


class Played:
    """A round under way."""

    def __init__(self, stage: Stage, game: Round, run: str, parts: dict[str, Part]) -> None:
        self.stage = stage
        self.game = game
        self.run = run
        self.parts = parts
        self.gates = {name: step for part in parts.values() for name, step in part.gates.items()}
        self.agentos = parts["agentos"].records if "agentos" in parts else {}
        self.elsewhere = {n: of for face, part in parts.items() if face != "agentos" for n, of in part.records.items()}
        self.latest = next(iter(stage.world.platform.requests()), None)  # that came before this round
        self.held: set[str] = set()
        self.heard: dict[str, list[dict[str, Any]]] = {}
        self.records: dict[str, list[dict[str, Any]]] = {}

    # -- records -----------------------------------------------------------------------------------------------------------

    def hand_in(self, records: dict[str, list[dict[str, Any]]]) -> None:
        for name, of in records.items():
            named = [record | {"id": str(uuid.uuid4())} for record in of]
            self.records[name] = named
            if self.game.once:
                self._once(name)
            with Frames(self.stage.daemon) as client:
                assert client.ask(named)["accepted"] == len(named)
            self.stage.world.ledger.took(record for record in named if record["kind"] != "run.fail")
            if self.game.once:
                for face in FACES:
                    self.stage.daemon.drained(destination=face)

    def _once(self, name: str, path: str = "") -> None:
        met = not self.game.at or name in self.game.at
        self.stage.world.platform.faults(*[f"{self.game.once}{path},count=1"] * met)

    def settle(self) -> None:
        """Wait until all is delivered or dead, or where something is kept back until the platform has refused it."""
        daemon = self.stage.daemon
        kept = any(word.startswith("kept") for word in self.game.expected.values())
        faces = [face for face in self.game.faces if self.parts[face].records]

        def stuck() -> bool:
            books = [daemon.books(face) for face in faces]
            return self._tried() >= set(faces) and all(of["queued"] and of["reason"] for of in books)

        if kept:
            wait_for(stuck, 10, daemon.status)
            self.held = {name for name in self.records if not self._stored(name) and not self._dead(name)}
        else:
            for face in FACES:
                daemon.drained(10, destination=face)

    def _tried(self) -> set[str]:
        """The platforms that were sent a record in this round."""
        return {line.face for line in self._lines() if line.method == "POST" and not line.path.startswith(_OF_GATES)}

    def _lines(self) -> list[Any]:
        """What the platforms were asked in this round."""
        of_all = self.stage.world.platform.requests()
        return list(itertools.takewhile(lambda line: line is not self.latest, of_all))

    def _dead(self, name: str) -> list[str]:
        ids = {record["id"] for record in self.records[name]}
        return [letter["cause"] for letter in self.stage.daemon.dead_letters() if letter["id"] in ids]

    def _stored(self, name: str) -> int:
        """How often the platform holds these records: more often than there are only where it keeps no key."""
        return sum(self._times(name, record) for record in self.records[name])

    def _times(self, name: str, record: dict[str, Any]) -> int:
        look = self.stage.world.platform
        match record["kind"]:
            case "run.start" | "event" | "span" | "task" | "run.complete" | "run.fail":
                return self._times_in_run(record)
            case "decision":
                return sum(row["sent"]["requestId"] == record["id"] for row in self.stage.rows("decisionos"))
            case "snapshot":
                sent = [e for row in self.stage.rows("decisionos") for e in row["events"]]
                return sum(event["requestId"] == record["id"] for event in sent)
            case "execution" | "outcome" | "crm_sync":
                sent = [e for row in self.stage.rows("decidefyi") for e in row["events"]]
                return sum(event["idempotency_key"] == record["id"] for event in sent)
            case "heartbeat":
                return (look.run(f"agent:{record['agent_id']}") or {"heartbeats": 0})["heartbeats"]
            case _:
                ends = {"action.completed": "completed", "action.failed": "failed"}[record["kind"]]
                held = [row for row in self.stage.rows("ascend") if row["id"] == self._platform_id(record["action_id"])]
                return sum(event["what"] == ends for row in held for event in row["events"])

    def _platform_id(self, local_id: str) -> str | None:
        return next((h[-1]["platform_id"] for h in self.heard.values() if h[-1]["id"] == local_id), None)

    def _times_in_run(self, record: dict[str, Any]) -> int:
        found = self.stage.world.platform.run(self.run)
        if found is None:
            return 0
        match record["kind"]:
            case "run.start":
                return 1
            case "event" | "span":
                times = [event["payload"].get("agentd_id") for event in found["events"]].count(record["id"])
                return min(times, 1) if self.game.faults or self.game.once else times  # AgentOS keeps no key of events
            case "task":
                same = [task for task in found["tasks"] if task["id"] == record["task_id"]]
                return len(same) if record["status"] == "running" else sum(t["status"] == "completed" for t in same)
            case kind:
                return (kind.removeprefix("run.") in found["terminals"]) * 1

    # -- gates ---------------------------------------------------------------------------------------------------------------

    def ask_all(self) -> None:
        """All at once; one after the other where each is to lose its first answer."""
        names = list(self.gates)
        if self.game.once:
            for name in names:
                self._once(name, ",path=/api/v1/actions/submit" if self.gates[name].gate == "action" else "")
                self.heard[name] = [self._ask(name)]
        else:
            for name, answer in zip(names, self.stage._pool.map(self._ask, names), strict=True):
                self.heard[name] = [answer]
        for name in names:
            self.check(name)
        waiting = [name for name in names if not self.heard[name][-1]["final"]]
        for name in waiting if self.game.person else ():
            self.say_yes(name)
        self._hear_again(
            [name for name in waiting if self.gates[name].gate != "invoke"],
            LEAST_HASTE_S if self.game.faults else PATIENCE_S,
        )

    def _ask(self, name: str) -> dict[str, Any]:
        step, word = self.gates[name], self.game.expected[name]
        request = step.request | ({IDS[step.gate]: step.local_id} if step.local_id else {})
        hasty = ">" in word or word.startswith(("pending", "unavailable"))
        deadline = HASTE_S.get(step.face, LEAST_HASTE_S) if hasty else PATIENCE_S
        return self.stage.post_gate({"gate": step.gate, "request": request, "run_id": self.run, "deadline": deadline})

    def say_yes(self, name: str) -> None:
        """A person decides at the platform."""
        step = self.gates[name]
        for row in self.held_of(name):
            if step.face in PERSON and step.gate != "invoke":
                self.stage.world.platform.ask(
                    lambda row=row: self.stage.sandbox.act(step.face, row["id"], PERSON[step.face])
                )

    def _hear_again(self, names: list[str], wait_s: float) -> None:
        ids = [self.heard[name][-1]["gate_id"] for name in names]
        for name, found in zip(names, self.stage._pool.map(lambda i: self.stage.look(i, wait_s), ids), strict=True):
            self.heard[name].append(found)
            self.check(name)

    def finish_gates(self) -> None:
        """What could not be heard under the round's faults is heard after them."""
        names = [n for n, of in self.heard.items() if not of[-1]["final"] and self.gates[n].gate != "invoke"]
        self._hear_again(names, PATIENCE_S)

    def held_of(self, name: str) -> list[dict[str, Any]]:
        """What the platform holds of an asking: a row each, with `word`, its own word for the decision."""
        step, gate_id = self.gates[name], self.heard[name][0]["gate_id"]
        rows = self.stage.rows(step.face)
        match step.gate:
            case "action":
                found = [r for r in rows if r.get("sent", {}).get("context", {}).get("agentd_gate_id") == gate_id]
                return [row | {"word": row["status"]} for row in found]
            case "intent":
                found = [row for row in rows if row["sent"]["metadata"]["agentd_gate_id"] == gate_id]
                return [row | {"word": row["status"]} for row in found]
            case "decide":
                found = [row for row in rows if row["idempotency_key"] == gate_id]
                return [row | {"word": f"{row['verdict']} {row['mode']}"} for row in found]
            case "decision":
                found = [row for row in rows if row["sent"]["requestId"] == gate_id]
                return [row | {"word": f"ok {row['policy_eval']['ok']}"} for row in found]
            case "human_input":
                found = [of for row in rows for of in row["waited_for"] if of["what"] == step.request["prompt"]]
                return [of | {"word": of["status"]} for of in found]
            case _:
                found = [row for row in rows if row["input"] == step.request["input"]]
                return [row | {"word": row["waits_for"] or row["status"]} for row in found]

    def check(self, name: str) -> None:
        """Never a yes that the platform has not plainly said, never a no that it has not, and nothing asked twice."""
        said, held = self.heard[name][-1], self.held_of(name)
        words = [row["word"] for row in held]
        assert len(held) <= 1, f"{name}: {len(held)} at the platform: {said}"
        assert said["proceed"] == (said["verdict"] == "allow" and said["final"]), said
        plain = {"allow": YES, "deny": NO, "pending": words}
        if said["verdict"] in plain:
            assert words, f"{name}: the platform holds nothing: {said}"
            assert words[0] in plain[said["verdict"]], f"{name}: the platform holds {words}: {said}"
        assert said["final"] == (said["verdict"] != "pending"), said
        if said["platform_id"] is not None and held:
            assert said["platform_id"] in (held[0]["id"], held[0].get("run_id")), f"{name}: {said}"

    # -- the end ---------------------------------------------------------------------------------------------------------------

    def outcomes(self) -> dict[str, str]:
        """Each step in a word."""
        found = {name: ">".join(dict.fromkeys(h["verdict"] for h in of)) for name, of in self.heard.items()}
        found |= {n: "unavailable(made)" for n in found if found[n] == "unavailable" and self.held_of(n)}
        for name in self.records:
            if name in ("start", "end") and "agentos" not in self.game.faces:
                assert self._stored(name) == 1, name
                continue
            found[name] = self._outcome(name)
        self._check_events()
        self._check_sent()
        return found

    def _outcome(self, name: str) -> str:
        dead, stored, count = self._dead(name), self._stored(name), len(self.records[name])
        if dead:
            assert len(dead) == count, f"{name}: {dead}"
            word = f"dead:{dead[0]}"
            if stored:
                assert dead[0] == "outcome_unknown", f"{name} is dead, {dead}, and stored"
                word += "(stored)"
        else:
            assert stored >= count, f"{name}: {stored} of {count} stored"
            word = "delivered" if stored == count else "delivered again"
        by_itself = dead and dead[0] in _OUR_OWN
        return f"kept>{word}" if name in self.held and not by_itself else word

    def _check_events(self) -> None:
        """Each gate's last word is an event of its run."""
        run = self.stage.world.platform.run(self.run)
        assert run is not None
        dead = {letter["id"] for letter in self.stage.daemon.dead_letters() if letter["kind"] == "event"}
        last = {
            e["payload"]["gate_id"]: e["payload"]["verdict"] for e in run["events"] if e["type"].startswith("gate.")
        }
        for name, of in self.heard.items():
            if not dead:
                assert last.get(of[0]["gate_id"]) == of[-1]["verdict"], (
                    f"{name}: {last.get(of[0]['gate_id'])}, {of[-1]}"
                )

    def _check_sent(self) -> None:
        """Where the platform keeps no key a question has left once, unless it was turned away for a while (429)."""
        answers = Counter(line.idempotency_key for line in self._lines() if line.status != _TOO_MANY)
        for name, of in self.heard.items():
            if self.gates[name].gate in ("action", "intent", "invoke", "human_input"):
                assert answers[of[0]["gate_id"]] <= 1, f"{name} was sent {answers[of[0]['gate_id']]} times"


_OF_GATES = ("/api/v1/actions/submit", "/v1/intents", "/api/decide", "/api/ingest/v1/human-input", "/api/v1/agents/")
_OUR_OWN = ("gate_unavailable", "introducer_dead")  # agentd sees that without the platform, and when is no matter
YES = ("approved", "yes rulebook", "ok True", "answered", "completed")
NO = ("denied", "no rulebook", "no single", "ok False", "timeout", "cancelled")

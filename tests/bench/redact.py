"""What redaction costs: µs per event of about 400 bytes, in frames of 100 and alone, with and without a hit.

    .venv/bin/python tests/bench/redact.py [--profile]

The best of several rounds; the machine's noise is in all the others. `encode` is what admission pays for the same records anyway.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import random
import string
import time
from collections.abc import Callable
from uuid import UUID

from agentd.redact.build import build_redactor
from agentd.redact.engine import Redactor
from agentd.sections import Redact
from agentd.wire import decode_record, encode

WORDS = [
    "the",
    "agent",
    "fetched",
    "invoice",
    "data",
    "from",
    "store",
    "and",
    "classified",
    "each",
    "line",
    "item",
    "as",
    "utility",
    "expense",
    "with",
    "confidence",
    "of",
    "manager",
]
RUN = UUID(int=random.Random(3).getrandbits(128), version=4)
ROUNDS = 7


def events(count: int, text: Callable[[random.Random], str]) -> list[bytes]:
    """Encoded events as an LLM agent writes them."""
    rng = random.Random(5)
    bodies = []
    for number in range(count):
        payload = {
            "step": "fetch", "rows": number, "model": "claude-sonnet-4-6", "usage": {"input_tokens": 812, "output_tokens": 77},
            "text": text(rng),
        }  # fmt: skip
        record = {
            "kind": "event", "id": str(UUID(int=rng.getrandbits(128), version=4)), "run_id": str(RUN), "type": "llm.response",
            "payload": payload, "occurred_at": "2026-11-22T04:48:35.834518Z",
        }  # fmt: skip
        bodies.append(encode(decode_record(json.dumps(record, separators=(",", ":")))))
    return bodies


def prose(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=18))


def talk_of_secrets(rng: random.Random) -> str:
    return "the password must not be empty, see https://example.test/help " + " ".join(rng.choices(WORDS, k=8))


def with_key(rng: random.Random) -> str:
    return (
        "it used s"
        "k-ant-"
        + "".join(rng.choices(string.ascii_letters + string.digits, k=60))
        + " "
        + " ".join(rng.choices(WORDS, k=6))
    )


def measure(work: Callable[[], object], events_of_it: int) -> float:
    """µs per event."""
    best = float("inf")
    for _ in range(ROUNDS):
        begun, times = time.perf_counter(), 0
        while time.perf_counter() - begun < 0.05:
            work()
            times += 1
        best = min(best, (time.perf_counter() - begun) / times / events_of_it * 1e6)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", action="store_true", help="where the time of a hit goes")
    options = parser.parse_args()
    redactor: Redactor = build_redactor(Redact(), {})
    clean, near, hits = events(100, prose), events(100, talk_of_secrets), events(100, with_key)
    one_in_a_hundred = [*clean[:99], hits[0]]
    size = sum(map(len, clean)) / len(clean)
    print(f"{redactor!r}, events of {size:.0f} bytes")
    records = [decode_record(body) for body in clean]
    print(f"{'encode, for comparison':44} {measure(lambda: [encode(record) for record in records], 100):8.2f} µs/event")
    for name, frame in (
        ("no hit, frames of 100", clean), ("no hit, alone", clean[:1]), ("no hit, prose about secrets, frames of 100", near),
        ("1 of 100 has a hit, frames of 100", one_in_a_hundred), ("all have a hit, frames of 100", hits), ("a hit, alone", hits[:1]),
    ):  # fmt: skip
        print(f"{name:44} {measure(lambda frame=frame: redactor.records(frame), len(frame)):8.2f} µs/event")
    if options.profile:
        with cProfile.Profile() as profile:
            for _ in range(20):
                redactor.records(hits)
        profile.print_stats("tottime")


if __name__ == "__main__":
    main()

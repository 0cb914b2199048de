"""Turns on the event loop, by user."""

from __future__ import annotations

from agentd.intake.rota import Rota

A, B, C = 1, 2, 3


class Loop:
    """The loop's turns, one at a time, and work that takes as long as it says."""

    def __init__(self, quantum_s=5.0, shared_s=1000.0):
        self.now, self.calls, self.log = 0.0, [], []
        self.rota = Rota(lambda: self.now, self.calls.append, quantum_s, shared_s)
        self.rota.spend(B, 0.0)  # several are there
        self.rota.spend(A, 0.0)
        self.now = 0.0

    def turn(self):
        calls, self.calls[:] = list(self.calls), []
        for call in calls:
            call()

    def work(self, who, name, cost, again=0):
        """Work that is done as soon as it is its user's turn, `again` so many times."""

        def go():
            if not self.rota.has_turn(who):
                self.rota.wait(who, go)
                return
            self.log.append(name)
            self.now += cost
            self.rota.spend(who, cost)
            nonlocal again
            if again:
                again -= 1
                self.rota.wait(who, go)

        return go


def test_alone_a_user_has_every_turn():
    """Nobody waits: what he had in the last turn is nobody's."""
    loop = Loop()
    loop.work(A, "a", 100.0, again=3)()
    for _ in range(3):
        loop.turn()
    assert loop.log == ["a"] * 4


def test_who_is_alone_has_ten_quanta():
    """As soon as somebody else has work done, and for a second after that, it is one."""
    loop = Loop(quantum_s=1.0, shared_s=1.0)
    loop.now = 100.0  # the others are long gone
    loop.rota.spend(A, 9.0)
    assert loop.rota.has_turn(A)
    loop.rota.spend(A, 1.0)
    assert not loop.rota.has_turn(A)
    loop.turn()
    loop.rota.spend(B, 0.1)
    loop.rota.spend(A, 1.0)
    assert not loop.rota.has_turn(A)
    loop.now += 1.1
    assert loop.rota.has_turn(A)


def test_in_one_turn_a_user_has_a_quantum():
    """What is more waits for the next one; another user's first piece of work does not."""
    loop = Loop()
    for number in range(8):
        loop.work(A, f"a{number}", 2.0)()
    loop.work(B, "b", 2.0)()
    assert loop.log == ["a0", "a1", "a2", "b"]
    loop.turn()
    assert loop.log[4:] == ["a3", "a4", "a5"]


def test_users_who_wait_are_served_one_after_the_other():
    """However much of it each has, each turn gives all of them a quantum."""
    loop = Loop(quantum_s=1.0)
    for who, name in ((A, "a"), (B, "b"), (C, "c")):
        for _ in range(10 if who == A else 3):
            loop.work(who, name, 1.0)()
    for _ in range(4):
        loop.turn()
    assert loop.log.count("b") == loop.log.count("c") == 3
    loop.turn()
    assert loop.log[-1] == "a"


def test_a_users_connections_take_turns_too():
    """The first that waits goes first, and comes last when it has more."""
    loop = Loop(quantum_s=1.0)
    loop.rota.spend(A, 1.0)
    for name in "xyz":
        loop.work(A, name, 1.0, again=1)()
    for _ in range(6):
        loop.turn()
    assert loop.log == list("xyzxyz")


def test_more_than_a_quantum_is_paid_back_while_others_wait():
    """A message is taken whole; then it is the others' turn for as long."""
    loop = Loop(quantum_s=1.0)
    loop.work(A, "huge", 5.0)()
    loop.rota.spend(B, 1.0)
    loop.work(A, "a", 1.0)()
    loop.work(B, "b", 1.0, again=5)()
    for _ in range(7):
        loop.turn()
    assert loop.log.index("a") > 4
    assert loop.log.count("b") == 6


def test_who_waits_again_waits_for_the_next_turn():
    """Also who has done nothing in this one: the loop goes on between."""
    loop = Loop()
    calls = []

    def go():
        calls.append(loop.now)
        loop.rota.wait(A, go)

    loop.rota.wait(A, go)
    loop.turn()
    assert len(calls) == 1
    loop.turn()
    assert len(calls) == 2

"""Governance platforms on your own machine: a strict emulation, with faults on demand and a page to look at.

    from agentd.sandbox import Sandbox, parse_fault

    async with Sandbox(switches=["agentos.late_events=409"]) as sandbox:
        sandbox.faults.add(parse_fault("status=503,rate=0.1"))
        ...                              # send to sandbox.url
        assert sandbox.state().events == 50

Written from the platforms' documentation and their SDKs, never from agentd's own adapters: an emulator made from the
adapter would share its misunderstandings. Hence nothing in here imports agentd.platforms, spool, delivery, intake or daemon.
"""

from __future__ import annotations

from agentd.sandbox._agentos_bodies import AgentosSwitches
from agentd.sandbox._ascend_bodies import AscendSwitches
from agentd.sandbox.aegis import AegisSwitches
from agentd.sandbox.books import Repeat, RequestLine
from agentd.sandbox.decidefyi import DecidefyiSwitches
from agentd.sandbox.decisionos import DecisionosSwitches
from agentd.sandbox.emulation import Emulation, State
from agentd.sandbox.faces import Answer, Call, Face, Totals, face_names, load_face
from agentd.sandbox.faults import Decision, Fault, Faults, fault_from, parse_fault
from agentd.sandbox.server import Sandbox
from agentd.sandbox.switches import Switch, parse_switch

__all__ = [
    "AegisSwitches",
    "AgentosSwitches",
    "Answer",
    "AscendSwitches",
    "Call",
    "DecidefyiSwitches",
    "Decision",
    "DecisionosSwitches",
    "Emulation",
    "Face",
    "Fault",
    "Faults",
    "Repeat",
    "RequestLine",
    "Sandbox",
    "State",
    "Switch",
    "Totals",
    "face_names",
    "fault_from",
    "load_face",
    "parse_fault",
    "parse_switch",
]

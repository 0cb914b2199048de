"""What an agent imports: it speaks to the daemon through one socket, never blocks the agent and never raises into it.

Pure parts: `encode` (any value → JSON), `lines` (fields → one record's bytes), `buffer` (what waits, and the books),
`outbox` (envelopes, answers, repeats). Parts that touch the world: `find` (where the socket is), `channel` (thread and
socket), `http` (the one request that flush needs). What agents hold in their hands: `api`, `aio`, `runs`.

Nothing is imported here: the pytest plugin lives in this package and is loaded by test suites that never use a client.
"""

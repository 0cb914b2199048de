"""What an agent imports: it speaks to the daemon through one socket, never blocks the agent and never raises into it.

Pure parts: `encode` (any value → JSON), `lines` (fields → one record's bytes), `buffer` (what waits, and the books),
`outbox` (envelopes, answers, repeats), `verdict` (what a gate answers), `gates` (asking and waiting, step by step). Parts that
touch the world: `find` (where the socket is), `channel` and `link` (thread and socket), `http` and `aio_gates` (one request, in
a thread or on an event loop). What agents hold in their hands: `api`, `aio`, `asking`, `runs`, `gated`.

Nothing is imported here: the pytest plugin lives in this package and is loaded by test suites that never use a client.
"""

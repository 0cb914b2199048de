"""Standing in for the platforms: `/{destination}/…` is the platform for its unmodified SDK.

`gateway` takes the requests and finds the door; `telemetry` makes records of what may wait, `relay` asks what may not,
`passing` passes on what is only read. What a platform's SDK looks like is the adapter's (`agentd.standin`). The platform's
key is put in on the way out, and nothing that the caller showed us goes with it.
"""

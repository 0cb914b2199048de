"""The usual causes of trouble, found: `agentd doctor`.

`facts` are what was seen, `local`, `daemon` and `remote` judge them (pure: facts in, findings out), `looking` and `asking` see them:
the host and the network. Nothing here writes, sends a record or starts anything, and everything works without daemon and configuration.
"""

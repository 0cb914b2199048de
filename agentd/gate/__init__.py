"""The gate room: an agent asks before it acts, waits for the platform's word, and finds it on record ever after.

`keeper` takes questions and keeps the gates on disk, `flow` brings one from its question to its last word. What decides is
pure: `asking` (is that a question?), `book` (which gates are there), `breaker` (is the platform there?), `verdict` (may the
agent go on?).
"""

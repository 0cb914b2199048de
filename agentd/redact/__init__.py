"""Redaction before the first byte reaches the disk: `engine` is its face, `build` makes one from the configuration.

keys · patterns · own     the rules: by name, by form, and those of the configuration
screen                    which records may hold a secret at all: scans of memory over a whole message
walk · text · marks       where in them, and what stands there instead
fields                    which fields may be changed
"""

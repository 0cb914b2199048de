"""Make the archives of this folder: a spool as the agentd of some source tree leaves it, stopped in order and killed.

    git archive COMMIT | tar -x -C /some/folder
    .venv/bin/python tests/data/make_spool.py /some/folder spool-format-1

What goes into it, and how it is opened again, is in `tests/e2e/upgrade_kit.py`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(_HERE.parent / "e2e"))


def main(code: str, name: str) -> None:
    """`code` is the source tree whose daemon writes the spool."""
    import upgrade_kit as kit

    for how in ("stopped", "killed"):
        world = kit.world()
        taken = kit.watch(world.platform)
        try:
            os.environ["PYTHONPATH"] = code
            daemon = kit.daemon_of(world).start()
            told = kit.fill(world, daemon)
            daemon.kill() if how == "killed" else daemon.stop()
            archive = _HERE / f"{name}-{how}.tar.xz"
            kit.pack(daemon.state, archive, taken, told)
            print(f"{archive.name}: {archive.stat().st_size} bytes", file=sys.stderr)  # noqa: T201
        finally:
            world.close()


if __name__ == "__main__":
    main(*sys.argv[1:])

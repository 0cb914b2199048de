"""Where should a segment's body lie: inline in SQLite, in a file of its own, or by size?

Inline pays by bytes: each body is written to the write-ahead log and again at the checkpoint. A file pays by syncs: one
for each body and one for the folder, on top of the log's own. Which is dearer depends on the disk, so the table shows
both sides: latency and throughput as measured here, bytes written for each byte taken, syncs for each commit, and the
latency on a modelled disk on which every sync costs a millisecond more.

The variants take turns inside each round, and their order rotates, so that a noisy neighbour or a disk that slows down
hits all of them alike. Each figure is the median over the rounds.

Run: python tests/bench/segment_place.py [--quick] [--folder FOLDER_ON_A_REAL_DISK]
"""

import contextlib
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import click
import diskcache

EVENT_BYTES = 400
STEADY_DEPTH = 20  # commits between a segment's append and its deletion
WARM_UP_COMMITS = 5
TRACED_COMMITS = 60  # enough for several checkpoints when bodies are large; strace makes more too slow
MODELLED_SYNC_MS = 1.0
POOL_BYTES = 4 * 2**20
FOLDER_NAME = "segments"
MODE_RAW = 1  # diskcache: the value lies in the row
MODE_BINARY = 2  # diskcache: the value lies in the file that the row names
SAFE_NAME = re.compile(r"[0-9a-f]{16}\.seg")
NEVER = 2**40  # larger than any body
MARK = 2**30  # a descriptor that no process has open

SETTINGS: dict[str, int | str] = {
    "eviction_policy": "none",
    "cull_limit": 0,
    "size_limit": 2**40,
    "disk_min_file_size": 2**40,
    "sqlite_synchronous": 2,
    "sqlite_auto_vacuum": 2,
    "sqlite_mmap_size": 0,
    "sqlite_journal_size_limit": 2**24,
    "statistics": 0,
}
MIX = (400, 4_000, 40_000, 100_000, 400_000)


@dataclass(frozen=True)
class Variant:
    """A rule for placing a body: bodies of `file_from` bytes and more become files.

    `settings` differ from the common ones. Many systems build SQLite so that it overwrites the pages of a deleted body
    with zeros, through the log like any write; "no zeroing" turns that off.
    """

    name: str
    file_from: int
    settings: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Case:
    """A load: `commits` transactions, each holding one new segment for each entry of `sizes`."""

    name: str
    sizes: tuple[int, ...]
    commits: int
    delete_after: int | None = None
    read_back: bool = False
    drain: bool = False


@dataclass
class Sample:
    """What one phase of one run showed."""

    label: str
    latencies_s: list[float] = field(default_factory=list)
    wall_s: float = 0.0
    payload_bytes: int = 0
    process_bytes: int = 0
    device_bytes: int | None = None

    def percentile_ms(self, fraction: float) -> float:
        """Return the latency that `fraction` of the commits stayed under."""
        ordered = sorted(self.latencies_s)
        return 1000 * ordered[min(len(ordered) - 1, int(fraction * len(ordered)))]


@dataclass(frozen=True)
class Figures:
    """The medians for one load and variant; `syncs` is None where nothing could count them."""

    p50_ms: float
    p99_ms: float
    mb_per_s: float
    events_per_s: float
    process_ratio: float
    device_ratio: float | None
    syncs: float | None


NO_ZEROING = (("sqlite_secure_delete", 0),)
VARIANTS = (
    Variant("inline", NEVER),
    Variant("inline, no zeroing", NEVER, NO_ZEROING),
    Variant("file", 0),
    Variant("hybrid 64 KiB", 64 * 1024),
    Variant("hybrid 128 KiB", 128 * 1024),
    Variant("hybrid 64 KiB, no zeroing", 64 * 1024, NO_ZEROING),
)


class SegmentDisk(diskcache.Disk):  # type: ignore[misc]  # the base class is untyped
    """Bytes only, under integer keys, so that no path leads to pickle; large bodies go to files.

    diskcache calls `remove` as soon as the innermost transaction block ends. Inside an outer `transact` that is before
    the commit, and a crash between the two would leave a row without its body. So `remove` only notes the name, and
    the owner calls `sweep` once the commit has returned.
    """

    def __init__(
        self, directory: str, min_file_size: int = 0, pickle_protocol: int = 0, file_from: int = NEVER
    ) -> None:
        """Take diskcache's own arguments and the size from which a body becomes a file."""
        super().__init__(directory, min_file_size, pickle_protocol)
        self._folder = Path(directory, FOLDER_NAME)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._file_from = file_from
        self._folder_changed = False
        self._doomed: list[str] = []

    def put(self, key: int) -> tuple[int, bool]:
        """Return the key as the database holds it."""
        if type(key) is not int:
            raise ValueError("segment keys are integers")
        return key, True

    def get(self, key: int, raw: bool) -> int:  # noqa: FBT001 - diskcache calls it so
        """Return the key as callers know it; a row that is not raw was planted."""
        if not raw or type(key) is not int:
            raise ValueError("not a segment key")
        return key

    def store(self, value: bytes, read: bool, key: int = 0) -> tuple[int, int, str | None, bytes | None]:  # noqa: FBT001 - diskcache calls it so
        """Place a body and return the columns (size, mode, filename, value)."""
        if read or type(value) is not bytes:
            raise ValueError("segments are bytes")
        if len(value) < self._file_from:
            return 0, MODE_RAW, None, value
        name = f"{key:016x}.seg"
        write_once(self._folder / name, value)
        self._folder_changed = True
        return len(value), MODE_BINARY, name, None

    def fetch(self, mode: int, filename: str | None, value: bytes | None, read: bool) -> bytes:  # noqa: FBT001 - diskcache calls it so
        """Return a body; a filename of any other shape was planted and is refused."""
        if mode == MODE_RAW and filename is None and type(value) is bytes:
            return value
        if mode != MODE_BINARY or filename is None or SAFE_NAME.fullmatch(filename) is None:
            raise ValueError("not a segment row")
        return (self._folder / filename).read_bytes()

    def remove(self, file_path: str) -> None:
        """Note a file whose row is going; see the class for why it must not go yet."""
        self._doomed.append(file_path)

    def seal(self) -> None:
        """Make the names of new files durable. Called last before the commit that refers to them."""
        if self._folder_changed:
            sync_folder(self._folder)
            self._folder_changed = False

    def sweep(self) -> None:
        """Delete the files whose rows a commit removed. Unsynced: after a crash they are orphans, never losses."""
        for name in self._doomed:
            (self._folder / name).unlink()
        self._doomed.clear()


def write_once(path: Path, body: bytes) -> None:
    """Write a new file and return when its bytes are on the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        rest = memoryview(body)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Return when the folder's entries are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Store:
    """A cache with the daemon's settings and keys that only rise, so that a late deletion never hits a new segment."""

    def __init__(self, folder: Path, variant: Variant) -> None:
        """Open a new cache below `folder`."""
        self._cache = diskcache.Cache(
            str(folder),
            disk=SegmentDisk,
            disk_file_from=variant.file_from,
            timeout=5,
            **{**SETTINGS, **dict(variant.settings)},
        )
        self._disk: SegmentDisk = self._cache.disk
        self._next_key = time.time_ns() // 1000

    def commit(self, bodies: Sequence[bytes], doomed: Sequence[int]) -> list[int]:
        """Add and delete in one transaction; on return it is durable, but `sweep` is still owed."""
        keys = list(range(self._next_key, self._next_key + len(bodies)))
        self._next_key += len(bodies)
        with self._cache.transact():
            for key, body in zip(keys, bodies, strict=True):
                if not self._cache.add(key, body):
                    raise RuntimeError(f"key {key} is taken")
            for key in doomed:
                del self._cache[key]
            self._disk.seal()
        return keys

    def read(self, key: int) -> bytes:
        """Return a segment's body."""
        body: bytes = self._cache[key]
        return body

    def sweep(self) -> None:
        """Delete the files that the last commit left without a row."""
        self._disk.sweep()

    def close(self) -> None:
        """Close the database, which also checkpoints it."""
        self._cache.close()


def event_pool(size: int) -> bytes:
    """Return JSON events of EVENT_BYTES each, random enough that no layer below can compress them away much."""
    source = random.Random(7)  # the same bytes in every run and variant
    head = '{"id":"%016x","payload":"'
    filler = EVENT_BYTES - len(head % 0) - len('"},')
    return b"".join(
        (head % source.getrandbits(64) + f"{source.getrandbits(4 * filler):0{filler}x}" + '"},').encode()
        for _ in range(size // EVENT_BYTES)
    )


def bodies_of(case: Case, pool: bytes, turn: int) -> list[bytes]:
    """Return the bodies of one commit, cut from the pool at a place that moves from commit to commit."""
    starts = [(turn * 7919 + nth * 104_729) % (len(pool) - size) for nth, size in enumerate(case.sizes)]
    return [pool[start : start + size] for start, size in zip(starts, case.sizes, strict=True)]


def process_bytes_written() -> int:
    """Return what this process has dirtied towards block devices, without the file system's own journal."""
    found = re.search(r"^write_bytes: (\d+)$", Path("/proc/self/io").read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError("the kernel does not account for I/O")
    return int(found[1])


def device_bytes_written(folder: Path) -> int | None:
    """Return what the folder's device has written for everybody, journal included, or None if it has no counter."""
    number = folder.stat().st_dev
    wanted = [str(os.major(number)), str(os.minor(number))]
    for line in Path("/proc/diskstats").read_text().splitlines():
        fields = line.split()
        if fields[:2] == wanted:
            return int(fields[9]) * 512  # sectors written, always 512 bytes in this file
    return None


def mark() -> None:
    """Leave a line in a trace of sync calls, and nothing anywhere else."""
    with contextlib.suppress(OSError):
        os.fsync(MARK)


@contextlib.contextmanager
def phase(label: str, folder: Path) -> Iterator[Sample]:
    """Account for wall time, bytes and sync calls between entry and exit."""
    sample = Sample(label)
    process_before, device_before = process_bytes_written(), device_bytes_written(folder)
    mark()
    began = time.perf_counter()
    yield sample
    sample.wall_s = time.perf_counter() - began
    mark()
    sample.process_bytes = process_bytes_written() - process_before
    device_after = device_bytes_written(folder)
    if device_before is not None and device_after is not None:
        sample.device_bytes = device_after - device_before


def append(store: Store, case: Case, pool: bytes, sample: Sample, live: list[list[int]]) -> None:
    """Run a case's commits. Latency ends where the daemon may acknowledge; unlinking counts as wall time only."""
    for turn in range(case.commits):
        bodies = bodies_of(case, pool, turn)
        due = case.delete_after is not None and len(live) >= case.delete_after
        doomed = live.pop(0) if due else []
        if case.read_back:
            for key in doomed:
                store.read(key)
        began = time.perf_counter()
        live.append(store.commit(bodies, doomed))
        sample.latencies_s.append(time.perf_counter() - began)
        store.sweep()
        sample.payload_bytes += sum(case.sizes)


def drain(store: Store, case: Case, sample: Sample, live: list[list[int]]) -> None:
    """Read and delete everything, oldest first, a commit's worth at a time."""
    while live:
        keys = live.pop(0)
        began = time.perf_counter()
        for key in keys:
            store.read(key)
        store.commit([], keys)
        store.sweep()
        sample.latencies_s.append(time.perf_counter() - began)
        sample.payload_bytes += sum(case.sizes)


def check_last(store: Store, case: Case, pool: bytes, live: list[list[int]]) -> None:
    """Refuse figures from a store that gives back something else than it took."""
    if [store.read(key) for key in live[-1]] != bodies_of(case, pool, case.commits - 1):
        raise RuntimeError(f"{case.name}: read something else than was written")


def run_case(parent: Path, variant: Variant, case: Case, pool: bytes) -> list[Sample]:
    """Run one case in a new folder, which is removed, and flushed out of the journal, before the next begins."""
    folder = Path(tempfile.mkdtemp(dir=parent))
    store = Store(folder, variant)
    live: list[list[int]] = []
    try:
        append(store, replace(case, commits=max(WARM_UP_COMMITS, case.delete_after or 0)), pool, Sample(""), live)
        with phase(f"{case.name}: fill" if case.drain else case.name, folder) as filling:
            append(store, case, pool, filling, live)
        check_last(store, case, pool, live)
        if not case.drain:
            return [filling]
        with phase(f"{case.name}: drain", folder) as draining:
            drain(store, case, draining, live)
        return [filling, draining]
    finally:
        store.close()
        shutil.rmtree(folder)
        sync_folder(parent)


def count_syncs(parent: Path, variant: Variant, case: Case) -> list[float]:
    """Return the sync calls per commit for each phase, counted by strace in a child; empty without strace."""
    strace = shutil.which("strace")
    if strace is None:
        return []
    log = parent / "syncs.log"
    trace = [strace, "-f", "-qq", "-o", str(log), "-e", "trace=fsync,fdatasync,msync,sync_file_range"]
    child = [sys.executable, __file__, "--folder", str(parent), "--child", variant.name, case.name]
    subprocess.run([*trace, *child], check=True)  # our own file, and a tool found on PATH
    inside, counts = False, list[int]()
    for line in log.read_text().splitlines():
        if f"fsync({MARK})" in line:
            inside = not inside
            if inside:
                counts.append(0)
        elif inside and "resumed" not in line:
            counts[-1] += 1
    commits = traced(case).commits
    # A drain also deletes what the warm-up left, hence its other number of commits.
    return [count / (commits + WARM_UP_COMMITS * (nth > 0)) for nth, count in enumerate(counts)]


def traced(case: Case) -> Case:
    """Return the case cut down to what is run under strace."""
    return replace(case, commits=TRACED_COMMITS)


def cases_for(backlog_mib: int, *, quick: bool) -> list[Case]:
    """Return the loads: appends alone, a steady state with its deletions, and a backlog that is drained."""
    scale = 10 if quick else 1
    singles = [Case(f"1 x {size / 1000:g} KB", (size,), 150 // scale) for size in MIX]
    fives = [Case(f"5 x {size / 1000:g} KB", (size,) * 5, 60 // scale) for size in (40_000, 400_000)]
    steady = [
        Case(
            f"steady {name}, {'read back' if read_back else 'in memory'}", sizes, 150 // scale, STEADY_DEPTH, read_back
        )
        for name, sizes in (("1 x 4 KB", (4_000,)), ("1 x 40 KB", (40_000,)), ("1 x 400 KB", (400_000,)), ("mix", MIX))
        for read_back in (False, True)
    ]
    backlog = Case("backlog mix", MIX, max(1, backlog_mib * 2**20 // sum(MIX) // scale), drain=True)
    return [*singles, *fives, Case("mix", MIX, 100 // scale), *steady, backlog]


def variants_for(case: Case) -> list[Variant]:
    """Return the variants that differ under this load; of those that place and treat all bodies alike, the first."""
    differing: dict[object, Variant] = {}
    for variant in VARIANTS:
        inline = tuple(size < variant.file_from for size in case.sizes)
        deletes_inline = any(inline) and (case.drain or case.delete_after is not None)
        differing.setdefault((inline, variant.settings if deletes_inline else ()), variant)
    return list(differing.values())


def summarise(samples: Sequence[Sample], syncs: float | None) -> Figures:
    """Return the medians over the rounds."""

    def median_rate(amount_per_byte: float) -> float:
        return statistics.median(sample.payload_bytes * amount_per_byte / sample.wall_s for sample in samples)

    device = [sample.device_bytes / sample.payload_bytes for sample in samples if sample.device_bytes is not None]
    return Figures(
        p50_ms=statistics.median(sample.percentile_ms(0.50) for sample in samples),
        p99_ms=statistics.median(sample.percentile_ms(0.99) for sample in samples),
        mb_per_s=median_rate(1e-6),
        events_per_s=median_rate(1 / EVENT_BYTES),
        process_ratio=statistics.median(sample.process_bytes / sample.payload_bytes for sample in samples),
        device_ratio=statistics.median(device) if device else None,
        syncs=syncs,
    )


def table_row(label: str, variant: str, figures: Figures) -> str:
    """Return one line of the Markdown table."""
    syncs, device = figures.syncs, figures.device_ratio
    cells = [
        label,
        variant,
        f"{figures.p50_ms:.2f}",
        f"{figures.p99_ms:.2f}",
        f"{figures.mb_per_s:.1f}",
        f"{figures.events_per_s / 1000:.1f}k",
        f"{figures.process_ratio:.2f}",
        "-" if device is None else f"{device:.2f}",
        "-" if syncs is None else f"{syncs:.2f}",
        "-" if syncs is None else f"{figures.p50_ms + syncs * MODELLED_SYNC_MS:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def print_table(rounds: dict[tuple[str, str], list[Sample]], syncs: dict[tuple[str, str], float]) -> None:
    """Print the medians as Markdown, the variants of one load below each other."""
    click.echo(
        "| load | place | p50 ms | p99 ms | MB/s | events/s | B/B process | B/B device | syncs | p50 + 1 ms/sync |"
    )
    click.echo("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for label in dict.fromkeys(label for label, _ in rounds):
        for variant in VARIANTS:
            key = (label, variant.name)
            if key in rounds:
                click.echo(table_row(label, variant.name, summarise(rounds[key], syncs.get(key))))
    click.echo("\nA variant that treats all bodies of a load as one above it does is left out of that load.")


def measure(parent: Path, cases: Sequence[Case], rounds: int, *, trace: bool) -> None:
    """Run all rounds, then count syncs apart from them (tracing slows every call), and print the table."""
    pool = event_pool(POOL_BYTES)
    samples: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    syncs: dict[tuple[str, str], float] = {}
    for turn in range(rounds):
        click.echo(f"round {turn + 1} of {rounds}", err=True)
        for case in cases:
            variants = variants_for(case)
            first = turn % len(variants)
            for variant in variants[first:] + variants[:first]:
                for sample in run_case(parent, variant, case, pool):
                    samples[sample.label, variant.name].append(sample)
    for case in cases if trace else ():
        labels = [f"{case.name}: fill", f"{case.name}: drain"] if case.drain else [case.name]
        for variant in variants_for(case):
            for label, count in zip(labels, count_syncs(parent, variant, case), strict=False):
                syncs[label, variant.name] = count
    print_table(samples, syncs)


@click.command()
@click.option(
    "--folder", type=click.Path(path_type=Path, file_okay=False, exists=True), default=Path(), help="On a real disk."
)
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--backlog-mib", type=click.IntRange(min=1), default=512, show_default=True)
@click.option("--only", default="", help="Only the loads whose name contains this.")
@click.option(
    "--quick", is_flag=True, help="Two rounds of a tenth of the commits and no tracing: a check that it runs."
)
@click.option("--trace/--no-trace", default=True, help="Count sync calls with strace, if it is installed.")
@click.option("--child", nargs=2, default=None, hidden=True)
def main(
    *, folder: Path, rounds: int, backlog_mib: int, only: str, quick: bool, trace: bool, child: tuple[str, str] | None
) -> None:
    """Measure where a segment's body should lie, and print a Markdown table."""
    cases = [case for case in cases_for(backlog_mib, quick=quick) if only in case.name]
    with tempfile.TemporaryDirectory(prefix="segment-place-", dir=folder) as parent:
        if child is None:
            measure(Path(parent), cases, 2 if quick else rounds, trace=trace and not quick)
            return
        variant = next(variant for variant in VARIANTS if variant.name == child[0])
        case = next(case for case in cases if case.name == child[1])
        run_case(Path(parent), variant, traced(case), event_pool(POOL_BYTES))


if __name__ == "__main__":
    main()

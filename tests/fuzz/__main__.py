"""Damaged images of every format through the real path: each must end as a vector or a listed failure.

    python tests/fuzz --cases 10000 --seed 1        # the same seed gives the same cases
    python tests/fuzz --seed 1 --write 4711 f.bin   # write one case, to look into it

A worker process runs the cases; one that crashes or hangs is a finding, and the next worker goes on
behind it. The exact and the fast path must come to the same verdict, for the same reason, and so must
an embedder's stream. Memory is held against a policy of 2 million pixels and 2 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import select
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
_MAX_GROWTH = 400e6  # bytes over what the good images took


@dataclass
class Tally:
    """What became of the cases."""

    cases: int = 0
    vectors: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    crashes: int = 0
    hangs: int = 0
    slowest: tuple[float, int] = (0.0, -1)
    growth: tuple[int, int] = (0, -1)
    baseline: int = 0

    def note(self, line: dict[str, object]) -> None:
        """Take in one line of the worker."""
        if "baseline" in line:
            self.baseline = int(str(line["baseline"]))
        if "finding" in line:
            self.findings.append(f"{line['finding']}: {line['cases']}")
        if "done" not in line:
            return
        number, verdict, fast = int(str(line["done"])), str(line["verdict"]), str(line["fast"])
        self.cases += 1
        self.vectors += verdict == "vector"
        if verdict != "vector":
            self.failures[_kind(verdict)] += 1
        if fast != verdict and (fast == "vector") + (verdict == "vector"):
            self.findings.append(f"case {number}: exact says {verdict!r}, fast {fast!r}")
        if line["warned"]:
            self.findings.append(f"case {number}: a DecompressionBombWarning")
        self.slowest = max(self.slowest, (float(str(line["seconds"])), number))
        self.growth = max(self.growth, (int(str(line["peak"])) - self.baseline, number))

    def report(self) -> str:
        """Return the tally as a table."""
        lines = [
            f"cases {self.cases:,}: vectors {self.vectors:,}, failures {sum(self.failures.values()):,}",
            f"crashes {self.crashes}, hangs {self.hangs}, other findings {len(self.findings)}",
            f"slowest case {self.slowest[0]:.1f} s ({self.slowest[1]})",
            f"peak memory {self.growth[0] / 1e6:.0f} MB (case {self.growth[1]}) above the "
            f"{self.baseline / 1e6:.0f} MB that the good images took",
            *(f"{count:8,}  {reason}" for reason, count in self.failures.most_common()),
            *(f"FINDING {finding}" for finding in self.findings),
        ]
        return "\n".join(lines)


def _kind(reason: str) -> str:
    """Return a reason without its numbers and names, so that equal ones are counted together."""
    reason = re.sub(r"b'.*|b\".*|\(\d+, \d+\).*", "…", reason)
    return re.sub(r"\d[\d,.]*", "N", reason)[:100]


def run(cases: int, seed: int, worker: str, hang: float) -> Tally:
    """Run the cases, with as many workers one after the other as it takes."""
    tally = Tally()
    first = 0
    while first < cases:
        first = _run_worker(first, cases, seed, tally, worker, hang)
    if tally.growth[0] > _MAX_GROWTH:
        tally.findings.append(f"case {tally.growth[1]}: memory grew by {tally.growth[0] / 1e6:.0f} MB")
    return tally


def _run_worker(first: int, cases: int, seed: int, tally: Tally, script: str, hang: float) -> int:
    """Return the case to go on with."""
    command = [sys.executable, script, str(first), str(cases), str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as worker:  # noqa: S603
        assert worker.stdout is not None
        assert worker.stderr is not None
        os.set_blocking(worker.stderr.fileno(), False)
        current, name, rest, errors = first - 1, "", b"", b""
        deadline = time.monotonic() + 60  # it imports torch first
        while True:
            left = max(0, deadline - time.monotonic())
            ready, _, _ = select.select([worker.stdout, worker.stderr], [], [], left)
            if not ready:
                worker.kill()
                tally.hangs += 1
                tally.findings.append(f"case {current} ({name}): no word for {hang:g} s")
                return current + 1
            if worker.stderr in ready:
                errors = (errors + (worker.stderr.read() or b""))[-2000:]
            if worker.stdout in ready:
                data = os.read(worker.stdout.fileno(), 1 << 16)
                *lines, rest = (rest + data).split(b"\n")
                for line in map(json.loads, lines):
                    tally.note(line)
                    current, name = line.get("start", current), line.get("name", name)
                    deadline = time.monotonic() + hang
                if not data:
                    break
        if worker.wait() == 0:
            return cases
        tally.crashes += 1
        what = errors.decode(errors="replace").strip().splitlines()[-1:]
        tally.findings.append(f"case {current} ({name}): ended with {worker.returncode} {what}")
        return current + 1


def main() -> int:
    """Print the tally; 1 where something was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument("--worker", default=str(HERE / "worker.py"))
    parser.add_argument("--hang", type=float, default=20, help="seconds that a case may take")
    parser.add_argument("--write", nargs=2, metavar=("CASE", "FILE"))
    arguments = parser.parse_args()
    if arguments.write:
        from seeds import make_seeds
        from worker import case

        name, encoded = case(int(arguments.write[0]), arguments.seed, make_seeds())
        Path(arguments.write[1]).write_bytes(encoded)
        print(name)
        return 0
    print(f"seed {arguments.seed}", flush=True)
    tally = run(arguments.cases, arguments.seed, arguments.worker, arguments.hang)
    print(tally.report())
    return 1 if tally.findings else 0


if __name__ == "__main__":
    sys.exit(main())

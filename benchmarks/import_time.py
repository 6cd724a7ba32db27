"""How long `import clip_embed` takes, beside what numpy alone takes.

    python benchmarks/import_time.py

Median wall time of 10 fresh interpreters each, less the median of a bare start.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

RUNS = 10


def seconds(code: str) -> float:
    """Wall time of one fresh interpreter that runs `code`."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def main() -> None:
    """Print one line for each import; the runs alternate, so that a busy neighbour meets all of them."""
    codes = ["pass", "import numpy", "import numpy, PIL.Image", "import clip_embed"]
    for code in codes:
        seconds(code)  # bytecode and page cache
    times: dict[str, list[float]] = {code: [] for code in codes}
    for _ in range(RUNS):
        for code in codes:
            times[code].append(seconds(code))
    bare = statistics.median(times["pass"])
    print(f"Python {sys.version.split()[0]}, bare start {bare:.3f} s, median of {RUNS}")
    for code in codes[1:]:
        print(f"{code:28s} {statistics.median(times[code]) - bare:6.3f} s")


if __name__ == "__main__":
    main()

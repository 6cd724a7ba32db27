"""What gpu.py says in the end: the hardware, a table, a JSON file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import report

from clip_embed._cli.table import format_table

HEAD = ["part", "contender", "images/s", "× s-t", "of ceiling", "GPU %", "cosine", "company", "note"]


def table(rows: list[dict[str, Any]]) -> str:
    """All rows as text; the ratio is to sentence-transformers on the same files."""
    peer = {
        row["part"]: row["images_per_s"]
        for row in rows
        if row["contender"] == "sentence-transformers" and "images_per_s" in row
    }
    lines: list[list[str]] = []
    for row in rows:
        rate, base = row.get("images_per_s"), peer.get(row["part"])
        lines.append(
            [
                row["part"],
                row["contender"],
                f"{rate:,.0f}" if rate else "",
                f"{rate / base:.1f}" if rate and base else "",
                f"{row['of_ceiling']:.0%}" if "of_ceiling" in row else "",
                "" if row.get("gpu_percent") is None else str(row["gpu_percent"]),
                f"{row['cosine']:.5f}" if "cosine" in row else "",
                f"{row['company']:.0e}" if "company" in row else "",
                str(row.get("note", "")),
            ]
        )
    return format_table(HEAD, lines)


def hardware(device: str) -> dict[str, object]:
    """What report.about() says, and the GPU."""
    import torch

    gpu: dict[str, object] = {"gpu": None, "cuda": torch.version.cuda}
    if device != "cpu" and torch.cuda.is_available():
        found = torch.cuda.get_device_properties(device)
        gpu |= {"gpu": found.name, "memory_gb": round(found.total_memory / 2**30)}
    return report.about() | gpu


def write(about: dict[str, object], rows: list[dict[str, Any]], out: Path) -> None:
    """Write everything to a JSON file."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"about": about, "rows": rows}, indent=1, ensure_ascii=False) + "\n", "utf-8")

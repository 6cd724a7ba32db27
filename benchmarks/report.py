"""What cpu.py says in the end: a table, a JSON file and a chart."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

PACKAGES = (
    "clip-embed", "torch", "transformers", "sentence-transformers", "fastembed", "onnxruntime", "openvino",
    "pillow", "simplejpeg", "numpy",
)  # fmt: skip
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
RIVALS = ("sentence-transformers", "fastembed")
OURS, THEIRS, INK, PALE = "#0b6e4f", "#9aa5b1", "#1f2933", "#52606d"
LEFT, WIDTH, BAR, GAP = 190, 860, 22, 8


def about() -> dict[str, object]:
    """Machine, versions and commit; no names and no paths."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"cores": cores, "system": f"{platform.system()} {platform.machine()}"} | _processor(),
        "versions": versions,
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def _processor() -> dict[str, object]:
    """Name and speed-giving instructions of the processor, and the memory; Linux alone says them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        memory = Path("/proc/meminfo").read_text().split()[1]
    except OSError:
        return {"processor": platform.processor()}
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    flags = facts.get("flags", "").split()
    return {
        "processor": facts.get("model name", platform.processor()),
        "instructions": [flag for flag in CPU_FLAGS if flag in flags],
        "memory_gb": round(int(memory) / 1024**2),
    }


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def summary(outcome: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Per contender: medians, and how many times as fast as each rival, by wall and by CPU time."""
    count = outcome["files"]["images"]
    rounds: dict[str, list[dict[str, float]]] = {}
    for timing in outcome["rounds"]:
        rounds.setdefault(timing["contender"], []).append(timing)
    rows: dict[str, dict[str, Any]] = {}
    for name, timings in rounds.items():
        wall, cpu = ([timing[kind] for timing in timings] for kind in ("wall_s", "cpu_s"))
        rows[name] = {
            "images_per_s": count / statistics.median(wall),
            "wall_ms": 1000 * statistics.median(wall) / count,
            "cpu_ms": 1000 * statistics.median(cpu) / count,
            "peak_mb": max(timing["peak_bytes"] for timing in timings) / 1e6,
            "times_as_fast_as": {
                rival: {kind: _ratio(rounds[rival], timings, f"{kind}_s") for kind in ("wall", "cpu")}
                for rival in RIVALS
                if rival in rounds
            },
        }
    return rows


def _ratio(rival: list[dict[str, float]], own: list[dict[str, float]], kind: str) -> dict[str, float]:
    ratios = [theirs[kind] / ours[kind] for theirs, ours in zip(rival, own, strict=True)]
    return {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}


def table(results: dict[str, Any]) -> str:
    """Return all sets as text."""
    lines: list[str] = []
    for name, outcome in results["sets"].items():
        files = outcome["files"]
        lines += [
            "",
            f"{name}: {files['images']} {_size(files)} JPEG files, {_bytes(files)}",
        ]
        head = f"{'':28s}{'images/s':>9s}{'wall ms':>9s}{'CPU ms':>9s}{'peak MB':>9s}{'cosine':>10s}"
        lines.append(head + "".join(f"  × {rival} wall (range), CPU" for rival in RIVALS))
        for contender, facts in outcome["contenders"].items():
            if "left_out" in facts:
                lines.append(f"{contender:28s}left out: {facts['left_out']}")
                continue
            row = outcome["summary"][contender]
            cells = (
                f"{row['images_per_s']:9.1f}{row['wall_ms']:9.1f}{row['cpu_ms']:9.1f}{row['peak_mb']:9,.0f}"
            )
            ratios = "".join(f"  {_cell(ratio)}" for ratio in row["times_as_fast_as"].values())
            lines.append(f"{contender:28s}{cells}{facts['cosine']:10.6f}{ratios}")
    return "\n".join(lines)


def _cell(ratio: dict[str, dict[str, float]]) -> str:
    wall = ratio["wall"]
    return f"{wall['median']:6.2f} ({wall['lowest']:.2f}–{wall['highest']:.2f}), {ratio['cpu']['median']:.2f}"


def _size(files: dict[str, Any]) -> str:
    megapixels = files["width"] * files["height"] / 1e6
    return f"{megapixels:.0f}-megapixel" if megapixels >= 1 else f"{files['width']} × {files['height']}"


def _bytes(files: dict[str, Any]) -> str:
    size = files["mean_bytes"]
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} KB"


def write(results: dict[str, Any], out: Path) -> None:
    """Write cpu.json and cpu.svg into the folder."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "cpu.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", "utf-8")
    (out / "cpu.svg").write_text(chart(results), "utf-8")


def chart(results: dict[str, Any]) -> str:
    """Images per second as bars, one panel for each set; each panel has its own scale."""
    about = results["about"]
    machine, versions = about["machine"], about["versions"]
    parts = [_text(20, 34, "Image files to CLIP ViT-B/32 vectors: images per second", 19, weight="600")]
    rules = "same files, weights and cores; every library at its defaults; vectors checked; longer is better"
    parts.append(_text(20, 56, rules, 13, PALE))
    top = 76
    for outcome in results["sets"].values():
        panel, top = _panel(outcome, top)
        parts += panel
    shown = [f"{name} {versions[name]}" for name in (*RIVALS, "transformers", "torch") if name in versions]
    foot = f"{machine['cores']} cores, {machine.get('processor', '')}; {', '.join(shown)}"
    parts.append(_text(20, top + 14, f"{foot}; median of {results['settings']['rounds']} rounds", 11, PALE))
    height = top + 30
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="system-ui, Segoe UI, Helvetica, Arial, sans-serif">\n'
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _panel(outcome: dict[str, Any], top: int) -> tuple[list[str], int]:
    """The bars of one set and where the next panel begins."""
    files, rows = outcome["files"], outcome["summary"]
    title = f"{_size(files)} JPEG, {_bytes(files)}"
    parts = [_text(20, top + 20, title, 14, weight="600")]
    y = top + 32
    longest = max((row["images_per_s"] for row in rows.values()), default=1)
    for name, row in rows.items():
        ours = name.startswith("clip-embed")
        length = max(2, (WIDTH - LEFT - 290) * row["images_per_s"] / longest)
        fill = OURS if ours else THEIRS
        parts.append(_text(LEFT - 10, y + 16, name, 13, weight="600" if ours else "400", anchor="end"))
        parts.append(f'<rect x="{LEFT}" y="{y}" width="{length:.0f}" height="{BAR}" rx="3" fill="{fill}"/>')
        label = f"{row['images_per_s']:.1f}"
        rival = row["times_as_fast_as"].get(RIVALS[0])
        if ours and rival:
            label += f" · {rival['wall']['median']:.1f}× {RIVALS[0]}"
        parts.append(_text(LEFT + length + 8, y + 16, label, 13, weight="600" if ours else "400"))
        y += BAR + GAP
    return parts, y + 8


def _text(
    x: float, y: float, words: str, size: int, fill: str = INK, weight: str = "400", anchor: str = "start"
) -> str:
    style = f'font-size="{size}" font-weight="{weight}" fill="{fill}" text-anchor="{anchor}"'
    return f'<text x="{x:.0f}" y="{y:.0f}" {style}>{escape(words)}</text>'

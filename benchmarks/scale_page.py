"""What scale.py says: tables for the terminal or docs/scale.md, and a chart."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from report import INK, OURS, PALE, _text

if TYPE_CHECKING:
    from scale import Figure, Job, Storage

NAMES = {10**6: "10⁶", 10**8: "10⁸", 10**10: "10¹⁰"}
SHADES = {"float32": "#52606d", "float16": "#9aa5b1", "int8": "#5bb08f", "binary": OURS}
WIDTH, PANEL = 860, 400


def publish(
    figures: dict[str, Figure],
    jobs: Sequence[Job],
    stored: Sequence[Storage],
    checked: tuple[float, float] | None,
    recall: dict[str, Any],
    docs: Path | None,
) -> None:
    """Print everything, or write it where the page has a place for it."""
    tables = {
        "inputs": _inputs(figures),
        "check": _check(checked),
        "jobs": _jobs(jobs),
        "bandwidth": _bandwidth({name: figure.value for name, figure in figures.items()}),
        "recall": _recall(recall),
        "storage": _storage(stored),
    }
    if docs is None:
        print("\n\n".join(tables.values()))
        return
    page = docs / "scale.md"
    text = page.read_text("utf-8")
    for name, table in tables.items():
        place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        text, times = place.subn(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text)
        if times != 1:
            raise SystemExit(f"{page} has {times} places for {name}")
    page.write_text(text, "utf-8")
    (docs / "scale.svg").write_text(chart(jobs, stored), "utf-8")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _inputs(figures: dict[str, Figure]) -> str:
    rows = [
        (f"`{name}`", f"{figure.value:,.4g}" if figure.value < 1000 else f"{figure.value:,.0f}", figure.unit,
         figure.kind, figure.source)
        for name, figure in figures.items()
    ]  # fmt: skip
    return _table(("name", "value", "unit", "", "from, or of what"), rows)


def _check(checked: tuple[float, float] | None) -> str:
    if checked is None:
        return "Not measured yet; Ray's overhead is assumed above."
    return f"Measured: {checked[0]:.1f} images/s. Simulated: {checked[1]:.1f}."


def _jobs(jobs: Sequence[Job]) -> str:
    rows = [
        (NAMES[job.images], job.nodes.name, f"{job.images / job.seconds:,.0f}", job.limit, _span(job.seconds),
         f"{job.repeated:.2%}", _dollars(job.dollars), _dollars(job.requests))
        for job in jobs
    ]  # fmt: skip
    return _table(("images", "on", "images/s", "held by", "time", "done twice", "nodes", "requests"), rows)


def _bandwidth(given: dict[str, float]) -> str:
    """What one GPU at full speed asks of network and store."""
    rate = min(given["gpu_rate"], given["decode_rate"] * given["gpu_cores"])
    kinds = {
        "JPEG of 640 × 480": given["image_bytes"],
        "JPEG of 12 megapixels": 2.2e6,
        "pixels, between two stages": given["pixel_bytes"],
        "vectors in float16, out": 2 * 512,
    }
    rows = [
        (kind, f"{size / 1000:,.0f} KB", f"{rate * size * 8 / 1e9:.2f} Gbit/s",
         f"{given['network'] / (rate * size):,.1f}")
        for kind, size in kinds.items()
    ]  # fmt: skip
    return _table(
        ("what travels", "an image", f"at {rate:,.0f} images/s", "GPUs that one node's network feeds"), rows
    )


def _recall(found: dict[str, Any]) -> str:
    rows = [
        (name, f"{each['bytes']['vectors']:,.0f}", f"{each['bytes']['quantized']:,.0f}",
         f"{each['bytes']['graph']:,.0f}",
         *(f"{share:.3f}" for share in (each["recall"], *each["rescored"])))
        for name, each in found["stored"].items()
    ]  # fmt: skip
    head = ("stored as", "vector, bytes", "small copy", "graph", "recall@10", "rescored from 3×", "from 10×")
    return _table(head, rows)


def _storage(stored: Sequence[Storage]) -> str:
    rows = [
        (NAMES[each.images], each.name, _size(each.memory), _size(each.disk), f"{each.servers:,}",
         f"{each.shards:,}", f"{each.index_hours:,.0f}", _dollars(each.dollars))
        for each in stored
    ]  # fmt: skip
    head = (
        "vectors",
        "in memory",
        "memory",
        "disk",
        "servers",
        "shards",
        "core hours for the graphs",
        "a month",
    )
    return _table(head, rows)


def _span(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{seconds:.0f} s"


def _size(count: float) -> str:
    for unit, length in (("TB", 1e12), ("GB", 1e9)):
        if count >= length:
            return f"{count / length:,.1f} {unit}"
    return f"{count / 1e6:,.0f} MB"


def _dollars(amount: float) -> str:
    return f"${amount:,.2f}" if amount < 10 else f"${amount:,.0f}"


def chart(jobs: Sequence[Job], stored: Sequence[Storage]) -> str:
    """Time of each job beside memory of each way of storing; both scales are logarithmic."""
    hours = [(NAMES[job.images], job.nodes.name, job.seconds / 3600, OURS) for job in jobs]
    memory = [(NAMES[each.images], each.name, each.memory / 1e9, SHADES[each.name]) for each in stored]
    parts = [_text(20, 32, "ViT-B/32 beyond one machine: estimates from measured figures", 19, weight="600")]
    left, bottom = _panel(20, "Time to embed", "images", hours, _span_of_hours)
    right, _ = _panel(20 + WIDTH // 2, "Memory in Qdrant, two copies", "vectors", memory, _size_of_gb)
    parts += left + right
    parts.append(_text(20, bottom + 20, "logarithmic; docs/scale.md has what goes in", 11, PALE))
    height = bottom + 36
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="system-ui, Segoe UI, Helvetica, Arial, sans-serif">\n'
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _span_of_hours(value: float) -> str:
    return _span(value * 3600)


def _size_of_gb(value: float) -> str:
    return _size(value * 1e9)


def _panel(
    left: int, title: str, what: str, bars: list[tuple[str, str, float, str]], say: Callable[[float], str]
) -> tuple[list[str], int]:
    """Bars in groups, and where they end."""
    parts, y, group = [_text(left, 62, title, 14, weight="600")], 72, ""
    low = math.log10(min(value for *_, value, _ in bars)) - 0.4
    high = math.log10(max(value for *_, value, _ in bars))
    room = PANEL - 190
    for size, name, value, fill in bars:
        if size != group:
            group, y = size, y + 26
            parts.append(_text(left, y - 4, f"{size} {what}", 12, INK, "600"))
        length = max(2.0, room * (math.log10(value) - low) / (high - low))
        parts.append(_text(left + 78, y + 13, name, 12, anchor="end"))
        parts.append(f'<rect x="{left + 86}" y="{y}" width="{length:.0f}" height="17" rx="3" fill="{fill}"/>')
        parts.append(_text(left + 92 + length, y + 13, say(value), 12, PALE))
        y += 22
    return parts, y

"""What a profile says: where the time from images to vectors went, and what would help."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clip_embed._engine.device import device_kind, is_gpu

STAGES = ("read", "decode", "resize", "copy", "forward", "hand-over")
_BAR = 24


@dataclass(frozen=True, slots=True)
class Profile:
    """Where the time from images to vectors went; `print` shows it as a table with a verdict.

    Files come as the system gives them: those it has in its page cache are read fast.
    """

    images: int
    """Images that were given."""
    failed: int
    """Those among them that gave no vector."""
    seconds: float
    """Wall time of the whole run; the weights were loaded before."""
    stages: Mapping[str, float]
    """Seconds of threads for each of `STAGES`: their sum is more than `seconds` where cores share work."""
    decode_alone: float
    """Images per second read, decoded and resized, with no forward pass."""
    forward_alone: float
    """Images per second through the image tower, decoded beforehand; 0 where no image could be decoded."""
    device: str
    precision: str
    batch_size: int
    workers: int
    """Threads that read and decode."""
    processes: int = 0
    """Processes that those threads are in; 0 where they are in this one."""
    gpu_jpeg: bool = False
    """nvJPEG decodes beside them what none of them is free for."""
    gpu_resize: bool = False
    """The device resizes what they decode."""
    notes: tuple[str, ...] = ()
    """What is faster and not used, and why: it is not there, or did not hold when it was checked."""

    @property
    def images_per_second(self) -> float:
        """From images to vectors, everything included."""
        return self.images / self.seconds

    @property
    def ceiling(self) -> float:
        """Images per second that the two halves would give without a loss between them.

        On a CPU they share the cores; a GPU works beside them, so the slower half decides.
        """
        if not self.forward_alone:
            return self.decode_alone
        if not is_gpu(self.device):
            return 1 / (1 / self.decode_alone + 1 / self.forward_alone)
        return min(self.decode_alone, self.forward_alone)

    @property
    def verdict(self) -> str:
        """What decides the speed, in a sentence, and what would help."""
        parts = {
            "read": self._share("read"),
            "decode": self._share("decode", "resize"),
            "forward": self._share("copy", "forward"),
            "hand-over": self._share("hand-over"),
        }
        bound = max(parts, key=lambda part: parts[part])
        why = f"{parts[bound]:.0%} of the work is {_MEANING[bound]}"
        if is_gpu(self.device) and bound in ("decode", "forward"):
            bound = "decode" if self.decode_alone < self.forward_alone else "forward"
            why = (
                f"{_MEANING['decode']} give at most {self.decode_alone:,.0f} images/s, "
                f"{_MEANING['forward']} {self.forward_alone:,.0f}"
            )
        return f"{bound}-bound: {why}. {self._advice(bound)}"

    def _share(self, *names: str) -> float:
        return sum(self.stages[name] for name in names) / sum(self.stages.values())

    def _advice(self, bound: str) -> str:
        if bound == "forward" and not is_gpu(self.device):
            faster = 'precision="auto", ' if self.precision == "exact" else ""
            return f"Faster: {faster}a GPU, more cores, or a smaller model."
        if bound == "decode" and device_kind(self.device) == "cuda" and not self.gpu_jpeg:
            return _ADVICE[bound].replace("smaller", "nvJPEG by torchvision with CUDA, smaller")
        return _ADVICE[bound]

    def as_dict(self) -> dict[str, Any]:
        """Everything, verdict and rates included, as JSON has it."""
        facts = dataclasses.asdict(self) | {"stages": dict(self.stages)}
        return facts | {
            "images_per_second": self.images_per_second,
            "ceiling": self.ceiling,
            "verdict": self.verdict,
        }

    def __str__(self) -> str:
        threads = f"{self.workers} threads for decoding"
        threads += f" in {self.processes} processes" if self.processes else ""
        threads += ", nvJPEG beside them" if self.gpu_jpeg else ""
        threads += ", resize on the device" if self.gpu_resize else ""
        failed = f", {self.failed:,} of them failed" if self.failed else ""
        total, most = sum(self.stages.values()), max(self.stages.values())
        rows = [
            f"{name:<9}  {1000 * seconds / self.images:8.2f}  {seconds / total:6.1%}  "
            + "█" * round(_BAR * seconds / most)
            for name, seconds in self.stages.items()
        ]
        return "\n".join(
            (
                f"{self.images:,} images{failed}: {self.images_per_second:,.1f} images/s on {self.device} in "
                f"{self.precision}, batches of {self.batch_size}, {threads}",
                "",
                "stage      ms/image   share",
                *(row.rstrip() for row in rows),
                "",
                f"decoding alone {self.decode_alone:,.1f} images/s, forward pass alone "
                f"{self.forward_alone:,.1f}; together at most {self.ceiling:,.1f}, of which "
                f"{self.images_per_second / self.ceiling:.0%} are reached",
                *self.notes,
                self.verdict,
            )
        )


_MEANING = {
    "read": "reading files",
    "decode": "decoding and resizing",
    "forward": "the forward pass",
    "hand-over": "the thread that hands images in and takes vectors out",
}
_ADVICE = {
    "read": "Faster: a faster or nearer disk, or more workers, which wait for it side by side.",
    "decode": "Faster: JPEG files with clip-embed[fast] installed, smaller originals, or more cores.",
    "forward": "Faster: a smaller model, or more GPUs.",
    "hand-over": "Faster: larger batches, or images as paths rather than decoded.",
}

"""Matrix products on no more cores than the calling thread may use.

numpy's BLAS has threads of its own, a thread for each core, and they spin for a while after each product:
beside the decode threads and other batches that cost the offline model a third of its speed.
"""

from __future__ import annotations

from clip_embed._types import Float32


def product(left: Float32, right: Float32) -> Float32:
    """float32 (n, k), (k, m) -> float32 (n, m), by torch."""
    import torch

    with torch.inference_mode():
        rows: Float32 = (torch.from_numpy(left) @ torch.from_numpy(right)).numpy()
    return rows

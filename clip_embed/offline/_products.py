"""Matrix products on no more cores than the calling thread may use.

numpy's BLAS has threads of its own, a thread for each core, and they spin for a while after each product:
beside the decode threads and other batches that cost the offline model a third of its speed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from clip_embed._types import Float32


def product(left: npt.NDArray[np.floating], right: npt.NDArray[np.floating]) -> Float32:
    """(n, k), (k, m) -> float32 (n, m), in float32, by torch."""
    import torch

    with torch.inference_mode():
        rows, columns = (torch.as_tensor(np.asarray(each, np.float32)) for each in (left, right))
        return np.asarray(rows @ columns)

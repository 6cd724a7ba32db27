"""The offline model: image search by text with weights that install from the package index.

>>> from clip_embed.offline import OfflineModel
>>> OfflineModel().dim
1003
"""

from clip_embed.offline._model import OfflineModel

__all__ = ["OfflineModel"]

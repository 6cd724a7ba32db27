"""Query images by text: CLIP vectors of images and texts, for the tools people already use."""

from clip_embed._adopt import adopt
from clip_embed._cache.memory import EmbeddingCache
from clip_embed._classify import Classification
from clip_embed._embedder import ClipEmbedder
from clip_embed._engine.pipeline import ImageStream
from clip_embed._engine.verdict import Profile
from clip_embed._evaluate import Retrieval, evaluate_retrieval
from clip_embed._explain import LabelReport, explain_labels
from clip_embed._fewshot import Accuracy, Classifier, fit
from clip_embed._moderate import (
    Calibration,
    Category,
    Decision,
    ModerationPolicy,
    calibrate,
    moderate,
)
from clip_embed._relevance import Relevance, fit_relevance
from clip_embed._stamp import Stamp
from clip_embed._train import Training, train
from clip_embed._types import EmbeddedBatch, ImageFailure, ImagePolicy, ImageSpec, Model
from clip_embed._visual import Duplicates, Matches, diverse, duplicates, similar
from clip_embed.errors import (
    ClipEmbedError,
    ImageBatchError,
    ImageError,
    MissingExtra,
    ModelError,
    ModelForked,
    ModelNotFound,
    ModelUnsupported,
    SpaceMismatch,
)

__version__ = "0.1.0"

__all__ = [
    "Accuracy",
    "Calibration",
    "Category",
    "Classification",
    "Classifier",
    "ClipEmbedError",
    "ClipEmbedder",
    "Decision",
    "Duplicates",
    "EmbeddedBatch",
    "EmbeddingCache",
    "ImageBatchError",
    "ImageError",
    "ImageFailure",
    "ImagePolicy",
    "ImageSpec",
    "ImageStream",
    "LabelReport",
    "Matches",
    "MissingExtra",
    "Model",
    "ModelError",
    "ModelForked",
    "ModelNotFound",
    "ModelUnsupported",
    "ModerationPolicy",
    "Profile",
    "Relevance",
    "Retrieval",
    "SpaceMismatch",
    "Stamp",
    "Training",
    "adopt",
    "calibrate",
    "diverse",
    "duplicates",
    "evaluate_retrieval",
    "explain_labels",
    "fit",
    "fit_relevance",
    "moderate",
    "similar",
    "train",
]

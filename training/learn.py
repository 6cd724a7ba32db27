"""The trainable heads, and how they learn: small residual networks on the frozen towers' vectors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from features import Features
from texts import Texts
from torch import Tensor, nn
from torch.nn import functional

from clip_embed.offline._heads import CONSE_CLASSES, CONSE_TEMPERATURE, FEATURE_LENGTH, ConseHeads

MEANING = 384


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a training run hangs on, besides the data; ablations change one of these."""

    seed: int = 0
    steps: int = 800
    rate: float = 1.5e-3
    hidden: int = 256
    text_head: bool = True
    """Train a head for texts along. It is not used afterwards: it takes up how the training texts are worded,
    so that the image head need not."""
    pull_photos: float = 4.0
    """Weight of an imitated photo's squared distance from its ConSE vector."""
    pull_drawings: float = 0.3
    pull_texts: float = 1.0
    same: float = 0.05
    """Temperature of the soft targets: texts this alike by the text tower count as the same."""
    drawings: int = 192
    photos: int = 96
    things: int = 128
    """Of each kind in one step."""
    staged: bool = True
    kinds: bool = True
    """Hypernyms of classes."""
    looks: bool = True
    """Glosses and descriptions of classes."""
    pairs: bool = True
    """Two classes in one imitated photo."""


class Heads(nn.Module):
    """Both heads; their output is a unit vector that starts as the ConSE or text vector."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self._has_text = recipe.text_head
        self.image_in = nn.Linear(2 * 1280 + MEANING, recipe.hidden)
        self.image_out = nn.Linear(recipe.hidden, MEANING)
        outgoing = [self.image_out]
        if recipe.text_head:
            self.text_in = nn.Linear(MEANING, recipe.hidden)
            self.text_out = nn.Linear(recipe.hidden, MEANING)
            outgoing.append(self.text_out)
        for layer in outgoing:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.scale = nn.Parameter(torch.tensor(3.0))

    def image(self, features: Tensor, focused: Tensor, conse: Tensor) -> Tensor:
        """(n, 1280), (n, 1280), (n, 384) -> (n, 384)."""
        seen = [FEATURE_LENGTH * functional.normalize(part, dim=1) for part in (features, focused)]
        hidden = functional.relu(self.image_in(torch.cat([*seen, conse], dim=1)))
        return functional.normalize(conse + self.image_out(self._drop(hidden)), dim=1)

    def text(self, vectors: Tensor) -> Tensor:
        """(m, 384) -> (m, 384); the same vectors without a text head."""
        if not self._has_text:
            return vectors
        hidden = functional.relu(self.text_in(vectors))
        return functional.normalize(vectors + self.text_out(self._drop(hidden)), dim=1)

    def _drop(self, hidden: Tensor) -> Tensor:
        return functional.dropout(hidden, 0.2, self.training)


class Teacher:
    """Draws the batches and gives the loss."""

    def __init__(
        self, recipe: Recipe, seen: Features, rows: npt.NDArray[np.int64], texts: Texts, classifier: nn.Linear
    ) -> None:
        self.recipe, self.texts = recipe, texts
        rows = rows if recipe.staged else rows[seen.view[rows] == 0]
        self._drawing = seen.drawing[rows]
        self._features, self._focused = (
            torch.from_numpy(part[rows].astype(np.float32)) for part in (seen.features, seen.focused)
        )
        self._classifier, self._vectors = classifier, torch.from_numpy(texts.vectors)
        self._class_vectors = torch.from_numpy(ConseHeads().class_vectors)
        self._random = np.random.default_rng(recipe.seed)

    @torch.no_grad()
    def _conse(self, features: Tensor) -> Tensor:
        scaled = self._classifier(features) / CONSE_TEMPERATURE
        top = scaled.topk(CONSE_CLASSES, dim=1)
        weights = torch.zeros_like(scaled).scatter_(1, top.indices, top.values.softmax(dim=1))
        return functional.normalize(weights @ self._class_vectors, dim=1)

    def loss(self, heads: Heads) -> Tensor:
        """Of one fresh batch."""
        recipe = self.recipe
        drawn, drawn_texts = self._draw_drawings()
        imitated, imitated_texts = self._imitate_photos()
        features, focused = (torch.cat(parts) for parts in zip(drawn, imitated, strict=True))
        conse = self._conse(features)
        images = heads.image(features, focused, conse)
        plain = torch.cat([drawn_texts, imitated_texts])
        written = heads.text(plain)
        moved = (images - conse).square().sum(dim=1)
        loss = self._contrast(images, written, plain, heads.scale)
        loss = loss + recipe.pull_drawings * moved[: recipe.drawings].mean()
        loss = loss + recipe.pull_photos * moved[recipe.drawings :].mean()
        if not recipe.text_head:
            return loss
        if recipe.things:
            names, glosses = self._draw_things()
            both = heads.text(torch.cat([names, glosses]))
            loss = loss + self._contrast(both[: len(names)], both[len(names) :], glosses, heads.scale)
            plain, written = torch.cat([plain, names, glosses]), torch.cat([written, both])
        return loss + recipe.pull_texts * (written - plain).square().sum(dim=1).mean()

    def _contrast(self, left: Tensor, right: Tensor, meaning: Tensor, scale: Tensor) -> Tensor:
        """Cross entropy both ways; what means nearly the same counts as right in that measure."""
        wanted = (meaning @ meaning.T / self.recipe.same).softmax(dim=1)
        scores = scale.exp().clamp(max=50) * left @ right.T
        return (
            -(
                (wanted * scores.log_softmax(dim=1)).sum(dim=1).mean()
                + (wanted.T * scores.log_softmax(dim=0)).sum(dim=0).mean()
            )
            / 2
        )

    def _draw_drawings(self) -> tuple[tuple[Tensor, Tensor], Tensor]:
        rows = self._random.integers(len(self._drawing), size=self.recipe.drawings)
        said = [self._one_of(self.texts.of_drawing[number]) for number in self._drawing[rows]]
        return (self._features[rows], self._focused[rows]), self._vectors[said]

    def _imitate_photos(self) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Features of photos that nobody took: a class's direction added to those of a drawing, dimmed."""
        count, random = self.recipe.photos, self._random
        label = random.integers(len(self._class_vectors), size=count)
        other = random.integers(len(self._class_vectors), size=count)
        share = np.where(random.random(count) < (0.15 if self.recipe.pairs else 0), 0.5, 0.0)
        base = self._features[random.integers(len(self._features), size=count)]
        weights = functional.normalize(self._classifier.weight.detach(), dim=1)
        direction = torch.from_numpy(1 - share).float()[:, None] * weights[label]
        direction = direction + torch.from_numpy(share).float()[:, None] * weights[other]
        dimmed = base * torch.from_numpy(random.uniform(0.2, 0.7, (count, 1))).float()
        strength = torch.from_numpy(random.uniform(0.7, 1.6, (count, 1))).float() * base.norm(dim=1).mean()
        features = (dimmed + strength * direction).clamp(min=0)
        focused = (dimmed + 1.5 * strength * direction).clamp(min=0)
        said = [
            self._say_class(one, two if half else None)
            for one, two, half in zip(label, other, share, strict=True)
        ]
        return (features, focused), functional.normalize(torch.stack(said), dim=1)

    def _say_class(self, label: int, other: int | None) -> Tensor:
        texts, chance = self.texts, self._random.random()
        if other is not None:
            return self._vectors[texts.of_class[label][0]] + self._vectors[texts.of_class[other][0]]
        if chance < 0.2 and self.recipe.kinds and texts.of_class_kind[label]:
            return self._vectors[self._one_of(texts.of_class_kind[label])]
        if chance > 0.8 and self.recipe.looks:
            return self._vectors[self._one_of(texts.of_class_looks[label])]
        return self._vectors[self._one_of(texts.of_class[label])]

    def _draw_things(self) -> tuple[Tensor, Tensor]:
        rows = self._random.integers(len(self.texts.of_thing), size=self.recipe.things)
        pairs = [self.texts.of_thing[row] for row in rows]
        return self._vectors[[name for name, _ in pairs]], self._vectors[[gloss for _, gloss in pairs]]

    def _one_of(self, numbers: list[int]) -> int:
        return numbers[self._random.integers(len(numbers))]


def train(
    recipe: Recipe, seen: Features, rows: npt.NDArray[np.int64], texts: Texts, classifier: nn.Linear
) -> Heads:
    """Heads after all steps; the same on the same machine for the same arguments."""
    torch.manual_seed(recipe.seed)
    torch.use_deterministic_algorithms(True)
    teacher, heads = Teacher(recipe, seen, rows, texts, classifier), Heads(recipe).train()
    optimizer = torch.optim.AdamW(heads.parameters(), lr=recipe.rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    for _ in range(recipe.steps):
        loss = teacher.loss(heads)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return heads.eval()

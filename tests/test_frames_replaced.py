"""Columns that a verb would replace: the user's own are warned of, earlier results are not."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

import clip_embed_pandas as cp
import clip_embed_polars as cpl
from clip_embed import ClipEmbedder


@pytest.fixture(autouse=True)
def _in_use(clip: ClipEmbedder) -> Iterator[None]:
    cp.use(clip)
    yield
    cp.use(None)


def pictures() -> list[Any]:
    """Six pictures, two of them alike."""
    rng = np.random.default_rng(0)
    found = [rng.integers(0, 256, (8, 8, 3), np.uint8) for _ in range(5)]
    return [*found, found[0]]


def pandas(**columns: Any) -> Any:  # noqa: ANN401
    """A frame of pandas with vectors."""
    return cp.embed(pd.DataFrame({"img": pictures()})).assign(**columns)


def polars(**columns: Any) -> Any:  # noqa: ANN401
    """A frame of polars with vectors."""
    frame = cpl.embed(pl.DataFrame({"img": pl.Series(pictures(), dtype=pl.Object)}))
    return frame.with_columns(**{name: pl.Series(values) for name, values in columns.items()})


VERBS: dict[str, tuple[Callable[[Any, Any], Any], dict[str, list[Any]]]] = {
    "embed": (lambda verbs, data: verbs.embed(data, "img"), {"embedding": list("abcdef")}),
    "search": (lambda verbs, data: verbs.search(data, "red"), {"score": [0.5] * 6}),
    "similar": (lambda verbs, data: verbs.similar(data, pictures()[0]), {"score": list("abcdef")}),
    "classify": (lambda verbs, data: verbs.classify(data, ["a", "b"]), {"label": list("abcdef")}),
    "duplicates": (lambda verbs, data: verbs.duplicates(data, 0.999), {"group": [1] * 6}),
    "project": (lambda verbs, data: verbs.project(data), {"x": [1] * 6, "y": [2.0] * 6}),
    "failures": (lambda verbs, data: verbs.failures(data), {"reason": [1] * 6}),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(("verbs", "make"), [(cp, pandas), (cpl, polars)], ids=["pandas", "polars"])
def test_a_column_of_the_users_own_is_warned_of(verb: str, verbs: Any, make: Any) -> None:  # noqa: ANN401
    """One warning names it and the way out; the same verb on its own result is silent."""
    run, own = VERBS[verb]
    names = ", ".join(map(repr, own))
    with pytest.warns(UserWarning, match=f"replaced by results of the same name: {names}; rename") as caught:
        run(verbs, make(**own))
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert ("into=" in str(caught[0].message)) == (verb in ("embed", "search", "similar"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        once = run(verbs, make())
        again = run(verbs, once)
        assert list(again.columns) == list(once.columns)


@pytest.mark.parametrize(("verbs", "make"), [(cp, pandas), (cpl, polars)], ids=["pandas", "polars"])
def test_the_column_of_images_is_never_replaced(verbs: Any, make: Any) -> None:  # noqa: ANN401
    """Nor does a verb take something else than a name."""
    for column in ("img", None):
        with pytest.raises(ValueError, match="into='img' would replace the column of images 'img': give"):
            verbs.embed(make(), column, into="img")
    for into in (None, ["a"]):
        with pytest.raises(TypeError, match="into must be the name of a new column, a str, not "):
            verbs.embed(make(), "img", into=into)
        with pytest.raises(TypeError, match="into must be the name of a new column"):
            verbs.search(make(), "red", into=into)


def test_a_lazy_frame_warns_when_it_is_written() -> None:
    """Its types are known before it is collected."""
    with pytest.warns(UserWarning, match="replaced by results of the same name: 'label'"):
        lazy = cpl.classify(polars(label=list("abcdef")).lazy(), ["a", "b"])
    assert lazy.collect()["label"].dtype == pl.Enum(["a", "b"])

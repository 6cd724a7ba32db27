"""Uses of clip_embed_pandas and clip_embed_polars that the type checkers must accept."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
from PIL import Image

import clip_embed_pandas as cp
import clip_embed_polars as cpl
from clip_embed import ClipEmbedder


def use_pandas(df: pd.DataFrame, s: "pd.Series[Any]", clip: ClipEmbedder) -> None:
    """Call every verb in the ways that the contract allows."""
    cp.use(clip)
    cp.use(None)
    frame: pd.DataFrame = cp.embed(df)
    frame = cp.embed(df, "img", into="vector", embedder=clip)
    column: pd.Series[Any] = cp.embed(s)
    frame = cp.search(df, "red car", k=3, column="img", into="likeness").head(2)
    gallery: cp.Gallery = cp.similar(frame, Path("a.jpg"))
    gallery = cp.similar(frame, Image.new("RGB", (2, 2)))
    gallery = cp.similar(frame, np.zeros(512, np.float32))
    gallery = cp.classify(column, ["car", "dog"], templates=["a photo of a {}"])
    frame = cp.probabilities(gallery, {"car": ["car", "automobile"]}, multi=True)
    gallery = cp.duplicates(gallery, 0.9)
    column = cp.score(s, "red car")
    frame = cp.failures(df, "img")
    frame = cp.project(df, method="umap")
    cp.plot(cp.gallery(frame), image="img").save("map.svg")
    rows: np.ndarray[Any, np.dtype[np.float32]] = cp.to_numpy(frame)
    cp.to_parquet(cp.read_parquet("a.parquet"), Path("b.parquet"))
    print(rows)


def use_polars(df: pl.DataFrame, lf: pl.LazyFrame) -> None:
    """A frame gives a frame, a lazy one a lazy one."""
    eager: pl.DataFrame = cpl.embed(df)
    lazy: pl.LazyFrame = cpl.search(cpl.embed(lf, "img"), "red car")
    eager = cpl.classify(cpl.similar(eager, "a.jpg"), ["car", "dog"])
    eager = cpl.probabilities(eager, ["car", "dog"], multi=True)
    series: pl.Series = cpl.score(eager, "red car")
    eager = cpl.failures(cpl.project(cpl.duplicates(eager)))
    cpl.plot(eager).save("map.svg")
    print(lazy.collect(), series, cpl.gallery(eager))

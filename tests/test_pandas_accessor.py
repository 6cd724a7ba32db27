"""`df.clip` is pandas' own method in every respect, and has the verbs beside."""

from __future__ import annotations

import copy
import inspect
import pickle
import pydoc
import subprocess
import sys
import types
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

import clip_embed_pandas
from clip_embed_pandas._accessor import FRAME_VERBS, VERBS

PLAIN = pd.core.generic.NDFrame.__dict__["clip"]
"""pandas' own function."""


@pytest.fixture
def frame() -> Any:  # noqa: ANN401
    """Numbers to clip."""
    return pd.DataFrame({"a": [1.0, 5.0, -3.0], "b": [0.0, 2.0, 9.0]})


def test_calls_are_those_of_pandas(frame: Any) -> None:  # noqa: ANN401
    """Every way to call `clip`, on objects and on the classes, gives what pandas' function gives."""
    plain = types.MethodType(PLAIN, frame)
    pd.testing.assert_frame_equal(frame.clip(lower=0), plain(lower=0))
    pd.testing.assert_frame_equal(frame.clip(0, 2), plain(0, 2))
    pd.testing.assert_frame_equal(np.clip(frame, 0, 1), plain(0, 1))
    pd.testing.assert_frame_equal(pd.DataFrame.clip(frame, 0), plain(0))
    pd.testing.assert_frame_equal(frame.pipe(pd.DataFrame.clip, lower=0), plain(lower=0))
    pd.testing.assert_frame_equal(frame.apply(pd.Series.clip, lower=0), plain(lower=0))
    pd.testing.assert_frame_equal(frame.apply("clip", lower=0), plain(lower=0))
    pd.testing.assert_frame_equal(frame.clip(frame["a"], axis=0), plain(frame["a"], axis=0))
    pd.testing.assert_series_equal(frame["a"].clip(0), PLAIN(frame["a"], 0))
    with pytest.raises(TypeError, match="positional arguments"):
        frame.clip(0, 1, 2)


def test_the_classes_keep_their_function() -> None:
    """`pd.DataFrame.clip` is the very function, also of a subclass; GeoDataFrame's kind of own clip stays."""

    class Plain(pd.DataFrame):  # type: ignore[misc]
        """Nothing of its own."""

    class Own(pd.DataFrame):  # type: ignore[misc]
        """A clip of its own, which calls pandas'."""

        def clip(self, lower: float = 0) -> Any:  # noqa: ANN401
            return super().clip(lower=lower)

    assert pd.DataFrame.clip is PLAIN
    assert pd.Series.clip is PLAIN
    assert Plain.clip is PLAIN
    assert Own({"a": [-1]}).clip()["a"].tolist() == [0]
    assert Plain({"a": ["x.jpg"]}).clip.gallery().shape == (1, 1)


def test_it_looks_like_the_bound_method(frame: Any) -> None:  # noqa: ANN401
    """Signature, names, documentation, repr and help are those of the method; the verbs are listed too."""
    plain, ours = types.MethodType(PLAIN, frame), frame.clip
    assert inspect.signature(ours) == inspect.signature(plain)
    assert (ours.__name__, ours.__qualname__, ours.__doc__) == (
        plain.__name__,
        plain.__qualname__,
        plain.__doc__,
    )
    assert ours.__func__ is PLAIN
    assert ours.__self__ is frame
    assert repr(ours) == repr(plain)
    assert "Trim values at input threshold" in pydoc.render_doc(ours)
    assert {*dir(plain), *FRAME_VERBS} == set(dir(ours))
    assert {*VERBS} <= set(dir(frame["a"].clip))
    assert "to_parquet" not in dir(frame["a"].clip)
    assert "column" in inspect.signature(ours.embed).parameters
    with pytest.raises(AttributeError, match="no_such_verb"):
        ours.no_such_verb  # noqa: B018


def test_equality_pickle_and_copy(frame: Any) -> None:  # noqa: ANN401
    """Two accesses are equal, as two bound methods are; pickle and copies behave as those of methods."""
    other = frame.copy()
    assert frame.clip == frame.clip == types.MethodType(PLAIN, frame)
    assert frame.clip != other.clip
    assert hash(frame.clip) == hash(frame.clip) == hash(types.MethodType(PLAIN, frame))
    again = pickle.loads(pickle.dumps(frame.clip))  # noqa: S301 - our own
    pd.testing.assert_frame_equal(again(0, 1), frame.clip(0, 1))
    assert copy.copy(frame.clip).__self__ is frame
    deep = copy.deepcopy(frame.clip)
    assert deep.__self__ is not frame
    pd.testing.assert_frame_equal(deep.__self__, frame)
    assert pickle.dumps(frame.clip) == pickle.dumps(types.MethodType(PLAIN, frame))


def test_the_accessor_leaves_no_trace(frame: Any) -> None:  # noqa: ANN401
    """Nothing is kept on the frame: its pickle is the same before and after, and it can be freed."""
    before = pickle.dumps(frame)
    frame["a"].clip(frame.clip(0)["a"])
    assert frame.clip.embed is not frame.clip_embed.embed
    assert pickle.dumps(frame) == before
    own = pd.DataFrame({"a": [1.0]})
    gone = weakref.ref(own)
    own.clip(0)
    del own
    assert gone() is None


def _warnings(call: Callable[[], object]) -> list[tuple[str, str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [(each.category.__name__, each.filename) for each in caught]


def test_chained_assignment_warns_as_pandas_does(frame: Any) -> None:  # noqa: ANN401
    """In-place calls on a temporary object warn, at the caller's line; on anything that has a name not."""

    def chained_column() -> None:
        frame["a"].clip(0, 1, inplace=True)

    def chained_frame() -> None:
        frame[["a"]].clip(0, 1, inplace=True)

    def named() -> None:
        column = frame["a"]
        column.clip(0, 1, inplace=True)

    def whole() -> None:
        frame.clip(0, 9, inplace=True)

    def kept() -> None:
        method = frame["a"].clip
        method(0, 1, inplace=True)

    def plain(name: str) -> None:
        {
            "chained_column": lambda: PLAIN(frame["a"], 0, 1, inplace=True),
            "chained_frame": lambda: PLAIN(frame[["a"]], 0, 1, inplace=True),
        }[name]()

    for call in (named, whole, kept):
        assert not _warnings(call), call.__name__
    if int(pd.__version__.split(".")[0]) < 3:
        return  # its rules are those of pandas' own tests: test_pandas_own_tests.py
    for call in (chained_column, chained_frame):
        expected = [(name, __file__) for name, _ in _warnings(lambda call=call: plain(call.__name__))]  # type: ignore[misc]
        assert _warnings(call) == expected == [("ChainedAssignmentError", __file__)]
        for _ in range(300):  # the interpreter specialises what it runs often
            assert len(_warnings(call)) == 1


def test_in_place_changes_the_object(frame: Any) -> None:  # noqa: ANN401
    """The call does what it says, on the same memory."""
    values = frame["a"].to_numpy()
    frame.clip(0, 2, inplace=True)
    assert frame["a"].tolist() == [1, 2, 0]
    del values


def test_a_token_of_dask_is_stable() -> None:
    """Dask gives the method the same token in every run, so it recognises work that it knows."""
    pytest.importorskip("dask", reason="needs dask")
    code = (
        "import pandas as pd; import clip_embed_pandas; from dask.base import tokenize;"
        "print(tokenize(pd.DataFrame({'a': [1, 2]}).clip))"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout  # noqa: S603
        for _ in range(2)
    ]
    assert runs[0] == runs[1] != ""


def test_the_official_alias(frame: Any) -> None:  # noqa: ANN401
    """`clip_embed` is registered as pandas documents it, with the same verbs and no warning."""
    assert "clip_embed" in pd.DataFrame._accessors
    assert "clip_embed" in pd.Series._accessors
    assert "clip_embed" in dir(frame)
    for name in FRAME_VERBS:
        assert callable(getattr(frame.clip_embed, name))
    assert not callable(frame.clip_embed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip_embed_pandas._accessor.install()


def test_names_are_pinned() -> None:
    """`__all__` is sorted and the public contract; each verb is a function and a method."""
    assert clip_embed_pandas.__all__ == sorted(clip_embed_pandas.__all__)
    functions = {name for name in clip_embed_pandas.__all__ if name[0].islower()}
    assert functions - {"read_parquet", "use"} == set(FRAME_VERBS)

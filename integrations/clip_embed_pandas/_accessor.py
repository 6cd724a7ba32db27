"""`df.clip`: pandas' own method when it is called, and the verbs."""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Callable
from typing import Any, TypeVar, cast

import pandas as pd

from clip_embed_pandas import _files, _maps, _vectors, _verbs

_NAME = "clip"
_ALIAS = "clip_embed"
_T = TypeVar("_T")


def _verb(function: Callable[..., _T]) -> Callable[..., _T]:
    """Return a verb as a method: its first parameter is what the accessor belongs to."""

    @functools.wraps(function)
    def method(self: Verbs, *args: Any, **kwargs: Any) -> _T:  # noqa: ANN401 - those of the verb
        return function(self._data, *args, **kwargs)  # pyright: ignore[reportPrivateUsage]

    return method


class Verbs:
    """Query images by text: the verbs of clip_embed_pandas for this frame or column."""

    _data: Any

    embed = _verb(_verbs.embed)
    search = _verb(_verbs.search)
    score = _verb(_verbs.score)
    classify = _verb(_verbs.classify)
    probabilities = _verb(_verbs.probabilities)
    similar = _verb(_verbs.similar)
    duplicates = _verb(_verbs.duplicates)
    failures = _verb(_verbs.failures)
    gallery = _verb(_verbs.gallery)
    project = _verb(_maps.project)
    plot = _verb(_maps.plot)
    to_numpy = _verb(_vectors.to_numpy)


class FrameVerbs(Verbs):
    """The accessor of a frame: also writes files."""

    to_parquet = _verb(_files.to_parquet)


VERBS = tuple(name for name in vars(Verbs) if not name.startswith("_"))
FRAME_VERBS = (*VERBS, "to_parquet")


class FrameAlias(FrameVerbs):
    """Query images by text: the verbs of clip_embed_pandas for this frame."""

    def __init__(self, data: pd.DataFrame) -> None:
        self._data = data


class SeriesAlias(Verbs):
    """Query images by text: the verbs of clip_embed_pandas for this column."""

    def __init__(self, data: pd.Series[Any]) -> None:
        self._data = data


class ClipMethod(FrameVerbs):
    """pandas' own bound method `clip` in all that can be seen of it, with the verbs beside."""

    __slots__ = ("__func__", "__self__", "_counting")

    def __init__(self, function: Callable[..., Any], counting: Callable[..., Any], data: Any) -> None:  # noqa: ANN401
        self.__func__ = function
        self._counting = counting
        self.__self__ = data

    @property
    def __call__(self) -> Callable[..., Any]:
        """The bound method itself: no frame of ours stands between pandas and whom its warnings point at."""
        fleeting = sys.getrefcount(self) <= _HELD
        return types.MethodType(self._counting if fleeting else self.__func__, self.__self__)

    @property
    def _data(self) -> Any:  # noqa: ANN401
        return self.__self__

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.__func__.__doc__

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._method())

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        if name in ClipMethod.__slots__:
            raise AttributeError(name)
        return getattr(self.__func__, name)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, str]]:
        return getattr, (self.__self__, _NAME)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, (ClipMethod, types.MethodType)):
            return other.__self__ is self.__self__ and other.__func__ is self.__func__
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self._method())

    def __repr__(self) -> str:
        return repr(self._method())

    def __dir__(self) -> list[str]:
        verbs = FRAME_VERBS if isinstance(self.__self__, pd.DataFrame) else VERBS
        return sorted({*dir(self._method()), *verbs})

    def _method(self) -> types.MethodType:
        return types.MethodType(self.__func__, self.__self__)


class ClipAttribute:
    """The attribute `clip` of a class: on the class pandas' own function, on an object a `ClipMethod`."""

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(cast("Callable[..., Any]", self), function)
        self._function = function
        self._counting = _with_more_references(function)

    def __get__(self, data: Any, owner: type | None = None) -> Any:  # noqa: ANN401
        return self._function if data is None else ClipMethod(self._function, self._counting, data)


def _with_more_references(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the same function with the counts of references raised that it compares with.

    pandas warns of an in-place call on a temporary object, which changes nothing, and knows one by having
    no other reference than the call's. Here there are two more: the accessor's and the bound method's.
    """
    if not isinstance(function, types.FunctionType):
        return function
    names = ("REF_COUNT", "REF_COUNT_METHOD")
    raised = {name: function.__globals__[name] + 2 for name in names if name in function.__globals__}
    scope = {**function.__globals__, **raised}
    same = types.FunctionType(
        function.__code__, scope, function.__name__, function.__defaults__, function.__closure__
    )
    same.__kwdefaults__ = function.__kwdefaults__
    return functools.update_wrapper(same, function)


def _count_references() -> int:
    """Return how many references there are to an object that is called as soon as it is made."""

    class Fleeting:
        @property
        def __call__(self) -> Callable[..., int]:
            count = sys.getrefcount(self)
            return lambda *args, **kwargs: count

    class Owner:
        attribute = property(lambda self: Fleeting())

    return cast("int", cast("Any", Owner()).attribute(0, inplace=True))


_HELD = _count_references()


def install() -> None:
    """Give DataFrame and Series the accessors; nothing happens the second time."""
    if isinstance(vars(pd.DataFrame).get(_NAME), ClipAttribute):
        return
    for owner in (pd.DataFrame, pd.Series):
        setattr(owner, _NAME, ClipAttribute(getattr(owner, _NAME)))
    pd.api.extensions.register_dataframe_accessor(_ALIAS)(FrameAlias)
    pd.api.extensions.register_series_accessor(_ALIAS)(SeriesAlias)

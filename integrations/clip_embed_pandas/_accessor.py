"""`df.clip`: pandas' own method when it is called, and the verbs."""

from __future__ import annotations

import functools
import inspect
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any, TypeVar, cast

import pandas as pd

from clip_embed_pandas import _files, _maps, _verbs

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
    similar = _verb(_verbs.similar)
    duplicates = _verb(_verbs.duplicates)
    failures = _verb(_verbs.failures)
    gallery = _verb(_verbs.gallery)
    project = _verb(_maps.project)
    plot = _verb(_maps.plot)
    to_numpy = _verb(_verbs.to_numpy)


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

    __slots__ = ("__func__", "__self__", "_others")

    def __init__(self, function: Callable[..., Any], data: Any, others: int) -> None:  # noqa: ANN401
        self.__func__ = function
        self.__self__ = data
        self._others = others

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - those of pandas
        fleeting = sys.getrefcount(self) <= _CALLED
        if kwargs.get("inplace") and fleeting and _is_chained(self.__self__, self._others):
            for message in _what_pandas_says(self.__func__):
                warnings.warn(message, stacklevel=2)
        return self.__func__(self.__self__, *args, **kwargs)

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

    def __get__(self, data: Any, owner: type | None = None) -> Any:  # noqa: ANN401
        others = sys.getrefcount(data) - _FETCHED  # first of all, before more references are made
        return self._function if data is None else ClipMethod(self._function, data, others)


def _count_references() -> tuple[int, int]:
    """Return how many references a descriptor sees to a temporary object, and `__call__` to what it gave."""

    class Method:
        def __init__(self, seen: int) -> None:
            self.seen = seen

        def __call__(self, *args: object, **kwargs: object) -> tuple[int, int]:
            return self.seen, sys.getrefcount(self)

    class Attribute:
        def __get__(self, data: object, owner: type | None = None) -> Method:
            return Method(sys.getrefcount(data))

    class Owner:
        attribute = Attribute()

        def __getattr__(self, name: str) -> object:
            raise AttributeError(name)

    return Owner().attribute(0, inplace=True)


_FETCHED, _CALLED = _count_references()


def _is_chained(data: Any, others: int) -> bool:  # noqa: ANN401
    """Whether pandas takes an in-place call for one on a temporary object, which changes nothing.

    It counts references, and sees one more here than it should: `others` is the count without it.
    """
    if int(pd.__version__.partition(".")[0]) < 3 and not pd.get_option("mode.copy_on_write"):
        return data._is_view_after_cow_rules() and others <= hasattr(data, "_cacher")
    caller = inspect.stack(0)[2].frame
    return others <= 0 and all(value is not data for value in caller.f_locals.values())


def _what_pandas_says(function: Callable[..., Any]) -> list[Warning | str]:
    """Return the warnings for such a call, in the words of this version of pandas and its mode."""
    frame = pd.DataFrame({"a": [0.0]})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function(frame["a"], 0, inplace=True)
    return [each.message for each in caught]


def install() -> None:
    """Give DataFrame and Series the accessors; nothing happens the second time."""
    if isinstance(vars(pd.DataFrame).get(_NAME), ClipAttribute):
        return
    for owner in (pd.DataFrame, pd.Series):
        setattr(owner, _NAME, ClipAttribute(getattr(owner, _NAME)))
    pd.api.extensions.register_dataframe_accessor(_ALIAS)(FrameAlias)
    pd.api.extensions.register_series_accessor(_ALIAS)(SeriesAlias)

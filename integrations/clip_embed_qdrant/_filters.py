"""One form of filter for both engines.

`where={"camera": "X100", "size": {"$gte": 10_000}}` becomes a tree of the few records below, and the
tree becomes the filter of Qdrant Edge or that of qdrant-client.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, TypeAlias, cast

import numpy as np
import qdrant_edge as edge
from qdrant_client import models

Where: TypeAlias = Mapping[str, object]
Bounds: TypeAlias = dict[str, float] | dict[str, str]

_RANGES = ("$gt", "$gte", "$lt", "$lte")
_OPERATORS = ("$eq", "$ne", "$in", "$nin", "$exists", *_RANGES)
_GROUPS = ("$and", "$or", "$not")


@dataclass(frozen=True, slots=True)
class Equals:
    """A field, or one of the values in it, equals a text, a whole number or a bool."""

    field: str
    value: str | int | bool


@dataclass(frozen=True, slots=True)
class Within:
    """A field lies within bounds, numbers or ISO dates, by "gt", "gte", "lt" and "lte"."""

    field: str
    bounds: Bounds


@dataclass(frozen=True, slots=True)
class Empty:
    """A field is missing, null or an empty list."""

    field: str


@dataclass(frozen=True, slots=True)
class HasId:
    """The point is one of these."""

    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HasVector:
    """The point has a vector of this name."""

    name: str


@dataclass(frozen=True, slots=True)
class All:
    """All of these hold."""

    parts: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """At least one of these holds."""

    parts: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The part does not hold."""

    part: Condition


Leaf: TypeAlias = Equals | Within | Empty | HasId | HasVector
Condition: TypeAlias = Leaf | All | AnyOf | Not
CONDITIONS = (Equals, Within, Empty, HasId, HasVector, All, AnyOf, Not)


def parse_where(where: Where | None) -> Condition | None:
    """Return the tree of a filter, None for none. Raises ValueError that names what is wrong in it."""
    if where is None:
        return None
    if not isinstance(where, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"where must be a mapping of fields to values, not {type(where).__name__}")
    return All(tuple(_entry(name, value) for name, value in where.items()))


def _entry(name: str, value: object) -> Condition:
    if name in ("$and", "$or"):
        if not isinstance(value, (list, tuple)) or not value:
            raise ValueError(f"{name} takes a list of filters, not {value!r}")
        parts = tuple(_required(part) for part in cast("Sequence[Where]", value))
        return All(parts) if name == "$and" else AnyOf(parts)
    if name == "$not":
        return Not(_required(cast("Where", value)))
    if name.startswith("$"):
        raise ValueError(f"there is no {name}; a filter takes fields and {', '.join(_GROUPS)}")
    if isinstance(value, Mapping):
        return All(_operators(name, cast("Mapping[str, object]", value)))
    if isinstance(value, (list, tuple, set, frozenset)):
        return _any_of(name, cast("Sequence[object]", value))
    return _equals(name, value)


def _required(where: Where) -> Condition:
    condition = parse_where(where)
    if condition is None:
        raise ValueError("a filter inside a filter must not be None")
    return condition


def _operators(field: str, given: Mapping[str, object]) -> tuple[Condition, ...]:
    if unknown := [name for name in given if name not in _OPERATORS]:
        raise ValueError(f"there is no {unknown[0]} for {field!r}; there are {', '.join(_OPERATORS)}")
    if not given:
        raise ValueError(f"the filter for {field!r} is empty")
    found: list[Condition] = []
    for name, value in given.items():
        if name == "$eq":
            found.append(_equals(field, value))
        elif name == "$ne":
            found.append(Not(_equals(field, value)))
        elif name == "$in":
            found.append(_any_of(field, value))
        elif name == "$nin":
            found.append(Not(_any_of(field, value)))
        elif name == "$exists":
            found.append(Not(Empty(field)) if value else Empty(field))
    bounds = {name[1:]: _bound(field, given[name]) for name in _RANGES if name in given}
    if len({type(bound) for bound in bounds.values()}) > 1:
        raise ValueError(f"the bounds of {field!r} are numbers and dates at once")
    return (*found, Within(field, cast("Bounds", bounds))) if bounds else tuple(found)


def _any_of(field: str, values: object) -> Condition:
    if not isinstance(values, (list, tuple, set, frozenset)) or not values:
        raise ValueError(f"one of what may {field!r} be? Give a list of values, not {values!r}")
    return AnyOf(tuple(_equals(field, value) for value in cast("Sequence[object]", values)))


def _equals(field: str, value: object) -> Condition:
    if isinstance(value, np.generic):
        value = cast("object", value.item())
    if value is None:
        return Empty(field)
    if isinstance(value, (float, date)):  # the engines match whole numbers and texts only
        bound = _bound(field, value)
        return Within(field, cast("Bounds", {"gte": bound, "lte": bound}))
    if isinstance(value, (str, int)):  # a bool is an int
        return Equals(field, value)
    raise ValueError(f"{field!r} cannot be compared with {value!r}: give a text, number, bool, date or None")


def _bound(field: str, value: object) -> float | str:
    if isinstance(value, np.generic):
        value = cast("object", value.item())
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, str):
        try:
            return datetime.fromisoformat(value).isoformat()
        except ValueError:
            raise ValueError(f"a bound of {field!r} must be a number or an ISO date, not {value!r}") from None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    raise ValueError(f"a bound of {field!r} must be a number or a date, not {value!r}")


def edge_filter(condition: Condition | None) -> edge.Filter | None:
    """Return the filter of Qdrant Edge."""
    return None if condition is None else cast("edge.Filter", _compile(condition, edge.Filter, _edge_leaf))


def client_filter(condition: Condition | None) -> models.Filter | None:
    """Return the filter of qdrant-client."""
    if condition is None:
        return None
    return cast("models.Filter", _compile(condition, models.Filter, _client_leaf))


def _compile(condition: Condition, group: Callable[..., Any], leaf: Callable[[Leaf], Any]) -> object:
    if isinstance(condition, All):
        return group(must=[_compile(part, group, leaf) for part in condition.parts])
    if isinstance(condition, AnyOf):
        return group(should=[_compile(part, group, leaf) for part in condition.parts])
    if isinstance(condition, Not):
        return group(must_not=[_compile(condition.part, group, leaf)])
    return group(must=[leaf(condition)])


def _edge_leaf(leaf: Leaf) -> object:
    if isinstance(leaf, Equals):
        # Edge reads True as the number 1, which equals no bool; numpy's bool it reads as a bool.
        value = np.bool_(leaf.value) if isinstance(leaf.value, bool) else leaf.value
        return edge.FieldCondition(leaf.field, match=edge.MatchValue(cast("bool", value)))
    if isinstance(leaf, Within):
        bounds: Any = leaf.bounds
        dates = any(isinstance(bound, str) for bound in leaf.bounds.values())
        return edge.FieldCondition(
            leaf.field, range=edge.RangeDateTime(**bounds) if dates else edge.RangeFloat(**bounds)
        )
    if isinstance(leaf, Empty):
        return edge.IsEmptyCondition(leaf.field)
    if isinstance(leaf, HasVector):
        return edge.HasVectorCondition(leaf.name)
    return edge.HasIdCondition(set(leaf.ids))


def _client_leaf(leaf: Leaf) -> object:
    if isinstance(leaf, Equals):
        return models.FieldCondition(key=leaf.field, match=models.MatchValue(value=leaf.value))
    if isinstance(leaf, Within):
        bounds: Any = leaf.bounds
        dates = any(isinstance(bound, str) for bound in leaf.bounds.values())
        return models.FieldCondition(
            key=leaf.field, range=models.DatetimeRange(**bounds) if dates else models.Range(**bounds)
        )
    if isinstance(leaf, Empty):
        return models.IsEmptyCondition(is_empty=models.PayloadField(key=leaf.field))
    if isinstance(leaf, HasVector):
        return models.HasVectorCondition(has_vector=leaf.name)
    return models.HasIdCondition(has_id=list(leaf.ids))

"""Whose vectors a column holds, as its comment says; asked for each image that a trigger embeds."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from clip_embed import Stamp
from clip_embed._stamp import check_stamp
from clip_embed.errors import SpaceMismatch
from clip_embed_duckdb._columns import Column
from clip_embed_duckdb._embed import Call
from clip_embed_duckdb._tables import find_table

MARK = "[clip-embed] "
PROGRAMS = "the rest is for programs: "


def read_stamp(comment: str | None) -> Stamp | None:
    """Return the stamp in a comment, None where there is none. Raises SpaceMismatch for a later version's."""
    lines = (comment or "").splitlines()
    written = next((line for line in lines if line.startswith(MARK)), None)
    if written is None:
        return None
    try:
        return Stamp.from_json(written.rpartition(PROGRAMS)[2])
    except ValueError as error:
        raise SpaceMismatch(f"in a column's comment: {error}") from error


def fits_space(call: Call, keys: Column, table: Column, space: Column) -> Column:
    """Return true for each row, once it is sure that the registered model may add to the vectors of a table.

    Raises SpaceMismatch otherwise. A space of another name is proved by the stamp in the table's comment.
    """
    if len(keys) and (wanted := str(space[0])) not in call.state.spaces:
        used = call.state.load()
        if used.space != wanted:
            with call.slot.open_connection() as con:
                name = str(table[0])
                column = find_table(con, name).column(con, "emb")
                check_stamp(read_stamp(column.comment), used.dim, used, f"{name}.emb")
        call.state.spaces.add(wanted)
    return pa.array(np.ones(len(keys), np.bool_))

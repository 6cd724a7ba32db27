"""A folder of photos becomes a DuckDB table with a column of vectors; texts query it at once.

    python examples/query_folder.py PHOTOS photos.duckdb "a red car" "a boat"

The first run embeds the photos, later runs only those that are new. Photos that cannot be used keep
their reason in the column `error`. CLIP_EMBED_MODEL chooses the model, for instance `offline`.
"""

import sys

import duckdb

import clip_embed_duckdb


def main(folder: str, database: str, *texts: str) -> None:
    """Add what is new in `folder` to `database` and print the best three photos for each text."""
    con = duckdb.connect(database)
    clip_embed_duckdb.register(con)
    con.execute(
        "CREATE TABLE IF NOT EXISTS photos AS SELECT '' AS file, clip_text('') AS emb, '' AS error LIMIT 0"
    )
    con.execute(
        """
        INSERT INTO photos
        SELECT file, clip_image(file), clip_error(file)
        FROM glob(? || '/**') AS found(file)
        WHERE regexp_matches(file, '\\.(jpe?g|png|webp|gif|tiff?|bmp)$', 'i')
          AND file NOT IN (SELECT file FROM photos)
        """,
        [folder],
    )
    for text in texts:
        print(f"\n{text}")
        best = con.execute(
            """
            SELECT clip_score(emb, ?) AS score, file
            FROM photos WHERE emb IS NOT NULL ORDER BY score DESC LIMIT 3
            """,
            [text],
        )
        for score, file in best.fetchall():
            print(f"  {score:.3f}  {file}")
    for file, error in con.execute("SELECT file, error FROM photos WHERE error IS NOT NULL").fetchall():
        print(f"not used: {file}: {error}")


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])

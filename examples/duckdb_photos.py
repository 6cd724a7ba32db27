"""A folder of photos as a DuckDB table: ranked by a text, labelled, joined with their dates, told apart.

    python examples/duckdb_photos.py [PHOTOS] [--model offline] [--database photos.duckdb]

Without PHOTOS it makes an album of the demo's photos: with dates, and some of them twice.
"""

import argparse
import tempfile
from datetime import datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
from PIL import ExifTags, Image

import clip_embed.demo
from clip_embed import ClipEmbedder
from clip_embed_duckdb import materialize, register

QUERIES = {
    "The mission: all photos, best match first": """
        SELECT * FROM photos ORDER BY clip_sim(img, 'red car') LIMIT 5
    """,
    "What is in the album, by the label that fits best": """
        SELECT clip_label(img, ['car', 'animal', 'flower', 'building']) AS label, count(*) AS photos
        FROM photos GROUP BY label ORDER BY photos DESC
    """,
    "Each month's most floral photo": """
        SELECT strftime(taken, '%Y-%m') AS month, count(*) AS photos,
               arg_max(name, clip_score(img, 'flowers')) AS best
        FROM photos JOIN dates USING (img) GROUP BY month ORDER BY month
    """,
}
AFTER_MATERIALIZE = {
    "The same ranking from stored vectors, no image read": """
        SELECT name, score FROM clip_search('photos', 'emb', 'red car', k := 5)
    """,
    "Nearly the same photo twice": """
        SELECT a.name, b.name AS twin, array_inner_product(a.emb, b.emb) AS alike
        FROM photos AS a JOIN photos AS b ON a.img < b.img
        WHERE alike > 0.985 ORDER BY alike DESC
    """,
}


def main(folder: Path, model: str, database: str) -> None:
    """Put the photos below a folder into a database and ask it."""
    con = duckdb.connect(database)
    register(con, ClipEmbedder(model))
    con.execute(
        """
        CREATE OR REPLACE TABLE photos AS SELECT parse_filename(file) AS name, file AS img
        FROM glob(? || '/**') AS found(file) WHERE regexp_matches(file, '\\.(jpe?g|png|webp)$', 'i')
        """,
        [str(folder)],
    )
    paths = [path for (path,) in con.sql("SELECT img FROM photos").fetchall()]
    taken = pa.array([date_taken(path) for path in paths], pa.timestamp("s"))
    con.register("dates", pa.table({"img": paths, "taken": taken}))
    for title, query in QUERIES.items():
        print(f"\n{title}")
        con.sql(query).show()
    print(f"\n{materialize(con, 'photos', 'img')}")
    for title, query in AFTER_MATERIALIZE.items():
        print(f"\n{title}")
        con.sql(query).show()


def date_taken(path: str) -> datetime | None:
    """Return when a photo was taken, as its EXIF data says; None where it does not."""
    try:
        with Image.open(path) as image:
            written = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.DateTimeOriginal)
        return datetime.strptime(written, "%Y:%m:%d %H:%M:%S") if written else None
    except (OSError, ValueError):
        return None


def make_album(folder: Path) -> None:
    """Write the demo's photos with one date a day, and every tenth a second time, saved anew."""
    for number, path in enumerate(clip_embed.demo.photos()):
        with Image.open(path) as image:
            photo = image.convert("RGB")
        exif = Image.Exif()
        day = datetime(2026, 5, 4, 12) + timedelta(days=number)
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = day.strftime("%Y:%m:%d %H:%M:%S")
        photo.save(folder / f"{path.stem}.jpg", quality=92, exif=exif)
        if number % 10 == 7:
            photo.save(folder / f"{path.stem}_copy.jpg", quality=75, exif=exif)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", nargs="?", type=Path)
    parser.add_argument("--model", default="offline")
    parser.add_argument("--database", default=":memory:")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as album:
        if arguments.photos is None:
            make_album(Path(album))
        main(arguments.photos or Path(album), arguments.model, arguments.database)

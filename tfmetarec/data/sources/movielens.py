"""MovieLens: ratings of films, with genres and, where there are any, directors, actors and plots.

The data may not be passed on, so they come from a folder that the user has or, when asked, from GroupLens.

Reference: [Harper and Konstan, 2015](https://doi.org/10.1145/2827872)
"""

import hashlib
import http.client
import os
import re
import shutil
import tempfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import polars as pl

from tfmetarec.data.errors import DataError, first_line, nearest_name
from tfmetarec.data.interactions import Interactions

VARIANTS = ("latest-small", "100k", "1m")

SITE = "https://files.grouplens.org/datasets/movielens"

_TIMEOUT_S = 60
_RATING = ("user_id", "item_id", "label", "timestamp")
# fmt: off
_GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama",
    "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)
# fmt: on
# "(1995)", and for series "(2006-2007)" with a hyphen or an en dash: the first year.
_YEAR = r"\((\d{4})(?:[-\x{2013}]\d{0,4})?\)\s*$"
_MOST_ACTORS = 4


def load(
    folder: str | os.PathLike | None = None,
    variant: str = "latest-small",
    download: bool = False,
    cache_dir: str | os.PathLike = "~/.cache/tfmetarec",
) -> Interactions:
    """Returns who rated which film, when and how high (1 to 5; 0.5 to 5 in `latest-small`).

    Item features are `title` (shown to people), `genres` and `year`. User features, in the variants that have
    them: `gender`, `age` (a number of years in 100k, a group in 1m), `occupation` and `zip_code`.

    Args:
        folder: path, optional. A folder with one of: `ratings.csv`, `movies.csv`; `ratings.dat`,
            `movies.dat`, `users.dat`; `u.data`, `u.item`, `u.user`; or `ratings.parquet` (user_id, movie_id,
            rating, timestamp), `movies.parquet` (movie_id, title, genres), optionally `users.parquet`
            (user_id and its features) and `movies_extra.parquet` (movie_id, year, mpaa, directors, actors,
            plot), whose first four actors are kept.
        variant: str, `"latest-small"`, `"100k"` or `"1m"`. What to download; a folder says itself what it is.
        download: bool. Whether the variant may be fetched from grouplens.org when it is not in `cache_dir`
            yet. GroupLens allows research and forbids commercial use and, for most variants, passing on:
            read its terms. Defaults to `False`.
        cache_dir: path. Where a download is kept.

    Raises:
        DataError: if there is neither a folder nor a download, or the files are not MovieLens's.
    """
    if variant not in VARIANTS:
        raise DataError(
            f"`variant` must be one of {', '.join(map(repr, VARIANTS))}{nearest_name(variant, VARIANTS)}. "
            f"Received: variant={variant!r}"
        )
    if folder is None:
        folder = Path(cache_dir).expanduser() / f"ml-{variant}"
        if not folder.is_dir():
            if not download:
                raise DataError(
                    f"`folder` must be a MovieLens folder, or `download` True to fetch ml-{variant} from "
                    "grouplens.org. Received: folder=None, download=False"
                )
            _download(folder, SITE)
    elif download:
        raise DataError(
            f"`download` must be False where `folder` is given. Received: folder={str(folder)!r}, download=True"
        )
    return _read_folder(Path(folder).expanduser())


def _read_folder(folder: Path) -> Interactions:
    readers = {
        "ratings.parquet": _read_parquet,
        "ratings.csv": _read_csv,
        "ratings.dat": _read_dat,
        "u.data": _read_100k,
    }
    reader = next((readers[file] for file in readers if (folder / file).is_file()), None)
    if reader is None:
        raise DataError(f"`folder` must have one of the files {', '.join(readers)}. Received: folder={str(folder)!r}")
    try:
        ratings, movies, users = reader(folder)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"`folder` has files that cannot be read: {first_line(error)}: {folder}") from error
    return Interactions.from_frames(
        ratings,
        users=users,
        items=_with_year(movies),
        feedback="explicit",
        kinds={"plot": "text"} if "plot" in movies.columns else {},
        item_name="title",
        name=folder.resolve().name,
    )


def _with_year(movies: pl.DataFrame) -> pl.DataFrame:
    """Splits genres into lists and reads the year at the end of each title where it is not known better."""
    from_title = pl.col("title").str.extract(_YEAR, 1).cast(pl.Float64)
    known = [pl.col("year").cast(pl.Float64)] if "year" in movies.columns else []
    genres = pl.col("genres")
    if movies.schema["genres"] == pl.String:
        none = pl.when(genres.is_in(["", "(no genres listed)"])).then(pl.lit([], dtype=pl.List(pl.String)))
        genres = none.otherwise(genres.str.split("|"))
    return movies.with_columns(year=pl.coalesce(*known, from_title), genres=genres)


def _read_parquet(folder: Path) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame | None]:
    ratings = pl.read_parquet(folder / "ratings.parquet").select(
        "user_id", "timestamp", item_id="movie_id", label="rating"
    )
    movies = pl.read_parquet(folder / "movies.parquet").select("title", "genres", item_id="movie_id")
    users = folder / "users.parquet"
    extra = folder / "movies_extra.parquet"
    if extra.is_file():
        people = ("directors", "actors")
        details = pl.read_parquet(extra).select(
            pl.col("mpaa", "plot").replace("N/A", None),
            *(pl.col(name).replace("N/A", None).str.split(", ") for name in people),
            item_id="movie_id",
            year=pl.col("year").cast(pl.Float64, strict=False),
        )
        details = details.with_columns(pl.col("actors").list.head(_MOST_ACTORS))
        movies = movies.join(details, on="item_id", how="left", maintain_order="left")
    return ratings, movies, pl.read_parquet(users) if users.is_file() else None


def _read_csv(folder: Path) -> tuple[pl.DataFrame, pl.DataFrame, None]:
    ratings = pl.read_csv(folder / "ratings.csv", schema_overrides={"rating": pl.Float64}).select(
        "timestamp", user_id="userId", item_id="movieId", label="rating"
    )
    movies = pl.read_csv(folder / "movies.csv").select("title", "genres", item_id="movieId")
    return ratings, movies, None


def _read_dat(folder: Path) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    ratings = _split_lines(folder / "ratings.dat", "::", _RATING)
    movies = _split_lines(folder / "movies.dat", "::", ("item_id", "title", "genres"))
    users = _split_lines(folder / "users.dat", "::", ("user_id", "gender", "age", "occupation", "zip_code"))
    # Ages are seven groups and occupations are codes: numbers that name a category.
    users = _cast(users, pl.Int64, "user_id", "age", "occupation")
    return _cast_ratings(ratings), _cast(movies, pl.Int64, "item_id"), users


def _read_100k(folder: Path) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    ratings = _split_lines(folder / "u.data", "\t", _RATING)
    columns = ("item_id", "title", "released", "video_released", "imdb", *_GENRES_100K)
    movies = _split_lines(folder / "u.item", "|", columns)
    flags = [pl.when(pl.col(name) == "1").then(pl.lit(name)) for name in _GENRES_100K if name != "unknown"]
    movies = movies.select("item_id", "title", genres=pl.concat_list(flags).list.drop_nulls())
    users = _split_lines(folder / "u.user", "|", ("user_id", "age", "gender", "occupation", "zip_code"))
    users = _cast(_cast(users, pl.Int64, "user_id"), pl.Float64, "age")
    return _cast_ratings(ratings), _cast(movies, pl.Int64, "item_id"), users


def _split_lines(file: Path, separator: str, columns: tuple[str, ...]) -> pl.DataFrame:
    """Reads a file whose separator may have two characters, which CSV readers refuse."""
    # GroupLens wrote Latin-1, whose 0x85 `str.splitlines` would take for the end of a line.
    lines = pl.Series(file.read_text(encoding="latin-1").split("\n")).str.strip_chars_end("\r")
    fields = lines.filter(lines != "").str.split_exact(separator, len(columns) - 1).struct.unnest()
    if fields.is_empty() or fields.get_columns()[-1].null_count():
        raise DataError(f"{file} must have {len(columns)} fields in each line, split by {separator!r}")
    return fields.rename(dict(zip(fields.columns, columns, strict=True)))


def _cast_ratings(ratings: pl.DataFrame) -> pl.DataFrame:
    return _cast(_cast(ratings, pl.Int64, "user_id", "item_id", "timestamp"), pl.Float64, "label")


def _cast(frame: pl.DataFrame, dtype: type[pl.DataType], *columns: str) -> pl.DataFrame:
    return frame.with_columns(pl.col(columns).cast(dtype))


def _download(folder: Path, site: str) -> None:
    """Fetches `folder`'s zip, checks it and unpacks it: `folder` appears when it is complete."""
    url = f"{site}/{folder.name}.zip"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        archive = Path(scratch) / "archive.zip"
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response, archive.open("wb") as file:
                shutil.copyfileobj(response, file)
            _check_md5(archive, url)
            with zipfile.ZipFile(archive) as packed:
                packed.extractall(Path(scratch) / "files")
        except (OSError, http.client.HTTPException, zipfile.BadZipFile) as error:
            raise DataError(f"{url} cannot be fetched: {first_line(error)}") from error
        unpacked = Path(scratch) / "files" / folder.name
        if not unpacked.is_dir():
            raise DataError(f"{url} must hold the folder {folder.name}, and does not")
        try:
            unpacked.rename(folder)
        except OSError:
            if not folder.is_dir():  # Otherwise another process was faster, which is as good.
                raise


def _check_md5(archive: Path, url: str) -> None:
    try:
        with urllib.request.urlopen(f"{url}.md5", timeout=_TIMEOUT_S) as response:
            published = re.search(r"\b[0-9a-fA-F]{32}\b", response.read(4096).decode("ascii", "replace"))
    except urllib.error.HTTPError as error:
        # Not every archive has its sum beside it; unpacking still checks every file's CRC.
        if error.code == 404:
            return
        raise
    found = hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest()
    if published is None or published[0].lower() != found:
        wanted = published[0] if published else "none"
        raise DataError(f"{url} must have the MD5 sum that GroupLens publishes, {wanted}. Received: {found}")

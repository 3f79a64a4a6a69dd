import functools
import hashlib
import io
import os
import re
import threading
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import polars as pl
import pytest

from tfmetarec.data.errors import DataError
from tfmetarec.data.sources import movielens

# GroupLens allows no copies to be passed on: whoever has them says where.
COPIES = Path(os.environ.get("TFMETAREC_TEST_DATA") or "no-such-folder")
MOVIES_CSV = (
    "movieId,title,genres\n"
    "1,Toy Story (1995),Adventure|Children\n"
    '7,"American President, The (1995) ",Comedy\n'
    "8,Death Note: Desu nôto (2006–2007),(no genres listed)\n"  # noqa: RUF001
    "9,Babylon 5,Sci-Fi\n"
)
RATINGS_CSV = "userId,movieId,rating,timestamp\n2,1,5.0,20\n1,7,3.0,30\n1,9,0.5,10\n"


def write_latest(folder):
    folder.mkdir(parents=True)
    (folder / "ratings.csv").write_text(RATINGS_CSV, encoding="utf-8")
    (folder / "movies.csv").write_text(MOVIES_CSV, encoding="utf-8")
    return folder


def test_the_latest_format_is_read(tmp_path):
    made = movielens.load(write_latest(tmp_path / "ml-mine"))
    assert made.table.rows() == [(1, 9, 0.5, 10), (1, 7, 3.0, 30), (2, 1, 5.0, 20)]
    assert made.items.select("item_id", "genres", "year").rows() == [
        (1, ["Adventure", "Children"], 1995.0),
        (7, ["Comedy"], 1995.0),
        (8, [], 2006.0),
        (9, ["Sci-Fi"], None),
    ]
    assert (made.name, made.schema.feedback, made.schema.item_name) == ("ml-mine", "explicit", "title")
    assert made.users is None


def test_the_1m_format_is_read(tmp_path):
    (tmp_path / "ratings.dat").write_text("1::10::5::978300760\n2::11::4::978300761\n")
    # 0x85 ends no line in Latin-1, and 0xE9 is an e with an acute accent.
    (tmp_path / "movies.dat").write_bytes(b"10::Caf\xe9 (1999)::Drama|War\r\n11::Wait\x85 (1950)::Comedy\r\n")
    (tmp_path / "users.dat").write_text("1::F::1::10::02460\n2::M::56::16::70072\n")
    made = movielens.load(tmp_path)
    assert made.table.rows() == [(1, 10, 5.0, 978300760), (2, 11, 4.0, 978300761)]
    assert made.items.select("title", "genres", "year").rows() == [
        ("Café (1999)", ["Drama", "War"], 1999.0),
        ("Wait\x85 (1950)", ["Comedy"], 1950.0),
    ]
    assert made.users.row(0) == (1, "F", 1, 10, "02460")
    assert {f.name: f.kind for f in made.schema.user[1:]} == dict.fromkeys(
        ["gender", "age", "occupation", "zip_code"], "category"
    )


def test_the_100k_format_is_read(tmp_path):
    (tmp_path / "u.data").write_text("196\t242\t3\t881250949\n186\t1\t5\t891717742\n")
    flags = ["0"] * 19
    flags[3] = flags[5] = "1"  # Animation, Comedy
    unknown = ["1"] + ["0"] * 18
    (tmp_path / "u.item").write_text(
        f"1|Toy Story (1995)|01-Jan-1995||http://x|{'|'.join(flags)}\n267|unknown||||{'|'.join(unknown)}\n"
    )
    (tmp_path / "u.user").write_text("186|24|M|technician|85711\n")
    made = movielens.load(tmp_path)
    assert made.table.rows() == [(186, 1, 5.0, 891717742), (196, 242, 3.0, 881250949)]
    assert made.items.select("genres", "year").rows() == [(["Animation", "Comedy"], 1995.0), ([], None)]
    assert made.users.row(0) == (186, 24.0, "M", "technician", "85711")
    assert {f.name: f.kind for f in made.schema.user}["age"] == "number"


def test_the_parquet_form_is_read_with_what_else_is_known_of_films(tmp_path):
    pl.DataFrame({"user_id": [1], "movie_id": [5], "rating": [4], "timestamp": [10]}).write_parquet(
        tmp_path / "ratings.parquet"
    )
    movies = {"movie_id": [5, 6], "title": ["A (1990)", "B (1991)"], "genres": ["Drama|War", ""]}
    pl.DataFrame(movies).write_parquet(tmp_path / "movies.parquet")
    extra = {
        "movie_id": [5],
        "year": ["1989"],
        "mpaa": ["PG"],
        "directors": ["Jo, Al"],
        "actors": ["A, B, C, D, E"],
        "plot": ["N/A"],
    }
    pl.DataFrame(extra).write_parquet(tmp_path / "movies_extra.parquet")
    made = movielens.load(tmp_path)
    columns = ("title", "genres", "year", "mpaa", "directors", "actors", "plot")
    assert made.items.select(columns).rows() == [
        ("A (1990)", ["Drama", "War"], 1989.0, "PG", ["Jo", "Al"], ["A", "B", "C", "D"], None),
        ("B (1991)", [], 1991.0, None, None, None, None),
    ]
    kinds = {f.name: f.kind for f in made.schema.item}
    assert (kinds["year"], kinds["mpaa"], kinds["plot"]) == ("number", "category", "text")
    assert kinds["actors"] == kinds["directors"] == "category_list"


@pytest.mark.skipif(not COPIES.is_dir(), reason="needs TFMETAREC_TEST_DATA, a folder with MovieLens copies")
@pytest.mark.parametrize(
    ("name", "counts"),
    [("ml-1m", (1_000_209, 6_040, 3_706)), ("ml-latest-small", (100_836, 610, 9_724))],
)
def test_real_copies_have_the_published_counts(name, counts):
    made = movielens.load(COPIES / name)
    assert (len(made), made.n_users, made.n_items) == counts
    assert made.items_without_features == 0


@pytest.fixture
def site(tmp_path):
    """A web site on this machine that serves a folder the way GroupLens does: zips, and MD5 sums beside."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    folder = tmp_path / "site"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def publish(folder, inside="ml-latest-small"):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(f"{inside}/ratings.csv", RATINGS_CSV)
        archive.writestr(f"{inside}/movies.csv", MOVIES_CSV)
    (folder / "ml-latest-small.zip").write_bytes(packed.getvalue())
    return hashlib.md5(packed.getvalue(), usedforsecurity=False).hexdigest()


def test_a_download_is_checked_unpacked_and_found_again(site, tmp_path, monkeypatch):
    folder, address = site
    (folder / "ml-latest-small.zip.md5").write_text(f"MD5 (ml-latest-small.zip) = {publish(folder)}\n")
    monkeypatch.setattr(movielens, "SITE", address)
    cache = tmp_path / "cache"
    fetched = movielens.load(download=True, cache_dir=cache)
    assert len(fetched) == 3
    assert [path.name for path in cache.iterdir()] == ["ml-latest-small"]
    monkeypatch.setattr(movielens, "SITE", "http://127.0.0.1:9/nothing-listens-here")
    assert movielens.load(cache_dir=cache).table.equals(fetched.table)


def test_a_download_without_a_published_sum_is_accepted(site, tmp_path):
    folder, address = site
    publish(folder)
    movielens._download(tmp_path / "cache" / "ml-latest-small", address)
    assert (tmp_path / "cache" / "ml-latest-small" / "ratings.csv").is_file()


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, "ml-latest-small.zip cannot be fetched: HTTP Error 404"),
        (
            lambda folder: (publish(folder), (folder / "ml-latest-small.zip.md5").write_text("0" * 32)),
            "must have the MD5 sum that GroupLens publishes, 00000000000000000000000000000000. Received: ",
        ),
        (
            lambda folder: (folder / "ml-latest-small.zip").write_text("no zip"),
            "cannot be fetched: File is not a zip file",
        ),
        (lambda folder: publish(folder, "ml-other"), "must hold the folder ml-latest-small, and does not"),
    ],
)
def test_a_download_that_fails_leaves_nothing_behind(site, tmp_path, prepare, message):
    folder, address = site
    prepare(folder)
    with pytest.raises(DataError, match=re.escape(message)):
        movielens._download(tmp_path / "cache" / "ml-latest-small", address)
    assert list((tmp_path / "cache").iterdir()) == []


def test_neither_folder_nor_download_says_what_to_pass(tmp_path):
    message = "`folder` must be a MovieLens folder, or `download` True to fetch ml-1m from grouplens.org"
    with pytest.raises(DataError, match=re.escape(message)):
        movielens.load(variant="1m", cache_dir=tmp_path)


def test_other_wrong_arguments_and_folders_are_named(tmp_path):
    with pytest.raises(DataError, match=r"the nearest name is '100k'\. Received: variant='100K'"):
        movielens.load(variant="100K")
    with pytest.raises(DataError, match="`download` must be False where `folder` is given"):
        movielens.load(tmp_path, download=True)
    with pytest.raises(DataError, match=r"one of the files ratings\.parquet, ratings\.csv"):
        movielens.load(tmp_path)
    (tmp_path / "u.data").write_text("1\t2\t3\n")
    with pytest.raises(DataError, match=r"u\.data must have 4 fields in each line, split by '\\t'"):
        movielens.load(tmp_path)
    (tmp_path / "ratings.csv").write_text(RATINGS_CSV)
    with pytest.raises(DataError, match=r"`folder` has files that cannot be read: .*movies\.csv"):
        movielens.load(tmp_path)

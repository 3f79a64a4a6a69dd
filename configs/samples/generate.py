"""Generates the samples beside this file: `python configs/samples/generate.py [folder]`.

Each is in the format of a published data set, and made up: no row is of a real person, film, article or customer.
People belong to planted groups with tastes of their own, so that there is something to learn. Equal seeds give equal
files.
"""

import sys
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent


def ciaodvd(folder: Path, seed: int = 0) -> None:
    """Ratings of films and a network of trust, in the format of CiaoDVD.

    Four communities like four genres each; nearly all trust goes to people of the same community, most of it to a few.

    movie-ratings.txt: userID, movieID, genreID, reviewID, movieRating, date.
    trusts.txt: trustorID, trusteeID, trustValue.

    Reference: [Guo et al., 2014](https://doi.org/10.1109/ASONAM.2014.6921628)
    """
    rng = np.random.default_rng([seed, 1])
    n_users, n_films, n_groups = 320, 180, 4
    group = rng.integers(0, n_groups, n_users)
    genre = rng.integers(0, 16, n_films)
    quality = rng.normal(0, 0.4, n_films)
    kindness = rng.normal(0, 0.4, n_users)
    appeal = rng.pareto(1.5, n_films) + 0.3
    rated = []
    for user in range(n_users):
        likes = genre % n_groups == group[user]
        count = int(rng.integers(12, 26))
        films = rng.choice(n_films, count, replace=False, p=_shares(appeal * np.where(likes, 1.5, 1.0)))
        scores = 3.1 + np.where(likes[films], 1.1, -0.5) + quality[films] + kindness[user] + rng.normal(0, 0.5, count)
        days = np.sort(rng.integers(0, 4500, count))
        for film, score, day in zip(films, np.clip(np.rint(scores), 1, 5).astype(int), days, strict=True):
            rated.append((film, day, user, score))
    rated.sort()
    start = datetime(2000, 7, 1)
    _write(
        folder / "movie-ratings.txt",
        [
            f"{user + 1},{film + 1},{genre[film] + 1},{review},{score},{start + timedelta(days=int(day)):%Y-%m-%d}"
            for review, (film, day, user, score) in enumerate(rated, 1)
        ],
    )
    fame = rng.pareto(1.0, n_users) + 0.1
    trusts = []
    for user in range(n_users):
        near = fame * np.where(group == group[user], 1.0, 0.02)
        near[user] = 0
        trusted = rng.choice(n_users, int(rng.integers(0, 9)), replace=False, p=_shares(near))
        trusts += [f"{user + 1},{other + 1},1" for other in np.sort(trusted)]
    _write(folder / "trusts.txt", trusts)


# fmt: off
_TOPICS = {
    ("sports", "football_nfl"): "quarterback touchdown coach season playoff defense injury trade",
    ("sports", "basketball_nba"): "guard rebound overtime arena roster draft streak dunk",
    ("sports", "soccer"): "striker penalty league keeper transfer derby goal stadium",
    ("news", "newspolitics"): "senate vote campaign governor hearing ballot policy debate",
    ("news", "newsscienceandtechnology"): "telescope satellite robot climate fossil laboratory chip battery",
    ("finance", "markets"): "stocks earnings bonds inflation investors dividend rally index",
    ("finance", "finance-real-estate"): "mortgage rent housing listing condo builder deed landlord",
    ("foodanddrink", "recipes"): "casserole pumpkin garlic oven cookie soup butter chicken",
    ("foodanddrink", "restaurantsandnews"): "menu chef diner burger brewery reservation tasting patio",
    ("travel", "traveltripideas"): "beach itinerary passport cruise hiking island museum train",
    ("health", "wellness"): "sleep yoga vitamin stress breathing habit posture walking",
    ("autos", "autosnews"): "hybrid pickup sedan recall dealer engine torque charging",
}
# fmt: on


def mind(folder: Path, seed: int = 0) -> None:
    """Impressions of news and the articles, in the format of MIND.

    People follow two or three of twelve topics. An article lives for about two days; the history of a person holds what
    was clicked before the week of the log.

    behaviors.tsv: impression, user, time, history, impressions.
    news.tsv: news, category, subcategory, title, abstract, URL, entities of the title, entities of the abstract.

    Reference: [Wu et al., 2020](https://doi.org/10.18653/v1/2020.acl-main.331)
    """
    rng = np.random.default_rng([seed, 2])
    n_users, n_news, days, logged = 400, 260, 14, 7
    topics = list(_TOPICS)
    topic = rng.integers(0, len(topics), n_news)
    born = np.sort(rng.random(n_news) * (days - 1))
    appeal = rng.pareto(2.5, n_news) + 0.3
    lines = []
    for news in range(n_news):
        category, subcategory = topics[topic[news]]
        words = [str(word) for word in rng.choice(_TOPICS[topics[topic[news]]].split(), 4, replace=False)]
        title = f'{words[0].title()} {words[1]}: the "{words[2]}" story' if news % 9 == 0 else " ".join(words).title()
        abstract = f"What is known about {words[1]} and {words[3]}."
        name = f"N{news + 1}"
        lines.append(
            "\t".join([name, category, subcategory, title, abstract, f"https://example.org/{name}", "[]", "[]"])
        )
    _write(folder / "news.tsv", lines)

    def alive(day: float) -> np.ndarray:
        age = day - born
        return np.where((age >= 0) & (age < 4), np.exp(-age), 0.0)

    start = datetime(2019, 11, 1)
    seen: list[tuple[float, str]] = []
    for user in range(n_users):
        followed = rng.choice(len(topics), int(rng.integers(2, 4)), replace=False)
        taste = appeal * np.where(np.isin(topic, followed), 1.0, 0.03)
        clicked: list[int] = []
        for day in np.sort(rng.uniform(1, logged, int(rng.integers(5, 13)))):
            clicked += _fresh(rng, taste * alive(day), clicked, 1)
        history = " ".join(f"N{news + 1}" for news in clicked)
        for day in np.sort(rng.uniform(logged, days, int(rng.integers(3, 7)))):
            clicks = _fresh(rng, taste * alive(day), clicked, int(rng.integers(1, 3)))
            shown = clicks + _fresh(rng, appeal * alive(day), clicked + clicks, int(rng.integers(3, 7)))
            order = rng.permutation(len(shown))
            cell = " ".join(f"N{shown[place] + 1}-{int(place < len(clicks))}" for place in order)
            time = start + timedelta(seconds=int(day * 86400))
            hour = f"{time.month}/{time.day}/{time.year} {time.hour % 12 or 12}:{time:%M:%S %p}"
            seen.append((day, f"U{user + 1}\t{hour}\t{history}\t{cell}"))
            clicked += clicks
    order = rng.permutation(len(seen))  # As in MIND, impressions are not in the order of time.
    _write(folder / "behaviors.tsv", [f"{number}\t{seen[place][1]}" for number, place in enumerate(order, 1)])


# fmt: off
_PRODUCTS = [
    "ahor_fin", "aval_fin", "cco_fin", "cder_fin", "cno_fin", "ctju_fin", "ctma_fin", "ctop_fin", "ctpp_fin",
    "deco_fin", "deme_fin", "dela_fin", "ecue_fin", "fond_fin", "hip_fin", "plan_fin", "pres_fin", "reca_fin",
    "tjcr_fin", "valo_fin", "viv_fin", "nomina", "nom_pens", "recibo",
]
_ABOUT = [
    "fecha_dato", "ncodpers", "ind_empleado", "pais_residencia", "sexo", "age", "fecha_alta", "ind_nuevo", "antiguedad",
    "indrel", "ult_fec_cli_1t", "indrel_1mes", "tiprel_1mes", "indresi", "indext", "conyuemp", "canal_entrada",
    "indfall", "tipodom", "cod_prov", "nomprov", "ind_actividad_cliente", "renta", "segmento",
]
# fmt: on
# A kind of customer: its segment, channel, ages, income, and the products that it tends to take up.
_CUSTOMERS = (
    ("03 - UNIVERSITARIO", "KHE", (19, 26), 60_000, "cco_fin ctma_fin ecue_fin tjcr_fin recibo cder_fin"),
    ("02 - PARTICULARES", "KAT", (28, 45), 95_000, "cno_fin nomina nom_pens recibo tjcr_fin hip_fin pres_fin viv_fin"),
    ("01 - TOP", "KFC", (48, 70), 190_000, "valo_fin fond_fin dela_fin plan_fin ctpp_fin ecue_fin reca_fin deme_fin"),
    (
        "02 - PARTICULARES",
        "KFA",
        (30, 60),
        120_000,
        "ctop_fin reca_fin cno_fin tjcr_fin aval_fin deco_fin recibo pres_fin",
    ),
)
_PROVINCES = ((28, "MADRID"), (8, "BARCELONA"), (46, "VALENCIA"), (41, "SEVILLA"), (15, "CORUÑA, A"))


def santander(folder: Path, seed: int = 0) -> None:
    """Monthly snapshots of what customers hold, in the format of the Santander product recommendation data.

    Four kinds of customers, told apart in part by segment, age, channel and income, take up products of their own kind.
    What is not known is written "NA", with the spaces of the original.

    train.csv: 24 columns about the customer and one of 0 or 1 for each of 24 products.

    Reference: [Santander, 2016](https://www.kaggle.com/c/santander-product-recommendation)
    """
    rng = np.random.default_rng([seed, 3])
    months = [datetime(2015, month, 28) for month in range(1, 6)]
    by_month: list[list[str]] = [[] for _ in months]
    for customer in range(300):
        kind = int(rng.integers(0, len(_CUSTOMERS)))
        segment, channel, (youngest, oldest), income, likes = _CUSTOMERS[kind]
        known = rng.random(3) < 0.85  # Age, income and segment are not known of everybody.
        channel = channel if rng.random() < 0.8 else "KHK"
        age = int(rng.integers(youngest, oldest))
        province = _PROVINCES[rng.integers(0, len(_PROVINCES))]
        joined = datetime(2014, 12, 1) - timedelta(days=int(rng.integers(30, 6000)))
        liking = np.where(np.isin(_PRODUCTS, likes.split()), 1.0, 0.04) + np.where(
            np.isin(_PRODUCTS, "cco_fin"), 0.8, 0
        )
        order = rng.choice(len(_PRODUCTS), int(rng.integers(4, 9)), replace=False, p=_shares(liking))
        since = np.sort(rng.integers(-3, len(months), len(order)))  # The month in which each product is taken up.
        since[0] = min(since[0], 0)
        money = f"{income * rng.lognormal(0, 0.25):.2f}"
        sex = "VH"[rng.integers(0, 2)]
        for number, month in enumerate(months):
            held = np.zeros(len(_PRODUCTS), int)
            held[order[since <= number]] = 1
            seniority = (month.year - joined.year) * 12 + month.month - joined.month
            # fmt: off
            about = [
                f"{month:%Y-%m-%d}", f"{100_001 + customer}", "N", "ES", sex, f"{age:3d}" if known[0] else " NA",
                f"{joined:%Y-%m-%d}", "0", f"{seniority:7d}", "1", "", "1", "A", "S", "N", "", channel, "N", "1",
                str(province[0]), f'"{province[1]}"' if "," in province[1] else province[1], "1",
                money if known[1] else "NA", segment if known[2] else "",
            ]
            # fmt: on
            by_month[number].append(",".join([*about, *map(str, held)]))
    header = ",".join([*_ABOUT, *(f"ind_{product}_ult1" for product in _PRODUCTS)])
    _write(folder / "train.csv", [header, *(line for month in by_month for line in month)])


def _shares(weights: np.ndarray) -> np.ndarray:
    return weights / weights.sum()


def _fresh(rng: np.random.Generator, weights: np.ndarray, met: list[int], count: int) -> list[int]:
    """Up to `count` different items that were not met yet, drawn by weight."""
    weights = weights.copy()
    weights[met] = 0
    count = min(count, int((weights > 0).sum()))
    return rng.choice(len(weights), count, replace=False, p=_shares(weights)).tolist() if count else []


def _write(file: Path, lines: list[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


SAMPLES = {"ciaodvd": ciaodvd, "mind": mind, "santander": santander}

if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    for name, generate in SAMPLES.items():
        generate(target / name)

"""The parts of a page that show an examination: slices, lists, probabilities, steps and states."""

from collections.abc import Sequence

import polars as pl

from tfmetarec.evaluation.cold_start import HEADLINE, LOWER_IS_BETTER
from tfmetarec.evaluation.drawing import bars, lines, plain
from tfmetarec.evaluation.examination import SHORT, Examination, worst_slice
from tfmetarec.evaluation.report import Section, TableOf
from tfmetarec.evaluation.slices import LEAST_USERS, MOST_GROUPS, Gap

ERRORS = (*LOWER_IS_BETTER, "absolute error")


def sliced(
    found: pl.DataFrame, few: int, learner: str, floor: str | None, metric: str, k: int, kind: str = "users"
) -> Section:
    """Groups of users or of items beside the best floor, the worst one named.

    Args:
        found: what `slices` returned.
        few: how many groups had too few users.
        learner: whose figures.
        floor: the learner that it was compared with, or `None`.
        metric: name of the figure.
        k: int. How many interactions users had shown.
        kind: "users" or "items".
    """
    title = f"Groups of {kind}"
    if found.is_empty():
        return Section(title)
    lower, own = metric in ERRORS, found.filter(pl.col("learner") == learner)
    told = [worst_slice(found, learner, kind, metric, lower_is_better=lower)]
    if few:
        told.append(f"Groups with fewer than {LEAST_USERS} users are left out, {few} in all.")
    names = [f"{feature} {group}" for feature, group in own.select("feature", "group").iter_rows()]
    columns, shown = ["group", "users", learner], [learner]
    cells = [
        [name, str(row["users"]), _interval(row)] for name, row in zip(names, own.iter_rows(named=True), strict=True)
    ]
    if floor is not None:
        told.append(f"A star: the interval of the difference from {floor} leaves 0 out, each group by itself.")
        columns, shown = [*columns, floor, "difference"], [learner, floor]
        means = found.filter(pl.col("learner") == floor)["mean"]
        for line, row, mean in zip(cells, own.iter_rows(named=True), means, strict=True):
            star = " *" if row["difference_low"] > 0 or row["difference_high"] < 0 else ""
            sign = "+" if row["difference"] >= 0 else "-"
            line += [plain(mean), f"{sign}{plain(abs(row['difference']))}{star}"]
    parts = {name: found.filter(pl.col("learner") == name) for name in shown}
    drawing = bars(
        told[0],
        names,
        {name: part["mean"].to_list() for name, part in parts.items()},
        (f"{title}, K={k}", metric, ""),
        intervals={learner: (parts[learner]["low"].to_list(), parts[learner]["high"].to_list())},
    )
    caption = f"{metric} at K={k}, mean over users; of each feature at most the {MOST_GROUPS} largest groups"
    table = TableOf(f"{caption}; lower is better" if lower else caption, columns, cells)
    return Section(title, told, [table], {f"slices-{kind}": drawing})


def examined(found: Examination, learners: Sequence[str]) -> list[Section]:
    """What an examination has to show, in the order of the page.

    Args:
        found: what `examine` returned.
        learners: names of those that are no floors.
    """
    about = found.about
    own, floor, k = about["learner"], about["floor"], about["K"]
    users = sliced(found.users, about["few_users"], own, floor, about["metric"], k)
    users.text = [*users.text, *_gaps([Gap(**gap) for gap in found.gaps.iter_rows(named=True)])]
    return [
        _states(found, learners),
        _steps(found),
        users,
        sliced(found.items, about["few_items"], own, floor, about["item_metric"], k, "items"),
        _lists(found, learners),
        _probabilities(found, learners),
    ]


def _gaps(gaps: Sequence[Gap]) -> list[str]:
    """Each gap beyond chance in a sentence, and the others together."""
    said = [f"Gap by {gap.verdict()}." for gap in gaps if gap.beyond_chance]
    others = ", ".join(f"{gap.feature} ({gap.gap:.3g}, p = {gap.p_value:.2g})" for gap in gaps if not gap.beyond_chance)
    return [*said, f"No gap beyond chance by {others}."] if others else said


def _lists(found: Examination, learners: Sequence[str]) -> Section:
    names = [name for name in ("novelty", "diversity", "coverage", "gini") if found.figures[name].count()]
    if not names:
        return Section("What lists are like")
    rows = [[row["learner"], *(plain(row[name]) for name in names)] for row in found.figures.iter_rows(named=True)]
    strong = frozenset(i for i, row in enumerate(rows) if row[0] in learners)
    meaning = {
        "novelty": "novelty is how rare the items are, in bits",
        "diversity": "diversity how unlike each other, from 0 to 1, by their categories",
        "coverage": "coverage the share of the catalogue that somebody is shown",
        "gini": "Gini how unevenly the places fall on the catalogue, from 0 to 1",
    }
    text = f"Of the recommended lists, {'; '.join(meaning[name] for name in names)}."
    table = TableOf(f"At K={found.about['K']}", ["", *(SHORT.get(n, n) for n in names)], rows, strong=strong)
    return Section("What lists are like", [text], [table])


def _probabilities(found: Examination, learners: Sequence[str]) -> Section:
    if found.reliability.is_empty():
        return Section("What a score is worth")
    about, names = found.about, [name for name in found.figures.columns[5:] if found.figures[name].count()]
    rows = [[row["learner"], *(plain(row[name]) for name in names)] for row in found.figures.iter_rows(named=True)]
    strong = frozenset(i for i, row in enumerate(rows) if row[0] in learners)
    positive = about["positive_rating"]
    what = "a recommended item is met" if positive is None else f"a rating is at least {positive:g}"
    text = f"Scores as probabilities that {what}, fitted on validation users (Platt scaling) and judged on test users."
    points = {name: found.reliability.filter(pl.col("learner") == name) for name in _shown(found, learners)}
    series = {name: (part["said"].to_list(), part["happened"].to_list()) for name, part in points.items()}
    ends = [min(min(*x, *y) for x, y in series.values()), max(max(*x, *y) for x, y in series.values())]
    lead = found.figures.filter(pl.col("learner") == about["learner"])["ece"].item()
    alt = f"What happened by what was said: {about['learner']} is off by {lead:.3f} on average."
    labels = ("Reliability", "probability", "share that happened")
    drawing = lines(alt, {"as said": (ends, ends), **series}, labels, muted=["as said"])
    table = TableOf(f"At K={about['K']}", ["", *(SHORT.get(n, n) for n in names)], rows, strong=strong)
    return Section("What a score is worth", [text], [table], {"reliability": drawing})


def _shown(found: Examination, learners: Sequence[str]) -> list[str]:
    """The learner, the others that are no floors, and the best floor, as far as they have probabilities."""
    wanted = [found.about["learner"], *reversed(learners), found.about["floor"]]
    known = set(found.reliability["learner"])
    return [name for name in dict.fromkeys(wanted) if name in known]


def _steps(found: Examination) -> Section:
    if found.steps.is_empty():
        return Section("Steps of adaptation")
    metric = found.about["metric"]
    own = found.steps.filter(pl.col("metric") == metric)
    series, spread = {}, {}
    for (name, k), part in own.group_by("learner", "K", maintain_order=True):
        key = f"{name}, K={k}"
        series[key] = (part["steps"].to_list(), part["mean"].to_list())
        if name == found.about["learner"]:
            spread[key] = (part["low"].to_list(), part["high"].to_list())
    series = dict(reversed(series.items()))
    text = "What each gradient step at adaptation is worth. Choose their number on validation users, not here."
    alt = f"{metric} by the number of gradient steps at adaptation, of {', '.join(series)}."
    labels = ("Steps of adaptation", "gradient steps", metric)
    return Section("Steps of adaptation", [text], [], {"steps": lines(alt, series, labels, bands=spread, whole=True)})


def _states(found: Examination, learners: Sequence[str]) -> Section:
    if found.states.is_empty():
        return Section("Known and new, users and items")
    about, wide = found.about, found.by_state()
    names = {state: state.replace("_", " ") for state in wide.columns[1:]}
    pick = min if about["metric"] in ERRORS else max
    is_headline = pl.col("metric").str.split("@").list.first().is_in(list(HEADLINE.values()))
    rows = found.states.filter(is_headline).rows(named=True)
    own = {each: [row for row in rows if row["learner"] == each] for each in reversed(learners)}
    values = {each: [row["mean"] for row in part] for each, part in own.items()}
    spread = {each: ([row["low"] for row in part], [row["high"] for row in part]) for each, part in own.items()}
    floors = wide.filter(~pl.col("learner").is_in(list(learners)))
    if not floors.is_empty():  # Second, where bars are grey.
        best = {"best floor": [pick(floors[state].to_list()) for state in names]}
        values = {about["learner"]: values.pop(about["learner"]), **best, **values}
    said = "Users show what they did with items of training, and are asked about known items or ones never trained on."
    if about["positive_rating"] is None:
        said += " New items are ranked among themselves, known ones among all known."
    ends = [pick(wide[state].to_list()) for state in names]
    lines_of = list(enumerate(wide.rows()))
    table = TableOf(
        f"{about['metric']} at K={about['K']}; users: "
        + ", ".join(f"{names[row['state']]} {row['users']}" for row in own[about["learner"]]),
        ["", *names.values()],
        [[line[0], *map(plain, line[1:])] for _, line in lines_of],
        frozenset((i, j) for i, line in lines_of for j, end in enumerate(ends, 1) if line[j] == end),
        frozenset(i for i, line in lines_of if line[0] in learners),
    )
    alt = f"{about['metric']} of {', '.join(values)} in the states {', '.join(names.values())}."
    labels = ("The four states of cold start", about["metric"], "")
    drawing = bars(alt, list(names.values()), values, labels, intervals=spread)
    return Section("Known and new, users and items", [said], [table], {"states": drawing})


def _interval(row: dict) -> str:
    return f"{plain(row['mean'])} ±{plain((row['high'] - row['low']) / 2)}"

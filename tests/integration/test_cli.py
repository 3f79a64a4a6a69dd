"""The command line end to end, as real processes on a small planted data set."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from tfmetarec import cli, experiment, run_report
from tfmetarec.config import load
from tfmetarec.data.whole_file import write_whole

SMALL = {
    "name": "small",
    "data": {"source": "synthetic", "options": {"n_users": 120, "n_items": 80, "seed": 3}},
    "vocabulary": {"min_item_users": 1, "min_category_users": 1},
    "tasks": {"support": [0, 5], "query": 5, "negatives": 40},
    "model": {"embedding_dim": 8, "dropout": 0.0, "id_dropout": 0.2},
    "meta": {"inner_learning_rate": 1.0, "shrinkage": 2.0, "contrast": 40},
    "training": {"epochs": 2, "learning_rate": 0.01},
    "evaluation": {"shots": [0, 5], "query": 5, "top_k": 10},
    "export": {"top_k": 5},
}


def tfmetarec(*arguments: str, cwd: Path, code: int = 0) -> str:
    """Runs the command line and returns what it printed, both streams together."""
    environment = {**os.environ, "COLUMNS": "150"}
    ran = subprocess.run(
        [sys.executable, "-m", "tfmetarec", *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )
    printed = ran.stdout + ran.stderr
    assert ran.returncode == code, printed
    return printed


def said(
    *arguments: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    where: Path,
    code: int | None = None,
) -> str:
    """What the command line prints, in this process: importing TensorFlow is most of the time of a new one."""
    monkeypatch.chdir(where)
    monkeypatch.setattr(sys, "argv", ["tfmetarec", *arguments])
    if code is None:
        cli.main()
    else:
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == code
    return "".join(capsys.readouterr())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained, evaluated and exported run."""
    work = tmp_path_factory.mktemp("work")
    (work / "small.yaml").write_text(yaml.safe_dump(SMALL))
    trained = tfmetarec("train", "small.yaml", "--run", "run", "--set", "seed=1", cwd=work)
    assert "Epoch 2/2" in trained
    assert "tfmetarec evaluate run" in trained
    return work / "run"


def test_a_run_folder_holds_everything_needed_to_understand_it(run: Path) -> None:
    assert yaml.safe_load((run / "config.yaml").read_text())["seed"] == 1
    recorded = json.loads((run / "environment.json").read_text())
    assert recorded["seed"] == 1
    assert {"tfmetarec", "tensorflow", "keras", "python"} <= set(recorded["versions"])
    history = json.loads((run / "learner-history.json").read_text())
    assert [set(epoch) >= {"loss", "val_ndcg"} for epoch in history] == [True, True]
    assert (run / "learner.keras").exists()
    assert (run / "rival.keras").exists()
    assert not [path for path in run.rglob("*") if "writing" in path.name]


def test_training_a_finished_run_again_changes_nothing(run: Path) -> None:
    before = (run / "learner.keras").read_bytes()
    tfmetarec("train", "--run", "run", cwd=run.parent)
    assert (run / "learner.keras").read_bytes() == before


def test_a_run_is_not_continued_with_another_configuration(run: Path) -> None:
    said = tfmetarec("train", "small.yaml", "--run", "run", "--set", "seed=2", cwd=run.parent, code=1)
    assert "run holds a run with another configuration: `seed` is 1 there and 2 here" in said


@pytest.fixture(scope="module")
def judged(run: Path) -> str:
    """What `evaluate` says of the run."""
    return tfmetarec("evaluate", "run", "--predictions", cwd=run.parent)


def test_evaluate_prints_the_table_and_writes_what_it_shows(run: Path, judged: str) -> None:
    printed = judged
    assert "Predictions: run/predictions.parquet" in printed
    for name in ("popularity", "item-KNN", "EASE", "iALS fold-in", "FineTuning", "MAML", "K=5"):
        assert name in printed
    rows = json.loads((run / "metrics.json").read_text())["rows"]
    shown = next(r for r in rows if (r["learner"], r["K"], r["metric"]) == ("MAML", 5, "recall@10"))
    assert f"{shown['mean']:.4f}".replace("0.", ".", 1) in printed
    assert pl.read_parquet(run / "predictions.parquet").height == pl.read_parquet(run / "users.parquet").height
    for word in ("Beyond the mean, K=5", "coverage", "novelty", "ECE", "Worst slice of items"):
        assert word in printed
    said = json.loads((run / "examination" / "about.json").read_text())["said"]
    assert all(sentence in printed for sentence in said)


def test_any_two_learners_are_compared_in_words(
    run: Path, judged: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    told = said(
        "evaluate", "run", "--compare", "MAML", "EASE", monkeypatch=monkeypatch, capsys=capsys, where=run.parent
    )
    lines = told.splitlines()
    assert lines[0] == "recall@10"
    assert [line.split(":")[0] for line in lines[1:]] == ["K=0", "K=5"]
    assert "MAML" in lines[2]
    assert "EASE" in lines[2]
    assert "Beyond the mean" not in told  # It was judged before.
    unknown = ["evaluate", "run", "--compare", "MAML", "ESE"]
    told = said(*unknown, monkeypatch=monkeypatch, capsys=capsys, where=run.parent, code=1)
    assert "`compare` must name learners of the table; did you mean 'EASE'? Received: 'ESE'" in told
    small = ["evaluate", "run", "--compare", "maml", "EASE"]
    told = said(*small, monkeypatch=monkeypatch, capsys=capsys, where=run.parent, code=1)
    assert "did you mean 'MAML'? Received: 'maml'" in told
    before = (run / "metrics.parquet").stat().st_mtime_ns
    again = ["evaluate", "run", "--predictions", "--compare", "MAML", "nobody"]
    told = said(*again, monkeypatch=monkeypatch, capsys=capsys, where=run.parent, code=1)
    assert "`compare` must name learners of the table; there are popularity, " in told
    told = said(
        "evaluate", "run", "--metric", "recall@5", monkeypatch=monkeypatch, capsys=capsys, where=run.parent, code=1
    )
    assert "`metric` must be one of recall@10, " in told
    assert (run / "metrics.parquet").stat().st_mtime_ns == before  # Refused before anything was judged.


def test_items_held_out_too_make_the_four_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL))
    settings = ["split.cold_item_share=0.2", "training.epochs=1", "meta.rival=null", "evaluation.adaptation_steps=[]"]
    # Of ten items of a user, two or so are held out.
    settings += ["evaluation.query=2", "evaluation.shots=[0,2]", "data.options.interactions_per_user=10"]
    given = [part for setting in settings for part in ("--set", setting)]
    tools = {"monkeypatch": monkeypatch, "capsys": capsys, "where": tmp_path}
    said("train", "small.yaml", "--run", "r", *given, **tools)
    printed = said("evaluate", "r", **tools)
    assert "recall@10 in the four states, K=2" in printed
    for state in ("warm", "user cold", "item cold", "both cold"):
        assert state in printed
    said("report", "r", **tools)
    text = (tmp_path / "r" / "report.html").read_text()
    assert '<figure id="states"' in text
    assert '<figure id="steps"' not in text


def test_a_report_is_made_of_a_run_that_was_judged(
    run: Path, judged: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    printed = said("report", "run", monkeypatch=monkeypatch, capsys=capsys, where=run.parent)
    assert "Report: run/report.html" in printed
    text = (run / "report.html").read_text()
    for heading in (
        "Users never seen", "Who wins, who loses", "Steps of adaptation", "Groups of items",
        "What lists are like", "What a score is worth", "Training", "One user", "Similar items",
    ):  # fmt: skip
        assert f"<h2>{heading}</h2>" in text
    assert "<h2>Groups of users</h2>" not in text  # Each of them is too small.
    rows = json.loads((run / "metrics.json").read_text())["rows"]
    shown = next(r for r in rows if (r["learner"], r["K"], r["metric"]) == ("MAML", 5, "recall@10"))
    assert f"{shown['mean']:.4f}".replace("0.", ".", 1) in text
    both = said("report", "run", "run", "--out", "two.html", monkeypatch=monkeypatch, capsys=capsys, where=run.parent)
    assert "Report: two.html" in both
    (run.parent / "empty").mkdir()
    said("report", "empty", monkeypatch=monkeypatch, capsys=capsys, where=run.parent, code=1)


@pytest.mark.parametrize(
    "part", ["users.parquet", "metrics.json", "examination/about.json", "examination/gaps.parquet"]
)
def test_what_is_broken_in_a_run_is_to_be_judged_again(
    run: Path, judged: str, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(run, tmp_path / "broken")
    (tmp_path / "broken" / part).write_text("{")
    printed = said("report", "broken", monkeypatch=monkeypatch, capsys=capsys, where=tmp_path, code=1)
    assert "error: what `evaluate` left in broken cannot be read; run it again. Received: " in printed
    assert len(printed.strip().splitlines()) == 1


def test_runs_that_were_asked_otherwise_stand_side_by_side_with_a_warning(
    run: Path, judged: str, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "other")
    config = yaml.safe_load((tmp_path / "other" / "config.yaml").read_text())
    (tmp_path / "other" / "config.yaml").write_text(yaml.safe_dump({**config, "seed": 7}))
    page, *_ = run_report.report([run, tmp_path / "other"], tmp_path / "two.html")
    assert "<p>These runs differ in seed: a difference may be that of their users" in page.read_text()


@pytest.mark.slow
@pytest.mark.serving
def test_an_exported_run_is_served_and_recommends(run: Path, serving: Callable) -> None:
    printed = tfmetarec("export", "run", cwd=run.parent)
    version = run / "export" / "small" / "1"
    assert "adapt_and_recommend" in printed
    assert (version / "saved_model.pb").exists()
    with serving(version.parent, "small", run / "server.log") as (grpc_port, rest_port):
        model = ("--model", "small")
        shown = ("--export", str(version), "--user", "segment=segment 1")
        items = pl.read_parquet(version / "assets.extra" / "vocabulary" / "items.parquet")["item_id"].to_list()
        chosen = [str(item) for item in items[:3]]
        over_rest = tfmetarec("recommend", *chosen, *model, *shown, "--server", f"127.0.0.1:{rest_port}", cwd=run)
        grpc = ("--protocol", "grpc", "--server", f"127.0.0.1:{grpc_port}")
        over_grpc = tfmetarec("recommend", *chosen, *model, *shown, *grpc, cwd=run)
        assert over_rest == over_grpc
        assert over_rest.count("│") // 5 == 5  # Five rows of four columns.
        nobody = tfmetarec("recommend", *model, "--server", f"127.0.0.1:{rest_port}", cwd=run)
        assert nobody != over_rest
        wrong = tfmetarec(
            "recommend", "1", *model, "--user", "agee=3", "--server", f"127.0.0.1:{rest_port}", cwd=run, code=1
        )
        assert "`user` must hold features of the model: ['segment']. Received: ['agee']" in wrong
        explained = tfmetarec(
            "recommend", *chosen, *model, *shown, "--explain", "--server", f"127.0.0.1:{rest_port}", cwd=run
        )
        assert "because you bought" in explained


@pytest.fixture(scope="module")
def small_versions(run: Path) -> tuple[Path, str]:
    """A base path with one version in 8 bits and two items more, deployment files, a LiteRT file, and what was printed."""
    (run.parent / "new.csv").write_text("item_id,group,tags,price\n901,group-1,group-1|e,20\n902,,,\n")
    arguments = ("--weights", "int8", "--keep", "2", "--serving-config", "deploy", "--lite", "small.tflite")
    arguments += ("--add-items", "new.csv")
    printed = tfmetarec("export", "run", "--to", "models/small", *arguments, cwd=run.parent)
    return run.parent / "models" / "small", printed


def test_an_export_in_fewer_bits_says_what_they_cost_and_writes_what_was_asked_for(
    small_versions: tuple[Path, str],
) -> None:
    base, printed = small_versions
    assert "ndcg@5 on validation users: " in printed
    assert "with int8" in printed
    assert "Search: exact over " in printed
    assert (base.parents[1] / "deploy" / "models.config").exists()
    assert (base.parents[1] / "small.tflite").stat().st_size > 1000
    card = json.loads((base / "1" / "assets.extra" / "tfmetarec.json").read_text())
    assert card["weights"] == "int8"
    assert "(2 of them added)" in printed
    assert card["added_items"] == 2
    assert pl.read_parquet(base.parents[1] / "run" / "new_items.parquet")["item_id"].to_list() == [901, 902]


@pytest.mark.slow
def test_a_dry_run_publishes_nothing(run: Path, small_versions: tuple[Path, str]) -> None:
    base, _ = small_versions
    printed = tfmetarec("export", "run", "--to", "models/small", "--dry-run", cwd=run.parent)
    assert "Dry run: it would be version 2 under models/small" in printed
    assert [path.name for path in base.iterdir()] == ["1"]


def test_a_learner_is_distilled_from_a_run_and_stands_beside_the_same_one_alone(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    here = {"monkeypatch": monkeypatch, "capsys": capsys, "where": run.parent}
    smaller = ("--set", "model.embedding_dim=4", "--set", "training.epochs=1", "--set", "zero_shot.items=true")
    printed = said("distill", "small.yaml", "--teacher", "run", "--run", "little", "--set", "seed=1", *smaller, **here)
    assert "soft_loss" in printed
    config = yaml.safe_load((run.parent / "little" / "config.yaml").read_text())
    assert config["distillation"]["teacher"] == str(run)
    assert config["meta"]["rival"] == config["meta"]["algorithm"]
    found = experiment.learners(experiment.open_run(run.parent / "little"), run.parent / "little")
    assert list(found) == ["MAML", "MAML, distilled, prototypes"]
    assert type(found["MAML, distilled, prototypes"].model).__name__ == "WithPrototypes"


def test_a_teacher_that_may_have_seen_the_students_test_users_is_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    here = {"monkeypatch": monkeypatch, "capsys": capsys, "where": run.parent, "code": 1}
    printed = said("distill", "small.yaml", "--teacher", "run", "--set", "seed=2", **here)
    assert "the teacher must have held out the same users: `seed` is 1 in " in printed
    printed = said("train", "small.yaml", "--set", "distillation.alpha=0.9", **here)
    assert "keys of `distillation` need a teacher" in printed


def test_prototypes_that_cannot_be_are_refused_before_training(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    here = {"monkeypatch": monkeypatch, "capsys": capsys, "where": run.parent, "code": 1}
    for wrong, message in (
        ("zero_shot.user_features=[nonsense]", "`user_features` must be of ['segment']. Received: 'nonsense'"),
        ("meta.algorithm=neural_process", "`user_features` cannot be for a NeuralProcess"),
        ("model.kind=ranker", "a model that scores by a dot product"),
    ):
        groups = "zero_shot.user_features=[segment]"
        printed = said("train", "small.yaml", "--run", "wrong", "--set", groups, "--set", wrong, **here)
        assert message in printed
        assert "Epoch" not in printed


def test_what_was_done_in_one_domain_is_carried_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    rng = np.random.default_rng(0)
    for domain in ("book", "music"):
        rated = [(user, item) for user in range(40) for item in rng.choice(15, 8, replace=False)]
        frame = pl.DataFrame(rated, schema=["user_id", "item_id"], orient="row")
        mood = pl.Series(rng.integers(-1, 2, len(rated))) + frame["user_id"] % 3
        frame.with_columns(rating=(mood + 2).cast(pl.Float64)).write_parquet(tmp_path / f"{domain}.parquet")
    (tmp_path / "two.yaml").write_text(
        yaml.safe_dump(
            {
                "data": {"source": "douban_cdr", "options": {"folder": "."}},
                "vocabulary": {"min_item_users": 1},
                "transfer": {"source": "book", "target": "music", "method": "hierarchical", "shots": [0, 5]},
            }
        )
    )
    here = {"monkeypatch": monkeypatch, "capsys": capsys, "where": tmp_path}
    printed = said("transfer", "two.yaml", "--run", "run", **here)
    assert "hierarchical transfer" in printed
    assert "item+user bias" in printed
    first = json.loads((tmp_path / "run" / "metrics.json").read_text())["rows"]
    assert {row["K"] for row in first} == {0, 5}
    assert "hierarchical transfer" in said("transfer", "--run", "run", "--metric", "rmse", **here)  # As it was fitted.
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["rows"] == first
    assert "crosses domains" in said("evaluate", "run", **here, code=1)
    printed = said("transfer", "two.yaml", "--set", "transfer.options.iteration=3", **here, code=1)
    assert "unknown key `transfer.options.iteration`; known: iterations, noise_prior, gate_prior." in printed


def test_a_rollback_says_what_is_served_now(tmp_path: Path) -> None:
    for version in ("1", "2"):
        (tmp_path / "small" / version).mkdir(parents=True)
    back = tfmetarec("rollback", "small", cwd=tmp_path)
    assert "Version 1 is the newest under small" in back
    assert "Out of service, to bring back with --to: 2" in back


def test_only_the_export_section_can_change_after_training(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    here = {"monkeypatch": monkeypatch, "capsys": capsys, "where": run.parent, "code": 1}
    printed = said("export", "run", "--set", "model.embedding_dim=3", **here)
    assert "only keys of `export` can be changed after training. Received: 'model.embedding_dim=3'" in printed
    printed = said("export", "run", "--weights", "int7", **here)
    assert "`export.weights`: input should be 'float32', 'float16' or 'int8'. Received: 'int7'" in printed


@pytest.mark.slow
def test_an_interrupted_training_says_how_to_go_on_and_ends_as_an_unbroken_one(run: Path, tmp_path: Path) -> None:
    longer = {
        **SMALL,
        "seed": 1,
        "training": {"epochs": 4, "learning_rate": 0.01},
        "meta": {**SMALL["meta"], "rival": None},
    }
    (tmp_path / "longer.yaml").write_text(yaml.safe_dump(longer))
    command = [sys.executable, "-m", "tfmetarec", "train", "longer.yaml", "--run", "a[b]c d"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    state = tmp_path / "a[b]c d" / "checkpoint" / "learner" / "state.json"
    end = time.monotonic() + 120
    while not state.exists() and time.monotonic() < end and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    if process.returncode != 0:  # It may have been faster than the signal; then there is nothing to say.
        assert process.returncode == 130
        assert "Continue with: tfmetarec train --run 'a[b]c d'" in said
        assert not (tmp_path / "a[b]c d" / "learner.keras").exists()
    assert not list((tmp_path / "a[b]c d").rglob("*writing*"))
    printed = tfmetarec("train", "--run", "a[b]c d", cwd=tmp_path)
    assert "Run folder: a[b]c d\n" in printed
    assert "Next: tfmetarec evaluate 'a[b]c d'\n" in printed
    tfmetarec("train", "longer.yaml", "--run", "whole", cwd=tmp_path)
    histories = [(tmp_path / name / "learner-history.json").read_text() for name in ("a[b]c d", "whole")]
    assert histories[0] == histories[1]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "--set", "meta.inner_learning_rat=1"], 1, "did you mean `meta.inner_learning_rate`?"),
        (["train", "nowhere.yaml"], 1, "cannot read nowhere.yaml: No such file or directory"),
        (["train", "--set", "meta.algorithm=mamal"], 1, "did you mean 'maml'?"),
        (
            ["train", "--set", "meta.algorithm=reptile", "--set", "meta.options.proximl=1"],
            1,
            "unknown key `meta.options.proximl`; did you mean `meta.options.proximal`?",
        ),
        (
            ["train", "--set", "meta.options.inner_steps=1"],
            1,
            "`meta.options.inner_steps` has a key of its own: `meta.inner_steps`",
        ),
        (
            ["train", "--set", "model.options.item_hiden=[4]"],
            1,
            "did you mean `model.options.item_hidden`? Known: user_hidden, item_hidden, activation",
        ),
        (["train", "--set", "data.options.n_user=9"], 1, "the nearest name is 'n_users'"),
        (["train", "--set", "data.options.n_users=many"], 1, "`data.options`: "),
        (
            ["train", "--set", "data.options.interactions_per_user=13", "--set", "vocabulary.min_item_users=1"],
            1,
            "validation users have at most 13 interactions, and evaluation.shots and evaluation.query need 40 "
            "together; try --set evaluation.shots=[0,1,3] --set evaluation.query=3",
        ),
        (["evaluate", "a[/x]b"], 1, "a[/x]b is not a run folder: it has no config.yaml."),
        (["evaluate", "nowhere"], 1, "nowhere is not a run folder: it has no config.yaml."),
        (["export", "nowhere"], 1, "nowhere is not a run folder"),
        (["distill"], 1, "`distill` needs a teacher: give --teacher, or `distillation.teacher` in the file."),
        (["distill", "--teacher", "nowhere"], 1, "`distillation.teacher` must be a run folder with a finished learner"),
        (["transfer"], 1, "`transfer.source` must name a domain of the data. Received: none"),
        (["export", "nowhere", "--add-items", "new.csv"], 1, "nowhere is not a run folder"),
        (["recommend", "1", "--server", "127.0.0.1:1"], 1, "UNAVAILABLE"),
        (["recommend", "1", "--server", "nonsense"], 1, '`target` must be "host:port"'),
        (["trian"], 2, "trian"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    if arguments[0] == "train" and arguments[1] == "--set":
        arguments = [*arguments, "--set", "data.source=synthetic"]
    printed = said(*arguments, monkeypatch=monkeypatch, capsys=capsys, where=tmp_path, code=code)
    assert message in printed
    assert "Traceback" not in printed
    assert printed.count("error:") == 1
    assert not list(tmp_path.iterdir())


def test_a_run_in_which_nothing_was_trained_does_not_keep_its_folder(tmp_path: Path) -> None:
    small = load(None, ["data.source=synthetic"])
    other = load(None, ["data.source=synthetic", "seed=5"])
    experiment.start_run(small, tmp_path / "run")
    experiment.start_run(other, tmp_path / "run")
    assert experiment.open_run(tmp_path / "run") == other


def test_an_interrupt_while_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text("old")

    def write_half() -> None:
        with write_whole(tmp_path / "scores.json") as temporary:
            temporary.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]
    assert (tmp_path / "scores.json").read_text() == "old"


def test_datasets_lists_the_sources(tmp_path: Path) -> None:
    printed = tfmetarec("datasets", cwd=tmp_path)
    for name in ("completejourney", "files", "movielens", "synthetic"):
        assert name in printed


def test_help_does_not_wait_for_tensorflow(tmp_path: Path) -> None:
    program = (
        "import sys; sys.argv = ['tfmetarec', '--help']\n"
        "from tfmetarec.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    for command in ("quickstart", "datasets", "train", "evaluate", "export", "serve", "recommend"):
        assert command in ran.stdout


def test_serve_takes_the_flags_of_tensorflow_serving(tmp_path: Path) -> None:
    printed = tfmetarec("serve", "--help", cwd=tmp_path)
    for flag in ("--port", "--rest_api_port", "--model_name", "--model_base_path", "--model_config_file"):
        assert flag in printed


@pytest.mark.slow
def test_a_search_finds_a_configuration_that_training_reproduces(tmp_path: Path) -> None:
    search = {"trials": 2, "only": ["training.learning_rate", "model.embedding_dim"], "prune": False}
    small = {**SMALL, "meta": {**SMALL["meta"], "rival": None}, "tuning": search}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small))
    printed = tfmetarec("tune", "small.yaml", "--run", "found", cwd=tmp_path)
    for number in range(2):
        assert f"trial {number} ({number + 1} of 2): val_ndcg" in printed
    assert "val_ndcg of 2 trials on validation users" in printed
    assert "Next: tfmetarec train found/best.yaml" in printed
    trials = pl.read_parquet(tmp_path / "found" / "trials.parquet")
    assert json.loads(trials["values"][0]) == {"training.learning_rate": 0.01, "model.embedding_dim": 8}
    tfmetarec("train", "found/best.yaml", "--run", "again", cwd=tmp_path)
    history = json.loads((tmp_path / "again" / "learner-history.json").read_text())
    assert max(epoch["val_ndcg"] for epoch in history) == pytest.approx(max(trials["score"]), abs=1e-6)


@pytest.mark.slow
def test_a_search_goes_on_for_longer_with_more_workers(tmp_path: Path) -> None:
    search = {"trials": 2, "only": ["training.learning_rate", "model.embedding_dim"], "tuner": "random"}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump({**SMALL, "tuning": search}))
    tfmetarec("tune", "small.yaml", "--run", "found", cwd=tmp_path)
    trials = pl.read_parquet(tmp_path / "found" / "trials.parquet")
    printed = tfmetarec("tune", "--run", "found", "--trials", "4", "--workers", "2", cwd=tmp_path)
    assert "(4 of 4)" in printed
    longer = pl.read_parquet(tmp_path / "found" / "trials.parquet")
    assert longer.head(2).equals(trials)
    assert longer["status"].to_list() == ["completed"] * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trials", "0"], "`tuning.trials`: input should be greater than or equal to 1. Received: 0"),
        (["--tuner", "tpe"], "`tuning.tuner`: input should be 'bayesian', 'random', 'grid', 'hyperband' or 'sklearn'"),
        (["--tuner", "sklearn"], "`tuner` 'sklearn' tunes scikit-learn's estimators on folds of rows"),
        (["--set", "tuning.space={a.b: [1]}"], "`tuning.space.a.b`: a trial differs by keys of model"),
        (["--set", "tuning.options={factory: 1}"], "`options` of the tuner: .*'factory'"),
        (["--max-minutes", "-1"], "`tuning.max_minutes`: input should be greater than 0. Received: -1"),
    ],
)
def test_a_search_that_cannot_be_ends_before_anything_is_written(
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    printed = said("tune", "--run", "r", *options, monkeypatch=monkeypatch, capsys=capsys, where=tmp_path, code=1)
    assert re.search(message, " ".join(printed.split()))
    assert list(tmp_path.iterdir()) == []

"""The report: its tables against the results by hand, its files, and its page in Chromium."""

import itertools
import json
import re
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import studies
from browser import Browser, chromium
from matplotlib.figure import Figure
from recipe import ROOT
from scipy import stats

from toolkit.errors import ConfigError, RunError
from toolkit.own_folders import MARK
from toolkit.peft.base import PeftMethod
from toolkit.registry import PEFT
from toolkit.study.report import columns, contents, tables
from toolkit.study.report.columns import Column
from toolkit.study.report.curves import draw_sweep
from toolkit.study.report.load import Results
from toolkit.study.report.plots import (
    MOST_SVG_BYTES,
    draw_pareto,
    draw_recalls,
    pareto_front,
    save,
    save_small,
)
from toolkit.study.report.write import write_report

SKILLS = {
    "linear": 0.5, "lora": 0.7, "adapter": 0.72, "conformer": 0.75, "softmoa": 0.8,
    "densemoa": 0.78, "prefix": 0.6, "bitfit": 0.65, "full": 0.9, "prompt_deep": 0.55,
}  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """500 runs: ten methods, five folds, ten seeds; those of one method have failed."""
    folder = tmp_path_factory.mktemp("study")
    studies.made_up(folder, SKILLS, folds=5, seeds=10, failed=["prompt_deep"])
    return Results.read(folder)


@pytest.fixture(scope="module")
def report(results: Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the report, next to RESULTS.md for a repository."""
    folder = tmp_path_factory.mktemp("report")
    list(write_report(results, folder / "report", folder / "RESULTS.md"))
    return folder / "report"


def accuracies(results: Results, method: str) -> np.ndarray:
    """Accuracy in % of every run of a method, from its predictions."""
    found = []
    for file in sorted(results.folder.glob(f"runs/*/{method}/*/*/*/*/train/predictions.csv")):
        table = pd.read_csv(file)
        found.append(100 * (table["truth"] == table["prediction"]).mean())
    return np.array(found)


# ---------------------------------------------------------------- tables


def test_methods_by_hand(results: Results) -> None:
    """Mean, deviation and interval from the predictions; costs from the timings."""
    table = tables.methods(results).set_index("method")
    assert next(iter(table.index)) == "full"
    assert len(table) == len(SKILLS) - 1
    for method in ("lora", "softmoa"):
        values = accuracies(results, method)
        row = table.loc[method]
        half = stats.t.ppf(0.975, 49) * values.std(ddof=1) / np.sqrt(50)
        assert row["runs"] == "50/50"
        assert row["score"] == pytest.approx(values.mean())
        assert row["sd"] == pytest.approx(values.std(ddof=1))
        assert (row["high"] - row["low"]) / 2 == pytest.approx(half)
        assert row["trained"] == round(10_000 * SKILLS[method])
        assert row["share"] == pytest.approx(100 * row["trained"] / 1_000_000)
        assert row["latency_ms"] == pytest.approx(10 * SKILLS[method])
        assert row["peak_mib"] == 32
        assert row["epoch_seconds"] == pytest.approx(72 / 36)  # median of three rounds
        assert row["best_seconds"] == pytest.approx(4 * 72 / 36)
        assert row["gflops"] == 1
        assert pd.isna(row["merged_latency_ms"])


def test_what_is_said_of_the_timings(results: Results) -> None:
    """The number of rounds, the machine, and how much the rounds differ."""
    [note] = [table.note for table in contents.all_tables(results) if table.key == "methods"]
    assert "medians of 3 interleaved rounds" in note and "a processor, 2 cores" in note
    assert "differed by 11 % in training speed and 0 % in latency" in note  # 36, 40, 36 clips/s


def test_comparisons_by_hand(results: Results) -> None:
    """Pairs of clips, means over seeds, McNemar's test on their signs, Holm over all methods."""
    table = tables.comparisons(results).set_index("method")
    assert "linear" not in table.index
    right = results.predictions.pivot_table(index=["method", "id"], values="right", aggfunc="mean")[
        "right"
    ]
    expected = {}
    for method in table.index:
        difference = (right[method] - right["linear"]).to_numpy().astype(float)
        better, worse = (difference > 0).sum(), (difference < 0).sum()
        row = table.loc[method]
        assert row["clips"] == len(difference) == 5 * 24
        assert (row["better"], row["worse"]) == (better, worse)
        assert row["difference"] == pytest.approx(100 * difference.mean())
        assert row["low"] < row["difference"] < row["high"]
        expected[method] = stats.binomtest(int(better), int(better + worse)).pvalue
        assert row["p"] == pytest.approx(expected[method])
    smallest = min(expected, key=expected.__getitem__)
    assert table.loc[smallest, "p_holm"] == pytest.approx(min(1, 8 * expected[smallest]))
    assert (table["p_holm"] >= table["p"]).all()


def test_a_comparison_needs_the_baseline(tmp_path: Path) -> None:
    """Without one, or if all its runs have failed, there is no table."""
    studies.made_up(tmp_path, {"linear": 0.5, "lora": 0.6}, folds=2, failed=["linear"])
    assert tables.comparisons(Results.read(tmp_path)).empty


def test_ranks_are_over_corpora_where_there_are_three(tmp_path: Path, results: Results) -> None:
    """With fewer corpora, ranks are over the folds."""
    skills = {"linear": 0.1, "lora": 0.5, "full": 0.95}
    studies.made_up(tmp_path, skills, corpora=["A", "B", "C", "D"], folds=2)
    [ranking] = tables.rankings(Results.read(tmp_path))
    assert (ranking.blocks, ranking.ranks.blocks) == ("corpora", 4)
    assert ranking.methods == ["full", "lora", "linear"]
    assert ranking.ranks.average.tolist() == [1, 2, 3]
    [over_folds] = tables.rankings(results)
    assert (over_folds.blocks, over_folds.ranks.blocks) == ("folds", 5)


def test_factors_pair_runs_that_differ_in_one_setting(tmp_path: Path) -> None:
    """Two settings with two values each; in a pair, the other setting, seed and fold are equal."""
    sweep = {"peft.zero_positions": [False, True], "peft.reference_init": [False, True]}
    studies.made_up(
        tmp_path,
        {"adapter": 0.7},
        methods=[{"hparams": "adapter", "sweep": sweep}],
        baseline="adapter,zero_positions=false,reference_init=false",
    )
    results = Results.read(tmp_path)
    table = tables.factors(results).set_index("factor")
    assert table["pairs"].tolist() == [2 * 5 * 2] * 2
    values = {
        (zero, init): accuracies(results, f"adapter,zero_positions={zero},reference_init={init}")
        for zero, init in itertools.product(("false", "true"), repeat=2)
    }
    pairs = [values["true", init] - values["false", init] for init in ("false", "true")]
    row = table.loc["zero_positions"]
    assert row["difference"] == pytest.approx(np.concatenate(pairs).mean())
    assert row["at_first"] == pytest.approx(
        np.concatenate([values["false", init] for init in ("false", "true")]).mean()
    )
    assert row["low"] < row["difference"] < row["high"]
    names = {picture.name for picture in contents.all_pictures(results, tables.methods(results))}
    assert any(name.startswith("sweep-zero_positions") for name in names)


def test_published_numbers_stand_beside_measured_ones(tmp_path: Path) -> None:
    """ESC-50 on AST-base; a variant finds the number under the published name."""
    methods = ["linear", {"hparams": "lora", "name": "lora_reference", "published": "lora"}]
    studies.made_up(
        tmp_path,
        {"linear": 0.5, "lora_reference": 0.8},
        corpora=["ESC-50"],
        methods=methods,
        backbones=["ast"],
        folds=2,
    )
    results = Results.read(tmp_path)
    [table] = [t for t in contents.all_tables(results) if t.key == "published"]
    rows = table.rows[table.rows["evidence"] == "paper"].set_index("method")
    assert rows["score_published"].to_dict() == {"linear": 75.85, "lora_reference": 86.45}
    mean = accuracies(results, "lora_reference").mean()
    assert rows.loc["lora_reference", "difference"] == pytest.approx(mean - 86.45)
    assert rows["source"].str.startswith("arXiv:2312.03694").all()


def test_few_shot_and_scaling_have_pictures(tmp_path: Path) -> None:
    """Curves over clips per class, over parameters and a swept number; few clips come first."""
    studies.made_up(
        tmp_path,
        {"linear": 0.5, "lora": 0.8},
        methods=["linear", {"hparams": "lora", "sweep": {"peft.rank": [1, 4]}}],
        shots=[16, None, 1, 2],
        folds=2,
    )
    results = Results.read(tmp_path)
    found = tables.methods(results), tables.comparisons(results)
    assert [list(dict.fromkeys(t["shots"])) for t in found] == [["1", "2", "16", "all"]] * 2
    pictures = contents.all_pictures(results, tables.methods(results))
    names = {picture.name for picture in pictures}
    assert "Accuracy, Sounds, ast_tiny, 1 clip per class" in {p.title for p in pictures}
    [note] = [table.note for table in contents.all_tables(results) if table.key == "ranks"]
    for group in ("ast_tiny, 1 clip per class", "ast_tiny, 16 clips per class", "ast_tiny"):
        assert f"{group}, over 2 folds: Friedman" in note
    assert "few-shot-Sounds-ast_tiny" in names
    assert "sweep-rank-Sounds-ast_tiny" in names
    assert "sweep-rank-Sounds-ast_tiny-1-shot" in names


@pytest.mark.parametrize("values", [[2, 4, 7], [4, 16, 192], ["q", "k"]])
def test_a_sweep_shows_every_mean_with_its_interval(values: list) -> None:
    """One line for each of two combinations of the other settings, all within the axes."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "series": "lora",
            "others": others,
            "value": value,
            "metric": "accuracy",
            "score": rng.uniform(60, 90),
        }
        for others in ("slots=1", "slots=2")
        for value in values
        for _ in range(5)
    ]
    folds = pd.DataFrame(rows).assign(metric="accuracy")
    axes = draw_sweep(folds, "peft.rank").axes[0]
    assert [bars.get_label() for bars in axes.containers] == ["lora slots=1", "lora slots=2"]
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    for bars, (_, part) in zip(axes.containers, folds.groupby("others"), strict=True):
        by_value = part.groupby("value", sort=False)["score"]
        line, _, [sticks] = bars
        assert all(left < x < right for x in line.get_xdata())
        np.testing.assert_allclose(np.array(line.get_ydata(), float), by_value.mean())
        half = stats.t.ppf(0.975, 4) * by_value.std().to_numpy() / np.sqrt(5)
        ends = np.array([stick[:, 1] for stick in sticks.get_segments()])
        np.testing.assert_allclose((ends[:, 1] - ends[:, 0]) / 2, half)
        assert bottom < ends.min() and ends.max() < top


def test_a_report_names_the_metric(tmp_path: Path) -> None:
    """Of clips with several classes: no comparison of right clips, no confusion, no recall."""
    studies.made_up(tmp_path, {"linear": 0.5, "lora": 0.8}, folds=2, metrics={"Sounds": "mAP"})
    results = Results.read(tmp_path)
    found = {table.key: table for table in contents.all_tables(results)}
    assert "comparisons" not in found
    titles = {column.key: column.title for column in found["methods"].columns}
    assert titles["score"] == "mAP %" and "uar" not in titles and "metric" not in titles
    assert "Mean test mAP over folds" in found["methods"].note
    pictures = contents.all_pictures(results, found["methods"].rows)
    assert {"mAP-Sounds-ast_tiny", "pareto-Sounds-ast_tiny"} <= {p.name for p in pictures}
    assert "classes-Sounds-ast_tiny" not in {p.name for p in pictures}
    [scores] = [p.figure for p in pictures if p.name == "mAP-Sounds-ast_tiny"]
    assert scores.axes[0].get_xlabel().startswith("test mAP %")
    list(write_report(results, tmp_path / "report"))
    data = studies.page_data(tmp_path / "report" / "report.html")
    assert data["metric"] == "mAP" and data["confusions"] == []


def test_corpora_with_different_metrics_have_scores(tmp_path: Path) -> None:
    """The table says which is which; each corpus has pictures of its own metric."""
    corpora = {"Sounds": "accuracy", "Scenes": "mAP"}
    studies.made_up(
        tmp_path, {"linear": 0.5, "lora": 0.8}, corpora=list(corpora), folds=2, metrics=corpora
    )
    results = Results.read(tmp_path)
    table = contents.all_tables(results)[0]
    titles = {column.key: column.title for column in table.columns}
    assert (titles["score"], titles["metric"]) == ("score %", "metric")
    assert dict(zip(table.rows["corpus"], table.rows["metric"], strict=True)) == corpora
    names = {picture.name for picture in contents.all_pictures(results, table.rows)}
    assert {"mAP-Scenes-ast_tiny", "accuracy-Sounds-ast_tiny"} <= names
    assert set(tables.comparisons(results)["corpus"]) == {"Sounds"}


def test_the_front_is_what_no_other_beats() -> None:
    """Against trying all pairs."""
    rng = np.random.default_rng(3)
    table = pd.DataFrame(rng.integers(0, 12, (40, 2)), columns=["cost", "score"])
    found = set(pareto_front(table, "cost").itertuples(index=False, name=None))
    points = set(table.itertuples(index=False, name=None))
    best = {
        (cost, accuracy)
        for cost, accuracy in points
        if not any(c <= cost and a >= accuracy and (c, a) != (cost, accuracy) for c, a in points)
    }
    assert found == best


def test_names_in_a_picture_do_not_cover_one_another_and_are_always_in_the_same_place(
    tmp_path: Path,
) -> None:
    """Pairs of points that are so close that names next to them would overlap."""
    costs = [100 * 1.05 ** (i % 2) * 3 ** (i // 2) for i in range(12)]
    table = pd.DataFrame({"method": [f"long_name_{i}" for i in range(12)], "cost": costs})
    table["metric"] = "accuracy"
    table["score"] = [80.0 + (i // 2) % 3 for i in range(12)]
    written = []
    for name in ("first", "second"):
        figure = draw_pareto(table, "cost", "cost")
        save(figure, tmp_path, name, ["svg"])
        written.append((tmp_path / f"{name}.svg").read_bytes())
        boxes = [text.get_window_extent() for text in figure.axes[0].texts if text.get_text()]
    assert len(boxes) == 12
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    assert written[0] == written[1]
    assert b">10,000<" in written[0]  # a power in mathtext would name one font only


def test_cells_are_read_easily() -> None:
    """Digits, thousands separators, and an empty cell where there is no value."""
    number = Column("n", "n", "", 1)
    assert [number.text(v) for v in (1234.56, None, float("nan"))] == ["1,234.6", "", ""]
    table = pd.DataFrame({"method": ["a"], "corpus": ["x"], "score": [None]})
    kept = columns.present(table, columns.of("method", "corpus", "score"))
    assert [column.key for column in kept] == ["method"]


# ---------------------------------------------------------------- files


def test_the_files_of_a_report(report: Path, results: Results) -> None:
    """A page, a text, a table; each picture as PNG and as SVG that parses."""
    assert {"report.html", "report.md", "report.csv"} <= {file.name for file in report.iterdir()}
    vector = sorted(file.stem for file in (report / "figures").glob("*.svg"))
    assert vector == sorted(file.stem for file in (report / "figures").glob("*.png"))
    assert {"accuracy-Sounds-ast_tiny", "pareto-Sounds-ast_tiny", "ranks-ast_tiny"} <= set(vector)
    for file in (report / "figures").glob("*.svg"):
        assert ET.parse(file).getroot().tag.endswith("svg")
    table = pd.read_csv(report / "report.csv").set_index("method")
    assert table.loc["lora", "score"] == pytest.approx(accuracies(results, "lora").mean())


def test_pictures_for_a_repository_are_small(report: Path) -> None:
    """Text is text, no glyph is a path, and no coordinate is finer than hundredths."""
    pictures = [file for file in (report.parent / "RESULTS").iterdir() if file.name != MARK]
    assert pictures and {picture.suffix for picture in pictures} == {".svg"}
    for picture in pictures:
        svg = picture.read_text(encoding="utf-8")
        assert len(svg.encode()) <= MOST_SVG_BYTES == 60_000
        assert "<text" in svg and "DejaVuSans-" not in svg
        assert not re.search(r' (?:d|x|y|transform)="[^"]*\d\.\d{3}', svg)


def test_a_picture_too_large_for_an_svg_is_a_png(tmp_path: Path) -> None:
    """The PNG replaces the SVG."""
    figure = Figure(figsize=(2, 2))
    lines = figure.subplots().plot(np.random.default_rng(0).random((4000, 2)))
    assert save_small(figure, tmp_path, "walk") == tmp_path / "walk.png"
    for line in lines:
        line.remove()
    assert save_small(figure, tmp_path, "empty") == tmp_path / "empty.svg"
    assert {file.name for file in tmp_path.iterdir()} == {"walk.png", "empty.svg"}


def test_published_results_are_small_and_complete() -> None:
    """Every picture of docs/results is shown by a page, which shows no other."""
    folder = ROOT / "docs" / "results"
    shown = {
        page.parent / picture
        for page in folder.glob("*.md")
        for picture in re.findall(r"!\[.*\]\((.*)\)", page.read_text(encoding="utf-8"))
    }
    assert shown == {file for file in folder.glob("*/*") if file.suffix in (".svg", ".png")}
    vectors = [picture for picture in shown if picture.suffix == ".svg"]
    assert all(picture.stat().st_size <= MOST_SVG_BYTES for picture in vectors)
    assert all("<text" in picture.read_text(encoding="utf-8") for picture in vectors)


def test_the_markdown_report(report: Path) -> None:
    """One table of methods, what failed, a sentence under each; pictures that are there."""
    text = (report / "report.md").read_text(encoding="utf-8")
    assert "450 runs finished, 50 failed, 0 still to run" in text
    [row] = [line for line in text.splitlines() if line.startswith("| full |") and "50/50" in line]
    assert row.count("|") == text.partition("| method |")[2].partition("\n")[0].count("|") + 2
    assert "out of memory" in text
    assert "bootstrap resamples" in text
    for place in (report / "report.md", report.parent / "RESULTS.md"):
        pictures = re.findall(r"!\[.*\]\((.*)\)", place.read_text(encoding="utf-8"))
        assert pictures
        assert all((place.parent / picture).is_file() for picture in pictures)


def test_the_page_is_one_file(report: Path) -> None:
    """It fetches nothing, and no text of a study can close the script element that contains it."""
    page = report / "report.html"
    text = page.read_text(encoding="utf-8")
    outside = re.findall(r"""(?:src|href)\s*=\s*["'](?!data:)[^"']*["']""", text)
    assert outside == []
    assert set(re.findall(r"https?://[\w./]+", text)) <= {"http://www.w3.org/2000/svg"}
    data = studies.page_data(page)
    assert data["question"] == "Which of these </script> is best?"
    assert len(data["runs"]) == 500
    failed = [run for run in data["runs"] if run["own"]["status"] == "failed"]
    assert len(failed) == 50
    assert failed[0]["log"] == "line of the log"
    assert {picture["source"][:26] for picture in data["pictures"]} == {
        "data:image/svg+xml;base64,"
    }


def test_a_report_needs_a_run(tmp_path: Path) -> None:
    """It is an error if no run has ended or all have failed."""
    studies.made_up(tmp_path / "a", {"linear": 0.5}, folds=1, seeds=1, failed=["linear"])
    with pytest.raises(ConfigError, match=r"no run of 'made-up' has finished \(1 failed\)"):
        list(write_report(Results.read(tmp_path / "a"), tmp_path / "report"))
    (tmp_path / "a" / "runs").rename(tmp_path / "gone")
    with pytest.raises(ConfigError, match=r"no run of 'made-up' has ended in .*`toolkit study"):
        Results.read(tmp_path / "a")


def test_results_open_without_the_plugin_that_made_them(tmp_path: Path) -> None:
    """A registered method and a plugin's folder that are gone, and no recipe; without the plan
    that was saved, the study would have to be planned again."""
    before = PEFT.snapshot()
    PEFT.register("strange")(type("Strange", (PeftMethod,), {"__doc__": "Not here for long."}))
    plugin = tmp_path / "plugins" / "odd"
    plugin.mkdir(parents=True)
    (plugin / "odd.py").touch()
    (plugin / "odd.yaml").write_text("extends: base.yaml\npeft: strange\n")
    skills = {"odd": 0.9, "lora": 0.5}
    folder = tmp_path / "study"
    methods = [{"hparams": "odd", "sweep": {"lr": [1, 2]}}, "lora"]
    studies.made_up(
        folder, skills, methods=methods, baseline="odd,lr=1", plugins=[str(plugin)],
    )  # fmt: skip
    PEFT.restore(before)
    shutil.rmtree(plugin)
    results = Results.read(folder)
    assert results.methods["odd,lr=2"].factors == {"lr": 2}
    list(write_report(results, tmp_path / "report"))
    table = pd.read_csv(tmp_path / "report" / "report.csv")
    assert set(table["method"]) == {"odd,lr=1", "odd,lr=2", "lora"}
    assert set(tables.factors(results)["factor"]) == {"lr"}
    (folder / "plan.json").unlink()
    with pytest.raises(ConfigError, match="'odd' is not the configuration of a method"):
        Results.read(folder)


def test_results_of_a_version_that_saved_no_plan_still_open(tmp_path: Path) -> None:
    studies.made_up(tmp_path, {"linear": 0.5, "lora": 0.6}, folds=2)
    saved = Results.read(tmp_path)
    (tmp_path / "plan.json").unlink()
    planned = Results.read(tmp_path)
    assert planned.cells == saved.cells and planned.records == saved.records
    pd.testing.assert_frame_equal(tables.methods(planned), tables.methods(saved))


# ---------------------------------------------------------------- page


@pytest.fixture(scope="module")
def page(report: Path) -> Iterator[Browser]:
    """The report in Chromium."""
    with chromium() as browser:
        browser.developer("Performance.enable", timeDomain="threadTicks")
        browser.open(report / "report.html")
        yield browser


def methods_shown(page: Browser) -> list[str]:
    """The first column of the table of methods, from top to bottom."""
    return page.ask(
        "return [...document.querySelectorAll('#methods tbody tr')]"
        ".map(row => row.cells[0].textContent)"
    )


def test_500_runs_open_in_two_seconds(page: Browser) -> None:
    """Processor time of the page's thread, which does not depend on other load."""
    metrics = page.developer("Performance.getMetrics")["metrics"]
    seconds = {metric["name"]: metric["value"] for metric in metrics}["TaskDuration"]
    assert 0 < seconds < 2
    assert page.ask("return document.body.dataset.ready") == "yes"
    assert page.complaints() == []


@pytest.mark.parametrize("value", [86.25, 86.35, 0.5, 1234.56, -2.25, 83.75])
def test_the_page_writes_numbers_as_the_other_reports_do(page: Browser, value: float) -> None:
    """Also for values halfway between two numbers: 86.25 is 86.2 in both, and 86.35 is 86.4."""
    assert page.ask(f"return shown({value}, 1)") == Column("n", "n", "", 1).text(value)


def test_the_page_sorts(page: Browser) -> None:
    """Best first at the first click, worst first at the second."""
    click = "document.querySelector('#methods th[data-key=trained] button').click()"
    page.ask(click)
    first = methods_shown(page)
    by_size = sorted((m for m in SKILLS if m != "prompt_deep"), key=SKILLS.__getitem__)
    assert first == by_size
    page.ask(click)
    assert methods_shown(page) == by_size[::-1]
    sort = (
        "return document.querySelector('#methods th[data-key=trained]').getAttribute('aria-sort')"
    )
    assert page.ask(sort) == "descending"


def test_the_page_filters_table_and_picture(page: Browser) -> None:
    """Two words must both match; the points of the picture are filtered too."""
    write = (
        "const f = document.querySelector('input[aria-label=\"filter Methods\"]');"
        "f.value = '{}'; f.dispatchEvent(new Event('input'));"
    )
    page.ask(write.format("MOA"))
    assert sorted(methods_shown(page)) == ["densemoa", "softmoa"]
    points = "return document.querySelectorAll('#pareto circle').length"
    assert page.ask(points) == 2
    page.ask(write.format(""))
    assert page.ask(points) == len(SKILLS) - 1


def test_the_page_explains_the_point_under_the_pointer(page: Browser) -> None:
    """The box names the method and both values; the columns can be chosen."""
    page.hover("#pareto circle")
    box = page.ask(
        "const b = document.getElementById('hover'); return [b.style.display, b.textContent]"
    )
    assert box[0] == "block"
    assert box[1].splitlines()[0] in SKILLS
    assert "trained:" in box[1] and "accuracy %:" in box[1]
    page.ask(
        "const x = [...document.querySelectorAll('select')].find("
        "(e) => e.parentElement.textContent.startsWith('x '));"
        "x.value = 'latency_ms'; x.dispatchEvent(new Event('change'));"
    )
    label = "return document.querySelector('#pareto svg').getAttribute('aria-label')"
    assert page.ask(label) == "accuracy % against ms/clip"


def test_the_pages_pictures_are_there(page: Browser) -> None:
    """Decoded pictures, curves, a confusion matrix, differences of classes."""
    shown = (
        "const all = [...document.querySelectorAll('.pictures img')];"
        "all.forEach((p) => { p.loading = 'eager'; });"
        "return Promise.all(all.map((p) => p.decode().then(() => p.naturalWidth)))"
    )
    widths = page.ask(shown)
    assert len(widths) >= 5
    assert all(width > 100 for width in widths)
    assert page.ask("return document.querySelectorAll('#epochs polyline').length") == 6
    assert page.ask("return document.querySelectorAll('#confusion td').length") == 16
    assert page.ask("return document.querySelectorAll('#classes tbody tr').length") == 8


def test_the_page_shows_a_runs_settings(page: Browser) -> None:
    """Choosing a run shows its command and the settings that are specific to it."""
    page.ask(
        "const run = document.querySelector('input[list=run-names]');"
        "run.value = 'Sounds/prompt_deep/ast_tiny/all/seed-3/fold-2';"
        "run.dispatchEvent(new Event('change'));"
    )
    text = page.ask("return document.getElementById('run').textContent")
    assert text.startswith("python train.py")
    assert "out of memory" in text and "line of the log" in text


# ---------------------------------------------------------------- what numbers can show


def test_two_corpora_are_ranked_one_by_one(tmp_path: Path) -> None:
    """A corpus of five folds does not outvote one of three."""
    skills = {"linear": 0.1, "lora": 0.5, "full": 0.95}
    studies.made_up(tmp_path, skills, corpora=["Large", "Small"])
    for folder in tmp_path.glob("runs/Small/*/*/*/*/fold-[45]"):
        shutil.rmtree(folder)
    results = Results.read(tmp_path)
    found = {ranking.corpora[0]: ranking for ranking in tables.rankings(results)}
    assert {name: ranking.ranks.blocks for name, ranking in found.items()} == {
        "Large": 5, "Small": 3,
    }  # fmt: skip
    assert all(ranking.blocks == "folds" for ranking in found.values())
    [table] = [table for table in contents.all_tables(results) if table.key == "ranks"]
    assert set(table.rows["corpus"]) == {"Large", "Small"} and len(table.rows) == 6
    assert "corpus" in {column.key for column in table.columns}
    assert "Large, ast_tiny, over 5 folds" in table.note
    assert "Small, ast_tiny, over 3 folds" in table.note and "this corpus" not in table.note
    names = {picture.name for picture in contents.all_pictures(results, tables.methods(results))}
    assert {"ranks-Large-ast_tiny", "ranks-Small-ast_tiny"} <= names


def test_two_runs_have_no_interval(tmp_path: Path) -> None:
    """And three have one within the scores that are possible; pictures are drawn of both."""
    for folds in (2, 3):
        studies.made_up(tmp_path / str(folds), {"linear": 0.5, "lora": 0.97}, folds=folds, seeds=1)
        results = Results.read(tmp_path / str(folds))
        table = tables.methods(results)
        if folds == 2:
            assert table[["low", "high"]].isna().all(axis=None)
        else:
            assert (table["low"] >= 0).all() and (table["high"] <= 100).all()
            assert (table["low"] <= table["score"]).all()
        list(write_report(results, tmp_path / f"report-{folds}"))


def test_the_csv_holds_comparisons_ranks_and_settings(tmp_path: Path) -> None:
    """One row per method, with what the other tables say of it."""
    methods = ["linear", {"hparams": "lora", "sweep": {"peft.rank": [1, 4]}}]
    studies.made_up(tmp_path, {"linear": 0.5, "lora": 0.8}, methods=methods)
    for number, record in enumerate(sorted(tmp_path.glob("runs/**/record.json"))):
        values = json.loads(record.read_text())
        values.pop("checksum")
        name = values["cell"]["method"]
        values["outcome"]["configuration"] |= {
            "peft.name": name.partition(",")[0], "label": "same", "output_folder": str(number),
            "epochs": len(name),
        } | ({"peft.rank": int(name[-1])} if "rank" in name else {})  # fmt: skip
        record.write_text(json.dumps(values))
    results = Results.read(tmp_path)
    list(write_report(results, tmp_path / "report"))
    sheet = pd.read_csv(tmp_path / "report" / "report.csv").set_index("method")
    assert len(sheet) == 3
    expected = tables.comparisons(results).set_index("method")
    for method in ("lora,rank=1", "lora,rank=4"):
        for key, name in (("difference", "difference"), ("difference_low", "low"), ("p_holm",) * 2):
            assert sheet.loc[method, key] == pytest.approx(expected.loc[method, name])
    assert pd.isna(sheet.loc["linear", "difference"])
    [ranking] = tables.rankings(results)
    for method, rank in zip(ranking.methods, ranking.ranks.average, strict=True):
        assert sheet.loc[method, "rank"] == pytest.approx(rank)
    assert set(sheet["ranked_over"]) == {"5 folds"}
    assert sheet["peft.rank"].to_dict() == pytest.approx(
        {"lora,rank=4": 4, "lora,rank=1": 1, "linear": np.nan}, nan_ok=True
    )
    assert sheet.loc["linear", "peft.name"] == "linear"
    assert not {"label", "output_folder", "seed", "lr"} & set(sheet.columns)
    assert (sheet["epochs"] == 4).all()  # a column of both: as the table of methods has it


def test_a_class_named_like_a_formula_is_drawn(tmp_path: Path) -> None:
    recalls = pd.DataFrame({"$\\frac{$": [50.0, 60.0], "a$b$": [0.0, 1.0]}, ["linear", "$x$"])
    save(draw_recalls(recalls, "$x$"), tmp_path, "recalls")
    assert "a$b$" in (tmp_path / "recalls.svg").read_text(encoding="utf-8")


def test_predictions_must_give_the_score(tmp_path: Path) -> None:
    studies.made_up(tmp_path, {"linear": 0.5, "lora": 0.8}, folds=2, seeds=1)
    file = sorted(tmp_path.glob("runs/**/predictions.csv"))[0]
    table = pd.read_csv(file)
    table.assign(prediction=table["truth"]).to_csv(file, index=False)
    with pytest.raises(RunError, match=r"does not give the score of fold 1 .* does this run again"):
        list(write_report(Results.read(tmp_path), tmp_path / "report"))

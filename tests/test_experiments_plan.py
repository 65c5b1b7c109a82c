"""What an experiment consists of, how long its trainings are and which settings they depend on."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import users
import yaml

from lightning_fairprune import quotas, scores
from lightning_fairprune.experiments import (
    Baseline,
    Cell,
    Experiment,
    Final,
    Method,
    OneFit,
    Query,
    cells_of,
    epoch_correction,
)
from lightning_fairprune.experiments import _config as config
from lightning_fairprune.experiments._cells import blocked, needs, ready
from lightning_fairprune.experiments._length import Training, final_length, one_fit_length
from lightning_fairprune.experiments._pool import seconds_left

DENSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
EL2N = Method(scores.el2n, "hard", score_on="pass", at="early")


def experiment(**changes: Any) -> Experiment:
    settings: dict[str, Any] = {
        "data": users.Data,
        "model": users.Model,
        "query": Query(epochs=10, models=2),
        "final": Final(epochs=10),
        "densities": (0.5, 0.3),
        "seeds": (0, 1),
        "methods": {
            "random": Method(),
            "el2n": EL2N,
            "el2n+drop": Method(scores.el2n, "hard", quotas.drop, "pass", "early"),
        },
        "one_fit": {"flagship": OneFit()},
        "baselines": {"full": Baseline()},
    }
    return Experiment(**settings | changes)


def settings(**changes: Any) -> dict[str, Any]:
    """The same as nested dictionaries."""
    score = {"score": "lightning_fairprune.scores.el2n", "score_on": "pass", "at": "early"}
    content: dict[str, Any] = {
        "data": {"class_path": "users.Data", "init_args": {"n": 80}},
        "model": {"class_path": "users.Model"},
        "query": {"epochs": 10, "models": 2},
        "final": {"epochs": 10},
        "densities": [0.5, 0.3],
        "methods": {"random": {}, "el2n": {"keep": "hard", **score}},
        "one_fit": {"flagship": {}},
        "baselines": {"full": {}},
    }
    return plain(content | changes)


def plain(content: dict[str, Any]) -> dict[str, Any]:
    return config.plain(config.parser().parse_object(copy.deepcopy(content)))


def test_every_cell_of_a_small_grid() -> None:
    keys = [cell.key for cell in cells_of(experiment(seeds=(7,), densities=(0.5,)))]
    assert keys == [
        "query-seed7-model0",
        "query-seed7-model1",
        "baseline-full-seed7",
        "score-el2n-early-seed7-model0",
        "score-el2n-early-seed7-model1",
        "final-random-density0.5-seed7",
        "final-el2n-density0.5-seed7",
        "final-el2n+drop-density0.5-seed7",
        "one_fit-flagship-density0.5-seed7",
    ]


def test_what_cells_need() -> None:
    grid = experiment()
    found = {cell.key: [need.key for need in needs(cell, grid)] for cell in cells_of(grid)}
    queries = ["query-seed1-model0", "query-seed1-model1"]
    passes = ["score-el2n-early-seed1-model0", "score-el2n-early-seed1-model1"]
    assert found["query-seed1-model0"] == found["baseline-full-seed1"] == []
    assert found["one_fit-flagship-density0.3-seed1"] == []
    assert found["score-el2n-early-seed1-model1"] == ["query-seed1-model1"]
    assert found["final-random-density0.3-seed1"] == queries
    assert found["final-el2n+drop-density0.3-seed1"] == queries + passes


def test_cells_come_after_what_they_need_and_have_keys_of_their_own() -> None:
    grid = experiment()
    cells = cells_of(grid)
    places = {cell.key: i for i, cell in enumerate(cells)}
    assert len(places) == len(cells) == 2 * (2 + 1 + 2 + 2 * 4)
    for cell in cells:
        assert all(places[need.key] < places[cell.key] for need in needs(cell, grid))


def test_a_grid_without_methods_trains_no_query_model() -> None:
    kinds = {cell.kind for cell in cells_of(experiment(methods={}))}
    assert kinds == {"baseline", "one_fit"}


def test_what_is_ready_follows_what_is_finished() -> None:
    grid = experiment(seeds=(0,), densities=(0.5,))
    cells, finished, rounds = cells_of(grid), set[str](), []
    while len(finished) < len(cells):
        found = [cell.key for cell in ready(cells, grid, finished, ())]
        rounds.append(len(found))
        finished |= set(found)
    # Two query models, full data and one-fit; then two passes and random; then the two by score.
    assert rounds == [4, 3, 2]
    assert ready(cells, grid, set(), {cell.key for cell in cells}) == []


def test_a_failed_cell_blocks_all_that_need_it() -> None:
    grid = experiment(seeds=(0,), densities=(0.5,))
    cells = cells_of(grid)
    of_pass = blocked(cells, grid, {"score-el2n-early-seed0-model1"})
    assert set(of_pass) == {"final-el2n-density0.5-seed0", "final-el2n+drop-density0.5-seed0"}
    of_query = blocked(cells, grid, {"query-seed0-model1"})
    assert set(of_query.values()) == {"query-seed0-model1"}
    assert len(of_query) == 4
    assert blocked(cells, grid, set()) == {}


def test_labels_are_for_people() -> None:
    assert Cell("query", 3, member=1).label == "query model, seed 3, model 1"
    assert Cell("score", 3, "el2n", at="early").label == "score el2n early, seed 3"
    assert Cell("final", 3, "random", 0.25).label == "random, density 0.25, seed 3"


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        (160, [880, 480, 346, 280, 240, 213, 194, 180, 168]),
        (200, [1100, 600, 433, 350, 300, 266, 242, 225, 211]),
    ],
)
def test_epoch_correction_of_the_published_code(epochs: int, expected: list[int]) -> None:
    assert [epoch_correction(epochs, density) for density in DENSITIES] == expected
    assert epoch_correction(epochs, 1.0) == epochs


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("density", DENSITIES)
def test_equal_samples_are_seen_to_a_batch(density: float, drop_last: bool) -> None:
    total, batch, epochs = 1003, 20, 7
    kept = round(density * total)
    length = final_length(Final(epochs), kept, density, Training(total, batch, drop_last))
    # Slow and obvious: batch by batch, epoch by epoch.
    sizes = [min(batch, kept - start) for start in range(0, kept, batch)]
    sizes = [size for size in sizes if size == batch or not drop_last]
    seen = sum(sizes[i % len(sizes)] for i in range(length.steps))
    if not drop_last:
        assert epochs * total <= seen < epochs * total + batch
    assert (length.epochs - 1) * len(sizes) < length.steps <= length.epochs * len(sizes)


def test_one_fit_sees_as_many_samples_as_a_final_model() -> None:
    for rule in ("equal_samples", "epoch_correction"):
        final = Final(12, rule)  # type: ignore[arg-type]
        alone = final_length(final, 300, 0.3, Training(1000, 10))
        fit = one_fit_length(final, 0.375, 300, 0.3, Training(1000, 10))
        seen = fit.warmup * 1000 + (fit.steps - fit.warmup * 100) * 10
        assert abs(seen - alone.steps * 10) <= 10
        assert 1 <= fit.warmup <= 0.375 * alone.steps * 10 / 1000 + 1


def test_impossible_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="7 samples are less than a batch of 10"):
        final_length(Final(3), 7, 0.07, Training(100, 10, drop_last=True))
    with pytest.raises(ValueError, match=r"`warmup` must leave something .* 100 samples"):
        one_fit_length(Final(1), 0.5, 50, 0.5, Training(100, 10))


def test_time_left_is_by_kind_of_cell() -> None:
    cells = [Cell("query", 0), *(Cell("final", 0, name, 0.5) for name in "abc")]
    keys = [cell.key for cell in cells]
    assert seconds_left(cells, {}, {}, 2) is None
    seconds = {keys[0]: 100.0, keys[1]: 10.0}
    assert seconds_left(cells, seconds, {}, 1) == 20.0
    assert seconds_left(cells, seconds, {keys[2]: 4.0}, 2) == 8.0
    assert seconds_left(cells, dict.fromkeys(keys, 1.0), {}, 2) == 0.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"densities": (0.5, 1.0)}, r"`densities` must be in \(0, 1\), got 1.0"),
        ({"densities": ()}, "`densities` must be different numbers"),
        ({"query": Query()}, "`query.epochs` must be at least 1 where there are `methods`, got 0"),
        ({"seeds": (1, 1)}, r"`seeds` must be different numbers.*\(1, 1\)"),
        ({"one_fit": {"random": OneFit()}}, "different names, got 'random' twice"),
        ({"methods": {"a/b": Method()}}, "the name 'a/b' is also used as a folder name"),
        ({"name": "../../etc"}, r"the name '\.\./\.\./etc' is also used as a folder name"),
        ({"methods": {"a": EL2N, "b": Method(lambda dynamics: 0, "hard", score_on="pass")}}, None),
    ],
)
def test_impossible_experiments_are_refused(changes: dict[str, Any], message: str | None) -> None:
    if message is None:
        experiment(**changes)
        return
    with pytest.raises(ValueError, match=message):
        experiment(**changes)


def test_two_scores_of_one_name_are_refused() -> None:
    def el2n(dynamics: Any) -> Any:
        return dynamics.signal("el2n")[-1]

    other = Method(el2n, "hard", score_on="pass")
    with pytest.raises(ValueError, match="two different scores called 'el2n'"):
        experiment(methods={"a": EL2N, "b": other})


@pytest.mark.parametrize(
    ("record", "arguments", "message"),
    [
        (Query, {"epochs": -1}, "`query.epochs` must be at least 0, got -1"),
        (Query, {"epochs": 3, "models": 0}, "`query.models` must be at least 1"),
        (Query, {"epochs": 3, "early": 0.0}, r"`query.early` must be in \(0, 1\]"),
        (Query, {"epochs": 3, "shrinkage": -1.0}, "`query.shrinkage` must be 0 or more"),
        (Final, {"epochs": 0}, "`final.epochs` must be at least 1"),
        (OneFit, {"warmup": 1.0}, r"`warmup` of one_fit must be in \(0, 1\)"),
        (Method, {"score": scores.el2n}, "got score: el2n and keep: random"),
        (Method, {"keep": "hard"}, "got score: null and keep: hard"),
        (Method, {"cutoff": 0.1}, "`cutoff` has no effect with keep='random'"),
        (Method, {"quota": quotas.difficulty}, "quota: difficulty needs the `score`"),
    ],
)
def test_impossible_records_are_refused(record: Any, arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        record(**arguments)


def test_settings_survive_yaml_and_objects() -> None:
    first = settings()
    assert plain(yaml.safe_load(yaml.safe_dump(first))) == first
    built = config.build(first)
    assert built.methods["el2n"] == EL2N
    assert built.query == Query(10, 2)
    assert built.data().n == 80
    assert config.build(first).model() is not built.model()
    assert first == settings()  # what is built does not leak into them


SHIPPED = sorted(path.name for path in config.CONFIGS.glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_are_valid(name: str) -> None:
    assert config.find(name) == config.CONFIGS / name
    content = yaml.safe_load((config.CONFIGS / name).read_text())
    assert content["name"] == Path(name).stem
    built = config.build(plain(content))  # needs no data: nothing is read before a cell begins
    assert {"random", "random+drop"} <= built.methods.keys() or built.weights
    assert bool(built.methods) == bool(built.densities)
    assert built.densities == tuple(sorted(built.densities, reverse=True))
    assert built.sparsities == tuple(sorted(built.sparsities))


def test_the_config_of_the_documentation_is_valid() -> None:
    page = Path(__file__).parents[1] / "docs" / "experiments.md"
    block = page.read_text().partition("```yml\n")[2].partition("```")[0]
    built = config.build(plain(yaml.safe_load(block)))
    assert built.one_fit["one_fit+minimax"].prune(0.3, 2).settings.quota.leak == 0.2
    assert len(cells_of(built)) == 3 * (2 + 1 + 2 + 2 * (5 + 2))


def test_an_unknown_config_names_the_shipped_ones() -> None:
    with pytest.raises(FileNotFoundError, match=r"no config 'mine.yaml'.*digits.yaml"):
        config.find("mine.yaml")


@pytest.mark.parametrize(
    ("changes", "concerned"),
    [
        ({"densities": [0.9]}, set()),
        ({"seeds": [5]}, set()),
        ({"data": {"class_path": "users.Data", "init_args": {"n": 81}}}, {"all"}),
        ({"trainer": {"precision": "bf16-mixed"}}, {"all"}),
        ({"trainer": {"accelerator": "cpu"}}, set()),
        ({"query": {"epochs": 11, "models": 2}}, {"query", "score", "final"}),
        ({"query": {"epochs": 10, "models": 3}}, {"final"}),
        ({"final": {"epochs": 11}}, {"final", "one_fit", "baseline"}),
        ({"one_fit": {"flagship": {"warmup": 0.5}}}, {"one_fit"}),
        ({"methods": {"random": {}, "more": {"quota": "lightning_fairprune.quotas.drop"}}}, None),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",  # sets have no order
)
def test_results_depend_on_their_own_settings_only(
    changes: dict[str, Any], concerned: set[str] | None
) -> None:
    before, now = settings(), settings(**changes)
    cells = {
        "query": Cell("query", 0),
        "score": Cell("score", 0, "el2n", at="early"),
        "final": Cell("final", 0, "random", 0.5),
        "one_fit": Cell("one_fit", 0, "flagship", 0.5),
        "baseline": Cell("baseline", 0, "full"),
    }
    if concerned is None:  # the method of the score is gone, the others stay as they are
        concerned = {"score"}
    if concerned == {"all"}:
        concerned = set(cells)
    found = {
        kind
        for kind, cell in cells.items()
        if config.differences(config.settings_of(cell, before), config.settings_of(cell, now))
    }
    assert found == concerned


@pytest.mark.parametrize(
    ("before", "now", "differs"),
    [
        ({"recall_window": 2}, {"recall_window": 2}, False),
        ({"recall_window": 3}, {"recall_window": 2}, True),
        ({"quota": "lightning_fairprune.quotas.balanced"}, {}, True),
        ({"quota": {"class_path": "lightning_fairprune.quotas.Minimax"}}, {}, True),
        ({}, {"quota": {"class_path": "lightning_fairprune.quotas.Minimax"}}, True),
        ({"quota": None}, {"quota": "lightning_fairprune.quotas.drop"}, True),
        ({"quota": "lightning_fairprune.quotas.drop"}, {}, False),  # the default
    ],
)
def test_arguments_of_classes_are_settings(
    before: dict[str, Any], now: dict[str, Any], differs: bool
) -> None:
    cell = Cell("one_fit", 0, "flagship", 0.5)
    prune = [{"class_path": "DataPruning", "init_args": side} for side in (before, now)]
    old, new = (settings(one_fit={"flagship": {"prune": side}}) for side in prune)
    flat = [config.settings_of(cell, side) for side in (old, new)]
    assert bool(config.differences(*flat)) is differs
    # As if the class had had no such argument when the result was made.
    older = {name: value for name, value in flat[0].items() if "recall_window" not in name}
    added = config.differences(older, flat[0])
    assert bool(added) is (before.get("recall_window", 3) != 3)


def test_a_new_argument_of_methods_changes_no_result_by_its_default() -> None:
    method = {"score": "lightning_fairprune.scores.el2n", "keep": "hard"}
    cell = Cell("final", 0, "el2n", 0.5)
    same, other = (
        config.settings_of(cell, settings(methods={"el2n": method | more}))
        for more in ({}, {"cutoff": 0.1})
    )
    older = {name: value for name, value in same.items() if not name.endswith(".cutoff")}
    assert len(older) < len(same)
    assert config.differences(older, same) == []
    assert config.differences(older, other) == [
        "methods.el2n.cutoff was not there and is 0.1",
    ]


def test_where_data_lie_is_no_setting() -> None:
    settings_here = settings()
    settings_here["data"]["init_args"] |= {"root": "/here", "num_workers": 4}
    settings_there = copy.deepcopy(settings_here)
    settings_there["data"]["init_args"] |= {"root": "/there", "num_workers": 0}
    cell = Cell("query", 0)
    here, there = (config.settings_of(cell, s) for s in (settings_here, settings_there))
    assert here == there
    assert here["data.init_args.n"] == 80


def test_files_of_results_have_nothing_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = {"model.class_path": "trap.Model", "model.init_args.width": 3}
    assert len(config.differences(before, {"model.class_path": "torch.nn.Identity"})) == 2
    same = {"model.class_path": "torch.nn.Identity"}
    assert len(config.differences(same | {"model.init_args.act": "trap.act"}, same)) == 1

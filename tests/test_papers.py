"""The papers' experiments: their page, their files, their command line, and one of them whole."""

import json
import math
import sys
from types import ModuleType

import pytest
import torch

from bench.papers import __main__ as command
from bench.papers import experiment, language, large_batch, page, runner, runs
from bench.papers.experiment import Claim, Table

STORED = runner.read(command.STORED)
LARGER = runner.read(command.LARGER)
EVERYTHING = experiment.everything()
names = pytest.mark.parametrize("one", EVERYTHING, ids=experiment.name_of)


@pytest.fixture
def tiny(monkeypatch):
    """An experiment of three tasks that takes no time and counts its runs."""
    made = ModuleType("bench.papers.tiny")
    facts = {"NUMBER": 1, "TITLE": "Tiny", "PAPER": "None", "CLAIM": "It counts.", "SETTING": "",
             "WHY": "It can.", "SEEDS": 5, "SIZE": (2, 2)}  # fmt: skip
    vars(made).update(facts, ran=[], holds=True)
    made.tasks = lambda quick, seeds: [
        {"n": n, "runs": 1 if quick else seeds, "pair": (n, n)} for n in range(3)
    ]

    def run(task):
        made.ran.append(task["n"])
        return {"value": torch.tensor([task["n"] / 3, math.inf])}

    made.run = run
    made.claims = lambda rows: [
        Claim("there are three", len(rows) == 3 and made.holds, asserted=True),
        Claim("there are four", len(rows) == 4),
    ]
    made.tables = lambda rows: [Table(["n", "value"], [[str(r["task"]["n"]), "v"] for r in rows])]
    made.draw = lambda rows, figure: figure.add_subplot().plot([r["task"]["n"] for r in rows])
    monkeypatch.setitem(sys.modules, made.__name__, made)
    monkeypatch.setattr(experiment, "NAMES", ("tiny",))
    return made


def papers(tmp_path, *arguments):
    out = tmp_path / "rows.json"
    return command.main(["--out", str(out), *map(str, arguments)]), out


# What is stored


def test_the_page_is_what_the_stored_rows_say():
    to, pictures = command.places(command.STORED)
    assert to.read_text(encoding="utf-8") == page.text(STORED, pictures.name, LARGER), (
        "run `make papers`"
    )


@names
def test_stored_rows_are_those_of_the_present_tasks(one):
    found = [row["task"] for row in STORED.get(experiment.name_of(one), [])]
    assert found == runner.tasks_of(one, False, None), "run `make papers`"


def test_stored_rows_of_a_larger_size_are_of_present_tasks():
    for name, rows in LARGER.items():
        one = experiment.load(name.removesuffix(runner.UNFINISHED))
        known = runner.tasks_of(one, False, None, larger=True)
        assert all(row["task"] in known for row in rows), "run the larger size anew"


@names
def test_every_stored_verdict_has_a_reason_and_a_picture(one):
    claims = one.claims(STORED[experiment.name_of(one)])
    assert claims and one.WHY
    assert all(claim.holds for claim in claims if claim.asserted)
    _, pictures = command.places(command.STORED)
    assert (pictures / f"{experiment.name_of(one)}.png").read_bytes().startswith(b"\x89PNG")


def test_numbers_and_picture_names_are_unique():
    assert len({one.NUMBER for one in EVERYTHING}) == len(EVERYTHING) == len(STORED)


@pytest.mark.parametrize(
    "held, said", [([1, 1], "holds"), ([1, 0], "holds partly"), ([0, 0], "does not hold here")]
)
def test_verdicts(held, said):
    assert experiment.verdict([Claim("", bool(one)) for one in held]) == said


# How it runs


def test_an_experiment_from_tasks_to_page(tiny, tmp_path, capsys):
    status, out = papers(tmp_path)
    assert status == 0 and tiny.ran == [0, 1, 2]
    found = json.loads(out.read_text())["tiny"]
    values = [row["result"]["value"] for row in found]
    assert values == [[0.0, None], [0.33333, None], [0.66667, None]]
    assert found[0]["task"]["runs"] == tiny.SEEDS
    assert found[0]["versions"]["torch"] == torch.__version__
    text = out.with_suffix(".md").read_text()
    assert "| 1 | Tiny | None | 5 | holds partly | 1 of 2 |" in text
    assert "* yes: there are three\n* **no**: there are four\n" in text
    assert "![Tiny](rows/tiny.png)" in text and (tmp_path / "rows" / "tiny.png").exists()
    assert "1 tiny: holds partly" in capsys.readouterr().out


def test_an_interrupted_run_goes_on_where_it_was(tiny, tmp_path, monkeypatch):
    perform = runner.perform

    def interrupted(module, task):
        if task["n"] == 2:
            raise KeyboardInterrupt
        return perform(module, task)

    monkeypatch.setattr(runner, "perform", interrupted)
    status, out = papers(tmp_path)
    assert status == 130 and "tiny" not in runner.read(out), "a page takes finished experiments"
    monkeypatch.setattr(runner, "perform", perform)
    assert papers(tmp_path)[0] == 0 and tiny.ran == [0, 1, 2]
    assert papers(tmp_path)[0] == 0 and tiny.ran == [0, 1, 2]
    assert papers(tmp_path, "--fresh")[0] == 0 and tiny.ran == [0, 1, 2] * 2


def test_rows_of_other_tasks_are_replaced(tiny, tmp_path):
    papers(tmp_path)
    _, out = papers(tmp_path, "--seeds", 7)
    assert tiny.ran == [0, 1, 2] * 2
    assert [row["task"]["runs"] for row in runner.read(out)["tiny"]] == [7] * 3


def test_rows_of_experiments_that_were_not_asked_for_stay(tiny, tmp_path):
    rows = {"other": [{"task": {}, "result": {}, "seconds": 1.0, "versions": {"torch": "1"}}]}
    runner.write(tmp_path / "rows.json", rows)
    _, out = papers(tmp_path, "--only", "tiny")
    assert runner.read(out).keys() == {"tiny", "other"}


def test_a_larger_size_has_its_own_rows_and_place_on_the_page(tiny, tmp_path, capsys):
    tiny.larger_tasks, tiny.LARGER = lambda: [{"n": 7, "device": "cpu"}], "It is seven."
    status, out = papers(tmp_path, "--larger")
    assert status == 0 and tiny.ran == [7] and not out.with_suffix(".md").exists()
    larger = runner.read(out)
    rows = {"tiny": [runner.perform(tiny, {"n": 1})]}
    unfinished = {"tiny" + runner.UNFINISHED: larger["tiny"]}
    text = page.text(rows, "rows", larger)
    told = "**At a larger size.** It is seven. 1 of 1 runs are done."
    assert f"{told}\n\n| n | value |\n| --- | ---: |\n| 7 | v |" in text
    assert "![Tiny, larger](rows/tiny-larger.png)" in text
    assert text == page.text(rows, "rows", unfinished)
    assert "seven" not in page.text(rows, "rows", {})
    if not torch.cuda.is_available():
        tiny.larger_tasks = lambda: [{"n": 7, "device": "cuda"}]
        assert papers(tmp_path, "--larger")[0] == 2
        assert "torch finds no CUDA device, which the larger size needs" in capsys.readouterr().err


def test_a_task_that_fails_in_a_worker_leaves_the_others(tmp_path):
    one = experiment.load("noisy_quadratic")
    good, bad = runner.tasks_of(one, True, None)[0], {"none": 1}
    out = tmp_path / "rows.json"
    with pytest.raises(KeyError):
        list(runner.run([(one, [bad, good])], out, jobs=2))
    (row,) = runner.read(out)["noisy_quadratic" + runner.UNFINISHED]
    assert row["task"] == good


def test_what_should_hold_and_does_not_fails(tiny, tmp_path, capsys):
    tiny.holds = False
    assert papers(tmp_path, "--quick")[0] == 1
    assert "expected to hold, but does not: tiny: there are three" in capsys.readouterr().err


def test_a_small_experiment_is_the_same_every_time(tmp_path):
    found = []
    for jobs in (1, 2):
        words = ("--quick", "--only", "noisy_quadratic", "--jobs", jobs)
        status, out = papers(tmp_path / str(jobs), *words)
        assert status == 0
        found.append([row["result"] for row in runner.read(out)["noisy_quadratic"]])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--only", "99"], "there is no experiment '99'; there are 1 finite_sum, "),
        (["--only", "1", "nosuch"], "there is no experiment 'nosuch'"),
        (["--jobs", "0"], "--jobs is 0; at least 1 process is needed"),
        (["--larger", "--quick"], "--larger has tasks of its own"),
        (["--larger", "--only", "1"], "--only names no experiment that has a larger size"),
        (["--larger", "--out", command.STORED], "which a larger run must not write"),
        (["--seeds", "1"], "--seeds is 1; a spread needs at least 2"),
        (["--quick", "--out", command.STORED], "which a quick run must not write"),
    ],
)
def test_a_bad_option_is_one_line(tmp_path, capsys, arguments, told):
    status, out = papers(tmp_path, *arguments)
    error = capsys.readouterr().err
    assert status == 2 and not out.exists()
    assert error.startswith("python -m bench.papers: ") and told in error and error.count("\n") == 1


@pytest.mark.parametrize("text", ["nonsense", "[1, 2]", '{"a": [{"task": 1}]}'])
def test_a_file_of_something_else_is_not_overwritten(tmp_path, capsys, text):
    (tmp_path / "rows.json").write_text(text)
    status, out = papers(tmp_path)
    assert status == 2 and out.read_text() == text
    assert "does not hold rows of this program; give another --out" in capsys.readouterr().err


# Helpers


def test_lines_are_views_of_one_tensor():
    found = runs.Runs(torch.ones(3, 4))
    optimizer = torch.optim.SGD(found.groups({"lr": 0.0}, {"lr": 1.0}, {"lr": 2.0}))
    found.x.grad.fill_(0.5)
    optimizer.step()
    assert found.x.tolist() == [[1.0] * 4, [0.5] * 4, [0.0] * 4]


def test_marks_go_from_the_first_step_to_the_last():
    found = runs.marks(5000)
    assert found[0] == 1 and found[-1] == 5000 and found == sorted(set(found))


def test_the_masked_loss_is_the_models_own():
    model, generator = language.bert(0), torch.Generator().manual_seed(0)
    ids = torch.randint(5, language.VOCAB, (4, language.LENGTH), generator=generator)
    inputs, labels = language.masked(ids, generator)
    want = model(input_ids=inputs, labels=labels).loss
    torch.testing.assert_close(language.masked_loss(model, inputs, labels), want)


@pytest.mark.parametrize("warmup, first, last", [(3, 0.25, 1 / 7), (0, 1.0, 0.1)])
def test_a_rate_goes_up_to_its_largest_and_down(warmup, first, last):
    found = [large_batch.share(step, 10, warmup) for step in range(10)]
    assert found[0] == first and found[warmup] == 1.0 and found[-1] == pytest.approx(last)
    assert found[: warmup + 1] == sorted(found[: warmup + 1])
    assert found[warmup:] == sorted(found[warmup:], reverse=True)


def test_the_largest_rate_is_the_last_before_one_that_diverges():
    def row(*losses):
        return {"result": {"losses": losses, "line": 5.0}}

    at = {0: row(4.95), 1: row(4.0), 2: row(4.8), 3: row(4.2, None), 4: row(4.5), 5: row(5.0)}
    assert large_batch.best(at) == 1 and large_batch.largest(at) == 2
    assert large_batch.times(at, {0: row(4.0), 1: row(4.95)}) == 4.0
    assert large_batch.largest({0: row(4.95), 1: row(None)}) is None
    assert large_batch.times({0: row(4.95)}, at) == 0.0


def test_the_guide_begins_with_the_rates_that_ended_lowest():
    """docs/using.md, of both sizes, with warm-up, by Adam's."""
    rates: dict[str, list[float]] = {}
    for file in (command.STORED, command.LARGER):
        stored = json.loads(file.read_text(encoding="utf-8"))
        (rows,) = (rows for name, rows in stored.items() if name.startswith("large_batch"))
        found = large_batch.by_warmup(rows)[True]
        for name, at in found.items():
            by_adams = 2.0 ** (large_batch.best(at) - large_batch.best(found["Adam"]))
            rates.setdefault(name, []).append(by_adams)
    guide = (command.ROOT / "docs" / "using.md").read_text(encoding="utf-8")
    for name in rates.keys() - {"Adam", "AvaGrad"}:
        (line,) = (line for line in guide.splitlines() if line.startswith(f"| `{name}` |"))
        cell = line.split(" | ")[1]
        told = " to ".join(f"{rate:g}" for rate in sorted({min(rates[name]), max(rates[name])}))
        assert cell.startswith(f"{told} times"), name
    assert "thousands of times" in guide and min(rates["AvaGrad"]) > 1000

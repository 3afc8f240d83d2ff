"""How the benchmark measures: turns, ratios, and that it sees a slow-down put in."""

import weakref
from itertools import cycle, pairwise
from types import SimpleNamespace

import pytest
import torch

from bench import __main__ as command
from bench import (
    contenders,
    device,
    measure,
    pages,
    parameter_sets,
    peers,
    results,
    tables,
    training,
)
from bench import self_check as checking
from bench.measure import Side
from bench.parameter_sets import parse
from tests.benchmark import bench, little_work, peer_row, row  # noqa: F401, a fixture

(ADAMW,) = contenders.ours("adamw", "cpu", contenders.MODES["f32"])
MADAM, _ = contenders.ours("madam", "cpu", contenders.MODES["f32"])


def test_ratios():
    rows = [
        row(bytes=42_000),
        peer_row("torch-fused", seconds=3.0),
        peer_row("timm", seconds=30.0, baseline_seconds=6.0),  # a busier time: 0.2 of torch fused
        peer_row("torch-loop", seconds=60.0, baseline_seconds=6.0),
        row(phase="fresh", seconds=1.0),
    ]
    measure.fill_ratios(rows)
    assert rows[0]["bytes_per_second"] == 21_000 and rows[0]["yardstick_share"] == 0.75
    assert rows[0]["vs_torch_fused"] == 1.5 and rows[0]["bandwidth_vs_torch_fused"] == 2.25
    assert rows[0]["fastest_peer"] == "timm" and rows[0]["vs_fastest_peer"] == 7.5
    assert rows[1]["vs_torch_fused"] == 1.0 and "fastest_peer" not in rows[1]
    assert rows[4]["vs_torch_fused"] == 3.0
    assert "yardstick_share" not in rows[4] and "fastest_peer" not in rows[4]


def test_the_yardstick_takes_turns(monkeypatch):
    """A machine that becomes ten times as slow leaves the share of the yardstick."""
    clock = device.Cpu()
    (chosen,) = parse("1x1000")
    shares = []
    for busy in (1.0, 10.0):
        monkeypatch.setattr(clock, "seconds", lambda step, busy=busy: (step(), busy)[1])
        run = measure.Run()
        list(measure.measure(run, [measure.Task(chosen, ADAMW, 1)], clock, 3))
        shares.append(run.rows[0]["yardstick_share"])
    assert shares[0] == shares[1] == 28 * 1000 / clock.BYTES


def test_turns_are_fair_and_end():
    order = []
    clocks = [lambda name=name: order.append(name) or 1.0 for name in "ab"]
    assert measure.take_turns(clocks, 3) == [[1.0] * 3] * 2
    assert "".join(order) == "abbaab"


def rows_on_a_still_clock(name, contender, monkeypatch):
    """Rows and steps where steps alone move the clock, two of five by far too little or much."""
    now, order, cost = 0.0, [], {"fusedstep": 2.0, "torch-fused": 6.0, "yardstick": 4.0}
    stray = {maker: cycle([1.0, 1.0, 0.1, 1.0, 9.0]) for maker in cost}

    def spend(maker):
        nonlocal now
        now += cost[maker] * next(stray[maker])
        order.append(maker)

    def step(side):
        side.optimizer.step()
        spend(side.contender.maker)

    for module in (measure, device):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(Side, "step", step)
    monkeypatch.setattr(measure, "PATIENCE", float("inf"))
    clock, (chosen,) = device.Cpu(), parse(name)
    sides = [Side(one, chosen, clock) for one in (contender, peers.baseline(contender.mode))]
    task = measure.Task(chosen, contender, 1)
    rows = measure._rows(task, *sides, lambda: spend("yardstick"), 9)
    measure.fill_ratios(rows)
    return rows, order, sides[0]


@pytest.mark.parametrize("name", ["2x8", "2x2000"])
def test_a_row_has_each_sides_own_median(name, monkeypatch):
    rows, order, _ = rows_on_a_still_clock(name, ADAMW, monkeypatch)
    assert order[:6] == ["fusedstep"] * 3 + ["torch-fused"] * 3, "warm before anything is timed"
    for one in rows:
        found = [one[fact] for fact in ("seconds", "baseline_seconds", "vs_torch_fused")]
        assert found == pytest.approx([2.0, 6.0, 3.0]), one["phase"]
    if name == "2x2000":
        assert rows[0]["yardstick"] == pytest.approx(device.Cpu.BYTES / 4.0)


def test_a_phase_of_the_host_is_what_its_name_says():
    side = Side(ADAMW, parse("2x8")[0], device.Cpu())
    side.start()
    optimizer, gradients = side.optimizer, [p.grad for p in side.params]
    rates = [group["lr"] for group in optimizer.param_groups]
    side.unchanged()
    assert all(p.grad is g for p, g in zip(side.params, gradients, strict=True))
    side.scheduled()
    assert not any(p.grad is g for p, g in zip(side.params, gradients, strict=True))
    assert all(g["lr"] < rate for g, rate in zip(optimizer.param_groups, rates, strict=True))
    load, loaded = optimizer.load_state_dict, []
    optimizer.load_state_dict = lambda state: loaded.append(load(state))
    side.loaded()
    assert side.optimizer is optimizer and loaded == [None]
    side.first()
    assert {int(state["step"]) for state in side.optimizer.state.values()} == {1}


@pytest.mark.parametrize("mode", ["f32", "bf16"])
def test_gradients_in_a_bucket_are_not_aligned(mode, monkeypatch):
    monkeypatch.setitem(parameter_sets.MODELS, "small", [(8, 4), (4,)])
    (contender,) = contenders.ours("adamw", "cpu", contenders.MODES[mode])
    side = Side(contender, parse("small-bucket")[0], device.Cpu())
    gradients = [p.grad for p in side.params]
    assert len({g.untyped_storage().data_ptr() for g in gradients}) == 1
    assert all(g.data_ptr() % 8 and p.data_ptr() % 16 == 0 for g, p in zip(gradients, side.params))
    side.step()


def test_no_side_finds_its_data_in_caches_more_often_than_the_other(monkeypatch):
    """A side that is measured twice in a row finds them there the second time."""
    _, order, _ = rows_on_a_still_clock("2x2000", ADAMW, monkeypatch)
    again = [a for a, b in pairwise(order[6:33]) if a == b]
    assert again.count("fusedstep") == again.count("torch-fused") > 0 == again.count("yardstick")


def test_what_has_faded_is_measured_faded(monkeypatch):
    _, faded = contenders.ours("madam", "cpu", contenders.MODES["f32"])
    (one,), _, side = rows_on_a_still_clock("2x2000", faded, monkeypatch)
    assert one["bytes"] == 36 * 4000
    for state in side.optimizer.state.values():
        assert not state["beta_prod_bound"].any() and not state["beta_prod"].any()


def test_patience_ends_a_long_comparison(monkeypatch):
    monkeypatch.setattr(measure, "PATIENCE", 0.0)
    assert [len(times) for times in measure.take_turns([lambda: 1.0], 99)] == [measure.FEWEST]


def test_bytes_are_those_of_each_side(monkeypatch):
    (one,), _, _ = rows_on_a_still_clock("2x2000", MADAM, monkeypatch)
    assert (one["bytes"], one["held_bytes"]) == (44 * 4000, 24 * 4000)
    assert one["least"] == pytest.approx(0.2)
    assert one["bandwidth_vs_torch_fused"] == pytest.approx(3.0 * 44 / 28)


@pytest.mark.parametrize(
    "other", [{"threads": 1}, {"dtype": "bf16"}, {"set": "tiny"}, {"device": "cuda"}], ids=str
)
def test_the_fastest_peer_is_one_of_equal_rows(other):
    rows = [row(), peer_row("timm", seconds=30.0), peer_row("madgrad", seconds=0.1, **other)]
    measure.fill_ratios(rows)
    assert rows[0]["fastest_peer"] == "timm"


def test_a_task_has_its_threads_and_they_are_put_back(monkeypatch):
    before, found, rows_of = torch.get_num_threads(), [], measure._rows

    def watched(task, *rest):
        found.append((task.threads, torch.get_num_threads()))
        return rows_of(task, *rest)

    monkeypatch.setattr(measure, "_rows", watched)
    (chosen,), run = parse("2x8"), measure.Run()
    tasks = [measure.Task(chosen, ADAMW, threads) for threads in (1, before + 1)]
    list(measure.measure(run, tasks, device.Cpu(), 2))
    assert not run.failed and found == [(1, 1), (before + 1, before + 1)]
    assert torch.get_num_threads() == before


def test_the_share_of_a_training_step_is_measured_and_told(tmp_path, capsys):
    names = ["--algorithms", "adamw,madam", "--peers", "torch-loop", "--rounds", "2"]
    status, out = bench(tmp_path, "training", *names)
    rows = results.read(out)["rows"]
    assert status == 0 and [r["algorithm"] for r in rows] == ["AdamW", "MAdam", "AdamW"]
    for one in rows:
        assert 0 < one["optimizer_seconds"] < one["seconds"] and one["parameters"] > 100_000
        assert one["optimizer_share"] == one["optimizer_seconds"] / one["seconds"]
    assert "its share" in capsys.readouterr().out
    new = pages.written("<!-- bench training -->\n<!-- end -->\n", {"one": results.read(out)})
    assert "| algorithm | by | training step | optimizer | its share | x torch fused |" in new
    assert new.count("fusedstep cpu") == 2


def test_a_training_loop_that_fails_leaves_the_others(tmp_path, monkeypatch, capsys):
    measured = training._row

    def row(task, *how):
        if task.contender.maker == "torch-loop":
            raise RuntimeError("out of luck\nand more")
        return measured(task, *how)

    monkeypatch.setattr(training, "_row", row)
    chosen = ["--algorithms", "adamw", "--peers", "torch-loop", "torch-foreach", "--rounds", "2"]
    status, out = bench(tmp_path, "training", *chosen)
    made = [one["maker"] for one in results.read(out)["rows"]]
    assert status == 0 and made == ["fusedstep", "torch-foreach"]
    told = "failed: torch-loop AdamW f32 small-bert: RuntimeError: out of luck\n"
    assert told in capsys.readouterr().out


def test_what_was_measured_is_let_go_before_the_next(monkeypatch):
    kept, alive = [], []

    def rows_of(task, side, *_):
        kept.append(weakref.ref(side))
        return []

    def free_bytes(clock):
        alive.append([one() is not None for one in kept])
        return 1e9

    monkeypatch.setattr(measure, "_rows", rows_of)
    monkeypatch.setattr(device.Cpu, "free_bytes", free_bytes)
    (chosen,) = parse("2x8")
    tasks = [measure.Task(chosen, one, 1) for one in (ADAMW, MADAM)]
    list(measure.measure(measure.Run(), tasks, device.Cpu(), 2))
    assert alive == [[], [False]]


def test_quartiles_lie_within_the_data():
    assert measure.quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == [2.0, 3.0, 4.0]


def test_what_is_left_out_says_the_least_that_it_needs():
    (chosen,) = parse("2x8")
    needs = ((MADAM, 9e9), (ADAMW, 5e9))
    left_out = [(measure.Task(chosen, one, 1), need, 2e9) for one, need in needs]
    (line,) = tables.complaints(measure.Run(left_out=left_out))
    assert "needs 5.0 GB or more of 2.0 GB free" in line


def test_a_peer_has_no_mode_of_two_dtypes():
    bf16, mixed = (contenders.MODES[name] for name in ("bf16", "bf16-grad32"))
    assert peers.contender("torch-fused", "AdamW", bf16)
    assert peers.contender("torch-fused", "AdamW", mixed) is None


# It sees


def test_it_sees_a_slow_down_and_none_where_none_is(capsys):
    assert command.main(["self-check", "--set", "10x8", "--backends", "cpu"]) == 0
    assert capsys.readouterr().out.count(": seen\n") == 2


def test_it_says_where_it_does_not_see(monkeypatch, capsys):
    monkeypatch.setattr(checking, "Slow", Side)
    monkeypatch.setattr(checking, "ROUNDS", 11)
    assert command.main(["self-check", "--set", "10x8", "--backends", "cpu"]) == 1
    assert "x 2 put in: x" in capsys.readouterr().out


def test_what_is_seen_has_the_factor_within_its_spread():
    assert checking.sees([1.9, 2.0, 2.02, 2.1], 2.0)
    assert not checking.sees([1.9, 2.0, 2.02, 2.1], 1.0)
    assert not checking.sees([1.80, 1.801, 1.802, 1.803], 2.0), "near, but beyond its spread"
    assert not checking.sees([0.5, 1.0, 3.0, 4.0], 1.0), "within its spread, but not near"


def test_the_slow_side_may_take_each_step_twice(monkeypatch):
    """As the slow side does on a GPU."""
    clock = device.Cpu()
    monkeypatch.setattr(clock, "twice", lambda step: (step(), step()))
    monkeypatch.setattr(checking, "ROUNDS", 5)
    checking.self_check(measure.Task(parse("2x8")[0], ADAMW, 1), clock)

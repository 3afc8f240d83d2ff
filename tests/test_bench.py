"""The benchmark's sets, bytes and options: what is measured, and what is told where that fails."""

import math
from functools import partial
from types import SimpleNamespace

import fusedstep
import pytest
import torch
import torch._dynamo as dynamo
from fusedstep import testing

from bench import __main__ as command
from bench import contenders, device, peers, results, step_bytes
from bench.measure import Side
from bench.parameter_sets import AXES, parse
from tests.benchmark import bench, little_work  # noqa: F401, a fixture
from tests.training import CLASSES, every_class, give_gradients, model, stored

CPU = torch.device("cpu")
F32 = contenders.MODES["f32"]


# Parameter sets


@pytest.mark.parametrize(
    "name, tensors, parameters",
    [
        ("bert-base", 206, 110_106_428),
        ("bert-large", 398, 336_226_108),
        ("gpt2-xl", 580, 1_557_611_200),
        ("tiny", 400, 3_200),
        ("swarm", 10_000, 640_000),
        ("7x3", 7, 21),
    ],
)
def test_sets_have_the_sizes_of_their_models(name, tensors, parameters):
    (found,) = parse(name)
    assert (found.tensors, found.parameters, len(found.groups)) == (tensors, parameters, 2)


def test_models_are_grouped_as_trainer_does():
    (bert,) = parse("bert-base")
    assert [{len(shape) for shape in group} for group in bert.groups] == [{2}, {1}]


@pytest.mark.parametrize("axis", AXES)
def test_an_axis_grows(axis):
    sizes = [
        {"parameters": s.parameters, "tensors": s.tensors, "groups": len(s.groups)}[axis]
        for s in parse(axis)
    ]
    assert sizes == sorted(set(sizes))


# Bytes


@every_class
def test_the_model_is_what_a_step_of_a_set_moves(cls):
    (own, *_) = contenders.ours(cls.__name__, "cpu", F32)
    (chosen,) = parse("3x50")
    side = Side(own, chosen, device.Cpu())
    side.start()
    assert step_bytes.model(own, CPU).moved * 150 == side.optimizer.bytes_moved()


@pytest.mark.parametrize("dtype, want", [("f32", 28), ("f64", 56), ("bf16", 14), ("f16", 14)])
def test_bytes_of_torch_are_counted_from_its_state(dtype, want):
    found = step_bytes.model(peers.baseline(contenders.MODES[dtype]), CPU)
    assert (found.moved, found.held) == (want, want / 7 * 4)


def test_states_are_found_in_what_peers_nest():
    p = torch.nn.Parameter(torch.zeros(2, 3))
    optimizer = torch.optim.SGD([p])
    a, b, c = torch.zeros(6), torch.zeros(2, 3), torch.zeros(2, 3)
    optimizer.state[p] = {"step": torch.zeros(()), 0: {"m": [a], "row": torch.zeros(3)}, "v": b}
    optimizer.state[p]["w"] = SimpleNamespace(data=c, scales=None)
    assert [id(t) for t in step_bytes.states_of(optimizer, p)] == [id(a), id(b), id(c)]
    one = torch.nn.Parameter(torch.zeros(1))
    optimizer.state[one] = {"step": torch.zeros(()), "v": torch.zeros(1)}
    assert step_bytes.states_of(optimizer, one) == [optimizer.state[one]["v"]]


@pytest.mark.parametrize("cls", [fusedstep.MAdam, fusedstep.LaMAdam])
def test_a_faded_column_is_not_read(cls):
    whole, faded = contenders.ours(cls.__name__, "cpu", F32)
    assert step_bytes.model(faded, CPU).moved == step_bytes.model(whole, CPU).moved - 8
    ends = []
    for unread in (0.0, math.nan):
        params = model((100,))
        optimizer = faded.build([{"params": params}])
        give_gradients(params)
        optimizer.step()
        contenders.fade(optimizer)
        optimizer.state[params[0]]["beta_prod"].fill_(unread)
        optimizer.step()
        del optimizer.state[params[0]]["beta_prod"]
        ends.append(stored(optimizer, params))
    assert not testing.differences(*ends)


def test_the_memory_of_a_step_is_seen():
    clock = device.Cpu()
    assert clock.peak_extra_bytes(lambda: torch.ones(16 * 2**20).sum()) >= 60 * 2**20
    assert clock.peak_extra_bytes(lambda: None) < 8 * 2**20


# What is measured


def test_every_class_is_measured_without_being_named():
    tasks = command.make_tasks(command.options([]), CPU)
    ours = {task.contender.algorithm for task in tasks if task.contender.maker == "fusedstep"}
    assert ours == {cls.__name__ for cls in CLASSES}


def test_a_case_of_the_bit_matrix_is_measured_by_its_id():
    (own, faded) = contenders.ours("MAdam-released-amsgrad", "cpu", F32)
    optimizer = own.build([{"params": model()}])
    assert (own.form, faded.form) == ("released-amsgrad", "released-amsgrad-faded")
    assert optimizer.defaults["form"] == "released" and optimizer.defaults["amsgrad"]


@pytest.mark.parametrize(
    "name", ["torch-loop", "torch-foreach", "torch-fused", "pytorch_optimizer", "madgrad"]
)
def test_peers_get_our_hyper_parameters(name):
    for algorithm, entry in peers.PEERS[name].algorithms.items():
        params = model((5,))
        optimizer = peers.contender(name, algorithm, F32).build([{"params": params}])
        ours = contenders.ALGORITHMS[algorithm](params).defaults
        assert entry.matched
        for theirs, our in entry.matched.items():
            assert optimizer.defaults[theirs] == ours[our], (algorithm, theirs)
        give_gradients(params)
        optimizer.step()


@pytest.mark.parametrize("algorithm", ["Adam", "AdamW"])
def test_a_compiled_peer_is_compiled_once(monkeypatch, algorithm):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    (one, other), seen = (model((5,)) for _ in range(2)), dynamo.utils.counters
    compiled = peers.contender("torch-compile", algorithm, F32).build([{"params": one}])
    plain = peers.contender("torch-foreach", algorithm, F32).build([{"params": other}])
    seen.clear()
    for optimizer in (compiled, plain):
        for t in range(1, 4):
            give_gradients(optimizer.param_groups[0]["params"], t)
            optimizer.param_groups[0]["lr"] = optimizer.defaults["lr"] / t
            optimizer.step()
    assert seen["stats"]["unique_graphs"] == 1
    torch.testing.assert_close(one, other)


def test_a_peer_is_built_for_the_device_of_its_parameters(monkeypatch):
    built = []
    monkeypatch.setattr(peers, "_load", lambda *_: lambda groups, **options: built.append(options))
    one = peers.contender("torch-optimi", "AdamW", F32)
    for where in ("cpu", "cuda"):
        one.build([{"params": [SimpleNamespace(is_cuda=where == "cuda")]}])
    assert [options.get("triton") for options in built] == [None, True]


def test_peers_have_algorithms_of_ours():
    assert {a for peer in peers.PEERS.values() for a in peer.algorithms} <= {*contenders.ALGORITHMS}


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--set", "bert-huge"], "there is no set 'bert-huge'; there are bert-base, "),
        (["--set", "3x0"], "there is no set '3x0'"),
        (["--set", "2x8@3"], "there is no set '2x8@3'"),
        (["--algorithms", "adamw,nosuch"], "there is no algorithm 'nosuch'; there are LAMB, "),
        (["--backends", "gpu"], "there is no backend 'gpu'; there are cuda, triton, cpu, "),
        (["--backends", "cuda"], "backend 'cuda' cannot run on cpu: "),
        (["--dtype", "f8"], "there is no dtype 'f8'; there are f32, "),
        (["--peers", "apex"], "there is no peer 'apex'; there are all, none, torch, "),
        (["--import", "no_such"], "--import is no_such: No module named 'no_such'; put "),
        (["--import", "mine.py"], "--import is mine.py; pass the name of a module, without .py"),
        (["--import", "./mine"], "--import is ./mine; pass the name of a module"),
        (["--import", ".mine"], "--import is .mine; pass the name of a module, without .py"),
        (["--import", "mine", "--record"], "--record keeps rows of fusedstep's own kernels; leave"),
        (["--threads", "1,no"], "--threads is '1 no'; pass numbers from 1 to"),
        (["--threads", "100000"], "--threads is '100000'; pass numbers from 1 to"),
        (["--rounds", "1"], "--rounds is 1; a median and quartiles need at least 2"),
        (["--gate", "nan"], "--gate is nan; pass a share such as 0.8"),
        (["--algorithms", ","], "there is nothing to measure; name sets, "),
        (["--out", "rows.csv"], "--out is rows.csv; name a .json file in a folder"),
        (["--out", "{folder}/rows.json"], "--out is {folder}/rows.json; name a .json file in"),
        (["--out", "/proc/none/rows.json"], "--out is /proc/none/rows.json; name a .json file"),
        (["training", "--dtype", "bf16"], "training does not take --dtype; leave that out"),
        (["self-check", "--gate", "1", "--plot"], "self-check does not take --gate, --out, --plot"),
        (["tables", "--set", "tiny"], "tables does not take --backends, --device, --out, --set;"),
    ],
)
def test_a_bad_option_is_one_line_that_says_what_there_is(tmp_path, capsys, arguments, told):
    (tmp_path / "folder" / "rows.csv").mkdir(parents=True)  # a place that a file cannot take
    told, *arguments = (s.replace("{folder}", f"{tmp_path}/folder") for s in (told, *arguments))
    status, out = bench(tmp_path, *arguments)
    error = capsys.readouterr().err
    assert status == 2 and not out.exists()
    assert error.startswith(f"python -m bench: {told}") and error.count("\n") == 1


def test_pictures_that_cannot_be_drawn_are_told_before_anything_is_measured(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    for arguments in (["tables"], ["--plot", "--out", str(tmp_path / "rows.json")]):
        assert command.main(arguments) == 2
        assert "pictures need matplotlib; pip install matplotlib\n" in capsys.readouterr().err


def test_what_is_named_twice_is_measured_once():
    named = ["--set", "2x3,2x3", "--algorithms", "adamw", "AdamW", "--dtype", "f32,float32"]
    tasks = command.make_tasks(command.options([*named, "--peers", "torch,all"]), CPU)
    assert len(tasks) == len(set(tasks)) > 3


@pytest.mark.parametrize(
    "name, want", [("float32", "f32"), ("FP16", "f16"), ("bf16+master", "bf16-master")]
)
def test_dtypes_have_torch_names_too(name, want):
    assert contenders.mode(name).id == want


def test_a_set_that_memory_does_not_hold_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(device.Cpu, "free_bytes", lambda self: 24e9)
    status, _ = bench(tmp_path, "--set", "gpt2-xl", "--algorithms", "adamw", "--peers", "none")
    lines = [s for s in capsys.readouterr().out.splitlines() if "left out" in s]
    assert status == 1 and len(lines) == 1
    assert lines[0].startswith("left out: gpt2-xl f32: needs 49.8 GB or more of 24.0 GB free: ")


def test_a_run_that_is_interrupted_at_once_leaves_earlier_rows(tmp_path, capsys, monkeypatch):
    small = ["--set", "2x8", "--algorithms", "adamw", "--peers", "none", "--rounds", 2]
    _, out = bench(tmp_path, *small)
    before = results.read(out)

    def interrupted(*_):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(command, "measure", interrupted)
    assert bench(tmp_path, *small)[0] == 130
    assert "stays as it was" in capsys.readouterr().out and results.read(out) == before


def test_a_damaged_file_of_results_is_told_before_anything_is_measured(
    tmp_path, capsys, monkeypatch
):
    (tmp_path / "one.json").write_text('{"rows": [')
    monkeypatch.setattr(results.of_record, "__defaults__", (tmp_path,))
    for arguments in (["tables"], ["--record", "--out", str(tmp_path / "rows.json")]):
        assert command.main(arguments) == 2
        assert "one.json does not hold results of this program" in capsys.readouterr().err


def test_one_that_fails_is_told_and_the_others_are_measured(tmp_path, capsys, monkeypatch):
    broken = peers.Peer("torch", {"AdamW": peers.Entry("torch.optim:NoSuchThing")})
    monkeypatch.setitem(peers.PEERS, "timm", broken)
    status, out = bench(
        tmp_path, "--set", "2x8", "--algorithms", "adamw", "--peers", "timm", "--rounds", 2
    )
    assert status == 0 and results.read(out)["rows"]
    assert "failed: timm AdamW f32 2x8: AttributeError: module 'torch.optim'" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("gate, status", [(0.0, 0), (1e9, 1)])
def test_the_gate_fails_where_adamw_is_slower(gate, status, tmp_path, capsys):
    small = ["--set", "3x100", "--algorithms", "adamw", "--peers", "none", "--rounds", 2]
    assert bench(tmp_path, *small, "--gate", gate)[0] == status
    below = [line for line in capsys.readouterr().out.splitlines() if "below the gate" in line]
    assert len(below) == 2 * status  # fresh and unchanged gradients

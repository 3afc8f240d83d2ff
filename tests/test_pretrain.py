"""examples/pretrain_bert.py as a user runs it: tiny models on a text in which context tells all.

The text counts from one to twelve over and over. Word frequencies predict it to within log 12
nats; a model that looks at positions or neighbours does better, and soon.
"""

import importlib
import importlib.metadata
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"
COUNT = "one two three four five six seven eight nine ten eleven twelve"
WORDS = COUNT.split()
STEPS = 150
TINY = f"--steps {STEPS} --layers 1 --width 32 --length 16 --vocab 100 --device cpu"
OPTIMIZERS = {
    "madam": "fusedstep.MAdam",
    "LaMAdam": "fusedstep.LaMAdam",
    "adamw": "fusedstep.AdamW",
    "laprop": "fusedstep.LaProp",
    "adamomentum": "fusedstep.AdaMomentum",
    "avagrad": "fusedstep.AvaGrad",
    "delayedadam": "fusedstep.DelayedAdam",
    "madgrad": "fusedstep.MADGRAD",
    "lamb": "fusedstep.LAMB",
    "torch.optim.AdamW": "torch.optim.AdamW",
}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "counting.txt"
    path.write_text(" ".join(WORDS * 1000), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def pretrain(text):
    """Start the example in a process of its own, with the tiny settings."""

    def run(output, *arguments):
        command = [sys.executable, EXAMPLES / "pretrain_bert.py", "--text", text, *TINY.split()]
        return subprocess.run(
            [*command, "--output", output, *map(str, arguments)],
            capture_output=True,
            text=True,
            # Two busy-waiting threads on cores that others use cost more than they bring.
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            timeout=600,
        )

    return run


@pytest.fixture(scope="module")
def finished(pretrain, tmp_path_factory):
    """Folder and process of a complete run, one for each optimizer."""
    runs = {}

    def run(optimizer):
        if optimizer not in runs:
            output = tmp_path_factory.mktemp("run")
            runs[optimizer] = output, pretrain(output, "--optimizer", optimizer)
        return runs[optimizer]

    return run


@pytest.fixture(scope="module")
def example():
    """The example's modules, imported here."""
    sys.path.insert(0, str(EXAMPLES))
    yield lambda name: importlib.import_module(name)
    sys.path.remove(str(EXAMPLES))


@pytest.fixture
def refuse(example, text, monkeypatch, capsys):
    """Run the example in this process, where it has to end with one line and status 2."""

    def run(*arguments):
        argv = ["pretrain_bert.py", "--text", text, *TINY.split(), *arguments]
        monkeypatch.setattr(sys, "argv", list(map(str, argv)))
        try:
            status = example("pretrain_bert").main()
        except SystemExit as leaving:
            status = leaving.code
        lines = capsys.readouterr().err.splitlines()
        assert (status, len(lines)) == (2, 1), lines
        return lines[0]

    return run


def results(output):
    return json.loads((output / "results.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_learns_more_than_word_frequencies(finished, optimizer):
    output, process = finished(optimizer)
    assert process.returncode == 0, process.stderr
    figures = results(output)
    assert figures["nats_below_unigram"] > 0.4
    assert figures["unigram_loss"] - figures["held_out_loss"] == figures["nats_below_unigram"]
    assert figures["unigram_loss"] == pytest.approx(math.log(len(WORDS)), abs=0.02)
    assert figures["masked_accuracy"] > 1 / len(WORDS)
    assert figures["step"] == figures["timed_steps"] == STEPS
    assert 0 < figures["optimizer_share"] < 1
    assert figures["run"]["optimizer"] == OPTIMIZERS[optimizer]
    assert figures["held_out_curve"][0][0] == 0
    assert figures["held_out_curve"][-1] == [STEPS, figures["held_out_loss"]]


def test_leaves_picture_table_and_record(finished):
    output, process = finished("madam")
    assert (output / "loss.png").read_bytes().startswith(b"\x89PNG")
    figures = results(output)
    for row in ("held-out loss", "unigram line", "masked accuracy", "share of step time"):
        assert row in process.stdout
    assert f"{figures['held_out_loss']:.3f} nats" in process.stdout
    assert "fusedstep.MAdam, backend cpu" in process.stdout
    assert figures["versions"]["torch"] == importlib.metadata.version("torch")
    assert "--optimizer madam" in figures["command"]
    assert "Warning" not in process.stderr and "[transformers]" not in process.stderr


def test_resumed_run_is_the_uninterrupted_one_bit_for_bit(pretrain, finished, tmp_path):
    whole, _ = finished("madam")
    stopped = pretrain(tmp_path, "--optimizer", "madam", "--stop-after", 71)
    assert results(tmp_path)["step"] == 71, stopped.stderr
    resumed = pretrain(tmp_path, "--optimizer", "fusedstep.MAdam", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "[transformers]" not in resumed.stderr

    last = f"checkpoint-{STEPS}"
    weights = "model.safetensors"
    assert (tmp_path / last / weights).read_bytes() == (whole / last / weights).read_bytes()
    one, other = (
        torch.load(folder / last / "optimizer.pt", weights_only=True)["state"]
        for folder in (tmp_path, whole)
    )
    assert one.keys() == other.keys() and one
    for key in one:
        for name in one[key]:
            assert torch.equal(one[key][name], other[key][name]), (key, name)
    for figure in ("held_out_loss", "masked_accuracy", "held_out_curve"):
        assert results(tmp_path)[figure] == results(whole)[figure]


@pytest.mark.parametrize(
    "arguments, told",
    [
        ("--steps 0", "give a whole number from 1"),
        ("--lr -1", "give a number from 0"),
        ("--option eps", "give one such as eps=1e-6"),
        ("--momentum 0.9", "--help lists the options"),
        ("--optimizer nosuch", "it has adamomentum, adam, adamw"),
        ("--optimizer torch.optim.MAdam", "others go by their dotted path"),
        ("--optimizer nowhere.AdamW", "install it with pip"),
        ("--option beta9=0.5", "change the argument it names"),
        ("--option eps=-1.0", "change the argument it names"),
        ("--optimizer torch.optim.LBFGS", "change the argument it names"),
        ("--batch-size 1000", "give more text"),
    ],
)
def test_bad_option(refuse, tmp_path, arguments, told):
    message = refuse("--output", tmp_path, *arguments.split())
    assert arguments.split()[0] in message or "--text" in message
    assert told in message
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "make, told",
    [
        (lambda path: None, "give a readable file"),
        (lambda path: path.write_bytes(b" \n\n"), "give a file that has text"),
        (lambda path: path.write_bytes(b"caf\xe9"), "byte 3 is not UTF-8; convert it first"),
        (lambda path: path.mkdir(), "name the files themselves"),
        (lambda path: path.write_text("too short"), "give more text"),
    ],
    ids=["missing", "empty", "not utf-8", "folder without text", "small"],
)
def test_bad_text(refuse, tmp_path, make, told):
    path = tmp_path / "text"
    make(path)
    message = refuse("--output", tmp_path / "output", "--text", path)
    assert str(path) in message and told in message
    assert not (tmp_path / "output").exists()


def test_bad_output(refuse, tmp_path):
    (tmp_path / "file").write_text("")
    assert "choose another folder" in refuse("--output", tmp_path / "file")
    foreign = tmp_path / "checkpoint-5"
    foreign.mkdir()
    assert "did not write them; choose another" in refuse("--output", tmp_path)
    assert foreign.exists()


def test_bad_resume(refuse, finished, tmp_path):
    assert "start without --resume" in refuse("--output", tmp_path, "--resume")
    output, _ = finished("madam")
    assert "is at step 150 of 150 already" in refuse("--output", output, "--resume")
    message = refuse("--output", output, "--resume", "--width", "64")
    assert "has width 32, not 64; resume with the options" in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_device_that_is_not_there(refuse):
    assert "use --device cpu or auto" in refuse("--device", "cuda")


def test_fresh_run_clears_its_own_files_only(example, tmp_path, capsys):
    folder = example("pretrain.output_folder")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "checkpoint-best").mkdir()
    folder.start_run(tmp_path, {"steps": 1})
    (tmp_path / "checkpoint-7").mkdir()
    folder.start_run(tmp_path, {"steps": 2})
    assert "cleared the earlier run's checkpoint-7, run.json" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-best",
        "notes.txt",
        "run.json",
    ]


def test_unfinished_checkpoint_is_passed_over(example, tmp_path):
    folder = example("pretrain.output_folder")
    for step in (9, 10, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").touch()
    (tmp_path / "run.json").touch()
    assert folder.last_checkpoint(tmp_path) == (10, tmp_path / "checkpoint-10")


def test_help_needs_no_torch():
    command = [sys.executable, "-X", "importtime", EXAMPLES / "pretrain_bert.py", "--help"]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0 and "--resume" in process.stdout
    assert "pretrain.options" in process.stderr and "| torch" not in process.stderr


def test_python_documentation_is_parsed_not_imported(example, tmp_path):
    corpus = example("pretrain.corpus")
    (tmp_path / "module.py").write_text(
        '"""Of the module."""\nraise ImportError\nclass A:\n    def b(): "Of b."\n'
    )
    (tmp_path / "template.py").write_text("{{ name }} =")
    assert list(corpus.docstrings(tmp_path / "module.py")) == ["Of the module.", "Of b."]
    assert not list(corpus.docstrings(tmp_path / "template.py"))
    documents = corpus.python_documentation()
    assert sum(map(len, documents)) > 1_000_000
    assert len(documents) == len(set(documents))


def test_vocabulary_is_the_same_every_time(example):
    corpus, mlm = example("pretrain.corpus"), example("pretrain.mlm")
    documents = list(corpus.docstrings(Path(json.__file__)))
    first, *others = (mlm.train_wordpiece(documents, 500).to_str() for _ in range(5))
    assert all(other == first for other in others)


def test_masks_depend_on_the_batch_alone(example):
    mlm = example("pretrain.mlm")
    wordpiece = mlm.train_wordpiece([" ".join(WORDS)], 100)
    masking = mlm.ReplayableMasking(mlm.fast_tokenizer(wordpiece, 64))
    blocks = mlm.cut_blocks([" ".join(WORDS * 1000)], wordpiece, 64)
    first = masking(list(blocks))
    torch.manual_seed(1)
    again = masking(list(blocks))
    assert all(torch.equal(first[name], again[name]) for name in ("input_ids", "labels"))
    targets = first["labels"] != -100
    assert not torch.equal(targets, masking(list(blocks.flip(0)))["labels"].flip(0) != -100)
    assert torch.equal(first["labels"][targets], blocks[targets])
    assert not (targets & (blocks < len(mlm.SPECIAL_TOKENS))).any()
    assert targets.float().mean() == pytest.approx(0.15, abs=0.02)


def test_unigram_line_counts_training_tokens(example):
    mlm = example("pretrain.mlm")
    train = torch.tensor([[mlm.CLS, 5, 5, 6, mlm.SEP]])
    expected = torch.tensor([3, 2, 1]) / 6  # add-one counts of tokens 5, 6 and 7
    log_probs = torch.from_numpy(mlm.unigram_log_probs(train, 8))
    torch.testing.assert_close(log_probs[5:].exp().float(), expected)
    assert (log_probs[:5] == -math.inf).all()

"""``python -m fusedstep`` and ``python -m fusedstep verify``, as a user runs them."""

import subprocess
import sys

import fusedstep
import pytest
from fusedstep import testing
from fusedstep.__main__ import main
from fusedstep.verify import verify


def test_backends_are_listed_with_reasons():
    command = [sys.executable, "-m", "fusedstep"]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert fusedstep.__version__ in out
    reasons = fusedstep.why_unavailable()
    for name in ("cuda", "triton", "cpu", "reference"):
        assert f"{name:<10} {'available' if reasons[name] is None else 'unavailable'}" in out
        assert (reasons[name] or "") in out
    assert fusedstep.available_backends() == [name for name in reasons if reasons[name] is None]


@pytest.fixture
def cpu_alone(monkeypatch):
    monkeypatch.setattr("fusedstep.verify.available_backends", lambda: ["cpu"])


def test_equal_bits_are_verified(cpu_alone, capsys):
    assert verify(seconds=2.0)
    assert "every compared cell has the reference's bits" in capsys.readouterr().out


def test_one_wrong_bit_is_not(cpu_alone, capsys, monkeypatch):
    run = testing.run

    def wrong(case, mode, shapes, backend, device="cpu"):
        snapshot = run(case, mode, shapes, backend, device)
        if backend == "cpu" and case.id == "lamb":
            snapshot["param 1, step"] += 1
        return snapshot

    monkeypatch.setattr(testing, "run", wrong)
    assert not verify(seconds=2.0)
    out = capsys.readouterr().out
    assert "NOT VERIFIED" in out and "cpu: lamb" in out


def test_nothing_compared_is_not_verified(monkeypatch):
    monkeypatch.setattr("fusedstep.verify.available_backends", list)
    assert not verify(seconds=1.0)


def test_seconds_are_of_verify(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fusedstep", "--seconds", "3"])
    with pytest.raises(SystemExit):
        main()
    assert "--seconds goes with verify" in capsys.readouterr().err


def test_an_interruption_is_one_line(monkeypatch, capsys):
    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr("fusedstep.verify.verify", interrupted)
    monkeypatch.setattr(sys, "argv", ["fusedstep", "verify"])
    assert main() == 130
    assert capsys.readouterr().err == "interrupted: NOT VERIFIED\n"

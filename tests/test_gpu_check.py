"""The parts of `make gpu-check`: each ends, and tells what it has."""

import json
import sys
import time

from bench import gpu_check


def run(tmp_path, program, limit=30.0):
    log = tmp_path / "log"
    status = gpu_check.run([sys.executable, "-u", "-c", program], limit, log, {})
    return status, log.read_text()


def test_a_part_gives_its_status_and_its_log(tmp_path):
    assert run(tmp_path, "print('told'); raise SystemExit(3)") == (3, "told\n")


def test_a_part_whose_time_is_up_can_tell_what_it_has(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "GRACE", 120.0)  # it ends at once, but on a machine that stalls
    program = (
        "import signal, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # if tests run in background
        "try: print('begun'); time.sleep(60)\n"
        "except KeyboardInterrupt: print('told')\n"
    )
    assert run(tmp_path, program, 1.0) == ("interrupted after 1 s", "begun\ntold\n")


def test_a_part_that_does_not_end_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "GRACE", 0.5)
    program = (
        "import signal, time\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "print('begun'); time.sleep(60)\n"
    )
    assert run(tmp_path, program, 1.0) == ("interrupted after 1 s", "begun\n")


def test_an_absent_program_is_told(tmp_path):
    status = gpu_check.run(["no-such-program"], 1.0, tmp_path / "log", {})
    assert "no-such-program" in status


def test_a_part_that_there_is_no_time_for_is_not_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "OUT", tmp_path)
    part = gpu_check.Part([sys.executable, "-c", "print('begun')"], 30)
    found = gpu_check.result("late", part, time.monotonic())
    assert found["status"] == "no time left" and not (tmp_path / "late.log").exists()


def test_stages_follow_one_another_and_failures_are_told(tmp_path, monkeypatch, capsys):
    def told(word, status=0):
        program = f"import time; print({word!r}, time.time()); raise SystemExit({status})"
        return gpu_check.Part([sys.executable, "-c", program], 30)

    monkeypatch.setattr(gpu_check, "OUT", tmp_path)
    monkeypatch.setattr(
        gpu_check, "STAGES", [{"a": told("a"), "b": told("b", 5)}, {"c": told("c")}]
    )
    assert gpu_check.main([]) == 1
    assert "failed: b\n" in capsys.readouterr().out
    times = {name: float((tmp_path / f"{name}.log").read_text().split()[1]) for name in "abc"}
    assert max(times["a"], times["b"]) < times["c"]
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    assert {name: part["status"] for name, part in found.items()} == {"a": 0, "b": 5, "c": 0}
    assert gpu_check.main(["--only", "a"]) == 0

"""The parts of `make gpu-check`: each ends, and tells what it has."""

import json
import sys
import time

import psutil

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


def part_of(program, **environment):
    return gpu_check.Part([sys.executable, "-u", "-c", program], 30.0, environment)


def test_a_part_has_its_environment_its_last_lines_and_no_more_time_than_is_left(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(gpu_check, "OUT", tmp_path)
    program = "import os; print('1\\n2\\n3'); print(os.environ['WORD'])"
    found = gpu_check.result("one", part_of(program, WORD="told"), time.monotonic() + 30)
    assert (found["status"], found["last_lines"]) == (0, ["2", "3", "told"])
    found = gpu_check.result("two", part_of("import time; time.sleep(60)"), time.monotonic() + 1)
    assert found["status"] == "interrupted after 1 s"


def test_results_of_record_of_gpus_are_left_with_the_rest(tmp_path, monkeypatch):
    out, of_record = tmp_path / "out", tmp_path / "bench" / "results"
    of_record.mkdir(parents=True)
    for name in ("nvidia-h200.json", "some-cpu.json"):
        (of_record / name).write_text("{}")
    monkeypatch.setattr(gpu_check, "OUT", out)
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_check, "STAGES", [{"a": part_of("print('a')")}])
    assert gpu_check.main([]) == 0
    assert {path.name for path in out.glob("*.json")} == {"gpu_check.json", "nvidia-h200.json"}


def test_what_a_part_has_started_ends_with_it(tmp_path, monkeypatch):
    """pytest's workers would disturb what is measured next."""
    monkeypatch.setattr(gpu_check, "GRACE", 0.5)
    deaf = "import signal, subprocess, sys, time; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    child = deaf + "time.sleep(60)"
    start = f"p = subprocess.Popen([sys.executable, '-c', {child!r}])"
    _, log = run(tmp_path, f"{deaf}{start}; print(p.pid); p.wait()", 2.0)

    def runs():
        try:
            return psutil.Process(int(log)).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    until = time.monotonic() + 30
    while runs() and time.monotonic() < until:
        time.sleep(0.05)
    assert not runs()

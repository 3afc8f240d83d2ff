"""The benchmark's rows, files, tables, pictures and lines of growth."""

import csv
import json
import os
import signal
import subprocess

import pytest
import torch

from bench import growth, measure, pages, plots, results, tables
from bench.parameter_sets import AXES, parse
from tests.benchmark import bench, little_work, peer_row, row  # noqa: F401, a fixture


def test_rows_survive_the_files(tmp_path):
    status, out = bench(
        tmp_path, "--set", "2x8,2x2000", "--algorithms", "adamw", "--threads", "1", "--rounds", 3
    )
    content = json.loads(out.read_text())
    assert status == 0
    ours = [r for r in content["rows"] if r["maker"] == "fusedstep"]
    phases = "first fresh scheduled unchanged loaded step"
    assert [r["phase"] for r in ours] == phases.split()
    assert ours[-1]["bytes"] == 28 * 4000 and ours[-1]["threads"] == 1 and ours[-1]["launches"] == 1
    assert all(r["q1"] <= r["seconds"] <= r["q3"] for r in content["rows"])
    (run,) = content["runs"].values()
    assert run["command"].startswith("python -m bench --device cpu ")
    assert "--out rows.json" in run["command"], "no folder of this machine"
    assert {"fusedstep", "revision", "torch", "compiler"} <= run["versions"].keys()
    assert {"cpu", "cores", "caches", "memory_gb"} <= content["machine"].keys()
    with out.with_suffix(".csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(content["rows"])
    for line, want in zip(table, content["rows"], strict=True):
        assert float(line["seconds"]) == want["seconds"] and line["maker"] == want["maker"]
        assert line["version torch"] == torch.__version__ and line["command"] == run["command"]


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_what_it_has(kind, tmp_path, monkeypatch, capsys):
    rows_of, handler = measure._rows, signal.getsignal(signal.SIGTERM)

    def interrupted(task, *rest):
        if task.contender.algorithm == "LAMB":
            os.kill(os.getpid(), kind)
        return rows_of(task, *rest)

    monkeypatch.setattr(measure, "_rows", interrupted)
    names = ["--algorithms", "adamw,lamb", "--peers", "none", "--rounds", "2"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    status, out = bench(tmp_path, "--set", "2x2000", *names)
    signal.signal(signal.SIGINT, before)
    assert status == 130
    (found,) = results.read(out)["rows"]
    assert found["algorithm"] == "AdamW" and found["yardstick_share"] > 0
    assert "interrupted" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is handler


def test_files_that_cannot_be_finished_stay_as_they_were(tmp_path, monkeypatch):
    path = tmp_path / "rows.json"
    results.write(path, content_of("monday", row()))
    before = path.with_suffix(".csv").read_bytes()

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(csv.DictWriter, "writerows", full)
    with pytest.raises(OSError, match="no space left"):
        results.write(path, content_of("tuesday", row(seconds=1.0)))
    assert path.with_suffix(".csv").read_bytes() == before


def content_of(time, *rows):
    runs = {time: {"time": time, "command": "c", "versions": {"torch": "2"}}}
    machine = {"cpu": "Some (R) CPU", "cores": 2}
    return {"machine": machine, "runs": runs, "rows": [{**r, "run": time} for r in rows]}


def test_rows_beside_a_stuck_baseline_are_not_recorded(tmp_path):
    """On a CPU; on a GPU a small set moves little, whatever else runs."""
    rows = [row(device=where, set=where, baseline_seconds=9.0) for where in ("cpu", "cuda")]
    measure.fill_ratios(rows)
    path = results.record(content_of("monday", row(), *rows), tmp_path)
    assert [r["set"] for r in results.read(path)["rows"]] == ["bert-base", "cuda"]


@pytest.mark.parametrize("share, said", [(0.24, 1), (0.26, 0)])
def test_a_baseline_is_stuck_below_a_quarter_of_the_yardstick(share, said):
    rows = [row(baseline_seconds=1.0 / share)]
    measure.fill_ratios(rows)
    assert results.disturbed(rows) == rows[:said]


def test_what_all_rows_do_alike_tells_which_are_disturbed():
    def training(rest):
        return row(phase="training", seconds=rest + 1.0, optimizer_seconds=1.0)

    rows = [training(9.0), training(19.0), training(17.0)]
    rows += [row(baseline_seconds=seconds) for seconds in (2.1, 1.0, 1.9)]
    rows += [row(phase="fresh", baseline_seconds=seconds) for seconds in (9.0, 1.0)]
    rows += [row(device="cuda", baseline_seconds=9.0), row(threads=1, baseline_seconds=3.5)]
    measure.fill_ratios(rows)
    assert results.disturbed(rows) == [rows[1], rows[3]]


def test_recording_replaces_equal_keys_and_keeps_the_others(tmp_path):
    first = content_of("monday", row(), row(dtype="bf16"), row(set="tiny", seconds=5.0))
    path = results.record(first, tmp_path)
    results.record(content_of("tuesday", row(seconds=1.0)), tmp_path)
    found = results.of_record(tmp_path)["some-r-cpu-2-cores"]
    assert path.stem == "some-r-cpu-2-cores" and path.with_suffix(".csv").exists()
    times = {(r["set"], r["dtype"]): (r["seconds"], r["run"]) for r in found["rows"]}
    assert times == {
        ("bert-base", "f32"): (1.0, "tuesday"),
        ("bert-base", "bf16"): (2.0, "monday"),
        ("tiny", "f32"): (5.0, "monday"),
    }
    everything = content_of("friday", row(), row(dtype="bf16"), row(set="tiny"))
    results.record(everything, tmp_path)
    assert results.of_record(tmp_path)["some-r-cpu-2-cores"]["runs"].keys() == {"friday"}


def test_the_terminal_says_once_what_all_rows_share():
    rows = [row(), row(algorithm="LAMB"), *(row(set="tiny", phase=p) for p in ("first", "fresh"))]
    measure.fill_ratios(rows)
    large, small = tables.terminal(rows)
    assert large.columns[0].header == "algorithm" and large.row_count == 2
    assert "set bert-base" in large.caption and small.row_count == 1
    assert [c.header for c in small.columns] == ["first", "fresh"]


# Pages and pictures


BLOCKS = {"README.md": 1, "speed.md": 4}


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_tables_of_a_page_are_those_of_the_results_of_record(page):
    text = page.read_text(encoding="utf-8")
    assert len(pages.BLOCK.findall(text)) == text.count("<!-- bench ") == BLOCKS[page.name]
    new = pages.written(text, results.of_record(), page.parent)
    assert new == text, "run `.venv/bin/python -m bench tables`"


def test_a_page_gets_a_table_for_every_machine():
    rows = [row(), row(algorithm="LAMB", threads=1), row(set="tiny", phase="fresh")]
    rows += [row(threads=1, seconds=3.0)]
    rows += [row(dtype="bf16", seconds=1.0), row(set="bert-large", seconds=9.0)]
    measure.fill_ratios(rows)
    found = {"one": content_of("2026-01-02 03:04:05 UTC", *rows)}
    text = "<!-- bench speed -->\nold\n<!-- end -->\n<!-- bench host -->\n<!-- end -->\n"
    new = pages.written(text, found)
    assert "old" not in new and "Some (R) CPU, 2 cores; torch 2; 2026-01-02:" in new
    assert new.index("bert-base, f32:") < new.index("bert-large, f32:"), "most rows come first"
    assert "| x fastest peer | x one thread | bf16 |" in new
    assert "| AdamW | fusedstep cpu | 2 s | 50% | 1.50 | 1.50 |  | 1.50 | 3.00 |" in new
    assert "LAMB" not in new, "threads are told apart in the results alone"
    assert "| AdamW | fusedstep cpu |  | 2 s (x 1.50) |  |  |" in new
    assert pages.written(new, found) == new


def test_a_table_names_the_commits_of_its_own_rows():
    """Rows of one machine come from many runs."""
    runs = {"1 UTC": "aaaaaaaaaaaa", "2 UTC": "bbbbbbbbbbbb with changes", "3 UTC": "cccccccccccc"}
    rows = [row(), row(algorithm="LAMB"), row(set="tiny", phase="fresh")]
    measure.fill_ratios(rows)
    content = content_of("", *rows)
    content["rows"] = [{**r, "run": run} for r, run in zip(rows, runs, strict=True)]
    content["runs"] = {
        run: {"time": run, "versions": {"torch": "2", "revision": revision}}
        for run, revision in runs.items()
    }
    text = "<!-- bench speed -->\n<!-- end -->\n<!-- bench host -->\n<!-- end -->\n"
    new = pages.written(text, {"one": content})
    assert "torch 2; commits aaaaaaa, bbbbbbb with changes; 1 UTC, 2 UTC:" in new
    assert "torch 2; commit ccccccc; 3 UTC:" in new


def test_rows_recorded_before_are_no_changes_of_a_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "ROOT", tmp_path)
    rows, code = tmp_path / "bench" / "results" / "one.json", tmp_path / "code.py"
    rows.parent.mkdir(parents=True)
    said = []
    for file in (None, rows, code):
        for path in (rows, code):
            path.write_text("new" if path == file else "old")
        if file is None:
            who = ("-c", "user.name=a", "-c", "user.email=a@b")
            for words in (("init", "-q"), ("add", "."), (*who, "commit", "-qm", "one")):
                subprocess.run(["git", *words], cwd=tmp_path, check=True)
        said.append(results.versions()["revision"].partition(" ")[2])
    assert said == ["", "", "with changes"]


def test_a_summary_has_a_column_for_every_backend_of_a_machine_gpus_first():
    ours = [row(), row(algorithm="LAMB", seconds=4.0), peer_row("other", algorithm="LAMB")]
    on_gpu = [row(backend=name, set="bert-large", seconds=0.5) for name in ("cuda", "triton")]
    for rows in (ours, on_gpu):
        measure.fill_ratios(rows)
    found = {"cpu": content_of("monday", *ours), "gpu": content_of("tuesday", *on_gpu)}
    found["gpu"]["machine"] = found["gpu"]["machine"] | {"gpu": "Fast"}
    new = pages.written("<!-- bench summary -->\n<!-- end -->\n", found)
    columns = "Fast, cuda, bert-large | Fast, triton, bert-large"
    assert f"| algorithm | {columns} | Some (R) CPU, 2 cores, cpu, bert-base |" in new
    assert "| AdamW | 6.00x | 6.00x | 1.50x |" in new
    assert "| LAMB |  |  | 0.75x; 0.5x other |" in new


def test_pictures_are_drawn_where_there_are_rows(tmp_path):
    rows = [row(), row(algorithm="LAMB"), peer_row("torch-fused")]
    for axis in AXES:
        phase = growth.PHASES[axis]
        rows += [
            row(set=s.name, phase=phase, tensors=s.tensors, parameters=s.parameters,
                groups=len(s.groups), seconds=1e-3 + 1e-6 * s.tensors)
            for s in parse(axis)
        ]  # fmt: skip
    measure.fill_ratios(rows)
    drawn = plots.draw(rows, tmp_path / "new")
    assert [path.name for path in drawn] == ["bandwidth.png", "host.png", "growth.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    assert plots.draw(rows[:3], tmp_path) == [tmp_path / "bandwidth.png"]
    assert plots.draw([], tmp_path) == []


@pytest.mark.parametrize("a, b", [(3.0, 0.5), (0.0, 2.0), (4.0, 0.0)])
def test_lines_are_fitted(a, b):
    x = [1.0, 10.0, 100.0, 1e4]
    assert growth.line(x, [a + b * value for value in x]) == pytest.approx((a, b), abs=1e-9)


def test_lines_neither_fall_nor_begin_below_zero():
    a, b = growth.line([1.0, 10.0, 100.0], [5.0, 4.0, 3.0])
    assert b == 0.0 and 3.0 < a < 5.0
    a, b = growth.line([1.0, 10.0, 100.0], [1.0, 20.0, 300.0])
    assert a == 0.0 and 1.0 < b < 3.0


def test_a_point_of_a_line_is_of_one_phase():
    few, many = (s.name for s in parse("tensors")[:2])
    rows = [row(set=many, tensors=30, phase="fresh"), row(set=few, tensors=10, phase="fresh")]
    rows += [row(set=few, tensors=10, phase="first"), row(set="tiny", tensors=400, phase="fresh")]
    assert growth.points(rows, "tensors") == {"AdamW cpu": [rows[1], rows[0]]}


def test_a_tenth_at_one_end_of_a_line_weighs_as_much_as_at_the_other():
    start, _ = growth.line([1.0, 10.0, 1e6], [1.0, 1.0, 1.1e6])
    assert 0.0 < start < 2.0


@pytest.mark.parametrize(
    "name, value",
    [
        ("threads", 1), ("phase", "first"), ("form", "released"), ("backend", "triton"),
        ("maker", "timm"), ("device", "cuda"),
    ],
)  # fmt: skip
def test_rows_that_differ_in_a_part_of_their_key_are_both_kept(name, value, tmp_path):
    results.record(content_of("monday", row()), tmp_path)
    path = results.record(content_of("tuesday", row(**{name: value})), tmp_path)
    assert len(results.read(path)["rows"]) == 2

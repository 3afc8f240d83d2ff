"""The documentation is true: its code runs, its links lead somewhere, its worked example works."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import fusedstep
import pytest
import torch

from tests.test_contract import LAYERS, RULES
from tests.training import arguments, every_class

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^(?P<ticks>`{3,})(?P<language>\w*)\n(?P<code>.*?)^(?P=ticks)$", re.M | re.S)
# A line that names the file of the block that follows: `path`:  |  `path`, after `line`:
NAMED = re.compile(
    r"^`(?P<path>[^`\n]+)`(?:, (?:after `(?P<anchor>[^`\n]+)`|(?P<end>at its end)))?:\n\n"
    + FENCE.pattern[1:],
    re.M | re.S,
)


def blocks(page: Path, language: str) -> list[str]:
    found = FENCE.finditer(page.read_text(encoding="utf-8"))
    return [block["code"] for block in found if block["language"] == language]


def recipes(page: Path) -> list:
    """Every block of a page, after its first one; named by the heading above it."""
    text = page.read_text(encoding="utf-8")
    first, found = blocks(page, "python")[0], []
    for section in re.split(r"^## ", text, flags=re.M)[1:]:
        title = section.splitlines()[0]
        for block in FENCE.finditer(section):
            if block["language"] == "python" and block["code"] != first:
                needs_gpu = ".cuda()" in block["code"] and not torch.cuda.is_available()
                marks = pytest.mark.skipif(needs_gpu, reason="torch finds no CUDA device")
                found.append(pytest.param(first + block["code"], id=title, marks=marks))
    return found


def headings(page: Path) -> set[str]:
    """Anchors of a page, as GitHub forms them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("code", blocks(ROOT / "README.md", "python"))
def test_code_of_the_readme_runs(code):
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("recipe", recipes(ROOT / "docs" / "using.md"))
def test_recipes_run(recipe, tmp_path, monkeypatch):
    """Each from top to bottom in an empty folder, after the page's first block."""
    monkeypatch.chdir(tmp_path)
    launched = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    for name, value in launched.items():  # as torchrun does
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", None)  # the step clips
    torch.manual_seed(0)
    exec(compile(recipe, "docs/using.md", "exec"), {"__name__": "recipe"})


def test_one_cell_by_hand_runs(capsys):
    exec(compile(blocks(ROOT / "CONTRIBUTING.md", "python")[-1], "CONTRIBUTING.md", "exec"), {})
    assert capsys.readouterr().out == "equal\n"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{target} does not exist"
        assert not anchor or anchor in headings(file), f"{target} has no such heading"


def test_tests_that_pages_name_are_there():
    named = {
        match
        for page in PAGES
        for match in re.findall(r"`(test_\w+\.py)::(test_\w+)`", page.read_text(encoding="utf-8"))
    }
    assert named
    for file, test in named:
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), (file, test)


@every_class
def test_every_class_has_a_page_and_a_row(cls):
    page = f"docs/algorithms/{cls.rule}.md"
    assert f"`fusedstep.{cls.__name__}`" in (ROOT / page).read_text(encoding="utf-8")
    rows = [
        line
        for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("|") and f"`{cls.__name__}`" in line.split("|")[1]
    ]
    assert len(rows) == 1 and f"]({page})" in rows[0]


@every_class
def test_a_page_names_every_state_and_argument(cls):
    optimizer = cls([torch.nn.Parameter(torch.ones(1))])
    group = dict(optimizer.param_groups[0])
    names = {"step", *cls.carried, *arguments(cls)}
    names |= optimizer.state_fills({**group, "amsgrad": True}).keys()
    text = (ROOT / f"docs/algorithms/{cls.rule}.md").read_text(encoding="utf-8")
    unnamed = {name for name in names if not re.search(rf"`{name}(=[^`]*)?`", text)}
    assert not unnamed, "the page does not have these between backticks"


DEFAULT = re.compile(r"^\|[^|]*\| `(?P<name>\w+)`[^|]*\| (?P<said>[^|]*) \|$", re.M)


@every_class
def test_a_page_names_every_default(cls):
    text = (ROOT / f"docs/algorithms/{cls.rule}.md").read_text(encoding="utf-8")
    table = text.partition("| symbol | argument | default |")[2].partition("\n\n")[0]
    defaults = arguments(cls)
    told = {}
    for row in DEFAULT.finditer(table):
        own = re.search(rf"`{cls.__name__}` (\S+?)(,|$)", row["said"])  # where classes differ
        said = own[1] if own else re.match(r"\(.*?\)|\S+", row["said"].strip("*"))[0]
        told[row["name"]] = ast.literal_eval(said)
    assert told == {name: defaults[name] for name in told}
    assert told.keys() == defaults.keys() - {"form"}


def bytes_moved(cls, **options) -> int:
    """Of a float32 parameter, in one step."""
    (p,) = params = [torch.nn.Parameter(torch.ones(1))]
    optimizer = cls(params, **options)
    p.grad = torch.ones(1)
    optimizer.step()
    return optimizer.bytes_moved()


@every_class
def test_readme_page_and_docstring_tell_the_bytes(cls):
    want = bytes_moved(cls)
    page = (ROOT / f"docs/algorithms/{cls.rule}.md").read_text(encoding="utf-8")
    assert re.search(r"(?:Moved per step: |^\| \| \d+ \| )(\d+)", page, re.M)[1] == str(want)
    if own := re.search(r"(\d+)(?: \(\d+\))?\s+bytes\s+per\s+float32", cls.__doc__):
        assert own[1] == str(want)
    else:
        assert re.search(r"otherwise\s+as\s+:class:", cls.__doc__)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| [^|]*`{cls.__name__}`.*", readme, re.M)[:1]
    told = row.split(" | ")[3]
    if told == "as `MAdam`":
        assert want == bytes_moved(fusedstep.MAdam)
        return
    assert re.match(r"\d+", told)[0] == str(want)
    amsgrad = re.search(r"amsgrad (\d+)", told)
    assert (amsgrad is not None) == ("amsgrad" in cls.constants)
    assert amsgrad is None or amsgrad[1] == str(bytes_moved(cls, amsgrad=True))


# The worked example of CONTRIBUTING.md


def add_named_blocks(page: Path, root: Path) -> None:
    """Do to the files under ``root`` what the page tells a contributor to do."""
    for block in NAMED.finditer(page.read_text(encoding="utf-8")):
        file = root / block["path"]
        code = block["code"]
        if block["anchor"]:
            anchor = block["anchor"] + "\n"
            old = file.read_text(encoding="utf-8")
            assert old.count(anchor) == 1, f"{block['path']} has no line {block['anchor']!r}"
            code = old.replace(anchor, anchor + code)
        elif block["end"]:
            code = file.read_text(encoding="utf-8") + "\n\n" + code
        else:
            assert not file.exists(), f"{block['path']} is there already"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(code, encoding="utf-8")


EXAMPLE = """
import fusedstep, torch
from fusedstep import testing
from fusedstep.backends import CudaBackend, available_backends, register
from tests import test_docs, test_paper

class Emulated(CudaBackend):
    name = "cuda-emulated"
    why_not = lambda self, device: None
    apply = lambda self, launch, work: self.enqueue(launch, work, stream=0)

assert fusedstep.__file__.startswith({root!r}), fusedstep.__file__
register(Emulated())
(case,) = [case for case in testing.CASES if case.id == {stem!r}]
for mode in testing.MODES:
    want = testing.run(case, mode, "ragged", "reference")
    backends = ["cpu", "cuda-emulated"]
    if mode.id in ("f64", "bf16-master") and "triton" in available_backends():
        backends.append("triton")
    for backend in backends:
        device = "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"
        lines = testing.differences(testing.run(case, mode, "ragged", backend, device), want)
        assert not lines, (backend, mode.id, lines)
        print(backend)
test_paper.test_{stem}()
for check in (
    test_docs.test_every_class_has_a_page_and_a_row,
    test_docs.test_a_page_names_every_state_and_argument,
    test_docs.test_a_page_names_every_default,
    test_docs.test_readme_page_and_docstring_tell_the_bytes,
):
    check(case.cls)
"""


def build_example(root: Path) -> None:
    """A copy of the sources with the worked example added and its kernels, alone, built."""
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info", "build")
    for folder in ("csrc", "cmake", "kernels", "python", "tests", "docs"):
        shutil.copytree(ROOT / folder, root / folder, ignore=ignored)
    for name in ("CMakeLists.txt", "README.md"):
        shutil.copy(ROOT / name, root)
    for built_elsewhere in RULES:
        (root / f"csrc/cpu/{built_elsewhere}.cpp").unlink()
        (root / f"kernels/{built_elsewhere}.cu").unlink()
    add_named_blocks(ROOT / "CONTRIBUTING.md", root)
    package = root / "python" / "fusedstep"
    (package / "kernels").symlink_to(root / "kernels")
    environment = {**os.environ, "PATH": tools}
    for command in (
        ["cmake", "-S", root, "-B", root / "build", "-G", "Ninja", "-DFUSEDSTEP_EMULATE_CUDA=ON",
         "-DBUILD_TESTING=OFF", "-DCMAKE_INTERPROCEDURAL_OPTIMIZATION=OFF",
         f"-DPython_EXECUTABLE={sys.executable}"],
        ["cmake", "--build", root / "build"],
        ["cmake", "--install", root / "build", "--prefix", package],
    ):  # fmt: skip
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_test_file_is_in_the_guide():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`(?:tests/)?(test_[\w*]+\.py)`", page)
    for path in (ROOT / "tests").glob("test_*.py"):
        assert any(map(path.match, named)), path.name


def test_the_worked_example_is_whole():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    names = {block["path"] for block in NAMED.finditer(page)}
    assert not {layer.format("lion") for layer in LAYERS} - names


def test_the_worked_example_gives_equal_bits(tmp_path):
    root = tmp_path / "copy"
    build_example(root)
    done = subprocess.run(
        [sys.executable, "-c", EXAMPLE.format(root=str(root), stem="lion")],
        cwd=root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "python"), str(root)])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert {"cpu", "cuda-emulated"} <= set(done.stdout.split())

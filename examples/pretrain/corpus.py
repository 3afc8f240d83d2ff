"""Text to learn from: the documentation that ships with CPython, or files of one's own."""

import ast
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from pydoc_data.topics import topics

from .options import Refusal

TEXT_SUFFIXES = (".md", ".rst", ".txt")
# Test packages are left out because distributions differ in whether they install them.
NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data"}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def python_documentation() -> list[str]:
    """The language's help topics, then every distinct docstring of the standard library."""
    root = Path(sysconfig.get_path("stdlib"))
    sources = [
        path
        for path in sorted(root.rglob("*.py"))
        if NOT_LIBRARY.isdisjoint(path.relative_to(root).parts)
    ]
    texts = [topics[name] for name in sorted(topics)]
    texts += (docstring for path in sources for docstring in docstrings(path))
    return list(dict.fromkeys(texts))


def docstrings(path: Path) -> Iterator[str]:
    """Docstrings of one source file, which is parsed and never imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as invalid escapes: the library's business, not ours
        try:
            tree = ast.parse(path.read_bytes())
        except SyntaxError:  # templates and deliberate errors
            return
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and (docstring := ast.get_docstring(node)):
            yield docstring


def read_text(paths: Iterable[Path]) -> list[str]:
    """One document per file; a folder stands for all its text files, in sorted order."""
    files = [file for path in paths for file in text_files(path)]
    documents = [read_file(file) for file in files]
    if not any(document.strip() for document in documents):
        names = " ".join(map(str, files[:3])) + (" ..." if len(files) > 3 else "")
        raise Refusal(f"--text {names}: no words in there; give a file that has text in it")
    return documents


def text_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.rglob("*") if file.suffix in TEXT_SUFFIXES)
    if not files:
        raise Refusal(
            f"--text {path}: the folder holds no {', '.join(TEXT_SUFFIXES)} file; "
            "name the files themselves if theirs is another suffix"
        )
    return files


def read_file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise Refusal(
            f"--text {path}: cannot be read ({error.strerror}); "
            "give a readable file, or leave --text out for the Python documentation"
        ) from error
    except UnicodeDecodeError as error:
        raise Refusal(
            f"--text {path}: byte {error.start} is not UTF-8; convert it first, "
            "for example with iconv -t utf-8"
        ) from error

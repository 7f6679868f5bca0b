"""The house rules that can be checked by reading the code, and that what the README shows is true."""

from __future__ import annotations

import ast
import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jaxrl_ml import config as config_module

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "jaxrl_ml"
MODULES = sorted(PACKAGE.rglob("*.py"))
COMMANDS = (
    "train",
    "evaluate",
    "generate",
    "samples",
    "convert",
    "report",
    "skills",
    "coldstart",
    "analyze",
    "observe",
    "doctor",
    "plan",
)

# The layers, from the bottom: a module imports from its own layer and from those below it.
LAYERS = (
    ("types", "config", "orbax_s3", "storage", "cli"),
    ("models", "tokenizer", "languages", "tasks"),
    ("advantages", "credit", "losses", "optimizer", "processes", "sharding", "metrics", "records"),
    ("analysis",),
    ("rewards", "data", "sampler", "compaction", "checkpoint", "pretrained"),
    ("update",),
    ("programs",),
    ("sft", "grpo", "evaluate", "report", "planning"),
    COMMANDS,
)
ONLY_IN = {
    "transformers": {"tokenizer.py", "models/hf.py"},
    "grain": {"data.py"},
    "orbax": {"checkpoint.py", "orbax_s3.py"},
    "fsspec": {"storage.py", "orbax_s3.py"},
    "etils": {"storage.py"},
    "math_verify": {"rewards/verifier_worker.py"},
    "sympy": {"rewards/closeness.py"},
    "py3langid": {"languages/detect.py"},
    "lingua": {"languages/detect.py"},
    "torch": set(),
    "pickle": set(),
}


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def imports(tree: ast.AST) -> set[str]:
    """The dotted names of every module imported, `from x import y` counted as x.y where x is the package or a part of it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            parts = node.module.split(".")
            found |= {f"{node.module}.{alias.name}" if parts == ["jaxrl_ml"] else node.module for alias in node.names}
    return found


def layer(dotted: str) -> int:
    top = dotted.removeprefix("jaxrl_ml.").split(".")[0]
    return next((i for i, names in enumerate(LAYERS) if top in names), -1)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_downward(path: Path) -> None:
    own = layer("jaxrl_ml." + name_of(path).removesuffix(".py").replace("/", "."))
    for dotted in imports(ast.parse(path.read_text())):
        top = dotted.split(".")[0]
        if top in ONLY_IN:
            assert name_of(path) in ONLY_IN[top], f"{name_of(path)} imports {dotted}"
        if top == "jaxrl_ml" and dotted != "jaxrl_ml":
            assert layer(dotted) >= 0, f"{dotted} has no layer"
            assert layer(dotted) <= own, f"{name_of(path)} imports {dotted} from a layer above"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_files_and_functions_are_short_and_safe(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert text.count("\n") <= 410
    if name_of(path) != "programs.py":
        assert not re.search(r"\bjax\.jit\b|\bpjit\b", text.split('"""', 2)[-1])
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno <= 80, node.name
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec")
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            assert isinstance(node.value, ast.Constant) and node.value.value is False
    assert ast.get_docstring(tree) or not text.strip(), "no module docstring"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_public_functions_have_docstrings(path: Path) -> None:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_") and node.name != "main":
            lines = node.end_lineno - node.lineno
            assert ast.get_docstring(node) or lines <= 6, f"{name_of(path)}:{node.lineno} {node.name}"


def test_every_config_field_has_a_reader() -> None:
    read = {
        node.attr
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Store)
    }
    for item in vars(config_module).values():
        if dataclasses.is_dataclass(item) and isinstance(item, type):
            fields = dataclasses.fields(item)
            assert len(fields) <= 40
            for field in fields:
                assert field.name in read, f"{item.__name__}.{field.name} is read nowhere"


def readme() -> str:
    return (ROOT / "README.md").read_text()


def test_readme_tree_is_the_real_one() -> None:
    block = re.search(r"```\n(jaxrl_ml/\n.*?)```", readme(), re.S).group(1)
    shown = {word for line in block.splitlines()[1:] for word in line.strip().split("  ")[0].split()}
    top = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"}
    folders = {f"{path.name}/" for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert shown == top | folders


def test_readme_commands_exist() -> None:
    text = readme()
    for module in set(re.findall(r"python -m (jaxrl_ml\.[a-z_]+)", text)):
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), module
    for path in set(re.findall(r"(?:configs|tools|tests)/[\w.]+", text)):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_quick_to_import(command: str) -> None:
    """`--help` loads neither jax nor what comes with it."""
    program = (
        "import runpy, sys; sys.argv = ['x', '--help']\n"
        f"try: runpy.run_module('jaxrl_ml.{command}', run_name='__main__')\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "heavy = {'jax', 'flax', 'transformers', 'orbax', 'grain', 'datasets', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_no_registry_is_named() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert "uv.lock" not in listed
    host = re.compile(r"https?://[^/\s]*(py" + r"pi|python" + r"hosted|npm" + r"js)")
    for name in listed:
        path = ROOT / name
        if path.suffix in (".py", ".toml", ".md", "") and path.is_file():
            assert not host.search(path.read_text(errors="ignore")), name

"""The package's own lint: who may import whom, and what `import rmsprop` costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rmsprop

SOURCE = Path(rmsprop.rule.__file__).parent
MODULES = sorted(str(f.relative_to(SOURCE)) for f in SOURCE.rglob("*.py"))
#: Layers from the bottom: a module may import from its own line (its package) and from the lines above it.
LAYERS = [
    ["rule", "rprop"],
    ["averaging", "dialects", "missed", "rowwise"],
    ["recipes", "scaling"],
    ["kernels"],
    ["numpy", "torch", "jax"],
    ["checkpoint", "explain", "objective", "minimize", "fit", "page", "training"],
    ["compare", "comparing"],
    ["notebooks"],
    ["cli", "__main__"],
]
FRONT_ENDS = ("numpy", "torch", "jax")


def imports(path, top_level_only=False):
    tree = ast.parse((SOURCE / path).read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer(module):
    return next(i for i, names in enumerate(LAYERS) if module in names)


@pytest.mark.parametrize("path", [m for m in MODULES if m != "__init__.py"])
def test_imports_point_one_way(path):
    own = Path(path).parts[0].removesuffix(".py")
    for name in imports(path):
        if not name.startswith("rmsprop."):
            continue
        other = name.split(".")[1]
        if other == own or not ((SOURCE / other).is_dir() or (SOURCE / f"{other}.py").exists()):
            continue  # its own package, or a name that __init__ exports
        assert layer(other) <= layer(own), f"{path} imports {name}"
        assert not (own in FRONT_ENDS and other in FRONT_ENDS), f"front ends never import each other: {path}, {name}"


def test_the_rule_needs_only_dataclasses_and_math():
    assert {name.split(".")[0] for name in imports("rule.py")} == {"dataclasses", "math"}


def test_importing_the_package_loads_numpy_and_nothing_else():
    script = """
import sys
import numpy
before = set(sys.modules)
import rmsprop
print(*sorted({name.split('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = {name for name in result.stdout.split() if "editable" not in name}
    assert loaded <= {"rmsprop", "numpy"}, loaded


def test_public_names():
    functions = ["compare", "dialect", "explain", "fit", "minimize", "recipes", "scaled_for_batch"]
    assert sorted(rmsprop.__all__) == ["Comparison", "DIALECTS", "Model", "RMSprop", "Rprop", "Rule", *functions]
    assert all(getattr(rmsprop, name) for name in rmsprop.__all__)

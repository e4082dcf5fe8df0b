"""The packages import downwards only, so that every file can be read after those below it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEVELS = (  # lowest first; a name stands for all its submodules that have no line of their own
    ("minisd.arguments",),
    ("minisd.config", "minisd.attention", "minisd.layers", "minisd.tokenizer", "minisd.images",
     "minisd.guard", "minisd.tiling", "minisd.noise", "minisd.options", "minisd.machine",
     "minisd.picturebook",
     "weights_convert.folders", "weights_convert.safe_pickle"),
    ("minisd.schedulers", "minisd.text_encoder", "minisd.unet", "minisd.autoencoder",
     "minisd.memory", "minisd.replay", "minisd.targets",
     "minisd.lora", "minisd.prompts", "minisd.textual_inversion", "weights_convert.names"),
    ("minisd.checkpoint", "weights_convert.diffusers_config"),
    ("weights_convert.tokenizer_source", "weights_convert.tensors"),
    ("minisd.training", "minisd.viz", "minisd.picturebook.data",
     "weights_convert.families",
     "weights_convert.diffusers"),
    ("minisd.picturebook.clip", "minisd.picturebook.judge", "minisd.picturebook.losses",
     "minisd.picturebook.recipe"),
    ("minisd.picturebook.marking",),
    ("minisd.call", "minisd.doors", "weights_convert.hub",
     "weights_convert.compvis"),
    ("weights_convert.single_file", "weights_convert.info", "weights_convert.verify",
     "weights_convert.adapters", "weights_convert.embeddings"),
    ("minisd.pipeline",),
    ("minisd.image_to_image",),
    ("minisd.inpaint",),
    ("minisd",),
    ("minisd.picturebook.exam", "minisd.finetune.pictures"),
    ("minisd.finetune",),
    ("minisd.__main__", "minisd.doctor", "minisd.teach", "weights_convert",
     "minisd.picturebook.stages", "minisd.picturebook.train", "minisd.picturebook.evaluate"),
    ("weights_convert.__main__",),
)  # fmt: skip
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
DOORS = {
    "minisd.pipeline": ("weights_convert",),
    "minisd.doors": ("weights_convert", "minisd.image_to_image", "minisd.inpaint"),
}
FILES = sorted(path for package in ("minisd", "weights_convert")
               for path in (ROOT / package).rglob("*.py"))  # fmt: skip


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path) for path in FILES}


def unit(module):
    """The line of LEVELS that a module falls under."""
    while module not in LEVEL:
        parent, _, _ = module.rpartition(".")
        assert parent not in ("", "minisd", "weights_convert"), f"{module} has no level"
        module = parent
    return module


def imports(path):
    """(module, whether at the top level) for everything of ours that a file imports."""
    tree = ast.parse(path.read_text(encoding="utf8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    lazy = {id(n) for f in ast.walk(tree) if isinstance(f, functions) for n in ast.walk(f)}
    checks = [n for n in ast.walk(tree) if isinstance(n, ast.If)]
    typing = {id(n) for c in checks if ast.unparse(c.test) == "TYPE_CHECKING" for n in ast.walk(c)}
    for node in ast.walk(tree):
        names = []
        if id(node) in typing:  # for annotations alone: never run
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in whole]
        for name in names:
            if name.split(".")[0] in ("minisd", "weights_convert"):
                yield name, id(node) not in lazy


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_module_imports_only_lower_ones(path):
    me = unit(module_name(path))
    for name, top in imports(path):
        if not top and name.startswith(DOORS.get(me, ())):
            continue  # a door: one lazy import inside a function
        other = unit(name)
        allowed = LEVEL[me] - 1 if top else LEVEL[me]  # its own level only inside a function
        assert other == me or LEVEL[other] <= allowed, f"{module_name(path)} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_only_viz_imports_pyplot(path):
    tree = ast.parse(path.read_text(encoding="utf8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import)
             for alias in node.names}  # fmt: skip
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    viz = module_name(path).startswith("minisd.viz")
    assert viz or not any(str(name).startswith("matplotlib") for name in names)


@pytest.mark.parametrize("package", ["matplotlib", "weights_convert", "diffusers"])
def test_minisd_is_imported_without(package):
    code = f"import sys, minisd.pipeline; sys.exit({package!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_hub_client_is_imported_only_for_a_download():
    code = "import sys, weights_convert; sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0

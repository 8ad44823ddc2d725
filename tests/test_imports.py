"""The house rules: who may import whom, how long files and functions may be, what stays lazy.

The table is design law: a new file under src/thinktalk fails here until it has a row.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "thinktalk"

GENERATE = "config options media model sampling weights"
# part -> (its files, the parts it may import besides itself, top-level modules it never imports)
TABLE = {
    "config": ("config", "", ""),
    "options": ("options", "", "torch"),
    "command": ("command", "", "torch"),
    "media": (
        "media.__init__ media.source media.decode media.encode media.mel media.image media.film"
        " media.video media.tokenizer media.chat media.prompt",
        "config",
        "torch",
    ),
    "model": (
        "model.__init__ model.layers model.cache model.tmrope model.audio model.vision"
        " model.decoder model.thinker model.talker model.omni model.speaker model.dit"
        " model.dit_layer model.flow model.bigvgan model.code2wav model.speech_tokenizer",
        "config",
        "os io pathlib time datetime json safetensors huggingface_hub asyncio threading",
    ),
    "sampling": ("sampling", "config options", ""),
    "eval.metrics": ("eval.metrics", "config", ""),
    "live.api": ("live.api", "config options", "torch"),
    "quantize": ("quantize", "config model", ""),
    "parallel": ("parallel", "config model", ""),
    "adapters": ("adapters", "config model", ""),
    "allocator": ("allocator", "", "torch"),
    "weights": ("weights", "allocator config model quantize adapters", ""),
    "playroom": (
        "playroom.__init__ playroom.words playroom.sentences playroom.speech playroom.talk"
        " playroom.scenes playroom.writing playroom.sounds playroom.films playroom.senses"
        " playroom.cases playroom.dataset",
        "config options media",
        "torch",
    ),
    "generate": ("generate", GENERATE, ""),
    "terminal": ("terminal playback", GENERATE + " generate", ""),
    "live": (
        "live.__init__ live.listen live.turn live.camera live.draft live.history live.memory"
        " live.prefixes live.replies live.conversation live.session live.sessions live.blocks"
        " live.scheduler live.passes live.engine live.speak live.store live.stream live.graphs"
        " live.steps live.voicing",
        GENERATE + " live.api parallel",
        "",
    ),
    "train": (
        "train.__init__ train.trainer train.feed train.journal train.board train.checkpoint"
        " train.schemas train.rows train.shards train.features train.lengths train.parts"
        " train.codes train.examples train.packing train.survey train.data train.omni"
        " train.losses train.spark train.stages train.job train.reading train.drift"
        " train.tuning train.voice"
        " train.command train.recipe train.speech train.streams train.vocabulary"
        " train.speaking train.replies train.preference train.candidates train.recordings"
        " train.discriminators train.enrol train.speech_stages train.speech_courses"
        " train.speech_command train.takes train.untrained train.spelling train.seeing train.ears"
        " train.lessons train.spots"
        " train.assemble train.conversations train.talker train.thinker train.align train.plot",
        GENERATE + " generate playroom parallel adapters eval.metrics",
        "",
    ),
    "eval": (
        "eval.__init__ eval.command eval.run eval.tasks eval.times eval.voices eval.live"
        " eval.recogniser eval.latency eval.harness",
        "command config options media playroom generate live.api eval.metrics",
        "",
    ),
    "export": ("export", "config model weights", ""),
    "bench": (
        "bench.__init__ bench.plan bench.run bench.calls bench.player bench.question"
        " bench.distances bench.random_model bench.watch bench.meter bench.turn_end bench.stages"
        " bench.pairs bench.peer bench.reference bench.tables",
        GENERATE + " command generate playroom parallel adapters quantize live live.api eval"
        " eval.metrics export",
        "",
    ),
    "serve": (
        "serve.__init__ serve.command serve.app serve.schema serve.limits serve.guard serve.fetch"
        " serve.sources serve.sessions serve.metrics serve.filters serve.reply serve.chat"
        " serve.speech serve.transcriptions serve.realtime serve.realtime_config"
        " serve.realtime_items serve.realtime_state serve.realtime_events serve.realtime_reply"
        " serve.realtime_commands serve.realtime_desk serve.realtime_responses serve.outbox"
        " serve.g711 serve.ice serve.webrtc serve.cluster",
        "command live.api options media config",
        "torch",
    ),
    "talk": ("talk", "media options config", "torch"),
}
PART_OF = {file: part for part, (files, _, _) in TABLE.items() for file in files.split()}
LAZY = {"__init__", "__main__"}  # may import everything, lazily, and are the only ones

FILES = sorted(SOURCE.rglob("*.py"))
MAX_FILE_LINES = {"src": 400, "tests": 400, "examples": 40}
MAX_FUNCTION_LINES = 60


def module_name(path: Path) -> str:
    """src/thinktalk/media/mel.py -> media.mel"""
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


def imported(tree: ast.AST) -> list[str]:
    """Every module that the code names in an import, submodules of ours by their own name."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute here"
            base = node.module or ""
            below = [f"{base}.{alias.name}" for alias in node.names]
            names += [name if part_of(name) else base for name in below]
    return names


def part_of(name: str) -> str | None:
    """thinktalk.media.mel -> media; None for what is not a file or folder of ours."""
    if not name.startswith("thinktalk."):
        return None
    name = name.removeprefix("thinktalk.")
    return PART_OF.get(name) or PART_OF.get(f"{name}.__init__")


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_import_table(path: Path) -> None:
    name = module_name(path)
    if name in LAZY:
        return
    assert name in PART_OF, f"{name} has no row in the import table: decide where it belongs"
    part = PART_OF[name]
    _, allowed, never = TABLE[part]
    for target in imported(ast.parse(path.read_text())):
        top = target.split(".")[0]
        assert top not in never.split(), f"{name} may not import {target}"
        if top == "thinktalk":
            assert part_of(target) in {part, *allowed.split()}, f"{name} may not import {target}"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_no_lazy_imports(path: Path) -> None:
    if module_name(path) in LAZY:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lazy = [n for n in ast.walk(node) if isinstance(n, ast.Import | ast.ImportFrom)]
            assert not lazy, f"{path}:{lazy[0].lineno}: imports stand at the top of a file"
        if isinstance(node, ast.Name | ast.Attribute):
            word = node.id if isinstance(node, ast.Name) else node.attr
            assert word not in {"import_module", "__import__"}, f"{path}:{node.lineno}: {word}"


@pytest.mark.parametrize("folder", MAX_FILE_LINES)
def test_lengths(folder: str) -> None:
    for path in sorted((ROOT / folder).rglob("*.py")):
        text = path.read_text()
        count = len(text.splitlines())
        assert count <= MAX_FILE_LINES[folder], f"{path} has {count} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                count = (node.end_lineno or node.lineno) - node.lineno + 1
                assert count <= MAX_FUNCTION_LINES, f"{path}: {node.name} has {count} lines"


@pytest.mark.parametrize(
    "arguments",
    [["-c", "import thinktalk"], ["-m", "thinktalk", "--help"]],
    ids=["import", "help"],
)
def test_torch_stays_outside(arguments: list[str]) -> None:
    # -X importtime writes one line per imported module to stderr
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, check=True
    )
    modules = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "thinktalk" in modules
    assert not {"torch", "numpy", "tokenizers", "av"} & modules
    if "--help" in arguments:
        assert "chat" in done.stdout


def test_public_names_are_not_hidden_by_files() -> None:
    """generate is a function and a file: importing the file must not replace the function."""
    code = "import thinktalk, thinktalk.generate; assert callable(thinktalk.generate)"
    subprocess.run([sys.executable, "-c", code], check=True)

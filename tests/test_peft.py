"""The reference reads what we train: additions in stock peft, checkpoints in stock transformers.

Run where both are installed: pytest -m reference tests/test_peft.py
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from data_samples import write_media
from safetensors.torch import load_file
from tiny import VOICE_IDS, build
from torch import Tensor, nn

import thinktalk
from thinktalk import adapters
from thinktalk.adapters import Lora
from thinktalk.model.omni import Omni
from thinktalk.train.tuning import train_on

pytestmark = pytest.mark.reference

LORA = Lora(r=4, alpha=8.0, targets=("thinker.model.layers.*_proj",))
IDS = torch.arange(12)[None] * 5


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    build(folder, "7b")
    return folder


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of sft with additions on a sound and a text."""
    folder = tmp_path_factory.mktemp("run")
    write_media(folder / "media")
    (folder / "rows.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}'
        '\n{"messages": [{"role": "user", "content": "<audio>?"}, {"role": "assistant", "content":'
        ' "a bell"}], "audios": ["media/bell.wav"]}\n'
    )
    changes = {"steps": 4, "learning_rate": 0.02, "warmup_steps": 1, "bfloat16": False}
    options: dict[str, Any] = {"model": base, "data": [folder / "rows.jsonl"]}
    assert train_on("sft", **options, out=folder / "run", changes=changes, lora=LORA)
    return folder / "run"


def peft() -> Any:
    import peft
    import reference  # noqa: F401 (first: it makes the rest importable)

    return peft


def theirs(folder: Path) -> Any:
    from reference import transformers

    omni = transformers.Qwen2_5OmniForConditionalGeneration
    return omni.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def their_logits(model: Any) -> Tensor:
    return model.thinker(input_ids=IDS).logits


@torch.no_grad()
def our_logits(omni: Omni) -> Tensor:
    positions = torch.arange(IDS.shape[1]).expand(3, 1, -1)
    return omni.thinker.logits(omni.thinker(omni.thinker.embed(IDS), positions=positions))


def test_stock_peft_loads_our_adapter(base: Path, run: Path) -> None:
    model = theirs(base)
    before = their_logits(model)
    tuned = peft().PeftModel.from_pretrained(model, run / "adapter")
    ours = our_logits(thinktalk.load(run / "model").omni)
    assert (their_logits(tuned.base_model.model) - before).abs().max() > 0.05
    assert torch.allclose(their_logits(tuned.base_model.model), ours, atol=1e-3)
    merged = tuned.merge_and_unload()
    assert torch.allclose(their_logits(merged), ours, atol=1e-3)


@pytest.mark.parametrize("part", ["whole", "thinker"])
def test_we_load_an_adapter_of_stock_peft(base: Path, tmp_path: Path, part: str) -> None:
    """Of the whole model, or of the Thinker alone as most trainers have it."""
    model = theirs(base)
    tuned_part = model if part == "whole" else model.thinker
    config = peft().LoraConfig(
        r=3, lora_alpha=5, target_modules=r".*model\.layers\.\d+\.mlp\.\w+_proj"
    )
    if part == "whole":
        config.target_modules = r"thinker\.model\.layers\.\d+\.mlp\.\w+_proj"
    tuned = peft().get_peft_model(tuned_part, config)
    torch.manual_seed(1)
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.05)
    tuned.save_pretrained(tmp_path)
    omni = thinktalk.load(base).omni
    adapters.load(omni, tmp_path)
    assert torch.allclose(our_logits(omni), their_logits(model), atol=1e-3)


def test_stock_transformers_loads_the_checkpoint(base: Path, run: Path) -> None:
    model, report = loaded_with_report(run / "model")
    assert not report["missing_keys"] and not report["mismatched_keys"]
    assert list(theirs(run / "model").speaker_map) == list(VOICE_IDS)
    assert torch.allclose(
        their_logits(model), our_logits(thinktalk.load(run / "model").omni), atol=1e-3
    )
    before, after = (load_file(folder / "model.safetensors") for folder in (base, run / "model"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("thinker.model.layers.") for name in changed)


def loaded_with_report(folder: Path) -> tuple[Any, dict[str, Any]]:
    from reference import transformers

    omni = transformers.Qwen2_5OmniForConditionalGeneration
    # Omni's own from_pretrained cannot return the report, its base class can
    base = transformers.PreTrainedModel.from_pretrained.__func__
    model, report = base(omni, folder, output_loading_info=True, dtype=torch.float32)
    return model.eval(), report

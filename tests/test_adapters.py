"""Additions compute what the formula says, change nothing else, and travel to peft and back."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_omni
from torch import Tensor, nn

from thinktalk import adapters
from thinktalk.adapters import Lora
from thinktalk.model.omni import Omni

LORA = Lora(r=3, alpha=6.0, targets=("thinker.model.layers.*_proj", "thinker.visual.blocks.0.*.q"))
LAYER = "thinker.model.layers.0.self_attn.q_proj"


@pytest.fixture
def omni() -> Omni:
    return tiny_omni("7b")


def disturbed(omni: Omni) -> nn.Module:
    """With additions that do something."""
    torch.manual_seed(5)
    added = adapters.add(omni, LORA)
    for weight in added.parameters():
        nn.init.normal_(weight, std=0.05)
    return added


@torch.no_grad()
def logits(omni: Omni) -> Tensor:
    ids = torch.arange(9)[None] * 7
    patches = torch.linspace(-1, 1, 16 * 1176).view(16, 1176)
    seen = omni.thinker.encode_patches([(patches, torch.tensor([1, 4, 4]))])
    assert seen is not None
    rows = torch.cat((omni.thinker.embed(ids), seen[None]), dim=1)
    positions = torch.arange(rows.shape[1]).expand(3, 1, -1)
    return omni.thinker.logits(omni.thinker(rows, positions=positions))


def test_at_first_nothing_changes(omni: Omni) -> None:
    before = logits(omni)
    names = set(omni.state_dict())
    added = adapters.add(omni, LORA)
    assert torch.equal(logits(omni), before)
    assert names < set(omni.state_dict())  # the others keep their names
    learning = {name for name, weight in omni.named_parameters() if weight.requires_grad}
    assert learning == set(added.state_dict()) == set(omni.state_dict()) - names
    assert len(learning) == 2 * (3 * 7 + 1)


def test_the_formula(omni: Omni) -> None:
    weight, bias = (omni.get_parameter(f"{LAYER}.{n}").detach().clone() for n in ("weight", "bias"))
    added = disturbed(omni).get_submodule(LAYER)
    x = torch.randn(4, 64)
    down, up = added.get_parameter("lora_A.weight"), added.get_parameter("lora_B.weight")
    expected = x @ weight.T + bias + 6 / 3 * (x @ down.T) @ up.T
    assert torch.allclose(omni.get_submodule(LAYER)(x), expected, atol=1e-5)


def test_merging_gives_equal_logits(omni: Omni) -> None:
    names = set(omni.state_dict())
    before = logits(omni)
    disturbed(omni)
    changed = logits(omni)
    assert (changed - before).abs().max() > 0.1
    adapters.merge(omni)
    assert set(omni.state_dict()) == names
    assert (logits(omni) - changed).abs().max() < 1e-4
    assert isinstance(omni.get_submodule(LAYER), nn.Linear)


def test_dropout_acts_in_training_alone(omni: Omni) -> None:
    added = adapters.add(omni, Lora(r=2, dropout=0.5, targets=(LAYER,)))
    for weight in added.parameters():
        nn.init.ones_(weight)
    layer, x = omni.get_submodule(LAYER), torch.randn(5, 64)
    added.train()
    assert not torch.equal(layer(x), layer(x))
    added.eval()
    assert torch.equal(layer(x), layer(x))


def test_in_bfloat16_additions_stay_float32(omni: Omni) -> None:
    omni.bfloat16()
    added = adapters.add(omni, Lora(r=2, targets=(LAYER,)))
    assert {weight.dtype for weight in added.parameters()} == {torch.float32}
    assert omni.get_submodule(LAYER)(torch.randn(2, 64).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("whole", [True, False])
def test_a_folder_travels_back(omni: Omni, tmp_path: Path, whole: bool) -> None:
    """As we write it, and as trainers of the Thinker alone write it."""
    added = disturbed(omni)
    weights = added.state_dict()
    adapters.save(weights, LORA, tmp_path, base="tiny")
    if not whole:
        tensors = load_file(tmp_path / adapters.WEIGHTS)
        named = {name.replace("model.thinker.", "model.", 1): t for name, t in tensors.items()}
        save_file(named, tmp_path / adapters.WEIGHTS)
    other = tiny_omni("7b")
    loaded = adapters.load(other, tmp_path)
    assert torch.equal(logits(other), logits(omni))
    assert loaded.state_dict().keys() == weights.keys()


def test_scales_of_other_makes(omni: Omni, tmp_path: Path) -> None:
    """Rank-stabilised scale, and a layer with an alpha of its own."""
    adapters.save(disturbed(omni).state_dict(), LORA, tmp_path, base="tiny")
    description = json.loads((tmp_path / adapters.CONFIG).read_text())
    description |= {"use_rslora": True, "alpha_pattern": {"self_attn.q_proj": 9}}
    (tmp_path / adapters.CONFIG).write_text(json.dumps(description))
    other = tiny_omni("7b")
    adapters.load(other, tmp_path)
    scale = {name: part.scale for name, part in other.named_modules() if hasattr(part, "scale")}
    assert scale[LAYER] == pytest.approx(9 / 3**0.5)
    assert scale["thinker.model.layers.0.mlp.up_proj"] == pytest.approx(6 / 3**0.5)


def spoil(folder: Path, **changes: object) -> None:
    path = folder / adapters.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def reshape(folder: Path) -> None:
    tensors = load_file(folder / adapters.WEIGHTS)
    name = f"{adapters.PREFIX}{LAYER}.lora_A.weight"
    save_file(tensors | {name: tensors[name][:, :-1].contiguous()}, folder / adapters.WEIGHTS)


def rename(folder: Path) -> None:
    tensors = load_file(folder / adapters.WEIGHTS)
    save_file({n.replace("layers.0", "layers.9"): t for n, t in tensors.items()},
              folder / adapters.WEIGHTS)  # fmt: skip


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (lambda f: spoil(f, peft_type="LOHA"), "is a LOHA adapter"),
        (lambda f: spoil(f, use_dora=True), "use_dora=True, which is not supported"),
        (lambda f: spoil(f, modules_to_save=["lm_head"]), "modules_to_save"),
        (reshape, r"q_proj has additions of the shapes \(3, 63\) and \(64, 3\)"),
        (rename, "holds .*layers.9.* no such layer"),
        (lambda f: (f / adapters.WEIGHTS).write_bytes(b"x"), "cannot be read"),
        (lambda f: (f / adapters.CONFIG).unlink(), "is it an adapter"),
    ],
)
def test_what_does_not_fit_is_refused(
    omni: Omni, tmp_path: Path, harm: Callable[[Path], object], complaint: str
) -> None:
    adapters.save(disturbed(omni).state_dict(), LORA, tmp_path, base="tiny")
    harm(tmp_path)
    with pytest.raises(ValueError, match=complaint):
        adapters.load(tiny_omni("7b"), tmp_path)


def test_impossible_settings_are_refused(omni: Omni) -> None:
    with pytest.raises(ValueError, match="rank 0"):
        Lora(r=0)
    with pytest.raises(ValueError, match="no linear layer is called 'nothing'"):
        adapters.add(omni, Lora(targets=("nothing",)))

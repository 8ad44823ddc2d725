"""Two real processes that share the weights give one process's numbers, for every network."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import on_ranks
from tiny import tiny_config
from torch import Tensor, nn

from thinktalk import parallel
from thinktalk.config import SpeechTokenizerConfig
from thinktalk.model.bigvgan import BigVGAN
from thinktalk.model.dit import DiT
from thinktalk.model.speech_tokenizer import SpeechTokenizer
from thinktalk.model.talker import Talker
from thinktalk.model.thinker import Thinker
from thinktalk.train import spark
from thinktalk.train.checkpoint import best_weights
from thinktalk.train.journal import curve
from thinktalk.train.omni import OmniTask
from thinktalk.train.reading import embedded
from thinktalk.train.speech import DiTTask, TokenizerTask, VocoderTask
from thinktalk.train.streams import Stream
from thinktalk.train.trainer import Stage, Task, train

CONFIG = tiny_config("7b")
THINKER = CONFIG.thinker_config
STAGE = Stage(
    "tiny", steps=3, learning_rate=3e-3, batch_size=2, parts=2, warmup_steps=2, bfloat16=False
)
KINDS = ("audio", "image", "audio", "video", "audio", "text")


class Media:
    """A loader whose even packs hold sound alone, the odd ones pictures, films or nothing."""

    def __init__(self) -> None:
        ranks = parallel.join()
        self.rank, self.world = ranks.rank, ranks.world

    def __iter__(self) -> Iterator[dict[str, Any]]:
        number = self.rank
        while True:
            yield conversation(KINDS[number % len(KINDS)], np.random.default_rng(number))
            number += self.world

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None: ...


def conversation(kind: str, rng: np.random.Generator) -> dict[str, Any]:
    """One row with one medium, as packing.collate makes it."""

    def normal(*shape: int) -> Tensor:
        return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))

    patch_dim = THINKER.vision_config.patch_dim
    media: dict[str, tuple[int, int, dict[str, Any]]] = {
        "audio": (THINKER.audio_token_index, 10, {"mels": [normal(128, 40)]}),
        "image": (
            THINKER.image_token_index,
            4,
            {"image_patches": [normal(16, patch_dim)], "image_grids": torch.tensor([[1, 4, 4]])},
        ),
        "video": (
            THINKER.video_token_index,
            8,
            {"video_patches": [normal(32, patch_dim)], "video_grids": torch.tensor([[2, 4, 4]])},
        ),
        "text": (0, 0, {}),
    }
    token, count, tensors = media[kind]
    before, after = rng.integers(256, size=(2, 6))
    ids = torch.tensor([[*before, *[token] * count, *after]])
    labels = torch.full_like(ids, -100)
    learned = 3 + int(rng.integers(3))
    labels[0, -learned - 1 : -1] = ids[0, -learned:]
    positions = torch.arange(ids.shape[1]).expand(3, 1, -1)
    return tensors | {
        "ids": ids, "labels": labels, "positions": positions, "segments": torch.zeros_like(ids)
    }  # fmt: skip


class Senses(OmniTask):
    """The tiny Thinker, its audio encoder frozen or not."""

    def __init__(self, *, deaf: bool = False):
        torch.manual_seed(0)
        super().__init__(
            Thinker(THINKER), held_out=[conversation("audio", np.random.default_rng())]
        )
        self.held_out = [conversation(kind, np.random.default_rng(9)) for kind in KINDS]
        if deaf:
            self.thinker.audio_tower.requires_grad_(False)


class Voice(Task):
    """The tiny Talker on top of a frozen Thinker."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.thinker = Thinker(THINKER).requires_grad_(False)
        self.talker = Talker(CONFIG.talker_config)
        self.module, self.companions = nn.ModuleDict({"talker": self.talker}), (self.thinker,)

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        ids, positions = batch["ids"], batch["positions"]
        with torch.no_grad():
            hidden = self.thinker(embedded(self.thinker, batch), positions=positions)
        tracks = hidden + self.talker.embed_codec(ids)
        logits = self.talker.logits(self.talker(tracks, positions=positions))
        codec = nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
        return codec, {"codec": codec}


def streams() -> list[Stream]:
    rng = np.random.default_rng(3)
    mel = rng.standard_normal((1500, 80)).astype(np.float16)
    wave = rng.integers(-9000, 9000, size=240 * 1500).astype(np.int16)
    return [Stream(voice, wave, mel, []) for voice in ("Chelsie", "Ethan")]


def tokenizer_task() -> TokenizerTask:
    torch.manual_seed(0)
    return TokenizerTask(SpeechTokenizer(SpeechTokenizerConfig()), streams())


def dit_task() -> DiTTask:
    torch.manual_seed(0)
    config = spark.spark_config().token2wav_config.dit_config
    config = replace(config, hidden_size=60, num_attention_heads=2, head_dim=30, ff_mult=1)
    ids = [np.random.default_rng(1).integers(config.num_embeds, size=750) for _ in range(2)]
    task = DiTTask(DiT(config), streams(), ids)
    for name, weight in task.module.named_parameters():
        if "norm" in name:  # gates at zero would hide what is behind them
            nn.init.normal_(weight, std=0.1)
    return task


def vocoder_task() -> VocoderTask:
    torch.manual_seed(0)
    config = spark.spark_config().token2wav_config.bigvgan_config
    small = {"resblock_kernel_sizes": (3,), "resblock_dilation_sizes": ((1, 3, 5),)}
    return VocoderTask(BigVGAN(replace(config, upsample_initial_channel=32, **small)), streams())


# name: stage, task, loader
RUNS: dict[str, tuple[Stage, Callable[[], Task], Callable[[], Media] | None]] = {
    "senses": (replace(STAGE, ema=0.8), Senses, Media),
    "deaf": (STAGE, lambda: Senses(deaf=True), Media),
    "cheap": (replace(STAGE, recompute=True, compile="eager"), Senses, Media),
    "bfloat16": (replace(STAGE, bfloat16=True), Senses, Media),
    "voice": (STAGE, Voice, Media),
    "tokenizer": (STAGE, tokenizer_task, None),
    "dit": (replace(STAGE, recompute=True, ema=0.8), dit_task, None),
    "vocoder": (replace(STAGE, steps=2), vocoder_task, None),
}
EXACT = [name for name in RUNS if name != "bfloat16"]


def run_all(folder: Path) -> None:
    for name, (stage, make_task, make_loader) in RUNS.items():
        loader = make_loader() if make_loader else None
        assert train(stage, make_task(), folder / name, loader=loader, log_every=1)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    run_all(folder)
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    on_ranks(run_all, folder)
    return folder


@pytest.mark.parametrize("name", EXACT)
def test_two_ranks_give_the_numbers_of_one(one: Path, two: Path, name: str) -> None:
    ours, theirs = curve(two / name), curve(one / name)
    assert [row.keys() for row in ours] == [row.keys() for row in theirs]
    assert len(ours) == RUNS[name][0].steps + any("test" in key for key in ours[-1])
    for row, expected in zip(ours, theirs, strict=True):
        for figure in row.keys() - {"seconds"}:
            assert row[figure] == pytest.approx(expected[figure], rel=1e-4, abs=1e-5), figure
    losses = [row["loss"] for row in theirs if "loss" in row]
    assert np.ptp(losses) > 1e-3  # they do change


def test_two_ranks_in_bfloat16_are_near(one: Path, two: Path) -> None:
    for row, expected in zip(curve(two / "bfloat16"), curve(one / "bfloat16"), strict=True):
        for figure in {"loss", "test_text"} & row.keys():
            assert row[figure] == pytest.approx(expected[figure], rel=0.01)


def test_recomputing_and_compiling_change_nothing(one: Path) -> None:
    plain, cheap = (curve(one / name) for name in ("senses", "cheap"))
    for row, expected in zip(cheap[:-1], plain[:-1], strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-6)


@pytest.mark.parametrize("folder", ["one", "two"])
def test_frozen_parts_stay_bit_equal(folder: str, request: pytest.FixtureRequest) -> None:
    after = best_weights(request.getfixturevalue(folder) / "deaf")
    before = Senses(deaf=True).module.state_dict()
    ear = "thinker.audio_tower."
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(name.startswith(ear) for name in changed)
    assert any(name.startswith("thinker.visual.") for name in changed)


def test_every_encoder_runs_whatever_the_batch_holds() -> None:
    thinker = Thinker(THINKER)
    calls: list[str] = []
    for name, encoder in (("ear", thinker.audio_tower), ("eye", thinker.visual)):
        encoder.register_forward_hook(lambda *_, name=name: calls.append(name))
    for kind in KINDS:
        thinker.zero_grad()
        batch = conversation(kind, np.random.default_rng(0))
        rows = embedded(thinker, batch)
        rows.sum().backward()
        assert calls == ["ear", "eye"]
        calls.clear()
        for name, encoder in (("audio", thinker.audio_tower), ("image", thinker.visual)):
            gradients = [p.grad for p in encoder.parameters() if p.grad is not None]
            assert gradients  # they take part in the reduction on every rank
            used = kind == name or (kind, name) == ("video", "image")
            assert any(g.any() for g in gradients) == used
        # the tokens of the medium are what the encoder gives, and text is untouched
        text = batch["ids"] < 256
        assert torch.equal(rows[text], thinker.embed(batch["ids"][text]))


def test_recomputing_keeps_less() -> None:
    def kept_bytes(*, cheap: bool) -> int:
        task = Senses()
        if cheap:
            parallel.recompute(task.module)
        kept: list[int] = []

        def note(tensor: Tensor) -> Tensor:
            kept.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            task.loss(conversation("audio", np.random.default_rng(0)))
        return sum(kept)

    assert kept_bytes(cheap=True) < 0.6 * kept_bytes(cheap=False)


def turns(folder: Path) -> list[str]:
    """Ranks 0 and 1 on one machine, rank 2 on another: who makes a file, who finds it."""
    rank = int(os.environ["RANK"])
    os.environ["LOCAL_RANK"] = str(rank % 2)
    ranks = parallel.join()
    path = folder / f"machine{rank // 2}"

    def make() -> str:
        found = sorted(p.name for p in folder.iterdir())
        path.touch()
        return " ".join(found)

    assert ranks.as_first(rank) == 0
    assert ranks.gathered(rank) == [0, 1, 2]
    assert ranks.total(rank + 0.5) == 4.5
    linear = nn.Linear(2, 2)
    nn.init.constant_(linear.weight, rank)
    ranks.same_start(linear)
    assert not linear.weight.any()
    return [ranks.in_turn(make)]


def test_ranks_work_in_turn(tmp_path: Path) -> None:
    assert on_ranks(turns, tmp_path, world=3) == [[""], ["machine0 machine1"], ["machine0"]]


def test_alone_nothing_is_sent() -> None:
    ranks = parallel.join()
    assert ranks == parallel.Ranks(0, 1, 0, torch.device("cpu"), None)
    assert ranks.as_first("x") == ranks.gathered("x")[0] == ranks.in_turn(lambda: "x") == "x"
    assert ranks.total(2.0) == 2
    module = Senses().module
    before = list(module.parameters())
    parallel.shard(parallel.Root([module]), ranks)
    assert all(a is b for a, b in zip(before, module.parameters(), strict=True))

"""Tasks of the speech side: speech tokenizer, DiT and vocoder, from crops of voice streams."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from thinktalk.media.mel import VOICE_HOP_SAMPLES
from thinktalk.model.bigvgan import BigVGAN
from thinktalk.model.dit import DiT
from thinktalk.model.speech_tokenizer import SpeechTokenizer
from thinktalk.train.discriminators import (
    Judges,
    feature_loss,
    fooling_loss,
    judging_loss,
    unmoved,
)
from thinktalk.train.losses import flow_matching_pair, spectral_loss, voice_mel
from thinktalk.train.spelling import Reader, clips_to_read, neighbours, spelled
from thinktalk.train.streams import Stream
from thinktalk.train.trainer import Task, to_device
from thinktalk.train.voice import condition

NUM_TEST_CROPS = 16
VOICE_FRAMES = 60_000  # 10 minutes of a stream tell what the voice sounds like


def crop_starts(
    rng: np.random.Generator, streams: list[Stream], *, frames: int, grid: int, count: int
) -> list[tuple[int, int]]:
    """(stream, first frame) of `count` crops, evenly over the voices, starting on the grid."""
    chosen = rng.integers(len(streams), size=count)
    return [
        (int(s), int(rng.integers((streams[s].train_frames - frames) // grid)) * grid)
        for s in chosen
    ]


def held_out_starts(streams: list[Stream], *, frames: int, grid: int) -> list[tuple[int, int]]:
    """A fixed set of crops from the ends of the streams, which training never touches."""
    starts = []
    every = -(-len(streams) // NUM_TEST_CROPS)
    for number, stream in list(enumerate(streams))[::every]:
        last = len(stream.mel) - frames
        places = np.linspace(
            min(stream.train_frames + grid, last), last, max(1, NUM_TEST_CROPS // len(streams))
        )
        starts += [(number, int(place) // grid * grid) for place in places]
    return starts


def conditions(streams: list[Stream]) -> Tensor:
    """What tells the voices apart: [voices, cond_dim]."""
    mels = (np.asarray(stream.mel[:VOICE_FRAMES], np.float32) for stream in streams)
    return torch.from_numpy(np.stack([condition(mel) for mel in mels]))


class TokenizerTask(Task):
    """Mel -> codes -> mel: L1 on the mel and on its changes from frame to frame.

    reads: whole clips instead of crops, and a second loss, CTC on the letters of what is said, read
    from the codes by a head that exists for training only: it keeps in the codes what tells words
    apart. conds: what the decoder is told of every voice.
    """

    FRAMES = 192
    READING_WEIGHT = 0.3

    def __init__(
        self,
        tokenizer: SpeechTokenizer,
        streams: list[Stream],
        *,
        conds: Tensor | None = None,
        reads: bool = False,
    ):
        self.tokenizer, self.streams = tokenizer, streams
        self.module: nn.Module = tokenizer
        self.conds = conditions(streams) if conds is None else conds
        self.reader: Reader | None = None
        if reads:
            self.reader = Reader(tokenizer.config)
            self.module = nn.ModuleDict({"tokenizer": tokenizer, "reader": self.reader})
            self.clips, self.test_clips = clips_to_read(streams)

    def batch(self, rng: np.random.Generator, size: int) -> dict[str, Any]:
        if self.reader is None:
            starts = crop_starts(rng, self.streams, frames=self.FRAMES, grid=1, count=size)
            return self._crops(starts)
        return self._whole(neighbours(rng, self.clips, size))

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        mel, there = batch["mel"], batch["there"]
        quantised = self.tokenizer.quantise(self.tokenizer.latents(mel))
        decoded = self.tokenizer.decode(quantised, batch["cond"]).float()
        both = there[:, 1:] & there[:, :-1]
        error = (decoded - mel).abs()[there].mean()
        change = (decoded.diff(dim=1) - mel.diff(dim=1)).abs()[both].mean()
        loss, figures = error + 0.5 * change, {"mel": error, "change": change}
        if self.reader is None:
            return loss, figures
        letters = self.reader.loss(quantised, batch)
        return loss + self.READING_WEIGHT * letters, figures | {"letters": letters}

    def evaluate(self) -> dict[str, float]:
        crops = self._crops(held_out_starts(self.streams, frames=self.FRAMES, grid=1))
        device = next(self.module.parameters()).device
        batch = to_device(crops, device)
        mel, cond = batch["mel"], batch["cond"]
        quantised = self.tokenizer.quantise(self.tokenizer.latents(mel))
        used = self.tokenizer.ids(quantised).unique().numel()
        error = (self.tokenizer.decode(quantised, cond) - mel).abs().mean()
        figures = {"mel": error.item(), "codes_used": float(used)}
        if self.reader is not None and self.test_clips:
            batch = to_device(self._whole(self.test_clips[:NUM_TEST_CROPS]), device)
            quantised = self.tokenizer.quantise(self.tokenizer.latents(batch["mel"]))
            figures["letters"] = self.reader.loss(quantised, batch).item()
        return figures

    def _crops(self, starts: list[tuple[int, int]]) -> dict[str, Any]:
        mel = np.stack([self.streams[s].mel[f : f + self.FRAMES] for s, f in starts])
        return {
            "mel": torch.from_numpy(mel.astype(np.float32)),
            "there": torch.ones(mel.shape[:2], dtype=torch.bool),
            "cond": self.conds[[s for s, _ in starts]],
        }

    def _whole(self, clips: list[tuple[int, dict[str, Any]]]) -> dict[str, Any]:
        """Whole clips, padded behind, with what they say."""
        frames = [row["frames"] for _, row in clips]
        mel = np.zeros((len(clips), max(frames), self.tokenizer.config.mel_dim), np.float32)
        there = np.arange(max(frames)) < np.array(frames)[:, None]
        for number, (s, row) in enumerate(clips):
            first, count = row["frame"], row["frames"]
            mel[number, :count] = self.streams[s].mel[first : first + count]
            mel[number, count:] = mel[number, count - 1]
        letters = [spelled(row["text"]) for _, row in clips]
        per_code = self.tokenizer.config.frames_per_code
        return {
            "mel": torch.from_numpy(mel),
            "there": torch.from_numpy(there),
            "cond": self.conds[[s for s, _ in clips]],
            "letters": torch.tensor([letter for text in letters for letter in text]),
            "num_letters": torch.tensor([len(text) for text in letters]),
            "num_codes": torch.tensor([count // per_code for count in frames]),
        }


class DiTTask(Task):
    """Codes and voice -> mel by flow matching, with guidance dropout.

    fresh: of an untrained network the output layer and the gates start at zero, the output's bias
    at the mean mel, so that the first velocity already points at average speech. conds: what tells
    the voices apart; it must be what the voices of the checkpoint will have.
    """

    FRAMES, REF_FRAMES = 192, 300
    DROPPED_SHARE = 0.1
    # of the mean squares of all queries and keys: left alone, attention scores grow until a step
    # at a rate that was harmless before makes training diverge
    CALM = 2e-3

    module: DiT

    def __init__(
        self,
        module: DiT,
        streams: list[Stream],
        ids: list[NDArray[np.int64]],
        *,
        conds: Tensor | None = None,
        fresh: bool = True,
    ):
        self.module, self.streams, self.ids = module, streams, ids
        self.conds = conditions(streams) if conds is None else conds
        self.squares: list[Tensor] = []  # of queries and keys, in the forward pass at hand
        for layer in module.transformer_blocks:
            for linear in (layer.attn.to_q, layer.attn.to_k):  # pyright: ignore
                linear.register_forward_hook(self._note_square)  # pyright: ignore
        if fresh:
            self._start()

    def _start(self) -> None:
        module, streams = self.module, self.streams
        for name, parameter in module.named_parameters():
            if name.endswith("proj_out.weight") or "norm" in name:  # attn_norm, norm_out
                nn.init.zeros_(parameter)
        mean = np.mean([s.mel[:VOICE_FRAMES].mean(0, dtype=np.float32) for s in streams], axis=0)
        with torch.no_grad():
            module.proj_out.bias.copy_(torch.from_numpy(mean))

    def batch(self, rng: np.random.Generator, size: int) -> dict[str, Any]:
        grid = self.module.config.block_size
        starts = crop_starts(rng, self.streams, frames=self.FRAMES, grid=grid, count=size)
        return self._crops(starts, rng)

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        noisy, target = flow_matching_pair(batch["mel"], batch["noise"], batch["times"])
        self.squares.clear()
        velocity = self.module(
            noisy,
            times=batch["times"],
            codes=batch["ids"],
            cond=batch["cond"],
            ref_mel=batch["ref_mel"],
            drop=batch["drop"],
        ).float()
        error = (velocity - target).square().mean()
        scores = torch.stack(self.squares).sum()
        return error + self.CALM * scores, {"velocity": error, "scores": scores.detach()}

    def _note_square(self, _linear: nn.Module, _inputs: Any, output: Tensor) -> None:
        # a copy, because the rotation that follows works in place
        self.squares.append(output.to(torch.float32, copy=True).square().mean())

    def evaluate(self) -> dict[str, float]:
        """Velocity error, and the mel error of what the sampler makes of the held-out codes."""
        starts = held_out_starts(
            self.streams, frames=self.FRAMES, grid=self.module.config.block_size
        )
        batch = self._crops(starts, np.random.default_rng(0))
        batch = to_device(batch, self.module.proj_out.weight.device)
        figures = self.loss(batch | {"drop": torch.zeros_like(batch["drop"])})[1]
        mel = self.module.sample(
            batch["ids"],
            cond=batch["cond"],
            ref_mel=batch["ref_mel"],
            noise=batch["noise"],
            schedule=self.module.schedule(self.module.config.solver),
        )
        return {
            "velocity": figures["velocity"].item(),
            "mel": (mel - batch["mel"]).abs().mean().item(),
        }

    def _crops(self, starts: list[tuple[int, int]], rng: np.random.Generator) -> dict[str, Any]:
        per_code = self.module.config.repeats
        mels, ids, refs = [], [], []
        for s, first in starts:
            stream = self.streams[s]
            mels.append(stream.mel[first : first + self.FRAMES])
            ids.append(self.ids[s][first // per_code : (first + self.FRAMES) // per_code])
            ref = int(rng.integers(stream.train_frames - self.REF_FRAMES))
            refs.append(stream.mel[ref : ref + self.REF_FRAMES])
        mel = torch.from_numpy(np.stack(mels).astype(np.float32))
        return {
            "mel": mel,
            "ids": torch.from_numpy(np.stack(ids)),
            "ref_mel": torch.from_numpy(np.stack(refs).astype(np.float32)),
            "cond": self.conds[[s for s, _ in starts]],
            "noise": torch.from_numpy(rng.standard_normal(mel.shape, np.float32)),
            "times": torch.from_numpy(rng.random(len(starts), np.float32)),
            "drop": torch.from_numpy(rng.random(len(starts)) < self.DROPPED_SHARE),
        }


class VocoderTask(Task):
    """Mel -> wave: multi-resolution spectra and the mel of the result.

    judged: judges learn to tell its waves from real ones, and it learns to be taken for real, in
    the same step: each side from the other as it was before the step. One optimizer holds both,
    with means of their own for every weight, so a resumed run goes on with both.
    """

    FRAMES = 40
    FOOLING_WEIGHT, FEATURE_WEIGHT = 0.2, 0.4

    def __init__(self, vocoder: BigVGAN, streams: list[Stream], *, judged: bool = False):
        self.vocoder, self.streams = vocoder, streams
        self.module: nn.Module = vocoder
        self.judges: Judges | None = None
        if judged:
            self.judges = Judges()
            self.module = nn.ModuleDict({"vocoder": vocoder, "judges": self.judges})

    def batch(self, rng: np.random.Generator, size: int) -> dict[str, Any]:
        return self._crops(crop_starts(rng, self.streams, frames=self.FRAMES, grid=1, count=size))

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        wave, figures = self._made(batch)
        loss = figures["spectra"] + 0.5 * figures["mel"]
        if self.judges is None:
            return loss, figures
        real, made = self.judges(batch["wave"]), unmoved(self.judges, wave)
        judging = judging_loss(real, self.judges(wave.detach()))
        fooling, features = fooling_loss(made), feature_loss(real, made)
        loss = loss + self.FOOLING_WEIGHT * fooling + self.FEATURE_WEIGHT * features
        more = {"judging": judging, "fooling": fooling, "features": features}
        return loss + judging, figures | more

    def evaluate(self) -> dict[str, float]:
        batch = self._crops(held_out_starts(self.streams, frames=self.FRAMES, grid=1))
        batch = to_device(batch, next(self.module.parameters()).device)
        return {k: v.item() for k, v in self._made(batch)[1].items()}

    def _made(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        wave = self.vocoder(batch["mel"].transpose(1, 2)).float()
        spectra = spectral_loss(wave, batch["wave"])
        mel = (voice_mel(wave) - voice_mel(batch["wave"])).abs().mean()
        return wave, {"spectra": spectra, "mel": mel}

    def _crops(self, starts: list[tuple[int, int]]) -> dict[str, Any]:
        mels, waves = [], []
        for s, first in starts:
            stream, last = self.streams[s], first + self.FRAMES
            mels.append(stream.mel[first:last])
            waves.append(stream.wave[first * VOICE_HOP_SAMPLES : last * VOICE_HOP_SAMPLES])
        wave = np.stack(waves).astype(np.float32) / 32768
        return {
            "mel": torch.from_numpy(np.stack(mels).astype(np.float32)),
            "wave": torch.from_numpy(wave),
        }

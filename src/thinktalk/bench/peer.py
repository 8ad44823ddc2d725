"""transformers in a process of its own: `python -m thinktalk.bench.peer`, asked by pairs.py.

Requests are lines of JSON on stdin, answers lines of JSON on stdout. Its own process, so that its
threads and its memory are its own. It gets what it is fastest with and comes with: sdpa, features
of the clip's length and not of 300 s, one row, no padding; and the Talker is told to keep to ids
that the DiT has, without which random weights end in an error.
"""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from thinktalk.bench.meter import forget_peak, now, peak_mib, repeat
from thinktalk.bench.reference import transformers
from thinktalk.media.mel import EAR_HZ


class Peer:
    """Its methods are the requests; each takes and returns what JSON can hold."""

    def __init__(self) -> None:
        self.kept: tuple[tuple[str, str], nn.Module] | None = None  # of `alone`
        self.dit_s = self.dit_cpu_s = 0.0

    def load(self, *, folder: str, weights: bool, device: str, dtype: str) -> dict[str, Any]:
        """weights: read them from the folder, else random ones for its config."""
        self.device, kind = torch.device(device), getattr(torch, dtype)
        forget_peak(self.device)
        whole = transformers.Qwen2_5OmniForConditionalGeneration
        if weights:
            options = {"dtype": kind, "attn_implementation": "sdpa"}
            model = whole.from_pretrained(folder, **options).to(self.device)
        else:
            config = transformers.Qwen2_5OmniConfig.from_pretrained(folder)
            with self.device:
                model = whole._from_config(config, dtype=kind, attn_implementation="sdpa")
            model.load_speakers(Path(folder) / "spk_dict.pt")
        self.model = model.eval()
        self.ear = transformers.WhisperFeatureExtractor.from_pretrained(folder)
        sample = model.token2wav.code2wav_dit_model.sample

        def measured(*args: Any, **kwargs: Any) -> Tensor:
            start, start_cpu = now(self.device), time.process_time()
            mel = sample(*args, **kwargs)
            self.dit_s += now(self.device) - start
            self.dit_cpu_s += time.process_time() - start_cpu
            return mel

        model.token2wav.code2wav_dit_model.sample = measured
        return {"version": transformers.__version__}

    def answer(
        self,
        *,
        sound: list[float],
        prompt: list[int],
        voice: str,
        reply_tokens: int,
        reply_ids: int,
        points: int,
        seed: int,
        threads: int,
    ) -> dict[str, Any]:
        """From the sound at 16 kHz to the whole wave on the host."""
        torch.set_num_threads(threads)
        torch.manual_seed(seed)
        wave = np.array(sound, np.float32)
        config = self.model.config
        unusable = range(config.token2wav_config.dit_config.num_embeds, self._vocabulary)
        rule = transformers.generation.SuppressTokensLogitsProcessor(
            list(unusable), device=str(self.device)
        )
        self.dit_s = self.dit_cpu_s = 0.0
        start, start_cpu = now(self.device), time.process_time()
        heard = self.ear(
            wave,
            sampling_rate=EAR_HZ,
            padding=True,
            truncation=False,
            return_attention_mask=True,
            return_tensors="pt",
        )
        ids = torch.tensor([prompt], device=self.device)
        _, spoken = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            input_features=heard["input_features"].to(self.device, self.model.dtype),
            feature_attention_mask=heard["attention_mask"].to(self.device),
            speaker=voice,
            thinker_max_new_tokens=reply_tokens,
            thinker_do_sample=False,
            thinker_suppress_tokens=[config.thinker_config.eos_token_id],
            thinker_eos_token_id=config.thinker_config.eos_token_id,
            talker_max_new_tokens=reply_ids,
            talker_logits_processor=transformers.LogitsProcessorList([rule]),
            token2wav_num_steps=points,
        )
        seconds = now(self.device) - start
        return {
            "seconds": seconds,
            "cpu_s": time.process_time() - start_cpu,
            "dit_s": self.dit_s,
            "dit_cpu_s": self.dit_cpu_s,
            "samples": spoken.numel(),
        }

    def alone(
        self, *, folder: str, network: str, blocks: int, device: str, threads: int
    ) -> dict[str, Any]:
        """One evaluation of the DiT (both rows of its guidance), or the vocoder: random weights."""
        torch.set_num_threads(threads)
        config = transformers.Qwen2_5OmniConfig.from_pretrained(folder).token2wav_config
        if self.kept is None or self.kept[0] != (folder, network):
            self.kept = (folder, network), build(network, config, torch.device(device))
        run, dit = self.kept[1], config.dit_config
        frames = blocks * dit.block_size
        mel = torch.randn(1, frames, dit.mel_dim, device=device)
        inputs: dict[str, Any] = {"mel_spectrogram": mel.mT - 4}
        if network == "dit":
            codes = torch.zeros(1, frames // dit.repeats, dtype=torch.int64, device=device)
            inputs = {
                "hidden_states": mel,
                "quantized_code": codes,
                "speaker_embedding": torch.zeros(1, frames, dit.enc_emb_dim, device=device),
                "condition_vector": torch.randn(1, 400, dit.mel_dim, device=device),
                "time_step": torch.tensor(0.5, device=device),
            }
        with torch.inference_mode():
            return asdict(repeat(lambda: run(**inputs), device=torch.device(device)))

    def peak(self) -> dict[str, Any]:
        return {"mib": peak_mib(self.device)}

    @property
    def _vocabulary(self) -> int:
        return self.model.config.talker_config.vocab_size


def build(network: str, config: Any, device: torch.device) -> nn.Module:
    with device:
        if network == "vocoder":
            made = transformers.Qwen2_5OmniToken2WavBigVGANModel._from_config(config.bigvgan_config)
        else:
            made = transformers.Qwen2_5OmniToken2WavDiTModel._from_config(
                config.dit_config, attn_implementation="sdpa"
            )
    return made.float().eval()


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever the library prints is no answer
    peer = Peer()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(peer, request.pop("do"))(**request)
        except Exception as error:  # the edge of the process: the asker must learn of it
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()

"""The whole reference on a checkpoint folder: conversations in, all numbers of the answers out.

Needs a transformers that computes correctly (model.md): 5.0 to 5.17. Older ones continue the
positions elsewhere, newer ones lose the Talker's mask.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from omni_cases import (
    MAX_CODEC_IDS,
    MAX_TEXT_TOKENS,
    VIDEO_LIMITS,
    Run,
    Said,
    Turns,
    inputs,
    is_sounding,
)
from reference import transformers  # first: it makes the rest importable
from torch import Tensor, nn
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList

CORRECT = range(0, 18)  # minor versions of 5
PAD, START, MASK = 8292, 8293, 8296  # codec ids
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<|vision_bos|><|IMAGE|><|vision_eos|>"
    "{% elif c['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% elif c['type'] == 'video' %}<|vision_bos|><|VIDEO|><|vision_eos|>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Reference:
    """transformers' model and processor of one checkpoint folder."""

    def __init__(self, folder: Path, *, dtype: torch.dtype = torch.float32):
        omni = transformers.Qwen2_5OmniForConditionalGeneration
        self.model = omni.from_pretrained(folder, dtype=dtype).eval()
        self.processor = transformers.Qwen2_5OmniProcessor.from_pretrained(folder)
        self.num_codes = self.model.config.token2wav_config.dit_config.num_embeds

    def answer(
        self,
        turns: Turns,
        *,
        seed: int = 0,
        voice: str = "Chelsie",
        text_stop: int | None = None,
        codec_stop: int | None = None,
        forced: Said | None = None,
        max_text_tokens: int = MAX_TEXT_TOKENS,
        max_codec_ids: int = MAX_CODEC_IDS,
    ) -> Run:
        """Greedy, with the Talker's penalty. text_stop and codec_stop: other ids that end the reply
        and the speech. forced: says these ids instead of its own.
        """
        prompt = self.process(turns)
        prompt_ids = prompt["input_ids"][0].tolist()
        text_stop = text_stop or self.model.config.thinker_config.eos_token_id
        stops = [PAD, codec_stop or self.model.config.talker_config.tts_codec_end_token_id]
        usable = [*range(self.num_codes), *stops]
        text_rule, codec_rule = [], [Only(usable)]
        if forced is not None:
            text_rule = [Forced([*forced[0], text_stop])]
            codec_rule = [Forced([*forced[1], stops[1]])]
        model = self.model
        with ExitStack() as stack:
            heads = [Watch(stack, m) for m in (model.thinker.lm_head, model.talker.codec_head)]
            spoken = Watch(stack, model.token2wav)
            torch.manual_seed(seed)
            sequence, wave = model.generate(
                **prompt,
                use_audio_in_video=is_sounding(turns),
                speaker=voice,
                thinker_max_new_tokens=max_text_tokens,
                thinker_do_sample=False,
                thinker_eos_token_id=text_stop,
                thinker_logits_processor=LogitsProcessorList(text_rule),
                talker_max_new_tokens=max_codec_ids,
                talker_do_sample=False,
                talker_eos_token_id=stops,
                talker_logits_processor=LogitsProcessorList(codec_rule),
            )
        text_ids = sequence[0, len(prompt_ids) :].tolist()
        if text_ids[-1] == text_stop:
            text_ids.pop()
        text, codec = heads
        return Run(
            prompt_ids=prompt_ids,
            text_ids=text_ids,
            codec_ids=spoken.inputs[0][0].tolist(),
            wave=wave,
            hidden=text.all_inputs(),
            text_logits=text.last_outputs(),
            talker_hidden=codec.all_inputs(),
            codec_logits=codec.last_outputs(),
        )

    def process(self, turns: Turns) -> dict[str, Any]:
        """The reference's processor, told to sample nothing and to keep to our limits."""
        media = inputs(turns)
        template = [
            {"role": role, "content": [{"type": p[0], "text": p[1]} for p in parts]}
            for role, parts in turns
        ]
        text = self.processor.apply_chat_template(
            template, chat_template=TEMPLATE, add_generation_prompt=True, tokenize=False
        )
        limits = {
            "shortest_edge": VIDEO_LIMITS["min_pixels"],
            "longest_edge": VIDEO_LIMITS["max_pixels"],
        }
        prompt = self.processor(
            text=[text],
            images=media.images or None,
            audio=media.sounds or None,
            videos=[frames.transpose(0, 3, 1, 2) for frames in media.videos] or None,
            return_tensors="pt",
            videos_kwargs={"use_audio_in_video": is_sounding(turns), "size": limits},
        )
        # without a prefix they would reach the Talker, too, which refuses them
        return {("thinker_" + k if k.startswith("pixel_") else k): v for k, v in prompt.items()}


class Watch:
    """What goes into and comes out of a module while the stack is open."""

    def __init__(self, stack: ExitStack, module: nn.Module):
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        stack.enter_context(module.register_forward_hook(self._see))

    def _see(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.inputs.append(inputs[0].detach().clone())
        self.outputs.append(output.detach().clone())

    def all_inputs(self) -> Tensor:
        """[1,T,C] of every call -> [all T,C]."""
        return torch.cat([x[0] for x in self.inputs])

    def last_outputs(self) -> Tensor:
        """[1,T,V] of every call -> the last row of each, [calls,V]."""
        return torch.stack([x[0, -1] for x in self.outputs])


class Only(LogitsProcessor):
    """Leaves no other ids: the reference itself may choose some that its DiT cannot read."""

    def __init__(self, usable: list[int]):
        self.usable = usable

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        kept = torch.full_like(scores, -torch.inf)
        kept[:, self.usable] = scores[:, self.usable]
        return kept


class Forced(LogitsProcessor):
    """Leaves one id at every step."""

    def __init__(self, ids: list[int]):
        self.ids = iter(ids)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return Only([next(self.ids)])(input_ids, torch.zeros_like(scores))

"""thinktalk.generate on a conversation, with all numbers of the answer: what tests compare."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
import torch
from omni_cases import MAX_CODEC_IDS, MAX_TEXT_TOKENS, Run, Said, Turns, messages
from torch import Tensor, nn

import thinktalk
from thinktalk import Sampling
from thinktalk.config import OmniConfig
from thinktalk.weights import LoadedModel

GREEDY_SPEECH = Sampling(repetition_penalty=1.05)  # the reference penalises without sampling, too


def answer(
    model: LoadedModel,
    turns: Turns,
    *,
    text_stop: int | None = None,
    codec_stop: int | None = None,
    forced: Said | None = None,
    **options: Any,
) -> Run:
    """Greedy and exact unless `options` say otherwise; the other arguments as in reference_omni."""
    omni, module = model.omni, import_module("thinktalk.generate")
    prompts = []
    parts = omni.thinker.model, omni.thinker.lm_head, omni.talker.model, omni.talker.codec_head
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setattr(omni, "config", stopping_at(omni.config, text_stop, codec_stop))
        patch.setattr(module, "build_prompt", recording(module.build_prompt, prompts))
        if forced is not None:
            patch.setattr(module, "choose", saying(*forced))
        hidden, text, talker, codec = (stack.enter_context(watching(part)) for part in parts)
        reply = thinktalk.generate(
            model,
            messages(turns),
            **{
                "exact": True,
                "speech": GREEDY_SPEECH,
                "max_text_tokens": MAX_TEXT_TOKENS,
                "max_codec_ids": MAX_CODEC_IDS,
                **options,
            },
        )
    return Run(
        prompt_ids=prompts[0].ids.tolist(),
        text_ids=reply.text_ids,
        codec_ids=reply.codec_ids,
        wave=torch.from_numpy(reply.audio),
        hidden=joined(hidden),
        text_logits=joined(text),
        talker_hidden=joined(talker),
        codec_logits=joined(codec),
    )


def stopping_at(config: OmniConfig, text_id: int | None, codec_id: int | None) -> OmniConfig:
    """The configuration with other ids that end the reply and the speech, None for the usual."""
    thinker, talker = config.thinker_config, config.talker_config
    if text_id is not None:
        thinker = replace(thinker, eos_token_id=text_id)
    if codec_id is not None:
        talker = replace(talker, tts_codec_end_token_id=codec_id)
    return replace(config, thinker_config=thinker, talker_config=talker)


def recording(function: Callable[..., Any], results: list[Any]) -> Callable[..., Any]:
    def recorded(*args: Any, **kwargs: Any) -> Any:
        results.append(function(*args, **kwargs))
        return results[-1]

    return recorded


def saying(*ids_of_stages: list[int]) -> Callable[..., Tensor]:
    """Takes the place of sampling.choose: all ids, one after the other."""
    ids = iter([token for ids in ids_of_stages for token in ids])
    return lambda *args, **kwargs: torch.tensor([next(ids)])


@contextmanager
def watching(module: nn.Module, argument: str | None = None) -> Iterator[list[Tensor]]:
    """Collects what a module gives back, or what it is given as a keyword argument."""
    seen: list[Tensor] = []

    def see(_: nn.Module, args: Any, kwargs: dict[str, Tensor], output: Tensor) -> None:
        seen.append(kwargs[argument] if argument else output)

    hook = module.register_forward_hook(see, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()


def joined(outputs: list[Tensor]) -> Tensor:
    """[1,T,C] or [1,C] each -> all rows [n,C]."""
    return torch.cat([output.flatten(0, -2) for output in outputs])

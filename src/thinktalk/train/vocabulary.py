"""Texts in, a byte-level BPE tokenizer in the official file layout out."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from thinktalk.media.tokenizer import PIECES


def train_bpe(texts: Iterable[str], *, num_tokens: int, special: dict[str, int]) -> Tokenizer:
    """A tokenizer of `num_tokens` text tokens; the special tokens follow in their given order."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=num_tokens,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=1,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != num_tokens:
        raise ValueError(
            f"the texts yield {tokenizer.get_vocab_size()} tokens, not {num_tokens}; "
            "give more texts or ask for fewer tokens"
        )
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    assert all(tokenizer.token_to_id(t) == i for t, i in special.items()), special
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, folder: Path, *, special: dict[str, int]) -> None:
    """tokenizer.json, vocab.json, merges.txt and tokenizer_config.json, as the official folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    model = json.loads(tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False))
    merges = (m if isinstance(m, str) else " ".join(m) for m in model["merges"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(_settings(special), indent=2) + "\n")


def _settings(special: dict[str, int]) -> dict:
    added = {
        str(index): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for token, index in special.items()
    }
    named = {
        "image_token": "<|IMAGE|>",
        "audio_token": "<|AUDIO|>",
        "video_token": "<|VIDEO|>",
        "vision_bos_token": "<|vision_bos|>",
        "vision_eos_token": "<|vision_eos|>",
        "audio_bos_token": "<|audio_bos|>",
        "audio_eos_token": "<|audio_eos|>",
    }
    return {
        "added_tokens_decoder": added,
        "additional_special_tokens": list(special),
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "extra_special_tokens": named,
        "model_max_length": 32768,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    } | named

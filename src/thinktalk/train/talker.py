"""The Talker's task: a conversation as the Thinker has it in, the codec ids of its replies learned.

Batches are those of packing.collate. Shapes: B rows of T tokens, K spoken replies, n positions
where something is said, C width of the Thinker, U text tokens in use.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thinktalk.model.talker import Talker
from thinktalk.model.thinker import Thinker
from thinktalk.train.examples import IGNORED
from thinktalk.train.losses import side_by_side, token_losses
from thinktalk.train.packing import learned_rows
from thinktalk.train.speaking import CodecClasses, Said, VoiceRows, num_said, speak, think
from thinktalk.train.trainer import Task


class TalkerTask(Task):
    """Cross-entropy on the next codec id of every reply, behind the whole conversation.

    What is said earlier in the conversation is in the context as text and as the Thinker's states,
    not as codes: so it is when the model is used. Who speaks is told by the voice's token alone.
    A second loss, with the weight `spelling`, teaches to keep track of the place in the text: CTC
    over the reply's tokens, through a head that exists for training only. That head begins
    untrained: a Talker that speaks already needs none (0), it would be spoiled at first. joint: the
    Thinker learns, too, from its own text loss and, back through its states, from the Talker's.
    levels: of the quantiser that the codes come from. deaf: see `think`. held_out: batches for
    evaluate().
    """

    def __init__(
        self,
        talker: Talker,
        thinker: Thinker,
        *,
        num_codes: int,
        levels: Sequence[int] = (),
        voices: Iterable[int] = (),
        joint: bool = False,
        text_weight: float = 1.0,
        deaf: float = 0.0,
        spelling: float = 0.3,
        held_out: Iterable[dict[str, Any]] = (),
    ):
        # scores of text tokens are products with their embeddings; the last output is CTC's blank
        width = thinker.model.embed_tokens.weight.shape[1]
        self.module = nn.ModuleDict({"talker": talker})
        self.speller = None
        if spelling:
            self.speller = self.module["spelling"] = nn.Linear(talker.config.hidden_size, width + 1)
        self.voices = None
        if joint:
            self.module["thinker"] = thinker
        else:
            self.companions = (thinker,)
            if voices := set(voices):
                self.voices = self.module["voices"] = VoiceRows(voices, width)
        self.talker, self.thinker, self.joint = talker, thinker, joint
        self.deaf, self.spelling = deaf, spelling
        self.levels, self.text_weight, self.held_out = levels, text_weight, list(held_out)
        self.classes = CodecClasses(talker, num_codes=num_codes)

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.set_grad_enabled(self.joint and torch.is_grad_enabled()):
            deaf = self.deaf if self.module.training else 0.0
            thoughts = think(self.thinker, batch, deaf=deaf)
        said = speak(
            self.talker,
            self.thinker,
            thoughts.rows,
            batch,
            classes=self.classes,
            voices=self.voices,
            noise=self.levels if self.module.training else None,
        )
        logits = self.classes.logits(self.talker, said.hidden)
        count = (said.labels != IGNORED).sum().clamp(min=1)
        codec = F.cross_entropy(logits, said.labels, ignore_index=IGNORED, reduction="sum") / count
        loss, figures = codec, {"codec": codec}
        if self.speller is not None:
            spelling = self._spelling(said, batch, self.speller)
            loss, figures = loss + self.spelling * spelling, figures | {"spelling": spelling}
        figures["right"] = (logits.argmax(-1) == said.labels).sum() / count
        if self.joint:
            text = self._text(thoughts.hidden, batch)
            loss, figures = loss + self.text_weight * text, figures | {"text": text}
        return loss, figures

    def weight(self, batch: dict[str, Any]) -> float:
        return max(num_said(batch), 1.0) if self.joint else num_said(batch)

    def evaluate(self) -> dict[str, float]:
        """The same figures, over all held-out ids alike."""
        return self.figures_over(self.held_out)

    def _text(self, hidden: Tensor, batch: dict[str, Any]) -> Tensor:
        """The Thinker's own loss: cross-entropy on the replies' text."""
        places, labels = learned_rows(batch["labels"])
        losses, _ = token_losses(hidden.flatten(0, 1)[places], labels, logits=self.thinker.logits)
        return losses.sum() / (labels != IGNORED).sum().clamp(min=1)

    def _spelling(self, said: Said, batch: dict[str, Any], speller: nn.Module) -> Tensor:
        """CTC (Graves et al. 2006): the tokens of every reply, in order, somewhere along its codes.

        The classes are the tokens that the batch says, so that any vocabulary is affordable.
        """
        told = speller(said.hidden)
        replies = batch["spoken"].tolist()
        if not replies:
            return 0 * told.sum()
        texts = [batch["ids"][row, start:end] for _, row, start, end, _ in replies]
        used, targets = torch.cat(texts).unique(return_inverse=True)
        table = self.thinker.embed(used).detach()  # [U,C]
        scores = F.linear(told[:, :-1], table.to(told.dtype)) * table.shape[1] ** -0.5
        scores = torch.cat((told[:, -1:], scores), dim=1).float().log_softmax(-1)
        lengths = torch.tensor([len(codes) + 1 for codes in batch["codes"]])
        along = side_by_side(scores[: int(lengths.sum())], lengths)
        losses = F.ctc_loss(
            along,
            targets + 1,
            lengths,
            torch.tensor([len(text) for text in texts]),
            reduction="sum",
            zero_infinity=True,
        )
        return losses / len(targets)

"""The whole network; its state dict has exactly the names of the official checkpoints."""

from torch import nn

from thinktalk.config import OmniConfig
from thinktalk.model.code2wav import Token2Wav
from thinktalk.model.talker import Talker
from thinktalk.model.thinker import Thinker


class Omni(nn.Module):
    """Thinker writes, Talker turns that into codec ids, Token2Wav turns ids into sound."""

    def __init__(self, config: OmniConfig):
        super().__init__()
        self.config = config
        self.thinker = Thinker(config.thinker_config)
        self.talker = Talker(config.talker_config)
        self.token2wav = Token2Wav(config.token2wav_config)

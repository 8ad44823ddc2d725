"""Talk to spark in real time: ask, cut in while it answers, and save what you would have heard."""

import time
from pathlib import Path

import numpy as np

import thinktalk
from thinktalk.live.api import AudioDelta, ResponseDone, SpeechStarted, TextDelta, Truncated
from thinktalk.media.decode import load_audio
from thinktalk.media.encode import write_wav

question = load_audio(str(Path(__file__).parent / "question.wav"))  # float32, 16 kHz
silence = np.zeros(16_000, np.float32)
# the question, a pause in which the answer begins, the question again in the middle of it, a pause
microphone = np.concatenate([silence, question, silence, question, *[silence] * 4])

engine = thinktalk.live(thinktalk.load("spark"))
session = engine.open(voice="Chelsie", turn_detection=thinktalk.ServerVad())
heard, began = [], time.monotonic()
for start in range(0, len(microphone), 320):  # 20 ms at a time, as a sound card gives it
    time.sleep(max(0.0, began + start / 16_000 - time.monotonic()))
    session.push_audio(microphone[start : start + 320], sample_rate=16_000)
    for event in session.events(timeout_s=0):
        if isinstance(event, SpeechStarted):
            print(f"\n{start / 16_000:5.2f} s  you speak")
        elif isinstance(event, TextDelta):
            print(event.text, end="", flush=True)
        elif isinstance(event, AudioDelta):
            heard.append(event.samples)
        elif isinstance(event, Truncated):
            print(f"  [you have heard {event.audio_ms} ms of it: {event.text!r}]", end="")
        elif isinstance(event, ResponseDone):
            print(f"  [{event.status}]")
session.close()
engine.close()
write_wav("conversation.wav", np.concatenate(heard), 24_000)

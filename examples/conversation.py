"""Talk to spark in real time: show it a picture, ask aloud, ask on, and cut in while it counts.

Saves what you would have heard. The recordings say "what do you see?", "what colour is it?",
"count from one to nine." and "what is two plus three?".
"""

import time
from pathlib import Path

import numpy as np

import thinktalk
from thinktalk.live.api import AudioDelta, ResponseDone, SpeechStarted, TextDelta, Truncated
from thinktalk.media.decode import load_audio
from thinktalk.media.encode import write_wav

FOLDER = Path(__file__).parent
see, colour, count, plus = (  # float32, 16 kHz
    load_audio(str(FOLDER / f"{name}.wav")) for name in ("see", "colour", "count", "plus")
)
second = np.zeros(16_000, np.float32)
answer = [second] * 4  # while it answers, nobody speaks
# the last question comes in the middle of the counting
microphone = np.concatenate(
    [second, see, *answer, colour, *answer, count, second, second, plus, *answer]
)

engine = thinktalk.live(thinktalk.load("spark"))
session = engine.open(voice="Chelsie", turn_detection=thinktalk.ServerVad())
session.push_image(str(FOLDER / "picture.png"))
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
            print(f"  [you have heard {event.audio_ms} ms of it: {event.text!r}]")
        elif isinstance(event, ResponseDone):
            print(f"  [{event.status}]")
session.close()
engine.close()
write_wav("conversation.wav", np.concatenate(heard), 24_000)

"""Talk to spark in real time: show it a picture, ask aloud, ask on, and cut in while it counts."""

import time
from pathlib import Path

import numpy as np

import thinktalk
from thinktalk.live.api import AudioDelta, ResponseDone, SpeechStarted, TextDelta, Truncated
from thinktalk.media.decode import load_audio
from thinktalk.media.encode import write_wav

FOLDER = Path(__file__).parent
pauses_s = {"see": 4, "colour": 4, "count": 2, "plus": 4}  # 2 s end before it has counted to nine
microphone = [np.zeros(16_000, np.float32)]  # float32, 16 kHz
for name, pause_s in pauses_s.items():
    microphone += [load_audio(str(FOLDER / f"{name}.wav")), np.zeros(16_000 * pause_s, np.float32)]
samples = np.concatenate(microphone)

engine = thinktalk.live(thinktalk.load("spark"))
session = engine.open(voice="Chelsie", turn_detection=thinktalk.ServerVad())
session.push_image(str(FOLDER / "picture.png"))
heard, began = [], time.monotonic()
for start in range(0, len(samples), 320):  # 20 ms at a time, as a sound card gives it
    time.sleep(max(0.0, began + start / 16_000 - time.monotonic()))
    session.push_audio(samples[start : start + 320], sample_rate=16_000)
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

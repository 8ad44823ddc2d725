"""Ask spark a spoken question, then a typed one, and save what it says."""

from pathlib import Path

import thinktalk

HERE = Path(__file__).parent

model = thinktalk.load("spark")

# A list of strings: paths and URLs of media by their extension, everything else is text.
answer = thinktalk.generate(model, [str(HERE / "question.wav")], voice="Chelsie")
print(answer.text)
answer.save("answer.wav")  # float32 samples at answer.sample_rate

# Chat messages: several turns, each in the official format.
messages = [
    {"role": "user", "content": "my name is anna."},
    {"role": "assistant", "content": "nice to meet you, anna."},
    {"role": "user", "content": [{"type": "text", "text": "what is my name?"}]},
]
answer = thinktalk.generate(model, messages, voice="Ethan", seed=7)
print(answer.text, f"({len(answer.audio) / answer.sample_rate:.1f} s of speech)")

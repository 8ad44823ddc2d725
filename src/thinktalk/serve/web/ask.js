// One question over POST /v1/chat/completions: what the live session cannot take, such as a video.

import { decodePcm } from "./sound.js";
import { authorization } from "./realtime.js";

/** Yields {text} and {pcm: Int16Array at 24 kHz} as they arrive. messages: as the API has them.
    Throws an Error with the server's sentence; an abort of the signal ends it silently. */
export async function* ask({ messages, model, voice, key, signal }) {
  const response = await fetch("v1/chat/completions", {
    method: "POST",
    signal,
    headers: { "Content-Type": "application/json", ...authorization(key) },
    body: JSON.stringify({
      model,
      messages,
      stream: true,
      modalities: ["text", "audio"],
      audio: { voice, format: "pcm16" },
    }),
  });
  if (!response.ok) throw new Error(await complaint(response));
  for await (const data of serverSentEvents(response.body)) {
    if (data.error) throw new Error(data.error.message);
    const { content, audio } = data.choices?.[0]?.delta ?? {};
    // OpenAI sends the words of a spoken answer as its transcript, others as content.
    const text = content || audio?.transcript;
    if (text) yield { text };
    if (audio?.data) yield { pcm: decodePcm(audio.data) };
  }
}

async function* serverSentEvents(body) {
  let rest = "";
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      const data = line.startsWith("data:") ? line.slice(5).trim() : "";
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  }
}

async function complaint(response) {
  const body = await response.json().catch(() => null);
  if (body?.error?.message) return body.error.message;
  if (response.status === 413) return "That is more than the server takes at once.";
  if ([429, 503].includes(response.status)) return "The server is full. Try again in a moment.";
  return `The server answered with an error (${response.status}).`;
}

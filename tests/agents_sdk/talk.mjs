// A stock RealtimeSession: types, calls a function, speaks, is interrupted. Prints what it saw.
// node talk.mjs WEBSOCKET_URL PCM_FILE

import { RealtimeAgent, RealtimeSession, tool } from "@openai/agents-realtime";
import { readFileSync } from "node:fs";
import { z } from "zod";

const [url, file] = process.argv.slice(2);
const lookUp = tool({
  name: "look_up",
  description: "looks a word up",
  parameters: z.object({ word: z.string() }),
  execute: async ({ word }) => `a ${word} is red`,
});
const agent = new RealtimeAgent({ name: "assistant", instructions: "be brief", tools: [lookUp] });
const session = new RealtimeSession(agent, { transport: "websocket", model: "gpt-realtime" });

const seen = [];
const errors = [];
let bytes = 0;
session.on("audio", (event) => (bytes += event.data.byteLength));
session.on("error", (event) => errors.push(event.error ?? event));
session.transport.on("*", (event) => seen.push(event.type));

/** Resolves when `type` has come `count` times more. */
function next(type, count = 1) {
  return new Promise((resolve) => {
    const listen = (event) => {
      if (event.type !== type || --count) return;
      session.transport.off("*", listen);
      resolve(event);
    };
    session.transport.on("*", listen);
  });
}

await session.connect({ apiKey: "ek_test", url });
const answered = next("response.done", 2); // the call, and the answer with its result
session.sendMessage("what is a rose?");
await answered;
// Speaking sooner would cut the answer off where it had been heard to by then.
await new Promise((heard) => setTimeout(heard, 500));

const speaking = next("response.output_audio.delta");
const pcm = readFileSync(file);
for (let at = 0; at < pcm.length; at += 4800) {
  session.sendAudio(new Uint8Array(pcm.subarray(at, at + 4800)).buffer);
}
await speaking;
const cut = next("conversation.item.truncated");
session.interrupt(); // cancels, truncates, and then retrieves what is left
await cut;
await next("conversation.item.retrieved");
console.log(JSON.stringify({ seen, errors, bytes, history: session.history }));
session.close();

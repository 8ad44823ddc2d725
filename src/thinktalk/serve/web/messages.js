// What was said, in the shape in which each API wants to be told of it.
//
// A part of a user's message is {kind, name?, ...}:
//   text  {text}        words
//   image {url}         a JPEG or PNG data URI
//   audio {pcm}         Int16Array at 24 kHz
//   video {url}         a data URI of the whole file

import { shownLength } from "./captions.js";
import { LONGEST_EVENT } from "./realtime.js";
import { encodeBytes, encodePcm, wavBytes } from "./sound.js";

const FORMAT = { type: "audio/pcm", rate: 24000 };
const MARGIN = 100_000; // for the words around the media

/** Whether a turn is too large for one event of the socket. */
export function isLarge(turn) {
  const characters = (part) => part.url?.length ?? (part.pcm ? (part.pcm.byteLength * 4) / 3 : 0);
  return turn.parts.reduce((sum, part) => sum + characters(part), 0) > LONGEST_EVENT - MARGIN;
}

/** The page's settings as a session of the Realtime API. model: whose words are the transcripts. */
export function asSession({ voice, persona, turns, pauseMs, interrupt }, model) {
  const rest = { create_response: true, interrupt_response: interrupt };
  const detection = {
    automatic: { type: "server_vad", silence_duration_ms: pauseMs, ...rest },
    judged: { type: "semantic_vad", eagerness: "auto", ...rest },
    held: null,
  };
  const transcription = { model };
  const input = { format: FORMAT, turn_detection: detection[turns], transcription };
  const output = { format: FORMAT, ...(voice && { voice }) };
  return { type: "realtime", instructions: persona, audio: { input, output } };
}

/** A turn as an item of conversation.item.create; null if there is nothing to tell. */
export function asItem(turn) {
  const role = turn.role === "user" ? "user" : "assistant";
  const shape = isLarge(turn) ? inWords : forRealtime;
  if (turn.parts.length) return item(turn.id, role, turn.parts.map(shape));
  const text = heardText(turn);
  return text ? item(turn.id, role, [{ type: WORDS[role], text }]) : null;
}

/** A turn as a message of POST /v1/chat/completions; null if there is nothing to tell. */
export function asMessage(turn) {
  const role = turn.role === "user" ? "user" : "assistant";
  const content = turn.parts.length ? turn.parts.map(forChat) : heardText(turn);
  return content ? { role, content } : null;
}

/** An id that this page gives to an item. */
export function newId() {
  const random = crypto.getRandomValues(new Uint8Array(8));
  return "item_" + Array.from(random, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

const WORDS = { user: "input_text", assistant: "output_text" };

const item = (id, role, content) => ({ id, type: "message", role, content });

const heardText = (turn) => turn.text.slice(0, shownLength(turn));

function forRealtime(part) {
  if (part.kind === "text") return { type: "input_text", text: part.text };
  if (part.kind === "image") return { type: "input_image", image_url: part.url };
  if (part.kind === "audio") return { type: "input_audio", audio: encodePcm(part.pcm) };
  return { type: "input_video", video_url: { url: part.url } };
}

/** For a session that cannot be shown something: that it was shown. */
function inWords(part) {
  return { type: "input_text", text: part.text ?? `[${part.kind} ${part.name}]` };
}

function forChat(part) {
  if (part.kind === "text") return { type: "text", text: part.text };
  if (part.kind === "image") return { type: "image_url", image_url: { url: part.url } };
  if (part.kind === "video") return { type: "video_url", video_url: { url: part.url } };
  const data = encodeBytes(wavBytes(part.pcm));
  return { type: "input_audio", input_audio: { data, format: "wav" } };
}

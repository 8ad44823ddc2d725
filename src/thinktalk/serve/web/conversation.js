// What was said, by both sides: the server's events -> turns in their order. Knows no page.

import { decodePcm, toMs } from "./sound.js";

/** What one side said at a time.

    A user's turn: parts (messages.js) of what was typed or dropped; or spoken, with its transcript
    as text, and state "hearing", "heard" (its transcript may come), "".
    A reply: text as far as the server has written it, spoken (or to be spoken soon), pieces of its
    sound (Int16Array). state:
    "thinking", "speaking" (more comes), "written" (no more comes, but it still plays), "over".
    whole: it was not stopped on the way. cutMs: where it was interrupted; kept: text is what the
    model remembers of it since. live: the Realtime session knows it as its own item. */
export class Turn {
  constructor(id, role, fields = {}) {
    Object.assign(this, { id, role, text: "", parts: [], spoken: false, state: "" });
    if (role === "reply") {
      Object.assign(this, { state: "thinking", pieces: [], audioMs: 0, heardMs: 0, live: true });
      Object.assign(this, {
        waiting: [],
        whole: false,
        cutMs: null,
        kept: false,
        latencyMs: null,
        note: "",
      });
    }
    Object.assign(this, fields);
  }

  addSound(samples) {
    this.pieces.push(samples);
    this.audioMs += toMs(samples.length);
    this.spoken = true;
    this.state = "speaking";
  }

  /** Nothing more will come; whole: and nothing is missing. */
  close(whole) {
    this.whole = whole;
    if (this.state === "over") return;
    if (this.pieces.length) this.state = "written";
    else this.#end();
  }

  /** It was heard to its end. */
  played() {
    this.heardMs = this.audioMs;
    this.#end();
  }

  /** It was interrupted after so much of it had been heard. */
  cut(heardMs) {
    this.cutMs = Math.min(heardMs, Math.floor(this.audioMs));
    this.#end();
  }

  /** Resolves when it is over. */
  get ended() {
    if (this.state === "over") return Promise.resolve();
    return new Promise((resolve) => this.waiting.push(resolve));
  }

  #end() {
    this.state = "over";
    for (const resolve of this.waiting.splice(0)) resolve();
  }
}

export class Conversation {
  /** onchange(turn): something about it is new; onremove(turn). */
  constructor({ onchange, onremove }) {
    Object.assign(this, { onchange, onremove });
    this.turns = []; // in the order of the conversation
  }

  find(id) {
    return this.turns.find((turn) => turn.id === id);
  }

  /** Puts a turn after another (an id), or at the end; moves it if it is there already. */
  place(turn, previousId) {
    const at = this.turns.indexOf(turn);
    if (at >= 0 && !previousId) return turn;
    if (at >= 0) this.turns.splice(at, 1);
    const previous = this.turns.findIndex((other) => other.id === previousId);
    this.turns.splice(previous >= 0 ? previous + 1 : this.turns.length, 0, turn);
    this.onchange(turn);
    return turn;
  }

  remove(turn) {
    this.turns = this.turns.filter((other) => other !== turn);
    this.onremove(turn);
  }

  clear() {
    for (const turn of [...this.turns]) this.remove(turn);
  }

  /** Takes a server event in; returns the turn that it changed, if any. */
  apply(event) {
    const turn = this.#changed(event);
    if (turn) this.onchange(turn);
    return turn;
  }

  #changed(event) {
    const type = event.type.replace("conversation.item.input_audio_transcription", "transcription");
    switch (type) {
      case "input_audio_buffer.speech_started":
        return this.#user(event.item_id, { spoken: true, state: "hearing" });
      case "input_audio_buffer.speech_stopped":
        return this.#user(event.item_id, { spoken: true, state: "heard" });
      case "input_audio_buffer.committed":
        return this.#committed(event);
      case "input_audio_buffer.cleared":
        return this.#cleared();
      case "conversation.item.added":
      case "conversation.item.done":
        return this.#item(event.item, event.previous_item_id);
      case "conversation.item.deleted":
        return this.#deleted(event.item_id);
      case "transcription.delta":
        return this.#user(event.item_id, { grown: event.delta });
      case "transcription.completed":
        return this.#user(event.item_id, { text: event.transcript, state: "" });
      case "transcription.failed":
        return this.#user(event.item_id, { state: "" });
      case "response.output_audio_transcript.delta":
        return this.#reply(event.item_id, { grown: event.delta, spoken: true });
      case "response.output_text.delta":
        return this.#reply(event.item_id, { grown: event.delta });
      case "response.output_audio_transcript.done":
        return this.#reply(event.item_id, { text: event.transcript });
      case "response.output_text.done":
        return this.#reply(event.item_id, { text: event.text });
      case "response.output_audio.delta":
        return this.#sound(event.item_id, decodePcm(event.delta));
      case "conversation.item.retrieved":
        return this.#retrieved(event.item);
      case "response.done":
        return this.#done(event.response);
    }
    return null;
  }

  #user(id, fields) {
    return change(this.find(id) ?? this.place(new Turn(id, "user", { spoken: true })), fields);
  }

  #reply(id, fields) {
    return change(this.find(id) ?? this.place(new Turn(id, "reply")), fields);
  }

  #sound(id, samples) {
    const turn = this.#reply(id, {});
    turn.addSound(samples);
    return turn;
  }

  #committed(event) {
    const turn = this.#user(event.item_id, { committed: true });
    if (turn.spoken && !turn.text) turn.state = "heard";
    return this.place(turn, event.previous_item_id);
  }

  /** Speech that the server forgot was never said. */
  #cleared() {
    const open = (turn) => turn.state === "hearing" || (turn.state === "heard" && !turn.committed);
    for (const turn of this.turns.filter(open)) this.remove(turn);
    return null;
  }

  #item(item, previousId) {
    if (item.type !== "message" || !["user", "assistant"].includes(item.role)) return null;
    const known = this.find(item.id);
    if (known) return this.place(known, previousId);
    const turn = new Turn(item.id, item.role === "user" ? "user" : "reply");
    turn.spoken = item.content.some((part) => part.type === "input_audio");
    turn.text = item.content.map((part) => part.text ?? part.transcript ?? "").join(" ");
    return this.place(turn, previousId);
  }

  /** After an interruption: what the model remembers of its reply. */
  #retrieved(item) {
    const turn = this.find(item.id);
    if (!turn || turn.role !== "reply" || turn.cutMs === null) return null;
    const text = item.content.map((part) => part.transcript ?? part.text ?? "").join("");
    return change(turn, { text, kept: true });
  }

  #deleted(id) {
    const turn = this.find(id);
    if (turn) this.remove(turn);
    return null;
  }

  #done(response) {
    const ids = response.output.map((item) => item.id);
    const turn = this.turns.findLast((turn) => ids.includes(turn.id) || open(turn));
    if (!turn || turn.role !== "reply") return null;
    turn.close(response.status === "completed" || response.status === "incomplete");
    turn.note = noteOn(response);
    return turn;
  }
}

const open = (turn) =>
  turn.role === "reply" && turn.live && ["thinking", "speaking"].includes(turn.state);

function change(turn, { grown = "", ...fields }) {
  Object.assign(turn, fields);
  turn.text += grown;
  return turn;
}

/** What a reader should know about how a reply ended; "" if it ended as it should. */
function noteOn({ status, status_details: details }) {
  if (status === "failed") return details?.error?.message ?? "The reply failed.";
  if (status === "incomplete") return "The reply reached its longest length.";
  return "";
}

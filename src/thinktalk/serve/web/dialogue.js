// The conversation as it happens: microphone and camera -> server -> captions and loudspeaker,
// who speaks when, and what an interruption means.

import { ask } from "./ask.js";
import { Turn } from "./conversation.js";
import { Ear } from "./ear.js";
import { asItem, asMessage, asSession, isLarge, newId } from "./messages.js";
import { Microphone } from "./mic.js";
import { Realtime } from "./realtime.js";
import { Replies } from "./replies.js";
import { encodePcm, toMs, toSamples } from "./sound.js";

const FRAME_EVERY_MS = 500; // two pictures a second, as the model was trained
const PREROLL_FRAMES = 10; // 200 ms: people speak while they press the button
const SHORTEST_SPEECH_MS = 200;
const QUIET_TAIL_MS = 300;
const MOST_UNSENT_FRAMES = 500; // 10 s of what is said while there is no connection
// Not worth a word to the user: the reply was over before it could be stopped.
const HARMLESS_ERRORS = new Set(["response_cancel_not_active"]);

/** settings: {voice, persona, turns: "automatic" | "judged" | "held", pauseMs, interrupt, key,
    devices}. tray: files for the next turn.
    on: what the page wants to know: state(state, detail), microphone(open), pressed(held),
    thinking(whether a reply was begun of which nothing is known yet), level(0..1),
    report(speaker's figures), latency(ms), notice(sentence). */
export class Dialogue {
  constructor({ settings, camera, tray, conversation, on }) {
    Object.assign(this, { settings, camera, tray, conversation, on });
    this.microphone = new Microphone({
      device: () => settings.devices.microphone,
      onframe: (frame) => this.#hear(frame),
      onlost: () => this.#microphoneLost(),
    });
    this.replies = new Replies({ conversation, on });
    this.realtime = new Realtime({
      key: () => settings.key,
      onevent: (event) => this.#take(event),
      onstate: (state, detail) => this.#connection(state, detail),
    });
    this.pressed = false; // the button of push-to-talk
    this.preroll = []; // frames before it was pressed
    this.unsent = []; // frames that wait for the connection
    this.#begin();
  }

  #begin() {
    this.ear = new Ear();
    this.sent = 0; // samples: the session's clock
    this.nextFrameMs = 0;
    this.speechFromMs = this.pressedAtMs = 0;
    this.active = null; // the response that the server is making
    this.spoke = false; // whether this session has spoken yet
    this.stale = new Set(); // responses that were interrupted: their late events count no more
  }

  // ---- what the user does

  /** Opens everything; rejects with a DOMException (microphone) or an Error with a sentence. */
  async talk() {
    await this.replies.speaker.open(); // first, while the click that permits sound is fresh
    await this.microphone.open();
    this.on.microphone(true);
    await this.realtime.connect();
  }

  /** Closes the microphone; a turn that is under way ends as if the user had fallen silent. */
  hush() {
    if (!this.microphone.isOpen) return;
    this.microphone.close();
    this.on.microphone(false);
    if (this.pressed) return this.release();
    if (this.settings.turns === "held") return;
    const pcm = new Int16Array(toSamples(this.settings.pauseMs + QUIET_TAIL_MS));
    this.#send({ pcm, level: 0, at: performance.now() });
  }

  /** Push-to-talk: from here on the user is heard, and the reply falls silent. */
  async press() {
    if (this.pressed) return;
    this.pressed = true;
    this.on.pressed(true);
    this.#showFiles();
    this.realtime.send({ type: "input_audio_buffer.clear" });
    this.speechFromMs = toMs(this.sent);
    for (const frame of this.preroll.splice(0)) this.#send(frame);
    this.pressedAtMs = toMs(this.sent);
    await this.interrupt({ cancel: true });
  }

  /** Push-to-talk: the user's turn is over. */
  async release() {
    if (!this.pressed) return;
    this.pressed = false;
    this.on.pressed(false);
    await this.realtime.connect(); // at once, as a rule; then what waited for it has been sent
    if (toMs(this.sent) - this.pressedAtMs < SHORTEST_SPEECH_MS) {
      this.realtime.send({ type: "input_audio_buffer.clear" });
      return this.on.notice("Hold the button as long as you speak.");
    }
    this.replies.askedAt = this.ear.lastSpeech(this.speechFromMs, toMs(this.sent));
    this.realtime.send({ type: "input_audio_buffer.commit" });
    this.realtime.send({ type: "response.create" });
  }

  /** A typed message with what was dropped (messages.js); resolves when it is answered or sent. */
  async say(parts) {
    await this.replies.speaker.open();
    await this.interrupt({ cancel: true });
    this.replies.askedAt = null;
    const turn = new Turn(newId(), "user", { parts });
    // What the session takes becomes part of the talk. A long video only goes over the chat API,
    // and so do later typed questions, because they can see it again only there.
    if ([...this.conversation.turns, turn].some(isLarge)) return this.#askOverChat(turn);
    await this.realtime.connect();
    this.conversation.place(turn);
    this.#tell(turn);
    this.realtime.send({ type: "response.create" });
  }

  /** The tray's files, before what is being said about them. */
  #showFiles() {
    const parts = this.tray.takeAlong();
    if (parts.length) this.#tell(this.conversation.place(new Turn(newId(), "user", { parts })));
  }

  /** Silences the reply; the model forgets what was not heard. cancel: the server is still to be
      told (where it heard the user interrupt, it knows). */
  async interrupt({ cancel }) {
    this.chat?.abort();
    if (this.active) this.stale.add(this.active);
    if (this.active && cancel) this.realtime.send({ type: "response.cancel" });
    this.active = null;
    for (const turn of await this.replies.silence()) {
      if (!turn.live) continue;
      const place = { item_id: turn.id, content_index: 0, audio_end_ms: turn.cutMs };
      this.realtime.send({ type: "conversation.item.truncate", ...place });
    }
  }

  /** A changed setting, into the running session. */
  update(name) {
    if (!this.realtime.isOpen) return;
    // A session keeps the voice that it began to speak with: go on in another.
    if (name === "voice" && this.spoke) return this.#renew();
    const session = asSession(this.settings, this.realtime.session.model);
    this.realtime.send({ type: "session.update", session });
  }

  /** Forgets everything that was said. */
  async fresh() {
    await this.interrupt({ cancel: false });
    this.conversation.clear();
    await this.#renew();
  }

  /** Goes on in a new session, if anybody is talking. */
  async #renew() {
    await this.interrupt({ cancel: false });
    this.realtime.close();
    if (this.microphone.isOpen) await this.realtime.connect();
  }

  // ---- out to the server

  #hear({ pcm, level }) {
    this.on.level(level);
    const frame = { pcm, level, at: performance.now() };
    const waits = this.settings.turns === "held" && !this.pressed;
    if (waits) this.preroll = [...this.preroll, frame].slice(-PREROLL_FRAMES);
    else if (this.realtime.isOpen) this.#send(frame);
    else this.unsent = [...this.unsent, frame].slice(-MOST_UNSENT_FRAMES);
  }

  #send({ pcm, level, at }) {
    const audio = encodePcm(pcm);
    if (!this.realtime.send({ type: "input_audio_buffer.append", audio })) return;
    this.sent += pcm.length;
    this.ear.note({ ms: toMs(this.sent), level, at });
    this.#see();
  }

  /** Pictures follow the clock of the sound: timers sleep when the page is in the background. */
  #see() {
    const nowMs = toMs(this.sent);
    if (!this.camera.source || nowMs < this.nextFrameMs) return;
    const image = this.camera.frame();
    if (!image) return;
    // Without a time it belongs to the sound before it, also when some of that was lost on the way.
    this.realtime.send({ type: "input_image_buffer.append", image });
    this.nextFrameMs = nowMs + FRAME_EVERY_MS;
  }

  /** Puts a turn into the session that it does not know yet. */
  #tell(turn) {
    const item = asItem(turn);
    if (item) this.realtime.send({ type: "conversation.item.create", item });
  }

  async #askOverChat(turn) {
    const { voice, persona, key } = this.settings;
    this.conversation.place(turn);
    const messages = this.conversation.turns.map(asMessage).filter(Boolean);
    if (persona) messages.unshift({ role: "system", content: persona });
    const reply = this.conversation.place(
      new Turn(newId(), "reply", { live: false, spoken: true }),
    );
    const chat = (this.chat = new AbortController());
    const model = this.settings.model;
    try {
      for await (const { text, pcm } of ask({ messages, model, voice, key, signal: chat.signal })) {
        if (text) reply.text += text;
        if (pcm) reply.addSound(pcm);
        if (pcm) this.replies.play(reply);
        this.conversation.onchange(reply);
      }
      reply.close(true);
    } catch (error) {
      reply.close(false);
      if (!chat.signal.aborted) reply.note = error.message;
    }
    this.replies.finish(reply);
    this.conversation.onchange(reply);
    await reply.ended; // what was not heard is not told
    this.#tell(turn); // so that what is spoken next can refer to it
    this.#tell(reply);
  }

  // ---- in from the server

  #take(event) {
    if (this.stale.has(event.response_id)) return;
    if (event.type === "input_audio_buffer.speech_started") this.#showFiles();
    const turn = this.conversation.apply(event);
    switch (event.type) {
      case "input_audio_buffer.speech_started":
        this.speechFromMs = event.audio_start_ms;
        if (this.settings.interrupt) this.interrupt({ cancel: false });
        break;
      case "input_audio_buffer.speech_stopped":
        this.replies.askedAt = this.ear.lastSpeech(this.speechFromMs, event.audio_end_ms);
        break;
      case "response.created":
        this.active = event.response.id;
        this.on.thinking(true);
        break;
      case "response.output_audio.delta":
        this.spoke = true;
        this.replies.play(turn);
        break;
      case "response.output_item.added":
        this.on.thinking(false);
        break;
      case "response.done":
        this.on.thinking(false);
        if (this.active === event.response.id) this.active = null;
        if (turn?.state === "written") this.replies.finish(turn);
        break;
      case "conversation.item.truncated":
        this.realtime.send({ type: "conversation.item.retrieve", item_id: event.item_id });
        break;
      case "error":
        if (!HARMLESS_ERRORS.has(event.error.code)) this.on.notice(event.error.message);
    }
  }

  #connection(state, detail) {
    if (state === "open") this.#greeted(detail.resumed);
    if (state === "failed" || state === "key") this.replies.breakOff();
    this.on.state(state, detail);
  }

  #greeted(resumed) {
    if (!resumed) this.#acquaint();
    for (const frame of this.unsent.splice(0)) this.#send(frame);
  }

  /** Makes a new session what the last one was: its setup, and what was said. */
  #acquaint() {
    this.replies.breakOff();
    this.#begin();
    this.update();
    for (const turn of this.conversation.turns) {
      this.#tell(turn);
      turn.live = false; // for this session it is an item of words, with no sound to truncate
    }
  }

  #microphoneLost() {
    this.on.microphone(false);
    this.on.notice("The microphone went away. Plug it in again, or allow it, and start anew.");
  }
}

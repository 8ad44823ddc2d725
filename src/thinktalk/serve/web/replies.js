// The replies on their way to the ear: played as they arrive, followed by their captions, cut off
// where the user interrupts.

import { Speaker } from "./speaker.js";

export class Replies {
  /** on: report(the speaker's figures), latency(ms from the end of the user's speech). */
  constructor({ conversation, on }) {
    this.conversation = conversation;
    this.on = on;
    this.speaker = new Speaker({
      onreport: (report) => this.#played(report),
      onstart: (id, at) => this.#started(id, at),
      onend: (id) => this.#ended(id),
    });
    this.askedAt = null; // performance.now() when the user stopped speaking, until a reply sounds
  }

  /** The newest piece of a turn's sound has arrived. */
  play(turn) {
    this.speaker.play(turn.id, turn.pieces.at(-1));
  }

  /** All of a turn's sound has arrived. */
  finish(turn) {
    this.speaker.finish(turn.id);
  }

  /** Falls silent; returns the turns of which something was not heard. */
  async silence() {
    if (!this.#going().length) return [];
    await this.speaker.stop();
    const cut = this.#going();
    for (const turn of cut) {
      turn.cut(this.speaker.heardMs(turn.id));
      this.conversation.onchange(turn);
    }
    return cut.filter((turn) => turn.cutMs < Math.floor(turn.audioMs));
  }

  /** The session is gone and no more comes: what is here is played to its end. */
  breakOff() {
    for (const turn of this.#going()) {
      if (!turn.live || turn.state === "written") continue;
      turn.close(false);
      turn.note = "The connection was lost before the end.";
      this.finish(turn);
      this.conversation.onchange(turn);
    }
  }

  #going() {
    return this.conversation.turns.filter((t) => t.role === "reply" && t.state !== "over");
  }

  #started(id, at) {
    const turn = this.conversation.find(id);
    if (!turn || this.askedAt === null) return;
    turn.latencyMs = Math.round(at - this.askedAt);
    this.askedAt = null;
    this.on.latency(turn.latencyMs);
    this.conversation.onchange(turn);
  }

  #played(report) {
    this.on.report(report);
    for (const turn of this.#going().filter((turn) => turn.spoken)) {
      turn.heardMs = this.speaker.heardMs(turn.id);
      this.conversation.onchange(turn);
    }
  }

  #ended(id) {
    const turn = this.conversation.find(id);
    if (!turn || turn.state === "over") return;
    turn.played();
    this.conversation.onchange(turn);
  }
}

// The conversation on the page: one entry a turn, with replay and download of every reply.

import { shownLength } from "./captions.js";
import { element } from "./element.js";
import { joined, wavBytes } from "./sound.js";

const NEAR_THE_END_PX = 120; // whoever scrolled further up is reading: leave the page there

export class History {
  /** list: the <ol>; voice(): the name under which replies appear; loudspeaker(): the id of the one
      that replays them, if one was chosen. */
  constructor({ list, voice, loudspeaker }) {
    Object.assign(this, { list, voice, loudspeaker });
    this.entries = new Map(); // id -> {row, ...the elements that change}
    this.player = null; // the <audio> that replays, one at a time
    this.saved = 0;
    this.following = true; // the newest words are kept in view
    const view = list.parentElement;
    view.onscroll = () => (this.following = this.#atEnd());
    new ResizeObserver(() => this.#follow()).observe(view);
  }

  /** Shows a turn as it is now; turns: the whole conversation, for its place. */
  show(turn, turns) {
    if (turn.role === "user" && !turn.spoken && !turn.parts.length && !turn.text) return;
    const entry = this.entries.get(turn.id) ?? this.#add(turn);
    this.#place(entry, turn, turns);
    const caption = captionOf(turn);
    if (entry.caption.textContent !== caption) entry.caption.textContent = caption;
    entry.row.dataset.state = turn.cutMs === null ? turn.state : "cut";
    entry.note.textContent = turn.role === "reply" ? noteOf(turn) : "";
    const whole = turn.pieces?.length && ["written", "over"].includes(turn.state);
    if (whole && !entry.tools.childElementCount) this.#addTools(entry, turn);
    this.#follow();
  }

  remove(turn) {
    this.entries.get(turn.id)?.row.remove();
    this.entries.delete(turn.id);
  }

  #add(turn) {
    const who = turn.role === "user" ? "You" : this.voice();
    const caption = element("p", { className: "caption" });
    const note = element("p", { className: "note" });
    const tools = element("div", { className: "tools" });
    const row = element("li", { className: turn.role }, element("h3", { textContent: who }));
    row.append(...turn.parts.map(media).filter(Boolean), caption, note, tools);
    row.dataset.id = turn.id;
    const entry = { row, caption, note, tools };
    this.entries.set(turn.id, entry);
    return entry;
  }

  #place({ row }, turn, turns) {
    const after = turns.slice(turns.indexOf(turn) + 1);
    const next = after.map((other) => this.entries.get(other.id)?.row).find(Boolean) ?? null;
    if (row.parentNode && row.nextSibling === next) return;
    this.list.insertBefore(row, next);
  }

  #addTools({ tools }, turn) {
    const file = new Blob([wavBytes(joined(turn.pieces))], { type: "audio/wav" });
    const href = URL.createObjectURL(file);
    const name = `reply-${++this.saved}.wav`;
    const play = element("button", { type: "button", textContent: "Play" });
    play.setAttribute("aria-label", "Play this reply again");
    play.onclick = () => this.#replay(play, href);
    const save = element("a", { href, download: name, textContent: "Save" });
    save.setAttribute("aria-label", "Save this reply as a WAV file");
    tools.append(play, save);
  }

  #replay(button, href) {
    const again = this.player?.button !== button;
    this.player?.stop();
    if (!again) return;
    const audio = new Audio(href);
    audio.setSinkId?.(this.loudspeaker()).catch(() => {});
    const stop = () => {
      audio.pause();
      button.textContent = "Play";
      this.player = null;
    };
    audio.onended = stop;
    this.player = { button, stop };
    button.textContent = "Stop";
    audio.play();
  }

  #atEnd() {
    const view = this.list.parentElement;
    return view.scrollHeight - view.scrollTop - view.clientHeight < NEAR_THE_END_PX;
  }

  #follow() {
    if (!this.following) return;
    const view = this.list.parentElement;
    view.scrollTop = view.scrollHeight;
  }
}

function captionOf(turn) {
  const typed = turn.parts.filter((part) => part.kind === "text").map((part) => part.text);
  const text = turn.text || typed.join("\n");
  if (turn.role === "user") {
    if (text || !turn.spoken) return text;
    return { hearing: "…", heard: "…" }[turn.state] ?? "(spoken)";
  }
  const shown = text.slice(0, shownLength(turn));
  return shown || (turn.state === "over" && turn.cutMs === null) ? shown : "…";
}

function noteOf(turn) {
  const notes = [turn.note];
  if (turn.cutMs !== null) notes.unshift("interrupted");
  if (turn.latencyMs !== null) notes.push(`${seconds(turn.latencyMs)} after you`);
  return notes.filter(Boolean).join(" · ");
}

const seconds = (ms) => `${(ms / 1000).toFixed(2)} s`;

/** What was shown or dropped, to look at or listen to; null for words. */
function media(part) {
  const name = part.name ?? "picture";
  if (part.kind === "image") return element("img", { src: part.url, alt: name });
  if (part.kind === "video")
    return element("video", { src: part.url, controls: true, title: name });
  if (part.kind !== "audio") return null;
  const src = URL.createObjectURL(new Blob([wavBytes(part.pcm)], { type: "audio/wav" }));
  return element("audio", { src, controls: true, title: name });
}

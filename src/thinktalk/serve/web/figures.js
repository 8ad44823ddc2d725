// The figures on view: how long the replies take, and how well their sound flows.

import { element } from "./element.js";

export class Figures {
  /** list: a <dl>. */
  constructor(list) {
    this.latencies = [];
    this.fields = {};
    const rows = {
      latency: ["First sound", "from the end of my speech to the first sound of the last reply"],
      median: ["Median", "of all replies so far"],
      buffer: ["Buffer", "reply sound that has arrived and not been played yet"],
      gaps: ["Gaps", "how often the sound ran dry inside replies, and for how long in all"],
      reconnects: ["Reconnects", "how often the connection was lost and came back"],
    };
    for (const [name, [title, help]] of Object.entries(rows)) {
      this.fields[name] = element("dd", { id: `figure-${name}`, textContent: "–" });
      list.append(element("div", { title: help }, element("dt", {}, title), this.fields[name]));
    }
    this.reconnects = 0;
  }

  latency(ms) {
    this.latencies.push(ms);
    const sorted = [...this.latencies].sort((a, b) => a - b);
    this.#set("latency", `${ms} ms`);
    this.#set("median", `${sorted[Math.floor(sorted.length / 2)]} ms of ${sorted.length}`);
  }

  speaker({ bufferedMs, underruns, gapMs }) {
    this.#set("buffer", `${bufferedMs} ms`);
    this.#set("gaps", underruns ? `${underruns}, ${gapMs} ms` : "none");
  }

  reconnected() {
    this.#set("reconnects", String(++this.reconnects));
  }

  #set(name, text) {
    if (this.fields[name].textContent !== text) this.fields[name].textContent = text;
  }
}

// The loudspeaker: plays replies as their samples arrive, and knows how much of each was heard.

import { RATE_HZ, toFloat, toMs, toSamples } from "./sound.js";

export class Speaker {
  /** onreport(figures): about every 21 ms {bufferedMs, playing, underruns, gapMs, level};
      onstart(item, at): its first sample is heard at this performance.now(); onend(item). */
  constructor({ onreport, onstart, onend }) {
    Object.assign(this, { onreport, onstart, onend });
    this.context = null;
    this.opening = null;
    this.played = new Map(); // item -> samples that left the queue
    this.stops = new Map(); // number of a request -> what waits for its answer
    this.quiet = false;
    this.device = "";
  }

  get isOpen() {
    return this.context !== null;
  }

  /** Must first be called from a click or a key, or browsers keep it silent. */
  open() {
    this.opening ??= this.#start().finally(() => (this.opening = null));
    return this.opening;
  }

  /** samples: Int16Array at 24 kHz, appended to the queue. */
  play(item, samples) {
    const floats = toFloat(samples);
    this.node?.port.postMessage({ item, samples: floats, at: 0 }, [floats.buffer]);
  }

  /** No more samples of this item will come. */
  finish(item) {
    this.node?.port.postMessage({ item, end: true });
  }

  /** Falls silent within milliseconds and forgets what waits; resolves when it is so. */
  stop() {
    if (!this.node) return Promise.resolve();
    const number = (this.stopNumber = (this.stopNumber ?? 0) + 1);
    this.node.port.postMessage({ stop: number });
    return new Promise((resolve) => this.stops.set(number, resolve));
  }

  /** Milliseconds of an item that have reached the ear: what is under way to it is not counted. */
  heardMs(item) {
    const samples = (this.played.get(item) ?? 0) - toSamples(this.#latencyMs());
    return Math.max(0, Math.round(toMs(samples)));
  }

  /** Silent or not; replies go on either way. */
  setQuiet(quiet) {
    this.quiet = quiet;
    if (this.gain) this.gain.gain.setTargetAtTime(quiet ? 0 : 1, this.context.currentTime, 0.01);
  }

  /** The loudspeaker to play on, "" for the browser's choice; rejects if it is not there. Some
      browsers let nobody choose. */
  async setDevice(device) {
    this.device = device;
    await this.context?.setSinkId?.(device);
  }

  async #start() {
    if (this.isOpen) return this.context.resume();
    // The replies' own rate: the browser brings it to the device's, and a played sample is one of
    // theirs.
    const context = new AudioContext({ sampleRate: RATE_HZ, latencyHint: "interactive" });
    await context.audioWorklet.addModule(new URL("speaker_worklet.js", import.meta.url));
    const node = new AudioWorkletNode(context, "playback", {
      numberOfInputs: 0,
      outputChannelCount: [1],
    });
    node.port.onmessage = ({ data }) => this.#take(data);
    const gain = new GainNode(context, { gain: this.quiet ? 0 : 1 });
    node.connect(gain).connect(context.destination);
    Object.assign(this, { context, node, gain });
    // What was chosen some other day may be gone: then it is the browser's choice.
    if (this.device) await context.setSinkId?.(this.device).catch(() => {});
    await context.resume();
  }

  #take(message) {
    for (const [item, samples] of message.played ?? []) this.played.set(item, samples);
    if (message.started !== undefined) {
      this.onstart(message.started, performance.now() + this.#latencyMs());
    } else if (message.ended !== undefined) {
      this.onend(message.ended);
    } else if (message.stopped !== undefined) {
      this.stops.get(message.stopped)?.();
      this.stops.delete(message.stopped);
    } else {
      const { playing, underruns, level } = message;
      const [bufferedMs, gapMs] = [toMs(message.buffered), toMs(message.gap)].map(Math.round);
      this.onreport({ bufferedMs, playing, underruns, gapMs, level });
    }
  }

  #latencyMs() {
    const { outputLatency, baseLatency } = this.context ?? {};
    return (outputLatency || baseLatency || 0) * 1000;
  }
}

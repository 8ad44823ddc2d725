// On the audio thread: a queue of reply samples -> the loudspeaker, without a click at any edge.
//
// The volume follows one rule, sample by sample: it falls to zero over the last FADE_SAMPLES that
// are there, or at once when everything is to stop, and rises again otherwise.

const FADE_SAMPLES = 144; // 6 ms: too short to be heard as a fade, too long to be heard as a click
const FIRST_BUFFER_MS = 40; // wait for so much sound before a reply begins; ...
const MAX_BUFFER_MS = 640; // ... twice as much whenever it ran dry, half after a smooth reply
const QUANTA_PER_REPORT = 4; // about every 21 ms

class Playback extends AudioWorkletProcessor {
  constructor() {
    super();
    this.queue = []; // {item, samples, at}, or {item, end: true}
    this.buffered = 0; // samples that wait
    this.playing = false;
    this.stopping = null; // the number of the request to stop
    this.waitMs = FIRST_BUFFER_MS;
    this.volume = 0;
    this.played = new Map(); // item -> samples
    this.underruns = 0;
    this.gapSamples = 0; // silence inside replies, because nothing was there
    this.starved = false;
    this.smooth = true; // whether this reply has not run dry yet
    this.quanta = 0;
    this.energy = 0;
    this.port.onmessage = ({ data }) => this.take(data);
  }

  take(message) {
    if (message.stop !== undefined) {
      this.stopping = message.stop;
      if (!this.playing) this.flush();
      return;
    }
    this.queue.push(message);
    this.buffered += message.samples?.length ?? 0;
  }

  process(_, [[output]]) {
    if (!this.playing) this.begin();
    if (this.playing) {
      for (let at = 0; at < output.length && this.playing; at++) output[at] = this.next();
    }
    if (!this.playing && this.starved) this.gapSamples += output.length;
    for (const value of output) this.energy += value * value;
    if (++this.quanta % QUANTA_PER_REPORT === 0) this.report(output.length);
    return true;
  }

  /** Starts when enough waits, or when no more will come. */
  begin() {
    const enough = this.buffered >= (sampleRate * this.waitMs) / 1000;
    if (!enough && !this.complete) return;
    if (this.buffered === 0) return this.drop();
    this.playing = true;
    this.starved = false;
  }

  /** Whether the last thing in the queue is a reply's end. */
  get complete() {
    return this.queue.length > 0 && Boolean(this.queue[this.queue.length - 1].end);
  }

  /** The next sample; leaves `playing` false when it was the last. */
  next() {
    const head = this.head();
    if (!head) {
      this.playing = false;
      return 0;
    }
    const fading = this.stopping !== null || this.buffered <= FADE_SAMPLES;
    this.volume = Math.max(0, Math.min(1, this.volume + (fading ? -1 : 1) / FADE_SAMPLES));
    const value = head.samples[head.at++] * this.volume;
    this.buffered--;
    this.played.set(head.item, (this.played.get(head.item) ?? 0) + 1);
    if (this.stopping !== null && this.volume === 0) this.flush();
    else if (this.buffered === 0) this.ranOut();
    return value;
  }

  /** The piece that holds the next sample; reply ends before it are reported and removed. */
  head() {
    while (this.queue.length) {
      const first = this.queue[0];
      if (first.end) this.end(first.item);
      else if (first.at < first.samples.length) {
        if (!this.played.has(first.item)) this.port.postMessage({ started: first.item });
        return first;
      }
      this.queue.shift();
    }
    return null;
  }

  end(item) {
    this.port.postMessage({ ended: item, played: [...this.played] });
    this.played.delete(item); // or the reports would grow with the conversation
    if (this.smooth) this.waitMs = Math.max(FIRST_BUFFER_MS, this.waitMs / 2);
    this.smooth = true;
  }

  ranOut() {
    this.playing = false;
    if (this.complete) return this.drop();
    this.starved = true;
    this.underruns++;
    this.waitMs = Math.min(MAX_BUFFER_MS, this.waitMs * 2);
    this.smooth = false;
    if (this.stopping !== null) this.flush();
  }

  /** Only ends are left: says so, and is ready for the next reply. */
  drop() {
    this.head();
    this.starved = false;
    this.volume = 0;
    if (this.stopping !== null) this.flush();
  }

  /** Forgets everything that waits and answers the request to stop. */
  flush() {
    this.port.postMessage({ stopped: this.stopping, played: [...this.played] });
    Object.assign(this, { queue: [], buffered: 0, playing: false, starved: false, volume: 0 });
    this.played.clear();
    this.stopping = null;
  }

  report(quantum) {
    this.port.postMessage({
      played: [...this.played],
      buffered: this.buffered,
      playing: this.playing,
      underruns: this.underruns,
      gap: this.gapSamples,
      level: Math.sqrt(this.energy / (quantum * QUANTA_PER_REPORT)),
    });
    this.energy = 0;
  }
}

registerProcessor("playback", Playback);

// On the audio thread: microphone samples -> frames of 20 ms, PCM16 at 24 kHz, with their level.

import { Resampler } from "./resampler.js";

const RATE_HZ = 24000;
const FRAME_SAMPLES = 480; // 20 ms: a turn's end is noticed soon, and the network is not flooded

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.resampler = new Resampler(sampleRate, RATE_HZ);
    this.frame = new Float32Array(FRAME_SAMPLES);
    this.filled = 0;
    this.open = true;
    this.port.onmessage = () => (this.open = false);
  }

  process([channels]) {
    // A source that delivers nothing counts as silence, for the session's clock runs on samples.
    const samples = channels.length ? mono(channels) : new Float32Array(128);
    for (const value of this.resampler.push(samples)) {
      this.frame[this.filled++] = value;
      if (this.filled === FRAME_SAMPLES) this.send();
    }
    return this.open;
  }

  send() {
    const pcm = new Int16Array(FRAME_SAMPLES);
    let energy = 0;
    this.frame.forEach((value, at) => {
      energy += value * value;
      pcm[at] = Math.max(-1, Math.min(1, value)) * 32767;
    });
    const level = Math.sqrt(energy / FRAME_SAMPLES);
    this.port.postMessage({ pcm, level }, [pcm.buffer]);
    this.filled = 0;
  }
}

function mono(channels) {
  if (channels.length === 1) return channels[0];
  return channels[0].map((_, at) => channels.reduce((sum, c) => sum + c[at], 0) / channels.length);
}

registerProcessor("capture", Capture);

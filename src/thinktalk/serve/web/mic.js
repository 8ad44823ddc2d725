// The microphone: opened with echo cancellation, it calls onframe({pcm, level}) every 20 ms.

import { ask } from "./devices.js";

export class Microphone {
  /** device(): the id of the wanted microphone, if any. onframe: pcm is Int16Array [480] at 24 kHz,
      level its root mean square, 0..1. onlost: the device went away (unplugged, or the permission
      was taken back). */
  constructor({ device = () => "", onframe, onlost }) {
    Object.assign(this, { device, onframe, onlost });
    this.context = null;
    this.opening = null; // a promise, so that two clicks ask for one microphone
  }

  get isOpen() {
    return this.context !== null;
  }

  /** Asks for the microphone; rejects with the browser's DOMException if it is not given. */
  open() {
    this.opening ??= this.#start().finally(() => (this.opening = null));
    return this.opening;
  }

  /** Goes on with the microphone that is wanted now. */
  async reopen() {
    this.close();
    await this.open();
  }

  close() {
    if (this.node) {
      this.node.port.onmessage = null; // what is under way was said after the end
      this.node.port.postMessage("close");
    }
    this.stream?.getTracks().forEach((track) => track.stop());
    this.context?.close();
    this.context = this.stream = this.node = null;
  }

  async #start() {
    if (this.isOpen) return;
    if (!navigator.mediaDevices?.getUserMedia) {
      throw new DOMException("no microphone on an insecure page", "SecurityError");
    }
    const constraints = {
      channelCount: 1,
      echoCancellation: true, // or the model hears itself and interrupts itself
      noiseSuppression: true,
      autoGainControl: true,
    };
    const stream = await ask("audio", constraints, this.device());
    // At the device's own rate: not every browser connects a microphone to a context of another.
    const context = new AudioContext({ latencyHint: "interactive" });
    try {
      await context.audioWorklet.addModule(new URL("mic_worklet.js", import.meta.url));
      await context.resume();
    } catch (error) {
      stream.getTracks().forEach((track) => track.stop());
      context.close();
      throw error;
    }
    const source = context.createMediaStreamSource(stream);
    const node = new AudioWorkletNode(context, "capture", { numberOfOutputs: 0 });
    node.port.onmessage = ({ data }) => this.onframe(data);
    source.connect(node);
    stream.getAudioTracks()[0].onended = () => {
      this.close();
      this.onlost();
    };
    Object.assign(this, { stream, context, node });
  }
}

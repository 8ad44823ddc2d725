// The camera or the screen: a preview on the page, and JPEG frames of it for the model.

import { ask } from "./devices.js";

const FRAME_SIDE = 448; // pixels of the longer side: a frame is worth about 16 x 16 tokens
const STILL_SIDE = 1344; // a single picture may cost more, and small print can be read
const JPEG_QUALITY = 0.8;

export class Camera {
  /** preview: a <video> element. device(): the id of the wanted camera, if any. onend: the user
      ended it outside the page. */
  constructor({ preview, device, onend }) {
    Object.assign(this, { preview, device, onend });
    this.canvas = document.createElement("canvas");
    this.stream = null;
    this.source = null; // "camera", "screen" or null
  }

  /** source: "camera" or "screen"; rejects with the browser's DOMException. One at a time. */
  async open(source) {
    if (source === this.source) this.close(); // phones open one camera at a time
    const stream = await this.#ask(source);
    this.close();
    this.preview.srcObject = this.stream = stream;
    this.source = source;
    stream.getVideoTracks()[0].onended = () => this.stream === stream && this.#ended();
    await this.preview.play();
  }

  /** The id of the camera that is on. */
  get deviceId() {
    return this.stream?.getVideoTracks()[0].getSettings().deviceId;
  }

  close() {
    this.stream?.getTracks().forEach((track) => track.stop());
    this.preview.srcObject = this.stream = this.source = null;
  }

  /** A frame of its film, as a JPEG data URI; null while there is no picture yet. */
  frame() {
    return this.#picture(FRAME_SIDE);
  }

  /** The same, larger, as a picture by itself. */
  still() {
    return this.#picture(STILL_SIDE);
  }

  #picture(longest) {
    const { videoWidth, videoHeight } = this.preview;
    if (!this.stream || !videoWidth) return null;
    return jpeg(this.canvas, this.preview, videoWidth, videoHeight, longest);
  }

  #ask(source) {
    const media = navigator.mediaDevices;
    if (!media) throw new DOMException("no camera on an insecure page", "SecurityError");
    const video = { width: { ideal: 640 }, height: { ideal: 480 }, frameRate: { ideal: 15 } };
    if (source === "camera") {
      return ask("video", { ...video, facingMode: "environment" }, this.device());
    }
    if (!media.getDisplayMedia) {
      throw new DOMException("this browser shares no screen", "NotSupportedError");
    }
    return media.getDisplayMedia({ video: { frameRate: { ideal: 5 } }, audio: false });
  }

  #ended() {
    this.close();
    this.onend();
  }
}

/** Draws a picture not larger than `longest` pixels a side -> JPEG data URI. */
export function jpeg(canvas, picture, width, height, longest) {
  const scale = Math.min(1, longest / Math.max(width, height));
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const pen = canvas.getContext("2d");
  pen.fillStyle = "white"; // under what is transparent, as the model's own reader does it
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", JPEG_QUALITY);
}

// Files that were picked, dropped or pasted -> parts of the next message (messages.js).

import { jpeg } from "./camera.js";
import { element } from "./element.js";
import { isLarge } from "./messages.js";
import { RATE_HZ, toPcm } from "./sound.js";

const LONGEST_SIDE = 1792; // pixels of a picture that are sent
const AS_THEY_ARE = ["image/jpeg", "image/png"];
const AS_THEY_ARE_BYTES = 2_000_000;
const MOST_VIDEO_BYTES = 200_000_000; // more does not fit a browser's string in base64

export class Tray {
  /** list: a <ul>; onerror(sentence). */
  constructor({ list, onerror }) {
    Object.assign(this, { list, onerror });
    this.parts = [];
    this.reading = 0;
  }

  /** Reads files in; those that cannot be read are told to onerror. */
  async add(files) {
    for (const file of files) {
      this.reading++;
      this.#show();
      try {
        this.parts.push({ name: file.name, ...(await read(file)) });
      } catch (error) {
        this.onerror(`${file.name}: ${error.message}`);
      }
      this.reading--;
      this.#show();
    }
  }

  /** What is in the tray, which is empty after this. */
  take() {
    const parts = this.parts;
    this.parts = [];
    this.#show();
    return parts;
  }

  /** What goes with what is being said; nothing where the talk cannot be shown so much at once. */
  takeAlong() {
    if (!isLarge(this)) return this.take();
    this.onerror("Those files are too large to talk about. Write what you want to know.");
    return [];
  }

  /** Puts parts back that could not be sent. */
  put(parts) {
    this.parts.unshift(...parts);
    this.#show();
  }

  #show() {
    this.list.replaceChildren(...this.parts.map((part) => this.#chip(part)));
    if (this.reading) this.list.append(element("li", { textContent: "reading …" }));
    this.list.hidden = !this.list.childElementCount;
  }

  #chip(part) {
    const remove = element("button", { type: "button", textContent: "×" });
    remove.setAttribute("aria-label", `Remove ${part.name}`);
    remove.onclick = () => {
      this.parts = this.parts.filter((other) => other !== part);
      this.#show();
    };
    const chip = element("li", {}, part.name, remove);
    if (part.kind === "image") chip.prepend(element("img", { src: part.url, alt: "" }));
    return chip;
  }
}

async function read(file) {
  const kind = file.type.split("/")[0];
  if (kind === "image") return { kind, url: await picture(file) };
  if (kind === "audio") return { kind, pcm: await recording(file) };
  if (kind === "video") return { kind, url: await film(file) };
  throw new Error("only pictures, recordings and videos can be sent.");
}

async function picture(file) {
  const bitmap = await createImageBitmap(file).catch(() => {
    throw new Error("this browser cannot read that picture.");
  });
  const { width, height } = bitmap;
  const small = file.size <= AS_THEY_ARE_BYTES && Math.max(width, height) <= LONGEST_SIDE;
  if (small && AS_THEY_ARE.includes(file.type)) return dataUri(file);
  return jpeg(document.createElement("canvas"), bitmap, width, height, LONGEST_SIDE);
}

/** Any recording that the browser can read -> Int16Array, one channel at 24 kHz. */
async function recording(file) {
  const context = new OfflineAudioContext(1, 1, RATE_HZ);
  const sound = await context.decodeAudioData(await file.arrayBuffer()).catch(() => {
    throw new Error("this browser cannot read that recording.");
  });
  const channels = Array.from({ length: sound.numberOfChannels }, (_, k) =>
    sound.getChannelData(k),
  );
  const mono = channels[0].map(
    (_, at) => channels.reduce((sum, c) => sum + c[at], 0) / channels.length,
  );
  return toPcm(mono);
}

function film(file) {
  if (file.size <= MOST_VIDEO_BYTES) return dataUri(file);
  throw new Error("the video is too large for a page. Send a shorter one.");
}

function dataUri(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("the file cannot be read."));
    reader.readAsDataURL(file);
  });
}

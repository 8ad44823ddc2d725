// What the model sees: the buttons for camera and screen, and the preview.

import { Camera } from "./camera.js";
import { offered } from "./devices.js";

export class Stage {
  /** at(id): an element of the page. devices: {camera}, the id of the one that was used last.
      on: begin(source), error(error, source), camera(id of the one that is used from now on). */
  constructor({ at, devices, on }) {
    Object.assign(this, { at, devices, on, turn: Promise.resolve() });
    this.camera = new Camera({
      preview: at("preview"),
      device: () => devices.camera,
      onend: () => this.#show(),
    });
    for (const source of ["camera", "screen"]) {
      at(source).onclick = () => this.#try(source, () => this.#toggle(source));
    }
    at("flip").onclick = () => this.#try("camera", () => this.#flip());
  }

  /** One after another: a click while a camera opens is meant for what comes of it. */
  #try(source, action) {
    this.turn = this.turn.then(() => this.#take(source, action));
  }

  async #take(source, action) {
    this.on.begin(source);
    try {
      await action();
    } catch (error) {
      this.on.error(error, source);
    }
    await this.#show();
  }

  async #toggle(source) {
    if (this.camera.source === source) this.camera.close();
    else await this.camera.open(source);
  }

  /** Goes on with the next camera: one that looks the other way, if there is one. */
  async #flip() {
    if (this.camera.source !== "camera") return; // it was turned off meanwhile
    const cameras = await offered("camera");
    const place = cameras.findIndex(({ deviceId }) => deviceId === this.camera.deviceId);
    const others = [...cameras.slice(place + 1), ...cameras.slice(0, Math.max(0, place))];
    const here = facing(cameras[place]);
    this.on.camera((others.find((other) => facing(other) !== here) ?? others[0]).deviceId);
    await this.camera.open("camera");
  }

  async #show() {
    const { source } = this.camera;
    for (const name of ["camera", "screen"]) {
      this.at(name).setAttribute("aria-pressed", String(source === name));
    }
    this.at("stage").hidden = !source;
    this.at("seen").textContent = source === "screen" ? "Sharing the screen" : "Camera on";
    this.at("flip").hidden = source !== "camera" || (await offered("camera")).length < 2;
  }
}

/** "user", "environment" or, as on most computers, undefined. */
const facing = (camera) => camera?.getCapabilities?.().facingMode?.[0];

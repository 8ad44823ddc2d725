// The microphones, loudspeakers and cameras that the browser offers. It tells their names only once
// the user has allowed one of them.

import { element } from "./element.js";

const KINDS = { microphone: "audioinput", loudspeaker: "audiooutput", camera: "videoinput" };
const LISTED = ["microphone", "loudspeaker"];
const ALIASES = ["", "default", "communications"]; // of devices that have an id of their own

/** Devices of a kind: [{deviceId, label}]. */
export async function offered(kind) {
  const devices = (await navigator.mediaDevices?.enumerateDevices()) ?? [];
  return devices.filter((d) => d.kind === KINDS[kind] && !ALIASES.includes(d.deviceId));
}

/** Asks for a track: media is "audio" or "video", wanted the id of a device, which need not be
    there any more. Resolves with its stream, rejects with the browser's DOMException. */
export async function ask(media, constraints, wanted) {
  const devices = navigator.mediaDevices;
  if (!wanted) return devices.getUserMedia({ [media]: constraints });
  const { facingMode, ...rest } = constraints; // the device decides where it looks
  return devices
    .getUserMedia({ [media]: { ...rest, deviceId: { exact: wanted } } })
    .catch((error) => {
      if (error.name !== "OverconstrainedError") throw error;
      return devices.getUserMedia({ [media]: constraints });
    });
}

/** The lists of the options, kept up to date as devices come and go. */
export class DeviceLists {
  /** fields: a <select> for each of LISTED; chosen: {microphone, loudspeaker} ids, "" for none. */
  constructor({ fields, chosen }) {
    Object.assign(this, { fields, chosen });
    const { loudspeaker } = fields;
    loudspeaker.parentElement.hidden = !("setSinkId" in AudioContext.prototype);
    navigator.mediaDevices?.addEventListener("devicechange", () => this.load());
    this.load();
  }

  async load() {
    for (const name of LISTED) {
      const devices = await offered(name);
      const options = devices.map((d) => element("option", { value: d.deviceId }, d.label));
      const field = this.fields[name];
      field.replaceChildren(element("option", { value: "" }, "as the browser chooses"), ...options);
      field.value = this.chosen[name];
      if (field.selectedIndex < 0) field.value = ""; // it is not there; it may come back
    }
  }
}

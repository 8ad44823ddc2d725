// What the user chose: voice, persona, how turns end, devices, the key; kept in this browser.

import { element } from "./element.js";
import { authorization } from "./realtime.js";

const STORED = "thinktalk";

export class Settings {
  /** form: its fields are named voice, persona, turns, pauseMs, interrupt, microphone,
      loudspeaker and key. onchange(name): the user changed a field. */
  constructor({ form, onchange }) {
    this.fields = form.elements;
    this.model = undefined; // the server's own, once it said so
    this.devices = { microphone: "", loudspeaker: "", camera: "" }; // ids; "": the browser's choice
    this.#restore();
    form.onsubmit = (event) => event.preventDefault();
    form.oninput = () => this.#showPause();
    form.onchange = ({ target }) => {
      if (target.name in this.devices) this.devices[target.name] = target.value;
      this.#keep();
      onchange(target.name);
    };
    this.#showPause();
  }

  get voice() {
    return this.fields.voice.value;
  }

  get persona() {
    return this.fields.persona.value.trim();
  }

  get turns() {
    return this.fields.turns.value;
  }

  get pauseMs() {
    return Number(this.fields.pauseMs.value);
  }

  get interrupt() {
    return this.fields.interrupt.checked;
  }

  get key() {
    return this.fields.key.value.trim();
  }

  /** What is chosen outside the form. */
  chooseCamera(deviceId) {
    this.devices.camera = deviceId;
    this.#keep();
  }

  /** Asks the server what it offers; returns the HTTP status, 0 if it cannot be reached. */
  async load() {
    const headers = authorization(this.key);
    const answers = await Promise.all(
      ["v1/voices", "v1/models"].map((path) => fetch(path, { headers }).catch(() => null)),
    );
    const [voices, models] = await Promise.all(
      answers.map((answer) => (answer?.ok ? answer.json() : null)),
    );
    if (voices) this.#offer(namesIn(voices));
    this.model = models?.data?.[0]?.id;
    return answers[0]?.status ?? 0;
  }

  #offer(names) {
    const { voice } = this.fields;
    const wanted = voice.value || this.wantedVoice;
    voice.replaceChildren(...names.map((name) => element("option", { value: name }, name)));
    if (names.includes(wanted)) voice.value = wanted;
  }

  #showPause() {
    const { pauseMs, pauseText, turns } = this.fields;
    pauseText.value = `${(pauseMs.value / 1000).toFixed(1)} s`;
    pauseMs.disabled = turns.value !== "automatic";
  }

  #keep() {
    const { voice, persona, turns, pauseMs, interrupt, devices } = this;
    const kept = { voice, persona, turns, pauseMs, interrupt, devices };
    localStorage.setItem(STORED, JSON.stringify(kept));
    sessionStorage.setItem(STORED, this.key); // a key does not outlive the tab
  }

  #restore() {
    const kept = JSON.parse(localStorage.getItem(STORED) ?? "{}");
    this.wantedVoice = kept.voice;
    Object.assign(this.devices, kept.devices);
    for (const name of ["persona", "turns", "pauseMs"]) {
      if (kept[name] !== undefined) this.fields[name].value = kept[name];
    }
    if (kept.interrupt !== undefined) this.fields.interrupt.checked = kept.interrupt;
    this.fields.key.value = sessionStorage.getItem(STORED) ?? "";
  }
}

/** {"data": [{"id"}]}, {"voices": [...]} or a bare list -> names. */
function namesIn(answer) {
  const list = Array.isArray(answer) ? answer : (answer.data ?? answer.voices ?? []);
  return list.map((voice) => (typeof voice === "string" ? voice : (voice.id ?? voice.name)));
}

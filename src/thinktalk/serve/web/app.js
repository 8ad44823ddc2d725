// The page: its buttons and keys -> the dialogue, and what happens there -> its captions, figures
// and sentences. Everything else is in the file that has its name.

import { Conversation } from "./conversation.js";
import { DeviceLists } from "./devices.js";
import { Dialogue } from "./dialogue.js";
import { Figures } from "./figures.js";
import { History } from "./history.js";
import { Notices, sentence } from "./notices.js";
import { ConnectionError } from "./realtime.js";
import { Settings } from "./settings.js";
import { Stage } from "./stage.js";
import { Strip } from "./strip.js";
import { Tray } from "./tray.js";

const at = (id) => document.getElementById(id);

const notices = new Notices(at("notices"));
const figures = new Figures(at("figures"));
const settings = new Settings({ form: at("settings"), onchange: settingChanged });
const history = new History({
  list: at("history"),
  voice: () => settings.voice || "Reply",
  loudspeaker: () => settings.devices.loudspeaker,
});
const fields = { microphone: at("microphone"), loudspeaker: at("loudspeaker") };
const lists = new DeviceLists({ fields, chosen: settings.devices });
const strip = new Strip({ canvas: document.querySelector("#strip canvas"), meter: at("level") });
const tray = new Tray({ list: at("tray"), onerror: (text) => notices.show(text) });
const { camera } = new Stage({
  at,
  devices: settings.devices,
  on: {
    begin: (source) => notices.clear(source),
    error: complain,
    camera: (id) => settings.chooseCamera(id),
  },
});
const conversation = new Conversation({
  onchange: turnChanged,
  onremove: (turn) => history.remove(turn),
});
const dialogue = new Dialogue({
  settings,
  camera,
  tray,
  conversation,
  on: {
    state: connectionChanged,
    microphone: microphoneChanged,
    pressed,
    thinking: (busy) => (at("thinking").hidden = !busy),
    level: (level) => strip.take(0, level),
    report: reported,
    latency: (ms) => figures.latency(ms),
    notice: (text) => notices.show(text, { about: "dialogue" }),
  },
});

// ---- talking

const held = () => settings.turns === "held";

async function startTalking() {
  notices.clear("microphone");
  try {
    await dialogue.talk();
  } catch (error) {
    complain(error, "microphone");
  }
}

at("talk").onclick = () => {
  if (held() && dialogue.microphone.isOpen) return; // there it is held, not clicked
  if (dialogue.microphone.isOpen) dialogue.hush();
  else startTalking();
};

at("off").onclick = () => dialogue.hush();

const press = () => dialogue.microphone.isOpen && dialogue.press();
const release = () => dialogue.release().catch((error) => complain(error));

at("talk").onpointerdown = (event) => {
  if (!held() || event.button) return;
  event.target.setPointerCapture(event.pointerId); // the release counts wherever it happens
  press();
};
at("talk").onpointerup = at("talk").onpointercancel = release;
at("talk").oncontextmenu = (event) => held() && event.preventDefault(); // a long press on a phone

const TYPING = "input, textarea, select, a, video, audio, button:not(#talk)";

document.onkeydown = (event) => {
  if (event.key === "Escape") dialogue.interrupt({ cancel: true });
  if (event.code !== "Space" || !held() || event.target.closest?.(TYPING)) return;
  event.preventDefault();
  if (event.repeat) return;
  if (dialogue.microphone.isOpen) press();
  else startTalking();
};
document.onkeyup = ({ code }) => code === "Space" && release();
window.onblur = release; // the key's release would go elsewhere

at("stop").onclick = () => dialogue.interrupt({ cancel: true });

let wakeLock = null; // a phone's screen stays on while one talks

async function microphoneChanged(open) {
  showTalk();
  if (open) lists.load(); // now they have names
  else strip.take(0, 0);
  const lock = open ? navigator.wakeLock?.request("screen").catch(() => null) : null;
  (await wakeLock)?.release();
  wakeLock = lock;
}

function pressed() {
  notices.clear("dialogue");
  showTalk();
}

function showTalk() {
  const open = dialogue.microphone.isOpen;
  const { pressed } = dialogue;
  at("talk").setAttribute("aria-pressed", String(held() ? pressed : open));
  at("talk").classList.toggle("open", open);
  const automatic = open ? "Stop talking" : "Talk";
  const name = held() && open ? (pressed ? "Release to send" : "Hold to talk") : automatic;
  at("talk").lastElementChild.textContent = name;
  at("off").hidden = !(held() && open);
}

// ---- writing and showing

at("composer").onsubmit = async (event) => {
  event.preventDefault();
  const text = at("words").value.trim();
  const parts = tray.take();
  const still = camera.still();
  if (still && text) parts.unshift({ kind: "image", name: camera.source, url: still });
  if (text) parts.push({ kind: "text", text });
  if (!parts.length) return;
  notices.clear("dialogue");
  at("words").value = "";
  fitWords();
  notices.clear("dialogue");
  try {
    await dialogue.say(parts);
  } catch (error) {
    at("words").value = text; // nothing that was written is lost
    tray.put(parts.filter((part) => part.kind !== "text" && part.url !== still));
    complain(error, "loudspeaker");
  }
};

at("words").onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  at("composer").requestSubmit();
};
at("words").oninput = fitWords;

function fitWords() {
  at("words").style.height = "auto";
  at("words").style.height = `${at("words").scrollHeight}px`;
}

at("attach").onclick = () => at("files").click();
at("files").onchange = async ({ target }) => {
  await tray.add([...target.files]);
  target.value = ""; // so that the same file can be picked again
};
document.onpaste = ({ clipboardData }) => tray.add([...clipboardData.files]);
document.ondragover = (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
};
document.ondragleave = ({ relatedTarget }) => {
  if (!relatedTarget) document.body.classList.remove("dropping");
};
document.ondrop = (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  tray.add([...event.dataTransfer.files]);
};

// ---- options

async function settingChanged(name) {
  if (name === "key") {
    if ((await settings.load()) !== 200) return;
    notices.clear("connection");
    if (dialogue.microphone.isOpen) connect();
  } else if (name in settings.devices) changeDevice(name);
  else dialogue.update(name);
  if (name === "turns") showTalk();
}

async function changeDevice(name) {
  const { microphone, replies } = dialogue;
  notices.clear(name);
  try {
    if (name === "loudspeaker") await replies.speaker.setDevice(settings.devices.loudspeaker);
    else if (microphone.isOpen) await microphone.reopen();
  } catch (error) {
    if (!microphone.isOpen) microphoneChanged(false);
    complain(error, name);
  }
}

at("options").onclick = () => {
  const open = document.body.classList.toggle("options");
  at("options").setAttribute("aria-expanded", String(open));
};
at("quiet").onclick = () => {
  const { speaker } = dialogue.replies;
  speaker.setQuiet(!speaker.quiet);
  at("quiet").setAttribute("aria-pressed", String(speaker.quiet));
};
at("fresh").onclick = () => dialogue.fresh().catch((error) => complain(error, "microphone"));

// ---- what happens

function turnChanged(turn) {
  history.show(turn, conversation.turns);
  at("hello").hidden = conversation.turns.length > 0;
  const going = ({ role, state }) => role === "reply" && state !== "over";
  at("stop").disabled = !conversation.turns.some(going);
  const silent = !turn.pieces?.length || dialogue.replies.speaker.quiet;
  // A screen reader speaks only what no other voice speaks.
  if (turn.role === "reply" && turn.state === "over" && silent && !turn.announced) {
    turn.announced = true;
    at("spoken").textContent = turn.text;
  }
}

function reported(report) {
  strip.take(1, report.level);
  figures.speaker(report);
}

const STATES = {
  idle: "Not connected",
  connecting: "Connecting …",
  open: "Connected",
  lost: "Connection lost, trying again …",
  full: "Waiting for a free place …",
  key: "Key needed",
  failed: "Not connected",
};
const FULL = "The server is full. You get the next free place; this page keeps asking.";
const LOST = "The connection was lost. It is being restored, and the conversation will go on.";
let interrupted = false; // the connection, until it is open again

function connectionChanged(state, { message, resumed }) {
  at("state").textContent = STATES[state];
  document.body.dataset.connection = state;
  if (state === "connecting") return;
  notices.clear("connection");
  const about = "connection";
  if (state === "open") {
    if (interrupted) figures.reconnected();
    if (interrupted && !resumed && conversation.turns.length) {
      notices.show("The server began anew. It was told what was said so far.", { about });
    }
    interrupted = false;
  } else if (state === "full") notices.show(FULL, { about });
  else if (state === "lost") notices.show(LOST, { about });
  else if (state === "key") askForKey(message);
  else if (state === "failed") {
    notices.show(message, { about, action: { title: "Try again", run: connect } });
  }
  if (state === "lost") interrupted = true;
}

const connect = () => dialogue.realtime.connect().catch((error) => complain(error));

/** Says what failed; what became of the connection is said where its state changes. */
function complain(error, what) {
  if (!(error instanceof ConnectionError)) notices.show(sentence(error, what), { about: what });
}

function askForKey(message) {
  const wanted = message ?? "This server wants an API key. Enter it under Options.";
  notices.show(wanted, { about: "connection" });
  document.body.classList.add("options");
  at("options").setAttribute("aria-expanded", "true");
  at("key").focus();
}

settings.load().then((status) => {
  if (status === 401 || status === 403) askForKey();
});
dialogue.replies.speaker.setDevice(settings.devices.loudspeaker);
showTalk();

// The socket: speaks OpenAI's Realtime events with the server, and comes back after a lost
// connection to the same conversation (?resume=TOKEN&after=EVENT), without missing an event.

const FIRST_RETRY_MS = 500;
const LONGEST_RETRY_MS = 8000;
const FULL_RETRY_MS = 4000; // a place becomes free when somebody leaves: no hurry
const MOST_RETRIES = 12; // in a row, about a minute
const FULL = 1013; // "try again later"
const FINAL_CODES = new Set([1000, 1003, 1007, 1008, 1009, 1010]); // trying again would not help
const LASTED_TOO_LONG = new Set(["resume_failed", "session_expired"]); // a new session goes on
const BACKLOG_BYTES = 400_000; // six seconds of unsent sound: nobody takes it any more
/** The longest event that a server takes: OpenAI's and ours allow 16 MiB. */
export const LONGEST_EVENT = 15_000_000;

/** Why connect() gave up; the state that it ended in has told it already. */
export class ConnectionError extends Error {}

/** States that onstate(state, detail) tells; detail is {message?, resumed?}.
    "connecting", "open", "lost" and "full" (both try again by themselves), "key" (the server
    wants one, or another), "failed" (connect() tries again), "idle". */
export class Realtime {
  constructor({ key, onevent, onstate }) {
    Object.assign(this, { key, onevent, onstate });
    this.state = "idle";
    this.forget();
    addEventListener("online", () => this.state === "lost" && this.#open());
    addEventListener("offline", () => this.state === "open" && this.#lost(this.socket, 1006));
  }

  get isOpen() {
    return this.state === "open";
  }

  /** Resolves with the session when the socket is open and greeted; rejects with a sentence. */
  connect() {
    if (this.isOpen) return Promise.resolve(this.session);
    this.waiting ??= Promise.withResolvers?.() ?? withResolvers();
    if (!["connecting", "lost", "full"].includes(this.state)) this.#open();
    return this.waiting.promise;
  }

  /** Sends a client event; without a connection it is dropped. */
  send(event) {
    if (!this.isOpen || this.socket.readyState !== WebSocket.OPEN) return false;
    const text = JSON.stringify(event);
    // A picture or a film may take its time; sound that piles up means that nobody is there.
    if (text.length > BACKLOG_BYTES) this.large = this.socket.bufferedAmount + text.length;
    else if (this.socket.bufferedAmount < BACKLOG_BYTES) this.large = 0;
    this.socket.send(text);
    if (this.socket.bufferedAmount > this.large + BACKLOG_BYTES) this.#lost(this.socket, 1006);
    return true;
  }

  /** Ends the connection; the next one is a new conversation. */
  close() {
    const socket = this.socket;
    this.forget();
    socket?.close(1000);
    this.#enter("idle");
    this.#refuse("The conversation was closed.");
  }

  forget() {
    clearTimeout(this.timer);
    this.socket = this.session = this.lastEvent = this.lastError = null;
    this.retries = this.large = 0;
  }

  #open() {
    clearTimeout(this.timer);
    this.#enter("connecting");
    this.lastError = null;
    const url = new URL("v1/realtime", document.baseURI);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    const token = this.session?.resume?.token;
    if (token) url.searchParams.set("resume", token);
    if (token && this.lastEvent) url.searchParams.set("after", this.lastEvent);
    // A browser can send no header with a socket: the key travels as a subprotocol.
    const key = this.key();
    const protocols = key ? ["realtime", `openai-insecure-api-key.${key}`] : ["realtime"];
    try {
      this.socket = new WebSocket(url, protocols);
    } catch {
      return this.#fail("key", "A key may not contain spaces or special characters.");
    }
    const socket = this.socket;
    socket.onmessage = ({ data }) => socket === this.socket && this.#take(JSON.parse(data));
    socket.onclose = ({ code }) => this.#lost(socket, code);
  }

  #take(event) {
    if (event.type === "session.created") this.#greeted(event.session);
    else this.lastEvent = event.event_id;
    this.lastError = event.type === "error" ? event.error : null; // why a close may follow
    if (this.isOpen) this.onevent(event);
  }

  #greeted(session) {
    const resumed = this.session?.id === session.id;
    if (!resumed) this.lastEvent = null;
    this.session = session;
    this.retries = 0;
    this.#enter("open", { resumed });
    this.waiting?.resolve(session);
    this.waiting = null;
  }

  async #lost(socket, code) {
    if (socket !== this.socket) return;
    const greeted = this.state === "open";
    this.socket = null;
    socket.close();
    const reason = this.lastError?.message;
    if (code === FULL) return this.#later("full", FULL_RETRY_MS * (1 + Math.random()));
    if (this.lastError?.code === "invalid_api_key") return this.#fail("key", reason);
    if (FINAL_CODES.has(code) || code >= 4000) {
      const over = LASTED_TOO_LONG.has(this.lastError?.code);
      this.session = null; // what the server ended cannot be resumed
      return over ? this.#open() : this.#fail("failed", reason ?? endedBecause(code));
    }
    // A refused handshake tells a page nothing: ask over HTTP why.
    if (!greeted && (await this.#explained())) return;
    const retryMs = Math.min(LONGEST_RETRY_MS, FIRST_RETRY_MS * 2 ** this.retries);
    this.#later("lost", retryMs * (0.75 + Math.random() / 2));
  }

  async #explained() {
    const status = await fetch("v1/voices", { headers: authorization(this.key()) }).then(
      (response) => response.status,
      () => 0,
    );
    if (this.state !== "connecting") return true;
    if (status === 401 || status === 403) {
      this.#fail("key", this.key() ? "The server does not know this key." : undefined);
    } else if (status === 429 || status === 503) {
      this.#later("full", FULL_RETRY_MS * (1 + Math.random()));
    } else return false;
    return true;
  }

  #later(state, retryMs) {
    if (this.retries++ >= MOST_RETRIES) {
      const full = "The server is still full. Try again later.";
      const gone = "The server cannot be reached. It may be switched off.";
      return this.#fail("failed", state === "full" ? full : gone);
    }
    this.#enter(state);
    this.timer = setTimeout(() => this.#open(), retryMs);
  }

  #fail(state, message) {
    this.retries = 0;
    this.#enter(state, { message });
    this.#refuse(message ?? "The server wants an API key.");
  }

  #refuse(message) {
    this.waiting?.promise.catch(() => {}); // whoever waits is told; nobody need wait
    this.waiting?.reject(new ConnectionError(message));
    this.waiting = null;
  }

  #enter(state, detail = {}) {
    this.state = state;
    this.onstate(state, detail);
  }
}

function endedBecause(code) {
  if (code === 4001) return "The conversation goes on in another window.";
  if (code === 1009) return "That was more than the server takes at once.";
  return "The server ended the conversation. What you say next begins another.";
}

/** The headers that carry the key over HTTP. */
export function authorization(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

function withResolvers() {
  const parts = {};
  parts.promise = new Promise((resolve, reject) => Object.assign(parts, { resolve, reject }));
  return parts;
}

// Searches, and tells Embedding Studio what users click: docs/clients.md.
//
// An event is kept in localStorage until the service has answered for it, and counts once however often it is sent.
// So nothing is lost when a page is left, or while the service is away.

const MOST_AT_ONCE = 20;
const MOST_BYTES = 60_000; // a browser has at most 64 KiB of beacons and keepalive requests under way
const MOST_KEPT = 1_000;
const LONGEST_ID = 512;
const PAUSE_MS = 1_000;
const LONGEST_WAIT_MS = 60_000;
const WRONG = [400, 413, 415, 422]; // of the events themselves: sent again they are no better

/** @returns {Storage | undefined} undefined where the browser allows none */
const storage = () => {
  try {
    return localStorage;
  } catch {
    return undefined;
  }
};

/** Return an id that no other event of its session has; later ones are greater. */
const newId = () => Date.now().toString(36) + Math.random().toString(36).slice(2);

export class EmbeddingStudio {
  #url;
  #apiKey;
  #collection;
  #place;
  /** @type {Map<string, object>} by id, the oldest first */
  #kept = new Map();
  /** @type {Set<string>} ids that a request is under way with */
  #underWay = new Set();
  #mostAtOnce = MOST_AT_ONCE;
  #failures = 0;
  #timer = 0;
  /** @type {Promise<void> | undefined} */
  #flushing;

  /** @param {string} url @param {import("./embedding-studio").Options} [options] */
  constructor(url, { apiKey, userToken, collection, clicks = false } = {}) {
    this.#url = url.replace(/\/+$/, "");
    this.#apiKey = apiKey;
    this.userToken = userToken;
    this.#collection = collection;
    this.#place = `embedding-studio ${this.#url} `;
    this.#remember();
    addEventListener("pagehide", () => this.#leave());
    addEventListener("online", () => this.#flushAfter(0));
    document.addEventListener("visibilitychange", () =>
      document.visibilityState === "hidden" ? this.#leave() : this.#flushAfter(PAUSE_MS),
    );
    if (clicks) {
      document.addEventListener("click", (event) => this.#clicked(event), true);
      document.addEventListener("auxclick", (event) => event.button === 1 && this.#clicked(event), true);
    }
  }

  /** @param {string} query @param {import("./embedding-studio").SearchOptions} [options] */
  async search(query, { signal, ...asked } = {}) {
    const headers = new Headers({ "Content-Type": "application/json" });
    if (this.#apiKey) headers.set("Authorization", `Bearer ${this.#apiKey}`);
    if (this.userToken) headers.set("X-User-Token", this.userToken);
    const answer = await fetch(`${this.#url}/api/v1/embeddings/similarity-search`, {
      method: "POST",
      headers,
      body: JSON.stringify({ search_query: query, create_session: true, collection: this.#collection, ...asked }),
      credentials: "omit",
      signal,
    });
    const told = await answer.json().catch(() => ({}));
    if (!answer.ok) throw Object.assign(new Error(told.detail ?? `HTTP ${answer.status}`), { status: answer.status });
    return told;
  }

  /** @param {string} sessionId @param {string} objectId */
  click(sessionId, objectId, eventType = "click") {
    for (const id of [sessionId, objectId, eventType]) {
      if (typeof id !== "string" || !id || id.length > LONGEST_ID) throw new TypeError(`not an id: ${id}`);
    }
    const event = { session_id: sessionId, object_id: objectId, event_type: eventType, event_id: newId() };
    this.#kept.set(event.event_id, event);
    try {
      storage()?.setItem(this.#place + event.event_id, JSON.stringify(event));
    } catch {
      // There is no room; the event lives as long as the page does.
    }
    const [oldest] = this.#kept.keys();
    if (this.#kept.size > MOST_KEPT) this.#forget(oldest);
    if (!this.#failures) this.#flushAfter(this.#kept.size < MOST_AT_ONCE ? PAUSE_MS : 0);
  }

  /** Send what is kept, now; resolves when the service has answered for it, or could not. */
  flush() {
    this.#flushing ??= this.#sendAll().finally(() => (this.#flushing = undefined));
    return this.#flushing;
  }

  async #sendAll() {
    clearTimeout(this.#timer);
    for (let [ids] = this.#batches(); ids; [ids] = this.#batches()) {
      const waitMs = await this.#send(ids);
      if (waitMs) return this.#flushAfter(waitMs);
    }
  }

  /** @param {number} ms */
  #flushAfter(ms) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.flush(), ms);
  }

  /** Send events; return how many milliseconds to wait before the next. @param {string[]} ids */
  async #send(ids) {
    let status = 0;
    let retryAfter = 0;
    ids.forEach((id) => this.#underWay.add(id));
    try {
      const answer = await fetch(this.#address(), this.#request(ids));
      status = answer.status;
      retryAfter = Number(answer.headers.get("Retry-After"));
      await answer.text(); // until then its bytes are under way
    } catch {
      // Nobody is there, or CORS_ORIGINS bars the way; the browser's console says which.
    }
    this.#underWay.clear();
    if (status === 200 || (WRONG.includes(status) && ids.length === 1)) {
      if (status !== 200) console.error(`Embedding Studio takes no such event (${status})`, this.#kept.get(ids[0]));
      ids.forEach((id) => this.#forget(id));
      this.#failures = 0;
      return 0;
    }
    if (WRONG.includes(status)) {
      this.#mostAtOnce = 1; // to find the one that is wrong
      return 0;
    }
    this.#failures += 1;
    const waitMs = Math.max(retryAfter * 1_000, Math.min(PAUSE_MS * 2 ** (this.#failures - 1), LONGEST_WAIT_MS));
    return waitMs * (1 + Math.random() / 4);
  }

  /** Hand to the browser what no request is under way with; it stays kept, for nobody says whether it arrives. */
  #leave() {
    for (const ids of this.#batches()) {
      const request = this.#request(ids);
      if (navigator.sendBeacon?.(this.#address(), request.body)) continue;
      fetch(this.#address(), request).catch(() => {});
      break;
    }
  }

  #batches() {
    /** @type {string[][]} */
    const batches = [];
    let bytes = Infinity;
    for (const [id, event] of this.#kept) {
      if (this.#underWay.has(id)) continue;
      const its = new TextEncoder().encode(JSON.stringify(event)).length + 1;
      const last = batches.at(-1);
      if (last && last.length < this.#mostAtOnce && bytes + its <= MOST_BYTES) {
        last.push(id);
        bytes += its;
      } else {
        batches.push([id]);
        bytes = its;
      }
    }
    return batches;
  }

  /** @param {string[]} ids */
  #request(ids) {
    const body = JSON.stringify({ events: ids.map((id) => this.#kept.get(id)) });
    // A text needs no preflight, and may outlive the page.
    return { method: "POST", body, keepalive: true, credentials: /** @type {const} */ ("omit") };
  }

  #address() {
    const told = new URLSearchParams();
    if (this.#apiKey) told.set("api_key", this.#apiKey);
    if (this.userToken) told.set("user_token", this.userToken);
    return `${this.#url}/api/v1/clickstream/events?${told}`;
  }

  #remember() {
    const names = Object.keys(storage() ?? {}).filter((name) => name.startsWith(this.#place)).sort();
    for (const name of names) {
      try {
        this.#kept.set(name.slice(this.#place.length), JSON.parse(/** @type {string} */ (storage()?.getItem(name))));
      } catch {
        storage()?.removeItem(name);
      }
    }
    if (names.length) this.#flushAfter(0);
  }

  /** @param {string} id */
  #forget(id) {
    this.#kept.delete(id);
    storage()?.removeItem(this.#place + id);
  }

  /** @param {MouseEvent} event */
  #clicked({ target }) {
    /** @param {string} name */
    const near = (name) => target instanceof Element && target.closest(`[${name}]`)?.getAttribute(name);
    const [session, object] = [near("data-es-session"), near("data-es-object")];
    if (session && object) this.click(session, object, near("data-es-event") || "click");
  }
}

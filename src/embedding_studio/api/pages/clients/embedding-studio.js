// Searches, and tells Embedding Studio what users click: docs/clients.md.
// An event is kept in localStorage until the service has answered for it, and counts once however often it is sent.
// So nothing is lost when a page is left, or while the service is away.

const MOST_AT_ONCE = 20;
const MOST_BYTES = 60_000; // a browser has at most 64 KiB of beacons and keepalive requests under way
const MOST_KEPT = 1_000;
const LONGEST_ID = 512;
const PAUSE_MS = 1_000;
const LONGEST_WAIT_MS = 60_000;
const LONGEST_ASKED_MS = 3_600_000;
const DAY_MS = 86_400_000;
const WRONG = [400, 413, 415, 422]; // of the events themselves: sent again they are no better

const storage = () => {
  try {
    return localStorage;
  } catch {
    return undefined;
  }
};

/** Return an id of its own, which begins with the time in eight characters. */
const newId = () => Date.now().toString(36) + Math.random().toString(36).slice(2);

/** Return how long a `Retry-After` asks to wait: seconds, or a date. */
const askedMs = (told) => Math.min((isNaN(told) ? Date.parse(told) - Date.now() : told * 1_000) || 0, LONGEST_ASKED_MS);

export class EmbeddingStudio {
  #url;
  #apiKey;
  #collection;
  #place;
  #kept = new Map(); // by id, the oldest first
  #underWay = new Set(); // ids
  #mostAtOnce = MOST_AT_ONCE;
  #failures = 0;
  #timer;
  #flushing;

  constructor(url, { apiKey, userToken, collection, clicks } = {}) {
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

  click(sessionId, objectId, eventType = "click") {
    for (const [text, longest] of [[sessionId, LONGEST_ID], [objectId, LONGEST_ID], [eventType, 64]]) {
      if (typeof text === "string" && text && text.length <= longest) continue;
      throw new TypeError(`not a text of 1 to ${longest} characters: ${text}`);
    }
    const event = { session_id: sessionId, object_id: objectId, event_type: eventType, event_id: newId() };
    this.#kept.set(event.event_id, event);
    try {
      storage()?.setItem(this.#place + event.event_id, JSON.stringify(event));
    } catch {
      // There is no room; the event lives as long as the page.
    }
    const [oldest] = this.#kept.keys();
    if (this.#kept.size > MOST_KEPT) this.#forget(oldest);
    if (!this.#failures) this.#flushAfter(this.#kept.size < MOST_AT_ONCE ? PAUSE_MS : 0);
  }

  flush() {
    this.#flushing ??= this.#sendAll().finally(() => (this.#flushing = undefined));
    return this.#flushing;
  }

  async #sendAll() {
    clearTimeout(this.#timer);
    this.#mostAtOnce = MOST_AT_ONCE;
    for (let [ids] = this.#batches(); ids; [ids] = this.#batches()) {
      const waitMs = await this.#send(ids);
      if (waitMs) return this.#flushAfter(waitMs);
    }
  }

  #flushAfter(ms) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.flush(), ms);
  }

  /** Send events; return how many milliseconds to wait before the next. */
  async #send(ids) {
    let status = 0;
    let retryAfter, receipts;
    ids.forEach((id) => this.#underWay.add(id));
    try {
      const answer = await fetch(this.#address(), this.#request(ids));
      status = answer.status;
      retryAfter = answer.headers.get("Retry-After");
      receipts = (await answer.json()).events;
    } catch {
      // The service is not there, or CORS_ORIGINS bars the way.
    }
    this.#underWay.clear();
    const isWrong = WRONG.includes(status);
    if (isWrong) {
      this.#mostAtOnce = ids.length > 1 ? 1 : MOST_AT_ONCE; // to find the one that is wrong
      if (ids.length > 1) return 0;
      console.error(`Embedding Studio takes no such event (${status})`, this.#kept.get(ids[0]));
    }
    if (isWrong || status === 200) {
      ids.forEach((id, i) => {
        const isOld = Date.now() - parseInt(id.slice(0, 8), 36) > DAY_MS;
        // Perhaps of another user than the token's: another page sends it again.
        if (receipts?.[i]?.disposition === "unknown_session" && !isOld) this.#kept.delete(id);
        else this.#forget(id);
      });
      this.#failures = 0;
      return 0;
    }
    const waitMs = Math.max(askedMs(retryAfter), Math.min(PAUSE_MS * 2 ** this.#failures++, LONGEST_WAIT_MS));
    return waitMs * (1 + Math.random() / 4);
  }

  /** Hand to the browser what no request is under way with; it stays kept, for no answer says whether it arrives. */
  #leave() {
    for (const ids of this.#batches()) {
      const request = this.#request(ids);
      if (navigator.sendBeacon?.(this.#address(), request.body)) continue;
      fetch(this.#address(), request).catch(() => {});
      break;
    }
  }

  #batches() {
    const batches = [];
    let bytes = 0;
    for (const [id, event] of this.#kept) {
      if (this.#underWay.has(id)) continue;
      const its = new Blob([JSON.stringify(event)]).size + 1;
      bytes += its;
      if (!(batches.at(-1)?.length < this.#mostAtOnce && bytes <= MOST_BYTES)) {
        batches.push([]);
        bytes = its;
      }
      batches.at(-1).push(id);
    }
    return batches;
  }

  #request(ids) {
    const body = JSON.stringify({ events: ids.map((id) => this.#kept.get(id)) });
    // A text needs no preflight, and may outlive the page.
    return { method: "POST", body, keepalive: true, credentials: "omit" };
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
        this.#kept.set(name.slice(this.#place.length), JSON.parse(storage()?.getItem(name)));
      } catch {
        storage()?.removeItem(name);
      }
    }
    if (names.length) this.#flushAfter(0);
  }

  #forget(id) {
    this.#kept.delete(id);
    storage()?.removeItem(this.#place + id);
  }

  #clicked({ target }) {
    const near = (name) => target instanceof Element && target.closest(`[${name}]`)?.getAttribute(name);
    const [session, object] = [near("data-es-session"), near("data-es-object")];
    if (session && object) this.click(session, object, near("data-es-event") || "click");
  }
}

// The one way from a page to the service: the JSON routes, with the key that the person gave.

const ROOT = new URL("../", import.meta.url);
const KEY = "embedding-studio-key";

/** The key lives as long as the tab. */
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (given) => (given ? sessionStorage.setItem(KEY, given) : sessionStorage.removeItem(KEY)),
};

/** What went wrong, as the service says it (RFC 9457); status 0: it could not be reached. */
export class Problem extends Error {
  constructor(status, { title, detail, errors = [], ...rest } = {}) {
    super(detail || title || `the service answered with ${status}`);
    Object.assign(this, { status, title, errors, ...rest });
  }
}

/**
 * Ask the service, and return its answer: parsed JSON, text of anything else, null of nothing.
 * @param {string} path below /api/v1, or of the root where it begins with "/"
 * @param {{method?: string, body?: unknown, query?: Record<string, unknown>, signal?: AbortSignal}} [asked]
 * @throws {Problem}
 */
export const call = async (path, { method, body, query = {}, signal } = {}) => {
  const url = new URL(path.startsWith("/") ? path.slice(1) : `api/v1/${path}`, ROOT);
  for (const [name, value] of Object.entries(query)) {
    if (value !== undefined && value !== null && value !== "") url.searchParams.set(name, value);
  }
  const headers = {};
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(url, {
      method: method ?? (body === undefined ? "GET" : "POST"),
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { detail: "The service cannot be reached." });
  }
  const isJson = (answer.headers.get("Content-Type") ?? "").includes("json") && !answer.headers.get("Content-Type").includes("ndjson");
  const told = answer.status === 204 ? null : isJson ? await answer.json() : await answer.text();
  if (!answer.ok) {
    const problem = isJson ? told : { detail: told };
    throw new Problem(answer.status, { ...problem, requestId: answer.headers.get("X-Request-ID") });
  }
  return told;
};

// What a browser would take in a path for a way to another folder, and what looks like it once that is encoded.
const DOTS = /^(\.|%(25)*2e){1,2}$/i;

/** An id as a step of a path, as api/fields.py reads it. */
export const step = (id) => encodeURIComponent(DOTS.test(id) ? id.replaceAll("%", "%25").replaceAll(".", "%2E") : id);

/** A path whose parts may hold anything: at`users/${id}/state`. */
export const at = (strings, ...parts) => String.raw({ raw: strings }, ...parts.map(step));

// Small pieces that the views are made of.
import { html, useId, useRef, useState } from "../shared/preact.js";
import { useDoing } from "./asking.js";

const HINTS = {
  0: "Is it running? This page asks it again when you press the button.",
  403: "This key may not do that. The console needs one with the scope admin.",
  404: "It may have been removed, or the address is misspelt.",
  429: "Too many requests at once; wait a moment.",
  503: "Storage or the embedder does not answer just now; Health says more.",
};

export const Problem = ({ problem, onAgain }) => html`
  <div class="problem" role="alert">
    <p><strong>${problem.status ? problem.title || `Answered with ${problem.status}` : "No answer"}.</strong> ${problem.message}</p>
    ${problem.errors?.length > 1 && html`<ul>${problem.errors.map((each) => html`
      <li><code>${each.pointer ?? each.parameter}</code> ${each.detail}</li>`)}</ul>`}
    ${HINTS[problem.status] && html`<p class="faint">${HINTS[problem.status]}</p>`}
    ${problem.requestId && html`<p class="faint">Request id <code>${problem.requestId}</code></p>`}
    ${onAgain && html`<button type="button" onClick=${onAgain}>Try again</button>`}
  </div>`;

/** The answer, or why there is none yet, or what went wrong; the last answer stays. */
export const Told = ({ asked, of }) => html`
  ${asked.problem && asked.problem.status !== 401 && html`<${Problem} problem=${asked.problem} onAgain=${asked.again} />`}
  ${asked.problem && asked.told !== undefined && html`<p class="faint">What stands here is old, of <${When} at=${asked.at} />.</p>`}
  ${asked.told !== undefined ? of(asked.told) : !asked.problem && html`<p class="faint waiting" role="status">Loading…</p>`}`;

export const Empty = ({ title, children }) => html`
  <div class="empty"><p><strong>${title}</strong></p><div class="faint">${children}</div></div>`;

/** A button that does something at the service: it waits, and says what went wrong. */
export const Act = ({ label, doing, act, children, ...rest }) => {
  const { start, isDoing, problem } = useDoing(act);
  return html`
    <button type="button" ...${rest} aria-label=${label} disabled=${rest.disabled || isDoing} onClick=${() => start()}>
      ${isDoing && doing ? doing : children}</button>
    ${problem && problem.status !== 401 && html`<${Problem} problem=${problem} />`}`;
};

/** A button that asks first; where ``typed`` is given, that has to be typed. */
export const Ask = ({ title, children, told, typed, act, ...rest }) => {
  const dialog = useRef(null);
  const [given, setGiven] = useState("");
  const id = useId();
  const { start, isDoing, problem } = useDoing(async () => {
    await act();
    dialog.current?.close();
  });
  const open = () => {
    setGiven("");
    dialog.current.showModal();
  };
  const confirm = (event) => {
    event.preventDefault();
    start();
  };
  return html`
    <button type="button" class="danger" ...${rest} onClick=${open}>${children}</button>
    <dialog ref=${dialog} aria-labelledby=${id}>
      <form onSubmit=${confirm}>
        <h2 id=${id}>${title}</h2>
        <p>${told}</p>
        ${typed && html`<label>Type <code>${typed}</code> to confirm
          <input value=${given} onInput=${(event) => setGiven(event.target.value)} autocomplete="off" spellcheck="false" /></label>`}
        ${problem && html`<${Problem} problem=${problem} />`}
        <div class="row end">
          <button type="button" onClick=${() => dialog.current.close()}>Cancel</button>
          <button class="danger first" disabled=${isDoing || (typed && given !== typed)}>${children}</button>
        </div>
      </form>
    </dialog>`;
};

/** A moment in UTC seconds, in the reader's own time. */
export const When = ({ at }) => {
  const date = new Date(1000 * at);
  const isToday = date.toDateString() === new Date().toDateString();
  const clock = date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
  return html`<time dateTime=${date.toISOString()} title=${date.toLocaleString()}>
    ${isToday ? clock : `${date.toLocaleDateString([], { day: "numeric", month: "short" })} ${clock.slice(0, 5)}`}</time>`;
};

export const Badge = ({ kind, children }) => html`<span class=${`badge ${kind ?? ""}`}>${children}</span>`;

/** Says to a screen reader what has changed. */
export const Announce = ({ children }) => html`<p class="visually-hidden" role="status">${children}</p>`;

/** A text, cut to some characters at a word. */
export const cut = (text, most) => (text.length <= most ? text : `${text.slice(0, most).replace(/\s+\S*$/, "")}…`);

const NAMES = ["title", "name", "label", "headline", "subject"];
const TEXTS = ["description", "summary", "text", "body", "content"];

/** The first text of a field that has one of some names, in any case; where there is none, that ends in one ("product_title"). */
const first = (payload, names) => {
  const texts = Object.entries(payload ?? {}).filter(([, value]) => typeof value === "string" && value.trim());
  const under = (fits) => names.map((name) => texts.find(([field]) => fits(field.toLowerCase(), name))?.[1]).find(Boolean);
  return under((field, name) => field === name) ?? under((field, name) => field.endsWith(`_${name}`) || field.endsWith(` ${name}`));
};

export const textOf = (payload) => first(payload, TEXTS) ?? "";
const MOST = 100; // characters of a name; what is longer describes
const isName = (value) => typeof value === "string" && value.length <= MOST && /\p{L}/u.test(value) && !/^[a-z]+:\/\//i.test(value);

/** What a person calls an object: a field of its payload that is called so, else its first short text, else its id. */
export const nameOf = (payload, id) =>
  first(payload, NAMES) ?? Object.entries(payload ?? {}).find(([field, value]) => !TEXTS.includes(field.toLowerCase()) && isName(value))?.[1] ?? id;

/** What stands below the name of an object: a longer text, else the id where that is not its name. */
export const belowName = (payload, id) => textOf(payload) || (nameOf(payload, id) === id ? "" : id);

export const counted = (number, one, many = `${one}s`) => `${number.toLocaleString()} ${number === 1 ? one : many}`;

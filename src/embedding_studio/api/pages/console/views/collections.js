// Collections: what is searched, how it is compared, and under which names.
import { html, useState } from "../../shared/preact.js";
import { at, call } from "../../shared/api.js";
import { useAsked, useDoing } from "../asking.js";
import { Act, Ask, counted, cut, Empty, nameOf, Problem, textOf, Told } from "../parts.js";
import { go, href } from "../routes.js";

const METRICS = { cosine: "cosine (angle)", dot: "dot product", euclid: "Euclidean distance" };
const SAMPLE = 5;

export const Collections = (given) => (given.route.id === undefined ? html`<${List} ...${given} />` : html`<${One} ...${given} />`);

const List = ({ collections, embedder, askCollections }) => html`
  <h1>Collections</h1>
  <p class="lead">A collection holds objects that were embedded by one model and are compared in one way. An alias is a second name
    that can be moved to another collection in one step.</p>
  ${collections.length ? html`
    <table class="cards">
      <thead><tr><th>Name</th><th>Aliases</th><th class="number">Objects</th><th class="number">Dimensions</th><th>Compared by</th><th>Embedded by</th></tr></thead>
      <tbody>${collections.map(({ name, aliases, objects, index, embedder: by }) => html`
        <tr key=${name}>
          <td class="main"><a href=${href("collections", name)}>${name}</a></td>
          <td>${aliases.join(", ")}</td>
          <td class="number">${objects.toLocaleString()}<span class="phone"> objects</span></td>
          <td class="number" data-label="dimensions">${index.dimensions}</td>
          <td class="wide">${METRICS[index.metric_type]}</td>
          <td class="wide">${by ?? html`<span class="faint">the caller</span>`}</td>
        </tr>`)}</tbody>
    </table>`
  : html`<${Empty} title="There is no collection yet">Index a catalogue with <code>embedding-studio index catalogue.csv</code>, or make an empty one here.<//>`}
  <${Create} embedder=${embedder} onMade=${(name) => { askCollections(); go("collections", name); }} />`;

const Create = ({ embedder, onMade }) => {
  const [brings, setBrings] = useState(embedder === null);
  const { start, isDoing, problem } = useDoing(async (form) => {
    const { name, dimensions, metric } = Object.fromEntries(new FormData(form));
    const index = { metric_type: metric, ...(brings ? { dimensions: Number(dimensions) } : {}) };
    await call("collections", { body: { name: name.trim(), index, ...(brings ? {} : { embedder }) } });
    onMade(name.trim());
  });
  const create = (event) => {
    event.preventDefault();
    start(event.target);
  };
  return html`
    <details class="panel create">
      <summary>New collection</summary>
      <form class="fields" onSubmit=${create}>
        <label>Name <input name="name" required maxlength="512" placeholder="shoes" autocomplete="off" spellcheck="false" /></label>
        <label>Vectors come from
          <select onChange=${(event) => setBrings(event.target.value === "caller")}>
            ${embedder !== null && html`<option value="service">${embedder}, by the service</option>`}
            <option value="caller" selected=${brings}>whoever stores the objects</option>
          </select></label>
        ${brings && html`<label>Dimensions <input name="dimensions" type="number" min="1" max="16000" required placeholder="384" /></label>`}
        <label>Compared by
          <select name="metric">${Object.entries(METRICS).map(([value, label]) => html`<option value=${value}>${label}</option>`)}</select></label>
        <button class="first" disabled=${isDoing}>Create</button>
      </form>
      ${problem && html`<${Problem} problem=${problem} />`}
    </details>`;
};

const One = ({ route: { id: name }, collections, askCollections }) => {
  const asked = useAsked(async () => {
    const [collection, { objects }] = await Promise.all([
      call(at`collections/${name}`), call("embeddings/scroll", { body: { collection: name, limit: SAMPLE } })]);
    return { collection, objects };
  }, [name]);
  const changed = () => {
    asked.again();
    askCollections();
  };
  return html`
    <p><a href=${href("collections")}>← All collections</a></p>
    <${Told} asked=${asked} of=${(told) => html`<${Details} ...${told} name=${name} changed=${changed} others=${collections} askCollections=${askCollections} />`} />`;
};

const PAST = {
  repeated_soon: "the same query, within a day", repeated_later: "the same query, later",
  near_soon: "a near query, within a day", near_later: "a near query, later",
};

const Details = ({ collection, objects, name, changed, askCollections }) => {
  const { name: own, index, embedder, objects: count, aliases, own_past: past } = collection;
  const drop = async () => {
    await call(at`collections/${own}`, { method: "DELETE" });
    askCollections();
    go("collections");
  };
  return html`
    <h1>${own}</h1>
    ${own !== name && html`<p class="lead"><code>${name}</code> is an alias of it.</p>`}
    <dl class="facts">
      <div><dt>Objects</dt><dd>${count.toLocaleString()}</dd></div>
      <div><dt>Dimensions</dt><dd>${index.dimensions}</dd></div>
      <div><dt>Compared by</dt><dd>${METRICS[index.metric_type]}</dd></div>
      <div><dt>Embedded by</dt><dd>${embedder ?? "whoever stores the objects"}</dd></div>
    </dl>
    ${past && html`
      <p class="lead">How much a past query of a user counts, as tuned from the log:
        ${Object.entries(PAST).map(([kind, told]) => ` ${told} ${Math.round(100 * past[kind])} %`).join(",")}.</p>`}
    <div class="row actions">
      <a class="button" href=${href("search", undefined, { collection: own })}>Search in it</a>
      <a class="button" href=${href("reports", undefined, { collection: own })}>Measure and tune it</a>
      <${Ask} title=${`Drop ${own}?`} typed=${own} act=${drop}
        told=${`Its ${counted(count, "object")} go, and all that was learnt in it. Sessions stay in the log. It cannot be brought back.`}>Drop collection<//>
    </div>
    <div class="halves">
      <${Gate} key=${collection.gate_threshold} collection=${collection} changed=${changed} />
      <${Aliases} aliases=${aliases} own=${own} changed=${changed} />
    </div>
    <${Settings} />
    <h2>Objects</h2>
    ${objects.length ? html`
      <p class="lead">The first ${objects.length} by id, as they are stored.</p>
      <ul class="lines">${objects.map((each) => html`
        <li key=${each.object_id}><strong>${nameOf(each.payload, each.object_id)}</strong> <code class="faint">${each.object_id}</code>
          <p class="text faint">${textOf(each.payload) || cut(JSON.stringify(each.payload), 160)}</p></li>`)}</ul>`
    : html`<${Empty} title="It is empty">Store objects with <code>embedding-studio index catalogue.csv --collection ${own}</code>, or over HTTP: <code>POST /api/v1/embeddings/upsert</code>.<//>`}`;
};

const signed = (number) => (number < 0 ? "−" : "+") + Math.abs(number).toFixed(3).replace(/^0/, "");
const CLICKS = { standard: "", noisy: " where clicks are noisy" };

/** Of the effects of a preset: what it gains over plain search where the same is asked again, and whom it harms. */
const effect = ({ collection, clicks, same, users_worse: worse }) =>
  `${signed(same)} on ${collection}${CLICKS[clicks]}, worse for ${Math.round(100 * worse)} % of the users`;

const Settings = () => {
  const asked = useAsked(() => call("settings"), []);
  return html`
    <details class="panel knobs">
      <summary>Settings of learning</summary>
      <${Told} asked=${asked} of=${({ settings, measured_by: command }) => html`
        <p class="faint">They hold for all collections, and are set in the environment of the service and its workers. The figures
          are differences in nDCG@10 to plain search after ten sessions, on simulated users (<code>${command}</code>). What they do on
          your own log is for a report to say: “Measure and tune it”.</p>
        <dl class="settings">${settings.map((each) => html`<${Setting} key=${each.name} ...${each} />`)}</dl>`} />
    </details>`;
};

const inWords = (value) => (value === null ? "not set" : String(value));

const Setting = ({ name, value, default: usual, description, preset, presets }) => html`
  <div>
    <dt><code>${name}</code> <strong>${inWords(value)}</strong>${preset && html` <span class="badge">${preset}</span>`}
      ${value !== usual && html` <span class="faint">by default ${inWords(usual)}</span>`}</dt>
    <dd>
      <p class="faint">${description}</p>
      ${presets.length > 0 && html`<ul class="lines">${presets.map((each) => html`
        <li key=${each.name}><strong>${each.name}</strong> (${each.value})${each.effects.length ? `: ${each.effects.map(effect).join("; ")}` : ""}</li>`)}</ul>`}
    </dd>
  </div>`;

const Gate = ({ collection, changed }) => {
  const { name, gate_threshold: gate } = collection;
  const { start, isDoing, problem } = useDoing(async (value) => {
    await call(at`collections/${name}`, { method: "PATCH", body: { gate_threshold: value } });
    changed();
  });
  const set = (event) => {
    event.preventDefault();
    start(Number(new FormData(event.target).get("gate")));
  };
  return html`
    <section>
      <h2>Gate</h2>
      <p class="faint">How alike a past query has to be before its clicks bear on a new one: 0 is anything, 1 the same query alone.
        ${gate === null ? " This collection has none of its own, so the setting GATE_THRESHOLD holds." : ""}</p>
      <form class="row" onSubmit=${set}>
        <input name="gate" aria-label="Gate" type="number" min="0" max="0.99" step="0.01" required defaultValue=${gate ?? ""} placeholder="by the setting" />
        <button disabled=${isDoing}>Set</button>
        ${gate !== null && html`<button type="button" class="quiet" disabled=${isDoing} onClick=${() => start(null)}>Use the setting</button>`}
      </form>
      ${problem && html`<${Problem} problem=${problem} />`}
    </section>`;
};

const Aliases = ({ aliases, own, changed }) => {
  const { start, isDoing, problem } = useDoing(async (form) => {
    await call(at`collections/aliases/${new FormData(form).get("alias").trim()}`, { method: "PUT", body: { collection: own } });
    form.reset();
    changed();
  });
  const set = (event) => {
    event.preventDefault();
    start(event.target);
  };
  return html`
    <section>
      <h2>Aliases</h2>
      <p class="faint">An alias given here leads to this collection from now on, wherever it led before.</p>
      <ul class="lines">${aliases.map((alias) => html`
        <li key=${alias} class="row between nowrap"><span>${alias}</span>
          <${Act} class="quiet" label=${`Drop the alias ${alias}`} act=${async () => {
            await call(at`collections/aliases/${alias}`, { method: "DELETE" });
            changed();
          }}>Drop<//></li>`)}</ul>
      <form class="row" onSubmit=${set}>
        <input name="alias" aria-label="New alias" required maxlength="512" placeholder="shop-live" autocomplete="off" spellcheck="false" /> <button disabled=${isDoing}>Set alias</button>
      </form>
      ${problem && html`<${Problem} problem=${problem} />`}
    </section>`;
};

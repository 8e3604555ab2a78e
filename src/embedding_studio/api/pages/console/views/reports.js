// Reports: does it help, are the nearest found, and which settings fit; made beside the service, one after the other.
import { html } from "../../shared/preact.js";
import { at, call } from "../../shared/api.js";
import { useAsked, useDoing } from "../asking.js";
import { Act, Announce, Badge, counted, Empty, Problem, Told, When } from "../parts.js";
import { Interval } from "../plots.js";
import { go, href } from "../routes.js";

const KINDS = {
  replay: {
    title: "Replay", asks: "Does it help?",
    told: "Lives the recorded log through again, search by search, and says how high what was clicked would have stood: with search that learns nothing, and with each way of learning.",
    needs: "It needs some hundred searches with clicks.",
  },
  recall: {
    title: "Recall", asks: "Are the nearest found?",
    told: "Compares fast searches with comparing every object, on the collection's own queries.",
    needs: "It matters from 3,000 objects on; below, all are compared.", sets: "and search as cautiously as that needs",
  },
  tune: {
    title: "Tune", asks: "Which settings fit the log?",
    told: "Finds how alike two queries have to be to share what was learnt, and how much a user's own past should count.",
    needs: "It needs 100 different queries.", sets: "and use what it finds",
  },
  settings: {
    title: "Try settings", asks: "Would other settings help more?",
    told: "Tries settings on the earlier part of the log, and judges the best on the later part, once. What protects people is left as it is.",
    needs: "It takes minutes, and in each part 100 searches by 20 users who had clicked something before.",
  },
};
const BADGES = { waiting: "warn", running: "busy", done: "good", failed: "bad", stopped: "warn" };
const WORDS = { waiting: "waits", running: "being made", done: "done", failed: "could not be made", stopped: "stopped" };

export const Reports = (given) => (given.route.id === undefined ? html`<${List} ...${given} />` : html`<${One} ...${given} />`);

const List = ({ route: { query }, collection }) => {
  const asked = useAsked(() => call("reports"), [], { every: 2000 });
  return html`
    <h1>Reports</h1>
    <p class="lead">What the recorded log says about ${collection ?? "a collection"}. A report takes seconds to minutes, in a process of its own;
      searches go on meanwhile, and other reports wait for it.</p>
    <div class="kinds">${Object.entries(KINDS).map(([kind, about]) => html`
      <${Start} key=${kind} kind=${kind} about=${about} collection=${collection} query=${query} />`)}</div>
    <h2>Made since the service started</h2>
    <${Told} asked=${asked} of=${({ reports }) => (reports.length ? html`
      <table class="cards">
        <thead><tr><th>Report</th><th>Collection</th><th>Started</th><th>State</th></tr></thead>
        <tbody>${reports.map((each) => html`
          <tr key=${each.report_id}>
            <td class="main"><a href=${href("reports", each.report_id, { collection: query.collection })}>${KINDS[each.kind].title}</a></td>
            <td>${each.collection}</td>
            <td class="faint"><${When} at=${each.started_at} /></td>
            <td class="became"><${Badge} kind=${BADGES[each.status]}>${WORDS[each.status]}<//></td>
          </tr>`)}</tbody>
      </table>` : html`<${Empty} title="No report yet">Start one above. The service keeps them until it ends.<//>`)} />`;
};

const Start = ({ kind, about, collection, query }) => {
  const { start, isDoing, problem } = useDoing(async (form) => {
    const isSetting = new FormData(form).has("set");
    const report = await call("reports", { body: { kind, collection, dry_run: !isSetting } });
    go("reports", report.report_id, { collection: query.collection });
  });
  const begin = (event) => {
    event.preventDefault();
    start(event.target);
  };
  return html`
    <form class="panel" onSubmit=${begin} aria-label=${about.title}>
      <h2>${about.asks}</h2>
      <p>${about.told} <span class="faint">${about.needs}</span></p>
      ${about.sets && html`<label class="check"><input type="checkbox" name="set" /> ${about.sets}</label>`}
      <button class="first" disabled=${isDoing || !collection}>${about.title}</button>
      ${problem && html`<${Problem} problem=${problem} />`}
    </form>`;
};

const isOpen = (status) => ["waiting", "running"].includes(status);

const One = ({ route: { id, query } }) => {
  const asked = useAsked(() => call(at`reports/${id}`), [id], { every: 500, unless: (report) => !isOpen(report.status) });
  return html`
    <p><a href=${href("reports", undefined, { collection: query.collection })}>← All reports</a></p>
    <${Told} asked=${asked} of=${(report) => html`<${Report} report=${report} again=${asked.again} />`} />`;
};

const RESULTS = { replay: (given) => html`<${Replay} ...${given} />`, recall: (given) => html`<${Recall} ...${given} />`, tune: (given) => html`<${Tuned} ...${given} />`, settings: (given) => html`<${TunedSettings} ...${given} />` };

const Report = ({ report, again }) => {
  const { report_id: id, kind, collection, status, ahead, progress, result, detail, started_at: started, ended_at: ended } = report;
  return html`
    <h1>${KINDS[kind].title}: ${collection}</h1>
    <p class="lead"><${Badge} kind=${BADGES[status]}>${WORDS[status]}<//> ${status === "waiting" ? "asked for" : "started"} at <${When} at=${started} />${ended ? `, took ${counted(Math.max(1, ended - started), "second")}` : ""}.</p>
    <${Announce}>${KINDS[kind].title} ${WORDS[status]}<//>
    ${isOpen(status) && html`
      <section class="panel">
        ${status === "waiting" ? html`<p>${counted(ahead, "report is", "reports are")} made before it.</p>` : html`
          <label>${progress ? `${progress.what}: ${progress.done.toLocaleString()} of ${progress.total.toLocaleString()}` : "Beginning…"}
            <progress max=${progress?.total ?? 1} value=${progress?.done}></progress></label>`}
        <${Act} act=${async () => { await call(at`reports/${id}`, { method: "DELETE" }); again(); }} doing="Stopping…">Stop<//>
      </section>`}
    ${detail && html`<div class="problem" role="alert"><p>${detail}</p></div>`}
    ${result && RESULTS[kind]({ result, report })}`;
};

const percent = (share, digits = 0) => (share === null || share === undefined ? "–" : `${(100 * share).toFixed(digits)} %`);
const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(3)}`;

const METHODS = {
  plain: ["Plain search", "learns nothing"],
  default: ["Own clicks", "each user's clicks bear on their own searches: the settings in force"],
  shared: ["Own and shared clicks", "the same, and what several others clicked for near queries"],
  counts: ["Click counts", "what anyone clicked most for exactly this query; for comparison"],
};
const SLICES = {
  all: "All searches", past: "Of users with a past click", repeated: "Their same query again", near: "A query near to one of theirs",
  new: "A query near to none of theirs", head: "Frequent queries", torso: "Less frequent queries", tail: "Rare queries",
};
const methodOf = (name) => METHODS[name]?.[0] ?? name;

const FEWEST = 30; // searches; an interval over fewer is drawn without a verdict

const verdict = (name, found) => {
  const { difference } = found.reciprocal_rank;
  const { mean: first, difference: { mean: more } } = found["hit@1"];
  const told = difference.low > 0 ? "what was clicked stands higher" : difference.high < 0 ? "what was clicked stands lower" : "no difference that can be told from chance";
  return `${methodOf(name)}: ${told}. What was clicked stands first in ${percent(first, 1)} of the searches instead of ${percent(first - more, 1)}; `
    + `${percent(found.users_better)} of the users fare better, ${percent(found.users_worse)} worse.`;
};

const Replay = ({ result }) => {
  const { methods, slices, warnings, notes, left_out: leftOut } = result;
  const compared = Object.keys(methods).filter((each) => each !== "plain");
  const told = Object.entries(slices).filter(([, size]) => size.users > 1); // of one user there is no interval
  const isTold = (size) => size.searches >= FEWEST;
  const differences = compared.flatMap((method) => told.map(([slice]) => methods[method][slice].reciprocal_rank.difference));
  const reach = Math.max(0.01, ...differences.flatMap(({ low, high }) => [Math.abs(low), Math.abs(high)]));
  return html`
    ${warnings.map((each) => html`<p class="notice">${each}.</p>`)}
    <ul class="verdicts">${compared.map((each) => html`<li>${verdict(each, methods[each].all)}</li>`)}</ul>
    <h2>Where it helps</h2>
    <p class="lead">By how much higher (right) or lower (left) what was clicked stands than in plain search, as mean reciprocal rank:
      1 is the first place, 1/2 the second. The bar is the 95 % interval over users; where it crosses the middle, chance may have done it.</p>
    <table class="intervals">
      <thead><tr><th>Searches</th><th>Learning</th><th>Difference</th><th class="number">Mean</th><th class="number">Stands first</th></tr></thead>
      ${told.map(([slice, size]) => html`
        <tbody>${compared.map((method, index) => {
          const { reciprocal_rank: rank, "hit@1": first } = methods[method][slice];
          return html`
            <tr>
              ${index === 0 && html`<th scope="rowgroup" rowspan=${compared.length} title=${size.meaning}>${SLICES[slice] ?? slice}
                <span class="faint">${counted(size.searches, "search", "searches")}, ${counted(size.users, "user")}${isTold(size) ? "" : "; too few to tell"}</span></th>`}
              <td title=${METHODS[method]?.[1]}>${methodOf(method)}</td>
              <td class="drawn"><${Interval} ...${rank.difference} from=${-reach} to=${reach} zero=${0} isTold=${isTold(size)} /></td>
              <td class="number">${signed(rank.difference.mean)}</td>
              <td class="number">${percent(first.mean)}</td>
            </tr>`;
        })}</tbody>`)}
    </table>
    <h2>What was measured</h2>
    <ul class="plainlist">
      ${notes.map((each) => html`<li>${each}.</li>`)}
      ${Object.entries(leftOut).map(([reason, number]) => html`<li>Left out: ${number.toLocaleString()} × ${reason}.</li>`)}
    </ul>`;
};

const Recall = ({ result }) => {
  const { told, compared, queries, recorded, k, target } = result;
  const low = Math.min(...compared.map((each) => each.low), target) - 0.01;
  return html`
    <p class="verdicts">${told}.</p>
    ${compared.length > 0 && html`
      <p class="lead">${counted(queries, "query", "queries")} (${recorded.toLocaleString()} of them recorded), the first ${k} results of each. The mark is the target, ${percent(target, 1)}.</p>
      <table class="intervals">
        <thead><tr><th>Caution</th><th>Recall</th><th class="number">Mean</th><th class="number">First is right</th><th class="number">Half within</th><th class="number">95 % within</th></tr></thead>
        <tbody>${compared.map((each) => html`
          <tr class=${each.margin === result.after ? "chosen" : ""}>
            <td>${each.margin === null ? "all compared" : `${each.margin} standard errors`}${each.margin === result.after ? " (chosen)" : ""}</td>
            <td class="drawn"><${Interval} mean=${each.recall} low=${each.low} high=${each.high} from=${low} to=${1} zero=${target} /></td>
            <td class="number">${percent(each.recall, 2)}</td><td class="number">${percent(each.right_first, 1)}</td>
            <td class="number">${each.p50_ms.toFixed(1)} ms</td><td class="number">${each.p95_ms.toFixed(1)} ms</td>
          </tr>`)}</tbody>
      </table>`}`;
};

const PAIRS = {
  found_to_in_force: "Found, to those in force", found_to_plain: "Found, to plain search", in_force_to_plain: "In force, to plain search",
};
const SHOWN = 5; // of the settings that were tried
const assigned = (settings) => Object.entries(settings).map(([name, value]) => `${name.toUpperCase()}=${value}`).join(" ");

const TunedSettings = ({ result }) => {
  const { told, trials, judged, tuned_on: [searches, users], notes, changes } = result;
  const rows = Object.entries(judged).map(([name, each]) => [name, each, Object.entries(PAIRS).filter(([pair]) => each[pair])]);
  const differences = rows.flatMap(([, each, pairs]) => pairs.map(([pair]) => each[pair].difference));
  const reach = Math.max(0.01, ...differences.flatMap(({ low, high }) => [Math.abs(low), Math.abs(high)]));
  return html`
    <p class="verdicts">${told}</p>
    ${Object.keys(changes).length > 0 && html`<p class="lead">Set them in the environment of the service, or in its file <code>.env</code>, and restart it.</p>`}
    <h2>Judged on the later searches</h2>
    <p class="lead">By how much higher (right) or lower (left) what was clicked stands, as mean reciprocal rank; the bar is the 95 % interval over users.</p>
    <table class="intervals">
      <thead><tr><th>Searches</th><th>Settings</th><th>Difference</th><th class="number">Mean</th><th class="number">Users better</th><th class="number">Worse</th></tr></thead>
      ${rows.map(([name, each, pairs]) => html`
        <tbody key=${name}>${pairs.map(([pair, words], index) => html`
          <tr>
            ${index === 0 && html`<th scope="rowgroup" rowspan=${pairs.length} title=${each.meaning}>${name}
              <span class="faint">${counted(each.searches, "search", "searches")}, ${counted(each.users, "user")}</span></th>`}
            <td>${words}</td>
            <td class="drawn"><${Interval} ...${each[pair].difference} from=${-reach} to=${reach} zero=${0} isTold=${each.searches >= FEWEST} /></td>
            <td class="number">${signed(each[pair].difference.mean)}</td>
            <td class="number">${percent(each[pair].users_better, 1)}</td><td class="number">${percent(each[pair].users_worse, 1)}</td>
          </tr>`)}</tbody>`)}
    </table>
    <h2>Tried on the earlier searches</h2>
    <p class="lead">The best of what was tried on ${counted(searches, "search", "searches")} of ${counted(users, "user")}, compared with plain search.</p>
    <table>
      <thead><tr><th>Settings</th><th class="number">Mean difference</th><th class="number">Users worse</th></tr></thead>
      <tbody>${trials.slice(0, SHOWN).map((each) => html`
        <tr><td>${assigned(each.settings) || "those in force"}</td><td class="number">${signed(each.difference)}</td><td class="number">${percent(each.users_worse, 1)}</td></tr>`)}</tbody>
    </table>
    <ul class="plainlist">${notes.map((each) => html`<li>${each}.</li>`)}</ul>`;
};

const PAST = {
  repeated_soon: "The same query, within a day", repeated_later: "The same query, later",
  near_soon: "A near query, within a day", near_later: "A near query, later",
};

const Tuned = ({ result, report }) => {
  const { before, after, queries, own_past: past, is_stored: isStored } = result;
  const gate = (value) => (value === null ? "the setting GATE_THRESHOLD" : value.toFixed(3));
  return html`
    <p class="verdicts">The gate that fits ${counted(queries, "query", "queries")} is ${gate(after)}; it was ${gate(before)}.
      ${isStored ? " It is in use from now on." : report.dry_run ? " Nothing was changed." : " Nothing had to be changed."}</p>
    <h2>How much a user's own past should count</h2>
    <table>
      <thead><tr><th>For</th><th class="number">Before</th><th class="number">After</th><th class="number">Searches</th><th class="number">Clicked the same again</th></tr></thead>
      <tbody>${Object.entries(PAST).map(([kind, told]) => html`
        <tr><td>${told}</td><td class="number">${percent(past.before?.[kind] ?? 1)}</td><td class="number">${percent(past.after?.[kind] ?? 1)}</td>
          <td class="number">${Math.round(past.searches[kind] ?? 0)}</td>
          <td class="number">${past.searches[kind] ? percent(past.again[kind] / past.searches[kind]) : "–"}</td></tr>`)}</tbody>
    </table>`;
};

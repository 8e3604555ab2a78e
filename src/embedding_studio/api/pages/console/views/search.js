// Search: what one user sees beside what everybody sees, why it differs, and clicks that can be taken back.
import { html, useEffect, useRef, useState } from "../../shared/preact.js";
import { at, call } from "../../shared/api.js";
import { latestUsers, learnt, SECONDS_TO_LEARN, useAsked, useDoing, waitingClicks } from "../asking.js";
import { Act, Announce, belowName, counted, cut, Empty, nameOf, Problem, Told } from "../parts.js";
import { go, href } from "../routes.js";
import { bears, why } from "../sentences.js";

const MOVES = 5;
const OPERATORS = {
  is: { label: "is", query: (field, value) => ({ term: { field, value } }) },
  holds: { label: "contains the words", query: (field, value) => ({ match: { field, value: String(value) } }) },
  least: { label: "is at least", query: (field, gte) => ({ field, range: { gte } }) },
  most: { label: "is at most", query: (field, lte) => ({ field, range: { lte } }) },
  exists: { label: "is there", query: (field) => ({ field }) },
};

/** "12" is a number, "true" a truth value, anything else a text: as payloads have them. */
const valueOf = (given) => {
  if (given === "true" || given === "false") return given === "true";
  return given.trim() !== "" && Number.isFinite(Number(given)) ? Number(given) : given;
};

const filterOf = (conditions) => {
  const queries = conditions.filter(({ field }) => field).map(({ field, operator, value }) => OPERATORS[operator].query(field, valueOf(value)));
  return queries.length ? { query: { must: queries } } : undefined;
};

const conditionsOf = ({ where }) => {
  try {
    return where ? JSON.parse(where).map(([field, operator, value]) => ({ field, operator, value })) : [];
  } catch {
    return [];
  }
};

const bodyOf = ({ q, limit }, collection, conditions) =>
  ({ search_query: q, limit: Number(limit) || 10, collection, filter: filterOf(conditions) });

export const Search = ({ route: { query }, collection, collections }) => {
  const conditions = conditionsOf(query);
  const asked = useAsked(async () => {
    if (!query.q || !collection) return null;
    const body = bodyOf(query, collection, conditions);
    const search = (more) => call("embeddings/similarity-search", { body: { ...body, ...more } });
    if (!query.user) return { plain: await search(), personal: null, of: query };
    const [plain, personal, waiting, { quarantine }] = await Promise.all([
      search(), search({ user_id: query.user, explain: true }), waitingClicks(collection, query.user),
      call(at`users/${query.user}/state`, { query: { collection } }),
    ]);
    return { plain, personal, waiting, isQuarantined: quarantine.length > 0, of: query };
  }, [query.q, query.user, query.limit, query.where, collection]);
  const [changed, setChanged] = useState(null);
  const awaited = useRef(null); // what is waited for, which ends with the page
  const leave = () => {
    awaited.current = null;
  };
  useEffect(() => {
    setChanged(null);
    return leave;
  }, [query.q, query.user, query.limit, query.where, collection]);
  const fields = Object.keys(asked.told?.plain.search_results[0]?.payload ?? {});
  return html`
    <h1 class="visually-hidden">Search</h1>
    <${Form} key=${JSON.stringify(query)} query=${query} conditions=${conditions} fields=${fields} collection=${collection} />
    ${!collections.length ? html`
      <${Empty} title="There is nothing to search yet">
        Index a catalogue with <code>embedding-studio index catalogue.csv</code>, or make a collection
        under <a href=${href("collections")}>Collections</a>.<//>`
    : html`<${Told} asked=${asked} of=${(found) => (found === null ? html`
        <${Empty} title="Search as one of your users would">
          With a user named, you see their results beside everybody's, what moved, and why. A click teaches;
          it can be taken back. Press <kbd>/</kbd> to start typing.<//>`
      : html`<${Pages} found=${found} collection=${collection} changed=${changed} setChanged=${setChanged} awaited=${awaited}
          askAgain=${asked.again} body=${bodyOf(query, collection, conditions)} />`)} />`}`;
};

const Form = ({ query, conditions: given, fields, collection }) => {
  const [conditions, setConditions] = useState(given);
  const users = useAsked(() => latestUsers(collection), [collection]);
  const change = (index, change) =>
    setConditions(conditions.map((each, place) => (place === index ? { ...each, ...change } : each)));
  const search = (event) => {
    event.preventDefault();
    const { q, user, limit } = Object.fromEntries(new FormData(event.target));
    const where = conditions.filter(({ field }) => field).map(({ field, operator, value }) => [field, operator, value]);
    go("search", undefined, {
      collection: query.collection, q: q.trim(), user: user.trim(), limit: limit === "10" ? "" : limit,
      where: where.length ? JSON.stringify(where) : "",
    });
  };
  return html`
    <form class="search" role="search" onSubmit=${search}>
      <label class="wide">What is searched for
        <input id="query" name="q" type="search" defaultValue=${query.q ?? ""} placeholder="warm coat" maxlength="2000" required /></label>
      <label>As user
        <input name="user" defaultValue=${query.user ?? ""} list="users" placeholder="nobody" autocomplete="off" /></label>
      <datalist id="users">${users.told?.map((each) => html`<option value=${each.user_id} />`)}</datalist>
      <label>Results
        <select name="limit">${[5, 10, 20, 50].map((each) => html`
          <option selected=${String(each) === (query.limit ?? "10")}>${each}</option>`)}</select></label>
      <button class="first">Search</button>
      <div class="conditions">
        ${conditions.map(({ field, operator, value }, index) => html`
          <fieldset class="row">
            <legend class="visually-hidden">Filter ${index + 1}</legend>
            <input aria-label="Field" value=${field} list="fields" placeholder="field, such as price" required
              onInput=${(event) => change(index, { field: event.target.value })} />
            <select aria-label="Condition" onChange=${(event) => change(index, { operator: event.target.value })}>
              ${Object.entries(OPERATORS).map(([name, { label }]) => html`<option value=${name} selected=${name === operator}>${label}</option>`)}
            </select>
            ${operator !== "exists" && html`<input aria-label="Value" value=${value} placeholder="value" required
              onInput=${(event) => change(index, { value: event.target.value })} />`}
            <button type="button" class="quiet" aria-label=${`Remove filter ${index + 1}`}
              onClick=${() => setConditions(conditions.filter((_, place) => place !== index))}>Remove</button>
          </fieldset>`)}
        <datalist id="fields">${fields.map((each) => html`<option value=${each} />`)}</datalist>
        <button type="button" class="quiet" onClick=${() => setConditions([...conditions, { field: "", operator: "is", value: "" }])}>+ Filter</button>
      </div>
    </form>`;
};

const placesOf = (results) => Object.fromEntries(results.map((each) => [each.object_id, each.position]));

const Pages = ({ found, collection, changed, setChanged, awaited, askAgain, body }) => {
  const { plain, personal, waiting, isQuarantined, of } = found;
  const { user } = of;
  const names = Object.fromEntries([...plain.search_results, ...(personal?.search_results ?? [])]
    .map((each) => [each.object_id, nameOf(each.payload, each.object_id)]));
  const name = (id) => names[id] ?? id;
  const search = (more) => call("embeddings/similarity-search", { body: { ...body, ...more } });
  /** Do something that is learnt from, wait until it is, and say what it moved; where that is late, it can be undone. */
  const teaching = async (what, teach, undoing) => {
    const began = performance.now();
    const mine = {};
    const isLeft = () => awaited.current !== mine;
    awaited.current = mine;
    setChanged({ ...what, isWaiting: true });
    try {
      const session = await teach();
      const late = () => setChanged({ ...what, isWaiting: true, isLate: true, undo: undoing && (() => undoing(session)) });
      const order = await learnt(session, { isLeft, late });
      const seconds = (performance.now() - began) / 1000;
      const [after, others] = await Promise.all([search({ user_id: user }), search()]);
      if (isLeft()) return;
      setChanged({
        ...what, seconds, order, moves: movesOf(personal.search_results, after.search_results),
        moved: movesOf(plain.search_results, others.search_results).length,
      });
      askAgain();
    } catch (error) {
      if (!isLeft()) setChanged(null);
      throw error;
    }
  };
  const click = ({ object_id: id }) => teaching({ told: `${user} clicked “${name(id)}” for “${of.q}”.` }, async () => {
    const page = await search({ user_id: user, create_session: true });
    await call("clickstream/session/events", { body: { session_id: page.session_id, events: [{ object_id: id }] } });
    return page.session_id;
  }, (session) => undo({ object_id: id }, [session]));
  const undo = ({ object_id: id }, sessions) => teaching({ told: `The click on “${name(id)}” was taken back.`, isUndone: true }, async () => {
    for (const each of sessions) await call("clickstream/session/events", { method: "DELETE", query: { session_id: each, object_id: id } });
    return sessions.at(-1);
  });
  if (!plain.search_results.length) return html`
    <${Empty} title="Nothing matches">${body.filter ? "No object passes the filters; remove one, or check how the field is spelt."
      : html`The collection ${collection} holds no objects yet. Index a catalogue with <code>embedding-studio index</code>.`}<//>`;
  if (!personal) return html`
    <div class="pages one">
      <${Page} title="For everybody" note="Name a user above to see their results beside these." results=${plain.search_results} />
    </div>`;
  return html`
    <${Changed} changed=${changed} user=${user} name=${name} isQuarantined=${isQuarantined} />
    <div class="pages">
      <${Page} title=${`For ${user}`} user=${user} results=${personal.search_results} compared=${placesOf(plain.search_results)}
        note=${html`${bears(personal, plain)} ${waiting > 0 && `${counted(waiting, "click")} of ${user} ${waiting === 1 ? "waits" : "wait"} to be learnt. `}
          <a href=${href("users", user, { collection: of.collection })}>What is known of ${user}</a>`}
        name=${name} isBusy=${changed?.isWaiting && !changed.isLate} click=${isQuarantined ? null : click} undo=${undo} />
      <${Page} title="For everybody" results=${plain.search_results}
        note=${plain.personalised ? "What a new user sees; clicks of others count in it." : "The plain search: what a new user sees."} />
    </div>`;
};

const movesOf = (before, after) => {
  const [was, now] = [placesOf(before), placesOf(after)];
  return [...new Set([...after, ...before].map((each) => each.object_id))]
    .map((id) => ({ id, was: was[id], now: now[id] })).filter((each) => each.was !== each.now);
};

/** Stands there before anything has changed, so that nothing jumps when something does. */
const Changed = ({ changed, user, name, isQuarantined }) => {
  const told = changed && `${changed.told} ${became(changed)}`;
  return html`
    <${Announce}>${told}<//>
    <section class="changed" aria-label="What changed">
      ${!changed && html`<p class="faint">${isQuarantined ? `${user} is in quarantine: nothing is learnt from their clicks.`
        : `Click a result as ${user} would. What it changes is told here, and can be taken back.`}</p>`}
      ${changed && html`<p>${told} ${changed.undo && html`<${Act} label="Take back the click that waits" act=${changed.undo}>Undo<//>`}</p>`}
      ${changed?.moves?.length > 0 && html`
        <ul class="moves">${changed.moves.slice(0, MOVES).map(({ id, was, now }) => html`
          <li><strong>${cut(name(id), 24)}</strong> ${was === undefined ? `came in at ${now}` : now === undefined ? `left the page (was ${was})` : `${was} → ${now}`}</li>`)}
          ${changed.moves.length > MOVES && html`<li class="faint">and ${changed.moves.length - MOVES} more</li>`}</ul>`}
      ${changed && !changed.isWaiting && html`<p class="faint">${changed.moved ? `What a new user sees has changed too: ${counted(changed.moved, "result")} moved.`
        : "What a new user sees has not changed."}</p>`}
    </section>`;
};

const became = ({ order, moves, seconds, isWaiting, isLate, isUndone }) => {
  if (isLate) return `It is not ${isUndone ? "unlearnt" : "learnt"} yet, after ${SECONDS_TO_LEARN} s; this page goes on looking. Does a worker run? Health says more.`;
  if (isWaiting) return isUndone ? "Unlearning…" : "Learning…";
  if (order.status === "failed") return `Learning failed: ${order.detail}`;
  if (order.status === "refused" && !moves.length && !isUndone) return `Nothing was learnt: ${order.detail}.`;
  const onPage = moves.filter((each) => each.now !== undefined).length;
  return `${isUndone ? "Unlearnt" : "Learnt"} in ${seconds.toFixed(1)} s. ${moves.length ? `${counted(onPage, "result")} on this page moved:` : "No result on this page moved."}`;
};

const Page = ({ title, note, results, user, compared, name, isBusy, click, undo }) => html`
  <section aria-label=${title}>
    <h2>${title}</h2>
    <p class="note faint">${note}</p>
    <ol class="results">${results.map((result) => html`
      <${Result} key=${result.object_id} result=${result} user=${user} compared=${compared} name=${name} isBusy=${isBusy} click=${click} undo=${undo} />`)}</ol>
  </section>`;

const Result = ({ result, user, compared, name, isBusy, click, undo }) => {
  const { object_id: id, payload, position, distance } = result;
  const called = nameOf(payload, id);
  const moved = compared ? compared[id] - position : 0;
  const sessions = (result.explanation?.influences ?? []).filter((each) => each.clicked_ids.includes(id)).map((each) => each.session_id);
  const { start, problem } = useDoing(() => (sessions.length ? undo(result, sessions) : click(result)));
  const reason = compared && why(result, moved, user, name);
  return html`
    <li class=${sessions.length ? "clicked" : ""}>
      <span class="place">${position}</span>
      <div class="told">
        <p class="name" title=${id}>${called} ${compared && html`<${Move} moved=${moved} />`}</p>
        <p class="text faint">${belowName(payload, id)}</p>
        ${reason && html`<p class="why">${reason}</p>`}
        ${problem && html`<${Problem} problem=${problem} />`}
      </div>
      <div class="does">
        <span class="faint distance" title="distance: smaller is nearer">${distance.toFixed(3)}</span>
        ${(click || (undo && sessions.length > 0)) && html`<button type="button" disabled=${isBusy} onClick=${start}
          aria-label=${sessions.length ? `Take back the click on ${called}` : `Click ${called} as ${user}`}>${sessions.length ? "Undo" : "Click"}</button>`}
      </div>
    </li>`;
};

const Move = ({ moved }) => {
  if (moved === 0) return null;
  if (Number.isNaN(moved)) return html`<span class="move up">▲ new here<span class="visually-hidden">: not on everybody's page</span></span>`;
  const told = `${Math.abs(moved)} ${moved > 0 ? "up" : "down"}`;
  return html`<span class=${`move ${moved > 0 ? "up" : "down"}`} title=${`${told} from where everybody sees it`}>
    <span aria-hidden="true">${moved > 0 ? "▲" : "▼"} ${Math.abs(moved)}</span><span class="visually-hidden">${told}</span></span>`;
};

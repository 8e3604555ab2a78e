// Users: what is known of one, how it moved their results, and how to take it back.
import { html, useState } from "../../shared/preact.js";
import { at, call } from "../../shared/api.js";
import { counting, latestUsers, learnt, objectsOf, useAsked, waitingClicks } from "../asking.js";
import { Act, Ask, Badge, counted, Empty, nameOf, Told, When } from "../parts.js";
import { VectorMap } from "../plots.js";
import { go, href } from "../routes.js";

export const Users = (given) => (given.route.id === undefined ? html`<${List} ...${given} />` : html`<${One} ...${given} />`);

const List = ({ route: { query }, collection }) => {
  const asked = useAsked(async () => {
    const [users, quarantine] = await Promise.all([collection ? latestUsers(collection) : [], call("quarantine", { query: { limit: 1000 } })]);
    return { users, quarantined: new Map(quarantine.users.map((each) => [each.user_id, each])) };
  }, [collection], { every: 5000 });
  const open = (event) => {
    event.preventDefault();
    go("users", new FormData(event.target).get("user").trim(), { collection: query.collection });
  };
  return html`
    <div class="row between head">
      <div>
        <h1>Users</h1>
        <p class="lead">Who searched lately, the latest first. Open one to see what was learnt from their clicks.</p>
      </div>
      <form class="row" role="search" onSubmit=${open}>
        <input name="user" aria-label="User id" placeholder="user id" required /> <button>Open</button>
      </form>
    </div>
    <${Told} asked=${asked} of=${({ users, quarantined }) => html`
      ${users.length ? html`
        <table class="cards">
          <thead><tr><th>User</th><th>Last search</th><th>When</th><th class="number">Searches</th><th class="number">With a click</th><th>State</th></tr></thead>
          <tbody>${users.map(({ user_id: user, latest_at: latest, sessions }) => html`
            <tr key=${user}>
              <td class="main"><a href=${href("users", user, { collection: query.collection })}>${user}</a></td>
              <td>${sessions[0].search_query}</td>
              <td class="faint"><${When} at=${latest} /></td>
              <td class="number" data-label="searches">${sessions.length}</td>
              <td class="number" data-label="with a click">${sessions.filter((each) => counting(each.events).length).length}</td>
              <td>${quarantined.has(user) && html`<${Badge} kind="warn">quarantined<//>`}</td>
            </tr>`)}</tbody>
        </table>`
      : html`<${Empty} title="Nobody has searched here yet">
          A user appears with the first search that names them, by <code>user_id</code>.
          Try one under <a href=${href("search", undefined, { collection: query.collection })}>Search</a>.<//>`}
      ${quarantined.size > 0 && html`<${Quarantined} users=${[...quarantined.values()]} query=${query} />`}`} />`;
};

const Quarantined = ({ users, query }) => html`
  <h2>In quarantine</h2>
  <p class="lead">Nothing is learnt from these users: a person decided so, or they clicked like a robot.</p>
  <ul class="lines">${users.map((each) => html`
    <li><a href=${href("users", each.user_id, { collection: query.collection })}>${each.user_id}</a>${" "}
      <span class="faint">since <${When} at=${each.since} />: ${each.reason}</span></li>`)}</ul>`;

const One = ({ route: { id: user, query }, collection }) => {
  const asked = useAsked(async () => {
    const [state, waiting] = await Promise.all([call(at`users/${user}/state`, { query: { collection } }), waitingClicks(collection, user)]);
    const map = state.queries.length ? await call(at`users/${user}/map`, { query: { collection } }) : null;
    const ids = [...state.queries.flatMap((each) => each.clicked_ids), ...(map?.points ?? []).filter((each) => each.kind === "object").map((each) => each.identity)];
    return { state, waiting, map, objects: await objectsOf(collection, ids) };
  }, [user, collection], { every: 2000, unless: (told) => told.waiting === 0 });
  const [forgotten, setForgotten] = useState(null);
  return html`
    <p><a href=${href("users", undefined, { collection: query.collection })}>← All users</a></p>
    ${forgotten ? html`<${Forgotten} user=${user} ...${forgotten} />` : html`
      <${Told} asked=${asked} of=${(told) => html`
        <${Details} ...${told} user=${user} collection=${collection} query=${query} again=${asked.again} setForgotten=${setForgotten} />`} />`}`;
};

const ROWS = {
  sessions: "searches", session_events: "clicks and other events", query_memory: "past queries",
  personal_parts: "personal vectors", sessions_for_improvement: "orders to learn", quarantine_decisions: "decisions on quarantine",
};

const Forgotten = ({ user, removed, not_reached: left }) => {
  const rows = Object.entries(removed).filter(([, number]) => number > 0).map(([table, number]) => `${ROWS[table] ?? table} ${number.toLocaleString()}`);
  return html`
    <h1>${user}</h1>
    <p class="lead" role="status">${rows.length ? `${user} is forgotten. Removed in rows: ${rows.join(", ")}.` : `Nothing was kept about ${user}, so nothing had to be removed.`}</p>
    <h2>What this does not reach</h2>
    <ul class="plainlist">${left.map((each) => html`<li>${each}.</li>`)}</ul>`;
};

const Details = ({ user, collection, query, state, waiting, map, objects, again, setForgotten }) => {
  const { queries, moved, quarantine } = state;
  const name = (id) => nameOf(objects[id]?.payload, id);
  const act = (ask) => async () => {
    await ask();
    again();
  };
  const quarantineThem = () => call(at`quarantine/${user}`, { method: "PUT", body: { reason: "by hand, in the console" } });
  const forget = async () => setForgotten(await call(at`users/${user}`, { method: "DELETE" }));
  return html`
    <h1>${user}</h1>
    <p class="lead">${queries.length
      ? `In ${collection}, ${user} is remembered by ${counted(queries.length, "past query", "past queries")} with a click; they moved ${counted(moved.length, "object")} for ${user} alone.`
      : `Nothing is learnt about ${user} in ${collection}: they get what everybody gets.`}
      ${waiting > 0 && ` ${counted(waiting, "click")} ${waiting === 1 ? "waits" : "wait"} to be learnt.`}</p>
    ${quarantine.map((each) => html`
      <p class="notice"><${Badge} kind="warn">quarantined<//> since <${When} at=${each.since} />${each.collection ? "" : ", in all collections"}: ${each.reason}. Nothing is learnt from them.</p>`)}
    <div class="row actions">
      <a class="button" href=${href("search", undefined, { collection: query.collection, user, q: queries[0]?.search_query })}>Search as ${user}</a>
      <a class="button" href=${href("sessions", undefined, { collection: query.collection, user })}>Their sessions</a>
      <${Act} act=${() => download(user)} doing="Exporting…">Export all that is kept<//>
      ${quarantine.length
        ? html`<${Act} act=${act(() => call(at`quarantine/${user}`, { method: "DELETE" }))}>Release from quarantine<//>`
        : html`<${Ask} title=${`Quarantine ${user}?`} told="Nothing is learnt from them until you release them, and what was learnt is unlearnt. Their searches go on, as everybody's." act=${act(quarantineThem)}>Quarantine<//>`}
      <${Ask} title=${`Forget ${user}?`} typed=${user} act=${forget}
        told="All that is kept about them goes, in every collection: searches, clicks, and what was learnt. From then on they see what a new user sees. It cannot be brought back.">Forget<//>
    </div>
    ${queries.length === 0 ? quarantine.length === 0 && waiting === 0 && html`
      <${Empty} title="No click to show yet">
        Click a result for them under <a href=${href("search", undefined, { collection: query.collection, user })}>Search</a>, and see here what it moves.<//>`
    : html`
      <div class="halves">
        <section>
          <h2>Past queries</h2>
          <ul class="lines">${queries.map((each) => html`<${Past} key=${each.session_id} past=${each} name=${name} query=${query} again=${again} />`)}</ul>
        </section>
        <section>
          <h2>What moved</h2>
          <${Moved} moved=${moved} />
        </section>
      </div>
      <h2>Map</h2>
      <p class="lead">What is alike stands close together. Filled dots are the objects that moved for ${user}; a line leads from where everybody
        has them. Two dimensions show ${Math.round(100 * map.explained)} % of the differences between these ${map.points.length} vectors.</p>
      <${VectorMap} points=${map.points} name=${name} label=${`Map of ${user}'s queries and the objects near them. The table “What moved” has the same movements in degrees.`} />`}`;
};

const Past = ({ past, name, query, again }) => html`
  <li>
    <p><a href=${href("sessions", past.session_id, { collection: query.collection })}><strong>${past.search_query || "(no text)"}</strong></a>${" "}
      <span class="faint"><${When} at=${past.created_at} /></span></p>
    ${past.clicked_ids.map((id) => html`
      <div class="row between nowrap"><span>clicked ${name(id)}</span>
        <span><${Act} class="quiet" doing="…" label=${`Take back the click on ${name(id)} for ${past.search_query}`} act=${async () => {
          await call("clickstream/session/events", { method: "DELETE", query: { session_id: past.session_id, object_id: id } });
          await learnt(past.session_id);
          again();
        }}>Undo<//></span></div>`)}
  </li>`;

const Moved = ({ moved }) => {
  const most = Math.max(...moved.map((each) => each.degrees), 0);
  return moved.length === 0 ? html`<p class="faint">No object moved; their clicks bend the queries alone.</p>` : html`
    <table class="bars">
      <thead><tr><th>Object</th><th class="number">Degrees</th><th><span class="visually-hidden">drawn</span></th></tr></thead>
      <tbody>${moved.slice(0, 20).map(({ object_id: id, degrees, payload }) => html`
        <tr key=${id}><td title=${id}>${nameOf(payload, id)}</td><td class="number">${degrees < 0.05 ? "< 0.1" : degrees.toFixed(1)}°</td>
          <td class="bar"><span style=${{ width: `${(100 * degrees) / most}%` }}></span></td></tr>`)}</tbody>
    </table>
    ${moved.length > 20 && html`<p class="faint">and ${moved.length - 20} more, less far</p>`}`;
};

const download = async (user) => {
  const lines = await call(at`users/${user}/export`);
  const url = URL.createObjectURL(new Blob([lines], { type: "application/x-ndjson" }));
  const link = Object.assign(document.createElement("a"), { href: url, download: `${user.replace(/[^\w.-]+/g, "_")}.ndjson` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
};

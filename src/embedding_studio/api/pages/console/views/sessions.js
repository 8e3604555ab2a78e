// Sessions: what was searched, what was clicked, and what became of it.
import { html, useState } from "../../shared/preact.js";
import { at, call } from "../../shared/api.js";
import { counting, learnt, objectsOf, useAsked } from "../asking.js";
import { Act, Ask, Badge, belowName, counted, Empty, nameOf, Told, When } from "../parts.js";
import { go, href } from "../routes.js";
import { became } from "../sentences.js";

const SECONDS = 2;

export const Sessions = (given) => (given.route.id === undefined ? html`<${List} ...${given} />` : html`<${One} ...${given} />`);

const List = ({ route: { query }, collection }) => {
  const [isLive, setIsLive] = useState(true);
  const [earlier, setEarlier] = useState([]);
  const ask = (before) => call("clickstream/sessions", { query: { collection, user_id: query.user, before, limit: 30 } });
  const asked = useAsked(() => (collection ? ask() : { sessions: [] }), [collection, query.user], { every: isLive && !earlier.length ? 1000 * SECONDS : 0 });
  const pages = asked.told ? [asked.told, ...earlier] : [];
  const next = pages.at(-1)?.next_before;
  const search = (event) => {
    event.preventDefault();
    setEarlier([]);
    go("sessions", undefined, { ...query, user: new FormData(event.target).get("user").trim() });
  };
  return html`
    <div class="row between head">
      <div>
        <h1>Sessions</h1>
        <p class="lead">A session is one search, what it showed and what was clicked. The latest stand first.</p>
      </div>
      <form class="row" role="search" onSubmit=${search}>
        <input name="user" aria-label="Only of this user" placeholder="of any user" defaultValue=${query.user ?? ""} />
        <button>Show</button>
        <label class="check"><input type="checkbox" checked=${isLive} disabled=${earlier.length > 0}
          onChange=${(event) => setIsLive(event.target.checked)} /> Live</label>
      </form>
    </div>
    <${Told} asked=${asked} of=${() => {
      const sessions = pages.flatMap((each) => each.sessions);
      return sessions.length ? html`<${Table} sessions=${sessions} query=${query} />` : html`
        <${Empty} title=${query.user ? `${query.user} has no sessions here` : "No session is recorded here yet"}>
          Make one under <a href=${href("search", undefined, { collection: query.collection, user: query.user })}>Search</a> by a click,
          let your site send them, or import a log with <code>embedding-studio import</code>.<//>`;
    }} />
    ${next && html`<p class="more"><${Act} act=${async () => setEarlier([...earlier, await ask(next)])}>Earlier sessions<//></p>`}`;
};

const Table = ({ sessions, query }) => html`
  <table class="cards">
    <thead><tr><th>When</th><th>Searched for</th><th>User</th><th class="number">Shown</th><th class="number">Clicked</th><th>What became of it</th></tr></thead>
    <tbody>${sessions.map((session) => {
      const { word, kind, told } = became(session);
      const clicks = counting(session.events);
      return html`
        <tr key=${session.session_id}>
          <td class="faint"><${When} at=${session.created_at} /></td>
          <td class="main"><a href=${href("sessions", session.session_id, { collection: query.collection })}>${session.search_query || "(no text)"}</a></td>
          <td>${session.user_id ? html`<a class="plain" href=${href("users", session.user_id, { collection: query.collection })}>${session.user_id}</a>` : html`<span class="faint">anonymous</span>`}</td>
          <td class="number" data-label="shown">${session.results}</td>
          <td class="number" data-label="clicked">${new Set(clicks.map((each) => each.object_id)).size}</td>
          <td class="became"><${Badge} kind=${kind}>${word}<//> ${["refused", "failed", "quarantined"].includes(word) && html`<span class="faint reason">${told}</span>`}</td>
        </tr>`;
    })}</tbody>
  </table>`;

const One = ({ route: { id, query } }) => {
  const asked = useAsked(async () => {
    const session = await call("clickstream/session", { query: { session_id: id } });
    const [order, objects] = await Promise.all([
      call(at`improvement/orders/${id}`).catch((problem) => { if (problem.status === 404) return null; throw problem; }),
      objectsOf(session.collection, session.search_results.map((each) => each.object_id)).catch(() => ({})),
    ]);
    return { session, order, objects };
  }, [id]);
  return html`
    <p><a href=${href("sessions", undefined, { collection: query.collection })}>← All sessions</a></p>
    <${Told} asked=${asked} of=${(told) => html`<${Details} ...${told} again=${asked.again} query=${query} />`} />`;
};

const Details = ({ session, order, objects, again, query }) => {
  const { session_id: id, user_id: user, events } = session;
  const what = became({ ...session, order });
  const act = (ask) => async () => {
    await ask();
    again();
  };
  const learnAgain = act(async () => {
    await call(at`improvement/orders/${id}/retry`, { method: "POST" });
    await learnt(id);
  });
  const isOpen = ["pending", "failed", "refused"].includes(order?.status);
  return html`
    <h1>${session.search_query ? `“${session.search_query}”` : "A search without a text"}</h1>
    <p class="lead">
      ${user ? html`<a href=${href("users", user, { collection: query.collection })}>${user}</a>` : "Somebody anonymous"} searched${" "}
      in <a href=${href("collections", session.collection)}>${session.collection}</a> at <${When} at=${session.created_at} />,
      and saw ${counted(session.search_results.length, "result")}. Id <code>${id}</code></p>
    <section class="panel">
      <p><${Badge} kind=${what.kind}>${what.word}<//> ${what.told}
        ${order?.attempts > 1 && html` <span class="faint">${order.attempts} attempts.</span>`}</p>
      <div class="row">
        ${user && html`<a class="button" href=${href("search", undefined, { collection: session.collection, q: session.search_query, user })}>Search this as ${user}</a>`}
        ${order && html`<${Act} act=${learnAgain} doing="Learning…">Learn from it again<//>`}
        ${isOpen && html`<${Act} act=${act(() => call(at`improvement/orders/${id}`, { method: "DELETE" }))}>Cancel learning<//>`}
        ${!session.is_irrelevant && html`
          <${Ask} title="Mark this session irrelevant?" told="It no longer counts, and what was learnt from it is unlearnt. This cannot be taken back."
            act=${act(() => call("clickstream/session/irrelevant", { body: { session_id: id } }))}>Mark irrelevant<//>`}
        ${user && html`
          <${Ask} title=${`Quarantine ${user}?`} told="Nothing is learnt from them until you release them, and what was learnt is unlearnt. Their searches go on, as everybody's."
            act=${act(() => call(at`quarantine/${user}`, { method: "PUT", body: { reason: `by hand, over “${session.search_query}”` } }))}>Quarantine ${user}<//>`}
      </div>
    </section>
    <h2>Shown and clicked</h2>
    ${session.search_results.length ? html`
      <ol class="results narrow">${session.search_results.map((result) => html`
        <${Shown} result=${result} object=${objects[result.object_id]} again=${again}
          id=${id} events=${events.filter((each) => each.object_id === result.object_id)} />`)}</ol>`
    : html`<${Empty} title="No result was recorded">Send them as search_results with the session, so that clicks can be learnt from.<//>`}`;
};

const DID = { click: "clicked", view: "viewed", add_to_cart: "put in the cart", purchase: "bought", taken_back: "taken back" };

const Shown = ({ result, object, events, id, again }) => {
  const { object_id: objectId, position, rank, personalised } = result;
  const called = nameOf(object?.payload, objectId);
  const isClicked = counting(events).length > 0;
  return html`
    <li class=${isClicked ? "clicked" : ""}>
      <span class="place">${position}</span>
      <div class="told">
        <p class="name" title=${objectId}>${called} ${personalised && html`<span class="move up" title="its place came from the user's own clicks">personal</span>`}</p>
        <p class="text faint">${object ? belowName(object.payload, objectId) : "no longer in the collection"}</p>
        ${events.length > 0 && html`<p class="why">${events.map((each, index) => html`${index > 0 && ", "}${DID[each.event_type] ?? each.event_type} at <${When} at=${each.created_at} />`)}</p>`}
      </div>
      <div class="does">
        ${rank !== null && html`<span class="faint distance">${rank.toFixed(3)}</span>`}
        ${isClicked && html`<${Act} label=${`Take back what was done with ${called}`} doing="…" act=${async () => {
          await call("clickstream/session/events", { method: "DELETE", query: { session_id: id, object_id: objectId } });
          await learnt(id).catch(() => null); // without an order there is nothing to wait for
          again();
        }}>Undo<//>`}
      </div>
    </li>`;
};

// What the page asks of the service: lists for people, their clicks, and what becomes of them.
import { at, call } from "../shared/api.js";
import { RUN } from "./tab.js";

export const PEOPLE = { ada: { id: `demo-ada-${RUN}`, name: "Ada" }, bob: { id: `demo-bob-${RUN}`, name: "Bob" } };
const OTHERS = ["cleo", "dan", "eve"].map((name) => `demo-${name}-${RUN}`);
export const OTHERS_NAMED = "Cleo, Dan and Eve";

export const SHOWN = 8;
const REACH = 60; // so far down is looked for where a result stands for anybody
const PATIENCE_MS = 8000;
const POLL_MS = 25;
const NOT_LEARNT = "What was clicked has not been learnt yet; is a worker running?";

const found = new Map(); // object id -> payload, of all that was ever seen

export const titleOf = (id) => found.get(id)?.title ?? id;

/** As it is called in a sentence: a product has an article, a function has none. */
export const named = (id) => (found.get(id)?.title ? `the ${titleOf(id)}` : id);

export const stage = () => call("/demo-state");

const search = async (collection, query, options = {}, withOthers = false) => {
  const path = "api/v1/embeddings/similarity-search";
  const page = await call(withOthers ? `/with-others/${path}` : `/${path}`, {
    body: { collection, search_query: query, limit: SHOWN, ...options },
  });
  for (const each of page.search_results) found.set(each.object_id, each.payload);
  return page;
};

/** Where results stand for anybody: id -> place, 1 for the top. */
const placesForAnybody = async (collection, query) => {
  const { search_results } = await search(collection, query, { limit: REACH });
  return new Map(search_results.map((each) => [each.object_id, each.position]));
};

/** What a person clicked, the latest first. */
const clicksOf = async (collection, user_id) => {
  const { sessions } = await call("clickstream/sessions", { query: { collection, user_id, limit: 100 } });
  return sessions.flatMap(({ session_id, search_query, events }) =>
    events
      .filter((each) => each.event_type === "click")
      .map(({ object_id }) => ({ session_id, object_id, query: search_query })),
  );
};

/** What both people see for a query, each list recorded as shown to them. */
export const lists = async (collection, query, withOthers) => {
  const [places, ...people] = await Promise.all([
    placesForAnybody(collection, query),
    ...Object.values(PEOPLE).flatMap(({ id }) => [
      search(collection, query, { user_id: id, create_session: true, explain: true }, withOthers),
      clicksOf(collection, id),
    ]),
  ]);
  const unseen = [...new Set([people[1], people[3]].flat().map((each) => each.object_id))].filter((id) => !found.has(id));
  if (unseen.length) {
    const { objects } = await call("embeddings/objects", { body: { object_ids: unseen, collection } });
    for (const each of objects) found.set(each.object_id, each.payload);
  }
  return {
    places,
    people: Object.fromEntries(
      Object.keys(PEOPLE).map((who, number) => {
        const page = people[2 * number];
        return [who, { rows: page.search_results, session: page.session_id, clicks: people[2 * number + 1] }];
      }),
    ),
  };
};

const pause = (ms) => new Promise((done) => setTimeout(done, ms));

/** Search until the first result's explanation is as wanted; the worker needs a moment. */
const awaited = async (is_so, ...asked) => {
  const deadline = performance.now() + PATIENCE_MS;
  for (;;) {
    const { search_results } = await search(...asked);
    if (!search_results.length || is_so(search_results[0].explanation)) return;
    if (performance.now() > deadline) throw new Error(NOT_LEARNT);
    await pause(POLL_MS);
  }
};

const bears = (click) => ({ influences }) =>
  influences.some((each) => each.session_id === click.session_id && each.clicked_ids.includes(click.object_id));

const send = ({ session_id, object_id }) =>
  call("clickstream/session/events", { body: { session_id, events: [{ object_id, event_type: "click" }] } });

/** Click, and return after how many seconds the person's list was another. */
export const click = async (collection, query, who, clicked) => {
  const started = performance.now();
  await send(clicked);
  await awaited(bears(clicked), collection, query, { user_id: PEOPLE[who].id, explain: true });
  return (performance.now() - started) / 1000;
};

export const takeBack = async (collection, who, taken) => {
  await call("clickstream/session/events", { method: "DELETE", query: { session_id: taken.session_id, object_id: taken.object_id } });
  const isGone = (explanation) => !bears(taken)(explanation);
  await awaited(isGone, collection, taken.query, { user_id: PEOPLE[who].id, explain: true });
};

/** Wait until a session is learnt from. */
const learnt = async (session_id) => {
  const deadline = performance.now() + PATIENCE_MS;
  while (["pending", "processing"].includes((await call(at`improvement/orders/${session_id}`)).status)) {
    if (performance.now() > deadline) throw new Error(NOT_LEARNT);
    await pause(POLL_MS);
  }
};

/** Let three others search for the same and click the same. */
export const othersClick = async (collection, query, object_id) => {
  await Promise.all(
    OTHERS.map(async (user_id) => {
      const { session_id } = await search(collection, query, { user_id, create_session: true, limit: REACH });
      await send({ session_id, object_id });
      await learnt(session_id); // others who clicked before, in this tab or another, do not stand for these
    }),
  );
  const isShared = ({ shared }) => shared !== null && shared.users >= OTHERS.length;
  await awaited(isShared, collection, query, { user_id: PEOPLE.bob.id, explain: true }, true);
};

export const forget = (who) => call(at`users/${PEOPLE[who].id}`, { method: "DELETE" });

export const forgetAll = () =>
  Promise.all([...Object.keys(PEOPLE).map(forget), ...OTHERS.map((id) => call(at`users/${id}`, { method: "DELETE" }))]);

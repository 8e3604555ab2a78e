// What is asked of the service while a view is shown, and a key where the service wants one.
import { at, call } from "../shared/api.js";
import { useCallback, useEffect, useState } from "../shared/preact.js";

const NEEDS_KEY = "needs-key";
export const SECONDS_TO_LEARN = 30;

const tellOfKey = (problem) => {
  if (problem.status === 401) dispatchEvent(new Event(NEEDS_KEY));
};

/** Whether the service refused to talk without a key, and what sets that. */
export const useNeedsKey = () => {
  const [needs, setNeeds] = useState(false);
  useEffect(() => {
    const need = () => setNeeds(true);
    addEventListener(NEEDS_KEY, need);
    return () => removeEventListener(NEEDS_KEY, need);
  }, []);
  return [needs, setNeeds];
};

/**
 * Ask when what is depended on changes, and again every so many milliseconds if that is given, unless it has ended.
 * The last answer stays while it is asked again, so that nothing jumps.
 * @returns {{told?: any, at?: number, problem?: Error, isAsking: boolean, again: () => void}}
 */
export const useAsked = (ask, depends, { every, unless = () => false } = {}) => {
  const [state, setState] = useState({ isAsking: true });
  const [round, setRound] = useState(0);
  useEffect(() => {
    let isOver = false;
    let timer;
    const asking = async () => {
      let next;
      try {
        next = { told: await ask(), at: Date.now() / 1000 };
      } catch (problem) {
        tellOfKey(problem);
        next = { problem };
      }
      if (isOver) return;
      setState(({ told, at }) => ({ told, at, ...next, isAsking: false }));
      if (every && !(next.told && unless(next.told))) timer = setTimeout(asking, document.hidden ? 10 * every : every);
    };
    setState((was) => ({ ...was, isAsking: true }));
    asking();
    return () => {
      isOver = true;
      clearTimeout(timer);
    };
  }, [...depends, round, every]);
  return { ...state, again: useCallback(() => setRound((was) => was + 1), []) };
};

/** Something that a person may ask for: whether it is being done, and what went wrong the last time. */
export const useDoing = (act) => {
  const [{ isDoing, problem }, setState] = useState({ isDoing: false });
  const start = async (...given) => {
    setState({ isDoing: true });
    try {
      await act(...given);
      setState({ isDoing: false });
    } catch (error) {
      tellOfKey(error);
      setState({ isDoing: false, problem: error });
    }
  };
  return { start, isDoing, problem };
};

export const isWaiting = (order) => ["pending", "processing"].includes(order?.status);

/**
 * Wait until a session is learnt from, and return its order; null if that takes longer than it should.
 * @param {{isLeft?: () => boolean, late?: () => void}} [asked] with ``late`` it goes on looking after it has called that,
 *   until its caller waits no longer
 */
export const learnt = async (session, { isLeft = () => false, late } = {}) => {
  const end = performance.now() + 1000 * SECONDS_TO_LEARN;
  let isLate = false;
  while (!isLeft()) {
    const order = await call(at`improvement/orders/${session}`);
    if (!isWaiting(order)) return order;
    if (!isLate && performance.now() > end) {
      if (!late) return null;
      isLate = true;
      late();
    }
    await new Promise((then) => setTimeout(then, isLate ? 2000 : 100));
  }
  return null;
};

const TAKEN_BACK = "taken_back";

/** What was done in a session and not taken back. */
export const counting = (events) => events.filter((each) => each.event_type !== TAKEN_BACK);

/** How many clicks of a user wait to be learnt, among the latest sessions. */
export const waitingClicks = async (collection, user) => {
  const { sessions } = await call("clickstream/sessions", { query: { collection, user_id: user, limit: LATEST } });
  const clicked = (session) => new Set(counting(session.events).map((each) => each.object_id)).size;
  return sessions.filter((each) => isWaiting(each.order)).reduce((sum, each) => sum + clicked(each), 0);
};

const LATEST = 200;

/** Who has searched lately, the latest first, with their sessions among the latest ones. */
export const latestUsers = async (collection) => {
  const { sessions } = await call("clickstream/sessions", { query: { collection, limit: LATEST } });
  const users = new Map();
  for (const session of sessions) {
    if (session.user_id === null) continue;
    const user = users.get(session.user_id) ?? { user_id: session.user_id, latest_at: session.created_at, sessions: [] };
    user.sessions.push(session);
    users.set(session.user_id, user);
  }
  return [...users.values()];
};

/** Objects by id, with their payloads; what is gone is absent. */
export const objectsOf = async (collection, ids) => {
  const object_ids = [...new Set(ids)].slice(0, 1000);
  if (!object_ids.length) return {};
  const { objects } = await call("embeddings/objects", { body: { collection, object_ids, with_vectors: false } });
  return Object.fromEntries(objects.map((each) => [each.object_id, each]));
};

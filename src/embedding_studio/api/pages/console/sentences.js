// Why, and what became of it, in sentences that need no knowledge of vectors.

const quoted = (text) => `“${text}”`;
const listed = (texts) => (texts.length < 3 ? texts.join(" and ") : `${texts[0]}, ${texts[1]} and ${texts.length - 2} more`);

/**
 * Why a result stands where it does for a user; "" where clicks have no part in it.
 * @param {object} result as the service explains it
 * @param {number} moved by how many places it stands higher than for everybody; NaN: not on their page
 * @param {(id: string) => string} nameOf of an object
 */
export const why = (result, moved, user, nameOf) => {
  const { influences = [], shared } = result.explanation ?? {};
  const own = influences.filter((each) => each.clicked_ids.includes(result.object_id));
  if (own.length) return `${user} clicked this for ${listed(own.map((each) => quoted(each.search_query)))}.`;
  if (shared && shared.factor < 1) return `Others clicked this (${shared.users} asked alike).`;
  const [strongest] = [...influences].sort((one, other) => one.distance_change - other.distance_change);
  if (!strongest) return shared ? `It is like what others clicked (${shared.users} asked alike).` : "";
  const clicked = listed(strongest.clicked_ids.map((id) => quoted(nameOf(id))));
  if (moved < 0) return `Overtaken by what is more like ${clicked}.`;
  if (moved === 0 || strongest.distance_change >= 0) return "";
  return `It is like ${clicked}, which ${user} clicked for ${quoted(strongest.search_query)}.`;
};

/** Whose clicks bear on a page, as its results are explained beside the page of an unknown user. */
export const bears = ({ personalised, search_results: results }, plain) => {
  const isOwn = results.some((each) => each.explanation?.influences?.length);
  const isShared = results.some((each) => each.explanation?.shared);
  if (isOwn) return isShared ? "Their past clicks bear on this query, and those of others." : "Their past clicks bear on this query.";
  if (isShared || plain.personalised) return "No past click of theirs bears on this query; clicks of others count in it.";
  return personalised ? "Their past clicks bear on this query." : "No past click bears on this query: they see what everybody sees.";
};

const STATUSES = {
  pending: ["waiting", "Waits to be learnt from"],
  processing: ["learning", "Is being learnt from"],
  done: ["learnt", "What was clicked is learnt, and bears on this user's next searches"],
  refused: ["refused", "Nothing was learnt"],
  failed: ["failed", "Learning failed"],
};

const WAS_TAKEN_BACK = { word: "taken back", kind: "", told: "What was clicked was taken back; nothing of it counts." };

/** What became of a session: a word, its kind of badge, and a sentence. */
export const became = (session) => {
  const { order, is_irrelevant: isIrrelevant, events } = session;
  if (isIrrelevant) return { word: "irrelevant", kind: "", told: "Marked irrelevant: it does not count, and what was learnt from it is unlearnt." };
  const isUndone = events.length > 0 && events.every((each) => each.event_type === "taken_back");
  if (order ? order.status === "refused" && (isUndone || /was taken back/.test(order.detail)) : isUndone) return WAS_TAKEN_BACK;
  if (!order && events.length) return { word: "not learnt", kind: "", told: "Its clicks are not learnt from: no order was placed, or it was cancelled." };
  if (!order) return { word: "no click", kind: "", told: "Nothing was clicked, so there is nothing to learn." };
  const [word, sentence] = STATUSES[order.status];
  const isQuarantined = /quarantin|robot/.test(order.detail ?? "");
  return {
    word: isQuarantined ? "quarantined" : word,
    kind: { done: "good", failed: "bad", refused: "warn" }[order.status] ?? "busy",
    told: order.detail ? `${sentence}: ${order.detail}` : `${sentence}.`,
  };
};

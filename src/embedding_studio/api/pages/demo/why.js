// Why a result stands where it does, in a sentence, from what the service explains.
import { named } from "./service.js";

const SAME_QUERY = 0.999;

const asked = ({ gate, search_query }) => (gate >= SAME_QUERY ? "for this search" : `for “${search_query}”`);

/** What moved a result: {kind: clicked | like | others, text, short}, or null where nothing brought it nearer. */
export const reason = ({ object_id, explanation }, name) => {
  if (!explanation) return null;
  const own = explanation.influences.find((each) => each.clicked_ids.includes(object_id));
  if (own) return { kind: "clicked", text: `Here because ${name} clicked it ${asked(own)}` };
  const { influences, shared } = explanation;
  const nearer = influences.reduce((best, each) => (each.distance_change < (best?.distance_change ?? 0) ? each : best), null);
  if (nearer && nearer.distance_change <= (shared?.distance_change ?? 0)) {
    const text = `Here because ${name} clicked ${nearer.clicked_ids.map(named).join(" and ")} ${asked(nearer)}`;
    return { kind: "like", text, short: `Like what ${name} clicked` };
  }
  if (!shared || shared.distance_change >= 0) return null;
  return shared.factor < 1
    ? { kind: "others", text: "Here because others who searched like this clicked it" }
    : { kind: "like", text: "Here because it is like what others who searched like this clicked", short: "Like what others clicked" };
};

/** Rows with place, rise against what anybody sees, and reason; the never clicked one that rose most is pointed at. */
export const explained = (rows, places, name) => {
  const told = rows.map((row) => {
    const was = places.get(row.object_id);
    return { ...row, was, rise: was === undefined ? Infinity : was - row.position, reason: reason(row, name) };
  });
  const risen = told.filter((each) => each.rise > 0 && each.reason?.kind === "like");
  const most = risen.reduce((best, each) => (!best || (each.rise > best.rise && each.rise < Infinity) ? each : best), null);
  return told.map((each) => ({ ...each, isPointedAt: each === most }));
};

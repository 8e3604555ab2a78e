// Where the person is: #/users/ada?collection=shop. Every state worth sharing stands in the address.
import { useEffect, useState } from "../shared/preact.js";

/** What cannot be decoded was typed by hand, and is taken as it stands. */
const decoded = (text) => {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
};

const read = () => {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const [view, ...id] = path.split("/");
  return {
    view: view || "search",
    id: id.length ? decoded(id.join("/")) : undefined,
    query: Object.fromEntries(new URLSearchParams(query)),
  };
};

/** The address of a view, of one thing in it if that is named; what is absent in the query is left out. */
export const href = (view, id, query = {}) => {
  const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== null && value !== "");
  const asked = new URLSearchParams(given).toString();
  return `#/${view}${id === undefined ? "" : `/${encodeURIComponent(id)}`}${asked ? `?${asked}` : ""}`;
};

export const go = (view, id, query) => {
  location.hash = href(view, id, query);
};

export const useRoute = () => {
  const [route, setRoute] = useState(read);
  useEffect(() => {
    const follow = () => setRoute(read());
    addEventListener("hashchange", follow);
    return () => removeEventListener("hashchange", follow);
  }, []);
  return route;
};

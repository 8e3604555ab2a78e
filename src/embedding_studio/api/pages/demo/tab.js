// What a tab keeps, so that a reload goes on where it was and no tab meets the clicks of another.
const KEY = "embedding-studio-demo";

const drawn = () => Array.from(crypto.getRandomValues(new Uint8Array(4)), (byte) => byte.toString(16).padStart(2, "0")).join("");

const kept = JSON.parse(sessionStorage.getItem(KEY)) ?? { run: drawn() };

/** Ends the ids of this tab's people. */
export const RUN = kept.run;

/** What was looked at before the reload; empty in a new tab. */
export const lookedAt = kept.looked ?? {};

export const keep = (looked) => sessionStorage.setItem(KEY, JSON.stringify({ run: RUN, looked }));

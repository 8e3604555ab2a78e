// What /metrics tells, kept for as long as the page is open.
import { call } from "../shared/api.js";

const KEPT = 450;
const [SECONDS, FEWEST] = [10, 1];
const PREFIX = "embedding_studio_";
const MOMENTS = [];

/** Read what Prometheus reads: name -> [{labels, value}]. */
const parsed = (text) => {
  const found = {};
  for (const line of text.split("\n")) {
    const [, name, labels = "", value] = line.match(/^([a-z_]+)(?:\{(.*)\})? (\S+)$/) ?? [];
    if (!name) continue;
    (found[name.replace(PREFIX, "")] ??= []).push({
      labels: Object.fromEntries([...labels.matchAll(/(\w+)="([^"]*)"/g)].map(([, key, of]) => [key, of])), value: Number(value.replace("+", "")),
    });
  }
  return found;
};

/** Ask once more, unless that was just done, and return all moments that are kept, the oldest first. */
export const measured = async () => {
  if (Date.now() / 1000 - (MOMENTS.at(-1)?.at ?? 0) < FEWEST) return [...MOMENTS];
  const now = parsed(await call("/metrics"));
  MOMENTS.push({ at: Date.now() / 1000, now });
  if (MOMENTS.length > KEPT) MOMENTS.shift();
  return [...MOMENTS];
};

/** Measure in every view, so that there is something to see once numbers are looked at; return what ends it. */
export const keepMeasuring = () => {
  let timer;
  let isOver = false;
  const again = async () => {
    try {
      await measured();
    } catch (problem) {
      if ([401, 403].includes(problem.status)) return; // with this key that cannot be had
    }
    if (!isOver) timer = setTimeout(again, 1000 * SECONDS);
  };
  again();
  return () => {
    isOver = true;
    clearTimeout(timer);
  };
};

export const sum = ({ now }, name, where = () => true) => {
  const found = (now[name] ?? []).filter((each) => where(each.labels) && Number.isFinite(each.value));
  return found.length ? found.reduce((total, each) => total + each.value, 0) : null;
};

/** By how much a counter grew in a minute, from each moment to the next; a process that restarted counts from 0. */
export const perMinute = (moments, name) => moments.map((moment, index) => {
  if (index === 0) return null;
  const before = moments[index - 1];
  const [was, is] = [sum(before, name) ?? 0, sum(moment, name) ?? 0];
  return (60 * Math.max(0, is >= was ? is - was : is)) / (moment.at - before.at);
});

/** The value under which a share of what was observed in the last minutes lies, from a histogram's buckets. */
export const quantile = (moments, name, share, { over = 30 } = {}) => moments.map((moment, index) => {
  const before = moments[Math.max(0, index - over)];
  const buckets = (moment.now[`${name}_bucket`] ?? []).map(({ labels, value }) => {
    const was = (before.now[`${name}_bucket`] ?? []).find((each) => each.labels.le === labels.le)?.value ?? 0;
    return [labels.le === "+Inf" ? Infinity : Number(labels.le), value - (index === 0 ? value : was)];
  }).sort(([one], [other]) => one - other);
  const all = buckets.at(-1)?.[1] ?? 0;
  if (all <= 0) return null;
  const place = buckets.findIndex(([, count]) => count >= share * all);
  const [high, count] = buckets[place];
  const [low, below] = place > 0 ? buckets[place - 1] : [0, 0];
  return high === Infinity ? low : low + ((high - low) * (share * all - below)) / (count - below || 1);
});

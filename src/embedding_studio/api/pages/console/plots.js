// What is drawn: vectors in two dimensions, bars with intervals, and numbers over time.
import { html, useEffect, useRef, useState } from "../shared/preact.js";
import { cut } from "./parts.js";

const [WIDE, NARROW] = [{ width: 960, height: 480 }, { width: 380, height: 420 }];
const EDGE = 24;
const [LETTER, LINE] = [7.2, 17];
const isNarrow = matchMedia("(max-width: 55rem)");

const scaled = (points, { width, height }) => {
  const all = points.flatMap((each) => [each.before, each.after ?? each.before]);
  const [xs, ys] = [all.map(([x]) => x), all.map(([, y]) => y)];
  const [left, right, low, high] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const scale = Math.min((width - 2 * EDGE) / (right - left || 1), (height - 2 * EDGE) / (high - low || 1));
  const [x0, y0] = [(width - scale * (right - left)) / 2, (height - scale * (high - low)) / 2];
  return ([x, y]) => [x0 + scale * (x - left), height - y0 - scale * (y - low)];
};

/** Give each label a place beside its point where it covers no other; those without one are left out. */
const placed = (marks, size) => {
  const taken = marks.map(({ at: [x, y] }) => [x - 6, y - 6, x + 6, y + 6]);
  const isFree = ([left, top, right, bottom], own) => left > 0 && right < size.width && top > 0 && bottom < size.height
    && taken.every(([l, t, r, b], index) => index === own || right < l || left > r || bottom < t || top > b);
  return marks.map(({ at: [x, y], text }, own) => {
    const width = LETTER * text.length;
    for (const [dx, dy, anchor] of [[10, 4, "start"], [-10, 4, "end"], [0, -12, "middle"], [0, 22, "middle"]]) {
      const left = x + dx - { start: 0, end: width, middle: width / 2 }[anchor];
      const box = [left, y + dy - LINE + 4, left + width, y + dy + 4];
      if (!isFree(box, own)) continue;
      taken.push(box);
      return { x: x + dx, y: y + dy, anchor };
    }
    return null;
  });
};

/** Queries and objects where they stand, and where they stood before. */
export const VectorMap = ({ points, name, label }) => {
  const [size, setSize] = useState(isNarrow.matches ? NARROW : WIDE);
  useEffect(() => {
    const follow = () => setSize(isNarrow.matches ? NARROW : WIDE);
    isNarrow.addEventListener("change", follow);
    return () => isNarrow.removeEventListener("change", follow);
  }, []);
  const place = scaled(points, size);
  const weight = ({ kind, clicked, after }) => (kind === "query" ? 0 : clicked ? 1 : after ? 2 : 3);
  const marks = [...points].sort((one, other) => weight(one) - weight(other)).map((point) => ({
    ...point, from: place(point.before), at: place(point.after ?? point.before),
    text: cut(point.kind === "query" ? `“${point.label}”` : name(point.identity), size === NARROW ? 22 : 34),
  }));
  const labels = placed(marks, size);
  return html`
    <div class="map">
      <svg viewBox=${`0 0 ${size.width} ${size.height}`} role="img" aria-label=${label}>
        ${marks.map(({ kind, clicked, after, from, at: [x, y], text }, index) => html`
          <g class=${`${kind} ${clicked ? "clicked" : ""} ${after ? "moved" : ""}`}>
            <title>${text}</title>
            ${after && html`<circle class="before" cx=${from[0]} cy=${from[1]} r="5" /><line x1=${from[0]} y1=${from[1]} x2=${x} y2=${y} />`}
            ${kind === "query" ? html`<rect x=${x - 5} y=${y - 5} width="10" height="10" transform=${`rotate(45 ${x} ${y})`} />` : html`<circle cx=${x} cy=${y} r="5" />`}
            ${labels[index] && html`<text x=${labels[index].x} y=${labels[index].y} text-anchor=${labels[index].anchor}>${text}</text>`}
          </g>`)}
      </svg>
      <ul class="legend" aria-hidden="true">
        <li><svg viewBox="0 0 12 12" class="query"><rect x="2.5" y="2.5" width="7" height="7" transform="rotate(45 6 6)" /></svg> a query</li>
        <li><svg viewBox="0 0 12 12" class="object clicked moved"><circle cx="6" cy="6" r="5" /></svg> clicked</li>
        <li><svg viewBox="0 0 12 12" class="object moved"><circle cx="6" cy="6" r="5" /></svg> moved</li>
        <li><svg viewBox="0 0 12 12" class="object"><circle cx="6" cy="6" r="5" /></svg> as for everybody</li>
      </ul>
    </div>`;
};

/** Numbers over time. Each line is [what it is, its values]; null where nothing is known. */
export const Plot = ({ title, unit, times, lines }) => {
  const box = useRef(null);
  const plot = useRef(null);
  const data = [times, ...lines.map(([, values]) => values)];
  useEffect(() => {
    const element = box.current; // which is let go of before this effect ends
    const drawn = () => {
      plot.current?.destroy();
      const colour = (name) => getComputedStyle(document.documentElement.appendChild(Object.assign(document.createElement("i"), { className: `ink-${name}` }))).color;
      const ink = Object.fromEntries(["faint", "line", "accent", "warn"].map((name) => [name, colour(name)]));
      document.querySelectorAll("html > i").forEach((each) => each.remove());
      const axis = { stroke: ink.faint, grid: { stroke: ink.line, width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
      plot.current = new uPlot({
        width: element.clientWidth, height: 150, legend: { show: false }, cursor: { show: false },
        scales: { y: { range: (_, low, high) => [0, Math.max(1, high * 1.15)] } },
        axes: [{ ...axis, space: 90, values: [[1, "{HH}:{mm}:{ss}"]], size: 26 }, { ...axis, size: 46, space: 34 }],
        series: [{}, ...lines.map(([label], index) => ({ label, stroke: [ink.accent, ink.warn][index], width: 2, spanGaps: false, points: { show: false } }))],
      }, data, element);
    };
    drawn();
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    const resized = new ResizeObserver(() => plot.current?.setSize({ width: element.clientWidth, height: 150 }));
    scheme.addEventListener("change", drawn);
    resized.observe(element);
    return () => {
      scheme.removeEventListener("change", drawn);
      resized.disconnect();
      plot.current.destroy();
      plot.current = null;
    };
  }, []);
  useEffect(() => plot.current?.setData(data), [times.at(-1)]);
  const latest = lines.map(([label, values]) => {
    const value = values.findLast((each) => each !== null);
    return [label, value === undefined ? "–" : value.toLocaleString([], { maximumFractionDigits: value < 10 ? 1 : 0 })];
  });
  return html`
    <figure class="plot">
      <figcaption><strong>${title}</strong>
        <p>${lines.length === 1 ? latest[0][1] : latest.map(([label, value], index) => html`
          <span class=${`key ink-${["accent", "warn"][index]}`}>${label} ${value}</span> `)} ${unit}</p></figcaption>
      <div ref=${box} aria-hidden="true"></div>
    </figure>`;
};

/** A mean with its interval, on a line that has one mark; the numbers stand beside it. */
export const Interval = ({ mean, low, high, from, to, zero, isTold = true }) => {
  const at = (value) => 2 + (96 * (Math.min(Math.max(value, from), to) - from)) / (to - from || 1);
  const kind = !isTold ? "" : low > zero ? "up" : high < zero ? "down" : "";
  return html`
    <svg class=${`interval ${kind}`} role="img" aria-label=${`${mean.toFixed(3)}, from ${low.toFixed(3)} to ${high.toFixed(3)}`}>
      <line class="mark" x1=${`${at(zero)}%`} x2=${`${at(zero)}%`} y1="0" y2="100%" />
      <line x1=${`${at(low)}%`} x2=${`${at(high)}%`} y1="50%" y2="50%" />
      <circle cx=${`${at(mean)}%`} cy="50%" r="4.5" />
    </svg>`;
};

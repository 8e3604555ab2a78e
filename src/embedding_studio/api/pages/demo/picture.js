// Pictures of what is searched for, drawn from its payload: a product in its colours, or a kind of definition.
import { html, useId } from "../shared/preact.js";
import { SHAPES } from "./shapes.js";

const COLOURS = {
  black: "#2b2b30", brown: "#7a5136", burgundy: "#7c2638", camel: "#c99b62", charcoal: "#474c55", cream: "#f1e6cd",
  denim: "#4a6a94", grey: "#9aa0a6", lime: "#b5cf3f", mint: "#9fd8c0", navy: "#27406b", olive: "#6f7747",
  orange: "#e8853a", pink: "#eba3b4", red: "#c8393b", rust: "#b05a34", sand: "#d9c6a0", sky: "#84b9df",
  teal: "#1f7f80", white: "#f7f7f4", yellow: "#f0c13c",
};
const FIXED = { k: "#33343a", s: "#a9adb3", w: "#fbfaf6", y: "#ffd86b" };

/** A colour nearer to black (share below 0) or to white. */
const shaded = (colour, share) =>
  `#${[1, 3, 5]
    .map((at) => Number.parseInt(colour.slice(at, at + 2), 16))
    .map((value) => Math.round(share < 0 ? value * (1 + share) : value + (255 - value) * share))
    .map((value) => value.toString(16).padStart(2, "0"))
    .join("")}`;

/** What lies over the main colour, on the square of 100. */
const PATTERNS = {
  stripes: (c) => html`<pattern width="10" height="10"><path d="M0 2.5H10" stroke=${c.b} stroke-width="4" /></pattern>`,
  check: (c) => html`<pattern width="16" height="16">
    <path d="M0 4H16M4 0V16" stroke=${c.b} stroke-width="6" opacity=".55" /><path d="M0 12H16M12 0V16" stroke=${c.l} stroke-width="1" opacity=".8" />
  </pattern>`,
  dots: (c) => html`<pattern width="12" height="12"><circle cx="3" cy="3" r="2.3" fill=${c.b} /><circle cx="9" cy="9" r="2.3" fill=${c.b} /></pattern>`,
  zigzag: (c) => html`<pattern width="10" height="16"><path d="M0 8L5 3L10 8" fill="none" stroke=${c.b} stroke-width="2.4" /></pattern>`,
  cable: (c) => html`<pattern width="9" height="10"><path d="M2 0Q7 2.5 2 5Q-3 7.5 2 10M2 0Q-3 2.5 2 5Q7 7.5 2 10" fill="none" stroke=${c.A} stroke-width="1.1" /></pattern>`,
  quilted: (c) => html`<pattern width="14" height="14"><path d="M0 0L14 14M14 0L0 14" stroke=${c.A} stroke-width="1.3" /></pattern>`,
  ribs: (c) => html`<pattern width="8" height="8"><path d="M4 0V8" stroke=${c.A} stroke-width="1.6" /></pattern>`,
  blocks: (c) => html`<pattern width="100" height="100"><path d="M0 0H100V46H0Z" fill=${c.b} /></pattern>`,
};

const part = ([fill, path, ...rest], c, pattern) => {
  if (fill[0] === "-") {
    return html`<path d=${path} fill="none" stroke=${c[fill[1]]} stroke-width=${rest[0]} stroke-linecap="round" stroke-linejoin="round" />`;
  }
  const colour = c[fill === "*" ? "a" : fill];
  if (typeof path === "number") return html`<circle cx=${path} cy=${rest[0]} r=${rest[1]} fill=${colour} />`;
  const edge = { stroke: colour, "stroke-width": 1, "stroke-linejoin": "round" };
  return html`<path d=${path} fill=${colour} ...${edge} />${fill === "*" && pattern && html`<path d=${path} fill=${pattern} />`}`;
};

const Product = ({ payload }) => {
  const id = `p${useId().replace(/\W/g, "")}`;
  const [a, b] = payload.colours.map((name) => COLOURS[name]);
  const c = { ...FIXED, a, b, A: shaded(a, -0.24), B: shaded(b, -0.22), l: shaded(a, 0.35) };
  const pattern = PATTERNS[payload.pattern]?.(c);
  if (pattern) Object.assign(pattern.props, { id, patternUnits: "userSpaceOnUse" });
  return html`<svg class="picture" viewBox="-1 -1 102 102" aria-hidden="true">
    ${pattern && html`<defs>${pattern}</defs>`}
    ${SHAPES[payload.kind].map((each) => part(each, c, pattern && `url(#${id})`))}
  </svg>`;
};

const SIGNS = { module: "mod", class: "cls", function: "ƒ( )", method: ".ƒ( )", property: ".x" };

const Definition = ({ payload }) => html`<svg class="picture sign" viewBox="0 0 100 100" aria-hidden="true">
  <text x="50" y="60" text-anchor="middle" font-size="34">${SIGNS[payload.kind] ?? "py"}</text>
</svg>`;

export const Picture = ({ payload }) =>
  SHAPES[payload.kind] ? html`<${Product} payload=${payload} />` : html`<${Definition} payload=${payload} />`;

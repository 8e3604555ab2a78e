// What the pages draw with: Preact, its hooks, and tagged templates instead of JSX.
import { h } from "../vendor/preact.js";
import htm from "../vendor/htm.js";

export { render, Fragment } from "../vendor/preact.js";
export { useCallback, useEffect, useId, useMemo, useReducer, useRef, useState } from "../vendor/hooks.js";
export const html = htm.bind(h);

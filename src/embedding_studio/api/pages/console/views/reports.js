import { html } from "../../shared/preact.js";
export const Reports = () => html`<h1>Reports</h1>`;

import { html, render } from "../shared/preact.js";

render(html`<main><h1>Embedding Studio</h1></main>`, document.getElementById("page"));

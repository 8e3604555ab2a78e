// The console: one view of the service at a time, over the JSON routes that everybody may call.
import { html, render, useEffect, useRef, useState } from "../shared/preact.js";
import { call, key } from "../shared/api.js";
import { useAsked, useNeedsKey } from "./asking.js";
import { keepMeasuring } from "./metrics.js";
import { Empty, Told } from "./parts.js";
import { go, href, useRoute } from "./routes.js";
import { Collections } from "./views/collections.js";
import { Health } from "./views/health.js";
import { Reports } from "./views/reports.js";
import { Search } from "./views/search.js";
import { Sessions } from "./views/sessions.js";
import { Users } from "./views/users.js";

/** Those that are of one collection let it be chosen in the head of the page. */
const VIEWS = {
  search: { title: "Search", view: Search, isOfOne: true },
  sessions: { title: "Sessions", view: Sessions, isOfOne: true },
  users: { title: "Users", view: Users, isOfOne: true },
  collections: { title: "Collections", view: Collections },
  reports: { title: "Reports", view: Reports, isOfOne: true },
  health: { title: "Health", view: Health },
};

const NoSuch = ({ route }) => html`
  <h1>No such view</h1>
  <p class="lead">The console has no view “${route.view}”. Those that it has are named above.</p>`;

/** Also for names that every object has, such as "constructor". */
const viewOf = (name) => (Object.hasOwn(VIEWS, name) ? VIEWS[name] : { title: "No such view", view: NoSuch });

const Console = () => {
  const route = useRoute();
  const [needsKey, setNeedsKey] = useNeedsKey();
  const [round, setRound] = useState(0);
  const main = useRef(null);
  const { title, view: View } = viewOf(route.view);
  useEffect(() => {
    document.title = `${route.id ?? title} · Embedding Studio`;
  }, [title, route.id]);
  useEffect(() => {
    const focusSearch = (event) => {
      const isTyping = event.target.closest("input, textarea, select, [contenteditable]");
      if (event.key !== "/" || isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      if (route.view !== "search") go("search", undefined, { collection: route.query.collection });
      setTimeout(() => document.getElementById("query")?.focus());
    };
    addEventListener("keydown", focusSearch);
    return () => removeEventListener("keydown", focusSearch);
  }, [route.view, route.query.collection]);
  const changeKey = (given) => {
    key.set(given);
    setNeedsKey(!given);
    setRound(round + 1);
  };
  const skip = (event) => {
    event.preventDefault();
    main.current.focus();
  };
  return html`
    <a class="skip" href="#main" onClick=${skip}>Skip to the content</a>
    <${Frame} key=${round} route=${route} onForgetKey=${key.get() && !needsKey ? () => changeKey("") : null} main=${main}>
      ${needsKey ? html`<${KeyForm} onGiven=${changeKey} wasGiven=${Boolean(key.get())} />` : (told) => html`
        <${View} key=${`${route.view} ${route.id ?? ""}`} route=${route} ...${told} />`}
    <//>`;
};

/** What stands around every view; its children are made of the collections that there are. */
const Frame = ({ route, children, onForgetKey, main }) => {
  const asked = useAsked(() => call("collections"), []);
  useEffect(keepMeasuring, []);
  const collections = asked.told?.collections ?? [];
  const names = collections.flatMap((each) => [each.name, ...each.aliases]);
  const { collection: chosen } = route.query;
  const collection = chosen ?? (names.includes("default") ? "default" : names[0]);
  const choose = (event) => go(route.view, route.id, { ...route.query, collection: event.target.value });
  const link = (view) => href(view, undefined, { collection: chosen });
  return html`
    <header class="frame">
      <a class="brand" href=${link("search")}><img src="shared/icon.svg" alt="" width="24" height="24" /> Embedding Studio</a>
      <nav aria-label="Views">
        ${Object.entries(VIEWS).map(([view, { title }]) => html`
          <a href=${link(view)} aria-current=${view === route.view ? "page" : undefined}>${title}</a>`)}
      </nav>
      <div class="aside">
        ${names.length > 0 && viewOf(route.view).isOfOne && html`
          <label><span class="visually-hidden">Collection</span>
            <select value=${collection} onChange=${choose}>
              ${!names.includes(collection) && html`<option value=${collection}>${collection}</option>`}
              ${collections.map(({ name, aliases }) => html`
                <option value=${name}>${name}</option>
                ${aliases.map((alias) => html`<option value=${alias}>${alias} → ${name}</option>`)}`)}
            </select></label>`}
        ${onForgetKey && html`<button type="button" onClick=${onForgetKey}>Forget key</button>`}
      </div>
    </header>
    <main id="main" tabindex="-1" ref=${main}>
      ${typeof children === "function" ? html`
        <${Told} asked=${asked} of=${() => children({ collection, collections, embedder: asked.told.embedder, askCollections: asked.again })} />` : children}
    </main>`;
};

const KeyForm = ({ onGiven, wasGiven }) => {
  const give = (event) => {
    event.preventDefault();
    const given = new FormData(event.target).get("key").trim();
    if (given) onGiven(given);
  };
  return html`
    <form class="key" onSubmit=${give}>
      <h1>${wasGiven ? "The service does not know this key" : "This service asks for a key"}</h1>
      <p>The console needs a key with the scope <code>admin</code>: <code>ADMIN_API_KEY</code> of the service's settings, or
        one from <code>embedding-studio keys create</code>. It is kept in this tab and gone when you close it.</p>
      <label for="key">Key</label>
      <input id="key" name="key" type="password" autocomplete="off" autofocus required aria-invalid=${wasGiven} />
      <button class="first">Continue</button>
    </form>`;
};

render(html`<${Console} />`, document.getElementById("page"));

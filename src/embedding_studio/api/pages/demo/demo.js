// The demo: two people beside each other, what they see, and what a click changes for whom.
import { useLayoutEffect } from "../vendor/hooks.js";
import { key } from "../shared/api.js";
import { html, render, useEffect, useMemo, useRef, useState } from "../shared/preact.js";
import { Picture } from "./picture.js";
import { OTHERS_NAMED, PEOPLE, click, forget, forgetAll, lists, named, othersClick, stage, takeBack, titleOf } from "./service.js";
import { keep, lookedAt } from "./tab.js";
import { STEPS } from "./tour.js";
import { explained } from "./why.js";

const POLL_MS = 1000;
const MOVE = { duration: 700, easing: "cubic-bezier(.2, .8, .2, 1)" };

/** Let rows that moved glide from where they were, and new ones come in from below. */
const useMoves = (order) => {
  const list = useRef();
  const tops = useRef(new Map());
  useLayoutEffect(() => {
    const rows = [...list.current.children];
    const now = new Map(rows.map((row) => [row.dataset.id, row.offsetTop]));
    if (tops.current.size && !matchMedia("(prefers-reduced-motion: reduce)").matches) {
      for (const row of rows) {
        const was = tops.current.get(row.dataset.id);
        const from = was === undefined ? 48 : was - now.get(row.dataset.id);
        const zIndex = from > 0 ? 2 : 1;
        if (from) row.animate([{ transform: `translateY(${from}px)`, opacity: was === undefined ? 0 : 1, zIndex }, { transform: "none", opacity: 1, zIndex }], MOVE);
      }
    }
    tops.current = now;
  }, [order]);
  return list;
};

const described = (payload) =>
  payload.price ? `${payload.material} · € ${payload.price}` : (payload.summary ?? "");

const Move = ({ rise, was }) => {
  if (rise === 0) return null;
  const told = was === undefined ? "new" : Math.abs(rise);
  const spoken = rise > 0 ? `up from ${was ?? "far below"}` : `down from ${was}`;
  return html`<span class=${rise > 0 ? "move up" : "move down"}><span aria-hidden="true">${rise > 0 ? "▲" : "▼"} ${told}</span><span class="visually-hidden">, ${spoken}</span></span>`;
};

const Row = ({ row, clicked, isBusy, onClick }) => {
  const { object_id, payload, position, reason, isPointedAt } = row;
  const shown = reason && (reason.kind === "clicked" || row.rise > 0) ? reason : null;
  return html`<li data-id=${object_id} class=${isPointedAt ? "row pointed" : clicked ? "row clicked" : "row"}>
    <button type="button" onClick=${onClick} aria-disabled=${isBusy}>
      <span class="place">${position}</span>
      <span class="tile"><${Picture} payload=${payload} /></span>
      <span class="words">
        <span class="name">${payload.title ?? payload.name}</span>
        ${shown
          ? html`<span class="why">${isPointedAt && html`<b>Never clicked. </b>`}${isPointedAt ? shown.text : (shown.short ?? shown.text)}</span>`
          : html`<span class="faint">${described(payload)}</span>`}
      </span>
      <${Move} ...${row} />
    </button>
  </li>`;
};

const Person = ({ who, rows, clicks, isBusy, isShown, does }) => {
  const { name } = PEOPLE[who];
  const list = useMoves(rows.map((each) => each.object_id).join());
  const clicked = new Set(clicks.map((each) => each.object_id)); // once each, however often
  return html`<section class=${isShown ? `person ${who}` : `person ${who} behind`} aria-labelledby=${`name-${who}`}>
    <header>
      <span class="avatar" aria-hidden="true">${name[0]}</span>
      <h2 id=${`name-${who}`}>${name}</h2>
      <ul class="clicks" aria-label=${`What ${name} clicked`}>
        <li class="faint">${clicks.length ? "clicked" : "has clicked nothing yet"}</li>
        ${[...clicked].map((id) => html`<li key=${id} class="chip">
          <span>${titleOf(id)}</span>
          <button type="button" title="Take this click back" aria-label=${`Take back ${name}'s click on ${titleOf(id)}`} aria-disabled=${isBusy} onClick=${() => does.takeBack(who, id)}>×</button>
        </li>`)}
      </ul>
      ${clicks.length > 0 && html`<button type="button" class="quiet" aria-disabled=${isBusy} onClick=${() => does.forget(who)}>Forget ${name}</button>`}
    </header>
    <ol class="rows" ref=${list}>
      ${rows.map((row) => html`<${Row} key=${row.object_id} row=${row} clicked=${clicked.has(row.object_id)} isBusy=${isBusy} onClick=${() => does.click(who, row.object_id)} />`)}
    </ol>
  </section>`;
};

const Tour = ({ step, shown, isBusy, onNext, onStart, does }) => {
  if (step === null) {
    return html`<aside class="tour ended" aria-label="Tour">
      <p>Search for anything, click as either of them.</p>
      <button type="button" aria-disabled=${isBusy} onClick=${onStart}>Start again</button>
    </aside>`;
  }
  const { text, button } = STEPS[step];
  return html`<aside class="tour" aria-label="Tour">
    <span class="step">${step + 1} / ${STEPS.length}</span>
    <p aria-live="polite">${text(shown)}</p>
    <div class="buttons">
      <button type="button" class="first" aria-disabled=${isBusy} onClick=${onNext}>${button(shown)}</button>
      ${step > 0 && html`<button type="button" class="quiet" aria-disabled=${isBusy} onClick=${onStart}>Start again</button>`}
      <button type="button" class="quiet" onClick=${does.endTour}>Skip</button>
    </div>
  </aside>`;
};

const Subjects = ({ subjects, chosen, isBusy, onChoose }) => html`<div class="switch" role="group" aria-label="What to search in">
  ${subjects.map((each) => {
    const percent = each.total ? Math.floor((100 * each.done) / each.total) : 0;
    return html`<button type="button" aria-pressed=${each.collection === chosen.collection} disabled=${!each.is_whole} aria-disabled=${isBusy} title=${each.trouble} onClick=${() => onChoose(each)}>
      ${each.title}${!each.is_whole && html`<span class="progress"> · ${each.trouble ? "not there" : `${percent} % indexed`}</span>`}
    </button>`;
  })}
</div>`;

/** What cannot be searched yet, why, and for about how long; how fast it goes is seen since the page was opened. */
const Filling = ({ subjects }) => {
  const start = useRef({ at: performance.now(), done: new Map(subjects.map((each) => [each.collection, each.done])) });
  const left = ({ collection, done, total }) => {
    const since = done - start.current.done.get(collection);
    if (since <= 0) return "";
    const minutes = ((performance.now() - start.current.at) * (total - done)) / since / 60_000;
    return minutes < 1 ? ", less than a minute more" : `, about ${Math.ceil(minutes)} minutes more`;
  };
  return subjects
    .filter((each) => !each.is_whole)
    .map((each) => html`<p class="faint filling" key=${each.collection}>${each.trouble
      ? `${each.title} could not be indexed: ${each.trouble}`
      : `${each.title} is being indexed behind this page${left(each)}. It can be chosen once that is done.`}</p>`);
};

const Replayed = ({ replayed: { searches, users, first_percent } }) => html`<p class="replayed">
  <b>On the log of a real shop:</b> ${searches.toLocaleString("en")} searches of ${users.toLocaleString("en")} people, each ranked again from what had
  been clicked before it. With what others clicked, the wanted product stood first in <b>${first_percent.shared} %</b> of them; without, in
  ${" "}<b>${first_percent.plain} %</b>. Own clicks alone made it ${first_percent.default} %, as hardly anybody came back.
  <span class="faint"> Written by a command into docs/on-a-real-log.md.</span>
</p>`;

const KeyForm = ({ onGiven, wasWrong }) => {
  const field = useRef();
  const submit = (event) => {
    event.preventDefault();
    key.set(field.current.value.trim());
    onGiven();
  };
  return html`<main class="asks"><form onSubmit=${submit}>
    <h1>This service has a key</h1>
    <p>${wasWrong ? "That key may not do this. " : ""}Give the one in ADMIN_API_KEY. It stays in this tab, and is never part of an address.</p>
    <label>Key <input ref=${field} type="password" autocomplete="off" required /></label>
    <button class="first">Go on</button>
  </form></main>`;
};

const Demo = () => {
  const [told, setTold] = useState(null);
  const [subject, setSubject] = useState(null);
  const [query, setQuery] = useState("");
  const [typed, setTyped] = useState("");
  const [withOthers, setWithOthers] = useState(false);
  const [shown, setShown] = useState(null);
  const [seconds, setSeconds] = useState(0);
  const [step, setStep] = useState(0);
  const [face, setFace] = useState("ada");
  const [isBusy, setBusy] = useState(true);
  const [trouble, setTrouble] = useState(null);
  const [needsKey, setNeedsKey] = useState(false);
  const now = useRef({}); // what the last action left, for those that follow before the page is redrawn

  const refresh = async () => {
    const { subject, query, withOthers } = now.current;
    now.current.shown = await lists(subject.collection, query, withOthers);
    setShown(now.current.shown);
  };
  const set = (changes) => {
    Object.assign(now.current, changes);
    if ("subject" in changes) setSubject(changes.subject);
    if ("query" in changes) { setQuery(changes.query); setTyped(changes.query); }
    if ("withOthers" in changes) setWithOthers(changes.withOthers);
  };
  const does = {
    ask: async (query) => {
      set({ query });
      await refresh();
    },
    click: async (who, object_id) => {
      const { subject, query, shown } = now.current;
      setSeconds(await click(subject.collection, query, who, { session_id: shown.people[who].session, object_id }));
      await refresh();
    },
    takeBack: async (who, object_id) => {
      const { subject, shown } = now.current;
      for (const each of shown.people[who].clicks.filter((each) => each.object_id === object_id)) await takeBack(subject.collection, who, each);
      await refresh();
    },
    countOthers: async (withOthers) => {
      set({ withOthers });
      await refresh();
    },
    othersClick: async (object_id) => {
      const { subject, query } = now.current;
      await othersClick(subject.collection, query, object_id);
      await does.countOthers(true);
    },
    forget: async (who) => {
      await forget(who);
      await refresh();
    },
    endTour: () => setStep(null),
  };
  /** Do one thing at a time, and say what went wrong. */
  const acting = async (work) => {
    if (now.current.isActing) return;
    now.current.isActing = true;
    setBusy(true);
    setTrouble(null);
    try {
      await work();
    } catch (error) {
      if (error.status === 401 || error.status === 403) setNeedsKey(true);
      else setTrouble(error.message);
    } finally {
      now.current.isActing = false;
      setBusy(false);
    }
  };
  const singly = Object.fromEntries(Object.entries(does).map(([name, work]) => [name, (...given) => acting(() => work(...given))]));

  const startTour = (subject) =>
    acting(async () => {
      await forgetAll();
      set({ subject, query: subject.scenes[0].query, withOthers: false });
      setStep(0);
      setFace("ada");
      await refresh();
    });
  const choose = (subject) => startTour(subject);
  const search = (event) => {
    event.preventDefault();
    const query = typed.trim();
    if (!query) {
      setTrouble("Type what you look for.");
      event.target.elements.query.focus();
      return;
    }
    setStep(null);
    singly.ask(query);
  };
  const begin = () =>
    acting(async () => {
      const told = await stage();
      setTold(told);
      const { collection, query, withOthers, ...was } = lookedAt;
      const subject = told.subjects.find((each) => each.is_whole && each.collection === collection);
      if (subject) {
        set({ subject, query, withOthers });
        setStep(was.step);
        setSeconds(was.seconds);
        setFace(was.face);
      } else set({ subject: told.subjects[0], query: told.subjects[0].scenes[0].query });
      await refresh();
      setNeedsKey(false);
    });
  useEffect(() => {
    begin();
  }, []);
  useEffect(() => {
    if (subject) keep({ collection: subject.collection, query, withOthers, step, seconds, face });
  }, [subject, query, withOthers, step, seconds, face]);
  useEffect(() => {
    if (step > 0 && matchMedia("(max-width: 48rem)").matches) {
      const behavior = matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth";
      document.querySelector(".faces").scrollIntoView({ block: "start", behavior });
    }
  }, [step]);
  const isFilling = told?.subjects.some((each) => !each.is_whole && !each.trouble);
  useEffect(() => {
    if (!isFilling) return undefined;
    const timer = setInterval(() => stage().then(setTold, () => {}), POLL_MS);
    return () => clearInterval(timer);
  }, [isFilling]);

  const rows = useMemo(
    () =>
      shown &&
      Object.fromEntries(Object.keys(PEOPLE).map((who) => [who, explained(shown.people[who].rows, shown.places, PEOPLE[who].name)])),
    [shown],
  );
  if (needsKey) return html`<${KeyForm} wasWrong=${key.get() !== ""} onGiven=${begin} />`;
  if (!told || !shown) return html`<main class="asks">${trouble ? html`<p class="bad" role="alert">${trouble}</p>` : html`<p class="faint">Loading…</p>`}</main>`;

  const scene = subject.scenes[0];
  const ofQuery = subject.scenes.find((each) => [each.query, each.reworded].includes(query));
  const othersTarget = ofQuery?.wished_id ?? rows.bob[Math.min(4, rows.bob.length - 1)]?.object_id;
  const tourShown = { ...shown, explained: rows, scene, subject, seconds };
  const next = () =>
    acting(async () => {
      const { act, then } = STEPS[step];
      await act(does, tourShown);
      if (then) setFace(then);
      if (step + 1 < STEPS.length) setStep(step + 1);
    });

  return html`
    <header class="top">
      <img src="shared/icon.svg" alt="" width="28" height="28" />
      <span class="brand">Embedding Studio</span>
      <${Subjects} subjects=${told.subjects} chosen=${subject} isBusy=${isBusy} onChoose=${choose} />
    </header>
    <main>
      <div class="lead">
        <h1>Search that learns from clicks</h1>
        <p>A click changes the list within a second, for the one who clicked${withOthers ? `. Once ${told.others} people have clicked, it counts for everybody.` : " and for nobody else."}</p>
      </div>
      <${Filling} subjects=${told.subjects} />
      <form class="ask" role="search" onSubmit=${search}>
        <label class="visually-hidden" for="query">Search</label>
        <input id="query" type="search" value=${typed} maxlength="200" autocomplete="off" onInput=${(event) => setTyped(event.target.value)} />
        <button class="first" aria-disabled=${isBusy}>Search</button>
        <label class="others"><input type="checkbox" role="switch" checked=${withOthers} onChange=${(event) => singly.countOthers(event.target.checked)} /> Count what others clicked</label>
      </form>
      <ul class="suggestions" aria-label="Searches to try">
        ${subject.scenes.map((each) => html`<li><button type="button" class=${each.query === query ? "chosen" : ""} aria-disabled=${isBusy} onClick=${() => { if (each.query !== scene.query) setStep(null); singly.ask(each.query); }}>${each.query}</button></li>`)}
      </ul>
      ${trouble && html`<p class="bad trouble" role="alert">${trouble}</p>`}
      <div class="switch faces" role="group" aria-label="Whose list">
        ${Object.entries(PEOPLE).map(([who, { name }]) => html`<button type="button" aria-pressed=${face === who} onClick=${() => setFace(who)}>${name}</button>`)}
      </div>
      <div class=${isBusy ? "people busy" : "people"} aria-busy=${isBusy}>
        ${Object.keys(PEOPLE).map((who) => html`<${Person} key=${who} who=${who} rows=${rows[who]} clicks=${shown.people[who].clicks} isBusy=${isBusy} isShown=${face === who} does=${singly} />`)}
      </div>
      ${step === null && othersTarget && html`<p class="more"><button type="button" aria-disabled=${isBusy} onClick=${() => singly.othersClick(othersTarget)}>${OTHERS_NAMED} click ${named(othersTarget)}</button></p>`}
      <${Replayed} replayed=${told.replayed} />
      <p class="faint foot">▲ ▼ against what anybody sees who never clicked. All of it is real: a model, PostgreSQL and the HTTP routes under <a href="docs">docs</a>.
        ${told.has_console && html` What was learnt, and why a list is as it is, stands in the console: ${Object.values(PEOPLE).map(({ id, name }, number) => html`${number > 0 && ", "}<a href=${`console#/users/${id}?collection=${subject.collection}`}>${name}</a>`)}, <a href=${`console#/search?collection=${subject.collection}`}>any search</a>.`}</p>
    </main>
    <${Tour} step=${step} shown=${tourShown} isBusy=${isBusy} onNext=${next} onStart=${() => startTour(subject)} does=${does} />`;
};

render(html`<${Demo} />`, document.getElementById("page"));

// Health: does everything work, does learning keep up, and what failed.
import { html } from "../../shared/preact.js";
import { at, call } from "../../shared/api.js";
import { learnt, useAsked } from "../asking.js";
import { measured, perMinute, quantile, sum } from "../metrics.js";
import { Act, Badge, Told, When } from "../parts.js";
import { Plot } from "../plots.js";
import { href } from "../routes.js";

const SECONDS = 2;
const PARTS = { database: "Database", events: "Taking events", worker: "Worker", texts: "Text search", learning: "Learning" };

export const Health = () => html`
  <h1>Health</h1>
  <p class="lead">Whether the service can do its work now, and how it fares over time.</p>
  <${Ready} />
  <${Orders} />
  <h2>Over time</h2>
  <${Numbers} />
  <${Findings} />`;

const Ready = () => {
  const asked = useAsked(async () => {
    try {
      return await call("/readyz");
    } catch (problem) {
      if (problem.parts) return { status: "not ready", parts: problem.parts };
      throw problem;
    }
  }, [], { every: 1000 * SECONDS });
  return html`<${Told} asked=${asked} of=${({ parts }) => html`
    <ul class="tiles" aria-label="Parts">${Object.entries(parts).map(([part, told]) => html`
      <li class=${told === "ok" ? "" : "wrong"}><strong>${PARTS[part] ?? part}</strong>
        <${Badge} kind=${told === "ok" ? "good" : "bad"}>${told === "ok" ? "works" : "trouble"}<//>
        ${told !== "ok" && html`<p>${told}</p>`}</li>`)}</ul>`} />`;
};

const STATUSES = [["pending", "waiting"], ["processing", "being learnt"], ["done", "learnt"], ["refused", "refused"], ["failed", "failed"]];

const Orders = () => {
  const asked = useAsked(async () => {
    const { orders } = await call("improvement/summary");
    const failed = orders.failed ? (await call("improvement/orders", { query: { status: "failed", limit: 10 } })).orders : [];
    return { orders, failed };
  }, [], { every: 1000 * SECONDS });
  const again = (session) => async () => {
    await call(at`improvement/orders/${session}/retry`, { method: "POST" });
    await learnt(session);
    asked.again();
  };
  return html`
    <h2>Sessions to learn from</h2>
    <${Told} asked=${asked} of=${({ orders, failed }) => html`
      <dl class="numbers">${STATUSES.map(([status, word]) => html`<div class=${status === "failed" && orders[status] ? "bad" : ""}><dt>${word}</dt><dd>${(orders[status] ?? 0).toLocaleString()}</dd></div>`)}</dl>
      ${failed.length > 0 && html`
        <h3>Failed, the latest first</h3>
        <ul class="lines">${failed.map((order) => html`
          <li key=${order.session_id} class="row between"><span><a href=${href("sessions", order.session_id)}>${order.session_id}</a>${" "}
            <span class="faint"><${When} at=${order.updated_at} /> after ${order.attempts} attempts: ${order.detail}</span></span>
            <span><${Act} act=${again(order.session_id)} doing="Learning…" label=${`Learn from ${order.session_id} again`}>Try again<//></span></li>`)}</ul>`}`} />`;
};

const Numbers = () => {
  const asked = useAsked(measured, [], { every: 1000 * SECONDS });
  return html`<${Told} asked=${asked} of=${(moments) => {
    const times = moments.map((each) => each.at);
    const inMs = (values) => values.map((each) => (each === null ? null : 1000 * each));
    return html`
      <div class="plots">
        <${Plot} title="Searches" unit="a minute" times=${times} lines=${[["searches", perMinute(moments, "search_requests_total")]]} />
        <${Plot} title="Time of a search" unit="ms" times=${times} lines=${[
          ["half within", inMs(quantile(moments, "search_duration_seconds", 0.5))],
          ["95 % within", inMs(quantile(moments, "search_duration_seconds", 0.95))]]} />
        <${Plot} title="Clicks and other events" unit="a minute" times=${times} lines=${[["events", perMinute(moments, "events_total")]]} />
        <${Plot} title="From click to effect" unit="ms" times=${times} lines=${[
          ["half within", inMs(quantile(moments, "learning_delay_seconds", 0.5))],
          ["95 % within", inMs(quantile(moments, "learning_delay_seconds", 0.95))]]} />
        <${Plot} title="Users waiting to be learnt" unit="users" times=${times} lines=${[["waiting", moments.map((each) => sum(each, "queue_users"))]]} />
        <${Plot} title="Refused requests" unit="a minute" times=${times} lines=${[["refused", perMinute(moments, "refused_requests_total")]]} />
      </div>
      <p class="faint">Measured every ${SECONDS} s here, and every 10 s elsewhere in the console, since that was opened; in milliseconds over the last minute. Prometheus keeps the same numbers for longer, from <code>/metrics</code>.</p>`;
  }} />`;
};

const GRADES = { OK: ["good", "fine"], WARN: ["warn", "look at it"], FAIL: ["bad", "broken"] };

const Findings = () => {
  const asked = useAsked(() => call("doctor"), []);
  return html`
    <div class="row between headed"><h2>What the doctor finds</h2><button type="button" disabled=${asked.isAsking} onClick=${asked.again}>Look again</button></div>
    <${Told} asked=${asked} of=${({ findings }) => html`
      <table class="findings"><thead><tr><th>About</th><th>Verdict</th><th>What was found</th></tr></thead>
        <tbody>${findings.map(({ grade, what, told }) => html`
          <tr><td>${what}</td><td><${Badge} kind=${GRADES[grade][0]}>${GRADES[grade][1]}<//></td><td>${told}</td></tr>`)}</tbody></table>`} />`;
};

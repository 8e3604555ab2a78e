// Draws openapi.json: a block for each route, with a form that sends its example.
import { step } from "../shared/api.js";

const element = (name, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
};

const pretty = (value) => JSON.stringify(value, null, 2);

const schemas = {};

/** Return a schema with what it refers to put in its place, each once on the way down. */
const whole = (schema, above = []) => {
  if (Array.isArray(schema)) return schema.map((each) => whole(each, above));
  if (schema === null || typeof schema !== "object") return schema;
  if (schema.$ref) {
    const name = schema.$ref.split("/").pop();
    return above.includes(name) ? { $ref: name } : whole(schemas[name], [...above, name]);
  }
  return Object.fromEntries(
    Object.entries(schema).filter(([key]) => key !== "examples").map(([key, value]) => [key, whole(value, above)]),
  );
};

const contentOf = (described) => Object.values(described?.content ?? {})[0]?.schema;

const exampleOf = (operation) => {
  const schema = contentOf(operation.requestBody);
  return schemas[schema?.$ref?.split("/").pop()]?.examples?.[0];
};

const form = (method, path, operation) => {
  const inputs = (operation.parameters ?? []).map((parameter) => {
    const input = element("input", { placeholder: parameter.required ? "needed" : "" });
    return { ...parameter, input };
  });
  const body = operation.requestBody && element("textarea", { value: pretty(exampleOf(operation) ?? {}), spellcheck: false });
  const answer = element("pre", { hidden: true });
  const send = element("button", { textContent: "Send" });
  send.onclick = async () => {
    let url = path.slice(1);
    const query = new URLSearchParams();
    for (const { name, in: place, input } of inputs) {
      if (place === "path") url = url.replace(`{${name}}`, step(input.value));
      else if (place === "query" && input.value) query.append(name, input.value);
    }
    const headers = {};
    const key = document.getElementById("key").value;
    if (key) headers.Authorization = `Bearer ${key}`;
    if (body) headers["Content-Type"] = "application/json";
    answer.hidden = false;
    try {
      const given = await fetch(query.size ? `${url}?${query}` : url, { method, headers, body: body?.value });
      const text = await given.text();
      let shown = text;
      try { shown = pretty(JSON.parse(text)); } catch { /* not JSON: as it is */ }
      answer.textContent = `${given.status} ${given.statusText}\n${shown}`;
    } catch (error) {
      answer.textContent = String(error);
    }
  };
  const fields = inputs.map(({ name, description, input }) =>
    element("label", {}, `${name} ${description ? `(${description}) ` : ""}`, input));
  return element("div", {}, ...fields, ...(body ? [body] : []), send, answer);
};

const block = (method, path, operation) => {
  const sent = contentOf(operation.requestBody);
  const [, good] = Object.entries(operation.responses).find(([status]) => status.startsWith("2")) ?? [];
  const answered = contentOf(good);
  const [first, ...rest] = (operation.description ?? "").split("\n\n");
  const details = element("details", { id: operation.operationId },
    element("summary", {},
      element("code", {}, element("span", { className: "method", textContent: method }), path),
      element("span", { className: "what", textContent: first })));
  details.ontoggle = () => {
    details.ontoggle = null;
    details.append(...rest.map((each) => element("p", { textContent: each })), form(method, path, operation));
    if (sent) details.append(element("h4", { textContent: "What is sent" }), element("pre", { textContent: pretty(whole(sent)) }));
    if (answered) details.append(element("h4", { textContent: "What is answered" }), element("pre", { textContent: pretty(whole(answered)) }));
  };
  return details;
};

const routes = document.getElementById("routes");
const given = await fetch("openapi.json");
const described = await given.json();
Object.assign(schemas, described.components.schemas);
for (const tag of described.tags) {
  const blocks = Object.entries(described.paths).flatMap(([path, methods]) =>
    Object.entries(methods)
      .filter(([, operation]) => operation.tags.includes(tag.name))
      .map(([method, operation]) => block(method.toUpperCase(), path, operation)));
  routes.append(element("h2", { textContent: tag.name }), element("p", { textContent: tag.description }), ...blocks);
}

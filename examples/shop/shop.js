const service = new URLSearchParams(location.search).get("service") ?? "http://127.0.0.1:8000";
const { EmbeddingStudio } = await import(`${service}/clients/embedding-studio.js`);

// With `clicks`, what is clicked within data-es-session and data-es-object is reported by itself.
const studio = new EmbeddingStudio(service, { clicks: true });

// A real shop knows its visitors, and signs that: docs/security.md.
localStorage.visitor ??= `visitor-${crypto.randomUUID()}`;

const results = document.querySelector("#results");
const said = document.querySelector("#status");
const form = document.querySelector("form");

const row = ({ object_id, payload }) => {
  const link = Object.assign(document.createElement("a"), { href: `#${object_id}`, textContent: payload.title });
  const price = Object.assign(document.createElement("span"), { textContent: `${payload.price} €` });
  const button = Object.assign(document.createElement("button"), { textContent: "Add to basket" });
  button.dataset.esEvent = "add_to_cart";
  const item = document.createElement("li");
  item.dataset.esObject = object_id;
  item.append(link, price, button);
  return item;
};

const search = async () => {
  try {
    const page = await studio.search(form.elements.query.value, { user_id: localStorage.visitor, limit: 8 });
    results.dataset.esSession = page.session_id;
    results.replaceChildren(...page.search_results.map(row));
    said.textContent = page.personalised ? "In your order: your clicks count." : "In the order for everybody.";
  } catch (error) {
    said.textContent = `The search does not work: ${error.message}`;
  }
};

form.addEventListener("submit", (event) => {
  event.preventDefault();
  search();
});
await search();

// The guided tour: what is said, what the button says, and what it does. All places are read off the lists.
import { OTHERS_NAMED, PEOPLE, named } from "./service.js";

/** As a sentence begins with it. */
const opening = (id) => named(id).replace(/^the /, "The ");

const placeOf = ({ people }, who, id) => {
  const row = people[who].rows.find((each) => each.object_id === id);
  return row ? `at place ${row.position}` : "further down";
};
const anybodys = ({ places }, id) => (places.has(id) ? `at place ${places.get(id)}` : "further down");
const pointedAt = ({ explained }) => explained.ada.find((each) => each.isPointedAt);

const riser = (shown) => {
  const row = pointedAt(shown);
  if (!row) return "";
  return ` And ${named(row.object_id)}, which she never clicked, is at place ${row.position} instead of ${row.was ?? "far below"}.`;
};

export const STEPS = [
  {
    text: ({ scene }) => `${PEOPLE.ada.name} and ${PEOPLE.bob.name} both search for “${scene.query}”. Nobody has clicked yet: they see the same list.`,
    button: ({ scene }) => `Ada clicks ${named(scene.wished_id)}`,
    act: (does, { scene }) => does.click("ada", scene.wished_id),
  },
  {
    text: (shown) => {
      const { scene, seconds } = shown;
      return `${seconds.toFixed(2)} seconds later ${named(scene.wished_id)} is ${placeOf(shown, "ada", scene.wished_id)} for Ada. For Bob it is still ${placeOf(shown, "bob", scene.wished_id)}.${riser(shown)}`;
    },
    button: () => "Ada asks in other words",
    act: (does, { scene }) => does.ask(scene.reworded),
  },
  {
    text: (shown) => {
      const { scene } = shown;
      return `Other words, the same wish. What Ada clicked is ${placeOf(shown, "ada", scene.wished_id)} for her, and ${anybodys(shown, scene.wished_id)} for anybody else.${riser(shown)}`;
    },
    button: ({ subject }) => `Ada clicks ${named(subject.mistake_id)} by mistake`,
    act: async (does, { scene, subject }) => {
      await does.ask(scene.query);
      await does.click("ada", subject.mistake_id);
    },
  },
  {
    text: (shown) => {
      const { subject } = shown;
      return `${opening(subject.mistake_id)} is ${placeOf(shown, "ada", subject.mistake_id)} now. That was not meant.`;
    },
    button: () => "Take the click back",
    act: (does, { subject }) => does.takeBack("ada", subject.mistake_id),
  },
  {
    text: (shown) => {
      const { subject } = shown;
      return `Taken back, and unlearnt: ${named(subject.mistake_id)} is ${placeOf(shown, "ada", subject.mistake_id)} again, as if it had never been clicked.`;
    },
    button: () => `Now ${OTHERS_NAMED} click too`,
    act: (does, { scene }) => does.othersClick(scene.wished_id),
    then: "bob",
  },
  {
    text: (shown) => {
      const { scene } = shown;
      return `${OTHERS_NAMED} clicked ${named(scene.wished_id)}, and what others clicked is turned on. Bob has clicked nothing, and has it ${placeOf(shown, "bob", scene.wished_id)}.`;
    },
    button: () => "Turn it off, and forget Ada",
    act: async (does) => {
      await does.countOthers(false);
      await does.forget("ada");
    },
    then: "ada",
  },
  {
    text: () => "Her searches, her clicks and what was learnt from them are gone: Ada sees what anybody sees.",
    button: () => "Try it yourself",
    act: (does) => does.endTour(),
  },
];

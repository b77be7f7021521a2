// Completion in the prompt box: LoRAs after "<lora:", the chosen LoRAs' trigger words and the model's words elsewhere.
// Up and Down choose, Enter and Tab take, Escape closes. The entries are in the page, as data-complete elements.
const MOST = 8;

const entries = (kind) =>
  [...document.querySelectorAll(`[data-complete="${kind}"]`)].flatMap((held) => JSON.parse(held.dataset.entries));

// What could be written at the cursor: {from, found: [[text to write, text to show]], sure}.
// sure: whether Enter takes the first entry although none was chosen.
const completionsAt = (area) => {
  const before = area.value.slice(0, area.selectionStart);
  const tag = before.match(/<lora:((?:\\.|[^:<>\\\n])*)$/i);
  const word = tag ? null : before.match(/(?:^|[,(\n]|\s)\s*([^\s,()<>:\n][^,()<>:\n]*)$/);
  if (!tag && !word) return null;
  if (tag) {
    const typed = tag[1].toLowerCase();
    return { from: before.length - tag[0].length, found: matching(entries("loras"), typed), sure: true };
  }
  // the longest run of words up to the cursor that begins an entry: "steam locomo" before "locomo"
  const known = [...entries("triggers"), ...entries("words")];
  const phrase = word[1];
  const starts = [0, ...[...phrase.matchAll(/\s+/g)].map((gap) => gap.index + gap[0].length)];
  for (const start of starts) {
    const typed = phrase.slice(start).toLowerCase();
    if (typed.length < 2) continue;
    const found = matching(known, typed, true).filter(([text]) => text.toLowerCase() !== typed);
    if (found.length) return { from: before.length - typed.length, found, sure: false };
  }
  return null;
};

// First the entries that begin with the text, then those that contain it (unless only the first are wanted); each once.
const matching = (pairs, typed, beginning = false) => {
  const begin = pairs.filter(([, shown]) => shown.toLowerCase().startsWith(typed));
  const hold = beginning ? [] : pairs.filter(([, shown]) => shown.toLowerCase().indexOf(typed) > 0);
  const seen = new Set();
  return [...begin, ...hold].filter(([text]) => !seen.has(text) && seen.add(text)).slice(0, MOST);
};

const list = document.createElement("ul");
list.id = "completions";
list.hidden = true;
list.setAttribute("role", "listbox");
list.setAttribute("aria-label", "Completions");
document.querySelector(".gradio-container").append(list);
let open = null; // {area, from, found, sure, chosen}

const close = () => {
  if (!open) return;
  open.area.removeAttribute("aria-activedescendant");
  open.area.removeAttribute("aria-controls");
  open = null;
  list.hidden = true;
};

const choose = (place) => {
  open.chosen = (place + open.found.length) % open.found.length;
  [...list.children].forEach((item, at) => item.setAttribute("aria-selected", String(at === open.chosen)));
  list.children[open.chosen].scrollIntoView({ block: "nearest" });
  open.area.setAttribute("aria-activedescendant", `completion-${open.chosen}`);
};

const take = (place) => {
  const { area, from, found } = open;
  let to = area.selectionStart;
  if (found[place][0].startsWith("<lora:")) {
    const rest = area.value.slice(to).match(/^(?:\\.|[^<>\\\n])*>/); // the rest of an existing tag
    if (rest) to += rest[0].length;
  }
  close();
  put(area, found[place][0], from, to);
  close(); // offer nothing for what was just written
};

const offer = (area) => {
  const asked = area.selectionStart === area.selectionEnd ? completionsAt(area) : null;
  if (!asked || !asked.found.length) return close();
  open = { area, ...asked, chosen: -1 };
  list.replaceChildren(
    ...asked.found.map(([text, shown], at) => {
      const item = document.createElement("li");
      item.id = `completion-${at}`;
      item.setAttribute("role", "option");
      item.setAttribute("aria-selected", "false");
      item.textContent = text === shown || text.startsWith("<lora:") ? shown : `${shown} → ${text}`;
      item.addEventListener("pointerdown", (event) => {
        event.preventDefault(); // the box keeps the focus
        take(at);
      });
      return item;
    }),
  );
  const box = area.getBoundingClientRect();
  list.style.left = `${box.left + window.scrollX}px`;
  list.style.top = `${box.bottom + window.scrollY + 2}px`;
  list.style.width = `${Math.min(box.width, 420)}px`;
  list.hidden = false;
  area.setAttribute("aria-autocomplete", "list");
  area.setAttribute("aria-controls", "completions");
  if (asked.sure) choose(0);
};

document.addEventListener("input", (event) => {
  if (event.target.matches?.("#prompt textarea, #negative textarea") && event.isTrusted) offer(event.target);
});
document.addEventListener("focusout", (event) => open && event.target === open.area && close());
document.addEventListener(
  "keydown",
  (event) => {
    if (!open || event.target !== open.area || event.ctrlKey || event.metaKey || event.altKey) return;
    const { chosen } = open;
    const own = {
      ArrowDown: () => choose(chosen + 1),
      ArrowUp: () => choose(chosen < 0 ? -1 : chosen - 1),
      Escape: close,
      Tab: () => take(Math.max(chosen, 0)),
      Enter: chosen >= 0 ? () => take(chosen) : null,
    }[event.key];
    if (!own || event.shiftKey) return movedAway(event);
    event.preventDefault();
    event.stopImmediatePropagation();
    own();
  },
  true,
);

// Keys that move the cursor away close the list.
const movedAway = (event) => {
  if (["ArrowLeft", "ArrowRight", "Home", "End", "PageUp", "PageDown", "Enter"].includes(event.key)) close();
};

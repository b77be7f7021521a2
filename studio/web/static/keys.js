// Ctrl+Enter draws, Escape stops, Ctrl+Up and Ctrl+Down change a weight; chips write into the prompt.
// All scripts of this folder run in one function, in the order that studio/web/door/theme.py gives; this one is the first.
if (window.studioKeys) return;
window.studioKeys = true;

const press = (id) => {
  const found = document.getElementById(id);
  const button = found && (found.tagName === "BUTTON" ? found : found.querySelector("button"));
  if (button && !button.disabled && button.offsetParent !== null) button.click();
};

// Writes a text so that the browser can undo it and the page gets an event.
const put = (area, text, from, to) => {
  area.focus();
  area.setSelectionRange(from, to);
  if (!document.execCommand("insertText", false, text)) {
    area.setRangeText(text, from, to, "end");
    area.dispatchEvent(new Event("input", { bubbles: true }));
  }
};

// The weight of the tag, the bracket or the word under the cursor.
const weigh = (area, by) => {
  const text = area.value, at = area.selectionStart;
  const patterns = [/<lora:((?:\\.|[^:>\\])+):(-?[\d.]+)/g, /\(([^()]+):([\d.]+)\)/g];
  for (const [kind, pattern] of patterns.entries()) {
    for (const match of text.matchAll(pattern)) {
      const end = match.index + match[0].length;
      if (at < match.index || at > end) continue;
      const weight = (Math.round((parseFloat(match[2]) + by) * 20) / 20).toString();
      const fresh = kind === 0 ? `<lora:${match[1]}:${weight}` : `(${match[1]}:${weight})`;
      put(area, fresh, match.index, end);
      area.setSelectionRange(match.index + 1, match.index + 1);
      return;
    }
  }
  let from = at, to = Math.max(at, area.selectionEnd);
  const word = /[^\s,()<>]/;
  while (from > 0 && word.test(text[from - 1])) from--;
  while (to < text.length && word.test(text[to])) to++;
  if (from === to) return;
  put(area, `(${text.slice(from, to)}:${1 + by})`, from, to);
  area.setSelectionRange(from + 1, from + 1);
};

document.addEventListener("keydown", (event) => {
  const area = event.target;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    area.dispatchEvent && area.dispatchEvent(new Event("input", { bubbles: true }));
    setTimeout(() => press("generate"), 60);
  } else if (event.key === "Escape" && !document.querySelector("dialog[open], .preview")) {
    press("stop");
  } else if (event.ctrlKey && (event.key === "ArrowUp" || event.key === "ArrowDown") && area.tagName === "TEXTAREA") {
    event.preventDefault();
    weigh(area, event.key === "ArrowUp" ? 0.05 : -0.05);
  }
});

document.addEventListener("click", (event) => {
  const chip = event.target.closest("[data-word], [data-prompt]");
  const area = chip && document.querySelector("#prompt textarea");
  if (!area) return;
  if (chip.dataset.prompt !== undefined) return put(area, chip.dataset.prompt, 0, area.value.length);
  const text = area.value.trimEnd(), seam = text && !text.endsWith(",") ? ", " : text ? " " : "";
  put(area, seam + chip.dataset.word, area.value.length, area.value.length);
});

// On a phone the draft covers the page: a touch hides it until the next one.
document.addEventListener("click", (event) => {
  const draft = event.target.closest("#draft figure");
  if (draft && getComputedStyle(draft).position === "fixed") draft.hidden = true;
});

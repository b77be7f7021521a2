// The mix's rows by keyboard: Alt+Up and Alt+Down move the row that holds the focus, and the focus stays in it.
const ROWS = ".mix-row:not(.mix-row .mix-row)";
const CONTROLS = "button, input, textarea, select, [tabindex]";

const spoken = document.createElement("div");
spoken.className = "only-spoken";
spoken.setAttribute("role", "status");
document.querySelector(".gradio-container").append(spoken);

document.addEventListener("keydown", (event) => {
  if (!event.altKey || (event.key !== "ArrowUp" && event.key !== "ArrowDown")) return;
  const row = event.target.closest?.(ROWS);
  if (!row) return;
  event.preventDefault();
  const by = event.key === "ArrowUp" ? -1 : 1;
  const place = [...document.querySelectorAll(ROWS)].indexOf(row);
  const button = [...row.querySelectorAll("button")].find((one) => one.textContent.trim() === (by < 0 ? "Up" : "Down"));
  if (!button || button.disabled) return;
  const name = row.querySelector(".row-name").firstChild.textContent;
  const control = [...row.querySelectorAll(CONTROLS)].indexOf(event.target);
  button.click();
  const end = performance.now() + 10000;
  const follow = () => {
    const rows = [...document.querySelectorAll(ROWS)];
    const there = rows[place + by];
    if (there && there !== row && there.querySelector(".row-name")?.firstChild.textContent === name) {
      there.querySelectorAll(CONTROLS)[control]?.focus();
      spoken.textContent = `${name} is now number ${place + by + 1} of ${rows.length}`;
    } else if (performance.now() < end) requestAnimationFrame(follow);
  };
  requestAnimationFrame(follow);
});

// A strength that is set by keys is let go when the key is: the slider itself tells of pointers alone.
document.addEventListener("keyup", (event) => {
  if (!event.target.matches?.(`${ROWS} input[type=range]`)) return;
  if (/^(Arrow|Page|Home|End)/.test(event.key))
    event.target.dispatchEvent(new PointerEvent("pointerup", { bubbles: true }));
});

// The mix's rows by keyboard: Alt+Up and Alt+Down move the row with the focus; the focus stays in it.
const ROWS = ".mix-row:not(.mix-row .mix-row)";
const CONTROLS = "button, input, textarea, select, [tabindex]";
const PATIENCE = 20000, AGAIN = 2500; // milliseconds
let moving = false;

const spoken = document.createElement("div");
spoken.id = "moved";
spoken.className = "only-spoken";
spoken.setAttribute("role", "status");
document.querySelector(".gradio-container").append(spoken);

const nameOf = (row) => row?.querySelector(".row-name")?.firstChild.textContent;

document.addEventListener("keydown", (event) => {
  if (!event.altKey || (event.key !== "ArrowUp" && event.key !== "ArrowDown")) return;
  const row = event.target.closest?.(ROWS);
  if (!row) return;
  event.preventDefault();
  const rows = [...document.querySelectorAll(ROWS)], place = rows.indexOf(row);
  const by = event.key === "ArrowUp" ? -1 : 1, target = place + by;
  if (moving || !rows[target]) return;
  moving = true;
  const name = nameOf(row), control = [...row.querySelectorAll(CONTROLS)].indexOf(event.target);
  window.studioMove = { name, place, by };
  const end = performance.now() + PATIENCE;
  let asked = -AGAIN;
  const follow = () => {
    const now = [...document.querySelectorAll(ROWS)], there = now[target];
    if (nameOf(there) === name && nameOf(now[place]) !== name) {
      there.querySelectorAll(CONTROLS)[control]?.focus();
      spoken.textContent = `${name} is now number ${target + 1} of ${now.length}`;
      moving = false;
      return;
    }
    if (performance.now() > end) return void (moving = false);
    if (performance.now() - asked > AGAIN) {
      asked = performance.now();
      document.getElementById("move-row").click();
    }
    requestAnimationFrame(follow);
  };
  requestAnimationFrame(follow);
});

// A strength that is set by keys is let go with the key: the slider itself reports only pointers.
document.addEventListener("keyup", (event) => {
  if (!event.target.matches?.(`${ROWS} input[type=range]`)) return;
  if (/^(Arrow|Page|Home|End)/.test(event.key))
    event.target.dispatchEvent(new PointerEvent("pointerup", { bubbles: true }));
});

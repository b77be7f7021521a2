// Reads aloud what a job does. Gradio replaces whole pieces of HTML, twice a second and with its own clocks in them,
// which nobody wants to hear. So only the text in data-said is read, and only when it changes.
const said = document.createElement("div");
said.id = "said";
said.className = "only-spoken";
said.setAttribute("role", "status");
document.querySelector(".gradio-container").append(said);

setInterval(() => {
  const shown = [...document.querySelectorAll("[data-said]")].filter((one) => one.offsetParent !== null);
  const text = shown.map((one) => one.dataset.said).filter(Boolean).join(". ");
  if (said.textContent !== text) said.textContent = text;
}, 300);

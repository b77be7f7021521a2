// What a job does, read aloud. Gradio puts whole pieces of HTML anew, twice a second and with clocks of its own in them,
// which nobody wants to hear: what is said is what stands in data-said, and only when it changes.
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

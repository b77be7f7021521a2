// One live region for the whole page. Gradio puts whole pieces of HTML anew, twice a second and with its own clocks in
// them, which nobody wants to have read aloud: what is said is what stands in data-said, and only when it changes.
const said = document.createElement("div");
said.setAttribute("role", "status");
said.className = "only-heard";
document.body.append(said);

let listening = 0;
new MutationObserver(() => {
  clearTimeout(listening);
  listening = setTimeout(() => {
    const texts = [...document.querySelectorAll("[data-said]")].filter((one) => one.offsetParent !== null);
    const text = texts.map((one) => one.dataset.said).filter(Boolean).join(". ");
    if (said.textContent !== text) said.textContent = text;
  }, 200);
}).observe(document.body, { subtree: true, childList: true, attributes: true, attributeFilter: ["data-said"] });

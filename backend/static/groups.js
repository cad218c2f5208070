// How many groups there are: asking for another number, and what a tree cut there would be like.
"use strict";
addEventListener("DOMContentLoaded", () => {
  const how = document.querySelector(".how");
  if (!how) return;
  how.open = sessionStorage.getItem("how") === "open";
  how.addEventListener("toggle", (event) => {
    if (event.target === how) sessionStorage.setItem("how", how.open ? "open" : "");
  });

  function anew(message) {
    sessionStorage.setItem("say", message); // acting.js says it
    location.reload();
  }

  if ("waiting" in how.dataset) {
    const timer = setInterval(async () => {
      if (document.hidden) return;
      const answer = await Lookalike.get(how.dataset.address).catch(() => null);
      if (!answer || answer.waiting) return;
      clearInterval(timer);
      if (!document.querySelector(".cluster :checked, dialog[open]")) return anew("Grouped anew");
      how.querySelector("[data-state]").textContent = "grouped anew: load the page again";
    }, 2000);
  }

  const form = how.querySelector("form");
  if (!form) return;
  const [number, output] = [form.querySelector("input"), form.querySelector("output")];
  let asked = 0;

  async function show() {
    if (!("tree" in output.dataset) || !number.checkValidity()) return (output.textContent = "");
    const turn = ++asked;
    const {preview} = await Lookalike.get(`${how.dataset.address}?k=${number.value}`).catch(() => ({}));
    if (turn !== asked || !preview) return undefined; // a later answer counts
    const alone = preview.alone ? `, ${preview.alone} of a single keyframe` : "";
    output.textContent = `${preview.groups} group${preview.groups === 1 ? "" : "s"}, the largest of ${preview.largest} keyframe${preview.largest === 1 ? "" : "s"}${alone}`;
    return undefined;
  }

  async function group(groups) {
    const answer = await Lookalike.post(how.dataset.edits, {kind: "group", groups}).catch(() => null); // the reason is said
    if (answer) anew(answer.message);
  }

  form.addEventListener("click", ({target}) => {
    const button = target.closest("button");
    if (button && "proposed" in button.dataset) group(null);
    if (!button?.dataset.times) return;
    const [before, times] = [Number(number.value), Number(button.dataset.times)];
    const after = times < 1 ? Math.min(before - 1, Math.round(before * times)) : Math.max(before + 1, Math.round(before * times));
    number.value = Math.min(Math.max(after, 1), Number(number.max));
    show();
  });
  let pause = 0;
  number.addEventListener("input", () => {
    clearTimeout(pause);
    pause = setTimeout(show, 200);
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    group(Number(number.value));
  });
});

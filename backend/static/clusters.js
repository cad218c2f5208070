// Contact sheets of all clusters. Keys: arrows move, Enter opens, Space selects, digits label all of a cluster's
// keyframes, n names, m merges the selected ones, j marks as junk, u undoes.
"use strict";
addEventListener("DOMContentLoaded", () => {
  const list = document.querySelector(".clusters");
  if (!list) return;
  const bar = document.querySelector(".actions");
  const act = Lookalike.acting(bar);
  const categories = JSON.parse(list.dataset.categories);
  const mayLabel = bar.querySelector("[data-scope]");

  const cards = () => [...list.children];
  const here = () => document.activeElement.closest(".cluster");
  const numberOf = (card) => Number(card.dataset.number);
  const isOn = (card) => card.querySelector("input").checked;
  const selected = () => cards().filter(isOn);
  let last = null; // where the focus was before a button was clicked
  const chosen = () => {
    const some = selected();
    const one = here() ?? last;
    return some.length ? some : one?.isConnected ? [one] : [];
  };

  function focus(card) {
    if (!card) return;
    card.querySelector("a").focus({preventScroll: true});
    card.scrollIntoView({block: "nearest"});
  }

  function changed() {
    const some = selected();
    const size = some.reduce((sum, card) => sum + Number(card.dataset.size), 0);
    bar.querySelector("[data-count]").textContent = some.length ? `${some.length} selected, ${size} keyframe${size === 1 ? "" : "s"}` : "Arrows move, space selects";
  }

  async function label(category) {
    const some = chosen();
    if (!some.length) return Lookalike.say("Select a cluster first");
    const ids = [];
    for (const card of some) ids.push(...(await Lookalike.get(`${bar.dataset.base}/clusters/${numberOf(card)}/keyframes`)).keyframes);
    const answer = await act.label(category, ids, () => some.forEach((card) => card.querySelector(".done")?.remove()));
    if (!answer?.done.length && !answer?.skipped.length) return;
    for (const card of some) {
      card.querySelector(".done")?.remove();
      const tag = document.createElement("span");
      tag.className = "tag good done";
      tag.textContent = `✓ ${category}`;
      card.querySelector("h2").append(tag);
      card.querySelector("input").checked = false;
    }
    changed();
    focus(some.at(-1).nextElementSibling ?? some.at(-1));
  }

  const does = {
    async name() {
      const [card] = chosen();
      if (!card) return;
      const text = await act.ask(`Name of ${card.querySelector("h2 a").textContent}`);
      const answer = text === null ? null : await act.edit({kind: "name", number: numberOf(card), text});
      if (answer) act.later(answer.message);
    },
    async merge() {
      const [into, ...others] = selected();
      if (!others.length) return Lookalike.say("Select two clusters or more");
      let message = "";
      for (const other of others) {
        const answer = await act.edit({kind: "merge", number: numberOf(into), other: numberOf(other)});
        if (!answer) return;
        message = answer.message;
      }
      act.later(others.length > 1 ? `${others.length} clusters merged into one` : message);
    },
    async put(kind) {
      const some = chosen();
      const next = some.at(-1)?.nextElementSibling ?? some[0]?.previousElementSibling;
      for (const card of some) {
        const answer = await act.edit({kind, number: numberOf(card)});
        if (!answer) return;
        card.remove();
        Lookalike.say(answer.message);
      }
      focus(next);
      changed();
    },
  };
  const run = (name) => (name === "junk" || name === "keep" ? does.put(name) : does[name]());
  const keys = {n: "name", m: "merge", j: bar.querySelector('[data-do="keep"]') ? "keep" : "junk"};

  list.addEventListener("focusin", () => { last = here(); });
  list.addEventListener("change", changed);
  list.addEventListener("click", (event) => {
    const card = event.target.closest(".cluster");
    if (!card || event.target.closest("a, input")) return;
    card.querySelector("input").checked = !isOn(card);
    focus(card);
    changed();
  });
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("dialog, select, .how")) return;
    const {key} = event;
    if (event.target.closest("button") && (key === " " || key === "Enter")) return;
    const card = here();
    const all = cards();
    const step = {ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1}[key];
    if (step && (card || document.activeElement === document.body)) focus(all[card ? Math.min(Math.max(all.indexOf(card) + step, 0), all.length - 1) : 0]);
    else if (key === " " && card) {
      card.querySelector("input").checked = !isOn(card);
      changed();
    } else if (key === "u") act.undo();
    else if (/^[1-9]$/.test(key) && mayLabel && categories[key - 1] !== undefined) label(categories[key - 1]);
    else if (key in keys) run(keys[key]);
    else return;
    event.preventDefault();
  });
  bar.addEventListener("click", ({target}) => {
    const button = target.closest("button");
    if (button?.dataset.category) label(button.dataset.category);
    else if (button?.dataset.do) run(button.dataset.do);
  });
  bar.addEventListener("change", ({target}) => {
    if (!target.matches("[data-categories]") || !target.value) return;
    label(target.value);
    target.value = "";
  });
});

// The page of a category: confirm or reject what is proposed, search on with examples, and find out how far it goes.
"use strict";
addEventListener("DOMContentLoaded", () => {
  const root = document.getElementById("sheet");
  const bar = document.querySelector(".actions");
  const act = Lookalike.acting(bar);
  const sheet = root.sheet;
  const {base, name} = bar.dataset;
  const mayLabel = bar.querySelector("[data-scope]");

  async function label(category, ids) {
    if (!ids.length) return Lookalike.say("Select some first; a selects all");
    let back = null;
    sheet.fade(ids);
    const answer = await act.label(category, ids, () => back?.());
    sheet.fade(ids, false);
    if (!answer) return;
    const said = [...answer.done, ...answer.skipped];
    if (category === name) back = act.mark(root, said, category);
    else sheet.remove(said);
    sheet.choose(answer.failed.map((one) => one.keyframe));
  }

  async function tiles(ids) {
    const answer = await fetch(`${base}/tiles?ids=${ids.join(",")}`, {headers: {Accept: "text/html"}});
    return answer.ok ? answer.text() : "";
  }

  // Rounds: what is most like the examples, with what was liked and unliked here.
  const liked = new Set();
  const unliked = new Set();
  async function round(ids, mine, others) {
    if (!ids.length) return;
    for (const id of ids) {
      mine.add(id);
      others.delete(id);
    }
    const found = await Lookalike.post(`${base}/ranking`, {category: name, like: [...liked], unlike: [...unliked], top: 120}).catch(() => null);
    if (!found) return;
    sheet.set(await tiles(found.keyframes));
    document.getElementById("nothing")?.remove();
    const place = document.getElementById("round");
    place.hidden = false;
    place.querySelector("[data-round]").textContent = `Most like ${name}, with ${liked.size} more example${liked.size === 1 ? "" : "s"}, away from ${unliked.size}`;
    Lookalike.say(`${found.keyframes.length} found`);
  }

  // How far does it go? Sheets ever farther away until one is wrong, then from the middle of what is open: about
  // log2(n) questions. The first is where our own guesses end.
  const panel = document.getElementById("reach");
  const at = (part) => panel.querySelector(`[data-reach="${part}"]`);
  const slider = panel.querySelector("input");
  const SHEET = 12;
  let ranked = [];
  let [low, high] = [0, 0]; // so many are right for sure; from here on they are not
  let asked = 0;
  let place = 0;
  let middle = 0;

  async function show(middle) {
    place = Math.max(0, Math.min(middle - SHEET / 2, ranked.length - SHEET));
    at("sheet").setAttribute("aria-busy", "true"); // nobody answers for what is not there yet
    at("sheet").innerHTML = await tiles(ranked.slice(place, place + SHEET)).catch(() => ""); // our own server's template
    at("sheet").removeAttribute("aria-busy");
    for (const tile of at("sheet").querySelectorAll("[role]")) {
      tile.removeAttribute("role");
      tile.removeAttribute("aria-selected");
    }
  }

  async function next() {
    const over = high - low <= SHEET / 2;
    for (const part of ["yes", "no"]) at(part).hidden = over;
    for (const part of ["label", "propose"]) at(part).hidden = true;
    if (over) return end(low);
    const farther = asked ? 2 * low : Math.max(2 * SHEET, Number(bar.dataset.proposed));
    middle = high < ranked.length || farther >= high ? (low + high) >> 1 : farther;
    slider.value = middle;
    const left = Math.max(1, Math.ceil(Math.log2((Math.min(high, 2 * middle) - low) / (SHEET / 2))));
    await show(middle);
    at("question").textContent = `Are all of these ${name}? Question ${asked + 1}, about ${left} to go.`;
    at("yes").focus();
  }

  async function end(count) {
    low = high = count;
    at("label").textContent = `Label ${count} as ${name}`;
    at("label").hidden = !count || !mayLabel;
    at("propose").hidden = !count;
    slider.value = count;
    at("question").textContent = count
      ? `The ${count} most alike are ${name}; these are the last of them. Move the slider to change that.`
      : `Even the most alike are not ${name}.`;
    await show(count - SHEET / 2);
    if (count) at("label").focus();
  }

  async function answer(yes) {
    if (panel.hidden || at("yes").hidden || at("sheet").hasAttribute("aria-busy")) return;
    asked += 1;
    if (yes) low = Math.min(place + SHEET, ranked.length);
    else high = place;
    if (high < low) high = low;
    await next();
  }

  async function reach() {
    const found = await Lookalike.post(`${base}/ranking`, {category: name, like: [], unlike: [], top: 1000}).catch(() => null);
    if (!found) return;
    ranked = found.keyframes;
    [low, high, asked] = [0, ranked.length, 0];
    slider.max = ranked.length;
    panel.hidden = false;
    panel.scrollIntoView({block: "nearest"});
    if (ranked.length) await next();
    else at("question").textContent = "Nothing is left that nobody has labelled.";
  }

  slider.addEventListener("change", () => {
    for (const part of ["yes", "no"]) at(part).hidden = true;
    end(Number(slider.value));
  });
  panel.addEventListener("click", async ({target}) => {
    const part = target.closest("button")?.dataset.reach;
    if (part === "yes" || part === "no") answer(part === "yes");
    else if (part === "close") panel.hidden = true;
    else if (part === "label") {
      const done = await act.label(name, ranked.slice(0, low));
      if (done && !done.failed.length) act.later(`${done.done.length} labelled ${name}`);
    } else if (part === "propose") {
      const done = await act.propose(ranked.slice(0, low), name);
      if (done) panel.hidden = true;
    }
  });
  panel.addEventListener("keydown", (event) => {
    if (event.key !== "y" && event.key !== "n") return;
    event.preventDefault();
    answer(event.key === "y");
  });

  const does = {
    confirm: (ids) => label(name, ids),
    async reject(ids) {
      const found = ids.length ? await act.reject(ids, name) : null;
      if (found?.edit) sheet.remove(ids);
    },
    all: () => sheet.choose(sheet.ids),
    more: (ids) => round(ids, liked, unliked),
    less: (ids) => round(ids, unliked, liked),
    reach,
  };
  const keys = {c: "confirm", r: "reject", Delete: "reject", l: "more", k: "less", h: "reach"};
  act.wire(root, {does, keys, label});
});

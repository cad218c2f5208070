// The page of one cluster: its members as a sheet, and what can be done with them.
"use strict";
addEventListener("DOMContentLoaded", () => {
  const root = document.querySelector(".sheet");
  const bar = document.querySelector(".actions");
  const act = Lookalike.acting(bar);
  const sheet = root.sheet;
  const number = Number(bar.dataset.number);
  const scope = bar.querySelector("[data-scope]");

  // The selected ones; none selected: the whole cluster, also what is not on the page yet.
  async function label(category, ids) {
    const all = !ids.length;
    if (all) ids = (await Lookalike.get(`${bar.dataset.base}/clusters/${number}/keyframes`)).keyframes;
    let back = null;
    const answer = await act.label(category, ids, () => back?.());
    if (!answer) return;
    back = act.mark(root, [...answer.done, ...answer.skipped], category);
    sheet.choose(answer.failed.map((one) => one.keyframe));
  }

  async function edit(body, gone = []) {
    const answer = await act.edit({number, ...body});
    if (!answer) return;
    if (gone.length && gone.length < sheet.ids.length) {
      sheet.remove(gone);
      Lookalike.say(answer.message);
    } else act.later(answer.message);
  }

  const does = {
    exclude: (ids) => ids.length && edit({kind: "exclude", keyframes: ids}, ids),
    split: (ids) => edit({kind: "split", keyframes: ids}, ids),
    junk: () => edit({kind: "junk"}),
    keep: () => edit({kind: "keep"}),
    async reject(ids) {
      if (!ids.length) return;
      const answer = await act.reject(ids);
      if (answer?.done) act.later(`${answer.done} rejected, not to be proposed again`);
    },
    async name() {
      const text = await act.ask("Name of this cluster");
      if (text !== null) edit({kind: "name", text});
    },
  };
  const keys = {x: "exclude", Delete: "exclude", s: "split", r: "reject", n: "name", j: bar.querySelector('[data-do="keep"]') ? "keep" : "junk"};
  act.wire(root, {does, keys, label});

  root.addEventListener("sheet:change", ({detail}) => {
    if (scope) scope.textContent = detail.ids.length ? `Label ${detail.ids.length} as` : `Label all ${bar.dataset.size} as`;
  });
  bar.addEventListener("change", async ({target}) => {
    if (!target.matches("[data-merge]") || !target.value) return;
    const answer = await act.edit({kind: "merge", number: Number(target.value), other: number});
    target.value = "";
    if (!answer) return;
    sessionStorage.setItem("say", answer.message);
    location.href = answer.address;
  });
  if (scope) scope.textContent = `Label all ${bar.dataset.size} as`;
});

// What can be done with the keyframes of any sheet: label, reject, undo; by buttons of acting.html and by keys.
//
//   Lookalike.labelling(root, bar)     root: a .sheet; bar: its .actions with label_buttons and state -> Lookalike.acting
"use strict";
Lookalike.labelling = (root, bar) => {
  const act = Lookalike.acting(bar);
  const sheet = Lookalike.sheet(root);

  async function label(category, ids) {
    if (!ids.length) return;
    let back = null;
    const answer = await act.label(category, ids, () => back?.());
    if (answer) back = act.mark(root, [...answer.done, ...answer.skipped], category);
  }
  async function reject(ids) {
    if (ids.length) await act.reject(ids);
  }

  root.addEventListener("sheet:digit", ({detail}) => { if (bar.querySelector("[data-category]")) label(detail.category, detail.ids); });
  root.addEventListener("sheet:undo", act.undo);
  root.addEventListener("sheet:key", (event) => {
    if (event.detail.key !== "r") return;
    event.preventDefault();
    reject(event.detail.ids);
  });
  bar.addEventListener("click", ({target}) => {
    const button = target.closest("button");
    if (button?.dataset.category) label(button.dataset.category, sheet.chosen);
    else if (button?.dataset.do === "reject") reject(sheet.chosen);
  });
  bar.addEventListener("change", ({target}) => {
    if (!target.matches("[data-categories]") || !target.value) return;
    label(target.value, sheet.chosen);
    target.value = "";
  });
  return act;
};

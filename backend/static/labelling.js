// What can be done with the keyframes of any sheet: label, reject, undo; by buttons of acting.html and by keys.
//
//   Lookalike.labelling(root, bar)     root: a .sheet; bar: its .actions with label_buttons and state -> Lookalike.acting
//   Lookalike.labelling(root, bar, {does: {more: (ids) => …}, keys: {l: "more"}})     … and what else the bar can do
"use strict";
Lookalike.labelling = (root, bar, {does = {}, keys = {}} = {}) => {
  const act = Lookalike.acting(bar);
  Lookalike.sheet(root);

  async function label(category, ids) {
    if (!ids.length) return;
    let back = null;
    const answer = await act.label(category, ids, () => back?.());
    if (answer) back = act.mark(root, [...answer.done, ...answer.skipped], category);
  }
  async function reject(ids) {
    if (ids.length) await act.reject(ids);
  }

  act.wire(root, {does: {reject, ...does}, keys: {r: "reject", ...keys}, label});
  return act;
};

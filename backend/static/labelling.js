// What can be done with the keyframes of any sheet: label, reject, undo; by buttons of acting.html and by keys.
//
//   Lookalike.labelling(root, bar)     root: a .sheet; bar: its .actions with label_buttons and state -> Lookalike.acting
//   Lookalike.labelling(root, bar, {does: {more: (ids) => …}, keys: {l: "more"}})     … and what else the bar can do
//   Lookalike.labelling(root, bar, {mark: (category) => …})   while none is selected, data-own of the sheet is labelled;
//                                      mark shows that, and returns how to show what was before
"use strict";
Lookalike.labelling = (root, bar, {does = {}, keys = {}, mark = null} = {}) => {
  const act = Lookalike.acting(bar);
  Lookalike.sheet(root);
  const own = Number(root.dataset.own);

  async function label(category, ids) {
    if (!ids.length && !own) {
      Lookalike.say("Select the keyframes that are to be labelled first");
      return;
    }
    let back = null;
    const answer = await act.label(category, ids.length ? ids : [own], () => back?.());
    const known = answer ? [...answer.done, ...answer.skipped] : [];
    if (known.length) back = ids.length ? act.mark(root, known, category) : mark(category);
  }
  async function reject(ids) {
    if (ids.length) await act.reject(ids);
  }

  act.wire(root, {does: {reject, ...does}, keys: {r: "reject", ...keys}, label});
  return act;
};

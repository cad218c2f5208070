// What people do with keyframes, told to our server: in parts, with progress, and with one undo for all of it.
//
//   const act = Lookalike.acting(bar)            bar: the element .actions with data-base, the project's address
//   await act.label("Car", ids)                  -> {done, skipped, failed: [{keyframe, reason}]}
//   await act.reject(ids, "Car")                 the proposal is wrong; without a category, whatever is proposed
//   await act.propose(ids, "Car")                not the person's word, but a guess to be confirmed
//   await act.edit({kind: "junk", number: 7})    see POST …/edits
//   await act.undo()                             what this person did last in this project
//   act.wire(sheet, {does, keys, label})         keys and buttons of a sheet
//   act.later("…")                               load the page anew, and say this then
//   await act.ask("Name of this cluster")        text from the person, or null
"use strict";
Lookalike.acting = (bar) => {
  const base = bar.dataset.base;
  const PART = 100; // a second of work for Label Studio on SQLite
  const doing = bar.querySelector(".doing");
  const history = []; // what was done on this page: {edit, back}
  let busy = false;
  let stopped = false;

  doing.querySelector("[data-stop]").addEventListener("click", () => { stopped = true; });
  for (const button of bar.querySelectorAll("[data-colour]")) button.style.borderLeftColor = button.dataset.colour;

  function progress(done, of, words) {
    doing.hidden = done >= of;
    doing.querySelector("progress").value = of ? done / of : 1;
    doing.querySelector("[data-doing]").textContent = `${done} of ${of} ${words}`;
  }

  // One thing at a time: a second click while the first is under way would do it twice.
  async function alone(what) {
    if (busy) return Lookalike.say("One moment: what you did before is still being written.");
    busy = true;
    stopped = false;
    try {
      return await what();
    } catch (error) {
      Lookalike.complain(error.message); // the server's sentence
      return undefined;
    } finally {
      busy = false;
      progress(1, 1, "");
    }
  }

  const act = {
    label: (category, ids, back = null) => alone(async () => {
      const all = {done: [], skipped: [], failed: []};
      let edit = null;
      let broken = 0;
      for (let at = 0; at < ids.length && !stopped && broken < 2; at += PART) {
        progress(at, ids.length, `labelled ${category}`);
        const part = ids.slice(at, at + PART);
        try {
          const answer = await Lookalike.post(`${base}/labels`, {category, keyframes: part, edit});
          edit = answer.edit;
          for (const key of ["done", "skipped", "failed"]) all[key].push(...answer[key]);
          broken = 0;
        } catch (error) {
          broken += 1;
          all.failed.push(...part.map((keyframe) => ({keyframe, reason: error.message})));
        }
      }
      if (edit && all.done.length) history.push({edit, back});
      const words = [`${all.done.length} labelled ${category}`];
      if (all.skipped.length) words.push(`${all.skipped.length} were already`);
      if (all.failed.length) words.push(`${all.failed.length} failed: ${all.failed[0].reason}`);
      if (stopped) words.push("stopped");
      Lookalike[all.failed.length ? "complain" : "say"](words.join("; "));
      return all;
    }),
    reject: (ids, category = "") => alone(async () => {
      const answer = await Lookalike.post(`${base}/rejections`, {keyframes: ids, category});
      if (answer.edit) history.push({edit: answer.edit, back: null});
      Lookalike.say(answer.done ? `${answer.done} rejected, not to be proposed again` : "Nothing is proposed for these");
      return answer;
    }),
    propose: (ids, category) => alone(async () => {
      const answer = await Lookalike.post(`${base}/proposals`, {keyframes: ids, category});
      history.push({edit: answer.edit, back: () => {}});
      Lookalike.say(`${answer.done} proposed as ${category}; they show up in a moment`);
      return answer;
    }),
    edit: (body) => alone(() => Lookalike.post(`${base}/edits`, body)),
    undo: () => alone(async () => {
      let answer;
      let edit = null;
      let done = 0;
      do {
        answer = await Lookalike.post(`${base}/undo`, {edit});
        edit = answer.edit;
        done += answer.done ?? 0;
        progress(done, done + answer.remaining, "taken back");
      } while (answer.remaining && !stopped);
      if (!edit) return Lookalike.say(answer.message);
      const last = history.findIndex((one) => one.edit === edit);
      const back = last >= 0 ? history.splice(last, 1)[0].back : null;
      if (!back) return act.later(answer.message);
      back();
      return Lookalike.say(answer.message);
    }),
    // Keys and buttons of a sheet. does: by name, what is done with the selected ones; keys: the names by key.
    wire(root, {does, keys, label}) {
      const run = (name) => bar.querySelector(`[data-do="${name}"]`) && does[name](root.sheet.chosen);
      root.addEventListener("sheet:digit", ({detail}) => bar.querySelector("[data-scope]") && label(detail.category, detail.ids));
      root.addEventListener("sheet:undo", act.undo);
      root.addEventListener("sheet:key", (event) => {
        if (!(event.detail.key in keys)) return;
        event.preventDefault();
        run(keys[event.detail.key]);
      });
      bar.addEventListener("click", ({target}) => {
        const button = target.closest("button");
        if (button?.dataset.category) label(button.dataset.category, root.sheet.chosen);
        else if (button?.dataset.do) run(button.dataset.do);
      });
      bar.addEventListener("change", ({target}) => {
        if (!target.matches("[data-categories]") || !target.value) return;
        label(target.value, root.sheet.chosen);
        target.value = "";
      });
    },
    later(message) {
      sessionStorage.setItem("say", message);
      location.reload();
    },
    ask(words) {
      const dialog = document.getElementById("ask");
      const input = dialog.querySelector("input");
      dialog.querySelector("label").textContent = words;
      dialog.returnValue = "";
      dialog.showModal();
      input.select();
      return new Promise((resolve) => {
        dialog.addEventListener("close", () => resolve(dialog.returnValue === "ok" ? input.value : null), {once: true});
      });
    },
    // What tiles show of a label that was just given; -> how to show what they did before.
    mark(sheet, ids, category) {
      const before = [];
      for (const id of ids) {
        const tile = sheet.querySelector(`[data-id="${Number(id)}"]`);
        if (!tile) continue;
        const [word, meter] = [tile.querySelector(".category"), tile.querySelector("meter")];
        before.push([tile, tile.dataset.state, word, word.textContent, meter, meter.value]);
        tile.dataset.state = "labelled";
        word.textContent = category;
        meter.value = 1;
      }
      return () => {
        for (const [tile, state, word, text, meter, value] of before) {
          tile.dataset.state = state;
          word.textContent = text;
          meter.value = value;
        }
      };
    },
  };
  bar.querySelector("[data-undo]").addEventListener("click", act.undo);
  // Wherever the focus is but in a field: u undoes, an arrow goes to the sheet, other keys do what they do there; those
  // that work a button, a link or the page itself are left to these.
  const sheet = document.querySelector('.sheet[role="listbox"]');
  addEventListener("keydown", (event) => {
    if (!sheet || event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    if (sheet.contains(event.target) || event.target.closest("input, select, textarea, dialog")) return;
    if (event.key === "u") act.undo();
    else if (/^Arrow/.test(event.key)) sheet.querySelector('[tabindex="0"]')?.focus();
    else {
      if (/^[^ ]$|^Escape$|^Delete$/.test(event.key)) sheet.sheet?.press(event);
      return;
    }
    event.preventDefault();
  });
  return act;
};
addEventListener("DOMContentLoaded", () => {
  const message = sessionStorage.getItem("say");
  sessionStorage.removeItem("say");
  if (message) Lookalike.say(message);
});

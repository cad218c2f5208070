// The page of one keyframe: its nearest come as soon as they are found, and are a sheet.
"use strict";
addEventListener("DOMContentLoaded", async () => {
  const root = document.querySelector("#nearest .sheet");
  const note = document.querySelector("#nearest [role=status]");
  Lookalike.labelling(root, document.querySelector("#nearest .actions"));
  for (;;) {
    const answer = await fetch(root.dataset.nearest, {headers: {Accept: "text/html"}}).catch(() => null);
    if (answer?.status === 200 && !answer.redirected) {
      root.sheet.set(await answer.text());
      note.textContent = root.sheet.ids.length ? "" : "Nothing to compare it with yet.";
      return;
    }
    if (answer && answer.status !== 202) {
      note.textContent = "They cannot be shown now.";
      return;
    }
    await new Promise((done) => setTimeout(done, 2000)); // they are being taken in for the first search
  }
});
